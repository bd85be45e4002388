"""The toy world's speech: it is spoken as described, and its judge hears what was said, no more."""
import itertools

import numpy as np
import pytest
import torch

from sources import speechjudge, toyspeech, toyworld

KINDS_OF_PHRASE = [*toyspeech.all_phrases("seen"), *toyspeech.all_phrases("unseen")]
ALL_PHRASES = sum(KINDS_OF_PHRASE, [])

VOWELS = set("iy i ih eh ae aa ao or ah uw er ax ey ay ow".split())
CONSONANTS = set(toyspeech.PHONEMES) - VOWELS
SAME = [{"t", "ty", "st", "tr"}, {"k", "sk"}, {"r", "rr"}, {"l", "el"}, {"iy", "i"}, {"ao", "or"}]


def some_phrases(n, seed):
    """Two seen phrases for an unseen one."""
    return toyspeech.phrases(2 * n // 3, seed) + toyspeech.phrases(n // 3, seed, "unseen")


def share_right(read, phrases):
    return np.mean([text == phrase for text, phrase in zip(read, phrases, strict=True)])


# ------------------------------------------------------------------------------------------------
# Phrases.


def test_all_phrases_are_there_once():
    sizes, pairs = len(toyworld.SIZES), len(toyworld.KINDS)
    assert len(ALL_PHRASES) == len(set(ALL_PHRASES)) == sizes * pairs + 99


def test_splits_keep_apart():
    names = [toyworld.number_words(n) for n in range(100)]
    for split in ("seen", "unseen"):
        said = toyspeech.phrases(500, 0, split)
        assert 0.4 < np.mean([phrase.startswith("a ") for phrase in said]) < 0.6
        for phrase in said:
            if phrase.startswith("a "):
                hidden = toyworld.unseen(*phrase.split()[2:])
            else:
                hidden = toyworld.unseen_number(names.index(phrase))
            assert hidden == (split == "unseen")
    with pytest.raises(ValueError):
        toyspeech.phrases(1, 0, "test")


# ------------------------------------------------------------------------------------------------
# The synthesiser.


def test_every_phrase_is_short_and_fills_its_wave():
    voices = list(toyspeech.VOICES) * len(ALL_PHRASES)
    for wave in toyspeech.speak(ALL_PHRASES, 0, voices[:len(ALL_PHRASES)]):
        assert wave.dtype == np.float32 and wave.ndim == 1
        assert 0.2 * toyspeech.SAMPLE_RATE < len(wave) <= 1.5 * toyspeech.SAMPLE_RATE
        assert np.abs(wave).max() == pytest.approx(0.9)
        loud = np.flatnonzero(np.abs(wave) > 0.009)
        silence = 0.04 * toyspeech.SAMPLE_RATE
        assert loud[0] <= silence and loud[-1] >= len(wave) - silence


def test_speech_is_deterministic():
    said = toyspeech.phrases(6, 0)
    state = np.random.get_state()[1].copy()
    first = toyspeech.speak(said, 1)
    again = toyspeech.speak(said, 1)
    other = toyspeech.speak(said, 2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other))
    assert (np.random.get_state()[1] == state).all()
    assert toyspeech.speak([], 0) == []
    with pytest.raises(KeyError, match="dodecahedron"):
        toyspeech.speak(["a small red dodecahedron"], 0)


def test_source_is_the_sum_of_its_harmonics():
    frames, count = 20, 30
    source = toyspeech.harmonics(np.full(frames, 113.7), np.full(frames, count))
    phase = 2 * np.pi * 113.7 / toyspeech.SAMPLE_RATE * np.arange(1, len(source) + 1)
    wanted = np.cos(np.arange(1, count + 1)[:, None] * phase).sum(0)
    np.testing.assert_allclose(source, wanted, atol=1e-6)


def test_resonances_peak_at_the_formants():
    f = np.arange(100, 5000, 5, dtype=np.float32)
    formants = np.array([[500, 1500, 2500, 3500, 4500]], np.float32)
    gain = np.abs(toyspeech.resonances(formants, f))[0]
    peaks = np.flatnonzero((gain[1:-1] > gain[:-2]) & (gain[1:-1] > gain[2:])) + 1
    np.testing.assert_allclose(f[peaks], formants[0], rtol=0.03)


# ------------------------------------------------------------------------------------------------
# The judge hears what was said.


@pytest.mark.parametrize("voice", toyspeech.VOICES)
def test_judge_reads_ground_truth(voice):
    seed = 30 + list(toyspeech.VOICES).index(voice)
    said = some_phrases(45, seed)
    read = speechjudge.read_speech(toyspeech.speak(said, seed, [voice] * len(said)))
    assert share_right(read, said) >= 0.99


def mel_bank(bins, bands):
    def mel(f):
        return 2595 * np.log10(1 + f / 700)

    f = mel(np.linspace(0, toyspeech.SAMPLE_RATE / 2, bins))
    edges = np.linspace(mel(0), mel(toyspeech.SAMPLE_RATE / 2), bands + 2)
    bank = [np.interp(f, edges[k:k + 3], [0, 1, 0]) for k in range(bands)]
    return torch.from_numpy(np.stack(bank)).float()


