"""Scores of a run: judged samples of every task, their diversity, the bound on held-out data.

    python -m tools.score --run runs/toy --n 200 --json scores.json
    python -m tools.score text-to-image --guidance 2       these tasks alone, sampled otherwise
"""
from dataclasses import dataclass, replace
from functools import partial
from typing import Callable

import files  # before torch: it tells OpenMP how to wait
import numpy as np
import torch
from tqdm import tqdm

import data
import diffusion
import sample
from data import HEAD, KINDS, MASK, MODALITIES, ROUND
from sample import ACROSS, TASKS
from sources import judges, speechjudge, toyspeech, toyworld

SEED = 1_000_003  # of the questions and of the samples; trainings have lower ones
SPLITS = {"seen": 0, "unseen": 10}  # what each adds to the seed

# ------------------------------------------------------------------------------------------------
# The toy world's questions and judges. A judge gets the outputs of the samples and returns
# {attribute: (n,) marks from 0 to 1, NaN where it does not apply}; "all" is the score.


@dataclass
class Cell:
    prompts: object  # list of prompts, or rows (n, L) with the targets masked
    judge: Callable
    note: str = ""   # what the prompts share with the training


def judge_pictures(scenes, outputs):
    read = judges.read_pictures(outputs["image"])
    return judges.judge_scenes(read, scenes)


def judge_captions(scenes, outputs):
    read = [judges.parse_caption(text) for text in outputs["text"]]
    return judges.judge_scenes(read, scenes)


def judge_things(scenes, outputs):
    """As `judge_pictures`, on any ground: speech says none."""
    read = judges.read_pictures(outputs["image"])
    wanted = []
    for scene, found in zip(scenes, read):
        ground = found.background if found else scene.background
        wanted.append(replace(scene, background=ground))
    marks = judges.judge_scenes(read, wanted)
    marks["background"] = np.full(len(scenes), np.nan)
    return marks


def judge_own_captions(outputs):
    scenes = [judges.parse_caption(text) for text in outputs["text"]]
    return judge_pictures(scenes, outputs)


def judge_words(phrases, texts):
    """Words right, whole phrases right, and words right of phrases of several words: an unseen
    number such as "fourteen" is a word that no clip of the training says alone."""
    right = speechjudge.words_right(texts, phrases)
    several = np.array([" " in phrase for phrase in phrases])
    return {"all": right, "whole phrase": right == 1,
            "several words": np.where(several, right, np.nan)}


def judge_speech(phrases, outputs):
    return judge_words(phrases, speechjudge.read_speech(outputs["speech"]))


def judge_transcripts(phrases, outputs):
    return judge_words(phrases, outputs["text"])


def judge_own_text(outputs):
    texts = [text if speechjudge.content(text) else "?" for text in outputs["text"]]
    return judge_speech(texts, outputs)


def judge_passages(outputs):
    texts = outputs["text"]
    n = len(texts)
    marks = judges.judge_passages(texts)
    marks["all"] = marks["grammatical"]
    marks["distinct"] = np.full(n, len(set(texts)) / n)
    marks["forms"] = np.full(n, judges.variety(texts))
    return marks


def learnt_pictures(run):
    """The training pictures, as a set of their ids."""
    documents = run.documents["image-text"][0]
    count = run.stream.slots["image-text"][0]
    return {tuple(ids[HEAD:HEAD + count]) for ids in documents}


def fresh_pictures(run, known, scenes, seed, tries=40):
    """Pictures of scenes, drawn anew up to `tries` times while their tokens are among the `known`
    (see `learnt_pictures`), and how many still are."""
    pictures = {}  # of each scene's number
    stale = range(len(scenes))
    for attempt in range(tries):
        drawn = toyworld.draw([scenes[i] for i in stale], seed + 7919 * attempt)
        pictures.update(zip(stale, drawn))
        codes = run.tokenizers["image"].encode(list(drawn))
        ids = [tuple(run.stream.to_ids("image", c)) for c in codes]
        stale = [i for i, picture in zip(stale, ids) if picture in known]
        if not stale:
            break
    return list(pictures.values()), len(stale)


def picture_cells(run, n, seed):
    """(task, name, Cell) of pictures and their captions."""
    known = learnt_pictures(run)
    for split, first in SPLITS.items():
        for things, name in ((1, "one thing"), (2, "two things")):
            at = seed + first + things - 1
            scenes = toyworld.scenes(n, at, split, things)
            captions = [toyworld.caption(scene) for scene in scenes]
            pictures, stale = fresh_pictures(run, known, scenes, at)
            note = ""
            if stale:
                note = f"{stale} of {n} pictures have the tokens of a training picture"
            cell = f"{split}, {name}"
            yield "text-to-image", cell, Cell(captions, partial(judge_pictures, scenes))
            yield "image-to-text", cell, Cell(pictures, partial(judge_captions, scenes), note)
    yield "image", "its own caption", Cell([None] * n, judge_own_captions)


