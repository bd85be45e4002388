"""Samplers against exact laws: Markov chains, enumeration, closed forms. And what holds for all."""
import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch

import diffusion as d
from worlds import MASK, NOISY, TWINS, WORLD, World, assert_law, assert_mean, random_joint

named = partial(pytest.mark.parametrize, "options", ids=str)


@named([
    dict(sampler="first-hitting"), dict(sampler="entropy", budget=0.0),
    dict(sampler="entropy", budget=0.0, block=1),
    dict(sampler="confidence", grid="linear", steps=3, choice_temperature=1e6)])
def test_exact_samplers_reproduce_the_joint_and_its_conditionals(options):
    x, _, _ = WORLD.sample(6000, seed=1, **options)
    assert_law(WORLD.counts(x), WORLD.p)
    x, _, _ = WORLD.sample(6000, start=[MASK, 2, MASK], seed=19, **options)
    assert_law(WORLD.counts(x), np.where(WORLD.sequences[:, 1] == 2, WORLD.p, 0))


def step_matrix(world, reveal, remask):
    """Transitions between all (V+1)^L states if tokens are revealed or masked independently."""
    matrix = np.ones((len(world.states), 1))
    for i in range(world.L):
        symbol = world.states[:, i]
        hidden = symbol == MASK
        stay = (1 - remask) * np.eye(world.V + 1)[symbol]
        move = np.where(hidden[:, None], reveal * world.conditional[:, i], stay)
        move[:, MASK] = np.where(hidden, 1 - reveal, remask)
        matrix = (matrix[:, :, None] * move[:, None, :]).reshape(len(matrix), -1)
    return matrix


def chain(world, rates, eta):
    """Law of the sequence after ReMDM's steps from all masked; eta 0 is ancestral sampling."""
    p = np.eye(len(world.states))[0]
    for before, after in zip(rates, rates[1:]):
        sigma = min(eta, 1.0, after / (1 - before)) if before < 1 else eta
        reveal = ((1 - after) - (1 - sigma) * (1 - before)) / before
        p = p @ step_matrix(world, reveal, sigma)
    done = (world.states != MASK).all(1)
    return p[done]


def cosine_rates(steps):
    return [math.cos(math.pi / 2 * k / steps) for k in range(steps)] + [0.0]


@named([dict(sampler="ancestral", steps=3), dict(sampler="remdm", eta=0.0, steps=2),
        dict(sampler="remdm", eta=0.3, steps=6)])
def test_few_steps_have_the_law_of_their_markov_chain(options):
    law = chain(WORLD, cosine_rates(options["steps"]), options.get("eta", 0))
    x, _, _ = WORLD.sample(20_000, seed=2, **options)
    assert_law(WORLD.counts(x), law)


def test_two_twins_in_K_steps_have_the_error_of_the_docstring_and_no_idle_call():
    """They fall into the same step with probability 1/K, then disagree half of the time."""
    x, _, _ = TWINS.sample(20_000, sampler="ancestral", grid="linear", steps=10, seed=5)
    assert_mean((x[:, 0] != x[:, 1]).numpy(), 1 / 20)
    _, nfe, film = TWINS.sample(50, sampler="ancestral", grid="linear", steps=100, record=True)
    calls = sum((before != after).any(1) for before, after in zip(film, film[1:]))
    assert len(film) == 101 and torch.equal(nfe, calls)


@pytest.mark.parametrize("budget, block", [(0.0, 0), (0.6, 0), (100.0, 1), (0.6, 2)])
def test_entropy_reveals_the_longest_prefix_within_the_budget(budget, block):
    """Of the masked tokens, or of the leftmost `block` of them, by their entropies."""
    world = World(random_joint(4, 2, 9))
    _, _, film = world.sample(100, sampler="entropy", budget=budget, block=block, seed=9,
                              record=True)
    for before, after in zip(torch.cat(film[:-1]).numpy(), torch.cat(film[1:]).numpy()):
        hidden = np.flatnonzero(before == MASK)[:block or None]
        if not len(hidden):
            continue
        q = world.conditional[world.state(before)][hidden, 1:]
        entropy = -(q * np.log(q)).sum(1)
        order = np.argsort(entropy)
        count = 1
        while count < len(hidden) and entropy[order[:count]].sum() <= budget:
            count += 1  # the sum leaves out the next one, the largest
        assert set(np.flatnonzero(before != after)) == set(hidden[order[:count]])


def greedy_law(world, state):
    """Law of confidence without noise, one token a step: propose all, keep the likeliest."""
    hidden = [i for i in range(world.L) if state[i] == MASK]
    if not hidden:
        return (world.sequences == state).all(1).astype(float)
    q = world.conditional[world.state(np.array(state))]
    law = 0.0
    for tokens in itertools.product(range(1, world.V + 1), repeat=len(hidden)):
        p = q[hidden, tokens]
        best = p.argmax()
        then = list(state)
        then[hidden[best]] = tokens[best]
        law = law + p.prod() * greedy_law(world, then)
    return law


