"""Bad input is told in one line, and a folder's files survive whatever happens to a run."""
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import ROOT, TINY, call, refused, same, told

import files
import sample
import train
from sources import prepare

pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture
def copy(trained, tmp_path):
    """A trained run of one's own."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


FLAGS = {  # value: what is told of it
    "--device abacus": "--device", "--modes jont=1": "--modes: no 'jont'; choose from joint, ",
    "--modes joint=0": "--modes", "--mix text=lots": "--mix: invalid name=value,name=value",
    "--lr -1": "--lr: -1 is not from 1e-09 up", "--lr nan": "--lr", "--minutes 0": "--minutes or",
    "--muon-lr 0": "--muon-lr: 0 is not from", "--mix text=0": "--mix: give one of them a share",
    "--preset huge": "--preset: invalid choice", "--shape 5": "--shape: invalid json_object",
    '--shape {"widht":64}': "--shape", '--shape {"width":100}': "--shape: width 100, depth 3",
    '--shape {"head_dim":0}': "--shape: width 192, depth 3, head_dim 0",
    '--shape {"mlp_ratio":0.001}': "--shape: mlp_ratio", '--shape {"base_width":0}': "--shape",
    '--image-tokenizer {"patch":5}': "--image-tokenizer: squares of 5",
    '--speech-tokenizer {"hidden":"x"}': "--speech-tokenizer", "--device meta": "--device meta",
    '--speech-tokenizer {"stride":3}': "--speech-tokenizer: stride 3",
    '--image-tokenizer {"colours":1}': "--image-tokenizer", "--schedule poly:0.001": "--schedule",
    "--seed 10000000000": "--seed: 10000000000 is not from 0 to 1e+06",
    "--resume": "--resume: {run} holds no run; start one with python train.py --run {run}",
}


def test_wrong_flags(tmp_path):
    run = tmp_path / "run"
    for given, line in FLAGS.items():
        assert line.format(run=run) in refused(train.main, "--run", run, *given.split())
        assert not run.exists()


PROMPTS = [
    (["text", "--run", "nowhere"], 2, "python train.py --run nowhere"),
    (["text-to-smell"], 2, "invalid choice: 'text-to-smell'"),
    (["text-to-image", "a star", " "], 2, "needs a prompt"),
    (["image", "a red circle"], 2, "no prompt"),
    (["speech-to-image"], 2, "speech-to-image needs a prompt: speech"),
    (["text-to-image", "red " * 60], 1, "does not fit into"),
    (["text", "red " * 200], 2, "shorten it"),
    (["image-to-text", "nowhere.png"], 2, "nowhere.png: no such file"),
    (["speech-to-text", "README.md"], 1, "README.md"),
    (["infill", "the red circle"], 2, "no text with a hole ___ in it"),
    (["infill", "the ___ circle", "--caption", "a"], 2, "--caption"),
    (["infill", "the ___ circle", "--hole", "half"], 2, "--hole half"),
    (["infill", "a ___ b", "--hole", "1000"], 2, "do not fit"),
    (["infill", "{picture}", "--hole", "0.5:0.2"], 2, "--hole 0.5:0.2"),
    (["image", "--grid", "round"], 2, "--grid"),
    (["image", "--budget", "1", "--run", "nowhere"], 2, "--budget is of another sampler: image is "
     "sampled by confidence, whose options are --steps, --grid, --choice-temperature\n"),
    (["text", "--steps", "3"], 2, "text is sampled by entropy, whose options are --budget, --b"),
    (["image", "--sampler", "first-hitting", "--steps", "3"], 2, "options are none of its own"),
    (["speech-to-image", "a.wav", "--budget", "1"], 2, "another sampler: speech-to-image is"),
    (["text", "--guidance", "1"], 2, "--guidance changes nothing in texts"),
    (["infill", "{picture}", "--rounds", "5"], 2, "--rounds changes nothing"),
    (["infill", "a ___", "--eta", "0.5"], 2, "--eta is of another sampler: text is sampled by"),
    (["image", "--length", "5"], 2, "--length is of the task text, not of image"),
    (["image", "--out", "README.md/out", "--steps", "1"], 1, "README.md"),
]


def test_wrong_prompts(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    for given, status, line in PROMPTS:
        given = [g.format(picture=tmp_path / "a.png") for g in given]
        flags = ("--run", trained[0], "--out", tmp_path / "out", "--device", "cpu", *given)
        assert line in refused(sample.main, *flags, status=(status,))
        assert not (tmp_path / "out").exists()


def test_what_is_printed_cannot_move_the_cursor_and_debug_shows_where(tmp_path):
    given = ("--run", tmp_path / "a\x1b[2J b", "--resume")
    _, errors = told(train.main, *given)
    assert "\x1b" not in errors and rf"--run '{tmp_path}/a\x1b[2J b'" in errors
    assert files.printable("a\tb\n\x07\u202e") == "a\tb\n\\x07\\u202e"
    assert files.printable("oui\xa0! \u3000吾輩") == "oui\xa0! \u3000吾輩"
    with pytest.raises(files.UsageError):
        told(train.main, *given, "--debug")


def test_errors_of_the_system_are_told_in_a_line():
    for error, line in ((FileNotFoundError(errno.ENOENT, "No such file", "a b"), "'a b': No such"),
                        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "--micro-batch"),
                        (KeyError("a"), "KeyError: 'a' (--debug shows where)")):
        assert line in files.message(error)


def damage(path, how):
    """foreign: another run's tokenizer, or a layout of another version."""
    content = path.read_bytes()
    half = len(content) // 2
    if how == "lost":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[:half])
    elif how == "altered":
        path.write_bytes(content[:half] + bytes([content[half] ^ 1]) + content[half + 1:])
    else:
        content = content.replace(b'"pattern": "', b'"pattern": "_|')
        path.write_bytes(content.replace(b'"layout_version": ', b'"layout_version": 1'))


