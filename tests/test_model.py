"""The transformer and its parameterisation."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import model as models
import rules


def tiny(**changes):
    config = models.ModelConfig(**{**dict(vocab=40, places=30, width=32, depth=2, head_dim=16, base_width=32, base_depth=2),
                                   **changes})
    return models.Transformer(config, seed=1)


def reference(net, ids, place, doc=None):
    """The same network written again, one row, head and position at a time, in float64."""
    c, w = net.config, {n: p.detach().double() for n, p in net.named_parameters()}
    rms = lambda v, g: v / (v.pow(2).mean() + torch.finfo(torch.float32).eps).sqrt() * g
    rows = []
    for b in range(len(ids)):
        L = ids.shape[1]
        xs = [w["embed.weight"][ids[b, i]] + w["place.weight"][place[b, i]] for i in range(L)]
        for layer in range(c.depth):
            p = lambda name: w[f"blocks.{layer}.{name}"]
            heads = c.width // c.head_dim

            def turned(vector, position):
                half = c.head_dim // 2
                angle = [position * c.rope_base ** (-2 * i / c.head_dim) for i in range(half)]
                out = vector.clone()
                for i, a in enumerate(angle):
                    x1, x2 = vector[i], vector[half + i]
                    out[i], out[half + i] = x1 * math.cos(a) - x2 * math.sin(a), x1 * math.sin(a) + x2 * math.cos(a)
                return out
            qkv = [p("qkv.weight") @ rms(x, p("attn_norm")) for x in xs]
            mixed = []
            for i in range(L):
                parts = []
                for h in range(heads):
                    at = lambda j, which: qkv[j][which * c.width + h * c.head_dim:which * c.width + (h + 1) * c.head_dim]
                    seen = [j for j in range(L) if (doc is None or doc[b, i] == doc[b, j]) and not (c.causal and j > i)]
                    q = turned(rms(at(i, 0), p("q_gain")), i)
                    score = torch.stack([q @ turned(rms(at(j, 1), p("k_gain")), j) for j in seen]) / c.head_dim ** 0.5
                    parts.append((score.softmax(0)[:, None] * torch.stack([at(j, 2) for j in seen])).sum(0))
                mixed.append(p("out.weight") @ torch.cat(parts))
            scale = c.m_L ** -c.alpha
            xs = [x + scale * m for x, m in zip(xs, mixed)]
            for i, x in enumerate(xs):
                gate, up = (p("gate_up.weight") @ rms(x, p("mlp_norm"))).chunk(2)
                xs[i] = x + scale * (p("down.weight") @ (gate * torch.sigmoid(gate) * up))
        rows.append(torch.stack([w["unembed.weight"] @ rms(x, w["final_norm"]) for x in xs]))
    return torch.stack(rows)


@pytest.mark.parametrize("changes", [{}, {"causal": True}, {"base_depth": 1, "alpha": 0.5}])
def test_forward_equals_a_second_implementation(changes):
    net, g = tiny(**changes), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():  # gains too, so that a forgotten one shows
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    ids, place = torch.randint(0, 40, (2, 7), generator=g), torch.randint(0, 30, (2, 7), generator=g)
    for doc in (None, torch.tensor([[1, 1, 1, 2, 2, 2, -1], [1, 1, 2, 2, 3, 3, 3]])):
        assert torch.allclose(net(ids, place, doc).double(), reference(net, ids, place, doc), atol=2e-5)


def test_select_gives_the_same_logits_at_fewer_positions():
    net, ids = tiny(), torch.arange(18).view(2, 9)
    select = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    assert torch.allclose(net(ids, ids, select=select), net(ids, ids)[select], atol=1e-6)


def test_attention_is_bidirectional_unless_causal():
    ids = torch.arange(8)[None]
    changed = ids.clone()
    changed[0, -1] = 20
    for causal in (False, True):
        net = tiny(causal=causal)
        moved = (net(ids, ids)[0, 0] - net(changed, ids)[0, 0]).abs().max()
        assert (moved == 0) == causal


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("group, init_var, lr, eps, decay", [
    # Complete(d)P, Table 1, for m_N = 4 and m_L = 3, each cell worked out by hand as a function of alpha
    ("embedding", lambda a: 1, lambda a: 1, lambda a: 1 / 4, lambda a: 1),
    ("hidden", lambda a: 1 / 4, lambda a: 3 ** (a - 1) / 4, lambda a: 3 ** -a / 4, lambda a: 4),
    ("norm", lambda a: 1, lambda a: 3 ** (a - 1), lambda a: 3 ** -a / 4, lambda a: 1),
    ("qk_norm", lambda a: 1, lambda a: 3 ** (a - 1), lambda a: 3 ** -a, lambda a: 1),
    ("final_norm", lambda a: 1, lambda a: 1, lambda a: 1, lambda a: 1),
    ("unembedding", lambda a: 1 / 16, lambda a: 1 / 4, lambda a: 1, lambda a: 4),
])
def test_every_cell_of_the_completep_table(group, init_var, lr, eps, decay, alpha):
    got = models.completep(group, 4, 3, alpha)
    assert got == pytest.approx(dict(init_var=init_var(alpha), lr=lr(alpha), eps=eps(alpha), decay=decay(alpha)))


def test_groups_cover_every_parameter_once_and_carry_the_factors():
    net = tiny(width=128, base_width=32, depth=6, base_depth=2)
    groups = models.param_groups(net, lr=1e-2, eps=1e-8, weight_decay=0.1)
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in net.parameters()) and len(set(ids)) == len(ids)
    hidden = next(g for g in groups if g["name"] == "hidden")
    assert hidden["lr"] == pytest.approx(1e-2 / 4) and hidden["weight_decay"] == pytest.approx(0.4)
    assert hidden["eps"] == pytest.approx(1e-8 / 12)
    with pytest.raises(KeyError):
        models.group_of("blocks.0.adapter.weight")


def test_initial_sizes_follow_the_table():
    narrow, wide = tiny(width=64, base_width=64), tiny(width=512, base_width=64)
    ratio = lambda name: (dict(wide.named_parameters())[name].std() / dict(narrow.named_parameters())[name].std()).item()
    assert ratio("blocks.0.qkv.weight") == pytest.approx(8 ** -0.5, rel=0.05)
    assert ratio("embed.weight") == pytest.approx(1, rel=0.05)
    assert ratio("unembed.weight") == pytest.approx(1 / 8, rel=0.05)


def test_init_depends_on_the_seed_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b = tiny(), tiny()
    assert all(torch.equal(p, q) for (_, p), (_, q) in zip(a.state_dict().items(), b.state_dict().items()))
    assert not torch.equal(a.embed.weight, models.Transformer(a.config, seed=2).embed.weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_unknown_optimizers_are_refused():
    with pytest.raises(ValueError, match="muon, adamw"):
        models.optimizers(tiny(), rules.batch_rule(2048, 1e6), "sgd")


def test_presets_have_the_sizes_they_claim():
    sizes = {}
    for preset, vocab in models.PLAN_VOCAB.items():
        with torch.device("meta"):
            net = models.Transformer(models.ModelConfig(vocab, 1024, **models.PRESETS[preset]))
        sizes[preset] = models.count(net)
        assert sizes[preset]["total"] == sum(p.numel() for p in net.parameters())
    assert 1e6 < sizes["toy"]["total"] < 6e6
    assert 25e6 < sizes["small"]["total"] < 35e6
    assert abs(sizes["pilot"]["total"] / 320e6 - 1) < 0.02 and models.PRESETS["pilot"]["width"] == 128 * 7
    assert abs(sizes["3b"]["total"] / 3e9 - 1) < 0.05 and models.PRESETS["3b"]["width"] == 128 * 22


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_attention_written_out_equals_the_fused_one(causal, documents, monkeypatch):
    """On a CPU short rows take one, rows beyond LONG the other: values and gradients agree."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(2, 3, 9, 8, generator=generator, dtype=torch.float64) for _ in range(4))
    doc = torch.tensor([[0] * 4 + [1] * 5, [0] * 9])
    allowed = (doc[:, :, None] == doc[:, None])[:, None] if documents else None
    if documents and causal:
        allowed = allowed & torch.ones(9, 9, dtype=torch.bool).tril()                                # as the trunk makes it
    found = []
    for long in (9, 0):
        monkeypatch.setattr(models, "LONG", long)
        given = [z.clone().requires_grad_() for z in (q, k, v)]
        y = models.attention(*given, allowed, causal)
        found.append([y, *torch.autograd.grad(y, given, g)])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found))                              # the softmax is float32's


