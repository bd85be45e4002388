"""The judges of the toy world: they read pictures, captions and passages back.

They are fixed rules and are never trained. So they score a model without learning its habits.
"""
import functools
import itertools
import re

import numpy as np

from sources import toyworld
from sources.toyworld import (BACKGROUNDS, COLOURS, INVERSE, NOUNS, NUMBERS, RELATIONS, SHAPES,
                              SIDE, SIZES, STEP, Scene, Thing)

# ------------------------------------------------------------------------------------------------
# Pictures. Every thing, wherever the world draws one, is compared with the picture, by least
# squares. What fits best, one or two, is drawn again. The drawing must agree everywhere.

WINDOW = 4  # pixels: side of the squares in which picture and drawing are compared
TOLERANCE = 0.45  # largest misfit. What a tokenizer of 34 dB leaves of a picture is below it


@functools.cache
def templates(side):
    """What is looked for on a side of the middle, None: in it. M tuples (shape, size, y, x), their
    coverage (M, 1024), its energy (M,)."""
    y, x = SIDE // 2 + SIDE // 4 * np.array(STEP.get(side, (0, 0)))
    sizes = (None,) if side else SIZES
    made = list(itertools.product(SHAPES, sizes, range(y - 4, y + 5), range(x - 4, x + 5)))
    cover = np.stack([toyworld.coverage(*template).ravel() for template in made])
    return made, cover, (cover**2).sum(1)


def read_pictures(images):
    """Pictures (N, 32, 32, 3) uint8 -> list of N Scene, or None where the best one does not fit."""
    return [read_picture(np.asarray(image, np.float32)) for image in images]


def read_picture(picture):
    """One thing in the middle, or two on either side of it: what explains more of the picture."""
    background = background_of(picture)
    found = {side: find(picture, background, side) for side in (None, *RELATIONS)}

    def explained(sides):
        return sum(found[side][0] for side in sides)

    sides = max([(None,), ("left of", "right of"), ("above", "below")], key=explained)
    things = tuple(found[side][1] for side in sides)
    places = [found[side][2] for side in sides]
    if misfit(picture, background, things, places) > TOLERANCE:
        return None
    return Scene(things, sides[0], background)


def background_of(picture):
    """The background that is nearest to the median of the border."""
    border = np.concatenate((picture[0], picture[-1], picture[:, 0], picture[:, -1]))  # (128, 3)
    ground = np.median(border, axis=0)

    def distance(name):
        return np.abs(BACKGROUNDS[name] - ground).sum()

    return min(BACKGROUNDS, key=distance)


def find(picture, background, side):
    """The thing on a side that explains most: by how much, the Thing, its place (y, x).

    That is the squared error that it takes off the empty picture. With r = picture - background and
    p = cover * (colour - background), it is |r|^2 - |r - p|^2 = 2 r.p - |p|^2.
    """
    made, cover, energy = templates(side)
    ground = np.array(BACKGROUNDS[background], np.float32)
    paints = np.array(list(COLOURS.values()), np.float32) - ground  # (C, 3)
    under = cover @ (picture.reshape(-1, 3) - ground)  # (M, 3)
    gains = 2 * under @ paints.T - np.outer(energy, (paints**2).sum(1))  # (M, C)
    template, colour = np.unravel_index(gains.argmax(), gains.shape)
    shape, size, y, x = made[template]
    return gains[template, colour], Thing(list(COLOURS)[colour], shape, size), (y, x)


def misfit(picture, background, things, places):
    """The largest error of a drawing of the things in any WINDOW x WINDOW square of the picture.

    RMS over pixels and channels, in units of the contrast between the background and the faintest
    thing. A part of a thing that is missing has an error of about 1. So has a stray patch.
    """
    drawn = toyworld.paint(background, things, places)
    squares = ((picture - drawn) ** 2).mean(2)  # (32, 32)
    windows = np.lib.stride_tricks.sliding_window_view(squares, (WINDOW, WINDOW))
    paints = np.array([COLOURS[thing.colour] for thing in things]) - BACKGROUNDS[background]
    contrast = (paints**2).mean(1).min()
    worst = windows.mean((2, 3)).max()
    return np.sqrt(worst / contrast)


MARKS = ("all", "background", "count", "colour", "shape", "size", "relation")


def judge_scenes(read, wanted):
    """Compare N scenes that were read with those that were wanted: {mark: (N,)} of 1, 0 or NaN.

    NaN where the wanted scene does not say it: the size of two things, the relation of one. "a
    above b" equals "b below a". None, on either side, gets 0 wherever it does not get NaN.
    """
    marks = [compare(r, w) for r, w in zip(read, wanted, strict=True)]
    columns = {}
    for key in MARKS:
        columns[key] = np.array([each[key] for each in marks], float)
    return columns


def compare(read, wanted):
    """The marks of one scene, see `judge_scenes`: {mark: True, False or NaN}."""
    marks = dict.fromkeys(MARKS, False)
    if read is not None and wanted is not None:
        scene = read
        turned = Scene(read.things[::-1], INVERSE.get(read.relation), read.background)
        if agreement(turned, wanted) > agreement(read, wanted):
            scene = turned
        marks["all"] = scene == wanted
        marks["background"] = scene.background == wanted.background
        marks["count"] = len(scene.things) == len(wanted.things)
        for key in ("colour", "shape", "size"):
            marks[key] = values(scene, key) == values(wanted, key)
        marks["relation"] = scene.relation == wanted.relation
    unsaid = "relation"
    if wanted is not None and len(wanted.things) == 2:
        unsaid = "size"
    marks[unsaid] = np.nan
    return marks


