"""Scores of a run: judged samples of every task, their diversity, the bound on held-out data.

    python -m tools.score --run runs/toy --n 200 --json scores.json
    python -m tools.score text-to-image --guidance 2       these tasks alone, sampled otherwise
"""
import argparse
import functools
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
from tqdm import tqdm

import data
import diffusion
import files
import sample
from data import HEAD, KINDS, MASK, MODALITIES, ROUND
from sample import TASKS
from sources import judges, speechjudge, toyspeech, toyworld

SEED = 1_000_003  # of the questions and of the samples

# ------------------------------------------------------------------------------------------------
# The toy world's questions and judges. A judge gets the outputs of the samples and returns
# {attribute: (n,) marks from 0 to 1, NaN where it does not apply}; "all" is the score.


@dataclass
class Cell:
    prompts: object  # list of prompts, or rows (n, L) with the targets masked
    judge: Callable
    note: str = ""   # what the prompts share with the training


def judge_pictures(scenes, outputs):
    return judges.judge_scenes(judges.read_pictures(np.stack(outputs["image"])), scenes)


def judge_captions(scenes, outputs):
    return judges.judge_scenes([judges.parse_caption(t) for t in outputs["text"]], scenes)


def judge_own_captions(outputs):
    return judge_pictures([judges.parse_caption(t) for t in outputs["text"]], outputs)


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
    texts = [text if set(text.split()) - {"a"} else "?" for text in outputs["text"]]
    return judge_speech(texts, outputs)


def judge_passages(outputs):
    texts = outputs["text"]
    marks = judges.judge_passages(texts)
    distinct = np.full(len(texts), len(set(texts)) / len(texts))
    forms = np.full(len(texts), judges.variety(texts))
    return {"all": marks["grammatical"], **marks, "distinct": distinct, "forms": forms}


def fresh_pictures(run, scenes, seed, tries=40):
    """Pictures of scenes whose tokens no training picture has -> pictures, and how many are left
    that do after so many tries."""
    known = set()
    documents = run.documents["image-text"][0]
    count = run.stream.slots["image-text"][0]
    for i in range(len(documents)):
        codes = documents[i][HEAD:HEAD + count] - run.stream.start["image"]
        known.add(codes.astype(np.int32).tobytes())
    pictures = toyworld.draw(scenes, seed)
    stale = np.arange(len(scenes))
    for attempt in range(1, tries + 1):
        codes = run.tokenizers["image"].encode(list(pictures[stale]))
        stale = stale[[c.tobytes() in known for c in codes]]
        if not len(stale) or attempt == tries:
            break
        pictures[stale] = toyworld.draw([scenes[i] for i in stale], seed + 7919 * attempt)
    return list(pictures), len(stale)


def picture_cells(run, n, seed):
    """{task: {cell: Cell}} of pictures and their captions."""
    drawn, told = {}, {}
    for i, split in enumerate(("seen", "unseen")):
        for things, name in ((1, "one thing"), (2, "two things")):
            at = seed + 10 * i + things - 1
            scenes = toyworld.scenes(n, at, split, things)
            captions = [toyworld.caption(scene) for scene in scenes]
            pictures, stale = fresh_pictures(run, scenes, at)
            note = f"{stale} of {n} pictures have the tokens of a training picture"
            cell = f"{split}, {name}"
            drawn[cell] = Cell(captions, functools.partial(judge_pictures, scenes))
            told[cell] = Cell(pictures, functools.partial(judge_captions, scenes),
                              note if stale else "")
    own = {"its own caption": Cell([None] * n, judge_own_captions)}
    return {"text-to-image": drawn, "image-to-text": told, "image": own}


def speech_cells(run, n, seed):
    """{task: {cell: Cell}} of clips and their transcripts."""
    said, heard = {}, {}
    few = sum(map(len, toyspeech.all_phrases("seen")))
    notes = {"seen": f"all {few} phrases are in the training, in other utterances", "unseen": ""}
    for i, split in enumerate(("seen", "unseen")):
        phrases = toyspeech.phrases(n, seed + 10 * i, split)
        waves = toyspeech.speak(phrases, seed + 10 * i)
        said[split] = Cell(phrases, functools.partial(judge_speech, phrases), notes[split])
        heard[split] = Cell(waves, functools.partial(judge_transcripts, phrases), notes[split])
    own = {"its own text": Cell([None] * n, judge_own_text)}
    return {"text-to-speech": said, "speech-to-text": heard, "speech": own}


def text_cells(run, n, seed):
    return {"text": {"passages": Cell([None] * n, judge_passages)}}


TOY_CELLS = {"text": text_cells, "image-text": picture_cells, "speech-text": speech_cells}


def toy_cells(run, n, seed):
    """{task: {cell: Cell}} of the kinds that the run knows."""
    cells = {}
    for kind in run.stream.slots:
        cells |= TOY_CELLS[kind](run, n, seed)
    return cells


