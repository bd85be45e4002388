"""The judges of the toy world: they read pictures, captions and passages back.

They are fixed rules and are never trained. So they score a model without learning its habits.
"""
import functools
import itertools
import re
from typing import NamedTuple

import numpy as np

from sources import toyworld
from sources.toyworld import (BACKGROUNDS, COLOURS, INVERSE, KINDS, NUMBERS, RELATIONS, SHAPES,
                              SIZES, STEP, Scene, Thing)

# ------------------------------------------------------------------------------------------------
# Pictures. Every thing at every place is compared with the picture, by least squares. What fits
# best, one thing or two, is drawn again. The drawing must agree with the picture everywhere.

CHUNK = 64  # pictures that are compared at once, which bounds the memory
LOOKED_FOR = {  # one thing or two: their sizes, and where the centre may be, down and across
    1: (SIZES, range(10, 23)),
    2: ((None,), range(5, 27)),
}
APART = 10  # pixels between the centres of two things, down or across
WINDOW = 4  # pixels: side of the squares in which picture and drawing are compared
TOLERANCE = 0.45  # largest misfit. What a tokenizer of 34 dB leaves of a picture is below it


class Found(NamedTuple):
    """A thing that was found, and where. gain: the squared error that it explains."""

    gain: float
    thing: Thing
    y: int
    x: int


@functools.cache
def templates(count):
    """What is looked for: M tuples (shape, size, y, x), their coverage (M, 1024), places (M, 2)."""
    sizes, span = LOOKED_FOR[count]
    made = list(itertools.product(SHAPES, sizes, span, span))
    cover = [toyworld.coverage(*template).ravel() for template in made]
    places = [template[2:] for template in made]
    return made, np.stack(cover), np.array(places)


def read_pictures(images):
    """Pictures (N, 32, 32, 3) uint8 -> the scenes in them, a list of N Scene or None.

    None: in some square of WINDOW x WINDOW pixels, the best scene does not look like the picture.
    """
    read = []
    for start in range(0, len(images), CHUNK):
        pictures = np.asarray(images[start : start + CHUNK], np.float32)
        backgrounds = [background_of(picture) for picture in pictures]
        single = explained(pictures, backgrounds, count=1)  # (CHUNK, M, C)
        paired = explained(pictures, backgrounds, count=2)
        for i, background in enumerate(backgrounds):
            found = find_things(single[i], paired[i])
            agrees = misfit(pictures[i], background, found) <= TOLERANCE
            read.append(scene_of(background, found) if agrees else None)
    return read


def background_of(picture):
    """The background that is nearest to the median of the border."""
    border = np.concatenate((picture[0], picture[-1], picture[:, 0], picture[:, -1]))  # (128, 3)
    ground = np.median(border, axis=0)
    distance = np.abs(list(BACKGROUNDS.values()) - ground).sum(1)
    return list(BACKGROUNDS)[distance.argmin()]


def explained(pictures, backgrounds, count):
    """The squared error that each template in each colour takes off the empty picture: (N, M, C).

    With r = picture - background and p = cover * (colour - background), it is
    |r|^2 - |r - p|^2 = 2 r.p - |p|^2. pictures (N, 32, 32, 3), count: see `templates`.
    """
    cover = templates(count)[1]  # (M, 1024)
    colours = np.array(list(COLOURS.values()), np.float32)  # (C, 3)
    grounds = np.array([BACKGROUNDS[name] for name in backgrounds], np.float32)[:, None]
    paints = colours - grounds  # (N, C, 3)
    rest = pictures.reshape(len(pictures), -1, 3) - grounds  # (N, 1024, 3)
    under = np.tensordot(rest, cover, (1, 1)).swapaxes(1, 2)  # (N, M, 3)
    areas = (cover**2).sum(1, keepdims=True)  # (M, 1)
    energies = areas * (paints**2).sum(2)[:, None]  # (N, M, C)
    return 2 * under @ paints.swapaxes(1, 2) - energies


def find_things(single_gains, paired_gains):
    """The one or two things that explain most of a picture: a list of Found."""
    alone = best(single_gains, 1)
    first = best(paired_gains, 2)
    distance = np.abs(templates(2)[2] - (first.y, first.x)).max(1)  # (M,)
    second = best(np.where(distance[:, None] >= APART, paired_gains, -np.inf), 2)
    if first.gain + second.gain > alone.gain:
        return [first, second]
    return [alone]


def best(gains, count):
    """What explains most, a Found. gains (M, C): what `explained` says of the picture."""
    template, colour = np.unravel_index(gains.argmax(), gains.shape)
    shape, size, y, x = templates(count)[0][template]
    return Found(gains[template, colour], Thing(list(COLOURS)[colour], shape, size), y, x)


