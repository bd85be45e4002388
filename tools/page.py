"""The page of a run, index.html: what the model does, how well, and how it learnt. One file.

    python -m tools.page --run runs/toy --seed 1      other samples for the same prompts
"""
import base64
import html
import itertools
import json
from pathlib import Path

import files  # before torch: it tells OpenMP how to wait
import numpy as np
import torch

import data
import diffusion
import sample
from data import MASK
from sample import ACROSS, TASKS
from tools import score
from tools.masked import masked_clip, masked_picture, pieces

TEMPLATE = Path(__file__).with_suffix(".html")
SAMPLES = 3  # of each task
FRAMES = 6   # of each sample


def escaped(text):
    """Any text as HTML; control characters are shown as one would type them."""
    return html.escape(files.printable(text))


def inline(mime, content):
    """The bytes of a file as an address."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


# ------------------------------------------------------------------------------------------------
# Members, masked or not, as HTML.


def show_text(run, ids, sure):
    shown = ""
    for text, p in pieces(run, ids, sure):
        if text is None:
            shown += "<i></i>"
        elif p > 0.9:
            shown += escaped(text)
        else:
            shown += f'<mark style="--sure:{p}" title="{p:.2f}">{escaped(text)}</mark>'
    return f"<div class=text dir=auto>{shown}</div>"


def show_image(run, ids, sure):
    picture = inline("image/png", sample.png(masked_picture(run, ids)))
    return f'<img class=image alt="a picture" src="{picture}">'


def show_speech(run, ids, sure):
    pixels = masked_clip(run, ids)
    picture = inline("image/png", sample.png(pixels))
    width = 2 * pixels.shape[1]
    shown = f'<img class=speech alt="a spectrogram" width={width} src="{picture}">'
    if not (ids == MASK).any():
        wave = run.tokenizers["speech"].decode([run.stream.to_codes("speech", ids)])[0]
        shown += f'<audio controls src="{inline("audio/wav", sample.wav(wave))}"></audio>'
    return f"<div class=clip>{shown}</div>"


SHOW = {"text": show_text, "image": show_image, "speech": show_speech}

# ------------------------------------------------------------------------------------------------
# Films.


@torch.inference_mode()
def sureness(run, film):
    """The probability that the network gave each token when it was revealed, by frame of a film
    (list of (B, L)) -> list of (B, L). It is asked again, since films hold ids only."""
    sure = torch.ones(film[0].shape)
    by_frame = [sure]
    for before, after in zip(film, film[1:]):
        new = (before != after) & (after != MASK)                         # (B, L)
        if new.any():
            rows = run.stream.describe(after)
            logits = run.ask(before.masked_fill(new, MASK), new)          # (M, V)
            nll = diffusion.token_nll(logits, after[new], rows.low[new], rows.high[new])
            sure = sure.masked_scatter(new, torch.exp(-nll))
        by_frame.append(sure)
    return by_frame


def frames_of(film, row):
    """Which frames of a row's film to show: evenly spaced in masked tokens, and the last one.
    Increasing."""
    left = np.array([int((frame[row] == MASK).sum()) for frame in film])
    wanted = np.linspace(left[0], left[-1], FRAMES)
    at = np.abs(left[:, None] - wanted).argmin(0)                         # (FRAMES,)
    at[-1] = len(film) - 1
    return np.unique(at)


def show_members(run, kind, modalities, ids, sure=None):
    """Members of a document ids (L,) as HTML. sure (L,): 1 everywhere by default."""
    if sure is None:
        sure = torch.ones(len(ids))
    rows = run.stream.describe(ids[None])
    shown = ""
    for modality in modalities:
        at = rows.of(kind, modality)[0]
        shown += SHOW[modality](run, ids[at].numpy(), sure[at].numpy())
    if len(modalities) > 1:
        return f"<div class=pair>{shown}</div>"
    return shown


def card(run, task, made, sure, truth, row):
    """A sample's film as HTML: the prompt, the text between two stages, frames, the answer, the
    held-out original."""
    stages = sample.stages_of(task)
    given = sample.given_members(task)
    kind, targets = TASKS[stages[-1]]
    frames = [show_members(run, kind, targets, made.film[i][row], sure[i][row])
              for i in frames_of(made.film, row)]
    strip = "".join(f"<div>{frame}</div>" for frame in frames[:-1])
    look = "words" if "text" in targets else "pictures"
    shown = f'<div class="strip {look}">{strip}</div><div class=screen>{frames[-1]}</div>'
    if given:
        first, wanted = TASKS[stages[0]]
        prompt = show_members(run, first, given, truth[row])
        original = show_members(run, first, wanted, truth[row])
        if made.first:
            prompt += show_members(run, first, wanted, made.first.ids[row])
            prompt += show_members(run, kind, sample.given_members(stages[-1]), made.ids[row])
        shown = f"<div class=prompt>{prompt}</div>{shown}<div class=truth>original {original}</div>"
    return f"<article class=card>{shown}</article>"


def held_out_texts(run, kind):
    """The texts of the first 300 held-out documents."""
    ids = data.stacked(run.documents[kind][1][:300])
    return sample.decoded(run, kind, "text", ids)


def prompts(run, task):
    """Rows (B, L): the first held-out documents of a task. A task of two stages takes those whose
    text begins as one of the last stage's kind, or the other way round, if there are any."""
    kinds = sample.kinds_of(task)
    held_out = run.documents[kinds[0]][1]
    chosen = held_out[:SAMPLES]
    if len(kinds) == 2:
        texts = held_out_texts(run, kinds[0])
        others = held_out_texts(run, kinds[1])

        def known(text):
            return any(text.startswith(other) or other.startswith(text) for other in others)

        at = [i for i, text in enumerate(texts) if known(text)]
        if at:
            chosen = [held_out[i] for i in at[:SAMPLES]]
    return data.stacked(chosen)


