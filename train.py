"""Train tinytri: tokenizers first, then one masked diffusion model over text, image-text and speech-text.

    python train.py                                        the toy world, about eleven minutes on two CPU cores
    python train.py --text a.txt --images DIR --speech DIR --run runs/mine     one's own data (any subset)
    python train.py --resume --run runs/mine               go on where a run stopped
    python train.py --plan --preset 3b                     sizes and settings, no training
"""
import argparse
import json
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import data
import diffusion
import model as models
from data import KINDS, MASK, MODALITIES, DataError

# The tuned point (ours): the settings below were tuned for steps of this many tokens and a run of this many tokens.
BASE = dict(batch=2048, tokens=6_000_000, lr=1e-3, beta1=0.9, beta2=0.98, eps=1e-8, weight_decay=0.1, ema=0.99,
            muon_lr=0.012, momentum=0.95)
S_CRIT = 488  # steps below which the loss rises by over 2%, measured for a toy network: experiments/batch_size.py


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


def derived(batch, tokens, length, base=BASE, gamma=0.44, warmup=0.05, throughput=0.0):
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
            ("Muon lr", f"{base['muon_lr']:g} {times}", rule["muon_lr"]),
            ("Muon momentum", f"{base['momentum']:g}^kappa", rule["momentum"]),
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
    """Steps of linear warm-up: a share of all, at most a quarter of them and at most 1000 (the paper's numbers)."""
    return max(1, int(min(1000, steps / 4, share * steps)))


def lr_factor(step, steps, warmup):
    """Linear warm-up, then cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# ---------------------------------------------------------------------------------------------------------------------
# Device and precision.

def pick_device(name="auto"):
    """torch.device by name; auto takes cuda, then mps, then cpu. Raises DataError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        return device
    except (RuntimeError, AssertionError):
        raise DataError(f"--device {name}: no such device here; try --device cpu")


def fast_dtype(device):
    """bfloat16 where this machine multiplies matrices at least 1.3 times faster in it, float32 elsewhere: measured."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
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


# ---------------------------------------------------------------------------------------------------------------------
# Data and tokenizers.

def make_tokenizer(modality, sources, args, folder, device):
    """Train (or load, if the run folder has it) the tokenizer of a modality; prints its report."""
    path, module = folder / MODALITIES[modality].file, data.tokenizer_module(modality)
    if path.exists():
        return module.load(path)
    start = time.time()
    if modality == "text":
        texts = [t for s in sources for t in s.texts]
        if args.encoding:
            tokenizer = module.from_tiktoken(args.encoding)
        else:
            tokenizer = module.train(texts, vocab_size=args.vocab_size)
        held = texts[:: max(1, len(texts) // 200)]
    else:
        source = data.merge(sources)
        at = data.rng(args.seed, 2).permutation(len(source))[:args.tokenizer_items]
        samples = source.load(at)
        held, samples = samples[:max(1, len(samples) // 20)], samples[max(1, len(samples) // 20):] or samples
        steps, seconds = (args.image_steps, args.image_seconds) if modality == "image" else (args.speech_steps,
                                                                                             args.speech_seconds)
        budget = dict(steps=steps) if steps else dict(seconds=seconds)
        if modality == "image":
            height, width, channels = samples[0].shape
            config = module.ImageConfig(height=height, width=width, channels=channels, patch=args.patch,
                                        colours=args.image_colours, levels=args.image_levels)
            tokenizer = module.train(np.stack(samples), config, **budget,
                                     seed=args.seed, device=device)
        else:
            config = module.AudioConfig(stride=args.speech_stride, groups=args.speech_groups, levels=args.speech_levels)
            tokenizer = module.train(samples, config, **budget,
                                     seed=args.seed, device=device)
        tokenizer.to("cpu")
    report = tokenizer.report(held)
    print(module.lines(report), f"({time.time() - start:.0f} s)", flush=True)
    tokenizer.save(path)
    (folder / "tokenizers.json").write_text(json.dumps(
        {**read_json(folder / "tokenizers.json", {}), modality: report}, indent=1), encoding="utf-8")
    return tokenizer


def read_json(path, default=None):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def write_json(path, value):
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def gather(args):
    """Sources by kind: one's own data where a flag names some, the toy world otherwise."""
    if not (args.text or args.images or args.speech):
        sources = data.toy_sources(args.seed, args.pictures, args.passages, args.utterances)
        unknown = [k for k in args.kinds if k not in sources]
        if unknown:
            raise DataError(f"--kinds: no kind {unknown[0]!r}; choose from {', '.join(sources)}")
        sources = {k: sources[k] for k in args.kinds}
    else:
        sources = own_sources(args)
    for kind in sources:
        if args.mix.get(kind, 0) <= 0:
            raise DataError(f"--mix gives {kind} no share: give it one, or leave it out (--kinds; or no flag for its folder)")
    return sources


