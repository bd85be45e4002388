"""What the studies share: a small set-up, runs that are kept and resumed one by one, and bounds with standard errors.

The set-up: the toy world's passages (`toyworld.passages`, 30,000 of them, a byte-pair vocabulary trained on them, rows of
96 tokens), or all three modalities as train.py makes them (`trimodal`), and a small network. A run is a pure function of its
configuration, so a result that is in the JSON file already is not computed again (delete the file after a change of the
code). Figures are those of the last weights, not of their average: the studies compare optimizers, and an average would
hide what they do.
"""
import contextlib
import functools
import json
import math
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks this small are fastest on one core each, several runs at a time
import numpy as np  # noqa: E402
import torch  # noqa: E402

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import data  # noqa: E402
import diffusion  # noqa: E402
import flags  # noqa: E402
import model as models  # noqa: E402
import prepare  # noqa: E402
import safe  # noqa: E402
import sample  # noqa: E402
import score  # noqa: E402
import train  # noqa: E402

LENGTH = 96  # tokens a row
CACHE = HERE / "cache"  # of `trimodal`
COMPILE_FROM = 500_000  # tokens of a run from which on the compiler's ten seconds are won back


@functools.lru_cache(maxsize=1)
def world(count=30_000, held=256):
    """The toy world's passages: stream, training rows and held-out rows by kind, tokenizers, folder. A few seconds."""
    import toyworld
    from tokenizers import text
    texts = toyworld.passages(count, 0)
    tokenizer = text.train(texts, vocab_size=512)
    stream = data.Stream({"text": (1, tokenizer.size)}, {"text": [LENGTH]})
    rows = stream.pack("text", tokenizer.encode(texts))
    order, scratch = data.rng(0, 17).permutation(len(rows)), tempfile.TemporaryDirectory()
    safe.write_arrays(Path(scratch.name) / "validation.npz", text=rows[order[:held]])
    return SimpleNamespace(stream=stream, rows={"text": rows[order[held:]]}, held={"text": rows[order[:held]]},
                           tokenizers={"text": tokenizer}, folder=Path(scratch.name), scratch=scratch)