def test_greedy_confidence_is_biased_even_with_an_exact_network():
    """A rejected proposal is drawn anew, so likely values are favoured."""
    law = greedy_law(WORLD, [MASK] * 3)
    x, _, _ = WORLD.sample(20_000, sampler="confidence", grid="linear", steps=3, seed=10,
                           choice_temperature=0.0)
    assert_law(WORLD.counts(x), law)


def test_noise_of_confidence_is_annealed_gumbel():
    """Its weight c is choice_temperature * remaining: T / 2 in the first of two steps. The second
    token is certain (log p = 0), the first is drawn with p: it is kept with the logistic
    probability 1 / (1 + p^(-1 / c))."""
    p = np.array([0.7, 0.2, 0.05, 0.05])
    joint = np.zeros((4, 4))
    joint[:, 0] = p
    _, _, film = World(joint).sample(20_000, sampler="confidence", grid="linear", steps=2,
                                     choice_temperature=3.0, seed=12, record=True)
    assert_mean((film[1][:, 0] != MASK).numpy(), (p / (1 + p ** (-2 / 3.0))).sum())


def test_confidence_leaves_exactly_the_whole_part_masked():
    """Also where floats fall short of an integer. Row i has i masked tokens."""
    n = torch.arange(109)
    x = (torch.arange(108) >= n[:, None]).long()

    def network(x, where):
        return torch.zeros(int(where.sum()), 3)

    for steps, grid in ((12, "linear"), (19, "linear"), (12, "cosine")):
        _, _, film = d.sample(network, x, x * 0 + 1, x * 0 + 3, MASK, "confidence", steps, grid,
                              record=True)
        for k, frame in enumerate(film):
            want = n * (steps - k) // steps
            if grid == "cosine":
                want = (n * cosine_rates(steps)[k] + 1e-9).long()
            assert torch.equal((frame == MASK).sum(1), want)


ALL = [dict(sampler="ancestral", grid="poly:2", steps=3), dict(sampler="first-hitting"),
       dict(sampler="confidence", steps=7), dict(sampler="remdm", steps=12, eta=0.3),
       dict(sampler="entropy", block=2, correct=2)]


@named(ALL)
@pytest.mark.filterwarnings("error")
def test_contracts_of_sampling(options):
    """What is given or not missing stays, each position keeps to its own ids, the film is whole,
    calls are counted, seeds decide."""
    rng = np.random.default_rng(14)
    start = torch.tensor(rng.integers(1, 4, (60, 4)))
    for i, row in enumerate(start):  # with 0 to 4 masked tokens
        row[rng.permutation(4)[:i % 5]] = MASK
    part = start == MASK
    part[30:, 1] = False
    world = World(random_joint(4, 3, 15))
    low, high = world.ranges(60)
    high[:, 3] = 3  # the network knows a third id there
    condition = (torch.arange(4) == 0).expand(60, 4)
    global_state = torch.get_rng_state()
    for guidance, given, missing in ((0.0, None, start == MASK), (1.0, part, part)):
        world.rows = 0
        x = start.clone()
        draw = partial(d.sample, world.predict, x, low, high, MASK, guidance=guidance,
                       condition=condition, missing=given, **options)
        y, nfe, film = draw(seed=16, record=True)
        assert torch.equal(x, start) and torch.equal(y[~missing], x[~missing])
        assert ((low <= y) & (y < high))[missing].all()
        assert torch.equal(film[0], x) and torch.equal(film[-1], y)
        assert int(nfe.sum()) == world.rows
        assert (nfe[~missing.any(1)] == 0).all()
        again, nfe_again, no_film = draw(seed=16)
        assert torch.equal(y, again) and torch.equal(nfe, nfe_again) and no_film == []
        assert not torch.equal(y, draw(seed=17)[0])
    assert torch.equal(torch.get_rng_state(), global_state)


def test_grids_fall_from_one_to_zero():
    assert d.mask_rates("poly:2", 2) == [1.0, 0.25, 0.0]
    assert min(d.mask_rates("poly:20", 60)[:-1]) > 0  # samplers divide by them
    assert d.mask_rates("cosine", 9) == pytest.approx(cosine_rates(9))


def test_repair_mends_what_independent_draws_broke():
    """Hidden alone, either twin contradicts the other. One is drawn anew and agrees."""
    x, nfe, film = TWINS.sample(20_000, sampler="ancestral", steps=1, correct=1, record=True)
    assert_law(TWINS.counts(x), TWINS.p)
    broken = film[1][:, 0] != film[1][:, 1]
    assert (nfe[broken] == 4).all()  # one to draw, two to judge, one to draw anew
    assert (nfe[~broken] == 3).all()
    assert torch.equal(x[~broken], film[1][~broken])


