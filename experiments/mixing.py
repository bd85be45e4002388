"""How should the training tokens be shared among text, image-text and speech-text?

Question: the bound of each kind as a function of its own tokens and of the others', over a grid of mixes; is a token of another kind
worth anything (does one modality help or hurt another at equal own tokens); which mix makes a weighted sum of the three bounds least.
The paper (arXiv 2602.21472) trains on a mix of its own choice; what each modality gains from the others is not given there.
Set-up: experiments/common.py, `trimodal`; width 64, depth 2, steps of 1,536 tokens, joint masking, bound weighting, every token alike; ten
mixes, two totals, two seeds. For each kind L = E + B / (own + c * others)^b: c is what a token of the others is worth in own ones.
Intervals (10 to 90%): fits to runs drawn anew with replacement.
On two cores at half speed about 7 minutes:  python experiments/mixing.py      writes results/mixing.json and .png
"""
import argparse
import itertools

import numpy as np

import common
from common import data

KINDS = list(data.KINDS)
THIRD, SIXTH = 1 / 3, 1 / 6
MIXES = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (.5, .5, 0), (.5, 0, .5), (0, .5, .5), (THIRD,) * 3,
         (2 * THIRD, SIXTH, SIXTH), (SIXTH, 2 * THIRD, SIXTH), (SIXTH, SIXTH, 2 * THIRD)]
BOUND = {"text": "text: text", "image-text": "image-text: joint", "speech-text": "speech-text: joint"}
WORTH, POWERS = np.linspace(-0.3, 1.0, 27), np.linspace(0.1, 1.5, 15)


def fit_law(own, others, bound):
    """c, E, B, b of bound = E + B / (own + c * others)^b, least squares with E, B >= 0 by search over c and b; tokens in millions."""
    best = (np.inf,)
    for c, b in itertools.product(WORTH, POWERS):
        tokens = own + c * others
        if tokens.min() <= 0:
            continue
        X = np.stack((np.ones(len(own)), tokens ** -b), 1)
        E, B = np.linalg.lstsq(X, bound, rcond=None)[0]
        if E < 0:
            E, B = 0.0, float(X[:, 1] @ bound / (X[:, 1] @ X[:, 1]))
        error = float(((E + B * X[:, 1] - bound) ** 2).sum())
        if B > 0 and error < best[0]:
            best = (error, float(c), float(E), float(B), float(b))
    return best[1:]


def best_mix(laws, total, weights, parts=40):
    """Shares that make the weighted sum of the bounds least, of all in steps of 1 / parts with none at zero."""
    made = []
    for i, j in itertools.product(range(1, parts), repeat=2):
        if i + j < parts:
            shares = np.array((i, j, parts - i - j)) / parts
            tokens = [s * total + c * (1 - s) * total for s, (c, *_) in zip(shares, laws)]
            if min(tokens) > 0:
                made.append((sum(w * (E + B / t ** b) for w, t, (_, E, B, b) in zip(weights, tokens, laws)), shares.tolist()))
    return min(made)[1]


