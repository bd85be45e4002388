"""How should pairs be masked: both members, one of them, or now this and now that? And what does
guidance gain from it?

Question: image-text pairs masked jointly, only the target given the other, or mixed; with 0, 10
and 30% of the pairs without their condition: bounds of both directions and of the pair, generated
pictures and captions, pictures under guidance 0, 1 and 2.
What the paper (arXiv 2602.21472) masks in a pair is not known to us. UniDisc (arXiv 2503.20853)
drops conditions in 10% for guidance.
Set-up: the default network and optimizer, weighted as the bound, 0.6M tokens in steps of 816. One
candidate and no correction: what the network draws, not what it would choose.

    python experiments/masking_pairs.py
"""
import common

ARMS = {
    "joint": {"joint": 1.0},
    "target only": {"first|second": 0.5, "second|first": 0.5},
    "mixed": {"joint": 0.34, "first|second": 0.33, "second|first": 0.33},
    "target only, 10% alone": {"first|second": 0.45, "second|first": 0.45, "first": 0.05,
                               "second": 0.05},
    "target only, 30% alone": {"first|second": 0.35, "second|first": 0.35, "first": 0.15,
                               "second": 0.15},
}
ONE = dict(candidates=1, correct=0)
SAMPLERS = {f"pictures, guidance {w:g}": ["text-to-image", dict(guidance=w, steps=12, **ONE)]
            for w in (0.0, 1.0, 2.0)}
SAMPLERS["captions"] = ["image-to-text", dict(temperature=0.0, budget=0.1, **ONE)]
QUICK = dict(tokens=2_000, seeds=(0,), arms={"joint": ARMS["joint"]}, n=2,
             shape={"width": 64, "depth": 1}, pairs=common.FEW_PAIRS)


def study(folder, tokens=600_000, seeds=(0, 1), arms=ARMS, n=100, shape={}, pairs=common.PAIRS):
    samples = {name: [n, *sampler] for name, sampler in SAMPLERS.items()}
    measure = {"directions": ["image-text"], "samples": samples}
    cells = {name: common.trial(tokens=tokens, batch_tokens=816, shape=shape, modes=modes,
                                mix={"image-text": 1.0}, measure=measure, **pairs)
             for name, modes in arms.items()}
    results = common.run_cells(folder / "masking_pairs-runs.json", cells, seeds)
    picks = {"pair": lambda r: common.bound_of(r, "image-text")}
    for name in ("image given text", "text given image"):
        picks[name] = lambda r, name=name: r["directions"][name]
    for cell in ("seen, one thing", "seen, two things"):
        for name in SAMPLERS:
            picks[f"{name}, {cell}"] = common.share(name, "all", cell)
    return {"tokens": tokens, "seeds": len(seeds), "samples": n,
            "arms": common.collect(results, picks)}


def draw(result):
    return common.draw_arms(result, (
        "image given text", "text given image", "pictures, guidance 1, seen, one thing",
        "pictures, guidance 1, seen, two things", "captions, seen, two things"))


if __name__ == "__main__":
    common.command_line("masking_pairs", __doc__, study, draw, QUICK)
