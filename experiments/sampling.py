"""How should each modality be sampled?

Question: sampler, calls, temperature, guidance: what do they do to the share of right answers, to
the variety of answers to one prompt, and to the time? The paper's (arXiv 2602.21472) settings are
not known to us.
Set-up: a run on the toy world. From the defaults of sample.py one setting is changed at a time, or
the sampler. Prompts are of a seed that no score uses, so nothing is chosen on the samples that
README reports. Right: everything right; of passages that they are consistent. Variety: nats of
entropy among eight samples of one prompt.

    python experiments/sampling.py --run runs/toy
"""
import hashlib

import common
from common import files, sample, score

SEED = 77_777
DRAWN = [{}, *({"candidates": k} for k in (1, 2, 8)), {"candidates": 1, "steps": 20},
         {"steps": 4}, {"steps": 16}, {"rounds": 2}, *({"guidance": g} for g in (0.0, 0.5, 2.0)),
         {"temperature": 0.8}, {"temperature": 1.0}, {"choice_temperature": 1.0},
         {"choice_temperature": 16.0}, {"candidates": 1, "sampler": "ancestral", "steps": 20},
         {"candidates": 1, "sampler": "first-hitting"},
         {"candidates": 1, "sampler": "remdm", "steps": 40},
         {"candidates": 1, "sampler": "entropy", "budget": 0.5}]
READ = [{}, *({"candidates": k} for k in (1, 4, 12)),
        {"candidates": 1, "temperature": 0.0, "budget": 0.0},
        {"candidates": 1, "temperature": 0.0, "budget": 0.1}, *({"rounds": r} for r in (2, 4, 8)),
        *({"budget": b} for b in (0.5, 2.0, 8.0)), *({"temperature": t} for t in (0.7, 1.0, 1.3)),
        {"guidance": 0.5}]
WRITTEN = [{}, {"correct": 0}, {"correct": 10}, {"block": 0}, {"block": 4},
           {"block": 0, "budget": 0.1}, {"block": 0, "budget": 0.5}, {"temperature": 0.7},
           {"temperature": 1.0},
           *({"sampler": "confidence", "steps": 48, "choice_temperature": c} for c in (0., 1., 4.)),
           {"sampler": "first-hitting"}, {"sampler": "ancestral", "steps": 48}]
GRID = {"text-to-image": DRAWN, "text-to-speech": DRAWN, "image-to-text": READ,
        "speech-to-text": READ, "text": WRITTEN}
FLAGS = {"run": ("runs/toy", "a folder that train.py made from the toy world"),
         "n": (40, "samples of a cell (text-to-image and image-to-text have two)")}
QUICK = dict(n=1, grid={"text": [{}, WRITTEN[-1]]})


def measure(run, task, cells, changes):
    """One line: the share right over the seen cells, variety, calls, milliseconds a sample."""
    seen = {name: cell for name, cell in cells.items() if not name.startswith("unseen")}
    made = score.score_task(run, task, seen, SEED, changes)
    what = "consistent" if task == "text" else "all"
    marks = [common.attributes(cell)[what] for cell in made["cells"].values()]
    n = sum(cell[2] for cell in marks)
    error = sum((cell[1] * cell[2] / n) ** 2 for cell in marks) ** 0.5
    prompts = next(iter(seen.values())).prompts
    variety = score.diversity(run, task, prompts, SEED + 1, changes)
    return {"right": [sum(cell[0] * cell[2] for cell in marks) / n, error, n],
            "distinct": variety["distinct"], "entropy": variety["entropy"], "calls": made["nfe"],
            "ms": 1000 * made["seconds"] / n}


def study(folder, run, n, grid=GRID):
    run = sample.load_run(run)
    weights = hashlib.sha256((run.folder / "checkpoint.pt").read_bytes()).hexdigest()[:16]
    path = folder / "sampling-lines.json"
    kept = files.read_json(path, {})
    done = kept["runs"] if kept.get("form") == weights else {}
    cells = score.toy_cells(run, n, SEED)
    table = {}
    for task in [task for task in grid if task in cells]:
        for changes in grid[task]:
            name = ", ".join(f"{k} {v}" for k, v in changes.items()) or "default"
            key = f"{task}, n {n}: {sample.settings_for(task, **changes)}"
            if key not in done:
                done[key] = measure(run, task, cells[task], changes)
                files.write_json(path, {"form": weights, "runs": done})
            table.setdefault(task, {})[name] = done[key]
    return {"n": n, "weights": weights, "defaults": {t: sample.settings_for(t) for t in table},
            "table": table}


def draw(result):
    """Right against variety, for the tasks that have any. The settings are numbered."""
    tables = {task: rows for task, rows in result["table"].items()
              if max(r["entropy"] for r in rows.values()) > 1}
    figure, axes = common.panels(max(1, len(tables)), figsize=(5.2 * len(tables) + 1, 6.4))
    for panel, (task, rows) in zip(axes, tables.items()):
        for number, (name, r) in enumerate(rows.items()):
            share, error, _ = r["right"]
            panel.errorbar(r["entropy"], 100 * share, 100 * error, fmt="o", ms=4, lw=0.7,
                           label=f"{number}  {name}")
            panel.annotate(number, (r["entropy"], 100 * share), fontsize=7, xytext=(4, 2),
                           textcoords="offset points")
        panel.set(title=task, xlabel="variety, nats", ylabel="right, %")
        panel.legend(fontsize=6, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    return figure


if __name__ == "__main__":
    common.command_line("sampling", __doc__, study, draw, QUICK, FLAGS)
