"""Schedules, noise, loss and bound against finite differences, enumeration and sums by hand."""
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import diffusion as d
from diffusion import ABSENT, CLEAN, NOISED
from worlds import MASK, NOISY, WORLD, assert_mean

NAMES = ("linear", "cosine", "poly:0.5", "poly:2", "poly:20")


@pytest.mark.parametrize("name", NAMES)
def test_slope_of_a_schedule_by_finite_difference(name):
    schedule = d.schedule(name)
    t = torch.linspace(0.013, 0.987, 40, dtype=torch.float64)
    h = 1e-6
    slope = (schedule.mask_rate(t + h) - schedule.mask_rate(t - h)) / (2 * h)
    np.testing.assert_allclose(schedule.slope(t), slope, rtol=1e-6)
    ends = t.new_tensor([0.0, 1.0])
    np.testing.assert_allclose(schedule.mask_rate(ends), [0, 1], atol=1e-15)
    for complement in (False, True):
        _, weight = d.noise_levels(ends, torch.full((2, 1), NOISED), schedule, complement)
        assert weight.isfinite().all()


def any_order(world, x, among, absent=()):
    """The bound in its any-order form: -log p by the chain rule, averaged over all orders."""
    total = 0.0
    for order in itertools.permutations(among):
        for i in range(len(order)):
            masked = np.isin(range(world.L), (*order[i:], *absent))
            total += world.nll(x, masked)[order[i]]
    return total / math.factorial(len(among))


RAGGED = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 1, 0], [0, 0, 0]]).bool()


def exact_bound(world):
    """The expectation of bound() by sequence and by row of RAGGED, (N, 4): the mean over all
    orders and all k."""
    orders = np.array(list(itertools.permutations(range(world.L))))
    shape = (len(orders), len(world.sequences), len(RAGGED), len(orders))  # the first for k
    _, sequence, row, order = np.indices(shape).reshape(4, -1)
    noise = orders[order] / world.L
    in_turn = SimpleNamespace(permutation=np.arange,  # visits these orders and every k
                              random=lambda shape=None: noise if shape else 0.5 / len(noise))
    nats = d.bound(world.ask, torch.tensor(world.sequences[sequence]), RAGGED[row],
                   *world.ranges(len(noise)), MASK, in_turn, rounds=2)
    return nats.numpy().reshape(shape).mean((0, 3))


def test_bound_equals_the_enumeration():
    """Of rows with 3, 2, 1 and no noised tokens. With the exact network it is tight."""
    orders = [[any_order(NOISY, x, np.flatnonzero(noised)) for noised in RAGGED]
              for x in NOISY.sequences]
    np.testing.assert_allclose(exact_bound(NOISY), orders, atol=1e-6)
    np.testing.assert_allclose(exact_bound(WORLD)[:, 0], -np.log(WORLD.p), atol=1e-6)


def test_copies_get_the_same_masks():
    nats = {}
    for copies in (1, 3):
        rows = torch.tensor(NOISY.sequences[[5, 8, 17, 22]]).repeat_interleave(copies, 0)
        noised = RAGGED.repeat_interleave(copies, 0)
        rng = np.random.default_rng(4)
        nats[copies] = d.bound(NOISY.ask, rows, noised, *NOISY.ranges(len(rows)), MASK, rng,
                               rounds=2, copies=copies)
    assert torch.equal(nats[3], nats[1].repeat_interleave(3))
    assert len(nats[1].unique()) == 4


def estimates(world, x, schedule, complement, role, member, n=40_000):
    """The loss of x under n draws of noise, (n,), from the world's own -log p."""
    rng = np.random.default_rng(5)
    t = torch.tensor(rng.random(n))
    u = torch.tensor(rng.random((n, world.L)))
    ids = torch.tensor(x).expand(u.shape)
    doc = torch.arange(n)[:, None].expand(u.shape)
    rate, weight = d.noise_levels(t, role.expand(n, 2), d.schedule(schedule), complement)
    u = 1 - u if complement else u
    x_t, weight, _ = d.corrupt(ids, doc, member.expand(u.shape), rate, weight, u, MASK)
    return (weight.numpy() * world.nll(ids, x_t == MASK)).sum(1)