def griffin_lim(wave, size=1024, hop=200, bands=80, steps=16):
    """Wave -> log-mel spectrogram, with an error of 2 dB -> wave: what a small codec makes of it."""
    window = torch.hann_window(size)
    generator = torch.Generator().manual_seed(0)

    def analyse(x):
        return torch.stft(x, size, hop, window=window, return_complex=True)

    def synthesise(spectrum):
        return torch.istft(spectrum, size, hop, window=window, length=len(wave))

    bank = mel_bank(size // 2 + 1, bands)
    mel = (bank @ analyse(torch.from_numpy(wave)).abs()).clamp(min=1e-4)
    mel = mel * 10 ** (torch.randn(mel.shape, generator=generator) * 2 / 20)
    magnitude = (torch.linalg.pinv(bank) @ mel).clamp(min=0)
    phase = 2 * torch.pi * torch.rand(magnitude.shape, generator=generator)
    for _ in range(steps):
        phase = analyse(synthesise(torch.polar(magnitude, phase))).angle()
    return synthesise(torch.polar(magnitude, phase)).numpy()


def test_judge_survives_a_vocoder(one_thread):
    said = some_phrases(30, 50)
    read = speechjudge.read_speech([griffin_lim(wave) for wave in toyspeech.speak(said, 52)])
    assert share_right(read, said) >= 0.95


def test_judge_survives_uneven_rhythm(monkeypatch):
    g = toyworld.rng(54)
    even = toyspeech.segment_frames

    def uneven(table, voice, u):
        table = table.copy()
        table[:, 0] *= np.exp(g.normal(0, 0.1, len(table)))
        return even(table, voice, u)

    speechjudge.templates()
    monkeypatch.setattr(toyspeech, "segment_frames", uneven)
    said = some_phrases(30, 53)
    read = speechjudge.read_speech(toyspeech.speak(said, 54))
    assert share_right(read, said) >= 0.95


# ------------------------------------------------------------------------------------------------
# The judge does not hear what was not said.


def same_sound(a, b):
    return a == b or any({a, b} <= group for group in SAME)


def spoil(word, pool, g):
    """A word's phonemes with one of `pool` replaced by another, or one dropped if pool is None."""
    names = toyspeech.phonemes(word)
    if pool is None:
        del names[g.integers(len(names))]
        return names
    places = [i for i, name in enumerate(names) if name in pool]
    i = g.choice(places)
    names[i] = g.choice([other for other in sorted(pool) if not same_sound(other, names[i])])
    return names


def misspoken(phrase, pool, g, monkeypatch):
    """A phrase with a fault in every word but the article."""
    words = []
    for word in phrase.split():
        if word != "a":
            names = spoil(word, pool, g)
            word = "-".join(names)
            monkeypatch.setitem(toyspeech.LEXICON, word, " ".join(names))
        words.append(word)
    return " ".join(words)


FAULTS = {"wrong vowel": VOWELS, "wrong consonant": CONSONANTS, "phoneme dropped": None}


@pytest.mark.parametrize("fault", FAULTS)
def test_judge_refuses_misspoken_phrases(fault, monkeypatch):
    """No fault is known to the judge: all its templates are of true words."""
    g = toyworld.rng(70)
    said = some_phrases(60, 71)
    faulty = [misspoken(phrase, FAULTS[fault], g, monkeypatch) for phrase in said]
    read = speechjudge.read_speech(toyspeech.speak(faulty, 72))
    assert share_right(read, said) <= 0.15
    assert speechjudge.words_right(read, said).mean() <= 0.25


def test_one_misspoken_word_is_unclear(monkeypatch):
    monkeypatch.setitem(toyspeech.LEXICON, "roid", "r ao d")
    for text in speechjudge.read_speech(toyspeech.speak(["a small roid circle"] * 4, 73)):
        assert text.startswith(f"a small {speechjudge.UNCLEAR} ")


def test_judge_refuses_what_is_no_speech():
    g = toyworld.rng(60)
    said = some_phrases(30, 61) + ["nine"]
    spoken = toyspeech.speak(said, 62)
    time = np.arange(16000) / toyspeech.SAMPLE_RATE
    noise = 0.1 * g.standard_normal(16000)
    odd = [noise, np.zeros(16000), np.zeros(100), np.zeros(0), 0.3 * np.sin(2 * np.pi * 440 * time)]
    shuffled = [g.permutation(wave) for wave in spoken]
    assert set(speechjudge.read_speech(odd + shuffled)) == {""}
    assert speechjudge.read_speech([]) == []

    backwards = speechjudge.read_speech([wave[::-1] for wave in spoken])
    assert share_right(backwards, said) == 0


def test_judge_hears_another_word():
    read = speechjudge.read_speech(toyspeech.speak(["a small red circle", "forty two"], 63))
    wanted = ["a large red circle", "forty five"]
    np.testing.assert_allclose(speechjudge.words_right(read, wanted), [2 / 3, 1 / 2])


# ------------------------------------------------------------------------------------------------
# Its parts.


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
    for count, width in ((1, 1), (4, 7), (6, 4), (7, 7), (7, 3), (8, 12)):
        distance = g.random((count, width))
        assert speechjudge.warp(distance).tolist() == cheapest_path(distance)


def test_words_right_by_hand():
    cases = [
        ("a small red circle", "a small red circle", 1),
        ("small red circle", "a small red circle", 1),
        ("a", "a small red circle", 0),
        ("", "forty two", 0),
        ("forty", "forty two", 1 / 2),
        ("a small blue circle", "a small red circle", 2 / 3),
        ("two forty", "forty two", 0),
        ("red circles star", "a small red circle", 0),  # one dropped, one changed, one added
        ("red circle", "a small red circle", 2 / 3),
        ("six seven eight nine", "six", 0),
    ]
    said, wanted, marks = zip(*cases)
    np.testing.assert_allclose(speechjudge.words_right(said, wanted), marks)
