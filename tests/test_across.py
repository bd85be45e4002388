"""From speech to pictures and back: the text in between, the chain, its command and its scores."""
import numpy as np
import pretend
import pytest
import soundfile
import torch
from PIL import Image
from runs import call, told

import between
import data
import sample
from data import KINDS, MASK
from sample import ACROSS, TASKS
from sources import toyspeech, toyworld
from tools import score

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def toy(trained):
    return sample.load_run(trained[0], CPU)


@pytest.fixture
def quick(monkeypatch):
    """One candidate in every stage."""
    for task, settings in sample.DEFAULTS.items():
        monkeypatch.setitem(sample.DEFAULTS, task, {**settings, "candidates": 1})


def prompts(run, task, n=2):
    """Rows (n, L) of held-out prompts of a task's first stage."""
    kind, targets = TASKS[sample.stages_of(task)[0]]
    ids = data.stacked(run.documents[kind][1].first(n))
    return sample.punch(run, kind, ids, *targets)


def texts_of(run, kind, ids):
    """Ids of the texts, (B, slot)."""
    at = run.stream.describe(ids).of(kind, "text")
    return ids[at].view(len(ids), -1)


def beginnings(text):
    words = text.split(" ")
    return [" ".join(words[:k + 1]) for k in range(len(words))]


def test_stages_lead_from_one_kind_to_the_other_by_a_text():
    for task, (first, last) in ACROSS.items():
        given, made = task.split("-to-")
        assert sample.given_members(first) == sample.given_members(task) == [given]
        assert TASKS[first][1] == ("text",) and made in TASKS[last][1]
        assert KINDS[TASKS[last][0]] == (made, "text") and TASKS[last][0] in between.BETWEEN
    assert sample.kinds_of("speech-to-image") == ["speech-text", "image-text"]
    assert sample.settings_for("image-to-speech", steps=3)["steps"] == 3


# ---- The text in between.


def test_captions_begin_with_what_was_heard(toy):
    heard = ["a small red circle", "", "one two three " * 9]
    rows, nfe = between.captions_from_speech(toy, heard)
    slot = toy.stream.slots["image-text"][1]
    texts = texts_of(toy, "image-text", rows)
    for ids, text in zip(texts, heard):
        wanted = toy.stream.to_ids("text", toy.tokenizers["text"].encode([text])[0])[:slot - 1]
        assert ids.tolist() == [*wanted, *[MASK] * (slot - len(wanted))]
    assert (rows == MASK).sum(1).tolist() == [19 + int((ids == MASK).sum()) for ids in texts]
    assert nfe == 0


def probability_of_an_end(run, text):
    """By one row, one softmax, and the layout written out."""
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
    texts = beginnings("a small red circle on white and much more")
    found = between.end_probability(toy, "speech-text", toy.tokenizers["text"].encode(texts))
    wanted = [probability_of_an_end(toy, text) for text in texts]
    assert found.tolist() == pytest.approx(wanted, rel=1e-4)


def test_a_text_is_said_up_to_its_first_likely_end(toy, monkeypatch):
    """Of a network that knows where texts of speech end: there p(end) is 3/4, elsewhere 1/4."""
    ending = {"a small red circle", "forty", "forty two", "a large blue star on"}

    def predict(x, where):
        assert (where.sum(1) == 1).all() and (x[where] == MASK).all()
        codes = sample.codes_of(toy, "speech-text", "text", x)
        places = where.int().argmax(1).tolist()
        first = 3 + toy.stream.slots["speech-text"][0]
        texts = toy.tokenizers["text"].decode([c[:at - first] for c, at in zip(codes, places)])
        low, high = toy.stream.ranges("text", 0)
        logits = torch.full((len(x), toy.stream.vocab), -99.0)
        logits[:, high:] = 99.0  # other ids do not count
        for row, text in zip(logits, texts):
            row[low] = 0.0
            row[high - 1] = np.log(3) if text in ending else -np.log(3)
        return logits

    monkeypatch.setattr(toy, "predict", predict)
    said = {"a small red circle on white": "a small red circle", "forty two": "forty",
            "a large blue star on white": "a large blue star on", "no end is known": None, "": ""}
    rows, asked = between.speech_from_captions(toy, list(said))
    slot = toy.stream.slots["speech-text"][1]
    for ids, (text, wanted) in zip(texts_of(toy, "speech-text", rows), said.items()):
        if wanted is None:
            wanted = text
        codes = toy.tokenizers["text"].encode([wanted])[0][:slot - 1]
        assert toy.stream.to_codes("text", ids).tolist() == codes.tolist()
    assert asked == (6 + 2 + 6 + 4 + 1) / 5
    clips = toy.stream.describe(rows).of("speech-text", "speech")
    assert (rows[clips] == MASK).all() and int((rows == MASK).sum()) == int(clips.sum())


# ---- The chain.


@pytest.mark.parametrize("task", ACROSS)
def test_the_stages_are_asked_one_after_the_other(task, toy, quick, monkeypatch):
    asked = []
    real = sample.answer

    def spy(run, task, ids, seed=0, record=False, **changes):
        asked.append((task, ids, changes))
        return real(run, task, ids, seed, record, **changes)

    ids = prompts(toy, task)
    first, last = ACROSS[task]
    monkeypatch.setattr(sample, "answer", spy)
    made = sample.across(toy, task, ids, 3, True, steps=2)
    monkeypatch.setattr(sample, "answer", real)
    assert [stage for stage, _, _ in asked] == [first, last]
    assert asked[0][2] == {} and asked[1][2] == {"steps": 2}
    alone = sample.answer(toy, first, ids, 3)
    assert torch.equal(asked[0][1], ids) and torch.equal(made.first.ids, alone.ids)
    rows, _ = between.BETWEEN[TASKS[last][0]](toy, alone.outputs["text"])
    assert torch.equal(asked[1][1], rows)
    after = sample.answer(toy, last, rows, 3, steps=2)
    assert torch.equal(made.ids, after.ids)
    assert made.nfe >= alone.nfe + after.nfe and made.seconds > 0
    assert torch.equal(made.film[0], rows) and torch.equal(made.film[-1], made.ids)
    assert torch.equal(made.first.film[-1], made.first.ids)
    given = rows != MASK
    assert torch.equal(made.ids[given], rows[given])  # the text in between stays


