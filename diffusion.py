"""Masked diffusion: schedules, forward masking, the bound, the samplers. Tensors only; no files, no network.

Time runs from t=0 (clean) to t=1 (all masked), in training and in sampling. A token is still clean at time t with
probability alpha(t), independently of the others; m(t) = 1 - alpha(t) is the mask rate. Sources:
  MDLM  arXiv 2406.07524      MD4  arXiv 2406.04329       RADD    arXiv 2406.03736     LLaDA arXiv 2502.09992
  MaskGIT arXiv 2202.04200    first-hitting 2409.02908    ReMDM   arXiv 2503.00307     EB    arXiv 2505.24857

Worked example (a test, too): two tokens, uniform on {00, 11}, the exact network. With one token masked it is certain
(0 nats), with both masked each costs ln 2. The bound is E_k[(L/k) * sum over masked -log p]: k=1 gives 2 * 0 = 0,
k=2 gives 1 * 2 ln 2, the mean over k is ln 2, the entropy of the distribution: for an exact network the bound is tight.
Revealing both tokens in one step gives 00, 01, 10, 11 with 1/4 each: total variation 1/2 from the truth, the
factorisation error. With K ancestral steps of equal size both fall into the same step with probability 1/K, so the
total variation is 1/(2K), and one token a step makes none.
"""
import math
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F

T_MIN = 1e-3  # times stay in [T_MIN, 1 - T_MIN]: the weight 1/t has infinite variance at 0


# ---------------------------------------------------------------------------------------------------------------------
# Schedules. All functions take and return float64 numpy arrays or floats.

@dataclass(frozen=True)
class Schedule:
    name: str
    alpha: Callable       # t -> share of clean tokens
    dalpha: Callable      # t -> its derivative, <= 0
    inverse: Callable     # mask rate -> t

    def mask_rate(self, t):
        return 1 - self.alpha(t)

    def weight(self, t):
        """-alpha'(t) / (1 - alpha(t)), the factor of the cross-entropy in the bound (MDLM eq. 10, MD4 eq. 5)."""
        return -self.dalpha(t) / self.mask_rate(t)

    def weight_complement(self, t):
        """-alpha'(t) / alpha(t), the factor for the complement of a mask, whose mask rate is alpha(t)."""
        return -self.dalpha(t) / self.alpha(t)


def poly(p):
    """alpha = 1 - t^p; weight p/t (MD4, table 1). p=1 is linear."""
    if not 0 < p < math.inf:
        raise ValueError(f"poly:{p:g}: the power must be above 0")
    return Schedule(f"poly:{p:g}", lambda t: 1 - np.power(t, p), lambda t: -p * np.power(t, p - 1.0),
                    lambda m: np.power(m, 1 / p))


def from_points(t, alpha):
    """Piecewise-linear schedule through given points, for studies; t rising from 0 to 1, alpha falling from 1 to 0."""
    t, alpha = np.asarray(t, float), np.asarray(alpha, float)
    ends = t[0], t[-1], alpha[0], alpha[-1]
    if ends != (0, 1, 1, 0) or (np.diff(t) <= 0).any() or (np.diff(alpha) >= 0).any():
        raise ValueError("a schedule by points needs t rising from 0 to 1 and alpha falling from 1 to 0, both strictly")
    slopes = np.diff(alpha) / np.diff(t)
    return Schedule("points", lambda s: np.interp(s, t, alpha),
                    lambda s: slopes[np.clip(np.searchsorted(t, s, side="right") - 1, 0, len(slopes) - 1)],
                    lambda m: np.interp(m, 1 - alpha, t))


SCHEDULES = {
    "linear": Schedule("linear", lambda t: 1 - t, lambda t: -np.ones_like(np.asarray(t, float)), lambda m: m),
    "cosine": Schedule("cosine", lambda t: 1 - np.cos(math.pi / 2 * (1 - t)),              # weight pi/2 tan(pi/2 (1-t))
                       lambda t: -math.pi / 2 * np.sin(math.pi / 2 * (1 - t)),
                       lambda m: 1 - 2 / math.pi * np.arccos(m)),
}


