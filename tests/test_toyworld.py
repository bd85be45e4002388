"""The toy world's contracts: the judges read its own ground truth, and say no to anything else."""
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import score  # noqa: E402
import toyspeech as ts  # noqa: E402
import toyworld as tw  # noqa: E402

ALL_PHRASES = [f"a {size} {colour} {shape}" for size in tw.SIZES for colour, shape in tw.KINDS] + [
    tw.number_words(n) for n in range(1, 100)]


def kinds_of(scene):
    return [(thing.colour, thing.shape) for thing in scene.things]


# ------------------------------------------------------------------------------ scenes, captions
def test_every_colour_and_shape_is_seen_and_some_pairs_are_not():
    hidden = [kind for kind in tw.KINDS if tw.unseen(*kind)]
    assert len(hidden) in (5, 6)
    for colour in tw.COLOURS:
        assert sum((colour, shape) not in hidden for shape in tw.SHAPES) >= 3
    for shape in tw.SHAPES:
        assert sum((colour, shape) not in hidden for colour in tw.COLOURS) >= 4


def test_splits_keep_apart():
    for things in (None, 1, 2):
        assert not any(tw.unseen(*kind) for s in tw.scenes(1000, 0, "seen", things) for kind in kinds_of(s))
        assert all(any(tw.unseen(*kind) for kind in kinds_of(s)) for s in tw.scenes(1000, 0, "unseen", things))
    pair = re.compile(f"{tw.KIND}")
    for split in ("seen", "unseen"):
        for phrase in ts.phrases(500, 0, split):
            kind = pair.search(phrase)
            hidden = (tw.unseen(*kind.groups()) if kind else
                      tw.unseen_number([tw.number_words(n) for n in range(100)].index(phrase)))
            assert hidden == (split == "unseen")
    assert not any(tw.unseen(*kind) for p in tw.passages(1000, 0) for kind in pair.findall(p))
    assert not any(tw.unseen(c, s) for p in tw.passages(1000, 0) for s, c in re.findall(r"the (\w+) is (\w+)", p)
                   if s in tw.SHAPES and c in tw.COLOURS)
    with pytest.raises(ValueError):
        tw.scenes(1, 0, "test")


def test_scenes_hold_one_or_two_different_things():
    made = tw.scenes(2000, 1)
    assert 0.45 < np.mean([len(s.things) == 2 for s in made]) < 0.55
    for scene in made:
        assert len(set(kinds_of(scene))) == len(scene.things)
        assert (scene.relation is None) == (len(scene.things) == 1)
    assert {s.background for s in made} == set(tw.BACKGROUNDS)
    assert {s.relation for s in made} == {None, *tw.RELATIONS}


def test_caption_round_trip():
    for scene in tw.scenes(1000, 2) + tw.scenes(200, 3, "unseen"):
        assert tw.parse_caption(tw.caption(scene)) == scene
    one = tw.Scene((tw.Thing("red", "circle", "small"),), None, "white")
    assert tw.caption(one) == "a small red circle on white"
    for bad in ("", "a red circle on white", "small red circle on white", "a small red circle",
                "a small red circle on white ", "a small green star above a blue square on black",
                "a red star above a red star on black", "a small red circle on red",
                "a orange star above a red star on black", "an red star above an orange star on black"):
        assert tw.parse_caption(bad) is None, bad


# -------------------------------------------------------------------------------------- pictures
def blur(images):
    shifts = ((0, 0, 0.5), (0, 1, 0.125), (1, 0, 0.125), (0, -1, 0.125), (-1, 0, 0.125))
    return sum(w * np.roll(images, (dy, dx), (1, 2)) for dy, dx, w in shifts)


def test_draw_is_deterministic_and_in_range():
    scenes = tw.scenes(50, 4)
    images = tw.draw(scenes, 4)
    assert images.shape == (50, 32, 32, 3) and images.dtype == np.uint8
    assert (images == tw.draw(scenes, 4)).all() and (images != tw.draw(scenes, 5)).any()
    assert scenes == tw.scenes(50, 4) != tw.scenes(50, 5)
    assert tw.draw([], 0).shape == (0, 32, 32, 3) and tw.read_pictures(tw.draw([], 0)) == []


