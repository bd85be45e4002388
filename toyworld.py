"""The toy world: one small world in three modalities, with judges that read them back.

Scenes of one or two coloured things are captioned, drawn (32x32 RGB), spoken (16 kHz, a formant
synthesiser) and written about (short passages whose sentences must agree). The judges are
deterministic: a renderer-based picture reader, a template-based speech reader and a parser. They
are never trained, so they can score a model without learning its habits.

All functions are pure: randomness is a Philox stream keyed by (seed, stream).
    python toyworld.py --out DIR      writes a contact sheet, some WAVs and passages to look at
"""
import argparse
import functools
import itertools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

# ------------------------------------------------------------------------------------- tables
SIDE = 32                # picture side, pixels
SAMPLE_RATE = 16000      # Hz
LONGEST = 1.45           # seconds; utterances that would last longer are spoken faster

COLOURS = {"red": (215, 35, 40), "green": (30, 160, 60), "blue": (40, 80, 220),
           "yellow": (240, 215, 30), "purple": (140, 40, 175), "orange": (245, 130, 20)}
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = ("small", "large")
BACKGROUNDS = {"white": (250, 250, 250), "black": (8, 8, 8), "grey": (128, 128, 128),
               "pink": (255, 185, 205)}
RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
STEP = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}  # (y, x)
RADIUS = {"small": 5, None: 6, "large": 9}   # pixels; None: one of two things, size unsaid

UNITS = "one two three four five six seven eight nine".split()
TEENS = ("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


@dataclass(frozen=True)
class Thing:
    colour: str
    shape: str
    size: str | None = None


@dataclass(frozen=True)
class Scene:
    """`things[0]` is `relation` `things[1]`; relation is None for a single thing."""
    things: tuple
    relation: str | None
    background: str


def rng(seed, stream=0):
    """Counter-based generator: the same (seed, stream) always gives the same numbers."""
    return np.random.Generator(np.random.Philox(key=[seed, stream]))


# streams, so that two functions called with the same seed draw unrelated numbers
SCENES, DRAW, PHRASES, SPEAK, PASSAGES, NOISE = range(1, 7)


# ------------------------------------------------------------------ what exists, seen and unseen
def unseen(colour, shape):
    """True for 6 of the 30 pairs, one a colour: they never occur in the split "seen"."""
    return (list(COLOURS).index(colour) + 2 * SHAPES.index(shape)) % 5 == 0


def unseen_number(n):
    """True for every seventh number: never spoken in the split "seen"."""
    return n % 7 == 0


KINDS = tuple(itertools.product(COLOURS, SHAPES))                    # 30 (colour, shape) pairs


@functools.cache
def kinds(count, split):
    """All ordered choices of `count` different (colour, shape) kinds that belong to `split`.

    seen: none of them is an unseen pair; unseen: at least one is."""
    if split not in ("seen", "unseen"):
        raise ValueError(f'split is "seen" or "unseen", not {split!r}')
    return tuple(chosen for chosen in itertools.permutations(KINDS, count)
                 if any(unseen(*kind) for kind in chosen) == (split == "unseen"))


def scenes(n, seed, split="seen", things=None):
    """n random scenes of `things` = 1, 2 or None (half and half) things -> list[Scene]."""
    if things not in (None, 1, 2):
        raise ValueError(f"things is 1, 2 or None, not {things!r}")
    draws = rng(seed, SCENES).random((n, 5))
    pick = lambda options, u: options[int(u * len(options))]
    backgrounds, made = tuple(BACKGROUNDS), []
    for u in draws:
        count = things or 1 + int(u[0] < 0.5)
        chosen = pick(kinds(count, split), u[1])
        size = pick(SIZES, u[2]) if count == 1 else None
        made.append(Scene(tuple(Thing(*kind, size) for kind in chosen),
                          pick(RELATIONS, u[3]) if count == 2 else None, pick(backgrounds, u[4])))
    return made


# ------------------------------------------------------------------------------------ captions
def caption(scene):
    """Scene -> "a small red circle on white" or "a green star above a blue square on black"."""
    names = ["a " + " ".join(filter(None, (t.size, t.colour, t.shape))) for t in scene.things]
    return f" {scene.relation} ".join(names) + f" on {scene.background}"


def _any(words):
    return "(" + "|".join(words) + ")"


KIND = f"{_any(COLOURS)} {_any(SHAPES)}"
ONE_THING = re.compile(f"a {_any(SIZES)} {KIND} on {_any(BACKGROUNDS)}")
TWO_THINGS = re.compile(f"a {KIND} {_any(RELATIONS)} a {KIND} on {_any(BACKGROUNDS)}")


def parse_caption(text):
    """The inverse of `caption`: Scene, or None where the text is not exactly a caption."""
    if match := ONE_THING.fullmatch(text):
        size, colour, shape, background = match.groups()
        return Scene((Thing(colour, shape, size),), None, background)
    if match := TWO_THINGS.fullmatch(text):
        colour, shape, relation, colour2, shape2, background = match.groups()
        if (colour, shape) != (colour2, shape2):
            return Scene((Thing(colour, shape), Thing(colour2, shape2)), relation, background)
    return None


# ------------------------------------------------------------------------------------ pictures
def inside(shape, y, x):
    """Is the point (y down, x right; the shape's radius is 1) inside the shape? Boolean array."""
    if shape == "circle":
        return y ** 2 + x ** 2 <= 1
    if shape == "square":
        return np.maximum(abs(y), abs(x)) <= 0.88
    if shape == "triangle":
        return (y <= 0.85) & (abs(x) <= 0.58 * (y + 1.0))
    if shape == "cross":
        return (np.maximum(abs(y), abs(x)) <= 1) & (np.minimum(abs(y), abs(x)) <= 0.3)
    # star: the edge of a five-pointed star is a straight line between a tip and a notch
    angle = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    tip, notch, half = 1.12, 0.46, np.pi / 5
    edge = tip * notch * np.sin(half) / (
        tip * np.sin(angle) + notch * np.sin(half - angle))
    return np.hypot(y, x) <= edge


@functools.cache
def stamp(shape, radius):
    """Coverage of each pixel by the shape centred on a canvas: (2*SIDE+1, 2*SIDE+1) in [0, 1].

    8x8 supersampling; centres are whole pixels, so that one stamp serves all positions."""
    fine = (np.arange((2 * SIDE + 1) * 8) + 0.5) / 8 - (SIDE + 0.5)       # pixels from the centre
    full = inside(shape, fine[:, None] / radius, fine[None, :] / radius)
    return full.reshape(2 * SIDE + 1, 8, 2 * SIDE + 1, 8).mean((1, 3)).astype(np.float32)


@functools.cache
def stamps():
    """All stamps: (len(RADIUS), len(SHAPES), 65, 65) float32."""
    return np.stack([[stamp(shape, radius) for shape in SHAPES] for radius in RADIUS.values()])


def masks(size_ids, shape_ids, ys, xs):
    """Coverage masks of things centred on pixels (ys, xs): four (N,) int arrays -> (N, 32, 32)."""
    windows = np.lib.stride_tricks.sliding_window_view(stamps(), (SIDE, SIDE), (2, 3))
    return windows[size_ids, shape_ids, SIDE - np.asarray(ys), SIDE - np.asarray(xs)]


def draw(scenes, seed):
    """Scenes -> pictures (N, 32, 32, 3) uint8.

    A single thing is centred within 4 px of the middle, two things sit within 2 px of 1/4 and 3/4
    along the axis of their relation (all in steps of 2 px, which halves the phases of a 4x4 grid);
    the whole picture's brightness varies by +-2 grey levels."""
    r = rng(seed, DRAW)
    n = len(scenes)
    jitter = 2 * r.integers(-2, 3, (n, 2)), 2 * r.integers(-1, 2, (n, 2, 2))
    light = r.integers(-2, 3, (n, 1, 1, 1))
    out = np.empty((n, SIDE, SIDE, 3), np.uint8)
    for i in range(0, n, 2048):                                             # to bound the memory
        part = slice(i, i + 2048)
        image = _paint(scenes[part], jitter[0][part], jitter[1][part])
        out[part] = np.clip(np.rint(image + light[part]), 0, 255)
    return out


def _paint(scenes, alone_jitter, pair_jitter):
    sizes, names = list(RADIUS), list(COLOURS)
    colours = np.array(list(COLOURS.values()), np.float32)
    image = np.empty((len(scenes), SIDE, SIDE, 3), np.float32)
    image[:] = np.array([BACKGROUNDS[s.background] for s in scenes],
                        np.float32).reshape(-1, 1, 1, 3)
    for which in (0, 1):
        rows = np.array([i for i, s in enumerate(scenes) if len(s.things) > which], int)
        if not len(rows):
            continue
        things = [scenes[i].things[which] for i in rows]
        step = np.array([STEP.get(scenes[i].relation, (0, 0)) for i in rows])     # (M, 2)
        alone = (step == 0).all(1)[:, None]
        sign = 1 if which == 0 else -1
        centre = SIDE // 2 + sign * step * (SIDE // 4) + np.where(alone, alone_jitter[rows],
                                                                 pair_jitter[rows, which])
        mask = masks([sizes.index(t.size) for t in things], [SHAPES.index(t.shape) for t in things],
                     *centre.T)[..., None]
        paint = colours[[names.index(t.colour) for t in things]][:, None, None]
        image[rows] += mask * (paint - image[rows])
    return image


