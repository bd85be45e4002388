"""Schedules, noise, loss and bound against independent answers.

These are finite differences, enumeration, quadrature and sums by hand.
"""
import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch

import diffusion as d
from diffusion import ABSENT, CLEAN, NOISED
from worlds import MASK, NOISY, TWINS, WORLD, World, assert_law, assert_mean

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("linear", "cosine", "poly:0.5", "poly:2")
WORLDS = pytest.mark.parametrize("world", (WORLD, NOISY), ids=("exact", "random"))


# ------------------------------------------------------------------------------------------------
# Schedules.


@pytest.mark.parametrize("name", NAMES)
def test_slope_and_weight_of_a_schedule_by_finite_difference(name):
    schedule = d.schedule(name)
    t = torch.linspace(0.013, 0.987, 40, dtype=torch.float64)
    h = 1e-6
    slope = (schedule.alpha(t + h) - schedule.alpha(t - h)) / (2 * h)
    np.testing.assert_allclose(schedule.slope(t), slope, rtol=1e-7)
    ends = schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
    np.testing.assert_allclose(ends, [1, 0], atol=1e-15)
    for complement, masked in ((False, 1 - schedule.alpha(t)), (True, schedule.alpha(t))):
        rate, weight = d.noise_levels(t, torch.full((40, 1), NOISED), schedule, complement)
        np.testing.assert_allclose(rate[:, 0], masked)
        np.testing.assert_allclose(weight[:, 0], -slope / masked, rtol=1e-7)


@pytest.mark.parametrize("name", ("sine", "poly", "poly:x", "poly:0", "poly:-1", "poly:inf"))
def test_bad_schedules_are_refused(name):
    with pytest.raises(ValueError, match="choose linear, cosine or poly:P"):
        d.schedule(name)


# ------------------------------------------------------------------------------------------------
# The bound.


def subsets(positions):
    for n in range(len(positions) + 1):
        yield from itertools.combinations(positions, n)


def cost(world, x, hidden, absent=()):
    """Nats of the tokens at `hidden` of one sequence, while those and `absent` are masked."""
    masked = np.isin(range(world.L), (*hidden, *absent))
    return world.nll(x, masked)[list(hidden)].sum()


def any_order(world, x, among):
    """The bound in its any-order form: -log p by the chain rule, averaged over all orders."""
    total = 0.0
    for order in itertools.permutations(among):
        for i in range(len(order)):
            masked = np.isin(range(world.L), order[i:])
            total += world.nll(x, masked)[order[i]]
    return total / math.factorial(len(among))


def integrand(world, x, schedule, complement, among, absent=()):
    """t -> weight * the mean over masks of the masked tokens' nats, by enumeration."""
    costs = {s: cost(world, x, s, absent) for s in subsets(among)}

    def at(t):
        alpha = schedule.alpha(t)
        rate = alpha if complement else 1 - alpha
        total = 0.0
        for hidden, nats in costs.items():
            shown = len(among) - len(hidden)
            total = total + rate ** len(hidden) * (1 - rate) ** shown * nats
        return -schedule.slope(t) / rate * total

    return at


def integral(f, low=0.0, high=1.0):
    """Gauss-Legendre in s with t = s^2, since poly:0.5 is not smooth at 0."""
    node, weight = np.polynomial.legendre.leggauss(40)
    half = (math.sqrt(high) - math.sqrt(low)) / 2
    s = math.sqrt(low) + half * (1 + node)
    return (half * weight * 2 * s * f(torch.tensor(s * s)).numpy()).sum()


def mean_over_times(f):
    """The mean over uniform times that are clamped to [T_MIN, 1 - T_MIN]."""
    ends = f(torch.tensor([d.T_MIN, 1 - d.T_MIN], dtype=torch.float64))
    return integral(f, d.T_MIN, 1 - d.T_MIN) + d.T_MIN * float(ends.sum())


class Script:
    """A random generator with which bound() visits the given orders and every k in turn."""

    def __init__(self, noise, shift=0.0):
        self.noise = noise
        self.shift = shift

    def random(self, shape=None):
        return self.noise if shape else self.shift + 0.5 / len(self.noise)

    def permutation(self, n):
        return np.arange(n)