def task_films(run, task, seed):
    """A task's films as HTML: answers to the first held-out prompts."""
    kind, targets = TASKS[sample.stages_of(task)[0]]
    truth = prompts(run, task)                                            # (B, L)
    ids = sample.punch(run, kind, truth, *targets)
    made = sample.answer(run, task, ids, seed, record=True)
    sure = sureness(run, made.film)
    cards = [card(run, task, made, sure, truth, row) for row in range(len(truth))]
    settings = [f"{name} {value}" for name, value in sample.settings_for(task).items()]
    settings = ", ".join(settings)
    return f"""<section class=task><h3>{task.replace("-", " ")}<button>&#9654; play</button></h3>
<p class=soft>{made.nfe:.0f} evaluations of the network a sample: {settings}</p>
<div class=cards>{"".join(cards)}</div></section>"""


def films(run, seed):
    """HTML of all tasks that the run knows."""
    parts = [f"""<h2>What it does</h2>
<p class=soft>Each strip leads from masks, which are grey, to an answer. The prompts are the first
{SAMPLES} held-out items, the samples those of seed {seed}; between speech and pictures the first
items with a text that both know. Under the prompt stands the text that leads from one to the other.
Orange: the network gave a word a low probability when it wrote it. The bar above a picture is its
palette. Of several candidates one sees the one that the network keeps.</p>"""]
    for task in (*TASKS, *ACROSS):
        if set(sample.kinds_of(task)) <= set(run.stream.slots):
            parts.append(task_films(run, task, seed))
    return "\n".join(parts)


# ------------------------------------------------------------------------------------------------
# Scores and training loss.


def bar(name, cell):
    """A share right as a bar, with its standard error."""
    share = cell["all"]
    low = max(0, share - cell["all_stderr"])
    high = min(1, share + cell["all_stderr"])
    look = "unseen" if name.startswith("unseen") else "seen"
    return f"""<div class="bar {look}"><span>{escaped(name)}</span>
<div class=track style="--share:{share};--low:{low};--high:{high}"><div class=fill></div>
<div class=error></div></div><span>{score.share(cell)}</span></div>"""


def bars(scores):
    """Scores as HTML, those of seen and unseen things side by side."""
    parts = []
    tasks = [task for task in (*TASKS, *ACROSS) if task in scores]
    for task in tasks:
        cells = scores[task]["cells"]
        names = sorted(cells, key=lambda name: name.split(", ")[-1])  # "seen, X" by "unseen, X"
        shown = [bar(name, cells[name]) for name in names]
        parts.append(f"<div><h3>{task.replace('-', ' ')}</h3>{''.join(shown)}</div>")
    return f"""<h2>How well</h2>
<p class=soft>Share right of fresh samples, and one standard error. Unseen are combinations that the
training left out.</p>
<div class=scores>{"".join(parts)}</div>
<details><summary>All figures, and the bound on held-out data</summary>
<pre>{escaped(score.table(scores))}</pre></details>"""


