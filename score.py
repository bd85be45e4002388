"""Scores of a run: judged samples of every task, their diversity, and the bound on held-out data.

    python sample.py score --n 200 --json scores.json
"""
import numpy as np
import torch
from tqdm import tqdm

import data
import diffusion
import model as models
import safe
import toyspeech
import toyworld
from data import KINDS, MASK, MODALITIES
from sample import TASKS, answer, decode, generate, holes, members_of

def mean_and_error(values):
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    return (float(values.mean()), float(values.std() / max(1, len(values)) ** 0.5)) if len(values) else (None, None)


SEED = 1_000_003  # of the questions and the samples that judge a run


def toy_cells(n, seed):
    """The toy world's questions and answer keys: {task: {cell: (prompts, judge of the outputs)}}."""
    cells = {t: {} for t in ("text-to-image", "image-to-text", "text-to-speech", "speech-to-text", "image", "speech", "text")}
    for i, split in enumerate(("seen", "unseen")):
        for j, (name, things) in enumerate((("one thing", 1), ("two things", 2))):
            scenes = toyworld.scenes(n, seed + 10 * i + j, split, things)
            cells["text-to-image"][f"{split}, {name}"] = (
                [toyworld.caption(s) for s in scenes],
                lambda out, s=scenes: toyworld.judge_scenes(toyworld.read_pictures(np.stack(out["image"])), s))
            cells["image-to-text"][f"{split}, {name}"] = (
                list(toyworld.draw(scenes, seed + 10 * i + j)),
                lambda out, s=scenes: toyworld.judge_scenes([toyworld.parse_caption(t) for t in out["text"]], s))
        phrases = toyspeech.phrases(n, seed + 10 * i, split)
        cells["text-to-speech"][split] = (phrases, lambda out, p=phrases: words(
            toyspeech.read_speech(out["speech"]), p))
        cells["speech-to-text"][split] = (toyspeech.speak(phrases, seed + 10 * i),
                                          lambda out, p=phrases: words(out["text"], p))
    cells["image"]["its own caption"] = ([None] * n, lambda out: toyworld.judge_scenes(
        toyworld.read_pictures(np.stack(out["image"])), [toyworld.parse_caption(t) for t in out["text"]]))
    cells["speech"]["its own text"] = ([None] * n, lambda out: words(                        # a text without words is no phrase
        toyspeech.read_speech(out["speech"]), [t if set(t.split()) - {"a"} else "?" for t in out["text"]]))
    cells["text"]["passages"] = ([None] * n, lambda out: {
        "all": (j := toyworld.judge_passages(out["text"]))["grammatical"], **j,
        "distinct": np.full(n, len(set(out["text"])) / n), "forms": np.full(n, toyworld.variety(out["text"]))})
    return cells


def words(texts, wanted):
    """Words right, whole phrases right, and words right of phrases of several words: "fourteen", left out of training, is a word that no
    clip says, "twenty one" only a combination."""
    right = toyspeech.words_right(texts, wanted)
    return {"all": right, "whole phrase": right == 1, "several words": np.where([" " in w for w in wanted], right, np.nan)}


def reconstructions(run, n, seed):
    """What the toy world's judges read right in true pictures and clips, and in what is left of them after their tokens:
    {modality: {"n", "true", "tokens"}}, the shares with their standard errors."""
    scenes, phrases, out = toyworld.scenes(n, seed), toyspeech.phrases(n, seed), {}
    judged = {"image": (list(toyworld.draw(scenes, seed)), lambda made: toyworld.judge_scenes(toyworld.read_pictures(np.stack(made)), scenes)),
              "speech": (toyspeech.speak(phrases, seed), lambda made: words(toyspeech.read_speech(made), phrases))}
    for modality, (true, judge) in judged.items():
        if modality in run.stream.codes:
            again = decode(run, modality, run.tokenizers[modality].encode(true))
            out[modality] = {"n": n, **{name: mean_and_error(judge(made)["all"]) for name, made in (("true", true), ("tokens", again))}}
    return out


