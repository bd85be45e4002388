"""Sampling from a trained run: what is given stays, and what is generated is in range and fits."""
import types

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from runs import call, content, refused

import data
import files
import sample
from data import HEAD, KINDS, MASK
from sample import TASKS
from sources import toyspeech

RED = "a small red circle on white"


def test_another_sampler_drops_what_only_the_default_one_has():
    changed = sample.settings_for("speech", sampler="entropy", budget=1.0, steps=None)
    assert changed == dict(sampler="entropy", budget=1.0, temperature=0.6, guidance=1.0,
                           candidates=4)


def test_the_network_has_the_averaged_weights(toy):
    average = files.load(toy.folder / "checkpoint.pt")["average"]
    assert all(map(torch.equal, toy.net.parameters(), average))


@pytest.mark.parametrize("task", TASKS)
def test_what_is_given_stays_and_what_is_made_is_in_range(task, toy):
    kind, targets = TASKS[task]
    truth = data.stacked(toy.documents[kind][1][:2])[[0, -1, 0]]
    ids = sample.punch(toy, kind, truth, *targets)
    few = dict(record=True, candidates=2, rounds=1, correct=1)
    made = sample.answer(toy, task, ids, 5, **few)
    rows = toy.stream.describe(made.ids)
    at = rows.member >= 0
    assert ((rows.low <= made.ids) & (made.ids < rows.high))[at].all()
    assert torch.equal(made.film[0], ids) and torch.equal(made.film[-1], made.ids)
    given = ids != MASK
    assert all(torch.equal(frame[given], truth[given]) for frame in made.film)
    assert {m: len(items) for m, items in made.outputs.items()} == dict.fromkeys(KINDS[kind], 3)
    again = sample.answer(toy, task, ids, 5, **few)
    assert torch.equal(again.ids, made.ids) and again.nfe == made.nfe > 0
    assert not torch.equal(sample.answer(toy, task, ids, 6, **few).ids, made.ids)


def test_a_pair_begins_with_its_text(toy):
    """Its text is whole before anything of the picture shows. Then it is text-to-image."""
    made = sample.generate(toy, "image", [None] * 2, seed=3, record=True, candidates=1, steps=3)
    masked = [[(content(toy, "image-text", m, frame) == MASK) for m in ("image", "text")]
              for frame in made.film]
    draft = [bool(text.any()) for _, text in masked].index(False)
    assert all(picture.all() for picture, _ in masked[:draft + 1])
    again = sample.answer(toy, "text-to-image", made.film[draft], 3, candidates=1, steps=3)
    assert torch.equal(again.ids, made.ids) and made.nfe > again.nfe


def test_guidance_and_candidates_are_paid_for(toy):
    def made(**changes):
        settings = dict(seed=1, candidates=1, steps=4, temperature=1.0)
        return sample.generate(toy, "text-to-image", [RED] * 2, **{**settings, **changes})

    none, much, best = made(guidance=0.0), made(guidance=9.0), made(candidates=3, rounds=5)
    assert none.nfe == 4 and much.nfe == 8 and not torch.equal(none.ids, much.ids)
    assert 3 * 2 * 4 < best.nfe <= 3 * (2 * 4 + 2 * 5) and len(best.outputs["image"]) == 2


def test_the_candidate_that_fits_its_prompt_is_taken():
    """The network knows that every character is the colour at its place, plus 5. Of four candidates
    a prompt the one that obeys most is taken, from either side."""
    stream = data.Stream({"text": (1, 10), "image": (1, 4)}, {"image-text": [4, 5]})
    image, text = stream.start["image"], stream.start["text"]

    of_image, of_text = slice(2, 6), slice(7, 11)

    def predict(x, where):
        logits = torch.zeros(*x.shape, stream.vocab)
        colours = x[:, of_text] - text - 5 + image                        # (B, 4)
        colours = torch.where((colours >= image) & (colours < image + 4), colours, image + 4)
        letters = x[:, of_image] - image + 5 + text
        letters = torch.where(letters >= text + 5, letters, text)
        logits[:, of_image].scatter_(2, colours[..., None], 9.0)
        logits[:, of_text].scatter_(2, letters[..., None], 9.0)
        logits[:, blind] = 0.0
        return logits[where]

    right, most, half, none = [5, 6, 7, 8], [5, 6, 7, 0], [5, 6, 0, 0], [0] * 4
    captions = [half, most, right, none, most, half, none, none]
    rows = [stream.document("image-text", [np.arange(4), caption]) for caption in captions]
    run = types.SimpleNamespace(stream=stream, predict=predict)
    for given in ("image", "text"):
        for blind in (of_image, of_text):  # then the other direction decides
            kept = sample.best_candidates(run, "image-text", data.stacked(rows), [given], 4, 0, 6)
            assert kept.tolist() == [2, 4]


