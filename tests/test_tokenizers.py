"""Tokenizers: the quantiser, byte pairs, pictures, speech."""
import itertools
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from runs import call

from files import DataError
from sources import toyspeech, toyworld
from tokenizers import audio, fsq, image, text


def test_fsq_ids_are_mixed_radix_numbers_and_every_code_is_reachable():
    for levels in ((4, 4, 4), (2, 3, 7), (5,)):
        q = fsq.FSQ(levels)
        by_hand = itertools.product(*map(range, levels[::-1]))  # the last runs fastest
        digits = torch.tensor([d[::-1] for d in by_hand]).float()
        ids = torch.arange(len(digits))
        assert torch.equal(q.look_up(ids), q.centred(digits))
        z = torch.logit((digits + 0.5) / q.levels) / 1.7  # in the middle of each level
        assert torch.equal(q.codes(z), ids)
        assert q.centred(digits).aminmax() == (-1, 1)
    assert fsq.usage(np.array([0, 0, 3, 3])) == (2, pytest.approx(2))
    # levels are the nearest, and all are used alike
    z = torch.tensor([[-1e4, 1e4], [1e4, -1e4], [0.01, 0.0], [-0.01, 0.0]])
    assert fsq.FSQ((4, 5)).digits(z).tolist() == [[0, 4], [3, 0], [2, 2], [1, 2]]
    z = torch.from_numpy(toyworld.rng(1).standard_normal((20000, 3))).float()
    for column, n in zip(fsq.FSQ((4, 5, 8)).digits(z).long().T, (4, 5, 8)):
        assert (torch.bincount(column, minlength=n) * n / len(z) - 1).abs().max() < 0.12


