"""The transformer, its parameterisation by Complete(d)P, and its optimizers.

One bidirectional network reads one stream of discrete tokens. It is told nothing about the noise
level: the share of masked tokens shows it (RADD, arXiv 2406.03736, theorem 1; the tri-modal paper,
arXiv 2602.21472, has no time input either). Not known of the paper and our choice: RMSNorm before
attention and MLP and on queries and keys, rotary positions, SwiGLU, no biases, untied tables, head
size, MLP ratio, the table of places.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class ModelConfig:
    vocab: int                 # ids of the stream, specials included
    places: int                # rows of the table "where in its member is this token"
    width: int = 192           # of the residual stream, a multiple of head_dim
    depth: int = 3             # blocks
    head_dim: int = 64         # even; "tune once" holds for more heads, not for larger ones
    mlp_ratio: float = 2.75    # hidden width of SwiGLU / width: near 8/3
    base_width: int = 192      # the shape at which the settings were tuned
    base_depth: int = 3
    alpha: float = 1.0         # depth exponent of Complete(d)P, in [1/2, 1]
    rope_base: float = 10000.0
    causal: bool = False       # True: the autoregressive twin

    def __post_init__(self):
        whole = all(type(n) is int and n > 0 for n in (self.width, self.depth, self.head_dim))
        if not whole or self.width % self.head_dim or self.head_dim % 2:
            raise ValueError(f"width {self.width}, depth {self.depth}, head_dim {self.head_dim}: "
                             "whole numbers above 0, the width a multiple of head_dim, that even")
        if self.mlp_ratio * self.width < 1:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} leaves no hidden units")

    @property
    def width_ratio(self):
        return self.width / self.base_width

    @property
    def depth_ratio(self):
        return self.depth / self.base_depth


# width / depth is 128 for the paper's pilots (second-hand) and here for pilot and 3b. Known are the
# paper's totals (3B; second-hand 320M), not its shapes. Heads of 32 learn what pictures show in
# fewer steps. Larger presets have 64, a change on which Complete(d)P says nothing.
PRESETS = {
    "toy": dict(width=192, depth=3, head_dim=32),
    "small": dict(width=512, depth=8),
    "pilot": dict(width=896, depth=7),
    "3b": dict(width=2816, depth=22),
}

# ------------------------------------------------------------------------------------------------
# Complete(d)P (Mlodozeniec et al., arXiv 2512.22382, Table 1).


def completep(group, m_N, m_L, alpha=1.0):
    """Factors on the base settings of one parameter group: dict(init_var, lr, eps, decay).

    m_N, m_L: how many times wider and deeper than the base the network is. eps and decay are
    AdamW's in PyTorch, where the decay is multiplied by lr. The batch rule comes on top (train.py).
    """
    depth_lr = m_L ** (alpha - 1)
    depth_eps = m_L ** -alpha
    table = {  #     init_var       lr              eps              decay
        "embedding":   (1,             1,              1 / m_N,         1),
        "hidden":      (1 / m_N,       depth_lr / m_N, depth_eps / m_N, m_N),
        "norm":        (1,             depth_lr,       depth_eps / m_N, 1),
        "qk_norm":     (1,             depth_lr,       depth_eps,       1),
        "final_norm":  (1,             1,              1,               1),
        "unembedding": (1 / m_N ** 2,  1 / m_N,        1,               m_N),
    }
    return dict(zip(("init_var", "lr", "eps", "decay"), table[group]))


# Multipliers on the base settings, tuned at the base shape (ours): learning rate, decay, and the
# initial values' standard deviation: the embeddings' as it is, others' over sqrt(base fan-in).
MULTIPLIERS = {  #  lr    decay  init_std
    "embedding":   (20.0, 0.0,   1.0),   # a row is rarely met: at 1 it would stay random
    "hidden":      (1.0,  1.0,   0.4),
    "norm":        (1.0,  0.0,   None),  # None: as its constructor made it, of ones or zeros
    "qk_norm":     (1.0,  0.0,   None),
    "final_norm":  (1.0,  0.0,   None),
    "unembedding": (5.0,  0.2,   0.5),
}

GROUPS = {  # last part of a parameter's name (without .weight) -> row of the tables
    "embed": "embedding", "place": "embedding", "unembed": "unembedding",
    "final_norm": "final_norm", "attn_norm": "norm", "mlp_norm": "norm",
    "q_gain": "qk_norm", "k_gain": "qk_norm",
    "query": "hidden", "key": "hidden", "value": "hidden", "out": "hidden",
    "gate": "hidden", "up": "hidden", "down": "hidden",
}


def group_of(name):
    """Parameter name -> row of the Complete(d)P table. ValueError for a name that fits none."""
    last = name.removesuffix(".weight").split(".")[-1]
    if last not in GROUPS:
        raise ValueError(f"the parameter {name} has no row in GROUPS of model.py")
    return GROUPS[last]


def param_groups(model, lr, eps, weight_decay):
    """AdamW groups, one a row of the table; every parameter is in exactly one.

    lr, eps, weight_decay: base values to which the batch rule was applied.
    """
    config = model.config
    members = {}
    for name, parameter in model.named_parameters():
        members.setdefault(group_of(name), []).append(parameter)
    groups = []
    for group, parameters in members.items():
        factor = completep(group, config.width_ratio, config.depth_ratio, config.alpha)
        lr_multiplier, decay_multiplier, _ = MULTIPLIERS[group]
        groups.append(dict(
            name=group,
            params=parameters,
            lr=lr * factor["lr"] * lr_multiplier,
            eps=eps * factor["eps"],
            weight_decay=weight_decay * factor["decay"] * decay_multiplier,
        ))
    return groups


# ------------------------------------------------------------------------------------------------
# Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) for the hidden matrices. Our choice:
# Complete(d)P and, by second-hand accounts, the paper's batch rule speak of AdamW.

# Three odd quintics a x + b x^3 + c x^5. Each brings what the one before leaves of [0.01, 1] as
# near to 1 as a quintic can (minimax, as in the Polar Express, arXiv 2505.16932).
QUINTICS = (
    (8.0934, -23.6204, 17.4462),
    (3.6366, -2.7219, 0.5365),
    (2.6613, -1.9772, 0.4526),
)


def orthogonal(x, dtype=torch.float32):
    """Nearly the nearest orthogonal matrices: all singular values become about one.

    x: (n, a, b). dtype: of the products and of the result. Singular values above a hundredth of
    the norm end between 0.72 and 1.28. The norm is Schatten's of order 4, ||x x^T||_F^(1/2): it
    bounds the largest singular value more tightly than Frobenius'.
    """
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # so that no square underflows
    x = x.to(dtype)
    gram = x @ x.mT                                                       # (n, a, a)
    squared = gram.norm(dim=(1, 2), keepdim=True, dtype=torch.float32) + 1e-7
    x = (x / (1.01 * squared.sqrt())).to(dtype)  # a value rounded to above 1 would explode
    for a, b, c in QUINTICS:
        gram = x @ x.mT                                                   # (n, a, a)
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)         # (n, a, a)
        x = torch.baddbmm(x, factor, x, beta=a)                           # (n, a, b)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, then a step of spectral norm lr * sqrt(max(1, rows / columns)).

    Such a step changes activations by the same amount at any width, so lr needs no width factor.
    Decay is AdamW's: weight *= 1 - lr * decay. dtype: of the products in `orthogonal`.
    """

    def __init__(self, groups, momentum=0.95, dtype=torch.float32):
        super().__init__(groups, dict(momentum=momentum))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}  # matrices of one shape go through one product
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for (rows, columns), matrices in by_shape.items():
                ahead = torch.stack([self.look_ahead(p, group["momentum"]) for p in matrices])
                lr = group["lr"] * math.sqrt(max(1, rows / columns))
                for p, update in zip(matrices, orthogonal(ahead, self.dtype)):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-lr)

    def look_ahead(self, p, beta):
        """Nesterov's momentum of p's gradient."""
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        momentum = state["momentum"]
        momentum.lerp_(p.grad, 1 - beta)
        return p.grad.lerp(momentum, beta)


