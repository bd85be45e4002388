"""Is the batch size still a hyper-parameter once the optimizer's settings follow it?

Question: at a fixed number of tokens, how does the final bound depend on the batch size, if the
settings follow train.batch_rule, if nothing follows, if the learning rates alone follow? And what
does the exponent gamma do when the run gets four times longer?
The paper (arXiv 2602.21472, second-hand): under its rule, which speaks of AdamW, the loss is flat
up to B_crit = D / (L S_crit), where S_crit steps are left, and rises above; gamma is about 0.44.
For optimizers that normalise after averaging (Muon) two pairs are consistent: the rate x kappa
with momentum^kappa (the rule here), or the rate x sqrt(kappa) with a fixed momentum, while noise
dominates. On what is known of such optimizers: arXiv 2603.15958.
Set-up: common.SMALL, base batch 768 tokens, 1M tokens. All settings are tuned there once
(`grid`), then batches from 1/2 to 16 times the base. For gamma the same is tuned at a quarter of
the tokens and carried up.

    python experiments/batch_size.py
"""
import numpy as np

import common
from common import RULE, train

RATIOS = (1 / 2, 1, 2, 4, 8, 16)
BATCH = 768  # tokens
ARMS = ("rule", "rule, momentum fixed", "nothing", "rates x sqrt")
QUICK = dict(tokens=2_000, seeds=(0,), ratios=(1, 2), lists=0, texts=common.FEW_TEXTS)


def grid(rule):
    """What is tried around the starting settings, one list after the other."""
    def times(name, *factors):
        return [{name: rule[name] * x} for x in factors]

    betas = [{k: rule[k] ** power for k in ("beta1", "beta2", "momentum")}
             for power in (1, 1 / 2, 2, 4)]
    return [times("muon_lr", 1, 1 / 4, 1 / 2, 2), times("lr", 1, 1 / 4, 1 / 2, 2, 4), betas,
            [{"rates": {"embedding": x}} for x in (1.0, 0.3, 3.0)],
            times("weight_decay", 1, 1 / 3, 3), times("muon_lr", 1, 1 / 2, 2)]


def carried(tuned, ratio, horizon=1.0, gamma=0.44):
    """Tuned settings at `ratio` times the batch and `horizon` times the tokens: train.batch_rule
    does to them what it does to the base of train.py."""
    config = train.Config(gamma=gamma)
    base, to = (train.batch_rule(r * train.BASE["batch"], h * train.BASE["tokens"], config)
                for r, h in ((1, 1), (ratio, horizon)))
    made = {}
    for name in RULE:
        if name in ("beta1", "beta2", "momentum"):
            made[name] = tuned[name] ** (np.log(to[name]) / np.log(base[name]))
        else:
            made[name] = tuned[name] * to[name] / base[name]
    return made


def settings(arm, ratio, tuned):
    """Changes of an arm at `ratio` times the base batch and the same tokens."""
    rule = carried(tuned, ratio)
    if arm == "rule, momentum fixed":
        fixed = {"muon_lr": tuned["muon_lr"] * ratio ** 0.5, "momentum": tuned["momentum"]}
        return {"rule": {**rule, **fixed}}
    if arm != "rule":
        factor = {"nothing": 1.0, "rates x sqrt": ratio ** 0.5}[arm]
        rule = {**tuned, "lr": tuned["lr"] * factor, "muon_lr": tuned["muon_lr"] * factor}
    return {"rule": rule}


def study(folder, tokens=1_000_000, seeds=(0, 1), ratios=RATIOS, lists=None,
          texts=common.TEXTS):
    path = folder / "batch_size-runs.json"
    tuned, tried = {}, {}
    for horizon in (tokens // 4, tokens):
        rule = train.batch_rule(BATCH, horizon, train.Config())
        start = common.trial(tokens=horizon, batch_tokens=BATCH, **texts,
                             rule={k: rule[k] for k in RULE})
        tuned[horizon], tried[horizon] = common.tune(path, start, grid(start.rule)[:lists])
    full = tuned[tokens]
    cells = {(arm, ratio): common.changed(full, batch_tokens=round(BATCH * ratio),
                                          **settings(arm, ratio, full.rule))
             for arm in ARMS for ratio in ratios}
    gammas = {gamma: common.changed(tuned[tokens // 4], tokens=tokens,
                                    rule=carried(tuned[tokens // 4].rule, 1, 4, gamma))
              for gamma in (0.0, 0.44, 1.0)}
    results = common.run_cells(path, {**cells, **gammas}, seeds)
    found = common.bounds(results)
    arms = {arm: {round(BATCH * ratio): found[arm, ratio] for ratio in ratios} for arm in ARMS}
    limit = 1.02 * found["rule", 1][0]  # hardly worse than where it was tuned
    return {"tokens": tokens, "seeds": len(seeds), "base": BATCH,
            "tuned": {**full.rule, "rates": full.rates}, "tuning": tried[tokens],
            "tuned_at_a_quarter": tuned[tokens // 4].rule, "arms": arms,
            "gamma": {gamma: found[gamma] for gamma in gammas},
            "s_crit": min(round(tokens / BATCH / r) for r in ratios
                          if found["rule", r][0] <= limit)}


def draw(result):
    figure, (left, right) = common.panels(2)
    for arm, cells in result["arms"].items():
        common.curve(left, cells, arm)
    crit = result["tokens"] / result["s_crit"]
    left.axvline(crit, color="grey", ls=":",
                 label=f"{crit:.0f} tokens: S_crit = {result['s_crit']} steps")
    least = min(cell[0] for cells in result["arms"].values() for cell in cells.values())
    left.set_xscale("log", base=2)
    left.set(xlabel="tokens a step", ylabel="bound, nats a token", ylim=(0.97 * least, 1.9 * least),
             title=f"{result['tokens'] / 1e6:.2g}M tokens, tuned at {result['base']} a step")
    left.legend(fontsize=7)
    common.curve(right, result["gamma"])
    right.set(xlabel="gamma", title="tuned at a quarter of the tokens, base batch")
    return figure


if __name__ == "__main__":
    common.command_line("batch_size", __doc__, study, draw, QUICK)
