"""What is made of a trained run: samples, holes, scores, the page, the film."""
import json
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

import data
import diffusion
import page
import safe
import sample
import score
import train
from runs import run

BROWSER = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)


@pytest.mark.skipif(not BROWSER, reason="no Chromium")
def test_the_page_works_in_a_browser_of_a_phones_width(trained, tmp_path):
    """Every film shows one stage, the slider another, and nothing is wider than the screen."""
    probe = ("<script>const s = document.querySelector('.film input'); const last = document.querySelector('.film figure.on');"
             "s.value = 0; s.oninput(); const first = document.querySelector('.film figure.on');"
             "document.title = [document.querySelectorAll('.film').length, document.querySelectorAll('.film figure.on').length,"
             "first !== last, document.querySelectorAll('svg polyline').length,"
             "Math.max(...[...document.body.children].map(e => e.getBoundingClientRect().right)) <= innerWidth].join()</script>")
    written = (trained[0] / "index.html").read_text(encoding="utf-8")
    (tmp_path / "probe.html").write_text(written.replace("</html>", probe + "</html>"), encoding="utf-8")
    dom = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,800", "--dump-dom",
                          f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "probe.html").as_uri()],
                         capture_output=True, text=True, timeout=60).stdout
    films, shown, moved, lines, fits = dom.split("<title>")[1].split("</title>")[0].split(",")
    assert films == shown and int(films) >= 20 and moved == "true" and lines == "5" and fits == "true", dom[:200]


def test_every_task_writes_its_output(trained, tmp_path, monkeypatch):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["sample.py", "--run", str(trained[0]), "--out", str(tmp_path), *map(str, args)])
        sample.main()

    call("text-to-image", "a small red circle on white", "--steps", "3")
    call("image-to-text", tmp_path / "text-to-image-0-0.png")
    call("text-to-speech", "twenty one", "--steps", "3")
    call("speech-to-text", tmp_path / "text-to-speech-0-0.wav")
    call("infill", "the red circle is ___ the blue square.")
    infilled = (tmp_path / "infill-0-0.txt").read_text()
    call("infill", "the red ___ is", "--n", "2", "--seed", "1")
    call("infill", tmp_path / "text-to-image-0-0.png", "--hole", "0.5:1", "--caption", "a small red circle on white", "--steps", "3")
    names = {f.name for f in tmp_path.iterdir()}
    assert {"text-to-image-0-0.png", "image-to-text-0-0.txt", "text-to-speech-0-0.wav", "speech-to-text-0-0.txt",
            "infill-0-0.txt", "infill-0-0.png", "infill-1-0.txt", "infill-1-1.txt"} <= names
    assert infilled.startswith("the red circle is") and "the blue square." in infilled


def test_a_hole_in_a_text_leaves_the_tokens_around_it(trained):
    toy = sample.load_run(trained[0], torch.device("cpu"))
    before, after = toy.tokenizers["text"].encode(["the red circle is", " the blue square."])    # no token is a space alone
    ids = sample.infill(toy, "the red circle is ___ the blue square.", "3", None, 0, {}).ids[0, data.HEAD:]
    given = np.concatenate([toy.stream.to_ids("text", part) for part in (before, after)])
    assert np.concatenate((ids[:len(before)], ids[len(before) + 3:][:len(after)])).tolist() == given.tolist()


def test_a_hole_in_a_picture_is_filled_before_its_caption_is_read(trained, tmp_path, monkeypatch):
    toy, calls = sample.load_run(trained[0], torch.device("cpu")), []
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(tmp_path / "grey.png")
    draw = diffusion.sample

    def spy(predict, x, *args, hold=None, **settings):
        calls.append((x[0], hold[0]))
        return draw(predict, x, *args, hold=hold, **settings)

    monkeypatch.setattr(diffusion, "sample", spy)
    made = sample.infill(toy, str(tmp_path / "grey.png"), "0.5:1", None, 0, {})
    member = toy.stream.describe("image-text", made.ids).member[0]
    (first, held), (second, free) = calls
    assert np.array_equal(held.numpy(), member == 1) and not free.any() and (first[member == 0] == data.MASK).sum() == 8
    assert np.array_equal(second[member == 0], made.ids[0, member == 0]) and (second[member == 1] == data.MASK).all() and set(made.outputs) == {"image", "text"}
    calls.clear()
    toy.config["args"]["modes"] = {"joint": 1.0}                                                     # no picture was seen alone: both at once
    sample.infill(toy, str(tmp_path / "grey.png"), "0.5:1", None, 0, {})
    assert len(calls) == 1 and not calls[0][1].any() and (calls[0][0][member == 1] == data.MASK).all()


