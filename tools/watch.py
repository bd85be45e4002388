"""How masks become tokens, in a terminal: the film of a sample, shown again after the sampling.

Texts are unmasked in place, as in mini.py. Pictures and spectrograms grow out of grey. Their
letters are half blocks: the upper pixel is a letter's colour, the lower one that of its ground.
"""
import itertools
import shutil
import sys
import textwrap
import time

import numpy as np

import files
from data import MASK, MEMBERS
from tools.masked import masked_clip, masked_picture, pieces

PAUSE = 0.1  # seconds a frame, as in mini.py
MOST = (36, 48)  # rows and columns of pixels that are shown; larger pictures are thinned out
PIXELS = {"image": masked_picture, "speech": masked_clip}


def words(run, ids):
    """Ids of a text (slot,) -> the text, " __" for each mask, without control characters."""
    found = pieces(run, ids, np.ones(len(ids)))
    return files.printable("".join(text or " __" for text, _ in found))


def wrapped(text):
    """A text in lines that fit into the terminal."""
    columns = shutil.get_terminal_size().columns
    width = columns if text.isascii() else columns // 2  # other letters may be two columns wide
    return "\n".join(textwrap.fill(line, width) for line in text.split("\n"))


def half_block(upper, lower):
    """Two pixels (4,) of 0 to 255 as one letter; a blank where the upper one is transparent."""
    if not upper[3]:
        return "\033[0m "
    ground = "48;2;{};{};{}".format(*lower) if lower[3] else "49"
    return "\033[38;2;{};{};{};{}m\u2580".format(*upper[:3], ground)


def half_blocks(pixels):
    """Pixels uint8 (H, W, 4) -> lines of coloured letters."""
    down = -(-pixels.shape[0] // MOST[0])
    across = -(-pixels.shape[1] // MOST[1])
    pixels = pixels[::down, ::across]
    pixels = np.pad(pixels, ((0, len(pixels) % 2), (0, 0), (0, 0)))  # an even number of rows
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2]):
        lines.append("".join(map(half_block, upper, lower)) + "\033[0m")
    return "\n".join(lines)


def members(run, ids):
    """Ids (L,) of a document -> [(modality, its ids)]."""
    member = run.stream.describe(ids[None]).member[0]
    return [(MEMBERS[m][1], ids[member == m].numpy()) for m in member.unique() if m >= 0]


def frame(run, ids):
    """Ids (L,) of a document -> lines for a terminal."""
    shown = []
    for modality, part in members(run, ids):
        if modality == "text":
            shown.append(wrapped(words(run, part)))
        else:
            shown.append(half_blocks(PIXELS[modality](run, part)))
    return "\n".join(shown)


def summary(run, ids):
    """Ids (L,) of a document -> one line without colours or pictures."""
    told = []
    for modality, part in members(run, ids):
        if modality == "text":
            told.append(words(run, part).replace("\n", " "))
        else:
            told.append(f"{modality}: {(part != MASK).sum()} of {len(part)} tokens,")
    return " ".join(told)


def replay(run, film):
    """Show the film of one sample, a list of ids (L,). What does not change is shown once."""
    if not sys.stdout.isatty():
        for text, _ in itertools.groupby(summary(run, ids) for ids in film):
            print(text)
        return
    frames = [frame(run, ids) for ids in film]
    height = 1 + max(text.count("\n") for text in frames)
    # \0337 notes a place, \0338\033[J clears all behind it
    print("\n" * height + f"\033[{height}A\0337", end="")
    for text, _ in itertools.groupby(frames):
        print("\0338\033[J" + text, flush=True)
        time.sleep(PAUSE)