@pytest.mark.parametrize("task", ACROSS)
def test_what_comes_out_has_the_right_shape_and_is_the_same_again(task, toy, quick):
    waves = toyspeech.speak(["a small red circle"] * 2, 0)
    pictures = list(toyworld.draw(toyworld.scenes(2, 0), 0))
    given = {"speech-to-image": waves, "image-to-speech": pictures}[task]
    made = sample.generate(toy, task, given, seed=1, steps=2)
    again = sample.generate(toy, task, given, seed=1, steps=2)
    assert torch.equal(made.ids, again.ids) and len(made.ids) == 2
    assert not torch.equal(made.ids, sample.generate(toy, task, given, seed=2, steps=2).ids)
    assert not (made.ids == MASK).any()
    kind = sample.kinds_of(task)[1]
    assert set(made.outputs) == set(KINDS[kind])
    assert all(len(outputs) == 2 for outputs in made.outputs.values())
    if task == "speech-to-image":
        assert made.outputs["image"][0].shape == (32, 32, 3)


@pytest.mark.filterwarnings("ignore:.*to a meta parameter")  # torch thinks they hold nothing
def test_the_chain_mixes_no_devices(trained, quick, monkeypatch):
    wave = toyspeech.speak(["two"], 0)[0]
    pretend.pretend(monkeypatch)
    monkeypatch.setattr(sample.Run, "rows",
                        lambda run, ids: run.stream.describe(ids.to(pretend.DEVICE)))
    with pretend.Pretended():
        run = sample.load_run(trained[0], pretend.DEVICE)
        sample.generate(run, "image-to-speech", [np.zeros((32, 32, 3), np.uint8)], steps=2)
        sample.generate(run, "speech-to-image", [wave], steps=2)


# ---- The command line.


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
    wave, rate = soundfile.read(tmp_path / "image-to-speech-0-0.wav")
    assert rate == 16_000 and len(wave) > 0
    assert (tmp_path / "image-to-speech-0-0.txt").exists()
    lines = printed.splitlines()
    assert lines[0].startswith("image: 19 of 19 tokens,  __") and " -> " in lines[-2]
    assert any(line.startswith("speech: 0 of 72 tokens") for line in lines)  # both films


@pytest.mark.parametrize("task", ACROSS)
@pytest.mark.parametrize("missing", ["image-text", "speech-text"])
def test_a_run_without_one_of_the_kinds_is_told_so(task, missing, toy, monkeypatch):
    monkeypatch.setattr(sample, "load_run", lambda *given: toy)
    known = {kind: slots for kind, slots in toy.stream.slots.items() if kind != missing}
    monkeypatch.setattr(toy.stream, "slots", known)
    status, errors = told(sample.main, task, "a.wav")
    assert status == 2 and errors.count("\n") == 1
    assert f"{task}: this run was not trained on {missing}; it knows text, " in errors


def test_prompts_that_cannot_be_are_refused():
    status, errors = told(sample.main, "speech-to-image")
    assert status == 2 and "speech-to-image needs a prompt: a speech" in errors
    status, errors = told(sample.main, "speech-to-image", "a.wav", "--budget", 1)
    assert status == 2 and "--budget" in errors and "speech-to-image" in errors


# ---- Scores.


def test_things_are_judged_on_any_ground():
    scenes = toyworld.scenes(9, 3, things=1)
    other = [score.replace(scene, background="black") for scene in scenes]
    marks = score.judge_things(scenes, {"image": list(toyworld.draw(other, 4))})
    assert marks["all"].all() and np.isnan(marks["background"]).all()
    marks = score.judge_things(scenes, {"image": list(toyworld.draw(other[::-1], 4))})
    wrong = [a.things != b.things for a, b in zip(scenes, scenes[::-1])]
    assert (marks["all"] == 1 - np.array(wrong)).all() and any(wrong)
    marks = score.judge_things(scenes[:1], {"image": [np.zeros((32, 32, 3), np.uint8)]})
    assert not marks["all"].any()


def test_questions_are_of_things_in_clips_and_pictures(toy):
    cells = {task: {} for task in ACROSS}
    for task, name, cell in score.across_cells(toy, 8, 5):
        cells[task][name] = cell
    assert set(cells["speech-to-image"]) == set(cells["image-to-speech"]) == {"seen", "unseen"}
    for split in ("seen", "unseen"):
        clips, pictures = (cells[task][split].prompts for task in ACROSS)
        marks = cells["speech-to-image"][split].judge({"image": pictures})
        assert marks["all"].all() and len(clips) == 8
        assert cells["image-to-speech"][split].judge({"speech": clips})["all"].all()
        assert not cells["image-to-speech"][split].judge({"speech": clips[::-1]})["all"].all()


def test_a_run_of_one_kind_is_not_asked_across(toy, monkeypatch):
    monkeypatch.setattr(toy.stream, "slots", {"text": toy.stream.slots["text"]})
    assert set(score.toy_cells(toy, 2, 0)) == {"text"}
