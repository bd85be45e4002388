"""Generate any modality from any other, fill holes, score a run, make its page.

    python sample.py text-to-image "a small red circle on white"        PNG under --out
    python sample.py image-to-text picture.png                          TXT
    python sample.py text-to-speech "a large blue star"                 WAV
    python sample.py speech-to-text clip.wav
    python sample.py text "the red circle"                              goes on from a prompt, or from nothing
    python sample.py image        python sample.py speech               a text first, then what it describes
    python sample.py infill "the red circle is ___ the blue square. so the blue square is right of the red circle."
                                                                        ___ is a hole; or a picture or clip and --hole
    python sample.py score --n 200 --json scores.json                   judged samples and the bound
    python sample.py score text-to-image --guidance 2                   of these tasks alone, with another sampler
    python sample.py page                                               the run's page anew, of the samples of --seed
"""
import io
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import data
import diffusion
import model as models
import readers
import safe
from data import KINDS, MASK, MODALITIES
from safe import DataError, UsageError

# Task -> kind of row, members to generate; the other members are the prompt. Every kind of KINDS makes its own: a text alone, or
# text-to-X, X-to-text, and X with a text that fits it.
TASKS = {task: (kind, targets) for kind, members in KINDS.items() for task, targets in (
    [(kind, members)] if len(members) == 1 else
    [(f"text-to-{members[0]}", members[:1]), (f"{members[0]}-to-text", members[1:]), (members[0], members)])}
# How each modality is sampled when it is the target, as text when it is read from another or begins a pair, and one task of its own (ours,
# found by small sweeps).
DEFAULTS = {
    "text": dict(sampler="entropy", budget=0.0, block=1, temperature=0.5, correct=5),
    "image": dict(sampler="confidence", steps=8, choice_temperature=4.0, temperature=0.5, guidance=1.0, candidates=4, rounds=8),
    "speech": dict(sampler="confidence", steps=12, choice_temperature=4.0, temperature=0.6, guidance=1.0),
    "to-text": dict(sampler="entropy", budget=0.5, temperature=1.0, candidates=8),
    "image-to-text": dict(sampler="entropy", budget=2.0, temperature=1.2, candidates=24, rounds=8, correct=1),
    "text of a pair": dict(sampler="entropy", budget=0.0, temperature=0.7),
}


def settings_for(task, **changes):
    """Sampler settings of a task: the row of DEFAULTS for it, or for its (first) target, then the caller's changes that are not None."""
    kind, targets = TASKS[task]
    target = "to-text" if targets == ("text",) and len(KINDS[kind]) > 1 else targets[0]
    base = DEFAULTS.get(task) or DEFAULTS.get(target, DEFAULTS["speech"])
    return {**base, **{k: v for k, v in changes.items() if v is not None}}


# ---------------------------------------------------------------------------------------------------------------------
# A trained run.

@dataclass
class Run:
    folder: Path
    config: dict
    stream: data.Stream
    tokenizers: dict
    net: models.Transformer
    device: torch.device
    dtype: torch.dtype = torch.float32       # of matrix products

    def logits(self, rows):
        """predict(x, where) -> logits (M, V), for rows described by data.Stream.describe. Rows of x (b, L) are any of them if all have one
        layout; packed rows differ, and then x are all of them."""
        fixed = [torch.from_numpy(np.array(a)).to(self.device) for a in (rows.place, rows.doc) if a is not None]
        same = all(bool((a == a[:1]).all()) for a in fixed)          # then any subset of rows may be asked for

        def ask(x, where):
            layout = [a[:1].expand(len(x), -1) for a in fixed] if same else fixed
            with models.autocast(self.device, self.dtype):
                return self.net(x.to(self.device), *layout, select=where.to(self.device)).to(x.device)

        def predict(x, where):
            # candidates for one prompt, and rows without their conditions, often agree: each is asked once
            different, at = torch.cat((x, where), 1).unique(dim=0, return_inverse=True) if same else (x, None)  # (b', 2L), (b,)
            if len(different) == len(x):
                return ask(x, where)
            shown, hidden = different[:, :x.shape[1]], different[:, x.shape[1]:].bool()                    # (b', L) each
            logits = ask(shown, hidden)                                                                    # (M', V)
            number = torch.zeros_like(shown).masked_scatter(hidden, torch.arange(len(logits), device=x.device))
            return logits[number[at][where]]                                                               # (M, V)
        return predict

    def on(self, array):
        """A numpy array as a tensor where noise can be drawn in float64."""
        device = self.device if self.device.type == "cuda" else torch.device("cpu")
        return torch.from_numpy(np.array(array)).to(device)


