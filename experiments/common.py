"""What the studies share: trials that are kept, held-out nats, judged samples, errors, figures.

A trial is one training of the project's network by train.py's own step. Its result is a pure
function of its configuration, so what stands in results/NAME-runs.json is not computed again. That
file starts anew when the layout or the defaults of train.py have changed. Figures are those of the
last weights, not of their average: studies compare optimizers, and an average hides what they do.
"""
import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: one core each, several at a time
import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import data
import diffusion
import files
import model as models
import sample
import train
from sources import digest
from tools import score

RESULTS = HERE / "results"
CACHE = HERE / "cache"  # tokenizers and documents, made once
CPU = torch.device("cpu")
KINDS = list(data.KINDS)
RULE = ("lr", "beta1", "beta2", "eps", "weight_decay", "muon_lr", "momentum")

# ------------------------------------------------------------------------------------------------
# Trials.

# Where the studies start: a small network on the toy world's passages under the default run's
# optimizer. Both members of a pair are masked at one rate, and every token counts alike.
SMALL = dict(shape={"width": 64, "depth": 2}, mix={"text": 1.0}, batch_tokens=1536,
             modes={"joint": 1.0}, time_power={}, weighting={}, loss_weights={},
             dtype="float32", compile="off")
WRITTEN = dict(sampler="entropy", budget=0.1, temperature=0.7)  # how passages are sampled
TEXTS = {}                               # the world of passages
PAIRS = dict(kinds=KINDS, items=10_000)  # the world of all three kinds
FEW_TEXTS = dict(items=300)              # and those of quick forms
FEW_PAIRS = dict(kinds=KINDS, items=100, image_steps=3, speech_steps=3)


def contents(paths):
    """The texts of files, or of the folders that hold them, so that changed ones are seen."""
    found = []
    for path in map(Path, paths):
        found += [path] if path.is_file() else sorted(path.rglob("*.txt"))
    return [path.read_bytes() for path in found]


@dataclass(frozen=True)
class Trial:
    """One training: settings of train.py, and what studies vary besides."""
    config: train.Config
    tokens: float = 1_500_000                    # of all documents, in all views
    kinds: list = field(default_factory=lambda: ["text"])  # documents made; config.mix: trained on
    rule: dict = field(default_factory=dict)     # of RULE: what replaces the batch rule's settings
    rates: dict = field(default_factory=dict)    # factors on rates, by row of Complete(d)P's table
    unique: int = 0                              # documents of each kind, again and again; 0: all
    looks: int = 0                               # points of a curve of held-out nats
    measure: dict = field(default_factory=dict)  # what to measure besides the bound: MEASURES

    def key(self):
        defaults = vars(train.Config())
        settings = {k: v for k, v in vars(self.config).items() if v != defaults[k]}
        if self.config.text:
            settings["text"] = digest(*contents(self.config.text))
        return json.dumps({**vars(self), "config": settings}, sort_keys=True)


def changed(trial, **changes):
    """A trial with other values of its own fields or of its config's."""
    own = {k: v for k, v in changes.items() if k in vars(trial)}
    rest = {k: v for k, v in changes.items() if k not in own}
    return dataclasses.replace(trial, config=dataclasses.replace(trial.config, **rest), **own)


def trial(factor=1.0, **changes):
    """SMALL with changes. factor: on both learning rates."""
    made = changed(Trial(train.Config(**SMALL)), **changes)
    config = made.config
    return changed(made, lr=factor * config.lr, muon_lr=factor * config.muon_lr)


OF_THE_WORLD = ("text", "items", "text_length", "vocab_size", "image_steps", "speech_steps")


def world(of):
    """Folder, stream, documents and tokenizers of a trial; made once, then read from CACHE."""
    settings = {name: getattr(of.config, name) for name in OF_THE_WORLD}
    config = train.Config(mix=dict.fromkeys(of.kinds, 1.0), **settings)
    code = [path.read_bytes() for name in ("sources", "tokenizers")
            for path in sorted((HERE.parent / name).glob("*.py"))]
    texts = contents(of.config.text)
    folder = CACHE / digest(settings, of.kinds, data.LAYOUT_VERSION, *code, *texts)
    if not (folder / "documents.pt").exists():
        train.start_run(folder, config)
    stream, documents = train.prepared(config, folder, CPU, [])
    names = files.read_json(folder / "config.json")["tokenizers"]
    return folder, stream, documents, data.load_tokenizers(folder, names)