def judge_held_out(truth, outputs):
    """Words right, or characters where the truth has no blanks, and texts exactly right."""
    unit = str.split if any(" " in text for text in truth) else list
    pairs = list(zip(outputs["text"], truth))
    right = [speechjudge.word_accuracy(unit(said), unit(wanted)) for said, wanted in pairs]
    return {"all": np.array(right), "exact": np.array([a == b for a, b in pairs])}


def own_cells(run, n):
    """One's own data have no judge: captions and transcripts of held-out items are compared."""
    cells = {}
    for task, (kind, targets) in TASKS.items():
        if targets == ("text",) and kind in run.stream.slots and kind != "text":
            ids = data.stacked(run.documents[kind][1].first(n))
            truth = sample.decode(run, "text", sample.codes_of(run, kind, "text", ids))
            rows = sample.punch(run, kind, ids, "text")
            cells[task] = {"held out": Cell(rows, functools.partial(judge_held_out, truth))}
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
    if torch.is_tensor(prompts):
        return sample.answer(run, task, prompts, seed, **changes)
    return sample.generate(run, task, prompts, seed=seed, **changes)


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
    if torch.is_tensor(prompts):
        again = prompts[:8].repeat_interleave(repeats, 0)
    else:
        again = [prompt for prompt in prompts[:8] for _ in range(repeats)]
    ids = answers(run, task, again, seed, changes).ids.numpy()
    groups = ids.reshape(-1, repeats, ids.shape[1])                       # (P, R, L)
    alike = (groups[:, :, None] == groups[:, None]).sum(2)                # (P, R, L)
    distinct = [len(np.unique(group, axis=0)) / repeats for group in groups]
    entropy = np.log(repeats / alike).mean(1).sum(1)                      # (P,)
    return {"prompts": len(groups), "samples": repeats, "distinct": float(np.mean(distinct)),
            "entropy": float(entropy.mean())}


def score_task(run, task, cells, seed, changes):
    """Judge fresh samples of a task -> {nfe, seconds, n, accuracy, stderr, cells}.

    accuracy, stderr and n are those of the cells that are not of unseen things.
    """
    result = {"nfe": 0.0, "seconds": 0.0, "cells": {}}
    for name, cell in tqdm(cells.items(), desc=f"scoring {task}", leave=False):
        made = answers(run, task, cell.prompts, seed, changes)
        result["cells"][name] = marks(cell, made.outputs)
        result["nfe"] += made.nfe / len(cells)
        result["seconds"] += made.seconds
    seen = [c for name, c in result["cells"].items() if not name.startswith("unseen")]
    result["n"] = sum(cell["n"] for cell in seen)
    shares = np.array([cell["n"] for cell in seen]) / result["n"]
    result["accuracy"] = float(shares @ [cell["all"] for cell in seen])
    result["stderr"] = float(np.linalg.norm(shares * [cell["all_stderr"] for cell in seen]))
    return result


def reconstructions(run, n, seed):
    """What the judges read right in true pictures and clips, and in what their tokens leave of
    them: {modality: {"n", "true": (mean, error), "tokens": (mean, error)}}."""
    scenes = toyworld.scenes(n, seed)
    phrases = toyspeech.phrases(n, seed)
    true = {"image": (list(toyworld.draw(scenes, seed)), functools.partial(judge_pictures, scenes)),
            "speech": (toyspeech.speak(phrases, seed), functools.partial(judge_speech, phrases))}
    out = {}
    for modality, (samples, judge) in true.items():
        if modality in run.stream.codes:
            codes = run.tokenizers[modality].encode(samples)
            again = sample.decode(run, modality, codes)
            out[modality] = {
                "n": n,
                "true": mean_and_error(judge({modality: samples})["all"]),
                "tokens": mean_and_error(judge({modality: again})["all"])}
    return out


def score(run, n=200, seed=SEED, tasks=(), **changes):
    """Judge fresh samples of every task, n a cell, and estimate the bound.

    Returns {task: see `score_task`, with "diversity"}, "tokenizers": see `reconstructions`,
    "bound": see `bounds`; of chosen tasks those alone. changes: to how they are sampled.
    """
    settings = run.config["config"]
    toy = not (settings["text"] or settings["images"] or settings["speech"])
    cells = toy_cells(run, n, seed) if toy else own_cells(run, n)
    for task in tasks:
        if task not in cells:
            raise files.UsageError(f"{task}: this run is judged on {', '.join(cells)}")
    out = {}
    for task in tasks or cells:
        out[task] = score_task(run, task, cells[task], seed, changes)
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
        content = np.frombuffer(tokenizer.bpe.decode_bytes(codes.tolist()), np.uint8)
        return int((content & 0xC0 != 0x80).sum())
    config = tokenizer.config
    if modality == "image":
        return config.height * config.width * config.channels
    steps = len(codes) / config.groups - 0.5  # a clip ends somewhere in its last step
    return steps * config.step / config.sample_rate


