"""Finite scalar quantisation (FSQ, arXiv 2309.15505), and what its two tokenizers share.

A latent of d channels is bounded, each channel is rounded to one of levels[i] values, and the d
digits, read as one mixed-radix number, are the code. Nothing is learnt in the quantiser, so no code
can die. The gradient goes straight through the rounding.
"""
import hashlib
import json
import math
from dataclasses import asdict

import numpy as np
import torch
from torch import nn
from tqdm import trange

import files
from files import DataError


class FSQ(nn.Module):
    """The quantiser. levels: how many values each of d channels takes."""

    def __init__(self, levels):
        super().__init__()
        whole = all(isinstance(n, int) and n >= 2 for n in levels)
        if not levels or not whole or math.prod(levels) > 2**20:
            raise ValueError(f"levels {levels} must be whole numbers from 2 up, with a product of "
                             "at most 2^20")
        levels = torch.tensor(levels)
        places = torch.cat([levels.new_ones(1), levels[:-1].cumprod(0)])  # 1, l0, l0 l1, ...
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("levels", levels, persistent=False)

    def squash(self, z):
        """Latents (..., d) -> channel i between -0.5 and levels[i] - 0.5.

        sigmoid(1.7 z) is close to the normal distribution's cumulative: a unit-normal z uses all
        levels alike.
        """
        return torch.sigmoid(1.7 * z) * self.levels - 0.5

    def digits(self, z):
        """Latents (..., d) -> whole floats in 0..levels-1, with the gradient of squash()."""
        squashed = self.squash(z)
        # halves round to even: -0.5 to 0; a sigmoid of 1 gives `levels`
        digits = torch.minimum(squashed.round(), self.levels - 1)
        return squashed + (digits - squashed).detach()

    def centred(self, digits):
        """Digits (..., d) -> what a decoder sees, in [-1, 1]."""
        return digits * 2 / (self.levels - 1) - 1

    def forward(self, z):
        """Latents (..., d) -> what a decoder sees of them."""
        return self.centred(self.digits(z))

    def commitment(self, z):
        """Mean square distance of latents to their digits, for the loss (arXiv 1711.00937 eq. 3).

        Without it latents settle near the edges between levels, and small changes of a picture
        change its tokens: noise that the diffusion model would have to learn.
        """
        return (self.squash(z) - self.digits(z).detach()).square().mean()

    def codes(self, z):
        """Latents (..., d) -> codes (...), int64. The first channel is the least significant."""
        return (self.digits(z).round().long() * self.places).sum(-1)

    def look_up(self, codes):
        """Codes (...) -> what a decoder sees, (..., d)."""
        codes = torch.as_tensor(codes)[..., None]
        return self.centred(codes // self.places % self.levels)


def usage(codes):
    """(codes used, perplexity) of codes (n,). They are equal if all used codes are as frequent."""
    _, counts = np.unique(codes, return_counts=True)
    share = counts / len(codes)
    return len(share), np.exp(-(share * np.log(share)).sum())


class Codec:
    """What image and audio tokenizers share: a config, a network, its training, a file.

    Subclasses name them: medium ("image" or "audio") and the classes Config and Net.
    """

    def __init__(self, config, seed=0):
        """seed: of the network's first weights."""
        self.config = config
        self.size = math.prod(config.levels)
        self.groups = config.groups
        with torch.random.fork_rng(devices=[]):  # the global generator stays as it was
            torch.default_generator.manual_seed(seed)
            self.net = self.Net(config)

    def fit(self, loss_of, steps, lr, seed, warmup):
        """Train the network with AdamW, wherever it is. It ends on the CPU.

        loss_of(rng) is the loss of a batch. rng is a numpy Generator, a function of (seed, step).
        The learning rate rises to lr over the share `warmup` of the steps and falls along a cosine
        to 0. DataError at the first loss or gradient that is not finite.
        """
        weights = list(self.net.parameters())
        optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
        bar = trange(steps, desc=f"{self.medium} tokenizer", leave=False, mininterval=0.5)
        for step in bar:
            done = step / steps
            rise = min(1.0, done / warmup + 0.02)
            fall = 1 + math.cos(math.pi * done)
            optimizer.param_groups[0]["lr"] = lr * rise * 0.5 * fall
            loss = loss_of(np.random.Generator(np.random.Philox(key=[seed, step])))
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(weights, 1.0)
            if not (loss + norm).isfinite():
                bar.close()
                raise DataError(f"{self.medium} tokenizer: the loss or its gradient is not finite "
                                f"after {step} steps: look for extreme samples")
            optimizer.step()
        self.net.cpu()

    @property
    def name(self):
        """12 hex digits of the config and the weights."""
        digest = hashlib.sha256(json.dumps([self.medium, asdict(self.config)]).encode())
        for key, value in self.net.state_dict().items():
            digest.update(key.encode())
            digest.update(value.numpy().tobytes())
        return digest.hexdigest()[:12]

    def save(self, path):
        """Write config and weights to path (.pt)."""
        files.save(path, {"config": asdict(self.config), "weights": self.net.state_dict()})

    @classmethod
    def load(cls, path):
        """What save() wrote. DataError for another file."""
        saved = files.load(path)
        with files.reading(path):
            codec = cls(cls.Config(**saved["config"]))
            codec.net.load_state_dict(saved["weights"])
        return codec

    def figures(self, codes):
        """What a list of codes costs, and how many of them it uses (the mean over groups)."""
        steps = np.concatenate(codes).reshape(-1, self.groups)
        used, perplexity = np.mean([usage(column) for column in steps.T], 0)
        length = steps.size / len(codes)
        return {"size": self.size, "used": float(used), "perplexity": float(perplexity),
                "tokens_per_item": length, "bits_per_item": length * math.log2(self.size)}