OF_RUNS = ["checkpoint.pt", "documents.pt", "image.pt", "config.json", "text.json"]
CASES = {"lost": OF_RUNS, "cut": OF_RUNS, "altered": OF_RUNS[:2], "foreign": OF_RUNS[3:]}


@pytest.mark.parametrize("how", CASES)
def test_damaged_and_foreign_files_are_named(how, copy, trained):
    for name in CASES[how]:
        damage(copy / name, how)
        words = [name, "no checkpoint", "holds no run"]
        if how == "foreign":
            words = [f"{name} is not the tokenizer that this run", "another version"]
        for main, flags in ((sample.main, ("text",)), (train.main, ("--resume",))):
            if (main, name, how) == (train.main, "checkpoint.pt", "lost"):
                continue  # then it begins anew
            errors = refused(main, "--run", copy, *flags, status=(1, 2))
            assert str(copy) in errors and any(word in errors for word in words), (name, errors)
        shutil.copy(trained[0] / name, copy)


def test_files_cannot_run_code(copy, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"kind": Evil()}, copy / "checkpoint.pt")
    assert "checkpoint.pt" in refused(sample.main, "text", "--run", copy, status=(1,))
    assert not (tmp_path / "owned").exists()


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def written(folder, texts):
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


NO_RUNS = {
    "a site": {"index.html": "my home page", "config.json": '{"my": 1}', "scores.json": "[1]"},
    "a list": {"config.json": '["layout_version"]', "index.html": "a"},
    "no JSON": {"config.json": "layout_version = 7", "scores.json": "{}"},
    "a home": {".bashrc": "alias ll=ls", "Documents/a.txt": "a"},
    "a lock of others": {"lock": "", "lock.txt": "a"},
    "what only looks like a run": {"config.json": '{"layout_version": 2}', "index.html": "mine"},
}


@pytest.mark.parametrize("case", NO_RUNS)
def test_a_folder_that_no_run_made_is_left_as_it_is(case, tmp_path, monkeypatch):
    written(tmp_path / "mine", NO_RUNS[case])
    before = contents(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    name = next(iter(NO_RUNS[case]))  # a file is no folder
    for run in (tmp_path / "mine", ".", "", name):
        for given in ((), ("--overwrite",), ("--resume",)):
            assert "--run" in refused(train.main, "--run", run, *given, *TINY)
            assert contents(tmp_path / "mine") == before


MINE = {"old/thesis.txt": "three years of work", "notes.txt": "a", "cache/b.txt": "b"}


def test_a_persons_files_stay_one_training_writes_and_a_killed_start_may_be_made_again(
        copy, trained, monkeypatch):
    written(copy, MINE)
    before = contents(copy)
    flags = ("--run", copy, *TINY, "--score-n", 0)
    assert "--resume goes on with it, --overwrite replaces it" in refused(train.main, *flags)
    with files.sole_writer(copy):
        for given in ("--resume", "--overwrite"):
            assert "another training" in refused(train.main, *flags, given)
    assert contents(copy) == before
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(prepare, "encode", lambda *a: sys.exit("killed"))
        call(train.main, *flags, "--overwrite")
    assert (copy / "speech.pt").exists() and not (copy / "checkpoint.pt").exists()
    call(train.main, "--resume", "--run", copy)
    assert same(copy, trained[0])
    assert all((copy / name).read_text() == text for name, text in MINE.items())


def test_bad_data_replace_no_run(copy):
    before = contents(copy)
    refused(train.main, "--run", copy, "--overwrite", "--images", "typo", status=(1,))
    refused(train.main, "--run", copy, "--overwrite", "--text", "")
    assert contents(copy) == before


def test_a_kill_at_any_file_of_a_start_leaves_a_run_or_nothing(copy, tmp_path, monkeypatch):
    """The marker is always there: what is left can be overwritten or resumed, and is no riddle."""
    unlink = Path.unlink
    left = []

    def watched(path, **options):
        unlink(path, **options)
        left.append({p.name for p in path.parent.iterdir()})

    monkeypatch.setattr(Path, "unlink", watched)
    train.start_run(copy, train.Config(run=str(copy)))
    assert len(left) >= len(train.RUN_FILES) - 1
    assert all("checkpoint.pt" not in names and "config.json" in names for names in left)
    assert {p.name for p in copy.iterdir()} == {"config.json", "lock"}
    train.check_folder(copy, train.Config(run=str(copy)))  # it may be made again
    written(tmp_path / "first", {"config.json.tmp": '{"lay', "lock": ""})
    train.check_folder(tmp_path / "first", train.Config(run="first"))


def test_a_reader_that_goes_away_ends_a_script_quietly():
    script = "import files; files.command_line(lambda: print('x' * 10 ** 6), 'x')"
    going = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
    going.stdout.close()
    assert going.stderr.read() == b"" and going.wait() == 1