def test_texts_of_two_lengths_share_no_noise(trained, monkeypatch):
    toy = sample.load_run(trained[0], torch.device("cpu"))
    monkeypatch.setattr(sample, "drawn_lengths", lambda run, at_least, seed: np.array([24, 32]))
    a, b = sample.generate(toy, "text", [None, None], temperature=1.0, correct=0).ids[:, data.HEAD:][:, :20]
    assert (a != b).sum() > 10


def test_flags_may_stand_before_the_prompt(trained, tmp_path):
    done = run("sample.py", "text", "--run", trained[0], "--out", tmp_path, "--length", "12", "the red", "--n", "2")
    assert len(list(tmp_path.glob("text-0-*.txt"))) == 2 and all(p.read_text().startswith("the red") for p in tmp_path.glob("*.txt")), done.stdout


def test_the_loss_of_training_is_the_bound_of_a_trained_model(trained):
    """Times drawn as in training, with any schedule's weights, and masks of exactly k tokens estimate one bound; the former leave 0.1% of the
    times at each end out."""
    run = sample.load_run(trained[0], torch.device("cpu"))
    ids = np.load(trained[0] / "validation.npz")["image-text"].astype(np.int64)
    rows = run.stream.describe("image-text", np.resize(ids, (32, ids.shape[1])))
    ids, low, high, member = (torch.from_numpy(np.array(a)) for a in (rows.ids, rows.low, rows.high, rows.member))
    predict, noisy = run.logits(rows), member >= 0
    draws = {"bound": [diffusion.bound(predict, ids, noisy, low, high, data.MASK, data.rng(5, i)).mean() for i in range(24)]}
    for name in ("linear", "cosine"):
        draws[name] = []
        for i in range(24):
            rng = data.rng(6, i)
            times = np.repeat(diffusion.stratified_times(32, rng.random())[:, None], 2, 1)
            x, masked, weight, _ = diffusion.mask_tokens(ids, member.long(), times, np.ones((32, 2), bool), torch.from_numpy(rng.random(ids.shape)), data.MASK,
                                                         diffusion.schedule(name))
            with torch.no_grad():
                nll = diffusion.token_nll(predict(x, masked), ids[masked], low[masked], high[masked])
            draws[name].append((nll * weight[masked]).sum() / 32)
    (want, error), *others = ((float(np.mean(v)), float(np.std(v)) / 24 ** 0.5) for v in draws.values())
    for mean, its in others:
        assert abs(mean - want) < 4 * np.hypot(error, its) + 0.003 * want, (want, error, mean, its)


def test_sampling_is_a_function_of_the_seed(trained):
    run = sample.load_run(trained[0], torch.device("cpu"))
    made = [sample.generate(run, "image", [None] * 3, seed=seed, steps=4).ids for seed in (0, 0, 1)]
    assert (made[0] == made[1]).all() and (made[0] != made[2]).any()


def test_a_pair_begins_with_its_text(trained):
    """The text is whole before anything of the picture shows; then the picture is drawn given it, as text-to-image draws it."""
    run = sample.load_run(trained[0], torch.device("cpu"))
    made = sample.generate(run, "image", [None] * 2, seed=3, record=True, candidates=1)
    member = run.stream.describe("image-text", made.ids).member
    shown = [[(f[member == i] != data.MASK).any() for f in made.film] for i in (0, 1)]
    whole = [(f[member == 1] != data.MASK).all() for f in made.film]
    assert any(shown[0]) and any(shown[1]) and all(done for done, begun in zip(whole, shown[0]) if begun)
    draft = made.film[whole.index(True)]
    again = sample.answer(run, "text-to-image", draft, 3, candidates=1)
    assert (again.ids == made.ids).all() and made.outputs["text"] == again.outputs["text"]