@functools.lru_cache(maxsize=1)
def trimodal(steps=2_500, items=10_000):
    """The toy world in three modalities, by train.py's own steps; the tokenizers, trained for `steps` each, and the rows stay in
    experiments/cache (three minutes the first time)."""
    args = flags.parser().parse_args(["--image-steps", str(steps), "--speech-steps", str(steps), "--pictures", str(items),
                                      "--passages", str(items), "--utterances", str(3 * items // 10)])
    scripts = [(HERE.parent / name).read_bytes() for name in (
        "toyworld.py", "toyspeech.py", "readers.py", "prepare.py", "data.py", *(f"tokenizers/{n}.py" for n in ("text", "image", "audio", "fsq")))]
    return prepared(args, CACHE / data.digest(steps, items, *scripts))


@functools.lru_cache(maxsize=1)
def own_text(path):
    """One's own text, by train.py's own steps (the last tenth is held out)."""
    args = flags.parser().parse_args(["--text", path, "--text-length", str(LENGTH), "--vocab-size", "1024"])
    return prepared(args, CACHE / data.digest("text", data.made_by(), args.vocab_size, *(p.read_bytes() for p in sorted(Path(path).rglob("*.txt")) or [Path(path)])))


def prepared(args, folder):
    """The world that flags of train.py describe, made in folder or read from there."""
    stream, rows, held = prepare.prepare(prepare.gather(args), args, folder, torch.device("cpu"), prepare.Clock(time.time()))
    if not (folder / "validation.npz").exists():
        safe.write_arrays(folder / "validation.npz", **held)
    tokenizers = {m: data.tokenizer_module(m).load(folder / data.MODALITIES[m].file) for m in stream.codes}
    return SimpleNamespace(stream=stream, rows=rows, held=held, tokenizers=tokenizers, folder=folder)


def world_of(c):
    return trimodal(*c["trimodal"]) if "trimodal" in c else own_text(c["text"]) if "text" in c else world()


def run_of(net, w):
    """What sample.py and score.py ask of a run."""
    return sample.Run(w.folder, {"args": dict.fromkeys(("text", "images", "speech"))}, w.stream, w.tokenizers, net.eval(), torch.device("cpu"))


def held_out_nats(net, stream, rows, rounds=4, kind="text"):
    """Nats a token on rows (N, L) of a kind and its standard error: the bound, with the same masks for every network, or of a causal
    network -log p itself, over the same tokens."""
    d = stream.describe(kind, rows.astype(np.int64))
    ids, place, low, high = (torch.from_numpy(np.array(a)) for a in (d.ids, d.place, d.low, d.high))
    doc = None if d.doc is None else torch.from_numpy(d.doc)
    noisy = torch.from_numpy(d.member >= 0)
    with torch.no_grad():
        if net.config.causal:
            logits = net(ids, place, doc, select=torch.nn.functional.pad(noisy[:, 1:], (0, 1)))
            nll = diffusion.token_nll(logits, ids[noisy], low[noisy], high[noisy])
            nats = torch.zeros(ids.shape, dtype=torch.float64).masked_scatter(noisy, nll.double()).sum(1)
        else:
            nats = diffusion.bound(lambda x, where: net(x, place, doc, select=where), ids, noisy, low, high, data.MASK,
                                   data.rng(0, 23), rounds=rounds)
    tokens = noisy.sum(1).double()
    return tuple(map(float, score.ratio(nats.numpy(), tokens.numpy())))


def compiled(net, batch):
    """The trunk compiled for batches of this shape; as it is where there is no compiler."""
    torch._dynamo.reset()                            # every run of a worker has a network and a shape of its own
    trunk = torch.compile(net.trunk, dynamic=False)
    try:
        trunk((batch["x"], batch["place"], batch["doc"])).sum().backward()
    except Exception:  # whatever a missing or broken compiler raises, the eager trunk does the same
        trunk = net.trunk
    net.zero_grad(set_to_none=True)
    return trunk


def schedule_of(name):
    """A schedule by name, or by its points [t, alpha]."""
    return diffusion.schedule(name) if isinstance(name, str) else diffusion.from_points(*name)


def trained(c):
    """Train one configuration -> (network, flags of `train.noised`, steps, curve); network None if the loss was not finite.

    c: width, depth, head_dim, base_width, base_depth; batch in rows; tokens; seed; the settings of the optimizer as they are
    used (lr, beta1, beta2, eps, weight_decay; for muon muon_lr, momentum): whatever rule made them was applied before. And, if there: "rates", factors
    {row of the Complete(d)P table: x} on top of model.MULTIPLIERS' learning rates; "clip", largest gradient norm (1);
    "schedule"; "complement": every row under a mask and its complement, half as many rows; "causal": the autoregressive
    twin; "unique": train on the first so many rows only; "every": a curve of [step, held-out nats] at so many steps;
    "optimizer" (adamw); "dtype" of matrix products (float32); "text", a file or folder of one's own instead of the passages. For all
    three modalities "trimodal" (arguments of that function) and "mix" (share of tokens by kind), and if there "modes" (joint),
    "weighting", "time_power" and "loss_weights" as train.py has them (every token alike).
    """
    torch.set_num_threads(1)
    w = world_of(c)
    shape = {k: c[k] for k in ("width", "depth", "head_dim", "base_width", "base_depth")}
    config = models.ModelConfig(w.stream.vocab, w.stream.places, **shape, causal=c.get("causal", False))
    complement = c.get("complement", False)
    per_step = data.rows_per_step(w.stream, c["mix"], c["batch"] * LENGTH, list(c["mix"])) if "mix" in c else {"text": c["batch"]}
    batches = data.Batches(w.stream, {k: w.rows[k][:c.get("unique")] for k in per_step}, per_step, c["seed"], views=1 + complement)
    total = sum(n * sum(w.stream.slots[k]) for k, n in per_step.items())
    alike = {f"{k}/{m}": n * slot / total for k, n in per_step.items() for m, slot in zip(data.KINDS[k], w.stream.slots[k])}
    weights = c.get("loss_weights", alike)
    args = SimpleNamespace(seed=c["seed"], modes=c.get("modes", {"joint": 1.0}), time_power=c.get("time_power", {}), complement=complement,
                           weighting={k: c.get("weighting", "bound") for k in per_step})
    net, sched = models.Transformer(config, seed=c["seed"]), schedule_of(c.get("schedule", "linear"))
    dtype = getattr(torch, c.get("dtype", "float32"))
    autocast = lambda: models.autocast(torch.device("cpu"), dtype)
    make = lambda step: train.next_tokens(batches, step) if config.causal else train.noised(batches, step, args, sched)
    optimizers = models.optimizers(net, c, c.get("optimizer", "adamw"), dtype)
    groups = [g for o in optimizers for g in o.param_groups]
    base = [g["lr"] * c.get("rates", {}).get(g["name"], 1.0) for g in groups]
    trunk, parameters, curve = net.trunk, list(net.parameters()), []
    if c["tokens"] >= COMPILE_FROM and list(per_step) == ["text"]:
        with autocast():
            trunk = compiled(net, make(0)["text"])
    steps, kind = max(1, round(c["tokens"] / (c["batch"] * LENGTH))), c.get("held", "text")
    for step in range(steps):
        train.backward(net, trunk, make(step), weights, autocast)
        norm = torch.nn.utils.clip_grad_norm_(parameters, c.get("clip", 1.0))
        if not np.isfinite(float(norm)):
            return None, args, steps, curve
        for group, lr in zip(groups, base):
            group["lr"] = lr * train.lr_factor(step, steps, train.warmup_steps(steps))
        for optimizer in optimizers:
            optimizer.step()
        net.zero_grad(set_to_none=True)
        if c.get("every") and (step + 1) % c["every"] == 0:
            curve.append([step + 1, held_out_nats(net, w.stream, w.held[kind], rounds=1, kind=kind)[0]])
    return net, args, steps, curve


def fit(c):
    """Train one configuration (see `trained`) and return {"bound", "stderr", "steps"}; bound None if the loss was not finite.

    And, if c has them: "curve", "samples" by the "samplers" (settings of `judged`), and "noise" (gradient variance and its
    error) under the "views" (dicts of "schedule" and "complement"). Of three modalities no one bound but "bounds": nats a token
    and standard error by kind and direction, as `score.bounds` names them; or, with "held", the one of that kind's rows.
    """
    net, args, steps, curve = trained(c)
    bound, stderr, more, w = None, None, {"curve": curve}, world_of(c)
    if net and "trimodal" in c and "held" not in c:
        more["bounds"] = {k: [b["nats_per_token"], b["stderr"]] for k, b in score.bounds(run_of(net, w)).items()}
    elif net:
        kind = c.get("held", "text")
        bound, stderr = held_out_nats(net, w.stream, w.held[kind], kind=kind)
    if net:
        more["samples"] = [judged(net, w, **gridded(s)) for s in c.get("samplers", ())]
        more["noise"] = [gradient_noise(net, c, args, **view) for view in c.get("views", ())]
    return {"bound": bound, "stderr": stderr, "steps": steps, **{k: v for k, v in more.items() if v}}


def gridded(settings):
    """Settings of a sampler whose "grid" names a schedule: its mask rates at even times instead."""
    if "grid" not in settings:
        return settings
    rates = schedule_of(settings["grid"]).mask_rate(np.linspace(1, 0, settings["steps"] + 1))
    return {**settings, "grid": [1.0, *map(float, rates[1:-1]), 0.0]}


def judged(net, w, n=200, task="text", split="", **settings):
    """n fresh samples of a task -> {"nfe", and for every cell of the task (score.py's `toy_cells`; of one split) shares right by attribute}."""
    out, calls, run = {}, [], run_of(net, w)
    cells = {name: cell for name, cell in score.toy_cells(n, score.SEED)[task].items() if name.startswith(split)}
    for name, (prompts, judge) in cells.items():
        made = sample.generate(run, task, prompts, **settings)
        out[name] = {k: score.mean_and_error(v) for k, v in judge(made.outputs).items()}
        calls.append(made.nfe)
    return {"nfe": float(np.mean(calls)), **out}


def gradient_noise(net, c, args, schedule="linear", complement=False, n=96):
    """Variance tr cov(g) of a step's gradient at fixed weights, over n steps, and its standard error (eight parts)."""
    w = world()
    batches = data.Batches(w.stream, w.rows, {"text": c["batch"]}, 1, views=1 + complement)
    args, sched, grads = SimpleNamespace(**{**vars(args), "complement": complement}), schedule_of(schedule), []
    for step in range(n):
        net.zero_grad(set_to_none=True)
        train.backward(net, net.trunk, train.noised(batches, step, args, sched), {"text/text": 1.0}, contextlib.nullcontext)
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    g = torch.stack(grads)                                                                           # (n, P)
    parts = (((g - g.mean(0)) ** 2).sum(1) * n / (n - 1)).view(8, -1).mean(1)                        # (8,)
    return float(parts.mean()), float(parts.std() / 8 ** 0.5)


def base(factor=1.0, **changes):
    """A small network under the default run's optimizer, settings carried to its shape by Complete(d)P, to its tokens and its batch by the
    batch rule (both learning rates times factor): where all studies start but those of Complete(d)P, which train with AdamW alone."""
    toy = models.PRESETS["toy"]
    c = {"width": 64, "depth": 2, "head_dim": 32, "base_width": toy["width"], "base_depth": toy["depth"], "batch": 16, "tokens": 1_500_000,
         "seed": 0, "optimizer": "muon", **changes}
    rule = train.batch_rule(c["batch"] * LENGTH, c["tokens"])
    rule = {k: rule[k] * (factor if k in ("lr", "muon_lr") else 1) for k in ("lr", "beta1", "beta2", "eps", "weight_decay", "muon_lr", "momentum")}
    return {**rule, **c}


def results_folder(quick=False):
    """Where a study keeps its runs: experiments/results, or a new temporary folder."""
    return Path(tempfile.mkdtemp()) if quick else HERE / "results"


@functools.lru_cache(maxsize=1)
def pool(workers):
    """Worker processes, kept: each makes the data once."""
    import multiprocessing
    return ProcessPoolExecutor(workers or os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))


def run_all(path, configs, workers=None, job=fit):
    """Results of `job` on all configurations, in order: read from the JSON file `path`, or computed now and added to it."""
    path.parent.mkdir(exist_ok=True)
    done, key = safe.read_json(path, {}), lambda c: json.dumps(c, sort_keys=True)  # {settings: {"result", "seconds"}}
    missing = {key(c): c for c in configs if key(c) not in done}
    if missing:
        from tqdm import tqdm
        # the longest first, so that no core waits at the end
        order = sorted(missing.items(), key=lambda i: -i[1]["tokens"] / i[1]["batch"])
        jobs = {pool(workers).submit(timed, job, c): k for k, c in order}
        for future in tqdm(as_completed(jobs), total=len(jobs), desc=path.stem):
            done[jobs[future]] = future.result()
            safe.write_json(path, done)
    return [done[key(c)]["result"] for c in configs]


def timed(job, c):
    start = time.perf_counter()
    return {"result": job(c), "seconds": round(time.perf_counter() - start, 1)}


def least(results):
    """Index of the run with the least bound; a diverged one is never it."""
    return min(range(len(results)), key=lambda i: math.inf if results[i]["bound"] is None else results[i]["bound"])


def tune(path, c, grid, workers=None):
    """Coordinate descent: for each list of `grid` (of dicts of settings) the best of them goes into c. Returns c, what was tried."""
    tried = []
    for settings in grid:
        results = run_all(path, [{**c, **s} for s in settings], workers)
        best = least(results)
        tried += [dict(settings=s, bound=r["bound"], kept=i == best) for i, (s, r) in enumerate(zip(settings, results))]
        c = {**c, **settings[best]}
    return c, tried


def relative(noises):
    """Variances of several seeds, [[(variance, error) a view] a seed], over the first view's -> [(mean, error) a view]."""
    ratios = np.array([[v / seed[0][0] for v, _ in seed] for seed in noises])                        # (seeds, views)
    inside = np.array([[v / seed[0][0] * ((e / v) ** 2 + (n > 0) * (seed[0][1] / seed[0][0]) ** 2) ** 0.5 * (n > 0)
                        for n, (v, e) in enumerate(seed)] for seed in noises])
    return [(float(m), float((e ** 2).mean() ** 0.5 / len(noises) ** 0.5)) for m, e in zip(ratios.mean(0), inside.T)]


def spread(values):
    """Mean and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=len(values) > 1) / len(values) ** 0.5)


def bound_and_error(results):
    """Mean bound over seeds and its standard error (of the seeds; of the evaluation if there is one seed); inf if any diverged."""
    values = [r["bound"] for r in results]
    if None in values:
        return float("inf"), 0.0
    if len(values) == 1:
        return values[0], results[0]["stderr"]
    return spread(values)


def figure(columns, **size):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    return plt.subplots(1, columns, **{"figsize": (4.6 * columns, 3.8), **size})


def made_by(name, folder):
    """What made a result: script, date, versions and, if it trains, how many runs (folder/NAME-runs.json) for how long."""
    runs = safe.read_json(folder / f"{name}-runs.json", {}).values()
    made = dict(script=f"experiments/{name}.py", date=time.strftime("%Y-%m-%d"), python=sys.version.split()[0], torch=torch.__version__,
                numpy=np.__version__)
    if runs:
        made.update(runs=len(runs), core_seconds=sum(r["seconds"] for r in runs))
    return made


def finish(name, result, drawing=None):
    """Write results/NAME.json and, if there is a drawing, results/NAME.png. NAME-runs.json, if any, holds every run's settings and seed."""
    safe.write_json(HERE / "results" / f"{name}.json", {**made_by(name, HERE / "results"), **result})
    if drawing:
        from matplotlib import ticker
        for panel in drawing.axes:
            if panel.get_xscale() == "log":
                panel.xaxis.set_minor_formatter("")                        # they overlap on short axes
                if panel.get_xlim()[0] > 1:                                # counts: 200k, 500k, 1M
                    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
                    panel.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        drawing.tight_layout()
        drawing.savefig(HERE / "results" / f"{name}.png", dpi=110)
