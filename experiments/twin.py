"""Masked diffusion and its autoregressive twin on one's own text, in bits a character.

Question: the default network (width 192, depth 3, Muon) with and without a causal mask, the same tokens of the same text: how many bits does a
held-out character cost?
Set-up: experiments/common.py, `own_text` (byte pairs of a vocabulary of 1,024, rows of 96, the last tenth of each text held out); steps of 8 rows, the
learning rates of the batch rule times 0.5, 1, 2 and 4, chosen for each of the two at a quarter of the tokens by the held-out text, then --seeds
runs of 3M tokens. Diffusion's figure is its bound. Standard errors are those of the held-out rows; with several seeds theirs is printed, too. The best look on
the way is printed beside it: chosen on the held-out text, so a little too good, but a short text is known by heart before the end.
On two cores at half speed about 20 minutes, 30 with --seeds 2:  python experiments/twin.py --text shakespeare.txt --out out/twin
"""
import argparse
from pathlib import Path

import numpy as np

import common
from common import models, safe, score

BATCH = 8  # rows a step
FACTORS = (0.5, 1.0, 2.0, 4.0)
LOOKS = 12  # at the held-out text on the way, since a network may be best before it has learnt the training text by heart
ARMS = {"masked diffusion": False, "autoregression": True}


def study(path, out, tokens=3_000_000, seeds=(0,), factors=FACTORS, **shape):
    w = common.own_text(path)
    held = w.held["text"]
    noisy = int((w.stream.describe("text", held.astype(np.int64)).member >= 0).sum())
    documents = score.codes_in(common.run_of(common.torch.nn.Module(), w), "text", held.astype(np.int64), "text")        # of every row
    characters = sum(len(t) for t in w.tokenizers["text"].decode(sum(documents, [])))

    dtype = str(models.fast_dtype(common.torch.device("cpu"))).removeprefix("torch.")
    config = lambda total, seed, causal, factor, **more: common.base(factor, **{**models.PRESETS["toy"], **shape}, batch=BATCH, tokens=total,
                                                                     seed=seed, causal=causal, text=path, content=w.folder.name, dtype=dtype,
                                                                     **more)
    every = max(1, tokens // (BATCH * common.LENGTH) // LOOKS)                             # steps
    out.mkdir(parents=True, exist_ok=True)
    trained = lambda configs: common.run_all(out / "twin-runs.json", configs)
    tried = trained([config(tokens // 4, 0, causal, f) for causal in ARMS.values() for f in factors])       # of both, so that no core waits
    best = {causal: factors[common.least(tried[n * len(factors):(n + 1) * len(factors)])] for n, causal in enumerate(ARMS.values())}
    runs = trained([config(tokens, seed, causal, best[causal], every=every) for causal in ARMS.values() for seed in seeds])
    bits, made = noisy / characters / np.log(2), {}                                        # bits a character for a nat a token
    for n, (name, causal) in enumerate(ARMS.items()):
        of = runs[n * len(seeds):(n + 1) * len(seeds)]
        nats = [r["bound"] for r in of]
        curve = [[int(step * BATCH * common.LENGTH), look * bits] for step, look in np.mean([r["curve"] for r in of], 0)]
        made[name] = dict(factor=best[causal], nats_per_token=nats, stderr=[r["stderr"] for r in of],
                          bits_per_character=float(np.mean(nats)) * bits, bits_stderr=of[0]["stderr"] * bits,
                          seeds_stderr=common.spread(nats)[1] * bits if len(seeds) > 1 else None, curve=curve)  # [tokens, bits]
    return dict(tokens=tokens, seeds=len(seeds), held_rows=len(held), held_tokens=noisy, characters=characters, arms=made)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--text", required=True, help="a .txt file or a folder of them")
    args.add_argument("--out", default="out/twin", help="folder for the runs (kept, so that a stopped study goes on)")
    args.add_argument("--tokens", type=int, default=3_000_000)
    args.add_argument("--seeds", type=int, default=1)
    args.add_argument("--quick", action="store_true", help="a tiny network and few tokens")
    args = args.parse_args()
    few = dict(tokens=8_000, factors=(1.0,), width=64, depth=1) if args.quick else dict(tokens=args.tokens)
    result = study(args.text, Path(args.out), seeds=tuple(range(args.seeds)), **few)
    safe.write_json(Path(args.out) / "twin.json", {**common.made_by("twin", Path(args.out)), **result})
    for name, arm in result["arms"].items():
        at, least = min(arm["curve"], key=lambda look: look[1])
        print(f"{name:17} {arm['bits_per_character']:.3f} ± {arm['bits_stderr']:.3f} bits a character (rates x {arm['factor']:g}; at best {least:.3f}, "
              f"after {at:,} tokens"
              + (f"; seeds differ by ± {arm['seeds_stderr']:.3f}" if arm["seeds_stderr"] is not None else "") + ")")


if __name__ == "__main__":
    common.safe.cli(main, "twin.py")
