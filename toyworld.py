"""The toy world: one small world in three modalities, with judges that read them back.

Scenes of one or two coloured things are captioned, drawn (32x32 RGB), spoken (`toyspeech.py`)
and written about (short passages whose sentences must agree). The judges are deterministic: a
renderer-based picture reader, a template-based speech reader and a parser. They are never
trained, so they can score a model without learning its habits.

All functions are pure: randomness is a Philox stream keyed by (seed, stream).
    python toyworld.py --out DIR      writes a contact sheet, some WAVs and passages to look at
"""
import argparse
import functools
import itertools
import re
from dataclasses import dataclass

import numpy as np

# ------------------------------------------------------------------------------------- tables
SIDE = 32                # picture side, pixels

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
    return SHAPES.index(shape) == 2 * list(COLOURS).index(colour) % len(SHAPES)


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
    """Scene -> "a small red circle on white" or "a green star above an orange square on black"."""
    names = [" ".join(filter(None, (t.size, t.colour, t.shape))) for t in scene.things]
    return f" {scene.relation} ".join(map(with_article, names)) + f" on {scene.background}"


def with_article(name):
    return ("an " if name[0] in "aeiou" else "a ") + name


def _any(words):
    return "(" + "|".join(words) + ")"


KIND = f"{_any(COLOURS)} {_any(SHAPES)}"
ONE_THING = re.compile(f"a {_any(SIZES)} {KIND} on {_any(BACKGROUNDS)}")
TWO_THINGS = re.compile(f"an? {KIND} {_any(RELATIONS)} an? {KIND} on {_any(BACKGROUNDS)}")


def parse_caption(text):
    """The inverse of `caption`: Scene, or None where the text is not exactly a caption."""
    if match := ONE_THING.fullmatch(text):
        size, colour, shape, background = match.groups()
        return Scene((Thing(colour, shape, size),), None, background)
    if match := TWO_THINGS.fullmatch(text):
        colour, shape, relation, colour2, shape2, background = match.groups()
        scene = Scene((Thing(colour, shape), Thing(colour2, shape2)), relation, background)
        if (colour, shape) != (colour2, shape2) and caption(scene) == text:          # "a orange star" is no caption
            return scene
    return None


# ------------------------------------------------------------------------------------ pictures
def star(y, x):
    """The edge of a five-pointed star is a straight line between a tip and a notch."""
    angle = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    tip, notch, half = 1.12, 0.46, np.pi / 5
    edge = tip * notch * np.sin(half) / (
        tip * np.sin(angle) + notch * np.sin(half - angle))
    return np.hypot(y, x) <= edge


INSIDE = {  # is the point (y down, x right; the shape's radius is 1) inside the shape? Boolean array
    "circle": lambda y, x: y ** 2 + x ** 2 <= 1,
    "square": lambda y, x: np.maximum(abs(y), abs(x)) <= 0.88,
    "triangle": lambda y, x: (y <= 0.85) & (abs(x) <= 0.58 * (y + 1.0)),
    "star": star,
    "cross": lambda y, x: (np.maximum(abs(y), abs(x)) <= 1) & (np.minimum(abs(y), abs(x)) <= 0.3),
}


@functools.cache
def stamp(shape, radius):
    """Coverage of each pixel by the shape centred on a canvas: (2*SIDE+1, 2*SIDE+1) in [0, 1].

    8x8 supersampling; centres are whole pixels, so that one stamp serves all positions."""
    fine = (np.arange((2 * SIDE + 1) * 8) + 0.5) / 8 - (SIDE + 0.5)       # pixels from the centre
    full = INSIDE[shape](fine[:, None] / radius, fine[None, :] / radius)
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
    sizes = [i for i, size in enumerate(RADIUS) if (size is None) == pair]
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


# ------------------------------------------------------------------------------------ passages
def number_words(n):
    """1..99 -> "forty two"."""
    words = ([""] + UNITS + TEENS)
    return words[n] if n < 20 else f"{TENS[n // 10 - 2]} {words[n % 10]}".strip()


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


def variety(texts):
    """How evenly passages use FORMS: exp(entropy of the forms' shares) / number of forms, 1 if all are equally frequent. The world's own
    passages: 0.95, 0.90 among 50."""
    made = [form for form in (tuple(kind for kind, _ in parse_passage(text)) for text in texts) if form in FORMS]
    share = np.array([made.count(form) for form in set(made)]) / max(1, len(made))
    return float(np.exp(-(share * np.log(share)).sum()) / len(FORMS)) if made else 0.0


# ---------------------------------------------------------------------------------------- look
def main():
    parser = argparse.ArgumentParser(description="Write samples of the toy world to look at.")
    parser.add_argument("--out", default="toyworld", help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="which samples")
    parser.add_argument("--split", default="seen", choices=("seen", "unseen"))
    args = parser.parse_args()
    import pathlib
    import soundfile
    from PIL import Image, ImageDraw
    from toyspeech import SAMPLE_RATE, VOICES, phrases, speak
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
        soundfile.write(out / f"{i:02d} {voice} {text}.wav", x, SAMPLE_RATE)
    (out / "passages.txt").write_text("\n".join(passages(20, args.seed, args.split)) + "\n")
    print(f"{out}: scenes.png, {len(said)} WAV files, passages.txt")


if __name__ == "__main__":
    import safe
    safe.cli(main, "toyworld.py")
