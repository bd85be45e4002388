"""Picture <-> ids: a small convolutional autoencoder with finite scalar quantisation, trained here.

A picture becomes a few tokens for its main colours, its palette, and one token for each patch x patch square that says
where in the square which of these colours lies (a 32x32 picture: 3 + 4x4 = 19 tokens, the squares row by row). A red disc
on white and a blue one on black thus differ in their palette alone, and the diffusion model learns what a disc is once and
not once for each pair of colours (experiments/README.md). Finding the colours is not learnt; what stands for them, and
for the squares, is. All convolutions run on the token grid, where they are cheap: pixels are folded into channels first
and unfolded last. The encoder sees one square; residual 3x3 convolutions let the decoder draw an edge from what the
tokens around it say.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import fsq

PURE = 0.05  # of two pairs of colours that explain a pixel, the one that has it purer may fit it this much worse


@dataclass
class ImageConfig:
    height: int = 32  # pixels
    width: int = 32  # pixels
    channels: int = 3  # 1 grey, 3 red-green-blue
    patch: int = 0  # pixels along the side of a token's square; 0: the largest from 4 to 8 that divides both sides
    colours: int = 3  # tokens for the colours of the palette
    levels: tuple = (5, 5, 5, 5)  # quantisation levels of each latent channel; their product is the vocabulary
    hidden: int = 96  # channels of the network
    blocks: int = 2  # residual blocks of the decoder

    def __post_init__(self):
        self.levels = tuple(self.levels)
        fsq.check_levels(self.levels)
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}; drop the alpha channel")
        if not isinstance(self.colours, int) or self.colours < 2:
            raise ValueError(f"a palette needs at least 2 colours, got {self.colours}")
        if not self.patch:
            fitting = [p for p in range(4, 9) if self.height % p == self.width % p == 0]
            if not fitting:
                raise ValueError(f"no square of 4 to 8 pixels divides {self.height}x{self.width}; resize to a multiple of 4")
            self.patch = max(fitting)
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(f"{self.height}x{self.width} does not divide into {self.patch}x{self.patch} squares; resize")

    @property
    def grid(self):
        return self.height // self.patch, self.width // self.patch

    @property
    def at_once(self):
        """Pictures that are looked at together, to bound the memory."""
        return max(1, min(256, 2**18 // (self.height * self.width)))


def flatness(x, range_=0.1):
    """x (B, C, H, W) in [-1, 1] -> (B, H, W): 1 in plain areas, near 0 where no 2x2 block around a pixel has one colour."""
    spread = (F.max_pool2d(x, 2, 1) + F.max_pool2d(-x, 2, 1)).amax(1)  # (B, H - 1, W - 1)
    least = -F.max_pool2d(F.pad(-spread, (1, 1, 1, 1), value=-math.inf), 2, 1)  # (B, H, W)
    return torch.exp(-((least / range_) ** 2))


@torch.no_grad()
def palette(x, count, contrast=0.02):
    """The main colours of pictures: x (B, C, H, W) in [-1, 1] -> (B, count, C).

    One round of k-means over the pixels of plain areas, each centre started from the colour farthest from those found.
    First comes the one nearest to the median (most often the ground), then the others by where they lie, top left
    first. A picture with fewer colours that differ by `contrast` (squares, mean over channels) repeats the last one; one
    whose other colours are not in plain areas (thin lines, texture) is searched everywhere, and its extremes are kept as they are.
    """
    height, width = x.shape[2:]
    weight, pixels = flatness(x).flatten(1), x.flatten(2)  # (B, P), (B, C, P)
    distance = lambda centre: (pixels - centre[..., None]).square().mean(1)  # (B, C) -> (B, P)
    colour = lambda at: pixels.gather(2, at[:, None, None].expand(-1, pixels.shape[1], 1))[..., 0]  # (B,) -> (B, C)
    centres = [colour(distance(pixels.median(2).values).argmin(1))]
    nearest = distance(centres[0])  # (B, P)
    plain = (nearest * weight).amax(1, keepdim=True) > 0.5 * nearest.amax(1, keepdim=True)  # (B, 1)
    weight = torch.where(plain, weight, 1.0)
    owner = torch.zeros_like(nearest, dtype=torch.long)  # (B, P): which centre is nearest
    for k in range(1, count):
        gap, at = (nearest * weight).max(1)  # (B,)
        centres.append(torch.where(gap[:, None] > contrast, colour(at), centres[-1]))
        other = distance(centres[-1])
        owner = torch.where(other < nearest, k, owner)
        nearest = torch.minimum(nearest, other)
    share = F.one_hot(owner, count).transpose(1, 2) * weight[:, None]  # (B, K, P)
    mass = share.sum(2)  # (B, K), in pixels; what has less than half of one is left out
    mean = share @ pixels.transpose(1, 2) / mass.clamp(min=1e-6)[..., None]  # (B, K, C)
    centres = torch.where((plain & (mass > 0.5))[..., None], mean, torch.stack(centres, 1))  # (B, K, C)
    # from the top left; the factor keeps things on one diagonal apart
    diagonal = (1.01 * torch.arange(height)[:, None] + torch.arange(width)).flatten().to(pixels)  # (P,)
    place = torch.where(mass > 0.5, share @ diagonal / mass.clamp(min=1e-6), math.inf)  # (B, K)
    place[:, 0] = -1
    last = torch.isfinite(place).sum(1, keepdim=True) - 1
    order = place.argsort(dim=1, stable=True).gather(1, torch.minimum(torch.arange(count, device=x.device), last))  # (B, K)
    return centres.gather(1, order[..., None].expand(-1, -1, pixels.shape[1]))


def shares(x, colours):
    """How much of each colour is in a pixel: x (B, C, H, W), colours (B, K, C) -> (B, K, H, W), not negative, sums 1.

    A pixel is taken for a mixture of the two colours that explain it best, as where an edge crosses it; what it is made of then
    does not depend on which colours they are, nor on how bright the picture is, as long as `palette` finds the same ones.
    """
    count, pixels = colours.shape[1], x.flatten(2)[:, None]  # (B, 1, C, P)
    first, second = torch.triu_indices(count, count, 1, device=x.device)  # (Q,): the pairs
    start, step = colours[:, first, :, None], (colours[:, second] - colours[:, first])[..., None]  # (B, Q, C, 1)
    length = step.square().sum(2).clamp(min=1e-4)  # (B, Q, 1)
    part = ((((pixels - start) * step).sum(2)) / length).clamp(0, 1)  # (B, Q, P): of the second colour
    misfit = (pixels - start - part[:, :, None] * step).square().sum(2) + PURE * part * (1 - part) * length  # (B, Q, P)
    best = F.one_hot(misfit.argmin(1), len(first)).transpose(1, 2)  # (B, Q, P)
    of = F.one_hot(torch.stack((first, second)), count).to(x).mT  # (2, K, Q)
    return (of[0] @ (best * (1 - part)) + of[1] @ (best * part)).unflatten(2, x.shape[2:])


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
        self.patch, hidden = config.patch, config.hidden
        self.register_buffer("levels", torch.tensor(config.levels, dtype=torch.float32), persistent=False)
        depth = len(config.levels)
        self.colour_encoder = nn.Sequential(nn.Linear(config.channels, hidden), nn.SiLU(), nn.Linear(hidden, depth))
        self.colour_decoder = nn.Sequential(nn.Linear(depth, hidden), nn.SiLU(), nn.Linear(hidden, config.channels))
        # the encoder sees one square at a time: a token then means the same thing wherever and beside whatever it stands,
        # which the diffusion model learns from far fewer pictures than codes that depend on their neighbours
        folded = config.colours * config.patch**2
        self.encoder = nn.Sequential(
            nn.Conv2d(folded, 4 * hidden, 1),
            nn.SiLU(),
            nn.Conv2d(4 * hidden, 4 * hidden, 1),
            nn.SiLU(),
            nn.Conv2d(4 * hidden, depth, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(depth, hidden, 3, padding=1),
            *[Block(hidden) for _ in range(config.blocks)],
            nn.GroupNorm(1, hidden),
            nn.Conv2d(hidden, folded, 1),
        )

    def mixed(self, colours):
        """Digits of palettes (B, K, d) -> the colours that they stand for (B, K, C)."""
        return self.colour_decoder(fsq.centred(colours, self.levels)).float()

    def parts(self, squares):
        """Digits of squares (B, h, w, d) -> log of the shares of the palette in each pixel, not normalised (B, K, H, W)."""
        return F.pixel_shuffle(self.decoder(fsq.centred(squares, self.levels).movedim(-1, 1)), self.patch).float()

    def latents(self, parts, colours):
        """Shares (B, K, H, W) and a palette (B, K, C) -> latents of the palette (B, K, d), of the squares (B, h, w, d)."""
        squares = self.encoder(F.pixel_unshuffle(parts, self.patch)).movedim(1, -1)  # (B, h, w, d)
        return self.colour_encoder(colours).float(), squares.float()


def blend(parts, mixed):
    """Logits of shares (B, K, H, W), colours (B, K, C) -> pixels (B, C, H, W)."""
    return torch.einsum("bkhw,bkc->bchw", parts.softmax(1), mixed)


def to_float(images, device):
    """uint8 (B, H, W, C) -> float32 (B, C, H, W) in [-1, 1] on device."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).movedim(-1, 1).float() / 127.5 - 1


