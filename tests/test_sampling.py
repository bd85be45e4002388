"""What holds for every sampler: contracts, correction, guidance, temperature, top-k and top-p, the precision of noise."""
import math

import numpy as np
import pytest
import torch

import diffusion as d
from worlds import MASK, TWINS, WORLD, World, assert_law, chi_square_z, random_joint, tv

pytestmark = pytest.mark.usefixtures("one_thread")


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
