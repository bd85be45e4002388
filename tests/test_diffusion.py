"""Schedules, masking and the bound against independent answers: finite differences, enumeration, quadrature, worked examples."""
import itertools
import math

import numpy as np
import pytest
import torch

import diffusion as d
from worlds import MASK, NOISY_NET, TWINS, WORLD, World, assert_law, mean_and_error

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("linear", "cosine", "poly:0.5", "poly:2", "points")
POINTS = ([0, 0.2, 0.7, 1], [1, 0.9, 0.3, 0])


def make(name):
    return d.from_points(*POINTS) if name == "points" else d.schedule(name)


# ---------------------------------------------------------------------------------------------------------------------
# Schedules

@pytest.mark.parametrize("name", NAMES)
def test_schedule_derivative_and_inverse(name):
    s, t, h = make(name), np.linspace(0.013, 0.987, 40), 1e-6
    np.testing.assert_allclose(s.dalpha(t), (s.alpha(t + h) - s.alpha(t - h)) / (2 * h), rtol=1e-7)
    np.testing.assert_allclose(s.inverse(s.mask_rate(t)), t, rtol=1e-12)
    np.testing.assert_allclose(s.mask_rate(s.inverse(t)), t, rtol=1e-12)
    np.testing.assert_allclose(s.weight(t), -s.dalpha(t) / (1 - s.alpha(t)), rtol=1e-14)
    np.testing.assert_allclose(s.weight_complement(t), -s.dalpha(t) / s.alpha(t), rtol=1e-14)
    assert abs(s.alpha(0.0) - 1) < 1e-15 and abs(s.alpha(1.0)) < 1e-15
    assert np.isscalar(float(s.weight(0.5)))


def test_closed_forms_of_the_weights():
    t = np.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(make("linear").weight(t), 1 / t)
    np.testing.assert_allclose(make("linear").weight_complement(t), 1 / (1 - t))
    np.testing.assert_allclose(make("poly:2").weight(t), 2 / t)
    np.testing.assert_allclose(make("poly:0.5").weight(t), 0.5 / t)
    np.testing.assert_allclose(make("cosine").weight(t), math.pi / 2 * np.tan(math.pi / 2 * (1 - t)))
    np.testing.assert_allclose(make("poly:1").mask_rate(t), make("linear").mask_rate(t))


def test_bad_schedules_are_refused():
    for name in ("sine", "poly", "poly:", "poly:x", "poly:0", "poly:-1", "poly:inf", "poly:nan"):
        with pytest.raises(ValueError):
            d.schedule(name)
    for t, a in (([0, 1], [1, 0.1]), ([0.1, 1], [1, 0]), ([0, 0.5, 0.5, 1], [1, 0.6, 0.5, 0]),
                 ([0, 0.5, 1], [1, 1, 0])):
        with pytest.raises(ValueError):
            d.from_points(t, a)


# ---------------------------------------------------------------------------------------------------------------------
# The bound

def subsets(positions):
    return [s for n in range(len(positions) + 1) for s in itertools.combinations(positions, n)]


def subset_cost(world, x, among):
    """{subset S of `among`: sum over i in S of -log p(x_i | the rest)} for one sequence."""
    return {s: world.nll(x[None], np.isin(np.arange(world.L), s)[None])[0].sum() for s in subsets(among)}


def order_average(world, x, among):
    """The bound in its any-order form: the mean over orders of the chain rule's -log p. No schedule, no weight."""
    total = 0.0
    for order in itertools.permutations(among):
        for i, position in enumerate(order):
            hidden = np.isin(np.arange(world.L), order[i:])[None]
            total += world.nll(x[None], hidden)[0, position]
    return total / math.factorial(len(among))


def quadrature(world, x, sched, low=0.0, high=1.0, complement=False, among=None, hidden=()):
    """Integral over t of weight(t) * E_mask[sum over masked -log p], Gauss-Legendre in s with t = s^2."""
    among = tuple(range(world.L)) if among is None else among
    cost = {}
    for s in subsets(among):                             # `hidden` positions are masked without loss
        nll = world.nll(x[None], np.isin(np.arange(world.L), s + tuple(hidden))[None])[0]
        cost[s] = nll[list(s)].sum()
    edges = np.sqrt(np.unique(np.clip([low, high, *POINTS[0]], low, high)))
    node, w = np.polynomial.legendre.leggauss(40)
    total = 0.0
    for a, b in zip(edges, edges[1:]):
        s = (a + b) / 2 + (b - a) / 2 * node
        t, m = s * s, sched.mask_rate(s * s)
        rate, weight = (1 - m, sched.weight_complement(t)) if complement else (m, sched.weight(t))
        expected = sum(rate ** len(S) * (1 - rate) ** (len(among) - len(S)) * c for S, c in cost.items())
        total += ((b - a) / 2 * w * 2 * s * weight * expected).sum()
    return total


