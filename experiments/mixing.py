"""How should the training tokens be shared among text, image-text and speech-text?

Question: is a token of another kind worth anything? Does the additive mixture law (arXiv
2507.09404, from the same group; whether the tri-modal paper uses it is not known to us) predict
mixes that were left out of its fit, at more tokens and parameters? Which mix does it find best?
The paper (arXiv 2602.21472) trains on a mix of its own choice, which is not known to us.
Set-up: common.SMALL on all three kinds, steps of 4,096 tokens, so that whole documents give every
kind its share within 3%. All counts are of tokens trained on. One seed. The law of a kind is fitted
to 15 trials and tested on the four mixes of LEFT_OUT, in the same network and in a larger one.
Beside it a simpler law, L = E + B / (own + c others)^b: c is what a token of the others is worth.
It is fitted to the trials of MIXES in the smaller network; for the test to those of them that the
mixture law had; intervals (10 to 90%): trials drawn anew.

    python experiments/mixing.py
"""
import numpy as np

import common
import laws
from common import KINDS, data
from scaling import parameters

MIXES = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1 / 2, 1 / 2, 0), (1 / 2, 0, 1 / 2), (0, 1 / 2, 1 / 2),
         (1 / 3, 1 / 3, 1 / 3), (2 / 3, 1 / 6, 1 / 6), (1 / 6, 2 / 3, 1 / 6), (1 / 6, 1 / 6, 2 / 3)]
LEFT_OUT = [(0.5, 0.3, 0.2), (0.2, 0.5, 0.3), (0.3, 0.2, 0.5), (0.4, 0.4, 0.2)]
SHAPES = [dict(width=64, depth=2), dict(width=128, depth=2)]
TOTALS = (500_000, 1_000_000)
BATCH = 4_096  # tokens
WEIGHTS = {"every kind alike": (1, 1, 1), "text thrice": (3, 1, 1),
           "image-text thrice": (1, 3, 1), "speech-text thrice": (1, 1, 3)}
QUICK = dict(totals=(1_000, 2_000), seeds=(0,), mixes=MIXES[3:7], left_out=LEFT_OUT[:1], draws=2,
             batch_tokens=1_024, rounds=20, pairs=common.FEW_PAIRS)


def trial(shape, total, mix, batch_tokens, pairs):
    shares = {kind: share for kind, share in zip(KINDS, mix) if share}
    return common.trial(shape={**shape, "head_dim": 32}, tokens=total, mix=shares,
                        batch_tokens=batch_tokens, **pairs)


def table(results, kind):
    """Trials that learnt a kind, as columns: N (n,), tokens of each kind (n, kinds), nats (n,)."""
    rows = [[N, *(r["tokens"].get(k, 0) for k in KINDS), r["bounds"][kind][0]]
            for (N, _, _), of in results.items() for r in of if kind in r["tokens"]]
    rows = np.array(rows, float)
    return rows[:, 0], rows[:, 1:-1], rows[:, -1]


def shares(tokens):
    return tokens / tokens.sum(1, keepdims=True)


def own_and_others(tokens, kind):
    """Millions of tokens of a kind, and of all others: (n,) each."""
    own = tokens[:, KINDS.index(kind)] / 1e6
    return own, tokens.sum(1) / 1e6 - own


def worth(results, kind, draws):
    """laws.fit_worth of a kind, and the interval of c."""
    _, tokens, nats = table(results, kind)
    columns = (*own_and_others(tokens, kind), nats)
    drawn = laws.resampled(laws.fit_worth, columns, draws, data.rng(0, 43))
    return {**laws.fit_worth(*columns), "interval": laws.interval([law["c"] for law in drawn]),
            "points": np.stack(columns, 1).tolist()}


