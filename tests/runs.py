"""The smallest run, made once for all tests that look at one, and how to call a script."""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--shape", '{"width": 64, "depth": 1, "head_dim": 32}', "--batch-tokens", "768", "--image-steps", "8", "--speech-steps", "4",
         "--device", "cpu", "--score-n", "2")
TINY = ("--pictures", "60", "--passages", "60", "--utterances", "24", *SMALL)
UNSCORED = (*TINY[:-1], "0")  # where scores are not what is looked at: they take the most of such a run


def run(*command, check=True):
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert not check or done.returncode == 0, done.stderr[-2000:]
    return done