def test_straight_through_gradient_is_that_of_the_bounded_latent():
    q = fsq.FSQ((4, 5))
    z = torch.tensor([[0.3, -1.2], [-2.0, 0.9]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    (got,) = torch.autograd.grad((q.digits(z) * weight).sum(), z)
    slope = (q.squash(z + 1e-6) - q.squash(z - 1e-6)) / 2e-6
    assert torch.allclose(got, slope * weight, atol=1e-7) and (got != 0).all()
    z = torch.logit(torch.tensor([[1.8], [2.5]]) / 4) / 1.7  # bounded: 1.3 and 2
    assert fsq.FSQ((4,)).commitment(z).item() == pytest.approx(0.3**2 / 2, abs=1e-6)


PHRASES = ["low low lower", "newest newest newest", "a small red circle", "wider, 1234 wide! it's"]
TRICKY = ["", " ", "\n\n \t x", "naïve café", "日本語 テスト", "a\u0301\u200d\ufeff", "\x00\x1c\x7f\x85",
          "_a__9٣²Ⅷ", "it's 'tis don't'", "\r\n\u2028\u00a0 ", "𝔘𝔫𝔦", "x" * 3000, " " * 3000 + "x"]
SCRIPTS = ["हिन्दी भाषा में क्योंकि।", "الْحَمْدُ لِلَّهِ رَبِّ", "👩‍👩‍👧‍👦 ❤️ 👍🏽", "Tiếng Việt",
           "தமிழ் மொழி", "ภาษาไทยไม่มีช่องว่าง", "한국어 조선말", "ᐃᓄᒃᑎᑐᑦ", "שָׁלוֹם", "မြန်မာ",
           "ქართული"]


def noise(n, seed):
    """Strings of characters of all planes, or of those with most scripts."""
    pick = random.Random(seed)
    planes = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    alphabets = itertools.cycle([planes, range(0x3100)])
    return ["".join(map(chr, pick.choices(next(alphabets), k=40))) for _ in range(n)]


def naive_merges(counts, size):
    """The definition: count everything anew for every merge. Here a token is a character."""
    words = {word.decode("latin-1"): times for word, times in counts.items()}
    tokens = [bytes([i]) for i in range(256)]
    while len(tokens) < size:
        pairs = Counter()
        for word, times in words.items():
            for pair in zip(word, word[1:]):
                pairs["".join(pair)] += times
        pair = min(pairs, key=lambda pair: (-pairs[pair], pair), default="")
        if pairs[pair] < 2:
            break
        token = tokens[ord(pair[0])] + tokens[ord(pair[1])]
        if token not in tokens:
            tokens.append(token)
        new = chr(tokens.index(token))
        words = {word.replace(pair, new): times for word, times in words.items()}
    return tokens[256:]


def test_bpe_by_hand_and_by_the_naive_trainer():
    # lo and ow occur 3 times each, l < o: lo wins; then low x3; then " low" x2; then nothing twice
    tok = text.train(["low low lower"], 512)
    want = [257, 258, ord("e"), ord("r"), ord(" "), ord("s"), 257]
    assert tok.size == 259 and tok.encode(["low lower slow"])[0].tolist() == want
    # "xyz" counts four times: xy x4 and xyz x4 come before lo x3
    tok = text.train(["low low lower", "xyz"], 258, [1, 4])
    assert [len(ids) for ids in tok.encode(["xyz", "low"])] == [1, 3]
    pick = random.Random(3)
    words = ["".join(pick.choices("aab c", k=pick.randint(1, 9))) for _ in range(300)]
    for counts in (Counter(word.encode() for word in words), {b"aaaaaaa": 5, b"baaab": 2}):
        assert text.merges(counts, 330) == naive_merges(counts, 330)


@pytest.mark.parametrize("texts", [SCRIPTS, TRICKY, noise(100, 1)])
def test_tiktoken_cuts_the_pieces_that_are_learnt(texts):
    """The vocabulary holds all beginnings of each piece with the next. Only if tiktoken cuts a
    piece as training does, it becomes one token."""
    for pattern in (text.pattern_of(texts), text.pattern_of(PHRASES)):
        cut = [[piece.encode() for piece in re.findall(pattern, sample)] for sample in texts]
        vocabulary = set()
        for pieces in cut:
            for piece, after in zip(pieces, pieces[1:] + [b""]):
                both = piece + after
                vocabulary.update(both[:n] for n in range(2, len(both) + 1))
        tok = text.Tokenizer(sorted(vocabulary, key=len), pattern)
        for sample, pieces, ids in zip(texts, cut, tok.encode(texts)):
            assert b"".join(pieces) == sample.encode()
            assert [tok.bpe.decode_single_token_bytes(i) for i in ids] == pieces


def test_text_round_trip_also_of_long_runs(tmp_path):
    for word in (" हिन्दी", " الْحَمْدُ", " 👩‍👩‍👧‍👦"):
        assert len(text.train([word * 50], 400).encode([word])[0]) == 1, "marks split the word"
    tok = text.train(PHRASES + SCRIPTS, 300)
    samples = TRICKY + SCRIPTS + noise(100, 5) + ["<|endoftext|>"]
    ids = tok.encode(samples)
    assert tok.decode(ids) == samples
    assert all(i.dtype == np.int32 and i.max(initial=0) < tok.size for i in ids)
    assert len(ids[-1]) > 5, "what looks special is plain text"
    assert tok.decode([np.array([0xE6, 0x97])]) == ["\ufffd"]
    tok.save(tmp_path / "t.json")
    again = text.load(tmp_path / "t.json")
    assert again.name == tok.name != text.train(PHRASES, 300).name
    assert all(map(np.array_equal, again.encode(samples), ids))
    for long in ("\n" * 1_100_000 + "x", "é" * 300_000):
        tok = text.train(["some words", long], 300)
        assert tok.decode(tok.encode([long])) == [long]


# ---- Pictures.

WHITE, RED, BLUE = (250, 250, 250), (215, 35, 40), (40, 80, 220)


def draw(n, seed):
    """Toy pictures of half the size, uint8 (n, 16, 16, 3)."""
    return toyworld.draw(toyworld.scenes(n, seed), seed)[:, ::2, ::2]


@pytest.fixture(scope="module")
def pictures():
    config = image.ImageConfig(16, patch=4, levels=(4, 4, 4), hidden=48)
    return image.train(draw(150, 1), config, steps=150), draw(64, 2)


def test_image_beats_the_mean_colour_of_each_square(pictures):
    tok, held_out = pictures
    report = tok.report(held_out)
    squares = held_out.reshape(64, 4, 4, 4, 4, 3)
    means = np.broadcast_to(squares.mean((2, 4), keepdims=True), squares.shape)
    rival = np.mean([image.psnr(a, b.reshape(16, 16, 3)) for a, b in zip(held_out, means)])
    assert report["psnr"] > rival, (report, rival)
    assert report["tokens_per_item"] == 3 + 16 and report["bits_per_item"] == 19 * 6
    red = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    assert image.psnr(red, red * 0) == pytest.approx(10 * np.log10(3))


def colours_found(pictures, count):
    """palette() of uint8 pictures, in 0..255."""
    x = image.to_float(np.asarray(pictures, np.uint8))
    return (image.palette(x, count).numpy() + 1) * 127.5


def test_palette_by_hand():
    """The ground, then the others, top left first. What is missing repeats the last."""
    pictures = np.full((6, 16, 16, 3), WHITE)
    pairs = [(RED, BLUE), (BLUE, RED), (RED, RED), (WHITE, WHITE)]
    for picture, (first, second) in zip(pictures, pairs):
        picture[6:10, 2:6] = first
        picture[6:10, 10:14] = second
        picture[6:10, 6] = (np.array(first) + WHITE) / 2  # half covered: no colour of the picture
    pictures[4, 2:6, 6:10] = RED
    pictures[4, 10:14, 6:10] = BLUE
    pictures[5] = BLUE
    want = [[WHITE, RED, BLUE], [WHITE, BLUE, RED], [WHITE, RED, RED], [WHITE] * 3,
            [WHITE, RED, BLUE], [BLUE] * 3]
    assert np.abs(colours_found(pictures, 3) - want).max() < 1
    # thin lines and texture: what has no plain area is searched everywhere
    line = np.zeros((1, 12, 12, 1), np.uint8)
    line[0, :, 5:7, 0] = 120, 255  # a stroke of a pixel and a half
    assert colours_found(line, 2).ravel() == pytest.approx([0, 255], abs=1e-3)
    texture = toyworld.rng(1).integers(0, 256, (1, 16, 16, 3))
    assert len(np.unique(colours_found(texture, 3)[0], axis=0)) == 3


def test_shares_by_hand():
    """A mixture gives its parts, a colour itself is all of it, what lies beyond is cut."""
    white, red, blue = colours = np.array([WHITE, RED, BLUE], np.float32)
    pixels = [white, red, blue, 0.75 * white + 0.25 * red, 0.4 * red + 0.6 * blue, (255,) * 3]
    want = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.75, 0.25, 0), (0, 0.4, 0.6), (1, 0, 0)]
    x = torch.tensor(np.float32(pixels).T[None, :, None] / 127.5 - 1)  # (1, C, 1, P)
    found = image.shares(x, torch.tensor(colours[None] / 127.5 - 1))[0, :, 0].T
    assert np.abs(found.numpy() - want).max() < 1e-5
    one = image.shares(x, torch.ones(1, 3, 3))  # a palette of one colour
    assert one.sum(1).allclose(torch.ones(1)) and one.min() >= 0


