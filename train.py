"""Train tinytri: tokenizers first, then one masked diffusion model over text, image-text and speech-text.

    python train.py                                        the toy world, ten to twelve minutes on two CPU cores
    python train.py --text a.txt --images DIR --speech DIR --run runs/mine     one's own data (any subset)
    python train.py --resume --run runs/mine               go on where a run stopped
    python train.py --plan --preset 3b                     sizes and settings, no training
    python train.py --bench                                speed of a training step on this machine
"""
import time
BEGAN = time.time()  # before the imports: their seconds count, too
import contextlib  # noqa: E402
import json
import math
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

import data
import diffusion
import flags
import model as models
import prepare
import safe
from data import KINDS, MASK, MODALITIES
from rules import BASE, batch_rule, lr_factor, plan, print_derived, tuned_point, warmup_steps
from safe import DataError, UsageError, write_json


# ---------------------------------------------------------------------------------------------------------------------
# Device and precision.

def precision(args, device):
    """The dtype of matrix products that --dtype asks for, and a function that makes its autocast context."""
    dtype = models.fast_dtype(device) if args.dtype == "auto" else getattr(torch, args.dtype)
    return dtype, lambda: models.autocast(device, dtype)


# ---------------------------------------------------------------------------------------------------------------------
# One step.

def noised(batches, step, args, sched):
    """The batch of a step with its masks, all CPU tensors: {kind: dict}. A pure function of (seed, step)."""
    out = {}
    for kind, rows in batches(step).items():
        rng = data.rng(args.seed, 3, step, list(KINDS).index(kind))
        fields = {n: torch.from_numpy(np.require(getattr(rows, n), None, "CW"))
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
    # not waiting is safe where memory that is not pinned is staged first: on mps it may be gone by then (pytorch/pytorch issue 139550)
    return {k: {n: v.to(device, non_blocking=device.type == "cuda") if torch.is_tensor(v) else v for n, v in b.items()}
            for k, b in batch.items()}


def next_tokens(batches, step):
    """A step's batch as `noised` makes it, for the autoregressive twin: every token that could be noised, given those before."""
    out = {}
    for kind, rows in batches(step).items():
        x, place, member, low, high = (torch.from_numpy(np.require(a, None, "CW")) for a in (rows.ids, rows.place, rows.member,
                                                                                           rows.low, rows.high))
        noisy = member >= 0                                                                          # (B, L)
        before = torch.nn.functional.pad(noisy[:, 1:], (0, 1))                 # the position that predicts it, one earlier
        doc = None if rows.doc is None else torch.from_numpy(rows.doc)
        out[kind] = dict(x=x, masked=before, place=place, doc=doc, target=x[noisy], low=low[noisy], high=high[noisy],
                         weight=torch.ones(int(noisy.sum())), member=member[noisy],
                         counts=torch.stack([(member == m).sum() for m in range(len(KINDS[kind]))]))
    return out


def loss_of(net, trunk, batch, weights, autocast):
    """Loss of a batch as `noised` or `next_tokens` make it and its terms {kind/modality: nats a token}: rows of all kinds go through
    the trunk together, their masked tokens through the head."""
    names, parts = [f"{kind}/{m}" for kind in batch for m in KINDS[kind]], list(batch.values())
    masked, *fields, counts = (torch.cat([b[n].flatten() for b in parts]) for n in ("masked", "target", "low", "high", "weight", "counts"))
    first = np.cumsum([0] + [len(b["counts"]) for b in parts])                                       # of a kind's terms
    term = torch.cat([b["member"] + int(n) for b, n in zip(parts, first)])                           # (M,)
    with autocast():
        hidden = trunk(*((b["x"], b["place"], b["doc"]) for b in parts))[masked]                     # (M, D)

    def nll(hidden, target, low, high):
        with autocast():
            logits = net.unembed(hidden)                                                             # (m, V)
        return diffusion.token_nll(logits, target, low, high)                                        # (m,)

    chunks = list(zip(*(z.split(max(1, models.HEAD_LOGITS // net.config.vocab)) for z in (hidden, *fields[:3]))))
    if len(chunks) > 1:                                  # logits that do not fit at once are made again on the way back
        nats = [checkpoint(nll, *chunk, use_reentrant=False) for chunk in chunks]
    else:
        nats = [nll(*chunk) for chunk in chunks]
    split = diffusion.weighted_terms(torch.cat(nats), fields[3], term, counts)
    return sum(weights.get(n, 0.2) * v for n, v in zip(names, split)), dict(zip(names, split.detach()))


def rows_of(b, first, last):
    """Rows first..last of a batch as `noised` makes it; `counts` stay those of the whole batch, so that parts add up."""
    ends, last = np.concatenate(([0], b["masked"].sum(1).cumsum(0).tolist())), min(last, len(b["x"]))
    cut = {True: slice(first, last), False: slice(ends[first], ends[last])}            # (B, L) fields; (M,) fields
    return {n: v if v is None or n == "counts" else v[cut[v.dim() == 2]] for n, v in b.items()}


def backward(net, trunk, batch, weights, autocast, micro=0, parallel=None):
    """Gradients of a step. Returns named terms {kind/modality: nats a token} and the loss, all tensors.

    A term belongs to one member of one kind of row: the sum over masked tokens of weight * nll, over all its tokens subject
    to noise; with --weighting bound and no --time-power it estimates the bound. The loss is their weighted sum (`weights`;
    a caption of ten tokens would hardly count beside a picture of 19 if all tokens counted alike). One forward and
    backward for `micro` rows of every kind (0: all of them). parallel: a DistributedDataParallel of `Loss`; gradients are
    then exchanged once, in the last backward, and terms and loss are those of this process' rows.
    """
    most = max(len(b["x"]) for b in batch.values())
    parts = [{kind: rows_of(b, i, i + micro) if micro else b for kind, b in batch.items() if i < len(b["x"])}
             for i in range(0, most, micro or most)]
    terms, loss = {}, 0.0
    for n, part in enumerate(parts):
        wait = parallel.no_sync() if parallel and n + 1 < len(parts) else contextlib.nullcontext()
        with wait:
            value, split = parallel(part) if parallel else loss_of(net, trunk, part, weights, autocast)
            (value * world_size()).backward()                         # DistributedDataParallel takes the mean over processes
        loss = loss + value.detach()
        terms = {name: terms.get(name, 0.0) + split.get(name, 0.0) for name in {**terms, **split}}
    return terms, loss


# ---------------------------------------------------------------------------------------------------------------------
# Several processes (torchrun): every one makes the whole batch, takes its rows of it, and the gradients are added up.

def rank():
    return int(os.environ.get("RANK", 0))


def world_size():
    return int(os.environ.get("WORLD_SIZE", 1))


def my_device(name):
    """The device that --device names; auto is one GPU a process where there are several."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if name in ("auto", "cuda") and world_size() > 1 and torch.cuda.is_available() else name


class Loss(torch.nn.Module):
    """`loss_of` as a module, which is what DistributedDataParallel wraps."""

    def __init__(self, net, *fixed):
        super().__init__()
        self.net, self.fixed = net, fixed

    def forward(self, batch):
        trunk, weights, autocast = self.fixed
        return loss_of(self.net, trunk, batch, weights, autocast)


def my_share(batch):
    """The rows of this process."""
    cut = lambda b, r: len(b["x"]) * r // world_size()
    return batch if world_size() == 1 else {k: rows_of(b, cut(b, rank()), cut(b, rank() + 1)) for k, b in batch.items()}


def agreed(value):
    """The first process' value, in all of them."""
    if world_size() > 1:
        box = [value]
        torch.distributed.broadcast_object_list(box)
        value = box[0]
    return value


def any_of(flag, device):
    """Whether the flag is up in any process."""
    if world_size() > 1:
        up = torch.tensor(float(flag), device=device)
        torch.distributed.all_reduce(up)
        flag = bool(up)
    return flag


def summed(terms, loss, device):
    """Terms and loss over all processes."""
    if world_size() > 1:
        all_of_them = torch.stack([*terms.values(), loss]).to(device)
        torch.distributed.all_reduce(all_of_them)
        terms, loss = dict(zip(terms, all_of_them[:-1])), all_of_them[-1]
    return terms, loss


def faster_trunk(net, args, device, step_seconds):
    """The trunk, compiled where that pays, and the seconds of a step (None if not needed). Settles --compile auto for resuming.

    auto compiles on CUDA, and on a CPU when at least five minutes are planned, which win the compiler's half minute back; what it
    compiles is measured and kept only if faster; `on` keeps it anyway.
    """
    doubtful = args.compile == "auto" and device.type != "cuda"
    if doubtful and (device.type != "cpu" or 0 < args.steps < 100):
        args.compile = "off"                         # mps: its compiler has been silently wrong; timing takes 24 steps: too many beside so few
    if args.compile == "off" and args.steps:
        return net.trunk, None                       # nobody asks how long a step takes
    eager = step_seconds(net.trunk)
    planned = args.steps * eager if args.steps else 60 * args.minutes
    if args.compile == "off" or (doubtful and planned < 300):
        args.compile = "off"
        return net.trunk, eager
    start, trunk = time.time(), None
    try:
        trunk = torch.compile(net.trunk)
        seconds = step_seconds(trunk)
    except Exception as error:  # no compiler, or one that fails: whatever it raises, the eager trunk does the same
        print(f"--compile {args.compile}: torch.compile failed ({type(error).__name__}), training goes on without", flush=True)
        net.zero_grad(set_to_none=True)              # what a backward that failed on its way had left
        seconds = math.inf
    print(f"compiled in {time.time() - start:.0f} s: {1000 * seconds:.0f} ms a step, {1000 * eager:.0f} ms without", flush=True)
    args.compile = "on" if seconds < eager or (args.compile == "on" and seconds < math.inf) else "off"
    return (trunk, seconds) if args.compile == "on" else (net.trunk, eager)


def train(args, folder, stream, rows, device):
    """The training loop, from the checkpoint in `folder` if there is one. Writes config.json, log.jsonl, checkpoint.pt and the page."""
    config = models.ModelConfig(vocab=stream.vocab, places=stream.places, **{**models.PRESETS[args.preset], **args.shape})
    net = models.Transformer(config, seed=args.seed).to(device)
    ema = [p.detach().clone() for p in net.parameters()]               # here, so that trying what fits into memory counts it
    args.dtype = agreed(str(precision(args, device)[0]).removeprefix("torch."))
    (dtype, autocast), sched = precision(args, device), diffusion.schedule(args.schedule)
    per_step = data.rows_per_step(stream, args.mix, args.batch_tokens, list(rows))
    if min(per_step.values()) < world_size():
        raise UsageError(f"--batch-tokens {args.batch_tokens} is {per_step} rows a step: fewer than {world_size()} processes")
    batches = data.Batches(stream, rows, per_step, args.seed, views=1 + args.complement)
    # padding, which only packed rows have, does not count; what it counts are tokens that the network reads
    batch_tokens = round(sum(n * float((rows[k][:2000] != data.PAD).sum(1).mean()) for k, n in per_step.items()))
    state = safe.load(folder / "checkpoint.pt") if (folder / "checkpoint.pt").exists() else None
    began = time.time()

    make, net_parameters = lambda step: my_share(noised(batches, step, args, sched)), list(net.parameters())

    def gradients(trunk, batch, parallel=None):
        """Terms and loss of a batch, as `backward` returns them, and the norm of the gradient, which is clipped."""
        terms, loss = backward(net, trunk, batch, args.loss_weights, autocast, args.micro_batch, parallel)
        return terms, loss, float(torch.nn.utils.clip_grad_norm_(net_parameters, args.clip))

    @torch.no_grad()
    def update(optimizers, rate):
        """A step of every optimizer, and the average of the weights moved by the share `rate` towards them."""
        for optimizer in optimizers:
            optimizer.step()
        net.zero_grad(set_to_none=True)
        torch._foreach_lerp_(ema, net_parameters, rate)

    def step_seconds(trunk, n=24):
        """Seconds of a training step: the whole of it, the next batch made beside it, at rates at which it changes nothing."""
        times, idle = [], models.optimizers(net, batch_rule(batch_tokens, BASE["tokens"]), args.optimizer, dtype)
        for group in (g for o in idle for g in o.param_groups):
            group["lr"] = 0.0
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(make, 0)
            for i in range(n):
                start = time.perf_counter()
                batch, coming = to_device(coming.result(), device), ahead.submit(make, i + 1)
                gradients(trunk, batch)
                update(idle, 0.0)
                times.append(time.perf_counter() - start)
        return float(np.mean(times[n // 4:]))                        # the mean: slow steps take their time in the run, too

    if device.type == "cuda":
        args.micro_batch = agreed(rows_that_fit(args, max(per_step.values()), lambda: step_seconds(net.trunk, 4)))
    trunk, seconds = faster_trunk(net, args, device, step_seconds)
    if not args.steps:  # minutes -> steps, once: from then on the run is a function of (seed, step)
        args.steps = agreed(max(10, int((args.minutes * 60 - (time.time() - began)) / (1.1 * seconds))))
    base = tuned_point(args)
    rule = batch_rule(batch_tokens, args.steps * batch_tokens, base, args.gamma)
    warmup = warmup_steps(args.steps, args.warmup)
    optimizers = models.optimizers(net, rule, args.optimizer, dtype)
    for group in (g for o in optimizers for g in o.param_groups):
        group["base_lr"] = group["lr"]
    first = 0
    if state:
        net.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        ema = [e.to(device) for e in state["ema"]]
        first, state = state["step"], None
    groups = [g for o in optimizers for g in o.param_groups]         # after loading, which puts new ones in their place
    parallel = None
    if world_size() > 1:
        parallel = torch.nn.parallel.DistributedDataParallel(Loss(net, trunk, args.loss_weights, autocast), gradient_as_bucket_view=True)
    chief = rank() == 0
    if chief:
        write_json(folder / "config.json", {
            **safe.read_json(folder / "config.json"), "stream": stream.as_dict(), "model": asdict(config), "rule": rule,
            "steps": args.steps, "batch_tokens": batch_tokens, "rows_per_step": per_step, "args": flags.plain(args)})
        print(f"{models.count(net)['total'] / 1e6:.1f}M parameters on {device} ({args.dtype}), {args.steps} steps of "
              + ", ".join(f"{n} rows of {k} ({n * stream.length(k) / sum(m * stream.length(j) for j, m in per_step.items()):.0%})"
                          for k, n in per_step.items())
              + (f", {args.micro_batch} at a time" if args.micro_batch else "")
              + (f", in {world_size()} processes" if world_size() > 1 else "") + (f", from step {first} on" if first else ""))
        print_derived(batch_tokens, args.steps * batch_tokens, batch_tokens / sum(per_step.values()), base=base,
                      gamma=args.gamma, warmup=args.warmup, optimizer=args.optimizer)
        keep_until(folder / "log.jsonl", first - 1)
        keep_until(folder / "scores.jsonl", first)

    def not_finite(what, step):
        saved = folder / "checkpoint.pt"
        return DataError(f"{what} not finite at step {step}: lower --lr; "
                         + (f"the last good checkpoint is {saved}" if saved.exists() else "there is no checkpoint yet"))

    def save(step):
        if not safe.finite((*net_parameters, *ema)):                  # the last update may have broken them: none may be saved
            raise not_finite("weights are", step)
        if chief:
            safe.save(folder / "checkpoint.pt", {
                "layout_version": data.LAYOUT_VERSION, "step": step, "model": net.state_dict(), "ema": ema,
                "optimizers": [o.state_dict() for o in optimizers]})
            try:
                look(folder, device, step if args.score_every and step % args.score_every == 0 else 0)
            except Exception as error:                                # a page is not worth a run
                print(f"the page could not be written ({safe.reason(error)}): training goes on", flush=True)

    log = open(folder / "log.jsonl" if chief else os.devnull, "a", encoding="utf-8")
    bar = tqdm(total=args.steps, initial=first, desc="training", mininterval=1.0, disable=not chief)
    start = time.time()
    with ThreadPoolExecutor(1) as ahead, interruptible() as interrupted, log, bar:
        coming = ahead.submit(make, first)                           # the next batch is made while the network works
        for step in range(first, args.steps):
            batch, coming = to_device(coming.result(), device), ahead.submit(make, step + 1)
            terms, loss, norm = gradients(trunk, batch, parallel)
            factor = lr_factor(step, args.steps, warmup)
            for group in groups:
                group["lr"] = group["base_lr"] * factor
            if not math.isfinite(norm) or not math.isfinite(float(loss)):
                raise not_finite("loss or gradient is", step)
            update(optimizers, max(1 - rule["ema"], 1 / (step + 2)))  # early on the average follows faster, so that it forgets the start
            bar.update()
            if step % args.log_every == 0 or step + 1 == args.steps:
                terms, loss = summed(terms, loss, device)
                values = {n: round(float(v), 4) for n, v in terms.items()}
                speed = (step + 1 - first) * batch_tokens / (time.time() - start)
                log.write(json.dumps({"step": step, "tokens": (step + 1) * batch_tokens, "loss": round(float(loss), 4),
                                      "terms": values, "lr": rule["lr"] * factor, "grad_norm": round(norm, 4),
                                      "tokens_per_second": round(speed)}) + "\n")
                log.flush()
                bar.set_postfix({**{n: f"{v:.2f}" for n, v in values.items()}, "tok/s": f"{speed:.0f}"}, refresh=False)
            stop = any_of(bool(interrupted), device)
            if (step + 1) % args.save_every == 0 or step + 1 == args.steps or stop or (
                    args.score_every and (step + 1) % args.score_every == 0):
                save(step + 1)
            if stop and step + 1 < args.steps:
                agreed(None)                                             # nobody leaves before the first process has saved
                raise DataError(f"stopped after step {step + 1} of {args.steps}, saved: python train.py --resume --run {folder} "
                                "goes on")


def look(folder, device, step):
    """Write the run's page as it is now; at a step to score, with samples and quick scores of the saved weights."""
    import page
    if not step:
        return page.write(folder)
    import sample
    import score
    run = sample.load_run(folder, device)
    scores = score.score(run, 16, repeats=0)
    with open(folder / "scores.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **{task: r["accuracy"] for task, r in scores.items()}}) + "\n")
    return page.write(folder, run, samples=1)


@contextlib.contextmanager
def interruptible():
    """A list that is no longer empty once Ctrl-C (or a polite kill) has come; a second one stops at once."""
    came = []

    def note(number, frame):
        if came:
            raise KeyboardInterrupt
        came.append(number)
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    old = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def rows_that_fit(args, most, step):
    """--micro-batch, or the half, quarter ... of the rows of a kind at which `step()` no longer runs out of memory."""
    while True:
        try:
            step()
            return args.micro_batch
        except torch.OutOfMemoryError:
            args.micro_batch = (args.micro_batch or most) // 2
            if not args.micro_batch:
                raise
        torch.cuda.empty_cache()


def keep_until(path, step):
    """Drop the lines of later steps, which a run that was stopped had written after its checkpoint: they come again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]        # what follows the last line's end has been cut
        safe.write_text(path, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))


# ---------------------------------------------------------------------------------------------------------------------

# What a run writes into its folder, beside config.json and the cache. Files of other names are not ours: they are never touched.
RESULTS = ["checkpoint.pt", "index.html", "films.html", "scores.json", "scores.jsonl", "seconds.json"]
STARTED = ["log.jsonl", "validation.npz"]                 # there before the first checkpoint is
TOKENIZERS = [m.file for m in MODALITIES.values()]


def check_folder(folder, args):
    """A UsageError if a new run must not write into folder: it holds files that no run wrote, or a run without --overwrite. The
    rest of a failed start may be replaced; with --keep-tokenizers a folder may hold tokenizers copied from elsewhere."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--run {folder} is a file: give a new folder")
    if not safe.is_run(folder):
        strange = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
        strange = [name for name in strange if not (args.keep_tokenizers and name in TOKENIZERS)]
        if strange:
            raise UsageError(f"--run {folder} holds files that no run wrote ({', '.join(strange[:3])}{', ...' if len(strange) > 3 else ''}): "
                             f"give a new or an empty folder")
    elif not args.overwrite and any((folder / name).exists() for name in RESULTS):
        raise UsageError(f"--run {folder} holds a run already: --resume goes on with it, --overwrite replaces it, another "
                         f"--run leaves it alone")


def make_way(folder, args):
    """Remove what a run left in folder, if `check_folder` allows it: the files of the names above and no others. The checkpoint goes
    first, so that what a kill leaves is the rest of a start; config.json, which tells whose folder it is, is written over later.
    With --keep-tokenizers the tokenizers stay."""
    check_folder(folder, args)
    if args.keep_tokenizers and (then := safe.read_json(folder / "config.json")):
        data.check_layout(then["layout_version"], folder)
    for name in RESULTS + STARTED + ([] if args.keep_tokenizers else ["tokenizers.json", *TOKENIZERS]):
        (folder / name).unlink(missing_ok=True)


def main():
    args = flags.parser(__doc__).parse_args()
    flags.check(args)
    if args.plan:
        return plan(args)
    clock, folder = prepare.Clock(BEGAN), Path(args.run)
    clock("reading data")
    torch.set_float32_matmul_precision("high")
    device = safe.pick_device(my_device(args.device))
    if args.bench:
        import bench
        return bench.bench(args, device)
    if args.resume:
        flags.settings_of(folder, args)
    elif rank() == 0:
        check_folder(folder, args)                        # now, and again in `make_way`: reading data may take long
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if world_size() > 1:
        from torch.distributed.nn import functional as _  # now: loaded later, its default arguments would hold the group and its threads
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=12))
    sources = prepare.gather(args)
    keys = {kind: source.key for kind, source in sources.items()}
    if args.resume and (then := safe.read_json(folder / "config.json").get("data")) not in (None, keys):
        raise DataError(f"--resume: the data are not what {folder} was trained on ({', '.join(k for k in keys if keys[k] != then.get(k))}"
                        f" changed): put them back, or start another run with --run")
    if rank() == 0:
        if not args.resume:                               # flags and data are fine: only now may an old run go
            make_way(folder, args)
            write_json(folder / "config.json", {"layout_version": data.LAYOUT_VERSION, "data": keys, "args": flags.plain(args)})
        stream, rows, held = prepare.prepare(sources, args, folder, device, clock)
        safe.write_arrays(folder / "validation.npz", **held)
    if world_size() > 1:
        torch.distributed.barrier()
        if rank() > 0:                                    # reads what the first has made
            stream, rows, held = prepare.prepare(sources, args, folder, device, clock)
    del sources                                           # pictures and sounds that were kept in memory
    clock("training")
    train(args, folder, stream, rows, device)
    if world_size() > 1:
        torch.distributed.destroy_process_group()
    if rank() > 0:
        return
    print(clock.line(), flush=True)
    clock("scoring")
    import page
    import sample
    import score
    run = sample.load_run(folder, device)
    if args.score_n:
        scores = score.score(run, args.score_n)
        write_json(folder / "scores.json", scores)
        print(score.table(scores))
    clock("page")
    print(f"page: {page.write(folder, run)}")
    clock("end")
    write_json(folder / "seconds.json", clock.seconds)
    print(f"{clock.line()}; {sum(clock.seconds.values()) / 60:.1f} minutes in all")


if __name__ == "__main__":
    safe.cli(main, "train.py")