def schedule(name):
    """A Schedule by its name: linear, cosine, or poly:P such as poly:2."""
    if name.startswith("poly:"):
        return poly(float(name[5:]))
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: choose linear, cosine or poly:P (for instance poly:2)")
    return SCHEDULES[name]


# ---------------------------------------------------------------------------------------------------------------------
# Forward process. Random numbers come in as arguments, so that a batch is a pure function of (seed, step).

def stratified_times(n, u, low=T_MIN, high=1 - T_MIN):
    """n times, one in each n-th of [low, high]: t_i = (u + i/n) mod 1, u one uniform number. (n,) float64."""
    return low + (high - low) * ((u + np.arange(n) / n) % 1.0)


NOISED = None
# How the two members of a pair are noised: NOISED = its mask rate follows the time and it carries loss,
# 0.0 = clean (a condition), 1.0 = fully masked (absent) without loss. The proportions are flags of train.py.
PAIR_MODES = {
    "joint":        (NOISED, NOISED),
    "first|second": (NOISED, 0.0),
    "second|first": (0.0, NOISED),
    "first":        (NOISED, 1.0),
    "second":       (1.0, NOISED),
}


def member_times(t, members, mode_share, u, power=None):
    """Times of every member of every row.

    t: (B,) times; members: number of members of a row; mode_share: {mode of PAIR_MODES: share} (unused for one
    member); u: (B,) uniforms that choose the mode; power: {mode: p} replaces t by t^p, so that p < 1 trains that mode
    at high mask rates, where short answers are decided (the loss is then no longer unbiased for the bound).
    Returns times (B, S) and lossy (B, S) bool.
    """
    if members == 1:
        return t[:, None], np.ones((len(t), 1), bool)
    modes, share = list(mode_share), np.array(list(mode_share.values()), float)
    choice = np.minimum(np.searchsorted(np.cumsum(share / share.sum()), u, side="right"), len(modes) - 1)
    fixed = np.array([[np.nan if m is NOISED else m for m in PAIR_MODES[mode]] for mode in modes])[choice]  # (B, S)
    t = t ** np.array([(power or {}).get(mode, 1.0) for mode in modes])[choice]
    return np.where(np.isnan(fixed), t[:, None], fixed), np.isnan(fixed)


WEIGHTINGS = ("bound", "capped", "unweighted")


