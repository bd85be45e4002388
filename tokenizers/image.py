"""Picture <-> codes: a palette, and a small convolutional autoencoder with FSQ, trained here.

A picture becomes a few tokens for its main colours, its palette, and one token for each square of
patch x patch pixels that says where in the square which of these colours lies. A 32x32 picture has
3 + 4x4 = 19 tokens, the squares row by row. A red disc on white and a blue one on black differ in
their palette alone: the diffusion model learns what a disc is once, not once for each pair of
colours. Finding the colours is not learnt. What stands for them, and for the squares, is.

    python -m tokenizers.image FILE     shows a picture's tokens, and what they decode to
"""
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import files

from . import fsq

BATCH = 32  # pictures in a training step, and at once elsewhere
LEARNING_RATE = 6e-3
CONTRAST = 0.02  # mean square difference, of values in [-1, 1], that makes two colours of one
PURE = 0.05  # of two mixtures that explain a pixel, the purer one may fit it this much worse


@dataclass
class ImageConfig:
    """Sizes of the tokenizer. ValueError where they do not fit each other."""

    side: int = 32  # of a picture, pixels
    channels: int = 3  # 1 grey, 3 red, green, blue
    patch: int = 0  # side of a square, pixels; 0: the most from 4 to 8 that divides the picture's
    colours: int = 3  # tokens of the palette
    levels: tuple = (5, 5, 5, 5)  # quantisation levels; their product is the vocabulary
    hidden: int = 96  # channels of the network
    groups = 1  # all tokens have one code book

    def __post_init__(self):
        if self.colours < 2:
            raise ValueError(f"colours {self.colours} must be at least 2")
        if self.patch == 0:
            fitting = [p for p in range(4, 9) if self.side % p == 0]
            self.patch = max(fitting, default=4)
        if self.patch < 1 or self.side % self.patch:
            raise ValueError(f"squares of {self.patch} pixels do not divide pictures of "
                             f"{self.side}: take a side that is a multiple")

    @property
    def grid(self):
        """(rows, columns) of squares."""
        count = self.side // self.patch
        return count, count


# Below, x is B pictures of C channels and P = H W pixels in [-1, 1], K colours are a palette.


def flatness(x):
    """x (B, C, H, W) -> (B, 1, H, W): 1 in plain areas, near 0 where no 2x2 block is plain."""
    highest = F.max_pool2d(x, 2, 1)  # in each 2x2 block
    lowest = -F.max_pool2d(-x, 2, 1)
    spread = (highest - lowest).amax(1, keepdim=True)
    least = -F.max_pool2d(-spread, 2, 1, padding=1)  # of the blocks around a pixel
    return torch.exp(-((least / 0.1) ** 2))


def square_distance(pixels, colours):
    """pixels (B, C, P), colours (B, K, C) -> (B, K, P), mean over channels."""
    way = pixels[:, None] - colours[..., None]  # (B, K, C, P)
    return way.square().mean(2)


@torch.no_grad()
def palette(x, count):
    """The main colours of pictures: x (B, C, H, W) -> (B, count, C).

    One round of k-means over the pixels of plain areas. Each centre starts from the colour farthest
    from those found. Where the other colours are not in plain areas (thin lines, texture), all
    pixels are searched, and those extremes are kept. First comes the colour nearest to the median,
    most often the ground, then the others by place. The last one is repeated to make up the count.
    """
    pixels = x.flatten(2)  # (B, C, P)
    weight = flatness(x).flatten(2)  # (B, 1, P)
    median = pixels.median(2, keepdim=True).values
    ground = square_distance(pixels, median.mT).argmin(2, keepdim=True)  # (B, 1, 1), which pixel
    centres = pixels.take_along_dim(ground, 2).mT  # (B, 1, C) now, (B, K, C) in the end
    distance = square_distance(pixels, centres)  # (B, 1, P) now, (B, K, P) in the end
    farthest = distance.amax(2, keepdim=True)
    plain = (distance * weight).amax(2, keepdim=True) > 0.5 * farthest  # (B, 1, 1)
    weight = torch.where(plain, weight, 1.0)
    for _ in range(1, count):
        nearest = distance.amin(1, keepdim=True)  # (B, 1, P), to the nearest centre
        gap, at = (nearest * weight).max(2, keepdim=True)  # (B, 1, 1)
        found = pixels.take_along_dim(at, 2).mT  # (B, 1, C)
        found = torch.where(gap > CONTRAST, found, centres[:, -1:])
        centres = torch.cat([centres, found], 1)
        distance = square_distance(pixels, centres)
    owner = distance.argmin(1)  # (B, P)
    share = F.one_hot(owner, count).mT * weight  # (B, K, P)
    mass = share.sum(2, keepdim=True)  # (B, K, 1), pixels
    share = share / mass.clamp(min=1e-6)
    present = mass > 0.5
    colours = torch.where(plain & present, share @ pixels.mT, centres)
    order = reading_order(share, present[..., 0], x.shape[3])
    return colours.take_along_dim(order[..., None], 1)