def test_colours_do_not_change_the_tokens_of_squares(pictures):
    """The same scene in other colours, or a little brighter, differs in its palette alone."""
    tok, held_out = pictures
    ground = (held_out == held_out[:, :1, :1]).all(-1, keepdims=True)
    dim = held_out.clip(10, 245)
    pairs = [(np.where(ground, RED, WHITE), np.where(ground, BLUE, RED)), (dim, dim + 3)]
    for one, two in pairs:
        one, two = (np.stack(tok.encode(some.astype(np.uint8))) for some in (one, two))
        assert (one[:, 3:] != two[:, 3:]).mean() < 0.01
    # a picture is its colours in its shares
    ids = tok.encode(held_out[:1])[0]
    picture = tok.shares_of(ids[None, 3:])[0] @ tok.colours_of(ids[:3])
    assert np.abs(picture - tok.decode([ids])[0]).max() < 1.5
    assert np.abs(picture[0, 0] - held_out[0, 0, 0]).max() < 60  # 4 levels a channel


def test_pictures_of_other_sizes():
    for side, channels, squares in ((28, 1, 16), (30, 3, 25)):
        some = toyworld.draw(toyworld.scenes(4, 3), 3)[:, :side, :side, :channels]
        tok = image.train(some, image.ImageConfig(side, channels, hidden=16), steps=2)
        ids = tok.encode(some)
        assert all(i.shape == (3 + squares,) and i.max() < tok.size for i in ids)
        assert tok.decode(ids)[0].shape == some[0].shape


