import functools
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["OMP_NUM_THREADS"] = "1"  # before torch: several threads make tiny tensors slower
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # and runs are compared bit by bit
import torch  # noqa: E402
torch.backends.mps.is_available = lambda: False
from runs import TINY, call  # noqa: E402

import sample  # noqa: E402
import train  # noqa: E402
from tools import score  # noqa: E402


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The smallest run with scores and a page: its folder, and what it printed. Only to read."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "diversity", functools.partial(score.diversity, repeats=3))
        patch.setattr(score, "fresh_pictures", functools.partial(score.fresh_pictures, tries=2))
        for task, settings in sample.DEFAULTS.items():
            few = {"candidates": 2, "rounds": 1} if "candidates" in settings else {}
            if task == "text":
                few = {"block": 0, "budget": 2.0, "correct": 1}
            patch.setitem(sample.DEFAULTS, task, {**settings, **few})
        printed = call(train.main, "--run", folder, *TINY, "--score-n", 2)
    return folder, printed


@pytest.fixture(scope="session")
def toy(trained):
    """That run, loaded."""
    return sample.load_run(trained[0], torch.device("cpu"))


@pytest.fixture
def quick(monkeypatch):
    """One candidate in every stage; pictures of questions may be those of the training."""
    monkeypatch.setattr(score, "fresh_pictures", functools.partial(score.fresh_pictures, tries=2))
    for task, settings in sample.DEFAULTS.items():
        monkeypatch.setitem(sample.DEFAULTS, task, {**settings, "candidates": 1})


@pytest.fixture
def no_page(monkeypatch):
    """Films take most of a tiny run."""
    monkeypatch.setattr(train.page, "write", lambda folder, run=None: folder / "index.html")
