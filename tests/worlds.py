"""Small worlds whose exact conditionals are known, as networks for diffusion.py, and statistics for what it draws from them.

Statistical tests have fixed seeds and limits of 4 standard errors (p about 6e-5), so a failure is a bug, not bad luck.
"""
import itertools
import math

import numpy as np
import torch

import diffusion as d

MASK = 0                                  # symbols are 1..V


class World:
    """A joint distribution of L tokens with V symbols, and a network: its exact conditionals, or random logits."""

    def __init__(self, joint, network=None):
        self.joint = joint = np.asarray(joint, float)                       # (V,) * L
        self.L, self.V = joint.ndim, joint.shape[0]
        self.sequences = np.array(list(itertools.product(range(1, self.V + 1), repeat=self.L)))           # (V^L, L)
        self.p = joint.ravel()
        self.states = np.array(list(itertools.product(range(self.V + 1), repeat=self.L)))                 # with masks
        self.conditional = np.stack([self.conditionals(s) for s in self.states])                          # (S, L, V+1)
        with np.errstate(divide="ignore"):
            self.logits = np.log(self.conditional)
        if network is not None:
            self.logits = np.random.default_rng(network).normal(size=self.logits.shape)
            e = np.exp(self.logits[..., 1:])
            self.conditional = np.concatenate((0 * e[..., :1], e / e.sum(-1, keepdims=True)), -1)
        self.logits[..., MASK] = 3.0        # a network that likes the mask id: only the restriction keeps it out
        self.table = torch.tensor(self.logits, dtype=torch.float32)
        self.calls, self.rows = 0, 0

    def conditionals(self, state):
        fits = ((self.sequences == state) | (state == MASK)).all(1)
        out = np.zeros((self.L, self.V + 1))
        for i in range(self.L):
            np.add.at(out[i], self.sequences[fits, i], self.p[fits])
        return out / max(self.p[fits].sum(), 1e-300)

    def code(self, x):
        return (x * (self.V + 1) ** torch.arange(self.L - 1, -1, -1)).sum(1)

    def predict(self, x, where):
        assert where.any(1).all() and (x[where] == MASK).all(), "only rows and positions that need the network"
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return self.table[self.code(x)][where]

    def predict_any(self, x, where):
        """For the bound, which may ask for nothing."""
        return self.table[self.code(x)][where]

    def ranges(self, rows):
        low = torch.ones(rows, self.L, dtype=torch.long)
        return low, low + self.V

    def nll(self, x, masked):
        """-log p(x_i | the unmasked of x) at the masked i, float64, independent of diffusion.token_nll. (B, L)"""
        x, masked = np.asarray(x), np.asarray(masked)
        state = np.where(masked, MASK, x) @ (self.V + 1) ** np.arange(self.L - 1, -1, -1)
        p = np.take_along_axis(self.conditional[state], x[..., None], -1)[..., 0]
        return np.where(masked, -np.log(np.where(masked, p, 1)), 0)

    def counts(self, x):
        """How often each of the V^L sequences occurs in x (B, L)."""
        x = np.asarray(x)
        assert (x >= 1).all() and (x <= self.V).all(), "mask id or an id outside the vocabulary in the output"
        return np.bincount((x - 1) @ self.V ** np.arange(self.L - 1, -1, -1), minlength=self.V ** self.L)

    def entropy(self):
        return -(self.p[self.p > 0] * np.log(self.p[self.p > 0])).sum()

    def run(self, rows, start=None, **options):
        """diffusion.sample on `rows` copies of start (all masked), counts of the sequences it gives."""
        x = torch.zeros(rows, self.L, dtype=torch.long) if start is None else torch.tensor([start] * rows)
        return d.sample(self.predict, x, *self.ranges(rows), MASK, **options)


def random_joint(L, V, seed, floor=0.3):
    """A strongly dependent joint with no cell too small for a chi-square test."""
    p = np.random.default_rng(seed).dirichlet(np.full(V ** L, 0.3)) * (1 - floor) + floor / V ** L
    return p.reshape((V,) * L)


WORLD = World(random_joint(3, 3, 1))
NOISY_NET = World(random_joint(3, 3, 1), network=2)
TWINS = World([[0.5, 0], [0, 0.5]])            # two tokens, uniform on {00, 11}


def chi_square_z(counts, p):
    """The chi-square statistic as a normal deviate (Wilson and Hilferty); cells without probability must be empty."""
    counts, p = np.asarray(counts, float), np.asarray(p, float) / np.sum(p)
    assert (counts[p == 0] == 0).all()
    expected = counts.sum() * p
    rare = expected < 8                                                   # such cells are counted together
    counts, expected = (np.append(a[~rare], a[rare].sum()) for a in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    dof = len(expected) - 1
    return (((counts - expected) ** 2 / expected).sum() / dof) ** (1 / 3) / math.sqrt(2 / (9 * dof)) \
        - (1 - 2 / (9 * dof)) / math.sqrt(2 / (9 * dof))


def assert_law(counts, p):
    z = chi_square_z(counts, p)
    assert z < 4, f"chi-square deviate {z:.1f}"


def tv(p, q):
    return 0.5 * np.abs(np.asarray(p) - np.asarray(q)).sum()


def mean_and_error(values):
    return np.mean(values), np.std(values) / math.sqrt(len(values))
