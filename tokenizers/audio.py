"""Speech <-> ids: a small spectrogram autoencoder with finite scalar quantisation and a phase-retrieving vocoder.

Encoder: log-mel frames -> convolutions -> one latent for every `stride` frames -> `groups` FSQ codes, interleaved in
the stream (step 0 group 0, step 0 group 1, ..., step 1 group 0, ...). Decoder: codes -> convolutions -> the linear
log-magnitude spectrum of every frame; Griffin-Lim with momentum (Perraudin et al. 2013) finds phases that fit it.
Honest about its limits: no adversary, no learnt phase, hence a slight metallic ring.
"""

from dataclasses import dataclass
from math import log2

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import fsq

FLOOR = 1e-4  # smallest magnitude that counts, -80 dB; a sine at full scale has magnitude 0.5
DB = 20 / np.log(10)  # dB in a unit of natural log magnitude


@dataclass
class AudioConfig:
    """Sizes of the codec. For recordings of an open vocabulary stride=2, groups=4: 31 steps = 125 tokens a second. Telephone
    prompts, 11 minutes of training data, 70 s of training: a recogniser gets 5% of the words wrong (untouched: 3%; with the
    defaults, meant for the toy world's short phrases, 24%)."""

    sample_rate: int = 16000  # Hz
    n_fft: int = 1024  # samples in an analysis window (64 ms)
    hop: int = 256  # samples from one frame to the next (16 ms)
    n_mels: int = 80  # mel bands from 0 to half the sample rate
    stride: int = 4  # frames in a code step (64 ms: 15.6 steps a second)
    groups: int = 3  # codes in a step
    levels: tuple = (8, 5, 5)  # quantisation levels of a code's channels; their product is the vocabulary
    hidden: int = 96  # channels of the network
    blocks: int = 1  # residual blocks of the encoder, and of each half of the decoder
    crop: int = 32  # frames in a training crop (0.5 s)

    def __post_init__(self):
        self.levels = tuple(self.levels)
        fsq.check_levels(self.levels)
        if self.n_fft % self.hop or self.crop % self.stride:
            raise ValueError(f"hop {self.hop} must divide n_fft {self.n_fft}, stride {self.stride} crop {self.crop}")

    @property
    def step(self):
        return self.stride * self.hop  # samples in a code step