def study(folder, world=(2_500, 10_000), mixes=MIXES, totals=(250_000, 500_000), seeds=(0, 1), draws=100):
    common.trimodal(*world)                                                # made once, before the workers read it
    cells = list(itertools.product(totals, mixes, seeds))
    configs = [common.base(tokens=total, seed=seed, trimodal=list(world), mix={k: s for k, s in zip(KINDS, mix) if s}) for total, mix, seed in cells]
    results, rng, out, laws = common.run_all(folder / "mixing-runs.json", configs), data.rng(0, 43), {}, []
    for n, kind in enumerate(KINDS):
        mine = [(total * mix[n] / 1e6, total * (1 - mix[n]) / 1e6, *r["bounds"][BOUND[kind]], total) for (total, mix, _), r in zip(cells, results) if mix[n]]
        own, others, bound, stderr, total = np.array(mine).T
        law, drawn = fit_law(own, others, bound), []
        for _ in range(draws):
            at = rng.integers(0, len(own), len(own))
            if len(set(own[at])) > 2:
                drawn.append(fit_law(own[at], others[at], bound[at]))
        # the same own tokens alone and with as many of others: corner of the smaller total against an edge's middle of the larger
        at = lambda alone: bound[np.isclose(own, totals[0] / 1e6) & (np.isclose(others, 0) == alone)]
        pair = {name: common.spread(at(alone)) if len(at(alone)) else None for name, alone in (("alone", True), ("with others", False))}
        out[kind] = dict(points=[dict(zip(("own", "others", "bound", "stderr"), map(float, m))) for m in mine], equal_own_tokens=pair,
                         law=dict(zip("cEBb", law)), c_interval=[float(v) for v in np.percentile([d[0] for d in drawn], (10, 90))])
        laws.append(law)
    least = {"every kind alike": (1, 1, 1), "text thrice": (3, 1, 1), "image-text thrice": (1, 3, 1), "speech-text thrice": (1, 1, 3)}
    return dict(totals=list(totals), seeds=len(seeds), kinds=out,
                best={name: dict(zip(KINDS, best_mix(laws, totals[-1] / 1e6, w))) for name, w in least.items()})


def draw(result):
    figure, panels = common.figure(4, figsize=(16, 3.8))
    for panel, (kind, r) in zip(panels, result["kinds"].items()):
        points, law = r["points"], r["law"]
        for alone, marker, label in ((True, "s", "alone"), (False, "o", "with others")):
            some = [p for p in points if (p["others"] < 1e-9) == alone]
            panel.errorbar([p["own"] for p in some], [p["bound"] for p in some], [p["stderr"] for p in some], fmt=marker, ms=4, capsize=2, label=label)
        own = np.geomspace(min(p["own"] for p in points), max(p["own"] for p in points), 40)
        panel.plot(own, law["E"] + law["B"] / own ** law["b"], lw=1, color="grey", label="fit, no others")
        panel.set(xscale="log", xlabel="own tokens, millions", ylabel="bound, nats a token", title=kind)
        panel.legend(fontsize=7)
    kinds = result["kinds"]
    middle = [r["law"]["c"] for r in kinds.values()]
    low, high = zip(*(r["c_interval"] for r in kinds.values()))
    panels[3].errorbar(range(3), middle, [[max(0, m - v) for m, v in zip(middle, low)], [max(0, v - m) for m, v in zip(middle, high)]], fmt="o", capsize=4)
    panels[3].axhline(0, lw=0.5, color="black")
    panels[3].set_xticks(range(3), list(kinds))
    panels[3].set_title("worth of a token of the others")
    return figure


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--quick", action="store_true", help="few tokens, tokenizers of 20 steps, one seed; writes to a temporary folder")
    quick = args.parse_args().quick
    result = study(common.results_folder(quick), *(((20, 200), MIXES, (6_000, 12_000), (0,), 5) if quick else ()))
    for kind, r in result["kinds"].items():
        pair = ", ".join(f"{name} {v[0]:.3f} ± {v[1]:.3f}" for name, v in r["equal_own_tokens"].items() if v)
        print(f"{kind:12} {result['totals'][0] / 1e6:g}M own tokens: {pair}; a token of the others is worth {r['law']['c']:.2f} "
              f"({r['c_interval'][0]:.2f} to {r['c_interval'][1]:.2f}), L = {r['law']['E']:.3f} + {r['law']['B']:.3f} / (million tokens)^{r['law']['b']:.2f}")
    for name, mix in result["best"].items():
        print(f"least sum of the bounds, {name}: " + ", ".join(f"{k} {100 * s:.0f}%" for k, s in mix.items()))
    if not quick:
        common.finish("mixing", result, draw(result))


if __name__ == "__main__":
    main()