def reweight(weight, rate, weighting="bound", cap=10.0):
    """The bound's weight, or one of the field's other weightings: for training, never to be reported as a bound.

    weight: the bound's; rate: the mask rate it belongs to. "capped": min(weight, cap); "unweighted": every masked
    token counts the same at every mask rate (as in MaskGIT), whatever the schedule; the factor 2 gives it the bound's
    size where all tokens cost the same.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"unknown weighting {weighting!r}: choose {', '.join(WEIGHTINGS)}")
    return {"bound": weight, "capped": np.minimum(weight, cap), "unweighted": 2 * weight * rate}[weighting]


def mask_tokens(ids, member, times, lossy, u, mask_id, sched, complement=False, weighting="bound"):
    """The forward process q(x_t | x_0), with a time of its own for each member of each row.

    ids (B, L) clean tokens; member (B, L) which member a token belongs to, -1 for what is never masked (specials,
    padding); times, lossy (B, S) as from `member_times`; u (B, L) uniforms, one a token.
    complement=True gives the strict complement of the mask that the same arguments give without it (anti-masking):
    {u >= m} instead of {u < m}, with the weight -alpha'/alpha, so that each of the two is unbiased for the bound.
    Returns x_t (B, L); masked (B, L) bool, masked and carrying loss; weight (B, L) float32; noisy (B, L) bool, all that
    may be masked and carry loss: the bound divides by their number.
    """
    t = np.clip(times, T_MIN, 1 - T_MIN)                                                                   # (B, S)
    m = sched.mask_rate(t)
    weight = (reweight(sched.weight_complement(t), 1 - m, weighting) if complement
              else reweight(sched.weight(t), m, weighting))
    rate, weight, lossy = (torch.from_numpy(a).to(ids.device) for a in (np.where(lossy, m, times), weight, lossy))
    index = member.clamp(min=0)
    rate, loss_here = rate.gather(1, index), lossy.gather(1, index) & (member >= 0)                        # (B, L)
    hit = u < rate
    masked = torch.where(loss_here, ~hit if complement else hit, hit) & (member >= 0)
    return ids.masked_fill(masked, mask_id), masked & loss_here, weight.gather(1, index).float(), loss_here


def mask_exactly(ids, noisy, k, u, mask_id):
    """Mask exactly k_i of the noisy positions of row i, chosen uniformly (LLaDA eq. 6, RADD's any-order form).

    ids, noisy (bool), u (uniforms): (B, L); k: (B,). Returns x (B, L) and masked (B, L).
    """
    rank = torch.where(noisy, u, torch.full_like(u, 2.0)).argsort(1).argsort(1)                            # (B, L)
    masked = noisy & (rank < k[:, None])
    return ids.masked_fill(masked, mask_id), masked


def systematic_counts(n, u):
    """k_i uniform on 1..n_i, spread evenly over the batch: n (B,) ints, u one uniform -> (B,) ints."""
    spread = (u + torch.arange(len(n), device=n.device, dtype=torch.float64) / max(len(n), 1)) % 1.0
    return (spread * n).long().clamp(max=n - 1) + 1


# ---------------------------------------------------------------------------------------------------------------------
# The bound.

def restrict(logits, low, high):
    """Logits outside a position's own ids [low, high) become -inf. logits (M, V) float32; low, high (M,)."""
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return logits.masked_fill((ids < low[:, None]) | (ids >= high[:, None]), float("-inf"))


def token_nll(logits, target, low, high, chunk=8192):
    """-log p(target) in nats, float32, over each position's own vocabulary. logits (M, V), target (M,) -> (M,)."""
    parts = [F.cross_entropy(restrict(a.float(), c, d), b, reduction="none")
             for a, b, c, d in zip(*(z.split(chunk) for z in (logits, target, low, high)))]
    return torch.cat(parts) if parts else logits.new_zeros(0)


def weighted_terms(nll, weight, group, counts):
    """Sum of weight * nll by group, over the number of noised tokens of the group (not of the masked ones).

    nll, weight: (M,) for the masked tokens; group: (M,) ints; counts: (G,) noised tokens. Returns (G,) nats a token.
    """
    total = torch.zeros(len(counts), device=nll.device).index_add_(0, group, weight * nll)
    return total / counts.clamp(min=1)


@torch.no_grad()
def bound(predict, ids, noisy, low, high, mask_id, u, rounds=1, alike=None):
    """Estimate of the bound on -log p(noisy tokens | the others), nats a row, by masks of exactly k tokens, k uniform on
    1..n, with weight n / k (LLaDA eq. 6, RADD: of lower variance than times drawn as in training, and free of T_MIN).

    predict(x, where) -> logits (M, V) at the True positions of where (B, L); ids (B, L) clean; noisy (B, L) bool;
    low, high (B, L) each position's ids; u: numpy Generator; alike (B,) ints from 0 on: rows of one number, which have
    as many noisy tokens each, get the same masks.
    Returns (B,) float64: the mean over rounds for every row; its average over rows estimates the bound and its
    spread over rows gives the standard error.
    """
    B, n = len(ids), noisy.sum(1)                                                                    # n (B,)
    total = torch.zeros(B, dtype=torch.float64, device=ids.device)
    alike = torch.arange(B, device=ids.device) if alike is None else alike
    each = int(alike.max()) + 1 if B else 0
    spread = lambda made: torch.as_tensor(made, device=ids.device)[alike]                            # of a number -> of its rows
    for _ in range(rounds):
        noise = spread(u.random((each, ids.shape[1])))                                               # (B, L)
        order = torch.from_numpy(u.permutation(each)).to(ids.device)  # no row is tied to a stratum
        most = n.new_zeros(each).scatter(0, alike, n)                 # noisy tokens of each number
        k = spread(systematic_counts(most[order], u.random())[order.argsort()])                      # (B,)
        x, masked = mask_exactly(ids, noisy, k, noise, mask_id)                                      # (B, L)
        nll = token_nll(predict(x, masked), ids[masked], low[masked], high[masked]).double()         # (M,)
        row = masked.nonzero()[:, 0]                                                                 # (M,)
        total.index_add_(0, row, nll * (n.double() / k)[row])
    return total / rounds


# ---------------------------------------------------------------------------------------------------------------------
# Sampling. A sampler is a generator: it gets the tokens x (B, L) with mask_id where something is to be filled in, and
# yields x after every step. `propose(x, where)` asks the network for tokens at the True positions of where.

def gumbel(u):
    """Gumbel noise from uniforms u in [0, 1). float64: in float32 u's last step below 1 caps the noise at 16.6 nats
    (36.7 in float64), which quietly lowers the temperature (arXiv 2409.02908, section 4)."""
    return -torch.log(-torch.log(u.clamp(min=torch.finfo(u.dtype).tiny)))


def filter_logits(logits, temperature=1.0, top_k=0, top_p=1.0):
    """Temperature (> 0), then the k best, then the smallest set with probability top_p. (M, V) -> (M, V)."""
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[:, -1:], float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        p = ordered.softmax(-1)
        drop = p.cumsum(-1) - p >= top_p                              # keep while the mass before is short of top_p
        drop[:, 0] = False                                            # the best one always stays
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), float("-inf"))
    return logits