def exact_bound(world, sequences, among):
    """The expectation of bound() for each sequence, (N,): the mean over all k and orders."""
    orders = np.array(list(itertools.permutations(range(world.L))))
    n = len(among)
    ids = np.tile(np.repeat(sequences, len(orders), 0), (n, 1))           # k, sequence, order
    noise = np.tile(orders / world.L, (n * len(sequences), 1))
    noised = torch.tensor(np.isin(range(world.L), among)).expand(len(ids), -1)
    low, high = world.ranges(len(ids))
    nats = d.bound(world.ask, torch.tensor(ids), noised, low, high, MASK, Script(noise))
    return nats.numpy().reshape(n, len(sequences), len(orders)).mean((0, 2))


@WORLDS
def test_bound_equals_the_enumeration(world):
    """The mean over all masks is the mean over orders of the chain rule, for every sequence."""
    among = (0, 1, 2)
    nats = exact_bound(world, world.sequences, among)
    orders = [any_order(world, x, among) for x in world.sequences]
    np.testing.assert_allclose(nats, orders, atol=1e-6)
    for x, value in zip(world.sequences[::5], orders[::5]):
        by_k = 0.0
        for s in subsets(among):
            if s:
                by_k += cost(world, x, s) / (len(s) * math.comb(3, len(s)))
        assert by_k == pytest.approx(value, abs=1e-12)
    if world is WORLD:
        np.testing.assert_allclose(nats, -np.log(world.p), atol=1e-6)  # tight for every sequence
    else:
        assert world.p @ nats > world.entropy() + 0.1


def test_worked_example_of_the_docstring():
    x = torch.ones(2, 2, dtype=torch.long)
    noise = np.array([[0.1, 0.9], [0.1, 0.9]])
    for shift, want in ((0.0, [0, 2 * math.log(2)]), (0.5, [2 * math.log(2), 0])):
        nats = d.bound(TWINS.ask, x, x > 0, *TWINS.ranges(2), MASK, Script(noise, shift))
        np.testing.assert_allclose(nats, want, atol=1e-7)
        assert nats.mean() == pytest.approx(TWINS.entropy(), abs=1e-7)


@WORLDS
@pytest.mark.parametrize("complement", (False, True))
@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_has_the_same_bound(name, complement, world):
    for x in world.sequences[3::8]:
        f = integrand(world, x, d.schedule(name), complement, (0, 1, 2))
        assert integral(f) == pytest.approx(any_order(world, x, (0, 1, 2)), abs=1e-6)


def test_a_part_of_the_tokens_gives_the_conditional_entropy():
    nats = exact_bound(WORLD, WORLD.sequences, (0, 2))
    given = WORLD.joint.sum((0, 2))
    conditional = WORLD.entropy() + (given * np.log(given)).sum()
    assert WORLD.p @ nats == pytest.approx(conditional, abs=1e-6)


