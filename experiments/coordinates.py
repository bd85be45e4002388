"""The coordinate check: does a step change a wide or deep network as much as a narrow or shallow one?

Question: after a few steps, how large are the activations and their changes, over an 8-fold range of widths and of depths?
Under Complete(d)P (arXiv 2512.22382) they stay of one size; under the standard parameterisation (initial variance 1/fan-in,
one learning rate for all, residual branches of weight 1) they grow. A parameter in a wrong group shows at once.
Set-up: random tokens (fixed), four AdamW steps at a constant learning rate, root mean squares over all positions of the last
hidden state before its norm, of the logits, and of the changes of both since the start; three seeds.
Under a minute on two cores:  python experiments/coordinates.py     writes results/coordinates.json and .png
"""
import argparse
import math

import numpy as np
import torch

import common
from common import models

WIDTHS, DEPTHS = (64, 128, 256, 512), (2, 4, 8, 16)
NAMES = ("hidden", "logits", "hidden change", "logits change")


def sizes(width, depth, rule, base=(64, 2), lr=2e-3, steps=4, seed=0):
    """{name of NAMES: root mean square} after some steps. rule: "Complete(d)P" or "standard"."""
    base = base if rule == "Complete(d)P" else (width, depth)
    config = models.ModelConfig(vocab=128, places=33, width=width, depth=depth, head_dim=32, base_width=base[0],
                                base_depth=base[1])
    net = models.Transformer(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 128, (16, 32), generator=generator)
    place = torch.arange(32).expand(16, -1) + 1
    hide = torch.rand(ids.shape, generator=generator) < 0.5
    x = ids.masked_fill(hide, 1)
    optimizer = torch.optim.AdamW(models.param_groups(net, lr, 1e-8, 0.1), betas=(0.9, 0.98), fused=True)

    def look():
        seen = {}
        hook = net.blocks[-1].register_forward_hook(lambda module, inputs, out: seen.update(hidden=out))
        with torch.no_grad():
            seen["logits"] = net(x, place)
        hook.remove()
        return seen
    rms = lambda v: float(v.double().square().mean().sqrt())
    before = look()
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(net(x, place, select=hide), ids[hide])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    after = look()
    return {**{k: rms(v) for k, v in after.items()}, **{f"{k} change": rms(after[k] - before[k]) for k in after}}


def slope(ratios, values):
    """Exponent e of values ~ ratio^e, by least squares on logarithms."""
    return float(np.polyfit(np.log(ratios), np.log(values), 1)[0])


def study(widths=WIDTHS, depths=DEPTHS, seeds=(0, 1, 2)):
    out = {}
    for axis, shapes in {"width": [(w, depths[0]) for w in widths], "depth": [(widths[0], d) for d in depths]}.items():
        for rule in ("Complete(d)P", "standard"):
            table = [[sizes(*shape, rule, seed=s) for s in seeds] for shape in shapes]
            means = {n: [math.exp(np.mean([math.log(r[n]) for r in cell])) for cell in table] for n in NAMES}
            grid = widths if axis == "width" else depths
            out.setdefault(axis, {})[rule] = dict(grid=list(grid), sizes=means,
                                                  slopes={n: slope(grid, v) for n, v in means.items()})
    return out


def draw(result):
    figure, panels = common.figure(4, figsize=(15, 3.6))
    for panel, (axis, rule) in zip(panels, [(a, r) for a in result for r in ("standard", "Complete(d)P")]):
        for name, values in result[axis][rule]["sizes"].items():
            panel.plot(result[axis][rule]["grid"], values, marker="o", ms=3, lw=1,
                       label=f"{name} (slope {result[axis][rule]['slopes'][name]:+.2f})")
        panel.set(yscale="log", xlabel=axis, title=f"{axis}, {rule}", ylim=(0.1, 10))
        panel.set_xscale("log", base=2)
        panel.legend(fontsize=7)
    panels[0].set_ylabel("root mean square after four steps")
    return figure


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--quick", action="store_true", help="two sizes, one seed; writes nothing")
    quick = args.parse_args().quick
    result = study(WIDTHS[:2], DEPTHS[:2], (0,)) if quick else study()
    for axis, rules in result.items():
        for rule, r in rules.items():
            print(f"{axis}, {rule}: slopes " + ", ".join(f"{n} {s:+.2f}" for n, s in r["slopes"].items()))
    if not quick:
        common.finish("coordinates", {"result": result}, draw(result))


if __name__ == "__main__":
    main()
