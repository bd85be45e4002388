"""The transformer: bidirectional, pre-norm, no time input, parameterised by Complete(d)P.

One network reads one stream of discrete tokens. It is told nothing about the noise level: the share of
masked tokens shows it (RADD, arXiv 2406.03736, eq. 12; the tri-modal paper, arXiv 2602.21472, does the same).
RMSNorm before each block, RMSNorm on queries and keys, rotary positions, SwiGLU, no biases, untied tables.
What the paper does not fix (head size, MLP ratio, the learned place table) is our choice.
"""
import contextlib
import functools
import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class ModelConfig:
    vocab: int                 # ids of the unified stream, specials included
    places: int                # rows of the learned table "where in its slot is this token"
    width: int = 192           # residual stream, a multiple of head_dim
    depth: int = 3             # blocks
    head_dim: int = 64         # Complete(d)P widens by adding heads of one size
    mlp_ratio: float = 2.75    # hidden width / width of SwiGLU: 8/3, rounded to multiples of 16
    base_width: int = 192      # the shape at which the hyper-parameters were tuned
    base_depth: int = 3
    alpha: float = 1.0         # depth exponent of Complete(d)P, in [1/2, 1]
    rope_base: float = 10000.0
    causal: bool = False       # True gives the autoregressive twin

    @property
    def m_N(self): return self.width / self.base_width       # noqa: E704  width ratio

    @property
    def m_L(self): return self.depth / self.base_depth       # noqa: E704  depth ratio


# Shapes. width/depth is 64 for toy and small, 128 (the paper's pilots) for pilot and 3b. The paper gives totals, not
# shapes or vocabularies: 140k ids make 2*140k*896 = 251M embedding parameters of the pilot's 320M (the paper: 240M).
PRESETS = {
    # small heads learn shapes sooner, below 32 the CPU compiler loses more; the step to the others' heads of 64 is none that
    # Complete(d)P knows: --shape '{"head_dim": 32}' keeps to it, at a lower rate on GPUs
    "toy":   dict(width=192, depth=3, head_dim=32),
    "small": dict(width=512, depth=8),
    "pilot": dict(width=896, depth=7),
    "3b":    dict(width=2816, depth=22),
}
PLAN_VOCAB = {"toy": 1024, "small": 4096, "pilot": 140_000, "3b": 140_000}


# ---------------------------------------------------------------------------------------------------------------------
# Complete(d)P, Mlodozeniec et al., arXiv 2512.22382, Table 1; every number is a ratio to the base shape.

def completep(group, m_N, m_L, alpha=1.0):
    """Factors of one parameter group for a model m_N times wider and m_L times deeper than the base.

    Returns dict(init_var, lr, eps, decay): multiply the base init variance, learning rate, AdamW eps and AdamW
    weight decay (PyTorch's, which is multiplied by lr) with them. The batch rule's factors come on top (rules.py).
    """
    table = {  #                 init_var        lr                         eps                    decay
        "embedding":            (1,              1,                         1 / m_N,               1),
        "hidden":               (1 / m_N,        m_L ** (alpha - 1) / m_N,  m_L ** -alpha / m_N,   m_N),
        "norm":                 (1,              m_L ** (alpha - 1),        m_L ** -alpha / m_N,   1),
        "qk_norm":              (1,              m_L ** (alpha - 1),        m_L ** -alpha,         1),
        "final_norm":           (1,              1,                         1,                     1),
        "unembedding":          (1 / m_N ** 2,   1 / m_N,                   1,                     m_N),
    }
    return dict(zip(("init_var", "lr", "eps", "decay"), table[group]))


