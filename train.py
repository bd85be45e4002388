"""Train tinytri: tokenizers first, then one masked diffusion model over text, pictures and speech.

    python train.py                                  the toy world
    python train.py --text a.txt --images DIR --speech DIR --run runs/mine     one's own data
    python train.py --resume --run runs/mine         go on where a run stopped
"""
import time
BEGAN = time.time()  # the seconds of the imports count, too
import argparse
import contextlib
import dataclasses
import datetime
import itertools
import json
import math
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import files  # before torch: it tells OpenMP how to wait
import torch
import torch.distributed as dist
from tqdm import tqdm

import data
import diffusion
import model as models
import sample
from files import DataError, UsageError, number
from sources import prepare
from tokenizers import audio, image
from tools import page, score

LOG_EVERY = 10  # steps
ENOUGH = 4000  # steps of the default run that learn the toy world: experiments/RESULTS.md

# ------------------------------------------------------------------------------------------------
# Settings. Each field is a flag with its help. config.json and the page show them all.


def setting(default, help, type=None, **how):
    """A field of Config: its default, the help of its flag, and what reads the flag's text."""
    metadata = dict(help=help, **how)
    if type:
        metadata["type"] = type
    if isinstance(default, (dict, list)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def name_values(names, read):
    """A type of flag: 'a=0.2,b=0.8' -> {'a': 0.2, 'b': 0.8}, of these names only."""
    def parse(text):
        found = dict(part.split("=") for part in text.split(","))
        for name in found:
            if name not in names:
                raise argparse.ArgumentTypeError(f"no {name!r}; choose from {', '.join(names)}")
        return {name: read(value) for name, value in found.items()}
    parse.__name__ = "name=value,name=value"
    return parse


NOT_NEGATIVE = number(float, 0)
POSITIVE = number(float, 1e-9)
TERMS = [f"{kind}/{modality}" for kind, modality in data.MEMBERS]
WEIGHTINGS = ("bound", "unweighted")


def json_object(text):
    """A type of flag: '{"width": 128}' -> a dict."""
    return dict(json.loads(text))


# Recipes: what replaces the defaults below. A flag that is given wins over its recipe.
# "paper" is what is known of arXiv 2602.21472: AdamW, since its batch rule sets betas and eps, the
# bound as the loss, members weighted by their tokens, anti-masking. The linear schedule is in both.
# Ours in "paper", too: what is masked in a pair (joint masking adds least), the mix, all values of
# the optimizer. lr was tuned with Muon for the hidden matrices.
RECIPES = {
    "tuned": {},
    "paper": dict(optimizer="adamw", weighting=dict.fromkeys(data.KINDS, "bound"), loss_weights={},
                  complement=True, modes={"joint": 1.0}, time_power={}),
}


@dataclass
class Config:
    recipe: str = setting("tuned", "whose defaults: tuned, or paper: what is known of its training",
                          choices=RECIPES)
    run: str = setting("runs/toy", "folder for everything the run writes")
    minutes: float = setting(7.0, "training time; tokenizers come on top", NOT_NEGATIVE)
    steps: int = setting(0, "optimizer steps, instead of --minutes", number(int, 0))
    resume: bool = setting(False, "go on with the run in --run, with its settings")
    overwrite: bool = setting(False, "replace the run in --run")
    seed: int = setting(0, "of all that is drawn but what is held out", number(int, 0, 10 ** 6))
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    score_n: int = setting(50, "samples for each cell of the closing table", number(int, 0))
    save_every: int = setting(200, "steps from one checkpoint to the next", number(int, 1))

    text: list = setting([], "text file or folder of them (repeatable)", metavar="PATH")
    images: list = setting([], "folder of pictures with captions", metavar="DIR")
    speech: list = setting([], "folder of clips with transcripts", metavar="DIR")
    skip_bad: bool = setting(False, "leave out items that cannot be used instead of stopping")
    longest_caption: int = setting(300, "characters of a caption or transcript", number(int, 1))
    longest_clip: float = setting(20.0, "seconds", number(float, 0.1, 3600))
    image_side: int = setting(0, "pixels; 0: what suits the pictures, at most 64",
                              number(int, 0, 1024))
    items: int = setting(30_000, "passages and pictures of the toy world; a fifth as many clips",
                         number(int, 10))
    mix: dict = setting({"text": 0.26, "image-text": 0.44, "speech-text": 0.3},
                        "share of each kind in the tokens; the toy world leaves out kinds without",
                        name_values(data.KINDS, NOT_NEGATIVE))
    text_length: int = setting(96, "tokens of a text; longer ones are split", number(int, 16))

    vocab_size: int = setting(512, "ids of the text tokenizer, bytes included",
                              number(int, 256, 2 ** 20))
    image_tokenizer: dict = setting({}, 'changes, as {"patch": 4, "colours": 4}', json_object)
    speech_tokenizer: dict = setting({}, 'changes, as {"stride": 8, "groups": 4}', json_object)
    image_steps: int = setting(1100, "training steps of the image tokenizer", number(int, 1))
    speech_steps: int = setting(2000, "training steps of the speech tokenizer", number(int, 1))

    schedule: str = setting("linear", f"{', '.join(diffusion.SCHEDULES)} or poly:P")
    weighting: dict = setting({"image-text": "unweighted", "speech-text": "unweighted"},
                              "kind=unweighted: all mask rates count the same; or kind=bound",
                              name_values(data.KINDS, str))
    loss_weights: dict = setting(
        {"text/text": 0.2, "image-text/image": 0.3, "image-text/text": 0.15,
         "speech-text/speech": 0.25, "speech-text/text": 0.1},
        "weight of each member's term in the loss, 0 where none is given",
        name_values(TERMS, NOT_NEGATIVE))
    complement: bool = setting(False, "train on a mask and on its complement (anti-masking)")
    modes: dict = setting(
        {"joint": 0.15, "first|second": 0.4, "second|first": 0.35, "first": 0.07, "second": 0.03},
        "how pairs are noised: share of each mode",
        name_values(diffusion.PAIR_MODES, NOT_NEGATIVE))
    time_power: dict = setting({"first|second": 0.6, "second|first": 0.3},
                               "mode=p: its times are t^p; below 1: higher mask rates",
                               name_values(diffusion.PAIR_MODES, NOT_NEGATIVE))

    preset: str = setting("toy", "shape of the network", choices=models.PRESETS)
    shape: dict = setting({}, 'changes to the preset, as {"width": 128}', json_object)
    batch_tokens: int = setting(2048, "tokens a step, all kinds together", number(int, 1))
    micro_batch: int = setting(0, "rows in the network at a time; 0: all", number(int, 0))
    optimizer: str = setting("muon", "of the hidden matrices: muon or adamw (the rest: adamw)",
                             choices=("muon", "adamw"))
    lr: float = setting(1e-3, "AdamW's, at the tuned point", POSITIVE)
    muon_lr: float = setting(0.012, "Muon's, at the tuned point: spectral norm of a step", POSITIVE)
    weight_decay: float = setting(0.1, "at the tuned point; multiplied by lr", NOT_NEGATIVE)
    gamma: float = setting(0.44, "exponent of the token horizon in the batch rule",
                           number(float, 0, 4))
    clip: float = setting(1.0, "largest norm of the gradient", POSITIVE)
    dtype: str = setting("auto", "of matrix products: float32, bfloat16; auto: the faster one",
                         choices=("auto", "float32", "bfloat16"))
    compile: str = setting("auto", "auto, on, off; auto: on a GPU, and where training is long",
                           choices=("auto", "on", "off"))

    def model(self, vocab, places):
        """The network's shape for a stream of so many ids and places."""
        shape = {**models.PRESETS[self.preset], **self.shape}
        return models.ModelConfig(vocab=vocab, places=places, **shape)

    @property
    def own_data(self):
        """Whether the items are one's own, not the toy world's."""
        return any(getattr(self, name) for name in OWN_DATA)

    def loss_weight_of_members(self):
        """(S,) weights of data.MEMBERS."""
        return torch.tensor([self.loss_weights.get(name, 0.0) for name in TERMS])


def check_settings(config):
    """UsageError for a setting that cannot be right, before anything is read or written."""

    def network():
        if config.shape.get("causal"):
            raise ValueError("causal is for the studies: sample.py cannot sample it")
        net = models.Transformer(config.model(vocab=8, places=8))
        models.param_groups(net, 1.0, 1.0, 1.0)
        net.trunk(*torch.zeros(3, 1, 2, dtype=torch.long))

    def image_tokenizer():
        side = 32  # of the toy world
        if config.own_data:  # until the pictures are read, any that squares divide
            side = config.image_side or 8 * config.image_tokenizer.get("patch", 4)
        image.Net(image.ImageConfig(side, 3, **config.image_tokenizer))

    attempts = {
        "--schedule": lambda: diffusion.schedule(config.schedule),
        "--shape": network,
        "--image-tokenizer": image_tokenizer,
        "--speech-tokenizer": lambda: audio.Net(audio.AudioConfig(**config.speech_tokenizer)),
    }
    for flag, attempt in attempts.items():
        try:
            with torch.device("meta"):  # shapes without memory
                attempt()
        except Exception as error:  # whatever a number or a word in the wrong place raises
            raise UsageError(f"{flag}: {error}")
    for name in OWN_DATA:
        if "" in getattr(config, name):
            raise UsageError(f"--{name}: an empty path; name a file or a folder")
    if not set(config.weighting.values()) <= set(WEIGHTINGS):
        raise UsageError(f"--weighting: choose from {', '.join(WEIGHTINGS)}")
    if not config.steps and not config.minutes:
        raise UsageError("--minutes or --steps must be above 0")
    for name in ("mix", "modes"):
        if not sum(getattr(config, name).values()):
            raise UsageError(f"--{name}: give one of them a share above 0")


OF_THE_CALL = ("run", "resume", "overwrite", "device")  # not of the run
RESUMED_WITH = ("score_n", "save_every", "micro_batch")  # may differ on --resume
OWN_DATA = ("text", "images", "speech")  # not read on --resume: the rows are in the run folder


def parse(argv=None):
    """The command line -> Config, and the names of the flags that were given."""
    parser = files.Parser(description=__doc__)
    for f in dataclasses.fields(Config):
        default = f.default_factory() if f.default is dataclasses.MISSING else f.default
        how = dict(f.metadata)
        if f.type is bool:
            how["action"] = argparse.BooleanOptionalAction
        elif f.type is list:
            how["action"] = "append"
        if default not in ("", [], {}, False):
            how["help"] += f" (default: {typed(default)})"
        parser.add_argument(sample.flag(f.name), default=argparse.SUPPRESS, **how)
    given = vars(parser.parse_args(argv))
    recipe = RECIPES[given.get("recipe", "tuned")]
    return Config(**{**recipe, **given}), set(given)


def typed(value):
    """A default as one would type it."""
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items())
    return value


