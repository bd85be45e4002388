"""Generate any modality from any other, fill holes, score a run, make its film page.

    python sample.py text-to-image "a small red circle on white"        PNG under --out
    python sample.py image-to-text picture.png                          TXT
    python sample.py text-to-speech "a large blue star"                 WAV
    python sample.py speech-to-text clip.wav
    python sample.py text "the red circle"                              goes on from a prompt, or from nothing
    python sample.py image        python sample.py speech               unconditional, with the caption it fits
    python sample.py infill "the red circle is ___ the blue square."    ___ is a hole; or a picture or clip and --hole
    python sample.py score --n 200 --json scores.json                   judged samples and the bound
"""
import argparse
import base64
import html
import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import data
import diffusion
import model as models
from data import KINDS, MASK, MODALITIES, DataError

# Task -> kind of row, members to generate. The other members are the prompt. A new task is a row here.
TASKS = {
    "text": ("text", ("text",)),
    "text-to-image": ("image-text", ("image",)),
    "image-to-text": ("image-text", ("text",)),
    "text-to-speech": ("speech-text", ("speech",)),
    "speech-to-text": ("speech-text", ("text",)),
    "image": ("image-text", ("image", "text")),
    "speech": ("speech-text", ("speech", "text")),
}
# How each modality is sampled when it is the target (ours, found by small sweeps).
DEFAULTS = {
    "text": dict(sampler="entropy", budget=0.1, temperature=0.7),
    "image": dict(sampler="confidence", steps=20, choice_temperature=4.0, temperature=0.8, guidance=1.0),
    "speech": dict(sampler="confidence", steps=20, choice_temperature=4.0, temperature=0.6, guidance=1.0),
}
CAPTION = dict(sampler="entropy", budget=0.1, temperature=0.0)  # text of a pair


