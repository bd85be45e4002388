"""Scores: judges that know the answers, errors by hand, the bound of a network without a clue."""
import math
import types

import numpy as np
import pytest
import torch
from runs import call

import data
import files
import sample
from data import MASK
from sample import ACROSS, TASKS
from sources import toyworld
from tools import score

DIRECTIONS = {"text: text": ["text"], "image-text: joint": ["image", "text"],
              "image-text: image given text": ["image"], "image-text: text given image": ["text"],
              "speech-text: joint": ["speech", "text"],
              "speech-text: speech given text": ["speech"],
              "speech-text: text given speech": ["text"]}


def test_the_bound_of_a_network_that_knows_nothing(toy, monkeypatch):
    """A token costs the log of the number of its ids, a text's extent here 100 nats. Bits are those
    nats over units."""
    def ask(x, where):
        assert torch.equal(x == MASK, where)  # it sees all the rest
        return torch.zeros(int(where.sum()), toy.stream.vocab)

    monkeypatch.setattr(toy, "ask", ask)
    monkeypatch.setattr(score, "extent_nats", lambda run, extents: 100.0 + 0 * extents)
    bounds = score.bounds(toy, rounds=40)
    assert list(bounds) == list(DIRECTIONS)
    for name, members in DIRECTIONS.items():
        kind = name.split(":")[0]
        ids = data.stacked(toy.documents[kind][1][:99])
        rows = toy.stream.describe(ids)
        at = rows.of(kind, *members)
        nats = float((rows.high - rows.low)[at].log().sum()) + 100 * len(ids) * (kind == "text")
        assert bounds[name]["nats_per_document"] == pytest.approx(nats / len(ids), rel=0.01)
        assert bounds[name]["nats_per_token"] == pytest.approx(nats / int(at.sum()), rel=0.01)
        if members == ["image"]:
            bits = nats / math.log(2) / len(ids) / 3072
            assert bounds[name]["bits_per_pixel-channel"] == pytest.approx(bits, rel=1e-5)
        if name == "image-text: text given image":
            characters = sum(map(len, sample.decoded(toy, kind, "text", ids)))
            bits = nats / math.log(2) / characters
            assert bounds[name]["bits_per_character"] == pytest.approx(bits, rel=1e-5)


def test_probabilities_of_extents_by_hand_sum_to_one(toy, monkeypatch):
    texts = [toy.stream.texts(np.arange(n))[0] for n in (3, 12, 20, 5)]
    monkeypatch.setitem(toy.documents, "text", (texts, None))
    possible = np.append(np.arange(8, 94, 8), 94)
    nats = score.extent_nats(toy, possible)
    assert nats[:4] == pytest.approx(-np.log(np.array([3, 2, 2, 1]) / (4 + 12)))
    assert np.exp(-nats).sum() == pytest.approx(1)


def test_units_are_what_people_count(toy):
    codes = toy.tokenizers["text"].encode(["a é灰🟥 b"])[0]
    for cut in range(len(codes)):  # characters that are cut count once
        parts = [score.units_of(toy, "text", part) for part in (codes[:cut], codes[cut:])]
        assert sum(parts) == 7
    assert score.units_of(toy, "image", np.zeros(19, int)) == 32 * 32 * 3
    for n in (8000, 8300, 9100):
        codes = toy.tokenizers["speech"].encode([np.ones(n, np.float32)])[0]
        assert score.units_of(toy, "speech", codes) == pytest.approx(n / 16_000, abs=0.0321)


def test_the_error_of_a_ratio_by_hand():
    assert score.ratio(np.array([2.0, 4.0, 6.0]), np.array([1, 2, 3])) == (2.0, 0.0)
    mean, error = score.ratio(np.array([1.0, 4.0]), np.array([1, 3]))  # off by -1/4 and 1/4
    assert (mean, error) == (1.25, pytest.approx(1 / 4 / 2 ** 0.5 / 2))


def test_right_answers_are_judged_right_and_others_wrong_and_unseen_ones_are_new(
        toy, quick, monkeypatch):
    cells = score.toy_cells(toy, 12, 3)
    assert set(cells) == {*TASKS, *ACROSS}
    for name, cell in cells["image-to-text"].items():
        captions = cells["text-to-image"][name].prompts
        pictures = cell.prompts
        assert cell.judge({"text": captions})["all"].all()
        assert cells["text-to-image"][name].judge({"image": pictures})["all"].all()
        assert not cell.judge({"text": captions[1:] + captions[:1]})["all"].all()
        assert not cell.judge({"text": ["?"] * 12})["all"].any()
    marks = cells["text"]["passages"].judge({"text": toyworld.passages(12, 5)})
    assert marks["all"].all() and marks["consistent"].all() and (marks["distinct"] == 1).all()
    for split in ("seen", "unseen"):
        drawn, said = (cells[task][split] for task in ACROSS)
        assert drawn.judge({"image": said.prompts})["all"].all()
        assert said.judge({"speech": drawn.prompts})["all"].all()
        assert not said.judge({"speech": drawn.prompts[::-1]})["all"].all()
    own = cells["image"]["its own caption"].judge
    pair = {"image": pictures, "text": captions}
    assert own(pair)["all"].all() and not own({**pair, "text": captions[::-1]})["all"].all()
    ids = data.stacked(toy.documents["image-text"][0][:999])
    learnt = set(sample.decoded(toy, "image-text", "text", ids))
    for name, cell in cells["text-to-image"].items():
        assert name.startswith("seen") or not learnt & set(cell.prompts)
    monkeypatch.setattr(toy.stream, "slots", {"text": toy.stream.slots["text"]})
    assert set(score.toy_cells(toy, 2, 0)) == {"text"}