def guide(conditional, unconditional, w):
    """Classifier-free guidance: l_u + (1 + w) (l_c - l_u), so w = 0 is none (UniDisc, arXiv 2503.20853, eq. 9)."""
    mixed = conditional + w * (conditional - unconditional)               # the same sum; w = 0 changes no bit
    return torch.where(torch.isneginf(conditional) | torch.isneginf(unconditional), conditional, mixed)


def keep_best(score, candidates, count):
    """True at the count_i candidates of row i with the highest score. (B, L), (B, L) bool, (B,) -> (B, L) bool."""
    rank = torch.where(candidates, score, torch.full_like(score, -torch.inf)).argsort(1, descending=True).argsort(1)
    return candidates & (rank < count[:, None])


def ancestral(x, state, grid, **_):
    """Ancestral sampling: from mask rate m_t to m_s a masked token is revealed with probability (m_t - m_s)/m_t, the
    last step reveals all (MDLM eq. 7). Exact in the limit of many steps; with few, tokens of a step are independent."""
    for m_t, m_s in zip(grid, grid[1:]):
        x = state.fill(x, state.hidden(x) & (state.uniform(x.shape) < (m_t - m_s) / m_t))
        yield x


def first_hitting(x, state, grid, **_):
    """First-hitting sampler (arXiv 2409.02908, Alg. 1): with n tokens masked at rate m the next reveal happens at
    m * u^(1/n). The network sees no time, so only the order matters: one token a call, uniformly chosen. Exact, but as
    many calls as tokens."""
    priority = state.uniform(x.shape)
    for _ in range(int(state.hidden(x).sum(1).max())):
        x = state.fill(x, keep_best(priority, state.hidden(x), torch.ones_like(x[:, 0])))
        yield x