def test_the_candidate_that_fits_its_prompt_is_taken():
    """A network that knows exactly that every character repeats the colour at its place (plus 5): of four candidates a prompt the
    one that obeys, of two that obey in part the better one; from either side, and counted."""
    stream = data.Stream({"text": (1, 10), "image": (1, 4)}, {"image-text": [4, 5]})
    pictures = np.array([[0, 1, 2, 3], [3, 3, 1, 0], [2, 0, 0, 1]])
    captions = pictures + 5
    rows = [[stream.row("image-text", [p, c]) for c in (c[::-1], np.where([0, 0, 1, 1], 0, c), c, np.where([1, 0, 0, 0], 0, c))][:k]
            for p, c, k in zip(pictures, captions, (4, 4, 4))]
    rows[1] = [rows[1][3], rows[1][0], rows[1][1], rows[1][1]]                          # three of four right is the best here
    x, image = np.concatenate(rows), stream.start["image"]

    def logits(described):
        where_image, where_text = np.flatnonzero(described.member[0] == 0), np.flatnonzero(described.member[0] == 1)[:4]

        def predict(x, where):
            out = torch.zeros(*x.shape, stream.vocab)
            for i, t in zip(where_image.tolist(), where_text.tolist()):
                for row in range(len(x)):
                    if x[row, t] != data.MASK and 0 <= x[row, t] - stream.start["text"] - 5 < 4:
                        out[row, i, image + x[row, t] - stream.start["text"] - 5] = 9.0
                    if x[row, i] != data.MASK:
                        out[row, t, stream.start["text"] + 5 + x[row, i] - image] = 9.0
            return out[where]
        return predict

    run = types.SimpleNamespace(stream=stream, logits=logits, on=lambda a: torch.from_numpy(np.ascontiguousarray(a)))
    for given in ("image", "text"):
        kept, nfe = sample.most_fitting(run, "image-text", torch.from_numpy(x), [given], 4, 0, rounds=3)
        assert kept.tolist() == [2, 4, 10] and nfe.tolist() == [24, 18, 24]   # two of the second row's are one


def test_rows_that_agree_are_asked_once(trained):
    """And what comes out is what every row gets alone."""
    run, asked = sample.load_run(trained[0], torch.device("cpu")), []
    net, run.dtype = run.net, torch.float32
    rows = run.stream.describe("image-text", np.repeat(run.stream.row("image-text", [None, None])[None], 5, 0))
    x = torch.from_numpy(np.array(rows.ids)).long()
    where = x == data.MASK
    first = where[0].nonzero()[0]
    x[[1, 3], first] = run.stream.start["image"]                       # rows 0, 2 and 4 agree, and rows 1 and 3 but for what they ask
    where[[1, 3], first] = where[3, -1] = False
    run.net = lambda x, *layout, select: asked.append(len(x)) or net(x, *layout, select=select)
    with torch.no_grad():
        alone = torch.cat([run.logits(rows)(x[i:i + 1], where[i:i + 1]) for i in range(5)])
        together = run.logits(rows)(x, where)
    assert asked == [1] * 5 + [3] and torch.allclose(alone, together, atol=1e-5)


def test_several_runs_make_one_table(trained, tmp_path):
    """Mean and standard deviation of two runs' scores, by hand."""
    scores = json.loads((trained[0] / "scores.json").read_text())
    cell = {task: scores[task]["cells"]["seen"] for task in ("text-to-speech", "speech-to-text")}
    for n, (said, heard) in enumerate(((0.5, 0.9), (0.7, 0.9))):
        cell["text-to-speech"]["all"], cell["speech-to-text"]["all"] = said, heard
        (tmp_path / f"{n}.json").write_text(json.dumps(scores))
    lines = run("experiments/seeds.py", tmp_path / "0.json", tmp_path / "1.json").stdout.splitlines()
    assert any(line.startswith("| text-to-speech | seen | 60 ± 14 | 50, 70 | whole phrase") for line in lines)
    assert any(line.startswith("| speech-to-text | seen | 90 ± 0 | 90, 90 | whole phrase") for line in lines)


