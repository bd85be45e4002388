"""Does a learning rate tuned on a small network serve a wider and a deeper one?

Question: where is the best learning rate as the network gets 8 times wider or 8 times deeper,
under Complete(d)P and under the standard parameterisation (initial variance 1/fan-in, one learning
rate for all, residual branches of weight 1)? What does it cost to reuse the small network's?
Literature: under Complete(d)P (arXiv 2512.22382) the optimum stays. The tri-modal paper (arXiv
2602.21472, second-hand) tunes on small networks with a rule of this kind.
Set-up: AdamW, widths 32 to 256 at depth 2, depths 1 to 8 at width 64, 250 steps of 768 tokens, one
seed. Betas and the tables' rates are tuned at the smallest shape, where both rules are one.

    python experiments/transfer.py
"""
import numpy as np

import common
from common import train

RATES = tuple(2.0 ** -k for k in range(11, 2, -1))
AXES = {
    "width": [dict(width=w, depth=2) for w in (32, 64, 128, 256)],
    "depth": [dict(width=64, depth=d) for d in (1, 2, 4, 8)],
}
GRID = ([{"lr": 2.0 ** -k} for k in range(9, 2, -1)],
        [{"beta1": a, "beta2": b} for a, b in ((0.9, 0.98), (0.8, 0.9), (0.6, 0.8))],
        [{"rates": {"embedding": x, "unembedding": y}} for x in (1.0, 0.3, 0.1)
         for y in (1.0, 0.4)])
QUICK = dict(axes={"width": AXES["width"][:2]}, rates=RATES[2:4], tokens=1_600, seeds=(0,),
             grid=[GRID[0][2:4]], texts=common.FEW_TEXTS)
START = {**{k: train.BASE[k] for k in ("beta1", "beta2", "eps")}, "weight_decay": 0.1}


def trial(shape, base, tokens, **changes):
    shape = {**shape, "base_width": base["width"], "base_depth": base["depth"]}
    return common.trial(shape=shape, tokens=tokens, batch_tokens=768, optimizer="adamw", **changes)


def study(folder, axes=AXES, rates=RATES, tokens=192_000, seeds=(0,), grid=GRID,
          texts=common.TEXTS):
    path = folder / "transfer-runs.json"
    result = {"tokens": tokens, "seeds": len(seeds), "tuned": {}, "curves": {}, "summary": {}}
    for axis, shapes in axes.items():
        first = trial(shapes[0], shapes[0], tokens, rule=START, **texts)
        tuned, _ = common.tune(path, first, grid)
        result["tuned"][axis] = {**tuned.rule, "rates": tuned.rates}
        for rule in ("Complete(d)P", "standard"):
            cells = {}
            for shape in shapes:
                base = shapes[0] if rule == "Complete(d)P" else shape  # each its own base
                for lr in rates:
                    cells[shape[axis], lr] = trial(shape, base, tokens, rates=tuned.rates,
                                                   rule={**tuned.rule, "lr": lr}, **texts)
            sizes = common.nested(common.bounds(common.run_cells(path, cells, seeds)))
            result["curves"][f"{axis}, {rule}"] = sizes
            result["summary"][f"{axis}, {rule}"] = summary(sizes)
    return result


def summary(sizes):
    """{size: {rate: cell}} -> the best rate of each size, how far it moves (powers of two), and by
    which share the nats rise with the smallest one's."""
    best = {size: min(cells, key=lambda lr: cells[lr][0]) for size, cells in sizes.items()}
    small = next(iter(best.values()))
    return {"best": best,
            "moves": max(abs(float(np.log2(lr / small))) for lr in best.values()),
            "cost of reuse": {size: cells[small][0] / cells[best[size]][0] - 1
                              for size, cells in sizes.items()}}


def draw(result):
    figure, axes = common.panels(len(result["curves"]), figsize=(15, 3.6), sharey=True)
    for panel, (name, sizes) in zip(axes, result["curves"].items()):
        for size, cells in sizes.items():
            common.curve(panel, cells, size)
        best = min(cell[0] for cells in sizes.values() for cell in cells.values())
        panel.set(xscale="log", xlabel="base learning rate", title=name,
                  ylim=(0.95 * best, 2.2 * best))
        panel.legend(fontsize=7)
    axes[0].set_ylabel("bound, nats a token")
    return figure


if __name__ == "__main__":
    common.command_line("transfer", __doc__, study, draw, QUICK)