def own_sources(args):
    """Sources by kind of the folders that --text, --images and --speech name."""
    sources = {}
    if args.text:
        sources["text"] = data.merge([data.read_text(p) for p in args.text])
    if args.images:
        first = data.captioned(args.images[0], data.PICTURES, "--images")[0][0]
        side, channels = data.picture_format(first)
        unit = args.patch or 4
        side = args.image_side or max(unit, side // unit * unit)
        sources["image-text"] = data.merge([data.read_images(p, side, channels) for p in args.images])
    if args.speech:
        sources["speech-text"] = data.merge([data.read_speech(p) for p in args.speech])
    return sources


def prepare(sources, args, folder, device):
    """Sources by kind -> tokenizers -> token cache. Returns stream, {kind: training rows}, {kind: validation rows}."""
    needed = {m for k in sources for m in KINDS[k]}
    tokenizers = {m: make_tokenizer(m, [s for s in sources.values() if m in KINDS[s.kind]], args, folder, device)
                  for m in MODALITIES if m in needed}
    codes, split = {}, {}
    for kind, source in sources.items():
        sources[kind], *split[kind] = data.held_out(source)
        with tqdm(total=len(sources[kind]), desc=f"encoding {kind}", leave=False) as bar:
            def progress(n):
                bar.n = n
                bar.refresh()
            codes[kind] = data.cached_codes(sources[kind], tokenizers, folder / "cache", progress)
    slots = {"text": [args.text_length]} if "text" in sources else {}
    for kind in sources:
        if len(KINDS[kind]) > 1:
            slots[kind] = [data.slot_for(m, offsets, tokenizers[m].groups) for m, (_, offsets) in
                           zip(KINDS[kind], codes[kind])]
    stream = data.Stream({m: (t.groups, t.size) for m, t in tokenizers.items()}, slots)
    keys = {k: data.digest(s.key, *(tokenizers[m].name for m in KINDS[k])) for k, s in sources.items()}
    made = {k: [data.make_rows(stream, k, codes[k], at, folder / "cache", keys[k] + part)
                for at, part in zip(split[k], ("train", "held"))] for k in sources}
    return stream, {k: m[0] for k, m in made.items()}, {k: m[1] for k, m in made.items()}


# ---------------------------------------------------------------------------------------------------------------------
# One step.

def noised(batches, step, args, sched):
    """The batch of a step with its masks, all CPU tensors: {kind: dict}. A pure function of (seed, step)."""
    out = {}
    for kind, rows in batches(step).items():
        rng = data.rng(args.seed, 3, step, list(KINDS).index(kind))
        fields = {n: torch.from_numpy(np.ascontiguousarray(getattr(rows, n)))
                  for n in ("ids", "member", "place", "low", "high", "doc") if getattr(rows, n) is not None}
        B = len(rows.ids)
        t = diffusion.stratified_times(B, rng.random())[rng.permutation(B)]
        times, lossy = diffusion.member_times(t, len(KINDS[kind]), args.modes, rng.random(B), args.time_power)
        u = torch.from_numpy(rng.random(rows.ids.shape))
        views = [diffusion.mask_tokens(fields["ids"], fields["member"], times, lossy, u, MASK, sched, c, args.weighting[kind])
                 for c in ((False, True) if args.complement else (False,))]
        x, masked, weight, noisy = (torch.cat(v) for v in zip(*views))                               # (B or 2B, L)
        fields = {n: torch.cat([f] * len(views)) for n, f in fields.items()}
        at = masked
        out[kind] = dict(x=x, masked=masked, place=fields["place"], doc=fields.get("doc"), target=fields["ids"][at],
                         low=fields["low"][at], high=fields["high"][at], weight=weight[at], member=fields["member"][at],
                         counts=torch.stack([(noisy & (fields["member"] == m)).sum() for m in range(len(KINDS[kind]))]))
    return out


def to_device(batch, device):
    return {k: {n: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for n, v in b.items()}
            for k, b in batch.items()}


def backward(net, trunk, batch, weights, autocast):
    """Gradients of a step. Returns named terms {kind/modality: nats a token} and the loss, all tensors.

    A term belongs to one member of one kind of row: the sum over masked tokens of weight * nll, over all its tokens subject
    to noise; with --weighting bound and no --time-power it estimates the bound. The loss is their weighted sum (`weights`;
    a caption of ten tokens would hardly count beside a picture of 19 if all tokens counted alike). One forward and
    backward a kind.
    """
    terms, loss = {}, 0.0
    for kind, b in batch.items():
        with autocast():
            hidden = trunk(b["x"], b["place"], b["doc"])                                             # (B, L, D)
            logits = net.unembed(hidden[b["masked"]])                                                # (M, V)
        nll = diffusion.token_nll(logits, b["target"], b["low"], b["high"])                          # (M,)
        split = diffusion.weighted_terms(nll, b["weight"], b["member"], b["counts"])                 # (members,)
        names = [f"{kind}/{m}" for m in KINDS[kind]]
        part = sum(weights[n] * v for n, v in zip(names, split))
        part.backward()
        loss = loss + part.detach()
        terms.update(zip(names, split.detach()))
    return terms, loss


def faster_trunk(net, args, device, step_seconds):
    """The trunk, compiled where that pays, and the seconds of a step (None if not needed). Settles --compile auto for resuming.

    auto compiles on CUDA, and on a CPU when the planned training is long enough to win the compiler's half minute
    back; what it compiles is measured and kept only if faster; `on` keeps it anyway. Packed rows (a mask of documents) stay eager.
    """
    if args.compile == "off" and args.steps:
        return net.trunk, None                       # nobody asks how long a step takes
    eager = step_seconds(net.trunk)
    planned = args.steps * eager if args.steps else 60 * args.minutes
    if args.compile == "off" or (args.compile == "auto" and device.type != "cuda" and planned < 600):
        args.compile = "off"
        return net.trunk, eager
    fast = torch.compile(net.trunk, dynamic=True)
    trunk = lambda ids, place, doc: (fast if doc is None else net.trunk)(ids, place, doc)
    start = time.time()
    try:
        seconds = step_seconds(trunk)
    except Exception as error:  # no compiler, or one that fails: whatever it raises, the eager trunk does the same
        print(f"--compile {args.compile}: torch.compile failed ({type(error).__name__}), training goes on without", flush=True)
        seconds = math.inf
    print(f"compiled in {time.time() - start:.0f} s: {1000 * seconds:.0f} ms a step, {1000 * eager:.0f} ms without", flush=True)
    args.compile = "on" if seconds < eager or (args.compile == "on" and seconds < math.inf) else "off"
    return (trunk, seconds) if args.compile == "on" else (net.trunk, eager)


def train(args, folder, stream, rows, device, resume):
    """The training loop; returns the network with its averaged weights. See main for what is written where."""
    config = models.ModelConfig(vocab=stream.vocab, places=stream.places, **{**models.PRESETS[args.preset], **args.shape})
    net = models.Transformer(config, seed=args.seed).to(device)
    dtype = fast_dtype(device) if args.dtype == "auto" else getattr(torch, args.dtype)
    autocast = lambda: torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
    sched = diffusion.schedule(args.schedule)
    views = 2 if args.complement else 1
    per_step = data.rows_per_step(stream, args.mix, args.batch_tokens, list(rows))
    batches = data.Batches(stream, rows, {k: n // views for k, n in per_step.items()}, args.seed)
    # padding, which only packed rows have, does not count; what it counts are tokens that the network reads
    batch_tokens = round(sum(n * float((rows[k][:2000] != data.PAD).sum(1).mean()) for k, n in per_step.items()))

    state = None
    if resume:
        state = torch.load(folder / "checkpoint.pt", map_location=device, weights_only=True)
        args.steps = state["steps"]
    began = time.time()

    def step_seconds(trunk, n=8):
        times, idle = [], models.optimizers(net, batch_rule(batch_tokens, BASE["tokens"]), args.optimizer)
        for group in (g for o in idle for g in o.param_groups):
            group["lr"] = 0.0                        # a step costs the same and changes nothing
        for batch in [to_device(noised(batches, i, args, sched), device) for i in range(n)]:  # in training made ahead
            start = time.perf_counter()
            backward(net, trunk, batch, args.loss_weights, autocast)[1].item()
            for optimizer in idle:
                optimizer.step()
            net.zero_grad(set_to_none=True)
            times.append(time.perf_counter() - start)
        return min(times[2:])                        # of a machine left alone: others' work only adds

    trunk, seconds = faster_trunk(net, args, device, step_seconds)
    if not args.steps:  # minutes -> steps, once: from then on the run is a function of (seed, step)
        args.steps = max(10, int((args.minutes * 60 - (time.time() - began)) / (1.1 * seconds)))
    base = tuned_point(args)
    rule = batch_rule(batch_tokens, args.steps * batch_tokens, base, args.gamma)
    warmup = warmup_steps(args.steps, args.warmup)
    optimizers = models.optimizers(net, rule, args.optimizer)
    for group in (g for o in optimizers for g in o.param_groups):
        group["base_lr"] = group["lr"]
    ema = [p.detach().clone() for p in net.parameters()]
    first = 0
    if state:
        net.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        ema = [e.to(device) for e in state["ema"]]
        first = state["step"]
    groups = [g for o in optimizers for g in o.param_groups]         # after loading, which puts new ones in their place
    write_json(folder / "config.json", {
        "layout_version": data.LAYOUT_VERSION, "stream": stream.as_dict(), "model": models.as_dict(config), "rule": rule,
        "steps": args.steps, "batch_tokens": batch_tokens, "rows_per_step": per_step, "args": plain(args)})
    print(f"{models.count(net)['total'] / 1e6:.1f}M parameters on {device} ({str(dtype).removeprefix('torch.')}), "
          f"{args.steps} steps of {per_step} rows")
    print_derived(batch_tokens, args.steps * batch_tokens, batch_tokens / sum(per_step.values()), base=base, gamma=args.gamma,
                  warmup=args.warmup)

    def save(step):
        torch.save({"layout_version": data.LAYOUT_VERSION, "step": step, "steps": args.steps, "model": net.state_dict(),
                    "ema": ema, "optimizers": [o.state_dict() for o in optimizers]}, folder / "checkpoint.tmp")
        os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")

    log = open(folder / "log.jsonl", "a", encoding="utf-8")
    bar = tqdm(total=args.steps, initial=first, desc="training", mininterval=1.0)
    start, net_parameters = time.time(), list(net.parameters())
    with ThreadPoolExecutor(1) as ahead:  # the next batch is made while the network works
        coming = ahead.submit(noised, batches, first, args, sched)
        for step in range(first, args.steps):
            batch, coming = to_device(coming.result(), device), ahead.submit(noised, batches, step + 1, args, sched)
            terms, loss = backward(net, trunk, batch, args.loss_weights, autocast)
            norm = torch.nn.utils.clip_grad_norm_(net_parameters, args.clip)
            factor = lr_factor(step, args.steps, warmup)
            for group in groups:
                group["lr"] = group["base_lr"] * factor
            if not math.isfinite(float(norm)):
                raise DataError(f"loss or gradient is not finite at step {step}: lower --lr; the last good checkpoint "
                                f"is {folder / 'checkpoint.pt'}")
            for optimizer in optimizers:
                optimizer.step()
            net.zero_grad(set_to_none=True)
            with torch.no_grad():  # early on the average follows faster, so that it forgets the start
                torch._foreach_lerp_(ema, net_parameters, max(1 - rule["ema"], 1 / (step + 2)))
            bar.update()
            if step % args.log_every == 0 or step + 1 == args.steps:
                values = {n: round(float(v), 4) for n, v in terms.items()}
                speed = (step + 1 - first) * batch_tokens / (time.time() - start)
                log.write(json.dumps({"step": step, "tokens": (step + 1) * batch_tokens, "loss": round(float(loss), 4),
                                      "terms": values, "lr": rule["lr"] * factor, "grad_norm": round(float(norm), 4),
                                      "tokens_per_second": round(speed)}) + "\n")
                log.flush()
                bar.set_postfix({**{n: f"{v:.2f}" for n, v in values.items()}, "tok/s": f"{speed:.0f}"}, refresh=False)
            if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
                save(step + 1)
    bar.close()
    log.close()


def plan(args):
    """Sizes, cost and settings of a preset, without training. The network is built on the meta device."""
    with torch.device("meta"):
        net = models.Transformer(models.ModelConfig(vocab=args.vocab or models.PLAN_VOCAB[args.preset], places=4096,
                                                    **models.PRESETS[args.preset]))
    counts, config = models.count(net), net.config
    tokens, N = args.tokens or (args.steps or 1000) * args.batch_tokens, counts["total"]
    print(f"preset {args.preset}: width {config.width}, depth {config.depth}, {config.width // config.head_dim} heads of "
          f"{config.head_dim}, vocabulary {config.vocab}")
    print("parameters: " + ", ".join(f"{k} {v:,}" for k, v in counts.items()))
    print(f"memory: weights {4 * N / 2**30:.2f} GiB in float32 ({2 * N / 2**30:.2f} in bf16), training state "
          f"{20 * N / 2**30:.2f} GiB (weight, gradient, two moments, EMA in float32), activations on top")
    flops = models.flops_per_token(config, args.text_length, 0.5)
    print(f"training: {flops / 1e9:.3f} GFLOP a token at length {args.text_length}, half the positions through the head; "
          f"{tokens:,.0f} tokens cost {flops * tokens:.3e} FLOP")
    print(f"compute frontier of the paper, D* = 7754 N^0.84 with N = {N:,}: {7754 * N ** 0.84:.3e} tokens; "
          f"this plan: {tokens:.3e}")
    print_derived(args.batch_tokens, tokens, args.text_length, base=tuned_point(args),
                  gamma=args.gamma, warmup=args.warmup, throughput=args.throughput)


# ---------------------------------------------------------------------------------------------------------------------

def shares(text):
    """'a=0.2,b=0.8' -> {'a': 0.2, 'b': 0.8}"""
    try:
        return {k: float(v) for k, v in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=share,name=share")


def weightings(text):
    """'bound' -> {kind: 'bound'} for all kinds; 'image-text=unweighted' -> that one, and 'bound' for the rest."""
    named = dict(part.split("=", 1) for part in text.split(",")) if "=" in text else dict.fromkeys(KINDS, text)
    return {**dict.fromkeys(KINDS, "bound"), **named}


def numbers(text):
    return tuple(int(n) for n in text.split(","))


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    g = p.add_argument_group("run")
    g.add_argument("--run", default="runs/toy", help="folder for everything the run writes")
    g.add_argument("--preset", default="toy", choices=models.PRESETS, help="size of the network")
    g.add_argument("--minutes", type=float, default=7.8, help="time for the model's training (tokenizers come on top)")
    g.add_argument("--steps", type=int, default=0, help="optimizer steps, instead of --minutes")
    g.add_argument("--resume", action="store_true", help="go on with the run in --run")
    g.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    g.add_argument("--seed", type=int, default=0)
    g.add_argument("--plan", action="store_true", help="print sizes, cost and settings; train nothing")
    g.add_argument("--debug", action="store_true", help="show the traceback of an error")
    g.add_argument("--score-n", type=int, default=50, help="samples for each line of the closing table (0: none)")
    g = p.add_argument_group("data (none of these: the toy world)")
    g.add_argument("--text", action="append", metavar="PATH", help=".txt file or folder of them (repeatable)")
    g.add_argument("--images", action="append", metavar="DIR", help="pictures with metadata.jsonl or .txt captions")
    g.add_argument("--speech", action="append", metavar="DIR", help="metadata.csv and wavs/, or .txt transcripts")
    g.add_argument("--kinds", type=lambda s: s.split(","), default=list(KINDS), help="of the toy world: a subset of "
                   + ",".join(KINDS))
    g.add_argument("--pictures", type=int, default=10_000, help="of the toy world")
    g.add_argument("--passages", type=int, default=10_000, help="of the toy world")
    g.add_argument("--utterances", type=int, default=3_000, help="of the toy world")
    g.add_argument("--mix", type=shares, default=shares("text=0.3,image-text=0.4,speech-text=0.3"),
                   help="share of the training tokens of each kind")
    g.add_argument("--text-length", type=int, default=96, help="tokens in a row of packed text")
    g = p.add_argument_group("tokenizers")
    g.add_argument("--keep-tokenizers", action="store_true", help="use those that the run folder has already")
    g.add_argument("--vocab-size", type=int, default=512, help="byte pairs of the text tokenizer, bytes included")
    g.add_argument("--encoding", help="a tiktoken vocabulary (gpt2, cl100k_base, o200k_base) instead of one's own")
    g.add_argument("--image-side", type=int, default=0, help="pixels (0: that of the first picture)")
    g.add_argument("--patch", type=int, default=0, help="pixels along the side of an image token; 0: the most up to 8")
    g.add_argument("--image-colours", type=int, default=3, help="tokens for the main colours of a picture")
    g.add_argument("--image-levels", type=numbers, default=(5, 5, 5, 5), help="FSQ levels; their product is the codebook")
    g.add_argument("--speech-levels", type=numbers, default=(8, 5, 5))
    g.add_argument("--speech-stride", type=int, default=4, help="16 ms frames in a code step")
    g.add_argument("--speech-groups", type=int, default=3, help="codes in a step")
    g.add_argument("--image-seconds", type=float, default=45, help="training time of the image tokenizer")
    g.add_argument("--speech-seconds", type=float, default=50, help="training time of the speech tokenizer")
    g.add_argument("--image-steps", type=int, help="instead of --image-seconds")
    g.add_argument("--speech-steps", type=int, help="instead of --speech-seconds")
    g.add_argument("--tokenizer-items", type=int, default=6000, help="pictures or clips that tokenizers are trained on")
    g = p.add_argument_group("diffusion")
    g.add_argument("--schedule", default="linear", help="linear, cosine or poly:P")
    g.add_argument("--weighting", type=weightings, default=weightings("text=bound,image-text=unweighted,speech-text=unweighted"),
                   help="of a masked token by its mask rate: " + ", ".join(diffusion.WEIGHTINGS)
                   + "; one for all, or kind=name,... (bound for the rest)")
    g.add_argument("--loss-weights", type=shares, help="of each kind's and modality's term of the loss", default=shares(
        "text/text=0.2,image-text/image=0.3,image-text/text=0.15,speech-text/speech=0.25,speech-text/text=0.1"))
    g.add_argument("--complement", action=argparse.BooleanOptionalAction, default=False,
                   help="train on a mask and on its complement (anti-masking): same tokens a step, half as many items")
    g.add_argument("--modes", type=shares, help="how pairs are noised: shares of " + ", ".join(diffusion.PAIR_MODES),
                   default=shares("joint=0.05,first|second=0.45,second|first=0.4,first=0.07,second=0.03"))
    g.add_argument("--time-power", type=shares, default=shares("first|second=0.6,second|first=0.3"),
                   help="mode=p: times of that mode are drawn as u^p, below 1 at higher mask rates (joint=1: none changed)")
    g = p.add_argument_group("optimizer (values at the tuned point; the batch rule derives the ones used)")
    g.add_argument("--batch-tokens", type=int, default=BASE["batch"], help="tokens a step, all kinds together")
    g.add_argument("--lr", type=float, default=BASE["lr"], help="AdamW learning rate")
    g.add_argument("--optimizer", default="muon", choices=models.OPTIMIZERS, help="of the hidden matrices (the rest: AdamW)")
    g.add_argument("--muon-lr", type=float, default=BASE["muon_lr"], help="Muon's learning rate: the spectral norm of a step")
    g.add_argument("--weight-decay", type=float, default=BASE["weight_decay"], help="multiplied by lr, as in PyTorch")
    g.add_argument("--gamma", type=float, default=0.44, help="token-horizon exponent of the batch rule")
    g.add_argument("--warmup", type=float, default=0.05, help="share of the steps, at most 1000 steps")
    g.add_argument("--clip", type=float, default=1.0, help="largest gradient norm")
    g.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="auto: measured")
    g.add_argument("--compile", default="auto", choices=["auto", "on", "off"], help="auto: measured, if the run is long enough")
    g.add_argument("--shape", type=json.loads, default={}, help='changes to the preset, as {"width": 128}')
    g.add_argument("--log-every", type=int, default=10)
    g.add_argument("--save-every", type=int, default=200)
    g = p.add_argument_group("plan")
    g.add_argument("--vocab", type=int, default=0, help="ids, for --plan")
    g.add_argument("--tokens", type=float, default=0, help="token horizon, for --plan")
    g.add_argument("--throughput", type=float, default=0, help="tokens a second, for the hours that --plan prints")
    return p


def check_flags(args):
    """A DataError for a share whose name is none of those that the flag knows, or a rate that cannot train."""
    if args.muon_lr <= 0:
        raise DataError(f"--muon-lr {args.muon_lr:g}: must be above 0; --optimizer adamw trains without Muon")
    terms = [f"{k}/{m}" for k, members in KINDS.items() for m in members]
    for flag, known in (("modes", diffusion.PAIR_MODES), ("time_power", diffusion.PAIR_MODES), ("mix", KINDS),
                        ("loss_weights", terms), ("weighting", KINDS)):
        for name in getattr(args, flag):
            if name not in known:
                raise DataError(f"--{flag.replace('_', '-')}: no {name!r}; choose from {', '.join(known)}")
    for name in args.weighting.values():
        if name not in diffusion.WEIGHTINGS:
            raise DataError(f"--weighting: no {name!r}; choose from {', '.join(diffusion.WEIGHTINGS)}")


def plain(args):
    return {k: v for k, v in vars(args).items() if k not in ("resume", "plan", "debug", "device", "run")}


def main():
    args = parser().parse_args()
    check_flags(args)
    if args.plan:
        return plan(args)
    began, folder = time.time(), Path(args.run)
    torch.set_float32_matmul_precision("high")
    device = pick_device(args.device)
    if args.resume:
        saved = read_json(folder / "config.json")
        if saved is None or not (folder / "checkpoint.pt").exists():
            raise DataError(f"--resume: {folder} holds no checkpoint: start with python train.py --run {folder}")
        data.check_layout(saved["layout_version"], folder)
        for name, value in saved["args"].items():
            setattr(args, name, value)
    sources = gather(args)
    if not args.resume:                                   # flags and folders are fine: only now may an old run go
        stale = ["config.json", "checkpoint.pt", "log.jsonl", "scores.json", "film.html"]
        if not args.keep_tokenizers:
            stale += ["tokenizers.json", *(m.file for m in MODALITIES.values())]
        for old in stale:
            (folder / old).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    stream, rows, held = prepare(sources, args, folder, device)
    np.savez(folder / "validation.npz", **held)
    train(args, folder, stream, rows, device, args.resume)
    print(f"{(time.time() - began) / 60:.1f} minutes so far", flush=True)
    import sample
    run = sample.load_run(folder, device)
    if args.score_n:
        scores = sample.score(run, args.score_n)
        write_json(folder / "scores.json", scores)
        print(sample.table(scores))
    print(f"film page: {sample.film_page(run)}")
    print(f"{(time.time() - began) / 60:.1f} minutes in all")


if __name__ == "__main__":
    try:
        main()
    except (DataError, ValueError, KeyboardInterrupt) as error:
        if "--debug" in sys.argv:
            raise
        sys.exit(f"train.py: {'stopped' if isinstance(error, KeyboardInterrupt) else error}")
