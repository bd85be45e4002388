"""Speech <-> codes: a small spectrogram autoencoder with FSQ, and a vocoder that finds phases.

Encoder: log-mel frames -> convolutions -> one latent for every `stride` frames -> `groups` codes,
side by side in the stream. Decoder: codes -> convolutions -> the magnitudes of every frame. Phases
that fit them are found by Griffin-Lim with momentum (Perraudin et al. 2013). There is no adversary
and no learnt phase, hence a slight metallic ring.

    python -m tokenizers.audio FILE     shows a clip's tokens, and writes what they decode to
"""
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import files

from . import fsq

SAMPLE_RATE = 16000  # Hz
N_FFT = 1024  # samples in an analysis window (64 ms)
HOP = 256  # samples from one frame to the next (16 ms)
BINS = N_FFT // 2 + 1  # frequencies of a spectrum
MELS = 80  # bands from 0 to half the sample rate
CROP = 32  # frames in a training crop (0.5 s)
BATCH = 8  # crops in a training step
LEARNING_RATE = 3e-3
FLOOR = 1e-4  # magnitude below which nothing counts, -80 dB; a sine at full scale has 0.5
DB = 20 / math.log(10)  # dB in a unit of natural log magnitude


@dataclass
class AudioConfig:
    """Sizes of the codec. The defaults suit the toy world's short phrases.

    For recordings of an open vocabulary take stride=2, groups=4: 125 tokens a second.
    """

    stride: int = 4  # frames in a code step (64 ms)
    groups: int = 3  # codes in a step
    levels: tuple = (8, 5, 5)  # quantisation levels of a code; their product is the vocabulary
    hidden: int = 96  # channels of the network
    sample_rate = SAMPLE_RATE

    def __post_init__(self):
        if self.stride < 1 or CROP % self.stride or self.groups < 1:
            raise ValueError(f"stride {self.stride} must divide {CROP}, groups {self.groups} be at "
                             "least 1")

    @property
    def step(self):
        """Samples in a code step."""
        return self.stride * HOP


def mel_filters():
    """Triangles on the mel scale, each with sum 1: float32 (bins, mels)."""
    half = SAMPLE_RATE / 2  # Hz
    mels = np.linspace(0, 2595 * np.log10(1 + half / 700), MELS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)  # Hz
    bins = np.linspace(0, half, BINS)
    bank = []
    for i in range(MELS):
        triangle = np.interp(bins, edges[i:i + 3], [0, 1, 0])
        bank.append(triangle / triangle.sum())
    return torch.tensor(np.stack(bank, 1), dtype=torch.float32)


class Block(nn.Module):
    """Residual pair of convolutions over time, of width 3 and 1."""

    def __init__(self, hidden):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)  # of each frame on its own
        self.conv = nn.Conv1d(hidden, 2 * hidden, 3, padding=1)
        self.out = nn.Conv1d(2 * hidden, hidden, 1)

    def forward(self, x):  # (B, D, T)
        h = self.norm(x.mT).mT
        return x + self.out(F.silu(self.conv(h)))


