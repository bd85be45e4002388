"""Rows, layouts, readers, cache and batches."""
import json
import types

import numpy as np
import pytest
import torch

import data
import prepare
import readers
import model as models
from data import MASK, PAD

CODES = {"text": (1, 10), "image": (1, 4), "speech": (2, 6)}
SLOTS = {"text": [32], "image-text": [4, 5], "speech-text": [8, 5]}


@pytest.fixture
def stream():
    return data.Stream(CODES, SLOTS)


def test_vocabulary_ranges_are_disjoint_and_cover_it(stream):
    seen = list(range(len(data.SPECIALS)))
    for modality, (groups, size) in CODES.items():
        for g in range(groups):
            low, high = stream.ranges(modality, g)
            seen += range(low, low + size + 1)
            assert high - low == size + (modality != "image")  # a picture has no end
    assert seen == list(range(stream.vocab))


def test_a_row_by_hand(stream):
    row = stream.row("speech-text", [[0, 1, 2, 3], [7, 8]])
    base, text = stream.start["speech"], stream.start["text"]
    end0, end1, end = base + 6, base + 13, text + 10
    assert row.tolist() == [data.SPECIALS.index("<task speech-text>"), data.SPECIALS.index("<speech>"),
                            base + 0, base + 7 + 1, base + 2, base + 7 + 3, end0, end1, end0, end1,
                            data.SPECIALS.index("<text>"), text + 7, text + 8, end, end, end]
    assert (stream.row("image-text", [None, [1]])[2:6] == MASK).all()


@pytest.mark.parametrize("modality, codes, slot", [("text", [3, 0, 9], 5), ("speech", [5, 5, 0, 1], 8), ("image", [3, 2, 1, 0], 4),
                                                   ("text", [], 5)])
def test_codes_survive_a_slot(stream, modality, codes, slot):
    assert stream.to_codes(modality, stream.fit(modality, np.array(codes, int), slot)).tolist() == codes


def test_items_longer_than_their_slot_are_named(stream):
    with pytest.raises(data.DataError, match="text item of 5 tokens"):
        stream.fit("text", [1] * 5, 5)
    stream.fit("image", [1] * 4, 4)


def test_every_token_is_allowed_where_it_stands(stream):
    rows = stream.describe("speech-text", stream.row("speech-text", [[0, 1, 2, 3], [7, 8]])[None])
    inside = rows.member >= 0
    assert ((rows.low <= rows.ids) & (rows.ids < rows.high))[inside].all()
    assert (rows.member[0][[0, 1, 10]] == -1).all() and len(np.unique(rows.place[inside])) == inside.sum()


def test_packing_keeps_every_document_whole_and_in_one_row(stream):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 10, n) for n in rng.integers(1, 24, 50)]
    rows = stream.describe("text", packed := stream.pack("text", documents))
    found = []
    for i in range(len(packed)):
        for d in range(1, rows.doc[i].max() + 1):
            content = (rows.doc[i] == d) & (rows.member[i] == 0)
            assert rows.place[i][content].tolist() == list(range(stream.place_start["text"], stream.place_start["text"] + content.sum()))
            assert content.sum() % 8 == 0 or content.sum() == 30
            found.append(stream.to_codes("text", packed[i][content]).tolist())
    assert sorted(found) == sorted(d.tolist() for d in documents)
    assert ((packed == PAD) == (rows.doc == -1)).all() and (packed != PAD).mean() > 0.8


def test_long_documents_are_cut_into_rows_in_order(stream):
    long = np.arange(100) % 10
    packed = stream.pack("text", [long])
    rows = stream.describe("text", packed)
    text = packed[(rows.member == 0)] - stream.start["text"]
    assert text[:100].tolist() == long.tolist() and (text[100:] == 10).all()


