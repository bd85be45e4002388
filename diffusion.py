"""Masked diffusion: schedules, forward process, loss, bound, samplers. Tensors only.

At time t=0 all is clean, at t=1 all is masked; sampling goes from 1 to 0. At time t a token is
still clean with probability alpha(t), independently of all others. 1 - alpha(t) is the mask rate.
In shapes: B rows of L tokens, N documents in them, S columns, one a row of data.MEMBERS (a document
uses those of its own kind), M positions that somebody looks at, V ids.
Sources:
  MDLM    arXiv 2406.07524    MD4            arXiv 2406.04329    EB  arXiv 2505.24857
  LLaDA   arXiv 2502.09992    MaskGIT        arXiv 2202.04200
  ReMDM   arXiv 2503.00307    first-hitting  arXiv 2409.02908

Worked example: two tokens, uniform on {00, 11}, and the exact network. With one token masked it is
certain (0 nats), with both masked each costs ln 2. The bound is the mean over k = 1, 2 masked
tokens of (2 / k) * sum over masked -log p: (2 * 0 + 1 * 2 ln 2) / 2 = ln 2, the entropy of the
distribution. For an exact network the bound is tight. Revealing both tokens in one step gives 00,
01, 10, 11 with probability 1/4 each: total variation 1/2 from the truth. That is the factorisation
error. With K ancestral steps of equal size both tokens fall into the same step with probability
1/K, so the total variation is 1 / (2K). One token a step, chosen before it is drawn, makes none.
"""
import math
import re
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F

T_MIN = 1e-3  # times stay in [T_MIN, 1 - T_MIN]: with those near 0 the variance has no limit

# ------------------------------------------------------------------------------------------------
# Schedules: functions of float64 tensors.


@dataclass(frozen=True)
class Schedule:
    mask_rate: Callable  # t -> 1 - alpha; the difference itself would round small rates to 0
    slope: Callable      # t -> its derivative, -alpha'


SCHEDULES = {
    "linear": Schedule(mask_rate=lambda t: t, slope=torch.ones_like),
    "cosine": Schedule(
        mask_rate=lambda t: torch.cos(math.pi / 2 * (1 - t)),
        slope=lambda t: math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))),
}


def schedule(name):
    """A Schedule by name. poly:P is alpha = 1 - t^P (MD4, Table 4). ValueError for another name."""
    if name in SCHEDULES:
        return SCHEDULES[name]
    found = re.fullmatch(r"poly:(\d*\.?\d+)", name)
    p = float(found[1]) if found else 0.0
    if not 0.01 <= p <= 20:  # far outside, t^p would be 1 or 0 in float64
        raise ValueError(f"schedule {name!r}: choose {', '.join(SCHEDULES)} or poly:P, P from 0.01 "
                         "to 20")
    return Schedule(mask_rate=lambda t: t ** p, slope=lambda t: p * t ** (p - 1))


# ------------------------------------------------------------------------------------------------
# Forward process. Random numbers come in as arguments: a batch is a function of (seed, step).

NOISED, CLEAN, ABSENT = 0, 1, 2

# Roles of the two members of a pair. NOISED: masked at the rate of the time, with loss. CLEAN: a
# condition. ABSENT: all masked, without loss. first|second is the first member given the second: a
# picture given its caption. How often each mode is drawn is a setting.
PAIR_MODES = {
    "joint": (NOISED, NOISED),
    "first|second": (NOISED, CLEAN),
    "second|first": (CLEAN, NOISED),
    "first": (NOISED, ABSENT),
    "second": (ABSENT, NOISED),
}


def stratified_times(n, u):
    """n times, one in each n-th of [0, 1): (u + i / n) mod 1, u one uniform. (n,) float64."""
    return (u + torch.arange(n, dtype=torch.float64) / n) % 1.0


