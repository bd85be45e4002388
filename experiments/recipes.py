"""What is known of the paper's training against the settings tuned here: which change gains what?

Question: train.py's two recipes at equal tokens and steps, and between them one change after the
other: Muon for AdamW, one mask for a mask and its complement, conditional modes at high mask rates
for joint masking of pairs, all mask rates counted the same for the bound's weight, weights of our
own for the members' terms. Held-out nats of each kind and direction, captions, passages.
What the paper (arXiv 2602.21472) masks in a pair and its rates are not known to us: `RECIPES` in
train.py says what is ours. A change's gain depends on those before it; the order is ours.
Set-up: common.SMALL on all three kinds in the default mix, 1.2M tokens; a complement's tokens count
as a mask's. Steps of 1,536 tokens hold the same shares of kinds under one view and under two.
A factor on the rates is tuned for each of the two optimizers, under the paper's other settings, at
a quarter of the tokens and one seed, by the mean bound of the kinds.

    python experiments/recipes.py
"""
import numpy as np

import common
from common import KINDS, train

PATH = {  # arm: the settings that are tuned's from here on
    "paper": [],
    "Muon": ["optimizer"],
    "one mask": ["complement"],
    "conditional pairs": ["modes", "time_power"],
    "unweighted pairs": ["weighting"],
    "tuned": ["loss_weights"],
}
GREEDY = dict(temperature=0.0, budget=0.1, candidates=1, correct=0)
QUICK = dict(tokens=3_000, seeds=(0,), factors=(1.0,), n=2, pairs=common.FEW_PAIRS)


def path_of_settings():
    """{arm: settings}: from the paper's recipe to tuned's, by one change an arm."""
    tuned = vars(train.Config())
    settings = train.RECIPES["paper"]
    arms = {}
    for arm, names in PATH.items():
        settings = {**settings, **{name: tuned[name] for name in names}}
        arms[arm] = settings
    return arms


def all_kinds(result):
    """The mean bound of the kinds, nats a token, and its error."""
    cells = np.array([common.bound_of(result, kind) for kind in KINDS])   # (kinds, 2)
    return [float(cells[:, 0].mean()), float(np.linalg.norm(cells[:, 1]) / len(KINDS))]


def study(folder, tokens=1_200_000, seeds=(0, 1, 2), factors=(0.5, 1.0, 2.0, 4.0), n=100,
          pairs=common.PAIRS):
    path = folder / "recipes-runs.json"
    arms = path_of_settings()

    def trial(arm, factor, tokens, **changes):
        return common.trial(factor, tokens=tokens, mix=train.Config().mix, **arms[arm], **pairs,
                            **changes)

    cells = {(arm, f): trial(arm, f, tokens // 4) for arm in ("paper", "Muon") for f in factors}
    tried = common.run_cells(path, cells, seeds[:1])
    tried = common.nested({name: all_kinds(of[0]) for name, of in tried.items()})
    best = {arm: common.lowest(of)["at"] for arm, of in tried.items()}
    samples = {"captions": [n, "image-to-text", GREEDY], "passages": [n, "text", common.WRITTEN]}
    measure = {"directions": ["image-text", "speech-text"], "samples": samples}
    cells = {arm: trial(arm, best.get(arm, best["Muon"]), tokens, measure=measure) for arm in arms}
    results = common.run_cells(path, cells, seeds)
    picks = {kind: lambda r, kind=kind: common.bound_of(r, kind) for kind in KINDS}
    for name in results["paper"][0]["directions"]:
        picks[name] = lambda r, name=name: r["directions"][name]
    picks["captions"] = common.share("captions", "all", "seen, one thing")
    picks["passages grammatical"] = common.share("passages", "grammatical")
    counts = {arm: of[0]["tokens"] for arm, of in results.items()}
    return {"tokens": tokens, "seeds": len(seeds), "samples": n, "factors": best, "tried": tried,
            "trained on": counts, "arms": common.collect(results, picks)}


def draw(result):
    return common.draw_arms(result, ("text", "image given text", "text given image",
                                     "speech given text", "text given speech"))


if __name__ == "__main__":
    common.command_line("recipes", __doc__, study, draw, QUICK)