def start(of):
    """What a trial trains, and the run that sample.py and score.py ask."""
    torch.set_num_threads(1)
    folder, stream, documents, tokenizers = world(of)
    config = dataclasses.replace(of.config)
    learnt = {kind: documents[kind][0] for kind in config.mix}
    if of.unique:
        learnt = {k: d[:of.unique] for k, d in learnt.items()}
    training = train.Training(config, stream, learnt, CPU)
    settings = {"config": vars(config)}
    run = sample.Run(folder, settings, stream, tokenizers, training.net, CPU, training.dtype)
    return training, run


def tokens_of(stream, ids):
    """Tokens of each kind in rows ids (B, L), padding left out: (kinds,)."""
    doc = stream.describe(ids).doc
    opens = data.opens(ids)
    lengths = torch.bincount(doc[doc >= 0])                               # (documents,)
    return lengths.new_zeros(len(KINDS)).index_add(0, ids[opens] - data.FIRST_TASK, lengths)


def learn(of, training, run):
    """Train -> tokens of each kind (kinds,), and the curve, rows [tokens, epochs, held-out nats,
    error]. DataError if the loss is not finite."""
    config = training.config
    batches = training.batches
    steps = max(1, round(of.tokens / training.step_tokens))
    rule = train.batch_rule(training.step_tokens, of.tokens, config)
    optimizers = training.optimizers({**rule, **of.rule})
    for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
        group["lr"] *= of.rates.get(group["name"], 1.0)
    kind = next(iter(batches.counts))
    epochs = batches.counts[kind] / len(batches.documents[kind])  # a step
    looks = np.geomspace(max(1, steps / 300), steps, of.looks).round()
    warmup = train.warmup_steps(steps) / steps
    curve = []
    seen = 0
    for step in range(steps):
        ids = batches(step)
        seen = seen + tokens_of(run.stream, ids) * (1 + config.complement)
        batch = training.batch(step)
        train.set_lr(optimizers, train.lr_factor((step + 0.5) / steps, warmup))
        train.train_step(training.net, optimizers, batch, config, training.autocast)
        if step + 1 in looks:
            nats = held_out(run, kind, rounds=1)
            curve.append([int(seen.sum()), (step + 1) * epochs, *nats])
    return seen, curve


def fit(of):
    """Train a trial -> {"tokens": {kind: trained on}, "curve", "bounds": {kind: [nats a token,
    error]}, and what it measures}. If the loss was not finite: bounds alone, None, or DataError
    where looks or measures are wanted."""
    training, run = start(of)
    try:
        seen, curve = learn(of, training, run)
    except files.DataError:
        if of.looks or of.measure:
            raise
        return {"bounds": None}
    kinds = list(training.batches.counts)
    result = {"tokens": {kind: int(seen[KINDS.index(kind)]) for kind in kinds}, "curve": curve}
    result["bounds"] = {kind: held_out(run, kind) for kind in kinds}
    for name, options in of.measure.items():
        result[name] = MEASURES[name](training, run, options)
    return result


# ------------------------------------------------------------------------------------------------
# What is measured of a trained network.


@torch.inference_mode()
def held_out(run, kind, members=(), rounds=4):
    """Nats a token on held-out documents and the standard error: the bound, with the same masks
    for every network; of a causal network -log p itself.

    The bound of a text is given its extent, since a token sees its own document only. A causal
    network has to predict where a text ends. So the extent's -log p is added to the bound.
    """
    rows = run.rows(data.stacked(run.documents[kind][1]))
    noised = rows.of(kind, *(members or data.KINDS[kind]))
    tokens = noised.sum(1).numpy()
    if run.net.config.causal:
        before = F.pad(noised[:, 1:], (0, 1))                             # (B, L)
        nll = diffusion.token_nll(run.ask(rows.ids, before), rows.ids[noised], rows.low[noised],
                                  rows.high[noised])                      # (M,)
        nats = torch.zeros(len(tokens)).index_add(0, noised.nonzero()[:, 0], nll).numpy()
    else:
        nats = diffusion.bound(run.ask, rows.ids, noised, rows.low, rows.high, data.MASK,
                               data.rng(0, 23), rounds).numpy()
        if kind == "text":
            nats = nats + score.extent_nats(run, tokens)
    return score.ratio(nats, tokens)