@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_picture_judge_reads_ground_truth(split):
    scenes = tw.scenes(200, 11, split)
    clean = tw.draw(scenes, 12)
    noisy = clean + tw.rng(13).normal(0, 10, clean.shape)
    for images, least in ((clean, 0.99), (noisy, 0.97), (blur(noisy), 0.97)):
        read = tw.read_pictures(np.clip(images, 0, 255).astype(np.uint8))
        scores = tw.judge_scenes(read, scenes)
        assert scores["all"].mean() >= least
        assert all(np.nanmean(value) >= least for value in scores.values())


def test_picture_judge_refuses_what_is_no_scene():
    g = tw.rng(14)
    noise = g.integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    blank = np.broadcast_to(np.array(list(tw.BACKGROUNDS.values()), np.uint8)[:, None, None], (4, 32, 32, 3))
    scenes = tw.scenes(20, 15)
    images = tw.draw(scenes, 15)
    shuffled = g.permuted(images.reshape(20, 1024, 3), axis=1).reshape(images.shape)
    for bad in (noise, blank, shuffled):
        assert np.mean([scene is None for scene in tw.read_pictures(bad)]) >= 0.95
    scores = tw.judge_scenes([None] * 20, scenes)
    assert all(np.nansum(value) == 0 for value in scores.values())


def test_judge_scenes_marks_what_is_wrong():
    red, blue = tw.Thing("red", "circle"), tw.Thing("blue", "star")
    want = tw.Scene((red, blue), "above", "white")
    one = tw.Scene((tw.Thing("red", "circle", "small"),), None, "white")
    cases = [  # read, wanted, the keys that are 0
        (want, want, ""), (tw.Scene((blue, red), "below", "white"), want, ""),
        (tw.Scene((red, blue), "below", "white"), want, "all relation"),
        (tw.Scene((blue, red), "above", "white"), want, "all relation"),
        (tw.Scene((red, blue), "left of", "white"), want, "all relation"),
        (tw.Scene((red, blue), "above", "pink"), want, "all background"),
        (tw.Scene((red, tw.Thing("green", "star")), "above", "white"), want, "all colour"),
        (tw.Scene((red, tw.Thing("blue", "cross")), "above", "white"), want, "all shape"),
        (one, want, "all count colour shape relation"), (want, one, "all count colour shape size"),
        (tw.Scene((tw.Thing("red", "circle", "large"),), None, "white"), one, "all size"), (one, one, "")]
    scores = tw.judge_scenes([c[0] for c in cases], [c[1] for c in cases])
    for i, (_, wanted, wrong) in enumerate(cases):
        inapplicable = "size" if len(wanted.things) == 2 else "relation"
        for key, value in scores.items():
            assert np.isnan(value[i]) if key == inapplicable else value[i] == (key not in wrong.split()), (i, key)


def test_inverse_relations_agree_in_pictures():
    for relation, opposite in tw.INVERSE.items():
        assert tw.INVERSE[opposite] == relation
        a, b = tw.Thing("red", "circle"), tw.Thing("blue", "star")
        read = tw.read_pictures(tw.draw([tw.Scene((a, b), relation, "grey")], 0))
        for same in (tw.Scene((a, b), relation, "grey"), tw.Scene((b, a), opposite, "grey")):
            assert tw.judge_scenes(read, [same])["all"] == 1
        assert tw.judge_scenes(read, [tw.Scene((b, a), relation, "grey")])["all"] == 0


# ---------------------------------------------------------------------------------------- speech
def silence_at_ends(wave):
    """Seconds before the first and after the last sample above 1% of the peak."""
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    return loud[0] / ts.SAMPLE_RATE, (len(wave) - 1 - loud[-1]) / ts.SAMPLE_RATE


def test_every_phrase_in_every_voice_is_short_enough():
    for seed, voice in enumerate(ts.VOICES):
        for wave in ts.speak(ALL_PHRASES, seed, [voice] * len(ALL_PHRASES)):
            assert wave.dtype == np.float32 and wave.ndim == 1
            assert 0.2 * ts.SAMPLE_RATE < len(wave) <= 1.5 * ts.SAMPLE_RATE
            assert np.isfinite(wave).all() and np.abs(wave).max() <= 0.95
            assert max(silence_at_ends(wave)) <= 0.04


def test_speech_is_deterministic():
    said = ts.phrases(6, 0)
    first, again, other = ts.speak(said, 1), ts.speak(said, 1), ts.speak(said, 2)
    assert all((a == b).all() for a, b in zip(first, again))
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(first, other))
    with pytest.raises(KeyError):
        ts.speak(["a small red dodecahedron"], 0)
    assert ts.speak([], 0) == [] and ts.read_speech([]) == []


