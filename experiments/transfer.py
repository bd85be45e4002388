"""Does a learning rate tuned on a small network serve a wider and a deeper one?

Question: where is the best learning rate as the network gets 8 times wider or 8 times deeper, under Complete(d)P and
under the standard parameterisation (initial variance 1/fan-in, one learning rate for all, residual branches of weight 1)?
What does it cost to reuse the small network's?
Literature: under Complete(d)P (arXiv 2512.22382) the optimum stays; the tri-modal paper (arXiv 2602.21472) tunes on small
networks this way.
Set-up: experiments/common.py; widths 32 to 256 at depth 2, depths 1 to 8 at width 64, 250 steps of 8 rows, one seed. Betas
and the rates of the tables are tuned at the smallest shape (GRID, one after the other); both parameterisations are the
same network there.
On two cores at half speed about 26 minutes:  python experiments/transfer.py      writes results/transfer.json and .png
"""
import argparse

import numpy as np

import common
from common import train

WIDTHS, DEPTHS, ROWS, STEPS, SEEDS = (32, 64, 128, 256), (1, 2, 4, 8), 8, 250, (0,)
RATES = tuple(2.0 ** -k for k in (11, 10, 9, 8, 7, 6, 5, 4, 3))
GRID = ([dict(lr=2.0 ** -k) for k in (9, 8, 7, 6, 5, 4, 3)],
        [dict(beta1=a, beta2=b) for a, b in ((0.9, 0.98), (0.8, 0.9), (0.6, 0.8))],
        [dict(rates=dict(embedding=x, unembedding=y)) for x in (1.0, 0.3, 0.1) for y in (1.0, 0.4)])
AXES = {  # axis -> shapes; the first is the base
    "width": [dict(width=w, depth=2) for w in WIDTHS],
    "depth": [dict(width=64, depth=d) for d in DEPTHS],
}


def config(shape, base_shape, steps, seed, **settings):
    tuned = {k: train.BASE[k] for k in ("beta1", "beta2", "eps", "weight_decay")}
    return {**tuned, **shape, "head_dim": 32, "base_width": base_shape["width"], "base_depth": base_shape["depth"],
            "batch": ROWS, "tokens": steps * ROWS * common.LENGTH, "seed": seed, **settings}


def study(folder, axes=AXES, rates=RATES, steps=STEPS, seeds=SEEDS, grid=GRID, workers=None):
    path, tuned = folder / "transfer-runs.json", {}
    for axis, shapes in axes.items():
        best, _ = common.tune(path, config(shapes[0], shapes[0], steps, seeds[0]), grid, workers)
        tuned[axis] = {k: best[k] for k in ("lr", "beta1", "beta2", "rates") if k in best}
    cells = [(axis, rule, i, lr) for axis, shapes in axes.items() for rule in ("Complete(d)P", "standard")
             for i in range(len(shapes)) for lr in rates]
    # the standard one is the same network with every shape its own base
    made = lambda axis, rule, i, lr, seed: config(axes[axis][i], axes[axis][0 if rule == "Complete(d)P" else i], steps, seed,
                                                  **{**tuned[axis], "lr": lr})
    results = common.run_all(path, [made(*cell, seed) for cell in cells for seed in seeds], workers)
    table = {}
    for n, (axis, rule, i, lr) in enumerate(cells):
        bound, error = common.bound_and_error(results[n * len(seeds):(n + 1) * len(seeds)])
        table.setdefault(axis, {}).setdefault(rule, {}).setdefault(str(axes[axis][i][axis]), []).append((lr, bound, error))
    summary = {}
    for axis, rules in table.items():
        for rule, sizes in rules.items():
            best = {size: min(points, key=lambda p: p[1]) for size, points in sizes.items()}
            small = next(iter(best.values()))[0]
            cost = {size: next(b for lr, b, _ in points if lr == small) / best[size][1] - 1 for size, points in sizes.items()}
            move = max(abs(np.log2(b[0] / small)) for b in best.values())
            summary.setdefault(axis, {})[rule] = dict(best={s: b[0] for s, b in best.items()}, largest_move=float(move),
                                                      cost_of_reuse=cost)
    return dict(steps=steps, seeds=len(seeds), tuned=tuned, curves=table, summary=summary)


def draw(result):
    figure, panels = common.figure(4, figsize=(15, 3.6), sharey=True)
    lowest = min(b for r in result["curves"].values() for s in r.values() for p in s.values() for _, b, _ in p)
    for panel, (axis, rule) in zip(panels, [(a, r) for a in result["curves"] for r in ("standard", "Complete(d)P")]):
        for size, points in result["curves"][axis][rule].items():
            points = [p for p in points if np.isfinite(p[1])]
            line, = panel.plot([p[0] for p in points], [p[1] for p in points], marker="o", ms=3, lw=1, label=f"{axis} {size}")
            best = min(points, key=lambda p: p[1])
            panel.plot(best[0], best[1], marker="*", ms=11, color=line.get_color())
        panel.set(xscale="log", xlabel="base learning rate", title=f"{axis}, {rule}", ylim=(0.95 * lowest, 2.2 * lowest))
        panel.legend(fontsize=7)
    panels[0].set_ylabel("bound, nats a token")
    return figure


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--quick", action="store_true", help="two shapes, two rates, few steps; writes to a temporary folder")
    quick = args.parse_args().quick
    result = study(common.results_folder(quick), *(({k: v[:2] for k, v in AXES.items()}, RATES[2:4], 20, (0,), GRID[:1]) if quick else ()))
    for axis, rules in result["summary"].items():
        print(f"{axis}: tuned at the smallest:", result["tuned"][axis])
        for rule, s in rules.items():
            print(f"{axis}, {rule}: best learning rate " + ", ".join(f"{k}: {v:.5f}" for k, v in s["best"].items())
                  + f"; moves by 2^{s['largest_move']:.0f}; reusing the smallest one's costs "
                  + ", ".join(f"{k}: {100 * v:.1f}%" for k, v in s["cost_of_reuse"].items()))
    if not quick:
        common.finish("transfer", result, draw(result))


if __name__ == "__main__":
    main()
