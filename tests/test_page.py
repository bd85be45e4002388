"""The page of a run: whole in itself, safe with any text, true to the ids."""
import json
import re
import shutil

import numpy as np
import pytest
import torch
from runs import content

import data
import sample
from data import MASK
from tools import page
from tools.masked import GREY, masked_clip, masked_picture

TASKS = (*sample.TASKS, *sample.ACROSS)


def test_every_task_is_shown_with_its_stages_and_nothing_comes_from_elsewhere(trained):
    written = (trained[0] / "index.html").read_text(encoding="utf-8")
    sources = re.findall(r"(?:src|href)=['\"]?([^'\" >]*)", written)
    assert len(sources) > 20 and all(source.startswith("data:") for source in sources)
    assert not re.findall(r"https?:|<link|@import|url\(|fetch\(", written)
    sections = written.split("<section class=task>")[1:]
    assert [s.split("<button>")[0] for s in sections] == \
        [f"<h3>{task.replace('-', ' ')}" for task in TASKS]
    for task, section in zip(TASKS, sections):
        cards = section.split("<article")[1:]
        assert 1 <= len(cards) <= page.SAMPLES
        for card in cards:
            strip, answer = card.split("<div class=screen>")
            assert "<i></i>" in strip or "<img" in strip
            assert "<i></i>" not in answer
            assert ("<audio" in card) == ("speech" in task)
            assert ("original" in card) == bool(sample.given_members(task))


def test_hostile_captions_and_names_stay_text(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "TASKS", {"text-to-image": sample.TASKS["text-to-image"]})
    monkeypatch.setattr(page, "ACROSS", {})
    folder = tmp_path / "<script>alert(1)<" / "script>"
    shutil.copytree(toy.folder, folder)
    run = sample.load_run(folder, torch.device("cpu"))
    caption = run.tokenizers["text"].encode(["<img>\x1b&"])[0]
    ids = run.stream.document("image-text", [[0] * 19, caption])
    run.documents["image-text"] = (None, [ids])
    (folder / "log.jsonl").write_text('{"step": 1, "tokens": 5, "terms": {"<b>": 1.0}}\n')
    text = page.write(folder, run).read_text(encoding="utf-8")
    assert "&lt;img&gt;\\x1b&amp;" in text and "\x1b" not in text
    assert "<img>" not in text and "<b>:" not in text and "&lt;b&gt;:" in text
    assert "script&gt;</h1>" in text and text.count("<script>") == 1


def test_during_training_the_page_shows_curves(tmp_path):
    (tmp_path / "config.json").write_text('{"stream": {"slots": {"text": [9]}}}')
    lines = [{"step": n, "tokens": 9 * n, "terms": {"a": 2.0, "b": 20 / n}} for n in range(1, 30)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page.write(tmp_path).read_text()
    assert "29 steps on 261 tokens" in text
    tick = re.search(r'top:([\d.]+)%"><span>2<', text)[1]  # the constant term lies on it
    assert text.count("<polyline") == 2 and text.count(f",{tick} ") >= 28


def test_a_picture_is_shown_as_it_is_decoded_and_grey_where_it_is_masked(toy):
    documents = data.stacked(toy.documents["image-text"][1][:1])
    ids = content(toy, "image-text", "image", documents)[0].numpy()

    def decoded(ids):
        codes = toy.stream.to_codes("image", ids)
        return toy.tokenizers["image"].decode([codes])[0].astype(int)

    shown = masked_picture(toy, ids)
    assert np.abs(shown[4:, :, :3] - decoded(ids)).max() <= 1
    assert (shown[3, :, 3] == 0).all() and (np.delete(shown, 3, 0)[:, :, 3] == 255).all()
    ids[-1] = MASK
    shown = masked_picture(toy, ids)[4:, :, :3]
    side = 32 // toy.tokenizers["image"].config.grid[0]
    assert (shown[-side:, -side:] == GREY).all()
    assert np.abs(shown[:-side] - decoded(ids)[:-side]).max() <= 1  # what is masked is read as 0
    ids[:3] = MASK
    assert (masked_picture(toy, ids)[:, :, :3] == GREY).all()


def test_a_clip_is_grey_where_it_is_masked_and_nothing_behind_its_end(toy):
    groups = toy.stream.codes["speech"][0]
    low, high = toy.stream.ranges("speech", np.arange(4 * groups))
    ids = low + 5  # a step of code 5, a masked one, an end, anything
    ids[groups:2 * groups] = MASK
    ids[2 * groups:3 * groups] = high[:groups] - 1
    shown = masked_clip(toy, ids)
    first, masked, end, behind = np.split(shown, 4, axis=1)
    assert (masked == [GREY] * 3 + [255]).all()
    assert (first[:, :, 3] == 255).all() and len(np.unique(first[:, :, 0])) > 1
    assert (end[:, :, 3] == 0).all() and (behind[:, :, 3] == 0).all()


def test_a_text_is_shown_up_to_its_end_with_whole_characters(toy):
    text = toy.tokenizers["text"]
    codes = text.encode(["the red é."])[0]
    ids = toy.stream.to_ids("text", codes)
    end = toy.stream.ranges("text", 0)[1] - 1
    sure = np.linspace(0.1, 0.9, len(ids) + 2)
    found = page.pieces(toy, np.append(ids, [end, MASK]), sure)
    assert "".join(piece for piece, _ in found) == "the red é."
    byte = text.decode([[code] for code in codes]).index("\ufffd")  # the first of two of é
    assert "é" in found[byte][0] and found[byte][1] == sure[byte] and len(found) == len(ids) - 1
    ids[[0, byte]] = MASK
    pieces = [piece for piece, _ in page.pieces(toy, ids, sure)]
    assert [i for i, piece in enumerate(pieces) if piece is None] == [0, byte]
    assert pieces[byte + 1:] == ["\ufffd."]  # half a character


def test_doubt_is_that_of_the_network_when_it_chose(toy):
    """Against a softmax over a position's own ids, written out."""
    last = data.stacked(toy.documents["image-text"][1][:1])
    rows = toy.stream.describe(last)
    at = int(rows.of("image-text", "text")[0].nonzero()[0])
    low, high = rows.low[0, at], rows.high[0, at]
    start = last.clone()
    start[0, at:at + 2] = MASK
    middle = last.clone()
    middle[0, at + 1] = MASK
    again = last.clone()
    again[0, at] = low  # a repair: seen masked, with all others there
    stages = page.sureness(toy, [start, middle, last, again])

    def probability(x, token):
        x = x.clone()
        x[0, at] = MASK
        where = torch.arange(x.shape[1])[None] == at
        with torch.no_grad():
            return float(toy.ask(x, where)[0, low:high].softmax(0)[token - low])

    p = probability(start, last[0, at])
    shown = [float(s[0, at]) for s in stages]
    assert shown == pytest.approx([1, p, p, probability(last, low)], rel=1e-4)
    changed = [int((stage != 1).sum()) for stage in stages]
    assert changed == [0, 1, 2, 2]


def test_stages_are_even_in_masked_tokens_and_end_with_the_answer():
    film = [torch.tensor([[MASK] * left + [7] * (10 - left)]) for left in range(10, -1, -1)]
    assert page.frames_of(film, 0).tolist() == [0, 2, 4, 6, 8, 10]
    assert page.frames_of(film + film[-1:] * 3, 0).tolist() == [0, 2, 4, 6, 8, 13]  # after repairs
    assert page.frames_of([film[0], film[-1]], 0).tolist() == [0, 1]