def load_run(folder, device=None):
    """Read a run folder: config, tokenizers, averaged weights. Raises DataError with what to do."""
    folder, device = Path(folder), device or safe.pick_device()
    if not (folder / "checkpoint.pt").exists():
        raise UsageError(f"--run {folder}: no checkpoint there; train one first with python train.py --run {folder}")
    config = safe.read_json(folder / "config.json")
    data.check_layout(config["layout_version"], folder)
    stream = data.Stream(config["stream"]["codes"], config["stream"]["slots"])
    tokenizers = {m: data.tokenizer_module(m).load(folder / MODALITIES[m].file) for m in stream.codes}
    net = models.Transformer(models.ModelConfig(**config["model"]))
    state = safe.load(folder / "checkpoint.pt")
    for parameter, average in zip(net.parameters(), state["ema"]):
        parameter.data.copy_(average)
    return Run(folder, config, stream, tokenizers, net.to(device).eval(), device,
               torch.float32 if config["args"]["dtype"] == "float32" else models.fast_dtype(device))


@dataclass
class Generated:
    outputs: dict      # modality -> list of str, pictures or waveforms
    ids: np.ndarray    # (B, L)
    film: list         # of (B, L), if recorded
    nfe: float         # evaluations of the network a sample, mean
    seconds: float


def members_of(run, kind, ids):
    """{modality: list of codes} of rows ids (B, L); masked tokens read as code 0."""
    position, out = 1, {}
    slots = run.stream.slots[kind] if len(KINDS[kind]) > 1 else [ids.shape[1] - data.HEAD]
    for modality, slot in zip(KINDS[kind], slots):
        part = ids[:, position + 1:position + 1 + slot]
        part = np.where(part == MASK, run.stream.ranges(modality, np.arange(slot))[0], part)
        out[modality] = [run.stream.to_codes(modality, row) for row in part]
        position += 1 + slot
    return out


def decode(run, modality, codes):
    """Codes -> samples; an empty clip becomes one silent step."""
    tokenizer = run.tokenizers[modality]
    if modality == "speech":
        codes = [c if len(c) else np.zeros(tokenizer.groups, np.int32) for c in codes]
    return tokenizer.decode(codes)


def before_content(run, kind, rows):
    """(B, L) bool: positions with given content after them in their slot, where nothing can have ended yet."""
    out = np.zeros(rows.ids.shape, bool)
    for index, modality in enumerate(KINDS[kind]):
        if MODALITIES[modality].open_end:
            content = (rows.member == index) & (rows.ids != MASK) & (rows.ids < rows.high - 1)
            out |= (rows.member == index) & np.maximum.accumulate(content[:, ::-1], 1)[:, ::-1]
    return out


def most_fitting(run, kind, x, condition, candidates, seed, rounds):
    """Rows x (B * candidates, L), those of one prompt one after another -> (B,) which row of each prompt fits it best, and (B,) the
    evaluations that finding it cost.

    The network judges itself in both directions: -log p(answer | prompt) - log p(prompt | answer), each by its bound under the same
    `rounds` masks for all candidates (our choice; the second term alone is a noisy channel, the first what samplers may spoil).
    """
    prompts = torch.arange(len(x), device=x.device) // candidates                                    # (B * candidates,)
    different, at = torch.cat((prompts[:, None], x), 1).unique(dim=0, return_inverse=True)           # candidates often agree
    prompts, rows = different[:, 0], run.stream.describe(kind, different[:, 1:].cpu().numpy())
    given = np.isin(rows.member, [KINDS[kind].index(m) for m in condition])
    nats = sum(diffusion.bound(run.logits(rows), run.on(rows.ids), run.on(noisy), run.on(rows.low), run.on(rows.high), MASK, data.rng(seed, 19),
                               rounds=rounds, alike=prompts) for noisy in (given, (rows.member >= 0) & ~given))
    best = nats[at].view(-1, candidates).argmin(1)                                                   # (B,)
    return torch.arange(len(best), device=best.device) * candidates + best, 2 * rounds * prompts.bincount()


