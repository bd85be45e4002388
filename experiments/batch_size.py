"""Is the batch size still a hyper-parameter once the optimizer's settings follow it?

Question: at a fixed number of tokens, how does the final bound depend on the batch size, if the settings follow the SDE
rule (with and without gradient clipping), if nothing follows, and if the learning rates alone follow (as the square root,
linearly)? And what does the exponent gamma do when the run gets four times longer?
The paper (arXiv 2602.21472): under the rule the loss is flat up to a critical batch size B_crit = D/(L S_crit), where
fewer than S_crit steps are left, and rises above; gamma about 0.44.
Set-up: experiments/common.py; the default run's optimizer (Muon and AdamW; the paper speaks of AdamW alone), 100k parameters outside
the tables (width 64, depth 2), 1,500,000 tokens, base batch of 8 rows (768 tokens). Learning rates, betas and momentum, the
embeddings' rate and weight decay are tuned there once (`grid`, one after the other, seed 0), then batches from 1/4 to 16 times the
base, three seeds. For gamma the same is tuned at a quarter of the tokens and carried up.
On two cores at half speed about 50 minutes:  python experiments/batch_size.py     writes results/batch_size.json and .png
"""
import argparse

import numpy as np

import common
from common import train

ROWS, TOKENS, SEEDS = 8, 1_500_000, (0, 1, 2)
RATIOS = (1 / 4, 1 / 2, 1, 2, 4, 8, 16)
FIELDS = ("lr", "beta1", "beta2", "eps", "weight_decay", "muon_lr", "momentum")


def grid(c):
    """What is tried around the starting settings c, one list after the other."""
    times = lambda name, *factors: [{name: c[name] * x} for x in factors]
    muon_lr = times("muon_lr", 1, 1 / 4, 1 / 2, 2)
    return [muon_lr, times("lr", 1, 1 / 4, 1 / 2, 2, 4),
            [{k: c[k] ** power for k in ("beta1", "beta2", "momentum")} for power in (1, 1 / 2, 2, 4)],
            [dict(rates=dict(embedding=x)) for x in (1.0, 0.3, 3.0)], times("weight_decay", 1, 1 / 3, 3), muon_lr]


def settings(arm, ratio, b):
    """The optimizer's settings of an arm at `ratio` times the base batch, same tokens."""
    if arm.startswith("rule"):
        rule = train.batch_rule(ratio * b["batch"], b["tokens"], b)
        return {**{k: rule[k] for k in FIELDS}, **({} if arm == "rule" else {"clip": 1e9})}
    factor = {"nothing": 1.0, "lr x sqrt": ratio ** 0.5, "lr x linear": ratio}[arm]
    return {k: b[k] * (factor if k in ("lr", "muon_lr") else 1) for k in FIELDS}


ARMS = ("rule", "rule, no clipping", "nothing", "lr x sqrt", "lr x linear")  # no rule scales the clipping of gradients