def noise_levels(t, roles, schedule, complement=False, unweighted=False):
    """Mask rate and loss weight of each member of each document: (N, S) both, float64.

    t: (N,) times. roles: (N, S). The weight is the bound's, -alpha' / mask rate (MDLM eq. 10, MD4
    eq. 5). complement: the levels of the second view, which hides what the first one shows
    (anti-masking): its mask rate is alpha. Each view alone is unbiased for the bound, but for what
    T_MIN cuts off. unweighted (S,) bool: all mask rates count the same for these members, MaskGIT's
    loss if the schedule is linear. That is no bound. The factor 2 gives it the bound's size where
    all tokens cost alike.
    """
    t = t[:, None].clamp(T_MIN, 1 - T_MIN)                                # (N, 1)
    rate = schedule.mask_rate(t)
    if complement:
        rate = 1 - rate
    slope = schedule.slope(t)
    weight = torch.where(torch.as_tensor(unweighted), 2 * slope, slope / rate)  # (N, S)
    noised = roles == NOISED
    absent = (roles == ABSENT).double()
    return torch.where(noised, rate, absent), noised * weight


def corrupt(ids, doc, member, rate, weight, u, mask_id):
    """The forward process: hide each token with the mask rate of its member in its document.

    ids (B, L): clean tokens. doc, member (B, L): indices into rate and weight (N, S); member is -1
    for tokens that are never hidden. u (B, L): uniforms; at the complement's rates 1 - u hides what
    u shows. Returns x_t (B, L); weight (B, L) float32, 0 where a token carries no loss; noised
    (B, L) bool, all tokens that could have been hidden with loss.
    """
    free = member >= 0
    at = (doc.clamp(min=0), member.clamp(min=0))
    rate = rate[at]                                                       # (B, L)
    weight = weight[at] * free                                            # (B, L)
    noised = weight > 0
    hidden = (u < rate) & free
    return ids.masked_fill(hidden, mask_id), (weight * hidden).float(), noised


# ------------------------------------------------------------------------------------------------
# The loss.


@dataclass
class Batch:
    """What one training step reads. B rows of L tokens, documents packed side by side."""
    x: torch.Tensor       # (B, L) what the network sees: x_t, or x0 for the autoregressive twin
    place: torch.Tensor   # (B, L) where in its member a token is
    doc: torch.Tensor     # (B, L) which document it belongs to
    target: torch.Tensor  # (B, L) the token to predict
    low: torch.Tensor     # (B, L) first id that may stand there
    high: torch.Tensor    # (B, L) last id, plus one
    member: torch.Tensor  # (B, L) index into data.MEMBERS
    weight: torch.Tensor  # (B, L) float32, 0: no loss here
    counts: torch.Tensor  # (S,) tokens of each member that could have carried loss, in all rows

    def rows(self, first, last):
        """Rows first to last - 1. The counts stay those of the whole batch: so parts add up."""
        parts = {name: value[first:last] for name, value in vars(self).items()}
        return Batch(**{**parts, "counts": self.counts})

    def split(self, size):
        """Parts of `size` rows; 0: the batch as one part."""
        size = size or len(self.x)
        return [self.rows(i, i + size) for i in range(0, len(self.x), size)]

    def to(self, device):
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def loss_terms(net, b):
    """Nats a token of each member of each kind, (S,). With the bound's weights and times each is
    that member's part of the bound, on average over the modes that were drawn.

    Only tokens that are hidden and carry loss go through the head. The sum is divided by all
    tokens that could have been hidden, not by those that were: else it is no bound.
    """
    where = b.weight > 0                                                  # (B, L)
    logits = net(b.x, b.place, b.doc, where)                              # (M, V)
    nll = token_nll(logits, b.target[where], b.low[where], b.high[where])  # (M,)
    total = nll.new_zeros(len(b.counts))
    total = total.index_add(0, b.member[where], b.weight[where] * nll)    # (S,)
    return total / b.counts.clamp(min=1)


def restrict(logits, low, high):
    """Logits (M, V) with -inf outside each position's own ids [low, high), (M,) each."""
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return logits.masked_fill((ids < low[:, None]) | (ids >= high[:, None]), -torch.inf)


