"""A judge that reads the toy world's speech back. It is deterministic and was never trained.

What was heard is warped in time onto templates: every phrase, spoken by the synthesiser. The
phrase whose phonemes are nearest was meant. But a word counts only if each of its phonemes is
there, at most CLEAR away from the template's. So one wrong or missing phoneme spoils its word,
however near the phrase is as a whole. No fault has a template, so no fault is preferred.
"""
import functools
from typing import NamedTuple

import numpy as np

from sources.toyspeech import (HOP, PHONEMES, SAMPLE_RATE, all_phrases, phonemes, segment_frames,
                               segments, utter)

FRAME = 512  # samples, 32 ms
STRIDE = 200  # samples, 12.5 ms
BANDS = 26  # mel bands
KEPT = 12  # cepstra that are kept: the first ones, without that of loudness
RANGE = 45  # dB below the loudest that still count
VOICES = ("tenor", "alto")  # of the templates. The other two voices are near enough
NEUTRAL = np.zeros(4)  # the templates' u, see toyspeech.articulate
POINTS = 32  # frames of a template in the first, coarse comparison
SHORTLIST = 16  # templates that pass it
DETOUR = 0.2  # dB, what it costs not to go on frame by frame: no stretching without need
SPAN = 7  # frames
CLEAR = 6.0  # dB, largest distance of a phoneme that is there. Of true speech: 5.0
UNCLEAR = "[unclear]"  # stands for a word that is not as it should be


class Template(NamedTuple):
    """A phrase as it should sound."""

    phrase: str
    features: np.ndarray  # (J, 2 KEPT)
    phoneme: np.ndarray  # (J,) the number of the phoneme that each frame belongs to


# ------------------------------------------------------------------------------------------------
# Features: mel-frequency cepstra (Davis and Mermelstein 1980) and their slopes. The distance of
# two frames is the root mean square difference over the bands in dB, of smoothed spectra.


def mel(f):
    return 2595 * np.log10(1 + f / 700)


@functools.cache
def mel_bands():
    """Triangular filters, evenly on the mel scale: (FRAME / 2 + 1, BANDS)."""
    bins = mel(np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE))
    centres = np.linspace(mel(80), mel(7600), BANDS + 2)  # from 80 to 7600 Hz
    width = centres[1] - centres[0]
    apart = np.abs(bins[:, None] - centres[1:-1])
    return (1 - apart / width).clip(min=0)


@functools.cache
def cosines():
    """The discrete cosine transform of BANDS values, coefficients 1 to KEPT: (BANDS, KEPT)."""
    band = np.arange(BANDS)[:, None] + 0.5
    order = np.arange(1, KEPT + 1)
    return np.cos(np.pi * order * band / BANDS) * np.sqrt(2) / BANDS


def features(wave):
    """A wave (samples,) -> its features (T, 2 KEPT), and the centre of each frame (T,), a sample.

    Silent frames at both ends are left out.
    """
    padded = np.pad(wave, FRAME)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::STRIDE]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME))) ** 2
    bands = power @ mel_bands() + 1e-12  # (T, BANDS), never 0
    level = (RANGE + 10 * np.log10(bands / bands.max())).clip(min=0)  # dB

    cepstra = level @ cosines()
    both = np.hstack([cepstra, np.gradient(cepstra, axis=0)])
    centre = np.arange(len(both)) * STRIDE - FRAME // 2

    heard = np.flatnonzero(level.any(1))
    kept = slice(heard[0], heard[-1] + 1)
    return both[kept], centre[kept]


def make_template(phrase, voice, wave):
    """The template of a phrase that was spoken as `wave`, with nothing varied."""
    x, centre = features(wave)
    of_segment = []
    for i, name in enumerate(phonemes(phrase)):
        of_segment += [i] * len(PHONEMES[name])
    frames = segment_frames(segments(phrase), voice, NEUTRAL)
    of_frame = np.repeat(of_segment, frames)
    at = np.rint(centre / HOP).astype(int) - 1  # the synthesiser's frame k is at hop k + 1
    at = at.clip(0, len(of_frame) - 1)
    return Template(phrase, x, of_frame[at])


@functools.cache
def templates():
    """All phrases in VOICES -> list of K Templates, and their coarse form (K, POINTS, 2 KEPT)."""
    said = []
    for split in ("seen", "unseen"):
        things, numbers = all_phrases(split)
        for phrase in things + numbers:
            said += [(phrase, voice, NEUTRAL) for voice in VOICES]
    waves = utter(said, seed=0)
    made = [make_template(phrase, voice, wave) for (phrase, voice, _), wave in zip(said, waves)]
    return made, np.stack([same_length(template.features) for template in made])