# ------------------------------------------------------------------------------------------------
# The batch rule (arXiv 2602.21472, by second-hand accounts): tune once, train at any batch size and
# token horizon. Width and depth are Complete(d)P's: the table in model.py.
#
# 1. kappa = (D_base / D)^gamma * (B / B_base), gamma = 0.44   D: tokens in all, B: tokens a step
# 2. lr = lr_base sqrt(kappa), beta = beta_base^kappa, eps = eps_base / sqrt(kappa)
#    AdamW divides its average by the size of a single gradient, which shrinks as 1 / sqrt(B)
#    (arXiv 2205.10287). gamma = 1 is Complete(d)P, gamma = 0 the rule of 2205.10287; both scale
#    1 - beta by kappa, which is nearly the same.
# 3. weight decay x sqrt(kappa): ours. lr * decay then goes as kappa, as Complete(d)P has it.
# 4. EMA of the weights: ema_base^kappa (arXiv 2307.13813).
# 5. Muon: lr x kappa, momentum^kappa. Ours: it normalises after averaging. A momentum that averages
#    over the same tokens at any batch gives a step of the same size, so per token it moves lr / B.
# 6. Warm-up: 5% of the steps (ours; the paper's, second-hand: a quarter), at most 1000. Then a
#    cosine to zero.

