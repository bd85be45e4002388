"""The toy world: scenes of one or two coloured things, captioned, drawn, and written about.

sources/toyspeech.py speaks of them. The judges that read it all back are in sources/judges.py and
sources/speechjudge.py. All functions are pure: see `rng`.
"""
import functools
import itertools
from dataclasses import dataclass

import numpy as np

SIDE = 32  # picture side, pixels

COLOURS = {
    "red": (215, 35, 40),
    "green": (30, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 215, 30),
    "purple": (140, 40, 175),
    "orange": (245, 130, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
NOUNS = tuple(itertools.product(COLOURS, SHAPES))  # 30 pairs (colour, shape)
# Those that the split "seen" never shows, one of each colour. Nor does it say a multiple of seven.
UNSEEN = set(zip(COLOURS, "circle triangle cross square star circle".split(), strict=True))
SIZES = ("small", "large")
RADIUS = {"small": 5, None: 6, "large": 9}  # pixels. None: one of two things, whose size is unsaid
BACKGROUNDS = {
    "white": (250, 250, 250),
    "black": (8, 8, 8),
    "grey": (128, 128, 128),
    "pink": (255, 185, 205),
}
STEP = {  # down, across
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (-1, 0),
    "below": (1, 0),
}
RELATIONS = tuple(STEP)
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

UNITS = ["", *"one two three four five six seven eight nine".split()]
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBERS = UNITS + TEENS + [f"{ten} {unit}".rstrip() for ten in TENS for unit in UNITS]  # 0 is ""


@dataclass(frozen=True)
class Thing:
    colour: str
    shape: str
    size: str | None = None  # None for one of two things


@dataclass(frozen=True)
class Scene:
    """`things[0]` is `relation` `things[1]`. The relation is None for a single thing."""

    things: tuple
    relation: str | None
    background: str


@functools.cache
def choices(count, split):
    """All ordered choices of `count` different NOUNS: "unseen" if at least one is, else "seen"."""
    belong = []
    for chosen in itertools.permutations(NOUNS, count):
        is_new = not UNSEEN.isdisjoint(chosen)
        if is_new == (split == "unseen"):
            belong.append(chosen)
    return tuple(belong)


# Streams of random numbers: with equal seeds their users still draw unrelated ones.
SCENES, DRAW, PHRASES, SPEAK, PASSAGES, NOISE = range(1, 7)


def rng(seed, stream=0):
    """Counter-based generator: the same (seed, stream) always gives the same numbers."""
    return np.random.Generator(np.random.Philox(key=[seed, stream]))


def chooser(uniforms):
    """A function that picks one of its options, by the next of the numbers in [0, 1)."""
    rest = iter(uniforms)

    def pick(options):
        return options[int(next(rest) * len(options))]

    return pick


def scenes(n, seed, split="seen", things=None):
    """n random Scenes of `things` things: 1, 2, or None for half and half. split: see `choices`."""
    counts = (things,) if things else (2, 1)
    made = []
    for row in rng(seed, SCENES).random((n, 5)):
        pick = chooser(row)
        count = pick(counts)
        chosen = pick(choices(count, split))
        size = pick(SIZES)
        relation = pick(RELATIONS)
        background = pick(tuple(BACKGROUNDS))
        if count == 1:
            relation = None
        else:
            size = None
        parts = tuple(Thing(*noun, size) for noun in chosen)
        made.append(Scene(parts, relation, background))
    return made


def caption(scene):
    """Scene -> "a small red circle on white" or "a green star above an orange square on black"."""
    names = [noun_phrase(thing) for thing in scene.things]
    return f" {scene.relation} ".join(names) + f" on {scene.background}"


def noun_phrase(thing):
    """Thing -> "a small red circle" or "an orange star"."""
    words = [thing.size, thing.colour, thing.shape]
    name = " ".join(filter(None, words))
    article = "an" if name[0] in "aeiou" else "a"
    return f"{article} {name}"


# ------------------------------------------------------------------------------------------------
# Pictures.


def star(y, x):
    """An edge of the five-pointed star is a straight line between a tip and a notch."""
    tip, notch = 1.12, 0.46  # their distances from the centre
    half = np.pi / 5  # the angle between them
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * np.pi / 5) - half)  # from the nearest tip
    slant = tip * np.sin(angle) + notch * np.sin(half - angle)
    edge = tip * notch * np.sin(half) / slant
    return np.hypot(y, x) <= edge


INSIDE = {  # is a point (y down, x right) inside the shape, whose radius is 1?
    "circle": lambda y, x: y**2 + x**2 <= 1,
    "square": lambda y, x: np.maximum(abs(y), abs(x)) <= 0.88,
    "triangle": lambda y, x: (y <= 0.85) & (abs(x) <= 0.58 * (y + 1.0)),
    "star": star,
    "cross": lambda y, x: (np.maximum(abs(y), abs(x)) <= 1) & (np.minimum(abs(y), abs(x)) <= 0.3),
}


