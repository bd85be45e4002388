"""What the forward and the reverse process look like, on a distribution that is known exactly.

Question: what does a schedule change, and how far from the truth is each sampler after so many calls of the network?
Set-up: 6 tokens of 3 values, a Markov chain that mostly copies its neighbour; the "network" is the exact conditional
distribution, so that every error is the sampler's. Three times 20,000 sequences for each point; total variation to the
known distribution, beside what as many exact draws show (the dotted line: no sampler can come out below it).
Literature: steps that reveal several tokens treat them as independent, hence the error of few steps (2409.02908,
section 3); greedy orders are biased for good (MaskGIT, 2202.04200, says "more confident", not "exact").
Under a minute on two cores:  python experiments/process.py      writes results/process.json and results/process.png
"""
import argparse
import itertools

import numpy as np

import common
from common import diffusion, torch

L, V, MASK, STAY = 6, 3, 3, 0.8

SAMPLERS = {  # name -> options; `steps` is what varies
    "ancestral, linear grid": dict(sampler="ancestral", grid="linear"),
    "ancestral, cosine grid": dict(sampler="ancestral", grid="cosine"),
    "random order, equal counts": dict(sampler="confidence", choice_temperature=1e6, equal=True),
    "confidence, annealed": dict(sampler="confidence", choice_temperature=1.0, equal=True),
    "confidence, greedy": dict(sampler="confidence", choice_temperature=0.0, equal=True),
    "ReMDM, cap 0.1": dict(sampler="remdm", grid="linear", eta=0.1),
}
STEPS = (1, 2, 3, 4, 6, 12, 24, 48)
BUDGETS = (0.0, 0.2, 0.5, 1.0, 2.0, 10.0)      # nats, of the entropy-bounded sampler


def known():
    """All sequences (N, L) and their probabilities (N,)."""
    sequences = np.array(list(itertools.product(range(V), repeat=L)))
    same = (sequences[:, 1:] == sequences[:, :-1]).sum(1)
    return sequences, STAY ** same * ((1 - STAY) / (V - 1)) ** (L - 1 - same) / V


def oracle(sequences, p):
    """predict(x, where) with the exact conditional distribution of every hidden token, for `diffusion.sample`."""
    sequences, p = torch.from_numpy(sequences), torch.from_numpy(p)
    one_hot = torch.nn.functional.one_hot(sequences, V + 1).double()                                # (N, L, V + 1)

    def predict(x, where):
        different, back = x.unique(dim=0, return_inverse=True)
        fits = ((different[:, None] == MASK) | (different[:, None] == sequences)).all(-1).double() * p   # (U, N)
        marginal = torch.einsum("un,nlv->ulv", fits, one_hot) / fits.sum(1)[:, None, None]          # (U, L, V + 1)
        return marginal.log()[back][where].float()
    return predict


def error_of(predict, sequences, p, rows, seed, **options):
    """Total variation of `rows` samples to p, and the mean number of evaluations."""
    x = torch.full((rows, L), MASK)
    low, high = torch.zeros_like(x), torch.full_like(x, V)
    out, nfe, _ = diffusion.sample(predict, x, low, high, MASK, seed=seed, **options)
    counts = np.bincount((out.numpy() * V ** np.arange(L - 1, -1, -1)).sum(1), minlength=V ** L)
    return float(0.5 * abs(counts / rows - p).sum()), float(nfe.float().mean())


def study(rows, seeds):
    sequences, p = known()
    predict, points = oracle(sequences, p), []
    runs = [(n, {**o, "steps": s}) for n, o in SAMPLERS.items() for s in STEPS] + [
        ("entropy-bounded", dict(sampler="entropy", budget=b)) for b in BUDGETS]
    for name, options in runs:
        values = [error_of(predict, sequences, p, rows, seed, **options) for seed in range(seeds)]
        tv, nfe = np.array(values).T
        points.append(dict(sampler=name, steps=options.get("steps"), budget=options.get("budget"), nfe=nfe.mean(),
                           total_variation=tv.mean(), stderr=tv.std() / seeds ** 0.5))
    draws = [np.random.default_rng(s).multinomial(rows, p) / rows for s in range(seeds)]
    floor = float(np.mean([0.5 * abs(d - p).sum() for d in draws]))
    return dict(rows=rows, seeds=seeds, entropy_nats=float(-(p * np.log(p)).sum()), exact_draws=floor, points=points)


def draw(result):
    figure, (left, middle, right) = common.figure(3)
    t = np.linspace(1e-3, 1 - 1e-3, 500)
    for name in ("linear", "cosine", "poly:0.5", "poly:2"):
        schedule = diffusion.schedule(name)
        left.plot(t, schedule.mask_rate(t), label=name)
        middle.semilogy(t, schedule.weight(t), label=name)
    left.set(xlabel="time t", ylabel="mask rate 1 - alpha(t)", title="forward process")
    middle.set(xlabel="time t", ylabel="weight", title="the bound's weight -alpha'/(1-alpha)", ylim=(0.01, 1000))
    left.legend()
    for name in dict.fromkeys(p["sampler"] for p in result["points"]):
        mine = [p for p in result["points"] if p["sampler"] == name]
        right.errorbar([p["nfe"] for p in mine], [p["total_variation"] for p in mine], [p["stderr"] for p in mine],
                       marker="o", ms=3, lw=1, label=name)
    right.axhline(result["exact_draws"], color="grey", ls=":", label="exact draws")
    right.set(xscale="log", yscale="log", xlabel="evaluations of the network", ylabel="total variation",
              title=f"samplers, exact network, {L} tokens")
    right.legend(fontsize=6.5)
    return figure


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--quick", action="store_true", help="few samples, one seed, nothing but a print-out")
    quick = args.parse_args().quick
    result = study(*((500, 1) if quick else (20_000, 3)))
    for point in result["points"]:
        print("{sampler:28} nfe {nfe:5.1f}  total variation {total_variation:.3f} ± {stderr:.3f}".format(**point))
    if not quick:
        common.finish("process", result, draw(result))


if __name__ == "__main__":
    main()