# ------------------------------------------------------------------------------- picture judge
MISFIT = 26.0     # grey levels: largest root mean square difference from the best template
CONTRAST = 0.5    # each thing must explain at least this share of its own template's energy


@functools.cache
def picture_templates(pair):
    """All things that can be looked for: coverage (M, 1024) and (size, shape, y, x) ids (M, 4)."""
    sizes = (1,) if pair else (0, 2)
    span = range(5, 27) if pair else range(10, 23)
    ids = np.array(list(itertools.product(sizes, range(len(SHAPES)), span, span)))
    return masks(*ids.T).reshape(len(ids), -1), ids


def read_pictures(images, chunk=64):
    """Pictures (N, 32, 32, 3) uint8 -> list of N Scene or None, by comparison with templates.

    The background is the nearest to the border's median; then every thing at every position is
    compared in the least-squares sense, alone and (greedily) in pairs. None where the best scene
    is off by more than MISFIT grey levels, or a thing's gain is below CONTRAST of its energy."""
    found = []
    for start in range(0, len(images), chunk):
        found += _read_chunk(np.asarray(images[start:start + chunk], np.float32))
    return found


def _read_chunk(images):
    n = len(images)
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    grounds = np.array(list(BACKGROUNDS.values()), np.float32)
    ground = np.abs(np.median(border, 1)[:, None] - grounds).sum(-1).argmin(1)             # (N,)
    rest = (images - grounds[ground][:, None, None]).reshape(n, -1, 3)                 # (N, P, 3)
    paint = np.array(list(COLOURS.values()), np.float32) - grounds[ground][:, None]    # (N, C, 3)
    light = np.einsum("npk,nck->ncp", rest, paint)
    energy = (paint ** 2).sum(-1)[:, :, None]                                          # (N, C, 1)
    total = (rest ** 2).sum((1, 2))

    def fit(pair):                                        # what each thing takes off the misfit
        cover, ids = picture_templates(pair)
        own = energy * (cover ** 2).sum(1)                                             # (N, C, M)
        return 2 * light @ cover.T - own, own, ids

    def best(gain, own):
        at = gain.reshape(n, -1).argmax(1)
        top = np.take_along_axis(gain.reshape(n, -1), at[:, None], 1)[:, 0]
        share = top / np.take_along_axis(own.reshape(n, -1), at[:, None], 1)[:, 0]
        return at // gain.shape[2], at % gain.shape[2], top, share

    gain, own, ids1 = fit(False)
    alone = best(gain, own)
    gain, own, ids2 = fit(True)
    first = best(gain, own)
    apart = np.abs(ids2[None, :, 2:] - ids2[first[1]][:, None, 2:]).max(-1) >= 10      # (N, M)
    second = best(np.where(apart[:, None], gain, -np.inf), own)
    paired = (first[2] + second[2] > alone[2]) & (second[3] > CONTRAST)
    taken = np.where(paired, first[2] + second[2], alone[2])
    misfit = np.sqrt(np.maximum(total - taken, 0) / rest[0].size)
    share = np.where(paired, np.minimum(first[3], second[3]), alone[3])
    names, sizes, made = list(COLOURS), list(RADIUS), []
    for i in range(n):
        if misfit[i] > MISFIT or share[i] < CONTRAST:
            made.append(None)
            continue
        ids, picks = (ids2, (first, second)) if paired[i] else (ids1, (alone,))
        things = tuple(Thing(names[p[0][i]], SHAPES[ids[p[1][i]][1]], sizes[ids[p[1][i]][0]])
                       for p in picks)
        relation = None
        if paired[i]:
            dy, dx = ids[first[1][i]][2:] - ids[second[1][i]][2:]
            relation = (("above", "below")[int(dy > 0)] if abs(dy) > abs(dx)
                        else ("left of", "right of")[int(dx > 0)])
        made.append(Scene(things, relation, list(BACKGROUNDS)[ground[i]]))
    return made


