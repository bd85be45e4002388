"""The rules at work: coordinates that stay of one size, and an optimizer that does not see the batch size."""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))
import coordinates  # noqa: E402

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


BASE = dict(batch=4, tokens=4 * 2048, lr=0.01, beta1=0.9, beta2=0.98, eps=1e-8, weight_decay=0.1, ema=0.99)


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