def reading_order(share, present, width):
    """Which colour comes when: share (B, K, P) of the pixels, present (B, K) -> (B, K).

    The first stays. The others follow by where their pixels lie, top left first. In place of those
    that are absent comes the last one that is present.
    """
    pixel = torch.arange(share.shape[2]).to(share)
    diagonal = 1.01 * (pixel // width) + pixel % width  # 1.01 tells two on one diagonal apart
    place = (share @ diagonal).masked_fill(~present, math.inf)  # (B, K)
    place[:, 0] = -1
    place, order = place.sort(dim=1, stable=True)
    rank = place.isfinite().cumsum(1) - 1  # 0, 1, ..., and no further than the present ones
    return order.gather(1, rank)


def shares(x, colours):
    """How much of each colour is in a pixel: x (B, C, H, W), colours (B, K, C) -> (B, K, H, W).

    A pixel is taken for a mixture of the two colours that explain it best, as where an edge crosses
    it. What it is made of then depends neither on which colours they are nor on how bright the
    picture is. Shares are not negative and sum to 1. N is the number of pairs of colours.
    """
    count = colours.shape[1]
    first, second = torch.triu_indices(count, count, 1, device=x.device)  # (N,), colours of pairs
    start = colours[:, first, :, None]  # (B, N, C, 1)
    way = colours[:, second, :, None] - start
    length = way.square().sum(2).clamp(min=1e-4)  # (B, N, 1), squared
    gone = x.flatten(2)[:, None] - start  # (B, N, C, P)
    part = (gone * way).sum(2) / length
    part = part.clamp(0, 1)  # (B, N, P), of the second colour
    rest = gone - part[:, :, None] * way  # what the mixture leaves unexplained
    impurity = PURE * part * (1 - part) * length
    misfit = rest.square().sum(2) + impurity
    best = misfit.argmin(1, keepdim=True)  # (B, 1, P), which pair
    part = part.take_along_dim(best, 1)
    out = x.new_zeros(len(x), count, best.shape[2])  # (B, K, P)
    out.scatter_(1, first[best], 1 - part)
    out.scatter_(1, second[best], part)
    return out.unflatten(2, x.shape[2:])


class Block(nn.Module):
    """Residual pair of convolutions, 3x3 then 1x1."""

    def __init__(self, hidden):
        super().__init__()
        self.norm = nn.GroupNorm(1, hidden)
        self.conv = nn.Conv2d(hidden, 2 * hidden, 3, padding=1)
        self.out = nn.Conv2d(2 * hidden, hidden, 1)

    def forward(self, x):  # (B, D, h, w)
        h = self.conv(self.norm(x))
        return x + self.out(F.silu(h))


class Net(nn.Module):
    """Two autoencoders, of colours and of squares. d latent channels, h x w squares.

    The encoder sees one square at a time. A token then means the same wherever it stands, which the
    diffusion model learns from far fewer pictures. The decoder sees the tokens around it, too.
    """

    def __init__(self, config):
        super().__init__()
        self.patch = config.patch
        self.fsq = fsq.FSQ(config.levels)
        depth = len(config.levels)
        hidden = config.hidden
        wide = 4 * hidden
        folded = config.colours * config.patch**2  # the pixels of a square are channels
        self.colour_encoder = nn.Sequential(
            nn.Linear(config.channels, hidden),
            nn.SiLU(),
            nn.Linear(hidden, depth))
        self.colour_decoder = nn.Sequential(
            nn.Linear(depth, hidden),
            nn.SiLU(),
            nn.Linear(hidden, config.channels))
        self.encoder = nn.Sequential(
            nn.Conv2d(folded, wide, 1),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 1),
            nn.SiLU(),
            nn.Conv2d(wide, depth, 1))
        self.decoder = nn.Sequential(
            nn.Conv2d(depth, hidden, 3, padding=1),
            Block(hidden),
            Block(hidden),
            nn.GroupNorm(1, hidden),
            nn.Conv2d(hidden, folded, 1))

    def encode(self, colours, parts):
        """Colours (B, K, C), shares (B, K, H, W) -> latents (B, K, d) and (B, h, w, d)."""
        squares = self.encoder(F.pixel_unshuffle(parts, self.patch))
        return self.colour_encoder(colours), squares.movedim(1, -1)

    def decode_squares(self, seen):
        """What FSQ makes of latents (B, h, w, d) -> shares of the colours, logits (B, K, H, W)."""
        return F.pixel_shuffle(self.decoder(seen.movedim(-1, 1)), self.patch)


def batches(items):
    """Parts of a list, so that memory is bounded."""
    for i in range(0, len(items), BATCH):
        yield items[i:i + BATCH]


def to_float(images, device="cpu"):
    """uint8 (B, H, W, C) -> float32 (B, C, H, W) in [-1, 1]."""
    x = torch.from_numpy(images).to(device)
    return x.movedim(-1, 1).float() / 127.5 - 1


