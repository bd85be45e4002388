"""What does a run not know about the toy world's passages?

Question: the world's own -log p of a passage is known exactly. By how many nats is a run's bound
above it, and what share of its own passages agree with themselves, for each form of passage, as
they are drawn and after rounds of correction?
Set-up: a run on the toy world; fresh passages of a seed that no score uses. Both sides know a
passage's extent (data.py). A passage is as likely as its writer (one of five) and, within it, as
every other choice of things and words.

    python experiments/passages.py --run runs/toy
"""
import numpy as np
import torch

import common
from common import data, diffusion, sample
from sources import judges, toyworld
from tools.score import mean_and_error

SEED = 88_888
# what a writer picks beside its things: relations, orders, numbers, conclusions
CHOICES = {"write_inverse": 4, "write_chain": 4 * 2 * 2, "write_count": 5 * 5, "write_size": 2 * 3,
           "write_colour": 2}
FLAGS = {"run": ("runs/toy", "a folder that train.py made from the toy world"),
         "n": (400, "passages to sample; four times as many are scored")}
QUICK = dict(n=4)


def writer_of(text):
    """The writer whose form a passage has, or "none"."""
    form, _ = judges.parse_passage(text)
    if form not in judges.FORMS:
        return "none"
    check = judges.FORMS[form].__name__
    return check.replace("check", "write")  # check_chain judges what write_chain writes


def true_nats():
    """{writer: -log p of each of its passages}"""
    return {writer.__name__: float(np.log(
        len(toyworld.WRITERS) * len(toyworld.subjects(writer, "seen"))
        * CHOICES[writer.__name__])) for writer in toyworld.WRITERS}


@torch.inference_mode()
def gaps(run, n, rounds=16):
    """{writer: nats by which the bound of n fresh passages is above their -log p, one each}."""
    texts = toyworld.passages(max(n, 20_000), SEED)
    documents = [run.stream.texts(codes)[0] for codes in run.tokenizers["text"].encode(texts)]
    lengths = data.lengths(documents)
    rows = run.rows(data.stacked(documents[:n]))
    nats = diffusion.bound(run.predict, rows.ids, rows.member >= 0, rows.low, rows.high, data.MASK,
                           data.rng(SEED), rounds).cpu().numpy()
    known = true_nats()
    result = {}
    for text, value, length in zip(texts, nats, lengths):
        writer = writer_of(text)
        share = (lengths == length).mean()  # p(passage | extent) = p(passage) / p(extent)
        result.setdefault(writer, []).append(value - known[writer] - np.log(share))
    return result


def agreement(run, n, correct):
    """{writer: whether each of its passages, of n drawn ones, agrees with itself}."""
    made = sample.generate(run, "text", [None] * n, seed=SEED, correct=correct)
    texts = made.outputs["text"]
    result = {}
    for text, consistent in zip(texts, judges.judge_passages(texts)["consistent"]):
        result.setdefault(writer_of(text), []).append(consistent)
    return result


def cell(values):
    return [*mean_and_error(values)]


def study(folder, run, n):
    run = sample.load_run(run)
    above = gaps(run, 4 * n)
    result = {"nats above the world's own": {writer: cell(v) for writer, v in above.items()}}
    result["nats above the world's own"]["all"] = cell(np.concatenate(list(above.values())))
    for correct in (0, sample.DEFAULTS["text"]["correct"]):
        drawn = agreement(run, n, correct)
        shares = {writer: [*cell(v), len(v)] for writer, v in drawn.items()}
        shares["all"] = [*cell(np.concatenate(list(drawn.values()))), n]
        result[f"consistent, {correct} rounds of correction"] = shares
    return {"n": n, **result}


if __name__ == "__main__":
    common.command_line("passages", __doc__, study, None, QUICK, FLAGS)
