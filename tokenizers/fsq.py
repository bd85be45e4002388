"""Finite scalar quantisation (FSQ, Mentzer et al., arXiv 2309.15505) and what the image and audio codecs share.

A latent of d channels is bounded, each channel is rounded to one of levels[i] values, and the d digits read as one
mixed-radix number are the token id. Nothing is learnt in the quantiser, so no code can die; the gradient goes
straight through the rounding.
"""

import hashlib
import json
import math
import time
from dataclasses import asdict

import numpy as np
import torch
from tqdm import tqdm

import safe


def squash(z, levels):
    """z (..., d) -> the same shape, channel i strictly between -0.5 and levels[i] - 0.5, for any number of levels.

    sigmoid(1.7 z) is close to the normal distribution's cumulative, so a unit-normal z uses all levels alike.
    """
    return torch.sigmoid(1.7 * z) * levels - 0.5


def quantise(z, levels):
    """z (..., d), levels (d,) -> digits (..., d): whole floats in 0..levels-1 with the gradient of squash()."""
    x = squash(z, levels)
    digits = torch.minimum(x.round().clamp(min=0), levels - 1)  # a saturated sigmoid would round to `levels`
    return x + (digits - x).detach()


def commitment(z, levels):
    """Mean square distance of squash(z) to the digits it is rounded to, a scalar to add to a loss (as in VQ-VAE, arXiv
    1711.00937, eq. 3). Without it latents settle near the edges between levels too, and little changes of a picture or its
    palette change tokens (experiments/README.md): noise that the diffusion model would have to learn.
    """
    return (squash(z, levels) - quantise(z, levels).detach()).square().mean()


def centred(digits, levels):
    """digits (..., d) -> what the decoder sees, in [-1, 1]."""
    return digits * 2 / (levels - 1) - 1


def to_ids(digits, levels):
    """digits (..., d) -> ids (...), int64; the first channel is the least significant digit."""
    return (digits.round().long() * radix(levels)).sum(-1)


def to_digits(ids, levels):
    """ids (...) -> digits (..., d), float."""
    return (ids[..., None] // radix(levels) % levels.long()).to(levels.dtype)


def radix(levels):
    """levels (d,) -> place values (d,), int64: 1, l0, l0 l1, ..."""
    return torch.cat([levels.new_ones(1), levels[:-1]]).long().cumprod(0)


def check_levels(levels):
    if not levels or any(not isinstance(n, int) or n < 2 for n in levels) or math.prod(levels) > 2**20:
        raise ValueError(f"levels {levels} must be whole numbers from 2 up with a product of at most 2^20")


def seeded(make, seed):
    """make() with the CPU generator at seed; the global state is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


def fit(net, loss_of, count, batch, lr, seconds=None, steps=None, seed=0, name="tokenizer", warmup=0.05):
    """Train net: AdamW, warm-up over a share of the steps, cosine down to nothing at the end.

    loss_of(rows, rng) -> (scalar loss, {name: figure for the bar}); rows (batch,) index the `count` samples, rng is
    a numpy Generator, both functions of (seed, step) alone. Give steps (repeatable), or seconds: then the schedule
    follows the clock, warm-up included, so that it ends in time however fast the machine is. Returns the number of steps made.
    A DataError at the first loss, gradient or, at the end, weight that is not finite.
    """
    if (seconds is None) == (steps is None) or (seconds or steps) <= 0:
        raise ValueError(f"give either seconds or steps, above 0, to train a tokenizer: got {seconds} and {steps}")
    fused = next(net.parameters()).device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=fused)
    bar = tqdm(total=steps, desc=name, leave=False, mininterval=0.5)
    net.train()
    start, step, done = time.time(), 0, 0.0
    while done < 1:
        rng = np.random.Generator(np.random.Philox(key=[seed, step]))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, done / warmup + 0.02) * 0.5 * (1 + math.cos(math.pi * done))
        loss, figures = loss_of(rng.integers(0, count, batch), rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        if not math.isfinite(float(loss.detach() + norm)):
            bar.close()
            raise safe.DataError(f"{name}: loss or gradient is not finite at step {step}: look for samples far out of range")
        optimizer.step()
        step += 1
        done = step / steps if steps else (time.time() - start) / seconds
        bar.update()
        if step % 50 == 0:
            bar.set_postfix({key: f"{float(value):.3g}" for key, value in figures.items()}, refresh=False)
    bar.close()
    if not safe.finite(net.state_dict().values()):
        raise safe.DataError(f"{name}: weights are not finite after {step} steps: look for samples far out of range")
    net.eval()
    return step


class Codec:
    """What an image and an audio tokenizer have in common: a config (dataclass), a network, a file."""

    kind = None  # "image", "audio"

    def __init__(self, config, net, steps=0):
        self.config, self.net, self.steps = config, net.eval(), steps
        self.size = math.prod(config.levels)

    @property
    def name(self):
        """12 hex digits of the config and the weights."""
        digest = hashlib.sha256(json.dumps([self.kind, asdict(self.config)]).encode())
        for key, value in self.net.state_dict().items():
            digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    @property
    def device(self):
        return next(self.net.parameters()).device

    def to(self, device):
        self.net.to(device)
        return self

    def save(self, path):
        """Write config and weights to path (.pt), whole or not at all."""
        weights = {key: value.cpu() for key, value in self.net.state_dict().items()}
        saved = {"kind": self.kind, "config": asdict(self.config), "steps": self.steps, "weights": weights}
        safe.save(path, saved)

    @classmethod
    def load(cls, path, config_type, net_type, device="cpu"):
        saved = safe.load(path)
        if not isinstance(saved, dict) or saved.get("kind") != cls.kind:
            raise ValueError(f"{path} is not an {cls.kind} tokenizer of ours; train one with {cls.kind}.train")
        config = config_type(**saved["config"])
        net = seeded(lambda: net_type(config), 0)
        net.load_state_dict(saved["weights"])
        return cls(config, net, saved["steps"]).to(device)

    def check_ids(self, ids):
        """ids as an int64 array (n,), or a ValueError."""
        ids = np.asarray(ids, np.int64)
        if ids.ndim != 1 or (ids.size and (ids.min() < 0 or ids.max() >= self.size)):
            raise ValueError(f"{self.kind} ids must be one row of ids in 0..{self.size - 1}; take control ids out first")
        return ids


def usage(ids, size):
    """(codes used, perplexity) of ids (n,): size and size when all codes are equally frequent."""
    share = np.bincount(ids, minlength=size) / max(1, len(ids))
    share = share[share > 0]
    return len(share), float(np.exp(-(share * np.log(share)).sum()))