BASE = dict(batch=2048, tokens=6_000_000, beta1=0.9, beta2=0.98, eps=1e-8, ema=0.99, momentum=0.95)
S_CRIT = 326  # least steps tried that cost under 2% of the bound: experiments/batch_size.py


def batch_rule(batch, tokens, config):
    """Optimizer settings for a batch and a horizon, both in tokens. config: the tuned values."""
    kappa = (BASE["tokens"] / tokens) ** config.gamma * (batch / BASE["batch"])
    return dict(
        kappa=kappa,
        lr=config.lr * math.sqrt(kappa),
        beta1=BASE["beta1"] ** kappa,
        beta2=BASE["beta2"] ** kappa,
        eps=BASE["eps"] / math.sqrt(kappa),
        weight_decay=config.weight_decay * math.sqrt(kappa),
        ema=BASE["ema"] ** kappa,
        muon_lr=config.muon_lr * kappa,
        momentum=BASE["momentum"] ** kappa,
    )


def warmup_steps(steps):
    return max(1, int(min(1000, 0.05 * steps)))


def lr_factor(progress, warmup):
    """Share of the learning rate. progress, warmup: shares of the training, in [0, 1]."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def print_derived(batch, tokens, length, config):
    """Print what the rule makes of the settings: name, formula, number.

    batch, tokens as in `batch_rule`. length: tokens a row, for B_crit.
    """
    rule = batch_rule(batch, tokens, config)
    steps = max(1, round(tokens / batch))
    rows = [
        ("kappa", "(D_base / D)^gamma B / B_base", rule["kappa"]),
        ("lr", f"{config.lr:g} sqrt(kappa)", rule["lr"]),
        ("beta1", f"{BASE['beta1']:g}^kappa", rule["beta1"]),
        ("beta2", f"{BASE['beta2']:g}^kappa", rule["beta2"]),
        ("eps", f"{BASE['eps']:g} / sqrt(kappa)", rule["eps"]),
        ("weight decay", f"{config.weight_decay:g} sqrt(kappa)", rule["weight_decay"]),
        ("EMA", f"{BASE['ema']:g}^kappa", rule["ema"]),
        ("Muon lr", f"{config.muon_lr:g} kappa", rule["muon_lr"]),
        ("Muon momentum", f"{BASE['momentum']:g}^kappa", rule["momentum"]),
        ("steps", "D / B", steps),
        ("warm-up steps", "min(1000, steps / 20)", warmup_steps(steps)),
        ("B_crit in rows", f"D / (L S_crit), rows of {length:.0f}", tokens / (length * S_CRIT)),
    ]
    if config.optimizer != "muon":
        rows = [row for row in rows if not row[0].startswith("Muon")]
    print(f"B = {batch:.0f} tokens a step, D = {tokens:.3g} tokens, padding left out")
    for name, formula, value in rows:
        print(f"  {name:14} = {formula:30} = {value:.6g}")
    if tokens / batch < S_CRIT:
        print(f"warning: fewer steps than S_crit = {S_CRIT}: above the critical batch size the "
              "loss rises; lower --batch-tokens or train longer", flush=True)


# ------------------------------------------------------------------------------------------------
# One step. Several processes (torchrun) make the same batch and take their rows of it.


def rank():
    return int(os.environ.get("RANK", 0))


def world_size():
    return int(os.environ.get("WORLD_SIZE", 1))


def sum_over_processes(tensors):
    """Replace each tensor by its sum over all processes."""
    if world_size() > 1:
        flat = torch.cat([t.flatten() for t in tensors])  # one call is several times as fast
        dist.all_reduce(flat)
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors])):
            t.copy_(part.view_as(t))


def train_step(net, optimizers, batch, config, autocast):
    """One optimizer step. Returns the loss terms (S,), nats a token, and the gradient's norm.

    batch: the rows of this process. The terms are divided by the counts of all rows, so those of
    parts and of processes add up. Raises DataError, before any weight changes, if one of them is
    not finite.
    """
    weights = config.loss_weight_of_members().to(batch.x.device)
    total = 0.0
    for part in batch.split(config.micro_batch):  # all rows at once by default
        with autocast:
            terms = diffusion.loss_terms(net, part)                       # (S,)
        (weights * terms).sum().backward()  # gradients of all parts add up
        total = total + terms.detach()
    parameters = list(net.parameters())
    sum_over_processes([p.grad for p in parameters] + [total])
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
    if not (total.sum() + norm).isfinite():
        raise DataError("the loss or its gradient is not finite: lower --lr and --muon-lr")
    for optimizer in optimizers:
        optimizer.step()
    net.zero_grad(set_to_none=True)
    return total, float(norm)


def set_lr(optimizers, factor):
    """Learning rates: the base's times factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("base_lr", group["lr"])
            group["lr"] = group["base_lr"] * factor


