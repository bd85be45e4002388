"""Small worlds whose exact conditionals are known, as networks, and statistics of what is drawn.

Seeds are fixed and limits are 4 standard errors (p about 6e-5): a failure is a bug, not bad luck.
"""
import itertools
import math

import numpy as np
import torch

import diffusion

MASK = 0  # the symbols are 1..V


class World:
    """A joint distribution of L tokens with V symbols, and a network that knows it exactly, or
    one of random logits from the seed `network`, that knows nothing."""

    def __init__(self, joint, network=None):
        self.joint = np.asarray(joint, float)                             # (V,) * L
        self.L = self.joint.ndim
        self.V = self.joint.shape[0]
        self.p = self.joint.ravel()                                       # (V^L,)
        symbols = range(1, self.V + 1)
        self.sequences = np.array(list(itertools.product(symbols, repeat=self.L)))   # (V^L, L)
        self.states = np.array(list(itertools.product([MASK, *symbols], repeat=self.L)))
        q = np.stack([self.posterior(state) for state in self.states])    # (states, L, V + 1)
        if network is not None:
            q = np.random.default_rng(network).lognormal(size=q.shape)
            q[..., MASK] = 0
            q /= q.sum(-1, keepdims=True)
        self.conditional = q
        with np.errstate(divide="ignore"):
            logits = np.log(q)
        logits[..., MASK] = 3.0  # it likes the mask id: only the restriction keeps that out
        self.logits = torch.tensor(logits, dtype=torch.float32)
        self.rows = 0  # that samplers asked for

    def posterior(self, state):
        """p(token | the unmasked tokens of a state), (L, V + 1)."""
        fits = ((self.sequences == state) | (state == MASK)).all(1)
        p = np.zeros((self.L, self.V + 1))
        for i in range(self.L):
            np.add.at(p[i], self.sequences[fits, i], self.p[fits])
        return p / max(self.p[fits].sum(), 1e-300)

    def state(self, x):
        """Numbers of the states in x (B, L)."""
        return np.asarray(x) @ (self.V + 1) ** np.arange(self.L)[::-1]

    def ask(self, x, where):
        """The network: logits (M, V + 1) at the True positions of where (B, L)."""
        return self.logits[self.state(x)][where]

    def predict(self, x, where):
        """As `ask`, for samplers: only rows and tokens that need the network."""
        assert where.any(1).all() and (x[where] == MASK).all()
        self.rows += len(x)
        return self.ask(x, where)

    def ranges(self, rows):
        """low and high of each position."""
        low = torch.ones(rows, self.L, dtype=torch.long)
        return low, low + self.V

    def nll(self, x, masked):
        """-log p(x_i | the unmasked of x) at the masked i, else 0. (B, L) float64 numpy."""
        p = self.conditional[self.state(np.where(masked, MASK, x))]       # (B, L, V + 1)
        p = np.take_along_axis(p, np.asarray(x)[..., None], -1)[..., 0]
        return -np.log(np.where(masked, p, 1))

    def counts(self, x):
        """How often each of the V^L sequences occurs in x (B, L), which has no mask."""
        x = np.asarray(x)
        assert (x >= 1).all() and (x <= self.V).all()
        number = (x - 1) @ self.V ** np.arange(self.L)[::-1]
        return np.bincount(number, minlength=self.V ** self.L)

    def sample(self, rows, start=None, **options):
        """diffusion.sample on `rows` copies of start, which is all masked by default."""
        x = torch.tensor(start or [MASK] * self.L).repeat(rows, 1)
        return diffusion.sample(self.predict, x, *self.ranges(rows), MASK, **options)


def random_joint(L, V, seed, floor=0.3):
    """A strongly dependent joint with no cell too small for a chi-square test."""
    p = np.random.default_rng(seed).dirichlet(np.full(V ** L, 0.3))
    p = p * (1 - floor) + floor / V ** L
    return p.reshape((V,) * L)


WORLD = World(random_joint(3, 3, 1))
NOISY = World(random_joint(3, 3, 1), network=2)  # the same joint, a network that knows nothing
TWINS = World([[0.5, 0], [0, 0.5]])              # two tokens, uniform on {00, 11}


def assert_law(counts, p):
    """By Pearson's chi-square test. Cells without probability are empty."""
    counts = np.asarray(counts, float)
    p = np.asarray(p, float)
    assert (counts[p == 0] == 0).all()
    counts, p = counts[p > 0], p[p > 0]
    expected = counts.sum() * p / p.sum()
    square = ((counts - expected) ** 2 / expected).sum()
    chance = torch.special.gammaincc(*torch.tensor([len(p) - 1, square]) / 2)
    assert chance > 6e-5, f"so far off with probability {chance:.1g}"


def assert_mean(values, want, slack=0.0):
    """The mean of draws is `want` within 4 standard errors."""
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - want) <= 4 * error + slack, (np.mean(values), want, error)