def judge_scenes(read, wanted):
    """Compare what was read with what was wanted -> dict of (N,) arrays of 1, 0 or NaN.

    Keys all, background, count, colour, shape, size, relation; NaN where the wanted scene does
    not say it (size of two things, relation of one). Two things are matched in the order that
    agrees best, so "a above b" equals "b below a". None scores 0 throughout, on either side."""
    keys = ("all", "background", "count", "colour", "shape", "size", "relation")
    return dict(zip(keys, np.array([_judge(r, w) for r, w in zip(read, wanted, strict=True)],
                                   float).reshape(-1, len(keys)).T))


def _judge(read, wanted):
    pair = wanted is not None and len(wanted.things) == 2
    blank = (0, 0, 0, 0, 0, np.nan if pair else 0, 0 if pair else np.nan)
    if read is None or wanted is None:
        return blank
    orders = [(read.things, read.relation), (read.things[::-1], INVERSE.get(read.relation))]
    scores = []
    for things, relation in orders:
        same = len(things) == len(wanted.things)
        pairs = list(zip(things, wanted.things))
        marks = [same and all(getattr(a, key) == getattr(b, key) for a, b in pairs)
                 for key in ("colour", "shape", "size")]
        agree = sum((a.colour == b.colour) + (a.shape == b.shape) for a, b in pairs)
        related = same and relation == wanted.relation
        scores.append((agree, related, marks))
    _, related, (colour, shape, size) = max(scores, key=lambda s: s[:2])
    background = read.background == wanted.background
    count = len(read.things) == len(wanted.things)
    everything = background and count and colour and shape and (related if pair else size)
    return (everything, background, count, colour, shape, np.nan if pair else size,
            related if pair else np.nan)