def test_flops_count_the_matrix_products():
    from torch.utils.flop_counter import FlopCounterMode
    net, ids = tiny(), torch.zeros(3, 10, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(net(ids, ids).flatten(0, 1), ids.flatten()).backward()
    # the first layer needs no gradient of its input only for the embedding, which is no product: the counts agree
    assert models.flops_per_token(net.config, 10) * 30 == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_depth_multipliers_reach_rate_and_initial_size_of_each_block(monkeypatch):
    monkeypatch.setattr(models, "DEPTH_MULTIPLIERS", {"hidden": {"lr": (1.0, 0.5), "init_std": (1.0, 3.0)}})
    net = tiny(depth=3, base_depth=3, width=64, base_width=64)
    groups = models.param_groups(net, 1e-2, 1e-8, 0.1)
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in net.parameters())
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert [rate[id(b.qkv.weight)] for b in net.blocks] == pytest.approx([1e-2, 0.75e-2, 0.5e-2])
    stds = [float(b.qkv.weight.detach().std()) for b in net.blocks]
    assert stds[1] / stds[0] == pytest.approx(2, rel=0.05) and stds[2] / stds[0] == pytest.approx(3, rel=0.05)


RULE = dict(lr=1e-3, beta1=0.9, beta2=0.98, eps=1e-8, weight_decay=0.1, momentum=0.9, muon_lr=0.01)


