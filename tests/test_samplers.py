"""Samplers against exact laws: Markov chains, enumeration, closed forms; and their contracts, guidance, numbers."""
import itertools
import math

import numpy as np
import pytest
import torch

import diffusion as d
from worlds import MASK, TWINS, WORLD, World, assert_law, chi_square_z, mean_and_error, random_joint, tv

pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------------------------------------------------------------
# Samplers against exact laws

def step_matrix(world, reveal, remask):
    """Transition matrix between all (V+1)^L states when tokens are revealed, or masked again, independently."""
    out = np.ones((len(world.states), 1))
    for i in range(world.L):
        at, hidden = world.states[:, i], world.states[:, i] == MASK
        move = np.where(hidden[:, None], reveal * world.conditional[:, i], (1 - remask) * np.eye(world.V + 1)[at])
        move[:, MASK] = np.where(hidden, 1 - reveal, remask)
        out = (out[:, :, None] * move[:, None, :]).reshape(len(out), -1)
    return out


def chain(world, steps):
    """Law of the final sequence after steps [(reveal, remask), ...], from all masked; no mask may be left."""
    p = np.zeros(len(world.states))
    p[0] = 1
    for reveal, remask in steps:
        p = p @ step_matrix(world, reveal, remask)
    done = (world.states != MASK).all(1)
    assert abs(p[done].sum() - 1) < 1e-9
    return p[done]


def remdm_steps(rates, sigma_of):
    """(reveal, remask) of ReMDM from the posterior: alpha_s - (1 - sigma) alpha_t over 1 - alpha_t, and sigma."""
    out = []
    for m_t, m_s in zip(rates, rates[1:]):
        sigma = sigma_of(m_t, m_s, min(1.0, m_s / (1 - m_t)) if m_t < 1 else 1.0)
        out.append((((1 - m_s) - (1 - sigma) * (1 - m_t)) / m_t, sigma))
    return out


def cosine_rates(steps):
    return np.cos(math.pi / 2 * np.linspace(0, 1, steps + 1)) * (np.arange(steps + 1) < steps)


@pytest.mark.parametrize("sampler,options", (
    ("first-hitting", {}),
    ("entropy", dict(budget=0.0)),
    ("entropy", dict(budget=0.0, block=1)),
    ("ancestral", dict(grid="linear", steps=250)),
    ("confidence", dict(grid="linear", steps=3, choice_temperature=1e6)),
    ("confidence", dict(grid="linear", steps=3, choice_temperature=1e6, equal=True)),
))
def test_exact_samplers_reproduce_the_joint(sampler, options):
    rows = 8000 if sampler == "ancestral" else 20000
    assert_law(WORLD.counts(WORLD.run(rows, sampler=sampler, seed=1, **options)[0]), WORLD.p)


REMDM = {"cap": lambda eta: lambda m_t, m_s, top: min(eta, top), "rescale": lambda eta: lambda m_t, m_s, top: eta * top,
         "loop": lambda eta: lambda m_t, m_s, top: min(eta, top) if m_t == m_s else 0.0}