# -------------------------------------------------------------------------------------- speech
# Segments of each phoneme: ms, F1, F2, F3 (Hz), then the levels of voice, breath (noise through
# the formants) and hiss (noise past them), and the hiss band's centre and width (Hz).
# Vowels: Peterson & Barney (1952), men; consonants: near Klatt (1980), Table III.
REST = (80, 500, 1500, 2500, 1.0, 0.0, 0.0, 4000, 1000)       # what a shorter row leaves out
PHONEMES = {
    "iy": [(120, 280, 2250, 2950)], "ih": [(75, 400, 1950, 2550)], "eh": [(95, 550, 1800, 2480)],
    "ae": [(110, 670, 1720, 2430)], "aa": [(120, 730, 1100, 2440)], "ao": [(125, 620, 950, 2410)],
    "i": [(75, 310, 2150, 2850, 0.85)], "or": [(100, 500, 860, 2350)],
   
    "ah": [(95, 640, 1190, 2390)], "uw": [(130, 310, 900, 2240)], "er": [(120, 480, 1330, 1680)],
    "ax": [(50, 500, 1400, 2450, 0.7)],
    "ey": [(70, 500, 1850, 2500), (70, 330, 2200, 2700)],
    "ay": [(95, 740, 1150, 2450), (70, 380, 2050, 2600)],
    "ow": [(70, 540, 1000, 2350), (75, 370, 800, 2300)],
    "w": [(60, 290, 640, 2150, 0.5)], "y": [(55, 270, 2150, 3000, 0.5)],
    "r": [(80, 320, 1080, 1400, 0.6)], "rr": [(65, 480, 1280, 1600, 0.85)],    # red, star
    "l": [(65, 350, 1200, 2900, 0.5)],
    "el": [(95, 420, 800, 2700, 0.7)],                                     # syllabic l: circle
    "m": [(85, 270, 1100, 2130, 0.55)], "n": [(85, 260, 1550, 2500, 0.5)],
    "ng": [(75, 270, 2000, 2700, 0.5)],
    "s": [(105, 320, 1500, 2550, 0, 0, 0.30, 6000, 1300)],
    "f": [(95, 340, 1100, 2080, 0, 0.02, 0.10, 5500, 3500)],
    "th": [(90, 320, 1300, 2540, 0, 0.02, 0.09, 6200, 3000)],
    "v": [(60, 230, 1100, 2080, 0.3, 0, 0.05, 5500, 3500)],
    "b": [(50, 200, 1000, 2150, 0.10), (8, 250, 1000, 2150, 0.3, 0, 0.15, 900, 700)],
    "d": [(45, 200, 1650, 2600, 0.10), (10, 250, 1650, 2600, 0.3, 0, 0.25, 4200, 1300)],
    "g": [(50, 200, 1550, 2150, 0.10), (16, 250, 1550, 2150, 0.2, 0, 0.32, 1500, 400)],
    "p": [(65, 300, 1000, 2150, 0), (8, 400, 1000, 2150, 0, 0, 0.22, 1000, 900),
          (35, 450, 1100, 2200, 0, 0.14)],
    "t": [(55, 300, 1700, 2600, 0), (12, 350, 1700, 2600, 0, 0, 0.42, 4800, 1500),
          (35, 400, 1700, 2600, 0, 0.10, 0.12, 4800, 1500)],
    "k": [(60, 300, 1550, 2200, 0), (18, 350, 1550, 2200, 0, 0, 0.45, 1700, 500),
          (50, 400, 1450, 2050, 0, 0.26)],
    "ty": [(42, 300, 1750, 2600, 0), (10, 350, 1750, 2600, 0, 0, 0.30, 4800, 1500),
           (18, 400, 1750, 2600, 0, 0.08, 0.05, 4800, 1500)],                # t of unstressed -ty
    "st": [(50, 300, 1700, 2600, 0), (12, 350, 1700, 2600, 0, 0, 0.30, 4500, 1500)],  # t after s
    "sk": [(55, 300, 1500, 2300, 0), (16, 350, 1400, 2200, 0, 0, 0.50, 1600, 500),
           (12, 350, 1300, 2200, 0, 0.15)],                  # k after s
    "tr": [(45, 300, 1600, 2300, 0), (12, 350, 1600, 2200, 0, 0, 0.5, 3200, 1200),
           (40, 350, 1400, 1900, 0, 0.06, 0.40, 2500, 700)],   # triangle
    "jh": [(30, 250, 1700, 2400, 0.15), (12, 280, 1800, 2500, 0, 0, 0.9, 3600, 1500),
           (80, 280, 1800, 2500, 0.25, 0, 0.8, 2800, 1000)],
}
LEXICON = dict(entry.strip().split(": ") for entry in """
a: ax; small: s m ao l; large: l aa rr jh; red: r eh d; green: g r iy n; blue: b l uw;
yellow: y eh l ow; purple: p er p el; orange: or rr ih n jh; circle: s er k el;
square: s sk w eh rr; triangle: tr r ay ae ng g el; star: s st aa rr; cross: k r ao s; one: w ah n;
two: t uw; three: th r iy; four: f or rr; five: f ay v; six: s ih k s; seven: s eh v ax n;
eight: ey t; nine: n ay n; ten: t eh n; eleven: ax l eh v ax n; twelve: t w eh l v;
thirteen: th er t iy n; fourteen: f or rr t iy n; fifteen: f ih f t iy n;
sixteen: s ih k s t iy n; seventeen: s eh v ax n t iy n; eighteen: ey t iy n;
nineteen: n ay n t iy n; twenty: t w eh n ty i; thirty: th er ty i; forty: f or rr ty i;
fifty: f ih f ty i; sixty: s ih k s ty i; seventy: s eh v ax n ty i; eighty: ey ty i;
ninety: n ay n ty i""".split(";"))
# pitch (Hz), time stretch, formant scale, breath mixed into the voice
VOICES = {"bass": (92, 1.04, 0.97, 0.01), "tenor": (125, 0.96, 1.02, 0.01),
          "alto": (178, 1.02, 1.13, 0.02), "soprano": (205, 1.0, 1.16, 0.02)}
HOP, WINDOW, FFT = 100, 400, 600           # samples: frames of 25 ms every 6.25 ms
BANDWIDTH = (70, 100, 140, 220, 300)       # Hz, of F1..F5
F4, F5 = 3500, 4500                        # Hz, the same for all phonemes


def number_words(n):
    """1..99 -> "forty two"."""
    words = ([""] + UNITS + TEENS)
    return words[n] if n < 20 else f"{TENS[n // 10 - 2]} {words[n % 10]}".strip()


def phrases(n, seed, split="seen"):
    """n spoken phrases, half "a small red circle", half numbers in words (1..99).

    The split "unseen" holds only unseen pairs and every-seventh numbers, "seen" none of them."""
    kinds(1, split)                                                # refuses an unknown split
    want = split == "unseen"
    numbers = [number_words(i) for i in range(1, 100) if unseen_number(i) == want]
    things = [f"a {size} {colour} {shape}" for size in SIZES for colour, shape in KINDS
              if unseen(colour, shape) == want]
    return [options[int(v * len(options))] for u, v in rng(seed, PHRASES).random((n, 2))
            for options in [things if u < 0.5 else numbers]]


