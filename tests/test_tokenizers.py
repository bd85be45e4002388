"""Tests of tokenizers/: quantiser, byte-pair encoding, picture and speech codecs. One core, under a minute."""

import itertools
import json
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tokenizers import audio, fsq, image, text  # noqa: E402


def rng(*key):
    return np.random.Generator(np.random.Philox(key=[*key, 0][:2]))


# ---- the quantiser


@pytest.mark.parametrize("levels", [(4, 4, 4), (8, 5, 5), (2, 3, 7), (5,)])
def test_fsq_ids_are_a_bijection_and_every_code_is_reachable(levels):
    t = torch.tensor(levels, dtype=torch.float32)
    ids = torch.arange(int(t.prod()))
    digits = fsq.to_digits(ids, t)
    by_hand = [d[::-1] for d in itertools.product(*[range(n) for n in levels[::-1]])]  # first channel runs fastest
    assert digits.tolist() == [list(map(float, d)) for d in by_hand]
    assert torch.equal(fsq.to_ids(digits, t), ids)
    z = torch.cartesian_prod(*[torch.linspace(-6, 6, 60)] * len(levels)).reshape(-1, len(levels))
    assert set(fsq.to_ids(fsq.quantise(z, t), t).tolist()) == set(ids.tolist())
    assert fsq.centred(digits, t).aminmax() == (-1, 1)


def test_fsq_rounds_to_the_nearest_level_even_when_saturated():
    t = torch.tensor([4.0, 5.0])
    z = torch.tensor([[-1e4, 1e4], [1e4, -1e4], [0.01, 0.0], [-0.01, 0.0]])
    assert fsq.quantise(z, t).tolist() == [[0, 4], [3, 0], [2, 2], [1, 2]]


def test_fsq_uses_levels_alike_for_a_normal_latent():
    t = torch.tensor([4.0, 5.0, 8.0])
    z = torch.from_numpy(rng(1).standard_normal((20000, 3))).float()
    for column, n in zip(fsq.quantise(z, t).T, t):
        share = torch.bincount(column.long(), minlength=int(n)) / len(z)
        assert (share * n - 1).abs().max() < 0.12


