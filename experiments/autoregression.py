"""Masked diffusion against the same network with a causal mask.

Question: at equal compute on fresh text, on pictures with captions, and on a small text repeated
for many epochs, how do the nats compare?
Literature: autoregression is ahead on fresh data. With repetition masked diffusion goes on
learning where autoregression overfits, and wins in the end (arXiv 2507.15857, 2511.03276).
Set-up: common.SMALL. A factor on the learning rates is tuned for each of the two at 750,000 tokens,
with one seed. Diffusion's figure is its bound with the extent's term (common.held_out),
autoregression's the likelihood itself, of the same documents. A token's forward and backward pass
costs both the same, but diffusion pays its head for masked tokens only. Repeated: 450 passages
(13,000 tokens), looked at from the first epoch on.

    python experiments/autoregression.py
"""
import common

ARMS = {"masked diffusion": False, "autoregression": True}
BUDGETS = (187_500, 375_000, 750_000, 1_500_000)
QUICK = dict(budgets=(1_500, 3_000), repeated=3_000, unique=40, seeds=(0,), factors=(1.0,),
             looks=2, texts=common.FEW_TEXTS, pairs=common.FEW_PAIRS)


def trial(arm, tokens, factor=1.0, shape=common.SMALL["shape"], **changes):
    return common.trial(factor, tokens=tokens, shape={**shape, "causal": ARMS[arm]}, **changes)


def best_factors(path, tokens, factors, seeds, **changes):
    """{arm: the factor on the learning rates with the least nats}"""
    if len(factors) == 1:
        return dict.fromkeys(ARMS, factors[0])
    cells = {(arm, f): trial(arm, tokens, f, **changes) for arm in ARMS for f in factors}
    tried = common.nested(common.bounds(common.run_cells(path, cells, seeds)))
    return {arm: common.lowest(cells)["at"] for arm, cells in tried.items()}


def curves(results, axis):
    """{arm: results of seeds} -> {arm: {tokens (axis 0) or epoch (1) of a look: cell}}."""
    cells = {}
    for arm, of in results.items():
        for points in zip(*(r["curve"] for r in of)):
            cells[arm, round(points[0][axis], 2)] = [point[2:] for point in points]
    return common.nested(common.with_errors(cells))


def study(folder, budgets=BUDGETS, repeated=3_000_000, unique=450, seeds=(0, 1), looks=24,
          texts=common.TEXTS, pairs=common.PAIRS, factors=(0.5, 1.0, 2.0, 4.0)):
    path = folder / "autoregression-runs.json"
    best = best_factors(path, budgets[len(budgets) // 2], factors, seeds[:1], **texts)

    def fresh(budgets, kind, **changes):
        cells = {(arm, tokens): trial(arm, tokens, best[arm], **changes)
                 for arm in ARMS for tokens in budgets}
        return common.nested(common.bounds(common.run_cells(path, cells, seeds), kind))

    again = {arm: trial(arm, repeated, best[arm], unique=unique, looks=looks, **texts)
             for arm in ARMS}
    epochs = curves(common.run_cells(path, again, seeds), axis=1)
    return {"seeds": len(seeds), "unique": unique, "factors": best,
            "fresh": fresh(budgets, "text", **texts),
            "pairs": fresh(budgets[:3], "image-text", mix={"image-text": 1.0}, **pairs),
            "repeated": epochs, "lowest": {arm: common.lowest(c) for arm, c in epochs.items()}}


def draw(result):
    figure, axes = common.panels(3)
    for panel, what in zip(axes, ("fresh", "pairs", "repeated")):
        for arm, cells in result[what].items():
            common.curve(panel, cells, arm)
        common.count_axis(panel)
    axes[0].set(ylabel="held-out nats a token", xlabel="tokens", title="fresh text")
    axes[1].set(xlabel="tokens", title="pictures with captions")
    axes[2].set(xlabel="epochs", title=f"{result['unique']} passages again and again")
    axes[0].legend()
    return figure


if __name__ == "__main__":
    common.command_line("autoregression", __doc__, study, draw, QUICK)
