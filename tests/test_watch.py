"""Films in a terminal: plain lines or in place, safe with any text, of exactly what is written."""
import io
import sys

import numpy as np
import torch
from runs import call

import data
import sample
from data import MASK
from tools import watch

RED = "a small red circle on white"


def text_ids(run, text, masks=0):
    """A document of a text (L,): its tokens, masks, an end and whatever is behind it."""
    codes = run.tokenizers["text"].encode([text])[0]
    ids = run.stream.document("text", [codes], [len(codes) + masks + 3])
    ids[data.HEAD + len(codes):][:masks] = MASK
    return torch.from_numpy(ids)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_texts_show_masks_no_control_characters_and_fit_into_the_terminal(toy, monkeypatch):
    ids = text_ids(toy, "the\x1b[2J\né", masks=2)
    assert watch.summary(toy, ids) == "the\\x1b[2J é __ __"
    assert watch.frame(toy, ids) == "the\\x1b[2J\né __ __"
    monkeypatch.setenv("COLUMNS", "10")
    assert watch.wrapped("the red circle\n\nis") == "the red\ncircle\n\nis"
    assert watch.wrapped("红" * 8) == "红" * 5 + "\n" + "红" * 3  # two columns each


def test_half_blocks_by_hand():
    """Three rows: the lowest one stands on the terminal's own ground. The last column is clear."""
    pixels = np.zeros((3, 2, 4), np.uint8)
    pixels[:, 0, 3] = 255
    pixels[:, 0, :3] = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert watch.half_blocks(pixels) == ("\033[38;2;1;2;3;48;2;4;5;6m▀\033[0m \033[0m\n"
                                         "\033[38;2;7;8;9;49m▀\033[0m \033[0m")
    lines = watch.half_blocks(np.full((260, 1250, 4), 255, np.uint8)).split("\n")  # thinned out
    assert 10 <= len(lines) <= 18 and 10 <= lines[0].count("▀") <= 48


def test_on_a_terminal_frames_take_the_place_of_each_other_and_texts_shrink(toy, monkeypatch):
    """Lines for the highest frame come first, so that none scrolls; there the place is noted.
    What does not change is shown once."""
    monkeypatch.setattr(watch, "PAUSE", 0)
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    film = [text_ids(toy, "a" + " red circle" * n) for n in (0, 5, 5, 1)]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        watch.replay(toy, film)
    room, *frames = terminal.getvalue().split("\0338\033[J")  # back to the place, clear the rest
    assert frames == [watch.frame(toy, film[i]) + "\n" for i in (0, 1, 3)]
    assert room == "\n" * 4 + "\033[4A\0337" and frames[-1] == "a red circle\n"


def test_every_sample_is_watched_without_a_terminal_in_plain_lines(toy, tmp_path):
    flags = ("--run", toy.folder, "--out", tmp_path, "--device", "cpu", "--watch")
    printed = call(sample.main, "text-to-image", RED, "--n", 2, "--steps", 2, "--candidates", 1,
                   *flags).splitlines()
    stages = [f"image: {n} of 19 tokens, {RED}" for n in (0, 6, 19)]
    assert printed[:-1] == [*stages, RED] * 2
    printed = call(sample.main, "infill", "the ___ is", "--hole", 1, "--correct", 0, *flags)
    first, last, text, _ = printed.splitlines()
    assert first == "the __ is" and last == text