def speech_cells(run, n, seed):
    """(task, name, Cell) of clips and their transcripts."""
    for split, first in SPLITS.items():
        phrases = toyspeech.phrases(n, seed + first, split)
        waves = toyspeech.speak(phrases, seed + first)
        yield "text-to-speech", split, Cell(phrases, partial(judge_speech, phrases))
        yield "speech-to-text", split, Cell(waves, partial(judge_transcripts, phrases))
    yield "speech", "its own text", Cell([None] * n, judge_own_text)


def across_cells(run, n, seed):
    """(task, name, Cell) of phrases that are heard and drawn, and of things seen and named."""
    known = learnt_pictures(run)
    for split, first in SPLITS.items():
        at = seed + first + 5
        scenes = toyworld.scenes(n, at, split, things=1)
        phrases = [toyworld.noun_phrase(scene.things[0]) for scene in scenes]
        waves = toyspeech.speak(phrases, at)
        pictures, _ = fresh_pictures(run, known, scenes, at)
        yield "speech-to-image", split, Cell(waves, partial(judge_things, scenes))
        yield "image-to-speech", split, Cell(pictures, partial(judge_speech, phrases))


def text_cells(run, n, seed):
    yield "text", "passages", Cell([None] * n, judge_passages)


TOY_CELLS = {
    ("text",): text_cells,
    ("image-text",): picture_cells,
    ("speech-text",): speech_cells,
    ("image-text", "speech-text"): across_cells,
}


def toy_cells(run, n, seed):
    """{task: {name: Cell}} of the kinds that the run knows."""
    cells = {}
    for kinds, make in TOY_CELLS.items():
        if set(kinds) <= set(run.stream.slots):
            for task, name, cell in make(run, n, seed):
                cells.setdefault(task, {})[name] = cell
    return cells


def judge_held_out(truth, outputs):
    """Words right, or characters where the truth has no blanks, and texts exactly right."""
    blanks = any(" " in text for text in truth)
    split = str.split if blanks else list
    right = []
    exact = []
    for said, wanted in zip(outputs["text"], truth):
        right.append(speechjudge.word_accuracy(split(said), split(wanted)))
        exact.append(said == wanted)
    return {"all": np.array(right), "exact": np.array(exact)}


def own_cells(run, n):
    """One's own data have no judge: captions and transcripts of held-out items are compared."""
    cells = {}
    for task, (kind, targets) in TASKS.items():
        if kind == "text" or kind not in run.stream.slots or targets != ("text",):
            continue
        ids = data.stacked(run.documents[kind][1][:n])
        truth = sample.decoded(run, kind, "text", ids)
        rows = sample.punch(run, kind, ids, "text")
        cells[task] = {"held out": Cell(rows, partial(judge_held_out, truth))}
    return cells


# ------------------------------------------------------------------------------------------------
# Scores.


def mean_and_error(values):
    """Mean and standard error of marks, NaN left out; None, None of none."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if not len(values):
        return None, None
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def answers(run, task, prompts, seed, changes):
    ask = sample.answer if torch.is_tensor(prompts) else sample.generate
    return ask(run, task, prompts, seed=seed, **changes)


def marks(cell, outputs):
    """{"n", attribute: mean, attribute_stderr: its error} of a cell's samples."""
    result = {"n": len(cell.prompts)}
    if cell.note:
        result["note"] = cell.note
    for attribute, values in cell.judge(outputs).items():
        mean, error = mean_and_error(values)
        if mean is not None:
            result[attribute] = mean
            result[f"{attribute}_stderr"] = error
    return result


def diversity(run, task, prompts, seed, changes, repeats=8):
    """How much samples of one prompt differ: the share of different rows among `repeats`, and the
    entropy of the tokens at a position, nats, summed over positions; means over eight prompts."""
    again = [prompt for prompt in prompts[:8] for _ in range(repeats)]
    if torch.is_tensor(prompts):
        again = torch.stack(again)
    ids = answers(run, task, again, seed, changes).ids.numpy()
    groups = ids.reshape(-1, repeats, ids.shape[1])                       # (P, R, L)
    distinct = [len(np.unique(group, axis=0)) for group in groups]
    alike = groups[:, :, None] == groups[:, None]                         # (P, R, R, L)
    p = alike.mean(2)                                                     # (P, R, L)
    entropy = -np.log(p).mean(1).sum(1)                                   # (P,)
    return {
        "prompts": len(groups),
        "samples": repeats,
        "distinct": float(np.mean(distinct)) / repeats,
        "entropy": float(entropy.mean()),
    }