def misfit(picture, background, found):
    """The largest error of a drawing of what was found in any WINDOW x WINDOW square of a picture.

    RMS over pixels and channels, in units of the contrast between the background and the faintest
    thing. A part of a thing that is missing has an error of about 1. So has a stray patch.
    """
    drawn = toyworld.paint(background, [(each.thing, each.y, each.x) for each in found])
    squares = ((picture - drawn) ** 2).mean(2)  # (32, 32)
    windows = np.lib.stride_tricks.sliding_window_view(squares, (WINDOW, WINDOW))
    paints = np.array([COLOURS[each.thing.colour] for each in found]) - BACKGROUNDS[background]
    contrast = (paints**2).mean(1).min()
    return np.sqrt(windows.mean((2, 3)).max() / contrast)


def scene_of(background, found):
    """The Scene of what was found. Of two things' relation, the step goes furthest to the first."""
    def along(relation):
        down, across = STEP[relation]
        return down * (found[0].y - found[1].y) + across * (found[0].x - found[1].x)

    relation = max(RELATIONS, key=along) if len(found) == 2 else None
    return Scene(tuple(each.thing for each in found), relation, background)


MARKS = ("all", "background", "count", "colour", "shape", "size", "relation")


def judge_scenes(read, wanted):
    """Compare N scenes that were read with those that were wanted: {mark: (N,)} of 1, 0 or NaN.

    NaN where the wanted scene does not say it: the size of two things, the relation of one. "a
    above b" equals "b below a". None, on either side, gets 0 throughout.
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
        turned = Scene(read.things[::-1], INVERSE.get(read.relation), read.background)
        scene = max(read, turned, key=lambda scene: agreement(scene, wanted))
        marks["all"] = scene == wanted
        marks["background"] = scene.background == wanted.background
        marks["count"] = len(scene.things) == len(wanted.things)
        for key in ("colour", "shape", "size"):
            marks[key] = values(scene, key) == values(wanted, key)
        marks["relation"] = scene.relation == wanted.relation
    pair = wanted is not None and len(wanted.things) == 2
    marks["size" if pair else "relation"] = np.nan
    return marks


def values(scene, key):
    """The colours, shapes or sizes of a scene's things."""
    return [getattr(thing, key) for thing in scene.things]


def agreement(scene, wanted):
    """How much of two scenes agrees, thing by thing and then in relation."""
    same = 0
    for a, b in zip(scene.things, wanted.things):
        same += (a.colour == b.colour) + (a.shape == b.shape)
    return same, scene.relation == wanted.relation


# ------------------------------------------------------------------------------------------------
# Captions.


@functools.cache
def all_captions():
    """The 14,160 captions of the toy world: {caption: scene}."""
    made = []
    for background in BACKGROUNDS:
        for kind, size in itertools.product(KINDS, SIZES):
            made.append(Scene((Thing(*kind, size),), None, background))
        for a, b in itertools.permutations(KINDS, 2):
            things = (Thing(*a), Thing(*b))
            made += [Scene(things, relation, background) for relation in RELATIONS]
    return {toyworld.caption(scene): scene for scene in made}


def parse_caption(text):
    """The scene of a caption, or None where the text is not exactly a caption."""
    return all_captions().get(text)


# ------------------------------------------------------------------------------------------------
# Passages. The groups of a sentence's pattern are the fields that the checks below look at.


def one_of(words):
    return f"({'|'.join(words)})"


COUNTS = {NUMBERS[n]: n for n in range(2, 13)}
NAMES = [f"{colour} {shape}" for colour, shape in KINDS]
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
    """The kinds of a passage's sentences, as in SENTENCES or None, and the fields of each."""
    sentences = text.removesuffix(".").split(". ")
    kinds, fields = zip(*map(parse_sentence, sentences))
    return kinds, fields


def parse_sentence(sentence):
    for kind, pattern in SENTENCES.items():
        match = re.fullmatch(pattern, sentence)
        if match:
            return kind, match.groups()
    return None, ()


def check_inverse(premise, conclusion):
    a, said, b = premise
    return a != b and conclusion == (b, INVERSE[said], a)


def check_chain(first, second, conclusion):
    """a is left of b, and b of c: so is a of c. The conclusion needs both premises."""
    early, late = straight(first), straight(second)
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
    return name != other and COUNTS[m] + COUNTS[n] == COUNTS[total[0]]


def check_size(first, second, *conclusions):
    """One is small and one is large. The conclusions say so, each in another way."""
    sizes = dict((first, second))
    for a, said, b in conclusions:
        right = ("large", "small") if said == "larger" else ("small", "large")
        if (sizes.get(a), sizes.get(b)) != right:
            return False
    return len(set(conclusions)) == len(conclusions)


def check_colour(first, second, asked, answer):
    different = first[0] != second[0]
    return different and asked[0] == answer[0] and answer in (first, second)


FORMS = {  # the kinds of a passage's sentences, and what makes them consistent
    ("relation", "so relation"): check_inverse,
    ("relation", "relation", "so relation"): check_chain,
    ("count", "so count"): check_count,
    ("size", "size", "so size"): check_size,
    ("size", "size", "so size", "so size"): check_size,
    ("colour", "colour", "ask colour", "colour"): check_colour,
}


def judge_passages(texts):
    """Passages -> {"grammatical": (N,) bool, "consistent": (N,) bool}.

    Grammatical: the kinds of the sentences make one of FORMS. Consistent: grammatical, and what
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
