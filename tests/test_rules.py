"""The rules at work: coordinates that stay of one size, and an optimizer that does not see the batch size."""
import importlib
import json
import sys
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))
import common  # noqa: E402
import coordinates  # noqa: E402

import rules  # noqa: E402
import train  # noqa: E402


@pytest.fixture(scope="module")
def checked():
    return coordinates.study(widths=(64, 512), depths=(2, 16), seeds=(0, 1))


@pytest.mark.parametrize("axis", ["width", "depth"])
def test_coordinates_are_flat_under_completep_and_not_under_the_standard_rule(checked, axis):
    flat, steep = (checked[axis][rule]["slopes"] for rule in ("Complete(d)P", "standard"))
    for name in coordinates.NAMES:
        assert abs(flat[name]) < 0.25, (name, flat)
    assert max(steep["hidden change"], steep["logits change"]) > 0.4, steep


BASE = {**train.BASE, "batch": 4, "tokens": 4 * 2048, "lr": 0.01}    # the rest as it is tuned


def trajectory(settings, batch, steps, chains=4000, noise=1.0, curvature=0.03, seed=0):
    """AdamW on `chains` independent noisy quadratics: mean and variance of the parameter at 16 moments of equal tokens.

    The gradient of a batch is curvature * x + noise / sqrt(batch) * normal, from x = 1 (a known answer: one cloud of
    particles, so that both moments are sampled; noise dominates, as the SDE approximation supposes).
    """
    x = torch.ones(chains, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([x], lr=settings["lr"], betas=(settings["beta1"], settings["beta2"]), eps=settings["eps"],
                                  weight_decay=settings["weight_decay"])
    generator, moments = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        x.grad = (curvature * x.detach() + noise / batch ** 0.5
                  * torch.randn(chains, generator=generator, dtype=torch.float64))
        optimizer.step()
        if (step + 1) % (steps // 16) == 0:
            moments.append((float(x.detach().mean()), float(x.detach().var())))
    return np.array(moments)


def test_adamw_under_the_rule_has_the_same_moments_at_another_batch_size():
    tokens = BASE["tokens"]
    small = trajectory(BASE, 4, tokens // 4)
    rule = train.batch_rule(16, tokens, BASE, gamma=0.44)
    scaled = trajectory(rule, 16, tokens // 16, seed=1)
    unchanged = trajectory(BASE, 16, tokens // 16, seed=2)
    far = lambda a, b: np.abs(a - b)[4:]                               # past the start, where betas still fill up
    mean_error, var_error = 4 * (small[4:, 1] / 4000 * 2) ** 0.5, 4 * small[4:, 1] * (2 / 4000 * 2) ** 0.5
    discretisation = 0.05                                              # first order in kappa (1 - beta): both are steps
    assert (far(small, scaled)[:, 0] < mean_error + discretisation * np.abs(small[4:, 0]).max()).all()
    assert (far(small, scaled)[:, 1] < var_error + discretisation * small[4:, 1].max()).all()
    assert (far(small, unchanged)[:, 0] > mean_error + discretisation * np.abs(small[4:, 0]).max()).any()
    assert (far(small, unchanged)[:, 1] > var_error + discretisation * small[4:, 1].max()).any()


def test_derived_settings_are_the_rules_results_and_say_how(capsys):
    table = {name: (formula, value) for name, formula, value in rules.derived(4096, 3_000_000, 80, throughput=1000)}
    rule = train.batch_rule(4096, 3_000_000)
    assert table["kappa"][1] == rule["kappa"] == pytest.approx(2 * 2 ** 0.44)     # twice the batch, half the tokens
    assert table["lr"][1] == pytest.approx(1e-3 * (2 * 2 ** 0.44) ** 0.5) and table["EMA"][1] == rule["ema"]
    assert table["steps"][1] == 732 and table["warm-up steps"][1] == 36 and table["hours"][1] == pytest.approx(3000 / 3600)
    assert table["B_crit"][1] * 80 * rules.S_CRIT == pytest.approx(3_000_000)
    assert table["virtual batch"][1] * table["virtual steps"][1] == pytest.approx(train.BASE["tokens"])
    rules.print_derived(4096, 4096 * (rules.S_CRIT + 1), 80)
    assert "warning" not in capsys.readouterr().out
    rules.print_derived(4096, 4096 * (rules.S_CRIT - 1), 80)
    assert f"fewer than S_crit = {rules.S_CRIT}" in capsys.readouterr().out


@pytest.mark.parametrize("steps, warmup", [(100, 5), (4, 1), (1, 1), (100_000, 1000)])
def test_warmup_is_a_share_of_the_steps_and_capped(steps, warmup):
    assert train.warmup_steps(steps) == warmup
    assert train.warmup_steps(100, share=0.9) == 25


class Inline:
    """A pool that does everything in this process, so that the studies share one (smaller) world."""

    def submit(self, job, *args):
        future = Future()
        future.set_result(job(*args))
        return future


@pytest.mark.parametrize("script", ["process", "batch_size", "transfer", "coordinates", "complement", "schedules", "autoregression", "scaling",
                                    "mixing", "masking_pairs"])
def test_studies_run_in_their_quick_form(script, monkeypatch, capsys, tmp_path):
    small = common.world(3000, 64)
    monkeypatch.setattr(common, "world", lambda: small)
    monkeypatch.setattr(common, "CACHE", tmp_path)
    monkeypatch.setattr(common, "pool", lambda workers: Inline())
    monkeypatch.setattr(sys, "argv", [script, "--quick"])
    monkeypatch.setattr(common, "finish", None)                            # nothing may be written
    importlib.import_module(script).main()
    out = capsys.readouterr().out
    assert "nan" not in out and out.count("\n") >= 2 and ("±" in out or "slope" in out or "rate" in out), out


def test_the_twin_study_on_a_text_of_ones_own(monkeypatch, capsys, tmp_path):
    """Bits a character are nats a token times tokens over characters: by hand from the file it writes."""
    (tmp_path / "a.txt").write_text("".join(f"line {n}: so long as men can breathe or eyes can see\n" for n in range(120)), encoding="utf-8")
    monkeypatch.setattr(common, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(common, "pool", lambda workers: Inline())
    monkeypatch.setattr(sys, "argv", ["twin", "--quick", "--text", str(tmp_path / "a.txt"), "--out", str(tmp_path / "made" / "here")])
    importlib.import_module("twin").main()
    result, out = json.loads((tmp_path / "made" / "here" / "twin.json").read_text()), capsys.readouterr().out
    text = (tmp_path / "a.txt").read_text(encoding="utf-8")
    assert result["characters"] == len(text) - int(0.9 * len(text))
    for arm in result["arms"].values():
        bits = arm["nats_per_token"][0] * result["held_tokens"] / np.log(2) / result["characters"]
        assert arm["bits_per_character"] == pytest.approx(bits) and f"{bits:.3f} ±" in out


def test_the_true_probability_of_a_passage_is_one_over_the_passages_that_its_writer_can_write():
    """Every choice of every writer, made for two choices of things: all different, as many as the table says, all of one form."""
    passages = importlib.import_module("passages")
    import toyworld

    def every(writer, names, picked=()):
        """All texts that begin with these picks: when the writer asks for one more, each option in turn."""
        rest, options = list(picked), []

        def pick(given):
            if rest:
                return given[rest.pop(0)]
            options.append(len(given))
            return given[0]
        text = ". ".join(writer(pick, *names)) + "."
        return [text] if not options else [t for i in range(options[0]) for t in every(writer, names, (*picked, i))]
    for writer, count in toyworld.WRITERS:
        groups = toyworld.groups(writer, count, "seen")
        texts = [t for group in (groups[0], groups[-1]) for t in every(writer, [" ".join(kind) for kind in group])]
        assert len(set(texts)) == len(texts) == 2 * passages.CHOICES[writer.__name__]
        assert {passages.writer_of(t) for t in texts} == {writer.__name__} and toyworld.judge_passages(texts)["consistent"].all()
        assert passages.true_nats()[writer.__name__] == pytest.approx(np.log(5 * len(groups) * len(texts) / 2))


def test_text_of_a_film_breaks_at_line_ends_and_stays_in_its_room():
    import film
    from PIL import Image, ImageDraw
    sheet = Image.new("RGB", (200, 100), "white")
    film.write_text(ImageDraw.Draw(sheet), 0, 0, 100, 3, [("to be\nor not ", 4), (None, 50), ("to be", 2)], film.BLACK)
    marks = np.asarray(sheet).min(2) < 255
    lines = [marks[i * film.LINE:(i + 1) * film.LINE] for i in range(3)]
    assert all(line.any() for line in lines) and not marks[3 * film.LINE:].any() and not marks[:, 102:].any()
    assert not lines[0][:, 50:].any() and lines[1][:, 80:].any()                                     # "to be" ends its line, masks fill the next
