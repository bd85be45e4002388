"""`python train.py --bench`: how fast a training step is, what it spends its time on, and what share of the machine it uses.

Four things are timed in turn in one process, on rows of random tokens laid out as in training:
  diffusion       the step that train.py takes, compiled unless --compile off
  autoregressive  its twin: the same network with a causal mask, a loss at every token
  plain           a GPT of the same width, depth and rows, from nn.TransformerEncoderLayer, float32, AdamW (text rows alone)
  matmul          a large matrix product in the same dtype: the peak of a device that PEAKS does not know
Of that peak two shares are given: of the network's products (model FLOPs, as PaLM counts them), and with the optimizer's.
"""
import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import data
import diffusion
import flags
import model as models
import train

# bf16 products without sparsity, FLOP/s, from the makers' data sheets, by the device's whole name: variants (NVL, Ti, laptops') have other rates
PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H200": 989e12, "NVIDIA B200": 2250e12,
         **dict.fromkeys(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"), 312e12),
         "NVIDIA A10G": 70e12, "NVIDIA L40S": 362e12, "NVIDIA L40": 181e12, "NVIDIA L4": 121e12, "NVIDIA GeForce RTX 4090": 165e12,
         "NVIDIA GeForce RTX 3090": 71e12, "AMD Instinct MI300X": 1307e12}

CODES = {"text": (1, 436), "image": (1, 625), "speech": (3, 200)}      # the default run's, where no flag says otherwise
SLOTS = {"image-text": [19, 12], "speech-text": [72, 8]}


