"""How does the bound fall with parameters and tokens, if nothing is tuned again?

Question: five sizes times five token budgets, settings carried from the default run's by Complete(d)P and the batch rule; fit
L(N, D) = E + A / N^a + B / D^b and read off the tokens D* that suit N parameters at the least compute.
The paper (arXiv 2602.21472): D* = 7754 N^0.84 (N total parameters, 80M to 3B). A toy of 0.01 to 0.8 million parameters on text of a
world of one's own cannot confirm or refute that: other data has other exponents. What it can show is the method, and how wide its intervals are.
Set-up: experiments/common.py, `trimodal`; width 32 to 128, depth 1 to 4, a third of the tokens of each kind, joint masking, steps of 1,536
tokens, 0.09 to 1.5 million tokens, two seeds; N without embeddings and head. Bounds of each kind's rows and of all tokens. Intervals (10 to
90%): fits to runs drawn anew with replacement.
On two cores at half speed about 19 minutes:  python experiments/scaling.py      writes results/scaling.json and .png
"""
import argparse

import numpy as np

import common
from common import data, models

SHAPES = [dict(width=w, depth=d) for w, d in ((32, 1), (64, 1), (64, 2), (96, 3), (128, 4))]
BUDGETS = (93_750, 187_500, 375_000, 750_000, 1_500_000)
EXPONENTS = np.linspace(0.05, 2.0, 40)
PARTS = {"text": "text: text", "image-text": "image-text: joint", "speech-text": "speech-text: joint"}


def fit_law(N, D, L):
    """E, A, a, B, b of L = E + A / N^a + B / D^b: least squares of log L, by search over a and b with E, A, B >= 0 solved for."""
    best = (np.inf,)
    for a in EXPONENTS:
        for b in EXPONENTS:
            X = np.stack((np.ones(len(L)), (N / N.min()) ** -a, (D / D.min()) ** -b), 1) / L[:, None]   # relative errors
            keep = [0, 1, 2]
            while True:                                                     # drop what would be negative
                part = np.linalg.lstsq(X[:, keep], np.ones(len(L)), rcond=None)[0]
                if (part >= 0).all():
                    break
                keep.pop(int(part.argmin()))
            c = np.zeros(3)
            c[keep] = part
            error = float((np.log((X @ c).clip(1e-9)) ** 2).sum())
            if error < best[0]:
                best = (error, float(c[0]), float(c[1] * N.min() ** a), float(a), float(c[2] * D.min() ** b), float(b))
    return best[1:]


def frontier(law, N):
    """Tokens that make the loss least at the compute 6 N D: where the last unit of either buys the same. None if one of them buys nothing."""
    E, A, a, B, b = law
    return (b * B / (a * A) * N ** a) ** (1 / b) if A > 0 and B > 0 else None


def fitted(N, D, L, stderr, draws, rng):
    """The law of one series of bounds, its intervals, and its frontier."""
    law, drawn = fit_law(N, D, L), []
    for _ in range(draws):
        at = rng.integers(0, len(L), len(L))
        if len(set(N[at])) > 2 and len(set(D[at])) > 2:
            drawn.append(fit_law(N[at], D[at], L[at]))
    interval = lambda values: [float(v) for v in np.percentile(values, (10, 90))] if len(values) else None
    slope = lambda law: law[2] / law[4]
    return dict(points=[dict(N=n, D=d, bound=b, stderr=e) for n, d, b, e in zip(N, D, L, stderr)],
                law=dict(zip("EAaBb", law)), intervals={k: interval([d[i] for d in drawn]) for i, k in enumerate("EAaBb")},
                slope=slope(law) if frontier(law, 1.0) else None, slope_interval=interval([slope(d) for d in drawn if frontier(d, 1.0)]),
                frontier=[dict(N=n, D=frontier(law, n), paper=7754 * n ** 0.84) for n in sorted(set(N.tolist()))])


def study(folder, world=(2_500, 10_000), shapes=SHAPES, budgets=BUDGETS, seeds=(0, 1), draws=100):
    common.trimodal(*world)                                                # made once, before the workers read it
    configs = [common.base(**shape, tokens=tokens, seed=seed, trimodal=list(world), mix={k: 1 / len(PARTS) for k in PARTS})
               for shape in shapes for tokens in budgets for seed in seeds]
    results = common.run_all(folder / "scaling-runs.json", configs)
    count = lambda shape: models.count(models.Transformer(models.ModelConfig(8, 8, **shape, head_dim=32)))["non_embedding"]
    N = np.array([count(s) for s in shapes for _ in budgets for _ in seeds], float)
    D, rng = np.array([c["tokens"] for c in configs], float), data.rng(0, 41)
    bounds = {part: np.array([r["bounds"][name] for r in results]).T for part, name in PARTS.items()}            # (2, runs)
    bounds["all"] = np.stack((sum(b[0] for b in bounds.values()) / 3, np.sqrt(sum(b[1] ** 2 for b in bounds.values())) / 3))
    return {part: fitted(N, D, *b, draws, rng) for part, b in bounds.items()}


def draw(result):
    figure, panels = common.figure(5, figsize=(20, 3.8))
    for panel, (part, r) in zip(panels, result.items()):
        for n in sorted({p["N"] for p in r["points"]}):
            mine = [p for p in r["points"] if p["N"] == n]
            line = panel.errorbar([p["D"] for p in mine], [p["bound"] for p in mine], [p["stderr"] for p in mine], marker="o", ms=3, lw=0, elinewidth=1,
                                  label=f"N = {n / 1000:.0f}k")
            E, A, a, B, b = (r["law"][k] for k in "EAaBb")
            D = np.geomspace(min(p["D"] for p in mine), max(p["D"] for p in mine), 40)
            panel.plot(D, E + A / n ** a + B / D ** b, lw=1, color=line.lines[0].get_color())
        panel.set(xscale="log", xlabel="tokens D, of all kinds", title=part + ("" if part != "text" else ", nats a token"))
    panels[0].legend(fontsize=7)
    for part, r in ((part, r) for part, r in result.items() if r["slope"]):
        panels[4].loglog([p["N"] for p in r["frontier"]], [p["D"] for p in r["frontier"]], marker="o", label=part)
    panels[4].loglog(*zip(*((p["N"], p["paper"]) for p in result["text"]["frontier"])), ls=":", label="7754 N^0.84, far outside its range")
    panels[4].set(xlabel="parameters N", title="tokens D* of least compute")
    panels[4].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--quick", action="store_true", help="three sizes, three budgets, few tokens; writes to a temporary folder")
    quick = args.parse_args().quick
    result = study(common.results_folder(quick), *(((20, 200), SHAPES[:3], (8_000, 16_000, 32_000), (0,), 5) if quick else ()))
    for part, r in result.items():
        print(f"{part}, rate of fall: L = E + A / N^a + B / D^b with " + ", ".join(
            f"{k} = {v:.3g} ({' to '.join(f'{x:.3g}' for x in r['intervals'][k] or [])})" for k, v in r["law"].items()))
        print(f"  D* grows as N^{r['slope']:.2f} (" + " to ".join(f"{x:.2f}" for x in r["slope_interval"] or []) + "); the paper: N^0.84; "
              + ", ".join(f"N = {p['N']:.3g}: D* = {p['D']:.3g}" for p in r["frontier"]) if r["slope"] else "  no D*: one of the two buys nothing")
    if not quick:
        common.finish("scaling", result, draw(result))


if __name__ == "__main__":
    main()