def test_rows_that_agree_are_asked_once(toy, monkeypatch):
    x = data.stacked([toy.stream.document("image-text", [None, None])] * 5)
    where = x == MASK
    x[[1, 3], 2] = toy.stream.start["image"]  # rows 0, 2, 4 agree; 1 and 3 but for what they ask
    where[[1, 3], 2] = where[3, -1] = False
    with torch.no_grad():
        alone = torch.cat([toy.ask(x[i:i + 1], where[i:i + 1]) for i in range(5)])
        asked = []
        ask = toy.ask
        monkeypatch.setattr(toy, "ask", lambda x, where: asked.append(len(x)) or ask(x, where))
        assert torch.allclose(toy.predict(x, where), alone, atol=1e-5)
    assert asked == [3]


def test_many_prompts_are_filled_in_pieces(toy):
    ids = data.stacked([toy.stream.document("speech-text", [None, None])] * 32)
    few = dict(batch=1, sampler="ancestral", steps=2)
    made = sample.fill(toy, "speech-text", ids, ("text",), record=True, **few)
    texts = content(toy, "speech-text", "text", made.ids)
    assert len(made.ids) == 32 and not torch.equal(texts[:16], texts[16:])  # their noise differs
    assert set(made.outputs) == {"text"} and 1 <= made.nfe <= 2
    alone = sample.fill(toy, "speech-text", ids, ("text",), **few)
    assert torch.equal(made.ids, alone.ids) and not alone.film
    assert torch.equal(made.film[0], ids) and torch.equal(made.film[-1], made.ids)
    short, long = [torch.zeros(1, 1)], [torch.full((2, 1), float(i)) for i in range(3)]
    assert torch.cat(sample.joined([short, long]), 1).tolist() == [[0, 0, 0], [0, 1, 2], [0, 1, 2]]


def test_tasks_that_a_run_does_not_know_are_refused(toy, monkeypatch):
    known = {kind: slots for kind, slots in toy.stream.slots.items() if kind != "image-text"}
    monkeypatch.setattr(toy.stream, "slots", known)
    monkeypatch.setattr(sample, "load_run", lambda *given: toy)
    for command in (["image"], ["infill", __file__], ["image-to-speech", "no.png"],
                    ["speech-to-image", "no.wav"]):
        line = f"{command[0]}: this run was not trained on image-text; it knows text, "
        assert line in refused(sample.main, *command)


def test_texts_of_several_lengths_see_nothing_of_each_other(toy, monkeypatch):
    """At temperature 0 each is what it is alone. Else they differ: they share no noise."""
    monkeypatch.setattr(sample, "drawn_extents", lambda run, at_least, seed: np.array([24, 8, 40]))
    made = sample.generate(toy, "text", [None] * 3, temperature=0.0, correct=0)
    assert made.ids.shape[1] == HEAD + 40 and len(made.outputs["text"]) == 3
    for row, extent in zip(made.ids, (24, 8, 40)):
        alone = sample.generate(toy, "text", [None], length=extent, temperature=0.0, correct=0)
        assert torch.equal(row[:HEAD + extent], alone.ids[0])
        assert (row[HEAD + extent:] == data.PAD).all()
    a, _, b = sample.generate(toy, "text", [None] * 3, temperature=1.0, correct=0).ids[:, HEAD:22]
    assert (a != b).sum() > 10


def test_extents_are_drawn_as_in_training(toy, monkeypatch):
    texts = [toy.stream.texts(np.arange(n))[0] for n in (3, 12, 20, 5, 18)]
    monkeypatch.setitem(toy.documents, "text", (texts, None))
    true = np.array([8, 16, 24, 8, 24])
    drawn = sample.drawn_extents(toy, np.zeros(4000, int), 3)
    for n in set(true) | set(drawn):
        assert np.mean(drawn == n) == pytest.approx(np.mean(true == n), abs=0.04)
    longer = sample.drawn_extents(toy, np.full(200, 8), 3)
    assert set(longer) == {16, 24}  # room for something behind a prompt of 8
    assert (sample.drawn_extents(toy, np.full(2, 24), 3) == toy.stream.slots["text"][0]).all()


def test_a_hole_in_a_text_leaves_what_is_around_it(toy):
    before, after = toy.tokenizers["text"].encode(["the red circle is", " the blue square."])
    made = sample.infill_text(toy, "the red circle is ___ the blue square.", 3, 2, 0, {})
    ids = content(toy, "text", "text", made.ids).numpy()
    behind = len(before) + 3
    for row in ids:
        codes = toy.stream.to_codes("text", row)
        assert codes[:len(before)].tolist() == before.tolist()
        assert codes[behind:behind + len(after)].tolist() == after.tolist()