class Scripted:
    """A generator that makes bound() visit every order and every k once: rows by k, then sequence, then order."""

    def __init__(self, noise):
        self.noise = noise

    def random(self, shape=None):
        return 0.5 / len(self.noise) if shape is None else self.noise

    def permutation(self, n):
        return np.arange(n) if np.isscalar(n) else n


def exact_bound(world, sequences, among):
    """The expectation of bound() for each sequence, (count,): the mean over its rows of a scripted call."""
    orders = list(itertools.permutations(range(world.L)))
    n, count = len(among), len(sequences)
    ids = np.tile(np.repeat(sequences, len(orders), 0), (n, 1))
    noise = np.tile(np.array(orders) / world.L, (count * n, 1))
    noisy = torch.tensor(np.isin(np.arange(world.L), among)).expand(len(ids), -1)
    nats = d.bound(world.predict_any, torch.tensor(ids), noisy, *world.ranges(len(ids)), MASK, Scripted(noise))
    return nats.numpy().reshape(n, count, len(orders)).mean((0, 2))


@pytest.mark.parametrize("world", (WORLD, NOISY_NET), ids=("oracle", "random"))
def test_bound_equals_the_enumeration(world):
    """bound() over all masks = mean over orders of the chain rule = sum over k and subsets, for every sequence."""
    among = tuple(range(world.L))
    nats = exact_bound(world, world.sequences, among)
    orders = np.array([order_average(world, x, among) for x in world.sequences])
    np.testing.assert_allclose(nats, orders, atol=1e-6)
    for x, value in zip(world.sequences[::5], orders[::5]):
        by_k = sum(c / (len(s) * math.comb(world.L, len(s))) for s, c in subset_cost(world, x, among).items() if s)
        assert abs(by_k - value) < 1e-12
    if world is WORLD:
        np.testing.assert_allclose(nats, -np.log(world.p), atol=1e-6)          # tight for every sequence
        assert abs(world.p @ nats - world.entropy()) < 1e-6
    else:
        assert world.p @ nats > world.entropy() + 0.1


def test_worked_example_of_the_docstring():
    x = torch.tensor([[1, 1], [1, 1]])
    script = Scripted(np.array([[0.1, 0.9], [0.1, 0.9]]))
    nats = d.bound(TWINS.predict_any, x, x > 0, *TWINS.ranges(2), MASK, script)
    np.testing.assert_allclose(nats, [0, 2 * math.log(2)], atol=1e-7)          # k = 1: 2 * 0; k = 2: 1 * 2 ln 2
    assert abs(nats.mean() - TWINS.entropy()) < 1e-7


@pytest.mark.parametrize("world", (WORLD, NOISY_NET), ids=("oracle", "random"))
@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_has_the_same_bound(name, world):
    among = (0, 1, 2)
    for x in world.sequences[3::8]:
        value = order_average(world, x, among)
        assert abs(quadrature(world, x, make(name)) - value) < 1e-6
        assert abs(quadrature(world, x, make(name), complement=True) - value) < 1e-6


def test_conditional_bounds():
    """A subset of noisy positions gives the conditional entropy."""
    nats, given = exact_bound(WORLD, WORLD.sequences, (0, 2)), WORLD.joint.sum((0, 2))
    conditional = WORLD.entropy() + (given * np.log(given)).sum()
    assert abs(WORLD.p @ nats - conditional) < 1e-6


def test_rows_that_are_to_be_judged_alike_get_the_same_masks():
    """Three copies of every row cost the same nats, those that the rows cost alone with the same random numbers."""
    ids, noisy = torch.tensor(NOISY_NET.sequences[[5, 8, 17, 22]]), torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]).bool()
    nats = {}
    for alike in (1, 3):
        low, high = NOISY_NET.ranges(4 * alike)
        rows, number = [z.repeat_interleave(alike, 0) for z in (ids, noisy)], torch.arange(4).repeat_interleave(alike)
        nats[alike] = d.bound(NOISY_NET.predict_any, *rows, low, high, MASK, np.random.default_rng(4), rounds=2, alike=number)
    assert torch.equal(nats[3], nats[1].repeat_interleave(3, 0)) and len(nats[1].unique()) > 1


