"""What of real handwriting and real speech comes out right, by judges the model never saw?

Question: after training on one's own pictures of one thing each (say handwritten digits) and clips
of numbers or the like: does a classifier read generated pictures as what was asked for, do
captions and transcripts of held-out items match, does a recogniser understand what the model says,
and how much of that do the tokenizers lose?
Set-up: a small convolutional classifier, trained here on the pictures that the run trained on. It
reads those that the run held out, the same after the tokenizer, and n generated ones a caption.
Clips: held-out recordings, the same after the tokenizer, and the model's, of their texts, of a
hundred of the training and of --missing, phrases that no recording has; each the best of four as
the network finds. They go to --out, for hear.py.

    python experiments/real.py --run runs/real --missing missing.txt
"""
from pathlib import Path

import numpy as np
import torch
from torch import nn

import common
from common import F, data, files, sample, score, train
from sources import prepare
from speak import after_tokenizer, write_clips

FLAGS = {"run": ("runs/real", "a folder that train.py made; its data are still in their place"),
         "missing": ("", "text file: phrases that no recording has, one a line"),
         "n": (20, "generated pictures for each caption"),
         "out": ("out/real", "folder for pictures and clips")}
QUICK = dict(n=1, epochs=1, most=20)
BEST = dict(candidates=4, rounds=4)  # of speech


def to_tensor(pictures):
    """Pictures, uint8 (H, W, C) -> (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).float() / 127.5 - 1


def classifier(pictures, labels, classes, epochs, batch=64):
    """Train on pictures and labels (N,) -> a function from pictures to labels (N,)."""
    x = to_tensor(pictures)
    labels = torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(x.shape[1], 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(3), nn.Flatten(),
            nn.Linear(1152, classes))
    steps = max(1, epochs * len(x) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    for step in range(steps):
        random = data.rng(0, 51, step)
        at = random.integers(0, len(x), batch)
        shift = tuple(random.integers(-2, 3, 2))  # a few pixels to and fro
        F.cross_entropy(net(torch.roll(x[at], shift, (2, 3))), labels[at]).backward()
        optimizer.step()
        plan.step()
        optimizer.zero_grad()
    net.eval()

    @torch.inference_mode()
    def read(pictures):
        return torch.cat([net(part).argmax(1) for part in to_tensor(pictures).split(256)]).numpy()

    return read


def share(right):
    return [*score.mean_and_error(right), len(right)]


def judge_pictures(run, source, n, epochs, most, out):
    """Shares of real, tokenized and generated pictures that the classifier reads as told."""
    names = sorted(set(source.texts))
    labels = np.array([names.index(text) for text in source.texts])
    learnt, held = (part[:most] for part in prepare.split(source))
    read = classifier(source.load(learnt), labels[learnt], len(names), epochs)
    true = source.load(held)
    tokenizer = run.tokenizers["image"]
    again = tokenizer.decode(tokenizer.encode(true))
    prompts = [name for name in names for _ in range(n)]
    made = sample.generate(run, "text-to-image", prompts, seed=1).outputs["image"]
    files.write_bytes(out / "pictures.png", sample.png(sample.contact_sheet(made, n, 1)))
    return {"real": share(read(true) == labels[held]),
            "after the tokenizer": share(read(again) == labels[held]),
            "generated": share(read(made) == np.repeat(np.arange(len(names)), n))}


def speak(run, source, unheard, most):
    """Groups of clips for `speak.write_clips`."""
    learnt, held = (part[:most] for part in prepare.split(source))
    some = data.rng(0, 54).permutation(learnt)[:100]
    texts = [source.texts[i] for i in held]
    waves = source.load(held)
    groups = {("recordings", "held out"): (texts, waves),
              ("after the tokenizer", "held out"): (texts, after_tokenizer(run, waves))}
    for split, phrases in (("held out", texts), ("without a recording", unheard),
                           ("of the training", [source.texts[i] for i in some])):
        if phrases:
            made = sample.generate(run, "text-to-speech", phrases, seed=1, **BEST)
            groups["model", split] = phrases, made.outputs["speech"]
    return groups


def study(folder, run, missing, n, out, epochs=4, most=None):
    run = sample.load_run(run)
    out = Path(out)
    settings = train.Config(**run.saved["config"])
    result = {"run": str(run.folder), "tasks": {}}
    for source in prepare.own_sources(settings).values():
        if source.kind == "image-text":
            result["pictures"] = judge_pictures(run, source, n, epochs, most, out)
        if source.kind == "speech-text":
            lines = Path(missing).read_text(encoding="utf-8").splitlines() if missing else []
            phrases = [line.strip() for line in lines if line.strip()]
            write_clips(out, speak(run, source, phrases, most))
    for task, cells in score.own_cells(run, most or 512).items():
        marks = score.score_task(run, task, cells, score.SEED, {})["cells"]["held out"]
        result["tasks"][task] = common.attributes(marks)
    return result


if __name__ == "__main__":
    common.command_line("real", __doc__, study, None, QUICK, FLAGS)
