"""Picture <-> ids: a palette, and a small convolutional autoencoder with FSQ, trained here.

A picture becomes a few tokens for its main colours, its palette, and one token for each square of
patch x patch pixels that says where in the square which of these colours lies. A 32x32 picture has
3 + 4x4 = 19 tokens, the squares row by row. A red disc on white and a blue one on black differ in
their palette alone: the diffusion model learns what a disc is once, not once for each pair of
colours. Finding the colours is not learnt. What stands for them, and for the squares, is.

    python -m tokenizers.image FILE     shows a picture's tokens, and what they decode to
"""
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import files

from . import fsq

BATCH = 32  # pictures in a training step
LEARNING_RATE = 6e-3
CONTRAST = 0.02  # mean square difference, of values in [-1, 1], that makes two colours of one
PURE = 0.05  # of two mixtures that explain a pixel, the purer one may fit it this much worse


@dataclass
class ImageConfig:
    """Sizes of the tokenizer. ValueError where they do not fit each other."""

    height: int = 32  # pixels
    width: int = 32  # pixels
    channels: int = 3  # 1 grey, 3 red, green, blue
    patch: int = 0  # side of a square, pixels; 0: the most from 4 to 8 that divides both sides
    colours: int = 3  # tokens of the palette
    levels: tuple = (5, 5, 5, 5)  # quantisation levels; their product is the vocabulary
    hidden: int = 96  # channels of the network

    def __post_init__(self):
        self.levels = tuple(self.levels)
        fsq.check_levels(self.levels)
        if self.channels not in (1, 3) or self.colours < 2:
            raise ValueError(f"channels {self.channels} must be 1 or 3, colours {self.colours} at "
                             "least 2")
        sides = math.gcd(self.height, self.width)
        if self.patch == 0:
            fitting = [p for p in range(4, 9) if sides % p == 0]
            self.patch = max(fitting, default=4)
        if self.patch < 1 or sides % self.patch:
            raise ValueError(f"squares of {self.patch} pixels do not divide "
                             f"{self.height}x{self.width}; resize to a multiple of {self.patch}")

    @property
    def grid(self):
        """(rows, columns) of squares."""
        return self.height // self.patch, self.width // self.patch


# ---- The palette. Nothing here is learnt. x: B pictures, C channels, P = H W pixels in [-1, 1].


def flatness(x):
    """x (B, C, H, W) -> (B, H, W): 1 in plain areas, near 0 where no 2x2 block has one colour."""
    highest = F.max_pool2d(x, 2, 1)  # in each 2x2 block
    lowest = -F.max_pool2d(-x, 2, 1)
    spread = (highest - lowest).amax(1)
    spread = F.pad(spread, (1, 1, 1, 1), value=math.inf)
    least = -F.max_pool2d(-spread, 2, 1)  # of the blocks around a pixel
    return torch.exp(-((least / 0.1) ** 2))


def square_distance(pixels, colour):
    """pixels (B, C, P), colour (B, C) -> (B, P), mean over channels."""
    return (pixels - colour[..., None]).square().mean(1)


def colour_at(pixels, at):
    """pixels (B, C, P), at (B,) -> the colours there (B, C)."""
    return pixels[torch.arange(len(at), device=at.device), :, at]


@torch.no_grad()
def palette(x, count):
    """The main colours of pictures: x (B, C, H, W) -> (B, count, C).

    One round of k-means over the pixels of plain areas. Each centre starts from the colour farthest
    from those found. Where the other colours are not in plain areas (thin lines, texture), all
    pixels are searched, and those extremes are kept. First comes the colour nearest to the median,
    most often the ground, then the others by place. The last one is repeated to make up the count.
    """
    pixels = x.flatten(2)  # (B, C, P)
    weight = flatness(x).flatten(1)  # (B, P)
    median = pixels.median(2).values  # (B, C)
    centres = [colour_at(pixels, square_distance(pixels, median).argmin(1))]  # (B, C) each
    nearest = square_distance(pixels, centres[0])  # (B, P), to the nearest centre
    owner = torch.zeros_like(nearest, dtype=torch.long)  # (B, P), which one that is
    farthest = nearest.amax(1, keepdim=True)
    plain = (nearest * weight).amax(1, keepdim=True) > 0.5 * farthest  # (B, 1)
    weight = torch.where(plain, weight, 1.0)
    for k in range(1, count):
        gap, at = (nearest * weight).max(1)  # (B,)
        found = colour_at(pixels, at)
        centres.append(torch.where(gap[:, None] > CONTRAST, found, centres[-1]))
        distance = square_distance(pixels, centres[-1])
        owner = torch.where(distance < nearest, k, owner)
        nearest = torch.minimum(nearest, distance)
    share = F.one_hot(owner, count).mT * weight[:, None]  # (B, K, P)
    mass = share.sum(2)  # (B, K), pixels
    share = share / mass.clamp(min=1e-6)[..., None]
    present = mass > 0.5
    mean = share @ pixels.mT  # (B, K, C)
    usable = (plain & present)[..., None]
    colours = torch.where(usable, mean, torch.stack(centres, 1))
    order = reading_order(share, present, x.shape[3])
    return colours.gather(1, order[..., None].expand_as(colours))


