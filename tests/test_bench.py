"""tools.bench and tools.plan: figures against ones that were computed otherwise."""
import pytest
import torch
from runs import call

import files
import train
from tools import bench, plan


def test_the_bench_adds_up(tmp_path):
    path = tmp_path / "bench.json"
    call(bench.main, "--shape", '{"width": 64, "depth": 1, "head_dim": 32}', "--batch-tokens", 512,
         "--steps", 2, "--dtype", "float32", "--compile", "off", "--device", "cpu", "--json", path)
    result = files.read_json(path)
    assert 0.7 * 512 < result["tokens_per_step"] < 1.3 * 512
    assert result["matmul_flops"] > 1e8 and result["peak_bytes"] > 1e7
    assert 0 <= result["padding"] < 0.5
    weights = 4 * 64 * 64 + 3 * 64 * 176  # q, k, v, out; gate, up, down
    attention = 12 * 64 * result["length"]
    vocab = 2 + 3 + 3 + 437 + 626 + 3 * 201
    for name, least, most in (("diffusion", 0.1, 1), ("autoregressive", 0.8, 1.05)):
        r = result[name]
        tokens = r["tokens_per_second"] * (r["batch_ms"] + r["step_ms"]) / 1000  # a step
        assert tokens == pytest.approx(result["tokens_per_step"])
        flops = r["utilised"] * result["matmul_flops"] * r["step_ms"] / 1000
        looked = (flops / tokens - 6 * weights - attention) / (6 * 64 * vocab)
        assert least < looked < most, name  # share of the tokens that go through the head


def test_a_plan_by_hand():
    out = call(plan.main, "--preset", "toy", "--tokens", 6.4e12, "--throughput", 1e6)
    D, hidden = 192, 528
    counts = {"embedding": (1673 + 3 * 96) * D, "hidden": 3 * (4 * D * D + 3 * D * hidden),
              "norm": 3 * 2 * D, "qk_norm": 3 * 2 * 32, "final_norm": D, "unembedding": 1673 * D}
    counts["total"] = sum(counts.values())
    for name, number in counts.items():
        assert f"{name} {number:,}" in out
    assert plan.state_bytes(counts, "adamw") == 20 * counts["total"]
    assert plan.state_bytes(counts, "muon") == 20 * counts["total"] - 4 * counts["hidden"]
    flops = 6 * (counts["hidden"] + counts["unembedding"] / 2) + 12 * 3 * D * 96
    assert f"cost: {flops:.3e} FLOP a token" in out
    assert "74.07 days at 1,000,000 tokens a second" in out
    kappa = (train.BASE["tokens"] / 6.4e12) ** 0.44
    assert f"= {kappa:.6g}\n" in out
    assert f"= {6.4e12 / 96 / train.S_CRIT:.6g}\n" in out and "warning" not in out
    assert "warning" in call(plan.main, "--tokens", 2048 * (train.S_CRIT - 1))
    for parameters, tokens in ((80e6, 34e9), (320e6, 108e9), (3e9, 708e9)):
        assert plan.frontier(parameters) == pytest.approx(tokens, rel=0.02)


def test_a_causal_network_is_trained_on_whole_rows():
    config = train.Config(shape={"width": 64, "depth": 1, "head_dim": 32, "causal": True},
                          dtype="float32", batch_tokens=512)
    twin = train.Training(config, *bench.random_documents(config, 40), torch.device("cpu"))
    assert twin.batch(0).x.equal(twin.batches(0))