def token_nll(logits, target, low, high):
    """-log p(target) in nats over each position's own ids: (M, V), (M,) -> (M,) float32."""
    return F.cross_entropy(restrict(logits.float(), low, high), target, reduction="none")


# ------------------------------------------------------------------------------------------------
# The bound, for evaluation: masks of exactly k tokens. Its variance is lower than with times.


def highest(score, among, count):
    """The count (B,) highest scores of each row, of those `among`: (B, L) bool."""
    rank = score.masked_fill(~among, -torch.inf).argsort(1, descending=True).argsort(1)
    return among & (rank < count[:, None])


@torch.no_grad()
def bound(predict, ids, noised, low, high, mask_id, rng, rounds=1, copies=1):
    """Estimate the bound on -log p(noised tokens | the others) in nats a row: (B,) float64.

    predict(x, where) -> logits (M, V) at the True positions of where (B, L). ids (B, L): clean.
    noised (B, L) bool. low, high (B, L): each position's ids. rng: numpy Generator. copies: so many
    rows in succession, G groups in all, get the same masks.
    Each round masks k of a row's n noised tokens, k uniform on 1..n, with weight n / k (LLaDA
    eq. 6).
    """
    groups = len(ids) // copies
    n = noised.sum(1)                                                     # (B,)
    total = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
    for _ in range(rounds):
        u = torch.from_numpy(rng.random((groups, ids.shape[1])))          # (G, L)
        order = torch.from_numpy(rng.permutation(groups))  # strata change from round to round
        share = stratified_times(groups, rng.random())[order]             # (G,)
        u = u.repeat_interleave(copies, 0).to(ids.device)                 # (B, L)
        share = share.repeat_interleave(copies).to(ids.device)            # (B,)
        k = (share * n).long().clamp(max=n - 1) + 1                       # (B,), uniform on 1..n
        hidden = highest(-u, noised, k)  # (B, L), k of them at random
        x = ids.masked_fill(hidden, mask_id)
        nll = token_nll(predict(x, hidden), ids[hidden], low[hidden], high[hidden])  # (M,)
        row = hidden.nonzero()[:, 0]                                      # (M,)
        total.index_add_(0, row, nll.double() * (n.double() / k)[row])
    return total / rounds


# ------------------------------------------------------------------------------------------------
# Proposals of the network.


@dataclass
class Proposer:
    """What the network says of masked tokens, and draws from it."""
    predict: Callable          # (x (b, L), where (b, L)) -> logits (M, V)
    low: torch.Tensor          # (B, L) each position's ids
    high: torch.Tensor
    mask_id: int
    condition: torch.Tensor    # (B, L) bool: hidden in the unconditional branch
    guidance: float            # 0: none
    generator: torch.Generator
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        # (B,) evaluations of the network, of each row
        self.nfe = torch.zeros(len(self.low), dtype=torch.long, device=self.low.device)

    def logits(self, x, where):
        """Logits (M, V) float32 at the True positions of where (B, L), own ids only, guidance mixed
        in. Rows without any are not asked and cost no evaluation."""
        rows = where.any(1)                                               # (B,)
        self.nfe += rows
        logits = self.predict(x[rows], where[rows]).float()               # (M, V)
        if self.guidance:  # classifier-free: l_c + w (l_c - l_u) (UniDisc, 2503.20853)
            self.nfe += rows
            alone = x.masked_fill(self.condition, self.mask_id)
            unconditional = self.predict(alone[rows], where[rows]).float()
            logits = logits + self.guidance * (logits - unconditional)
        return restrict(logits, self.low[where], self.high[where])

    def propose(self, x, where):
        """Draw a token at every True position of where (B, L).

        Returns tokens, log-probability and entropy, (B, L) each; x, 0 and 0 outside where. The
        last two are with guidance, before temperature, top-k and top-p.
        """
        tokens = x.clone()
        logp = torch.zeros(x.shape, device=x.device)
        entropy = torch.zeros_like(logp)
        if not where.any():
            return tokens, logp, entropy
        full = self.logits(x, where).log_softmax(-1)                      # (M, V)
        if self.temperature > 1e-6:  # below, the likeliest always wins
            scaled = filter_logits(full.double() / self.temperature, self.top_k, self.top_p)
            chosen = (scaled + gumbel(scaled.shape, self.generator)).argmax(-1)  # (M,)
        else:
            chosen = full.argmax(-1)
        tokens[where] = chosen
        logp[where] = full.gather(-1, chosen[:, None])[:, 0]
        entropy[where] = torch.special.entr(full.exp()).sum(-1)
        return tokens, logp, entropy


