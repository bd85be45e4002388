"""Picture <-> ids: a small convolutional autoencoder with finite scalar quantisation, trained here.

Every patch x patch square becomes one token (a 32x32 picture: 8x8 = 64 tokens, row by row). All convolutions run on
the token grid, where they are cheap: pixels are folded into channels first and unfolded last. The encoder
sees one square; residual 3x3 convolutions let the decoder draw an edge from what the tokens around it say.
"""

from dataclasses import dataclass
from math import log2

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import fsq


@dataclass
class ImageConfig:
    height: int = 32  # pixels
    width: int = 32  # pixels
    channels: int = 3  # 1 grey, 3 red-green-blue
    patch: int = 4  # pixels along the side of a token's square
    levels: tuple = (4, 4, 4)  # quantisation levels of each latent channel; their product is the vocabulary
    hidden: int = 64  # channels of the network
    blocks: int = 4  # residual blocks of the decoder

    def __post_init__(self):
        self.levels = tuple(self.levels)
        fsq.check_levels(self.levels)
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}; drop the alpha channel")
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(f"{self.height}x{self.width} does not divide into {self.patch}x{self.patch} squares; resize")

    @property
    def grid(self):
        return self.height // self.patch, self.width // self.patch


class Block(nn.Module):
    """Residual pair of convolutions, 3x3 then 1x1."""

    def __init__(self, hidden):
        super().__init__()
        self.norm = nn.GroupNorm(1, hidden)
        self.conv = nn.Conv2d(hidden, 2 * hidden, 3, padding=1)
        self.out = nn.Conv2d(2 * hidden, hidden, 1)

    def forward(self, x):  # (B, D, h, w)
        return x + self.out(F.silu(self.conv(self.norm(x))))  # (B, D, h, w)