@functools.cache
def stamp(shape, radius):
    """The share of each pixel that a shape covers: (65, 65) float32 in [0, 1].

    The shape lies in the middle of a canvas that any picture around it fits into. Centres are
    whole pixels, so that one stamp serves all places. 8x8 points a pixel.
    """
    width = 2 * SIDE + 1
    points = (np.arange(width * 8) + 0.5) / 8 - (SIDE + 0.5)  # pixels from the centre
    inside = INSIDE[shape](points[:, None] / radius, points / radius)
    return inside.reshape(width, 8, width, 8).mean((1, 3)).astype(np.float32)


def coverage(shape, size, y, x):
    """The share of each pixel of a picture that a thing at (y, x) covers: (32, 32) float32."""
    top = SIDE - y
    left = SIDE - x
    return stamp(shape, RADIUS[size])[top : top + SIDE, left : left + SIDE]


def paint(background, things, places):
    """The picture of things whose centres are at places (y, x): (32, 32, 3) float32."""
    picture = np.full((SIDE, SIDE, 3), BACKGROUNDS[background], np.float32)
    for thing, (y, x) in zip(things, places):
        cover = coverage(thing.shape, thing.size, y, x)[:, :, None]
        picture += cover * (np.array(COLOURS[thing.colour], np.float32) - picture)
    return picture


def draw(scenes, seed):
    """Scenes -> pictures (N, 32, 32, 3) uint8.

    A single thing lies within 4 pixels of the middle. Two things lie within 2 pixels of 1/4 and
    3/4 along the axis of their relation. All moves are steps of 2 pixels, which halves the phases
    in a tokenizer's squares, down and across. The brightness varies by 2 grey levels.
    """
    r = rng(seed, DRAW)
    n = len(scenes)
    alone = 2 * r.integers(-2, 3, (n, 2))  # (N, 2): how far a single thing is off, (y, x)
    paired = 2 * r.integers(-1, 2, (n, 2, 2))  # (N, 2, 2): each of two things
    light = r.integers(-2, 3, (n, 1, 1, 1))
    pictures = np.empty((n, SIDE, SIDE, 3), np.uint8)
    for i, scene in enumerate(scenes):
        if scene.relation is None:
            places = [SIDE // 2 + alone[i]]
        else:
            step = SIDE // 4 * np.array(STEP[scene.relation])
            places = SIDE // 2 + np.stack((step, -step)) + paired[i]
        picture = paint(scene.background, scene.things, places)
        pictures[i] = np.clip(np.rint(picture + light[i]), 0, 255)
    return pictures


# ------------------------------------------------------------------------------------------------
# Passages: two to four sentences that agree. A writer gets a function that picks one of its
# options, and the names of two or three things. It returns the sentences.


def plural(name):
    return name + ("es" if name.endswith("s") else "s")


def write_inverse(pick, a, b):
    said = pick(RELATIONS)
    straight = f"the {a} is {said} the {b}"
    turned = f"so the {b} is {INVERSE[said]} the {a}"
    return [straight, turned]


def write_chain(pick, a, b, c):
    said = pick(RELATIONS)
    first = f"the {a} is {said} the {b}"
    second = f"the {b} is {said} the {c}"
    facts = pick(([first, second], [second, first]))
    straight = f"so the {a} is {said} the {c}"
    turned = f"so the {c} is {INVERSE[said]} the {a}"
    return [*facts, pick((straight, turned))]


def write_count(pick, a, b):
    m = pick(range(2, 7))
    n = pick(range(2, 7))
    fact = f"there are {NUMBERS[m]} {plural(a)} and {NUMBERS[n]} {plural(b)}"
    return [fact, f"so there are {NUMBERS[m + n]} shapes"]


def write_size(pick, a, b):
    facts = [f"the {a} is small", f"the {b} is large"]
    so = [f"so the {a} is smaller than the {b}", f"so the {b} is larger than the {a}"]
    return pick((facts, facts[::-1])) + pick((so, so[:1], so[1:]))


def write_colour(pick, a, b):
    facts = []
    for name in (a, b):
        colour, shape = name.split()
        facts.append(f"the {shape} is {colour}")
    answer = pick(facts)
    asked = answer.split()[1]
    return [*facts, f"what colour is the {asked}", answer]


WRITERS = {  # how many things each writes about
    write_inverse: 2,
    write_chain: 3,
    write_count: 2,
    write_size: 2,
    write_colour: 2,
}


@functools.cache
def subjects(writer, split):
    """All choices of NOUNS that a writer can write about in a split, see `choices`."""
    chosen = choices(WRITERS[writer], split)
    if writer is not write_colour:
        return chosen
    return tuple((a, b) for a, b in chosen if a[1] != b[1])  # "the star" must be one thing


def passages(n, seed, split="seen"):
    """n passages of 2 to 4 agreeing sentences, 14 to 30 words. split: see `choices`.

    Five writers: a relation and its inverse, a chain of relations, counting, sizes, and a question
    about a colour with its answer. "so" opens what follows from the sentences before.
    """
    writers = tuple(WRITERS)
    made = []
    for row in rng(seed, PASSAGES).random((n, 8)):
        pick = chooser(row)
        writer = pick(writers)
        names = [" ".join(noun) for noun in pick(subjects(writer, split))]
        made.append(". ".join(writer(pick, *names)) + ".")
    return made
