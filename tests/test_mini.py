"""mini.py: its loss is a bound, one token at a time is exact, and it runs."""
import itertools
import math
import re
import runpy
import sys

import numpy as np
import pytest
import torch
from runs import ROOT

import diffusion
import mini
from sources import toyworld

TEXTS = ["the red star is small.", "so the red star is left of it.", "what is it.", "a star."]


def test_rows_are_different_texts_and_ends():
    rows, vocabulary = mini.make_rows(TEXTS + TEXTS[:2])
    assert vocabulary[mini.END] == ""
    texts = ["".join(map(vocabulary.__getitem__, row)) for row in rows]
    assert sorted(texts) == sorted(TEXTS)
    length = (rows != mini.END).sum(1, keepdim=True)
    assert torch.equal(rows == mini.END, torch.arange(rows.shape[1]) >= length)


def test_loss_is_the_mean_over_all_masks():
    """The mean loss is the sum over all sets of k masks of nll / (k * their number)."""
    rows, vocabulary = mini.make_rows(["a star", "a b c"])
    row = rows[:1]
    L = rows.shape[1]
    torch.manual_seed(0)
    net = mini.Denoiser(len(vocabulary), L, width=16)
    assert (net(row)[..., mini.MASK] == -torch.inf).all()

    @torch.no_grad()
    def nll(hidden):
        x = row.clone()
        x[0, list(hidden)] = mini.MASK
        return -net(x)[0].log_softmax(-1).gather(1, row[0][:, None])[:, 0] / math.log(2)  # (L,)

    mean = 0
    for k in range(1, L + 1):
        for hidden in itertools.combinations(range(L), k):
            mean += nll(hidden)[list(hidden)].sum().item() / (k * math.comb(L, k) * L)
    with torch.no_grad():
        loss = mini.loss(net, row.expand(20000, L), torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(mean, rel=0.02)


def twins(x):
    """The exact network of rows that are 2 2 or 3 3 with equal probability."""
    logits = torch.full((1, 2, 4), -torch.inf)
    seen = int(x.max())
    possible = slice(2, 4) if seen == mini.MASK else seen
    logits[..., possible] = 0.0
    return logits


@pytest.mark.parametrize("steps, errors", [(1, 0.5), (2, 0.0)])
def test_one_token_a_step_makes_no_error(steps, errors):
    rng = torch.Generator().manual_seed(0)
    wrong = []
    for _ in range(400):
        *_, x = mini.sample(twins, 2, steps, rng)
        assert (x != mini.MASK).all()
        wrong.append(bool(x[0] != x[1]))
    assert np.mean(wrong) == pytest.approx(errors, abs=0.1)


def test_it_runs_on_the_toy_world_and_on_a_text(tmp_path, monkeypatch, capsys):
    lines = [f"line {i} says: {i * i}, and nothing else!" for i in range(40)]
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    few = toyworld.passages(200, 0)
    monkeypatch.setattr(toyworld, "passages", lambda n, seed: few)

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["mini.py", *flags])
        runpy.run_path(str(ROOT / "mini.py"), run_name="__main__")
        return capsys.readouterr().out

    assert re.search(r"held out: \S+ bits a token, \S+ a character", run("--steps", "3"))
    assert "written in 10 steps:" in run("--text", str(tmp_path / "text.txt"), "--steps", "2")
    with pytest.raises(SystemExit) as stopped:
        run("--text", str(tmp_path / "none.txt"))
    assert stopped.value.code == 2 and "none.txt" in capsys.readouterr().err
    (tmp_path / "text.txt").write_text("a line\na line\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        run("--text", str(tmp_path / "text.txt"))
    assert "two different lines" in capsys.readouterr().err


def test_loss_is_that_of_diffusion():
    rows, vocabulary = mini.make_rows(TEXTS)
    torch.manual_seed(0)
    net = mini.Denoiser(len(vocabulary), rows.shape[1], width=16)
    B, L = rows.shape
    rng = torch.Generator().manual_seed(1)
    loss = mini.loss(net, rows, rng)
    rng.manual_seed(1)
    t = (torch.arange(B, 0, -1)[:, None] - torch.rand(B, 1, generator=rng)) / B
    u = torch.rand(B, L, generator=rng)
    low, high = torch.ones_like(rows), torch.full_like(rows, len(vocabulary))  # all but the mask
    doc = torch.arange(B)[:, None].expand(B, L)
    member = torch.zeros_like(rows)
    x, weight, _ = diffusion.corrupt(rows, doc, member, t, 1 / t, u, mini.MASK)
    batch = diffusion.Batch(x, member, doc, rows, low, high, member, weight, torch.tensor([B * L]))
    nats = diffusion.loss_terms(lambda x, place, doc, where: net(x)[where], batch)
    assert loss.item() == pytest.approx(nats.item() / math.log(2), rel=1e-5)