def test_straight_through_gradient_is_that_of_the_bounded_latent():
    t = torch.tensor([4.0, 5.0])
    z = torch.tensor([[0.3, -1.2], [-2.0, 0.9]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    (got,) = torch.autograd.grad((fsq.quantise(z, t) * weight).sum(), z)
    eps = 1e-6
    with torch.no_grad():
        slope = (fsq.squash(z + eps, t) - fsq.squash(z - eps, t)) / (2 * eps)
    assert torch.allclose(got, slope * weight, atol=1e-7)
    assert (got != 0).all()


def test_usage_by_hand():
    used, perplexity = fsq.usage(np.array([0, 0, 3, 3]), 5)
    assert used == 2 and abs(perplexity - 2) < 1e-9


# ---- text

PHRASES = ["low low lower", "newest newest newest", "a small red circle on white", "wider, 1234 wide! it's"]
TRICKY = ["", " ", "\n\n \t x", "naïve café", "日本語 テスト", "🙂👩‍👩‍👧‍👦", "a\u0301\u200d\ufeff", "\x00\x7f", "_a__9٣²Ⅷ", "<|endoftext|>",
          "<|fim_prefix|> hi", "it's 'tis don't'", "\r\n\u2028\u00a0 ", "𝔘𝔫𝔦", "x" * 3000, " " * 3000]  # fmt: skip


def naive_merges(counts, size):
    """The definition: count everything anew for every merge."""
    words, tokens = {word: [bytes([b]) for b in word] for word in counts}, [bytes([i]) for i in range(256)]
    while len(tokens) < size:
        pairs = Counter()
        for word, parts in words.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += counts[word]
        if not pairs or max(pairs.values()) < 2:
            break
        a, b = min(pairs, key=lambda pair: (-pairs[pair], tokens.index(pair[0]), tokens.index(pair[1])))
        tokens += [a + b] if a + b not in tokens else []
        for word, parts in words.items():
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == (a, b):
                    parts[i : i + 2] = [a + b]
                i += 1
    return tokens[256:]


def test_bpe_by_hand():
    # lo and ow occur 3 times each, "l" < "o" so lo wins; then low x3; then " low" x2; nothing else occurs twice
    tok = text.train(["low low lower"], 512)
    assert text.merges({b"low": 1, b" low": 1, b" lower": 1}, 512) == [b"lo", b"low", b" low"]
    assert tok.size == 259
    assert tok.encode(["low lower slow"])[0].tolist() == [257, 258, ord("e"), ord("r"), ord(" "), ord("s"), 257]
    # "xyz" counts four times, so xy x4, then xyz x4, come before lo x3
    tok = text.train(["low low lower", "xyz"], 258, [1, 4])
    assert [len(ids) for ids in tok.encode(["xyz", "low"])] == [1, 3]


def test_bpe_equals_the_naive_trainer():
    pick = random.Random(3)
    counts = Counter("".join(pick.choices("aab c", k=pick.randint(1, 9))).encode() for _ in range(300))
    assert text.merges(counts, 330) == naive_merges(counts, 330)
    assert text.merges({b"aaaaaaa": 5, b"baaab": 2}, 300) == naive_merges({b"aaaaaaa": 5, b"baaab": 2}, 300)


def test_bpe_merges_are_what_tiktoken_applies():
    tok = text.train(PHRASES * 3, 300)
    parts = [bytes([b]) for b in b" newest"]
    for merge in [t.encode("latin-1") for t in tok.saved["tokens"]]:
        i = 0
        while i < len(parts) - 1:
            if parts[i] + parts[i + 1] == merge:
                parts[i : i + 2] = [merge]
            i += 1
    assert [tok.bpe.decode_single_token_bytes(i) for i in tok.encode([" newest"])[0]] == parts


def test_text_round_trip():
    tok, pick = text.train(PHRASES, 300), random.Random(5)
    valid = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    noise = ["".join(map(chr, pick.choices(valid if i % 2 else range(0x3000), k=40))) for i in range(200)]
    ids = tok.encode(TRICKY + noise)
    assert tok.decode(ids) == TRICKY + noise
    assert all(i.dtype == np.int32 and i.ndim == 1 and (not len(i) or i.max() < tok.size) for i in ids)


def test_special_looking_text_is_ordinary():
    tok = text.train(PHRASES, 300)
    assert len(tok.encode(["<|endoftext|>"])[0]) > 5


def test_broken_utf8_is_replaced():
    assert text.train(PHRASES, 260).decode([np.array([0xE6, 0x97])])[0] == "\ufffd"


def test_text_save_load_and_determinism(tmp_path):
    tok = text.train(PHRASES, 300)
    tok.save(tmp_path / "t.json")
    again = text.load(tmp_path / "t.json")
    assert again.name == tok.name == text.train(PHRASES, 300).name != text.train(PHRASES, 260).name
    assert [i.tolist() for i in again.encode(PHRASES)] == [i.tolist() for i in tok.encode(PHRASES)]
    assert json.loads((tmp_path / "t.json").read_text())["kind"] == "text"
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


def test_text_report():
    report = text.train(["low low lower"]).report(["low low"])
    assert report["tokens_per_item"] == 2 and report["bytes_per_token"] == 3.5 and report["used"] == 2
    assert "3.50 bytes a token" in text.lines(report)


# ---- pictures


def discs(n, seed, side=16, channels=3):
    """Coloured discs and squares on coloured grounds, uint8 (n, side, side, channels)."""
    r = rng(seed)
    y, x = np.mgrid[:side, :side]
    palette = np.array([[220, 40, 40], [40, 180, 60], [50, 70, 220], [250, 220, 60], [128, 120, 130]])
    out = np.empty((n, side, side, channels), np.uint8)
    for picture in out:
        ground, paint = palette[r.choice(len(palette), 2, replace=False), :channels]
        cy, cx, size = r.uniform(4, side - 4, 2).tolist() + [r.uniform(3, 5)]
        dy, dx = abs(y - cy), abs(x - cx)
        inside = (dy**2 + dx**2 < size**2) if r.random() < 0.5 else (np.maximum(dy, dx) < size * 0.8)
        picture[:] = np.where(inside[..., None], paint, ground)
    return out


@pytest.fixture(scope="module")
def pictures():
    config = image.ImageConfig(16, 16, 3, patch=4, levels=(4, 4, 4))
    return image.train(discs(2000, 1), config, steps=300), discs(64, 2)


def test_image_beats_squares_of_one_colour(pictures):
    tok, held_out = pictures
    report = tok.report(held_out)
    assert report["psnr"] > report["baseline_psnr"] + 2, report
    assert report["tokens_per_item"] == 3 + 16 and report["steps"] == 300 and 8 < report["used"] <= tok.size
    assert "dB" in image.lines(report)


def test_image_baseline_by_hand():
    red = np.zeros((1, 4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert np.array_equal(image.blocks_of_colour(red, 4, 8), red)  # 8 ids: black or full in each channel
    assert image.blocks_of_colour(red // 4, 4, 8).max() == 0
    assert image.psnr(red, red)[0] == pytest.approx(60)
    assert image.psnr(red, red * 0)[0] == pytest.approx(10 * np.log10(3))


def as_floats(pictures):
    return image.to_float(np.asarray(pictures, np.uint8), "cpu")


def test_palette_by_hand():
    """The ground, then the others from the top left on, whichever colour is where; what is missing repeats the last."""
    white, red, blue = (250, 250, 250), (215, 35, 40), (40, 80, 220)
    pictures = np.full((6, 16, 16, 3), white)
    for picture, (first, second) in zip(pictures, ((red, blue), (blue, red), (red, red), (white, white))):
        picture[6:10, 2:6], picture[6:10, 10:14] = first, second
        picture[6:10, 6] = (np.array(first) + white) / 2  # an edge that is half covered is no colour of the picture
    pictures[4, 2:6, 6:10], pictures[4, 10:14, 6:10] = red, blue
    pictures[5] = blue
    want = [[white, red, blue], [white, blue, red], [white, red, red], [white] * 3, [white, red, blue], [blue] * 3]
    found = image.palette(as_floats(pictures), 3)  # (6, 3, 3)
    assert np.abs((found.numpy() + 1) * 127.5 - want).max() < 1


def test_palette_of_thin_lines_texture_and_grey():
    """What has no plain area is searched everywhere; grey pictures and coloured ones of the same greys agree."""
    line = np.zeros((1, 12, 12, 1), np.uint8)
    line[0, :, 5], line[0, :, 6] = 120, 255  # a stroke of a pixel and a half
    found = (image.palette(as_floats(line), 2)[0, :, 0] + 1) * 127.5
    assert found.tolist() == pytest.approx([0, 255], abs=1e-3)  # the extremes, though half of the stroke is grey
    soft = np.zeros((1, 12, 12, 1), np.uint8)
    soft[0, 2:10, 4:7, 0] = np.add.outer(np.arange(8) % 3, [0, 9, 3]) + [90, 240, 100]  # no two neighbours alike
    assert image.palette(as_floats(soft), 3)[0, :, 0].max() > 0.9, "a stroke without a plain pixel keeps its ink"
    noise = rng(1).integers(0, 256, (1, 16, 16, 3))
    assert len(image.palette(as_floats(noise), 3)[0].unique(dim=0)) == 3
    assert torch.allclose(image.palette(as_floats(line.repeat(3, 3)), 2), image.palette(as_floats(line), 2).expand(-1, -1, 3))
    halves = np.zeros((1, 8, 8, 3), np.uint8)
    halves[:, :4] = 255, 0, 0
    halves[:, 4:] = 0, 0, 255
    assert set(map(tuple, image.palette(as_floats(halves), 2)[0].tolist())) == {(1, -1, -1), (-1, -1, 1)}


def test_shares_by_hand():
    """A mixture of two of three colours gives its parts, whichever they are; a colour itself is all of it; what lies beyond is cut."""
    white, red, blue = colours = np.array([(250, 250, 250), (215, 35, 40), (40, 80, 220)], float)
    pixels = [white, red, blue, 0.75 * white + 0.25 * red, 0.4 * red + 0.6 * blue, (255, 255, 255)]
    want = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.75, 0.25, 0), (0, 0.4, 0.6), (1, 0, 0)]
    to = lambda a: torch.tensor(np.asarray(a) / 127.5 - 1, dtype=torch.float32)
    found = image.shares(to(pixels).T[None, :, None], to(colours)[None])[0, :, 0].T  # (6, 3)
    assert np.abs(found.numpy() - want).max() < 1e-5
    again = image.shares(to(pixels[:1]).T[None, :, None], to([white, white, white])[None])  # a palette of one colour
    assert again.sum(1).item() == pytest.approx(1) and again.min() >= 0


def test_flatness_by_hand():
    """One pixel of another colour spoils no pixel of a plain area; a checkerboard has no plain pixel."""
    pictures = np.zeros((2, 8, 8, 1), np.uint8)
    pictures[0, 3, 3] = 255
    pictures[1] = 255 * (np.indices((8, 8)).sum(0) % 2)[..., None]
    flat = image.flatness(as_floats(pictures)).numpy()
    assert flat[0, 3, 3] < 1e-6 and np.delete(flat[0].ravel(), 3 * 8 + 3).min() == 1 and flat[1].max() < 1e-6


def test_colours_do_not_change_the_tokens_of_squares(pictures):
    """The same scene in other colours or a little brighter differs in its palette alone."""
    tok, held_out = pictures
    ground = held_out[:, :1, :1]  # discs() leaves the corner to the ground
    recoloured = np.where((held_out == ground).all(-1, keepdims=True), [40, 180, 60], [250, 220, 60]).astype(np.uint8)
    other = np.where((held_out == ground).all(-1, keepdims=True), [50, 70, 220], [220, 40, 40]).astype(np.uint8)
    a, b = (np.stack(tok.encode(list(x))) for x in (recoloured, other))
    drawn = [i for i in range(len(a)) if (a[i, 3:] != np.bincount(a[i, 3:]).argmax()).any()]
    assert len(drawn) > 50 and (a[:, :3] != b[:, :3]).all(0).any()
    assert (a[drawn, 3:] != b[drawn, 3:]).mean() < 0.01, (a[drawn, 3:] != b[drawn, 3:]).mean()
    dim = np.clip(held_out, 10, 245)
    darker, brighter = (np.stack(tok.encode(list(dim + shift))) for shift in (np.uint8(0), np.uint8(3)))
    assert (darker[:, 3:] != brighter[:, 3:]).mean() < 0.01, (darker[:, 3:] != brighter[:, 3:]).mean()


def test_image_palette_of_ids(pictures):
    tok, held_out = pictures
    for picture, ids in zip(held_out[:8], tok.encode(held_out[:8])):
        assert np.abs(tok.colours_of(ids[:3])[0].astype(int) - picture[0, 0]).max() < 40  # 4 levels a channel, 300 steps
        assert tok.colours_of(ids[:3]).shape == (3, 3) and tok.colours_of(ids[:3]).dtype == np.uint8
        shares = tok.shares_of(ids[3:])                          # the picture is its colours in these shares
        assert np.abs(shares @ tok.colours_of(ids[:3]) - tok.decode([ids])[0]).max() < 1.5 and np.allclose(shares.sum(-1), 1, atol=1e-5)


def test_image_save_load_batches(pictures, tmp_path):
    tok, held_out = pictures
    ids = tok.encode(held_out)
    tok.save(tmp_path / "i.pt")
    again = image.load(tmp_path / "i.pt")
    assert again.name == tok.name and again.config == tok.config and again.steps == 300
    assert np.array_equal(again.encode(list(held_out)), ids)
    assert np.array_equal(np.concatenate([tok.encode(held_out[i : i + 1]) for i in range(8)]), ids[:8])
    assert np.array_equal(again.decode(ids), tok.decode(ids))
    assert [p.name for p in tmp_path.iterdir()] == ["i.pt"]


@pytest.mark.parametrize("side, channels, tokens", [(28, 1, 3 + 4 * 4), (64, 3, 3 + 8 * 8), (30, 3, 3 + 5 * 5)])
def test_image_other_sizes(side, channels, tokens):
    images = discs(40, 3, side, channels)
    tok = image.train(images, steps=3)
    ids = tok.encode(images[:3])
    assert tok.groups == 1 and all(i.shape == (tokens,) and i.dtype == np.int32 and i.max() < tok.size for i in ids)
    assert tok.decode(ids)[0].shape == images[0].shape and tok.decode(ids)[0].dtype == np.uint8


def test_image_training_is_a_function_of_the_seed():
    images = discs(50, 4)
    state = torch.random.get_rng_state()
    names = [image.train(images, steps=4, seed=seed).name for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    assert torch.equal(state, torch.random.get_rng_state())


# ---- speech


def chirps(n, seed):
    """Gliding tones with two overtones and pauses, 0.3 to 0.9 s, list of float32 (samples,)."""
    r, out = rng(seed), []
    for _ in range(n):
        t = np.arange(int(16000 * r.uniform(0.3, 0.9))) / 16000
        start, end = r.uniform(150, 900, 2)
        phase = 2 * np.pi * (start * t + (end - start) * t**2 / (2 * t[-1]))
        wave = np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.25 * np.sin(3 * phase)
        out.append((0.3 * wave * (np.sin(2 * np.pi * r.uniform(1, 4) * t) > -0.3)).astype(np.float32))
    return out


@pytest.fixture(scope="module")
def speech():
    return audio.train(chirps(60, 1), audio.AudioConfig(hidden=64), steps=500), chirps(8, 2)


def test_audio_beats_principal_components(speech):
    tok, held_out = speech
    report = tok.report(held_out)
    assert report["mel_dB"] < report["baseline_dB"], report
    assert report["wave_dB"] < report["baseline_dB"], report
    assert report["tokens_per_second"] == 46.875 and report["groups"] == 3
    assert "dB" in audio.lines(report)


@pytest.mark.parametrize("samples, steps", [(256, 1), (1024, 1), (1025, 2), (12345, 13), (24000, 24)])
def test_audio_lengths(speech, samples, steps):
    ids = speech[0].encode([np.zeros(samples, np.float32)])[0]
    assert ids.shape == (3 * steps,) and ids.dtype == np.int32
    wave = speech[0].decode([ids])[0]
    assert wave.shape == (1024 * steps,) and wave.dtype == np.float32 and abs(wave).max() <= 1


def test_audio_batch_equals_single(speech):
    tok, held_out = speech
    ids = tok.encode(held_out)
    for i, wave in enumerate(held_out):
        assert np.array_equal(tok.encode([wave])[0], ids[i])
    # few rounds: the phase search amplifies the last bit of float32
    for one, many in zip([tok.decode([i], rounds=2)[0] for i in ids], tok.decode(ids, rounds=2)):
        assert one.shape == many.shape and abs(one - many).max() < 1e-4


def test_audio_ids_interleave_the_groups(speech):
    tok = speech[0]
    ids = tok.encode(speech[1][:1])[0].astype(np.int64)
    changed = ids.copy()
    changed[3 * 2 + 1] = (changed[3 * 2 + 1] + 7) % tok.size  # step 2, group 1
    a, b = tok.magnitudes([ids, changed])
    near = (a - b).abs().amax(0)  # (T,): the change stays near frames 8..11
    assert near[8:12].max() > 0 and near[24:].max() == 0 and len(near) > 28
    assert max(ids) < tok.size == 200


def test_griffin_lim_finds_the_wave_of_a_true_spectrum(speech):
    net = speech[0].net
    wave = torch.from_numpy(np.pad(chirps(1, 9)[0], (0, 1024))[:8192])[None]
    wanted = net.magnitudes(wave)
    errors = []
    for rounds in (0, 32):
        found = net.magnitudes(audio.griffin_lim(net, wanted, rounds))
        errors.append(float((found - wanted).norm() / wanted.norm()))
    assert errors[1] < 0.25 and errors[1] < errors[0] / 2, errors


def test_mel_filters_average_and_cover():
    config = audio.AudioConfig()
    filters = audio.mel_filters(config)
    assert filters.shape == (513, 80) and torch.allclose(filters.sum(0), torch.ones(80), atol=1e-5)
    assert (filters >= 0).all() and filters.argmax(0).diff().min() >= 0
    net = fsq.seeded(lambda: audio.Net(config), 0)
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(8192) / 16000)[None]  # 1 kHz is bin 64
    spectrum = net.magnitudes(tone)[0, :, 10]
    assert spectrum.argmax() == 64 and abs(spectrum.max() - 0.5) < 0.01


def test_audio_save_load(speech, tmp_path):
    tok, held_out = speech
    tok.save(tmp_path / "a.pt")
    again = audio.load(tmp_path / "a.pt")
    assert again.name == tok.name and again.config == tok.config
    assert all(np.array_equal(a, b) for a, b in zip(again.encode(held_out), tok.encode(held_out)))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_audio_other_configs_and_determinism():
    waves = chirps(6, 3)
    config = audio.AudioConfig(stride=2, groups=4, levels=(4, 4), hidden=16, n_fft=512, hop=128, n_mels=40)
    one, two, other = [audio.train(waves, config, steps=3, seed=seed) for seed in (0, 0, 1)]
    assert one.name == two.name != other.name
    assert one.groups == 4 and one.size == 16
    ids = one.encode(waves)
    assert all(len(i) == 4 * -(-len(w) // 256) and i.max() < 16 for i, w in zip(ids, waves))
    assert [len(w) for w in one.decode(ids)] == [256 * (len(i) // 4) for i in ids]


# ---- errors say what is wrong in one line


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda s: text.train("one string"), "list of strings"),
        (lambda s: text.train([]), "no text"),
        (lambda s: text.train(["x"], 100), "vocab_size 100"),
        (lambda s: text.train([b"x"]), "bytes"),
        (lambda s: text.train(["ok", "a\ud800b"]), "lone surrogate"),
        (lambda s: text.train(["x"]).encode(["\udfff"]), "lone surrogate"),
        (lambda s: text.train(["x"]).decode([[256]]), "0..255"),
        (lambda s: text.from_tiktoken("nonesuch"), "gpt2"),
        (lambda s: image.ImageConfig(30, 32, patch=4), "30x32"),
        (lambda s: image.ImageConfig(31, 31), "multiple of 4"),
        (lambda s: image.ImageConfig(channels=4), "alpha"),
        (lambda s: image.ImageConfig(levels=(1, 4)), "levels"),
        (lambda s: image.ImageConfig(colours=1), "2 colours"),
        (lambda s: image.train(np.zeros((3, 32, 32, 3), np.float32)), "float32"),
        (lambda s: image.train(discs(3, 1), image.ImageConfig()), "(3, 16, 16, 3)"),
        (lambda s: image.train(discs(3, 1), seconds=1, steps=1), "either seconds or steps"),
        (lambda s: s[0].encode(discs(2, 1, 28)), "(2, 28, 28, 3)"),
        (lambda s: s[0].decode([np.zeros(18, int)]), "19 ids"),
        (lambda s: s[0].decode([np.full(19, s[0].size)]), "0..63"),
        (lambda s: audio.AudioConfig(hop=300), "300"),
        (lambda s: audio.train([]), "no clips"),
        (lambda s: s[1].encode([np.zeros(255, np.float32)]), "255 samples"),
        (lambda s: s[1].encode([np.zeros((500, 2), np.float32)]), "1-D"),
        (lambda s: s[1].encode([np.zeros(500, np.int16)]), "float"),
        (lambda s: s[1].encode([np.full(500, np.nan)]), "NaN"),
        (lambda s: s[1].decode([np.zeros(4, int)]), "3 ids"),
        (lambda s: s[1].decode([np.zeros(0, int)]), "0 ids"),
    ],
)
def test_errors_are_one_clear_line(pictures, speech, call, words):
    with pytest.raises(ValueError) as caught:
        call((pictures[0], speech[0]))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_load_refuses_other_files(pictures, tmp_path):
    pictures[0].save(tmp_path / "i.pt")
    with pytest.raises(ValueError, match="audio.train"):
        audio.load(tmp_path / "i.pt")
    (tmp_path / "x.json").write_text('{"kind": "other"}')
    with pytest.raises(ValueError, match="text.train"):
        text.load(tmp_path / "x.json")


def test_unreachable_encoding_says_what_to_do(monkeypatch):
    def offline(name):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(text.tiktoken, "get_encoding", offline)
    with pytest.raises(ValueError, match="TIKTOKEN_CACHE_DIR") as caught:
        text.from_tiktoken("gpt2")
    assert "\n" not in str(caught.value)


def test_commitment_is_the_distance_to_the_rounded_digit_and_pulls_towards_it():
    levels = torch.tensor([4.0])
    z = (torch.logit(torch.tensor([[(1.3 + 0.5) / 4], [(2.0 + 0.5) / 4]])) / 1.7).requires_grad_()  # bounded: 1.3 and 2.0
    loss = fsq.commitment(z, levels)
    assert loss.item() == pytest.approx((0.3**2 + 0.0) / 2, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient[0] > 0.01 and abs(float(gradient[1])) < 1e-5  # 1.3 is pulled down to 1, 2.0 stays
