"""The toy world's speech: phrases, a formant synthesiser (16 kHz) that speaks them, and a judge that reads them back.

The judge aligns an utterance with templates of all words, in all voices, under the grammar of what can be said. It is never
trained. All functions are pure: randomness is a Philox stream keyed by (seed, stream).
"""
import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from toyworld import (COLOURS, KINDS, NOISE, PHRASES, SHAPES, SIZES, SPEAK, TEENS, TENS, UNITS, kinds, number_words, rng, unseen,
                      unseen_number)

SAMPLE_RATE = 16000      # Hz
LONGEST = 1.45           # seconds; utterances that would last longer are spoken faster

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
    """Phrases -> list of float32 waves, 16 kHz, peak 0.9, at most 1.5 s; a KeyError names an unknown word.

    `voices`: a name of VOICES for each phrase; random when not given. Source and filter: harmonics
    of a gliding pitch (and noise) times the formants' frequency response, frame by frame, with
    overlap-add. All utterances of a chunk are one long signal with gaps; chunks share all cores."""
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
    return np.array([word_accuracy(*([w for w in text.split() if w != "a"] for text in pair))
                     for pair in zip(texts, wanted, strict=True)], float)


def word_accuracy(said, wanted):
    """1 - edit distance / number of wanted words, at least 0; said and wanted: lists of words."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return max(0.0, 1 - row[-1] / max(len(wanted), 1))
