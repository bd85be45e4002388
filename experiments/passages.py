"""What does a run not know about the toy world's passages?

Question: the world's own -log p of a passage is known exactly; by how many nats is a run's bound above it, and what share of its own passages
agree with themselves, for each form of passage, as they are drawn and after rounds of correction?
Set-up: a run on the toy world; fresh passages of a seed that no score uses. A row shows a passage's extent in tokens (data.py), so both figures
are given the extent. A passage is as likely as its writer (one of five) and, within it, as every other choice of things and words.
On two cores about 2 minutes, after train.py:  python experiments/passages.py --run runs/toy      prints Markdown
"""
import argparse
import os
from pathlib import Path

import numpy as np

import common
from common import data, diffusion, torch
import sample
import score
import toyworld

SEED = 88_888
# what a writer picks beside its things: relations, orders, numbers, conclusions
CHOICES = {"write_inverse": 4, "write_chain": 4 * 2 * 2, "write_count": 5 * 5, "write_size": 2 * 3, "write_colour": 2}
WRITER = {("relation", "so relation"): "write_inverse", ("relation", "relation", "so relation"): "write_chain", ("count", "so count"): "write_count",
          ("size", "size", "so size"): "write_size", ("size", "size", "so size", "so size"): "write_size",
          ("colour", "colour", "ask colour", "colour"): "write_colour"}


def writer_of(text):
    """The writer whose form a passage has, or None."""
    return WRITER.get(tuple(kind for kind, _ in toyworld.parse_passage(text)))


def true_nats():
    """-log p of a passage by its writer."""
    return {w.__name__: float(np.log(len(toyworld.WRITERS) * len(toyworld.groups(w, n, "seen")) * CHOICES[w.__name__]))
            for w, n in toyworld.WRITERS}


@torch.inference_mode()
def gaps(run, n, rounds=16):
    """{writer: nats by which the bound of n fresh passages is above -log p, one each}."""
    codes = run.tokenizers["text"].encode(texts := toyworld.passages(max(n, 20_000), SEED))
    extents, known, out = np.array([-(-(len(c) + 1) // 8) * 8 for c in codes]), true_nats(), {}        # as Stream.pack rounds them
    for extent in np.unique(extents[:n]):
        at, share = np.flatnonzero(extents[:n] == extent), float((extents == extent).mean())
        rows = run.stream.describe("text", np.stack([run.stream.row("text", [codes[i]], int(extent)) for i in at]))
        nats = diffusion.bound(run.logits(rows), run.on(rows.ids), run.on(rows.member >= 0), run.on(rows.low), run.on(rows.high), data.MASK,
                               data.rng(SEED, 1), rounds=rounds).cpu().numpy()
        for i, value in zip(at, nats):
            writer = writer_of(texts[i])
            out.setdefault(writer, []).append(value - known[writer] - np.log(share))
    return out


def agreement(run, n, correct):
    """{writer: whether each of its passages, of n sampled ones, agrees with itself}; None: of no form. And the share of different ones."""
    texts = sample.generate(run, "text", [None] * n, seed=SEED, correct=correct).outputs["text"]
    out = {}
    for text, consistent in zip(texts, toyworld.judge_passages(texts)["consistent"]):
        out.setdefault(writer_of(text), []).append(consistent)
    return out, len(set(texts)) / n


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--run", default="runs/toy", help="a folder that train.py made from the toy world")
    args.add_argument("--n", type=int, default=400, help="passages to sample; four times as many are scored")
    args.add_argument("--correct", type=lambda s: [int(v) for v in s.split(",")], default=[0, sample.DEFAULTS["text"]["correct"]],
                      help="rounds of correction, several with commas")
    args = args.parse_args()
    torch.set_num_threads(os.cpu_count())  # common.py asked for one
    run = sample.load_run(Path(args.run))
    above, drawn = gaps(run, 4 * args.n), [agreement(run, args.n, c) for c in args.correct]
    percent = lambda values: "{:.0f} ± {:.0f} ({})".format(*(100 * v for v in score.mean_and_error(values)), len(values)) if values else "-"
    print("| form | nats above the world's own | " + " | ".join(f"consistent %, correct {c} (of so many)" for c in args.correct) + " |")
    print("|---" * (2 + len(drawn)) + "|")
    for writer in [*true_nats(), None]:
        nats = "{:.2f} ± {:.2f}".format(*score.mean_and_error(above[writer])) if writer in above else "-"
        print(f"| {(writer or 'write_none').removeprefix('write_')} | {nats} | " + " | ".join(percent(of.get(writer)) for of, _ in drawn) + " |")
    nats = "{:.2f} ± {:.2f}".format(*score.mean_and_error(sum(above.values(), [])))
    print(f"| all | {nats} | " + " | ".join(f"{percent(sum(of.values(), []))}, {100 * different:.0f}% different" for of, different in drawn) + " |")


if __name__ == "__main__":
    common.safe.cli(main, "passages.py")