@torch.inference_mode()
def fill(run, kind, ids, batch=64, record=False, condition=(), later=(), candidates=1, rounds=2, numbers=None, **settings):
    """Fill in the masked tokens of rows ids (B, L), but for those of the modalities `later`. condition: modalities that guidance leaves
    out, and that the best of so many candidates has to fit (`most_fitting`, by `rounds` masks). record: keep the film, of all rows at
    once. numbers (B,): of the rows among others that share no noise with them (0, 1, ... if not given)."""
    began, out, film, nfe = time.time(), [], [], []
    numbers = range(len(ids)) if numbers is None else numbers
    candidates, seed = candidates if condition else 1, settings.pop("seed", 0) * 1_000_003 + (500_000 if later else 0)
    batch = len(ids) if record else max(16, batch // candidates)                   # prompts at a time
    for i in range(0, len(ids), batch):
        rows = run.stream.describe(kind, np.repeat(ids[i:i + batch], candidates, 0))
        high = rows.high - before_content(run, kind, rows)
        left_out, hold = (np.isin(rows.member, [KINDS[kind].index(m) for m in some]) for some in (condition, later))
        x, calls, frames = diffusion.sample(
            run.logits(rows), run.on(rows.ids), run.on(rows.low), run.on(high), MASK, condition=run.on(left_out), hold=run.on(hold),
            record=record, seed=seed + int(numbers[i]), **settings)
        if candidates > 1:
            kept, more = most_fitting(run, kind, x, condition, candidates, seed + int(numbers[i]), rounds)
            x, frames, calls = x[kept], [f[kept] for f in frames], calls.view(-1, candidates).sum(1) + more
        out.append(x.cpu().numpy())
        film.append([f.cpu().numpy() for f in frames])
        nfe.append(calls.float().cpu().numpy())
    ids = np.concatenate(out)
    decoded = {m: decode(run, m, codes) for m, codes in members_of(run, kind, ids).items() if m not in later}
    return Generated(decoded, ids, film[0] if record else [], float(np.concatenate(nfe).mean()), time.time() - began)


def trained_in(run, mode):
    """Whether pairs were noised in this mode of diffusion.PAIR_MODES, too."""
    return run.config["args"].get("modes", {mode: 1}).get(mode)


def answer(run, task, ids, seed=0, record=False, numbers=None, **changes):
    """Rows ids (B, L) in which the targets of a task are masked -> Generated.

    X with a text that fits it: first the text, given nothing, then X given the text, drawn as text-to-X is (the chain rule; our choice:
    drawn together they fit each other less, since few rows of the training mask both; together where none had the text alone)."""
    kind, targets = TASKS[task]
    given, settings = [m for m in KINDS[kind] if m not in targets], settings_for(task, **changes)
    common, text = dict(seed=seed, record=record, numbers=numbers), None
    if len(targets) > 1 and trained_in(run, "second"):
        text = fill(run, kind, ids, later=targets[:-1], **common, **DEFAULTS["text of a pair"])
        ids, given = text.ids, targets[-1:]
    if not given:
        settings["guidance"] = 0.0
    made = fill(run, kind, ids, condition=given, **common, **settings)
    if text:
        made.film, made.nfe, made.seconds = text.film + made.film[1:], text.nfe + made.nfe, text.seconds + made.seconds
    return made


def check_trained(run, task, kind):
    if kind not in run.stream.slots:
        raise DataError(f"{task}: this run was not trained on {kind}; it knows {', '.join(run.stream.slots)}")


def drawn_lengths(run, at_least, seed):
    """Tokens of texts to generate, (B,): as often as documents of this extent were held out, above at_least (B,).

    In training a document's extent is given (packed rows show it), so it has to be drawn first: in a longer one than it
    has ever seen the network writes its longest texts."""
    rows = run.stream.describe("text", safe.read_arrays(run.folder / "validation.npz")["text"].astype(np.int64))
    extents = np.sort(np.concatenate([np.bincount(d[m == 0]) for d, m in zip(rows.doc, rows.member)]))
    extents = extents[extents > 0]
    below = np.searchsorted(extents, at_least, side="right")                       # these are too short
    at = below + (data.rng(seed, 5).random(len(below)) * (len(extents) - below)).astype(int)
    return np.where(below < len(extents), extents[np.minimum(at, len(extents) - 1)], run.stream.slots["text"][0] - data.HEAD)


def generate(run, task, prompts, record=False, seed=0, length=None, **changes):
    """prompts: a list with one item a sample, of the task's given modality (None, or a text to go on from, for
    `text`; None for `image` and `speech`). length: tokens of a text, drawn if None. Returns Generated."""
    kind, targets = TASKS[task]
    check_trained(run, task, kind)
    given = [m for m in KINDS[kind] if m not in targets]
    stream = run.stream
    if kind == "text":
        given_codes, most = run.tokenizers["text"].encode([p or "" for p in prompts]), stream.slots["text"][0] - data.HEAD
        slots = ([min(length, most)] * len(prompts) if length else
                 drawn_lengths(run, np.array([len(c) for c in given_codes]), seed))
        ids = [stream.row(kind, [None], int(slot)) for slot in slots]
        for row, slot, codes in zip(ids, slots, given_codes):
            if len(codes) >= slot:
                raise DataError(f"the prompt has {len(codes)} tokens, the text only {slot}: shorten it")
            row[data.HEAD:data.HEAD + len(codes)] = stream.to_ids("text", codes)
    else:
        codes = {m: run.tokenizers[m].encode(prompts) for m in given}
        ids = [stream.row(kind, [codes[m][i] if m in given else None for m in KINDS[kind]]) for i in range(len(prompts))]
    lengths = np.array([len(row) for row in ids])
    groups = [np.flatnonzero(lengths == n) for n in np.unique(lengths)]            # rows of one length at a time
    made = [answer(run, task, np.stack([ids[i] for i in g]), seed, record, g, **changes) for g in groups]
    return made[0] if len(made) == 1 else merged(made, groups)


def merged(made, groups):
    """Generated of groups of rows -> one Generated, row groups[g][i] from row i of made[g], filled up with PAD."""
    order, width = np.argsort(np.concatenate(groups)), max(m.ids.shape[1] for m in made)
    rows = lambda parts: np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=data.PAD)
                                         for p in parts])[order]
    outputs = {m: [sum((list(g.outputs[m]) for g in made), [])[i] for i in order] for m in made[0].outputs}
    film = [rows([g.film[min(k, len(g.film) - 1)] for g in made]) for k in range(max(len(g.film) for g in made))]
    nfe = sum(g.nfe * len(g.ids) for g in made) / len(order)
    return Generated(outputs, rows([g.ids for g in made]), film, nfe, sum(g.seconds for g in made))