def make_optimizers(model, rule, name="muon", dtype=torch.float32):
    """The optimizers of a training; every parameter is in exactly one.

    rule: settings from train.py's `batch_rule`. adamw: one AdamW. muon: the hidden matrices by
    Muon, the rest by AdamW. Muon's decay is such that lr * decay equals AdamW's.
    """
    groups = param_groups(model, rule["lr"], rule["eps"], rule["weight_decay"])
    optimizers = []
    if name == "muon":
        hidden = next(g for g in groups if g["name"] == "hidden")
        groups.remove(hidden)
        config = model.config
        lr_multiplier, _, _ = MULTIPLIERS["hidden"]
        lr = rule["muon_lr"] * lr_multiplier * config.depth_ratio ** (config.alpha - 1)
        decay = hidden["weight_decay"] * hidden["lr"] / lr
        matrices = dict(name="hidden", params=hidden["params"], lr=lr, weight_decay=decay)
        optimizers.append(Muon([matrices], rule["momentum"], dtype))
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    betas = (rule["beta1"], rule["beta2"])
    optimizers.append(torch.optim.AdamW(groups, betas=betas, fused=fused))
    return optimizers


# ------------------------------------------------------------------------------------------------
# The network.

LONG = 512  # tokens up to which a CPU is faster without the fused kernel
# cuDNN's attention plans anew for each shape, and sampling has many. Its gradient may be NaN under
# a mask (pytorch issue 196678).
torch.backends.cuda.enable_cudnn_sdp(False)


