"""Films in a terminal: plain lines or in place, safe with any text, of exactly what is written."""
import io
import re
import sys

import numpy as np
import pytest
import torch
from runs import call

import data
import sample
from data import MASK
from tools import watch

pytestmark = pytest.mark.usefixtures("one_thread")
RED = "a small red circle on white"


@pytest.fixture(scope="module")
def toy(trained):
    return sample.load_run(trained[0], torch.device("cpu"))


def text_ids(run, text, masks=0):
    """A document of a text (L,): its tokens, masks, an end and whatever is behind it."""
    codes = run.tokenizers["text"].encode([text])[0]
    ids = run.stream.document("text", [codes], [len(codes) + masks + 3])
    ids[data.HEAD + len(codes):][:masks] = MASK
    return torch.from_numpy(ids)


class Terminal(io.StringIO):
    """What a terminal of 24 rows shows, and showed whenever it was flushed; no colours."""

    def __init__(self):
        super().__init__()
        self.lines = [""] * 24
        self.row = 23  # at the bottom, where every new line scrolls
        self.noted = None
        self.screens = []

    def isatty(self):
        return True

    def flush(self):
        self.screens.append("\n".join(self.lines).strip("\n"))

    def write(self, text):
        for code in re.findall(r"\033\[[\d;]*[a-zA-Z]|\033[78]|[^\033]", text):
            if code == "\n":
                self.row += 1
                if self.row == 24:
                    self.lines = [*self.lines[1:], ""]
                    self.row = 23
            elif code == "\0337":
                self.noted = self.row
            elif code == "\0338":
                self.row = self.noted
            elif code == "\033[J":
                self.lines[self.row:] = [""] * (24 - self.row)
            elif code.endswith("A"):
                self.row -= int(code[2:-1])
            elif code[0] != "\033":
                self.lines[self.row] += code


def in_terminal(monkeypatch, function, *args):
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(watch, "PAUSE", 0)
        patch.setattr(sys, "stdout", terminal)
        print("above")
        function(*args)
    return terminal.screens


# ---- Frames.


def test_texts_show_masks_and_no_control_characters(toy):
    ids = text_ids(toy, "the\x1b[2J é", masks=2)
    assert watch.summary(toy, ids) == "the\\x1b[2J é __ __"
    assert watch.frame(toy, ids) == "the\\x1b[2J é __ __"
    assert watch.summary(toy, text_ids(toy, "one\ntwo")) == "one two"
    assert watch.frame(toy, text_ids(toy, "one\ntwo")) == "one\ntwo"


def test_texts_fit_into_the_terminal(monkeypatch):
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
    for height, width in ((36, 48), (37, 49), (260, 1250)):
        lines = watch.half_blocks(np.full((height, width, 4), 255, np.uint8)).split("\n")
        assert len(lines) <= 18 and all(10 <= line.count("▀") <= 48 for line in lines)


def test_pictures_grow_out_of_grey(toy):
    ids = data.stacked(toy.documents["image-text"][1].first(1))
    masked = sample.punch(toy, "image-text", ids, "image")[0]
    grey, shown = watch.frame(toy, masked), watch.frame(toy, ids[0])
    assert grey.count("▀") == shown.count("▀") == 18 * 32
    assert set(re.findall(r"38;2;([\d;]+);4[89]", grey)) == {"187;187;187"}
    assert "187;187;187" not in shown and grey.split("\n")[18:] == shown.split("\n")[18:]
    clip = data.stacked(toy.documents["speech-text"][1].first(1))[0]
    assert 5 < len(watch.frame(toy, clip).split("\n")) <= 20


# ---- Films.


def film_of_a_pair(run):
    """A picture that comes in two steps, and a step in which nothing changes."""
    last = data.stacked(run.documents["image-text"][1].first(1))[0]
    middle = last.clone()
    middle[5:21] = MASK
    first = middle.clone()
    first[2:21] = MASK
    return [first, middle, middle, last]


def test_without_a_terminal_each_step_is_a_plain_line(toy, capsys):
    film = film_of_a_pair(toy)
    watch.replay(toy, film)
    caption = watch.words(toy, dict(watch.members(toy, film[0]))["text"])
    wanted = [f"image: {n} of 19 tokens, {caption}" for n in (0, 3, 19)]
    assert capsys.readouterr().out.splitlines() == wanted


def test_on_a_terminal_frames_take_the_place_of_each_other(toy, monkeypatch):
    screens = in_terminal(monkeypatch, watch.replay, toy, film_of_a_pair(toy))
    frame = re.sub("\033.*?m", "", watch.frame(toy, film_of_a_pair(toy)[-1]))
    assert len(screens) == 3 and set(screens) == {"above\n" + frame}


def test_a_text_shrinks_and_grows_in_place(toy, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    film = [text_ids(toy, "a" + " red circle" * n) for n in (0, 5, 1)]
    screens = in_terminal(monkeypatch, watch.replay, toy, film)
    assert [screen.count("\n") for screen in screens] == [1, 4, 1]
    assert screens[-1] == "above\na red circle"


# ---- What is watched.


def test_watching_changes_no_sample(toy):
    """Prompts are filled in groups; the film is one of all rows."""
    few = dict(seed=2, steps=2, sampler="ancestral", batch=1)
    ids = data.stacked([toy.stream.document("speech-text", [None, None])] * 18)
    ids[17, 10] = toy.stream.ranges("speech", 8)[0]
    alone = sample.fill(toy, "speech-text", ids, **few)
    made = sample.fill(toy, "speech-text", ids, record=True, **few)
    assert torch.equal(made.ids, alone.ids) and not alone.film
    assert torch.equal(made.film[0], ids) and torch.equal(made.film[-1], made.ids)
    short, long = [torch.zeros(1, 1)], [torch.full((2, 1), float(i)) for i in range(3)]
    assert torch.cat(sample.joined([short, long]), 1).tolist() == [[0, 0, 0], [0, 1, 2], [0, 1, 2]]


def test_every_sample_is_watched(toy, tmp_path):
    flags = ("--run", toy.folder, "--out", tmp_path, "--device", "cpu", "--watch")
    printed = call(sample.main, "text-to-image", RED, "--n", 2, "--steps", 2, "--candidates", 1,
                   *flags).splitlines()
    stages = [f"image: {n} of 19 tokens, {RED}" for n in (0, 6, 19)]
    assert printed[:-1] == [*stages, RED] * 2
    printed = call(sample.main, "infill", "the ___ is", "--hole", 1, "--correct", 0, *flags)
    first, last, text, _ = printed.splitlines()
    assert first == "the __ is" and last == text
    call(sample.main, "text-to-speech", "two", "--steps", 2, *flags)
    printed = call(sample.main, "infill", tmp_path / "text-to-speech-0-0.wav", "--steps", 2, *flags)
    lines = printed.splitlines()  # the clip is filled before its words are read
    whole = next(i for i, line in enumerate(lines) if "72 of 72" in line or "of" not in line)
    assert lines[0].endswith(" __" * 8) and lines[whole].endswith(" __" * 8)
    assert " __" not in lines[-2]