def score_task(run, task, cells, seed, changes):
    """Judge fresh samples of a task -> {nfe, seconds, cells}."""
    judged = {}
    nfe = []
    seconds = 0.0
    for name, cell in tqdm(cells.items(), desc=f"scoring {task}", leave=False):
        made = answers(run, task, cell.prompts, seed, changes)
        judged[name] = marks(cell, made.outputs)
        nfe.append(made.nfe)
        seconds += made.seconds
    return {"nfe": float(np.mean(nfe)), "seconds": seconds, "cells": judged}


def reconstructions(run, n, seed):
    """What the judges read right in true pictures and clips, and in what their tokens leave of
    them: {modality: {"n", "true": (mean, error), "tokens": (mean, error)}}."""
    scenes = toyworld.scenes(n, seed)
    phrases = toyspeech.phrases(n, seed)
    originals = {
        "image": (list(toyworld.draw(scenes, seed)), partial(judge_pictures, scenes)),
        "speech": (toyspeech.speak(phrases, seed), partial(judge_speech, phrases)),
    }
    out = {}
    for modality, (samples, judge) in originals.items():
        if modality in run.stream.codes:
            codes = run.tokenizers[modality].encode(samples)
            again = run.tokenizers[modality].decode(codes)
            before = judge({modality: samples})["all"]
            after = judge({modality: again})["all"]
            out[modality] = {
                "n": n,
                "true": mean_and_error(before),
                "tokens": mean_and_error(after),
            }
    return out


def score(run, n=200, seed=SEED, tasks=(), **changes):
    """Judge fresh samples of every task, n a cell, and estimate the bound.

    Returns {task: see `score_task`, of a single stage with "diversity"}, "tokenizers": see
    `reconstructions`, "bound": see `bounds`; of chosen tasks those alone. changes: to how they are
    sampled.
    """
    settings = run.saved["config"]
    toy = not (settings["text"] or settings["images"] or settings["speech"])
    cells = toy_cells(run, n, seed) if toy else own_cells(run, n)
    for task in tasks or cells:
        if task not in cells:
            known = ", ".join(cells) or "its bound alone"
            raise files.UsageError(f"{task}: this run is judged on {known}")
        sample.check_options(task, changes)
    out = {}
    for task in tasks or cells:
        out[task] = score_task(run, task, cells[task], seed, changes)
        if task in TASKS:
            prompts = next(iter(cells[task].values())).prompts
            out[task]["diversity"] = diversity(run, task, prompts, seed + 1, changes)
    if tasks:
        return out
    if toy:
        out["tokenizers"] = reconstructions(run, n, seed)
    out["bound"] = bounds(run)
    return out


# ------------------------------------------------------------------------------------------------
# The bound.


def units_of(run, modality, codes):
    """How many characters, pixel-channels or seconds the codes of an item stand for."""
    tokenizer = run.tokenizers[modality]
    if modality == "text":  # bytes that begin a character: cut ones then count once
        text = tokenizer.bpe.decode_bytes(codes.tolist())
        return sum(byte & 0xC0 != 0x80 for byte in text)
    config = tokenizer.config
    if modality == "image":
        return config.side ** 2 * config.channels
    steps = len(codes) / config.groups - 0.5  # a clip ends somewhere in its last step
    return steps * config.step / config.sample_rate


def extent_nats(run, extents):
    """-log p of texts' extents (n,): their frequency in training, one added to each count.

    A token sees its own document only, which gives its extent away: the bound is one on
    -log p(text | extent). This is what is missing to -log p(text).
    """
    training, _ = run.documents["text"]
    longest = run.stream.slots["text"][0]
    possible = [*range(ROUND, longest, ROUND), longest]
    counts = np.bincount(data.lengths(training) - HEAD, minlength=longest + 1) + 1.0
    return -np.log(counts[extents] / counts[possible].sum())


def ratio(amounts, counts):
    """Sum of amounts (N,) over the sum of counts (N,), and its standard error."""
    mean = amounts.sum() / counts.sum()
    residual = amounts - mean * counts
    error = residual.std() / len(amounts) ** 0.5 / counts.mean()
    return float(mean), float(error)


def directions(kind):
    """{name: members that are noised}: together, and each given the other."""
    members = KINDS[kind]
    if len(members) == 1:
        return {members[0]: members}
    a, b = members
    return {"joint": members, f"{a} given {b}": (a,), f"{b} given {a}": (b,)}


