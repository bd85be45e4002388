"""Masked diffusion against the same network with a causal mask.

Question: at equal compute on fresh text, on pictures with captions, and on a small text repeated for many epochs, how do the bits compare?
Literature: autoregression is ahead on fresh data; with repetition masked diffusion goes on learning where autoregression overfits, and wins
in the end (arXiv 2507.15857, 2511.03276).
Set-up: experiments/common.py; width 64, depth 2, steps of 16 rows, a factor on the learning rates tuned for each of the two at 750,000 tokens (two seeds). Diffusion's
figure is its bound, autoregression's the likelihood itself, on the same tokens. One forward and backward of a token costs both
the same, but diffusion pays its head for the masked half only. Fresh: 0.19 to 3M tokens, two seeds. Pairs: `trimodal`'s pictures with
captions (340,000 tokens of them, the picture first; up to 0.75M tokens), the text's factor, both members masked at one rate. Repeated: 128 rows (12,000
tokens), curves over 3M tokens, two seeds.
On two cores at half speed about 12 minutes:  python experiments/autoregression.py      writes results/autoregression.json and .png
"""
import argparse

import numpy as np

import common

ARMS = {"masked diffusion": False, "autoregression": True}
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def study(folder, budgets=(187_500, 375_000, 750_000, 1_500_000, 3_000_000), unique=128, seeds=(0, 1), factors=FACTORS, world=(2_500, 10_000)):
    path, out = folder / "autoregression-runs.json", {}
    grouped = lambda runs: [common.bound_and_error(runs[i:i + len(seeds)]) for i in range(0, len(runs), len(seeds))]  # of each setting's seeds
    common.trimodal(*world)                                                # made once, before the workers read it
    for name, causal in ARMS.items():
        tried = common.run_all(path, [common.base(f, tokens=budgets[len(budgets) // 2], causal=causal, seed=seed) for f in factors for seed in seeds])
        best = factors[int(np.argmin([bound for bound, _ in grouped(tried)]))]
        config = lambda tokens, seed, **more: common.base(best, tokens=tokens, causal=causal, seed=seed, **more)
        fresh = common.run_all(path, [config(tokens, seed) for tokens in budgets for seed in seeds])
        pictures = common.run_all(path, [config(tokens, seed, trimodal=list(world), mix={"image-text": 1.0}, held="image-text")
                                         for tokens in budgets[:3] for seed in seeds])
        every = max(1, budgets[-1] // (16 * common.LENGTH) // 20)
        again = common.run_all(path, [config(budgets[-1], seed, unique=unique, every=every) for seed in seeds])
        curves = np.array([[nats for _, nats in r["curve"]] for r in again])                          # (seeds, points)
        means = lambda runs: [dict(tokens=t, nats=b, stderr=e) for t, (b, e) in zip(budgets, grouped(runs))]
        out[name] = dict(factor=best, fresh=means(fresh), pairs=means(pictures),
                         epochs=[step * 16 / unique for step, _ in again[0]["curve"]], repeated=curves.mean(0).tolist(),
                         repeated_stderr=(curves.std(0, ddof=len(seeds) > 1) / len(seeds) ** 0.5).tolist())
    a, b = (out[n]["repeated"] for n in ARMS)
    ahead = [e for e, x, y in zip(out["masked diffusion"]["epochs"], a, b) if x < y]
    return dict(seeds=len(seeds), unique_rows=unique, arms=out, diffusion_ahead_from_epoch=ahead[0] if ahead else None,
                best_repeated={n: min(out[n]["repeated"]) for n in ARMS})


def draw(result):
    figure, (left, middle, right) = common.figure(3)
    for name, arm in result["arms"].items():
        for panel, what in ((left, "fresh"), (middle, "pairs")):
            panel.errorbar([p["tokens"] for p in arm[what]], [p["nats"] for p in arm[what]], [p["stderr"] for p in arm[what]], marker="o", ms=3,
                           label=name)
        right.errorbar(arm["epochs"], arm["repeated"], arm["repeated_stderr"], label=name)
    left.set(xscale="log", xlabel="tokens", ylabel="held-out nats a token", title="fresh text")
    middle.set(xscale="log", xlabel="tokens", title="pictures with captions")
    right.set(xscale="log", xlabel="epochs", title=f"{result['unique_rows']} rows again and again")
    left.legend()
    return figure


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--quick", action="store_true", help="two budgets, one seed; writes to a temporary folder")
    quick = args.parse_args().quick
    result = study(common.results_folder(quick), *(((6_000, 12_000), 16, (0,), (1.0,), (20, 200)) if quick else ()))
    for name, arm in result["arms"].items():
        print(f"{name:17} rates x {arm['factor']:g}; fresh: " + ", ".join(f"{p['tokens'] / 1e6:.2g}M {p['nats']:.3f} ± {p['stderr']:.3f}" for p in arm["fresh"])
              + "; pairs: " + ", ".join(f"{p['tokens'] / 1e6:.2g}M {p['nats']:.3f} ± {p['stderr']:.3f}" for p in arm["pairs"])
              + f"; repeated: best {min(arm['repeated']):.3f}, in the end {arm['repeated'][-1]:.3f} ± {arm['repeated_stderr'][-1]:.3f}")
    print(f"repeated: diffusion ahead from epoch {result['diffusion_ahead_from_epoch']}")
    if not quick:
        common.finish("autoregression", result, draw(result))


if __name__ == "__main__":
    main()