def confidence(x, state, grid, choice_temperature=1.0, equal=False, **_):
    """MaskGIT: propose all tokens, keep the most confident; `log p + choice_temperature * (1 - (k+1)/N) * Gumbel`.

    The number still masked after step k is floor(m_k * n), m from the grid (MaskGIT: the cosine one); equal=True
    reveals n/N a step (LLaDA's low-confidence remasking, with choice_temperature 0). With a high choice temperature and
    one token a step it is exact. Greedy choices are biased even for an exact network and one token a step, since
    unlikely proposals are put back and drawn anew: of two independent tokens with the odds 0.6 : 0.4 and 0.7 : 0.3, the
    0.3 comes out 0.09 of the time. So short answers and plain colours come first, and diversity narrows."""
    n, steps = state.hidden(x).sum(1), len(grid) - 1
    for k in range(steps):
        # integers or float64: in float32 108 * 7/12 falls short of 63
        left = n * (steps - k - 1) // steps if equal else (n.double() * float(grid[k + 1]) + 1e-9).floor().long()
        hidden = state.hidden(x)
        count = (hidden.sum(1) - left).clamp(min=0)
        if not bool(count.any()):
            continue
        tokens, logp, _ = state.propose(x, hidden & (count > 0)[:, None])
        noise = gumbel(state.uniform(x.shape)) * choice_temperature * (1 - (k + 1) / steps)
        x = torch.where(keep_best(logp + noise, hidden, count), tokens, x)
        yield x


REMDM = ("cap", "rescale", "loop")