RAGGED = torch.tensor([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool()


def test_the_bound_is_unbiased():
    """Rows with 0, 1, 2 and 3 noised tokens, each against its own exact value."""
    rng = np.random.default_rng(3)
    sequences = NOISY.sequences[[5, 8, 17, 22, 26, 1]]
    ids = torch.tensor(sequences).repeat(100, 1)                          # (600, L)
    draw = partial(d.bound, NOISY.ask, ids, RAGGED.repeat(100, 1), *NOISY.ranges(600), MASK, rng)
    calls = [draw(rounds=2).view(100, 6).mean(0) for _ in range(60)]
    for x, noised, values in zip(sequences, RAGGED.numpy(), torch.stack(calls).T.numpy()):
        want = any_order(NOISY, x, tuple(np.flatnonzero(noised)))
        assert_mean(values, want, slack=1e-6)  # the network is float32


def test_rows_of_a_group_get_the_same_masks():
    """Copies of a row cost the same, and as much as the row alone under the same numbers."""
    ids = torch.tensor(NOISY.sequences[[5, 8, 17, 22]])
    noised = RAGGED[1:5]
    nats = {}
    for copies in (1, 3):
        rows = ids.repeat_interleave(copies, 0)
        could = noised.repeat_interleave(copies, 0)
        group = torch.arange(4).repeat_interleave(copies)
        rng = np.random.default_rng(4)
        nats[copies] = d.bound(NOISY.ask, rows, could, *NOISY.ranges(len(rows)), MASK, rng,
                               rounds=2, group=group)
    assert torch.equal(nats[3], nats[1].repeat_interleave(3))
    assert len(nats[1].unique()) == 4


# ------------------------------------------------------------------------------------------------
# The loss in expectation.


def estimates(world, x, u, t, roles, member, schedule, complement):
    """The loss of x under each row of noise, (n,), from the world's own -log p."""
    ids = torch.tensor(x).expand(u.shape)
    doc = torch.arange(len(u))[:, None].expand(u.shape)
    rate, weight = d.noise_levels(t, roles, schedule, complement)
    x_t, weight, _ = d.corrupt(ids, doc, member.expand(u.shape), rate, weight, u, MASK, complement)
    return (weight.numpy() * world.nll(ids, x_t == MASK)).sum(1)


@pytest.mark.parametrize("name", ("linear", "cosine"))
def test_complement_is_unbiased_with_less_than_half_the_variance(name):
    """Where context tells much, a mask and its complement do better than two masks would.

    The world: a token that is written four times, with rare exceptions.
    """
    joint = np.full((3,) * 4, 0.02 / 3 ** 4)
    for v in range(3):
        joint[v, v, v, v] += 0.98 / 3
    world = World(joint)
    x = world.sequences[0]
    n = 60_000
    rng = np.random.default_rng(4)
    t = torch.tensor(rng.random(n))
    u = torch.tensor(rng.random((n, 4)))
    roles = torch.full((n, 1), NOISED)
    member = torch.zeros(4, dtype=torch.long)
    views = []
    for complement in (False, True):
        schedule = d.schedule(name)
        values = estimates(world, x, u, t, roles, member, schedule, complement)
        want = mean_over_times(integrand(world, x, schedule, complement, range(4)))
        assert_mean(values, want)
        assert want == pytest.approx(any_order(world, x, range(4)), rel=0.005)
        views.append(values)
    mask, other = views
    pair = ((mask + other) / 2).var()
    assert pair < 0.45 * (mask.var() + other.var()) / 2
    assert np.corrcoef(mask, other)[0, 1] < -0.016  # of two masks: 0, standard error 0.004


@pytest.mark.parametrize("mode", d.PAIR_MODES)
def test_pair_modes_give_their_conditional_bounds(mode):
    """The other member is clean, masked, or noised as well."""
    n = 40_000
    rng = np.random.default_rng(5)
    t = torch.tensor(rng.random(n))
    u = torch.tensor(rng.random((n, 3)))
    member = torch.tensor([0, 1, 0])
    role = torch.tensor(d.PAIR_MODES[mode])
    among = np.flatnonzero(role[member] == NOISED)
    absent = np.flatnonzero(role[member] == ABSENT)
    x = NOISY.sequences[19]
    schedule = d.schedule("linear")
    for complement in (False, True):
        values = estimates(NOISY, x, u, t, role.expand(n, 2), member, schedule, complement)
        f = integrand(NOISY, x, schedule, complement, tuple(among), absent)
        assert_mean(values, mean_over_times(f))


def test_unweighted_has_the_size_of_the_bound():
    """Where all tokens cost alike, 2 * -alpha' * rate has the mean that weight * rate has: 1."""
    t = d.stratified_times(100_000, 0.5 / 100_000)
    roles = torch.full((len(t), 2), NOISED)
    unweighted = torch.tensor([True, False])
    for name in ("linear", "cosine", "poly:2"):
        for complement in (False, True):
            rate, weight = d.noise_levels(t, roles, d.schedule(name), complement, unweighted)
            assert (rate * weight).mean(0).tolist() == pytest.approx([1, 1], abs=2e-3)
    t = torch.tensor([0.1, 0.5]).double()
    _, weight = d.noise_levels(t, roles[:2], d.schedule("linear"), unweighted=unweighted)
    np.testing.assert_allclose(weight, [[2, 10], [2, 2]])


# ------------------------------------------------------------------------------------------------
# Forward process and loss by hand.

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
    x, w, noised = d.corrupt(IDS, DOC, MEMBER, *levels, U, MASK, complement)
    assert x.tolist() == [x_t]
    assert w[0].tolist() == pytest.approx(weight)
    assert noised.tolist() == [[0, 1, 1, 0, 0, 0, 1, 1, 0]]
    member = MEMBER.clamp(min=0)
    counts = torch.bincount(member[noised], minlength=3)
    low = torch.ones_like(IDS)
    batch = d.Batch(x, member, DOC, IDS, low, low + 6, member, w, counts)

    def net(x, place, doc, where):  # 2 for the token itself, 1 for the other five, 50 for none
        logits = torch.zeros(int(where.sum()), 10)
        logits[:, 7:] = 50.0
        return logits.scatter(1, IDS[where][:, None], math.log(2))

    nats = math.log(7 / 2)
    want = [sum(weight[1:3]) * nats / 2, sum(weight[6:8]) * nats / 2, 0]
    assert d.loss_terms(net, batch).tolist() == pytest.approx(want)


def test_a_mask_and_its_complement_hide_every_noised_token_once():
    n = 300
    rng = np.random.default_rng(6)
    member = torch.tensor([-1, 0, 0, 0, -1, 1, 1, 1]).expand(n, -1)
    doc = torch.arange(n)[:, None].expand(n, 8)
    ids = torch.tensor(rng.integers(1, 9, (n, 8)))
    u = torch.tensor(rng.random((n, 8)))
    t = torch.tensor(rng.random(n))
    t[:2] = torch.tensor([0.0, 1.0])
    modes = torch.tensor(list(d.PAIR_MODES.values()))
    roles = modes[torch.tensor(rng.integers(0, len(modes), n))]
    role = roles.gather(1, member.clamp(min=0)).masked_fill(member < 0, CLEAN)  # (n, 8)
    schedule = d.schedule("cosine")
    rate, _ = d.noise_levels(t, roles, schedule)
    u[:, 1] = rate[:, 0].clamp(max=1 - 2 ** -53)  # on the edge of the mask, too
    times = torch.zeros(n, 8)
    for complement in (False, True):
        levels = d.noise_levels(t, roles, schedule, complement)
        x, weight, noised = d.corrupt(ids, doc, member, *levels, u, MASK, complement)
        hidden = x == MASK
        assert torch.equal(noised, role == NOISED)
        assert torch.equal(weight > 0, hidden & noised)
        assert weight.isfinite().all()
        assert hidden[role == ABSENT].all() and not hidden[role == CLEAN].any()
        assert torch.equal(x[~hidden], ids[~hidden])
        times += hidden & noised
    assert torch.equal(times == 1, role == NOISED)


@pytest.mark.parametrize("n, u", [(1, 0.3), (7, 0.0), (64, 0.999999), (100, 0.5)])
def test_there_is_one_time_in_each_stratum(n, u):
    t = d.stratified_times(n, u)
    assert 0 <= t.min() and t.max() < 1
    assert sorted((t * n + 1e-9).floor().tolist()) == list(range(n))


def test_mask_exactly_is_exact_and_uniform():
    n = 12_000
    noised = torch.tensor([1, 0, 1, 1, 0, 1]).bool().expand(n, -1)
    ids = torch.full((n, 6), 3)
    u = torch.tensor(np.random.default_rng(8).random((n, 6)))
    k = torch.arange(n) % 5
    x, hidden = d.mask_exactly(ids, noised, k, u, MASK)
    assert torch.equal(hidden.sum(1), k)
    assert not (hidden & ~noised).any()
    assert torch.equal(x == MASK, hidden)
    pairs = hidden[k == 2][:, noised[0]].numpy() @ [1, 2, 4, 8]
    counts = np.bincount(pairs, minlength=16)[[3, 5, 6, 9, 10, 12]]
    assert_law(counts, np.ones(6))  # all six pairs alike


def test_systematic_counts_are_uniform_and_evenly_spread():
    n = torch.tensor([1, 2, 3, 4, 6, 12])
    size = 840  # a multiple of all: each k must come exactly as often
    k = torch.stack([d.systematic_counts(n, (i + 0.5) / size) for i in range(size)])
    for top, column in zip(n.tolist(), k.T):
        assert torch.bincount(column)[1:].tolist() == [size // top] * top
    same = d.systematic_counts(torch.full((40,), 10), 0.123)
    assert torch.bincount(same)[1:].tolist() == [4] * 10
    assert d.systematic_counts(torch.full((3,), 5), 1 - 2 ** -53).max() <= 5
    assert d.systematic_counts(torch.zeros(2, dtype=torch.long), 0.5).tolist() == [0, 0]


def test_token_nll():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 9, generator=generator)
    low = torch.randint(0, 4, (50,), generator=generator)
    high = low + torch.randint(1, 6, (50,), generator=generator)
    target = low + (torch.rand(50, generator=generator) * (high - low)).long()
    leaf = logits.clone().requires_grad_()
    nll = d.token_nll(leaf, target, low, high)
    for i in range(50):
        own = logits[i, low[i]:high[i]].double()
        want = own.exp().sum().log() - logits[i, target[i]]
        assert nll[i].item() == pytest.approx(want.item(), abs=2e-6)
    nll.sum().backward()
    assert leaf.grad.isfinite().all()
    logits[torch.arange(9) >= high[:, None]] = 1e4  # what lies outside has no say
    assert torch.equal(nll, d.token_nll(logits, target, low, high))
    assert d.token_nll(logits.bfloat16(), target, low, high).dtype == torch.float32
    assert d.token_nll(logits[:0], target[:0], low[:0], high[:0]).shape == (0,)