def same_length(x):
    """POINTS frames of x (T, D), evenly spaced -> (POINTS, D)."""
    picked = np.linspace(0, len(x) - 1, POINTS).round()
    return x[picked.astype(int)]


def shortlist(x):
    """The templates nearest to x (T, D) once all have the same length: at most SHORTLIST.

    Those that are too long for x to be warped to are left out.
    """
    made, coarse = templates()
    apart = ((coarse - same_length(x)) ** 2).sum((1, 2))  # (K,)
    nearest = [made[i] for i in np.argsort(apart)]
    possible = [template for template in nearest if len(template.features) < 2 * len(x)]
    return possible[:SHORTLIST]


# ------------------------------------------------------------------------------------------------
# Reading.


def distances(x, y):
    """Euclidean distances of frames x (T, D) and y (J, D) -> (T, J)."""
    x_square = (x ** 2).sum(1)[:, None]
    y_square = (y ** 2).sum(1)
    square = x_square + y_square - 2 * x @ y.T
    return np.sqrt(square.clip(min=0))


def warp(distance):
    """Dynamic time warping (Sakoe and Chiba 1978): the cheapest path from first to last frames.

    distance: (T, J), J < 2 T. From one heard frame to the next, the template's frame stays, goes
    on by one, or goes on by two. Returns the template's frame at each heard frame, (T,).
    """
    count, width = distance.shape
    cost = np.full((count, width + 2), np.inf)  # of the best path to a point, from column 2 on
    cost[0, 2] = distance[0, 0]
    for t in range(1, count):
        before = cost[t - 1]
        detour = np.minimum(before[2:], before[:-2]) + DETOUR  # it stayed, or went on by two
        cost[t, 2:] = distance[t] + np.minimum(before[1:-1], detour)

    j = width - 1
    path = [j]
    for before in cost[-2::-1]:
        skipped, went_on, stayed = before[j:j + 3]
        costs = [stayed + DETOUR, went_on, skipped + DETOUR]
        j -= costs.index(min(costs))
        path.append(j)
    return np.array(path[::-1])


def phoneme_errors(x, template):
    """How far each phoneme of a template is from what was heard (T, D) -> (P,) in dB.

    The mean over its frames, or over SPAN frames around one of them, whichever is larger: the
    warping stretches what fits, and what does not fit may lie across phonemes.
    """
    distance = distances(x, template.features)
    path = warp(distance)
    error = distance[np.arange(len(x)), path]  # (T,)
    phoneme = template.phoneme[path]  # (T,)
    worst = np.bincount(phoneme, error) / np.bincount(phoneme)
    around = np.convolve(error, np.ones(SPAN) / SPAN, "same")
    np.maximum.at(worst, phoneme, around)
    return worst


def clear_words(phrase, errors):
    """A phrase, UNCLEAR in place of its words with a phoneme beyond CLEAR. "" if none is clear.

    The article counts for nothing, see `words_right`. If it is unclear, it is left out.
    """
    said = []
    start = 0
    for word in phrase.split():
        end = start + len(phonemes(word))
        if errors[start:end].max() <= CLEAR:
            said.append(word)
        elif word != "a":
            said.append(UNCLEAR)
        start = end
    return "" if set(said) <= {"a", UNCLEAR} else " ".join(said)


def read_one(wave):
    x, _ = features(wave)
    least = np.inf
    said = ""
    for template in shortlist(x):
        errors = phoneme_errors(x, template)
        score = np.mean(errors ** 2)
        if score < least:
            least = score
            said = clear_words(template.phrase, errors)
    return said


def read_speech(waves):
    """Waves (samples,) at 16 kHz -> the nearest phrase of each, as `clear_words` leaves it."""
    return [read_one(wave) for wave in waves]


def word_accuracy(said, wanted):
    """1 - edit distance / number of wanted words, at least 0. said, wanted: lists of words."""
    row = list(range(len(wanted) + 1))  # distances of what was said so far from wanted[:j]
    for word in said:
        before = row
        row = [before[0] + 1]
        for other, diagonal, above in zip(wanted, before, before[1:]):
            change = diagonal + (word != other)
            row.append(min(change, above + 1, row[-1] + 1))
    return max(0.0, 1 - row[-1] / max(len(wanted), 1))


def content(text):
    """A text's words without the article."""
    return [word for word in text.split() if word != "a"]


def words_right(texts, wanted):
    """`word_accuracy` of each text, content words only -> (N,) floats. wanted: N texts."""
    marks = []
    for said, right in zip(texts, wanted, strict=True):
        marks.append(word_accuracy(content(said), content(right)))
    return np.array(marks, float)