def to_uint8(x):
    """float [-1, 1], any shape -> a numpy array of uint8."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).contiguous().cpu().numpy()


def psnr(a, b):
    """Peak signal-to-noise ratio in dB, one figure a picture: uint8 (N, H, W, C) twice -> (N,). Identical: 60."""
    error = ((np.asarray(a, np.float32) - np.asarray(b, np.float32)) ** 2).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 255**2 * 1e-6))


def train(images, config=None, seconds=None, steps=None, seed=0, device="cpu", batch=32, lr=6e-3):
    """Learn a tokenizer from uint8 images (N, H, W, C). Give seconds (60 if neither; finding the palettes comes on top) or steps.

    A ValueError says what images or config lack.
    """
    images = np.asarray(images)
    if config is None:
        config = ImageConfig(*images.shape[1:]) if images.ndim == 4 else ImageConfig()
    check(images, config)
    net = fsq.seeded(lambda: Net(config), seed).to(device)
    some = (images[i : i + config.at_once] for i in range(0, len(images), config.at_once))
    found = torch.cat([palette(to_float(x, device), config.colours) for x in some])  # (N, K, C)

    def loss_of(rows, rng):
        x, colours = to_float(images[rows], device), found[torch.from_numpy(rows).to(device)]  # (B, C, H, W), (B, K, C)
        parts = shares(x, colours)  # (B, K, H, W)
        latents = net.latents(parts, colours)  # (B, K, d), (B, h, w, d)
        palettes, squares = (fsq.quantise(z, net.levels) for z in latents)
        mixed, logits = net.mixed(palettes), net.parts(squares)  # (B, K, C); (B, K, H, W)
        square = (blend(logits, mixed) - x).square().mean()
        # pixels alone leave a run in which the colours come late with one grey and one square for everything: so colours and
        # shares are also asked for directly
        apart = (mixed - colours).square().mean() + F.cross_entropy(logits, parts)
        loss = 4 * square + apart + 0.15 * sum(fsq.commitment(z, net.levels) for z in latents)
        return loss, {"psnr": 10 * torch.log10(4 / square.detach())}

    seconds = 60 if seconds is None and steps is None else seconds
    done = fsq.fit(net, loss_of, len(images), batch, lr, seconds, steps, seed, "image tokenizer", warmup=0.2)
    return Tokenizer(config, net, done)


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
    """uint8 (H, W, C) <-> ids (K + h w,): the palette, then the squares row by row."""

    kind, groups = "image", 1

    @torch.inference_mode()
    def encode(self, samples):
        """List or array of uint8 (H, W, C) -> list of int32 (K + h w,)."""
        out, batch = [], self.config.at_once
        for i in range(0, len(samples), batch):
            images = np.stack(samples[i : i + batch])
            check(images, self.config)
            x, levels = to_float(images, self.device), self.net.levels
            colours = palette(x, self.config.colours)  # (B, K, C)
            latents = self.net.latents(shares(x, colours), colours)  # (B, K, d), (B, h, w, d)
            ids = [fsq.to_ids(fsq.quantise(z, levels), levels).flatten(1) for z in latents]
            out.extend(torch.cat(ids, 1).cpu().numpy().astype(np.int32))
        return out

    @torch.inference_mode()
    def decode(self, codes, batch=256):
        """List of ids (K + h w,) -> list of uint8 (H, W, C)."""
        (height, width), colours = self.config.grid, self.config.colours
        codes, out = [self.check_ids(ids) for ids in codes], []
        for ids in codes:
            if len(ids) != colours + height * width:
                raise ValueError(
                    f"a picture is {colours + height * width} ids ({colours} colours, {height} rows of {width}), got {len(ids)}"
                )
        for i in range(0, len(codes), batch):
            digits = fsq.to_digits(torch.from_numpy(np.stack(codes[i : i + batch])).to(self.device), self.net.levels)
            parts = self.net.parts(digits[:, colours:].unflatten(1, (height, width)))  # (B, K, H, W)
            x = blend(parts, self.net.mixed(digits[:, :colours]))  # (B, C, H, W)
            out.extend(to_uint8(x.movedim(1, -1)))
        return out

    def digits(self, ids):
        """Ids (n,) -> digits (n, d) on the device; ValueError if one is no id."""
        return fsq.to_digits(torch.from_numpy(self.check_ids(ids)).to(self.device), self.net.levels)

    @torch.inference_mode()
    def colours_of(self, ids):
        """Ids (n,) of a palette's colours -> the colours: uint8 (n, C)."""
        return to_uint8(self.net.mixed(self.digits(ids)))

    @torch.inference_mode()
    def shares_of(self, ids):
        """Ids (h w,) of a picture's squares -> how much of each colour of its palette a pixel has: float (H, W, K)."""
        return self.net.parts(self.digits(ids).view(1, *self.config.grid, -1)).softmax(1)[0].movedim(0, -1).cpu().numpy()

    def report(self, samples):
        """Figures on samples (held out, if you please); psnr in dB, the mean over pictures."""
        images, (height, width) = np.stack(samples), self.config.grid
        codes = self.encode(images)
        bits = len(codes[0]) * math.log2(self.size)
        rival = blocks_of_colour(images, self.config.patch, int(2 ** (bits / (height * width)) + 1e-9))
        used, perplexity = fsq.usage(np.concatenate(codes), self.size)
        return {
            "items": len(images),
            "steps": self.steps,
            "psnr": float(psnr(images, np.stack(self.decode(codes))).mean()),
            "baseline_psnr": float(psnr(images, rival).mean()),
            "size": self.size,
            "used": used,
            "perplexity": perplexity,
            "tokens_per_item": len(codes[0]),
            "bits_per_item": bits,
        }


def blocks_of_colour(images, patch, size):
    """The trivial tokenizer at equal bits: each square's mean colour, rounded to a grid of at most size colours.

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