def tested(fitted, held, kind, rounds):
    """The mixture law of a kind. And, for each group of trials that its fit has not seen, its mean
    relative error, beside that of the simpler worth law and of guessing the trials' mean."""
    N, tokens, nats = table(fitted, kind)
    law = laws.fit_mixture(shares(tokens), N, tokens.sum(1), nats, KINDS.index(kind), rounds)
    small = N == N.min()  # the worth law knows no parameters
    simple = laws.fit_worth(*own_and_others(tokens[small], kind), nats[small])
    groups = {}
    for name, results in held.items():
        N, tokens, true = table(results, kind)
        guesses = {"mixture law": law(shares(tokens), N, tokens.sum(1)),
                   "worth law": laws.worth_law(simple, *own_and_others(tokens, kind)),
                   "their mean": np.full(len(true), true.mean())}
        groups[name] = {who: float(np.abs(guess / true - 1).mean())
                        for who, guess in guesses.items()}
        groups[name].update(true=true.tolist(), predicted=guesses["mixture law"].tolist())
    return law, groups


def best_mix(predictions, weights, N, D):
    """Shares with the least weighted sum of predicted nats: of all in steps of 1/40 from 5/40 on,
    about where mixes were tried."""
    h = np.array([(i, j, 40 - i - j) for i in range(5, 31) for j in range(5, 36 - i)]) / 40
    total = sum(w * law(h, np.full(len(h), N), np.full(len(h), D))
                for w, law in zip(weights, predictions))
    return dict(zip(KINDS, h[total.argmin()].tolist()))


def study(folder, totals=TOTALS, seeds=(0,), mixes=MIXES, left_out=LEFT_OUT, draws=100,
          batch_tokens=BATCH, rounds=300, pairs=common.PAIRS):
    path = folder / "mixing-runs.json"
    small, large = [(parameters(shape), shape) for shape in SHAPES]

    def run(size, total, mixes, seeds):
        cells = {(size[0], total, mix): trial(size[1], total, mix, batch_tokens, pairs)
                 for mix in mixes}
        return common.run_cells(path, cells, seeds)

    inner = [mix for mix in mixes if all(mix)]
    grid = run(small, totals[0], mixes, seeds) | run(small, totals[1], mixes, seeds)
    held = {"same size": run(small, totals[1], left_out, seeds[:1]),
            "larger": run(large, totals[1], left_out, seeds[:1])}
    fitted = {name: of[:1] for name, of in grid.items()
              if name[1] == totals[0] or name[2] in inner}
    fitted |= run(large, totals[0], inner, seeds[:1])
    predictions, found = [], {}
    for kind in KINDS:
        law, found[kind] = tested(fitted, held, kind, rounds)
        predictions.append(law)
    rounding = [abs(r["tokens"][kind] / sum(r["tokens"].values()) / share - 1)
                for (_, _, mix), of in grid.items() for r in of
                for kind, share in zip(KINDS, mix) if share]
    return {"totals": list(totals), "seeds": len(seeds), "largest_rounding": max(rounding),
            "worth": {kind: worth(grid, kind, draws) for kind in KINDS}, "law": found,
            "best": {name: best_mix(predictions, weights, large[0], totals[1])
                     for name, weights in WEIGHTS.items()}}


def draw(result):
    figure, axes = common.panels(4, figsize=(17, 3.8))
    for panel, (kind, r) in zip(axes, result["worth"].items()):
        for alone, marker, label in ((True, "s", "alone"), (False, "o", "with others")):
            points = [p for p in r["points"] if (p[1] < 1e-9) == alone]
            own = [1e6 * p[0] for p in points]
            panel.plot(own, [p[2] for p in points], marker, ms=4, label=label)
        own = np.geomspace(*np.percentile([p[0] for p in r["points"]], (0, 100)), 40)
        fitted = r["E"] + r["B"] / own ** r["b"]
        panel.plot(1e6 * own, fitted, lw=1, color="grey", label="fit, alone")
        common.count_axis(panel)
        panel.set(xlabel="own tokens", title=f"{kind}: others are worth {r['c']:.2f}")
    axes[0].set_ylabel("bound, nats a token")
    axes[0].legend(fontsize=7)
    for kind, groups in result["law"].items():
        for (name, r), marker in zip(groups.items(), "os"):
            axes[3].plot(r["predicted"], r["true"], marker, ms=4, label=f"{kind}, {name}")
    axes[3].axline((1, 1), slope=1, color="grey", lw=1)
    axes[3].set(xlabel="predicted", ylabel="true", title="mixture law, mixes left out")
    axes[3].legend(fontsize=7)
    return figure


if __name__ == "__main__":
    common.command_line("mixing", __doc__, study, draw, QUICK)