def uniform(shape, generator):
    """Uniforms in [0, 1), float64."""
    return torch.rand(shape, dtype=torch.float64, device=generator.device, generator=generator)


def gumbel(shape, generator):
    """Gumbel noise, float64. In float32 it ends at 16.6 instead of 36.7 nats, which quietly lowers
    the temperature (arXiv 2409.02908, section 5.2)."""
    u = uniform(shape, generator).clamp(min=torch.finfo(torch.float64).tiny)
    return -torch.log(-torch.log(u))


def filter_logits(logits, top_k=0, top_p=1.0):
    """The k best and their equals, then the smallest set with probability top_p; (M, V)."""
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]                 # (M, 1)
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        p = ordered.softmax(-1)
        drop = p.cumsum(-1) - p >= top_p  # the mass before it is enough
        drop[:, 0] = False
        drop = torch.zeros_like(drop).scatter(-1, order, drop)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits


# ------------------------------------------------------------------------------------------------
# Samplers. Each proposes tokens and keeps some. They differ in which (remdm masks some again).


@dataclass
class Step:
    """What a sampler may look at in a step."""
    hidden: torch.Tensor   # (B, L) bool: still masked
    missing: torch.Tensor  # (B, L) bool: masked at the start
    rate: float            # m_t, the mask rate before the step from t to s
    next_rate: float       # m_s, after it; alpha_t = 1 - m_t
    remaining: float       # share of the steps that is left after it
    generator: torch.Generator
    logp: torch.Tensor = None     # (B, L) of the proposals, where it needs them
    entropy: torch.Tensor = None  # (B, L) of the network there, nats

    def uniform(self):
        return uniform(self.hidden.shape, self.generator)


def ancestral(s):
    """Each masked token is revealed with probability (m_t - m_s) / m_t (MDLM eq. 7). Exact in the
    limit of many steps; tokens of one step are independent."""
    return s.hidden & (s.uniform() < (s.rate - s.next_rate) / s.rate)


def first_hitting(s):
    """One token a call, uniformly chosen (2409.02908, Alg. 1): the network sees no time, so only
    the order matters. Exact at temperature 1 without guidance; as many calls as tokens."""
    return highest(s.uniform(), s.hidden, s.hidden.any(1).long())


def confidence(s, choice_temperature=1.0):
    """After MaskGIT: keep the surest draws; floor(m_s n) of n tokens stay masked. The score is
    log p + choice_temperature * remaining * Gumbel.

    Biased even for an exact network and one token a step, since unlikely proposals are put back
    and drawn anew: short answers and plain colours come first, and diversity narrows.
    """
    left = (s.missing.sum(1).double() * s.next_rate + 1e-9).floor().long()  # (B,)
    count = (s.hidden.sum(1) - left).clamp(min=0)                         # (B,)
    noise = gumbel(s.hidden.shape, s.generator)
    return highest(s.logp + choice_temperature * s.remaining * noise, s.hidden, count)


def entropy_bounded(s, budget=0.5, block=0):
    """EB sampler (2505.24857, Alg. 1): the surest tokens while the sum of their entropies, less
    the largest one, is at most `budget` nats; at least one.

    The sum bounds the error of drawing them independently, so the number of calls follows the
    difficulty. The order is settled before anything is drawn: budget 0 is exact at temperature 1
    without guidance. block: only among the leftmost so many masked tokens (1: left to right).
    """
    hidden = s.hidden
    if block:
        hidden = hidden & (hidden.cumsum(1) <= block)
    ordered, order = s.entropy.masked_fill(~hidden, torch.inf).sort(1)    # (B, L)
    # the largest entropy of a sorted prefix is its last: "sum less largest" is the sum before it
    before = F.pad(ordered.cumsum(1)[:, :-1], (1, 0))                     # (B, L)
    keep = torch.zeros_like(hidden).scatter(1, order, before <= budget)
    return keep & hidden


