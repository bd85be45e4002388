"""The toy world's speech: it is spoken as described, and its judge hears what was said, no more."""
import itertools

import numpy as np
import pytest
import torch

from sources import speechjudge, toyspeech, toyworld
from tokenizers import audio

SEEN = sum(toyspeech.all_phrases("seen"), [])
UNSEEN = sum(toyspeech.all_phrases("unseen"), [])
VOWELS = set("iy i ih eh ae aa ao or ah uw er ax ey ay ow".split())
CONSONANTS = set(toyspeech.PHONEMES) - VOWELS
ALLOPHONES = ["t ty st tr", "k sk", "r rr", "l el", "iy i", "ao or"]  # no faults for each other


def some_phrases(n, seed):
    return toyspeech.phrases(2 * n // 3, seed) + toyspeech.phrases(n // 3, seed, "unseen")


def share_right(waves, phrases):
    read = speechjudge.read_speech(waves)
    return np.mean([text == phrase for text, phrase in zip(read, phrases, strict=True)])


def test_all_phrases_are_there_once_and_splits_keep_apart():
    both = SEEN + UNSEEN
    assert len(both) == len(set(both)) == len(toyworld.SIZES) * len(toyworld.NOUNS) + 99
    for split, own in (("seen", SEEN), ("unseen", UNSEEN)):
        said = toyspeech.phrases(500, 0, split)
        assert 0.4 < np.mean([phrase.startswith("a ") for phrase in said]) < 0.6
        assert set(said) <= set(own)
        for phrase in own:
            if phrase.startswith("a "):
                hidden = tuple(phrase.split()[2:]) in toyworld.UNSEEN
            else:
                hidden = toyworld.NUMBERS.index(phrase) % 7 == 0
            assert hidden == (split == "unseen")


def test_every_phrase_is_short_and_fills_its_wave():
    said = SEEN + UNSEEN
    for wave in toyspeech.speak(said, 0):
        assert wave.dtype == np.float32 and wave.ndim == 1
        assert 0.2 * toyspeech.SAMPLE_RATE < len(wave) <= 1.5 * toyspeech.SAMPLE_RATE
        assert np.abs(wave).max() == pytest.approx(0.9)
        loud = np.flatnonzero(np.abs(wave) > 0.009)
        assert max(loud[0], len(wave) - loud[-1]) <= 0.04 * toyspeech.SAMPLE_RATE


def test_source_is_the_sum_of_its_harmonics_and_resonances_peak_at_the_formants():
    source = toyspeech.harmonics(np.full(20, 113.7), np.full(20, 30))
    phase = 2 * np.pi * 113.7 * np.arange(1, len(source) + 1) / toyspeech.SAMPLE_RATE
    wanted = sum(np.cos(k * phase) for k in range(1, 31))
    np.testing.assert_allclose(source, wanted, atol=1e-6)
    formants = np.array([(500, 1500, 2500)], np.float32)
    f = np.arange(100, 3000, 5, dtype=np.float32)
    gain = np.abs(toyspeech.resonances(formants, f))[0]
    for formant in formants[0]:
        near = np.abs(f - formant) < 300
        assert abs(f[near][gain[near].argmax()] - formant) <= 20


def test_judge_reads_ground_truth():
    said = some_phrases(60, 30)
    assert share_right(toyspeech.speak(said, 30), said) == 1


def vocoded(wave, net, generator):
    """Wave -> log-mel spectrogram, off by 2 dB -> wave: what a small codec makes of it."""
    magnitudes = net.magnitudes(audio.padded(wave, audio.AudioConfig()))
    mel = net.mel(magnitudes)[0]                                          # (mels, T)
    mel = mel + 2 / audio.DB * torch.randn(mel.shape, generator=generator)
    found = torch.linalg.pinv(net.filters.T) @ mel.exp()                  # (bins, T)
    return audio.griffin_lim(net, found.clamp(min=0), rounds=16).numpy()


def test_judge_survives_a_vocoder():
    said = some_phrases(24, 50)
    net = audio.Net(audio.AudioConfig())
    generator = torch.Generator().manual_seed(0)
    waves = [vocoded(wave, net, generator) for wave in toyspeech.speak(said, 52)]
    assert share_right(waves, said) >= 0.95


def spoil(word, pool, g):
    """A word's phonemes with one of `pool` replaced by another, or one dropped if pool is None."""
    names = toyspeech.phonemes(word)
    if pool is None:
        del names[g.integers(len(names))]
        return names
    i = g.choice([i for i, name in enumerate(names) if name in pool])
    alike = [group.split() for group in ALLOPHONES if names[i] in group.split()]
    names[i] = g.choice(sorted(pool.difference([names[i]], *alike)))
    return names


def misspoken(phrase, pool, g, monkeypatch):
    """A phrase with a fault in every word but the article."""
    words = phrase.split()
    for i, word in enumerate(words):
        if word != "a":
            names = spoil(word, pool, g)
            words[i] = "-".join(names)
            monkeypatch.setitem(toyspeech.LEXICON, words[i], " ".join(names))
    return " ".join(words)


@pytest.mark.parametrize("pool", [VOWELS, CONSONANTS, None], ids=["vowel", "consonant", "dropped"])
def test_judge_refuses_misspoken_phrases(pool, monkeypatch):
    g = toyworld.rng(70)
    said = some_phrases(36, 71)
    faulty = [misspoken(phrase, pool, g, monkeypatch) for phrase in said]
    read = speechjudge.read_speech(toyspeech.speak(faulty, 72))
    marks = speechjudge.words_right(read, said)
    assert np.mean(marks == 1) <= 0.15 and marks.mean() <= 0.25


def test_judge_refuses_what_is_no_speech():
    g = toyworld.rng(60)
    said = some_phrases(24, 61) + ["nine"]
    spoken = toyspeech.speak(said, 62)
    nothing = [np.zeros(16000), np.zeros(100), np.zeros(0), np.sin(np.arange(16000) / 6),
               g.standard_normal(16000)]
    shuffled = [g.permutation(wave) for wave in spoken]
    assert set(speechjudge.read_speech(nothing + shuffled)) == {""}
    assert share_right([wave[::-1] for wave in spoken], said) == 0


def cheapest_path(distance):
    """All paths, one after the other."""
    count, width = distance.shape
    best = (np.inf, None)
    for steps in itertools.product((0, 1, 2), repeat=count - 1):
        path = np.cumsum((0, *steps))
        if path[-1] == width - 1:
            detours = count - 1 - steps.count(1)
            cost = distance[np.arange(count), path].sum() + speechjudge.DETOUR * detours
            best = min(best, (cost, path.tolist()))
    return best[1]


def test_warp_finds_the_cheapest_path():
    g = toyworld.rng(80)
    for count, width in ((1, 1), (4, 7), *[(6, 4), (7, 7), (7, 3)] * 8, (8, 12)):
        distance = g.random((count, width))
        assert speechjudge.warp(distance).tolist() == cheapest_path(distance)


def test_words_right_by_hand():
    red = "a small red circle"
    said, wanted, marks = zip(
        ("small red circle", red, 1), ("a", red, 0), ("", "forty two", 0),
        ("a small blue circle", red, 2 / 3), ("two forty", "forty two", 0),
        ("red circles star", red, 0),  # one dropped, one changed, one added
        ("red circle", red, 2 / 3), ("six seven eight nine", "six", 0))
    assert speechjudge.words_right(said, wanted) == pytest.approx(marks)


def test_judge_survives_uneven_rhythm(monkeypatch):
    g = toyworld.rng(54)
    even = toyspeech.segment_frames

    def uneven(table, voice, u):
        table = table.copy()
        table[:, 0] *= np.exp(g.normal(0, 0.1, len(table)))
        return even(table, voice, u)

    speechjudge.templates()
    monkeypatch.setattr(toyspeech, "segment_frames", uneven)
    said = some_phrases(24, 53)
    assert share_right(toyspeech.speak(said, 54), said) >= 0.95