def update_average(average, net, share):
    """Move the averaged weights by a share towards the network's."""
    with torch.no_grad():
        torch._foreach_lerp_(average, list(net.parameters()), share)


# ------------------------------------------------------------------------------------------------
# The loop.


@dataclass
class Plan:
    """How long a training is: so many steps or, with --minutes, so many seconds."""
    steps: int            # of the whole training; with --minutes as many as were expected
    tokens: float         # the horizon that the batch rule was given
    warmup: float         # share of the training
    length: float         # seconds of all steps; 0: the steps count
    seconds: float = 0.0  # that the steps have taken so far

    def at(self, step):
        """Share of the training that is over: after so many steps, or now by the clock."""
        if self.length:
            return self.seconds / self.length
        return step / self.steps


class Training:
    """What a training consists of: network, averaged weights, optimizers, batches."""

    def __init__(self, config, stream, documents, device):
        self.config = config
        self.stream = stream
        self.device = device
        if config.dtype == "auto":
            config.dtype = agreed(str(files.fast_dtype(device)).removeprefix("torch."))
        self.dtype = getattr(torch, config.dtype)
        self.autocast = files.autocast(device, self.dtype)
        views = 1 + config.complement
        counts = data.documents_per_step(documents, config.mix, config.batch_tokens / views)
        self.batches = data.Batches(documents, counts, config.seed)
        means = {kind: data.lengths(docs).mean() for kind, docs in documents.items()}
        self.step_tokens = float(views * sum(n * means[kind] for kind, n in counts.items()))
        self.rows = views * self.batches.row_count  # of a step
        if self.rows < world_size():
            raise UsageError(f"--batch-tokens {config.batch_tokens}: a step has fewer rows "
                             f"({self.rows}) than there are processes")
        if not config.loss_weights:  # the members' shares of the first step's tokens
            member = stream.describe(self.batches(0)).member              # (B, L)
            sizes = torch.bincount(member[member >= 0], minlength=len(TERMS)).double()
            config.loss_weights = dict(zip(TERMS, (sizes / sizes.sum()).tolist()))
        shape = config.model(stream.vocab, stream.places)
        self.net = models.Transformer(shape, config.seed).to(device)
        self.average = [p.detach().clone() for p in self.net.parameters()]

    def batch(self, step):
        """The rows of a step that are this process'."""
        rows = self.batches(step)
        if self.net.config.causal:  # the autoregressive twin
            batch = data.next_tokens(self.stream, rows)
        else:
            batch = data.noised_batch(self.stream, rows, self.config, step)
        first, last = (len(batch.x) * r // world_size() for r in (rank(), rank() + 1))
        return batch.rows(first, last)

    def upcoming(self, step):
        """Yield the batches from a step on, on the device. Beside a GPU the next one is made ahead.
        On a CPU a second thread costs more than it saves: both want the interpreter and the cores.
        """
        if self.device.type == "cpu":
            yield from map(self.batch, itertools.count(step))  # without end
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.batch, step)
            for following in itertools.count(step + 1):
                batch = coming.result()
                coming = ahead.submit(self.batch, following)
                yield batch.to(self.device)

    def optimizers(self, rule):
        return models.make_optimizers(self.net, rule, self.config.optimizer, self.dtype)

    def step_seconds(self, steps=12):
        """Seconds of a step, measured on steps that are taken back."""
        before = {name: value.clone() for name, value in self.net.state_dict().items()}
        optimizers = self.optimizers(batch_rule(self.step_tokens, BASE["tokens"], self.config))
        for step, batch in zip(range(steps), self.upcoming(0)):
            if step == 2:  # the first ones compile
                start = time.perf_counter()
            train_step(self.net, optimizers, batch, self.config, self.autocast)
        seconds = (time.perf_counter() - start) / (steps - 2)
        self.net.load_state_dict(before)
        return seconds

    def plan(self, began):
        """The Plan of a new training that began at this time."""
        steps = self.config.steps
        length = 0.0
        if not steps:
            seconds = self.step_seconds()
            length = max(10 * seconds, 60 * self.config.minutes - (time.perf_counter() - began))
            steps = round(length / seconds)
        return agreed(Plan(steps, steps * self.step_tokens, warmup_steps(steps) / steps, length))

    def state(self, step, plan, optimizers):
        """What a checkpoint holds."""
        return {"step": step, "plan": vars(plan), "model": self.net.state_dict(),
                "average": self.average,
                "optimizers": [optimizer.state_dict() for optimizer in optimizers]}

    def restore(self, state, optimizers):
        """Go on from a checkpoint's state."""
        self.net.load_state_dict(state["model"])
        self.average = [average.to(self.device) for average in state["average"]]
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)

    def named(self, terms):
        """Loss terms (S,) by name, those of the kinds that are trained on."""
        kinds = self.batches.counts
        return {name: round(value, 4) for name, value in zip(TERMS, terms.tolist())
                if name.split("/")[0] in kinds}

    def padding(self):
        """Share of padding in the first steps."""
        shares = [float((self.batches(step) == data.PAD).float().mean()) for step in range(10)]
        return sum(shares) / len(shares)

    def compile(self):
        """Compile the trunk if the settings say so. Settles `auto`, so that resuming does alike."""
        config = self.config
        if config.compile == "auto":
            long = config.steps >= 2000 or (config.steps == 0 and config.minutes >= 5)
            pays = self.device.type == "cuda" or (self.device.type == "cpu" and long)
            config.compile = "on" if pays else "off"
        if config.compile == "off":
            return
        eager = self.net.trunk
        self.net.trunk = torch.compile(eager)
        start = time.perf_counter()
        try:
            part = self.batch(0).to(self.device).split(config.micro_batch)[0]
            with self.autocast:
                diffusion.loss_terms(self.net, part).sum().backward()
            print(f"compiled in {time.perf_counter() - start:.0f} s", flush=True)
        except Exception as error:  # whatever a missing compiler raises, training goes on without
            print(f"torch.compile failed ({files.reason(error)}): training without", flush=True)
            self.net.trunk = eager
            config.compile = "off"
        self.net.zero_grad(set_to_none=True)