def remdm_sigma(s, eta):
    """Probability of masking a revealed token again: min(eta, sigma_max), ReMDM's "cap"."""
    if s.rate == 1:
        return eta
    return min(eta, s.next_rate / (1 - s.rate))


def remdm(s, eta=0.1):
    """ReMDM (2503.00307, eq. 6-8): a masked token is revealed with probability
    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), since revealed ones are masked again. Those of
    one step are drawn anew independently, so with a fixed eta more steps do not make it exact."""
    sigma = remdm_sigma(s, eta)
    p = (s.rate - s.next_rate + sigma * (1 - s.rate)) / s.rate  # rounds less
    return s.hidden & (s.uniform() < p)


def remdm_again(s, eta=0.1):
    """The revealed tokens that ReMDM masks again."""
    return s.missing & ~s.hidden & (s.uniform() < remdm_sigma(s, eta))


@dataclass(frozen=True)
class Sampler:
    choose: Callable        # Step -> (B, L) bool: which tokens are revealed
    options: tuple          # settings that not all samplers have
    by_rate: bool = False   # it walks falling mask rates; else it goes on until nothing is masked
    needs_proposals: bool = False  # for all masked tokens, before it chooses
    mask_again: Callable = None    # Step -> (B, L) bool: which revealed tokens are masked again


SAMPLERS = {
    "ancestral": Sampler(ancestral, ("steps", "grid"), by_rate=True),
    "first-hitting": Sampler(first_hitting, ()),
    "confidence": Sampler(confidence, ("steps", "grid", "choice_temperature"), by_rate=True,
                          needs_proposals=True),
    "entropy": Sampler(entropy_bounded, ("budget", "block"), needs_proposals=True),
    "remdm": Sampler(remdm, ("steps", "grid", "eta"), by_rate=True, mask_again=remdm_again),
}


def mask_rates(grid, steps):
    """Mask rates of a sampling grid, steps + 1 floats from 1 to 0. grid: a schedule's name."""
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    rates = schedule(grid).mask_rate(t).tolist()
    return [1.0, *rates[1:-1], 0.0]  # cos(pi / 2) is not quite 0


@torch.no_grad()
def sample(predict, x, low, high, mask_id, sampler="confidence", steps=16, grid="cosine", seed=0,
           temperature=1.0, top_k=0, top_p=1.0, guidance=0.0, condition=None, missing=None,
           correct=0, record=False, **options):
    """Fill in masked tokens. Returns tokens (B, L), evaluations nfe (B,), film (list of x).

    predict(x, where) -> logits (M, V) at the True positions of where. x (B, L): mask_id where a
    token is wanted; rows may have different numbers of them. low, high (B, L): each position's
    ids. steps, grid: of samplers that walk a grid. condition (B, L) bool: what guidance hides in
    its unconditional branch. missing (B, L) bool: which masked tokens to fill in, all by default.
    correct: rounds of `repair` afterwards. record: keep x after every step. options: the sampler's.
    """
    chooser = SAMPLERS[sampler]
    generator = torch.Generator(x.device).manual_seed(seed)
    proposer = Proposer(predict, low, high, mask_id, condition, guidance, generator, temperature,
                        top_k, top_p)
    if missing is None:
        missing = x == mask_id
    if chooser.by_rate:
        rates = mask_rates(grid, steps)
    else:  # as many steps as tokens, at most; nobody looks at their rates
        rates = [0.0] * (1 + int(missing.sum(1).max()))
    film = [x]
    for k in range(len(rates) - 1):
        hidden = missing & (x == mask_id)
        if not chooser.by_rate and not hidden.any():
            break
        remaining = 1 - (k + 1) / (len(rates) - 1)
        s = Step(hidden, missing, rates[k], rates[k + 1], remaining, generator)
        if chooser.needs_proposals:
            tokens, s.logp, s.entropy = proposer.propose(x, hidden)
            reveal = chooser.choose(s, **options)
        else:  # then nothing is asked where nothing is revealed (MDLM's cache)
            reveal = chooser.choose(s, **options)
            tokens, _, _ = proposer.propose(x, reveal)
        x = torch.where(reveal, tokens, x)
        if chooser.mask_again:
            x = x.masked_fill(chooser.mask_again(s, **options), mask_id)
        film.append(x)
    for x in repair(proposer, x, missing, correct):
        film.append(x)
    return x, proposer.nfe, (film if record else [])