def extent_nats(run, extents):
    """-log p of texts' extents (n,), from the training documents' with one added to each count.

    A token sees its own document only, which gives its extent away: the bound is one on
    -log p(text | extent). This is what is missing to -log p(text).
    """
    seen = run.documents["text"][0].lengths() - HEAD
    longest = run.stream.slots["text"][0]
    counts = np.bincount(seen, minlength=longest + 1) + 1.0
    possible = np.arange(longest + 1) % ROUND == 0
    possible[0] = False
    possible[longest] = True
    counts *= possible
    return -np.log(counts[extents] / counts.sum())


def ratio(amounts, counts):
    """Sum of amounts (N,) over the sum of counts (N,), and its standard error."""
    mean = amounts.sum() / counts.sum()
    residual = amounts - mean * counts
    return float(mean), float(residual.std() / len(amounts) ** 0.5 / counts.mean())


def directions(kind):
    """{name: members that are noised}: together, and each given the other."""
    members = KINDS[kind]
    if len(members) == 1:
        return {members[0]: members}
    named = {"joint": members}
    for modality, other in (members, members[::-1]):
        named[f"{modality} given {other}"] = (modality,)
    return named


@torch.inference_mode()
def bounds(run, documents=512, rounds=4, seed=11):
    """The bound on held-out documents by kind and direction: nats and bits a token and a unit,
    with standard errors. Of texts with their extents (`extent_nats`)."""
    out = {}
    for kind in run.stream.slots:
        ids = data.stacked(run.documents[kind][1].first(documents))
        rows = run.rows(ids)
        for name, members in directions(kind).items():
            noised = sample.members_mask(rows, kind, members)
            nats = diffusion.bound(run.ask, rows.ids, noised, rows.low, rows.high, MASK,
                                   data.rng(seed), rounds).cpu().numpy()
            tokens = noised.sum(1).cpu().numpy()
            if kind == "text":
                nats = nats + extent_nats(run, tokens)
            mean, error = ratio(nats, tokens)
            entry = {"documents": len(ids), "nats_per_token": mean, "stderr": error,
                     "bits_per_token": mean / np.log(2), "nats_per_document": float(nats.mean())}
            if len(members) == 1:
                unit = MODALITIES[members[0]].unit
                codes = sample.codes_of(run, kind, members[0], ids)
                units = np.array([units_of(run, members[0], c) for c in codes])
                bits, error = ratio(nats / np.log(2), units)
                entry[f"bits_per_{unit}"] = bits
                entry[f"bits_per_{unit}_stderr"] = error
            out[f"{kind}: {name}"] = entry
    return out


# ------------------------------------------------------------------------------------------------
# The table.


def share(cell, attribute="all"):
    """A share right with its error; all or none of n is told as such."""
    value = cell[attribute]
    if value in (0, 1):
        return f"{round(value * cell['n'])} of {cell['n']}"
    return f"{100 * value:.1f} ± {100 * cell[f'{attribute}_stderr']:.1f}%"


def table(scores):
    """The scores as lines of text."""
    lines = [f"{'task':15} {'cell':19} {'right':>13}   by attribute"]
    for task in [t for t in TASKS if t in scores]:
        result = scores[task]
        for name, cell in result["cells"].items():
            attributes = [k for k in cell if f"{k}_stderr" in cell and k != "all"]
            rest = ", ".join(f"{k} {100 * cell[k]:.0f}%" for k in attributes)
            lines.append(f"{task:15} {name:19} {share(cell):>13}   {rest}")
        spread = result["diversity"]
        samples = sum(cell["n"] for cell in result["cells"].values())
        lines.append(f"{'':15} {spread['samples']} samples of one prompt: "
                     f"{100 * spread['distinct']:.0f}% different, {spread['entropy']:.1f} nats; "
                     f"{result['nfe']:.1f} NFE, "
                     f"{1000 * result['seconds'] / samples:.0f} ms a sample")
    for modality, r in scores.get("tokenizers", {}).items():
        lines.append(f"{modality} tokenizer: {100 * r['tokens'][0]:.1f} ± "
                     f"{100 * r['tokens'][1]:.1f}% read right after it, "
                     f"{100 * r['true'][0]:.1f}% before it")
    if "bound" in scores:
        lines.append(f"\n{'bound on held-out data':38} {'nats a token':>15}   bits")
    for name, entry in scores.get("bound", {}).items():
        units = [k for k in entry if k.startswith("bits_per_") and f"{k}_stderr" in entry]
        rest = "".join(f", {entry[k]:.3f} a {k.removeprefix('bits_per_')}" for k in units)
        lines.append(f"{name:38} {entry['nats_per_token']:7.3f} ± {entry['stderr']:.3f}   "
                     f"{entry['bits_per_token']:.3f} a token{rest}")
    return "\n".join(lines)


def main():
    parser = files.Parser(description=__doc__,
                          formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help="all of them, and the bound, by default")
    parser.add_argument("--run", default="runs/toy", help="a folder that train.py made (runs/toy)")
    parser.add_argument("--n", type=files.number(int, 1), default=200, help="samples a cell (200)")
    parser.add_argument("--seed", type=files.number(int, 0, 10 ** 9), default=0,
                        help="which samples (0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
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