def study(folder, tokens=TOKENS, seeds=SEEDS, ratios=RATIOS, sweeps=None, workers=None):
    path = folder / "batch_size-runs.json"
    run = lambda configs: common.run_all(path, configs, workers)
    # 1. tune once, at the base; and once more at a quarter of the tokens, for gamma
    tuned, tried, bases = {}, {}, {}
    for horizon in (tokens // 4, tokens):
        start = common.base(batch=ROWS, tokens=horizon, seed=seeds[0])
        tuned[horizon], tried[horizon] = common.tune(path, start, grid(start)[:sweeps], workers)
        bases[horizon] = {**train.BASE, **{k: tuned[horizon][k] for k in FIELDS}, "batch": ROWS * common.LENGTH, "tokens": horizon}
    b = bases[tokens]
    c = lambda horizon, settings, rows, seed: {**tuned[horizon], **settings, "batch": rows, "tokens": tokens, "seed": seed}
    # 2. the arms
    cells = [(arm, ratio) for arm in ARMS for ratio in ratios]
    results = run([c(tokens, settings(arm, ratio, b), round(ROWS * ratio), seed) for arm, ratio in cells for seed in seeds])
    grouped = [results[i * len(seeds):(i + 1) * len(seeds)] for i in range(len(cells))]
    arms = {arm: [] for arm in ARMS}
    for (arm, ratio), mine in zip(cells, grouped):
        bound, error = common.bound_and_error(mine)
        arms[arm].append(dict(ratio=ratio, rows=round(ROWS * ratio), steps=mine[0]["steps"], bound=bound, stderr=error))
    # 3. settings tuned at a quarter of the tokens, carried to all of them: what gamma does
    longer = []
    for gamma in (0.0, 0.44, 1.0):
        rule = train.batch_rule(b["batch"], tokens, bases[tokens // 4], gamma)
        mine = run([c(tokens // 4, {k: rule[k] for k in FIELDS}, ROWS, seed) for seed in seeds])
        bound, error = common.bound_and_error(mine)
        longer.append(dict(gamma=gamma, kappa=rule["kappa"], lr=rule["lr"], bound=bound, stderr=error))
    tuned_bound = next(p["bound"] for p in arms["rule"] if p["ratio"] == 1)
    s_crit = min(p["steps"] for p in arms["rule"] if p["bound"] <= 1.02 * tuned_bound)     # hardly worse than where it was tuned
    return dict(tuned=tuned[tokens], tuned_at_a_quarter=tuned[tokens // 4], tuning=tried[tokens],
                tuning_at_a_quarter=tried[tokens // 4], tokens=tokens, seeds=len(seeds), base_rows=ROWS, length=common.LENGTH,
                arms=arms, gamma=longer, s_crit=s_crit)


def draw(result):
    figure, (left, right) = common.figure(2)
    for arm, points in result["arms"].items():
        points = [p for p in points if np.isfinite(p["bound"])]
        left.errorbar([p["rows"] for p in points], [p["bound"] for p in points], [p["stderr"] for p in points], marker="o",
                      ms=3, lw=1, label=arm)
    crit = result["tokens"] / (result["length"] * result["s_crit"])
    left.axvline(crit, color="grey", ls=":", label=f"B_crit = {crit:.0f} rows (S_crit = {result['s_crit']} steps)")
    best = min(p["bound"] - p["stderr"] for points in result["arms"].values() for p in points)
    left.set_xscale("log", base=2)
    left.set(xlabel="rows a step", ylabel="bound, nats a token", ylim=(0.97 * best, 1.9 * best),
             title=f"{result['tokens'] / 1e6:.2g}M tokens, tuned at {result['base_rows']} rows")
    left.legend(fontsize=7)
    right.errorbar([p["gamma"] for p in result["gamma"]], [p["bound"] for p in result["gamma"]],
                   [p["stderr"] for p in result["gamma"]], marker="o", ms=4, lw=1)
    right.set(xlabel="gamma", ylabel="bound, nats a token", title="tuned at a quarter of the tokens, base batch")
    return figure


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--quick", action="store_true", help="three batch sizes, one seed, few tokens; writes to a temporary folder")
    quick = args.parse_args().quick
    result = study(common.results_folder(quick), *((8_000, (0,), (1 / 2, 1, 4), 1) if quick else ()))
    for name in ("tuned", "tuned_at_a_quarter"):
        print(name + ":", {k: float(f"{v:.3g}") for k, v in result[name].items() if k in FIELDS}, result[name].get("rates"))
    for arm, points in result["arms"].items():
        print(f"{arm:17}", "  ".join(f"{p['rows']:4d} rows {p['bound']:.4f} ± {p['stderr']:.4f}" for p in points))
    print(f"S_crit {result['s_crit']} steps: under the rule no more than 2% above the tuned batch")
    for p in result["gamma"]:
        print(f"tuned at a quarter of the tokens, gamma {p['gamma']:.2f}: {p['bound']:.4f} ± {p['stderr']:.4f}")
    if not quick:
        common.finish("batch_size", result, draw(result))


if __name__ == "__main__":
    main()