def test_speech_judge_reads_ground_truth():
    for seed, voice in enumerate(ts.VOICES):
        said = ts.phrases(24, 30 + seed) + ts.phrases(16, 30 + seed, "unseen")
        read = ts.read_speech(ts.speak(said, 40 + seed, [voice] * len(said)))
        assert np.mean([a == b for a, b in zip(read, said)]) >= 0.975, voice
        assert ts.words_right(read, said).mean() >= 0.99


def griffin_lim(wave, bands=80, steps=32):
    """Wave -> log-mel spectrogram -> wave: what a small audio codec makes of it at best."""
    n, hop = 1024, 200
    window, x = torch.hann_window(n), torch.from_numpy(wave)
    mel = lambda f: 2595 * np.log10(1 + f / 700)
    f, edges = mel(np.linspace(0, 8000, n // 2 + 1))[:, None], np.linspace(mel(0), mel(8000), bands + 2)
    bank = np.maximum(0, np.minimum((f - edges[:-2]) / (edges[1:-1] - edges[:-2]),
                                    (edges[2:] - f) / (edges[2:] - edges[1:-1])))
    bank = torch.from_numpy(bank.T).float()
    size = torch.stft(x, n, hop, window=window, return_complex=True).abs()
    logmel = (bank @ size).clamp(min=1e-4).log()
    size = (torch.linalg.pinv(bank) @ logmel.exp()).clamp(min=0)
    spectrum = torch.polar(size, 6.2832 * torch.rand(size.shape, generator=torch.Generator().manual_seed(0)))
    for _ in range(steps):
        guess = torch.istft(spectrum, n, hop, window=window, length=len(x))
        spectrum = torch.polar(size, torch.stft(guess, n, hop, window=window, return_complex=True).angle())
    return torch.istft(spectrum, n, hop, window=window, length=len(x)).numpy()


def test_speech_judge_survives_resynthesis_from_log_mel():
    said = ts.phrases(40, 50) + ts.phrases(20, 51, "unseen")
    read = ts.read_speech([griffin_lim(wave) for wave in ts.speak(said, 52)])
    assert np.mean([a == b for a, b in zip(read, said)]) >= 0.97


def test_speech_judge_refuses_what_is_no_speech():
    g = tw.rng(60)
    time = 2 * np.pi * np.arange(ts.SAMPLE_RATE) / ts.SAMPLE_RATE
    bad = [0.1 * g.standard_normal(16000), np.zeros(16000), np.zeros(100), 0.3 * np.sin(440 * time)]
    bad += [wave[::-1] for wave in ts.speak(ts.phrases(20, 61), 62) if len(wave) > 16000]
    assert all(text == "" for text in ts.read_speech([b.astype(np.float32) for b in bad]))


def test_speech_judge_hears_a_wrong_word():
    said = ["a small red circle", "forty two"]
    read = ts.read_speech(ts.speak(said, 63))
    wanted = ["a large red circle", "forty five"]
    np.testing.assert_allclose(ts.words_right(read, wanted), [2 / 3, 1 / 2])


def test_words_right_by_hand():
    # kept words: small red circle; said: red circles star -> delete, substitute, insert: 3 of 3
    pairs = [("a small red circle", "a small red circle", 1), ("small red circle", "a small red circle", 1),
             ("a", "a small red circle", 0), ("", "forty two", 0), ("forty", "forty two", 1 / 2),
             ("a small blue circle", "a small red circle", 2 / 3), ("two forty", "forty two", 0),
             ("red circles star", "a small red circle", 0), ("red circle", "a small red circle", 2 / 3),
             ("six seven eight nine", "six", 0)]
    said, wanted, marks = zip(*pairs)
    np.testing.assert_allclose(ts.words_right(said, wanted), marks)


# -------------------------------------------------------------------------------------- passages
def test_passage_judge_reads_ground_truth():
    for split in ("seen", "unseen"):
        made = tw.passages(500, 70, split)
        assert made == tw.passages(500, 70, split) != tw.passages(500, 71, split)
        verdict = tw.judge_passages(made)
        assert verdict["grammatical"].all() and verdict["consistent"].all()
        assert all(12 <= len(text.split()) <= 40 and 2 <= text.count(".") <= 4 for text in made)


def test_passage_judge_refuses_shuffled_sentences_and_noise():
    made = tw.passages(300, 72)
    turned = [". ".join(text.removesuffix(".").split(". ")[::-1]) + "." for text in made]
    assert not tw.judge_passages(turned)["consistent"].any()
    words = [" ".join(tw.rng(73, i).permutation(text.split())) for i, text in enumerate(made)]
    assert tw.judge_passages(words)["grammatical"].mean() < 0.01
    assert not tw.judge_passages([text[:-1] for text in made] + ["", ".", "so."])["grammatical"].any()


@pytest.mark.parametrize("text, consistent", [
    ("the red circle is left of the blue square. so the blue square is right of the red circle.", True),
    ("the red circle is left of the blue square. so the blue square is left of the red circle.", False),
    ("the red circle is left of the blue square. so the blue star is right of the red circle.", False),
    ("the red circle is left of the blue square. so the red circle is left of the blue square.", False),
    ("the red circle is above the blue square. the blue square is above the red star. "
     "so the red star is below the red circle.", True),
    ("the red circle is above the blue square. the blue square is left of the red star. "
     "so the red star is below the red circle.", False),
    ("the red circle is above the blue square. the blue square is above the red circle. "
     "so the blue square is below the red circle.", False),
    ("there are two green stars and three red crosses. so there are five shapes.", True),
    ("there are two green stars and three red crosses. so there are six shapes.", False),
    ("the red circle is small. the blue square is large. so the blue square is larger than the red circle.", True),
    ("the red circle is small. the blue square is large. so the blue square is smaller than the red circle.", False),
    ("the red circle is small. the blue square is small. so the blue square is larger than the red circle.", False),
    ("the star is green. the cross is red. what colour is the star. the star is green.", True),
    ("the star is green. the cross is red. what colour is the star. the star is red.", False),
    ("the star is green. the cross is red. what colour is the star. the cross is red.", False),
])
def test_passage_judge_by_hand(text, consistent):
    verdict = tw.judge_passages([text])
    assert verdict["grammatical"][0] and verdict["consistent"][0] == consistent


def test_variety_counts_forms():
    made = tw.passages(3000, 75)
    assert tw.variety(made) == pytest.approx(np.exp(0.8 * np.log(5) + 0.2 * (np.log(15) / 3 + np.log(7.5) * 2 / 3)) / 6, abs=0.02)  # by hand: 0.95
    one, two = ("there are two green stars and three red crosses. so there are five shapes.",
                "the red circle is left of the blue square. so the blue square is right of the red circle.")
    assert tw.variety([one] * 5) == pytest.approx(1 / 6) and tw.variety([one, two, one, two]) == pytest.approx(2 / 6)
    assert tw.variety(["so."]) == 0


# ---------------------------------------------------------------------------------- command line
def test_command_line(tmp_path):
    subprocess.run([sys.executable, ROOT / "toyworld.py", "--out", tmp_path], check=True, cwd=tmp_path)
    assert (tmp_path / "scenes.png").exists() and len(list(tmp_path.glob("*.wav"))) >= 8
    assert tw.judge_passages((tmp_path / "passages.txt").read_text().splitlines())["consistent"].all()


def test_global_state_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    for made in itertools.chain([tw.scenes(5, 0), tw.passages(5, 0)], [ts.speak(["one"], 0)]):
        assert made
    assert (np.random.get_state()[1] == before).all()


def test_pairs_are_judged_by_their_own_texts():
    """True pictures and clips fit their own captions and phrases, not each other's; what has no text fits nothing."""
    cells, scenes, phrases = score.toy_cells(12, 5), tw.scenes(12, 8), ts.phrases(12, 8)
    pictures, captions, clips = tw.draw(scenes, 8), [tw.caption(s) for s in scenes], ts.speak(phrases, 8)
    noise = [np.random.default_rng(i).normal(0, 0.1, 8000).astype(np.float32) for i in range(12)]
    for task, made, texts in (("image", pictures, captions), ("speech", clips, phrases)):
        (_, judge), = cells[task].values()
        right = lambda made, texts: np.mean(judge({task: list(made), "text": texts})["all"])
        assert right(made, texts) > 0.95 and right(made, texts[1:] + texts[:1]) < 0.4
        if task == "speech":
            assert right(noise, ["", " ", "a", "gibberish"] * 3) == 0
        else:
            assert right(made, ["", "a", "a red circle", "gibberish"] * 3) == 0
