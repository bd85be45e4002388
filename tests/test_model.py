"""The network against a second implementation, Complete(d)P cell by cell, Muon in float64."""
import numpy as np
import pytest
import torch

import model as models


def tiny(**changes):
    shape = dict(vocab=40, places=30, width=32, depth=2, head_dim=16, base_width=32, base_depth=2)
    return models.Transformer(models.ModelConfig(**{**shape, **changes}), seed=1)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rms(x, gain):
    return x / (x.square().mean() + torch.finfo(torch.float32).eps).sqrt() * gain


def turned(x, position, base):
    """Pairs (i, i + Dh/2) as complex numbers, turned by position * base^(-i / (Dh/2))."""
    half = len(x) // 2
    angle = position * base ** (-torch.arange(half).double() / half)
    pair = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((pair.real, pair.imag))


def attended(config, w, xs, i, seen):
    """What position i reads from the positions `seen`, (D,)."""
    heads = []
    for head in torch.arange(config.width).split(config.head_dim):
        q = turned(rms(w["query.weight"][head] @ xs[i], w["q_gain"]), i, config.rope_base)
        scores = []
        for j in seen:
            k = turned(rms(w["key.weight"][head] @ xs[j], w["k_gain"]), j, config.rope_base)
            scores.append(q @ k / config.head_dim ** 0.5)
        values = torch.stack([w["value.weight"][head] @ xs[j] for j in seen])
        heads.append(torch.stack(scores).softmax(0) @ values)
    return w["out.weight"] @ torch.cat(heads)


def reference(net, ids, place, doc):
    """Logits of one row, (L, V): ids, place, doc (L,)."""
    config = net.config
    weights = {name: p.detach().double() for name, p in net.named_parameters()}
    xs = list(weights["embed.weight"][ids] + weights["place.weight"][place])
    scale = (config.depth / config.base_depth) ** -config.alpha
    for layer in range(config.depth):
        start = f"blocks.{layer}."
        w = {n.removeprefix(start): p for n, p in weights.items() if n.startswith(start)}
        normed = [rms(x, w["attn_norm"]) for x in xs]
        for i in range(len(ids)):
            last = i if config.causal else len(ids) - 1
            seen = [j for j in range(last + 1) if doc[j] == doc[i]]
            xs[i] = xs[i] + scale * attended(config, w, normed, i, seen)
        for i, x in enumerate(xs):
            y = rms(x, w["mlp_norm"])
            gate = w["gate.weight"] @ y
            y = gate * torch.sigmoid(gate) * (w["up.weight"] @ y)
            xs[i] = x + scale * (w["down.weight"] @ y)
    return torch.stack([weights["unembed.weight"] @ rms(x, weights["final_norm"]) for x in xs])


IDS = torch.arange(14).view(2, 7) * 17 % 40
PLACE = IDS % 30
DOC = torch.tensor([[1, 1, 1, 2, 2, 2, -1], [3, 3, 3, 3, 3, 3, 3]])


