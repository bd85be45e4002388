"""The coordinate check: does a step change a wide or deep network as much as a small one?

Question: after a few steps, how large are the activations and their changes, over an 8-fold range
of widths and of depths? Under Complete(d)P (arXiv 2512.22382) they stay of one size. Under the
standard parameterisation (initial variance 1/fan-in, one learning rate for all, residual branches
of weight 1) they grow. A parameter in a wrong group shows at once.
Set-up: random tokens (fixed), four AdamW steps at a constant rate, root mean squares over all
positions of the last hidden state before its norm, of the logits, and of the changes of both.

    python experiments/coordinates.py
"""
import numpy as np
import torch

import common
from common import F, models

WIDTHS = (64, 128, 256, 512)
DEPTHS = (2, 4, 8, 16)
NAMES = ("hidden", "logits", "hidden change", "logits change")
QUICK = dict(widths=WIDTHS[:2], depths=DEPTHS[:2], seeds=(0,))


def rms(x):
    return float(x.double().square().mean().sqrt())


def sizes(width, depth, rule, seed, steps=4, lr=2e-3):
    """[root mean squares of NAMES] after some steps."""
    base = (64, 2) if rule == "Complete(d)P" else (width, depth)
    net = models.Transformer(models.ModelConfig(
        vocab=128, places=33, width=width, depth=depth, head_dim=32, base_width=base[0],
        base_depth=base[1]), seed)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 128, (16, 32), generator=generator)
    place = torch.arange(1, 33).expand(16, -1)
    doc = torch.arange(16)[:, None].expand(-1, 32)
    hide = torch.rand(ids.shape, generator=generator) < 0.5
    x = ids.masked_fill(hide, 1)
    everywhere = torch.ones_like(hide)
    optimizer = torch.optim.AdamW(models.param_groups(net, lr, 1e-8, 0.1), betas=(0.9, 0.98))

    @torch.no_grad()
    def look():
        seen = []
        hook = net.blocks[-1].register_forward_hook(lambda module, inputs, out: seen.append(out))
        logits = net(x, place, doc, everywhere)
        hook.remove()
        return [*seen, logits]

    before = look()
    for _ in range(steps):
        F.cross_entropy(net(x, place, doc, hide), ids[hide]).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = look()
    return [*map(rms, after), *(rms(b - a) for a, b in zip(before, after))]


def study(folder, widths=WIDTHS, depths=DEPTHS, seeds=(0, 1, 2)):
    result = {}
    axes = {"width": [(w, depths[0]) for w in widths], "depth": [(widths[0], d) for d in depths]}
    for axis, shapes in axes.items():
        grid = widths if axis == "width" else depths
        for rule in ("standard", "Complete(d)P"):
            logs = [np.log([sizes(*shape, rule, seed) for seed in seeds]) for shape in shapes]
            means = np.mean(logs, 1)                                      # (shapes, NAMES)
            slopes = np.polyfit(np.log(grid), means, 1)[0]
            result[f"{axis}, {rule}"] = {
                "grid": list(grid), "slopes": dict(zip(NAMES, slopes.tolist())),
                "sizes": dict(zip(NAMES, np.exp(means).T.tolist()))}
    return result


def draw(result):
    tables = {name: r for name, r in result.items() if "sizes" in r}
    figure, axes = common.panels(len(tables), figsize=(15, 3.6))
    for panel, (name, r) in zip(axes, tables.items()):
        for what, values in r["sizes"].items():
            panel.plot(r["grid"], values, marker="o", ms=3, lw=1,
                       label=f"{what} (slope {r['slopes'][what]:+.2f})")
        panel.set(yscale="log", title=name, ylim=(0.1, 10))
        panel.set_xscale("log", base=2)
        panel.legend(fontsize=7)
    axes[0].set_ylabel("root mean square after four steps")
    return figure


if __name__ == "__main__":
    common.command_line("coordinates", __doc__, study, draw, QUICK)
