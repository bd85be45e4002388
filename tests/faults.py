"""Kill a short training at random moments and resume it, again and again: the weights must be those
of an undisturbed run, bit by bit.

    python tests/faults.py --kills 30      a few minutes on two cores; not part of the test suite

Every life of a run ends by SIGKILL after a random time: while it reads, trains tokenizers, encodes,
trains or saves. Its folder is resumed until it has finished. Prints what the kills interrupted.
"""
import argparse
import collections
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from runs import TINY, same, steps_logged  # noqa: E402

FLAGS = (*TINY, "--steps", "120", "--save-every", "1", "--score-n", "0")
STATES = {  # the first file that is there tells what was interrupted
    "checkpoint.pt.tmp": "saving",
    "checkpoint.pt": "training",
    "documents.npz": "before the first checkpoint",
    "text.json": "tokenizers, encoding",
    "config.json": "reading data",
}


def command(folder):
    """Start the run, or go on with it if it has begun."""
    flags = ("--resume",) if (folder / "config.json").exists() else FLAGS
    return [sys.executable, "train.py", "--run", folder, *flags]


def state(folder):
    there = [what for name, what in STATES.items() if (folder / name).exists()]
    return (there or ["imports"])[0]


def live(folder, seconds):
    """One life of a run, at most so many seconds -> whether it finished. Exits where it fails."""
    for left in folder.glob("*.tmp"):
        left.unlink()  # so that it is seen which kill left one
    with tempfile.TemporaryFile("w+") as errors:
        going = subprocess.Popen(command(folder), cwd=ROOT, stdout=subprocess.DEVNULL,
                                 stderr=errors)
        try:
            going.wait(seconds)
        except subprocess.TimeoutExpired:
            going.kill()
            going.wait()
            return False
        if going.returncode:
            errors.seek(0)
            sys.exit(f"{folder} failed: {errors.read()[-2000:]}")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    kills = parser.parse_args().kills
    lot = random.Random(0)
    found = collections.Counter()
    with tempfile.TemporaryDirectory() as room:
        whole = Path(room) / "whole"
        start = time.time()
        live(whole, None)
        length = time.time() - start
        print(f"an undisturbed run takes {length:.0f} s", flush=True)
        runs = 0
        while found.total() < kills:
            folder = Path(room) / f"run{runs}"
            runs += 1
            while not live(folder, lot.uniform(0.1, 1) * length if found.total() < kills else None):
                found[state(folder)] += 1
            if not same(whole, folder) or steps_logged(whole) != steps_logged(folder):
                sys.exit(f"{folder}: other weights or another log, after {dict(found)}")
    print(f"{found.total()} kills in {runs} runs, while {dict(found)}: the same weights every time")


if __name__ == "__main__":
    main()
