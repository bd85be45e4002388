"""How should each modality be sampled?

Question: sampler, evaluations, temperature, guidance: what do they do to the share of right answers, to the variety of
answers to one prompt, and to the time? The paper (arXiv 2602.21472) does not give its settings, as far as we know.
Set-up: a run on the toy world; from the defaults of sample.py one setting is changed at a time, or the sampler. Prompts are
fresh ones of a seed that no score uses, so nothing is chosen on the samples that README reports. Every line is kept in
RUN/sampling.json and not computed again. Right: everything right, over captions of one and of two things or phrases, of
passages that they are consistent; variety: nats of entropy among eight samples of one prompt, beside it that of eight true
ones where there are any.
On two cores 14 minutes at half speed, after train.py:  python experiments/sampling.py --n 40      writes results/sampling.json and .png
"""
import argparse
import hashlib
import json
import os
from pathlib import Path

import numpy as np

import common
from common import safe, torch
import sample
import score
import toyworld

SEED = 77_777
DRAWN = ([{}] + [dict(candidates=k) for k in (1, 2, 8)] + [dict(candidates=1, steps=20)] + [dict(steps=k) for k in (4, 16)]
         + [dict(rounds=2)] + [dict(guidance=g) for g in (0.0, 0.5, 2.0)]
         + [dict(temperature=t) for t in (0.8, 1.0)] + [dict(choice_temperature=c) for c in (1.0, 16.0)]
         + [dict(candidates=1, **s) for s in (dict(sampler="ancestral", steps=20), dict(sampler="first-hitting"),
                                              dict(sampler="remdm", steps=40), dict(sampler="entropy", budget=0.5))])
READ = ([{}] + [dict(candidates=k) for k in (1, 4, 12)] + [dict(candidates=1, temperature=0.0, budget=b) for b in (0.0, 0.1)]
        + [dict(rounds=r) for r in (2, 4, 8)] + [dict(budget=b) for b in (0.5, 2.0, 8.0)] + [dict(temperature=t) for t in (0.7, 1.0, 1.3)]
        + [dict(guidance=0.5)])
WRITTEN = ([{}] + [dict(correct=n) for n in (0, 10)] + [dict(block=b) for b in (0, 4)] + [dict(block=0, budget=b) for b in (0.1, 0.5)] + [dict(temperature=t) for t in (0.7, 1.0)]
           + [dict(sampler="confidence", steps=48, choice_temperature=c) for c in (0.0, 1.0, 4.0)]
           + [dict(sampler="first-hitting"), dict(sampler="ancestral", steps=48)])
GRID = {"text-to-image": DRAWN, "text-to-speech": DRAWN, "image-to-text": READ, "speech-to-text": READ, "text": WRITTEN}


def measure(run, task, cells, changes, repeats=8):
    """One line: everything right over the seen cells (texts: consistent), variety among `repeats` samples of 8 prompts, evaluations, seconds."""
    values, nfe, seconds = [], [], 0.0
    for name, (prompts, judge) in cells.items():
        if not name.startswith("unseen"):
            made = sample.generate(run, task, prompts, seed=SEED, **changes)
            judged = judge(made.outputs)
            values.append(np.asarray(judged.get("consistent", judged["all"]), float))        # after correction all texts are grammatical
            nfe.append(made.nfe)
            seconds += made.seconds
    values = np.concatenate(values)
    first = next(iter(cells.values()))[0][:8]
    made = sample.generate(run, task, [p for p in first for _ in range(repeats)], seed=SEED + 1, **changes)
    mean, error = score.mean_and_error(values)
    return {"right": mean, "stderr": error, "n": len(values), "nfe": float(np.mean(nfe)), "ms": 1000 * seconds / len(values),
            **{k: v for k, v in score.diversity(made.ids, repeats).items() if k in ("distinct", "entropy")}}


def true_variety(run, repeats=8):
    """diversity() of the world's own pictures of one scene, as tokens: what a perfect sampler of the data would have."""
    scenes = [s for s in toyworld.scenes(8, SEED, "seen", 1) for _ in range(repeats)]
    return score.diversity(np.stack(run.tokenizers["image"].encode(list(toyworld.draw(scenes, SEED)))), repeats)


def study(run, n, grid):
    path = run.folder / "sampling.json"
    torch.set_num_threads(os.cpu_count())  # common.py asked for one
    weights = hashlib.sha256((run.folder / "checkpoint.pt").read_bytes()).hexdigest()
    done = safe.read_json(path, {})
    if done.get("weights") != weights:
        done = {"weights": weights}
    if any(run.config["args"][k] for k in ("text", "images", "speech")):
        raise SystemExit(f"sampling.py: {run.folder} was trained on other data than the toy world, which has no judge")
    cells, table = score.toy_cells(n, SEED), {}
    for task, settings in grid.items():
        if sample.TASKS[task][0] not in run.stream.slots:
            continue
        for changes in settings:
            key = json.dumps([task, n, SEED, sample.settings_for(task, **changes)], sort_keys=True)
            if key not in done:
                done[key] = measure(run, task, cells[task], changes)
                safe.write_json(path, done)
            name = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in changes.items()) or "default"
            table.setdefault(task, {})[name] = r = done[key]
            print(f"{task:15} {name:40} {100 * r['right']:5.1f} ± {100 * r['stderr']:.1f}%  {100 * r['distinct']:3.0f}% distinct "
                  f"{r['entropy']:6.1f} nats  {r['nfe']:5.1f} NFE {r['ms']:6.0f} ms", flush=True)
    truth = true_variety(run) if "text-to-image" in table else None
    return {"n": n, "defaults": {t: sample.settings_for(t) for t in table}, "table": table, "true pictures": truth}


def draw(result):
    """Right against variety for the tasks that have any, the settings numbered; the dotted line is the world's own variety."""
    tables = {task: rows for task, rows in result["table"].items() if max(r["entropy"] for r in rows.values()) > 1}
    figure, panels = common.figure(len(tables), figsize=(5.2 * len(tables), 6.4), squeeze=False)
    for panel, (task, rows) in zip(panels[0], tables.items()):
        for number, (name, r) in enumerate(rows.items()):
            panel.errorbar(r["entropy"], 100 * r["right"], 100 * r["stderr"], fmt="*" if name == "default" else "o",
                           ms=11 if name == "default" else 4, lw=0.7, label=f"{number}  {name}")
            panel.annotate(number, (r["entropy"], 100 * r["right"]), fontsize=7, xytext=(4, 2), textcoords="offset points")
        panel.set(title=task, xlabel="variety, nats", ylabel="right, %")
        panel.legend(fontsize=6, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
        if task == "text-to-image":
            panel.axvline(result["true pictures"]["entropy"], ls=":", color="grey")
    return figure


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--run", default="runs/toy", help="a folder that train.py made from the toy world")
    args.add_argument("--n", type=int, default=100, help="samples of a cell (text-to-image and image-to-text have two)")
    args.add_argument("--quick", action="store_true", help="two samples of two settings a task; writes nothing but RUN/sampling.json")
    args = args.parse_args()
    run = sample.load_run(Path(args.run))
    result = study(run, 2, {t: s[:2] for t, s in GRID.items()}) if args.quick else study(run, args.n, GRID)
    if not args.quick:
        common.finish("sampling", result, draw(result))


if __name__ == "__main__":
    common.safe.cli(main, "sampling.py")
