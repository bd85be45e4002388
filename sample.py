"""Generate any modality from any other, and fill holes.

    python sample.py text-to-image "a small red circle on white"      PNG under --out
    python sample.py image-to-text picture.png                        TXT
    python sample.py text-to-speech "a large blue star"               WAV
    python sample.py speech-to-text clip.wav
    python sample.py text "the red circle"                            goes on from it, or from none
    python sample.py image        python sample.py speech       a text, then what it says
    python sample.py speech-to-image clip.wav                         by a text, see between.py
    python sample.py image-to-speech picture.png
    python sample.py infill "the red circle is ___ the blue square."  or a file, and --hole FROM:TO

generate (prompts) asks answer (a task), which asks fill (rows), which asks diffusion.sample.
"""
import argparse
import functools
import io
import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import files  # before torch: it tells OpenMP how to wait
import numpy as np
import soundfile
import torch
from PIL import Image

import data
import diffusion
import model as models
from between import BETWEEN
from data import HEAD, KINDS, MASK, MODALITIES
from files import DataError, UsageError, number
from sources import folders
from tools import watch

# Task -> kind of document, members to generate. The other members are the prompt.
TASKS = {
    "text": ("text", ("text",)),
    "text-to-image": ("image-text", ("image",)),
    "image-to-text": ("image-text", ("text",)),
    "image": ("image-text", ("image", "text")),
    "text-to-speech": ("speech-text", ("speech",)),
    "speech-to-text": ("speech-text", ("text",)),
    "speech": ("speech-text", ("speech", "text")),
}
# Tasks of two stages: pictures and clips have no pairs, but both have texts. The first stage's text
# becomes that of the second, see between.py. Ours: the paper trains pairs with text only.
ACROSS = {
    "speech-to-image": ("speech-to-text", "image"),
    "image-to-speech": ("image-to-text", "text-to-speech"),
}
# How each task is sampled, found by small sweeps (ours). candidates: so many answers are drawn and
# the one that fits the prompt best is kept, judged by the network under `rounds` masks.
DRAW_IMAGE = dict(sampler="confidence", steps=8, choice_temperature=4.0, temperature=0.5,
                  guidance=1.0, candidates=4, rounds=8)
DRAW_SPEECH = dict(sampler="confidence", steps=12, choice_temperature=4.0, temperature=0.6,
                   guidance=1.0, candidates=4)
DEFAULTS = {
    "text": dict(sampler="entropy", budget=0.0, block=1, temperature=0.5, correct=5),
    "text-to-image": DRAW_IMAGE,
    "image-to-text": dict(sampler="entropy", budget=2.0, temperature=1.2, candidates=24, rounds=8,
                          correct=1),
    "image": DRAW_IMAGE,
    "text-to-speech": DRAW_SPEECH,
    "speech-to-text": dict(sampler="entropy", budget=0.5, candidates=8),
    "speech": DRAW_SPEECH,
}
TEXT_OF_A_PAIR = dict(sampler="entropy", budget=0.0, temperature=0.7)


def stages_of(task):
    """The rows of TASKS that make a task, one or two."""
    return ACROSS.get(task, (task,))


def kinds_of(task):
    """The kinds of its stages."""
    return [TASKS[stage][0] for stage in stages_of(task)]


def given_members(task):
    """What the prompt of a task is."""
    kind, targets = TASKS[stages_of(task)[0]]
    return [m for m in KINDS[kind] if m not in targets]


def settings_for(task, **changes):
    """Sampler settings of a task, of two stages those of the last, with the changes that are not
    None. Another sampler takes none of the options of the default one, its steps neither."""
    changes = {name: value for name, value in changes.items() if value is not None}
    base = DEFAULTS[stages_of(task)[-1]]
    if changes.get("sampler", base["sampler"]) != base["sampler"]:
        own = diffusion.SAMPLERS[base["sampler"]].options
        base = {name: value for name, value in base.items() if name not in own}
    return {**base, **changes}


OF_CONDITIONS = ("guidance", "candidates", "rounds")  # they need a condition