# Per-group multipliers on the base values, tuned at the base shape (ours): learning rate, decay, initial std.
MULTIPLIERS = {  #      lr     decay   init_std
    "embedding":       (20.0,  0.0,    1.0),     # rows are rarely met: at the others' rate they would stay random
    "hidden":          (1.0,   1.0,    0.4),     # init_std in units of 1/sqrt(base fan-in)
    "norm":            (1.0,   0.0,    None),    # gains start at one
    "qk_norm":         (1.0,   0.0,    None),
    "final_norm":      (1.0,   0.0,    None),
    "unembedding":     (5.0,   0.2,    0.5),     # in units of 1/sqrt(base width)
}

# Optional factors on those by depth fraction, from the first block to the last, linear in between:
# {"hidden": {"lr": (1.0, 0.5), "init_std": (1.0, 2.0)}}. The per-module multipliers of Complete(d)P; none by default.
DEPTH_MULTIPLIERS = {}


def group_of(name):
    """Parameter name -> row of the Complete(d)P table. Raises KeyError for a name that fits no row."""
    rows = {"embed": "embedding", "place": "embedding", "unembed": "unembedding", "final_norm": "final_norm",
            "q_gain": "qk_norm", "k_gain": "qk_norm", "attn_norm": "norm", "mlp_norm": "norm",
            "qkv": "hidden", "out": "hidden", "gate_up": "hidden", "down": "hidden"}
    parts = [part for part in name.split(".") if part in rows]
    if len(parts) != 1:
        raise KeyError(f"parameter {name!r} belongs to no row of the Complete(d)P table, or to several")
    return rows[parts[0]]


def multipliers(name, depth):
    """(lr, decay, init std) multipliers of a parameter of a network of `depth` blocks: both tables together."""
    group = group_of(name)
    values = dict(zip(("lr", "decay", "init_std"), MULTIPLIERS[group]))
    if name.startswith("blocks."):
        fraction = int(name.split(".")[1]) / max(1, depth - 1)
        for key, (first, last) in DEPTH_MULTIPLIERS.get(group, {}).items():
            values[key] *= first + fraction * (last - first)
    return tuple(values.values())


def param_groups(model, lr, eps, weight_decay):
    """AdamW parameter groups that cover every parameter exactly once.

    lr, eps, weight_decay: base values, the batch rule already applied (rules.py's `batch_rule`). One group for each row
    of the table and, where DEPTH_MULTIPLIERS has one, each value of its multipliers.
    """
    config, groups = model.config, {}
    for name, parameter in model.named_parameters():
        groups.setdefault((group_of(name), *multipliers(name, config.depth)[:2]), []).append(parameter)
    out = []
    for (group, lr_mult, decay_mult), parameters in groups.items():
        factor = completep(group, config.m_N, config.m_L, config.alpha)
        out.append(dict(params=parameters, name=group, lr=lr * factor["lr"] * lr_mult, eps=eps * factor["eps"],
                        weight_decay=weight_decay * factor["decay"] * decay_mult))
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) for the hidden matrices: our choice, not the paper's, whose
# Complete(d)P speaks of AdamW. Its author's reason: AdamW's step on a matrix has a few large singular values and neglects the
# rest; here all singular values of a step are alike. What it gained us: experiments/README.md, third series.

STACKED = {"qkv": 3, "gate_up": 2}  # matrices that are several in one
QUINTICS = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))  # factors of x, x^3, x^5