def own_cells(run, n):
    """One's own data has no judge: captions and transcripts of held-out items are compared with the real ones."""
    cells, held = {}, safe.read_arrays(run.folder / "validation.npz")
    for task, (kind, targets) in TASKS.items():
        if targets == ("text",) and kind in run.stream.slots and len(KINDS[kind]) > 1:
            ids = held[kind][:n].astype(np.int64)
            truth = decode(run, "text", members_of(run, kind, ids)["text"])
            cells[task] = {"held out": (ids, lambda out, t=truth: {
                "all": np.array([toyspeech.word_accuracy(a.split(), b.split()) for a, b in zip(out["text"], t)]),
                "exact": np.array([a == b for a, b in zip(out["text"], t)])})}
    return cells


def answers(run, task, prompts, seed, changes):
    """Generated for prompts as toy_cells and own_cells have them: a list, or rows (n, L) of held-out tokens; changes: other arguments."""
    if not isinstance(prompts, np.ndarray):
        return generate(run, task, prompts, seed=seed, **changes)
    kind, targets = TASKS[task]
    ids = prompts
    for modality in targets:
        ids = holes(run, kind, ids, modality)
    return answer(run, task, ids, seed, **changes)


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


def samples_of(result):
    """Samples of all cells of a task."""
    return sum(cell["n"] for cell in result["cells"].values())


def score(run, n=200, seed=SEED, bound_rows=256, repeats=8, tasks=(), **changes):
    """Judge fresh samples of every task, n a cell, and estimate the bound. Returns {task: {nfe, seconds (of all cells), n, accuracy,
    stderr (of the n samples of the seen cells), cells: {cell: {n, all, ATTRIBUTE, ..._stderr}}, diversity}, "bound": see `bounds`, "tokenizers": see `reconstructions`}.
    Or only tasks, without those two; with repeats=0 the judged samples alone. changes: to the sampler's settings. Raises UsageError for a
    task that cannot be judged."""
    toy = not any(run.config["args"][k] for k in ("text", "images", "speech"))
    judged, out = {task: cells for task, cells in (toy_cells(n, seed) if toy else own_cells(run, n)).items() if TASKS[task][0] in run.stream.slots}, {}
    if unknown := [t for t in tasks if t not in judged]:
        raise safe.UsageError(f"score {unknown[0]}: {run.folder} is judged on {', '.join(judged)}")
    for task, cells in ((t, judged[t]) for t in tasks or judged):
        result = {"nfe": 0.0, "seconds": 0.0, "cells": {}}
        for name, (prompts, judge) in tqdm(cells.items(), desc=f"scoring {task}", leave=False):
            made = answers(run, task, prompts, seed, changes)
            verdict = judge(made.outputs)
            cell = {"n": len(prompts)}
            for attribute, values in verdict.items():
                mean, error = mean_and_error(values)
                if mean is not None:
                    cell[attribute], cell[f"{attribute}_stderr"] = mean, error
            result["cells"][name] = cell
            result["nfe"] += made.nfe * len(prompts)
            result["seconds"] += made.seconds
        result["nfe"] /= samples_of(result)
        pooled = [c for name, c in result["cells"].items() if not name.startswith("unseen")]
        result["n"] = total = sum(c["n"] for c in pooled)
        result["accuracy"] = sum(c["all"] * c["n"] for c in pooled) / total
        result["stderr"] = sum((c["all_stderr"] * c["n"] / total) ** 2 for c in pooled) ** 0.5
        out[task] = result
        if repeats:
            first = next(iter(cells.values()))[0][:8]
            again = np.repeat(first, repeats, 0) if isinstance(first, np.ndarray) else [p for p in first for _ in range(repeats)]
            result["diversity"] = diversity(answers(run, task, again, seed + 1, changes).ids, repeats)
    if tasks or not repeats:
        return out
    if toy:
        out["tokenizers"] = reconstructions(run, n, seed)
    return {**out, "bound": bounds(run, bound_rows)}


def units_of(run, modality, codes):
    """How many characters, pixel-channels or seconds the codes of one item stand for."""
    if modality == "text":
        return len(run.tokenizers["text"].decode([codes])[0])
    config = run.tokenizers[modality].config
    if modality == "image":
        return config.height * config.width * config.channels
    return len(codes) / config.groups * config.step / config.sample_rate


def ratio(amounts, counts):
    """Sum of amounts (N,) over the sum of counts (N,), and its standard error: rows that have more of both do not spread it."""
    mean = amounts.sum() / counts.sum()
    return mean, (amounts - mean * counts).std() / len(amounts) ** 0.5 / counts.mean()