def remdm(x, state, grid, variant="cap", eta=0.1, loop_at=0.1, **_):
    """ReMDM (arXiv 2503.00307, eq. 6-8): a revealed token is masked again with probability sigma, a masked one
    revealed with (alpha_s - (1-sigma) alpha_t)/(1-alpha_t), where sigma <= sigma_max = min(1, (1-alpha_s)/alpha_t).

    variant "cap": sigma = min(eta, sigma_max); "rescale": eta * sigma_max; "loop": half of the steps go to and fro at
    the mask rate nearest to loop_at (the paper: alpha_on = 0.9) with the capped sigma, before and after plain steps.
    Repairs early mistakes when steps are many; wasteful when they are few."""
    start, steps = state.hidden(x), len(grid) - 1
    if variant == "loop":
        plain = np.interp(np.linspace(0, 1, steps - steps // 2 + 1), np.linspace(0, 1, steps + 1), grid)
        turn = int(np.abs(plain[:-1] - loop_at).argmin())             # not the last, where nothing is masked any more
        grid = np.concatenate((plain[:turn + 1], np.full(steps // 2, plain[turn]), plain[turn + 1:]))
    for m_t, m_s in zip(grid, grid[1:]):
        alpha_t, alpha_s = 1 - m_t, 1 - m_s
        sigma_max = min(1.0, m_s / alpha_t) if alpha_t > 0 else 1.0
        sigma = {"cap": min(eta, sigma_max), "rescale": eta * sigma_max,
                 "loop": min(eta, sigma_max) if m_t == m_s else 0.0}[variant]
        hidden, u = state.hidden(x), state.uniform(x.shape)
        again = start & ~hidden & (u < sigma)
        reveal = hidden & (u < (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t))
        x = state.fill(x, reveal).masked_fill(again, state.mask_id)
        yield x


def entropy_bounded(x, state, grid, budget=0.5, block=0, **_):
    """EB sampler (Ben-Hamu et al., arXiv 2505.24857, Alg. 1): reveal the most certain tokens as long as the sum of
    their entropies less the largest one stays within `budget` nats, at least one a step. The sum bounds the error that
    independent draws make, so the number of calls follows the difficulty. The order is
    settled before anything is drawn, so budget 0 is exact (unlike MaskGIT, which looks at the draws).
    block > 0: only among the leftmost so many that are missing (semi-autoregressive, as LLaDA's blocks; 1: left to right)."""
    for _ in range(int(state.hidden(x).sum(1).max())):               # bounded: a network that says NaN cannot hang it
        hidden = state.hidden(x)
        if not bool(hidden.any()):
            return
        if block:
            hidden = hidden & (hidden.cumsum(1) <= block)
        tokens, _, entropy = state.propose(x, hidden)
        ordered, order = torch.where(hidden, entropy, torch.full_like(entropy, torch.inf)).sort(1)
        # the largest entropy of a sorted prefix is its last, so "sum less largest" is the sum before it
        keep = torch.cat((torch.zeros_like(ordered[:, :1]), ordered[:, :-1].cumsum(1)), 1) <= max(budget, 0)
        x = torch.where(torch.zeros_like(hidden).scatter(1, order, keep) & hidden, tokens, x)
        yield x


def corrected(x, state, rounds, parts=8):
    """Informed correction (after arXiv 2407.21243) of finished rows: `rounds` times the token that fits its row worst is masked and
    drawn anew. How badly a token fits is its log-probability below the likeliest one's, given all others: `parts` calls, in
    each of which every parts-th token that the sampler filled in, in random order, is hidden. Nothing happens to rows whose
    tokens are all the likeliest. It repairs what a sampler could not know when it drew; like all choices by confidence it leans to
    likely rows (drawn anew at random places, at temperature 1, it would be Gibbs sampling). Ours: one token a round."""
    mine, settled = state.mine, torch.zeros_like(x[:, 0], dtype=torch.bool)
    for _ in range(rounds):
        noise = state.uniform(x.shape[1:]).expand(x.shape).masked_fill(~mine, 2.0)       # rows that agree are asked the same
        part, lack = noise.argsort(1).argsort(1) % parts, torch.zeros(x.shape, device=x.device)
        for n in range(parts):
            lack += state.lack(x, mine & (part == n) & ~settled[:, None])
        settled = settled | (lack.amax(1) <= 0)
        if bool(settled.all()):
            return
        worst = keep_best(lack, mine, (~settled).long())
        x = state.fill(x.masked_fill(worst, state.mask_id), worst)
        yield x


SAMPLERS = {"ancestral": ancestral, "first-hitting": first_hitting, "confidence": confidence, "remdm": remdm,
            "entropy": entropy_bounded}


@dataclass
class State:
    """What samplers share: where tokens are missing, proposals of the network, noise, the count of evaluations."""
    predict: Callable            # (x (b, L), where (b, L)) -> logits (M, V)
    low: torch.Tensor            # (B, L) first id allowed at a position
    high: torch.Tensor           # (B, L) last id allowed, plus one
    condition: torch.Tensor      # (B, L) bool: masked in the unconditional branch of guidance
    mine: torch.Tensor           # (B, L) bool: tokens to fill in
    nfe: torch.Tensor            # (B,) evaluations made for each row
    generator: torch.Generator
    mask_id: int
    temperature: float
    top_k: int
    top_p: float
    guidance: float
    growing: bool

    def uniform(self, shape):
        """Uniforms in [0, 1), float64: on a device without it (mps) the caller keeps x on the CPU."""
        return torch.rand(shape, dtype=torch.float64, device=self.generator.device, generator=self.generator)

    def hidden(self, x, rows=slice(None)):
        return (x == self.mask_id) & self.mine[rows]

    def logits(self, x, where, rows):
        """One call for the chosen rows; with guidance both branches in that call, counted as two evaluations."""
        self.nfe += rows * (2 if self.guidance else 1)
        if not self.guidance:
            return self.predict(x[rows], where[rows])                                                      # (M, V)
        x, where, left = x[rows], where[rows], self.hidden(x[rows], rows).sum(1)
        alone = x.masked_fill(self.condition[rows], self.mask_id)
        conditional, unconditional = self.predict(torch.cat((x, alone)), torch.cat((where, where))).float().chunk(2)
        clean = 1 - left / self.mine[rows].sum(1) if self.growing else torch.ones_like(left)               # (b,)
        w = (self.guidance * clean)[:, None].expand(x.shape)[where][:, None]                               # (M, 1)
        return guide(conditional, unconditional, w)                                                        # (M, V)

    def allowed(self, x, where, rows):
        """`logits` over the ids that can come out anywhere, those of other positions -inf, and the first of these ids."""
        low, high = self.low[where], self.high[where]
        first, last = int(low.min()), int(high.max())
        return restrict(self.logits(x, where, rows)[:, first:last].float(), low - first, high - first), first     # (M, last - first)

    def propose(self, x, where):
        """Tokens drawn at the True positions of where (B, L), their log-probability and the entropy there.

        Only rows that ask go through the network. Probabilities and entropies are those before temperature, top-k
        and top-p. Returns (B, L) each; outside `where` the tokens are x's and the other two are 0.
        """
        tokens, logp = x.clone(), torch.zeros(x.shape, device=x.device)
        entropy, rows = torch.zeros_like(logp), where.any(1)
        if bool(rows.any()):
            logits, first = self.allowed(x, where, rows)              # so that noise is drawn for no more
            full = logits.log_softmax(-1)                                                                  # (M, V)
            if self.temperature > 0:
                draw = filter_logits(full, self.temperature, self.top_k, self.top_p).double()
                draw = (draw + gumbel(self.uniform(draw.shape))).argmax(-1)                                # (M,)
            else:
                draw = full.argmax(-1)
            tokens[where] = draw + first
            logp[where] = full.gather(-1, draw[:, None])[:, 0]
            entropy[where] = torch.special.entr(full.exp()).sum(-1)
        return tokens, logp, entropy

    def lack(self, x, where):
        """By how many nats the tokens at the True positions of where (B, L) are less likely than the likeliest there, once they
        are hidden: (B, L), 0 elsewhere."""
        out, rows = torch.zeros(x.shape, device=x.device), where.any(1)
        if bool(rows.any()):
            logits, first = self.allowed(x.masked_fill(where, self.mask_id), where, rows)                  # (M, V)
            out[where] = logits.amax(-1) - logits.gather(-1, x[where][:, None] - first)[:, 0]
        return out

    def fill(self, x, reveal):
        """x with the network's draws at `reveal`; no call when nothing is revealed."""
        return self.propose(x, reveal)[0] if bool(reveal.any()) else x


@torch.no_grad()
def sample(predict, x, low, high, mask_id, sampler="confidence", steps=16, grid="cosine", seed=0, temperature=1.0,
           top_k=0, top_p=1.0, guidance=0.0, growing=False, condition=None, hold=None, record=False, correct=0, **options):
    """Fill in every masked token of x.

    predict(x, where) -> logits (M, V) at the True positions of where, row by row. x (B, L): mask_id where a token is
    wanted, everything else is given and never changes; rows may have different numbers of masked tokens.
    low, high (B, L): each position's own ids. grid: name of a schedule, or mask rates falling from 1 to 0.
    condition (B, L) bool: what guidance leaves out in its unconditional branch. growing: guidance * (1 - t), with t
    the share still masked. hold (B, L) bool: masked tokens that stay so. record: keep x after every step. correct:
    rounds of `corrected` afterwards. Further options go to the sampler.
    Returns tokens (B, L), nfe (B,) evaluations made for each row, film (list of x).
    """
    rates = schedule(grid).mask_rate(np.linspace(1, 0, steps + 1)) if isinstance(grid, str) else np.array(grid, float)
    if len(rates) < 2 or (np.diff(rates) >= 0).any() or not np.allclose(rates[[0, -1]], (1, 0), rtol=0, atol=1e-9):
        raise ValueError("a sampling grid needs at least one step and mask rates falling strictly from 1 to 0")
    rates[0], rates[-1] = 1.0, 0.0                                    # cos(pi/2) is not quite 0
    condition, hold = (torch.zeros_like(x, dtype=torch.bool) if z is None else z for z in (condition, hold))
    state = State(predict, low, high, condition, (x == mask_id) & ~hold,
                  torch.zeros(len(x), dtype=torch.long, device=x.device),
                  torch.Generator(x.device).manual_seed(seed), mask_id, temperature, top_k, top_p, guidance, growing)
    film = [x]
    for stage in (lambda x: SAMPLERS[sampler](x, state, rates, **options), lambda x: corrected(x, state, correct)):
        for x in stage(x):
            if record:
                film.append(x)
    return x, state.nfe, film if record else []