def make_rows(args, count=256):
    """(Stream, {kind: rows (count, L)}): random codes in the default run's layout; documents a third of a row long; of
    text alone whole rows."""
    size = args.vocab or CODES["text"][1]
    slots = {"text": [args.text_length], **SLOTS}
    codes = {**CODES, "text": (1, size)}
    stream = data.Stream({m: c for m, c in codes.items() if any(m in data.KINDS[k] for k in args.kinds)},
                         {k: slots[k] for k in args.kinds})
    rng, rows = data.rng(args.seed, 31), {}
    for kind in args.kinds:
        if kind == "text":
            room = args.text_length - data.HEAD - 1
            lengths = np.full(count, room) if args.kinds == ["text"] else rng.integers(room // 5, room // 2, 3 * count)
            rows[kind] = stream.pack(kind, [rng.integers(0, size, n) for n in lengths])[:count]
        else:
            rows[kind] = np.stack([stream.row(kind, [rng.integers(0, CODES[m][1], n - data.MODALITIES[m].open_end)
                                                     for m, n in zip(data.KINDS[kind], stream.slots[kind])])
                                   for _ in range(count)])
    return stream, rows


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def measure(step, device, steps=0):
    """Run step(i) -> {part: seconds} so often, or for four seconds; returns the parts of the median step and the number of steps."""
    for i in range(3):
        step(i)
    laps, start = [], time.perf_counter()
    while len(laps) < (steps or 5) or (not steps and time.perf_counter() - start < 4):
        laps.append(step(3 + len(laps)))
    laps.sort(key=lambda lap: sum(lap.values()))
    return laps[len(laps) // 2], len(laps)


def matmul_rate(device, dtype):
    """FLOP/s of a large matrix product: the best of ten."""
    n = 2048 if device.type == "cpu" else 8192           # of a GPU the smaller one is over before it is launched
    a, b = torch.ones(n, n, dtype=dtype, device=device), torch.ones(n, n, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(10):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n ** 3 / best


def time_step(args, stream, rows, per_step, device, causal=False):
    """Median step of the diffusion model, or of its causal twin -> (config, {part: seconds}, steps timed, positions a step that go through
    the head, FLOPs of the optimizer's matrix products)."""
    config = models.ModelConfig(stream.vocab, stream.places, **{**models.PRESETS[args.preset], **args.shape}, causal=causal)
    net = models.Transformer(config, seed=args.seed).to(device)
    dtype, autocast = train.precision(args, device)
    batches = data.Batches(stream, rows, per_step, args.seed, views=1 + (args.complement and not causal))
    sched = diffusion.schedule(args.schedule)
    optimizers = models.optimizers(net, train.batch_rule(1, 1, {**train.BASE, "batch": 1, "tokens": 1}), args.optimizer, dtype)
    make = lambda i: train.to_device(train.next_tokens(batches, i) if causal else train.noised(batches, i, args, sched), device)
    trunk = torch.compile(net.trunk) if args.compile != "off" else net.trunk
    head = []

    def step(i):
        marks = [time.perf_counter()]
        def lap():
            wait(device)
            marks.append(time.perf_counter())
        batch = make(i)
        head.append(sum(len(b["target"]) for b in batch.values()))
        lap()
        loss, _ = train.loss_of(net, trunk, batch, args.loss_weights, autocast)
        lap()
        loss.backward()
        lap()
        torch.nn.utils.clip_grad_norm_(list(net.parameters()), args.clip)
        for optimizer in optimizers:
            optimizer.step()
        net.zero_grad(set_to_none=True)
        lap()
        return dict(zip(("data", "forward", "backward", "optimizer"), np.diff(marks)))

    try:
        parts, steps = measure(step, device, args.steps)
    except Exception as error:
        if args.compile == "off":
            raise
        print(f"torch.compile failed ({type(error).__name__}): timed without", file=sys.stderr)
        trunk = net.trunk
        parts, steps = measure(step, device, args.steps)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with FlopCounterMode(display=False) as counted:
        for optimizer in optimizers:
            optimizer.step()
    return config, parts, steps, float(np.mean(head)), counted.get_total_flops()


def plain_step(args, stream, rows, per_step, device):
    """Median step of a plain float32 GPT on the text rows."""
    preset = {**models.PRESETS[args.preset], **args.shape}
    width, depth = preset["width"], preset["depth"]
    length = stream.length("text")
    layer = nn.TransformerEncoderLayer(width, width // preset.get("head_dim", 64), 4 * width, dropout=0.0, activation="gelu",
                                       batch_first=True, norm_first=True)
    net = nn.ModuleDict(dict(embed=nn.Embedding(stream.vocab, width), place=nn.Embedding(length, width),
                             blocks=nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False),
                             head=nn.Linear(width, stream.vocab, bias=False))).to(device)
    optimizer, causal = torch.optim.AdamW(net.parameters(), 1e-3), nn.Transformer.generate_square_subsequent_mask(length, device)
    batches = data.Batches(stream, {"text": rows["text"]}, {"text": per_step["text"]}, args.seed)

    def step(i):
        ids = torch.from_numpy(batches(i)["text"].ids).to(device)
        wait(device)
        start = time.perf_counter()
        x = net["embed"](ids) + net["place"].weight
        logits = net["head"](net["blocks"](x, mask=causal, is_causal=True))
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait(device)
        return dict(step=time.perf_counter() - start)

    return measure(step, device, args.steps)[0]["step"]


def peak_memory(device):
    """Most bytes held so far: of the device on CUDA, of the process elsewhere; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def bench(args, device):
    """Time what the module's docstring lists; print a table, or JSON with --json. Returns the figures."""
    flags.check_mix(args, args.kinds)
    stream, rows = make_rows(args)
    per_step = data.rows_per_step(stream, args.mix, args.batch_tokens, args.kinds)
    real = {k: float((rows[k] != data.PAD).sum(1).mean()) for k in per_step}
    tokens, positions = sum(n * real[k] for k, n in per_step.items()), sum(n * stream.length(k) for k, n in per_step.items())
    dtype = train.precision(args, device)[0]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {torch.get_num_threads()} threads"
    known = PEAKS.get(name) if dtype == torch.bfloat16 else None
    result = dict(device=name, torch=torch.__version__, dtype=str(dtype).removeprefix("torch."), preset=args.preset,
                  rows_per_step=per_step, tokens_per_step=round(tokens), real_share=tokens / positions)
    result["matmul_flops"] = matmul_rate(device, dtype)
    peak = known or result["matmul_flops"]
    for what, causal in (("diffusion", False), ("autoregressive", True)):
        config, parts, steps, head, updates = time_step(args, stream, rows, per_step, device, causal)
        seconds = parts["forward"] + parts["backward"] + parts["optimizer"]           # data is made while the device works
        length = sum(n * stream.length(k) ** 2 for k, n in per_step.items()) / positions
        flops = positions * models.flops_per_token(config, length, head / positions)
        result[what] = dict(steps=steps, milliseconds={k: 1000 * v for k, v in parts.items()}, step_ms=1000 * seconds,
                            tokens_per_second=tokens / seconds, positions_per_second=positions / seconds,
                            flops_per_step=flops, utilisation=flops / seconds / peak, optimizer_flops=updates,
                            products=(flops + updates) / seconds / peak, data_share=parts["data"] / seconds)
    if args.kinds == ["text"]:
        seconds = plain_step(args, stream, rows, per_step, device)
        result["plain"] = dict(step_ms=1000 * seconds, tokens_per_second=tokens / seconds)
        result["against_plain"] = result["diffusion"]["tokens_per_second"] / result["plain"]["tokens_per_second"]
    result["against_autoregressive"] = result["diffusion"]["tokens_per_second"] / result["autoregressive"]["tokens_per_second"]
    result["peak_bytes"] = peak_memory(device)
    if args.json:
        print(json.dumps(result, indent=1))
        return result
    print(f"{name}, {result['dtype']}, preset {args.preset}: {config.width} x {config.depth}, {per_step} rows of "
          f"{ {k: stream.length(k) for k in per_step} } tokens, {100 * result['real_share']:.0f}% of them real")
    print(f"{'':15}{'step':>9}{'forward':>9}{'backward':>10}{'optimizer':>11}{'data':>8}{'tokens/s':>11}{'utilised':>10}{'products':>10}")
    for what in ("diffusion", "autoregressive"):
        r, ms = result[what], result[what]["milliseconds"]
        print(f"{what:15}{r['step_ms']:6.1f} ms{ms['forward']:9.1f}{ms['backward']:10.1f}{ms['optimizer']:11.1f}{ms['data']:8.1f}"
              f"{r['tokens_per_second']:11.0f}{100 * r['utilisation']:9.0f}%{100 * r['products']:9.0f}%")
    if "plain" in result:
        print(f"{'plain':15}{result['plain']['step_ms']:6.1f} ms{'':38}{result['plain']['tokens_per_second']:11.0f}")
    print(f"utilised: the network's products, products: the optimizer's as well, as a share of {peak / 1e12:.3g} TFLOP/s, "
          + ("the device's peak" if known else "a large matrix product in this run")
          + f"; diffusion {result['against_autoregressive']:.2f} times its twin's tokens a second"
          + (f", {result['against_plain']:.2f} times the plain GPT's" if "plain" in result else "")
          + (f"; peak memory {result['peak_bytes'] / 2**30:.2f} GiB" if result["peak_bytes"] else ""))
    return result
