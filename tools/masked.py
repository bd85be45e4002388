"""What the ids of a member look like while some are masked: pictures, spectrograms, pieces of text.

The page and the terminal (tools/page.py, tools/watch.py) show films with it.
"""
import numpy as np

from data import MASK

GREY = 187  # of what is masked


def greyed(pixels, masked):
    """Blend the masked share (h, w) in [0, 1] of pixels (H, W, C) into grey."""
    height = pixels.shape[0] // masked.shape[0]
    width = pixels.shape[1] // masked.shape[1]
    share = masked.repeat(height, 0).repeat(width, 1)                     # (H, W)
    share = share[:, :, None]
    return pixels * (1 - share) + GREY * share


def rgba(pixels, visible):
    """Pixels (H, W, 1 or 3) in 0..255 -> uint8 (H, W, 4). visible: (H, 1) or (W,) bool."""
    shown = np.empty((*pixels.shape[:2], 4), np.uint8)
    shown[:, :, :3] = pixels.round()
    shown[:, :, 3] = 255 * visible
    return shown


def masked_picture(run, ids):
    """Ids of a picture (slot,) -> uint8 (4 + H, W, 4): it under a strip of its colours."""
    tokenizer = run.tokenizers["image"]
    masked = ids == MASK
    codes = run.stream.to_codes("image", ids)  # masks read as 0
    count = tokenizer.config.colours
    palette = tokenizer.colours_of(codes[:count])                         # (K, C)
    palette[masked[:count]] = GREY
    pixels = tokenizer.shares_of(codes[None, count:])[0] @ palette        # (H, W, C)
    squares = masked[count:].reshape(tokenizer.config.grid)
    pixels = greyed(pixels, squares)
    width = pixels.shape[1]
    column = np.arange(width)
    strip = palette[column * count // width]                              # (W, C)
    pixels = np.concatenate(([strip] * 4, pixels))
    return rgba(pixels, np.arange(len(pixels))[:, None] != 3)  # a gap below the strip


HEAT = np.array([  # loudness from 0 to 1 -> red, green, blue
    (0.00, 8, 8, 30),
    (0.35, 80, 30, 130),
    (0.70, 235, 110, 70),
    (1.00, 255, 250, 200),
])


def spectrogram(magnitudes):
    """Magnitudes (bins, T) -> (H, T, 3): up to 5 kHz over 60 dB, a column of pixels a frame."""
    heard = magnitudes[:320:4].clip(1e-5)
    decibels = 20 * np.log10(heard)
    loudness = 1 + (decibels - decibels.max()) / 60
    stops, *colours = HEAT.T
    channels = [np.interp(loudness, stops, colour) for colour in colours]
    return np.dstack(channels)[::-1]


def masked_clip(run, ids):
    """Ids of a clip (slot,) -> uint8 (H, T, 4): its spectrogram, nothing behind its end."""
    groups, size = run.stream.codes["speech"]
    masked = ids == MASK
    first, _ = run.stream.ranges("speech", np.arange(len(ids)))
    codes = np.where(masked, 0, ids - first)
    over = np.logical_or.accumulate(codes >= size)
    codes[over] = 0
    magnitudes = run.tokenizers["speech"].magnitudes([codes])[0]          # (bins, T)
    pixels = spectrogram(magnitudes.numpy())                              # (H, T, 3)
    share = masked.reshape(1, -1, groups).mean(2)                         # (1, steps)
    pixels = greyed(pixels, share)
    there = ~over[groups - 1::groups]                                     # (steps,)
    frames = pixels.shape[1] // len(there)  # of a step
    return rgba(pixels, there.repeat(frames))


def pieces(run, ids, sure):
    """Ids of a text (slot,) and the probability of each -> [(string, or None for a mask;
    probability)] up to its end. Tokens that share a character are one piece."""
    codes = run.stream.to_codes("text", ids)
    codes[ids[:len(codes)] == MASK] = -1
    found = []
    first = 0
    for last, code in enumerate(codes, 1):
        text = None
        if code >= 0:
            text = run.tokenizers["text"].decode([codes[first:last]])[0]
            goes_on = last < len(codes) and codes[last] >= 0
            if goes_on and text.endswith("\ufffd"):  # in the middle of a character
                continue
        found.append((text, sure[first:last].min()))
        first = last
    return found