COLOURS = ("#1f7a8c", "#c8553d", "#5b8e3e", "#8661b3", "#d9902b", "#4a78c4", "#a0578a")
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


def smoothed(values):
    """The mean of up to nine values around each one: (n,) -> (n,)."""
    reach = min(4, len(values) // 20)
    return [values[max(0, i - reach):i + reach + 1].mean() for i in range(len(values))]


def curves(lines):
    """The training loss over steps as HTML, on a logarithmic axis. lines: of log.jsonl."""
    names = list(lines[0]["terms"])
    last = lines[-1]["step"]
    terms = []
    for name in names:
        values = np.array([line["terms"][name] for line in lines], float)
        terms.append(np.maximum(smoothed(values), 0.001))
    top = np.log(np.max(terms)) + 0.1
    bottom = np.log(np.min(terms)) - 0.1

    def down(nats):  # percent of the height
        return 100 * (top - np.log(nats)) / (top - bottom)

    chart = ""
    for tick in TICKS:
        y = down(tick)
        if 0 < y < 100:
            chart += f'<div class=tick style="top:{y:.2f}%"><span>{tick}</span></div>'
    chart += '<svg viewBox="0 0 100 100" preserveAspectRatio="none">'
    key = ""
    some = range(0, len(lines), max(1, len(lines) // 400))
    for name, term, colour in zip(names, terms, itertools.cycle(COLOURS)):
        x = [100 * lines[i]["step"] / last for i in some]
        points = [f"{a:.2f},{b:.2f}" for a, b in zip(x, down(term[some]))]
        chart += f'<polyline points="{" ".join(points)}" stroke="{colour}"/>'
        key += f'<span><b style="color:{colour}">&#9644;</b> {escaped(name)}: {term[-1]:.2f}</span>'
    return f"""<h2>How it learnt</h2>
<p class=soft>Training loss by kind/modality, nats a token, logarithmic. The settings weighting and
time_power say how pairs are trained: a term that they change is no bound on -log p.</p>
<div class=chart>{chart}</svg></div>
<div class="axis soft"><span>0</span><span>{last:,} steps</span></div>
<div class=key>{key}</div>"""


# ------------------------------------------------------------------------------------------------
# The page.

FOLDED = {  # what of config.json is shown
    "config": "Settings",
    "model": "The network",
    "rule": "Optimizer settings that the batch rule derived",
    "step_tokens": "Tokens a step",
}


def write(folder, run=None, seed=0):
    """Write index.html of a run folder and return its path.

    run: a loaded sample.Run, to make films. During the training there are none, so that the page
    costs nothing. seed: of the samples.
    """
    folder = Path(folder)
    saved = files.read_json(folder / "config.json")
    scores = files.read_json(folder / "scores.json")
    log = folder / "log.jsonl"
    with files.reading(log):
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        step, tokens = lines[-1]["step"], lines[-1]["tokens"]
    body = [f"<p class=soft>After {step:,} steps on {tokens:,} tokens: "
            f"{', '.join(saved['stream']['slots'])}.</p>"]
    if run:
        body.append(films(run, seed))
    if scores:
        body.append(bars(scores))
    body.append(curves(lines))
    for name, heading in FOLDED.items():
        if name in saved:
            text = escaped(json.dumps(saved[name], indent=1, ensure_ascii=False))
            body.append(f"<details><summary>{heading}</summary><pre>{text}</pre></details>")
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("{{name}}", escaped(folder.resolve().name))
    text = text.replace("{{body}}", "\n".join(body))
    files.write_text(folder / "index.html", text)
    return folder / "index.html"


def main():
    parser = files.Parser(description=__doc__)
    sample.add_run(parser)
    args = parser.parse_args()
    run = sample.load_run(args.run, files.pick_device(args.device))
    print(write(run.folder, run, args.seed))


if __name__ == "__main__":
    files.command_line(main, "page")
