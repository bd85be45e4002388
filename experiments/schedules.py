"""What does the masking schedule change, if the bound does not depend on it?

Question: train with linear, cosine, poly:0.5, poly:2 and the schedule of least variance; compare gradient variance at the same weights, final
bound and passages. And as a sampling grid of the linearly trained network: how good are passages after 8 calls?
Theory (MD4, arXiv 2406.04329): the expected bound is the same for all; a schedule is a distribution of mask rates to train on, and the best
one draws them in proportion to the root mean square of the loss there. The paper (arXiv 2602.21472) uses the linear one.
Set-up: experiments/common.py; width 64, depth 2, 1.5M tokens in steps of 16 rows, three seeds.
On two cores at half speed about 6 minutes:  python experiments/schedules.py      writes results/schedules.json and .png
"""
import argparse

import numpy as np

import common
from common import data, diffusion, torch

NAMES = ("linear", "cosine", "poly:0.5", "poly:2")
CALLS = 8
SAMPLER = dict(sampler="entropy", budget=0.1, temperature=0.7)


def moments(c):
    """Root mean square over held-out rows of the bound's term at mask rates 1/40, 3/40, ...: sum over masked of nll / mask rate."""
    net, *_ = common.trained({k: v for k, v in c.items() if k != "bins"})
    w = common.world()
    d = w.stream.describe("text", w.held["text"])
    ids, place, doc, low, high = (torch.from_numpy(np.ascontiguousarray(a)) for a in (d.ids, d.place, d.doc, d.low, d.high))
    noisy, out, rng = torch.from_numpy(d.member >= 0), [], data.rng(0, 37)
    for rate in (np.arange(c["bins"]) + 0.5) / c["bins"]:
        masked = noisy & (torch.from_numpy(rng.random(ids.shape)) < rate)
        with torch.no_grad():
            logits = net(ids.masked_fill(masked, data.MASK), place, doc, select=masked)
        nll = diffusion.token_nll(logits, ids[masked], low[masked], high[masked])
        total = torch.zeros(ids.shape).masked_scatter(masked, nll).sum(1) / rate
        out.append(float((total ** 2).mean() ** 0.5))
    return out


def least_variance(rms):
    """[t, alpha] of the schedule whose mask rates have a density in proportion to rms (linear's have a constant one)."""
    bins = len(rms)
    density = np.asarray(rms) + 0.02 * np.mean(rms)                        # every mask rate some share
    t = np.concatenate(([0.0], np.cumsum(density) / density.sum()))
    t[-1] = 1.0
    alpha = 1 - np.arange(bins + 1) / bins
    return [t.tolist(), alpha.tolist()]


def study(folder, tokens=1_500_000, seeds=(0, 1, 2), names=NAMES, **few):
    path = folder / "schedules-runs.json"
    config = lambda schedule, seed, **more: common.base(tokens=tokens, schedule=schedule, seed=seed, **more)
    rms = common.run_all(path, [config("linear", 0, bins=20)], job=moments)[0]
    arms = {**{n: n for n in names}, "least variance": least_variance(rms)}
    # the linearly trained networks also give every schedule's gradient variance, and passages drawn on every schedule's grid
    views, drawn = [dict(schedule=a, **few) for a in arms.values()], {**SAMPLER, **few}
    grids = [dict(sampler="ancestral", steps=CALLS, grid=a, **few) for a in arms.values()]
    config_of = lambda name, seed: config(arms[name], seed, **(dict(samplers=[drawn, *grids], views=views) if name == "linear" else
                                                               dict(samplers=[drawn])))
    results = common.run_all(path, [config_of(name, seed) for name in arms for seed in seeds])
    of = {name: results[n * len(seeds):(n + 1) * len(seeds)] for n, name in enumerate(arms)}
    variance, out = common.relative([r["noise"] for r in of["linear"]]), {}
    share = lambda runs, what, n=0: common.spread([r["samples"][n]["passages"][what][0] for r in runs])
    for n, name in enumerate(arms):
        bound, error = common.bound_and_error(of[name])
        out[name] = dict(bound=bound, stderr=error, gradient_variance=variance[n], grammatical=share(of[name], "grammatical"),
                         consistent=share(of[name], "consistent"), grammatical_as_grid=share(of["linear"], "grammatical", n + 1))
    return dict(tokens=tokens, seeds=len(seeds), rms_by_mask_rate=rms, points=arms["least variance"], arms=out)


def draw(result):
    figure, panels = common.figure(4, figsize=(16, 3.6))
    panels[0].plot(np.linspace(0, 1, len(result["rms_by_mask_rate"])), result["rms_by_mask_rate"])
    panels[0].set(xlabel="mask rate", title="rms of the bound's term, nats a row", ylim=(0, None))
    rows, names = result["arms"], list(result["arms"])
    for panel, what, title in zip(panels[1:], ("gradient_variance", "bound", "grammatical_as_grid"),
                                  ("gradient variance, linear = 1", "bound, nats a token", f"grammatical after {CALLS} calls, as grid")):
        values = [(r["bound"], r["stderr"]) if what == "bound" else r[what] for r in rows.values()]
        panel.errorbar(range(len(names)), [v for v, _ in values], [e for _, e in values], fmt="o", capsize=4)
        panel.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
        panel.set_title(title)
    return figure


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--quick", action="store_true", help="two schedules, one seed, few tokens; writes to a temporary folder")
    quick = args.parse_args().quick
    result = study(common.results_folder(quick), **(dict(tokens=20_000, seeds=(0,), names=NAMES[:1], n=16) if quick else {}))
    for name, r in result["arms"].items():
        line = ", ".join(f"{what.replace('_', ' ')} {100 * r[what][0]:.0f} ± {100 * r[what][1]:.0f}%"
                         for what in ("grammatical", "consistent", "grammatical_as_grid"))
        print(f"{name:15} gradient variance {r['gradient_variance'][0]:.2f} ± {r['gradient_variance'][1]:.2f}, "
              f"bound {r['bound']:.4f} ± {r['stderr']:.4f}, {line}")
    if not quick:
        common.finish("schedules", result, draw(result))


if __name__ == "__main__":
    main()