def train(config, folder, stream, documents, device):
    """Train the model, from the checkpoint in `folder` if there is one.

    Writes config.json, log.jsonl, checkpoint.pt and the page.
    """
    began = time.perf_counter()
    training = Training(config, stream, {k: parts[0] for k, parts in documents.items()}, device)
    training.compile()
    net = training.net
    checkpoint = folder / "checkpoint.pt"
    state = files.load(checkpoint) if checkpoint.exists() else None
    if state:
        with files.reading(checkpoint):
            plan = Plan(**state["plan"])
    else:
        plan = training.plan(began)
    rule = batch_rule(training.step_tokens, plan.tokens, config)
    optimizers = training.optimizers(rule)
    step = 0
    if state:
        step = state["step"]
        with files.reading(checkpoint):
            training.restore(state, optimizers)
        del state
    if rank() == 0:
        describe_run(config, folder, training, plan, rule, step)
        keep_until(folder / "log.jsonl", step)
    log = open(folder / "log.jsonl" if rank() == 0 else os.devnull, "a", encoding="utf-8")
    bar = tqdm(initial=step, desc="training", mininterval=1.0, disable=rank() > 0)
    kept = f"the last good state, if there is one, is {files.quoted(checkpoint)}"
    started = time.perf_counter() - plan.seconds  # when it would have, had it not been stopped
    shown = -math.inf  # when the page was written
    coming = training.upcoming(step)
    with stop_signal() as stopped, log, bar:
        while plan.at(step) < 1:
            batch = next(coming)
            middle = min(1.0, plan.at(step) + 0.5 / plan.steps)  # of the step
            set_lr(optimizers, lr_factor(middle, plan.warmup))
            try:
                terms, norm = train_step(net, optimizers, batch, config, training.autocast)
            except DataError as error:
                raise DataError(f"step {step}: {error}; {kept}")
            # early on the average follows faster, so that it forgets the start
            update_average(training.average, net, max(1 - rule["ema"], 1 / (step + 2)))
            step += 1
            seconds = time.perf_counter() - started
            plan.seconds, stop = agreed((seconds, bool(stopped)))  # as the first process has them
            last = plan.at(step) >= 1
            bar.total = max(step, round(step / plan.at(step)))
            bar.update()
            if step % LOG_EVERY == 1 or last:
                named = training.named(terms)
                line = {"step": step, "tokens": round(step * training.step_tokens), "terms": named,
                        "norm": round(norm, 4)}
                log.write(json.dumps(line) + "\n")
                log.flush()
                bar.set_postfix({n: f"{v:.2f}" for n, v in named.items()}, refresh=False)
            if step % config.save_every and not last and not stop:
                continue
            if rank() == 0:
                if not all(p.isfinite().all() for p in net.parameters()):
                    raise DataError(f"step {step}: a weight is not finite; {kept}")
                files.save(checkpoint, training.state(step, plan, optimizers))
                if last or stop or seconds - shown > 30:
                    write_page(folder)
                    shown = seconds
            if stop:
                agreed(None)  # nobody leaves before the first process has saved
                raise DataError(f"stopped after step {step} of {bar.total}, saved: python "
                                f"train.py --resume --run {files.quoted(folder)} goes on")