def part_of(run, modality, first, last, count):
    """The share first..last of an item's `count` codes, as holes() takes it; a picture keeps its palette."""
    skip = run.tokenizers["image"].config.colours if modality == "image" else 0
    where = np.zeros(count, bool)
    where[skip + int(first * (count - skip)):skip + int(last * (count - skip))] = True
    return where


def holes(run, kind, ids, modality, where=None):
    """Mask the positions `where` (up to slot,) bool, all if not given, of a modality in rows ids (B, L)."""
    rows, ids = run.stream.describe(kind, ids), ids.copy()
    at = np.flatnonzero(rows.member[0] == KINDS[kind].index(modality))
    ids[:, at if where is None else at[np.flatnonzero(where[:len(at)])]] = MASK
    return ids


# ---------------------------------------------------------------------------------------------------------------------
# The command line.

def read_prompt(run, modality, prompt):
    """A prompt of the command line: text as it is, a picture or clip from a file."""
    if modality == "text":
        return prompt
    if not Path(prompt).exists():
        raise DataError(f"{prompt}: no such file; this task starts from a {'picture' if modality == 'image' else 'clip'}")
    if modality == "speech":
        return readers.open_clip(prompt)
    config = run.tokenizers["image"].config
    return readers.open_picture(prompt, config.height, config.channels)


