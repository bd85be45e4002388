"""Scores of several runs as one table: what every cell has on average, and how far runs differ.

    python train.py --seed 1 --run runs/seed1                            and so on
    python -m tools.score --run runs/seed1 --n 200 --json runs/seed1/scores.json
    python experiments/seeds.py runs/toy runs/seed1 runs/seed2           writes results/seeds.json
"""
import json
from pathlib import Path

import common
from common import files


def read(folder):
    """{"task: cell": {attribute: [share right, error, n]}}, bounds, and facts of a run folder."""
    scores = files.read_json(folder / "scores.json")
    config = files.read_json(folder / "config.json")
    if not scores or not config:
        raise files.UsageError(f"{files.quoted(folder)} has no scores.json or config.json: train "
                               "or score a run there first")
    cells = {}
    for task, result in scores.items():
        for name, marks in result.get("cells", {}).items():
            cells[f"{task}: {name}"] = common.attributes(marks)
    for modality, marks in scores.get("tokenizers", {}).items():
        cells[f"{modality} tokenizer"] = {"all": [*marks["tokens"], marks["n"]]}
    for name, entry in scores.get("bound", {}).items():
        nats = [entry["nats_per_token"], entry["stderr"], entry["documents"]]
        cells[f"bound, {name}"] = {"nats a token": nats}
        for unit in common.score.measured(entry):
            bits = [entry[unit], entry[f"{unit}_stderr"], entry["documents"]]
            cells[f"bound, {name}"][unit.replace("_", " ")] = bits
    log = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    notes = {f"{task}: {name}": marks["note"] for task, result in scores.items()
             for name, marks in result.get("cells", {}).items() if "note" in marks}
    facts = {"seed": config["config"]["seed"], "steps": json.loads(log[-1])["step"], "notes": notes,
             "seconds": files.read_json(folder / "seconds.json", {}),
             "tokenizers": files.read_json(folder / "tokenizers.json", {})}
    return cells, facts


def study(folders):
    runs, facts = zip(*[read(Path(folder)) for folder in folders])
    cells = {}
    for name, found in runs[0].items():
        for what in found:
            of = [run[name][what] for run in runs if what in run.get(name, {})]
            if len(of) == len(runs):
                cells[name, what] = of
    table = {}
    for (name, what), cell in common.with_errors(cells).items():
        of = {"mean": cell, "runs": [value[0] for value in cells[name, what]]}
        table.setdefault(name, {})[what] = of
    return {"runs": list(facts), "table": table}


def brief(what, cell):
    """Bits as they are, a share in percent; all or none of n is told as such."""
    if what.startswith("bits"):
        return f"{cell[0]:.3g} ± {cell[1]:.1g}"
    return common.told(*cell) if cell[0] in (0, 1) else f"{100 * cell[0]:.0f}"


def markdown(result):
    """The table as Markdown."""
    lines = ["| cell | right, mean ± error | the runs | by attribute, means %; bits |",
             "|---|---|---|---|"]
    for name, row in result["table"].items():
        what = "all" if "all" in row else next(iter(row))
        first = row[what]
        if what == "all":
            mean = common.told(*first["mean"])
            each = ", ".join(f"{100 * v:.0f}" for v in first["runs"]) + "%"
        else:
            mean = common.told(*first["mean"][:2])
            each = ", ".join(f"{v:.3f}" for v in first["runs"])
        rest = ", ".join(f"{k} {brief(k, v['mean'])}" for k, v in row.items() if k != what)
        lines.append(f"| {name} | {mean} | {each} | {rest} |")
    return "\n".join(lines)


def main():
    parser = files.Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="folders with scores.json")
    parser.add_argument("--out", default=str(common.RESULTS / "seeds.json"))
    args = parser.parse_args()
    result = study(args.runs)
    files.write_json(args.out, {"made": common.made_by("seeds", common.RESULTS), **result})
    print(markdown(result))


if __name__ == "__main__":
    files.command_line(main, "seeds.py")
