"""The studies: quick forms run, fits find known laws, errors and extents by hand."""
import dataclasses
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))
import batch_size
import common
import film
import hear
import laws
import passages
import real
import scaling
import seeds
import speak
from common import data, files, sample, score, train
from runs import call

from sources import judges, toyworld


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Worlds in a folder of the tests' own."""
    common.CACHE = tmp_path_factory.mktemp("cache")


def quick(name, *argv):
    """Run a study's quick form -> its JSON."""
    module = importlib.import_module(name)
    path = common.main(name, module.__doc__, module.study, getattr(module, "draw", None),
                       module.QUICK, getattr(module, "FLAGS", None), ["--quick", *argv])
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["made"]["script"] == f"experiments/{name}.py"
    return result


@pytest.fixture
def brief(monkeypatch):
    """Figures are drawn, but not made files of, which would take as long as small studies."""
    monkeypatch.setattr(score, "fresh_pictures", partial(score.fresh_pictures, tries=2))
    if importlib.util.find_spec("matplotlib"):
        for name in ("tight_layout", "savefig"):
            monkeypatch.setattr(f"matplotlib.figure.Figure.{name}", lambda *args, **options: None)


@pytest.mark.parametrize("name", [
    "process", "transfer", "batch_size", "complement", "schedules", "busy", "autoregression",
    "masking_pairs", "scaling", "mixing", "sampling", "passages"])
def test_quick_forms_run(name, trained, capsys, brief):
    quick(name, *(("--run", str(trained[0])) if name in ("sampling", "passages") else ()))
    out = capsys.readouterr().out
    assert "nan" not in out and "wrote" in out


def test_recipes_lead_from_one_to_the_other_at_the_same_tokens(brief):
    import recipes
    arms = list(recipes.path_of_settings().values())
    tuned = vars(train.Config())
    assert arms[0] == train.RECIPES["paper"]
    assert arms[-1] == {name: tuned[name] for name in arms[0]}
    result = quick("recipes")
    assert list(result["arms"]) == list(recipes.PATH)
    first, *rest = result["trained on"].values()
    assert all(of == pytest.approx(first, rel=0.05) for of in rest)


def test_coordinates_stay_of_one_size_under_completep_alone():
    found = quick("coordinates")
    for axis in ("width", "depth"):
        flat = found[f"{axis}, Complete(d)P"]["slopes"]
        steep = found[f"{axis}, standard"]["slopes"]
        assert max(map(abs, flat.values())) < 0.3
        assert max(steep["hidden change"], steep["logits change"]) > 0.3


def test_tokens_are_those_that_went_through_the_network():
    of = common.trial(tokens=3_000, batch_tokens=1_500, mix={"text": 0.5, "image-text": 0.5},
                      **common.FEW_PAIRS)
    training, run = common.start(of)
    seen, _ = common.learn(of, training, run)
    steps = round(of.tokens / training.step_tokens)
    drawn = [ids for step in range(steps) for ids in training.batches.drawn(step)]
    for kind, count in zip(common.KINDS, seen):
        first = data.FIRST_TASK + common.KINDS.index(kind)
        assert count == sum(len(ids) for ids in drawn if ids[0] == first)


def test_twin_in_bits_a_character(tmp_path):
    """Bits a character are nats a token times tokens over characters."""
    path = tmp_path / "a.txt"
    lines = "".join(f"line {n}: as long as men can breathe or eyes can see\n" for n in range(120))
    path.write_text(lines, encoding="utf-8")
    result = quick("twin", "--text", str(path))
    assert 0 < result["characters"] < len(lines) / 5
    assert all(0 < cell[0] < 8 for cell in result["last"].values())