def describe_run(config, folder, training, plan, rule, step):
    """Write what was settled to config.json and print it."""
    saved = files.read_json(folder / "config.json")
    saved.update(config=run_settings(config), model=vars(training.net.config), rule=rule,
                 step_tokens=training.step_tokens)
    files.write_json(folder / "config.json", saved)
    batches = training.batches
    millions = models.count_parameters(training.net)["total"] / 1e6
    counts = ", ".join(f"{n} of {kind}" for kind, n in batches.counts.items())
    print(f"{millions:.1f}M parameters on {training.device} ({config.dtype}), step {step} of "
          f"{plan.steps}: {training.rows} rows of {batches.length} tokens, "
          f"{100 * training.padding():.1f}% of them padding; documents a step: {counts}")
    print_derived(training.step_tokens, plan.tokens, batches.length, config)
    if plan.length and plan.steps < ENOUGH and not config.own_data and not step:
        minutes = config.minutes * ENOUGH / plan.steps
        print(f"few steps: the toy world takes about {ENOUGH}, here --minutes {minutes:.0f}",
              flush=True)


def keep_until(path, step):
    """Drop the log's lines of later steps, written after the checkpoint: they come again."""
    if path.exists():
        with files.reading(path):
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last one may be cut
            kept = [line for line in lines if json.loads(line)["step"] <= step]
        files.write_text(path, "".join(line + "\n" for line in kept))


