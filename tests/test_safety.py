"""Bad input is told in one line, and a folder's files survive whatever happens to a run."""
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import ROOT, SMALL, TINY, begun, call, same, told

import data
import files
import sample
import train
from sources import prepare
from tools import page, score

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """Films take most of a tiny run."""
    monkeypatch.setattr(train, "write_page", lambda folder, run=None: folder / "index.html")


@pytest.fixture
def copy(trained, tmp_path):
    """A trained run of one's own."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def one_line(errors):
    return errors.count("\n") == 1 and "Traceback" not in errors


# ---- Wrong flags and prompts.

FLAGS = [
    (["--device", "abacus"], "--device"),
    (["--modes", "jont=1"], "--modes: no 'jont'; choose from joint, "),
    (["--modes", "joint=0"], "--modes"),
    (["--mix", "text=lots"], "--mix: invalid name=value,name=value"),
    (["--mix", "text=-1"], "--mix"),
    (["--mix", "smell=1"], "--mix"),
    (["--lr", "-1"], "--lr: -1 is not from 0 up"),
    (["--lr", "nan"], "--lr"),
    (["--weighting", "text=bond"], "--weighting: 'bond': choose from bound, unweighted"),
    (["--time-power", "frist=1"], "--time-power"),
    (["--schedule", "linaer"], "--schedule: schedule 'linaer'"),
    (["--preset", "huge"], "--preset: 'huge': choose from toy, "),
    (["--steps", "many"], "--steps: invalid int value: 'many'"),
    (["--steps", "-3"], "--steps"),
    (["--minutes", "0"], "--minutes or --steps"),
    (["--batch-tokens", "0"], "--batch-tokens"),
    (["--text-length", "3"], "--text-length"),
    (["--shape", "5"], "--shape"),
    (["--shape", "width"], "--shape"),
    (["--shape", '{"widht": 64}'], "--shape"),
    (["--shape", '{"width": 66, "head_dim": 33}'], "--shape"),
    (["--shape", '{"width": 100}'], "train: --shape: width 100 must be a multiple of head_dim 32"),
    (["--speech-tokenizer", '{"stride": 3}'], "--speech-tokenizer: stride 3"),
    (["--image-tokenizer", '{"colours": 1}'], "--image-tokenizer"),
    (["--encoding", "gpt9"], "--encoding: 'gpt9': choose from gpt2, "),
    (["--shape", '{"depth": 0}'], "--shape: width 192 and depth 0"),
    (["--seed", "10000000000"], "--seed: 10000000000 is not from 0 to 1e+09"),
    (["--resume"], "--resume: {run} holds no run; start one with python train.py --run {run}"),
    (["--keep-tokenizers"], "unrecognized arguments: --keep-tokenizers"),
]


@pytest.mark.parametrize("given, line", FLAGS, ids=lambda part: " ".join(part)[:40])
def test_wrong_flags(given, line, tmp_path):
    run = tmp_path / "run"
    status, errors = told(train.main, "--run", run, *given)
    assert status == 2 and one_line(errors) and line.format(run=run) in errors
    assert not run.exists()


PROMPTS = [
    (["text", "--run", "nowhere"], 2, "python train.py --run nowhere"),
    ([], 2, "the following arguments are required: task"),
    (["text-to-smell"], 2, "invalid choice: 'text-to-smell'"),
    (["text-to-image"], 2, "text-to-image needs a prompt: a text"),
    (["text-to-image", " "], 2, "needs a prompt"),
    (["text-to-image", "red " * 60], 1, "does not fit into"),
    (["text", "red " * 200], 2, "shorten it"),
    (["image-to-text", "nowhere.png"], 2, "nowhere.png: no such file"),
    (["image-to-text", "README.md"], 1, "README.md"),
    (["speech-to-text", "README.md"], 1, "README.md"),
    (["infill", "the red circle"], 2, "no text with a hole ___ in it"),
    (["infill", "the ___ circle", "--caption", "a"], 2, "--caption"),
    (["infill", "the ___ circle", "--hole", "half"], 2, "--hole half"),
    (["infill", "{picture}", "--hole", "half"], 2, "--hole half"),
    (["infill", "{picture}", "--hole", "0.5:0.2"], 2, "--hole 0.5:0.2"),
    (["image", "a red circle"], 2, "takes no prompt"),
    (["text", "--sampler", "best"], 2, "--sampler"),
    (["image", "--steps", "0"], 2, "--steps"),
    (["image", "--grid", "round"], 2, "--grid"),
    (["image", "--temperature", "-1"], 2, "--temperature"),
    (["image", "--top-p", "1.5"], 2, "--top-p"),
    (["image", "--n", "0"], 2, "--n"),
    (["image", "--budget", "1"], 1, "budget"),
    (["image", "--length", "5"], 2, "--length is of the task text, not of image"),
    (["image", "--hole", "5"], 2, "--hole"),
    (["image", "--seed", "10000000000"], 2, "--seed"),
    (["image", "--out", "README.md/out", "--steps", "1"], 1, "README.md"),
]


@pytest.mark.parametrize("given, status, line", PROMPTS, ids=lambda part: str(part)[:40])
def test_wrong_prompts(given, status, line, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    given = [g.format(picture=tmp_path / "a.png") for g in given]
    flags = ["--run", trained[0], "--out", tmp_path / "out", "--device", "cpu", *given]
    got, errors = told(sample.main, *flags)
    assert got == status and one_line(errors) and line in errors
    assert not (tmp_path / "out").exists()


def test_debug_shows_where(tmp_path):
    with pytest.raises(files.UsageError):
        told(train.main, "--run", tmp_path, "--resume", "--debug")


def test_what_is_printed_cannot_move_the_cursor(tmp_path):
    _, errors = told(train.main, "--run", tmp_path / "a\x1b[2J b", "--resume")
    assert "\x1b" not in errors and rf"--run '{tmp_path}/a\x1b[2J b'" in errors
    assert files.printable("a\tb\n\x07\u202e") == "a\tb\n\\x07\\u202e"


def test_errors_of_the_system_are_told_in_a_line():
    full = OSError(errno.ENOSPC, "No space left on device", "a b")
    assert files.message(full).startswith("no space left (a b)")
    lost = FileNotFoundError(errno.ENOENT, "No such file or directory", "a b")
    assert files.message(lost) == "'a b': No such file or directory"
    assert "--micro-batch" in files.message(torch.OutOfMemoryError("CUDA out of memory. Tried"))
    assert files.message(KeyError("a")) == "KeyError: 'a' (--debug shows where)"


# ---- Damaged, lost and foreign files.


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "altered":
        content[len(content) // 2] ^= 1
    elif how == "cut":
        content = content[:len(content) // 2]
    path.write_bytes(content)
    if how == "lost":
        path.unlink()


DAMAGES = [(name, how) for name in ("checkpoint.pt", "image.pt", "speech.pt", "documents.npz")
           for how in ("lost", "cut", "altered")]
DAMAGES += [(name, how) for name in ("text.json", "config.json") for how in ("lost", "cut")]


@pytest.mark.parametrize("name, how", DAMAGES)
def test_damaged_files_are_named(name, how, copy, tmp_path):
    damage(copy / name, how)
    for main, flags in ((sample.main, ("text", "--out", tmp_path / "out")),
                        (score.main, ()), (train.main, ("--resume",))):
        if main is train.main and (name, how) == ("checkpoint.pt", "lost"):
            continue  # then it begins anew
        status, errors = told(main, "--run", copy, *flags)
        assert status > 0 and one_line(errors) and str(copy) in errors
        assert name in errors or "no checkpoint" in errors or "holds no run" in errors


@pytest.mark.parametrize("modality", data.MODALITIES)
def test_tokenizers_of_another_run_are_refused(modality, copy, tmp_path):
    path = copy / data.MODALITIES[modality].file
    if modality == "text":
        text = path.read_text()
        path.write_text(text.replace('"pattern": "', '"pattern": "_|'))
    else:
        saved = files.load(path)
        next(iter(saved["weights"].values())).mul_(2)
        files.save(path, saved)
    for main, flags in ((sample.main, ("text", "--out", tmp_path / "out")),
                        (score.main, ()), (train.main, ("--resume",))):
        status, errors = told(main, "--run", copy, *flags)
        assert status == 1 and one_line(errors)
        assert f"{path} is not the tokenizer that this run was trained with" in errors


def test_runs_of_another_layout_are_refused(copy):
    saved = files.read_json(copy / "config.json")
    files.write_json(copy / "config.json", {**saved, "layout_version": 1})
    for main, flags in ((sample.main, ("text",)), (score.main, ()), (train.main, ("--resume",))):
        status, errors = told(main, "--run", copy, *flags)
        assert status == 1 and one_line(errors) and "another version" in errors


def test_files_cannot_run_code(copy, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    for name in ("image.pt", "checkpoint.pt"):
        torch.save({"kind": Evil()}, copy / name)
        status, errors = told(sample.main, "text", "--run", copy, "--out", tmp_path / "out")
        assert status == 1 and one_line(errors) and "image.pt" in errors
        assert not (tmp_path / "owned").exists()


def test_a_full_disk_leaves_the_last_checkpoint(trained, tmp_path):
    """Files above a limit cannot be written, as on a full disk."""
    folder = begun(trained[0], tmp_path / "run", save_every=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    real = train.lr_factor
    with pytest.MonkeyPatch.context() as patch:
        def factor(progress, warmup):
            if progress > 0.4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
            return real(progress, warmup)

        patch.setattr(train, "lr_factor", factor)
        try:
            status, errors = told(train.main, "--resume", "--run", folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line = errors.splitlines()[-1]
    assert status == 1 and f"cannot write {folder / 'checkpoint.pt'}" in line
    assert files.load(folder / "checkpoint.pt")["step"] == 2
    assert not list(folder.glob("*.tmp"))
    call(train.main, "--resume", "--run", folder)
    assert same(folder, trained[0])


# ---- Folders: a run removes and replaces what a run wrote, nothing else.


def contents(folder):
    """{path: bytes} of all files below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def written(folder, texts):
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