def test_packed_documents_cannot_see_each_other_and_padding_changes_nothing(stream):
    net = models.Transformer(models.ModelConfig(stream.vocab, stream.places, width=32, depth=2, head_dim=16, base_width=32,
                                                base_depth=2))
    documents = [np.array([1, 2, 3]), np.array([4, 5, 6, 7, 8])]
    run = lambda packed: (r := stream.describe("text", packed), net(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (
        r.ids, r.place, r.doc))))
    both, logits = run(stream.pack("text", documents))
    assert len(both.ids) == 1
    for d, document in enumerate(documents, 1):
        alone, single = run(stream.pack("text", [document]))
        assert torch.allclose(logits[0][both.doc[0] == d], single[0][alone.doc[0] == 1], atol=1e-5)
    cut = stream.pack("text", documents)[:, :24]   # the same row without its padding
    assert (stream.pack("text", documents)[:, 20:] == PAD).all()
    assert torch.allclose(run(cut)[1][0, :20], logits[0, :20], atol=1e-5)


def test_batches_are_a_function_of_seed_and_step(stream):
    rows = {"image-text": np.stack([stream.row("image-text", [[i % 4] * 4, [i % 10]]) for i in range(10)])}
    make = lambda seed: data.Batches(stream, rows, {"image-text": 4}, seed)
    a, b = make(0), make(0)
    late = a(7)["image-text"].ids
    [a(s) for s in range(3)]
    assert (b(7)["image-text"].ids == late).all() and (a(7)["image-text"].ids == late).all()
    assert any((make(1)(s)["image-text"].ids != a(s)["image-text"].ids).any() for s in range(3))
    order = [a._order("image-text", e).tolist() for e in (0, 1)]
    assert sorted(order[0]) == sorted(order[1]) == list(range(10)) and order[0] != order[1]


def test_rows_per_step_follow_the_mix(stream):
    counts = data.rows_per_step(stream, {"text": 0.25, "image-text": 0.5, "speech-text": 0.25}, 4096, list(SLOTS))
    tokens = {k: n * stream.length(k) for k, n in counts.items()}
    assert all(n % 2 == 0 for n in counts.values())
    assert tokens["image-text"] / sum(tokens.values()) == pytest.approx(0.5, abs=0.03)


def write_pictures(folder, count=4):
    from PIL import Image
    for i in range(count):
        Image.fromarray(np.full((10, 8, 3), 10 * i, np.uint8)).save(folder / f"p{i}.png")


def test_reading_an_image_folder(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps({"file_name": f"p{i}.png", "text": f"grey {i}"}) + "\n" for i in range(4)))
    source = readers.read_images(tmp_path, 8, 3)
    assert source.texts == [f"grey {i}" for i in range(4)] and source.load([2])[0].shape == (8, 8, 3)
    assert source.load([2])[0][0, 0].tolist() == [20, 20, 20]
    assert readers.picture_format([tmp_path]) == (8, 3)
    from PIL import Image
    Image.new("L", (500, 400)).save(tmp_path / "a.png")
    assert readers.picture_format([tmp_path]) == (readers.LARGEST, 3), "one grey picture does not make the others grey"
    (tmp_path / "a.png").unlink()
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(data.DataError, match="4 of 4 items .*p0.txt is missing"):
        readers.read_images(tmp_path, 8, 3)
    for i in range(4):
        (tmp_path / f"p{i}.txt").write_text(f"colour {i}")
    assert readers.read_images(tmp_path, 8, 1).texts == [f"colour {i}" for i in range(4)]


def test_reading_speech_resamples_and_mixes_down(tmp_path):
    import soundfile
    (tmp_path / "wavs").mkdir()
    t = np.arange(8000) / 8000
    tone = 0.5 * np.sin(2 * np.pi * 440 * t)
    soundfile.write(tmp_path / "wavs" / "a.wav", np.stack((tone, tone), 1), 8000)
    (tmp_path / "metadata.csv").write_text("a|a tone|a tone\n")
    source = readers.read_speech(tmp_path)
    wave = source.load([0])[0]
    want = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert source.texts == ["a tone"] and wave.dtype == np.float32 and len(wave) == 16000
    assert np.abs(wave - want)[500:-500].max() < 1e-3
    (tmp_path / "metadata.csv").write_text("b|missing\n")
    with pytest.raises(data.DataError, match="b: no such file in wavs"):
        readers.read_speech(tmp_path)