def write_page(folder):
    """Write the page. During the training it is only told if that fails."""
    try:
        page.write(folder)
    except Exception as error:
        print(f"the page could not be written ({files.reason(error)})", flush=True)


@contextlib.contextmanager
def stop_signal():
    """A list that is no longer empty once Ctrl-C or a polite kill has come. The second one stops
    at once."""
    came = []

    def note(signum, frame):
        if came:
            raise KeyboardInterrupt
        came.append(signum)
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    old = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def agreed(value):
    """The first process' value, in all of them."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


# ------------------------------------------------------------------------------------------------
# Run folders. config.json with our layout version marks one. Nothing else is ever touched.

RUN_FILES = [
    "checkpoint.pt", "documents.pt", "tokenizers.json", "log.jsonl", "scores.json", "seconds.json",
    "index.html", *[row.file for row in data.MODALITIES.values()], "config.json",
]


def run_settings(config):
    return {k: v for k, v in vars(config).items() if k not in OF_THE_CALL}


def marker(folder):
    """config.json of a run folder, or None where no run of ours is."""
    try:
        saved = files.read_json(folder / "config.json")
    except DataError:
        return None
    if isinstance(saved, dict) and isinstance(saved.get("config"), dict):
        if "layout_version" in saved and "batch_tokens" in saved["config"]:
            return saved
    return None


def check_folder(folder, config):
    """UsageError where --run may not be written to. Changes nothing."""
    name = f"--run {files.quoted(config.run)}"
    if not config.run or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{name}: that is no folder; give a new or an empty one")
    saved = marker(folder)
    if config.resume and config.overwrite:
        raise UsageError("--resume goes on with a run, --overwrite replaces it: choose one")
    if config.resume:
        if saved is None:
            raise UsageError(f"--resume: {files.quoted(folder)} holds no run; start one with "
                             f"python train.py --run {files.quoted(folder)}")
        data.check_layout(saved["layout_version"], folder)
    elif saved is None:
        others = [p.name for p in folder.iterdir()] if folder.exists() else []
        others = sorted(set(others) - {"lock", "config.json.tmp"})  # what a killed start leaves
        if others:
            raise UsageError(f"{name}: {files.quoted(others[0])} there was written by no run of "
                             "ours; give a new or an empty folder")
    elif (folder / "checkpoint.pt").exists() and not config.overwrite:
        raise UsageError(f"{name} holds a run: --resume goes on with it, --overwrite replaces it, "
                         "another --run leaves it alone")


def start_run(folder, config):
    """Remove what an earlier run wrote, and mark the folder. It is a run's at any moment."""
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    files.write_json(folder / "config.json",
                     {"layout_version": data.LAYOUT_VERSION, "config": run_settings(config)})
    for name in RUN_FILES:
        if name != "config.json":
            (folder / name).unlink(missing_ok=True)


