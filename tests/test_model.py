"""The network against a second implementation, Complete(d)P cell by cell, Muon in float64."""
import numpy as np
import pytest
import torch

import model as models

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(**changes):
    shape = dict(vocab=40, places=30, width=32, depth=2, head_dim=16, base_width=32, base_depth=2)
    return models.Transformer(models.ModelConfig(**{**shape, **changes}), seed=1)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def everywhere(net, ids, place, doc):
    """Logits at all positions, (B, L, V)."""
    logits = net(ids, place, doc, torch.ones_like(ids, dtype=torch.bool))
    return logits.unflatten(0, ids.shape)


# ------------------------------------------------------------------------------------------------
# The network written again in float64: one row, one head, one position at a time.


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


@pytest.mark.parametrize("changes", [{}, dict(causal=True), dict(base_depth=1, alpha=0.5)])
def test_the_network_equals_a_second_implementation(changes):
    net = tiny(**changes)
    with torch.no_grad():
        for seed, p in enumerate(net.parameters()):
            p.add_(0.1 * normal(*p.shape, seed=seed))  # gains, too: a forgotten one shows
    logits = everywhere(net, IDS, PLACE, DOC)
    for row in range(2):
        want = reference(net, IDS[row], PLACE[row], DOC[row])
        torch.testing.assert_close(logits[row].double(), want, atol=2e-5, rtol=1e-4)
    where = normal(2, 7) > 0.5
    torch.testing.assert_close(net(IDS, PLACE, DOC, where), logits[where])


def test_packed_documents_equal_separate_ones_and_padding_changes_nothing():
    net = tiny()
    packed = everywhere(net, IDS, PLACE, DOC)
    for number in (1, 2, 3):
        at = DOC == number
        alone = everywhere(net, IDS[at][None], PLACE[at][None], DOC[at][None])
        torch.testing.assert_close(packed[at], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", (False, True))
def test_only_the_twin_does_not_see_what_follows(causal):
    net = tiny(causal=causal)
    changed = IDS.clone()
    changed[1, -1] = 20
    before = everywhere(net, IDS, PLACE, DOC)[1, :-1]
    after = everywhere(net, changed, PLACE, DOC)[1, :-1]
    assert torch.equal(before, after) == causal


def test_attention_written_out_equals_the_fused_one(monkeypatch):
    """Short rows on a CPU take the one, rows beyond LONG the other."""
    q, k, v, g = normal(4, 2, 3, 9, 8).double()
    doc = torch.tensor([[0] * 4 + [1] * 5, [0] * 9])
    allowed = (doc[:, :, None] == doc[:, None, :])[:, None].tril()
    found = []
    for long in (9, 0):
        monkeypatch.setattr(models, "LONG", long)
        inputs = [z.clone().requires_grad_() for z in (q, k, v)]
        y = models.attention(*inputs, allowed)
        found.append([y, *torch.autograd.grad(y, inputs, g)])
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)  # its softmax is float32's


# ------------------------------------------------------------------------------------------------
# Complete(d)P.


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
    for group, (init_var, lr, eps, decay) in cells.items():
        want = dict(init_var=init_var, lr=lr, eps=eps, decay=decay)
        assert models.completep(group, 4, 3, a) == pytest.approx(want)


def covered_once(groups, net):
    ids = [id(p) for group in groups for p in group["params"]]
    return sorted(ids) == sorted(map(id, net.parameters()))


def test_groups_hold_every_parameter_once_and_the_factors():
    net = tiny(width=128, depth=6)
    groups = models.param_groups(net, lr=1e-2, eps=1e-8, weight_decay=0.1)
    assert covered_once(groups, net)
    for group in groups:
        lr, decay, _ = models.MULTIPLIERS[group["name"]]
        factor = models.completep(group["name"], 4, 3)
        assert group["lr"] == pytest.approx(1e-2 * lr * factor["lr"])
        assert group["eps"] == pytest.approx(1e-8 * factor["eps"])
        assert group["weight_decay"] == pytest.approx(0.1 * decay * factor["decay"])
    with pytest.raises(KeyError):
        models.group_of("blocks.0.adapter.weight")


def test_initial_sizes_follow_the_table():
    base = dict(tiny(width=64, base_width=64).named_parameters())
    wide = dict(tiny(width=512, base_width=64).named_parameters())
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


def test_initial_weights_depend_on_the_seed_alone():
    state = torch.random.get_rng_state()
    net = tiny()
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(net.state_dict(), tiny().state_dict(), atol=0, rtol=0)
    other = models.Transformer(net.config, seed=2)
    assert not torch.equal(net.embed.weight, other.embed.weight)


