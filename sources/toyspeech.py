"""The toy world's speech: phrases, and a formant synthesiser that speaks them at 16 kHz.

A phrase is "a small red circle" or a number in words. Its phonemes give a track of formants and
levels. A source (harmonics of a gliding pitch, and noise) goes through filters that follow the
track: source and filter, as in Klatt (1980), "Software for a cascade/parallel formant
synthesizer". All functions are pure: see toyworld.rng.
"""
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sources.toyworld import NOISE, NUMBERS, PHRASES, SIZES, SPEAK, chooser, choices, rng

SAMPLE_RATE = 16000  # Hz
LONGEST = 1.45  # seconds: utterances that would last longer are spoken faster
HOP = 100  # samples from one frame to the next, 6.25 ms
WINDOW = 400  # samples of a frame, 25 ms
FFT = 600  # samples
CHUNK = 4  # utterances that are computed as one signal
BANDWIDTH = (70, 100, 140, 220, 300)  # Hz, of the formants F1 to F5
HIGH_FORMANTS = (3500, 4500)  # Hz, F4 and F5: the same for all phonemes
TOP = 7600  # Hz: no harmonics beyond

# One segment a row, and one to three segments a phoneme. A row that ends early is completed by
# the values of REST. voice, breath, hiss: levels of the harmonics, of noise through the formants,
# and of noise in a band of its own (centre and width). Vowels: Peterson and Barney (1952), men.
# Consonants: near Klatt (1980), table III. rr: as in star. el: syllabic. ty: the t of "-ty".
# st and sk: t and k after s. tr: t before r.
REST = (80, 500, 1500, 2500, 1.0, 0, 0, 4000, 1000)
SEGMENTS = """
     ms   F1   F2   F3  voice breath hiss centre width
iy  120  280 2250 2950
i    75  310 2150 2850  0.85
ih   75  400 1950 2550
eh   95  550 1800 2480
ae  110  670 1720 2430
aa  120  730 1100 2440
ao  125  620  950 2410
or  100  500  860 2350
ah   95  640 1190 2390
uw  130  310  900 2240
er  120  480 1330 1680
ax   50  500 1400 2450  0.7
ey   70  500 1850 2500
ey   70  330 2200 2700
ay   95  740 1150 2450
ay   70  380 2050 2600
ow   70  540 1000 2350
ow   75  370  800 2300
w    60  290  640 2150  0.5
y    55  270 2150 3000  0.5
r    80  320 1080 1400  0.6
rr   65  480 1280 1600  0.85
l    65  350 1200 2900  0.5
el   95  420  800 2700  0.7
m    85  270 1100 2130  0.55
n    85  260 1550 2500  0.5
ng   75  270 2000 2700  0.5
s   105  320 1500 2550  0     0    0.30  6000 1300
f    95  340 1100 2080  0     0.02 0.10  5500 3500
th   90  320 1300 2540  0     0.02 0.09  6200 3000
v    60  230 1100 2080  0.3   0    0.05  5500 3500
b    50  200 1000 2150  0.1
b     8  250 1000 2150  0.3   0    0.15   900  700
d    45  200 1650 2600  0.1
d    10  250 1650 2600  0.3   0    0.25  4200 1300
g    50  200 1550 2150  0.1
g    16  250 1550 2150  0.2   0    0.32  1500  400
p    65  300 1000 2150  0
p     8  400 1000 2150  0     0    0.22  1000  900
p    35  450 1100 2200  0     0.14
t    55  300 1700 2600  0
t    12  350 1700 2600  0     0    0.42  4800 1500
t    35  400 1700 2600  0     0.10 0.12  4800 1500
ty   42  300 1750 2600  0
ty   10  350 1750 2600  0     0    0.30  4800 1500
ty   18  400 1750 2600  0     0.08 0.05  4800 1500
st   50  300 1700 2600  0
st   12  350 1700 2600  0     0    0.30  4500 1500
k    60  300 1550 2200  0
k    18  350 1550 2200  0     0    0.45  1700  500
k    50  400 1450 2050  0     0.26
sk   55  300 1500 2300  0
sk   16  350 1400 2200  0     0    0.50  1600  500
sk   12  350 1300 2200  0     0.15
tr   45  300 1600 2300  0
tr   12  350 1600 2200  0     0    0.5   3200 1200
tr   40  350 1400 1900  0     0.06 0.40  2500  700
jh   30  250 1700 2400  0.15
jh   12  280 1800 2500  0     0    0.9   3600 1500
jh   80  280 1800 2500  0.25  0    0.8   2800 1000
"""
WORDS = """
a: ax, small: s m ao l, large: l aa rr jh, red: r eh d, green: g r iy n, blue: b l uw,
yellow: y eh l ow, purple: p er p el, orange: or rr ih n jh, circle: s er k el,
square: s sk w eh rr, triangle: tr r ay ae ng g el, star: s st aa rr, cross: k r ao s,
one: w ah n, two: t uw, three: th r iy, four: f or rr, five: f ay v, six: s ih k s,
seven: s eh v ax n, eight: ey t, nine: n ay n, ten: t eh n, eleven: ax l eh v ax n,
twelve: t w eh l v, thirteen: th er t iy n, fourteen: f or rr t iy n, fifteen: f ih f t iy n,
sixteen: s ih k s t iy n, seventeen: s eh v ax n t iy n, eighteen: ey t iy n,
nineteen: n ay n t iy n, twenty: t w eh n ty i, thirty: th er ty i, forty: f or rr ty i,
fifty: f ih f ty i, sixty: s ih k s ty i, seventy: s eh v ax n ty i, eighty: ey ty i,
ninety: n ay n ty i
"""
# pitch (Hz), time stretch, formant scale, breath mixed into the voice
VOICES = {
    "bass": (92, 1.04, 0.97, 0.01),
    "tenor": (125, 0.96, 1.02, 0.01),
    "alto": (178, 1.02, 1.13, 0.02),
    "soprano": (205, 1.0, 1.16, 0.02),
}