def mel_filters(config):
    """Triangles on the mel scale (m = 2595 log10(1 + f / 700)), each summing to one -> (n_fft/2 + 1, n_mels)."""
    top = 2595 * np.log10(1 + config.sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, config.n_mels + 2) / 2595) - 1)  # Hz
    bins = np.linspace(0, config.sample_rate / 2, config.n_fft // 2 + 1)[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bank = np.maximum(0, np.minimum(rise, fall))
    for band in np.flatnonzero(bank.sum(0) == 0):  # narrower than a bin: take the nearest one
        bank[np.abs(bins[:, 0] - edges[band + 1]).argmin(), band] = 1
    return torch.tensor(bank / bank.sum(0), dtype=torch.float32)


class Block(nn.Module):
    """Residual pair of convolutions over time, of width 3 (spread by dilation) and 1."""

    def __init__(self, hidden, dilation=1):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.conv = nn.Conv1d(hidden, 2 * hidden, 3, padding=dilation, dilation=dilation)
        self.out = nn.Conv1d(2 * hidden, hidden, 1)

    def forward(self, x):  # (B, D, T)
        h = self.norm(x.transpose(1, 2)).transpose(1, 2)  # each frame on its own: padding cannot leak
        return x + self.out(F.silu(self.conv(h)))  # (B, D, T)


class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, hidden, latent = config, config.hidden, len(config.levels) * config.groups
        bins, frames = config.n_fft // 2 + 1, config.stride * config.n_mels
        self.register_buffer("levels", torch.tensor(config.levels, dtype=torch.float32), persistent=False)
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        self.register_buffer("filters", mel_filters(config), persistent=False)
        for name, shape in {  # statistics of the training set, and the baseline's principal components
            "mel_mean": (config.n_mels,),
            "line_mean": (bins,),
            "scale": (),
            "pca_mean": (frames,),
            "pca_basis": (frames, latent),
            "pca_scale": (latent,),
        }.items():
            self.register_buffer(name, torch.zeros(shape))
        dilations = [1 + i % 2 for i in range(config.blocks)]
        self.encoder = nn.Sequential(
            nn.Conv1d(config.n_mels, hidden, 2 * config.stride + 1, config.stride, config.stride // 2 + 1),
            *[Block(hidden, d) for d in dilations],
            nn.Conv1d(hidden, latent, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv1d(latent, hidden, 3, padding=1),
            *[Block(hidden, d) for d in dilations],
            nn.ConvTranspose1d(hidden, hidden, config.stride, config.stride),
            *[Block(hidden, d) for d in dilations],
            nn.Conv1d(hidden, bins, 1),
        )

    def magnitudes(self, waves):  # (B, S), S a whole number of hops
        c = self.config
        spectrum = torch.stft(waves, c.n_fft, c.hop, window=self.window, pad_mode="constant", return_complex=True)
        return spectrum.abs()[..., : waves.shape[1] // c.hop] / self.window.sum()  # (B, bins, T)

    def mel(self, magnitudes):  # (B, bins, T) -> natural log of the magnitude in each band, (B, mels, T)
        return ((self.filters.T @ magnitudes) + FLOOR).log()

    def digits(self, mel):  # (B, mels, T) -> (B, T / stride, groups, d)
        z = self.encoder((mel - self.mel_mean[:, None]) / self.scale)  # (B, groups d, T / stride)
        z = z[..., : mel.shape[-1] // self.config.stride].transpose(1, 2)
        return fsq.quantise(z.unflatten(-1, (self.config.groups, -1)).float(), self.levels)

    def lines(self, digits):  # (B, steps, groups, d) -> natural log of the magnitude in each bin, (B, bins, T)
        y = self.decoder(fsq.centred(digits, self.levels).flatten(2).transpose(1, 2))
        return y.float() * self.scale + self.line_mean[:, None]


def griffin_lim(net, magnitudes, rounds=32, momentum=0.99):
    """Waves (B, T hop) whose spectra come close to magnitudes (B, bins, T); frames past a clip's end are 0.

    Starts at random phases that depend on frame and bin alone, so a clip sounds the same in any batch.
    """
    c, frames = net.config, magnitudes.shape[-1]
    quiet = c.n_fft // c.hop  # silent frames at the end: clips of a batch end as they would alone
    magnitudes = F.pad(magnitudes * net.window.sum(), (0, quiet))  # (B, bins, T')
    magnitudes = magnitudes.mT.contiguous().mT  # laid out frame by frame like stft's result: twice as fast
    phase = np.random.Generator(np.random.Philox(key=[0, 0])).random((frames + quiet, c.n_fft // 2 + 1), np.float32)
    phase = torch.from_numpy(phase).to(magnitudes).mT * (2 * np.pi)
    spectrum = torch.polar(magnitudes, phase.expand_as(magnitudes))
    length, before = (frames + quiet - 1) * c.hop, torch.zeros_like(spectrum)
    for _ in range(rounds):
        waves = torch.istft(spectrum, c.n_fft, c.hop, window=net.window, length=length)
        found = torch.stft(waves, c.n_fft, c.hop, window=net.window, pad_mode="constant", return_complex=True)
        # found + momentum (found - before) but for a factor, which sgn takes away: it keeps the phase alone
        spectrum, before = torch.sub(found, before, alpha=momentum / (1 + momentum)).sgn(), found
        torch.view_as_real(spectrum).mul_(magnitudes[..., None])
    return torch.istft(spectrum, c.n_fft, c.hop, window=net.window, length=length)[:, : frames * c.hop]


def padded(waves, config, steps):
    """List of waves -> float32 (N, steps step), zeros after each end."""
    out = np.zeros((len(waves), steps * config.step), np.float32)
    for row, wave in zip(out, waves):
        row[: len(wave)] = wave
    return torch.from_numpy(out)


def steps_of(wave, config):
    """Code steps of a waveform (samples,), rounded up; ValueError if it is not one of ours."""
    if np.ndim(wave) != 1 or not np.issubdtype(np.asarray(wave).dtype, np.floating):
        raise ValueError(f"a speech sample must be a 1-D float array in [-1, 1], got {np.shape(wave)}; mix down and scale")
    if len(wave) < config.hop:
        raise ValueError(
            f"a clip of {len(wave)} samples is shorter than one frame of {config.hop} "
            f"({1000 * config.hop / config.sample_rate:.0f} ms); leave it out or pad it"
        )
    if not np.isfinite(wave).all():
        raise ValueError("a speech sample holds NaN or infinity; clean it or leave it out")
    return -(-len(wave) // config.step)


def alike(lengths, batch):
    """Indices of equal lengths, at most batch at a time: a clip is then coded the same alone and in company."""
    order = np.argsort(lengths, kind="stable")
    for block in np.split(order, np.flatnonzero(np.diff(np.asarray(lengths)[order])) + 1):
        for i in range(0, len(block), batch):
            yield block[i : i + batch]


def train(waves, config=None, seconds=None, steps=None, seed=0, device="cpu", batch=8, lr=3e-3):
    """Learn a codec from a list of float waves (samples,). Give seconds (45 if neither) or steps."""
    config = config or AudioConfig()
    if not len(waves):
        raise ValueError("audio.train got no clips; give at least one")
    net = fsq.seeded(lambda: Net(config), seed).to(device)
    with torch.inference_mode():  # magnitudes once: 2 bytes each, 64 kB a second of speech
        store = [net.magnitudes(padded([w], config, steps_of(w, config)).to(device))[0].half().cpu() for w in waves]
    lengths = np.array([m.shape[-1] for m in store])
    flat = F.pad(torch.cat(store, 1), (0, config.crop)).T.contiguous()  # (all frames + crop, bins)
    starts = np.flatnonzero(np.arange(len(flat) - config.crop) % config.stride == 0)  # a crop may run into the next
    measure(net, flat[: int(lengths.sum())].to(device), seed)

    def loss_of(rows, rng):
        frames = torch.from_numpy(starts[rows][:, None] + np.arange(config.crop))  # (B, crop)
        target = flat[frames].to(device).float().transpose(1, 2)  # (B, bins, crop)
        mel = net.mel(target)  # (B, mels, crop)
        lines = net.lines(net.digits(mel))  # (B, bins, crop)
        mel_error = (net.mel(lines.exp()) - mel).abs().mean()
        return mel_error + (lines - (target + FLOOR).log()).abs().mean(), {"mel_dB": mel_error.detach() * DB}

    seconds = 45 if seconds is None and steps is None else seconds
    return Tokenizer(config, net, fsq.fit(net, loss_of, len(starts), batch, lr, seconds, steps, seed, "audio tokenizer"))


@torch.no_grad()
def measure(net, magnitudes, seed):
    """Fill the statistics of net from magnitudes (T, bins): means, one scale, principal components."""
    pick = np.random.Generator(np.random.Philox(key=[seed, 2**32])).permutation(len(magnitudes) // net.config.stride)
    blocks = magnitudes[: len(pick) * net.config.stride].unflatten(0, (-1, net.config.stride))
    some = blocks[torch.from_numpy(np.sort(pick[:4096]))].float()  # (K, stride, bins)
    mel = net.mel(some.transpose(1, 2)).transpose(1, 2)  # (K, stride, mels)
    net.mel_mean.copy_(mel.mean((0, 1)))
    net.line_mean.copy_((some + FLOOR).log().mean((0, 1)))
    net.scale.copy_(mel.std().clamp(min=1e-3))
    flat = mel.flatten(1)  # (K, stride mels)
    net.pca_mean.copy_(flat.mean(0))
    _, vectors = torch.linalg.eigh(torch.cov(flat.T).cpu())
    net.pca_basis.copy_(vectors[:, -net.pca_basis.shape[1] :].flip(1))
    net.pca_scale.copy_(((flat - net.pca_mean) @ net.pca_basis).std(0).clamp(min=1e-6))


def load(path, device="cpu"):
    """The codec that Tokenizer.save wrote to path (.pt)."""
    return Tokenizer.load(path, AudioConfig, Net, device)


class Tokenizer(fsq.Codec):
    """Float waves (samples,) <-> ids (steps groups,), the groups of a step side by side."""

    kind = "audio"

    @property
    def groups(self):
        return self.config.groups

    @torch.inference_mode()
    def encode(self, samples, batch=64):
        """List of float waves (samples,) -> list of int32 (steps groups,)."""
        out, lengths = [None] * len(samples), [steps_of(wave, self.config) for wave in samples]
        for rows in alike(lengths, batch):
            waves = padded([samples[i] for i in rows], self.config, lengths[rows[0]]).to(self.device)
            digits = self.net.digits(self.net.mel(self.net.magnitudes(waves)))  # (B, steps, groups, d)
            for i, ids in zip(rows, fsq.to_ids(digits, self.net.levels).flatten(1).cpu().numpy().astype(np.int32)):
                out[i] = ids
        return out

    @torch.inference_mode()
    def magnitudes(self, codes, batch=64):
        """List of ids -> list of magnitude spectra (bins, T), before the vocoder."""
        codes = [self.check_ids(ids) for ids in codes]
        for ids in codes:
            if not len(ids) or len(ids) % self.groups:
                raise ValueError(f"a clip is whole steps of {self.groups} ids, got {len(ids)} ids; cut or fill the last")
        out = [None] * len(codes)
        for rows in alike([len(ids) for ids in codes], batch):
            ids = torch.from_numpy(np.stack([codes[i] for i in rows])).to(self.device)
            digits = fsq.to_digits(ids.unflatten(1, (-1, self.groups)), self.net.levels)
            for i, lines in zip(rows, self.net.lines(digits)):
                out[i] = (lines.exp() - FLOOR).clamp(min=0)
        return out

    @torch.inference_mode()
    def decode(self, codes, rounds=32, batch=16):
        """List of ids (steps groups,) -> list of float32 waves (steps stride hop,)."""
        spectra, out = self.magnitudes(codes), [None] * len(codes)
        order = np.argsort([m.shape[1] for m in spectra], kind="stable")
        for i in range(0, len(order), batch):  # of similar length, padded with silence
            rows = order[i : i + batch]
            stack = nn.utils.rnn.pad_sequence([spectra[j].T for j in rows], batch_first=True).transpose(1, 2)
            waves = griffin_lim(self.net, stack, rounds).clamp(-1, 1).cpu().numpy()
            for j, wave in zip(rows, waves):
                out[j] = wave[: spectra[j].shape[1] * self.config.hop].copy()
        return out

    @torch.inference_mode()
    def report(self, samples):
        """Figures on samples (held out, if you please).

        Distances: mean over clips, frames and mel bands of |difference| of the bands' magnitudes in dB, floor -80 dB.
        mel_dB before the vocoder, wave_dB analysed again after it, baseline_dB for principal components of `stride`
        mel frames quantised to the same bits.
        """
        c, codes = self.config, self.encode(samples)
        whole = [padded([wave], c, steps_of(wave, c)) for wave in samples]
        mels = [self.mel(wave) for wave in whole]  # (mels, T) each
        coded = [self.net.mel(lines) for lines in self.magnitudes(codes)]
        heard = [self.mel(torch.from_numpy(wave)[None]) for wave in self.decode(codes)]
        plain = [self.components(mel) for mel in mels]
        ids = np.concatenate(codes).reshape(-1, self.groups)
        counts = [fsq.usage(column, self.size) for column in ids.T]
        rate = c.sample_rate / c.step * c.groups
        return {
            "items": len(samples),
            "steps": self.steps,
            "mel_dB": distance(coded, mels),
            "wave_dB": distance(heard, mels),
            "baseline_dB": distance(plain, mels),
            "size": self.size,
            "groups": self.groups,
            "used": float(np.mean([n for n, _ in counts])),
            "perplexity": float(np.mean([p for _, p in counts])),
            "tokens_per_item": ids.size / len(samples),
            "tokens_per_second": rate,
            "bits_per_second": rate * log2(self.size),
            "seconds_per_item": sum(map(len, samples)) / c.sample_rate / len(samples),
        }

    def mel(self, wave):
        """(1, samples) -> (mels, T)"""
        return self.net.mel(self.net.magnitudes(wave.to(self.device)))[0]

    def components(self, mel):
        """mel (mels, T) -> the same from its principal components, digits like the codec's."""
        net, levels = self.net, self.net.levels.repeat(self.groups)
        blocks = mel.T.reshape(-1, len(net.pca_mean))  # (steps, stride mels)
        z = (blocks - net.pca_mean) @ net.pca_basis / net.pca_scale  # (steps, groups d), unit variance
        share = (fsq.quantise(z, levels) + 0.5) / levels  # the middle of each level's interval
        back = torch.logit(share) / 1.7 * net.pca_scale @ net.pca_basis.T + net.pca_mean
        return back.reshape(-1, mel.shape[0]).T


def distance(some, others):
    """Mean |difference| in dB of two lists of log-mel spectra (mels, T), every clip counting alike."""
    return float(np.mean([float((a - b).abs().mean()) for a, b in zip(some, others)])) * DB


def lines(report):
    """report() in two lines."""
    return (
        "audio tokenizer: log-mel off by {mel_dB:.2f} dB, {wave_dB:.2f} dB after the vocoder (principal components at "
        "equal bits: {baseline_dB:.2f} dB)\n  {tokens_per_second:.0f} tokens = {bits_per_second:.0f} bits a second, "
        "{used:.0f} of {size} codes used in each of {groups} groups, perplexity {perplexity:.0f}; {steps} steps, "
        "{items} clips".format(**report)
    )