def loop_rates(steps, at):
    """Half of the steps at the rate nearest to `at`, the others along the cosine, read off at the fractions j/n."""
    plain = steps - steps // 2
    rates = np.interp(np.arange(plain + 1) / plain, np.arange(steps + 1) / steps, cosine_rates(steps))
    turn = min(range(plain), key=lambda j: abs(rates[j] - at))
    return np.array([*rates[:turn + 1], *[rates[turn]] * (steps // 2), *rates[turn + 1:]])


@pytest.mark.parametrize("steps", (1, 2, 3, 6))
@pytest.mark.parametrize("variant", ("ancestral", *REMDM))
def test_few_steps_have_the_law_of_their_markov_chain(variant, steps):
    """ancestral and ReMDM with few steps (not exact) against the matrix product of their own transitions."""
    if variant == "ancestral":
        law = chain(WORLD, remdm_steps(cosine_rates(steps), lambda *_: 0.0))
        x = WORLD.run(20000, sampler="ancestral", steps=steps, seed=2)[0]
    else:
        rates = loop_rates(steps, 0.2) if variant == "loop" else cosine_rates(steps)
        law = chain(WORLD, remdm_steps(rates, REMDM[variant](0.3)))
        x = WORLD.run(20000, sampler="remdm", variant=variant, eta=0.3, loop_at=0.2, steps=steps, seed=2)[0]
    assert_law(WORLD.counts(x), law)
    if steps == 1:
        marginals = [WORLD.joint.sum(tuple({0, 1, 2} - {i})) for i in range(3)]
        np.testing.assert_allclose(law, np.einsum("i,j,k->ijk", *marginals).ravel(), atol=1e-12)


@pytest.mark.parametrize("variant", REMDM)
def test_remdm_is_exact_on_a_fine_grid(variant):
    """The chain tends to the joint as the grid gets finer (its error is computed), and the sampler follows."""
    eta, sizes = (0.02, (15, 60, 960))
    error = []
    for steps in sizes:
        rates = loop_rates(steps, 0.2) if variant == "loop" else cosine_rates(steps)
        error.append(tv(chain(WORLD, remdm_steps(rates, REMDM[variant](eta))), WORLD.p))
    assert error[0] > error[1] > error[2] and error[2] < 0.006, error
    rows = 6000             # sampling alone makes a total variation of about 0.4 * sum sqrt(p / rows) = 0.024
    x = WORLD.run(rows, sampler="remdm", variant=variant, eta=eta, loop_at=0.2, steps=sizes[-1], seed=3)[0]
    assert_law(WORLD.counts(x), WORLD.p)


@pytest.mark.parametrize("variant", REMDM)
def test_remdm_rates_step_by_step(variant):
    """Of the revealed tokens sigma are masked again, of the masked ones the right share revealed: the grid's rate."""
    rows, eta = 8000, 0.35
    rates = loop_rates(8, 0.3) if variant == "loop" else cosine_rates(8)
    _, _, film = WORLD.run(rows, sampler="remdm", steps=8, eta=eta, variant=variant, loop_at=0.3, seed=4, record=True)
    film = [f.numpy() == MASK for f in film]

    def close(hits, p):
        assert abs(hits.mean() - p) <= 4 * math.sqrt(max(p * (1 - p), 0) / hits.size) + 1e-9

    steps = remdm_steps(rates, REMDM[variant](eta))
    for before, after, rate, (reveal, remask) in zip(film, film[1:], rates[1:], steps):
        close(after, rate)
        close(~after[before], reveal)
        if not before.all():
            close(after[~before], remask)


@pytest.mark.parametrize("K", (1, 2, 4, 10))
def test_two_twins_in_K_steps_have_the_predicted_error(K):
    """Both tokens fall into the same step with probability 1/K and then disagree half of the time: TV = 1/(2K)."""
    law = chain(TWINS, [(1 / (K - k), 0.0) for k in range(K)])
    assert abs(tv(law, TWINS.p) - 1 / (2 * K)) < 1e-12
    rows = 20000
    counts = TWINS.counts(TWINS.run(rows, sampler="ancestral", grid="linear", steps=K, seed=5)[0])
    wrong = (counts[1] + counts[2]) / rows
    assert abs(wrong - 1 / (2 * K)) < 4 * math.sqrt(0.25 / K / rows)
    assert_law(counts, law)


def test_entropy_budget_sets_parallelism():
    """No budget: one uncertain token a call, with all the certain ones; a large one: all at once, independent."""
    x, nfe, _ = WORLD.run(20000, sampler="entropy", budget=100.0, seed=6)
    marginals = [WORLD.joint.sum(tuple({0, 1, 2} - {i})) for i in range(3)]
    assert_law(WORLD.counts(x), np.einsum("i,j,k->ijk", *marginals).ravel())
    assert (nfe == 1).all()
    copies = np.zeros((3, 3, 3))
    copies[[0, 1, 2], [0, 1, 2], [0, 1, 2]] = (0.5, 0.3, 0.2)
    copies = World(copies)
    for budget in (0.0, -1.0):
        x, nfe, _ = copies.run(2000, sampler="entropy", budget=budget, seed=7)
        assert_law(copies.counts(x)[[0, 13, 26]], (0.5, 0.3, 0.2))
        assert (nfe == 2).all()
    counts = TWINS.counts(TWINS.run(20000, sampler="entropy", budget=0.7, seed=8)[0])          # 0.7 > ln 2
    assert_law(counts, np.full(4, 0.25))
    assert (TWINS.counts(TWINS.run(200, sampler="entropy", budget=0.69, seed=8)[0])[[1, 2]] == 0).all()


@pytest.mark.parametrize("block", (1, 2))
def test_entropy_within_a_block_goes_from_left_to_right(block):
    """Every step reveals tokens among the leftmost `block` that are missing, and all of them once the budget allows it."""
    _, nfe, film = WORLD.run(200, sampler="entropy", budget=100.0, block=block, seed=6, record=True)
    for before, after in zip(film, film[1:]):
        hidden = before == MASK
        assert ((after != MASK) == (~hidden | (hidden.cumsum(1) <= block))).all()
    assert (nfe == -(-film[0].shape[1] // block)).all()


def test_entropy_reveals_the_longest_prefix_within_the_budget():
    world, budget = World(random_joint(4, 2, 9)), 0.6
    _, _, film = world.run(100, sampler="entropy", budget=budget, seed=9, record=True)
    several = 0
    for before, after in zip(film, film[1:]):
        for a, b in zip(before.numpy(), after.numpy()):
            hidden = np.flatnonzero(a == MASK)
            if not len(hidden):
                continue
            q = world.conditional[a @ 3 ** np.arange(3, -1, -1)][hidden, 1:]
            h = -(q * np.log(q)).sum(1)
            best = max((n for n in range(1, len(h) + 1) if np.sort(h)[:n].sum() - np.sort(h)[n - 1] <= budget))
            assert set(np.flatnonzero(a != b)) == set(hidden[np.argsort(h)[:best]])
            several += 1 < best < len(h)
    assert several


def greedy_law(world, state=None):
    """Exact law of the confidence sampler without noise, one token a step: propose all, keep the likeliest proposal."""
    state = [MASK] * world.L if state is None else state
    hidden = [i for i in range(world.L) if state[i] == MASK]
    if not hidden:
        return (np.arange(len(world.p)) == np.flatnonzero((world.sequences == state).all(1))[0]).astype(float)
    q = world.conditional[np.array(state) @ (world.V + 1) ** np.arange(world.L - 1, -1, -1)]
    keep = {}
    for tokens in itertools.product(range(1, world.V + 1), repeat=len(hidden)):
        p = np.array([q[i, v] for i, v in zip(hidden, tokens)])
        best = int(p.argmax())
        keep[hidden[best], tokens[best]] = keep.get((hidden[best], tokens[best]), 0) + p.prod()
    return sum(p * greedy_law(world, [v if j == i else s for j, s in enumerate(state)]) for (i, v), p in keep.items())


def test_greedy_confidence_is_biased_even_with_an_exact_network():
    """Its order depends on the proposed values, and a rejected proposal is drawn anew: likely values are favoured.

    Two independent tokens, (0.6, 0.4) and (0.7, 0.3). The first call keeps the second token if it proposes its likely
    value (0.7 beats 0.6 and 0.4), else the first token, and the second is then drawn anew from (0.7, 0.3): its unlikely
    value survives with probability 0.3 * 0.3 = 0.09 instead of 0.3, while the first token keeps its law.
    """
    world = World(np.outer([0.6, 0.4], [0.7, 0.3]))
    law = np.outer([0.6, 0.4], [0.91, 0.09]).ravel()
    np.testing.assert_allclose(greedy_law(world), law, atol=1e-12)
    options = dict(sampler="confidence", choice_temperature=0.0)
    for extra in (dict(grid="linear", steps=2), dict(equal=True, steps=2)):
        assert_law(world.counts(world.run(20000, seed=10, **options, **extra)[0]), law)
    law = greedy_law(WORLD)
    assert tv(law, WORLD.p) > 0.1
    assert_law(WORLD.counts(WORLD.run(20000, seed=11, grid="linear", steps=3, **options)[0]), law)


def test_confidence_noise_is_annealed_gumbel():
    """The weight of the noise is choice_temperature * (1 - (k+1)/N): two tokens in two steps, by integration.

    Position 1 is certain (log p = 0), position 0 has log p = -ln 4 for each of four symbols: with noise of scale
    c = T / 2 the first step keeps position 0 with the logistic probability 1 / (1 + 4^(1/c)).
    """
    joint = np.zeros((4, 4))
    joint[:, 0] = 0.25
    world, T, rows = World(joint), 3.0, 20000
    _, _, film = world.run(rows, sampler="confidence", grid="linear", steps=2, choice_temperature=T, seed=12,
                           record=True)
    share = (film[1][:, 0] != MASK).double().mean().item()
    want = 1 / (1 + 4 ** (2 / T))
    assert abs(share - want) < 4 * math.sqrt(want * (1 - want) / rows)


def test_confidence_counts_are_exact():
    """The number still masked is the whole part of n * m exactly, also where floats would fall short of an integer."""
    L = 108
    x = torch.zeros(L, L, dtype=torch.long).masked_fill(torch.arange(L) > torch.arange(L)[:, None], 1)   # n = 1..108
    low, n = torch.ones_like(x), torch.arange(1, L + 1)

    def flat(x, where):
        return torch.zeros(int(where.sum()), 3)

    settings = dict(sampler="confidence", record=True)
    for steps in (12, 19, 108):
        for options in (dict(equal=True), dict(grid="linear")):
            _, _, film = d.sample(flat, x, low, low + 2, MASK, steps=steps, **settings, **options)
            seen = {int(n @ (f == MASK).sum(1)) for f in film}
            want = {int(n @ (n * (steps - k) // steps)) for k in range(steps + 1)}
            assert seen == want
    _, _, film = d.sample(flat, x, low, low + 2, MASK, steps=12, **settings)                   # MaskGIT's cosine grid
    for k, f in enumerate(film):
        want = [math.floor(m * math.cos(math.pi / 2 * k / 12) + 1e-9) for m in n.tolist()]
        assert (f == MASK).sum(1).tolist() == want


def test_hitting_times_have_the_law_of_order_statistics():
    rng, n, rows = np.random.default_rng(13), 5, 4000
    t = np.stack([d.hitting_times(u) for u in rng.random((rows, n))])
    assert (np.diff(t, axis=1) < 0).all()
    for k in range(n):
        mean, error = mean_and_error(t[:, k])
        assert abs(mean - (n - k) / (n + 1)) < 4 * error
        j = n - k                                     # the j-th smallest of n uniforms: a binomial tail
        s = np.sort(t[:, k])
        cdf = sum(math.comb(n, i) * s ** i * (1 - s) ** (n - i) for i in range(j, n + 1))
        ks = max(np.abs(cdf - np.arange(rows) / rows).max(), np.abs(cdf - np.arange(1, rows + 1) / rows).max())
        assert ks < math.sqrt(math.log(2 / 1e-4) / 2 / rows)                       # Kolmogorov's law at 1e-4
    np.testing.assert_allclose(d.hitting_times(np.array([0.3, 0.6]), 0.5), 0.5 * d.hitting_times(np.array([0.3, 0.6])))
    np.testing.assert_allclose(d.hitting_times(np.array([0.25, 0.6])), [0.5, 0.3])             # by hand


# ---------------------------------------------------------------------------------------------------------------------
# Contracts of sampling

ALL = (
    dict(sampler="ancestral", steps=12), dict(sampler="first-hitting"), dict(sampler="confidence", steps=7),
    dict(sampler="confidence", steps=3, equal=True, choice_temperature=0.0), dict(sampler="remdm", steps=12, eta=0.3),
    dict(sampler="remdm", steps=12, variant="rescale", eta=0.5),
    dict(sampler="remdm", steps=2, variant="loop", loop_at=0.05),
    dict(sampler="remdm", steps=9, variant="loop", loop_at=0.2), dict(sampler="entropy"),
    dict(sampler="ancestral", steps=1), dict(sampler="confidence", grid="poly:2", steps=40),
    dict(sampler="ancestral", grid=[1, 0.7, 0.2, 0]),
)
IDS = [" ".join(map(str, o.values())) for o in ALL]


def ragged_start(rows=60):
    """Rows with 0..4 masked tokens of 4, the rest given."""
    rng = np.random.default_rng(14)
    x = rng.integers(1, 4, (rows, 4))
    for i, row in enumerate(x):
        row[rng.permutation(4)[:i % 5]] = MASK
    return torch.tensor(x)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("guidance", (0.0, 1.0), ids=("plain", "guided"))
@pytest.mark.parametrize("options", ALL, ids=IDS)
def test_sampling_contracts(options, guidance):
    """No mask left, given tokens kept, the film whole, evaluations counted, a pure function of the seed."""
    world, x = World(random_joint(4, 3, 15)), ragged_start()
    low, high = world.ranges(len(x))
    condition = torch.zeros_like(x).bool()
    condition[:, 0] = True
    settings = dict(seed=16, guidance=guidance, condition=condition, **options)
    before, copy = torch.get_rng_state(), x.clone()
    y, nfe, film = d.sample(world.predict, x, low, high, MASK, record=True, **settings)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(x, copy)
    assert ((y >= 1) & (y <= 3)).all() and torch.equal(y[x != MASK], x[x != MASK])
    assert torch.equal(film[0], x) and torch.equal(film[-1], y)
    revealed = sum(((a == MASK) & (b != MASK)).any(1).long() for a, b in zip(film, film[1:]))
    again = sum(((a != MASK) & (b == MASK)).any().long() for a, b in zip(film, film[1:]))
    assert options["sampler"] == "remdm" or again == 0
    branches = 2 if guidance else 1
    assert int(nfe.sum()) == world.rows and (nfe[(x != MASK).all(1)] == 0).all()
    if options["sampler"] == "remdm":                # a token may be revealed from and masked in one step, so at least
        assert (nfe >= branches * revealed).all()
    else:
        assert torch.equal(nfe, branches * revealed)
    assert world.calls <= len(film) - 1
    again, nfe2, none = d.sample(world.predict, x, low, high, MASK, **settings)
    assert torch.equal(y, again) and torch.equal(nfe, nfe2) and none == []
    assert not torch.equal(y, d.sample(world.predict, x, low, high, MASK, **{**settings, "seed": 17})[0])


def test_nothing_to_fill_makes_no_call():
    for options in ALL:
        def never(x, where):
            raise AssertionError("called")
        x = torch.ones(3, 4).long()
        y, nfe, _ = d.sample(never, x, x, x + 3, MASK, **options)
        assert torch.equal(x, y) and not nfe.any()


def test_idle_steps_make_no_call():
    world = World(TWINS.joint)
    _, nfe, film = world.run(2, sampler="ancestral", grid="linear", steps=100, seed=18, record=True)
    assert len(film) == 101 and world.calls <= 4 and (nfe <= 2).all()


@pytest.mark.parametrize("sampler,options", (
    ("first-hitting", {}), ("entropy", dict(budget=0.0)), ("ancestral", dict(grid="linear", steps=200)),
    ("confidence", dict(grid="linear", steps=3, choice_temperature=1e6)),
    ("remdm", dict(steps=300, eta=0.02)),
))
def test_infilling_is_exact_conditioning(sampler, options):
    """The middle token given, its neighbours filled in: the law is the joint divided by the given token's share."""
    law = np.where(WORLD.sequences[:, 1] == 2, WORLD.p, 0)
    x = WORLD.run(6000, start=[MASK, 2, MASK], sampler=sampler, seed=19, **options)[0]
    assert_law(WORLD.counts(x), law)


@pytest.mark.parametrize("options", ALL, ids=IDS)
def test_held_tokens_stay_masked(options):
    """Masked tokens that are held are never drawn, under any sampler and while correcting, and the others are drawn without them."""
    hold = torch.tensor([[False, True, False]]).expand(4000, 3)
    x, _, _ = WORLD.run(4000, seed=20, hold=hold, **options)
    assert torch.equal(x == MASK, hold)
    assert torch.equal(WORLD.run(4000, seed=20, hold=hold, correct=1, **options)[0] == MASK, hold)
    if options["sampler"] == "first-hitting":                       # exact: what is drawn has the marginal law
        pairs = ((x[:, 0] - 1) * WORLD.V + x[:, 2] - 1).bincount(minlength=WORLD.V ** 2)
        assert_law(pairs.numpy(), WORLD.joint.sum(1).ravel())


def test_grids_are_checked():
    for grid in ([0.5, 0.2, 0], [1, 0.5], [1, 0.5, 0.5, 0], [0, 1], [1.0]):
        with pytest.raises(ValueError):
            WORLD.run(2, grid=grid)
    with pytest.raises(ValueError):
        WORLD.run(2, steps=0)
    with pytest.raises(ValueError):
        WORLD.run(2, grid="sine")
    given, same = np.array([1, 0.6, 0.3, 0]), np.array([1, 0.6, 0.3, 0])
    WORLD.run(2, grid=given)
    assert (given == same).all()


def test_a_network_of_nan_cannot_hang_the_entropy_sampler():
    x = torch.zeros(2, 3).long()
    d.sample(lambda x, where: torch.full((int(where.sum()), 4), math.nan), x, x + 1, x + 4, MASK, sampler="entropy")


@pytest.mark.parametrize("parts", (1, 8))
def test_correction_mends_what_independent_draws_broke(parts, monkeypatch):
    """Both tokens at once give 01 and 10 half of the time. Hidden alone (parts 8) either contradicts the other, and one of the two drawn
    anew agrees with it; hidden together (parts 1) they look right, and nothing is mended."""
    whole = d.corrected
    monkeypatch.setattr(d, "corrected", lambda x, state, rounds: whole(x, state, rounds, parts))
    x, nfe, film = TWINS.run(20000, sampler="ancestral", steps=1, correct=1, seed=30, record=True)
    before = TWINS.counts(film[1])
    assert_law(before, np.full(4, 0.25))
    assert_law(TWINS.counts(x), (0.5, 0.0, 0.0, 0.5) if parts == 8 else np.full(4, 0.25))
    if parts == 8:
        broken = film[1][:, 0] != film[1][:, 1]
        assert (nfe[broken] == 4).all() and (nfe[~broken] == 3).all()     # one to draw, two to judge, one to draw anew
        assert torch.equal(x[~broken], film[1][~broken])


def test_correction_redraws_the_token_that_fits_worst_until_all_are_the_likeliest():
    """By hand, p(x) in proportion to the product of chosen odds: of independent tokens with odds 0.7 : 0.3 and 0.9 : 0.1 the unlikely one of
    the second goes first, and greedy draws end at the mode. Given tokens stay, however unlikely."""
    world = World(np.outer((0.7, 0.3), (0.9, 0.1)))
    x, _, film = world.run(4000, sampler="ancestral", steps=1, correct=1, temperature=1.0, seed=31, record=True)
    both = (film[1] == 2).all(1)
    assert (x[both][:, 0] == 2).all()                                     # the first keeps its unlikely value in round one
    assert abs((x[both][:, 1] == 2).double().mean() - 0.1) < 4 * math.sqrt(0.09 / int(both.sum()))
    x = world.run(4000, sampler="ancestral", steps=1, correct=40, temperature=1.0, seed=31)[0]
    assert (x == 1).all(1).double().mean() > 0.999
    x = world.run(200, start=[2, MASK], sampler="ancestral", steps=1, correct=40, seed=32)[0]
    assert (x[:, 0] == 2).all() and (x[:, 1] == 1).all()


# Guidance

def guided_law(conditional, unconditional, w):
    p = conditional ** (1 + w) * unconditional ** -w
    return p / p.sum()


def test_guide_closed_form_and_edges():
    rng = np.random.default_rng(20)
    c, u = rng.dirichlet(np.ones(5), 3), rng.dirichlet(np.ones(5), 3)
    lc, lu = torch.tensor(np.log(c)) + 0.7, torch.tensor(np.log(u)) - 1.3             # unnormalised logits do as well
    for w in (-0.5, 0.0, 1.0, 2.5):
        want = np.stack([guided_law(a, b, w) for a, b in zip(c, u)])
        np.testing.assert_allclose(d.guide(lc, lu, w).softmax(-1), want, rtol=1e-10)
    assert torch.equal(d.guide(lc.float(), lu.float(), torch.zeros(3, 1)), lc.float())
    inf = torch.tensor([[0.1, -math.inf, -math.inf, 0.3]])
    other = torch.tensor([[0.2, 0.5, -math.inf, -math.inf]])
    for w in (0.0, 1.0, 3.0):                     # forbidden stays forbidden, nothing becomes nan or +inf
        out = d.guide(inf, other, w)
        assert torch.isneginf(out).tolist() == [[False, True, True, False]] and not torch.isnan(out).any()


@pytest.mark.parametrize("sampler", ("first-hitting", "ancestral", "confidence", "remdm", "entropy"))
def test_guided_single_token_has_the_closed_form(sampler):
    world = World(random_joint(2, 4, 21))
    given, w, rows = 3, 1.5, 10000
    condition = torch.tensor([[True, False]]).expand(rows, -1)
    law = guided_law(world.joint[given - 1] / world.joint[given - 1].sum(), world.joint.sum(0), w)
    assert tv(law, world.joint[given - 1] / world.joint[given - 1].sum()) > 0.05
    x, nfe, _ = world.run(rows, start=[given, MASK], sampler=sampler, steps=1, guidance=w, condition=condition, seed=22)
    assert_law(np.bincount(x[:, 1] - 1, minlength=4), law)
    assert (nfe == 2).all() and world.calls == 1 and world.rows == 2 * rows


def test_zero_guidance_equals_none_bit_by_bit():
    x = ragged_start()
    world = World(random_joint(4, 3, 15))
    low, high = world.ranges(len(x))
    condition = torch.zeros_like(x).bool()
    condition[:, 0] = True
    plain = d.sample(world.predict, x, low, high, MASK, seed=23)
    zero = d.sample(world.predict, x, low, high, MASK, seed=23, guidance=0.0, condition=condition)
    assert torch.equal(plain[0], zero[0]) and torch.equal(plain[1], zero[1])
    # growing guidance is 0 while nothing is revealed: one call for everything equals no guidance
    settings = dict(seed=23, steps=1, condition=condition)
    grown = d.sample(world.predict, x, low, high, MASK, guidance=5.0, growing=True, **settings)
    assert torch.equal(grown[0], d.sample(world.predict, x, low, high, MASK, **settings)[0])
    strong = d.sample(world.predict, x, low, high, MASK, guidance=5.0, **settings)
    assert not torch.equal(grown[0], strong[0])


@pytest.mark.parametrize("growing", (False, True))
def test_guidance_over_two_tokens_in_random_order(growing):
    """The condition and two tokens: first one with weight w (growing: 0), then the other with w (growing: w / 2)."""
    given, w, rows = 2, 1.2, 20000
    joint = WORLD.joint                                             # (condition, a, b)
    first, second = (0.0, w / 2) if growing else (w, w)
    law = np.zeros((3, 3))
    for one in (0, 1):                                              # which of the two comes first
        j = joint if one == 0 else joint.transpose(0, 2, 1)
        p = guided_law(j[given - 1].sum(1) / j[given - 1].sum(), j.sum((0, 2)), first)
        for a in range(3):
            q = guided_law(j[given - 1, a] / j[given - 1, a].sum(), j[:, a].sum(0) / j[:, a].sum(), second)
            both = 0.5 * p[a] * q
            law[(a, slice(None)) if one == 0 else (slice(None), a)] += both
    condition = torch.tensor([[True, False, False]]).expand(rows, -1)
    x = WORLD.run(rows, start=[given, MASK, MASK], sampler="first-hitting", guidance=w, growing=growing,
                  condition=condition, seed=24)[0]
    assert_law(WORLD.counts(x)[WORLD.sequences[:, 0] == given], law.ravel())


# Temperature, top-k, top-p, vocabularies

@pytest.mark.parametrize("T", (0.5, 1.0, 2.0))
def test_temperature_closed_form(T):
    p = np.array([0.5, 0.3, 0.15, 0.05])
    world = World(p)
    counts = world.counts(world.run(20000, sampler="ancestral", steps=1, temperature=T, seed=25)[0])
    assert_law(counts, p ** (1 / T))
    if T != 1:
        assert chi_square_z(counts, p) > 10
    assert (world.run(50, sampler="ancestral", steps=1, temperature=0.0)[0] == 1).all()


def kept(p, **options):
    return torch.isfinite(d.filter_logits(torch.tensor(p).log()[None], **options))[0].tolist()


def test_top_k_and_top_p_keep_the_right_sets():
    p = [0.125, 0.5, 0.0625, 0.25, 0.0625]
    assert kept(p) == [True] * 5
    assert kept(p, top_k=1) == [False, True, False, False, False]
    assert kept(p, top_k=3) == [True, True, False, True, False]
    assert kept(p, top_k=4) == [True] * 5                          # a tie for the last place: both stay
    assert kept(p, top_k=0) == kept(p, top_k=5) == kept(p, top_k=9) == [True] * 5
    assert kept(p, top_p=0.5) == [False, True, False, False, False]          # exactly reached: no more
    assert kept(p, top_p=0.51) == [False, True, False, True, False]
    assert kept(p, top_p=0.76) == [True, True, False, True, False]
    assert sum(kept(p, top_p=0.9)) == 4
    assert kept(p, top_p=0.0) == kept(p, top_p=1e-9) == [False, True, False, False, False]     # never empty
    assert kept([0.0, 1.0, 0.0], top_p=0.9) == [False, True, False]          # all mass on one
    assert kept([0.0, 1.0, 0.0], top_k=2) == [False, True, False]
    assert kept([0.25] * 4, top_k=2) == [True] * 4 and sum(kept([0.25] * 4, top_p=0.5)) == 2
    # top-p acts on what temperature and top-k leave: T = 1/2 squares; of {.5, .25} the first holds 2/3
    assert kept(p, temperature=0.5, top_p=0.7) == [False, True, False, False, False]
    assert kept(p, top_k=2, top_p=0.6) == [False, True, False, False, False]
    for row in d.filter_logits(torch.tensor([p, p[::-1]]).log(), top_k=2):      # each row by itself
        assert torch.isfinite(row).sum() == 2


def test_top_k_through_sample_renormalises():
    p = np.array([0.4, 0.3, 0.2, 0.1])
    counts = World(p).counts(World(p).run(20000, sampler="first-hitting", top_k=2, seed=26)[0])
    assert counts[2:].sum() == 0
    assert_law(counts, [0.4, 0.3, 0, 0])


@pytest.mark.parametrize("options", ALL, ids=IDS)
def test_each_position_keeps_to_its_own_ids(options):
    """A network that prefers ids out of range, a different range at every position; probabilities are renormalised."""
    low, high = torch.tensor([1, 3, 5, 6]), torch.tensor([3, 5, 6, 9])
    logits = torch.linspace(-4, 4, 10)
    x = torch.zeros(300, 4).long()
    y = d.sample(lambda x, where: logits.expand(int(where.sum()), -1), x, low.expand(300, -1), high.expand(300, -1),
                 MASK, temperature=3.0, seed=27, **options)[0]
    assert ((y >= low) & (y < high)).all() and (y[:, 2] == 5).all()
    for i in (0, 1, 3):
        assert y[:, i].unique().tolist() == list(range(low[i], high[i]))


# ---------------------------------------------------------------------------------------------------------------------
# Noise in float64

def test_gumbel_caps_and_edges():
    top32, top64 = torch.tensor(1 - 2.0 ** -24, dtype=torch.float32), torch.tensor(1 - 2.0 ** -53, dtype=torch.float64)
    assert 16.6 < d.gumbel(top32) < 16.7 and 36.7 < d.gumbel(top64) < 36.8
    zero = d.gumbel(torch.zeros(1, dtype=torch.float64))
    assert torch.isfinite(zero).all() and zero < -6
    g = d.gumbel(torch.rand(20000, dtype=torch.float64, generator=torch.Generator().manual_seed(28)))
    assert abs(g.mean() - 0.5772157) < 4 * math.pi / math.sqrt(6 * len(g))


def rare_share(gap, dtype):
    """P(a token `gap` nats below another wins the Gumbel race), the other's noise integrated out exactly."""
    if dtype == torch.float32:            # its top 2^18 values one by one: each has the probability 2^-24
        u, weight = (1 - torch.arange(1, 2 ** 18 + 1, dtype=torch.float64) * 2.0 ** -24).float(), 2.0 ** -24
    else:
        y = (torch.arange(36000, dtype=torch.float64) + 0.5) / 1000                    # u = 1 - exp(-y), y up to 36
        u, weight = -torch.expm1(-y), torch.exp(-y) / 1000
    return float((weight * torch.exp(-torch.exp(gap - d.gumbel(u).double()))).sum())


def test_float32_noise_loses_rare_tokens():
    """A token `gap` nats down: float64 draws it as it should, float32 only c / (e^c - 1) as often, c = e^gap / 2^24.

    (The j-th highest float32 wins with probability (1 - j / 2^24)^(e^gap), about e^(-jc): a geometric series.)
    """
    for gap, lost in ((12, 0.0), (15, 0.05), (17, 0.5), (20, 0.999)):
        c, truth = math.exp(gap) / 2 ** 24, 1 / (1 + math.exp(gap))
        ratio = rare_share(gap, torch.float32) / truth
        assert abs(rare_share(gap, torch.float64) / truth - 1) < 1e-6
        assert abs(ratio - c / math.expm1(c)) < 1e-3 and ratio < 1 - lost


def test_samplers_draw_in_float64(monkeypatch):
    """The uniforms have more than 24 bits, and the largest of them brings out a token 30 nats down."""
    seen, real = [], d.gumbel

    def spy(u):
        seen.append(u)
        return real(u)
    monkeypatch.setattr(d, "gumbel", spy)
    WORLD.run(500, sampler="confidence", steps=3, seed=29)
    for u in seen:
        assert u.dtype == torch.float64 and ((u * 2 ** 24) % 1 != 0).double().mean() > 0.9
    top = torch.tensor([[0.5, 1 - 2.0 ** -53]], dtype=torch.float64)            # noise for the ids 1 and 2 alone
    monkeypatch.setattr(d.State, "uniform", lambda self, shape: top if tuple(shape) == (1, 2) else top[:, :1] * 0)
    x = torch.zeros(1, 1).long()
    far = torch.tensor([[9.0, 0.0, -30.0]])
    y = d.sample(lambda x, where: far, x, x + 1, x + 3, MASK, sampler="ancestral", steps=1)[0]
    assert y.item() == 2
