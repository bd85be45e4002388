"""Masked diffusion and its autoregressive twin on one's own text, in bits a character.

Question: the default network with and without a causal mask, the same tokens of the same text:
how many bits does a held-out character cost?
Set-up: byte pairs of a vocabulary of 1,024, sections of the text held out, 768 tokens a step. The
learning rates of the batch rule times 0.5, 1, 2 or 4, chosen for each of the two at a quarter of
the tokens. Diffusion's figure is its bound with the extent's term. The lowest look on the way
stands beside the last. It is chosen on the held-out text, so it is a little too good.

    python experiments/twin.py --text shakespeare.txt
"""
import numpy as np

import common
from autoregression import ARMS, best_factors, curves, trial
from common import CPU, data, files, sample, score

FLAGS = {"text": ("", "a text file, or a folder of them")}
QUICK = dict(tokens=3_000, seeds=(0,), factors=(1.0,), looks=2, dtype="float32",
             shape={"width": 64, "depth": 1})


def size_of(of):
    """Tokens and characters of a trial's held-out texts."""
    folder, stream, documents, tokenizers = common.world(of)
    run = sample.Run(folder, {}, stream, tokenizers, None, CPU)
    ids = data.stacked(documents["text"][1][:512])
    codes = sample.codes_of(run, "text", "text", ids)
    tokens = int((stream.describe(ids).member >= 0).sum())
    return tokens, sum(score.units_of(run, "text", c) for c in codes)


def study(folder, text, tokens=3_000_000, seeds=(0, 1), factors=(0.5, 1.0, 2.0, 4.0), looks=16,
          shape={}, dtype=""):
    if not text:
        raise files.UsageError("--text: a text file, or a folder of them")
    path = folder / "twin-runs.json"
    dtype = dtype or str(files.fast_dtype(CPU)).removeprefix("torch.")
    changes = dict(shape=shape, text=[text], vocab_size=1024, batch_tokens=768, dtype=dtype)
    best = best_factors(path, tokens // 4, factors, seeds[:1], **changes)
    cells = {arm: trial(arm, tokens, best[arm], looks=looks, **changes) for arm in ARMS}
    nats = curves(common.run_cells(path, cells, seeds), axis=0)
    held, characters = size_of(cells["autoregression"])
    bits = held / characters / np.log(2)  # a character, for a nat a token
    made = {arm: {x: [bits * v for v in cell] for x, cell in of.items()}
            for arm, of in nats.items()}
    return {"tokens": tokens, "seeds": len(seeds), "held_tokens": held, "characters": characters,
            "factors": best, "bits_a_character": made,
            "last": {arm: list(of.values())[-1] for arm, of in made.items()},
            "lowest": {arm: common.lowest(of) for arm, of in made.items()}}


if __name__ == "__main__":
    common.command_line("twin", __doc__, study, None, QUICK, FLAGS)