def test_pictures_of_questions_are_none_of_the_training(toy, monkeypatch):
    scenes = toyworld.scenes(20, 4)
    encode = toy.tokenizers["image"].encode
    codes = encode(toyworld.draw(scenes, 9))
    made = [toy.stream.document("image-text", [c, [0]]) for c in codes]
    monkeypatch.setitem(toy.documents, "image-text", (made, None))
    known = {c.tobytes() for c in codes}
    pictures, stale = score.fresh_pictures(toy, score.learnt_pictures(toy), scenes, 9, tries=9)
    assert sum(c.tobytes() in known for c in encode(pictures)) == stale < 20


def test_own_data_are_asked_for_held_out_items_and_judged_by_words_or_characters(toy):
    for truth, said, right in ((["灰色一", "灰色"], ["灰色二", "灰色"], [2 / 3, 1]),
                               (["a grey cat", "cat"], ["a red cat", "cats"], [2 / 3, 0])):
        marks = score.judge_held_out(truth, {"text": said})
        assert marks["all"].tolist() == pytest.approx(right)
    cells = score.own_cells(toy, 5)
    assert set(cells) == {"image-to-text", "speech-to-text"}
    for task, cell in cells.items():
        rows = cell["held out"].prompts
        kind = TASKS[task][0]
        truth = data.stacked(toy.documents[kind][1][:5])
        at = toy.stream.describe(rows).of(kind, "text")
        assert (rows[at] == MASK).all() and torch.equal(rows[~at], truth[~at])
        texts = sample.decoded(toy, kind, "text", truth)
        assert cell["held out"].judge({"text": texts})["exact"].all()


def test_marks_and_diversity_by_hand(monkeypatch):
    """Four samples of one prompt, (1/2, 1/4, 1/4) at one position; then four equal ones."""
    judged = {"all": np.array([0, 1]), "colour": np.full(2, np.nan)}
    assert score.marks(score.Cell([None] * 2, lambda outputs: judged), {}) == {
        "n": 2, "all": 0.5, "all_stderr": pytest.approx(0.5 / 2 ** 0.5)}
    ids = torch.tensor([[1, 5], [1, 5], [1, 6], [1, 7]] + [[2, 2]] * 4)

    def answers(run, task, prompts, seed, changes):
        assert prompts == ["a"] * 4 + ["b"] * 4
        return types.SimpleNamespace(ids=ids)

    monkeypatch.setattr(score, "answers", answers)
    result = score.diversity(None, "image", ["a", "b"], 0, {}, repeats=4)
    assert result["distinct"] == (0.75 + 0.25) / 2 and result["prompts"] == 2
    assert result["entropy"] == pytest.approx(0.75 * math.log(2))


def test_scores_of_a_run_are_whole(trained):
    scores = files.read_json(trained[0] / "scores.json")
    assert set(scores) == {*TASKS, *ACROSS, "tokenizers", "bound"} and len(scores["bound"]) == 7
    assert all(scores[task]["nfe"] > 0 for task in (*TASKS, *ACROSS))
    assert all("diversity" in scores[task] for task in TASKS)
    for result in scores["tokenizers"].values():
        assert 0 <= result["tokens"][0] <= result["true"][0] == 1
    assert all(0 < entry["nats_per_token"] < 9 for entry in scores["bound"].values())


def test_tasks_are_scored_alone_and_under_other_settings(toy, quick, tmp_path):
    path = tmp_path / "a.json"
    printed = call(score.main, "text", "--run", toy.folder, "--n", 2, "--json", path, "--steps", 3,
                   "--device", "cpu", "--sampler", "ancestral", "--correct", 0)
    scores = files.read_json(path)
    assert list(scores) == ["text"] and 2 <= scores["text"]["nfe"] <= 3
    assert score.table(scores) in printed and "bound" not in printed
    with pytest.raises(files.UsageError, match="infill: this run is judged on text, text-to-image"):
        score.score(toy, 2, tasks=("infill",))