@pytest.mark.parametrize("preset, parameters", [("pilot", 320e6), ("3b", 3e9)])
def test_presets_have_the_papers_sizes(preset, parameters):
    shape = models.PRESETS[preset]
    with torch.device("meta"):
        net = models.Transformer(models.ModelConfig(140_000, 1024, **shape))
    counts = models.count_parameters(net)
    assert counts["total"] == sum(p.numel() for p in net.parameters())
    assert counts["total"] == pytest.approx(parameters, rel=0.05)
    assert shape["width"] == 128 * shape["depth"]


# ------------------------------------------------------------------------------------------------
# Muon.


def test_each_quintic_is_the_nearest_to_one_on_what_the_one_before_leaves():
    """Four errors of one size and alternate signs: by Chebyshev nothing is nearer."""
    low = 0.01
    high = 1.0
    for a, b, c in models.QUINTICS:
        x = np.linspace(low, high, 100_001)
        error = a * x + b * x ** 3 + c * x ** 5 - 1
        turns = np.flatnonzero(np.diff(np.sign(np.diff(error)))) + 1
        peaks = error[[0, *turns, -1]]
        size = np.abs(peaks).max()
        assert len(peaks) == 4
        assert (np.sign(peaks[1:]) == -np.sign(peaks[:-1])).all()
        np.testing.assert_allclose(np.abs(peaks), size, atol=2e-3)  # they have four digits
        low = 1 - size
        high = 1 + size
    assert low > 0.72 and high < 1.28


@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 30, 70), (2, 70, 30)])
def test_orthogonal_is_near_the_polar_factor(shape):
    x = normal(*shape)
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    made = u.mT @ models.orthogonal(x).double() @ v.mT  # in the singular basis: near one
    values = made.diagonal(dim1=1, dim2=2)
    assert (made - torch.diag_embed(values)).abs().max() < 1e-3
    values = values[s > 0.01 * s.pow(4).sum(1, keepdim=True) ** 0.25]
    assert len(values) > 0.9 * s.numel()
    assert values.min() > 0.72 and values.max() < 1.28


def test_two_steps_of_muon_equal_those_in_float64():
    """Two matrices of one shape and a tall one."""
    shapes = [(10, 10), (10, 10), (20, 5)]
    weights = [torch.nn.Parameter(normal(*s, seed=i)) for i, s in enumerate(shapes)]
    want = [w.detach().double() for w in weights]
    momentum = [torch.zeros_like(w) for w in want]
    muon = models.Muon([dict(params=weights, lr=0.1, weight_decay=0.5)], momentum=0.9)
    for step in range(2):
        for i, w in enumerate(weights):
            w.grad = normal(*w.shape, seed=10 * step + i)
            momentum[i] = 0.9 * momentum[i] + 0.1 * w.grad.double()
            x = 0.9 * momentum[i] + 0.1 * w.grad.double()
            x = x / torch.linalg.svdvals(x).pow(4).sum() ** 0.25
            for a, b, c in models.QUINTICS:
                square = x @ x.T
                x = a * x + b * square @ x + c * square @ square @ x
            rate = 0.1 * max(1, w.shape[0] / w.shape[1]) ** 0.5
            want[i] = want[i] * (1 - 0.1 * 0.5) - rate * x
        muon.step()
    for w, value in zip(weights, want):
        torch.testing.assert_close(w.detach().double(), value, atol=1e-4, rtol=1e-4)


RULE = dict(lr=1e-3, beta1=0.9, beta2=0.98, eps=1e-8, weight_decay=0.1, momentum=0.9, muon_lr=0.01)


@pytest.mark.parametrize("width", (32, 256))
def test_a_step_of_muon_has_one_spectral_norm_at_any_width(width):
    net = tiny(width=width, depth=4, alpha=0.5)
    muon, adamw = models.make_optimizers(net, RULE)
    assert covered_once(muon.param_groups + adamw.param_groups, net)
    (group,) = muon.param_groups
    hidden = models.param_groups(net, RULE["lr"], RULE["eps"], RULE["weight_decay"])
    hidden = next(g for g in hidden if g["name"] == "hidden")
    decay = group["lr"] * group["weight_decay"]
    assert decay == pytest.approx(hidden["lr"] * hidden["weight_decay"])
    group["weight_decay"] = 0
    before = [p.detach().clone() for p in group["params"]]
    for seed, p in enumerate(group["params"]):
        p.grad = normal(*p.shape, seed=seed)
    muon.step()
    for old, p in zip(before, group["params"]):
        rows, columns = p.shape
        size = torch.linalg.matrix_norm(p.detach() - old, 2) / max(1, rows / columns) ** 0.5
        assert 0.72 < size / (0.01 * 2 ** -0.5) < 1.28  # twice as deep at alpha 1/2


def test_adamw_alone_takes_every_parameter():
    net = tiny()
    (adamw,) = models.make_optimizers(net, RULE, "adamw")
    assert covered_once(adamw.param_groups, net)
    assert {g["betas"] for g in adamw.param_groups} == {(0.9, 0.98)}
    with pytest.raises(ValueError, match="choose muon or adamw"):
        models.make_optimizers(net, RULE, "sgd")