@functools.cache
def segments(phrase):
    """All segments of a phrase: (S, 9) array as in PHONEMES; a KeyError names an unknown word."""
    rows = [row for word in phrase.split() for phoneme in LEXICON[word].split()
            for row in PHONEMES[phoneme]]
    return np.array([row + REST[len(row):] for row in rows], float)


def articulate(phrase, voice, u):
    """One utterance's frames: (F, 8) columns F1 F2 F3 voice breath hiss centre width, (F,) pitch.

    `u` (4,) in [-1, 1] varies pitch, rate, formant scale and melody. Formants move smoothly from
    one phoneme to the next (56 ms window), levels quickly (19 ms)."""
    pitch, stretch, scale, breath = VOICES[voice]
    table = segments(phrase)
    ms = table[:, 0] * stretch * (1 + 0.05 * u[1])
    ms[-4:] *= 1.15                                               # words are longer at the end
    if not table[0, 4:7].any():
        ms[0] = 12                                # no long silence before a first stop
    ms *= min(1, LONGEST * 1000 / ms.sum())
    ends = np.rint(np.cumsum(ms) / 1000 * SAMPLE_RATE / HOP).astype(int)
    track = np.repeat(table[:, 1:], np.diff(ends, prepend=0), axis=0)
    smooth = lambda x, k: np.convolve(np.pad(x, len(k) // 2, "edge"), k, "valid")
    slow, quick = np.hanning(11)[1:-1], np.array([0.25, 0.5, 0.25])
    for column in range(3):
        track[:, column] = smooth(track[:, column], slow / slow.sum())
    for column in range(3, 6):
        track[:, column] = smooth(track[:, column], quick)
    track[:, :3] *= scale * (1 + 0.015 * u[2])
    track[:, 4] += breath * track[:, 3]
    at = np.linspace(0, 1, len(track))
    glide = 1.10 - 0.28 * at + 0.05 * np.sin(2 * np.pi * (1.5 * at + u[3]))
    fade = np.minimum(1, np.minimum(at, 1 - at) * len(track) / 4)       # 20 ms in and out
    track[:, 3:6] *= fade[:, None]
    return track.astype(np.float32), pitch * (1 + 0.05 * u[0]) * glide


def speak(phrases, seed, voices=None):
    """Phrases -> list of float32 waves, 16 kHz, peak 0.9, at most 1.5 s.

    `voices`: a name of VOICES for each phrase; random when not given. Source and filter: harmonics
    of a gliding pitch (and noise) times the formants' frequency response, frame by frame, with
    overlap-add. All utterances of a chunk are one long signal with gaps."""
    if voices is None:
        voices = [list(VOICES)[i] for i in rng(seed, SPEAK).integers(0, len(VOICES), len(phrases))]
    u = rng(seed, SPEAK + 100).uniform(-1, 1, (len(phrases), 4))
    said = list(zip(phrases, voices, u))
    chunk = lambda start: _speak_chunk(said[start:start + 4], rng(seed, NOISE + 1000 * (start + 1)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:                # numpy computes outside Python's lock
        return [wave for waves in pool.map(chunk, range(0, len(phrases), 4)) for wave in waves]


def _speak_chunk(chunk, noise):
    gap = FFT // HOP                                                # frames between utterances
    frames, pitches, where, scales, tops, at = [], [], [], [], [], 0
    for phrase, voice, u in chunk:
        track, pitch = articulate(phrase, voice, u)
        where.append((at, at + len(track)))
        frames.append(np.pad(track, ((0, gap), (0, 0)), "edge"))
        frames[-1][len(track):, 3:6] = 0
        pitches.append(np.pad(pitch, (0, gap), "edge"))
        scales.append(np.full(len(pitches[-1]), VOICES[voice][2]))
        tops.append(np.full(len(pitches[-1]), 7600 // pitch.max()))
        at += len(track) + gap
    track, pitch, scale, top = map(np.concatenate, (frames, pitches, scales, tops))
    count = len(track)
    # the source: sum of cos(k phase), k = 1..K, in closed form (Dirichlet kernel), K*f0 < 7.6 kHz
    sample = np.arange(count * HOP + WINDOW)
    f0 = np.interp(sample / HOP, np.arange(count), pitch)
    phase = np.cumsum(2 * np.pi * f0 / SAMPLE_RATE) % (2 * np.pi)
    harmonics = top[np.minimum(sample // HOP, count - 1)]                             # K
    low = np.maximum(np.abs(np.sin(phase / 2)), 1e-6)
    source = (np.sin((harmonics + 0.5) * phase) / (2 * np.copysign(low, np.sin(phase / 2))) - 0.5)
    hiss = noise.standard_normal(len(source))
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    cut = lambda x: np.fft.rfft(np.lib.stride_tricks.sliding_window_view(
        x.astype(np.float32), WINDOW)[::HOP][:count] * window, FFT)                  # (F, bins)
    # the vocal tract, a cascade of resonances: 1 / prod(1 - (f/F)^2 + ifB/F^2) = (a - ib) / size
    f = (np.arange(FFT // 2 + 1) * SAMPLE_RATE / FFT).astype(np.float32)              # (bins,) Hz
    formants = np.concatenate([track[:, :3], np.outer(scale, (F4, F5)).astype(np.float32)], 1)
    a, b = np.float32(1), np.float32(0)
    for k, width in enumerate(BANDWIDTH):
        peak = formants[:, k, None] ** -2
        real, imaginary = 1 - f ** 2 * peak, f * np.float32(width) * peak
        a, b = a * real - b * imaginary, a * imaginary + b * real                     # (F, bins)
    size = a * a + b * b
    tract = np.empty(size.shape, np.complex64)
    tract.real, tract.imag = a / size, -b / size
    tilt = 1 / np.sqrt(1 + (f / 350) ** 2)                          # glottis and lips: -6 dB/octave
    band = np.exp(-0.5 * ((f - track[:, 6, None]) / track[:, 7, None]) ** 2)
    # each filter has unit root mean square gain, so that levels mean the same for all phonemes
    voice = track[:, 3] / np.sqrt(top.astype(np.float32) / 2 * ((1 / size) @ tilt ** 2) / len(f))
    breath = track[:, 4] / np.sqrt((1 / size).mean(1))
    hissing = track[:, 5] / np.sqrt((band ** 2).mean(1))
    sound, rustle = cut(source) * tilt, cut(hiss)
    spectrum = tract * (sound * voice[:, None] + rustle * breath[:, None])
    spectrum += rustle * (band * hissing[:, None])
    pieces = np.fft.irfft(spectrum, FFT)                       # (F, FFT)
    wave = np.zeros((count + FFT // HOP, HOP), np.float32)
    for k in range(FFT // HOP):                                     # overlap-add
        wave[k:k + count] += pieces[:, k * HOP:(k + 1) * HOP]
    out = []
    for start, end in where:                                        # frame k is centred at 2 HOP
        x = wave[start + 1:end + 3].ravel()
        out.append((x * (0.9 / np.abs(x).max())).astype(np.float32))
    return out


# -------------------------------------------------------------------------------- speech judge
TEMPLATE_SEED = 987654321     # `speak`'s seed for the judge's word templates: use it nowhere else
FAR = 0.68    # largest mean distance a frame to the best phrase, beyond it "" (measured: true
              # speech to 0.50, through Griffin-Lim to 0.65, long phrases backwards from 0.69)
FRAME, STRIDE, BANDS, KEPT = 512, 200, 26, 13     # samples, samples (12.5 ms), mel bands, cepstra
# a phrase's grammar: what may be said in each slot, and the slots it may follow (-1: the start)
SLOTS = ((("a",), (-1,)), (SIZES, (0,)), (tuple(COLOURS), (1,)), (SHAPES, (2,)),
         (tuple(UNITS + TEENS + TENS), (-1,)), (tuple(TENS), (-1,)), (tuple(UNITS), (5,)))
FINAL = (3, 4, 6)


@functools.cache
def mel_bands():
    """Triangular mel filters from 80 to 7600 Hz: (FRAME // 2 + 1, BANDS) float32."""
    mel = lambda f: 2595 * np.log10(1 + f / 700)
    f = mel(np.arange(FRAME // 2 + 1) * SAMPLE_RATE / FRAME)[:, None]
    edges = np.linspace(mel(80), mel(7600), BANDS + 2)
    return np.maximum(0, np.minimum((f - edges[:-2]) / (edges[1:-1] - edges[:-2]),
                                    (edges[2:] - f) / (edges[2:] - edges[1:-1]))).astype(np.float32)


def cepstra(wave):
    """Wave (samples,) -> features (T, 2 * KEPT): mel cepstra over 40 dB, and their slopes."""
    wave = np.pad(np.asarray(wave, np.float32), FRAME)
    frames = np.lib.stride_tricks.sliding_window_view(wave, FRAME)[::STRIDE]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME).astype(np.float32))) ** 2 @ mel_bands()
    log = np.log(np.maximum(power, max(float(power.max()), 1e-9) * 1e-4))             # (T, BANDS)
    log = (log - log.max()) / np.log(1e4) + 1                                         # in [0, 1]
    k = np.arange(KEPT)[:, None]
    cosine = np.cos(np.pi * k * (np.arange(BANDS) + 0.5) / BANDS).T * np.sqrt(2 / BANDS)
    cosine[:, 0] *= 0.5                                            # loudness counts for less
    c = log @ cosine
    return np.concatenate([c, 1.5 * np.gradient(c, axis=0)], 1).astype(np.float32)


@functools.cache
def word_templates():
    """Words of each slot, in each voice: features (nodes, J, 2*KEPT), frame counts, words, slots.

    Node = (slot, word, voice); a path through the grammar stays with one voice."""
    nodes = [(slot, word, voice) for slot, (words, _) in enumerate(SLOTS)
             for word in words for voice in VOICES]
    said = sorted({node[1:] for node in nodes})
    waves = speak([word for word, _ in said], TEMPLATE_SEED, [voice for _, voice in said])
    known = dict(zip(said, map(cepstra, waves)))
    count = np.array([len(known[node[1:]]) for node in nodes])
    features = np.zeros((len(nodes), count.max(), 2 * KEPT), np.float32)
    for i, node in enumerate(nodes):
        features[i, :count[i]] = known[node[1:]]
    return features, count, nodes


def read_speech(waves, chunk=16):
    """Waves (16 kHz) -> list of phrases: connected-word dynamic programming (Ney 1984).

    Every utterance is aligned with all phrases of the grammar at once; "" where even the best
    differs by more than FAR a frame. It can only read phrases, numbers included, that exist."""
    order = sorted(range(len(waves)), key=lambda i: len(waves[i]))         # like lengths together
    texts = [""] * len(waves)
    for start in range(0, len(order), chunk):
        some = order[start:start + chunk]
        for i, (text, distance) in zip(some, align([waves[i] for i in some])):
            texts[i] = text if distance <= FAR else ""
    return texts


def align(waves):
    """Best phrase and its mean distance a frame, for each wave -> list of (str, float)."""
    templates, count, nodes = word_templates()
    n, width, size = templates.shape
    slot = np.array([node[0] for node in nodes])
    voice = np.array([list(VOICES).index(node[2]) for node in nodes])
    heard = [cepstra(wave) for wave in waves]
    steps = np.array([len(x) for x in heard])
    x = np.stack([np.pad(h, ((0, steps.max() - len(h)), (0, 0))) for h in heard])       # (B, T, D)
    flat = templates.reshape(-1, size)
    b, own = len(waves), (flat ** 2).sum(1)
    unused = np.arange(width) >= count[:, None]                                         # (n, J)
    cost = np.full((b, n, width + 2), np.inf, np.float32)       # two columns before each template
    path = np.zeros((b, n, width + 2), np.int64)                # node ids + 1 so far, base n + 1
    every, last = np.arange(n), count + 1
    begins = np.array([-1 in after for _, after in SLOTS])[slot]
    result = [("", np.inf)] * b
    for t in range(steps.max()):
        # the entrance of a node: the start of the utterance, or the end of a node before it
        ends, trail = cost[:, every, last], path[:, every, last]                        # (b, n)
        enter = np.full((b, n), np.inf, np.float32)
        history = np.zeros((b, n), np.int64)
        if t == 0:
            enter[:, begins] = 0
        for k, (_, after) in enumerate(SLOTS):
            for v in range(len(VOICES)) if after[0] >= 0 else ():
                before = np.flatnonzero((slot == after[0]) & (voice == v))
                best = before[ends[:, before].argmin(1)]
                into = np.flatnonzero((slot == k) & (voice == v))
                enter[:, into] = ends[np.arange(b), best][:, None]
                history[:, into] = trail[np.arange(b), best][:, None]
        cost[:, :, 1], path[:, :, 1] = enter, history * (n + 1) + every + 1
        square = own - 2 * x[:, t] @ flat.T + (x[:, t] ** 2).sum(1, keepdims=True)
        distance = np.sqrt(np.maximum(square, 0)).reshape(b, n, width)
        distance[:, unused] = np.inf
        # stay (dearer, so that templates are not stretched for nothing), go on, or skip one
        options = [cost[:, :, 2:] + 0.02, cost[:, :, 1:-1], cost[:, :, :-2] + 0.02]
        new, code = options[1], path[:, :, 1:-1]
        for other, offset in ((options[0], 2), (options[2], 0)):
            better = other < new
            new = np.where(better, other, new)
            code = np.where(better, path[:, :, offset:offset + width], code)
        cost[:, :, 2:], path[:, :, 2:] = new + distance, code
        cost[:, :, 0] = np.inf
        for i in np.flatnonzero(steps == t + 1):
            final = np.where(np.isin(slot, FINAL), cost[i, every, last], np.inf)
            node = int(final.argmin())
            words, rest = [], int(path[i, node, last[node]])
            while rest:
                rest, one = divmod(rest, n + 1)
                words.append(nodes[one - 1][1])
            result[i] = " ".join(reversed(words)), float(final[node]) / (t + 1)
    return result


def words_right(texts, wanted):
    """1 - word edit distance / number of wanted words, floored at 0 -> (N,) floats.

    The article "a" is dropped on both sides: content words only, no marks for the article."""
    return np.array([_right(*([w for w in text.split() if w != "a"] for text in pair))
                     for pair in zip(texts, wanted, strict=True)], float)


def _right(said, wanted):
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return max(0.0, 1 - row[-1] / max(len(wanted), 1))


# ------------------------------------------------------------------------------------ passages
COUNTS = {number_words(i): i for i in range(2, 13)}
# each kind of sentence, as a pattern whose groups are what the checks below look at
THE = f"the ({'|'.join(' '.join(kind) for kind in KINDS)})"
SENTENCES = {
    "relation": f"{THE} is {_any(RELATIONS)} {THE}",
    "so relation": f"so {THE} is {_any(RELATIONS)} {THE}",
    "count": f"there are {_any(COUNTS)} {KIND}e?s and {_any(COUNTS)} {KIND}e?s",
    "so count": f"so there are {_any(COUNTS)} shapes",
    "size": f"{THE} is {_any(SIZES)}",
    "so size": f"so {THE} is (larger|smaller) than {THE}",
    "colour": f"the {_any(SHAPES)} is {_any(COLOURS)}",
    "ask colour": f"what colour is the {_any(SHAPES)}",
}
SENTENCES = {kind: re.compile(pattern) for kind, pattern in SENTENCES.items()}


def plural(name):
    return name + ("es" if name.endswith("s") else "s")


def write_inverse(pick, a, b):
    said = pick(RELATIONS)
    return [f"the {a} is {said} the {b}", f"so the {b} is {INVERSE[said]} the {a}"]


def write_chain(pick, a, b, c):
    said = pick(RELATIONS)
    first, second = f"the {a} is {said} the {b}", f"the {b} is {said} the {c}"
    return pick(([first, second], [second, first])) + [
        pick((f"so the {a} is {said} the {c}", f"so the {c} is {INVERSE[said]} the {a}"))]


def write_count(pick, a, b):
    names = list(COUNTS)
    m, n = pick(names[:5]), pick(names[:5])                                       # two to six
    return [f"there are {m} {plural(a)} and {n} {plural(b)}",
            f"so there are {names[COUNTS[m] + COUNTS[n] - 2]} shapes"]


def write_size(pick, a, b):
    facts = [f"the {a} is small", f"the {b} is large"]
    so = [f"so the {a} is smaller than the {b}", f"so the {b} is larger than the {a}"]
    return pick((facts, facts[::-1])) + pick((so, so[:1], so[1:]))


def write_colour(pick, a, b):
    facts = ["the {1} is {0}".format(*kind.split()) for kind in (a, b)]
    answer = pick(facts)
    return facts + [f"what colour is the {answer.split()[1]}", answer]


def check_relations(*sentences):
    """The conclusion follows from the premises, does not repeat one, and they do not clash."""
    facts = [(a, said, b) if said in ("left of", "above") else (b, INVERSE[said], a)
             for a, said, b in sentences]
    known = set(facts[:-1])
    known |= {(a, r, d) for a, r, b in known for c, q, d in known if (b, r) == (c, q)}
    clash = any(a == b or (b, r, a) in known for a, r, b in known)
    return not clash and facts[-1] in known and sentences[-1] not in sentences[:-1]


def check_count(things, total):
    m, colour, shape, n, colour2, shape2 = things
    return (colour, shape) != (colour2, shape2) and COUNTS[m] + COUNTS[n] == COUNTS[total[0]]


def check_size(first, second, *conclusions):
    size = dict((first, second))
    larger = {(a, b) if said == "larger" else (b, a) for a, said, b in conclusions}
    return (len(size) == 2 and len(set(conclusions)) == len(conclusions)
            and all((size.get(a), size.get(b)) == ("large", "small") for a, b in larger))


def check_colour(first, second, asked, answer):
    return first[0] != second[0] and asked[0] == answer[0] and answer in (first, second)


# the form of a passage (its kinds of sentences), and what makes it consistent
FORMS = {("relation", "so relation"): check_relations,
         ("relation", "relation", "so relation"): check_relations,
         ("count", "so count"): check_count, ("size", "size", "so size"): check_size,
         ("size", "size", "so size", "so size"): check_size,
         ("colour", "colour", "ask colour", "colour"): check_colour}
WRITERS = ((write_inverse, 2), (write_chain, 3), (write_count, 2), (write_size, 2),
           (write_colour, 2))


@functools.cache
def groups(writer, count, split):
    """The choices of kinds for one writer; asking for a shape's colour needs different shapes."""
    return tuple(chosen for chosen in kinds(count, split) if writer is not write_colour
                 or len({shape for _, shape in chosen}) == count)


def passages(n, seed, split="seen"):
    """n passages of 2 to 4 agreeing sentences, 14 to 30 words; splits as for scenes.

    Five forms: a relation and its inverse, a chain of relations, counting, sizes, and a question
    about a colour with its answer. "so" opens what follows from the sentences before."""
    made = []
    for row in rng(seed, PASSAGES).random((n, 8)):
        u = iter(row)
        pick = lambda options: options[int(next(u) * len(options))]
        writer, count = pick(WRITERS)
        names = [" ".join(kind) for kind in pick(groups(writer, count, split))]
        made.append(". ".join(writer(pick, *names)) + ".")
    return made


def parse_passage(text):
    """Its sentences, each as (kind in SENTENCES, what the pattern's groups hold); (None, ()) for one that is of no kind."""
    return [next(((kind, match.groups()) for kind, pattern in SENTENCES.items() if (match := pattern.fullmatch(sentence))),
                 (None, ())) for sentence in text.removesuffix(".").split(". ")]


def judge_passages(texts):
    """Passages -> {"grammatical": (N,) bool, "consistent": (N,) bool}.

    Grammatical: every sentence is in SENTENCES and their kinds make one of FORMS. Consistent:
    grammatical, and the sentences agree (what follows "so", or answers, follows from the rest)."""
    grammatical, consistent = np.zeros((2, len(texts)), bool)
    for i, text in enumerate(texts):
        found = parse_passage(text)
        check = FORMS.get(tuple(kind for kind, _ in found))
        grammatical[i] = text.endswith(".") and check is not None
        consistent[i] = grammatical[i] and check(*(fields for _, fields in found))
    return {"grammatical": grammatical, "consistent": consistent}


# ---------------------------------------------------------------------------------------- look
def main():
    parser = argparse.ArgumentParser(description="Write samples of the toy world to look at.")
    parser.add_argument("--out", default="toyworld", help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="which samples")
    parser.add_argument("--split", default="seen", choices=("seen", "unseen"))
    args = parser.parse_args()
    import pathlib
    import wave
    from PIL import Image, ImageDraw
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    shown = scenes(24, args.seed, args.split)
    sheet = Image.new("RGB", (4 * 300, 6 * 160), (235, 235, 235))
    for i, (scene, picture) in enumerate(zip(shown, draw(shown, args.seed))):
        x, y = i % 4 * 300, i // 4 * 160
        sheet.paste(Image.fromarray(picture).resize((128, 128), Image.NEAREST), (x + 86, y + 4))
        ImageDraw.Draw(sheet).text((x + 8, y + 138), caption(scene), fill=(0, 0, 0))
    sheet.save(out / "scenes.png")
    voices = list(VOICES) * 3
    said = phrases(len(voices), args.seed, args.split)
    for i, (text, voice, x) in enumerate(zip(said, voices, speak(said, args.seed, voices))):
        with wave.open(str(out / f"{i:02d} {voice} {text}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes((x * 32767).astype("<i2").tobytes())
    (out / "passages.txt").write_text("\n".join(passages(20, args.seed, args.split)) + "\n")
    print(f"{out}: scenes.png, {len(said)} WAV files, passages.txt")


if __name__ == "__main__":
    main()
