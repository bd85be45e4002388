"""Training: runs from nothing to a table of scores, stopped, killed, shared out; the settings."""
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from runs import ROOT, SMALL, TINY, begun, call, same, steps_logged, told

import data
import files
import train
from tools import score

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def no_page(monkeypatch):
    """Films take most of a tiny run."""
    monkeypatch.setattr(train, "write_page", lambda folder, run=None: folder / "index.html")


# ---- Whole runs.


def test_a_run_writes_what_it_says(trained):
    folder, printed = trained
    names = {path.name for path in folder.iterdir()}
    assert names == {*train.RUN_FILES, "lock"}
    assert files.load(folder / "checkpoint.pt")["step"] == 6
    assert steps_logged(folder) == [1, 6]
    seconds = files.read_json(folder / "seconds.json")
    assert list(seconds)[-3:] == ["training", "scoring", "page"]
    scores = files.read_json(folder / "scores.json")
    assert score.table(scores) in printed
    assert f"page: {folder / 'index.html'}" in printed
    assert "kappa         = (D_base / D)^gamma B / B_base" in printed


def test_stopped_or_not_the_same_seed_gives_the_same_run(trained, tmp_path, no_page):
    """Ctrl-C as one types it: the step is finished and saved, and resuming loses nothing."""
    slow = ("import time, files, train; real = train.train_step\n"
            "def late(*a): time.sleep(0.3); return real(*a)\n"
            "train.train_step = late; files.command_line(train.main, 'train.py')")
    folder = tmp_path / "run"
    command = [sys.executable, "-c", slow, "--run", str(folder), *TINY, "--score-n", "0"]
    going = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log = folder / "log.jsonl"
    while going.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.05)
    going.send_signal(signal.SIGINT)
    _, errors = going.communicate()
    assert going.returncode == 1 and "Traceback" not in errors
    assert errors.splitlines()[-1].endswith(f"train.py --resume --run {folder} goes on")
    assert 1 <= files.load(folder / "checkpoint.pt")["step"] < 6
    call(train.main, "--resume", "--run", folder)
    assert same(folder, trained[0]) and steps_logged(folder) == [1, 6]
    names = [files.read_json(run / "config.json")["tokenizers"] for run in (folder, trained[0])]
    assert names[0] == names[1]
    assert (folder / "documents.npz").read_bytes() == (trained[0] / "documents.npz").read_bytes()


def test_killed_and_resumed_equals_undisturbed(trained, tmp_path, no_page, monkeypatch):
    """What a kill leaves: a checkpoint, later lines of the log, cut ones, unfinished files."""
    folder = begun(trained[0], tmp_path / "run", save_every=2)
    real = train.lr_factor
    monkeypatch.setattr(train, "LOG_EVERY", 2)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        def killed(progress, warmup):
            if progress > 5 / 6:
                sys.exit()
            return real(progress, warmup)

        patch.setattr(train, "lr_factor", killed)
        call(train.main, "--resume", "--run", folder)
    assert files.load(folder / "checkpoint.pt")["step"] == 4 and steps_logged(folder)[-1] == 5
    with open(folder / "log.jsonl", "a") as log:
        log.write('{"step": 5, "ter')
    (folder / "checkpoint.pt.tmp").write_bytes(b"half")
    call(train.main, "--resume", "--run", folder)
    assert same(folder, trained[0]) and steps_logged(folder) == [1, 3, 5, 6]


