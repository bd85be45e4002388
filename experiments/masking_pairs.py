"""How should pairs be masked: both members, one of them, or now this and now that? And what does guidance gain from it?

Question: image-text pairs masked jointly, only the target given the other, or mixed; with 0, 10 and 30% of the rows without their condition:
bounds of both directions and of the pair, generated pictures and captions, pictures under guidance 0, 1 and 2.
What the paper (arXiv 2602.21472) masks in a pair is not given, as far as we know; UniDisc (arXiv 2503.20853) drops conditions in 10% for guidance.
Set-up: experiments/common.py, `trimodal`; the default network and optimizer (width 192, depth 3, Muon), bound weighting, 0.6M tokens in steps of
816, two seeds; 100 samples a cell, one candidate each.
On two cores at half speed about 15 minutes:  python experiments/masking_pairs.py      writes results/masking_pairs.json and .png
"""
import argparse

import common
from common import models

ARMS = {
    "joint": {"joint": 1.0},
    "target only": {"first|second": 0.5, "second|first": 0.5},
    "mixed": {"joint": 0.34, "first|second": 0.33, "second|first": 0.33},
    "target only, 10% alone": {"first|second": 0.45, "second|first": 0.45, "first": 0.05, "second": 0.05},
    "target only, 30% alone": {"first|second": 0.35, "second|first": 0.35, "first": 0.15, "second": 0.15},
}
GUIDANCE = (0.0, 1.0, 2.0)
DIRECTIONS = {"pair": "image-text: joint", "picture": "image-text: image given text", "caption": "image-text: text given image"}
CELLS = ("seen, one thing", "seen, two things")


def study(folder, world=(2_500, 10_000), tokens=600_000, seeds=(0, 1), arms=ARMS, n=100, **shape):
    common.trimodal(*world)                                                # made once, before the workers read it
    one = dict(n=n, split="seen", candidates=1, correct=0)                              # what the network draws, not what it would choose
    samplers = [dict(task="text-to-image", guidance=w, steps=12, **one) for w in GUIDANCE] + [dict(task="image-to-text", temperature=0.0, budget=0.1, **one)]
    config = lambda modes, seed: common.base(**{**models.PRESETS["toy"], **shape}, batch=816 / common.LENGTH, tokens=tokens, seed=seed,
                                             trimodal=list(world), mix={"image-text": 1.0}, modes=modes, samplers=samplers)
    results = common.run_all(folder / "masking_pairs-runs.json", [config(modes, seed) for modes in arms.values() for seed in seeds])
    out = {}
    for i, name in enumerate(arms):
        mine = results[i * len(seeds):(i + 1) * len(seeds)]
        right = lambda k: {cell: common.spread([r["samples"][k][cell]["all"][0] for r in mine]) for cell in CELLS}
        out[name] = dict(bounds={d: common.spread([r["bounds"][key][0] for r in mine]) for d, key in DIRECTIONS.items()},
                         pictures={str(w): right(k) for k, w in enumerate(GUIDANCE)}, captions=right(len(GUIDANCE)))
    return dict(tokens=tokens, seeds=len(seeds), samples=n, arms=out)


def draw(result):
    figure, panels = common.figure(4, figsize=(17, 4))
    arms = result["arms"]
    for panel, direction in zip(panels, ("picture", "caption")):
        panel.errorbar(range(len(arms)), *zip(*(r["bounds"][direction] for r in arms.values())), fmt="o", capsize=4)
        panel.set_title(f"bound of a {direction} given the other, nats a token", fontsize=9)
    for panel, cell in zip(panels[2:], CELLS):
        for w in GUIDANCE:
            panel.errorbar(range(len(arms)), *zip(*(r["pictures"][str(w)][cell] for r in arms.values())), fmt="o", capsize=4, label=f"guidance {w:g}")
        panel.errorbar(range(len(arms)), *zip(*(r["captions"][cell] for r in arms.values())), fmt="s", capsize=4, label="captions")
        panel.set_title(f"all right, {cell}", fontsize=9)
        panel.legend(fontsize=7)
    for panel in panels:
        panel.set_xticks(range(len(arms)), list(arms), rotation=25, ha="right", fontsize=8)
    return figure


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--quick", action="store_true", help="two arms, few tokens, tokenizers of 20 steps; writes to a temporary folder")
    quick = args.parse_args().quick
    few = dict(world=(20, 200), tokens=8_000, seeds=(0,), arms={k: ARMS[k] for k in ("joint", "target only")}, n=4, width=64, depth=1)
    result = study(common.results_folder(quick), **(few if quick else {}))
    percent = lambda v: f"{100 * v[0]:.0f} ± {100 * v[1]:.0f}%"
    for name, r in result["arms"].items():
        print(f"{name:24} bounds: " + ", ".join(f"{d} {v[0]:.3f} ± {v[1]:.3f}" for d, v in r["bounds"].items()))
        for cell in CELLS:
            print(f"  {cell}: captions {percent(r['captions'][cell])}; pictures "
                  + ", ".join(f"guidance {w} {percent(v[cell])}" for w, v in r["pictures"].items()))
    if not quick:
        common.finish("masking_pairs", result, draw(result))


if __name__ == "__main__":
    main()
