"""What the forward and the reverse process look like, on a distribution that is known exactly.

Question: what does a schedule change, and how far from the truth is each sampler after so many
calls of the network?
Set-up: 6 tokens of 3 values, a Markov chain that mostly copies its neighbour. The "network" is the
exact conditional distribution, so every error is the sampler's. Total variation to the known
distribution, beside what as many exact draws show, which an exact sampler shows, too, up to chance.
Literature: steps that reveal several tokens treat them as independent, hence the error of few
steps (arXiv 2505.24857, section 5).

    python experiments/process.py
"""
import itertools

import numpy as np
import torch

import common
from common import F, diffusion

L, V, MASK, STAY = 6, 3, 3, 0.8
SAMPLERS = {  # with `steps`, which varies
    "ancestral, linear grid": dict(sampler="ancestral", grid="linear"),
    "ancestral, cosine grid": dict(sampler="ancestral", grid="cosine"),
    "random order": dict(sampler="confidence", choice_temperature=1e6, grid="linear"),
    "confidence, annealed": dict(sampler="confidence", choice_temperature=1.0, grid="linear"),
    "confidence, greedy": dict(sampler="confidence", choice_temperature=0.0, grid="linear"),
    "ReMDM, cap 0.1": dict(sampler="remdm", grid="linear", eta=0.1),
}
STEPS = (1, 2, 3, 4, 6, 12, 24, 48)
BUDGETS = (0.0, 0.2, 0.5, 1.0, 2.0, 10.0)  # nats, of the entropy sampler
QUICK = dict(rows=200, seeds=1, steps=(1, 4), budgets=(0.0, 0.5))


def known():
    """All sequences (N, L) and their probabilities (N,)."""
    sequences = np.array(list(itertools.product(range(V), repeat=L)))
    same = (sequences[:, 1:] == sequences[:, :-1]).sum(1)
    return sequences, STAY ** same * ((1 - STAY) / (V - 1)) ** (L - 1 - same) / V


def oracle(sequences, p):
    """predict(x, where) with the exact conditional distribution of every hidden token."""
    sequences = torch.from_numpy(sequences)
    p = torch.from_numpy(p)
    one_hot = F.one_hot(sequences, V + 1).double()                        # (N, L, V + 1)

    def predict(x, where):
        different, back = x.unique(dim=0, return_inverse=True)
        agrees = (different[:, None] == MASK) | (different[:, None] == sequences)
        weight = agrees.all(-1).double() * p                              # (U, N)
        marginal = torch.einsum("un,nlv->ulv", weight, one_hot) / weight.sum(1)[:, None, None]
        return marginal.log()[back][where].float()

    return predict


def distance(counts, p):
    """Total variation of counts to p."""
    return float(0.5 * np.abs(counts / counts.sum() - p).sum())


def study(folder, rows=20_000, seeds=3, steps=STEPS, budgets=BUDGETS):
    sequences, p = known()
    predict = oracle(sequences, p)
    x = torch.full((rows, L), MASK)
    low = torch.zeros_like(x)
    settings = {(name, n): {**options, "steps": n}
                for name, options in SAMPLERS.items() for n in steps}
    settings |= {("entropy-bounded", b): dict(sampler="entropy", budget=b) for b in budgets}
    result = {}
    for (name, _), options in settings.items():
        values, calls = [], []
        for seed in range(seeds):
            made, nfe, _ = diffusion.sample(predict, x, low, low + V, MASK, seed=seed, **options)
            index = (made.numpy() * V ** np.arange(L - 1, -1, -1)).sum(1)
            values.append([distance(np.bincount(index, minlength=V ** L), p), 0.0])
            calls.append(float(nfe.float().mean()))
        cell = common.with_errors({name: values})[name]
        result.setdefault(name, {})[round(np.mean(calls), 2)] = cell
    draws = [np.random.default_rng(seed).multinomial(rows, p) for seed in range(seeds)]
    return {"rows": rows, "seeds": seeds, "entropy_nats": float(-(p * np.log(p)).sum()),
            "exact_draws": float(np.mean([distance(d, p) for d in draws])),
            "total_variation": result}


def draw(result):
    figure, (left, middle, right) = common.panels(3)
    t = torch.linspace(1e-3, 1 - 1e-3, 500, dtype=torch.float64)
    for name in ("linear", "cosine", "poly:0.5", "poly:2"):
        schedule = diffusion.schedule(name)
        rate = schedule.mask_rate(t)
        left.plot(t, rate, label=name)
        middle.semilogy(t, schedule.slope(t) / rate, label=name)
    left.set(xlabel="time t", ylabel="mask rate 1 - alpha(t)", title="forward process")
    middle.set(xlabel="time t", title="the bound's weight", ylim=(0.01, 1000))
    left.legend()
    for name, cells in result["total_variation"].items():
        common.curve(right, cells, name)
    right.axhline(result["exact_draws"], color="grey", ls=":", label="exact draws")
    right.set(xscale="log", yscale="log", xlabel="calls of the network", title="total variation")
    right.legend(fontsize=6.5)
    return figure


if __name__ == "__main__":
    common.command_line("process", __doc__, study, draw, QUICK)
