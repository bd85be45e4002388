"""How does the bound fall with parameters and tokens, if nothing is tuned again?

Question: five sizes times five token budgets, settings carried from the default run's by
Complete(d)P and the batch rule. Fit L = E + A / N^a + B / D^b (laws.py) and read off D*, the
tokens that suit N parameters at the least compute.
The paper (arXiv 2602.21472, second-hand): D* = 7754 N^0.84 for 80M to 3B parameters; which N is
not known to us. A toy of 0.01 to 0.8 million parameters on a world of its own cannot confirm or
refute that: other data have other exponents. It can show the method, and how wide its intervals
are.
Set-up: common.SMALL on all three kinds, a third of the tokens each. N without embeddings and head.
D: tokens of all kinds. Intervals, 10 to 90%: fits to trials drawn anew with replacement.

    python experiments/scaling.py
"""
import numpy as np

import common
import laws
from common import KINDS, data, models

SHAPES = [dict(width=w, depth=d) for w, d in ((32, 1), (64, 1), (64, 2), (96, 3), (128, 4))]
BUDGETS = (93_750, 187_500, 375_000, 750_000, 1_500_000)
QUICK = dict(shapes=SHAPES[:2], budgets=(1_000, 2_000), seeds=(0,), draws=1,
             pairs=common.FEW_PAIRS)


def parameters(shape):
    """Parameters without embeddings and head."""
    config = models.ModelConfig(vocab=8, places=8, head_dim=32, **shape)
    counts = models.count_parameters(models.Transformer(config))
    return counts["total"] - counts["embedding"] - counts["unembedding"]


def frontier(law, N):
    """Tokens that make the loss least at the compute 6 N D: where the last unit of either buys the
    same. None if one of them buys nothing."""
    if min(law["A"] * law["a"], law["B"] * law["b"]) < 1e-12:
        return None
    ratio = law["b"] * law["B"] / (law["a"] * law["A"])
    return float((ratio * N ** law["a"]) ** (1 / law["b"]))


def fit(N, D, L, draws):
    """The law of one series, intervals of its exponents and of the frontier's, and D*."""
    law, p = laws.fit_scaling(N, D, L)

    def again(N, D, L):
        return laws.fit_scaling(N, D, L, [p])[0]

    drawn = laws.resampled(again, (N, D, L), draws, data.rng(0, 41))
    intervals = {name: laws.interval([d[name] for d in drawn]) for name in ("a", "b")}
    intervals["slope"] = laws.interval([d["a"] / d["b"] for d in drawn if frontier(d, 1e5)])
    return {"law": law, "slope": law["a"] / law["b"], "intervals": intervals,
            "frontier": {int(n): frontier(law, n) for n in set(N)},
            "points": np.stack((N, D, L), 1).tolist()}


def study(folder, shapes=SHAPES, budgets=BUDGETS, seeds=(0, 1), draws=50, pairs=common.PAIRS):
    cells = {(parameters(shape), tokens): common.trial(
        shape={**shape, "head_dim": 32}, tokens=tokens, mix=dict.fromkeys(KINDS, 1 / 3), **pairs)
        for shape in shapes for tokens in budgets}
    results = common.run_cells(folder / "scaling-runs.json", cells, seeds)
    points = [[N, sum(r["tokens"].values()), *(r["bounds"][kind][0] for kind in KINDS)]
              for (N, _), of in results.items() for r in of]
    N, D, *nats = np.array(points, float).T
    series = {**dict(zip(KINDS, nats)), "all": np.mean(nats, 0)}
    return {"seeds": len(seeds), "fits": {name: fit(N, D, L, draws) for name, L in series.items()}}


def draw(result):
    figure, axes = common.panels(5, figsize=(20, 3.8))
    for panel, (name, r) in zip(axes, result["fits"].items()):
        law = r["law"]
        for n in sorted({int(N) for N, _, _ in r["points"]}):
            D, L = np.array([(D, L) for N, D, L in r["points"] if N == n]).T
            line, = panel.plot(D, L, "o", ms=3, label=f"N = {n / 1000:.0f}k")
            grid = np.geomspace(D.min(), D.max(), 40)
            fitted = law["E"] + law["A"] / n ** law["a"] + law["B"] / grid ** law["b"]
            panel.plot(grid, fitted, lw=1, color=line.get_color())
        common.count_axis(panel)
        panel.set(xlabel="tokens D, of all kinds", title=f"{name}, nats a token")
        known = {int(n): D for n, D in r["frontier"].items() if D}
        axes[4].plot(sorted(known), [known[n] for n in sorted(known)], marker="o", label=name)
    N = np.geomspace(1e4, 1e6, 9)
    axes[4].plot(N, 7754 * N ** 0.84, ls=":", label="7754 N^0.84, far outside its range")
    axes[4].set(xscale="log", yscale="log", xlabel="N", title="tokens D* of least compute")
    for panel in (axes[0], axes[4]):
        panel.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    common.command_line("scaling", __doc__, study, draw, QUICK)
