"""Does training on a mask and its complement (anti-masking) pay at equal compute?

Question: half as many documents, each under a mask and under its complement, against one mask
each: gradient variance at the same weights, final bound, generated passages.
The paper (arXiv 2602.21472, second-hand) trains with anti-masking and gives lower variance as its
reason. Theory: both views are unbiased and their errors are negatively correlated, but half as
many different items are seen.
Set-up: common.SMALL, 1.5M tokens.

    python experiments/complement.py
"""
import common

ARMS = {"one mask": False, "mask and complement": True}
QUICK = dict(tokens=1_500, seeds=(0,), n=2, steps=2, texts=common.FEW_TEXTS)


def study(folder, tokens=1_500_000, seeds=(0, 1, 2, 3, 4, 5), n=200, steps=96, texts=common.TEXTS):
    samples = {"drawn": [n, "text", common.WRITTEN]}
    measure = {arm: {"samples": samples} for arm in ARMS}
    # the gradients of both, at the weights that one mask made
    measure["one mask"]["noise"] = {arm: ["linear", views, steps] for arm, views in ARMS.items()}
    cells = {arm: common.trial(tokens=tokens, complement=views, measure=measure[arm], **texts)
             for arm, views in ARMS.items()}
    results = common.run_cells(folder / "complement-runs.json", cells, seeds)
    arms = common.collect(results, {"bound": common.bound_of,
                                    "grammatical": common.share("drawn", "grammatical"),
                                    "consistent": common.share("drawn", "consistent")})
    common.add_noise(arms, results["one mask"])
    return {"tokens": tokens, "seeds": len(seeds), "arms": arms}


if __name__ == "__main__":
    common.command_line("complement", __doc__, study, common.draw_arms, QUICK)
