"""Laws of the loss over parameters N, tokens D and shares h, fitted to trials.

Fitted as in arXiv 2203.15556 (appendix D.2): Huber loss of log L, L-BFGS from several starts.
"""
import itertools

import numpy as np
import torch
import torch.nn.functional as F

DELTA = 1e-3  # of the Huber loss: larger residuals of log L count linearly


def fit(law, starts, inputs, loss, rounds=300):
    """Parameters (P,) that make the Huber loss of log(law / loss) least; the best of the starts.

    law(p, *inputs) -> (n,). inputs: arrays of n rows. loss: (n,). Float64.
    """
    inputs = [torch.as_tensor(x, dtype=torch.float64) for x in inputs]
    target = torch.as_tensor(loss, dtype=torch.float64).log()
    best, least = starts[0], np.inf
    for begin in starts:
        p = torch.tensor(begin, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([p], max_iter=rounds, line_search_fn="strong_wolfe")

        def error():
            optimizer.zero_grad()
            logs = law(p, *inputs).clamp(min=1e-12).log()
            value = F.huber_loss(logs, target, delta=DELTA) / DELTA
            value.backward()
            return value

        optimizer.step(error)
        value = error().item()
        if value < least:  # never where it is not a number
            best, least = p.detach().tolist(), value
    return best


def scaling_law(p, N, D):
    """L = E + A / N^a + B / D^b; p: logs of E, A, B, then a, b."""
    E, A, B = p[:3].exp()
    return E + A * N ** -p[3] + B * D ** -p[4]


def mixture_law(p, h, N, D):
    """L = E + 1 / sum_i C_i h_i^g_i + A / N^a + B / D^b: the additive law of arXiv 2507.09404
    (second-hand). h (n, kinds): shares. p: as above, then logs of C_i, logs of g_i."""
    kinds = h.shape[1]
    C = p[5:5 + kinds].exp()
    g = p[5 + kinds:].exp()
    return scaling_law(p, N, D) + 1 / (C * h.clamp(min=1e-9) ** g).sum(1)


def middle(x):
    """Geometric mean: the unit in which a fit measures, so that its parameters are of one size."""
    return np.exp(np.log(x).mean())


def fit_scaling(N, D, loss, starts=None):
    """{E, A, a, B, b} of `scaling_law`, and the parameters, where another fit may start."""
    third = np.log(np.min(loss) / 3)
    if starts is None:
        starts = [[third] * 3 + [a, b] for a, b in itertools.product((0.3, 1.0), repeat=2)]
    p = fit(scaling_law, starts, (N / middle(N), D / middle(D)), loss)
    E, A, B = np.exp(p[:3])
    a, b = p[3:]
    law = {"E": E, "A": A * middle(N) ** a, "a": a, "B": B * middle(D) ** b, "b": b}
    return {name: float(value) for name, value in law.items()}, p


def fit_mixture(h, N, D, loss, own, rounds=300):
    """`mixture_law` of the kind `own`, as a function of (h (n, kinds), N (n,), D (n,)) -> (n,)."""
    units = middle(N), middle(D)
    third = np.log(np.min(loss) / 3)
    starts = []
    for a, b in itertools.product((0.3, 1.0), repeat=2):
        C = np.full(h.shape[1], -2.3 - third)  # others' tokens: a tenth of one's own
        C[own] = -third
        starts.append([third] * 3 + [a, b, *C] + [np.log(0.5)] * len(C))
    p = torch.tensor(fit(mixture_law, starts, (h, N / units[0], D / units[1]), loss,
                         rounds))

    def predict(h, N, D):
        h, N, D = (torch.as_tensor(x, dtype=torch.float64) for x in (h, N, D))
        return mixture_law(p, h, N / units[0], D / units[1]).numpy()

    return predict


def fit_worth(own, others, loss):
    """{c, E, B, b} of L = E + B / (own + c others)^b: c is what a token of the others is worth in
    own ones. Least squares with E, B >= 0, by search over c and b. own, others: (n,)."""
    best, least = (0.0, loss.mean(), 0.0, 1.0), np.inf  # if nothing falls
    for c, b in itertools.product(np.linspace(-0.3, 1.0, 27), np.linspace(0.1, 1.5, 15)):
        tokens = own + c * others
        if tokens.min() <= 0:
            continue
        fall = tokens ** -b
        E, B = np.linalg.lstsq(np.stack((np.ones_like(fall), fall), 1), loss, rcond=None)[0]
        if E < 0:
            E, B = 0.0, fall @ loss / (fall @ fall)
        error = ((E + B * fall - loss) ** 2).sum()
        if B > 0 and error < least:
            best, least = (c, E, B, b), error
    return {name: float(value) for name, value in zip("cEBb", best)}


def worth_law(law, own, others):
    return law["E"] + law["B"] / (own + law["c"] * others) ** law["b"]


def resampled(fit, columns, draws, random):
    """Results of fit(*columns) on rows drawn anew with replacement."""
    results = []
    for _ in range(draws):
        at = random.integers(0, len(columns[0]), len(columns[0]))
        if all(len(np.unique(column[at])) > 1 for column in columns):
            results.append(fit(*(column[at] for column in columns)))
    return results


def interval(values):
    """10 and 90% of values; None of none."""
    return dict(zip(("from", "to"), np.percentile(values, (10, 90)).tolist())) if values else None