def directions(training, run, kinds):
    """{"image given text": [nats a token, error], ...}: members of pairs given the other."""
    cells = {}
    for kind in kinds:
        for name, members in score.directions(kind).items():
            if name != "joint":
                cells[name] = held_out(run, kind, members)
    return cells


def judged(training, run, wanted):
    """wanted: {name: [n, task, settings of the sampler]} -> {name: {cell: {attribute: [share right,
    error, n]}}}, of the cells that were seen in training."""
    results = {}
    for name, (n, task, settings) in wanted.items():
        cells = score.toy_cells(run, n, score.SEED)[task]
        seen = {cell: value for cell, value in cells.items() if not cell.startswith("unseen")}
        found = score.score_task(run, task, seen, score.SEED, settings)["cells"]
        results[name] = {cell: attributes(marks) for cell, marks in found.items()}
    return results


def attributes(marks):
    """A cell of score.py -> {attribute: [share right, error, n]}."""
    return {what: [marks[what], marks[f"{what}_stderr"], marks["n"]]
            for what in score.measured(marks)}


def gradient_noise(training, run, views):
    """views: {name: [schedule, complement, steps]} -> {name: [variance tr cov(g) of a step's
    gradient at the trained weights, over that of the first view; 0]}."""
    variances = {}
    parameters = list(run.net.parameters())
    for name, (schedule, complement, steps) in views.items():
        config = dataclasses.replace(training.config, schedule=schedule, complement=complement,
                                     seed=1)
        other = train.Training(config, run.stream, training.batches.documents, CPU)
        weights = config.loss_weight_of_members()
        gradients = []
        for step in range(steps):
            loss = (weights * diffusion.loss_terms(run.net, other.batch(step))).sum()
            grads = torch.autograd.grad(loss, parameters)
            gradients.append(torch.cat([g.flatten() for g in grads]))
        variances[name] = float(torch.stack(gradients).var(0).sum())
    first = next(iter(variances.values()))
    return {name: [variance / first, 0.0] for name, variance in variances.items()}


MEASURES = {"directions": directions, "samples": judged, "noise": gradient_noise}

# ------------------------------------------------------------------------------------------------
# Many trials.


@functools.lru_cache(maxsize=1)
def pool():
    """Worker processes, kept."""
    import multiprocessing
    return ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))


def timed(of):
    began = time.perf_counter()
    return {"result": fit(of), "seconds": round(time.perf_counter() - began, 1)}


def run_all(path, trials):
    """Results of trials, in order: read from the JSON file path, or computed and added to it."""
    form = digest(data.LAYOUT_VERSION, vars(train.Config()), train.BASE, models.MULTIPLIERS)
    kept = files.read_json(path, {})
    if kept.get("form") != form:
        kept = {"form": form, "runs": {}}
    done = kept["runs"]
    missing = {t.key(): t for t in trials if t.key() not in done}
    # the longest first, so that no core waits at the end
    order = sorted(missing, key=lambda key: -missing[key].tokens)
    if path.parent == RESULTS:
        for t in missing.values():
            world(t)  # made here, read by the workers
        jobs = {pool().submit(timed, missing[key]): key for key in order}
        results = ((jobs[job], job.result()) for job in as_completed(jobs))
    else:  # quick forms are sooner done than a process has started
        results = ((key, timed(missing[key])) for key in order)
    for number, (key, result) in enumerate(results, 1):
        done[key] = result
        files.write_json(path, kept)
        print(f"{path.stem}: {number} of {len(order)}, {result['seconds']:.0f} s", file=sys.stderr)
    return [done[t.key()]["result"] for t in trials]


def run_cells(path, cells, seeds):
    """{name: trial} -> {name: [the result of each seed]}."""
    trials = [changed(t, seed=seed) for t in cells.values() for seed in seeds]
    results = run_all(path, trials)
    size = len(seeds)
    return {name: results[i * size:(i + 1) * size] for i, name in enumerate(cells)}