@pytest.mark.parametrize("changes", [{}, dict(causal=True, base_depth=1, alpha=0.5)])
def test_the_network_equals_a_second_implementation(changes, monkeypatch):
    """Short rows on a CPU are written out, rows beyond LONG take the fused kernel."""
    net = tiny(**changes)
    with torch.no_grad():
        for seed, p in enumerate(net.parameters()):
            p.add_(0.1 * normal(*p.shape, seed=seed))  # gains, too: a forgotten one shows
    want = torch.stack([reference(net, *row) for row in zip(IDS, PLACE, DOC)])
    where = normal(2, 7) > -1
    for long in (9, 0):
        monkeypatch.setattr(models, "LONG", long)
        logits = net(IDS, PLACE, DOC, where)
        torch.testing.assert_close(logits.double(), want[where], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("a", (0.5, 1.0))
def test_every_cell_of_the_completep_table(a):
    """Table 1 of arXiv 2512.22382 for m_N = 4 and m_L = 3."""
    cells = {  #      init_var  lr              eps          decay
        "embedding":   (1,      1,              1 / 4,       1),
        "hidden":      (1 / 4,  3**(a - 1) / 4, 3**-a / 4,   4),
        "norm":        (1,      3**(a - 1),     3**-a / 4,   1),
        "qk_norm":     (1,      3**(a - 1),     3**-a,       1),
        "final_norm":  (1,      1,              1,           1),
        "unembedding": (1 / 16, 1 / 4,          1,           4),
    }
    for group, want in cells.items():
        assert list(models.completep(group, 4, 3, a).values()) == pytest.approx(want)


RULE = dict(lr=0.02, beta1=0.9, beta2=0.98, eps=1e-8, weight_decay=0.1, momentum=0.9, muon_lr=0.01)


def test_every_parameter_has_one_optimizer_and_its_factors():
    """Muon's rate follows no width, and its lr * decay is AdamW's."""
    net = tiny(width=128, depth=6, alpha=0.5)
    for name in ("adamw", "muon"):
        optimizers = models.make_optimizers(net, RULE, name)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        ids = [id(p) for group in groups for p in group["params"]]
        assert sorted(ids) == sorted(map(id, net.parameters()))
        for group in groups:
            lr, decay, _ = models.MULTIPLIERS[group["name"]]
            factor = models.completep(group["name"], 4, 3, 0.5)
            lr *= 0.02 * factor["lr"]
            decay *= 0.1 * factor["decay"]
            if name == "muon" and group["name"] == "hidden":
                assert group["lr"] == pytest.approx(0.01 / 3 ** 0.5)
            else:
                assert group["lr"] == pytest.approx(lr)
                assert group["eps"] == pytest.approx(1e-8 * factor["eps"])
                assert group["betas"] == (0.9, 0.98)
            assert group["lr"] * group["weight_decay"] == pytest.approx(lr * decay)
    with pytest.raises(ValueError, match="adapter.*GROUPS"):
        models.group_of("blocks.0.adapter.weight")


def test_initial_values_follow_the_table_and_the_seed():
    state = torch.random.get_rng_state()
    base = dict(tiny(width=64, base_width=64).named_parameters())
    wide = dict(tiny(width=512, base_width=64).named_parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    for name, parameter in base.items():
        group = models.group_of(name)
        std = models.MULTIPLIERS[group][2]
        if std is None:
            assert (parameter == 1).all()
            continue
        if group != "embedding":
            std /= parameter.shape[1] ** 0.5
        assert parameter.std().item() == pytest.approx(std, rel=0.07)
        shrinks = {"embedding": 1, "hidden": 8 ** 0.5, "unembedding": 8}[group]
        assert wide[name].std().item() == pytest.approx(std / shrinks, rel=0.05)
    net = tiny()
    assert torch.equal(net.embed.weight, tiny().embed.weight)
    assert not torch.equal(net.embed.weight, models.Transformer(net.config, seed=2).embed.weight)


def test_presets_have_the_papers_sizes():
    for preset, total, tables in (("pilot", 320e6, 240e6), ("3b", 3e9, 790e6)):
        with torch.device("meta"):
            net = models.Transformer(models.ModelConfig(140_000, 288, **models.PRESETS[preset]))
        counts = models.count_parameters(net)
        assert counts["total"] == sum(p.numel() for p in net.parameters())
        assert counts["total"] == pytest.approx(total, rel=0.03)
        assert counts["embedding"] + counts["unembedding"] == pytest.approx(tables, rel=0.05)


def test_three_quintics_bring_singular_values_near_one():
    """Any digit that is changed in them widens what comes of [0.01, 1]."""
    x = np.linspace(0.01, 1, 100_001)
    for a, b, c in models.QUINTICS:
        x = a * x + b * x ** 3 + c * x ** 5
    assert 0.7295 < x.min() and x.max() < 1.27


def test_rounding_brings_no_singular_value_above_one():
    """The largest one of a matrix of rank one is its whole norm. The quintics make 56 of 1.004."""
    for rows in range(20, 200, 7):
        made = models.orthogonal(torch.ones(1, rows, 2 * rows), torch.bfloat16)
        assert torch.linalg.matrix_norm(made.float(), 2) < 1.3


def test_two_steps_of_muon_equal_those_in_float64():
    """Two matrices of one shape, a tall one and a wide one."""
    shapes = [(10, 10), (10, 10), (20, 5), (5, 20)]
    weights = [torch.nn.Parameter(normal(*s, seed=i)) for i, s in enumerate(shapes)]
    want = [w.detach().double() for w in weights]
    momentum = [torch.zeros_like(w) for w in want]
    muon = models.Muon([dict(params=weights, lr=0.1, weight_decay=0.5)], momentum=0.9)
    for step in range(2):
        for i, w in enumerate(weights):
            w.grad = normal(*w.shape, seed=10 * step + i)
            momentum[i] = 0.9 * momentum[i] + 0.1 * w.grad.double()
            x = 0.9 * momentum[i] + 0.1 * w.grad.double()
            x = x / (1.01 * torch.linalg.svdvals(x).pow(4).sum() ** 0.25)
            for a, b, c in models.QUINTICS:
                square = x @ x.T
                x = a * x + b * square @ x + c * square @ square @ x
            rate = 0.1 * max(1, w.shape[0] / w.shape[1]) ** 0.5
            want[i] = want[i] * (1 - 0.1 * 0.5) - rate * x
        muon.step()
    for w, value in zip(weights, want):
        torch.testing.assert_close(w.detach().double(), value, atol=1e-4, rtol=1e-4)
