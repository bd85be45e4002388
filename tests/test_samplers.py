"""Samplers against exact laws: Markov chains, enumeration, closed forms."""
import itertools
import math

import numpy as np
import pytest
import torch

import diffusion as d
from worlds import MASK, TWINS, WORLD, World, assert_law, random_joint, tv

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