def test_tasks_are_scored_alone_and_under_other_settings(trained):
    toy, two = sample.load_run(trained[0], torch.device("cpu")), ("text-to-speech", "text")
    settings = dict(sampler="ancestral", guidance=0.0, correct=0)
    for steps in (1, 3):
        scores = score.score(toy, 2, tasks=two, repeats=2, steps=steps, **settings)
        assert tuple(scores) == two and all((steps + 1) / 2 <= scores[t]["nfe"] <= steps for t in two)      # steps that reveal nothing are free
    assert "text-to-speech" in score.table(scores) and "bound" not in score.table(scores)
    with pytest.raises(safe.UsageError, match="score infill: .* is judged on text-to-image, .*"):
        score.score(toy, 2, tasks=("infill",))


def test_candidates_are_paid_for(trained):
    run = sample.load_run(trained[0], torch.device("cpu"))
    made = sample.generate(run, "text-to-image", ["a small red circle on white"] * 2, seed=1, candidates=3, rounds=3, steps=4, guidance=1.0)
    assert made.nfe == 3 * (2 * 4 + 2 * 3) and made.ids.shape[0] == 2 and len(made.outputs["image"]) == 2
    alone = sample.generate(run, "text-to-image", ["a small red circle on white"] * 2, seed=1, candidates=1, steps=4, guidance=1.0)
    assert alone.nfe == 2 * 4


def test_diversity_by_hand():
    """Four samples of one prompt, (1/2, 1/4, 1/4) at one position; then four equal ones."""
    ids = np.array([[1, 5], [1, 5], [1, 6], [1, 7]] + [[2, 2]] * 4)
    one, both = score.diversity(ids[:4], 4), score.diversity(ids, 4)
    assert one["distinct"] == 0.75 and one["entropy"] == pytest.approx(1.5 * np.log(2))
    assert both["distinct"] == (0.75 + 0.25) / 2 and both["entropy"] == pytest.approx(0.75 * np.log(2))


def test_lengths_of_texts_are_those_of_held_out_documents(trained, tmp_path):
    """The share of every extent, and none that is too short for the prompt; generated rows have them."""
    run = sample.load_run(trained[0], torch.device("cpu"))
    packed = run.stream.pack("text", [np.arange(n) for n in (3, 12, 20, 5, 18)])
    run.folder = tmp_path
    np.savez(tmp_path / "validation.npz", text=packed)
    rows = run.stream.describe("text", packed)
    true = [int(((d == k) & (m == 0)).sum()) for d, m in zip(rows.doc, rows.member) for k in np.unique(d[m == 0])]
    drawn = sample.drawn_lengths(run, np.zeros(4000, int), 3)
    assert sorted(true) == [8, 8, 16, 24, 24]
    for n in set(true) | set(drawn):
        assert abs((drawn == n).mean() - np.mean(np.array(true) == n)) < 0.04, n
    assert sample.drawn_lengths(run, np.full(200, min(true)), 3).min() > min(true)
    assert (sample.drawn_lengths(run, np.full(2, 10**6), 3) == run.stream.slots["text"][0] - data.HEAD).all()
    made = sample.generate(run, "text", [None] * 12, seed=3, steps=3, record=True)
    extents = ((made.ids != data.PAD).sum(1) - data.HEAD).tolist()
    assert extents == sample.drawn_lengths(run, np.zeros(12, int), 3).tolist() and len(set(extents)) > 1
    assert all(f.shape == made.ids.shape for f in made.film) and (made.film[-1] == made.ids).all() and len(made.outputs["text"]) == 12


def test_error_of_a_ratio():
    """A row of twice the tokens at twice the nats spreads nothing; by hand for two rows: residuals ± 1 over 2 tokens."""
    assert score.ratio(np.array([2.0, 4.0, 6.0]), np.array([1, 2, 3])) == (2.0, 0.0)
    assert score.ratio(np.array([1.0, 3.0]), np.array([2, 2])) == (1.0, pytest.approx(1 / 2 / 2 ** 0.5))


def test_a_hole_in_a_picture_leaves_its_palette(trained):
    run = sample.load_run(trained[0], torch.device("cpu"))
    where = sample.part_of(run, "image", 0.5, 1, 19)
    assert np.flatnonzero(where).tolist() == list(range(3 + 8, 19))          # the lower two of four rows
    assert np.flatnonzero(sample.part_of(run, "speech", 0.5, 1, 8)).tolist() == [4, 5, 6, 7]


