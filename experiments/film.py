"""One moving picture of a run: answers to the first held-out prompts, and texts from nothing, as
they are unmasked. None is left out.

    python experiments/film.py --run runs/toy --out experiments/results/film.gif
"""
import os
import re

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from common import data, files, sample  # finds the folder above
from tools import masked
from tools.watch import PIXELS

FRAMES = 20
MILLISECONDS = 110  # a frame; the last one 14 times as long
WIDTH, GAP, LINE, TITLE = 920, 14, 15, 22  # pixels: sheet, between samples, text line, title
FONT = ImageFont.load_default(12)
# task -> samples, width of one, height of its picture, lines of text under it
PANELS = {"text-to-image": (7, 116, 108, 4), "image-to-text": (7, 116, 108, 4),
          "text-to-speech": (4, 212, 80, 1), "speech-to-text": (4, 212, 80, 1),
          "text": (2, 440, 0, 4)}


def stages(run, task):
    """Ids (FRAMES, B, L) of a task's answers, evenly spaced in masked tokens."""
    kind, targets = sample.TASKS[task]
    ids = data.stacked(run.documents[kind][1][:PANELS[task][0]])
    ids = sample.punch(run, kind, ids, *targets)
    film = torch.stack(sample.answer(run, task, ids, record=True).film)   # (n, B, L)
    left = (film == data.MASK).sum(2).double()                            # (n, B)
    wanted = torch.linspace(1, 0, FRAMES)[:, None] * left[0]              # (FRAMES, B)
    at = (left[:, None] - wanted).abs().argmin(0)                         # (FRAMES, B)
    at[-1] = len(film) - 1
    return film[at, torch.arange(film.shape[1])]


def write(draw, x, y, width, lines, pieces):
    """Write masked.pieces in lines of `width` pixels while there is room. Masks are grey blocks."""
    left = x
    bottom = y + lines * LINE
    words = [word for text, _ in pieces
             for word in ([None] if text is None else re.findall(r"\n| *[^ \n]+| +", text))]
    for word in words:
        wide = 18 if word is None else draw.textlength(word.strip("\n"), FONT)
        if word == "\n" or (x + wide > left + width and x > left):
            x = left
            y += LINE
        if y + LINE > bottom:
            return
        if word is None:
            draw.rounded_rectangle((x, y + 3, x + wide - 3, y + 13), 3, (masked.GREY,) * 3)
        elif word != "\n":
            draw.text((x, y), word, "black", FONT)
        x += wide


def draw_panel(sheet, y, run, task, ids):
    """Draw ids (B, L) of a task from row y of the sheet on. Returns the row below."""
    _, width, height, lines = PANELS[task]
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, y), task.replace("-", " "), "black", FONT)
    kind, _ = sample.TASKS[task]
    rows = run.stream.describe(ids)
    for modality in data.KINDS[kind]:
        for i, at in enumerate(rows.of(kind, modality)):
            x = GAP + i * (width + GAP)
            member = ids[i][at].numpy()
            if modality in PIXELS:
                picture = Image.fromarray(PIXELS[modality](run, member))
                wide = min(width, height * picture.width // picture.height)
                picture = picture.resize((wide, height), Image.Resampling.NEAREST)
                sheet.paste(picture, (x, y + TITLE), picture)
            else:
                pieces = masked.pieces(run, member, np.ones(len(member)))
                write(draw, x, y + TITLE + height + 6, width, lines, pieces)
    return y + TITLE + height + 6 + lines * LINE + GAP


def main():
    parser = files.Parser(description=__doc__)
    parser.add_argument("--run", default="runs/toy", help="a folder that train.py made")
    parser.add_argument("--out", default="out/film.gif")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    run = sample.load_run(args.run)
    films = {task: stages(run, task) for task in PANELS
             if sample.TASKS[task][0] in run.stream.slots}
    frames = []
    for stage in range(FRAMES):
        sheet = Image.new("RGB", (WIDTH, 2000), "white")
        y = GAP
        for task, film in films.items():
            y = draw_panel(sheet, y, run, task, film[stage])
        frames.append(sheet.crop((0, 0, WIDTH, y)))
    # one palette, of the first, the middle and the last frame
    palette = [np.asarray(frames[i]) for i in (0, FRAMES // 2, -1)]
    palette = Image.fromarray(np.concatenate(palette)).quantize(256)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [MILLISECONDS] * (FRAMES - 1) + [14 * MILLISECONDS]
    with files.whole(args.out) as path:
        frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], duration=times,
                       loop=0, optimize=True)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    files.command_line(main, "film.py")