def read_segments(text):
    """SEGMENTS -> {phoneme: list of its segments, nine numbers each}."""
    table = {}
    for line in text.strip().splitlines()[1:]:
        name, *values = line.split()
        row = tuple(map(float, values))
        table.setdefault(name, []).append(row + REST[len(row):])
    return table


PHONEMES = read_segments(SEGMENTS)
LEXICON = dict(entry.split(": ") for entry in " ".join(WORDS.split()).split(", "))


# ------------------------------------------------------------------------------------------------
# What is said.


def all_phrases(split):
    """The things and the numbers of a split -> two lists of phrases. See UNSEEN."""
    pairs = [pair for (pair,) in choices(1, split)]
    things = [f"a {size} {colour} {shape}" for size in SIZES for colour, shape in pairs]
    numbers = [NUMBERS[n] for n in range(1, 100) if (n % 7 == 0) == (split == "unseen")]
    return things, numbers


def phrases(n, seed, split="seen"):
    """n random phrases, half "a small red circle", half numbers in words (1 to 99)."""
    options = all_phrases(split)
    chosen = []
    for row in rng(seed, PHRASES).random((n, 2)):
        pick = chooser(row)
        chosen.append(pick(pick(options)))
    return chosen


# ------------------------------------------------------------------------------------------------
# How it is said: the track of a phrase.


def phonemes(phrase):
    """The names of a phrase's phonemes. KeyError for a word that is not in LEXICON."""
    names = []
    for word in phrase.split():
        names += LEXICON[word].split()
    return names


def segments(phrase):
    """The rows of SEGMENTS that make a phrase: (S, 9)."""
    return np.concatenate([PHONEMES[name] for name in phonemes(phrase)])