@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 30, 70), (2, 70, 30)])
def test_orthogonal_is_near_the_polar_factor_of_the_svd(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    made = u.mT @ models.orthogonal(x).double() @ v.mT                 # in the singular basis: diagonal, all near one
    values = torch.diagonal(made, dim1=1, dim2=2)[s / s.pow(4).sum(1, keepdim=True) ** 0.25 > 0.01]
    assert values.min() > 0.72 and values.max() < 1.28 and len(values) > 0.9 * s.numel()
    assert (made - torch.diag_embed(torch.diagonal(made, dim1=1, dim2=2))).abs().max() < 1e-3


def test_each_quintic_is_the_nearest_to_one_where_the_step_before_left_off():
    low, high = 0.01, 1.0
    for quintic in models.QUINTICS:                                    # four errors of one size and alternate signs: nothing is nearer
        x = np.linspace(low, high, 100_001)
        error = sum(factor * x ** power for factor, power in zip(quintic, (1, 3, 5))) - 1
        inside = np.flatnonzero(np.diff(np.sign(np.diff(error)))) + 1
        peaks = error[[0, *inside, -1]]
        assert len(peaks) == 4 and (np.sign(peaks[1:]) == -np.sign(peaks[:-1])).all()
        assert np.allclose(np.abs(peaks), np.abs(peaks).max(), atol=2e-3)   # the factors have four digits
        low, high = 1 - np.abs(error).max(), 1 + np.abs(error).max()
    assert low > 0.72 and high < 1.28


def test_muon_makes_two_steps_as_written_again_in_float64():
    w = torch.nn.Parameter(torch.randn(20, 10, generator=torch.Generator().manual_seed(1)))
    want, momentum = w.detach().double().clone(), torch.zeros(2, 10, 10, dtype=torch.float64)
    muon = models.Muon([dict(params=[w], parts=2, lr=0.1, weight_decay=0.5)], momentum=0.9)
    for step in (2, 3):
        w.grad = torch.randn(20, 10, generator=torch.Generator().manual_seed(step))
        muon.step()
        halves = w.grad.double().view(2, 10, 10)                       # two matrices in one: each is made orthogonal alone
        momentum = 0.9 * momentum + 0.1 * halves
        for i, look in enumerate(0.1 * halves + 0.9 * momentum):
            x = look / torch.linalg.svdvals(look).pow(4).sum() ** 0.25
            for first, third, fifth in models.QUINTICS:
                x = first * x + third * (x @ x.T @ x) + fifth * (x @ x.T @ x @ x.T @ x)
            rows = slice(10 * i, 10 * i + 10)
            want[rows] = want[rows] * (1 - 0.1 * 0.5) - 0.1 * x
    assert torch.allclose(w.detach().double(), want, atol=1e-4)


@pytest.mark.parametrize("width", [32, 256])
def test_muon_groups_cover_every_parameter_and_step_by_one_spectral_norm_at_any_width(width):
    net = tiny(width=width, depth=4, alpha=0.5)
    made = models.optimizers(net, RULE, "muon")
    groups = [g for o in made for g in o.param_groups]
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in net.parameters())
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    for group in made[1].param_groups:
        group["weight_decay"] = 0
    for optimizer in made:
        optimizer.step()
    lr = 0.01 * 2 ** -0.5                                              # twice as deep at alpha 1/2
    for name, parts in (("out", 1), ("qkv", 3), ("down", 1)):
        change = (net.blocks[0].get_parameter(f"{name}.weight").detach() - before[f"blocks.0.{name}.weight"])
        norms = torch.linalg.matrix_norm(change.view(parts, -1, change.shape[1]), 2)
        assert (norms > 0.72 * lr).all() and (norms < 1.28 * lr).all()      # what the quintics leave
    adam = models.param_groups(net, RULE["lr"], RULE["eps"], RULE["weight_decay"])
    product = next(g["lr"] * g["weight_decay"] for g in adam if g["name"] == "hidden")
    fresh = models.optimizers(net, RULE, "muon")[1]
    assert all(g["lr"] * g["weight_decay"] == pytest.approx(product) for g in fresh.param_groups)
