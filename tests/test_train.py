"""Training: runs from nothing to a table of scores, stopped, killed, shared out; the settings."""
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from runs import ROOT, SMALL, TINY, begun, call, refused, same, steps_logged, told

import diffusion
import files
import sample
import train
from sources import prepare
from tools import score


def test_a_run_writes_what_it_says(trained):
    folder, printed = trained
    assert {path.name for path in folder.iterdir()} == {*train.RUN_FILES, "lock"}
    assert files.load(folder / "checkpoint.pt")["step"] == 6 and steps_logged(folder) == [1, 6]
    seconds = files.read_json(folder / "seconds.json")
    assert list(seconds)[-3:] == ["training", "scoring", "page"]
    assert score.table(files.read_json(folder / "scores.json")) in printed
    assert f"page: {folder / 'index.html'}" in printed


def test_stopped_killed_and_resumed_equals_undisturbed(trained, tmp_path, no_page, monkeypatch):
    """Ctrl-C finishes the step and saves it. A kill leaves a checkpoint, later lines of the log,
    cut ones, unfinished files. The folder's name is to be quoted, and is not UTF-8."""
    folder = begun(trained[0], tmp_path / os.fsdecode(b"a 'b\" caf\xe9"), save_every=2)
    resume = ("--resume", "--run", folder)
    real = train.lr_factor
    monkeypatch.setattr(train, "LOG_EVERY", 2)

    def in_step(step, event):
        def factor(progress, warmup):
            if progress > (step - 1) / 6:
                event()
            return real(progress, warmup)
        monkeypatch.setattr(train, "lr_factor", factor)

    in_step(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    status, errors = told(train.main, *resume)
    shown = files.printable(files.quoted(folder))
    assert status == 1
    assert errors.splitlines()[-1].endswith(f"train.py --resume --run {shown} goes on")
    assert files.load(folder / "checkpoint.pt")["step"] == 3
    in_step(6, sys.exit)
    with pytest.raises(SystemExit):
        call(train.main, *resume)
    assert files.load(folder / "checkpoint.pt")["step"] == 4 and steps_logged(folder) == [1, 3, 5]
    with open(folder / "log.jsonl", "a") as log:
        log.write('{"step": 5, "ter')
    (folder / "checkpoint.pt.tmp").write_bytes(b"half")
    in_step(6, lambda: os.kill(os.getpid(), signal.SIGINT))  # the last one
    assert "stopped after step 6 of 6" in told(train.main, *resume)[1]
    in_step(7, None)
    call(train.main, *resume)
    assert same(folder, trained[0]) and steps_logged(folder) == [1, 3, 5, 6]
    printed = call(sample.main, "text", "--run", folder, "--out", folder / "out", "--n", 1)
    assert files.quoted(folder / "out" / "text-0-0.txt") in printed


@pytest.mark.parametrize("what, words", [("gradient", "its gradient is not finite"),
                                         ("loss", "the loss or its gradient is not finite"),
                                         ("weight", "a weight is not finite"),
                                         ("full disk", "cannot write")])
def test_a_fault_stops_a_run_and_leaves_the_last_good_state(what, words, trained, tmp_path,
                                                            no_page, monkeypatch):
    """On a full disk: files above a limit cannot be written."""
    folder = begun(trained[0], tmp_path / "run", save_every=2)
    real = train.update_average
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    calls = []

    def broken(average, net, share):  # is called after each step
        real(average, net, share)
        calls.append(share)
        weight = net.blocks[0].out.weight
        if len(calls) == 3 and what == "gradient":  # of the next step
            weight.register_hook(lambda gradient: gradient * torch.inf)
        if len(calls) == 3 and what == "loss":
            terms = diffusion.loss_terms
            monkeypatch.setattr(diffusion, "loss_terms", lambda *batch: terms(*batch) + torch.inf)
        if len(calls) == 4 and what == "weight":  # of the next checkpoint
            weight.data[0, 0] = torch.inf
        if len(calls) == 4 and what == "full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    monkeypatch.setattr(train, "update_average", broken)
    try:
        status, errors = told(train.main, "--resume", "--run", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert calls[:3] == pytest.approx([1 / 2, 1 / 3, 1 / 4])  # at first it is a plain mean
    line = errors.splitlines()[-1]
    assert status == 1 and str(folder / "checkpoint.pt") in line and words in line
    assert files.load(folder / "checkpoint.pt")["step"] == 2 and not list(folder.glob("*.tmp"))


def test_two_processes_train_as_one(trained, tmp_path):
    """Their hashes of strings differ."""
    folder = tmp_path / "two"
    script = ("import files, train; train.page.write = lambda *given: '';"
              "files.command_line(train.main, 'train.py')")
    command = [sys.executable, "-c", script, "--run", folder, *TINY, "--score-n", "0"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [subprocess.Popen(command, cwd=ROOT, env={**world, "RANK": rank}, text=True,
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for rank in "01"]
    try:
        errors = [process.communicate(timeout=200)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert not any(process.returncode for process in both), errors
    for name in ("documents.pt", "text.json"):
        assert (trained[0] / name).read_bytes() == (folder / name).read_bytes()
    logs = [(run / "log.jsonl").read_text().splitlines() for run in (trained[0], folder)]
    for line, other in zip(*logs, strict=True):
        line = json.loads(line)
        other = json.loads(other)
        assert line.pop("terms") == pytest.approx(other.pop("terms"), abs=2e-3)
        assert line == pytest.approx(other, abs=2e-3)


def own_data(folder):
    """A text without blanks, pictures, clips -> the flags that name them."""
    folder.mkdir()
    for i in range(12):
        Image.fromarray(np.full((12, 12), 20 * i, np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"灰色{i}", encoding="utf-8")
        wave = 0.3 * np.sin(np.arange(3000 + 500 * i) * 0.02 * (i + 1))
        soundfile.write(folder / f"{i}.flac", wave, 16_000)
    (folder / "book.txt").write_text("to be or not to be, that is the question.\n" * 40)
    return "--text", folder / "book.txt", "--images", folder, "--speech", folder


def test_own_data_are_trained_on_and_may_move(tmp_path, no_page):
    given = own_data(tmp_path / "data")
    call(train.main, *TINY, "--run", tmp_path / "a", *given, "--score-n", 2)
    scores = files.read_json(tmp_path / "a" / "scores.json")
    assert set(scores) == {"image-to-text", "speech-to-text", "bound"}
    shutil.move(tmp_path / "data", tmp_path / "moved")
    folder = begun(tmp_path / "a", tmp_path / "b")
    call(train.main, "--resume", "--run", folder, "--text", tmp_path / "moved")
    assert same(folder, tmp_path / "a")


def test_a_kind_trains_alone(tmp_path):
    """Texts and pairs with pictures do, too: in the quick forms of the studies."""
    flags = ("--items", 60, "--mix", "speech-text=1", "--complement", "--minutes", 0.001)
    printed = call(train.main, "--run", tmp_path / "run", *SMALL, *flags, "--score-n", 0)
    assert re.search(r"few steps: .* --minutes \d+\n", printed)
    saved = files.read_json(tmp_path / "run" / "config.json")
    assert list(saved["stream"]["slots"]) == ["speech-text"]
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert list(line["terms"]) == ["speech-text/speech", "speech-text/text"]
    assert sum(line["terms"].values()) > 0
    assert steps_logged(tmp_path / "run")[-1] > 4  # about ten


def training(run, **settings):
    """The Training of a run's documents, and its first batch."""
    config = train.Config(**{**run.saved["config"], **settings})
    documents = {kind: parts[0] for kind, parts in run.documents.items()}
    made = train.Training(config, run.stream, documents, torch.device("cpu"))
    return made, made.batch(0)


def test_the_gradient_is_of_the_weighted_terms_and_clipped(toy):
    weights = {"text/text": 1.0, "image-text/image": 2.0, "speech-text/text": 3.0}
    made, batch = training(toy, loss_weights=weights, clip=0.5)
    parameters = list(made.net.parameters())
    terms = diffusion.loss_terms(made.net, batch)
    wanted = torch.autograd.grad(terms @ torch.tensor([1.0, 2, 0, 0, 3]), parameters)
    got = []
    spy = types.SimpleNamespace(step=lambda: got.extend(p.grad.clone() for p in parameters))
    _, norm = train.train_step(made.net, [spy], batch, made.config, made.autocast)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b * 0.5 / norm)


def test_the_average_moves_towards_the_network():
    net = torch.nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(4.0)
    average = [torch.zeros(1, 1)]
    train.update_average(average, net, 0.25)
    assert (average[0].item(), net.weight.item()) == (1.0, 4.0)


def test_the_rates_of_a_run(trained, tmp_path, no_page, monkeypatch):
    """Six steps: one of warm-up, then a cosine, each at its middle."""
    real, rates = train.train_step, []

    def step(net, optimizers, *rest):
        group = optimizers[-1].param_groups[0]
        rates.append(group["lr"] / group["base_lr"])
        return real(net, optimizers, *rest)

    monkeypatch.setattr(train, "train_step", step)
    call(train.main, "--resume", "--run", begun(trained[0], tmp_path / "run"))
    falls = [(1 + np.cos(np.pi * (k - 0.5) / 5)) / 2 for k in range(1, 6)]
    assert rates == pytest.approx([0.5, *falls])


def test_auto_takes_the_faster_type(toy, monkeypatch):
    found = {}
    for fast in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(files, "fast_dtype", lambda device: fast)
        made, batch = training(toy, dtype="auto")
        optimizers = made.optimizers(train.batch_rule(2048, 6e6, made.config))
        found[made.config.dtype], _ = train.train_step(made.net, optimizers, batch, made.config,
                                                       made.autocast)
        assert all(p.isfinite().all() for p in made.net.parameters())
    torch.testing.assert_close(found["float32"], found["bfloat16"], rtol=0.02, atol=0.02)
    assert not found["float32"].equal(found["bfloat16"])


def test_training_goes_on_where_nothing_compiles(toy, monkeypatch):
    def fails(*given):
        raise RuntimeError("no compiler")

    made, _ = training(toy, compile="on")
    monkeypatch.setattr(torch, "compile", lambda trunk: fails)
    made.compile()
    assert made.config.compile == "off" and made.step_seconds(3) > 0


def test_beside_a_gpu_batches_come_in_order(toy, monkeypatch):
    made, _ = training(toy)
    made.device = torch.device("meta")
    monkeypatch.setattr(diffusion.Batch, "to", lambda batch, device: batch)
    for step, batch in zip((3, 4, 5), made.upcoming(3)):
        assert torch.equal(batch.x, made.batch(step).x)


def test_rows_in_parts_give_the_step_of_the_whole(toy):
    results = []
    for rows in (0, 3, 100):
        made, batch = training(toy, micro_batch=rows, clip=0.5, complement=True)
        rule = train.batch_rule(2048, 6e6, made.config)
        terms, norm = train.train_step(made.net, made.optimizers(rule), batch, made.config,
                                       made.autocast)
        assert norm > 0.5 and all(p.grad is None for p in made.net.parameters())
        results.append([torch.tensor([*terms, norm]), *made.net.parameters()])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-5)
    before = [p.clone() for p in made.net.parameters()]
    assert made.step_seconds(3) > 0  # timing steps changes nothing
    assert all(map(torch.equal, made.net.parameters(), before))
    assert all(p.grad is None for p in made.net.parameters())


def test_minutes_are_kept_when_the_speed_changes(trained, tmp_path, no_page, monkeypatch):
    """By a clock of our own a step takes 0.2 seconds, and 1.5 from second 20 after the break on."""
    folder = begun(trained[0], tmp_path / "run", steps=0, minutes=1.0)
    clock = types.SimpleNamespace(now=0.0, time=time.time)
    clock.perf_counter = lambda: clock.now
    shares = []

    def step(*args):
        clock.now += 1.5 if clock.now % 1000 > 20 else 0.2  # the break takes 1000
        return torch.zeros(5), 0.0

    def factor(progress, warmup):
        shares.append(progress)
        return 1.0

    def agreed(value):
        return (value[0], len(shares) == 15) if isinstance(value, tuple) else value

    changes = dict(time=clock, train_step=step, lr_factor=factor, agreed=agreed)
    for name, value in changes.items():
        monkeypatch.setattr(train, name, value)
    assert "stopped after step 15" in told(train.main, "--resume", "--run", folder)[1]
    clock.now += 1000  # the break does not count
    away = clock.now - files.load(folder / "checkpoint.pt")["plan"]["seconds"]
    call(train.main, "--resume", "--run", folder)
    assert 57 <= clock.now - away <= 60
    assert 0 < shares[0] < 0.1 and 0.9 < shares[-1] < 1
    assert all(a < b for a, b in zip(shares, shares[1:]))


def test_every_setting_is_a_flag_that_config_json_keeps():
    for name, default in vars(train.Config()).items():
        if default and default is not True:
            flag = "--" + name.replace("_", "-")
            config, given = train.parse([flag, str(train.typed(default))])
            assert config == train.Config() and given == {name}
    config, given = train.parse(["--text", "a b", "--text", "c", "--complement", "--shape",
                                 '{"width": 64}', "--mix", "text=0.5"])
    want = dict(text=["a b", "c"], complement=True, shape={"width": 64}, mix={"text": 0.5})
    assert config == train.Config(**want) and given == set(want)
    assert train.Config(**json.loads(json.dumps(vars(config)))) == config


def test_a_recipe_sets_defaults_and_flags_win():
    config, _ = train.parse("--recipe paper --optimizer muon --no-complement".split())
    own = dict(optimizer="muon", complement=False)
    assert config == train.Config(**{"recipe": "paper", **train.RECIPES["paper"], **own})


def test_the_papers_loss_counts_every_token_alike_and_is_kept(toy, tmp_path, no_page):
    """Its terms, weighted, are the sum over all hidden tokens over all that could be hidden."""
    recipe = {"recipe": "paper", **train.RECIPES["paper"]}
    with pytest.raises(files.UsageError, match="give image-text/image or image-text/text a weight"):
        prepare.sources_of(train.Config(items=20, loss_weights={"text/text": 1.0}))
    made, batch = training(toy, **recipe)
    terms = torch.rand(len(train.TERMS))
    alike = (terms * batch.counts).sum() / batch.counts.sum()
    assert torch.allclose((made.config.loss_weight_of_members() * terms).sum(), alike)
    folder = begun(toy.folder, tmp_path / "run", **recipe)
    call(train.main, "--resume", "--run", folder)
    saved = files.read_json(folder / "config.json")["config"]
    assert saved["recipe"] == "paper" and saved["loss_weights"] == made.config.loss_weights
    assert saved["complement"] and len(files.load(folder / "checkpoint.pt")["optimizers"]) == 1


def test_resuming_refuses_other_settings(trained, tmp_path):
    folder = begun(trained[0], tmp_path / "run")
    for given, line in ((("--lr", 0.5), "--lr is 0.001"), (("--mix", "text=1"), "--mix is"),
                        (("--recipe", "paper"), "--recipe is tuned there")):
        assert line in refused(train.main, "--resume", "--run", folder, *given)
    config, given = train.parse(["--resume", "--micro-batch", "2", "--compile", "auto"])
    train.resume_run(folder, config, given)
    assert config.micro_batch == 2 and config.steps == 6 and config.compile == "off"
