"""The batch rule's numbers. More of them: test_experiments.py."""
import pytest

import train

B = train.BASE["batch"]
D = train.BASE["tokens"]


def test_kappa_has_the_known_values(monkeypatch):
    """gamma 0: Malladi et al., by the batch alone. gamma 1: Complete(d)P, m_B / m_D. And values
    computed apart, for a base of 13e9 tokens in batches of 256."""
    for gamma, kappa in ((0, 2), (1, 2 / 5)):
        rule = train.batch_rule(2 * B, 5 * D, train.Config(gamma=gamma))
        assert rule["kappa"] == pytest.approx(kappa)
    monkeypatch.setitem(train.BASE, "tokens", 13e9)
    monkeypatch.setitem(train.BASE, "batch", 256)
    for tokens, batch, kappa in ((1e9, 64, 0.773), (6.4e12, 4096, 1.046)):
        rule = train.batch_rule(batch, tokens, train.Config(gamma=0.44))
        assert rule["kappa"] == pytest.approx(kappa, abs=6e-4)


def test_averages_and_weights_forget_the_same_share_over_the_same_tokens():
    """Four steps of a quarter of the batch are as one."""
    base, small = (train.batch_rule(batch, D, train.Config()) for batch in (B, B / 4))
    for name in ("beta1", "beta2", "ema", "momentum"):
        assert small[name] ** 4 == pytest.approx(base[name])
    decay = base["lr"] * base["weight_decay"]
    assert 4 * small["lr"] * small["weight_decay"] == pytest.approx(decay)


def test_the_learning_rate_warms_up_and_ends_at_zero():
    assert [train.warmup_steps(n) for n in (1, 4, 100, 100_000)] == [1, 1, 5, 1000]
    factors = [train.lr_factor(i / 1000, 0.1) for i in range(1001)]
    assert factors[50] == pytest.approx(0.5)
    assert max(factors) == factors[100] == 1
    assert factors[550] == pytest.approx(0.5)
    assert factors[1000] == pytest.approx(0, abs=1e-12)
    assert sorted(factors[100:], reverse=True) == factors[100:]
