"""Scores of several runs as one table: what every cell has on average, and how much runs differ.

    python train.py --seed 1 --run runs/seed1                            and so on, one run a seed
    python sample.py --run runs/seed1 score --n 200 --json seed1.json
    python experiments/seeds.py seed0.json seed1.json seed2.json         prints Markdown
"""
import argparse
import json
from pathlib import Path

import numpy as np

ALSO = ("background", "colour", "shape", "size", "relation", "whole phrase", "several words", "consistent", "distinct", "forms")  # attributes to name


def rows(scores):
    """{(task, cell): {"all" and attributes: share right}}, tokenizers too."""
    out = {(task, name): {what: cell[what] for what in ("all", *ALSO) if what in cell}
           for task, result in scores.items() for name, cell in result.get("cells", {}).items()}
    for task, result in scores.items():
        if "diversity" in result:
            out[task, next(iter(result["cells"]))]["of one prompt distinct"] = result["diversity"]["distinct"]
    return {**out, **{(f"{m} tokenizer", "seen"): {"all": r["tokens"][0]} for m, r in scores.get("tokenizers", {}).items()}}


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("scores", nargs="+", type=Path, help="what sample.py score --json wrote, one file a run")
    runs = [rows(json.loads(path.read_text(encoding="utf-8"))) for path in args.parse_args().scores]
    print(f"| task | cell | right %, mean ± standard deviation | the {len(runs)} runs % | by attribute %, means |\n|---|---|---|---|---|")
    for key in runs[0]:
        of = {what: 100 * np.array([run[key][what] for run in runs]) for what in runs[0][key] if all(what in run[key] for run in runs)}
        right = of.pop("all")
        print(f"| {key[0]} | {key[1]} | {right.mean():.0f} ± {right.std(ddof=len(runs) > 1):.0f} | {', '.join(f'{v:.0f}' for v in right)} | "
              + ", ".join(f"{what} {v.mean():.0f}" for what, v in of.items()) + " |")


if __name__ == "__main__":
    main()