def segment_frames(table, voice, u):
    """Frames of each segment of a table (S, 9) -> (S,) ints. u: as for `articulate`."""
    stretch = VOICES[voice][1]
    ms = table[:, 0] * stretch * (1 + 0.05 * u[1])
    ms[-4:] *= 1.15  # words are longer at the end
    if not table[0, 4:7].any():
        ms[0] = 12  # no long silence before a first stop
    ms *= min(1, LONGEST * 1000 / ms.sum())
    ends = np.rint(np.cumsum(ms) / 1000 * SAMPLE_RATE / HOP).astype(int)
    return np.diff(ends, prepend=0)


def smooth(track, kernel):
    """Each column of a track (F, C), convolved with a kernel of odd length; ends are held."""
    padded = np.pad(track, ((len(kernel) // 2, len(kernel) // 2), (0, 0)), "edge")
    return np.column_stack([np.convolve(column, kernel, "valid") for column in padded.T])


def articulate(phrase, voice, u):
    """The track of one utterance, (F, 12), a row for each frame.

    Its columns are the formants F1 to F5 in Hz; levels of voice, breath and hiss; centre and width
    of the hiss in Hz; the pitch in Hz, and how many of its harmonics are below TOP.
    u: four numbers in [-1, 1] that vary pitch, rate, formants and melody. Formants move smoothly
    from one phoneme to the next (56 ms), levels quickly (19 ms).
    """
    pitch, _, scale, breath = VOICES[voice]
    table = segments(phrase)
    track = np.repeat(table[:, 1:], segment_frames(table, voice, u), axis=0)  # (F, 8)
    count = len(track)

    slow = np.hanning(11)[1:-1]
    formants = smooth(track[:, :3], slow / slow.sum()) * (scale * (1 + 0.015 * u[2]))
    high = np.tile(scale * np.array(HIGH_FORMANTS), (count, 1))

    at = np.linspace(0, 1, count)
    fade = np.minimum(1, np.minimum(at, 1 - at) * count / 4)  # 25 ms in and out
    levels = smooth(track[:, 3:6], np.array([0.25, 0.5, 0.25]))
    levels[:, 1] += breath * levels[:, 0]
    levels *= fade[:, None]

    glide = 1.10 - 0.28 * at + 0.05 * np.sin(2 * np.pi * (1.5 * at + u[3]))
    melody = pitch * (1 + 0.05 * u[0]) * glide
    lines = np.full(count, TOP // melody.max())
    return np.column_stack([formants, high, levels, track[:, 6:], melody, lines])


# ------------------------------------------------------------------------------------------------
# How it sounds: source and filter.


def harmonics(pitch, count):
    """The voice's source: sum of cos(k phase) for k = 1 to K, from pitch and K of each frame.

    In closed form, the Dirichlet kernel: sin((K + 1/2) phase) / (2 sin(phase / 2)) - 1/2.
    """
    frames = len(pitch)
    sample = np.arange(frames * HOP + WINDOW)
    f0 = np.interp(sample / HOP, np.arange(frames), pitch)
    phase = np.cumsum(2 * np.pi * f0 / SAMPLE_RATE) % (2 * np.pi)
    order = count[np.minimum(sample // HOP, frames - 1)]
    below = np.maximum(np.sin(phase / 2), 1e-6)  # phase / 2 is in [0, pi): never negative
    return np.sin((order + 0.5) * phase) / (2 * below) - 0.5


def spectra(signal):
    """Windowed Fourier transform of a signal (F HOP + WINDOW,): complex (F, FFT / 2 + 1)."""
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    pieces = np.lib.stride_tricks.sliding_window_view(signal.astype(np.float32), WINDOW)
    return np.fft.rfft(pieces[:-1:HOP] * window, FFT)


def overlap_add(spectrum):
    """The signal of spectra (F, FFT / 2 + 1) -> (F HOP + FFT,). Frame k starts at k HOP."""
    pieces = np.fft.irfft(spectrum, FFT)  # (F, FFT)
    frames, parts = len(pieces), FFT // HOP
    wave = np.zeros((frames + parts, HOP), np.float32)
    for k in range(parts):
        wave[k:k + frames] += pieces[:, k * HOP:(k + 1) * HOP]
    return wave.ravel()


def resonances(formants, f):
    """Vocal tract, a cascade of resonances F of width B: prod 1 / (1 - (f/F)^2 + i f B / F^2).

    formants: (F, 5) Hz. f: (bins,) Hz. Returns complex64 (F, bins).
    """
    divisor = np.complex64(1)
    for formant, width in zip(formants.T, BANDWIDTH):
        peak = formant[:, None] ** -2
        divisor = divisor * (1 - f ** 2 * peak + f * np.complex64(1j * width) * peak)
    return 1 / divisor


def sound(track, noise):
    """The signal of a track (F, 12): (samples,). noise: the generator of breath and hiss.

    Every filter has unit root mean square gain, so a level means the same for all phonemes.
    """
    formants, levels, band = np.split(track[:, :10].astype(np.float32), (5, 8), axis=1)
    pitch, lines = track[:, 10:].T  # the columns stand in `articulate`
    f = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE).astype(np.float32)  # (bins,) Hz
    source = harmonics(pitch, lines)
    hiss = spectra(noise.standard_normal(len(source)))  # (F, bins)

    tilt = 1 / np.sqrt(1 + (f / 350) ** 2)  # glottis and lips: -6 dB an octave
    tract = resonances(formants, f)  # (F, bins)
    gain = tract.real ** 2 + tract.imag ** 2
    centre, width = band.T[:, :, None]
    hill = np.exp(-0.5 * ((f - centre) / width) ** 2)

    voice, breath, hissing = levels.T
    power = lines.astype(np.float32) / 2  # of so many sines
    voice = voice / np.sqrt(power * (gain @ tilt ** 2) / len(f))
    breath = breath / np.sqrt(gain.mean(1))
    hissing = hissing / np.sqrt((hill ** 2).mean(1))
    voiced = spectra(source) * tilt * voice[:, None]
    breathy = hiss * breath[:, None]
    return overlap_add(tract * (voiced + breathy) + hiss * hill * hissing[:, None])


def speak_chunk(said, noise):
    """A few (phrase, voice, u) -> list of float32 waves with peak 0.9, computed as one signal."""
    gap = FFT // HOP  # silent frames behind each
    tracks = [np.pad(articulate(*one), ((0, gap), (0, 0)), "edge") for one in said]
    for track in tracks:
        track[-gap:, 5:8] = 0  # the levels
    signal = sound(np.concatenate(tracks), noise)
    waves = []
    start = 0
    for track in tracks:
        end = start + len(track)
        wave = signal[(start + 1) * HOP:(end - gap + 3) * HOP]  # frame k is centred at hop k + 2
        waves.append(wave * (0.9 / np.abs(wave).max()))
        start = end
    return waves


def utter(said, seed):
    """List of (phrase, voice, u) -> list of waves, see `speak` and, for u, `articulate`.

    Chunks share all cores: numpy computes outside Python's lock.
    """
    def chunk(start):
        return speak_chunk(said[start:start + CHUNK], rng(seed, NOISE + 1000 * (start + 1)))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunks = pool.map(chunk, range(0, len(said), CHUNK))
        return [wave for waves in chunks for wave in waves]


def speak(phrases, seed):
    """Phrases, in random voices -> list of float32 waves at 16 kHz, peak 0.9, at most 1.5 s.

    KeyError for a word that is not in LEXICON.
    """
    voices = rng(seed, SPEAK).choice(list(VOICES), len(phrases))
    u = rng(seed, SPEAK + 100).uniform(-1, 1, (len(phrases), 4))
    return utter(list(zip(phrases, voices, u)), seed)
