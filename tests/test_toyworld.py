"""The toy world: its judges read its own ground truth, and say no to anything else."""
import itertools

import numpy as np
import pytest

from sources import judges, toyspeech, toyworld
from sources.toyworld import Scene, Thing

RED = Thing("red", "circle")
BLUE = Thing("blue", "star")
ALONE = Scene((Thing("red", "circle", "small"),), None, "white")
PAIR = Scene((RED, BLUE), "above", "white")


def share_right(images, scenes):
    read = judges.read_pictures(images)
    return judges.judge_scenes(read, scenes)["all"].mean()


def test_scenes_hold_different_things_and_splits_keep_apart():
    """Of six colours and five shapes six pairs are not seen, but each colour and shape is."""
    assert len(toyworld.UNSEEN) == 6 and toyworld.UNSEEN < set(toyworld.NOUNS)
    assert {colour for colour, _ in toyworld.UNSEEN} == set(toyworld.COLOURS)
    assert {shape for _, shape in toyworld.UNSEEN} == set(toyworld.SHAPES)
    for split, things in itertools.product(("seen", "unseen"), (None, 1, 2)):
        made = toyworld.scenes(400, 0, split, things)
        counts = [len(scene.things) for scene in made]
        assert np.mean(counts) == pytest.approx(things or 1.5, abs=0.1)
        for scene in made:
            kinds = {(thing.colour, thing.shape) for thing in scene.things}
            assert len(kinds) == len(scene.things)
            assert bool(toyworld.UNSEEN & kinds) == (split == "unseen")
            assert (scene.relation is None) == (len(scene.things) == 1)
        assert {scene.background for scene in made} == set(toyworld.BACKGROUNDS)


def test_captions_are_read_back():
    assert toyworld.caption(ALONE) == "a small red circle on white"
    assert toyworld.caption(PAIR) == "a red circle above a blue star on white"
    for scene in (ALONE, PAIR):
        assert judges.parse_caption(toyworld.caption(scene)) == scene
    for text in ("", "a red circle on white", "a small red circle", "a small red circle on white ",
                 "a red star above a red star on black"):
        assert judges.parse_caption(text) is None


def test_scenes_pictures_passages_and_speech_are_functions_of_their_seed():
    before = np.random.get_state()[1].copy()
    scenes = toyworld.scenes(50, 4)
    images = toyworld.draw(scenes, 4)
    assert images.shape == (50, 32, 32, 3) and images.dtype == np.uint8
    assert (images == toyworld.draw(scenes, 4)).all()
    assert (images != toyworld.draw(scenes, 5)).any()
    assert scenes == toyworld.scenes(50, 4) != toyworld.scenes(50, 5)
    assert toyworld.passages(9, 4) == toyworld.passages(9, 4) != toyworld.passages(9, 5)
    one, same, other = (toyspeech.speak(["nine"], seed)[0] for seed in (4, 4, 5))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert (np.random.get_state()[1] == before).all()


def test_shapes_have_the_areas_of_geometry():
    for shape, area in (
            ("circle", np.pi), ("square", 1.76**2), ("triangle", 0.58 * 1.85**2),
            ("star", 10 * 0.5 * 1.12 * 0.46 * np.sin(np.pi / 5)),  # ten of centre, tip, notch
            ("cross", 2 * 2 * 0.6 - 0.6**2)):
        assert toyworld.stamp(shape, 9).sum() == pytest.approx(81 * area, rel=0.02), shape


def test_things_lie_where_their_relation_says():
    """In the picture, the first thing's colour is on its side of the second thing's."""
    pixels = np.stack(np.mgrid[:32, :32], -1)
    sides = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
    for relation, side in sides.items():
        image = toyworld.draw([Scene((RED, BLUE), relation, "white")], 0)[0].astype(int)
        is_red = image[..., 0] - image[..., 2] > 100
        is_blue = image[..., 2] - image[..., 0] > 100
        moved = pixels[is_red].mean(0) - pixels[is_blue].mean(0)
        assert moved @ side > 11


@pytest.fixture(scope="module")
def truth():
    """Scenes of both splits and their pictures."""
    scenes = toyworld.scenes(250, 11) + toyworld.scenes(250, 12, "unseen")
    return scenes, toyworld.draw(scenes, 13)


def blur(images):
    out = 0.5 * images
    for shift, axis in ((1, 1), (-1, 1), (1, 2), (-1, 2)):
        out += np.roll(0.125 * images, shift, axis)
    return out


