"""mini.py: the loss of diffusion.py, a bound, exact one token at a time, and it runs."""
import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import diffusion
import mini

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["the red star is small.", "so the red star is left of it.", "what is it.", "a star."]


@pytest.fixture(scope="module")
def world():
    """Rows of four short texts and an untrained network."""
    rows, vocabulary = mini.make_rows(TEXTS)
    torch.manual_seed(0)
    return rows, vocabulary, mini.Denoiser(len(vocabulary), rows.shape[1], width=16)


def own_ids(rows, vocabulary):
    """The ids that may stand at each place: all but the mask."""
    return torch.ones_like(rows), torch.full_like(rows, len(vocabulary))


def test_rows_are_texts_and_ends(world):
    rows, vocabulary, _ = world
    assert vocabulary[mini.END] == ""
    texts = ["".join(map(vocabulary.__getitem__, row)) for row in rows]
    assert sorted(texts) == sorted(TEXTS)
    length = (rows != mini.END).sum(1, keepdim=True)
    assert torch.equal(rows == mini.END, torch.arange(rows.shape[1]) >= length)


def test_rows_are_different():
    rows, _ = mini.make_rows(TEXTS + TEXTS[:2])
    assert len(rows) == len(TEXTS)


def test_loss_is_that_of_diffusion(world):
    rows, vocabulary, net = world
    B, L = rows.shape
    rng = torch.Generator().manual_seed(1)
    loss = mini.loss(net, rows, rng)
    rng.manual_seed(1)
    t = (torch.arange(B, 0, -1)[:, None] - torch.rand(B, 1, generator=rng)) / B
    u = torch.rand(B, L, generator=rng)
    low, high = own_ids(rows, vocabulary)
    doc = torch.arange(B)[:, None].expand(B, L)
    member = torch.zeros_like(rows)
    x, weight, _ = diffusion.corrupt(rows, doc, member, t, 1 / t, u, mini.MASK)
    batch = diffusion.Batch(x, member, doc, rows, low, high, member, weight, torch.tensor([B * L]))
    nats = diffusion.loss_terms(lambda x, place, doc, where: net(x)[where], batch)
    assert loss.item() == pytest.approx(nats.item() / math.log(2), rel=1e-5)


def test_loss_is_the_bound_of_diffusion_on_its_masks(world, monkeypatch):
    rows, vocabulary, net = world
    B, L = rows.shape
    asked = []

    def predict(x, where):
        asked.append(where)
        return net(x)[where]

    low, high = own_ids(rows, vocabulary)
    noised = torch.ones_like(rows, dtype=torch.bool)
    rng = np.random.default_rng(0)
    nats = diffusion.bound(predict, rows, noised, low, high, mini.MASK, rng)
    t = asked[0].sum(1, keepdim=True) / L  # with t = k / L the weights are equal, too
    draws = iter([torch.arange(B, 0, -1)[:, None] - B * t, (~asked[0]).float()])
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: next(draws))
    bits = mini.loss(net, rows, None)
    assert bits.item() == pytest.approx(nats.mean().item() / L / math.log(2), rel=1e-5)


def test_loss_bounds_what_a_row_costs():
    """The mean loss is the sum over all sets of k masks of nll / (k * their number)."""
    rows, vocabulary = mini.make_rows(["a star", "a b c"])
    row = rows[:1]
    L = rows.shape[1]
    torch.manual_seed(0)
    net = mini.Denoiser(len(vocabulary), L, width=16)

    @torch.no_grad()
    def nll(hidden):
        x = row.clone()
        x[0, list(hidden)] = mini.MASK
        return -net(x)[0].log_softmax(-1).gather(1, row[0][:, None])[:, 0] / math.log(2)  # (L,)

    mean = 0
    for k in range(1, L + 1):
        for hidden in itertools.combinations(range(L), k):
            mean += nll(hidden)[list(hidden)].sum().item() / (k * math.comb(L, k) * L)
    chances = []
    for order in itertools.permutations(range(L)):
        bits = sum(nll(order[i:])[order[i]].item() for i in range(L))
        chances.append(2 ** -bits)
    assert mean >= -math.log2(np.mean(chances)) / L
    with torch.no_grad():
        loss = mini.loss(net, row.expand(20000, L), torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(mean, rel=0.02)


def twins(x):
    """The exact network of rows that are 2 2 or 3 3 with equal probability."""
    logits = torch.full((1, 2, 4), -torch.inf)
    seen = int(x.max())
    if seen == mini.MASK:
        logits[..., 2:] = 0.0
    else:
        logits[..., seen] = 0.0
    return logits


@pytest.mark.parametrize("steps, errors", [(1, 0.5), (2, 0.0)])
def test_one_token_a_step_makes_no_error(steps, errors):
    rng = torch.Generator().manual_seed(0)
    wrong = []
    for _ in range(400):
        for x in mini.sample(twins, 2, steps, rng):
            pass
        assert (x != mini.MASK).all()
        wrong.append(bool(x[0] != x[1]))
    assert np.mean(wrong) == pytest.approx(errors, abs=0.1)


def run(*flags):
    command = [sys.executable, "mini.py", *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs():
    said = run("--steps", 30)
    assert "held out: " in said and "written in 4 steps:" in said
    assert "\033" not in said


def test_it_runs_on_a_text(tmp_path):
    lines = [f"line {i} says: {i * i}, and nothing else!" for i in range(40)]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert "written in 10 steps:" in run("--text", path, "--steps", 2)


def test_a_missing_text_is_told_in_one_line(tmp_path):
    command = [sys.executable, "mini.py", "--text", str(tmp_path / "none.txt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "none.txt" in done.stderr and "Traceback" not in done.stderr
