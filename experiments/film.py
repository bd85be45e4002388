"""One moving picture of a run: every direction being unmasked, beside each other.

Held-out prompts and their answers, the first ones of the seed, none left out (of several candidates the one that the network itself prefers).
On two cores half a minute, after train.py:  python experiments/film.py --run runs/toy      writes results/film.gif
"""
import argparse
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import common
from common import data, safe, sample, torch
import page

FRAMES, LAST, FRAME_MS = 20, 14, 110         # stages; how often the last is repeated; milliseconds each
TITLE, TEXT, PROMPT, GREY = ImageFont.load_default(15), ImageFont.load_default(12), (110, 110, 110), (page.GREY,) * 3
WIDTH, GAP, LINE = 920, 14, 15               # pixels
# task -> (samples, width of one, height of its picture or spectrogram, lines of text under it)
PANELS = {"text-to-image": (7, 116, 108, 4), "image-to-text": (7, 116, 108, 4), "text-to-speech": (4, 212, 80, 1), "speech-to-text": (4, 212, 80, 1),
          "text": (2, 440, 0, 3)}


def write_text(draw, x, y, width, pieces, colour):
    """Pieces of text, grey blocks for what is masked, broken into lines within width."""
    left = x
    for text, count in pieces:
        for word in [None] * count if text is None else [w + " " * (i < text.count(" ")) for i, w in enumerate(text.split(" "))]:
            wide = 18 if word is None else draw.textlength(word, TEXT)
            if x + wide > left + width and x > left:
                x, y = left, y + LINE
            if word is None:
                draw.rounded_rectangle((x, y + 3, x + wide - 3, y + 13), 3, GREY)
            else:
                draw.text((x, y), word, colour, TEXT)
            x += wide


def generated(run, task, seed):
    """Generated of a task with its film: held-out prompts, as many as its panel shows."""
    (kind, targets), count = sample.TASKS[task], PANELS[task][0]
    if kind == "text":
        return sample.generate(run, task, [None] * count, record=True, seed=seed)
    ids = safe.read_arrays(run.folder / "validation.npz")[kind][:count].astype(np.int64)
    for target in targets:
        ids = sample.holes(run, kind, ids, target, np.ones(10**5, bool))
    return sample.answer(run, task, ids, seed, record=True)


def draw_panel(draw, sheet, y, run, task, made, stage):
    """Draw a task at a stage in [0, 1] from row y of the sheet on; returns the row below it."""
    (kind, targets), (_, width, height, lines) = sample.TASKS[task], PANELS[task]
    draw.text((GAP, y), task.replace("-", " "), "black", TITLE)
    member = run.stream.describe(kind, made.ids).member
    left = np.array([(f == data.MASK).sum(1) for f in made.film])                                # (frames, B)
    at = np.where(stage < 1, np.abs(left - left[0] * (1 - stage)).argmin(0), -1)                 # as even in tokens as the film has them
    for i in range(len(made.ids)):
        x = GAP + i * (width + GAP)
        for index, modality in enumerate(data.KINDS[kind]):
            ids = made.film[at[i]][i][member[i] == index]
            if modality == "text":
                write_text(draw, x, y + 28 + height, width, page.pieces(run, ids), "black" if modality in targets else PROMPT)
            else:
                pixels = Image.fromarray({"image": page.picture, "speech": page.sound}[modality](run, ids).squeeze())
                wide = min(width, 2 * pixels.width) if modality == "speech" else height * pixels.width // pixels.height
                sheet.paste(pixels.resize((wide, height), Image.Resampling.NEAREST), (x, y + 22))
    return y + 28 + height + lines * LINE + GAP


@torch.inference_mode()
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", default="runs/toy")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=common.HERE / "results" / "film.gif")
    args = p.parse_args()
    torch.set_num_threads(os.cpu_count())  # common.py asked for one
    run = sample.load_run(args.run)
    made = {task: generated(run, task, args.seed) for task in PANELS if sample.TASKS[task][0] in run.stream.slots}
    frames, height = [], GAP + sum(28 + PANELS[task][2] + PANELS[task][3] * LINE + GAP for task in made)
    for stage in np.linspace(0, 1, FRAMES):
        sheet, y = Image.new("RGB", (WIDTH, height), "white"), GAP
        for task in made:
            y = draw_panel(ImageDraw.Draw(sheet), sheet, y, run, task, made[task], stage)
        frames.append(sheet)
    samples = np.concatenate([np.asarray(frames[i]) for i in (0, FRAMES // 2, -1)])             # what is masked has colours of its own
    colours = Image.fromarray(samples).quantize(256)
    few = [f.quantize(palette=colours, dither=Image.Dither.NONE) for f in frames + frames[-1:] * LAST]
    with safe.whole(args.out) as path:
        few[0].save(path, "GIF", save_all=True, append_images=few[1:], duration=FRAME_MS, loop=0, optimize=True)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