def rope_table(length, head_dim, base, device):
    """cos and sin of rotary positions (arXiv 2104.09864): (length, head_dim / 2) each."""
    steps = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32)
    rates = base ** (-steps / head_dim)                                   # (Dh/2,)
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angles = positions[:, None] * rates                                   # (L, Dh/2)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn each pair (x1, x2) of a head by its position's angle. x: (..., L, Dh)."""
    x1, x2 = x.chunk(2, dim=-1)                                           # (..., L, Dh/2)
    return torch.cat((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1)


def attention(q, k, v, allowed):
    """softmax(q k^T / sqrt(Dh)) v. q, k, v: (B, H, L, Dh); allowed: (B, 1, L, L) bool.

    Short rows on a CPU are written out: there the fused kernel's backward is up to ten times
    slower in bfloat16. So are all on mps: some versions of it are wrong (pytorch issue 163597).
    """
    long = q.device.type == "cpu" and q.shape[2] > LONG
    if q.device.type == "cuda" or long:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    scores = q @ k.mT * q.shape[-1] ** -0.5                               # (B, H, L, L)
    scores = scores.masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        D = config.width
        hidden = int(config.mlp_ratio * D)
        self.head_dim = config.head_dim
        self.scale = config.depth_ratio ** -config.alpha  # the sum over depth keeps its size
        self.attn_norm = nn.Parameter(torch.ones(D))
        self.query = nn.Linear(D, D, bias=False)
        self.key = nn.Linear(D, D, bias=False)
        self.value = nn.Linear(D, D, bias=False)
        self.q_gain = nn.Parameter(torch.ones(config.head_dim))
        self.k_gain = nn.Parameter(torch.ones(config.head_dim))
        self.out = nn.Linear(D, D, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(D))
        self.gate = nn.Linear(D, hidden, bias=False)
        self.up = nn.Linear(D, hidden, bias=False)
        self.down = nn.Linear(hidden, D, bias=False)

    def heads(self, x):
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)       # (B, H, L, Dh)

    def mix(self, x, cos, sin, allowed):
        q = F.rms_norm(self.heads(self.query(x)).float(), (self.head_dim,), self.q_gain)
        k = F.rms_norm(self.heads(self.key(x)).float(), (self.head_dim,), self.k_gain)
        v = self.heads(self.value(x))                                     # (B, H, L, Dh)
        q = rotate(q, cos, sin).to(v.dtype)
        k = rotate(k, cos, sin).to(v.dtype)
        y = attention(q, k, v, allowed)                                   # (B, H, L, Dh)
        return self.out(y.transpose(1, 2).flatten(2))                     # (B, L, D)

    def mlp(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))               # (B, L, D)

    def forward(self, x, cos, sin, allowed):
        normed = F.rms_norm(x, x.shape[-1:], self.attn_norm)
        x = x + self.scale * self.mix(normed, cos, sin, allowed)
        normed = F.rms_norm(x, x.shape[-1:], self.mlp_norm)
        return x + self.scale * self.mlp(normed)                          # (B, L, D)