def speak(n, seed):
    return toyspeech.speak(toyspeech.phrases(n, seed), seed)


@pytest.fixture(scope="module")
def speech():
    return audio.train(speak(40, 1), audio.AudioConfig(hidden=48), steps=100), speak(6, 2)


def test_audio_beats_the_mean_spectrum(speech):
    tok, held_out = speech
    report = tok.report(held_out)
    mels = [tok.mel(wave) - tok.net.mel_mean[:, None] for wave in held_out]
    rival = np.mean([float(mel.abs().mean()) for mel in mels]) * audio.DB
    assert max(report["mel_dB"], report["wave_dB"]) < 0.6 * rival, (report, rival)
    steps = sum(-(-len(wave) // 1024) for wave in held_out)
    assert report["tokens_per_item"] == 3 * steps / 6


def test_mel_filters_average_and_cover(speech):
    filters = audio.mel_filters()
    assert filters.shape == (513, 80) and filters.sum(0).allclose(torch.ones(80), atol=1e-5)
    assert (filters >= 0).all() and filters.argmax(0).diff().min() >= 0
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(8192) / 16000)[None]  # 1 kHz is bin 64
    spectrum = speech[0].net.magnitudes(tone)[0, :, 10]
    assert spectrum.argmax() == 64 and abs(spectrum.max() - 0.5) < 0.01


def test_audio_ids_interleave_the_groups(speech):
    tok = speech[0]
    ids = tok.encode(speech[1][:1])[0]
    changed = ids.copy()
    changed[3 * 2 + 1] = (changed[3 * 2 + 1] + 7) % tok.size  # step 2, group 1
    one, two = tok.magnitudes([ids, changed])
    difference = (one - two).abs().amax(0)  # (T,): the change stays near frames 8..11
    assert difference[8:12].max() > 0 and difference[24:].max() == 0 and len(difference) > 28
    assert ids.max() < tok.size == 200


@pytest.mark.parametrize("module", [image, audio])
def test_training_is_a_function_of_the_seed_and_survives_a_file(module, tmp_path):
    """Codes are the same alone and in company."""
    samples = draw(20, 4)
    config = image.ImageConfig(16, hidden=16)
    if module is audio:
        samples = speak(4, 4)
        config = audio.AudioConfig(2, groups=4, hidden=16)
    state = torch.random.get_rng_state()
    made = [module.train(samples, config, 5, seed) for seed in (0, 0, 1)]
    assert made[0].name == made[1].name != made[2].name
    assert torch.equal(state, torch.random.get_rng_state())
    made[0].save(tmp_path / "t.pt")
    again = module.load(tmp_path / "t.pt")
    assert (again.name, again.config) == (made[0].name, config)
    ids = made[0].encode(samples)
    for one, sample, wanted in zip(ids, samples, made[0].decode(ids)):
        assert np.array_equal(again.encode([sample])[0], one)
        assert np.array_equal(again.decode([one])[0], wanted)


def test_the_commands_show_a_file(pictures, speech, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pictures[1][0]).save("x.png")
    soundfile.write("x.wav", speech[1][0], 16000)
    for module, tok, name in ((image, pictures[0], "x.png"), (audio, speech[0], "x.wav")):
        tok.save("t.pt")
        call(module.main, name, "--tokenizer", "t.pt")
        assert Path("out", name.replace(".", "-decoded.")).exists()


def test_a_loss_that_is_not_finite_stops_the_training():
    tok = audio.Tokenizer(audio.AudioConfig(hidden=8))
    weight = next(tok.net.parameters())
    losses = itertools.chain([1.0, 1.0, float("inf")], itertools.repeat(1.0))
    with pytest.raises(DataError, match="audio tokenizer.*after 2 steps"):
        tok.fit(lambda rng: (weight * next(losses)).sum(), 5, 1e-3, seed=0, warmup=0.1)
