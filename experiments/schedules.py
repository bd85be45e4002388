"""What does the masking schedule change, if the bound does not depend on it?

Question: train with linear, cosine, poly:0.5 and poly:2: gradient variance at the same weights,
final bound, passages. And as a sampling grid of the linearly trained network: how good are
passages after 8 calls?
Theory (MD4, arXiv 2406.04329): the expected bound is the same for all, a schedule is a
distribution of mask rates to train on. The paper (arXiv 2602.21472) uses the linear one.
Set-up: common.SMALL, 1.5M tokens.

    python experiments/schedules.py
"""
import common

NAMES = ("linear", "cosine", "poly:0.5", "poly:2")
QUICK = dict(tokens=1_500, seeds=(0,), names=NAMES[:2], n=2, steps=2, texts=common.FEW_TEXTS)


def study(folder, tokens=1_500_000, seeds=(0, 1, 2), names=NAMES, n=200, steps=96,
          texts=common.TEXTS):
    drawn = {"drawn": [n, "text", common.WRITTEN]}
    grids = {name: [n, "text", dict(sampler="ancestral", steps=8, grid=name)] for name in names}
    measure = {name: {"samples": drawn} for name in names}
    measure["linear"] = {"samples": {**drawn, **grids},
                         "noise": {name: [name, False, steps] for name in names}}
    cells = {name: common.trial(tokens=tokens, schedule=name, measure=measure[name], **texts)
             for name in names}
    results = common.run_cells(folder / "schedules-runs.json", cells, seeds)
    arms = common.collect(results, {"bound": common.bound_of,
                                    "grammatical": common.share("drawn", "grammatical"),
                                    "consistent": common.share("drawn", "consistent")})
    common.add_noise(arms, results["linear"])
    linear = {"linear": results["linear"]}
    grids = common.collect(linear, {name: common.share(name, "grammatical") for name in names})
    for name, cell in grids["linear"].items():
        arms[name]["grammatical, as a grid of 8 calls"] = cell
    return {"tokens": tokens, "seeds": len(seeds), "arms": arms}


if __name__ == "__main__":
    common.command_line("schedules", __doc__, study, common.draw_arms, QUICK)
