"""Many small pictures: how long they take to be checked and encoded, and how much memory (Linux, macOS).

    python tests/many.py --count 100000      about two minutes on two cores; not part of the test suite
"""
import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--count", type=int, default=100_000)
    count, rng = p.parse_args().count, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / "pictures"
        folder.mkdir()
        with open(folder / "metadata.jsonl", "w", encoding="utf-8") as lines:
            for i in range(count):
                picture = np.full((16, 16, 3), rng.integers(0, 256, 3), np.uint8)
                picture[:8] = 255 - picture[:8]
                Image.fromarray(picture).save(folder / f"{i}.png", compress_level=1)
                lines.write(json.dumps({"file_name": f"{i}.png", "text": f"picture {i % 97}"}) + "\n")
        subprocess.run([sys.executable, "train.py", "--images", folder, "--run", Path(room) / "run", "--steps", "2", "--image-steps",
                        "20", "--score-n", "0"], cwd=ROOT, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{count} pictures: {peak / 1e9:.2f} GB at most")


if __name__ == "__main__":
    main()