def test_runs_of_another_layout_are_refused(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(json.dumps({**config, "layout_version": 1}))
    with pytest.raises(data.DataError, match="another version"):
        sample.load_run(tmp_path / "old")
    with pytest.raises(data.DataError, match="another version"):           # its tokenizers would make other tokens
        train.make_way(tmp_path / "old", types.SimpleNamespace(overwrite=True, keep_tokenizers=True))
    assert (tmp_path / "old" / "checkpoint.pt").exists()


def test_sampling_study_runs(trained):
    folder, _ = trained
    lines = run("experiments/sampling.py", "--quick", "--run", folder).stdout.splitlines()
    kept = json.loads((folder / "sampling.json").read_text())
    assert len(lines) == 10 and len(kept) == 11 and "default" in lines[0]
    assert run("experiments/sampling.py", "--quick", "--run", folder).stdout.splitlines() == lines     # read, not made again


def test_passages_are_judged_by_form(trained):
    lines = run("experiments/passages.py", "--n", "4", "--correct", "0,1", "--run", trained[0]).stdout.splitlines()
    assert len(lines) == 9 and lines[-1].startswith("| all | ") and "(4)" in lines[-1]


def test_a_moving_picture_of_a_run(trained, tmp_path):
    run("experiments/film.py", "--run", trained[0], "--out", tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        grey = [film.seek(i) or (np.abs(np.asarray(film.convert("RGB")).astype(int) - page.GREY) < 4).all(2).sum() for i in range(film.n_frames)]
    assert len(grey) > 5 and grey[0] > grey[len(grey) // 2] > grey[-1] and grey[0] > 10 * grey[-1]             # masked at first, all there in the end
    done = run("experiments/film.py", "--run", tmp_path / "nowhere", check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "nowhere" in done.stderr


def test_what_is_shown_of_rows_that_are_masked_in_part(trained):
    toy = sample.load_run(trained[0], torch.device("cpu"))
    held = {kind: np.load(trained[0] / "validation.npz")[kind][:1].astype(np.int64) for kind in ("image-text", "speech-text")}
    slot = {kind: toy.stream.describe(kind, ids).member[0] == 0 for kind, ids in held.items()}
    ids = held["image-text"][0, slot["image-text"]]
    want = sample.decode(toy, "image", [toy.stream.to_codes("image", ids)])[0].astype(int)
    assert np.abs(page.masked_picture(toy, ids)[4:] - want).max() <= 1                               # nothing masked: as it is decoded
    colourless = np.where(np.arange(len(ids)) < 3, data.MASK, ids)
    assert (page.masked_picture(toy, colourless)[[0, 1, 2, *range(4, 36)]] == page.GREY).all()       # squares without their colours
    ids[-1] = toy.stream.start["image"]                            # code 0 in the lower right corner, as if it were masked
    want = sample.decode(toy, "image", [toy.stream.to_codes("image", ids)])[0].astype(int)
    ids[-1] = data.MASK
    shown = page.masked_picture(toy, ids)[4:].astype(int)
    assert (shown[24:, 24:] == page.GREY).all() and np.abs(shown[:24] - want[:24]).max() <= 1
    clip = held["speech-text"][0, slot["speech-text"]].copy()
    groups, size = toy.stream.codes["speech"]
    clip[:groups], clip[groups:2 * groups] = data.MASK, toy.stream.ranges("speech", np.arange(len(clip)))[1][:groups] - 1      # a step masked, one of end tokens
    shown = page.masked_clip(toy, clip)
    step = shown.shape[1] // (len(clip) // groups)
    assert (shown[:, :step] == page.GREY).all() and (shown[:, step:2 * step] == 255).all()
    codes = toy.tokenizers["text"].encode(["the red circle is small."])[0]
    text = np.concatenate((toy.stream.to_ids("text", codes), [toy.stream.ranges("text", np.arange(1))[1][0] - 1] * 2))
    text[1:3] = data.MASK
    decode = lambda part: toy.tokenizers["text"].decode([part])[0]
    assert page.masked_text(toy, text) == [(decode(codes[:1]), 1), (None, 2), (decode(codes[3:]), len(codes) - 3)]     # up to the end token