@pytest.mark.parametrize("complement", (False, True))
def test_every_schedule_and_pair_mode_has_its_bound(complement):
    """The other member is clean, masked, or noised as well. Times are clamped, hence the slack."""
    x = NOISY.sequences[19]
    member = torch.tensor([0, 1, 0])
    cases = [(name, "joint") for name in NAMES] + [("linear", mode) for mode in d.PAIR_MODES]
    for name, mode in cases:
        role = torch.tensor(d.PAIR_MODES[mode])
        among = np.flatnonzero(role[member] == NOISED)
        absent = np.flatnonzero(role[member] == ABSENT)
        want = any_order(NOISY, x, among, absent)
        values = estimates(NOISY, x, name, complement, role, member)
        assert_mean(values, want, slack=0.005 * want)


def test_unweighted_has_the_size_of_the_bound():
    """Where all tokens cost alike."""
    t = d.stratified_times(100_000, 0.5 / 100_000)
    roles = torch.full((len(t), 2), NOISED)
    unweighted = torch.tensor([True, False])
    for name, complement in itertools.product(("linear", "cosine", "poly:2"), (False, True)):
        rate, weight = d.noise_levels(t, roles, d.schedule(name), complement, unweighted)
        assert (rate * weight).mean(0).tolist() == pytest.approx([1, 1], abs=2e-3)


# ---- Forward process and loss by hand.

# A row of two documents and a pad: times 0.25 and 0.5, a head and two members each.
DOC = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, -1]])
MEMBER = torch.tensor([[-1, 0, 0, 1, -1, 0, 1, 1, -1]])
IDS = torch.tensor([[9, 1, 2, 3, 9, 4, 5, 6, 8]])
ROLES = torch.tensor([[NOISED, CLEAN], [ABSENT, NOISED]])
U = torch.tensor([[0.0, 0.2, 0.3, 0.0, 0.0, 0.9, 0.4, 0.6, 0.0]]).double()


@pytest.mark.parametrize("complement, x_t, weight", [
    (False, [9, 0, 2, 3, 9, 0, 0, 6, 8], [0, 4, 0, 0, 0, 0, 2, 0, 0]),
    (True, [9, 1, 0, 3, 9, 0, 5, 0, 8], [0, 0, 4 / 3, 0, 0, 0, 0, 2, 0]),
])
def test_noise_and_loss_by_hand(complement, x_t, weight):
    """Of a member's two noised tokens one is masked: the sum is divided by both."""
    levels = d.noise_levels(torch.tensor([0.25, 0.5]), ROLES, d.schedule("linear"), complement)
    x, w, noised = d.corrupt(IDS, DOC, MEMBER, *levels, 1 - U if complement else U, MASK)
    assert x.tolist() == [x_t]
    assert w[0].tolist() == pytest.approx(weight)
    assert noised.tolist() == [[0, 1, 1, 0, 0, 0, 1, 1, 0]]
    member = MEMBER.clamp(min=0)
    counts = torch.bincount(member[noised], minlength=3)
    low = torch.where(DOC == 1, 2, 1)
    batch = d.Batch(x, member, DOC, IDS, low, IDS * 0 + 7, member, w, counts)

    def net(x, place, doc, where):  # e for the token itself, 1 for others, much for what is none
        logits = torch.zeros(int(where.sum()), 10)
        logits[:, 7:] = 50.0
        return logits.scatter(1, IDS[where][:, None], 1.0).bfloat16()

    nats = np.log1p([5 / math.e, 4 / math.e])  # of 6 and of 5 ids
    want = [sum(weight[1:3]) * nats[0] / 2, sum(weight[6:8]) * nats[1] / 2, 0]
    assert d.loss_terms(net, batch).tolist() == pytest.approx(want)