def reading_order(share, present, width):
    """Which colour comes when: share (B, K, P) of the pixels, present (B, K) -> (B, K).

    The first stays. The others follow by where their pixels lie, top left first. In place of those
    that are absent comes the last one that is present.
    """
    pixel = torch.arange(share.shape[2], device=share.device)
    diagonal = 1.01 * (pixel // width) + pixel % width  # 1.01 tells two on one diagonal apart
    place = (share @ diagonal.to(share)).masked_fill(~present, math.inf)  # (B, K)
    place[:, 0] = -1
    last = place.isfinite().sum(1, keepdim=True) - 1  # (B, 1)
    rank = torch.arange(share.shape[1], device=share.device).minimum(last)  # (B, K)
    return place.argsort(dim=1, stable=True).gather(1, rank)


def shares(x, colours):
    """How much of each colour is in a pixel: x (B, C, H, W), colours (B, K, C) -> (B, K, H, W).

    A pixel is taken for a mixture of the two colours that explain it best, as where an edge crosses
    it. What it is made of then depends neither on which colours they are nor on how bright the
    picture is. Shares are not negative and sum to 1.
    """
    pixels = x.flatten(2)  # (B, C, P)
    count = colours.shape[1]
    best = torch.full_like(pixels[:, :1], math.inf)  # (B, 1, P)
    out = pixels.new_zeros(len(x), count, pixels.shape[2])  # (B, K, P)
    for i, j in itertools.combinations(range(count), 2):
        start = colours[:, i, :, None]  # (B, C, 1)
        way = colours[:, j, :, None] - start
        length = way.square().sum(1, keepdim=True).clamp(min=1e-4)  # (B, 1, 1), squared
        part = ((pixels - start) * way).sum(1, keepdim=True) / length
        part = part.clamp(0, 1)  # (B, 1, P), of colour j
        misfit = (pixels - start - part * way).square().sum(1, keepdim=True)
        misfit = misfit + PURE * part * (1 - part) * length
        mixture = torch.zeros_like(out)
        mixture[:, i:i + 1] = 1 - part
        mixture[:, j:j + 1] = part
        out = torch.where(misfit < best, mixture, out)
        best = torch.minimum(misfit, best)
    return out.unflatten(2, x.shape[2:])


# ---- The network.


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
            nn.Linear(hidden, depth),
        )
        self.colour_decoder = nn.Sequential(
            nn.Linear(depth, hidden),
            nn.SiLU(),
            nn.Linear(hidden, config.channels),
        )
        self.encoder = nn.Sequential(
            nn.Conv2d(folded, wide, 1),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 1),
            nn.SiLU(),
            nn.Conv2d(wide, depth, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(depth, hidden, 3, padding=1),
            Block(hidden),
            Block(hidden),
            nn.GroupNorm(1, hidden),
            nn.Conv2d(hidden, folded, 1),
        )

    def encode(self, colours, parts):
        """Colours (B, K, C), shares (B, K, H, W) -> latents (B, K, d) and (B, h, w, d)."""
        squares = self.encoder(F.pixel_unshuffle(parts, self.patch))
        squares = squares.movedim(1, -1)
        return self.colour_encoder(colours).float(), squares.float()

    def decode_colours(self, codes):
        """What FSQ makes of the latents (B, K, d) -> colours (B, K, C)."""
        return self.colour_decoder(codes).float()

    def decode_squares(self, codes):
        """The same of (B, h, w, d) -> shares of the colours, as logits (B, K, H, W)."""
        squares = self.decoder(codes.movedim(-1, 1))
        return F.pixel_shuffle(squares, self.patch).float()


def blend(logits, colours):
    """Logits of shares (B, K, H, W), colours (B, K, C) -> pixels (B, C, H, W)."""
    return torch.einsum("bkhw,bkc->bchw", logits.softmax(1), colours)


# ---- The tokenizer.