def tune(path, of, grid):
    """Coordinate descent. grid: lists of settings (of RULE, or fields of a trial). The best of a
    list goes into the trial. Returns the trial, and what was tried."""
    tried = []
    for options in grid:
        trials = []
        for settings in options:
            rule = {k: v for k, v in settings.items() if k in RULE}
            rest = {k: v for k, v in settings.items() if k not in RULE}
            trials.append(changed(of, rule={**of.rule, **rule}, **rest))
        nats = [bound_of(r)[0] for r in run_all(path, trials)]
        of = trials[int(np.argmin(nats))]
        tried += [{"settings": s, "nats": n, "kept": n == min(nats)}
                  for s, n in zip(options, nats)]
    return of, tried


# ------------------------------------------------------------------------------------------------
# Results. A cell is [mean, standard error], or [mean, error, n] of n samples.


def bound_of(result, kind="text"):
    return result["bounds"][kind] if result["bounds"] else [math.inf, 0.0]


def with_errors(cells):
    """{name: the cells of its seeds} -> {name: one cell}.

    Two or three seeds tell little of their spread, so it is pooled: by how much do seeds differ,
    in units of their own errors, over all cells? The error is the largest of that times the cell's
    own, of the cell's spread, and of what n independent samples allow. Without n all values were
    measured on the same held-out documents under the same masks. That part of the error is common
    to all cells. It does not blur their differences and is left out, unless there is one seed.
    """
    values = {name: np.array([cell[0] for cell in of]) for name, of in cells.items()}
    own = {name: np.mean([cell[1] ** 2 for cell in of]) ** 0.5 for name, of in cells.items()}
    usable = [name for name, v in values.items()  # a mark that is alike in all samples has none
              if len(v) > 1 and own[name] > 1e-9 and np.isfinite(v).all()]
    pooled = 1.0
    if usable:
        pooled = np.mean([(values[n].std(ddof=1) / own[n]) ** 2 for n in usable]) ** 0.5
    result = {}
    for name, v in values.items():
        independent = len(cells[name][0]) > 2
        error = own[name] * (max(pooled, 1.0) if independent else pooled)
        if len(v) > 1 and np.isfinite(v).all():
            error = max(error, v.std(ddof=1))
        result[name] = [float(v.mean()), float(error / len(v) ** 0.5)]
        if independent:
            result[name].append(sum(cell[2] for cell in cells[name]))
    return result


def bounds(results, kind="text"):
    """{name: results of seeds} -> {name: cell}, nats a token."""
    return with_errors({name: [bound_of(r, kind) for r in of] for name, of in results.items()})


def nested(cells):
    """{(a, b): cell} -> {a: {b: cell}}"""
    result = {}
    for (a, b), cell in cells.items():
        result.setdefault(a, {})[b] = cell
    return result


def lowest(cells):
    """Where the least of {x: cell} is, and the cell."""
    at = min(cells, key=lambda x: cells[x][0])
    return {"at": at, "value": cells[at]}


def collect(results, picks):
    """{arm: results of its seeds}, {what: function of a result -> cell} -> {arm: {what: cell}}."""
    arms = {arm: {} for arm in results}
    for what, pick in picks.items():
        cells = {arm: [pick(r) for r in of] for arm, of in results.items()}
        for arm, cell in with_errors(cells).items():
            arms[arm][what] = cell
    return arms


def share(sampler, what, cell="passages"):
    """What `collect` picks of judged samples."""
    return lambda result: result["samples"][sampler][cell][what]


def add_noise(arms, results):
    """Into {arm: {what: cell}}: gradient variances of the views that are called like the arms."""
    cells = {arm: [r["noise"][arm] for r in results] for arm in arms}
    for arm, cell in with_errors(cells).items():
        arms[arm]["gradient variance"] = cell


def told(value, error, n=0):
    """A cell as text. All or none of n samples is told as such: "50 of 50"."""
    if n and value in (0, 1):
        return f"{value * n:.0f} of {n}"
    if n:
        return f"{100 * value:.0f} ± {max(1, 100 * error):.0f}%"
    return f"{value:.3f} ± {error:.3f}"


def is_cell(value):
    return (isinstance(value, list) and len(value) in (2, 3)
            and all(isinstance(v, float) for v in value[:2]))


