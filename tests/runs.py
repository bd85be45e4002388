"""The smallest run, and how tests call a script: in this process, since a new one takes seconds."""
import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import files

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--image-tokenizer", '{"hidden": 16, "levels": [4, 4, 4]}', "--image-steps", "8",
         "--speech-tokenizer", '{"hidden": 32, "levels": [5, 5]}', "--speech-steps", "8",
         "--shape", '{"width": 32, "depth": 1}', "--batch-tokens", "768",
         "--compile", "off", "--device", "cpu", "--dtype", "float32")
TINY = ("--items", "150", "--steps", "6", *SMALL)


def call(main, *flags):
    """Run a script's main with these flags -> what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [main.__module__, *map(str, flags)])
        main()
    return printed.getvalue()


def told(main, *flags):
    """Run a script that ends with an error -> its exit status, and what it wrote on stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as stopped:
        call(lambda: files.command_line(main, main.__module__), *flags)
    return stopped.value.code, errors.getvalue()


def refused(main, *flags, status=(2,)):
    """The one line in which a script refuses wrong flags, or what it cannot use."""
    got, errors = told(main, *flags)
    assert got in status and errors.count("\n") == 1, errors
    return errors


def content(run, kind, modality, ids):
    """Ids of a member of documents ids (B, L): (B, slot)."""
    at = run.stream.describe(ids).of(kind, modality)
    return ids[at].view(len(ids), -1)


def begun(run, folder, **settings):
    """A copy of a run as it was before its first step, with changed settings. --resume trains it,
    without scores."""
    folder.mkdir(parents=True)
    for name in ("text.json", "image.pt", "speech.pt", "documents.pt"):
        if (run / name).exists():
            shutil.copy(run / name, folder)
    saved = json.loads((run / "config.json").read_text())
    saved["config"].update({"score_n": 0, **settings})
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


def same(a, b):
    """Whether two runs have the same steps and weights, bit by bit."""
    a, b = (files.load(folder / "checkpoint.pt") for folder in (a, b))
    weights = [[*saved["model"].values(), *saved["average"]] for saved in (a, b)]
    equal = [torch.equal(x, y) for x, y in zip(*weights, strict=True)]
    return a["step"] == b["step"] and all(equal)


def steps_logged(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]