def values(scene, key):
    """The colours, shapes or sizes of a scene's things."""
    return [getattr(thing, key) for thing in scene.things]


def agreement(scene, wanted):
    """How much of two scenes agrees, thing by thing and then in relation."""
    same = 0
    for a, b in zip(scene.things, wanted.things):
        same += a.colour == b.colour
        same += a.shape == b.shape
    return same, scene.relation == wanted.relation


# ------------------------------------------------------------------------------------------------
# Captions.


@functools.cache
def all_captions():
    """The 14,160 captions of the toy world: {caption: scene}."""
    made = []
    for background in BACKGROUNDS:
        for noun, size in itertools.product(NOUNS, SIZES):
            made.append(Scene((Thing(*noun, size),), None, background))
        for a, b in itertools.permutations(NOUNS, 2):
            things = (Thing(*a), Thing(*b))
            for relation in RELATIONS:
                made.append(Scene(things, relation, background))
    return {toyworld.caption(scene): scene for scene in made}


def parse_caption(text):
    """The scene of a caption, or None where the text is not exactly a caption."""
    return all_captions().get(text)


# ------------------------------------------------------------------------------------------------
# Passages. The groups of a sentence's pattern are the fields that the checks below look at.


def one_of(words):
    return f"({'|'.join(words)})"


COUNTS = {NUMBERS[n]: n for n in range(2, 13)}
NAMES = [f"{colour} {shape}" for colour, shape in NOUNS]
THE = f"the {one_of(NAMES)}"
MANY = f"{one_of(COUNTS)} {one_of(map(toyworld.plural, NAMES))}"
RELATION = one_of(RELATIONS)
SHAPE = one_of(SHAPES)
SENTENCES = {
    "relation": f"{THE} is {RELATION} {THE}",
    "so relation": f"so {THE} is {RELATION} {THE}",
    "count": f"there are {MANY} and {MANY}",
    "so count": f"so there are {one_of(COUNTS)} shapes",
    "size": f"{THE} is {one_of(SIZES)}",
    "so size": f"so {THE} is (larger|smaller) than {THE}",
    "colour": f"the {SHAPE} is {one_of(COLOURS)}",
    "ask colour": f"what colour is the {SHAPE}",
}


def parse_passage(text):
    """The form of a passage, a name of SENTENCES or None for each, and the fields of each."""
    form = []
    fields = []
    for sentence in text.removesuffix(".").split(". "):
        name, found = parse_sentence(sentence)
        form.append(name)
        fields.append(found)
    return tuple(form), fields


def parse_sentence(sentence):
    for name, pattern in SENTENCES.items():
        match = re.fullmatch(pattern, sentence)
        if match:
            return name, match.groups()
    return None, ()


def check_inverse(premise, conclusion):
    a, said, b = premise
    return a != b and conclusion == (b, INVERSE[said], a)


def check_chain(first, second, conclusion):
    """a is left of b, and b of c: so is a of c. The conclusion needs both premises."""
    early = straight(first)
    late = straight(second)
    if early[2] != late[0]:
        early, late = late, early
    a, relation, b = early
    c = late[2]
    linked = late == (b, relation, c) and len({a, b, c}) == 3
    return linked and straight(conclusion) == (a, relation, c)


def straight(fact):
    """The same fact with "left of" or "above" alone."""
    a, said, b = fact
    if said in ("left of", "above"):
        return fact
    return b, INVERSE[said], a


def check_count(things, total):
    m, name, n, other = things
    added = COUNTS[m] + COUNTS[n]
    return name != other and added == COUNTS[total[0]]


def check_size(first, second, *conclusions):
    """One is small and one is large. The conclusions say so, each in another way."""
    sizes = dict((first, second))
    for a, said, b in conclusions:
        if said == "larger":
            a, b = b, a
        if (sizes.get(a), sizes.get(b)) != ("small", "large"):
            return False
    return len(set(conclusions)) == len(conclusions)


def check_colour(first, second, asked, answer):
    different = first[0] != second[0]
    return different and asked[0] == answer[0] and answer in (first, second)


FORMS = {  # of passages, and what makes each consistent
    ("relation", "so relation"): check_inverse,
    ("relation", "relation", "so relation"): check_chain,
    ("count", "so count"): check_count,
    ("size", "size", "so size"): check_size,
    ("size", "size", "so size", "so size"): check_size,
    ("colour", "colour", "ask colour", "colour"): check_colour,
}


def judge_passages(texts):
    """Passages -> {"grammatical": (N,) bool, "consistent": (N,) bool}.

    Grammatical: the sentences make one of FORMS. Consistent: grammatical, and what
    follows "so", or answers a question, follows from the other sentences.
    """
    grammatical = np.zeros(len(texts), bool)
    consistent = np.zeros(len(texts), bool)
    for i, text in enumerate(texts):
        form, fields = parse_passage(text)
        if form in FORMS and text.endswith("."):
            grammatical[i] = True
            consistent[i] = FORMS[form](*fields)
    return {"grammatical": grammatical, "consistent": consistent}


def variety(texts):
    """How evenly passages use the forms: exp(entropy of their shares) / number of forms.

    1 if all are equally frequent, 0 if no passage has a form. The world's own passages: 0.95.
    """
    forms = [parse_passage(text)[0] for text in texts]
    counts = np.array([forms.count(form) for form in FORMS])
    counts = counts[counts > 0]
    if not counts.size:
        return 0.0
    shares = counts / counts.sum()
    entropy = -(shares * np.log(shares)).sum()
    return float(np.exp(entropy) / len(FORMS))
