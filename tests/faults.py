"""Kill a short training at random moments and resume it, again and again: the weights must be those
of an undisturbed run, bit by bit.

    python tests/faults.py --kills 30      a few minutes on two cores; not part of the test suite

Every life of a run ends by SIGKILL after a random time: while it reads, trains tokenizers, encodes,
trains or saves. Its folder is resumed until it has finished. Prints which file was the newest.
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


def live(folder, seconds):
    """One life of a run, at most so many seconds -> whether it finished. Exits where it fails."""
    flags = ("--resume",) if (folder / "config.json").exists() else FLAGS
    command = [sys.executable, "train.py", "--run", folder, *flags]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:  # it was killed
        return False
    if done.returncode:
        sys.exit(f"{folder} failed: {done.stderr[-2000:]}")
    return True


def newest(folder):
    """The name of the file that was written last."""
    paths = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime_ns)
    return paths[-1].name if paths else "none"


def main():
    parser = argparse.ArgumentParser()
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
        while found.total() < kills:
            folder = Path(tempfile.mkdtemp(dir=room))
            while not live(folder, lot.uniform(0.1, 1) * length if found.total() < kills else None):
                found[newest(folder)] += 1
            if not same(whole, folder) or steps_logged(whole) != steps_logged(folder):
                sys.exit(f"{folder}: other weights or another log, after {dict(found)}")
    print(f"{found.total()} kills; newest files {dict(found)}: the same weights every time")


if __name__ == "__main__":
    main()