def png(pixels):
    """uint8 (H, W, 1 or 3) -> the bytes of a PNG file."""
    from PIL import Image
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def wav(wave):
    """(samples,) in [-1, 1] -> the bytes of a WAV file."""
    import soundfile
    soundfile.write(file := io.BytesIO(), wave, readers.SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


FILES = {"text": (".txt", lambda text: (text + "\n").encode()), "image": (".png", png), "speech": (".wav", wav)}


def write_outputs(made, folder, stem):
    """Every output as a file, several pictures on a sheet, too; returns the paths."""
    files = {folder / f"{stem}-{i}{FILES[modality][0]}": FILES[modality][1](sample)
             for modality, samples in made.outputs.items() for i, sample in enumerate(samples)}
    if len(made.outputs.get("image", [])) > 1:
        files[folder / f"{stem}-sheet.png"] = png(contact_sheet(made.outputs["image"]))
    for path, content in files.items():
        with safe.whole(path) as temporary:
            temporary.write_bytes(content)
    return list(files)


def contact_sheet(pictures, columns=10, zoom=3):
    """uint8 (H, W, C) pictures, in reading order, each zoom times as large, as one uint8 (H', W', C)."""
    blank = np.full_like(pictures[0], 255)
    columns = min(columns, len(pictures))
    pictures = [*pictures, *[blank] * (-len(pictures) % columns)]
    rows = [np.concatenate(pictures[i:i + columns], 1) for i in range(0, len(pictures), columns)]
    return np.concatenate(rows).repeat(zoom, 0).repeat(zoom, 1)


def hole_tokens(hole):
    """Tokens of a hole in a text from --hole, 2 if not given."""
    if hole is not None and not (hole.isdecimal() and int(hole)):
        raise UsageError(f"--hole {hole}: in a text a number of tokens, at least 1")
    return int(hole or 2)


def hole_share(hole):
    """(first, last) share of a picture's or clip's codes from --hole."""
    try:
        first, last = (float(v) for v in (hole or "0.5:1").split(":"))
        if 0 <= first < last <= 1:
            return first, last
    except ValueError:
        pass
    raise UsageError(f"--hole {hole}: of a picture or clip a share FROM:TO between 0 and 1, as 0.5:1")


def infill(run, prompt, hole, caption, seed, changes, n=1):
    """Fill holes, n times: `___` in a text (hole tokens each), or the share hole of a picture's or clip's codes. A text that is not given
    is read off what comes out, by the defaults of that task, or drawn with it by a run that never trained pictures or clips alone."""
    path = Path(prompt)
    if "___" in prompt or len(prompt) > 250 or not path.exists():
        if "___" not in prompt:
            raise UsageError(f"infill: {prompt!r} is no file and has no ___ in it: mark the hole with ___")
        if caption:
            raise UsageError("--caption: of a picture or clip; a text with ___ has none")
        check_trained(run, "infill", "text")
        codes = [run.stream.to_ids("text", c) for c in run.tokenizers["text"].encode(re.split(" ?___", prompt))]  # tokens begin with their space
        filled = [codes[0]] + [p for c in codes[1:] for p in (np.full(hole_tokens(hole), MASK), c)]
        ids = np.concatenate(filled)
        slot = run.stream.slots["text"][0] - data.HEAD
        if len(ids) >= slot:
            raise DataError(f"infill: {len(ids)} tokens do not fit into {slot}: shorten the text")
        row = run.stream.row("text", [[]], min(slot, -(-(len(ids) + 1) // 8) * 8))
        row[data.HEAD:data.HEAD + len(ids)] = ids
        return fill(run, "text", np.repeat(row[None], n, 0), seed=seed, **settings_for("text", **changes))
    modality = "speech" if path.suffix.lower() in readers.CLIPS else "image"
    kind = next(k for k, members in KINDS.items() if members[0] == modality)
    check_trained(run, "infill", kind)
    codes = run.tokenizers[modality].encode([read_prompt(run, modality, prompt)])[0]
    row = run.stream.row(kind, [codes, run.tokenizers["text"].encode([caption])[0] if caption else None])
    where = part_of(run, modality, *hole_share(hole), len(codes))                    # (count,): the end of a clip stays
    settings = {**settings_for(kind.split("-")[0], **changes), "guidance": 0.0}
    alone = not caption and trained_in(run, "first")
    made = fill(run, kind, holes(run, kind, np.repeat(row[None], n, 0), modality, where), seed=seed, later=("text",) if alone else (), **settings)
    if not alone:
        return made
    read = answer(run, f"{modality}-to-text", made.ids, seed)
    read.nfe, read.seconds = read.nfe + made.nfe, read.seconds + made.seconds
    return read


def given_modality(task):
    """What a task starts from, or None."""
    kind, targets = TASKS[task]
    return next((m for m in KINDS[kind] if m not in targets), None)


def is_schedule(name):
    try:
        return bool(diffusion.schedule(name))
    except ValueError:
        return False


POSITIVE, NOT_NEGATIVE = (lambda v: v >= 1, "at least 1"), (lambda v: v >= 0, "not negative")
# Flags of samplers: type, what they may be, help. What a sampler has no use for it ignores.
SETTINGS = {
    "sampler": (str, lambda v: v in diffusion.SAMPLERS, "one of " + ", ".join(diffusion.SAMPLERS), "which tokens are revealed when"),
    "steps": (int, *POSITIVE, "ancestral, confidence, remdm: steps"),
    "grid": (str, is_schedule, "linear, cosine or poly:P", "the same: mask rates after the steps, by this schedule (cosine)"),
    "choice_temperature": (float, *NOT_NEGATIVE, "confidence: noise in what is revealed first, falling to 0; 0: the surest"),
    "variant": (str, lambda v: v in diffusion.REMDM, "one of " + ", ".join(diffusion.REMDM), "remdm: how much is masked again (cap)"),
    "eta": (float, lambda v: 0 <= v <= 1, "between 0 and 1", "remdm: share that is masked again at most (0.1)"),
    "budget": (float, *NOT_NEGATIVE, "entropy: error in nats that the tokens of a call may add up to"),
    "block": (int, *NOT_NEGATIVE, "entropy: only among the leftmost so many; 1: from left to right; 0: all"),
    "temperature": (float, *NOT_NEGATIVE, "of the draws; 0: the likeliest"),
    "top_k": (int, *POSITIVE, "draw among so many likeliest tokens"),
    "top_p": (float, lambda v: 0 < v <= 1, "above 0 and at most 1", "draw among the likeliest tokens with this share of probability"),
    "guidance": (float, lambda v: True, "a number", "what the prompt changes counts 1 + so many times; 0: no second call"),
    "growing": (bool, lambda v: True, "", "guidance in proportion to what is revealed already"),
    "candidates": (int, *POSITIVE, "draw so many answers, keep the one that fits the prompt best"),
    "rounds": (int, *POSITIVE, "masks under which the network judges that"),
    "correct": (int, *NOT_NEGATIVE, "rounds of correction afterwards"),
}
# Arguments that some tasks alone have, and what a task cannot have.
ONLY = {"length": ("text",), "hole": ("infill",), "caption": ("infill",), "json": ("score",)}
WITHOUT = {"infill": ("guidance", "growing", "candidates", "rounds"), "page": ("n", *SETTINGS)}


def check(args):
    """A UsageError for arguments that cannot be right."""
    for name, tasks in ONLY.items():
        if getattr(args, name) is not None and args.task not in tasks:
            raise UsageError(f"--{name}: {args.task} has none, only {' and '.join(tasks)} does")
    for name in WITHOUT.get(args.task, ()):
        if getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')}: {args.task} has none")
    if args.task in ("image", "speech", "page") and args.prompt:
        raise UsageError(f"{args.task} takes no prompt: leave {args.prompt[0]!r} out, or choose a task that starts from one")
    for name, (_, fits, what, _) in {"n": (int, *POSITIVE, ""), "length": (int, *POSITIVE, ""), "seed": (int, *NOT_NEGATIVE, ""), **SETTINGS}.items():
        value = getattr(args, name)
        if value is not None and not (fits(value) and (isinstance(value, str) or math.isfinite(value))):
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be {what}")
    given = given_modality(args.task) if args.task in TASKS else "text" if args.task == "infill" else None
    if given and not (args.prompt and all(p.strip() for p in args.prompt)):
        raise UsageError(f"{args.task} needs a prompt: " + ("a text" if given == "text" else "a file"))


def main():
    p = safe.Parser(description=__doc__, formatter_class=safe.Help)
    p.add_argument("task", nargs="?", choices=[*TASKS, "infill", "score", "page"])
    p.add_argument("prompt", nargs="*", help="each a quoted text, or the file of a picture or clip; score: tasks (all)")
    p.add_argument("--run", default="runs/toy", help="a folder that train.py made")
    p.add_argument("--out", default="out", help="folder for what is generated")
    p.add_argument("--n", type=int, help="samples for each prompt (1), or for each cell of the score (200)")
    p.add_argument("--seed", type=int, default=0, help="which samples")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    p.add_argument("--length", type=int, help="tokens of a text")
    p.add_argument("--hole", help="infill: tokens of ___ (2), or share of a picture or clip as FROM:TO (0.5:1)")
    p.add_argument("--caption", help="infill: what the picture shows or the clip says; read off what comes out if not given")
    p.add_argument("--json", help="score: also write it to this file")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    g = p.add_argument_group("sampler (defaults depend on the task: DEFAULTS in sample.py)")
    for name, (kind, _, what, text) in SETTINGS.items():
        how = dict(action="store_true", default=None) if kind is bool else dict(type=kind)
        g.add_argument(f"--{name.replace('_', '-')}", **how, help=text + (f"; {what}" if kind is str else ""))
    args = p.parse_intermixed_args()                                       # flags may stand before the prompt
    if args.task is None:
        raise UsageError("which task? " + ", ".join([*TASKS, "infill", "score", "page"]) + (
            "; --help says more" if (Path(args.run) / "checkpoint.pt").exists() else
            f"; and {args.run} holds no trained model yet: python train.py makes one in ten to twelve minutes"))
    changes = {k: getattr(args, k) for k in SETTINGS}
    check(args)
    run = load_run(args.run, safe.pick_device(args.device))
    if args.task == "score":
        import score
        scores = score.score(run, args.n or 200, score.SEED + 1000 * args.seed, tasks=args.prompt, **changes)
        print(score.table(scores))
        if args.json:
            safe.write_json(args.json, scores)
        return
    if args.task == "page":
        import page
        return print(page.write(run.folder, run, seed=args.seed))
    if args.task == "infill":
        made = infill(run, " ".join(args.prompt), args.hole, args.caption, args.seed, changes, args.n or 1)
    else:
        given = given_modality(args.task)
        prompts = [read_prompt(run, given or "text", t) for t in args.prompt or [""] for _ in range(args.n or 1)]
        made = generate(run, args.task, prompts, seed=args.seed, length=args.length, **changes)
    paths = write_outputs(made, Path(args.out), f"{args.task}-{args.seed}")
    for text in made.outputs.get("text", []):
        print(text)
    print(f"{made.nfe:.0f} evaluations a sample, {made.seconds:.2f} s; wrote {', '.join(map(str, paths))}")


if __name__ == "__main__":
    sys.modules["sample"] = sys.modules["__main__"]  # score.py and page.py import it by this name
    safe.cli(main, "sample.py")