def figures_a_unit(run, kind, modality, ids, nats):
    """Bits a character, pixel-channel or second of a member of documents ids (N, L)."""
    codes = sample.codes_of(run, kind, modality, ids)
    units = np.array([units_of(run, modality, c) for c in codes])
    bits, error = ratio(nats / np.log(2), units)
    name = f"bits_per_{MODALITIES[modality].unit}"
    return {name: bits, f"{name}_stderr": error}


@torch.inference_mode()
def bounds(run, rounds=4):
    """The bound on held-out documents by kind and direction: nats and bits a token and a unit,
    with standard errors. Of texts with their extents (`extent_nats`)."""
    out = {}
    for kind in run.stream.slots:
        ids = data.stacked(run.documents[kind][1])
        rows = run.rows(ids)
        for name, members in directions(kind).items():
            noised = rows.of(kind, *members)
            tokens = noised.sum(1).cpu().numpy()
            nats = diffusion.bound(run.ask, rows.ids, noised, rows.low, rows.high, MASK,
                                   data.rng(11), rounds)
            nats = nats.cpu().numpy()
            if kind == "text":
                nats = nats + extent_nats(run, tokens)
            mean, error = ratio(nats, tokens)
            entry = {
                "documents": len(nats),
                "nats_per_token": mean,
                "stderr": error,
                "bits_per_token": mean / np.log(2),
                "nats_per_document": float(nats.mean()),
            }
            if len(members) == 1:
                entry |= figures_a_unit(run, kind, members[0], ids, nats)
            out[f"{kind}: {name}"] = entry
    return out


# ------------------------------------------------------------------------------------------------
# The table.


def percent(value, error):
    return f"{100 * value:.1f} ± {100 * error:.1f}%"


def share(cell):
    """A share right with its error; all or none of n is told as such."""
    right = cell["all"]
    if right in (0, 1):
        return f"{round(right * cell['n'])} of {cell['n']}"
    return percent(right, cell["all_stderr"])


def measured(entry):
    """The names in an entry that have a standard error beside them."""
    return [name for name in entry if f"{name}_stderr" in entry]


def task_lines(task, result):
    """A line for each cell, and what the samples cost and how much they differ."""
    samples = 0
    for name, cell in result["cells"].items():
        samples += cell["n"]
        rest = [f"{mark} {100 * cell[mark]:.0f}%" for mark in measured(cell) if mark != "all"]
        if "note" in cell:
            rest.append(cell["note"])
        yield f"{task:15} {name:19} {share(cell):>13}   " + ", ".join(rest)
    told = ""
    if "diversity" in result:
        spread = result["diversity"]
        told = (f"{spread['samples']} samples of one prompt: {100 * spread['distinct']:.0f}% "
                f"different, {spread['entropy']:.1f} nats; ")
    ms = 1000 * result["seconds"] / samples
    yield " " * 16 + told + f"{result['nfe']:.1f} NFE, {ms:.0f} ms a sample"


def table(scores):
    """The scores as lines of text."""
    lines = [f"{'task':15} {'cell':19} {'right':>13}   by attribute"]
    for task in (*TASKS, *ACROSS):
        if task in scores:
            lines += task_lines(task, scores[task])
    for modality, entry in scores.get("tokenizers", {}).items():
        before = percent(*entry["true"])
        after = percent(*entry["tokens"])
        lines.append(f"{modality} tokenizer: {after} read right after it, {before} before it")
    if "bound" in scores:
        lines.append(f"\n{'bound on held-out data':38} {'nats a token':>15}   bits")
        for name, entry in scores["bound"].items():
            line = f"{name:38} {entry['nats_per_token']:7.3f} ± {entry['stderr']:.3f}   "
            line += f"{entry['bits_per_token']:.3f} a token"
            for unit in measured(entry):
                line += f", {entry[unit]:.3f} a {unit.removeprefix('bits_per_')}"
            lines.append(line)
    return "\n".join(lines)


def main():
    parser = files.Parser(description=__doc__)
    parser.add_argument("tasks", nargs="*", help="all of them, and the bound, by default")
    sample.add_run(parser)
    parser.add_argument("--n", type=files.number(int, 1), default=200, help="samples a cell (200)")
    parser.add_argument("--json", help="also write the scores to this file")
    sample.add_settings(parser)
    args = parser.parse_intermixed_args()
    changes = {name: getattr(args, name) for name in sample.SETTINGS}
    run = sample.load_run(args.run, files.pick_device(args.device))
    scores = score(run, args.n, SEED + 1000 * args.seed, args.tasks, **changes)
    print(table(scores))
    if args.json:
        files.write_json(args.json, scores)


if __name__ == "__main__":
    files.command_line(main, "score")