def repair(proposer, x, missing, rounds):
    """Repair finished rows: hide the worst token, draw it again (after arXiv 2407.21243).

    Yields x after each round. The worst token is the one furthest below the likeliest token at its
    place, given all the others. To find it, the network is asked `parts` times, each time with
    another part of the row hidden. Rows whose tokens are all the likeliest stay as they are. One
    token a round is our choice. It leans to likely rows, as all choices by confidence do.
    """
    parts = 8
    settled = torch.zeros_like(missing[:, 0])                             # (B,)
    for _ in range(rounds):
        # the same places in all rows, so that rows that agree are asked the same
        order = uniform(x.shape[1:], proposer.generator).expand(x.shape)
        order = order.masked_fill(~missing, 2.0).argsort(1).argsort(1)    # (B, L)
        lack = torch.zeros(x.shape, device=x.device)
        for part in range(parts):
            where = missing & (order % parts == part) & ~settled[:, None]
            if where.any():
                logits = proposer.logits(x.masked_fill(where, proposer.mask_id), where)  # (M, V)
                own = logits.gather(-1, x[where][:, None])[:, 0]          # (M,)
                lack[where] = logits.amax(-1) - own
        settled = settled | (lack.amax(1) <= 0)
        if settled.all():
            return
        worst = highest(lack, missing, (~settled).long())
        x, _, _ = proposer.propose(x.masked_fill(worst, proposer.mask_id), worst)
        yield x


def main():
    """Show all samplers on a distribution that is known exactly."""
    n = 4
    codes = torch.arange(2 ** n)[:, None] >> torch.arange(n) & 1          # all words of n bits
    even = codes.sum(1) % 2 == 0
    words = codes[even]                                                   # (8, 4)
    mask_id = 2

    def predict(x, where):  # the exact posterior of each masked token
        fits = ((x[:, None] == words) | (x[:, None] == mask_id)).all(-1).double()  # (b, 8)
        ones = fits @ words.double() / fits.sum(1, keepdim=True)          # (b, 4)
        return torch.stack((1 - ones, ones, torch.zeros_like(ones)), -1).log()[where]

    ids = words.repeat(500, 1)
    low = torch.zeros_like(ids)
    noised = torch.ones_like(ids, dtype=torch.bool)
    nats = bound(predict, ids, noised, low, low + 2, mask_id, np.random.default_rng(0))
    print(f"{n} bits, an even number of ones: entropy {math.log(len(words)):.3f} nats, "
          f"bound {nats.mean():.3f} from {len(ids)} masks")
    low = torch.zeros(20_000, n, dtype=torch.long)
    x = torch.full_like(low, mask_id)
    print("total variation between samples and truth (20,000 samples: about 0.01 is chance)")
    truth = even / even.sum()
    for name, sampler in SAMPLERS.items():
        errors = []
        for steps in (1, 2, 4) if sampler.by_rate else (n,):
            made, nfe, _ = sample(predict, x, low, low + 2, mask_id, name, steps, "linear")
            count = torch.bincount((made * 2 ** torch.arange(n)).sum(1), minlength=2 ** n)
            error = (count / len(x) - truth).abs().sum() / 2
            errors.append(f"{nfe.float().mean():.1f} calls {error:.3f}")
        print(f"{name:15}", ", ".join(errors))


if __name__ == "__main__":
    main()
