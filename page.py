"""The page of a run, `index.html`: one self-contained file, written during training and after it.

Losses by modality and scores over time, the settings and how they were derived, and the film of every task: what the reverse
process shows after each stage, with a slider over the stages, sound and spectrograms.
"""
import base64
import html
import json
from types import SimpleNamespace

import numpy as np

import rules
import safe
from data import HEAD, KINDS, MASK
from sample import TASKS, answer, holes, members_of, part_of, png, wav
from score import codes_in, table

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>tinytri: {name}</title><style>
body{font:15px/1.5 system-ui,sans-serif;margin:1.5em auto;max-width:64em;padding:0 1em;color:#222;background:#fafafa}
h2{margin:1.6em 0 .3em} .film{margin:.4em 0 1.2em} .film figure{margin:0;display:none} .film figure.on{display:block}
input[type=range]{width:min(100%,20em);display:block} img{image-rendering:pixelated;display:block;border:1px solid #ccc;max-width:100%}
.text{font:12.5px/1.7 ui-monospace,monospace;background:#fff;border:1px solid #ddd;padding:.4em .6em;margin:2px 0;
white-space:pre-wrap;overflow-wrap:anywhere} i{background:#bbb;border-radius:3px;color:#bbb;font-style:normal;margin:0 1px}
pre{font-size:12px;background:#fff;border:1px solid #ddd;padding:1em;overflow-x:auto} audio{height:32px;width:220px;max-width:100%}
svg{background:#fff;border:1px solid #ddd;width:100%;height:auto} svg text{font:11px system-ui,sans-serif}
.prompt{font-weight:600}</style><h1>tinytri: {name}</h1>
{body}
<script>for (const film of document.querySelectorAll(".film")) {
const shown = film.querySelectorAll("figure"), slider = film.querySelector("input");
const show = () => shown.forEach((f, i) => f.classList.toggle("on", i == slider.value));
slider.oninput = show; show(); }</script></html>
"""
GREY = 187   # of what is masked
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b")


def curves(lines, names, title, low=None):
    """An SVG of values over steps. lines: [{"step": s, name: value}]; low: the axis begins there, or is logarithmic if None."""
    scale = (lambda v: float(np.log(max(v, 1e-4)))) if low is None else float
    series = {n: [(line["step"], line[n]) for line in lines if line.get(n) is not None] for n in names}
    points = [p for s in series.values() for p in s]
    if len(points) < 2:
        return ""
    last, values = max(1, max(s for s, _ in points)), [scale(v) for _, v in points]
    bottom, top = min(values) if low is None else low, max(max(values), min(values) + 1e-6)
    x = lambda step: 50 + 570 * step / last
    y = lambda v: 210 - 190 * (scale(v) - bottom) / max(top - bottom, 1e-6)
    out = [f'<svg viewBox="0 0 640 {240 + 16 * -(-len(series) // 3)}" role="img" aria-label="{html.escape(title)}">'
           f'<text x="50" y="14">{html.escape(title)}</text><path d="M50 20V210H620" stroke="#999" fill="none"/>']
    for at in np.linspace(bottom, top, 5):
        value = float(np.exp(at)) if low is None else at
        out.append(f'<text x="4" y="{214 - 190 * (at - bottom) / max(top - bottom, 1e-6):.0f}">{value:.3g}</text>')
    out.append(f'<text x="50" y="226">0</text><text x="560" y="226">{last} steps</text>')
    for n, (name, line) in enumerate(series.items()):
        colour, keep = COLOURS[n % len(COLOURS)], line[::max(1, len(line) // 300)]
        path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in keep)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.3"/>'
                   f'<text x="{50 + 200 * (n % 3)}" y="{244 + 16 * (n // 3)}" fill="{colour}">{html.escape(name)}</text>')
    return "".join(out) + "</svg>"


def smoothed(lines, width=9):
    """Log lines with their terms beside the step, each the mean of some lines around it."""
    names = list(lines[0]["terms"]) if lines else []
    values = {n: np.array([line["terms"][n] for line in lines], float) for n in names}
    near = [slice(max(0, i - width // 2), i + width // 2 + 1) for i in range(len(lines))]
    return [{"step": line["step"], **{n: float(values[n][near[i]].mean()) for n in names}} for i, line in enumerate(lines)], names


def inline(kind, content):
    """The bytes of a file as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def grey_out(pixels, masked):
    """Blend the masked share (h, w) in [0, 1] of pixels (H, W, C) into a grey that no colour picture has by chance -> uint8."""
    share = np.kron(masked, np.ones((pixels.shape[0] // masked.shape[0], pixels.shape[1] // masked.shape[1])))[..., None]
    return (pixels * (1 - share) + GREY * share).round().astype(np.uint8)


def spectrogram(run, codes):
    """Codes of a clip -> uint8 (H, W, 3): magnitudes up to 5 kHz over 60 dB, one pixel column a frame."""
    magnitude = run.tokenizers["speech"].magnitudes([codes])[0].float().cpu().numpy()                # (bins, T)
    level = 20 * np.log10(np.maximum(magnitude[:320:4][::-1], 1e-5))
    level = np.clip((level - level.max() + 60) / 60, 0, 1)
    red, green, blue = (np.interp(level, [0, .35, .7, 1], stops) for stops in
                        ([8, 80, 235, 255], [8, 30, 110, 250], [30, 130, 70, 200]))
    return np.stack((red, green, blue), 2).astype(np.uint8)


def masked_text(run, ids):
    """Ids of a text (slot,) up to its end -> [(string, or None where masked; tokens)], one for each stretch of either."""
    codes = np.where(ids == MASK, -1, ids - run.stream.ranges("text", np.arange(len(ids)))[0])
    ends = np.flatnonzero(codes >= run.stream.codes["text"][1])
    codes = codes[:ends[0]] if len(ends) else codes
    stretches = [c for c in np.split(codes, np.flatnonzero((codes[1:] < 0) != (codes[:-1] < 0)) + 1) if len(c)]
    return [(run.tokenizers["text"].decode([c])[0] if c[0] >= 0 else None, len(c)) for c in stretches]


def masked_picture(run, ids):
    """Ids of a picture (slot,) -> uint8 (4 + H, W, C): it under a strip of its palette's colours; what is masked is grey."""
    tokenizer, masked = run.tokenizers["image"], ids == MASK
    count, width = tokenizer.config.colours, tokenizer.config.width
    codes = np.where(masked, 0, ids - run.stream.start["image"]).astype(np.int64)
    # mixed here, not by decode(): a colour that is still masked is grey
    colours = np.where(masked[:count, None], GREY, tokenizer.colours_of(codes[:count]))                      # (K, C)
    pixels = grey_out(tokenizer.shares_of(codes[count:]) @ colours, masked[count:].reshape(tokenizer.config.grid))
    strip = np.broadcast_to(colours[np.arange(width) * count // width], (3, *pixels.shape[1:])).astype(np.uint8)
    return np.concatenate((strip, np.full_like(strip[:1], 255), pixels))


def masked_clip(run, ids):
    """Ids of a clip (slot,) -> uint8 (H, T, 3): its spectrogram; what is masked is grey, what follows the end white."""
    groups, size = run.stream.codes["speech"]
    codes = np.where(ids == MASK, 0, ids - run.stream.ranges("speech", np.arange(len(ids)))[0])
    ended = (codes >= size) & (ids != MASK)
    share = (ids == MASK).reshape(-1, groups).mean(1)                                                # (steps,)
    levels = grey_out(spectrogram(run, np.where(ended, 0, codes).astype(np.int32)), share[None])
    levels[:, np.repeat(ended.reshape(-1, groups)[:, 0], levels.shape[1] // len(share))] = 255
    return levels


def show_text(run, ids):
    shown = "".join("<i>__</i>" * count if text is None else html.escape(text) for text, count in masked_text(run, ids))
    return f"<div class=text>{shown or '&nbsp;'}</div>"


def show_image(run, ids):
    return f'<img src="{inline("image/png", png(masked_picture(run, ids)))}" width=112>'


def show_speech(run, ids):
    levels = masked_clip(run, ids)
    return f'<img src="{inline("image/png", png(levels))}" width={2 * levels.shape[1]} height=100>'


# modality -> the HTML of its ids (slot,), masked or not
SHOW = {"text": show_text, "image": show_image, "speech": show_speech}


def stages(film, row, count):
    """Which frames of a row's film (list of (B, L)) to show: (count,), as even in tokens as the film has them, the last one at the end."""
    left = np.array([(f[row] == MASK).sum() for f in film])
    at = np.array([np.abs(left - n).argmin() for n in np.linspace(left[0], left[-1], count)])
    at[-1] = len(film) - 1
    return at


def reel(run, kind, made, row, targets, count=8):
    """The film of one sample as HTML: the prompt, some stages of unmasking under a slider, sound after them."""
    rows = run.stream.describe(kind, made.film[0])
    slot = {m: rows.member[row] == i for i, m in enumerate(KINDS[kind])}
    parts = [f'<div class=prompt>{SHOW[m](run, made.ids[row][slot[m]])}</div>' for m in KINDS[kind] if m not in targets]
    frames = [made.film[i][row] for i in np.unique(stages(made.film, row, count))]
    stage = lambda f: "".join(SHOW[m](run, f[slot[m]]) for m in KINDS[kind] if m in targets)
    figures = "".join(f"<figure{' class=on' if i + 1 == len(frames) else ''}>{stage(f)}</figure>" for i, f in enumerate(frames))
    last = len(frames) - 1
    parts.append(f'<div class=film><input type=range min=0 max={last} value={last} aria-label="stage of unmasking">{figures}</div>')
    if "speech" in KINDS[kind]:
        parts.append(f'<audio controls src="{inline("audio/wav", wav(made.outputs["speech"][row]))}"></audio>')
    return "".join(parts)


def films(run, samples, seed):
    """HTML of every task, and of a hole filled in every modality."""
    held, body = safe.read_arrays(run.folder / "validation.npz"), []
    jobs = [(t, *TASKS[t], np.s_[0:1]) for t in TASKS] + [
        ("infill: the middle of a text", "text", ("text",), np.s_[0.3:0.6]),
        ("infill: the lower half of a picture", "image-text", ("image",), np.s_[0.5:1]),
        ("infill: the end of an utterance", "speech-text", ("speech",), np.s_[0.5:1])]
    for title, kind, targets, part in jobs:
        if kind not in run.stream.slots:
            continue
        ids = held[kind][:samples].astype(np.int64)
        if kind == "text":                                       # first documents of rows, or as many masks
            most = run.stream.slots["text"][0] - HEAD
            codes = [documents[0][:most - 1] for documents in codes_in(run, kind, ids, "text")]
            slot = min(most, -(-(max(map(len, codes)) + 1) // 8) * 8)
            ids = np.stack([run.stream.row(kind, [c if title.startswith("infill") else None], slot) for c in codes])
        if title.startswith("infill"):
            slot = run.stream.slots[kind][0] if kind != "text" else len(codes[0])
            if kind == "speech-text":                            # of the longest clip, not of the slot
                slot = max(len(c) for c in members_of(run, kind, ids)["speech"])
            ids = holes(run, kind, ids, targets[0], part_of(run, targets[0], part.start, part.stop, slot))
        else:
            for m in targets:
                ids = holes(run, kind, ids, m)
        task = title if title in TASKS else next(t for t, (k, m) in TASKS.items() if k == kind and m == targets)
        made = answer(run, task, ids, seed, record=True)
        body.append(f"<h2>{title}</h2>" + "".join(reel(run, kind, made, i, targets) for i in range(len(ids))))
    return "\n".join(body)


def write(folder, run=None, samples=3, seed=0):
    """Write `index.html` into a run's folder and return its path; with a loaded run, its films too."""
    config, body = safe.read_json(folder / "config.json"), []
    if (folder / "log.jsonl").exists():
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        if lines:
            smooth, names = smoothed(lines)
            body += [f"<p>Step {int(lines[-1]['step']) + 1} of {int(config['steps'])}, {int(lines[-1]['tokens_per_second'])} tokens a second.</p>",
                     curves(smooth, names, "training loss by kind and modality, nats a token (logarithmic, smoothed)")]
    if (folder / "scores.jsonl").exists():
        lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
        body.append(curves(lines, [n for n in lines[0] if n != "step"], "scores, share right", 0.0) if lines else "")
    scores = safe.read_json(folder / "scores.json")
    if scores:
        body.append(f"<h2>scores</h2><pre>{html.escape(table(scores))}</pre>")
    if run:
        safe.write_text(folder / "films.html", "<p>Everything below was generated from masks by the averaged weights: the prompts are held-out items, the samples "
                    f"the first ones of seed {seed}, none left out (of several candidates the one that the network itself prefers). Grey is still masked; the sliders go back to earlier stages.</p>" + films(run, samples, seed))
    if (folder / "films.html").exists():                       # the last ones made: during training the page is written more often
        body.append((folder / "films.html").read_text(encoding="utf-8"))
    if "steps" in config:
        args, tokens = SimpleNamespace(**config["args"]), config["steps"] * config["batch_tokens"]
        rows = rules.derived(config["batch_tokens"], tokens, config["batch_tokens"] / sum(config["rows_per_step"].values()),
                             base=rules.tuned_point(args), gamma=args.gamma, warmup=args.warmup, optimizer=args.optimizer)
        text = "\n".join(f"{name:13} = {formula:36} = {value:.6g}" for name, formula, value in rows)
        body.append(f"<h2>derived settings</h2><pre>{html.escape(text)}</pre>")
    body.append(f"<h2>settings</h2><pre>{html.escape(json.dumps(config, indent=1, ensure_ascii=False))}</pre>")
    safe.write_text(folder / "index.html", PAGE.replace("{name}", html.escape(folder.resolve().name))
                    .replace("{body}", "\n".join(body)))
    return folder / "index.html"