NO_RUNS = {
    "a site": {"index.html": "my home page", "config.json": '{"my": 1}', "scores.json": "[1]"},
    "a list": {"config.json": '["layout_version"]', "index.html": "a"},
    "no JSON": {"config.json": "layout_version = 7", "scores.json": "{}"},
    "a folder": {"old/thesis.txt": "three years of work"},
    "a checkpoint": {"checkpoint.pt": "weights"},
    "a home": {".bashrc": "alias ll=ls", "Documents/a.txt": "a"},
    "a repository": {".git/config": "[core]", "train.py": "print()", "tests/a.py": ""},
    "tokenizers": {"text.json": "{}", "notes.txt": "a"},
    "a lock of others": {"lock": "", "lock.txt": "a"},
}


@pytest.mark.parametrize("case", NO_RUNS)
@pytest.mark.parametrize("given", [(), ("--overwrite",), ("--resume",)], ids=str)
def test_a_folder_that_no_run_made_is_left_as_it_is(case, given, tmp_path, monkeypatch):
    written(tmp_path / "mine", NO_RUNS[case])
    before = contents(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    for name in (tmp_path / "mine", ".", ""):
        status, errors = told(train.main, "--run", name, *given, *TINY)
        assert status == 2 and one_line(errors) and "--run" in errors
    assert contents(tmp_path / "mine") == before


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "mine").write_text("a")
    status, errors = told(train.main, "--run", tmp_path / "mine")
    assert status == 2 and one_line(errors) and "is no folder" in errors
    assert (tmp_path / "mine").read_text() == "a"