def resume_run(folder, config, given):
    """The settings of the run in folder. UsageError for a flag that asks for something else."""
    saved = files.read_json(folder / "config.json")["config"]
    saved = {**run_settings(Config()), **saved}  # settings that are newer than the run
    for name in given.difference(OF_THE_CALL, RESUMED_WITH, OWN_DATA):
        value = getattr(config, name)
        settled = name in ("compile", "dtype") and value == "auto"
        if value != saved[name] and not settled:
            raise UsageError(f"--resume goes on with the run's own settings: {sample.flag(name)} "
                             f"is {saved[name]} there; leave it out")
    for name in saved:
        if name not in given or name not in RESUMED_WITH:
            setattr(config, name, saved[name])


def prepared(config, folder, device, clock, sources=None):
    """Stream and documents: read from the run folder, or made now and written there."""
    saved = files.read_json(folder / "config.json")
    if "stream" in saved:  # written last, so all the rest was there: what is lost is an error
        data.load_tokenizers(folder, saved["tokenizers"])  # refuses lost or altered ones
        stream = data.Stream(**saved["stream"])
        return stream, data.load_documents(folder / "documents.pt")
    sources = sources or prepare.sources_of(config)
    stream, documents, tokenizers = prepare.prepare(config, sources, folder, device, clock)
    saved["stream"] = {"codes": stream.codes, "slots": stream.slots}
    saved["tokenizers"] = {modality: t.name for modality, t in tokenizers.items()}
    files.write_json(folder / "config.json", saved)
    return stream, documents


def main():
    config, given = parse()
    clock = [("imports", BEGAN), ("reading data", time.time())]  # each part, and when it began
    folder = Path(config.run)
    check_folder(folder, config)
    if not config.resume:
        check_settings(config)
    name = config.device
    if world_size() > 1 and torch.cuda.is_available() and name in ("auto", "cuda"):
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = files.pick_device(name)
    if world_size() > 1 and device.type not in ("cpu", "cuda"):
        raise UsageError("several processes train on cuda or cpu: add --device cpu")
    torch.set_float32_matmul_precision("high")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size() > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        # the others wait while the first one reads the data
        dist.init_process_group(backend, timeout=datetime.timedelta(days=1))
        dist.barrier()  # all have looked at the folder
    with files.sole_writer(folder) if rank() == 0 else contextlib.nullcontext():
        make_run(config, given, folder, device, clock)
    if world_size() > 1:
        dist.destroy_process_group()


def make_run(config, given, folder, device, clock):
    """A whole run: data, tokenizers, model, scores, page."""
    if config.resume:
        resume_run(folder, config, given)
        check_settings(config)
    if rank() == 0:
        sources = None
        if not config.resume:
            sources = prepare.sources_of(config)  # bad data are refused while all is as it was
            start_run(folder, config)
        stream, documents = prepared(config, folder, device, clock, sources)
        del sources  # up to half a gigabyte
    if world_size() > 1:
        dist.barrier()
        if rank() > 0:  # reads what the first process has made
            stream, documents = prepared(config, folder, device, clock)
    clock.append(("training", time.time()))
    train(config, folder, stream, documents, device)
    if rank() > 0:
        return
    trained = sample.load_run(folder, device)
    if config.score_n:
        clock.append(("scoring", time.time()))
        scores = score.score(trained, config.score_n)
        files.write_json(folder / "scores.json", scores)
        print(score.table(scores))
    clock.append(("page", time.time()))
    print(f"page: {page.write(folder, trained)}")
    clock.append(("end", time.time()))
    seconds = {part: end - began for (part, began), (_, end) in zip(clock, clock[1:])}
    files.write_json(folder / "seconds.json", seconds)
    told = ", ".join(f"{part} {s:.0f}" for part, s in seconds.items())
    print(f"seconds: {told}; {sum(seconds.values()) / 60:.1f} minutes in all")


if __name__ == "__main__":
    files.command_line(main, "train.py")