class Net(nn.Module):
    """The autoencoder. B clips of S samples, T = S / HOP frames, d latent channels to a code."""

    def __init__(self, config):
        super().__init__()
        self.groups = config.groups
        self.fsq = fsq.FSQ(config.levels)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.register_buffer("filters", mel_filters(), persistent=False)
        self.register_buffer("mel_mean", torch.zeros(MELS))  # of the training set
        self.register_buffer("line_mean", torch.zeros(BINS))
        self.register_buffer("scale", torch.zeros(()))
        latent = config.groups * len(config.levels)
        hidden = config.hidden
        stride = config.stride
        self.encoder = nn.Sequential(
            nn.Conv1d(MELS, hidden, 2 * stride + 1, stride, stride // 2 + 1),
            Block(hidden),
            nn.Conv1d(hidden, latent, 1))
        self.decoder = nn.Sequential(
            nn.Conv1d(latent, hidden, 3, padding=1),
            Block(hidden),
            nn.ConvTranspose1d(hidden, hidden, stride, stride),
            Block(hidden),
            nn.Conv1d(hidden, BINS, 1))

    def spectrum(self, waves):
        """Waves (B, S), whole hops -> complex (B, bins, T)."""
        spectrum = torch.stft(waves, N_FFT, HOP, window=self.window, pad_mode="constant",
                              return_complex=True)
        return spectrum[..., :-1]

    def magnitudes(self, waves):
        """Waves (B, S), whole hops -> (B, bins, T)."""
        return self.spectrum(waves).abs() / self.window.sum()

    def mel(self, magnitudes):
        """Magnitudes (B, bins, T) -> their natural log in each mel band, (B, mels, T)."""
        return (self.filters.T @ magnitudes + FLOOR).log()

    def encode(self, mel):
        """Mel (B, mels, T) -> latents (B, T / stride, groups, d)."""
        z = self.encoder((mel - self.mel_mean[:, None]) / self.scale)
        return z.mT.unflatten(-1, (self.groups, -1))

    def decode(self, seen):
        """What FSQ makes of (B, steps, groups, d) -> natural log of magnitudes (B, bins, T)."""
        y = self.decoder(seen.flatten(2).mT)
        return y * self.scale + self.line_mean[:, None]


def griffin_lim(net, magnitudes, rounds=32):
    """A wave (S,) whose spectrum comes close to magnitudes (bins, T).

    It starts from random phases, always the same, and goes to and fro between spectra that have
    these magnitudes and spectra that some wave has.
    """
    target = magnitudes * net.window.sum()
    length = target.shape[1] * HOP
    rng = np.random.Generator(np.random.Philox(key=[0, 0]))
    turns = torch.from_numpy(rng.random(target.T.shape, np.float32)).T
    spectrum = torch.polar(target, 2 * math.pi * turns)
    before = torch.zeros_like(spectrum)
    for _ in range(rounds):
        wave = torch.istft(spectrum, N_FFT, HOP, window=net.window, length=length)
        found = net.spectrum(wave)
        ahead = found + 0.99 * (found - before)  # momentum
        spectrum = target * ahead.sgn()  # its phases alone
        before = found
    return torch.istft(spectrum, N_FFT, HOP, window=net.window, length=length)


def padded(wave, config):
    """A wave (samples,) as a float32 tensor (1, S) of whole code steps, with zeros at its end."""
    missing = -len(wave) % config.step
    return torch.from_numpy(np.pad(np.float32(wave), (0, missing)))[None]


def train(waves, config, steps, seed=0, device="cpu"):
    """Learn a codec from float waves (samples,) in `steps` steps."""
    tokenizer = Tokenizer(config, seed)
    net = tokenizer.net.to(device)
    frames = []  # magnitudes (T, bins) of each clip; 64 kB a second of speech
    with torch.no_grad():
        for wave in waves:
            magnitudes = net.magnitudes(padded(wave, config).to(device))
            frames.append(magnitudes[0].T.half().cpu())
        frames = torch.cat(frames)
        every = 1 + len(frames) // 16384  # enough for means
        some = frames[::every].to(device).float().T  # (bins, T')
        mel = net.mel(some)
        net.mel_mean.copy_(mel.mean(1))
        net.scale.copy_(mel.std().clamp(min=1e-3))
        net.line_mean.copy_((some + FLOOR).log().mean(1))
    frames = F.pad(frames, (0, 0, 0, CROP - config.stride))
    crops = frames.unfold(0, CROP, config.stride)  # (N, bins, crop), may run into the next clip

    def loss_of(rng):
        drawn = torch.from_numpy(rng.integers(0, len(crops), BATCH))
        target = crops[drawn].to(device).float()  # (B, bins, crop)
        mel = net.mel(target)
        lines = net.decode(net.fsq(net.encode(mel)))
        mel_error = (net.mel(lines.exp()) - mel).abs().mean()
        line_error = (lines - (target + FLOOR).log()).abs().mean()
        return mel_error + line_error

    tokenizer.fit(loss_of, steps, LEARNING_RATE, seed, warmup=0.05)
    return tokenizer


class Tokenizer(fsq.Codec):
    """Float waves (samples,) <-> codes (steps groups,), the groups of a step side by side."""

    medium = "audio"
    Config = AudioConfig
    Net = Net

    def mel(self, wave):
        """A wave (samples,) -> log-mel (1, mels, T)."""
        return self.net.mel(self.net.magnitudes(padded(wave, self.config)))

    @torch.inference_mode()
    def encode(self, samples):
        """List of float waves (samples,) -> list of int32 (steps groups,)."""
        out = []
        for wave in samples:
            codes = self.net.fsq.codes(self.net.encode(self.mel(wave)))  # (1, steps, groups)
            out.append(codes.flatten().int().numpy())
        return out

    @torch.inference_mode()
    def magnitudes(self, codes):
        """List of codes -> list of magnitude spectra (bins, T), before the vocoder."""
        out = []
        for row in codes:
            if not len(row):
                row = np.zeros(self.groups, int)  # an empty clip is one step
            seen = self.net.fsq.look_up(row).unflatten(0, (1, -1, self.groups))
            lines = self.net.decode(seen)[0]
            out.append((lines.exp() - FLOOR).clamp(min=0))
        return out

    @torch.inference_mode()
    def decode(self, codes):
        """List of codes (steps groups,) -> list of float32 waves (steps stride hop,)."""
        waves = [griffin_lim(self.net, magnitudes) for magnitudes in self.magnitudes(codes)]
        return [wave.clamp(-1, 1).numpy() for wave in waves]

    @torch.inference_mode()
    def report(self, samples):
        """Figures on clips that were held out; mel_dB before the vocoder, wave_dB after it."""
        codes = self.encode(samples)
        before = []
        after = []
        for wave, coded, heard in zip(samples, self.magnitudes(codes), self.decode(codes)):
            mel = self.mel(wave)
            before.append(DB * float((self.net.mel(coded) - mel).abs().mean()))
            after.append(DB * float((self.mel(heard) - mel).abs().mean()))
        errors = {"mel_dB": float(np.mean(before)), "wave_dB": float(np.mean(after))}
        return {**errors, **self.figures(codes)}


load = Tokenizer.load


def main():
    """Show a clip's tokens. Write what they decode to, to out/."""
    import soundfile

    from sources.folders import open_clip
    parser = files.Parser(prog="python -m tokenizers.audio", description=main.__doc__)
    parser.add_argument("file")
    parser.add_argument("--tokenizer", default="runs/toy/speech.pt")
    args = parser.parse_args()
    tokenizer = load(args.tokenizer)
    wave = open_clip(args.file)
    codes = tokenizer.encode([wave])
    again = tokenizer.decode(codes)[0]
    path = Path("out", Path(args.file).stem + "-decoded.wav")
    with files.whole(path) as temporary:
        soundfile.write(temporary, again, SAMPLE_RATE, format="WAV")
    print("steps:", codes[0].reshape(-1, tokenizer.groups), sep="\n")
    print(f"log-mel off by {tokenizer.report([wave])['wave_dB']:.2f} dB; what they decode to is in "
          + files.quoted(path))


if __name__ == "__main__":
    files.command_line(main, "audio")