def check_options(task, changes, infilling=False):
    """UsageError for an option that only other samplers than the task's have, or that changes
    nothing, since texts and infilling have no condition."""
    for name in OF_CONDITIONS:
        if (infilling or task == "text") and changes.get(name) is not None:
            raise UsageError(f"{flag(name)} changes nothing in texts and infilling: leave it out")
    sampler = settings_for(task, **changes)["sampler"]
    own = diffusion.SAMPLERS[sampler].options
    options = {name for other in diffusion.SAMPLERS.values() for name in other.options}
    for name in sorted(options):
        if name not in own and changes.get(name) is not None:
            has = ", ".join(map(flag, own)) or "none of its own"
            raise UsageError(f"{flag(name)} is of another sampler: {task} is sampled by {sampler}, "
                             f"whose options are {has}")


# ------------------------------------------------------------------------------------------------
# A trained run.

TOKENS_AT_ONCE = 16_384  # that go through the network in one call, to bound the memory


@dataclass
class Run:
    folder: Path
    saved: dict        # config.json
    stream: data.Stream
    tokenizers: dict   # {modality: tokenizer}
    net: models.Transformer
    device: torch.device
    dtype: torch.dtype = torch.float32  # of matrix products

    @functools.cached_property
    def documents(self):
        """{kind: (training, held-out) documents}"""
        return data.load_documents(self.folder / "documents.pt")

    def ask(self, x, where):
        """Logits (M, V) at the True positions of where (B, L), row by row."""
        size = max(1, TOKENS_AT_ONCE // x.shape[1])
        logits = []
        for ids, look in zip(x.split(size), where.split(size)):
            rows = self.rows(ids)
            inputs = [z.to(self.device) for z in (rows.ids, rows.place, rows.doc, look)]
            with files.autocast(self.device, self.dtype):
                logits.append(self.net(*inputs).to(x.device))
        return torch.cat(logits)

    def predict(self, x, where):
        """As `ask`. Rows that agree, as candidates for one prompt often do, are asked once."""
        L = x.shape[1]
        rows, at = torch.cat((x, where), 1).unique(dim=0, return_inverse=True)
        if len(rows) == len(x):
            return self.ask(x, where)
        hidden = rows[:, L:].bool()                                       # (b, L)
        logits = self.ask(rows[:, :L], hidden)                            # (m, V)
        index = torch.arange(len(logits), device=x.device)
        index = torch.zeros_like(rows[:, :L]).masked_scatter(hidden, index)
        return logits[index[at][where]]                                   # (M, V)

    def rows(self, ids):
        """What stands where in rows ids (B, L), on a device that draws noise in float64."""
        device = self.device if self.device.type == "cuda" else torch.device("cpu")
        return self.stream.describe(ids.to(device))


def load_run(folder, device=None):
    """Read a run folder: settings, tokenizers, averaged weights. DataError says what is amiss."""
    folder = Path(folder)
    device = device or files.pick_device()
    if not (folder / "checkpoint.pt").exists():
        raise UsageError(f"--run {files.quoted(folder)}: no checkpoint there; train one first with "
                         f"python train.py --run {files.quoted(folder)}")
    saved = files.read_json(folder / "config.json")
    if not isinstance(saved, dict) or "stream" not in saved:
        raise DataError(f"{files.quoted(folder / 'config.json')} is missing or not a run's: "
                        "restore it, or train afresh")
    data.check_layout(saved["layout_version"], folder)
    with files.reading(folder / "config.json"):
        stream = data.Stream(**saved["stream"])
        net = models.Transformer(models.ModelConfig(**saved["model"]))
    tokenizers = data.load_tokenizers(folder, saved["tokenizers"])
    state = files.load(folder / "checkpoint.pt")
    with files.reading(folder / "checkpoint.pt"):
        for parameter, average in zip(net.parameters(), state["average"], strict=True):
            parameter.data = average.view(parameter.shape)
    dtype = torch.float32
    if saved["config"]["dtype"] != "float32":
        dtype = files.fast_dtype(device)
    return Run(folder, saved, stream, tokenizers, net.to(device), device, dtype)


# ------------------------------------------------------------------------------------------------
# Filling in.


@dataclass
class Samples:
    outputs: dict       # modality -> list of str, pictures or waves
    ids: torch.Tensor   # (B, L)
    film: list          # of (B, L), if recorded
    nfe: float          # evaluations of the network a sample, mean
    seconds: float
    first: "Samples" = None  # what the first of two stages made

    def after(self, before):
        """Add the film and the cost of what this was made from."""
        self.film = before.film + self.film[1:]
        self.nfe += before.nfe
        self.seconds += before.seconds
        return self


def codes_of(run, kind, modality, ids):
    """The codes of a member in rows ids (B, L) of one document each; masks read as code 0."""
    rows = run.stream.describe(ids)
    of = rows.of(kind, modality)
    return [run.stream.to_codes(modality, row[at].numpy()) for row, at in zip(ids, of)]


def decoded(run, kind, modality, ids):
    """A member of rows ids (B, L), decoded: texts, pictures or waves."""
    return run.tokenizers[modality].decode(codes_of(run, kind, modality, ids))


def without_early_ends(rows, kind):
    """rows.high (B, L), less the end id where given content follows in the same member."""
    high = rows.high.clone()
    for modality in KINDS[kind]:
        if MODALITIES[modality].open_end:
            of = rows.of(kind, modality)
            content = of & (rows.ids != MASK) & (rows.ids < rows.high - 1)  # (B, L)
            last = (rows.place * content).amax(1, keepdim=True)           # (B, 1)
            high -= (of & (rows.place < last)).long()
    return high


def best_candidates(run, kind, x, condition, candidates, seed, rounds):
    """Which of the candidates in rows x (P * candidates, L) fits its prompt best: (P,) rows.

    The network judges itself in both directions, -log p(answer | prompt) - log p(prompt | answer),
    each by its bound under the same masks for all candidates of a prompt. Our choice. The second
    term alone is a noisy channel; the first is what samplers may spoil.
    """
    rows = run.stream.describe(x)
    given = rows.of(kind, *condition)
    nats = 0.0
    for noised in (given, (rows.member >= 0) & ~given):
        nats = nats + diffusion.bound(run.predict, rows.ids, noised, rows.low, rows.high, MASK,
                                      data.rng(seed, 19), rounds, copies=candidates)
    best = nats.view(-1, candidates).argmin(1)                            # (P,)
    return best + torch.arange(0, len(x), candidates, device=x.device)


@torch.inference_mode()
def fill(run, kind, ids, targets=None, condition=(), seed=0, record=False, candidates=1, rounds=2,
         batch=64, **settings):
    """Fill in the masked tokens of the members `targets` (None: all) in rows ids (B, L) -> Samples.

    condition: members that guidance leaves out and that the best candidate has to fit. settings:
    of diffusion.sample. record: keep the film. batch: rows that are filled at once, or the
    candidates of 16 prompts.
    """
    began = time.perf_counter()
    targets = targets or KINDS[kind]
    if not condition:  # nothing to compare with
        candidates = 1
        settings["guidance"] = 0.0
    size = max(16, batch // candidates)  # prompts at a time
    made, calls, films = [], [], []
    for i in range(0, len(ids), size):
        rows = run.rows(ids[i:i + size].repeat_interleave(candidates, 0))
        missing = (rows.ids == MASK) & rows.of(kind, *targets)
        given = rows.of(kind, *condition)
        noise = seed * 1_000_003 + i
        x, nfe, frames = diffusion.sample(
            run.predict, rows.ids, rows.low, without_early_ends(rows, kind), MASK, seed=noise,
            condition=given, missing=missing, record=record, **settings)
        if candidates > 1:
            kept = best_candidates(run, kind, x, condition, candidates, noise, rounds)
            x = x[kept]
            frames = [frame[kept] for frame in frames]
            nfe = nfe.view(-1, candidates).sum(1) + 2 * rounds * candidates
        made.append(x.cpu())
        calls.append(nfe.cpu().float())
        films.append([frame.cpu() for frame in frames])
    ids = torch.cat(made)
    rows = run.stream.describe(ids)
    outputs = {}
    for modality in KINDS[kind]:
        if not ((ids == MASK) & rows.of(kind, modality)).any():
            outputs[modality] = decoded(run, kind, modality, ids)
    nfe = float(torch.cat(calls).mean())
    return Samples(outputs, ids, joined(films), nfe, time.perf_counter() - began)


def joined(films):
    """Films of some rows each -> one of all rows. The last frame of a shorter one stays."""
    film = []
    for k in range(max(map(len, films))):
        frames = [frames[min(k, len(frames) - 1)] for frames in films]
        film.append(torch.cat(frames))
    return film


def trained_in(run, mode):
    """Whether pairs were noised in this mode of diffusion.PAIR_MODES, too."""
    return run.saved["config"]["modes"].get(mode, 0) > 0


def answer(run, task, ids, seed=0, record=False, **changes):
    """Fill in the masked targets of a task in rows ids (B, L), of its first stage -> Samples.

    A pair from nothing is drawn by the chain rule: first the text, then what it describes. Our
    choice: drawn together they fitted each other less (experiments/LOG.md).
    """
    if task in ACROSS:
        return across(run, task, ids, seed, record, **changes)
    kind, targets = TASKS[task]
    settings = settings_for(task, **changes)
    given = given_members(task)
    if len(targets) > 1 and trained_in(run, "second"):
        text = fill(run, kind, ids, ("text",), (), seed + 500_000, record, **TEXT_OF_A_PAIR)
        made = fill(run, kind, text.ids, targets[:1], ["text"], seed, record, **settings)
        return made.after(text)
    return fill(run, kind, ids, targets, given, seed, record, **settings)


def across(run, task, ids, seed, record, **changes):
    """Answer a task of two stages in rows ids (B, L) of the first one. changes: to the last one."""
    began = time.perf_counter()
    first, last = ACROSS[task]
    told = answer(run, first, ids, seed, record)
    kind, _ = TASKS[last]
    rows, nfe = BETWEEN[kind](run, told.outputs["text"])
    made = answer(run, last, rows, seed, record, **changes)
    made.first = told
    made.nfe += told.nfe + nfe
    made.seconds = time.perf_counter() - began
    return made


def check_trained(run, task, *kinds):
    """UsageError for kinds that a run does not know."""
    for kind in kinds:
        if kind not in run.stream.slots:
            raise UsageError(f"{task}: this run was not trained on {kind}; it knows "
                             + ", ".join(run.stream.slots))


def drawn_extents(run, at_least, seed):
    """Tokens of texts to generate, (B,): as frequent as in training, above at_least (B,).

    In training a text's extent is known, since a token sees its own document only. So it has to
    be drawn first: at the longest extent the network writes its longest texts alone.
    """
    extents = np.sort(data.lengths(run.documents["text"][0]) - HEAD)
    below = np.searchsorted(extents, at_least, side="right")              # these are too short
    u = data.rng(seed, 5).random(len(below))
    at = below + (u * (len(extents) - below)).astype(int)
    return np.append(extents, run.stream.slots["text"])[at]  # if all are too short, the longest


def text_rows(run, prompts, length, seed):
    """Rows (B, L) of texts to go on from prompts; length: of each, or None to draw it."""
    codes = run.tokenizers["text"].encode([prompt or "" for prompt in prompts])
    longest = run.stream.slots["text"][0]
    if length and length > longest:
        raise UsageError(f"--length {length}: texts of this run have at most {longest} tokens")
    if length:
        extents = [length] * len(codes)
    else:
        extents = drawn_extents(run, np.array([len(c) for c in codes]), seed)
    documents = []
    for prompt, extent in zip(codes, extents):
        if len(prompt) >= extent:
            raise UsageError(f"the prompt has {len(prompt)} tokens, the text only {extent}: "
                             "shorten it")
        ids = run.stream.document("text", [None], [int(extent)])
        ids[HEAD:HEAD + len(prompt)] = run.stream.to_ids("text", prompt)
        documents.append(ids)
    return data.stacked(documents)


def generate(run, task, prompts, record=False, seed=0, length=None, **changes):
    """Answers to prompts, one a sample -> Samples. A prompt is an item of the task's given member,
    of `text` a text to go on from, or None. length: tokens of a text."""
    kind = kinds_of(task)[0]
    if kind == "text":
        ids = text_rows(run, prompts, length, seed)
    else:
        members = []
        for modality in KINDS[kind]:
            if modality in given_members(task):
                members.append(run.tokenizers[modality].encode(prompts))
            else:
                members.append([None] * len(prompts))
        ids = data.stacked([run.stream.document(kind, codes) for codes in zip(*members)])
    return answer(run, task, ids, seed, record, **changes)


# ------------------------------------------------------------------------------------------------
# Infilling.


def punch(run, kind, ids, *modalities):
    """Mask all tokens of these members in rows ids (B, L)."""
    return ids.masked_fill(run.stream.describe(ids).of(kind, *modalities), MASK)


def infill_text(run, text, tokens, n, seed, changes, record=False):
    """Fill the holes `___` of a text, `tokens` tokens each, n times."""
    ids = []
    for codes in run.tokenizers["text"].encode(re.split(" ?___", text)):  # tokens hold their space
        ids += [np.full(tokens, MASK), run.stream.to_ids("text", codes)]
    ids = np.concatenate(ids[1:])  # no hole before the first part
    longest = run.stream.slots["text"][0]
    if len(ids) >= longest:
        raise UsageError(f"infill: {len(ids)} tokens do not fit into {longest}: shorten the text")
    extent = min(longest, data.round_up(len(ids) + 1, data.ROUND))
    document = run.stream.document("text", [[]], [extent])
    document[HEAD:HEAD + len(ids)] = ids
    rows = data.stacked([document] * n)
    settings = settings_for("text", **changes)
    return fill(run, "text", rows, seed=seed, record=record, **settings)


def infill_file(run, modality, item, share, caption, n, seed, changes, record=False):
    """Fill the share (first, last) of a picture's or clip's codes, n times. A picture keeps its
    palette. A clip grows no longer. A text that is not given is read off what comes out."""
    kind, _ = TASKS[f"text-to-{modality}"]
    codes = run.tokenizers[modality].encode([item])[0]
    text = None
    if caption:
        text = run.tokenizers["text"].encode([caption])[0]
    document = run.stream.document(kind, [codes, text])
    start = HEAD
    if modality == "image":
        start += run.tokenizers["image"].config.colours
    free = HEAD + len(codes) - start
    first, last = share
    document[start + int(first * free + 1e-9):start + math.ceil(last * free - 1e-9)] = MASK
    rows = data.stacked([document] * n)
    settings = settings_for(f"text-to-{modality}", **changes)
    if caption or not trained_in(run, "first"):
        return fill(run, kind, rows, KINDS[kind], seed=seed, record=record, **settings)
    made = fill(run, kind, rows, (modality,), seed=seed, record=record, **settings)
    return answer(run, f"{modality}-to-text", made.ids, seed, record).after(made)


# ------------------------------------------------------------------------------------------------
# Files.


def png(pixels):
    """uint8 (H, W, C), C from 1 to 4 -> the bytes of a PNG file."""
    if pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def wav(wave):
    """float (samples,) in [-1, 1] at 16 kHz -> the bytes of a WAV file."""
    file = io.BytesIO()
    soundfile.write(file, wave, folders.SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def txt(text):
    return (text + "\n").encode()


FILES = {"text": (".txt", txt), "image": (".png", png), "speech": (".wav", wav)}


def contact_sheet(pictures, columns=10, zoom=3):
    """Pictures, uint8 (H, W, C), in reading order, `zoom` times as large, as one picture."""
    columns = min(columns, len(pictures))
    blank = np.full_like(pictures[0], 255)
    pictures = [*pictures, *[blank] * (-len(pictures) % columns)]
    rows = [np.hstack(pictures[i:i + columns]) for i in range(0, len(pictures), columns)]
    return np.vstack(rows).repeat(zoom, 0).repeat(zoom, 1)


def write_outputs(made, folder, stem):
    """Write every output as a file, several pictures on a sheet, too. Returns the paths.

    Numbers go on behind those that are there: no file is replaced.
    """
    first = 0
    for path in folder.glob(f"{stem}-*"):
        found = re.match(rf"{stem}-(\d+)", path.name)
        if found:
            first = max(first, int(found[1]) + 1)
    contents = {}
    for modality, samples in made.outputs.items():
        ending, content = FILES[modality]
        for i, item in enumerate(samples, first):
            contents[folder / f"{stem}-{i}{ending}"] = content(item)
    if len(made.outputs.get("image", [])) > 1:
        contents[folder / f"{stem}-{first}-sheet.png"] = png(contact_sheet(made.outputs["image"]))
    for path, content in contents.items():
        files.write_bytes(path, content)
    return list(contents)


# ------------------------------------------------------------------------------------------------
# The command line.


def schedule_name(name):
    try:
        diffusion.schedule(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error))
    return name


# The flags of sampling. Which of them only some samplers have: diffusion.SAMPLERS.
SETTINGS = {
    "sampler": (str, "which tokens are revealed when: " + ", ".join(diffusion.SAMPLERS)),
    "steps": (number(int, 1), "of samplers that walk a grid: ancestral, confidence, remdm"),
    "grid": (schedule_name,
             f"their mask rates: {', '.join(diffusion.SCHEDULES)} or poly:P (cosine)"),
    "choice_temperature": (number(float, 0), "confidence: noise in what is revealed first"),
    "eta": (number(float, 0, 1), "remdm: share that is masked again, at most (0.1)"),
    "budget": (number(float, 0), "entropy: most nats of a call's tokens in all, less the largest"),
    "block": (number(int, 0), "entropy: only among the leftmost so many; 1: left to right; 0: all"),
    "temperature": (number(float, 0), "of the draws; 0: the likeliest"),
    "top_k": (number(int, 1), "draw among so many likeliest tokens"),
    "top_p": (number(float, 1e-6, 1), "draw among the likeliest with this probability"),
    "guidance": (number(float, -100, 100), "what the prompt changes counts 1 + so many times"),
    "candidates": (number(int, 1), "draw so many answers, keep the one that fits best"),
    "rounds": (number(int, 1), "random masks under which the network judges that"),
    "correct": (number(int, 0), "rounds of repair afterwards"),
}


def flag(name):
    return "--" + name.replace("_", "-")


def add_settings(parser):
    group = parser.add_argument_group("sampling (the defaults depend on the task)")
    for name, (read, text) in SETTINGS.items():
        choices = diffusion.SAMPLERS if name == "sampler" else None
        group.add_argument(flag(name), type=read, choices=choices, help=text)


def clip_seconds(run):
    """Seconds of the longest clip that fits into a document, its end beside it."""
    config = run.tokenizers["speech"].config
    slot, _ = run.stream.slots["speech-text"]
    return (slot - 1) // config.groups * config.step / config.sample_rate


def read_prompt(run, modality, prompt):
    """A prompt of the command line: a text as it is, a picture or a clip from a file."""
    if modality == "text":
        return prompt
    if not os.path.exists(prompt):  # Path.exists fails on a long text
        what = "picture" if modality == "image" else "clip"
        raise UsageError(f"{files.quoted(prompt)}: no such file; this task starts from a {what}")
    if modality == "speech":
        return folders.open_clip(prompt, clip_seconds(run))
    config = run.tokenizers["image"].config
    return folders.open_picture(prompt, config.side, config.channels)


def hole_share(hole):
    """FROM:TO -> (from, to), a share between 0 and 1."""
    try:
        first, last = (float(value) for value in hole.split(":"))
    except ValueError:
        first, last = 1, 0
    if not 0 <= first < last <= 1:
        raise UsageError(f"--hole {hole}: of a picture or clip a share FROM:TO, as 0.5:1")
    return first, last


def run_infill(run, args, changes):
    """The command `infill`: a text with ___ in it, or the file of a picture or clip."""
    prompt = " ".join(args.prompt)
    n = args.n or 1
    if "___" in prompt:
        if args.caption:
            raise UsageError("--caption is of a picture or a clip, not of a text")
        check_trained(run, "infill", "text")
        check_options("text", changes, infilling=True)
        hole = args.hole or "2"
        if not hole.isdecimal() or not int(hole):
            raise UsageError(f"--hole {hole}: in a text a number of tokens, at least 1")
        return infill_text(run, prompt, int(hole), n, args.seed, changes, args.watch)
    if not os.path.exists(prompt):
        raise UsageError(f"{files.quoted(prompt)}: no file, and no text with a hole ___ in it")
    modality = "speech" if Path(prompt).suffix.lower() in folders.CLIPS else "image"
    check_trained(run, "infill", TASKS[f"text-to-{modality}"][0])
    check_options(f"text-to-{modality}", changes, infilling=True)
    item = read_prompt(run, modality, prompt)
    share = hole_share(args.hole or "0.5:1")
    return infill_file(run, modality, item, share, args.caption, n, args.seed, changes,
                       args.watch)


def add_run(parser):
    """The flags of all scripts that ask a run."""
    parser.add_argument("--run", default="runs/toy", help="a folder that train.py made (runs/toy)")
    parser.add_argument("--seed", type=number(int, 0, 10 ** 9), default=0, help="which samples (0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")


def parse():
    parser = files.Parser(description=__doc__)
    parser.add_argument("task", choices=[*TASKS, *ACROSS, "infill"])
    parser.add_argument("prompt", nargs="*", help="quoted texts, or files of pictures or clips")
    add_run(parser)
    parser.add_argument("--out", default="out", help="folder for what is generated (out)")
    parser.add_argument("--n", type=number(int, 1), help="samples for each prompt (1)")
    parser.add_argument("--length", type=number(int, 1), help="text: its tokens")
    parser.add_argument("--hole", help="infill: tokens of ___ (2), or FROM:TO of a file (0.5:1)")
    parser.add_argument("--caption", help="infill: what the picture shows or the clip says")
    parser.add_argument("--watch", action="store_true",
                        help="then show how the masks became tokens, a film of each sample")
    add_settings(parser)
    args = parser.parse_intermixed_args()  # flags may stand before the prompt
    changes = {name: getattr(args, name) for name in SETTINGS}
    given = ["text"]  # of infill
    if args.task != "infill":
        check_options(args.task, changes)
        given = given_members(args.task)
    if given and not all(prompt.strip() for prompt in args.prompt or [""]):
        raise UsageError(f"{args.task} needs a prompt: {given[0]}")
    if not given and args.prompt and args.task != "text":
        raise UsageError(f"{args.task} takes no prompt: leave {args.prompt[0]!r} out")
    for name, task in (("length", "text"), ("hole", "infill"), ("caption", "infill")):
        if getattr(args, name) and args.task != task:
            raise UsageError(f"--{name} is of the task {task}, not of {args.task}")
    return args, changes


def run_task(run, args, changes):
    """The command of a task."""
    check_trained(run, args.task, *kinds_of(args.task))
    modality = next(iter(given_members(args.task)), "text")
    prompts = []
    for prompt in args.prompt or [""]:
        prompts += [read_prompt(run, modality, prompt)] * (args.n or 1)
    return generate(run, args.task, prompts, args.watch, args.seed, args.length, **changes)


def main():
    args, changes = parse()
    run = load_run(args.run, files.pick_device(args.device))
    command = run_infill if args.task == "infill" else run_task
    made = command(run, args, changes)
    paths = write_outputs(made, Path(args.out), f"{args.task}-{args.seed}")
    stages = [stage for stage in (made.first, made) if stage]
    for row in range(len(made.ids)):
        if args.watch:
            for stage in stages:
                watch.replay(run, [ids[row] for ids in stage.film])
        texts = [stage.outputs["text"][row] for stage in stages]
        print(files.printable(" -> ".join(texts)))
    wrote = [files.quoted(path) for path in paths]
    if len(wrote) > 6:
        wrote = [*wrote[:3], "...", wrote[-1]]
    print(f"{made.nfe:.0f} evaluations a sample, {made.seconds:.2f} s; wrote {', '.join(wrote)}")


if __name__ == "__main__":
    files.command_line(main, "sample.py")