def batches(items, config):
    """The items, as many at a time as bounds the memory."""
    size = max(1, 2**18 // (config.height * config.width))
    return [items[i:i + size] for i in range(0, len(items), size)]


def stacked(images, config):
    """Pictures as one array (N, H, W, C). ValueError unless they are what config says."""
    want = (config.height, config.width, config.channels)
    for image in images:
        if np.shape(image) != want or image.dtype != np.uint8:
            raise ValueError(f"a picture must be a uint8 array {want}, got {image.dtype} "
                             f"{np.shape(image)}; resize and convert first")
    return np.stack(images)


def to_float(images, device="cpu"):
    """uint8 (B, H, W, C) -> float32 (B, C, H, W) in [-1, 1]."""
    x = torch.from_numpy(images).to(device)
    return x.movedim(-1, 1).float() / 127.5 - 1


def to_uint8(x):
    """Floats in [-1, 1] -> a numpy array of uint8."""
    x = (x.clamp(-1, 1) + 1) * 127.5
    return x.round().to(torch.uint8).cpu().numpy()


def psnr(a, b):
    """Peak signal-to-noise ratio of two uint8 pictures, dB. Equal ones have 60."""
    difference = np.float32(a) - np.float32(b)
    error = np.square(difference / 255).mean()
    return -10 * math.log10(max(error, 1e-6))


def train(images, config, steps, seed=0, device="cpu"):
    """Learn a tokenizer from uint8 pictures (H, W, C) in `steps` steps."""
    images = stacked(images, config)
    tokenizer = Tokenizer(config, steps, seed).to(device)
    net = tokenizer.net
    palettes = []  # (B, K, C) each
    for batch in batches(images, config):
        palettes.append(palette(to_float(batch, device), config.colours))
    palettes = torch.cat(palettes)

    def loss_of(rng):
        rows = rng.integers(0, len(images), BATCH)
        x = to_float(images[rows], device)  # (B, C, H, W)
        colours = palettes[torch.from_numpy(rows).to(device)]  # (B, K, C)
        parts = shares(x, colours)  # (B, K, H, W)
        latents = net.encode(colours, parts)
        codes = [net.fsq(z) for z in latents]
        decoded = net.decode_colours(codes[0])
        logits = net.decode_squares(codes[1])
        error = (blend(logits, decoded) - x).square().mean()
        # the error of the pixels alone can settle on one grey and one square for all pictures
        colour_error = (decoded - colours).square().mean()
        share_error = F.cross_entropy(logits, parts)
        settled = sum(net.fsq.commitment(z) for z in latents)
        return 4 * error + colour_error + share_error + 0.15 * settled

    tokenizer.fit(loss_of, LEARNING_RATE, seed, warmup=0.2)
    return tokenizer


class Tokenizer(fsq.Codec):
    """uint8 (H, W, C) <-> ids (K + h w,): the palette, then the squares row by row."""

    kind = "image"
    Config = ImageConfig
    Net = Net

    @torch.inference_mode()
    def encode(self, samples):
        """List of uint8 (H, W, C) -> list of int32 (K + h w,)."""
        out = []
        for images in batches(samples, self.config):
            images = stacked(images, self.config)
            x = to_float(images, self.device)
            colours = palette(x, self.config.colours)
            latents = self.net.encode(colours, shares(x, colours))
            ids = [self.net.fsq.ids(z).flatten(1) for z in latents]  # (B, K), (B, h w)
            out.extend(torch.cat(ids, 1).int().cpu().numpy())
        return out

    @torch.inference_mode()
    def decode(self, codes):
        """List of ids (K + h w,) -> list of uint8 (H, W, C)."""
        count = self.config.colours
        length = count + math.prod(self.config.grid)
        for ids in codes:
            if len(ids) != length:
                raise ValueError(f"a picture is {length} ids, got {len(ids)}")
        out = []
        for batch in batches(codes, self.config):
            seen = torch.stack([self.look_up(ids) for ids in batch])  # (B, K + h w, d)
            palettes, squares = seen.split([count, length - count], 1)
            colours = self.net.decode_colours(palettes).clamp(-1, 1)
            logits = self.net.decode_squares(squares.unflatten(1, self.config.grid))
            x = blend(logits, colours)
            out.extend(to_uint8(x.movedim(1, -1)))
        return out

    @torch.inference_mode()
    def colours_of(self, ids):
        """Ids (n,) of a palette -> its colours, uint8 (n, C)."""
        return to_uint8(self.net.decode_colours(self.look_up(ids)))

    @torch.inference_mode()
    def shares_of(self, ids):
        """Ids (h w,) of a picture's squares -> share of each colour in each pixel, (H, W, K)."""
        squares = self.look_up(ids).unflatten(0, (1, *self.config.grid))
        share = self.net.decode_squares(squares).softmax(1)[0]
        return share.movedim(0, -1).cpu().numpy()

    def report(self, samples):
        """Figures on pictures that were held out. psnr: dB, the mean over pictures."""
        codes = self.encode(samples)
        errors = [psnr(*pair) for pair in zip(samples, self.decode(codes))]
        return {"psnr": float(np.mean(errors)), **self.figures(codes)}


load = Tokenizer.load


def lines(report):
    """report() in words."""
    return f"image tokenizer: {report['psnr']:.2f} dB, " + fsq.lines(report)


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
    picture = open_picture(args.file, config.height, config.channels)
    ids = tokenizer.encode([picture])[0]
    again = tokenizer.decode([ids])[0]
    both = np.hstack([picture, again]).squeeze()
    path = Path("out") / f"{Path(args.file).stem}-decoded.png"
    with files.whole(path) as temporary:
        Image.fromarray(both).save(temporary, "png")
    print("palette:", ids[:config.colours])
    print("squares:", ids[config.colours:].reshape(config.grid), sep="\n")
    print(f"{psnr(picture, again):.2f} dB; both are in {files.quoted(path)}")


if __name__ == "__main__":
    files.command_line(main, "image")