MINE = {"old/thesis.txt": "three years of work", "notes.txt": "a", "cache/b.txt": "b"}


def test_a_persons_files_in_a_run_folder_stay(copy, trained):
    written(copy, MINE)
    before = contents(copy)
    status, errors = told(train.main, "--run", copy, *TINY)
    assert status == 2 and one_line(errors) and contents(copy) == before
    assert "--resume goes on with it, --overwrite replaces it" in errors
    call(train.main, "--run", copy, *TINY, "--overwrite", "--score-n", 0)
    assert same(copy, trained[0])
    assert all((copy / name).read_text() == text for name, text in MINE.items())


def test_a_start_that_failed_may_be_made_again(trained, tmp_path, monkeypatch):
    """Wherever it was: while it wrote the first file, or trained tokenizers."""
    folder = tmp_path / "run"
    flags = ("--run", folder, *TINY, "--score-n", 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *a: sys.exit("killed"))
        with pytest.raises(SystemExit):
            call(train.main, *flags)
    written(folder, {"config.json.tmp": '{"lay'})
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "encode", lambda *a: sys.exit("killed"))
        with pytest.raises(SystemExit):
            call(train.main, *flags)
    assert (folder / "speech.pt").exists()
    call(train.main, *flags)
    assert same(folder, trained[0])