def settings_for(task, **changes):
    """Sampler settings of a task: DEFAULTS of its (first) target, then the caller's changes that are not None."""
    kind, targets = TASKS[task]
    base = CAPTION if targets == ("text",) and len(KINDS[kind]) > 1 else DEFAULTS[targets[0]]
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

    def logits(self, rows):
        """predict(x, where) for rows described by data.Stream.describe: row i of x has the layout of row i % B."""
        fixed = [torch.from_numpy(np.ascontiguousarray(a)).to(self.device) for a in (rows.place, rows.doc) if a is not None]
        same = all(bool((a == a[:1]).all()) for a in fixed)          # then any subset of rows may be asked for

        def predict(x, where):
            layout = [a[:1].expand(len(x), -1) for a in fixed] if same else fixed
            return self.net(x.to(self.device), *layout, select=where.to(self.device)).to(x.device)
        return predict

    def on(self, array):
        """A numpy array as a tensor where noise can be drawn in float64."""
        device = self.device if self.device.type == "cuda" else torch.device("cpu")
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def load_run(folder, device=None):
    """Read a run folder: config, tokenizers, averaged weights. Raises DataError with what to do."""
    folder, device = Path(folder), device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not (folder / "checkpoint.pt").exists():
        raise DataError(f"--run {folder}: no checkpoint there; train one first with python train.py --run {folder}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    data.check_layout(config["layout_version"], folder)
    stream = data.Stream(config["stream"]["codes"], config["stream"]["slots"])
    tokenizers = {m: data.tokenizer_module(m).load(folder / MODALITIES[m].file) for m in stream.codes}
    net = models.Transformer(models.ModelConfig(**config["model"]))
    state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    for parameter, average in zip(net.parameters(), state["ema"]):
        parameter.data.copy_(average)
    return Run(folder, config, stream, tokenizers, net.to(device).eval(), device)


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


@torch.inference_mode()
def fill(run, kind, ids, batch=64, record=False, condition=(), **settings):
    """Fill in the masked tokens of rows ids (B, L). condition: modalities that guidance leaves out."""
    began, out, film, nfe = time.time(), [], [], []
    for i in range(0, len(ids), batch):
        rows = run.stream.describe(kind, ids[i:i + batch])
        high = rows.high - before_content(run, kind, rows)
        left_out = np.isin(rows.member, [KINDS[kind].index(m) for m in condition])
        x, calls, frames = diffusion.sample(
            run.logits(rows), run.on(rows.ids), run.on(rows.low), run.on(high), MASK, condition=run.on(left_out),
            record=record, **{**settings, "seed": settings.get("seed", 0) * 1_000_003 + i})
        out.append(x.cpu().numpy())
        film.append([f.cpu().numpy() for f in frames])
        nfe.append(calls.float().cpu().numpy())
    ids = np.concatenate(out)
    decoded = {m: decode(run, m, codes) for m, codes in members_of(run, kind, ids).items()}
    return Generated(decoded, ids, film[0] if record else [], float(np.concatenate(nfe).mean()), time.time() - began)


def encode(run, modality, samples):
    return run.tokenizers[modality].encode(samples)


def drawn_lengths(run, at_least, seed):
    """Tokens of texts to generate, (B,): as often as documents of this extent were held out, above at_least (B,).

    In training a document's extent is given (packed rows show it), so it has to be drawn first: in a longer one than it
    has ever seen the network writes its longest texts."""
    rows = run.stream.describe("text", np.load(run.folder / "validation.npz")["text"].astype(np.int64))
    extents = np.sort(np.concatenate([np.bincount(d[m == 0]) for d, m in zip(rows.doc, rows.member)]))
    extents = extents[extents > 0]
    below = np.searchsorted(extents, at_least, side="right")                       # these are too short
    at = below + (data.rng(seed, 5).random(len(below)) * (len(extents) - below)).astype(int)
    return np.where(below < len(extents), extents[np.minimum(at, len(extents) - 1)], run.stream.slots["text"][0] - data.HEAD)


def generate(run, task, prompts, record=False, seed=0, length=None, **changes):
    """prompts: a list with one item a sample, of the task's given modality (None, or a text to go on from, for
    `text`; None for `image` and `speech`). length: tokens of a text, drawn if None. Returns Generated."""
    kind, targets = TASKS[task]
    if kind not in run.stream.slots:
        raise DataError(f"{task}: this run was not trained on {kind}; it knows {', '.join(run.stream.slots)}")
    given = [m for m in KINDS[kind] if m not in targets]
    stream = run.stream
    if kind == "text":
        given_codes, most = encode(run, "text", [p or "" for p in prompts]), stream.slots["text"][0] - data.HEAD
        slots = ([min(length, most)] * len(prompts) if length else
                 drawn_lengths(run, np.array([len(c) for c in given_codes]), seed))
        ids = [stream.row(kind, [None], int(slot)) for slot in slots]
        for row, slot, codes in zip(ids, slots, given_codes):
            if len(codes) >= slot:
                raise DataError(f"the prompt has {len(codes)} tokens, the text only {slot}: shorten it")
            row[data.HEAD:data.HEAD + len(codes)] = stream.to_ids("text", codes)
    else:
        codes = {m: encode(run, m, prompts) for m in given}
        ids = [stream.row(kind, [codes[m][i] if m in given else None for m in KINDS[kind]]) for i in range(len(prompts))]
    settings = settings_for(task, **changes)
    if not given:
        settings["guidance"] = 0.0
    lengths = np.array([len(row) for row in ids])
    groups = [np.flatnonzero(lengths == n) for n in np.unique(lengths)]            # rows of one length at a time
    made = [fill(run, kind, np.stack([ids[i] for i in g]), record=record, condition=given, seed=seed, **settings) for g in groups]
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
    where = np.zeros(10**5, bool)
    where[skip + int(first * (count - skip)):skip + int(last * (count - skip))] = True
    return where


def holes(run, kind, ids, modality, where):
    """Mask the positions `where` (slot,) bool of a modality in rows ids (B, L)."""
    rows, ids = run.stream.describe(kind, ids), ids.copy()
    at = np.flatnonzero(rows.member[0] == KINDS[kind].index(modality))
    ids[:, at[np.flatnonzero(where[:len(at)])]] = MASK
    return ids


# ---------------------------------------------------------------------------------------------------------------------
# Scores.

def mean_and_error(values):
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    return (float(values.mean()), float(values.std() / max(1, len(values)) ** 0.5)) if len(values) else (None, None)


def toy_cells(n, seed):
    """The toy world's questions and answer keys: {task: {cell: (prompts, judge of the outputs)}}."""
    import toyworld
    cells = {t: {} for t in ("text-to-image", "image-to-text", "text-to-speech", "speech-to-text", "text")}
    for i, split in enumerate(("seen", "unseen")):
        for j, (name, things) in enumerate((("one thing", 1), ("two things", 2))):
            scenes = toyworld.scenes(n, seed + 10 * i + j, split, things)
            cells["text-to-image"][f"{split}, {name}"] = (
                [toyworld.caption(s) for s in scenes],
                lambda out, s=scenes: toyworld.judge_scenes(toyworld.read_pictures(np.stack(out["image"])), s))
            cells["image-to-text"][f"{split}, {name}"] = (
                list(toyworld.draw(scenes, seed + 10 * i + j)),
                lambda out, s=scenes: toyworld.judge_scenes([toyworld.parse_caption(t) for t in out["text"]], s))
        phrases = toyworld.phrases(n, seed + 10 * i, split)
        cells["text-to-speech"][split] = (phrases, lambda out, p=phrases: words(
            toyworld, toyworld.read_speech(out["speech"]), p))
        cells["speech-to-text"][split] = (toyworld.speak(phrases, seed + 10 * i),
                                          lambda out, p=phrases: words(toyworld, out["text"], p))
    cells["text"]["passages"] = ([None] * n, lambda out: {
        "all": (j := toyworld.judge_passages(out["text"]))["grammatical"], **j,
        "distinct": np.full(n, len(set(out["text"])) / n)})
    return cells


def words(world, texts, wanted):
    right = world.words_right(texts, wanted)
    return {"all": right, "whole phrase": right == 1}


def own_cells(run, n):
    """One's own data has no judge: captions and transcripts of held-out items are compared with the real ones."""
    cells, held = {}, np.load(run.folder / "validation.npz")
    for task, (kind, targets) in TASKS.items():
        if targets == ("text",) and kind in run.stream.slots and len(KINDS[kind]) > 1:
            ids = held[kind][:n].astype(np.int64)
            truth = decode(run, "text", members_of(run, kind, ids)["text"])
            cells[task] = {"held out": (ids, lambda out, t=truth: {
                "all": np.array([word_accuracy(a, b) for a, b in zip(out["text"], t)]),
                "exact": np.array([a == b for a, b in zip(out["text"], t)])})}
    return cells


def word_accuracy(text, wanted):
    """1 - word edit distance / number of wanted words, at least 0."""
    a, b = text.split(), wanted.split()
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, last = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
    return max(0.0, 1 - row[-1] / max(1, len(b)))


def answers(run, task, prompts, seed):
    """Generated for prompts as toy_cells and own_cells have them: a list, or rows (n, L) of held-out tokens."""
    if not isinstance(prompts, np.ndarray):
        return generate(run, task, prompts, seed=seed)
    kind, targets = TASKS[task]
    ids = prompts
    for modality in targets:
        ids = holes(run, kind, ids, modality, np.ones(10**5, bool))
    return fill(run, kind, ids, condition=[m for m in KINDS[kind] if m not in targets], seed=seed, **settings_for(task))


def diversity(ids, repeats):
    """Rows ids (P * repeats, L), the samples of one prompt one after another -> how much they differ.

    distinct: share of different rows among the samples of a prompt (1 / repeats: all alike). entropy: nats, summed over
    positions, of the tokens that these samples have there (at most ln(repeats) each). Means over prompts.
    """
    groups = ids.reshape(-1, repeats, ids.shape[1])                                                  # (P, R, L)
    alike = (groups[:, :, None] == groups[:, None]).sum(2)                                           # (P, R, L)
    distinct = np.mean([len(np.unique(g, axis=0)) / repeats for g in groups])
    return {"prompts": len(groups), "samples": repeats, "distinct": float(distinct),
            "entropy": float(np.log(repeats / alike).mean(1).sum(1).mean())}


def score(run, n=200, seed=1_000_003, bound_rows=256, repeats=8):
    """Judge fresh samples of every task, n a cell, and estimate the bound. See README for the JSON's fields."""
    toy = not any(run.config["args"][k] for k in ("text", "images", "speech"))
    out = {}
    for task, cells in (toy_cells(n, seed) if toy else own_cells(run, n)).items():
        kind, targets = TASKS[task]
        if kind not in run.stream.slots:
            continue
        result = {"n": 0, "nfe": 0.0, "seconds": 0.0, "cells": {}}
        for name, (prompts, judge) in tqdm(cells.items(), desc=f"scoring {task}", leave=False):
            made = answers(run, task, prompts, seed)
            verdict = judge(made.outputs)
            cell = {"n": len(prompts)}
            for attribute, values in verdict.items():
                mean, error = mean_and_error(values)
                if mean is not None:
                    cell[attribute], cell[f"{attribute}_stderr"] = mean, error
            result["cells"][name] = cell
            result["n"] += len(prompts)
            result["nfe"] += made.nfe * len(prompts)
            result["seconds"] += made.seconds
        result["nfe"] /= result["n"]
        pooled = [c for name, c in result["cells"].items() if not name.startswith("unseen")]
        total = sum(c["n"] for c in pooled)
        result["accuracy"] = sum(c["all"] * c["n"] for c in pooled) / total
        result["stderr"] = sum((c["all_stderr"] * c["n"] / total) ** 2 for c in pooled) ** 0.5
        out[task] = result
        if settings_for(task)["temperature"] == 0:                            # one answer to one prompt
            continue
        first = next(iter(cells.values()))[0][:8]
        again = np.repeat(first, repeats, 0) if isinstance(first, np.ndarray) else [p for p in first for _ in range(repeats)]
        result["diversity"] = diversity(answers(run, task, again, seed + 1).ids, repeats)
    out["bound"] = bounds(run, bound_rows)
    return out


def units_of(run, modality, codes):
    """How many characters, pixel-channels or seconds the codes of one item stand for."""
    if modality == "text":
        return len(run.tokenizers["text"].decode([codes])[0])
    config = run.tokenizers[modality].config
    if modality == "image":
        return config.height * config.width * config.channels
    return len(codes) / config.groups * config.step / config.sample_rate


@torch.inference_mode()
def bounds(run, rows=256, rounds=4, seed=11):
    """The bound on held-out rows by kind and direction: nats and bits a token and a unit, with standard errors."""
    out, held = {}, np.load(run.folder / "validation.npz")
    for kind in run.stream.slots:
        ids = held[kind][:rows].astype(np.int64)
        directions = {"joint": KINDS[kind]} if len(KINDS[kind]) > 1 else {}
        for modality in KINDS[kind]:
            rest = [m for m in KINDS[kind] if m != modality]
            directions[modality + (f" given {rest[0]}" if rest else "")] = (modality,)
        for name, members in directions.items():
            nats = []
            for i in range(0, len(ids), 64):
                part = run.stream.describe(kind, ids[i:i + 64])
                noisy = np.isin(part.member, [KINDS[kind].index(m) for m in members])
                nats.append(diffusion.bound(run.logits(part), run.on(part.ids), run.on(noisy), run.on(part.low),
                                            run.on(part.high), MASK, data.rng(seed, i), rounds=rounds)[:, 0].cpu().numpy())
            nats, part = np.concatenate(nats), run.stream.describe(kind, ids)
            tokens = np.isin(part.member, [KINDS[kind].index(m) for m in members]).sum(1)
            mean, error = nats.sum() / tokens.sum(), nats.std() / len(nats) ** 0.5 / tokens.mean()
            entry = {"rows": len(ids), "nats_per_token": mean, "stderr": error, "bits_per_token": mean / np.log(2),
                     "nats_per_row": nats.mean()}
            if len(members) == 1:
                unit = MODALITIES[members[0]].unit
                count = sum(units_of(run, members[0], c) for c in codes_in(run, kind, ids, members[0]))
                entry[f"bits_per_{unit}"] = nats.sum() / np.log(2) / count
                entry[f"bits_per_{unit}_stderr"] = nats.std() * len(nats) ** 0.5 / np.log(2) / count
            out[f"{kind}: {name}"] = {k: float(v) if k != "rows" else v for k, v in entry.items()}
    return out


def codes_in(run, kind, ids, modality):
    """Codes of every item of a modality in rows ids (packed documents one by one)."""
    if len(KINDS[kind]) > 1:
        return members_of(run, kind, ids)[modality]
    rows, out = run.stream.describe(kind, ids), []
    for i in range(len(ids)):
        for d in range(1, rows.doc[i].max() + 1):
            inside = (rows.doc[i] == d) & (rows.member[i] == 0)
            out.append(run.stream.to_codes(modality, ids[i][inside]))
    return out


def table(scores):
    """The scores as lines of text."""
    lines = [f"{'task':15} {'cell':19} {'right':>12}   by attribute"]
    for task, result in scores.items():
        for name, cell in result.get("cells", {}).items():
            rest = ", ".join(f"{k} {100 * v:.0f}%" for k, v in cell.items()
                             if k not in ("n", "all") and not k.endswith("_stderr"))
            lines.append(f"{task:15} {name:19} {100 * cell['all']:5.1f} ± {100 * cell['all_stderr']:3.1f}%   {rest}")
        if "nfe" in result:
            if "diversity" in result:
                spread = result["diversity"]
                lines.append(f"{task:15} of one prompt {spread['samples']} samples: {100 * spread['distinct']:.0f}% different, "
                             f"{spread['entropy']:.1f} nats")
            lines[-1] += f"   ({result['nfe']:.1f} NFE, {result['seconds'] / result['n'] * 1000:.0f} ms a sample)"
    lines += ["", f"{'bound on held-out data':38} {'nats/token':>16}   bits"]
    for name, entry in scores["bound"].items():
        unit = next((k for k in entry if k.startswith("bits_per_") and "token" not in k), None)
        lines.append(f"{name:38} {entry['nats_per_token']:8.3f} ± {entry['stderr']:.3f}   {entry['bits_per_token']:.3f} "
                     "a token" + (f", {entry[unit]:.3f} a {unit[9:]}" if unit else ""))
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# The film page: one self-contained HTML file with the stages of unmasking.

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>tinytri</title><style>
body{font:15px/1.5 system-ui,sans-serif;margin:1.5em auto;max-width:64em;padding:0 1em;color:#222;background:#fafafa}
h2{margin:1.6em 0 .3em} .film{display:flex;gap:8px;overflow-x:auto;align-items:flex-end;margin:.4em 0 1em}
.film figure{margin:0} figcaption{font-size:11px;color:#777} img{image-rendering:pixelated;display:block;border:1px solid #ccc}
.text{font:12.5px/1.7 ui-monospace,monospace;background:#fff;border:1px solid #ddd;padding:.4em .6em;margin:2px 0;
white-space:pre-wrap;overflow-wrap:anywhere} i{background:#bbb;border-radius:3px;color:#bbb;font-style:normal;margin:0 1px}
pre{font-size:12px;background:#fff;border:1px solid #ddd;padding:1em;overflow-x:auto} audio{height:32px;width:220px}
.prompt{font-weight:600}</style><h1>tinytri: one masked diffusion model, three modalities</h1>
<p>Everything below was generated from masks by the run's averaged weights: the prompts are held-out items, the samples
the first ones of seed {seed}, none left out. Grey marks what is still masked.</p><pre>{settings}</pre>{body}</html>
"""


def png(array):
    """uint8 (H, W, 1 or 3) -> data URI."""
    from PIL import Image
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def wav(wave):
    import soundfile
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, data.SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode()


def grey_out(picture, masked):
    """Blend the masked share (h, w) in [0, 1] of a picture uint8 (H, W, C) into a grey that no content has by chance."""
    share = np.kron(masked, np.ones((picture.shape[0] // masked.shape[0], picture.shape[1] // masked.shape[1])))[..., None]
    return (picture * (1 - share) + 187 * share).astype(np.uint8)


def spectrogram(run, codes):
    """Codes of a clip -> uint8 (H, W, 3): magnitudes up to 5 kHz over 60 dB, one pixel column a frame."""
    magnitude = run.tokenizers["speech"].magnitudes([codes])[0].float().cpu().numpy()                # (bins, T)
    level = 20 * np.log10(np.maximum(magnitude[:320:4][::-1], 1e-5))
    level = np.clip((level - level.max() + 60) / 60, 0, 1)
    red, green, blue = (np.interp(level, [0, .35, .7, 1], stops) for stops in
                        ([8, 80, 235, 255], [8, 30, 110, 250], [30, 130, 70, 200]))
    return np.stack((red, green, blue), 2).astype(np.uint8)


def show_text(run, ids):
    pieces, codes = [], ids - run.stream.ranges("text", np.arange(len(ids)))[0]
    for raw, code in zip(ids, codes):
        if raw != MASK and code >= run.stream.codes["text"][1]:
            break
        pieces.append("<i>__</i>" if raw == MASK else html.escape(run.tokenizers["text"].decode([[code]])[0]))
    return f"<div class=text>{''.join(pieces) or '&nbsp;'}</div>"


def show_image(run, ids):
    """The picture under a strip of its palette's colours; what is masked is grey."""
    tokenizer, masked = run.tokenizers["image"], ids == MASK
    count, width = tokenizer.config.colours, tokenizer.config.width
    codes = np.where(masked, 0, ids - run.stream.start["image"]).astype(np.int64)
    grey = np.maximum(masked[count:].reshape(tokenizer.config.grid), masked[:count].mean())   # no colours yet: grey, too
    picture = grey_out(decode(run, "image", [codes])[0], grey)
    strip = np.where(masked[:count, None], 187, tokenizer.colours_of(codes))[np.arange(width) * count // width]    # (W, C)
    strip = np.broadcast_to(strip, (3, *strip.shape)).astype(np.uint8)
    return f'<img src="{png(np.concatenate((strip, np.full_like(strip[:1], 255), picture)))}" width=112>'


def show_speech(run, ids):
    groups, size = run.stream.codes["speech"]
    codes = np.where(ids == MASK, 0, ids - run.stream.ranges("speech", np.arange(len(ids)))[0])
    ended = (codes >= size) & (ids != MASK)
    share = (ids == MASK).reshape(-1, groups).mean(1)                                                # (steps,)
    picture = spectrogram(run, np.where(ended, 0, codes).astype(np.int32))
    picture = grey_out(picture, np.maximum(share, 0)[None])
    picture[:, np.repeat(ended.reshape(-1, groups)[:, 0], picture.shape[1] // len(share))] = 255
    return f'<img src="{png(picture)}" width={2 * picture.shape[1]} height=100>'


SHOW = {"text": show_text, "image": show_image, "speech": show_speech}


def reel(run, kind, made, row, targets, stages=6):
    """The film of one sample as HTML: some stages of unmasking, the prompt before them, sound after them."""
    rows = run.stream.describe(kind, made.film[0])
    slot = {m: rows.member[row] == i for i, m in enumerate(KINDS[kind])}
    parts = [f'<div class=prompt>{SHOW[m](run, made.ids[row][slot[m]])}</div>' for m in KINDS[kind] if m not in targets]
    frames = [made.film[i][row] for i in np.unique(np.linspace(0, len(made.film) - 1, stages).round().astype(int))]
    for m in (m for m in KINDS[kind] if m in targets):
        shown = [f"<figure>{SHOW[m](run, f[slot[m]])}</figure>" for f in frames]
        parts.append("".join(shown) if m == "text" else f"<div class=film>{''.join(shown)}</div>")
    if "speech" in KINDS[kind]:
        parts.append(f'<audio controls src="{wav(made.outputs["speech"][row])}"></audio>')
    return "".join(parts)


def film_page(run, samples=3, seed=0):
    """Write `film.html` into the run folder: every task, and a hole filled in every modality. Returns its path."""
    held, body = np.load(run.folder / "validation.npz"), []
    jobs = [(t, *TASKS[t], np.s_[0:1]) for t in TASKS] + [
        ("infill: the middle of a text", "text", ("text",), np.s_[0.3:0.6]),
        ("infill: the lower half of a picture", "image-text", ("image",), np.s_[0.5:1]),
        ("infill: the end of an utterance", "speech-text", ("speech",), np.s_[0.5:1])]
    for title, kind, targets, part in jobs:
        if kind not in run.stream.slots:
            continue
        ids = held[kind][:samples].astype(np.int64)
        if kind == "text":                                       # first documents of rows, or as many masks
            most = run.stream.slots["text"][0] - data.HEAD
            codes = [codes_in(run, kind, row[None], "text")[0][:most - 1] for row in ids]
            slot = min(most, -(-(max(map(len, codes)) + 1) // 8) * 8)
            ids = np.stack([run.stream.row(kind, [c if title.startswith("infill") else None], slot) for c in codes])
        if title.startswith("infill"):
            slot = run.stream.slots[kind][0] if kind != "text" else len(codes[0])
            if kind == "speech-text":                            # of the longest clip, not of the slot
                slot = max(len(c) for c in members_of(run, kind, ids)["speech"])
            ids = holes(run, kind, ids, targets[0], part_of(run, targets[0], part.start, part.stop, slot))
        else:
            for m in targets:
                ids = holes(run, kind, ids, m, np.ones(10**5, bool))
        task = title if title in TASKS else next(t for t, (k, m) in TASKS.items() if k == kind and m == targets)
        settings = settings_for(task)
        if not set(KINDS[kind]) - set(targets):
            settings["guidance"] = 0.0
        made = fill(run, kind, ids, record=True, condition=set(KINDS[kind]) - set(targets), seed=seed, **settings)
        body.append(f"<h2>{title}</h2>" + "".join(reel(run, kind, made, i, targets) for i in range(len(ids))))
    scores = run.folder / "scores.json"
    settings = {k: run.config[k] for k in ("steps", "batch_tokens", "rows_per_step", "rule")}
    text = json.dumps(settings) + ("\n\n" + table(json.loads(scores.read_text())) if scores.exists() else "")
    path = run.folder / "film.html"
    path.write_text(PAGE.replace("{seed}", str(seed)).replace("{settings}", html.escape(text))
                    .replace("{body}", "\n".join(body)), encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------------------------------
# The command line.

def read_prompt(run, modality, prompt):
    """A prompt of the command line: text as it is, a picture or clip from a file."""
    if modality == "text":
        return prompt
    if not Path(prompt).exists():
        raise DataError(f"{prompt}: no such file; this task starts from a {'picture' if modality == 'image' else 'clip'}")
    if modality == "speech":
        return data.open_clip(prompt)
    config = run.tokenizers["image"].config
    return data.open_picture(prompt, config.height, config.channels)


def write_outputs(run, made, folder, stem):
    """Every output as a file; returns the paths."""
    import soundfile
    from PIL import Image
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for modality, samples in made.outputs.items():
        for i, sample in enumerate(samples):
            path = folder / f"{stem}-{i}.{ {'text': 'txt', 'image': 'png', 'speech': 'wav'}[modality]}"
            if modality == "text":
                path.write_text(sample + "\n", encoding="utf-8")
            elif modality == "image":
                Image.fromarray(sample[:, :, 0] if sample.shape[2] == 1 else sample).save(path)
            else:
                soundfile.write(path, sample, data.SAMPLE_RATE, subtype="PCM_16")
            paths.append(path)
    if len(made.outputs.get("image", [])) > 1:
        paths.append(folder / f"{stem}-sheet.png")
        contact_sheet(made.outputs["image"]).save(paths[-1])
    return paths


def contact_sheet(pictures, columns=10, zoom=3):
    """uint8 (H, W, C) pictures, in reading order, as one PIL image."""
    from PIL import Image
    columns, (height, width) = min(columns, len(pictures)), pictures[0].shape[:2]
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture.squeeze()), (i % columns * width, i // columns * height))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


def infill(run, prompt, hole, caption, seed, changes):
    """Fill holes: `___` in a text (hole tokens each), or the share hole of a picture's or clip's codes."""
    path = Path(prompt)
    if not path.exists():
        if "___" not in prompt:
            raise DataError(f"infill: {prompt!r} is no file and has no ___ in it: mark the hole with ___")
        codes = [run.stream.to_ids("text", c) for c in encode(run, "text", prompt.split("___"))]
        filled = [codes[0]] + [p for c in codes[1:] for p in (np.full(int(hole or 3), MASK), c)]
        ids = np.concatenate(filled)
        slot = run.stream.slots["text"][0] - data.HEAD
        if len(ids) >= slot:
            raise DataError(f"infill: {len(ids)} tokens do not fit into {slot}: shorten the text")
        row = run.stream.row("text", [[]], min(slot, -(-(len(ids) + 1) // 8) * 8))
        row[data.HEAD:data.HEAD + len(ids)] = ids
        return fill(run, "text", row[None], seed=seed, **settings_for("text", **changes))
    modality = "speech" if path.suffix.lower() in data.CLIPS else "image"
    kind = next(k for k, members in KINDS.items() if members[0] == modality)
    codes = encode(run, modality, [read_prompt(run, modality, prompt)])[0]
    row = run.stream.row(kind, [codes, encode(run, "text", [caption])[0] if caption else None])
    first, last = (float(v) for v in str(hole or "0.5:1").split(":"))
    where = part_of(run, modality, first, last, len(codes))
    settings = {**settings_for(kind.split("-")[0], **changes), "guidance": 0.0}
    return fill(run, kind, holes(run, kind, row[None], modality, where), seed=seed, **settings)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("task", choices=[*TASKS, "infill", "score", "page"])
    p.add_argument("prompt", nargs="*", help="each a quoted text, or the file of a picture or clip")
    p.add_argument("--run", default="runs/toy", help="a folder that train.py made")
    p.add_argument("--out", default="out", help="folder for what is generated")
    p.add_argument("--n", type=int, help="samples for each prompt (1), or for each cell of the score (200)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", help="cpu, cuda, mps; the best at hand if not given")
    p.add_argument("--length", type=int, help="tokens of a text")
    p.add_argument("--hole", help="infill: tokens of ___ (3), or share of a picture or clip as FROM:TO (0.5:1)")
    p.add_argument("--caption", help="infill: what the picture shows or the clip says; generated too if not given")
    p.add_argument("--json", help="score: also write it to this file")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    g = p.add_argument_group("sampler (defaults depend on the task)")
    g.add_argument("--sampler", choices=diffusion.SAMPLERS)
    for name in ("steps", "top-k"):
        g.add_argument(f"--{name}", type=int)
    for name in ("temperature", "top-p", "guidance", "choice-temperature", "budget"):
        g.add_argument(f"--{name}", type=float)
    args = p.parse_args()
    changes = {k: getattr(args, k) for k in ("sampler", "steps", "top_k", "temperature", "top_p", "guidance",
                                             "choice_temperature", "budget")}
    run = load_run(args.run, torch.device(args.device) if args.device else None)
    if args.task == "score":
        scores = score(run, args.n or 200)
        print(table(scores))
        if args.json:
            Path(args.json).write_text(json.dumps(scores, indent=1), encoding="utf-8")
        return
    if args.task == "page":
        return print(film_page(run, seed=args.seed))
    if args.task == "infill":
        made = infill(run, " ".join(args.prompt), args.hole, args.caption, args.seed, changes)
    else:
        kind, targets = TASKS[args.task]
        given = next((m for m in KINDS[kind] if m not in targets), None)
        if given and not args.prompt:
            raise DataError(f"{args.task} needs a prompt: " + ("a text" if given == "text" else "a file"))
        prompts = [read_prompt(run, given or "text", t) for t in args.prompt or [""] for _ in range(args.n or 1)]
        made = generate(run, args.task, prompts, seed=args.seed, length=args.length, **changes)
    for text in made.outputs.get("text", []):
        print(text)
    paths = write_outputs(run, made, Path(args.out), f"{args.task}-{args.seed}")
    print(f"{made.nfe:.0f} evaluations a sample, {made.seconds:.2f} s; wrote {', '.join(map(str, paths))}")


if __name__ == "__main__":
    try:
        main()
    except (DataError, ValueError) as error:
        if "--debug" in sys.argv:
            raise
        sys.exit(f"sample.py: {error}")
