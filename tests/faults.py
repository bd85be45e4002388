"""Kill a short training at random moments and resume it, again and again: the final weights must be the same every time.

    python tests/faults.py --kills 30      about 6 minutes on two cores; not part of the test suite (which has one Ctrl-C)

Every life of a run is killed (SIGKILL) after a random time, which falls into reading, training of tokenizers, caching, training or
saving; before it ends its folder is resumed until it has finished. Prints in what state the kills found the run.
"""
import argparse
import collections
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import safe  # noqa: E402

TINY = ("--shape", '{"width": 64, "depth": 1, "head_dim": 32}', "--batch-tokens", "768", "--image-steps", "8", "--speech-steps", "4",
        "--pictures", "200", "--passages", "200", "--utterances", "60", "--device", "cpu", "--score-n", "0", "--steps", "120",
        "--save-every", "1", "--compile", "off")


def command(folder):
    """Start the run, or go on with it if it has begun."""
    begun = (folder / "config.json").exists()
    return [sys.executable, "train.py", "--run", str(folder), *(["--resume"] if begun else TINY)]


def state(folder):
    """What a kill interrupted, from the files that are there."""
    if list(folder.rglob("checkpoint.pt.tmp")):
        return "saving"
    for name, what in (("checkpoint.pt", "training"), ("validation.npz", "before the first step"), ("speech.pt", "caching"),
                       ("config.json", "tokenizers")):
        if (folder / name).exists():
            return what
    return "reading data"


def weights(folder):
    checkpoint = safe.load(folder / "checkpoint.pt")
    return [*checkpoint["model"].values(), *checkpoint["ema"]]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=30)
    args = p.parse_args()
    rng, found, runs = np.random.default_rng(0), collections.Counter(), 0
    with tempfile.TemporaryDirectory() as room:
        whole = Path(room) / "whole"
        start = time.time()
        subprocess.run(command(whole), cwd=ROOT, check=True, capture_output=True)
        length, wanted, log = time.time() - start, weights(whole), (whole / "log.jsonl").read_text()
        print(f"an undisturbed run takes {length:.0f} s", flush=True)
        while sum(found.values()) < args.kills:
            folder, runs = Path(room) / f"run{runs}", runs + 1
            while True:
                for left in folder.rglob("*.tmp"):
                    left.unlink()                                     # so that it is seen which kill left one
                errors = open(Path(room) / "errors", "w+")
                going = subprocess.Popen(command(folder), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
                try:
                    going.wait(rng.uniform(0.1, 1) * length if sum(found.values()) < args.kills else None)
                except subprocess.TimeoutExpired:
                    going.kill()
                    going.wait()
                    found[state(folder) if folder.exists() else "reading data"] += 1
                    continue
                if going.returncode:
                    sys.exit(f"{folder.name} failed after {dict(found)}: {(errors.seek(0), errors.read())[1][-2000:]}")
                break
            if not all(torch.equal(a, b) for a, b in zip(wanted, weights(folder), strict=True)):
                sys.exit(f"{folder.name}: other weights than undisturbed, after {dict(found)}")
            steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
            assert steps == [json.loads(line)["step"] for line in log.splitlines()], "the log has gaps or repeats"
    print(f"{sum(found.values())} kills in {runs} runs, found {dict(found)}: the same weights, bit by bit, every time")


if __name__ == "__main__":
    main()