def test_reading_text(tmp_path):
    (tmp_path / "a.txt").write_text("Zwölf", encoding="utf-8")
    (tmp_path / "b.txt").write_text("two")
    assert readers.read_text(tmp_path).texts == ["Zwölf", "two"]
    assert readers.read_text(tmp_path / "b.txt").texts == ["two"]
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(data.DataError, match="b.txt"):
        readers.read_text(tmp_path)


def test_held_out_items_are_apart_and_long_texts_are_cut():
    source = readers.Source("image-text", "x", [str(i) for i in range(1000)], lambda at: at, "k")
    _, train, held = readers.held_out(source)
    assert sorted([*train, *held]) == list(range(1000)) and len(held) == 50
    text = readers.Source("text", "x", ["abcdefghij" * 10], None, "k")
    cut, train, held = readers.held_out(text)
    assert [len(cut.texts[i]) for i in (*train, *held)] == [90, 10]


class Letters:
    """A stand-in tokenizer: one code a character; counts its calls."""
    name, groups, size, calls = "letters", 1, 26, 0

    def encode(self, samples):
        Letters.calls += 1
        return [np.array([ord(c) - 97 for c in s], np.int32) for s in samples]


def test_cache_is_read_back_and_follows_content_and_code(tmp_path, monkeypatch):
    source = readers.Source("text", "x", ["abc", "de"], None, "key1")
    first = data.cached_codes(source, {"text": Letters()}, tmp_path)
    again = data.cached_codes(source, {"text": Letters()}, tmp_path)
    assert Letters.calls == 1 and again[0][0].tolist() == [0, 1, 2, 3, 4] and again[0][1].tolist() == [0, 3, 5]
    assert isinstance(again[0][0], np.memmap) and first[0][0].tolist() == again[0][0].tolist()
    data.cached_codes(readers.Source("text", "x", ["abc", "xy"], None, "key2"), {"text": Letters()}, tmp_path)
    assert Letters.calls == 2 and not list(tmp_path.glob("*.tmp*"))
    monkeypatch.setattr(data, "made_by", lambda: "a changed file")
    data.cached_codes(source, {"text": Letters()}, tmp_path)
    assert Letters.calls == 3


def test_rows_from_the_cache_are_split_by_key(tmp_path, stream):
    codes = data.cached_codes(readers.Source("text", "x", ["abc", "de", "fgh"], None, "k"), {"text": Letters()}, tmp_path)
    train = data.make_rows(stream, "text", codes, [0, 1], tmp_path, "k-train")
    held = data.make_rows(stream, "text", codes, [2], tmp_path, "k-held")
    assert train.dtype == np.uint16 and (train != PAD).sum() > (held != PAD).sum()


def test_a_book_does_not_spell_the_transcripts(tmp_path):
    """Beside a text fifty times as long the words of transcripts are tokens, since each kind counts alike; alone the text would take all merges."""
    book = ["".join(chr(97 + n) for n in data.rng(0, i).integers(0, 26, 4)) + " " for i in range(4000)]
    sources = [readers.Source("text", "book", ["".join(book)], None, "b"),
               readers.Source("speech-text", "clips", ["nineteen", "twelve nineteen", "two twelve"] * 10, None, "c")]
    args = types.SimpleNamespace(encoding=None, vocab_size=400)
    tokenizer = prepare.make_tokenizer("text", sources, args, tmp_path, None)
    words = [" nineteen", " twelve", "twelve"]
    assert [len(ids) for ids in tokenizer.encode(words)] == [1, 1, 1]
    plain = data.tokenizer_module("text").train([t for s in sources for t in s.texts], 400)
    assert sum(len(ids) for ids in plain.encode(words)) > 6