def test_repair_draws_the_worst_token_until_all_are_the_likeliest():
    """Of independent tokens with odds 7 : 3 and 9 : 1 the second's unlikely value goes first."""
    world = World(np.outer((0.7, 0.3), (0.9, 0.1)))
    options = dict(sampler="ancestral", steps=1, seed=31)
    x, _, film = world.sample(4000, correct=1, record=True, **options)
    both = (film[1] == 2).all(1)
    assert (x[both, 0] == 2).all()
    assert_mean((x[both, 1] == 2).numpy(), 0.1)
    x, _, _ = world.sample(200, correct=60, **options)
    assert (x == 1).all()


def test_guidance_mixes_two_answers_of_the_network():
    """l_c + w (l_c - l_u), to the digit. A token that was revealed stays in both."""
    x = torch.tensor([[2, MASK, MASK], [2, 1, MASK]])
    condition = torch.tensor([True, False, False]).expand(2, 3)
    with_it, without = (NOISY.conditional[NOISY.state(state)][(x == MASK).numpy()][:, 1:]
                        for state in (x, x.masked_fill(condition, MASK)))
    for w in (0.7, -0.5):
        p = with_it ** (1 + w) * without ** -w
        ask = d.Proposer(NOISY.predict, *NOISY.ranges(2), MASK, condition, w, torch.Generator())
        logits = ask.logits(x, x == MASK).double()                        # (M, V + 1)
        assert logits[:, MASK].isneginf().all() and ask.nfe.tolist() == [2, 2]
        got = logits[:, 1:].softmax(-1).numpy()
        np.testing.assert_allclose(got, p / p.sum(1, keepdims=True), rtol=1e-5)


def test_temperature_has_the_closed_form():
    world = World([0.4, 0.3, 0.2, 0.1])
    x, _, _ = world.sample(20_000, sampler="first-hitting", seed=25, temperature=0.5)
    assert_law(world.counts(x), world.p ** 2)
    x, _, _ = world.sample(50, temperature=0.0)
    assert (x == 1).all()


def test_top_k_and_top_p_keep_the_right_ids():
    p = torch.tensor([0.125, 0.5, 0.0625, 0.25, 0.0625])
    rows = torch.stack((p, p.roll(2))).log()  # each row by itself
    for options, kept in (
            (dict(top_k=1), [1]), (dict(top_k=3), [0, 1, 3]), (dict(top_k=9), [0, 1, 2, 3, 4]),
            (dict(top_k=4), [0, 1, 2, 3, 4]),   # a tie for the last place: both stay
            (dict(top_p=0.5), [1]),             # exactly reached: no more
            (dict(top_p=0.51), [1, 3]), (dict(top_p=0.76), [0, 1, 3]),
            (dict(top_p=1e-9), [1]),            # never empty
            (dict(top_k=2, top_p=0.6), [1])):   # of {1/2, 1/4} the first holds 2/3
        filtered = d.filter_logits(rows, **options)
        assert filtered[0].isfinite().nonzero()[:, 0].tolist() == kept, options
        assert torch.equal(filtered[0].roll(2), filtered[1])


def test_proposals_come_with_the_networks_own_probability_and_entropy():
    """Those before temperature, top-k and top-p."""
    proposer = d.Proposer(WORLD.predict, *WORLD.ranges(9), MASK, None, 0.0,
                          torch.Generator().manual_seed(0), temperature=0.3, top_k=2, top_p=0.9)
    x = torch.zeros(9, 3, dtype=torch.long)
    where = torch.tensor([True, False, True]).expand(9, 3)
    tokens, logp, entropy = proposer.propose(x, where)
    assert torch.equal(tokens != MASK, where)
    for i in (0, 2):
        p = WORLD.conditional[0, i]
        np.testing.assert_allclose(logp[:, i], np.log(p[tokens[:, i]]), rtol=1e-5)
        np.testing.assert_allclose(entropy[:, i], -(p[1:] * np.log(p[1:])).sum(), rtol=1e-5)


def test_noise_is_drawn_in_float64(monkeypatch):
    """So it reaches 36.7 nats. Float32 has 24 bits and ends at 16.6."""
    generator = torch.Generator().manual_seed(28)
    u = d.uniform((1000,), generator)
    assert ((u * 2 ** 24) % 1 != 0).double().mean() > 0.9
    edges = torch.tensor([[0.0, 0.5, 1 - 2.0 ** -53]], dtype=torch.float64)
    monkeypatch.setattr(d, "uniform", lambda shape, generator: edges)
    noise = d.gumbel((1, 3), generator)[0]
    assert noise.isfinite().all() and 36.7 < noise[2] < 36.8
    x = torch.zeros(1, 1, dtype=torch.long)  # the largest brings out a token that is 30 nats down
    logits = torch.tensor([[9.0, 0.0, -30.0]])
    y, _, _ = d.sample(lambda x, where: logits, x, x + 1, x + 3, MASK, "entropy")
    assert y.item() == 2