def test_film(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(film, "PANELS", {"text": (1, 440, 0, 4)})
    monkeypatch.setattr(film, "FRAMES", 3)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # it would take all cores
    monkeypatch.setitem(common.sample.DEFAULTS, "text", dict(sampler="ancestral", steps=3))
    call(film.main, "--run", trained[0], "--out", tmp_path / "f.gif")
    with Image.open(tmp_path / "f.gif") as made:
        assert made.n_frames >= 2 and made.width == film.WIDTH


def test_clips_of_a_run(toy, tmp_path):
    groups = speak.speak(toy, 1, 5, steps=1, guidance=0.0)
    entries = files.read_json(speak.write_clips(tmp_path, groups))
    assert len({(entry["speaker"], entry["split"]) for entry in entries}) == len(entries) == 6
    assert all((tmp_path / entry["file"]).stat().st_size > 44 for entry in entries)


def test_likelihood_of_a_causal_network_is_the_sum_of_its_tokens(monkeypatch):
    """held_out against a loop over positions."""
    of = common.trial(shape={"width": 64, "depth": 1, "causal": True}, **common.FEW_TEXTS)
    _, run = common.start(of)
    nats, _ = common.held_out(run, "text")
    ids = data.stacked(run.documents["text"][1][:512])
    rows = run.stream.describe(ids)
    logits = run.ask(ids, torch.ones_like(ids, dtype=torch.bool)).view(*ids.shape, -1)
    total = count = 0
    for b, at in (rows.member >= 0).nonzero().tolist():
        low, high = rows.low[b, at], rows.high[b, at]
        total -= logits[b, at - 1, low:high].log_softmax(0)[ids[b, at] - low].item()
        count += 1
    assert nats == pytest.approx(total / count, rel=1e-4)
    run.net.config = dataclasses.replace(run.net.config, causal=False)
    found = []
    for extra in (0, 7):  # the bound has the nats of a text's extent, too
        monkeypatch.setattr(score, "extent_nats", lambda run, tokens: np.full(len(tokens), extra))
        found.append(common.held_out(run, "text")[0])
    assert found[1] - found[0] == pytest.approx(7 * len(ids) / count)


def test_the_batch_rule_carries_tuned_settings_as_it_carries_its_own_base():
    config = train.Config()
    base = train.batch_rule(train.BASE["batch"], train.BASE["tokens"], config)
    tuned = {name: 0.9 * base[name] for name in common.RULE}
    carried, kappa = batch_size.carried(tuned, 4, 2), 4 / 2 ** 0.44
    for name, power in dict(lr=0.5, eps=-0.5, weight_decay=0.5, muon_lr=1).items():
        assert carried[name] == pytest.approx(tuned[name] * kappa ** power)
    for name in ("beta1", "beta2", "momentum"):
        assert carried[name] == pytest.approx(tuned[name] ** kappa)
    fixed = batch_size.settings("rule, momentum fixed", 4, tuned)["rule"]
    assert fixed["momentum"] == tuned["momentum"]
    assert fixed["muon_lr"] == pytest.approx(2 * tuned["muon_lr"])


def test_errors_are_the_larger_of_spread_and_samples():
    """Cell a's seeds differ by 0 and cell b's by 0.2, variance 0.02: pooled ratio
    (0 + 0.02 / 0.0025) / 2 = 4, so errors are twice the own ones, and b's own spread is larger."""
    cells = {"a": [[0.5, 0.05, 100], [0.5, 0.05, 100]], "b": [[0.4, 0.05, 100], [0.6, 0.05, 100]]}
    made = common.with_errors(cells)
    assert made["a"] == pytest.approx([0.5, 0.1 / 2 ** 0.5, 200])
    assert made["b"] == pytest.approx([0.5, 0.02 ** 0.5 / 2 ** 0.5, 200])
    sure = {"c": [[0.9, 1e-17, 50], [0.8, 1e-17, 50]]}
    assert common.with_errors({**cells, **sure})["a"] == made["a"]
    # on the same held-out documents: those of the seeds, variances 0 and 0.02: pooled 0.01
    cells = {"a": [[1.0, 0.5], [1.0, 0.5]], "b": [[2.0, 0.5], [2.2, 0.5]]}
    made = common.with_errors(cells)
    assert made["a"] == pytest.approx([1.0, 0.1 / 2 ** 0.5])
    assert made["b"] == pytest.approx([2.1, 0.02 ** 0.5 / 2 ** 0.5])
    assert common.with_errors({"a": [[1.0, 0.5]]})["a"] == [1.0, 0.5]  # one seed


def test_several_runs_make_one_table(trained):
    result = seeds.study([trained[0]] * 2)
    scores = files.read_json(trained[0] / "scores.json")
    found = result["table"]["bound, text: text"]["nats a token"]["runs"]
    assert found == [scores["bound"]["text: text"]["nats_per_token"]] * 2
    lines = seeds.markdown(result).splitlines()
    assert [line.split(" | ")[0][2:] for line in lines[2:]] == list(result["table"])


def test_scaling_law_and_frontier_are_found_again():
    N = np.repeat([1.3e4, 5e4, 2e5, 8e5], 4)
    D = np.tile([9e4, 2e5, 5e5, 1.5e6], 4)
    loss = 0.3 + 40 / N ** 0.4 + 900 / D ** 0.6
    law, _ = laws.fit_scaling(N, D, loss)
    assert law == pytest.approx({"E": 0.3, "A": 40, "a": 0.4, "B": 900, "b": 0.6}, rel=0.02)
    # where a unit of compute buys as much in either: d/dlogN (A N^-a) = d/dlogD (B D^-b)
    best = scaling.frontier(law, 1e5)
    assert law["a"] * law["A"] * 1e5 ** -law["a"] == pytest.approx(
        law["b"] * law["B"] * best ** -law["b"], rel=1e-6)


def test_mixture_law_predicts_a_mix_that_was_left_out():
    h = np.array([(1, 0, 0), (.5, .5, 0), (.5, 0, .5), (.34, .33, .33), (.6, .2, .2),
                  (.2, .6, .2), (.2, .2, .6)] * 2)
    N = np.full(14, 5e4)
    D = np.repeat([2.5e5, 5e5], 7)

    def true(h, D):
        gain = h ** (0.6, 0.5, 0.5) @ (2, 0.2, 0.1)
        return 0.3 + 1 / gain + 60 / D ** 0.45

    law = laws.fit_mixture(h, N, D, true(h, D), own=0)
    left_out = np.array([(0.4, 0.4, 0.2)])
    assert law(left_out, N[:1], D[:1]) == pytest.approx(true(left_out, D[:1]), rel=0.01)


def test_worth_of_others_tokens_is_found_again():
    own = np.repeat([0.1, 0.2, 0.4], 3)
    others = np.tile([0.0, 0.2, 0.6], 3)
    loss = 0.4 + 0.1 * (own + 0.25 * others) ** -0.5
    found = laws.fit_worth(own, others, loss)
    assert found == pytest.approx({"c": 0.25, "E": 0.4, "B": 0.1, "b": 0.5}, abs=1e-6)


def test_word_errors_of_a_recogniser():
    heard = hear.words("Twenty-one, and 1,043 stars.")
    assert heard == "twenty one one thousand forty three stars".split()
    assert hear.errors("a red star".split(), "a small red star".split()) == 1
    assert hear.rate([(1, 4), (0, 4)])["word_errors"][0] == 1 / 8


def test_clips_are_heard_with_and_without_the_words(tmp_path, monkeypatch):
    monkeypatch.setattr(hear, "sphinx", lambda texts=(): lambda clip: "two" if texts else "one")
    files.write_bytes(tmp_path / "0.wav", sample.wav(np.full(100, 0.5)))
    entry = {"speaker": "model", "split": "seen", "text": "two", "file": "0.wav"}
    files.write_json(tmp_path / "clips.json", [entry] * 2)
    call(hear.main, tmp_path / "clips.json")
    groups = files.read_json(tmp_path / "hear.json")["groups"]["model, seen"]
    errors = {name: (of["word_errors"][0], of["clips"]) for name, of in groups.items()}
    assert errors == {"knows the world": (0, 2), "knows English": (1, 2)}


def test_the_true_probability_of_a_passage():
    """By all texts that a writer makes of one choice of things."""
    random = data.rng(0)
    for writer in toyworld.WRITERS:
        things = toyworld.subjects(writer, "seen")
        names = [" ".join(kind) for kind in things[0]]
        sentences = [writer(lambda given: given[random.integers(len(given))], *names)
                     for _ in range(500)]
        texts = sorted({". ".join(of) + "." for of in sentences})
        assert len(texts) == passages.CHOICES[writer.__name__]
        assert {passages.writer_of(text) for text in texts} == {writer.__name__}
        assert judges.judge_passages(texts)["consistent"].all()
        nats = np.log(len(toyworld.WRITERS) * len(things) * len(texts))
        assert passages.true_nats()[writer.__name__] == pytest.approx(nats)


def test_classifier_learns():
    random = data.rng(0, 1)
    pictures = random.integers(0, 40, (120, 16, 16, 1)).astype(np.uint8)
    labels = np.arange(120) % 2
    pictures[labels == 1, :, 4:8] += 180
    read = real.classifier(list(pictures[:100]), labels[:100], 2, epochs=10, batch=20)
    assert (read(list(pictures[100:])) == labels[100:]).mean() > 0.9


def test_a_trial_is_kept_and_not_computed_again(tmp_path, monkeypatch):
    path = tmp_path / "x-runs.json"
    computed = []
    monkeypatch.setattr(common, "fit", lambda of: computed.append(of) or {"bounds": None})
    trials = [common.trial(seed=0), common.trial(seed=1), common.trial(seed=0)]
    common.run_all(path, trials)
    common.run_all(path, trials[:1])
    assert [of.config.seed for of in computed] == [0, 1]
    files.write_json(path, {**files.read_json(path), "form": "another"})  # nothing is reused
    common.run_all(path, trials[:1])
    assert len(computed) == 3


def test_a_recogniser_that_knows_the_world_expects_its_pairs_of_words():
    """A grammar of states and arcs accepts the texts, and what their pairs of words allow."""
    decoder = SimpleNamespace(create_fsg=lambda *grammar: grammar)
    _, first, last, arcs = hear.word_pairs(decoder, ["a red star", "a star", "ten"])

    def accepts(text):
        states = {first}
        for word in text.split():
            states = {to for at, to, _, *said in arcs if at in states and said == [word]}
        return any(at in states and to == last for at, to, *_ in arcs)

    assert all(map(accepts, ("a red star", "a star", "ten")))
    assert not any(map(accepts, ("red star", "a red", "a ten", "star", "")))
    for state in {at for at, *_ in arcs}:
        assert sum(share for at, _, share, *_ in arcs if at == state) == pytest.approx(1)
