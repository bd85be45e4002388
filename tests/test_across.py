"""From speech to pictures and back: the text in between, the chain, its command and its scores."""
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from runs import call, content

import between
import data
import sample
from data import KINDS, MASK
from sample import ACROSS, TASKS
from sources import toyspeech, toyworld
from tools import score


def test_captions_begin_with_what_was_heard(toy):
    heard = ["a small red circle", "", "one two three " * 9]
    rows, nfe = between.captions_from_speech(toy, heard)
    slot = toy.stream.slots["image-text"][1]
    texts = content(toy, "image-text", "text", rows)
    for ids, text in zip(texts, heard):
        wanted = toy.stream.to_ids("text", toy.tokenizers["text"].encode([text])[0])[:slot - 1]
        assert ids.tolist() == [*wanted, *[MASK] * (slot - len(wanted))]
    assert (rows == MASK).sum(1).tolist() == [19 + int((ids == MASK).sum()) for ids in texts]
    assert nfe == 0


def probability_of_an_end(run, text):
    """With the layout written out."""
    codes = run.tokenizers["text"].encode([text])[0]
    clip, slot = run.stream.slots["speech-text"]
    ids = torch.from_numpy(run.stream.document("speech-text", [None, None]))[None]
    first = 3 + clip  # behind the task token, two boundary tokens and the clip
    place = first + min(len(codes), slot - 1)
    ids[0, first:place] = torch.from_numpy(run.stream.to_ids("text", codes))[:slot - 1]
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[0, place] = True
    low, high = (int(x) for x in run.stream.ranges("text", 0))
    with torch.no_grad():
        return float(run.ask(ids, where)[0, low:high].softmax(0)[-1])


def test_an_end_is_as_likely_as_the_network_says(toy):
    words = "a small red circle on white and much more".split()
    texts = [" ".join(words[:k + 1]) for k in range(len(words))]
    found = between.end_probability(toy, "speech-text", toy.tokenizers["text"].encode(texts))
    wanted = [probability_of_an_end(toy, text) for text in texts]
    assert found.tolist() == pytest.approx(wanted, rel=1e-4)


def test_a_text_is_said_up_to_its_first_likely_end(toy, monkeypatch):
    said = {"a small red circle on white": "a small red circle", "forty two": "forty",
            "a large blue star on white": "a large blue star on", "no end known": "no end known",
            "": ""}
    encode = toy.tokenizers["text"].encode
    ending = [codes.tolist() for codes in encode(["forty two", *said.values()])]

    def end_probability(run, kind, codes):
        return torch.tensor([0.75 if code.tolist() in ending else 0.25 for code in codes])

    monkeypatch.setattr(between, "end_probability", end_probability)
    rows, asked = between.speech_from_captions(toy, list(said))
    slot = toy.stream.slots["speech-text"][1]
    for ids, codes in zip(content(toy, "speech-text", "text", rows), encode(said.values())):
        assert toy.stream.to_codes("text", ids).tolist() == codes[:slot - 1].tolist()
    assert asked == (6 + 2 + 6 + 3 + 1) / 5
    clips = toy.stream.describe(rows).of("speech-text", "speech")
    assert (rows[clips] == MASK).all() and int((rows == MASK).sum()) == int(clips.sum())


@pytest.mark.parametrize("task", ACROSS)
def test_the_stages_are_asked_one_after_the_other(task, toy, quick):
    first, last = ACROSS[task]
    kind = TASKS[first][0]
    truth = data.stacked(toy.documents[kind][1][:2])
    ids = sample.punch(toy, kind, truth, *TASKS[first][1])
    made = sample.across(toy, task, ids, 3, True, steps=2)
    alone = sample.answer(toy, first, ids, 3)
    rows, cost = between.BETWEEN[TASKS[last][0]](toy, alone.outputs["text"])
    after = sample.answer(toy, last, rows, 3, steps=2)
    assert torch.equal(made.first.ids, alone.ids) and torch.equal(made.ids, after.ids)
    assert made.nfe == pytest.approx(alone.nfe + after.nfe + cost)
    assert torch.equal(made.film[0], rows) and torch.equal(made.film[-1], made.ids)
    assert torch.equal(made.first.film[-1], made.first.ids)
    given = rows != MASK
    assert torch.equal(made.ids[given], rows[given])  # the text in between stays
    assert not (made.ids == MASK).any() and set(made.outputs) == set(KINDS[TASKS[last][0]])


def test_the_command_writes_both_ends_and_prints_the_text_in_between(toy, quick, tmp_path):
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, toyspeech.speak(["a small red circle"], 0)[0], 16_000)
    flags = ("--run", toy.folder, "--out", tmp_path, "--device", "cpu", "--steps", 2)
    printed = call(sample.main, "speech-to-image", clip, *flags)
    made = sample.generate(toy, "speech-to-image", [sample.folders.open_clip(clip)], steps=2)
    picture = tmp_path / "speech-to-image-0-0.png"
    assert np.array_equal(np.asarray(Image.open(picture)), made.outputs["image"][0])
    heard, caption = made.first.outputs["text"][0], made.outputs["text"][0]
    assert (tmp_path / "speech-to-image-0-0.txt").read_text() == caption + "\n"
    assert printed.startswith(sample.files.printable(f"{heard} -> {caption}\n"))
    printed = call(sample.main, "image-to-speech", picture, *flags, "--watch")
    assert (tmp_path / "image-to-speech-0-0.wav").exists()
    assert "image: 19 of 19 tokens,  __" in printed and "speech: 0 of 72 tokens" in printed


def test_things_are_judged_on_any_ground():
    scenes = toyworld.scenes(9, 3, things=1)
    other = [score.replace(scene, background="black") for scene in scenes]
    marks = score.judge_things(scenes, {"image": list(toyworld.draw(other, 4))})
    assert marks["all"].all() and np.isnan(marks["background"]).all()
    marks = score.judge_things(scenes[:1], {"image": [np.zeros((32, 32, 3), np.uint8)]})
    assert not marks["all"].any()
