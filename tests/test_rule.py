"""The batch rule: its numbers, and the trajectories of both optimizers at equal tokens."""
import pytest
import torch

import model as models
import train

B = train.BASE["batch"]
D = train.BASE["tokens"]


def settings(kappa, **changes):
    """What the rule makes of a batch of kappa times the base's, at the base's horizon."""
    return train.batch_rule(kappa * B, D, train.Config(**changes))


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
    base = settings(1)
    small = settings(1 / 4)
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


# ---- Trajectories on noisy quadratics over the tokens of 200 batches of the base's size. The
# gradient of a batch is curvature * x + noise / sqrt(kappa) * normal.

NOISE = dict(curvature=0.05, noise=1.0)   # noise dominates a single gradient, 20 to 1
SIGNAL = dict(curvature=1.0, noise=0.05)  # the signal does


def trajectory(name, kappa, curvature, noise, lr, rate=None):
    """How far the mean of all elements came from 1, and their variance at the end.

    rate: the rule's entry for another optimizer's rate, which is wrong here.
    """
    rule = settings(kappa, lr=lr, muon_lr=lr)
    x = torch.ones(8, 16, 16)
    matrices = [torch.nn.Parameter(matrix) for matrix in x]  # they share its memory
    if name == "muon":
        group = dict(params=matrices, lr=rule[rate or "muon_lr"], weight_decay=0.0)
        optimizer = models.Muon([group], rule["momentum"])
    else:
        optimizer = torch.optim.AdamW(matrices, rule[rate or "lr"], eps=rule["eps"], fused=True,
                                      betas=(rule["beta1"], rule["beta2"]), weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(round(200 / kappa)):
        normal = torch.randn(x.shape, generator=generator)
        gradient = curvature * x + noise / kappa ** 0.5 * normal
        for matrix, part in zip(matrices, gradient):
            matrix.grad = part
        optimizer.step()
    return 1 - float(x.mean()), float((x - x.mean(0)).square().mean())


def same_at_all_batches(name, **how):
    """Whether drift agrees within 10%, variance within 30%."""
    drift, variance = trajectory(name, 1, **how)
    same = True
    for kappa in (4, 1 / 4):
        other = trajectory(name, kappa, **how)
        same &= 0.9 < other[0] / drift < 1.1 and 0.7 < other[1] / variance < 1.3
    return same


@pytest.mark.parametrize("regime", (NOISE, SIGNAL), ids=("noise", "signal"))
def test_muon_takes_the_same_path_at_any_batch(regime):
    assert same_at_all_batches("muon", lr=0.03, **regime)
    assert not same_at_all_batches("muon", lr=0.03, rate="lr", **regime)  # as sqrt(kappa)


def test_adamw_takes_the_same_path_where_noise_dominates(monkeypatch):
    """And eps / sqrt(kappa) does the same where eps is larger than any gradient."""
    assert same_at_all_batches("adamw", lr=0.02, **NOISE)
    assert not same_at_all_batches("adamw", lr=0.02, rate="muon_lr", **NOISE)  # as kappa
    monkeypatch.setitem(train.BASE, "eps", 100.0)
    assert same_at_all_batches("adamw", lr=3.0, **NOISE)


def test_adamw_is_slower_at_large_batches_where_the_signal_dominates():
    """The rule cannot hold there: a gradient has the same size at any batch, so a step is lr, and
    the path over the same tokens goes as sqrt(kappa) / kappa."""
    drift, _ = trajectory("adamw", 1, lr=0.002, **SIGNAL)
    for kappa in (1 / 4, 4):
        other, _ = trajectory("adamw", kappa, lr=0.002, **SIGNAL)
        assert other / drift == pytest.approx(kappa ** -0.5, rel=0.1)