def psnr(a, b):
    """Peak signal-to-noise ratio of two uint8 pictures, dB. Equal ones have 60."""
    difference = np.float32(a) - np.float32(b)
    error = np.square(difference / 255).mean()
    return -10 * math.log10(max(error, 1e-6))


def train(images, config, steps, seed=0, device="cpu"):
    """Learn a tokenizer from uint8 pictures (H, W, C) in `steps` steps."""
    images = np.stack(images)
    tokenizer = Tokenizer(config, seed)
    net = tokenizer.net.to(device)
    found = [palette(to_float(part, device), config.colours) for part in batches(images)]
    palettes = torch.cat(found)  # (N, K, C)

    def loss_of(rng):
        rows = rng.integers(0, len(images), BATCH)
        x = to_float(images[rows], device)  # (B, C, H, W)
        colours = palettes[torch.from_numpy(rows).to(device)]  # (B, K, C)
        parts = shares(x, colours)  # (B, K, H, W)
        latents = net.encode(colours, parts)
        seen = [net.fsq(z) for z in latents]
        decoded = net.colour_decoder(seen[0])
        logits = net.decode_squares(seen[1])
        pixels = torch.einsum("bkhw,bkc->bchw", logits.softmax(1), decoded)
        error = (pixels - x).square().mean()
        # the error of the pixels alone can settle on one grey and one square for all pictures
        colour_error = (decoded - colours).square().mean()
        share_error = F.cross_entropy(logits, parts)
        settled = sum(net.fsq.commitment(z) for z in latents)
        return 4 * error + colour_error + share_error + 0.15 * settled

    tokenizer.fit(loss_of, steps, LEARNING_RATE, seed, warmup=0.2)
    return tokenizer


class Tokenizer(fsq.Codec):
    """uint8 (H, W, C) <-> codes (K + h w,): the palette, then the squares row by row."""

    medium = "image"
    Config = ImageConfig
    Net = Net

    @torch.inference_mode()
    def encode(self, samples):
        """List of uint8 (H, W, C) -> list of int32 (K + h w,)."""
        out = []
        for batch in batches(samples):
            x = to_float(np.stack(batch))
            colours = palette(x, self.config.colours)
            latents = self.net.encode(colours, shares(x, colours))
            codes = [self.net.fsq.codes(z).flatten(1) for z in latents]  # (B, K), (B, h w)
            out.extend(torch.cat(codes, 1).int().numpy())
        return out

    def decode(self, codes):
        """List of codes (K + h w,) -> list of uint8 (H, W, C)."""
        count = self.config.colours
        out = []
        for batch in batches(codes):
            rows = np.stack(batch)
            colours = self.colours_of(rows[:, None, :count])  # (B, 1, K, C)
            pixels = self.shares_of(rows[:, count:]) @ colours  # (B, H, W, C)
            out.extend(pixels.round().astype(np.uint8))
        return out

    @torch.inference_mode()
    def colours_of(self, codes):
        """Codes (...) of palettes -> their colours, floats (..., C) in 0..255."""
        colours = self.net.colour_decoder(self.net.fsq.look_up(codes)).clamp(-1, 1)
        return ((colours + 1) * 127.5).numpy()

    @torch.inference_mode()
    def shares_of(self, codes):
        """Codes (B, h w) of squares -> share of each colour in each pixel, (B, H, W, K)."""
        squares = self.net.fsq.look_up(codes).unflatten(1, self.config.grid)
        return self.net.decode_squares(squares).softmax(1).movedim(1, -1).numpy()

    def report(self, samples):
        """Figures on pictures that were held out. psnr: dB, the mean over pictures."""
        codes = self.encode(samples)
        decoded = self.decode(codes)
        errors = [psnr(*pair) for pair in zip(samples, decoded)]
        return {"psnr": float(np.mean(errors)), **self.figures(codes)}


load = Tokenizer.load


def main():
    """Show a picture's tokens. Write the picture, and beside it what they decode to, to out/."""
    from PIL import Image

    from sources.folders import open_picture
    parser = files.Parser(prog="python -m tokenizers.image", description=main.__doc__)
    parser.add_argument("file")
    parser.add_argument("--tokenizer", default="runs/toy/image.pt")
    args = parser.parse_args()
    tokenizer = load(args.tokenizer)
    config = tokenizer.config
    picture = open_picture(args.file, config.side, config.channels)
    codes = tokenizer.encode([picture])[0]
    again = tokenizer.decode([codes])[0]
    both = np.hstack([picture, again]).squeeze()
    path = Path("out", Path(args.file).stem + "-decoded.png")
    with files.whole(path) as temporary:
        Image.fromarray(both).save(temporary, "png")
    print("palette:", codes[:config.colours])
    print("squares:", codes[config.colours:].reshape(config.grid), sep="\n")
    print(f"{psnr(picture, again):.2f} dB; both are in {files.quoted(path)}")


if __name__ == "__main__":
    files.command_line(main, "image")
