"""tools.bench and tools.plan: figures against ones that were computed otherwise."""
import json
import re
import sys

import pytest
import torch

import train
from tools import bench, plan

SMALL = ("--shape", '{"width": 64, "depth": 1, "head_dim": 32}', "--dtype", "float32",
         "--compile", "off", "--device", "cpu")


def call(monkeypatch, tool, *flags):
    monkeypatch.setattr(sys, "argv", [tool.__name__, *map(str, flags)])
    tool.main()


def printed(capsys, name):
    """The number that a line of derived settings ends with."""
    out = capsys.readouterr().out
    return float(re.search(rf"^  {name} .* = (\S+)$", out, re.MULTILINE)[1])


@pytest.mark.parametrize("flags", [(), ("--mix", "text=1", "--complement")])
def test_the_bench_adds_up(monkeypatch, capsys, tmp_path, flags, one_thread):
    path = tmp_path / "bench.json"
    call(monkeypatch, bench, *SMALL, "--batch-tokens", 512, "--steps", 2, "--json", path, *flags)
    result = json.loads(path.read_text())
    out = capsys.readouterr().out
    assert 0.7 * 512 < result["tokens_per_step"] < 1.3 * 512
    assert result["matmul_flops"] > 1e8 and result["peak_bytes"] > 1e7
    assert 0 <= result["padding"] < 0.5 and f"{result['rows']} rows of {result['length']}" in out
    weights = 4 * 64 * 64 + 3 * 64 * 176  # q, k, v, out; gate, up, down
    attention = 12 * 64 * result["length"]
    vocab = 2 + 3 + 3 + 437 + 626 + 3 * 201
    for name, least, most in (("diffusion", 0.1, 1), ("autoregressive", 0.8, 1.05)):
        r = result[name]
        tokens = r["tokens_per_second"] * r["step_ms"] / 1000  # a step
        assert tokens == pytest.approx(result["tokens_per_step"], rel=0.1)
        flops = r["utilised"] * result["matmul_flops"] * r["step_ms"] / 1000
        looked = (flops / tokens - 6 * weights - attention) / (6 * 64 * vocab)
        assert least < looked < most, name  # share of the tokens that go through the head
        assert f"{r['step_ms']:.1f} ms" in out


def test_the_twin_is_causal_and_predicts_every_token():
    config = train.Config(shape={"width": 64, "depth": 1, "head_dim": 32}, dtype="float32",
                          compile="off", batch_tokens=512, complement=True)
    stream, documents = bench.random_documents(config, 40)
    twin = bench.Twin(config, stream, documents, torch.device("cpu"))
    batch = twin.batch(0)
    assert twin.net.config.causal and not config.shape.get("causal")
    assert batch.x.equal(twin.batches(0)) and batch.target[:, :-1].equal(batch.x[:, 1:])
    opened = int((batch.doc >= 0).sum()) - int((batch.weight > 0).sum())
    assert 0 < opened < 5 * int(batch.doc.max() + 1)  # all but task and boundary tokens


def test_parameters_of_a_plan_by_hand(monkeypatch, capsys):
    call(monkeypatch, plan, "--preset", "toy", "--vocab", 1000)
    out = capsys.readouterr().out
    D, hidden = 192, 528
    counts = {
        "embedding": (1000 + 3 * 96) * D,
        "hidden": 3 * (4 * D * D + 3 * D * hidden),
        "norm": 3 * 2 * D,
        "qk_norm": 3 * 2 * 32,
        "final_norm": D,
        "unembedding": 1000 * D,
    }
    counts["total"] = sum(counts.values())
    for name, number in counts.items():
        assert f"{name} {number:,}" in out
    assert plan.state_bytes(counts, "adamw") == 20 * counts["total"]
    assert plan.state_bytes(counts, "muon") == 20 * counts["total"] - 4 * counts["hidden"]
    flops = 6 * (counts["hidden"] + counts["unembedding"] / 2) + 12 * 3 * D * 96
    assert f"cost: {flops:.3e} FLOP a token" in out


@pytest.mark.parametrize("preset, total, tables", [("pilot", 320e6, 240e6), ("3b", 3e9, 790e6)])
def test_presets_have_the_papers_sizes(monkeypatch, capsys, preset, total, tables):
    call(monkeypatch, plan, "--preset", preset)
    line = re.search("parameters: .*", capsys.readouterr().out)[0]
    found = dict(re.findall(r"(\w+) ([\d,]+\d)", line))
    found = {name: int(number.replace(",", "")) for name, number in found.items()}
    assert found["total"] == pytest.approx(total, rel=0.03)
    assert found["embedding"] + found["unembedding"] == pytest.approx(tables, rel=0.05)


@pytest.mark.parametrize("parameters, tokens", [(80e6, 34e9), (320e6, 108e9), (3e9, 708e9)])
def test_the_compute_frontier(parameters, tokens):
    assert plan.frontier(parameters) == pytest.approx(tokens, rel=0.02)


@pytest.mark.parametrize("tokens, batch, kappa, lr", [
    (1e9, 64, 0.773, 0.879), (1e8, 32, 1.064, 1.032), (1e7, 16, 1.466, 1.211),
    (6.4e12, 4096, 1.046, 1.023)])
def test_kappa_of_a_plan(monkeypatch, capsys, tokens, batch, kappa, lr):
    """Values computed apart, for a base of 13e9 tokens in batches of 256."""
    monkeypatch.setitem(train.BASE, "tokens", 13e9)
    monkeypatch.setitem(train.BASE, "batch", 256)
    flags = ("--tokens", tokens, "--batch-tokens", batch, "--lr", 1)
    call(monkeypatch, plan, *flags)
    assert printed(capsys, "kappa") == pytest.approx(kappa, abs=6e-4)
    call(monkeypatch, plan, *flags)
    assert printed(capsys, "lr") == pytest.approx(lr, abs=6e-4)


def test_a_plan_tells_days(monkeypatch, capsys):
    call(monkeypatch, plan, "--tokens", 6.4e12, "--throughput", 1e6)
    assert "74.07 days at 1,000,000 tokens a second" in capsys.readouterr().out