class Transformer(nn.Module):
    def __init__(self, config, seed=0):
        """seed fixes the initial weights without touching torch's global generator."""
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):  # torch's own initial values are replaced below
            self.embed = nn.Embedding(config.vocab, config.width)
            self.place = nn.Embedding(config.places, config.width)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
            self.final_norm = nn.Parameter(torch.ones(config.width))
            self.unembed = nn.Linear(config.width, config.vocab, bias=False)
        if self.final_norm.device.type != "meta":
            self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed):
        config = self.config
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            group = group_of(name)
            std = MULTIPLIERS[group][2]
            if std is None:
                continue
            factor = completep(group, config.width_ratio, config.depth_ratio, config.alpha)
            std *= math.sqrt(factor["init_var"])
            if group != "embedding":  # 1/m_N is in the table, so the base's fan-in belongs here
                std /= math.sqrt(parameter.shape[1] / config.width_ratio)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    def trunk(self, ids, place, doc):
        """All below the head. ids, place, doc: (B, L) -> hidden states (B, L, D).

        doc numbers the documents of packed rows; a token attends to its own document only.
        """
        config = self.config
        allowed = (doc[:, :, None] == doc[:, None, :])[:, None]           # (B, 1, L, L)
        if config.causal:
            allowed = allowed.tril()
        # positions are columns of the row: between tokens of a document only differences matter
        cos, sin = rope_table(ids.shape[1], config.head_dim, config.rope_base, ids.device)
        x = self.embed(ids) + self.place(place)                           # (B, L, D)
        for block in self.blocks:
            x = block(x, cos, sin, allowed)                               # (B, L, D)
        return F.rms_norm(x, x.shape[-1:], self.final_norm)               # (B, L, D)

    def forward(self, ids, place, doc, where):
        """Logits at the M True positions of where, row by row. All inputs (B, L) -> (M, V) float32.

        The head is the largest product: it is taken only where somebody looks at it.
        """
        hidden = self.trunk(ids, place, doc)[where]                       # (M, D)
        return self.unembed(hidden).float()                               # (M, V)


def count_parameters(model):
    """Parameters by row of the Complete(d)P table, and their total."""
    counts = {}
    for name, parameter in model.named_parameters():
        group = group_of(name)
        counts[group] = counts.get(group, 0) + parameter.numel()
    return {**counts, "total": sum(counts.values())}


def main():
    """Show the network at the base shape, and what Complete(d)P does to one twice as large."""
    with torch.device("meta"):
        net = Transformer(ModelConfig(vocab=1673, places=200, **PRESETS["toy"]))
    for group, number in count_parameters(net).items():
        print(f"{group:12} {number:10,} parameters")
    print("\ntwice as wide and deep: factors on the settings of the base shape")
    print(f"{'':12} {'init std':>9} {'lr':>7} {'eps':>7} {'decay':>7}")
    for group in MULTIPLIERS:
        f = completep(group, 2, 2)
        print(f"{group:12} {f['init_var'] ** 0.5:9.3f} {f['lr']:7.3f} {f['eps']:7.3f} "
              f"{f['decay']:7.3f}")


if __name__ == "__main__":
    main()