@torch.inference_mode()
def bounds(run, rows=256, rounds=4, seed=11):
    """The bound on held-out rows by kind and direction: nats and bits a token and a unit, with standard errors."""
    out, held = {}, safe.read_arrays(run.folder / "validation.npz")
    for kind in run.stream.slots:
        ids = held[kind][:rows].astype(np.int64)
        size = max(1, min(64, models.HEAD_LOGITS // (ids.shape[1] * run.net.config.vocab)))   # rows at once
        directions = {"joint": KINDS[kind]} if len(KINDS[kind]) > 1 else {}
        for modality in KINDS[kind]:
            rest = [m for m in KINDS[kind] if m != modality]
            directions[modality + (f" given {rest[0]}" if rest else "")] = (modality,)
        for name, members in directions.items():
            nats = []
            for i in range(0, len(ids), size):
                part = run.stream.describe(kind, ids[i:i + size])
                noisy = np.isin(part.member, [KINDS[kind].index(m) for m in members])
                nats.append(diffusion.bound(run.logits(part), run.on(part.ids), run.on(noisy), run.on(part.low),
                                            run.on(part.high), MASK, data.rng(seed, i), rounds=rounds).cpu().numpy())
            nats, part = np.concatenate(nats), run.stream.describe(kind, ids)
            tokens = np.isin(part.member, [KINDS[kind].index(m) for m in members]).sum(1)
            mean, error = ratio(nats, tokens)
            entry = {"rows": len(ids), "nats_per_token": mean, "stderr": error, "bits_per_token": mean / np.log(2),
                     "nats_per_row": nats.mean()}
            if len(members) == 1:
                unit = MODALITIES[members[0]].unit
                units = np.array([sum(units_of(run, members[0], c) for c in row) for row in codes_in(run, kind, ids, members[0])])
                entry[f"bits_per_{unit}"], entry[f"bits_per_{unit}_stderr"] = ratio(nats / np.log(2), units)
            out[f"{kind}: {name}"] = {k: float(v) if k != "rows" else v for k, v in entry.items()}
    return out


def codes_in(run, kind, ids, modality):
    """Codes of every item of a modality in every row of ids, a list a row (packed documents one by one)."""
    if len(KINDS[kind]) > 1:
        return [[codes] for codes in members_of(run, kind, ids)[modality]]
    rows = run.stream.describe(kind, ids)
    return [[run.stream.to_codes(modality, row[(doc == d) & (member == 0)]) for d in range(1, doc.max() + 1)]
            for row, doc, member in zip(ids, rows.doc, rows.member)]


def table(scores):
    """The scores as lines of text."""
    lines = [f"{'task':15} {'cell':19} {'right':>12}   by attribute"]
    for task, result in scores.items():
        for name, cell in result.get("cells", {}).items():
            rest = ", ".join(f"{k} {100 * v:.0f}%" for k, v in cell.items()
                             if k not in ("n", "all") and not k.endswith("_stderr"))
            few = f" of {cell['n']}" if cell["n"] < 30 else ""             # too few for their standard error to be trusted
            lines.append(f"{task:15} {name:19} {100 * cell['all']:5.1f} ± {100 * cell['all_stderr']:3.1f}%{few}   {rest}")
        if "nfe" in result:
            if "diversity" in result:
                spread = result["diversity"]
                lines.append(f"{task:15} of one prompt {spread['samples']} samples: {100 * spread['distinct']:.0f}% different, "
                             f"{spread['entropy']:.1f} nats")
            lines[-1] += f"   ({result['nfe']:.1f} NFE, {result['seconds'] / samples_of(result) * 1000:.0f} ms a sample)"
    for modality, r in scores.get("tokenizers", {}).items():
        lines.append(f"{modality + ' tokenizer':35} {100 * r['tokens'][0]:5.1f} ± {100 * r['tokens'][1]:3.1f}%   of the true ones {100 * r['true'][0]:.1f}%")
    if "bound" in scores:
        lines += ["", f"{'bound on held-out data':38} {'nats/token':>16}   bits"]
    for name, entry in scores.get("bound", {}).items():
        unit = next((k for k in entry if k.startswith("bits_per_") and "token" not in k), None)
        lines.append(f"{name:38} {entry['nats_per_token']:8.3f} ± {entry['stderr']:.3f}   {entry['bits_per_token']:.3f} "
                     "a token" + (f", {entry[unit]:.3f} a {unit[9:]}" if unit else ""))
    return "\n".join(lines)
