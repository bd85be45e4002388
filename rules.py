"""The batch-size rule, what it derives, and the plan of a training: tune once, train at any batch size and duration.

    python train.py --plan --preset 3b       sizes, cost and derived settings, no training
Width and depth are Complete(d)P's: the table in model.py.
"""
import math

import torch

import model as models

# The tuned point (ours): the settings below were tuned for steps of this many tokens and a run of this many tokens.
BASE = dict(batch=2048, tokens=6_000_000, lr=1e-3, beta1=0.9, beta2=0.98, eps=1e-8, weight_decay=0.1, ema=0.99,
            muon_lr=0.012, momentum=0.95)
S_CRIT = 977  # steps below which the loss rises by over 2%, measured for a toy network: experiments/batch_size.py


def batch_rule(batch, tokens, base=BASE, gamma=0.44):
    """Optimizer settings for another batch size and token horizon, from the tuned point (arXiv 2602.21472).

    kappa = (D_base / D)^gamma * (B / B_base), all in tokens of the stream (padding left out); gamma=1 is Complete(d)P,
    gamma=0 the SDE rule of Malladi et al. (arXiv 2205.10287). Weight decay x sqrt(kappa) is our choice (the product
    with lr then goes with kappa, as Complete(d)P has it); EMA: Busbridge et al. (arXiv 2307.13813).
    """
    kappa = (base["tokens"] / tokens) ** gamma * (batch / base["batch"])
    return dict(kappa=kappa, lr=base["lr"] * math.sqrt(kappa), beta1=base["beta1"] ** kappa, beta2=base["beta2"] ** kappa,
                eps=base["eps"] / math.sqrt(kappa), weight_decay=base["weight_decay"] * math.sqrt(kappa),
                ema=base["ema"] ** kappa, muon_lr=base["muon_lr"] * math.sqrt(kappa), momentum=base["momentum"] ** kappa)


def tuned_point(args):
    """BASE with what flags change of it."""
    return {**BASE, "lr": args.lr, "muon_lr": args.muon_lr, "weight_decay": args.weight_decay}


def derived(batch, tokens, length, base=BASE, gamma=0.44, warmup=0.05, throughput=0.0, optimizer="muon"):
    """The batch rule's results as rows (name, formula, number): what is printed before a training and by --plan.

    batch, tokens as in `batch_rule`; length: tokens a row, for B_crit in rows; throughput in tokens a second (0: unknown).
    Virtual batch and virtual steps (our names): the batch at the base horizon that has the same settings, and the steps of
    that size which the base's tokens make: two runs alike in them follow the same equation.
    """
    rule, steps = batch_rule(batch, tokens, base, gamma), max(1, round(tokens / batch))
    times = "x sqrt(kappa)"
    rows = [("kappa", "(D_base / D)^gamma B / B_base", rule["kappa"]),
            ("lr", f"{base['lr']:g} {times}", rule["lr"]),
            ("beta1", f"{base['beta1']:g}^kappa", rule["beta1"]),
            ("beta2", f"{base['beta2']:g}^kappa", rule["beta2"]),
            ("eps", f"{base['eps']:g} / sqrt(kappa)", rule["eps"]),
            ("weight decay", f"{base['weight_decay']:g} {times}", rule["weight_decay"]),
            ("EMA", f"{base['ema']:g}^kappa", rule["ema"]),
            *([("Muon lr", f"{base['muon_lr']:g} {times}", rule["muon_lr"]),
               ("Muon momentum", f"{base['momentum']:g}^kappa", rule["momentum"])] if optimizer == "muon" else []),
            ("steps", "D / B", steps),
            ("warm-up steps", f"min(1000, steps / 4, {warmup:g} steps)", warmup_steps(steps, warmup)),
            ("virtual batch", "kappa B_base, tokens", rule["kappa"] * base["batch"]),
            ("virtual steps", "D_base / (kappa B_base)", base["tokens"] / (rule["kappa"] * base["batch"])),
            ("B_crit", f"D / (L S_crit), rows of {length:.0f}", tokens / (length * S_CRIT))]
    return rows + ([("hours", "D / throughput", tokens / throughput / 3600)] if throughput else [])


def print_derived(batch, tokens, length, **options):
    """Print `derived` as a table, and a warning where the batch is above the critical one."""
    print(f"B = {batch:.0f} tokens a step, D = {tokens:.3g} tokens (all of a row, conditions and end tokens too; padding of "
          f"packed text left out)")
    for name, formula, value in derived(batch, tokens, length, **options):
        print(f"  {name:13} = {formula:36} = {value:.6g}")
    if tokens / batch < S_CRIT:
        print(f"warning: {tokens / batch:.0f} steps are fewer than S_crit = {S_CRIT}: above the critical batch size the loss "
              f"rises; lower --batch-tokens or train longer", flush=True)


def warmup_steps(steps, share=0.05):
    """Steps of linear warm-up: a share of all (5% is our choice), at most 1000 and a quarter of all (the paper's numbers)."""
    return max(1, int(min(1000, steps / 4, share * steps)))


def lr_factor(step, steps, warmup):
    """Linear warm-up, then cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def plan(args):
    """Sizes, cost and settings of a preset, without training. The network is built on the meta device."""
    with torch.device("meta"):
        net = models.Transformer(models.ModelConfig(vocab=args.vocab or models.PLAN_VOCAB.get(args.preset, 4096), places=4096,
                                                    **{**models.PRESETS[args.preset], **args.shape}))
    counts, config = models.count(net), net.config
    tokens, N = args.tokens or (args.steps or 1000) * args.batch_tokens, counts["total"]
    print(f"preset {args.preset}: width {config.width}, depth {config.depth}, {config.width // config.head_dim} heads of "
          f"{config.head_dim}, vocabulary {config.vocab}")
    print("parameters: " + ", ".join(f"{k} {v:,}" for k, v in counts.items()))
    print(f"memory: weights {4 * N / 2**30:.2f} GiB in float32 ({2 * N / 2**30:.2f} in bf16), training state "
          f"{20 * N / 2**30:.2f} GiB (weight, gradient, two moments, EMA in float32; Muon keeps one moment of the hidden matrices), activations on top")
    flops = models.flops_per_token(config, args.text_length, 0.5)
    print(f"training: {flops / 1e9:.3f} GFLOP a token at length {args.text_length}, half the positions through the head; "
          f"{tokens:,.0f} tokens cost {flops * tokens:.3e} FLOP")
    print(f"compute frontier of the paper, D* = 7754 N^0.84 with N = {N:,}: {7754 * N ** 0.84:.3e} tokens; "
          f"this plan: {tokens:.3e}")
    print_derived(args.batch_tokens, tokens, args.text_length, base=tuned_point(args),
                  gamma=args.gamma, warmup=args.warmup, throughput=args.throughput, optimizer=args.optimizer)