class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch, pixels, hidden = config.patch, config.channels * config.patch**2, config.hidden
        self.register_buffer("levels", torch.tensor(config.levels, dtype=torch.float32), persistent=False)
        # the encoder sees one square at a time: a token then means the same thing wherever and beside whatever it stands,
        # which the diffusion model learns from far fewer pictures than codes that depend on their neighbours
        self.encoder = nn.Sequential(
            nn.Conv2d(pixels, 4 * hidden, 1),
            nn.SiLU(),
            nn.Conv2d(4 * hidden, 4 * hidden, 1),
            nn.SiLU(),
            nn.Conv2d(4 * hidden, len(config.levels), 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(len(config.levels), hidden, 3, padding=1),
            *[Block(hidden) for _ in range(config.blocks)],
            nn.GroupNorm(1, hidden),
            nn.Conv2d(hidden, pixels, 1),
        )

    def latent(self, x):  # (B, C, H, W) in [-1, 1]
        return self.encoder(F.pixel_unshuffle(x, self.patch)).movedim(1, -1).float()  # (B, h, w, d)

    def digits(self, x):
        return fsq.quantise(self.latent(x), self.levels)  # (B, h, w, d)

    def pixels(self, digits):  # (B, h, w, d)
        y = self.decoder(fsq.centred(digits, self.levels).movedim(-1, 1))  # (B, C p p, h, w)
        return F.pixel_shuffle(y, self.patch).float()  # (B, C, H, W)


def to_float(images, device):
    """uint8 (B, H, W, C) -> float32 (B, C, H, W) in [-1, 1] on device."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).movedim(-1, 1).float() / 127.5 - 1


def psnr(a, b):
    """Peak signal-to-noise ratio in dB, one figure a picture: uint8 (N, H, W, C) twice -> (N,). Identical: 60."""
    error = ((np.asarray(a, np.float32) - np.asarray(b, np.float32)) ** 2).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 255**2 * 1e-6))


def train(images, config=None, seconds=None, steps=None, seed=0, device="cpu", batch=16, lr=6e-3):
    """Learn a tokenizer from uint8 images (N, H, W, C). Give seconds (60 if neither) or steps."""
    if config is None:
        shape = np.shape(images)
        config = ImageConfig(*shape[1:]) if len(shape) == 4 else ImageConfig()
    check(images, config)
    net = fsq.seeded(lambda: Net(config), seed).to(device)

    def loss_of(rows, rng):
        x = to_float(images[np.sort(rows)], device)  # (B, C, H, W)
        z = net.latent(x)  # (B, h, w, d)
        error = net.pixels(fsq.quantise(z, net.levels)) - x  # (B, C, H, W)
        square = error.square().mean()
        # squares make the PSNR; a little absolute error keeps edges sharp where squares are content with a blend
        loss = square + 0.1 * error.abs().mean() + 0.05 * fsq.commitment(z, net.levels)
        return loss, {"psnr": 10 * torch.log10(4 / square.detach())}

    seconds = 60 if seconds is None and steps is None else seconds
    return Tokenizer(config, net, fsq.fit(net, loss_of, len(images), batch, lr, seconds, steps, seed, "image tokenizer"))


def load(path, device="cpu"):
    """The tokenizer that Tokenizer.save wrote to path (.pt)."""
    return Tokenizer.load(path, ImageConfig, Net, device)


def check(images, config):
    """A ValueError unless images are uint8 (N, height, width, channels) with N > 0."""
    want = (config.height, config.width, config.channels)
    if np.ndim(images) != 4 or len(images) == 0 or images.shape[1:] != want or images.dtype != np.uint8:
        raise ValueError(
            f"images must be a uint8 array (N, {want[0]}, {want[1]}, {want[2]}), got "
            f"{getattr(images, 'dtype', type(images).__name__)} {np.shape(images)}; resize and convert first"
        )


class Tokenizer(fsq.Codec):
    """uint8 (H, W, C) <-> ids (h w,), row by row."""

    kind, groups = "image", 1

    @torch.inference_mode()
    def encode(self, samples, batch=256):
        """List or array of uint8 (H, W, C) -> list of int32 (h w,)."""
        out = []
        for i in range(0, len(samples), batch):
            images = np.stack(samples[i : i + batch])
            check(images, self.config)
            digits = self.net.digits(to_float(images, self.device))  # (B, h, w, d)
            out.extend(fsq.to_ids(digits, self.net.levels).flatten(1).cpu().numpy().astype(np.int32))
        return out

    @torch.inference_mode()
    def decode(self, codes, batch=256):
        """List of ids (h w,) -> list of uint8 (H, W, C)."""
        height, width = self.config.grid
        codes, out = [self.check_ids(ids) for ids in codes], []
        for ids in codes:
            if len(ids) != height * width:
                raise ValueError(f"a picture is {height * width} ids ({height} rows of {width}), got {len(ids)}")
        for i in range(0, len(codes), batch):
            ids = torch.from_numpy(np.stack(codes[i : i + batch])).to(self.device).view(-1, height, width)
            x = self.net.pixels(fsq.to_digits(ids, self.net.levels))  # (B, C, H, W)
            x = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            out.extend(x.movedim(1, -1).contiguous().cpu().numpy())
        return out

    def report(self, samples):
        """Figures on samples (held out, if you please); psnr in dB, the mean over pictures."""
        images = np.stack(samples)
        codes = self.encode(images)
        used, perplexity = fsq.usage(np.concatenate(codes), self.size)
        return {
            "items": len(images),
            "steps": self.steps,
            "psnr": float(psnr(images, np.stack(self.decode(codes))).mean()),
            "baseline_psnr": float(psnr(images, blocks_of_colour(images, self.config.patch, self.size)).mean()),
            "size": self.size,
            "used": used,
            "perplexity": perplexity,
            "tokens_per_item": len(codes[0]),
            "bits_per_item": len(codes[0]) * log2(self.size),
        }


def blocks_of_colour(images, patch, size):
    """The trivial tokenizer with as many ids: each square's mean colour, rounded to a grid of at most size colours.

    uint8 (N, H, W, C) -> uint8 (N, H, W, C)
    """
    n, height, width, channels = images.shape
    levels = [int(size ** (1 / channels) + 1e-9)] * channels
    for c in range(channels):  # what is left of the budget goes to the first channels
        levels[c] += np.prod(levels) // levels[c] * (levels[c] + 1) <= size
    top = np.array(levels, np.float32) - 1
    squares = images.reshape(n, height // patch, patch, width // patch, patch, channels)
    mean = squares.mean((2, 4), keepdims=True, dtype=np.float32)  # (N, h, 1, w, 1, C)
    colour = np.round(np.round(mean / 255 * top) / np.maximum(top, 1) * 255).astype(np.uint8)
    return np.broadcast_to(colour, squares.shape).reshape(images.shape)


def lines(report):
    """report() in two lines."""
    return (
        "image tokenizer: {psnr:.2f} dB (squares of one colour at equal bits: {baseline_psnr:.2f} dB), "
        "{tokens_per_item} tokens = {bits_per_item:.0f} bits a picture\n"
        "  {used} of {size} codes used, perplexity {perplexity:.0f}; {steps} steps, {items} pictures".format(**report)
    )
