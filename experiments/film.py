"""One moving picture of a run: what it makes of prompts, and a text from nothing, being unmasked beside each other.

The first held-out prompts, none left out (of several candidates the answer that the network itself prefers).
On two cores half a minute, after train.py:  python experiments/film.py --run runs/toy      writes out/film.gif
"""
import argparse
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common import data, safe, sample, score, torch
import page

FRAMES, FRAME_MS, LAST = 20, 110, 14         # stages; how long each is shown; how many times longer the last one
WIDTH, GAP, LINE, TITLE = 920, 14, 15, 22    # pixels: of the sheet, between samples, of a line of text, of a title
FONT, TITLE_FONT = ImageFont.load_default(12), ImageFont.load_default(15)
BLACK, PROMPT, MASKED = (0, 0, 0), (110, 110, 110), (page.GREY,) * 3
# task -> (samples, width of one, height of its picture or spectrogram, lines of text under it)
PANELS = {"text-to-image": (7, 116, 108, 4), "image-to-text": (7, 116, 108, 4), "text-to-speech": (4, 212, 80, 1), "speech-to-text": (4, 212, 80, 1),
          "text": (2, 440, 0, 4)}
PIXELS = {"image": page.masked_picture, "speech": page.masked_clip}


def panel_height(task):
    _, _, height, lines = PANELS[task]
    return TITLE + height + 6 + lines * LINE + GAP


def write_text(draw, x, y, width, lines, stretches, colour):
    """Write what page.masked_text gives, grey blocks for masked tokens, from (x, y) on in lines of `width` pixels, as many as there is room for."""
    left, bottom = x, y + lines * LINE
    for text, count in stretches:
        for word in [None] * count if text is None else re.findall(r"\n|[^ \n]+ ?| ", text):
            wide = 18 if word is None else 0 if word == "\n" else draw.textlength(word, FONT)
            if word == "\n" or x + wide > left + width and x > left:
                x, y = left, y + LINE
            if y + LINE > bottom:
                return
            if word is None:
                draw.rounded_rectangle((x, y + 3, x + wide - 3, y + 13), 3, MASKED)
            elif word != "\n":
                draw.text((x, y), word, colour, FONT)
            x += wide


def stages_of(run, task, seed):
    """Answers to held-out prompts, as many as the task's panel shows, at FRAMES stages: ids (FRAMES, B, L)."""
    kind, count = sample.TASKS[task][0], PANELS[task][0]
    held = safe.read_arrays(run.folder / "validation.npz")[kind][:count].astype(np.int64)
    made = score.answers(run, task, [None] * count if kind == "text" else held, seed, {"record": True})
    return np.stack([[made.film[k][i] for k in page.stages(made.film, i, FRAMES)] for i in range(len(made.ids))], 1)


def draw_panel(sheet, y, run, task, rows):
    """Draw a task's rows of ids (B, L) from row y of the sheet on."""
    draw, (kind, targets), (_, width, height, lines) = ImageDraw.Draw(sheet), sample.TASKS[task], PANELS[task]
    draw.text((GAP, y), task.replace("-", " "), BLACK, TITLE_FONT)
    for i, (row, member) in enumerate(zip(rows, run.stream.describe(kind, rows).member)):
        x = GAP + i * (width + GAP)
        for index, modality in enumerate(data.KINDS[kind]):
            ids = row[member == index]
            if modality in PIXELS:
                pixels = Image.fromarray(PIXELS[modality](run, ids).squeeze())
                wide = min(width, 2 * pixels.width if modality == "speech" else height * pixels.width // pixels.height)
                sheet.paste(pixels.resize((wide, height), Image.Resampling.NEAREST), (x, y + TITLE))
            else:
                write_text(draw, x, y + TITLE + height + 6, width, lines, page.masked_text(run, ids), BLACK if modality in targets else PROMPT)


@torch.inference_mode()
def main():
    p = safe.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", default="runs/toy", help="a folder that train.py made")
    p.add_argument("--seed", type=int, default=0, help="of the answers")
    p.add_argument("--out", type=Path, default=Path("out/film.gif"))
    args = p.parse_args()
    torch.set_num_threads(os.cpu_count())  # common.py asked for one
    run = sample.load_run(args.run)
    rows = {task: stages_of(run, task, args.seed) for task in PANELS if sample.TASKS[task][0] in run.stream.slots}
    frames = [Image.new("RGB", (WIDTH, GAP + sum(map(panel_height, rows))), "white") for _ in range(FRAMES)]
    for stage, sheet in enumerate(frames):
        y = GAP
        for task in rows:
            draw_panel(sheet, y, run, task, rows[task][stage])
            y += panel_height(task)
    # a palette of first, middle and last, since what is masked has colours of its own
    palette = Image.fromarray(np.concatenate([np.asarray(frames[i]) for i in (0, FRAMES // 2, -1)])).quantize(256)
    frames = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    with safe.whole(args.out) as path:
        frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], duration=[FRAME_MS] * (FRAMES - 1) + [LAST * FRAME_MS], loop=0, optimize=True)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    safe.cli(main, "film.py")