def own_data(folder):
    """A text without blanks, pictures, clips -> the flags that name them."""
    (folder / "pictures").mkdir(parents=True)
    (folder / "speech" / "wavs").mkdir(parents=True)
    for i in range(12):
        grey = np.full((12, 12), 20 * i, np.uint8)
        Image.fromarray(grey).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"灰色{i}", encoding="utf-8")
        wave = 0.3 * np.sin(np.arange(3000 + 500 * i) * 0.02 * (i + 1))
        soundfile.write(folder / "speech" / "wavs" / f"{i}.flac", wave, 16_000)
    lines = [f"{i}|tone {i}\n" for i in range(12)]
    (folder / "speech" / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    (folder / "book.txt").write_text("to be or not to be, that is the question.\n" * 40)
    return ("--text", folder / "book.txt", "--images", folder / "pictures",
            "--speech", folder / "speech")


def test_own_data_are_trained_on_and_may_move(tmp_path, no_page):
    given = own_data(tmp_path / "data")
    printed = call(train.main, *TINY, "--run", tmp_path / "a", *given, "--score-n", 2)
    scores = files.read_json(tmp_path / "a" / "scores.json")
    assert set(scores) == {"image-to-text", "speech-to-text", "bound"}
    assert len(scores["bound"]) == 7 and "image-to-text" in printed
    shutil.move(tmp_path / "data", tmp_path / "moved")
    folder = begun(tmp_path / "a", tmp_path / "b")
    call(train.main, "--resume", "--run", folder, "--text", tmp_path / "moved")
    assert same(folder, tmp_path / "a")


@pytest.mark.parametrize("kind", data.KINDS)
def test_each_kind_trains_alone(kind, tmp_path):
    flags = ("--items", 60, "--mix", f"{kind}=1", "--complement", "--minutes", 0.001)
    call(train.main, "--run", tmp_path / "run", *SMALL, *flags, "--score-n", 0)
    saved = files.read_json(tmp_path / "run" / "config.json")
    assert list(saved["stream"]["slots"]) == [kind]
    assert steps_logged(tmp_path / "run")[-1] == 10  # at least ten
    assert (tmp_path / "run" / "index.html").exists()


# ---- One step.


def training(run, **settings):
    """The Training of a run's documents, and its first batch."""
    saved = files.read_json(run / "config.json")
    config = train.Config(**{**saved["config"], **settings})
    documents = data.load_documents(run / "documents.npz")
    documents = {kind: parts[0] for kind, parts in documents.items()}
    made = train.Training(config, data.Stream(**saved["stream"]), documents, torch.device("cpu"))
    return made, made.batch(0)


def test_rows_in_parts_give_the_step_of_the_whole(trained):
    results = []
    for rows in (0, 3):
        made, batch = training(trained[0], micro_batch=rows, clip=0.5)
        rule = train.batch_rule(2048, 6e6, made.config)
        terms, norm = train.train_step(made.net, made.optimizers(rule), batch, made.config,
                                       made.autocast)
        assert norm > 0.5
        results.append((torch.tensor([*terms, norm]), list(made.net.parameters())))
    (a, weights), (b, others) = results
    assert torch.allclose(a, b)
    for w, v in zip(weights, others):
        assert torch.allclose(w, v, rtol=1e-4, atol=1e-5)


def test_timing_steps_changes_nothing(trained):
    made, _ = training(trained[0])
    before = [p.clone() for p in made.net.parameters()]
    assert made.step_seconds(3) > 0
    for w, v, average in zip(made.net.parameters(), before, made.average):
        assert torch.equal(w, v) and torch.equal(average, v) and w.grad is None


def test_two_processes_train_as_one(trained, tmp_path):
    begun(trained[0], tmp_path / "two")
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--")
    done = subprocess.run([sys.executable, *start, "train.py", "--resume", "--run",
                           tmp_path / "two"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert steps_logged(tmp_path / "two") == [1, 6]
    logs = [(run / "log.jsonl").read_text().splitlines() for run in (trained[0], tmp_path / "two")]
    for a, b in zip(*logs, strict=True):
        a, b = json.loads(a), json.loads(b)
        assert a["terms"] == pytest.approx(b["terms"], abs=2e-3)
        assert a["norm"] == pytest.approx(b["norm"], abs=2e-3)


# ---- The plan of --minutes.


def test_a_plan_that_never_changes_is_one_of_steps():
    plan = train.Plan(steps=40, tokens=1.0, warmup=0.05)
    assert plan.anew(10, 1.0, 60 / 30.9) is plan  # less than 5% off
    shares = [plan.at(step - 0.5) for step in range(41)]
    assert shares == pytest.approx(np.arange(41) / 40)


@pytest.mark.parametrize("speeds", [(1.0, 1.0), (1.0, 2.5), (2.5, 1.0), (0.2, 1.5)])
@pytest.mark.parametrize("stop", [0, 15])
def test_minutes_are_kept_when_the_speed_changes(speeds, stop, trained, tmp_path, monkeypatch):
    """A step takes speeds[0] seconds by a clock of our own, from second 20 on speeds[1]."""
    folder = begun(trained[0], tmp_path / "run", steps=0, minutes=1.0, save_every=3)
    clock = types.SimpleNamespace(now=0.0, time=time.time)
    clock.perf_counter = lambda: clock.now
    shares = []

    def step(*args):
        clock.now += speeds[clock.now > 20]
        return torch.zeros(5), 0.0

    def factor(progress, warmup):
        shares.append(progress)
        return 1.0

    monkeypatch.setattr(train, "time", clock)
    monkeypatch.setattr(train, "train_step", step)
    monkeypatch.setattr(train, "lr_factor", factor)
    monkeypatch.setattr(train, "write_page", lambda folder, run=None: "")
    monkeypatch.setattr(train, "any_process", lambda flag, device: len(shares) == stop)
    resume = ("--resume", "--run", folder)
    if stop:
        assert "stopped after step 15" in told(train.main, *resume)[1]
        clock.now += 1000  # the break does not count
        spent = clock.now - files.load(folder / "checkpoint.pt")["plan"]["seconds"]
    call(train.main, *resume)
    seconds = clock.now - (spent if stop else 0)
    assert 51 <= seconds <= 69
    assert 0 < shares[0] < 0.1 and 0.9 < shares[-1] < 1
    assert all(a < b for a, b in zip(shares, shares[1:]))


# ---- Settings.

OTHERS = {bool: True, int: 640, float: 0.5, list: ["a b", "c"]}  # no default, but allowed
TEXTS = {"image_tokenizer": '{"patch": 4}', "speech_tokenizer": '{"stride": 2}',
         "shape": '{"width": 64}', "mix": "text=0.5", "weighting": "image-text=bound",
         "modes": "joint=1.0", "time_power": "first=0.5", "loss_weights": "text/text=0.5",
         "run": "ü b", "device": "mps", "encoding": "gpt2", "schedule": "poly:2",
         "preset": "3b", "optimizer": "adamw", "dtype": "bfloat16", "compile": "on",
         "recipe": "paper"}
FIELDS = dataclasses.fields(train.Config)
FLAGS = {f.name: "--" + f.name.replace("_", "-") for f in FIELDS}


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
def test_every_setting_is_a_flag_that_config_json_keeps(field):
    other = OTHERS.get(field.type)
    values = {bool: [], list: ["a b", "c"]}.get(field.type, [TEXTS.get(field.name, str(other))])
    given = []
    for value in values or [None]:
        given += [FLAGS[field.name]] + ([value] if value else [])
    config, names = train.parse(given)
    value = getattr(config, field.name)
    assert names == {field.name} and value != getattr(train.Config(), field.name)
    assert type(value) is field.type
    assert train.Config(**json.loads(json.dumps(vars(config)))) == config


def test_help_tells_defaults_and_documents_tell_every_flag(capsys):
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    shown = "".join(capsys.readouterr().out.split())
    for name, value in vars(train.Config()).items():
        assert FLAGS[name] in shown
        assert not value or f"(default:{train.typed(value)})" in shown
    texts = [(ROOT / "README.md").read_text(encoding="utf-8")]
    for folder in ("tests", "experiments", "tools"):
        texts += [path.read_text(encoding="utf-8") for path in (ROOT / folder).glob("*.[pm]*")]
    text = "\n".join(texts)
    assert not [f for name, f in FLAGS.items() if f not in text and f"{name}=" not in text]


def test_a_recipe_sets_defaults_and_flags_win():
    tuned, _ = train.parse([])
    assert tuned == train.Config()
    paper, _ = train.parse(["--recipe", "paper"])
    changed = {k for k, v in vars(paper).items() if v != getattr(tuned, k)}
    assert changed == {"recipe", *train.RECIPES["paper"]}
    assert (paper.optimizer, paper.schedule, paper.complement) == ("adamw", "linear", True)
    assert (paper.modes, paper.time_power) == ({"joint": 1.0}, {})
    mixed, _ = train.parse("--recipe paper --optimizer muon --no-complement".split())
    assert dataclasses.replace(mixed, optimizer="adamw", complement=True) == paper
    status, errors = told(train.main, "--recipe", "best")
    assert status == 2 and "'best': choose from tuned, paper" in errors.splitlines()[-1]


def test_the_papers_loss_counts_every_token_alike_and_resuming_keeps_it(trained, tmp_path, no_page):
    """Its terms, weighted, are the sum over all hidden tokens over all that could be hidden."""
    recipe = {"recipe": "paper", **train.RECIPES["paper"]}
    made, batch = training(trained[0], **recipe)
    terms = torch.rand(len(train.TERMS))
    alike = (terms * batch.counts).sum() / batch.counts.sum()
    assert torch.allclose((made.config.loss_weight_of_members() * terms).sum(), alike)
    folder = begun(trained[0], tmp_path / "run", **recipe)
    call(train.main, "--resume", "--run", folder)
    saved = files.read_json(folder / "config.json")["config"]
    assert saved["recipe"] == "paper" and saved["loss_weights"] == made.config.loss_weights
    assert saved["complement"] and len(files.load(folder / "checkpoint.pt")["optimizers"]) == 1
    status, errors = told(train.main, "--resume", "--run", folder, "--recipe", "tuned")
    assert status == 2 and "--recipe is paper there" in errors


def test_resuming_refuses_other_settings(trained, tmp_path):
    folder = begun(trained[0], tmp_path / "run")
    for given, line in ((("--lr", 0.5), "--lr is 0.001"), (("--steps", 60), "--steps is 6"),
                        (("--mix", "text=1"), "--mix is")):
        status, errors = told(train.main, "--resume", "--run", folder, *given)
        assert status == 2 and line in errors and errors.count("\n") == 1
    config, given = train.parse(["--resume", "--micro-batch", "2", "--compile", "auto"])
    train.resume_run(folder, config, given)
    assert config.micro_batch == 2 and config.steps == 6 and config.compile == "off"


# ---- What is not finite.


@pytest.mark.parametrize("what", ["gradient", "weight"])
def test_what_is_not_finite_stops_a_run_and_is_not_saved(what, trained, tmp_path, no_page,
                                                         monkeypatch):
    folder = begun(trained[0], tmp_path / "run", save_every=2)
    real = train.update_average
    calls = []

    def broken(average, net, rate):  # is called after each step
        calls.append(rate)
        if len(calls) == 3:
            parameter = net.blocks[0].out.weight
            if what == "gradient":  # of the next step
                parameter.register_hook(lambda gradient: gradient * torch.inf)
            else:
                parameter.data[0, 0] = torch.inf
        real(average, net, rate)

    with monkeypatch.context() as patch:
        patch.setattr(train, "update_average", broken)
        status, errors = told(train.main, "--resume", "--run", folder)
    assert status == 1 and "not finite" in errors.splitlines()[-1]
    assert str(folder / "checkpoint.pt") in errors.splitlines()[-1]
    assert files.load(folder / "checkpoint.pt")["step"] == 2
    call(train.main, "--resume", "--run", folder)
    assert same(folder, trained[0])