def orthogonal(x, dtype=torch.float32):
    """Nearly the nearest orthogonal matrix to each matrix (its singular values set to one): x (n, a, b) -> (n, a, b).

    Newton-Schulz in three steps, each the odd quintic nearest to one on what the step before left of the interval [0.01, 1] (as in the
    Polar Express, arXiv 2505.16932): singular values above a hundredth of the norm end between 0.73 and 1.27. The norm is Schatten's
    of order 4, || x x^T ||_F^(1/2): a bound on the largest singular value several times tighter than Frobenius', from a product that
    the first step needs anyway. dtype: of the products and of what is returned; bfloat16 does (Jordan's choice).
    """
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)                                  # so that no square underflows
    A = x @ x.mT                                                                                   # (n, a, a)
    norm = A.norm(dim=(1, 2), keepdim=True, dtype=torch.float32) + 1e-7                            # Schatten's, squared
    A, x = (A / norm).to(dtype), (x / norm.sqrt()).to(dtype)
    for step, (first, third, fifth) in enumerate(QUINTICS):
        A = x @ x.mT if step else A
        B = torch.baddbmm(A, A, A, beta=third, alpha=fifth)                                        # (n, a, a)
        x = torch.baddbmm(x, B, x, beta=first)                                                     # (n, a, b)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, then steps of spectral norm lr * sqrt(max(1, rows / columns)), which keeps changes of activations of one
    size at any width: lr needs no width factor, only Complete(d)P's of depth. Decay as AdamW's: weight *= 1 - lr decay."""

    def __init__(self, groups, momentum=0.95, dtype=torch.float32):
        super().__init__(groups, dict(momentum=momentum))
        self.dtype = dtype                                            # of the products, not of weights and momenta

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            todo = {}                                                 # matrices of one shape go through one product
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(momentum, group["momentum"])      # Nesterov's
                parts = ahead.view(group["parts"], -1, ahead.shape[1])
                todo.setdefault(parts.shape, []).append((p, parts))
            for (n, rows, columns), entries in todo.items():
                made = orthogonal(torch.cat([parts for _, parts in entries]), dtype=self.dtype).split(n)
                for (p, _), update in zip(entries, made):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.reshape(p.shape), alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


OPTIMIZERS = ("muon", "adamw")


def optimizers(model, rule, name="adamw", dtype=torch.float32):
    """The optimizers of a training, each parameter in one of them exactly once. rule: what rules.py's `batch_rule` returns.

    adamw: one AdamW. muon: the hidden matrices by `Muon`, everything else as before; the rule's sqrt(kappa) and beta^kappa
    apply to it too (a normalised step, like Adam's), its decay is such that lr * decay is AdamW's. dtype: of Muon's products.
    """
    groups = param_groups(model, rule["lr"], rule["eps"], rule["weight_decay"])
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}: choose {', '.join(OPTIMIZERS)}")
    if name == "adamw":
        return [torch.optim.AdamW(groups, betas=(rule["beta1"], rule["beta2"]), fused=fused)]
    config, names, matrices = model.config, {p: n for n, p in model.named_parameters()}, []
    depth = config.m_L ** (config.alpha - 1)
    for group in (g for g in groups if g["name"] == "hidden"):
        for parts in sorted({1, *STACKED.values()}):
            of = [p for p in group["params"] if STACKED.get(names[p].split(".")[-2], 1) == parts]
            lr = rule["muon_lr"] * depth * multipliers(names[of[0]], config.depth)[0]
            decay = group["weight_decay"] * group["lr"] / lr
            matrices.append(dict(params=of, name="hidden", parts=parts, lr=lr, weight_decay=decay))
    return [torch.optim.AdamW([g for g in groups if g["name"] != "hidden"], betas=(rule["beta1"], rule["beta2"]), fused=fused),
            Muon(matrices, rule["momentum"], dtype)]


# ---------------------------------------------------------------------------------------------------------------------

def rope_table(length, head_dim, base, device):
    """cos and sin of rotary positions (arXiv 2104.09864), each (length, head_dim // 2), float32."""
    rates = base ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * rates            # (L, Dh/2)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn each pair (x1, x2) of a head by its position's angle. x: (..., Dh); cos, sin: its halves' -> same."""
    x1, x2 = x.chunk(2, dim=-1)                                                                    # (..., Dh/2)
    return torch.cat((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1)


torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for every new shape, up to a second each, and sampling has many shapes
LONG = 512  # tokens up to which a CPU is quicker without the fused kernel: its backward is up to ten times slower in bf16


def attention(q, k, v, allowed=None, causal=False):
    """softmax(q k^T / sqrt(Dh)) v. q, k, v: (B, H, L, Dh); allowed: (B, 1, L, L) bool, who may see whom, or None -> (B, H, L, Dh).

    Not on CUDA, for rows of up to LONG tokens, written out: scores in the products' dtype, their softmax in float32. (On mps the fused
    kernel of some versions is wrong, github.com/pytorch/pytorch/issues/163597.)"""
    if q.device.type == "cuda" or q.shape[2] > LONG:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal and allowed is None)
    scores = q @ k.mT * q.shape[-1] ** -0.5                                                        # (B, H, L, L)
    if causal and allowed is None:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, hidden = config.width, int(config.mlp_ratio * config.width)
        self.config = config
        self.attn_norm = nn.Parameter(torch.ones(D))
        self.qkv = nn.Linear(D, 3 * D, bias=False)
        self.q_gain = nn.Parameter(torch.ones(config.head_dim))
        self.k_gain = nn.Parameter(torch.ones(config.head_dim))
        self.out = nn.Linear(D, D, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(D))
        self.gate_up = nn.Linear(D, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, D, bias=False)

    def attention(self, x, cos, sin, rows):
        """x (T, D), the tokens of all groups of rows one after another; cos, sin (T, 1, 1, Dh/2) of their positions; rows: of every group its
        shape (B, L) and which pairs of tokens may see each other, (B, 1, L, L) bool or None for all. Returns (T, D)."""
        qkv = self.qkv(x).unflatten(1, (3, -1, self.config.head_dim))                              # (T, 3, H, Dh)
        qk = F.rms_norm(qkv[:, :2].float(), (self.config.head_dim,))                               # (T, 2, H, Dh)
        qk = rotate(qk * torch.stack((self.q_gain, self.k_gain))[:, None], cos, sin)               # (T, 2, H, Dh)
        qkv = torch.cat((qk.to(qkv.dtype), qkv[:, 2:]), 1)                                         # (T, 3, H, Dh)
        mixed = []
        for part, (shape, allowed) in zip(qkv.split([B * L for (B, L), _ in rows]), rows):         # rows of one length
            q, k, v = part.unflatten(0, shape).permute(2, 0, 3, 1, 4)                              # 3 x (B, H, L, Dh)
            y = attention(q, k, v, allowed, self.config.causal)                                    # (B, H, L, Dh)
            mixed.append(y.transpose(1, 2).flatten(2).flatten(0, 1))                               # (B L, D)
        return self.out(torch.cat(mixed))                                                          # (T, D)

    def mlp(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)                                                # (T, hidden)
        return self.down(F.silu(gate) * up)                                                        # (T, D)

    def forward(self, x, cos, sin, rows):
        scale = self.config.m_L ** -self.config.alpha          # keeps the sum over depth of one size
        x = x + scale * self.attention(F.rms_norm(x, x.shape[-1:], self.attn_norm), cos, sin, rows)
        x = x + scale * self.mlp(F.rms_norm(x, x.shape[-1:], self.mlp_norm))
        return x                                                                                   # (T, D)


class Transformer(nn.Module):
    def __init__(self, config, seed=0):
        """config: ModelConfig. seed fixes the initial weights without touching torch's global generator."""
        super().__init__()
        if config.width % config.head_dim:
            raise ValueError(f"width {config.width} is not a multiple of head_dim {config.head_dim}: change --shape")
        self.config = config
        with torch.random.fork_rng(devices=[]):  # torch's own initial values, replaced below, draw from the global state
            self.embed = nn.Embedding(config.vocab, config.width)
            self.place = nn.Embedding(config.places, config.width)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
            self.final_norm = nn.Parameter(torch.ones(config.width))
            self.unembed = nn.Linear(config.width, config.vocab, bias=False)
        if self.final_norm.device.type != "meta":
            self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed):
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            group = group_of(name)
            std = multipliers(name, self.config.depth)[2]
            if std is None:
                continue
            std *= math.sqrt(completep(group, self.config.m_N, self.config.m_L, self.config.alpha)["init_var"])
            if group != "embedding":  # 1/m_N is in the table, so the base's fan-in belongs here
                std /= math.sqrt(parameter.shape[1] / self.config.m_N)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    def trunk(self, *groups):
        """Everything below the head. groups: any number of (ids (B, L), place (B, L), doc (B, L) or None), each with a B and L of its
        own; doc numbers the documents of packed rows, None is one a row. Tokens attend within their own document only.

        All but attention works on single tokens, so the rows of all groups go through it as one list. Returns the normed
        hidden states of all tokens, (T, D), T the sum of all B L.
        """
        ids, place = (torch.cat([group[n].flatten() for group in groups]) for n in (0, 1))         # (T,)
        x, rows = self.embed(ids) + self.place(place), []                                          # (T, D)
        for ids, _, doc in groups:
            allowed = None if doc is None else (doc[:, :, None] == doc[:, None, :])[:, None]       # (B, 1, L, L)
            if allowed is not None and self.config.causal:
                allowed = allowed & torch.ones(allowed.shape[-2:], dtype=torch.bool, device=ids.device).tril()
            rows.append((ids.shape, allowed))
        cos, sin = rope_table(max(L for (_, L), _ in rows), self.config.head_dim, self.config.rope_base, x.device)
        cos, sin = (torch.cat([z[:L].repeat(B, 1) for (B, L), _ in rows])[:, None, None] for z in (cos, sin))  # (T, 1, 1, Dh/2)
        for block in self.blocks:
            x = block(x, cos, sin, rows)                                                           # (T, D)
        return F.rms_norm(x, x.shape[-1:], self.final_norm)                                        # (T, D)

    def forward(self, ids, place, doc=None, select=None):
        """Logits in float32: (B, L, V), or (M, V) for the M positions of the boolean `select` (B, L), row by row."""
        x = self.trunk((ids, place, doc))                                                          # (B L, D)
        return self.unembed(x.view(*ids.shape, -1) if select is None else x[select.flatten()]).float()


HEAD_LOGITS = 2 ** 28  # logits that are held at a time: 1 GiB in float32, five GPT-2 vocabularies of a thousand tokens


def autocast(device, dtype):
    """The context in which matrix products run in dtype."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


@functools.cache
def fast_dtype(device):
    """bfloat16 on CUDA devices that have it in hardware, and on CPUs that multiply matrices at least 1.3 times faster in it (measured
    here); float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu":
        return torch.float32
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(2048, 256, dtype=dtype), torch.ones(256, 768, dtype=dtype)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        best[dtype] = min(times)
    return torch.bfloat16 if best[torch.float32] > 1.3 * best[torch.bfloat16] else torch.float32


def count(model):
    """Parameters by group of the Complete(d)P table, plus `total` and `non_embedding`."""
    counts = {}
    for name, parameter in model.named_parameters():
        counts[group_of(name)] = counts.get(group_of(name), 0) + parameter.numel()
    total = sum(counts.values())
    return {**counts, "total": total, "non_embedding": total - counts["embedding"] - counts["unembedding"]}


def flops_per_token(config, length, head_share=1.0):
    """Training FLOPs a token: 6 per weight of blocks and head (forward 2, backward 4) plus attention's 12*D*L a layer.

    head_share: the share of positions that go through the head (only those that carry loss do). The convention of
    PaLM (arXiv 2204.02311, appendix B); embedding look-ups are free, tokenizers are left out as in the paper.
    """
    D, hidden = config.width, int(config.mlp_ratio * config.width)
    blocks = config.depth * (4 * D * D + 3 * D * hidden)
    attention = 12 * config.depth * D * length * (0.5 if config.causal else 1.0)
    return 6 * (blocks + head_share * config.vocab * D) + attention