def test_picture_judge_reads_ground_truth_and_what_a_tokenizer_may_leave(truth):
    """Noise, blur and few grey levels of 28 to 36 dB, where tokenizers have 31 to 37."""
    marks = judges.judge_scenes(judges.read_pictures(truth[1]), truth[0])
    assert all(np.nanmean(value) >= 0.99 for value in marks.values())
    scenes, images = truth[0][::6], truth[1][::6]
    noisy = images + toyworld.rng(14).normal(0, 10, images.shape)
    for worse in (noisy, blur(images), blur(noisy), images // 32 * 32 + 16):
        worse = np.clip(np.rint(worse), 0, 255).astype(np.uint8)
        assert share_right(worse, scenes) >= 0.97


def test_picture_judge_finds_what_was_wiped_out():
    """15 to 25% of a thing, beyond a line in a random direction, has the background's colour."""
    g = toyworld.rng(15)
    scenes = toyworld.scenes(120, 11, things=1)
    damaged = toyworld.draw(scenes, 13)
    for image in damaged:
        pixels = np.argwhere(np.abs(image - image[0, 0].astype(int)).sum(-1) > 100)
        angle = g.uniform(0, 2 * np.pi)
        order = np.argsort(pixels @ (np.sin(angle), np.cos(angle)))
        y, x = pixels[order[-round(len(pixels) * g.uniform(0.15, 0.25)):]].T
        image[y, x] = image[0, 0]
    assert share_right(damaged, scenes) <= 0.1


def test_picture_judge_finds_stray_blocks(truth):
    """5x5 pixels anywhere have a colour that the scene does not have."""
    g = toyworld.rng(16)
    scenes, damaged = truth[0][::4], truth[1][::4].copy()
    for scene, image in zip(scenes, damaged):
        used = [thing.colour for thing in scene.things]
        others = [value for name, value in toyworld.COLOURS.items() if name not in used]
        y, x = g.integers(0, 28, 2)
        image[y : y + 5, x : x + 5] = others[g.integers(len(others))]
    assert share_right(damaged, scenes) <= 0.1


MARKS = [  # what is read, what is wanted, which marks are 0
    (Scene((BLUE, RED), "below", "white"), PAIR, ""),
    (Scene((RED, BLUE), "below", "white"), PAIR, "all relation"),
    (Scene((BLUE, RED), "above", "white"), PAIR, "all relation"),
    (Scene((RED, BLUE), "above", "pink"), PAIR, "all background"),
    (Scene((RED, Thing("green", "star")), "above", "white"), PAIR, "all colour"),
    (Scene((RED, Thing("blue", "cross")), "above", "white"), PAIR, "all shape"),
    (ALONE, PAIR, "all count colour shape relation"),
    (PAIR, ALONE, "all count colour shape size"),
    (Scene((Thing("red", "circle", "large"),), None, "white"), ALONE, "all size"),
    (ALONE, ALONE, ""),
    (None, PAIR, "all background count colour shape relation"),
    (ALONE, None, "all background count colour shape size"),
]


def test_marks_say_what_is_wrong():
    for read, wanted, wrong in MARKS:
        marks = judges.judge_scenes([read], [wanted])
        unsaid = "size" if wanted is PAIR else "relation"
        assert np.isnan(marks.pop(unsaid)[0])
        assert [key for key, value in marks.items() if value[0] == 0] == wrong.split()


def test_passage_judge_reads_ground_truth_of_splits_that_keep_apart():
    for split in ("seen", "unseen"):
        made = toyworld.passages(400, 70, split)
        assert judges.judge_passages(made)["consistent"].all()
        for text in made:
            assert 14 <= len(text.split()) <= 30 and 2 <= text.count(".") <= 4
            found = [f"{c} {s}" in text or f"{s} is {c}" in text for c, s in toyworld.UNSEEN]
            assert any(found) == (split == "unseen")


COUNTED = "there are two green {}. so there are five shapes."
PLURALS = ["stars and three red crosss", "circlees and three red crosses",
           "star and three red crosses", "stars and three red cross"]


def test_passage_judge_refuses_shuffled_sentences_noise_and_wrong_plurals():
    made = toyworld.passages(300, 72)
    turned = [". ".join(reversed(text[:-1].split(". "))) + "." for text in made]
    assert not judges.judge_passages(turned)["consistent"].any()
    words = [" ".join(toyworld.rng(73, i).permutation(text.split())) for i, text in enumerate(made)]
    assert judges.judge_passages(words)["grammatical"].mean() < 0.01
    bad = [text[:-1] for text in made] + ["", ".", "so."] + [COUNTED.format(p) for p in PLURALS]
    assert not judges.judge_passages(bad)["grammatical"].any()
    assert judges.judge_passages([COUNTED.format("stars and three red crosses")])["consistent"]


LEFT = "the red circle is left of the blue square"
ABOVE = "the red circle is above the blue square"
CHAIN = ABOVE + ". the blue square is above the red star"
TURNED = "the blue square is above the red star. the blue square is below the red circle"
STARS = "there are two green stars and three"
LARGER = "so the blue square is larger than the red circle"
SMALL = "the red circle is small. the blue square is"
COLOURS = "the star is green. the cross is red. what colour is the star"


PASSAGES = [  # facts, conclusion, whether it follows
    (LEFT, "so the blue square is right of the red circle", True),
    (LEFT, "so the blue square is left of the red circle", False),
    (LEFT.replace("blue square", "red circle"),
     "so the red circle is right of the red circle", False),
    (CHAIN, "so the red star is below the red circle", True),  # whose conclusion needs both
    (TURNED, "so the red circle is above the red star", True),
    (CHAIN, "so the red star is below the blue square", False),
    (CHAIN.replace("square is above", "square is left of"),
     "so the red star is below the red circle", False),
    (ABOVE + ". the green cross is left of the red star",
     "so the blue square is below the red circle", False),
    (STARS + " red crosses", "so there are five shapes", True),
    (STARS + " red crosses", "so there are six shapes", False),
    (STARS + " green stars", "so there are five shapes", False),
    (SMALL + " large", LARGER, True),
    (SMALL + " large", f"{LARGER}. {LARGER}", False),
    (SMALL + " small", LARGER, False),
    (COLOURS, "the star is green", True),
    (COLOURS, "the star is red", False),
    (COLOURS, "the cross is red", False),
]


def test_passage_judge_by_hand():
    for facts, conclusion, consistent in PASSAGES:
        verdict = judges.judge_passages([f"{facts}. {conclusion}."])
        assert verdict["grammatical"][0] and verdict["consistent"][0] == consistent


def test_variety_counts_forms():
    one = COUNTED.format("stars and three red crosses")
    two = "the red star is above the blue square. so the blue square is below the red star."
    assert judges.variety([one] * 5) == pytest.approx(1 / 6)
    assert judges.variety([one, two, two, two]) == pytest.approx(4 / 27 ** 0.25 / 6)
    assert judges.variety(["so."]) == 0