def test_the_bound_is_unbiased():
    """Rows with 0, 1, 2 and 3 noisy tokens, each against its own exact value, over many independent calls."""
    rng = np.random.default_rng(3)
    ids = torch.tensor(NOISY_NET.sequences[[5, 8, 17, 22, 26, 1]])
    noisy = torch.tensor([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool()
    low, high = NOISY_NET.ranges(len(ids))
    draws = np.stack([d.bound(NOISY_NET.predict_any, ids, noisy, low, high, MASK, rng, rounds=10).numpy() for _ in range(400)])  # (400, B)
    for x, where, values in zip(ids.numpy(), noisy.numpy(), draws.T):
        among = tuple(np.flatnonzero(where))
        want = order_average(NOISY_NET, x, among)
        mean, error = mean_and_error(values)
        assert abs(mean - want) <= 4 * error + 1e-6, (mean, want, error)       # 1e-6: the network is float32


def estimates(world, x, times, lossy, member, u, sched, complement, weighting="bound"):
    """One value of the weighted loss a row, from mask_tokens and the world's own -log p."""
    ids = torch.tensor(x).expand(len(u), -1)
    noised, masked, weight, _ = d.mask_tokens(ids, member.expand(len(u), -1), times, lossy, torch.tensor(u), MASK,
                                              sched, complement, weighting)
    nll = world.nll(ids, noised == MASK)
    return (weight.double().numpy() * nll * masked.numpy()).sum(1)


COPIES = np.full((3,) * 4, 0.02 / 3 ** 4)         # a token that is written four times, with rare exceptions
COPIES[[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]] += 0.98 / 3
COPIES = World(COPIES)


@pytest.mark.parametrize("name", ("linear", "cosine"))
def test_complement_is_unbiased_with_less_than_half_the_variance(name):
    """Where the context tells much, a pair does far better than the half that two independent masks would give."""
    world, rng, sched, n = COPIES, np.random.default_rng(4), make(name), 60000
    x = world.sequences[0]
    t, u = rng.uniform(d.T_MIN, 1 - d.T_MIN, n), rng.random((n, 4))
    times, lossy = d.member_times(t, 1, None, None)
    one, other = (estimates(world, x, times, lossy, torch.zeros(4).long(), u, sched, c) for c in (False, True))
    scale = 1 / (1 - 2 * d.T_MIN)
    for values, complement in ((one, False), (other, True)):
        want = quadrature(world, x, sched, d.T_MIN, 1 - d.T_MIN, complement) * scale
        mean, error = mean_and_error(values)
        assert abs(mean - want) < 4 * error and abs(want / order_average(world, x, (0, 1, 2, 3)) - 1) < 0.005
    pair = ((one + other) / 2).var()               # under the cosine the complement alone is noisier than the mask
    assert pair < 0.45 * (one.var() + other.var()) / 2 and (name != "linear" or pair < 0.45 * one.var())
    # two independent masks would have correlation 0, here with a standard error of 1 / sqrt(n) = 0.004
    assert np.corrcoef(one, other)[0, 1] < -4 / math.sqrt(n)


@pytest.mark.parametrize("mode", list(d.PAIR_MODES))
def test_pair_modes_give_their_conditional_bounds(mode):
    """Loss of a pair in each mode = the exact integral with the other member clean, masked, or noised as well."""
    rng, sched, n, x = np.random.default_rng(5), make("linear"), 40000, NOISY_NET.sequences[19]
    member = torch.tensor([0, 1, 0])
    positions = {0: (0, 2), 1: (1,)}
    times, lossy = d.member_times(rng.uniform(d.T_MIN, 1 - d.T_MIN, n), 2, {mode: 1.0}, rng.random(n))
    among = tuple(sorted(sum((positions[i] for i, m in enumerate(d.PAIR_MODES[mode]) if m is d.NOISED), ())))
    hidden = sum((positions[i] for i, m in enumerate(d.PAIR_MODES[mode]) if m == 1.0), ())
    u = rng.random((n, 3))
    for complement in (False, True):
        mean, error = mean_and_error(estimates(NOISY_NET, x, times, lossy, member, u, sched, complement))
        want = quadrature(NOISY_NET, x, sched, d.T_MIN, 1 - d.T_MIN, complement, among, hidden) / (1 - 2 * d.T_MIN)
        assert abs(mean - want) < 4 * error


# ---------------------------------------------------------------------------------------------------------------------
# Forward process

def test_stratified_times():
    for n, u in ((1, 0.3), (7, 0.0), (64, 0.999999), (100, 0.5)):
        t = d.stratified_times(n, u)
        assert t.min() >= d.T_MIN and t.max() <= 1 - d.T_MIN
        stratum = np.floor((t - d.T_MIN) / (1 - 2 * d.T_MIN) * n + 1e-9).astype(int)
        assert sorted(stratum) == list(range(n))


def test_mask_tokens_members_complement_and_weights():
    rng = np.random.default_rng(6)
    B, L = 200, 8
    member = torch.tensor([-1, 0, 0, 0, -1, 1, 1, 1]).expand(B, -1)
    ids, u = torch.tensor(rng.integers(1, 9, (B, L))), torch.tensor(rng.random((B, L)))
    times, lossy = d.member_times(rng.random(B), 2, {m: 1 for m in d.PAIR_MODES}, rng.random(B))
    sched = make("cosine")
    (x, masked, weight, noisy), (x2, masked2, weight2, noisy2) = (
        d.mask_tokens(ids, member, times, lossy, u, MASK, sched, c) for c in (False, True))
    token_time = torch.tensor(times).gather(1, member.clamp(min=0))
    token_lossy = torch.tensor(lossy).gather(1, member.clamp(min=0)) & (member >= 0)
    assert torch.equal(noisy, token_lossy) and torch.equal(noisy2, token_lossy)
    assert torch.equal(masked ^ masked2, noisy) and not (masked & masked2).any()                # strict complement
    m = torch.tensor(sched.mask_rate(np.clip(token_time.numpy(), d.T_MIN, 1 - d.T_MIN)))
    assert torch.equal(masked, noisy & (u < m))
    for y, hit in ((x, masked), (x2, masked2)):
        absent = (member >= 0) & ~noisy & (token_time == 1)
        assert torch.equal(y == MASK, hit | absent)                  # clean members and specials never, absent always
        assert torch.equal(y[y != MASK], ids[y != MASK])
    t = token_time[noisy].clamp(d.T_MIN, 1 - d.T_MIN)
    want = math.pi / 2 * torch.tan(math.pi / 2 * (1 - t))
    np.testing.assert_allclose(weight[noisy], want, rtol=1e-6)
    want = math.pi / 2 * torch.sin(math.pi / 2 * (1 - t)) / (1 - torch.cos(math.pi / 2 * (1 - t)))
    np.testing.assert_allclose(weight2[noisy], want, rtol=1e-6)
    assert weight.dtype == torch.float32 and torch.isfinite(weight).all() and torch.isfinite(weight2).all()


def test_reweighting():
    w, m = np.array([100.0, 2.0, 1.0]), np.array([0.01, 0.5, 1.0])
    assert d.reweight(w, m) is w
    np.testing.assert_allclose(d.reweight(w, m, "capped", cap=10), [10, 2, 1])
    np.testing.assert_allclose(d.reweight(w, m, "unweighted"), [2, 2, 2])
    with pytest.raises(ValueError):
        d.reweight(w, m, "none")
    # "unweighted" has the bound's size when every token costs the same: integral of 2 * -alpha' * m is 1
    t = (np.arange(100000) + 0.5) / 100000
    for name in ("linear", "cosine", "poly:2", "points"):
        s = make(name)
        for rate, weight in ((s.mask_rate(t), s.weight(t)), (s.alpha(t), s.weight_complement(t))):
            assert abs((d.reweight(weight, rate, "unweighted") * rate).mean() - 1) < 1e-4


@pytest.mark.parametrize("weighting", ("capped", "unweighted"))
def test_weightings_reach_mask_tokens(weighting):
    ids, t = torch.ones(2, 1).long(), np.array([[0.02], [0.9]])
    for complement, weight, rate in ((False, 1 / t, t), (True, 1 / (1 - t), 1 - t)):
        got = d.mask_tokens(ids, ids - 1, t, t > 0, torch.rand(2, 1), MASK, make("linear"), complement, weighting)[2]
        want = np.minimum(weight, 10) if weighting == "capped" else 2 * weight * rate
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_member_times_shares():
    rng, n = np.random.default_rng(7), 20000
    share = {"joint": 2, "first|second": 1, "second|first": 0, "first": 4, "second": 0}
    t = rng.random(n)
    times, lossy = d.member_times(t, 2, share, rng.random(n))
    kinds = {m: (lossy == [v is d.NOISED for v in d.PAIR_MODES[m]]).all(1) & np.all(
        [(times[:, i] == (t if v is d.NOISED else v)) for i, v in enumerate(d.PAIR_MODES[m])], 0) for m in share}
    counts = np.array([k.sum() for k in kinds.values()])
    assert counts.sum() == n
    assert_law(counts, np.array(list(share.values())))
    edge, _ = d.member_times(np.full(2, 0.5), 2, {"joint": 0, "first": 0.1, "second": 0.2},
                             np.array([0.0, 1 - 2 ** -53]))
    np.testing.assert_array_equal(edge, [[0.5, 1.0], [1.0, 0.5]])
    times, lossy = d.member_times(t, 1, share, None)
    assert times.shape == (n, 1) and lossy.all() and (times[:, 0] == t).all()


def test_mask_exactly_is_exact_and_uniform():
    rng, n = np.random.default_rng(8), 12000
    noisy = torch.tensor([1, 0, 1, 1, 0, 1]).bool().expand(n, -1)
    ids, u = torch.full((n, 6), 3), torch.tensor(rng.random((n, 6)))
    k = torch.arange(n) % 5
    x, masked = d.mask_exactly(ids, noisy, k, u, MASK)
    assert torch.equal(masked.sum(1), k) and not (masked & ~noisy).any() and torch.equal(x == MASK, masked)
    pairs = masked[k == 2][:, noisy[0]].numpy() @ [1, 2, 4, 8]
    assert_law(np.bincount(pairs, minlength=16)[[3, 5, 6, 9, 10, 12]], np.ones(6))              # all 6 pairs alike


def test_systematic_counts():
    n = torch.tensor([1, 2, 3, 4, 6, 12, 0])
    grid = (np.arange(8400) + 0.5) / 8400                  # 8400 / n is whole: each k must come exactly as often
    k = torch.stack([d.systematic_counts(n, u) for u in grid])                                           # (8400, 7)
    for i, top in enumerate(n.tolist()):
        want = [8400 // top] * top if top else [8400]
        assert np.bincount(k[:, i].numpy())[-len(want):].tolist() == want and k[:, i].max() == top
    assert (k[:, 6] == 0).all()
    same = d.systematic_counts(torch.full((40,), 10), 0.123)               # within a batch: spread evenly
    assert np.bincount(same.numpy())[1:].tolist() == [4] * 10
    assert (d.systematic_counts(torch.full((3,), 5), 1 - 2 ** -53) <= 5).all()


def test_weighted_terms_divide_by_the_noised():
    nll, weight = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2.0, 1.0, 0.5])
    out = d.weighted_terms(nll, weight, torch.tensor([0, 1, 1]), torch.tensor([4, 8, 0]))
    assert out.tolist() == [0.5, 0.5, 0.0]


# ---------------------------------------------------------------------------------------------------------------------
# token_nll

def test_token_nll():
    g = torch.Generator().manual_seed(0)
    logits, low = torch.randn(50, 9, generator=g) * 3, torch.randint(0, 4, (50,), generator=g)
    high = low + torch.randint(1, 6, (50,), generator=g)
    target = low + (torch.rand(50, generator=g) * (high - low)).long()
    z = logits.double().numpy()
    want = [math.log(np.exp(r[a:b]).sum()) - r[k] for r, a, b, k in zip(z, low, high, target)]
    got = d.token_nll(logits, target, low, high)
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert torch.equal(got, d.token_nll(logits, target, low, high, chunk=7)) and (got[high - low == 1] == 0).all()
    half = logits.bfloat16()
    assert d.token_nll(half, target, low, high).dtype == torch.float32
    assert torch.equal(d.token_nll(half, target, low, high), d.token_nll(half.float(), target, low, high))
    logits[torch.arange(9) >= high[:, None]] = 1e4                     # what lies outside the range has no say
    assert torch.equal(got, d.token_nll(logits, target, low, high))
    assert d.token_nll(logits[:0], target[:0], low[:0], high[:0]).shape == (0,)
    leaf = torch.randn(5, 9, requires_grad=True)
    d.token_nll(leaf, target[:5], low[:5], high[:5]).sum().backward()
    assert torch.isfinite(leaf.grad).all()


def test_time_power_changes_the_times_of_its_mode_alone():
    t, u = np.linspace(0.1, 0.9, 9), np.linspace(0.05, 0.95, 9)
    share = {"first|second": 0.5, "second|first": 0.5}
    plain, _ = d.member_times(t, 2, share, u)
    bent, lossy = d.member_times(t, 2, share, u, {"second|first": 0.5})
    late = u >= 0.5
    assert np.array_equal(bent[~late], plain[~late]) and np.allclose(bent[late, 1], t[late] ** 0.5)
    assert (bent[late, 0] == 0).all() and (lossy[late] == [False, True]).all()
