"""One moving picture of a run: every direction being unmasked, beside each other.

Held-out prompts and their answers, the first ones of the seed, none left out (of several candidates the one that the network itself prefers).
On two cores half a minute, after train.py:  python experiments/film.py --run runs/toy      writes FILE.gif, and FILE.png, its last frame
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
TITLE, TEXT, GREY = ImageFont.load_default(15), ImageFont.load_default(12), (187, 187, 187)
WIDTH, GAP, LINE = 920, 14, 15               # pixels
# task -> (samples, scale of their pixels, width of a sample, lines of text under it)
PANELS = {"text-to-image": (7, 3, 116, 4), "image-to-text": (7, 3, 116, 4), "text-to-speech": (4, 2, 212, 1), "speech-to-text": (4, 2, 212, 1),
          "text": (2, 1, 440, 3)}


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


def panel(run, task, seed):
    """A task -> function of the stage in [0, 1] that draws its panel on (draw, image, y), and the panel's height."""
    kind, targets = sample.TASKS[task]
    count, scale, width, lines = PANELS[task]
    if kind == "text":
        made = sample.generate(run, task, [None] * count, record=True, seed=seed)
    else:
        ids = safe.read_arrays(run.folder / "validation.npz")[kind][:count].astype(np.int64)
        for target in targets:
            ids = sample.holes(run, kind, ids, target, np.ones(10**5, bool))
        made = sample.answer(run, task, ids, seed, record=True)
    rows = run.stream.describe(kind, made.film[0])
    left = np.array([(f == data.MASK).sum(1) for f in made.film])                                # (frames, B)
    arrays = {"image": page.picture, "speech": page.sound}
    high = max((scale * arrays[m](run, made.film[0][0][rows.member[0] == i]).shape[0] // (1 if m == "image" else 2)
                for i, m in enumerate(data.KINDS[kind]) if m in arrays), default=0)

    def draw_at(draw, sheet, y, stage):
        draw.text((GAP, y), task.replace("-", " "), "black", TITLE)
        frames = np.where(stage < 1, np.abs(left - left[0] * (1 - stage)).argmin(0), -1)         # as even in tokens as the film has them
        for i in range(len(made.ids)):
            x = GAP + i * (width + GAP)
            for member, modality in enumerate(data.KINDS[kind]):
                part = made.film[frames[i]][i][rows.member[i] == member]
                if modality == "text":
                    write_text(draw, x, y + 22 + high + (6 if high else 0), width, page.pieces(run, part), "black" if modality in targets else (110, 110, 110))
                else:
                    pixels = Image.fromarray(arrays[modality](run, part).squeeze())
                    size = ((scale * pixels.width, high) if modality == "image" else (min(width, scale * pixels.width), high))
                    sheet.paste(pixels.crop((0, 0, size[0] // scale, pixels.height)).resize(size, Image.NEAREST), (x, y + 22))
    return draw_at, 22 + high + (6 if high else 0) + lines * LINE + GAP


@torch.inference_mode()
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", default="runs/toy")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=common.HERE / "results" / "film", help="without its ending")
    args = p.parse_args()
    torch.set_num_threads(os.cpu_count())  # common.py asked for one
    run = sample.load_run(args.run)
    panels = [panel(run, task, args.seed) for task in PANELS if sample.TASKS[task][0] in run.stream.slots]
    frames = []
    for stage in np.linspace(0, 1, FRAMES):
        sheet = Image.new("RGB", (WIDTH, GAP + sum(height for _, height in panels)), "white")
        draw, y = ImageDraw.Draw(sheet), GAP
        for draw_at, height in panels:
            draw_at(draw, sheet, y, stage)
            y += height
        frames.append(sheet)
    colours = frames[-1].quantize(128)
    few = [f.quantize(palette=colours, dither=Image.Dither.NONE) for f in frames + frames[-1:] * LAST]
    with safe.whole(args.out.with_suffix(".gif")) as path:
        few[0].save(path, "GIF", save_all=True, append_images=few[1:], duration=FRAME_MS, loop=0, optimize=True)
    with safe.whole(args.out.with_suffix(".png")) as path:
        frames[-1].save(path, "PNG")
    print(f"wrote {args.out}.gif and .png")



if __name__ == "__main__":
    main()