def test_a_hole_in_a_picture_is_filled_before_its_caption_is_read(toy, monkeypatch):
    order = []
    real = sample.fill

    def spy(run, kind, ids, targets, *given, **settings):
        order.append(targets)
        return real(run, kind, ids, targets, *given, **settings)

    monkeypatch.setattr(sample, "fill", spy)
    given = (toy, "image", np.full((32, 32, 3), 200, np.uint8), (0.5, 1), None, 2, 0, {"steps": 3})
    made = sample.infill_file(*given)
    assert len(made.outputs["text"]) == len(made.outputs["image"]) == 2
    monkeypatch.setitem(toy.saved["config"], "modes", {"joint": 1.0})  # no picture was seen alone
    sample.infill_file(*given)
    assert order == [("image",), ("text",), ("image", "text")]


def test_nothing_ends_before_given_content(toy, monkeypatch):
    """A network that wants ends everywhere: a hole in a clip gets none, what is behind it does."""
    def ask(x, where):
        ends = toy.stream.describe(x).high[where] - 1
        return torch.nn.functional.one_hot(ends, toy.stream.vocab) * 50.0

    monkeypatch.setattr(toy, "ask", ask)
    wave = 0.1 * np.sin(np.arange(10_000) / 9).astype(np.float32)
    codes = toy.tokenizers["speech"].encode([wave])[0]
    made = sample.infill_file(toy, "speech", wave, (0.25, 0.75), None, 1, 0, {"steps": 3})
    ids = content(toy, "speech-text", "speech", made.ids)[0].numpy()
    assert len(toy.stream.to_codes("speech", ids)) == len(codes)
    assert made.outputs["text"] == [""]


def test_a_hole_is_a_share_of_what_is_no_palette_and_no_end(toy, monkeypatch):
    monkeypatch.setattr(sample, "fill", lambda run, kind, rows, *rest, **settings:
                        (rows[0] == MASK).nonzero()[:, 0].tolist())
    speech = toy.tokenizers["speech"]
    picture, clip = np.zeros((32, 32, 3), np.uint8), np.ones(8 * speech.config.step)
    for modality, item, share, first, last in (  # three colours, four rows of four squares
            ("image", picture, (0, 1), 3, 19), ("image", picture, (0.5, 1), 11, 19),
            ("speech", clip, (0.5, 1), 4 * speech.groups, 8 * speech.groups)):
        asked = sample.infill_file(toy, modality, item, share, "a", 1, 0, {})
        assert asked == list(range(HEAD + first, HEAD + last))


def test_files_of_every_task_are_written_and_read_back(toy, tmp_path):
    def run(*given):
        return call(sample.main, "--run", toy.folder, "--out", tmp_path, "--device", "cpu", *given)

    printed = run("text-to-image", RED, "--steps", 3, "--n", 2, "--seed", 4)
    made = sample.generate(toy, "text-to-image", [RED] * 2, seed=4, steps=3)
    for i in range(2):
        path = tmp_path / f"text-to-image-4-{i}.png"
        assert np.array_equal(np.asarray(Image.open(path)), made.outputs["image"][i])
        assert str(path) in printed
    assert Image.open(tmp_path / "text-to-image-4-0-sheet.png").size == (3 * 64, 3 * 32)
    assert (tmp_path / "text-to-image-4-1.txt").read_text() == RED + "\n"
    printed = run("text-to-speech", "twenty one", "a\x1b[2J", "--steps", 3)
    assert printed.splitlines()[:2] == ["twenty one", "a\\x1b[2J"]
    clip = tmp_path / "text-to-speech-0-0.wav"
    wave, rate = soundfile.read(clip)
    made = sample.generate(toy, "text-to-speech", ["twenty one", "a\x1b[2J"], steps=3)
    assert rate == 16_000 and np.abs(wave - made.outputs["speech"][0].clip(-1, 1)).max() < 1e-4
    clip.write_bytes(sample.wav(toyspeech.speak(["twenty one"], 0)[0]))  # this one is not silent
    run("image-to-text", path, "--candidates", 1)
    run("speech-to-text", clip, "--candidates", 1)
    run("infill", clip, "--hole", "0:0.5", "--steps", 2)
    before = (tmp_path / "infill-0-0.wav").read_bytes()
    run("infill", tmp_path / "infill-0-0.wav", "--steps", 2)
    assert (tmp_path / "infill-0-0.wav").read_bytes() == before
    assert (tmp_path / "infill-0-1.wav").exists()
    clip.write_bytes(sample.wav(np.ones(16_000 * 9) * 0.1))
    line = refused(sample.main, "speech-to-text", clip, "--run", toy.folder, status=(1,))
    assert f"{clip}: lasts over {sample.clip_seconds(toy):g} s" in line
    for name in ("image-to-text-0-0.txt", "speech-to-text-0-0.txt", "infill-0-0.wav"):
        assert (tmp_path / name).stat().st_size > 0
    printed = run("--length", 12, "text", "the red", "--n", 2, "--correct", 0)  # flags come first
    texts = [(tmp_path / f"text-0-{i}.txt").read_text() for i in range(2)]
    assert all(text.startswith("the red") for text in texts) and "".join(texts) in printed
    printed = run("infill", "the red circle is ___ square.", "--hole", 1, "--correct", 0)
    assert printed.startswith("the red circle is")