def show(result, name=""):
    """Print a result: a line for each dict that holds cells or plain values."""
    parts = []
    for key, value in result.items():
        if is_cell(value):
            parts.append(f"{key} {told(*value)}")
        elif isinstance(value, (str, int, float)):
            parts.append(f"{key} {value}")
    if parts:
        print(f"{name}: " + ", ".join(parts))
    for key, value in result.items():
        if isinstance(value, dict):
            show(value, f"{name}, {key}" if name else str(key))


# ------------------------------------------------------------------------------------------------
# Figures.


def panels(count, **size):
    """A figure and its panels in a row."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    size = {"figsize": (4.6 * count, 3.8), **size}
    figure, axes = pyplot.subplots(1, count, squeeze=False, **size)
    return figure, axes[0]


def curve(panel, cells, label=None, **how):
    """{x: cell} as points with error bars, joined; diverged ones are left out."""
    points = [(float(x), *cell[:2]) for x, cell in cells.items() if math.isfinite(cell[0])]
    return panel.errorbar(*zip(*points), label=label, **{"marker": "o", "ms": 3, "lw": 1, **how})


def draw_arms(result, measures=()):
    """A panel for each measure, all by default: the arms' values with error bars."""
    arms = result["arms"]
    measures = measures or list(next(iter(arms.values())))
    figure, axes = panels(len(measures), figsize=(3.2 * len(measures), 3.6))
    for panel, what in zip(axes, measures):
        values, errors = zip(*[cells[what][:2] for cells in arms.values()])
        panel.errorbar(range(len(arms)), values, errors, fmt="o", capsize=4)
        panel.set_xticks(range(len(arms)), list(arms), rotation=25, ha="right", fontsize=8)
        panel.set_title(what, fontsize=9)
    return figure


def count_axis(panel):
    """A logarithmic axis of counts: 200k, 500k, 1M."""
    from matplotlib import ticker
    panel.set_xscale("log")
    panel.xaxis.set_minor_formatter("")
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))


# ------------------------------------------------------------------------------------------------
# The command line.


def git(*command):
    """What git says of this checkout."""
    return subprocess.run(["git", "-C", str(HERE), *command], capture_output=True, text=True,
                          check=False).stdout.strip()


def made_by(name, folder):
    """What made a result: script, commit, date, versions, how many trials and minutes."""
    commit = git("describe", "--always") or "unknown"
    if git("diff", "--name-only", "HEAD", "--", "..", ":!results"):
        commit += "-dirty"
    made = {"script": f"experiments/{name}.py", "commit": commit,
            "date": time.strftime("%Y-%m-%d"), "python": sys.version.split()[0],
            "torch": torch.__version__}
    runs = files.read_json(folder / f"{name}-runs.json", {}).get("runs", {}).values()
    if runs:
        made["trials"] = len(runs)
        made["core_minutes"] = round(sum(r.get("seconds", 0) for r in runs) / 60, 1)
    return made


def picture(draw, result, path):
    """Draw a result, where matplotlib is."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no figure: pip install matplotlib")
        return
    figure = draw(result)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(name, doc, study, draw=None, quick=None, flags=None, argv=None):
    """The command line of a study: study(folder, **flags) -> result; draw(result) -> figure.

    Writes results/NAME.json and .png. quick: arguments of its smallest form, which writes to a
    temporary folder. flags: {name: (default, help)}. Returns the path of the JSON.
    """
    parser = files.Parser(description=doc)
    parser.add_argument("--quick", action="store_true", help="the smallest form, in seconds")
    parser.add_argument("--redraw", action="store_true", help="the figure anew from the JSON")
    for flag, (default, text) in (flags or {}).items():
        parser.add_argument("--" + flag, default=default, type=type(default), help=text)
    options = vars(parser.parse_args(argv))
    is_quick = options.pop("quick")
    redraw = options.pop("redraw")
    torch.set_num_threads(1 if is_quick else os.cpu_count())  # trials take one each
    folder = Path(tempfile.mkdtemp()) if is_quick else RESULTS
    path = folder / f"{name}.json"
    if not redraw:
        if is_quick:
            options.update(quick or {})
        result = study(folder, **options)
        files.write_json(path, {"made": made_by(name, folder), **result})
        show(result)
        print(f"wrote {path}")
    if draw:
        picture(draw, files.read_json(path), path.with_suffix(".png"))
    return path


def command_line(name, *study):
    """`main`, with errors in one line."""
    files.command_line(lambda: main(name, *study), f"{name}.py")