def test_a_kill_while_an_old_run_is_removed_leaves_a_run(copy, monkeypatch):
    """The marker goes last: what is left can be overwritten or resumed, and is no riddle."""
    unlink = Path.unlink
    left = []

    def watched(path, **options):
        unlink(path, **options)
        left.append({p.name for p in path.parent.iterdir()})

    monkeypatch.setattr(Path, "unlink", watched)
    config, _ = train.parse(["--run", str(copy)])
    train.start_run(copy, config)
    removals = [names for names in left if "config.json" in names]
    assert len(removals) >= len(train.RUN_FILES) - 1
    assert all("checkpoint.pt" not in names for names in left)
    assert {p.name for p in copy.iterdir()} == {"config.json", "lock"}


def test_two_trainings_in_one_folder_are_refused(copy):
    with files.sole_writer(copy):
        before = contents(copy)
        for given in (("--resume",), ("--overwrite",)):
            status, errors = told(train.main, "--run", copy, *TINY, *given)
            assert status == 2 and one_line(errors) and "another training" in errors
        assert contents(copy) == before


@pytest.mark.parametrize("name", [b"a 'b\" c", b"caf\xe9 d"], ids=["blanks", "latin-1"])
def test_folders_of_any_name_are_trained_in_and_quoted(name, trained, tmp_path, monkeypatch):
    folder = tmp_path / os.fsdecode(name)
    begun(trained[0], folder)
    with monkeypatch.context() as patch:
        patch.setattr(train, "any_process", lambda flag, device: True)  # as after Ctrl-C
        status, errors = told(train.main, "--resume", "--run", folder)
    line = errors.splitlines()[-1]
    shown = files.printable(files.quoted(folder))
    assert status == 1 and line.endswith(f"train.py --resume --run {shown} goes on")
    call(train.main, "--resume", "--run", folder)
    assert same(folder, trained[0])
    printed = call(sample.main, "text", "--run", folder, "--out", folder / "out", "--n", 1)
    assert files.quoted(folder / "out" / "text-0-0.txt") in printed
    assert (folder / "out" / "text-0-0.txt").exists()


def test_a_reader_that_goes_away_ends_a_script_quietly():
    script = "import files; files.command_line(lambda: print('x' * 10 ** 6), 'x')"
    going = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
    going.stdout.close()
    assert going.stderr.read() == b"" and going.wait() == 1
