"""Bad input is told in one line, runs survive what can happen to them, and several processes train as one."""
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import data
import flags
import model as models
import prepare
import readers
import runs
import safe
import sample
import train

ROOT = Path(__file__).resolve().parent.parent
SMALLER = ("--image-steps", "4", "--speech-steps", "2", "--score-n", "0", "--steps", "6", "--save-every", "2", "--log-every", "1")
SMALL, TINY = (*runs.SMALL, *SMALLER), (*runs.TINY, *SMALLER)


def command(*args, **options):
    return subprocess.run([sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=280, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("safety") / "run"
    done = command("train.py", "--run", folder, *TINY)
    assert done.returncode == 0, done.stderr
    return folder


def told(main, argv, capsys):
    """Run a script's main in this process as the command line would -> (exit status, its one line on stderr)."""
    old, sys.argv = sys.argv, [argv[0], *map(str, argv[1:])]
    try:
        with pytest.raises(SystemExit) as stopped:
            safe.cli(main, argv[0])
    finally:
        sys.argv = old
    return stopped.value.code, capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Bad data: name of the case -> (what to write into the folder, which reader, part of the one line).

def picture(folder, name="a.png", text="a thing", size=(8, 8), mode="RGB"):
    Image.new(mode, size).save(folder / name)
    if text is not None:
        (folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")


def clip(folder, name="a.wav", text="a word", seconds=0.5, value=0.1):
    wave = np.full(int(16000 * seconds), value, np.float32)
    soundfile.write(folder / name, wave, 16000, subtype="FLOAT")
    (folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")


def spike(folder, value):
    clip(folder)
    wave, rate = soundfile.read(folder / "a.wav", dtype="float32")
    wave[len(wave) // 2] = value
    soundfile.write(folder / "a.wav", wave, rate, subtype="FLOAT")


def listed(folder, text, name="metadata.jsonl"):
    (folder / name).write_text(text, encoding="utf-8")


def wavs(folder, lines):
    (folder / "wavs").mkdir()
    clip(folder / "wavs")
    listed(folder, lines, "metadata.csv")


BAD_DATA = {
    "an empty folder": (lambda f: None, "images", "holds no item"),
    "a folder of other files": (lambda f: (f / "a.pdf").write_bytes(b"x"), "images", "holds no item"),
    "a file instead of a folder": (lambda f: (f.rmdir(), f.write_text("x")), "images", "is not a folder"),
    "a folder that is not there": (lambda f: f.rmdir(), "speech", "is not a folder"),
    "a picture without a caption": (lambda f: picture(f, text=None), "images", "a.txt is missing"),
    "an empty caption": (lambda f: picture(f, text=" "), "images", "its text is empty"),
    "a caption longer than the slot": (lambda f: picture(f, text="a" * 301), "images", "--longest-caption"),
    "a caption that is not UTF-8": (lambda f: (picture(f), (f / "a.txt").write_bytes(b"\xff\xfe\xff")), "images", "a.txt is not UTF-8"),
    "a text file called a picture": (lambda f: (picture(f), (f / "a.png").write_text("x")), "images", "cannot be read as a picture"),
    "a picture that is cut off": (lambda f: (picture(f, size=(64, 64)), (f / "a.png").write_bytes((f / "a.png").read_bytes()[:60])),
                                  "images", "cannot be read as a picture"),
    "an empty picture file": (lambda f: (picture(f), (f / "a.png").write_bytes(b"")), "images", "cannot be read as a picture"),
    "two pictures of one name": (lambda f: (picture(f), picture(f, "a.gif")), "images", "a second file of that name"),
    "metadata that is not JSON": (lambda f: (picture(f), listed(f, "a.png, a thing")), "images", "metadata.jsonl:1"),
    "metadata without a text": (lambda f: (picture(f), listed(f, '{"file_name": "a.png"}')), "images", "metadata.jsonl:1"),
    "metadata whose text is null": (lambda f: (picture(f), listed(f, '{"file_name": "a.png", "text": null}')), "images", "no string"),
    "a text that is no Unicode": (lambda f: (picture(f), listed(f, '{"file_name": "a.png", "text": "\\ud800"}')), "images", "surrogates"),
    "a file name that no system can hold": (lambda f: (picture(f), listed(f, '{"file_name": "a\\u0000b", "text": "b"}')), "images",
                                            "null"),
    "metadata that is a list": (lambda f: (picture(f), listed(f, '["a.png"]')), "images", "metadata.jsonl:1"),
    "metadata naming a missing file": (lambda f: (picture(f), listed(f, '{"file_name": "b.png", "text": "b"}')), "images",
                                       "b.png: no such file"),
    "metadata naming a file twice": (lambda f: (picture(f), listed(f, '{"file_name": "a.png", "text": "b"}\n' * 2)), "images",
                                     "named twice"),
    "metadata naming a file outside": (lambda f: (picture(f.parent, "x.png"), listed(f, '{"file_name": "../x.png", "text": "b"}')),
                                       "images", "lies outside"),
    "a text file called a clip": (lambda f: (clip(f), (f / "a.wav").write_text("x")), "speech", "cannot be read as a recording"),
    "a clip shorter than a frame": (lambda f: clip(f, seconds=0.01), "speech", "lasts 0.01 s"),
    "a clip longer than the slot": (lambda f: clip(f, seconds=21), "speech", "--longest-clip"),
    "a silent clip": (lambda f: clip(f, value=0.0), "speech", "is silent"),
    "a clip of values that are no numbers": (lambda f: clip(f, value=np.nan), "speech", "no numbers"),
    "a clip with one sample beyond any scale": (lambda f: spike(f, 1e29), "speech", "a sample of 1e+29"),
    "a clip of 16-bit values as floats": (lambda f: clip(f, value=12000.0), "speech", "full scale is 1"),
    "metadata.csv without a bar": (lambda f: wavs(f, "a word"), "speech", "not id|text"),
    "metadata.csv naming a missing clip": (lambda f: wavs(f, "b|word"), "speech", "no such file in wavs"),
    "metadata.csv naming a clip twice": (lambda f: wavs(f, "a|word\na|other"), "speech", "named twice"),
    "metadata.csv with an empty text": (lambda f: wavs(f, "a|"), "speech", "its text is empty"),
    "metadata.csv without wavs": (lambda f: listed(f, "a|word", "metadata.csv"), "speech", "wavs"),
    "text that is not UTF-8": (lambda f: (f / "a.txt").write_bytes(b"\xff\xfe\xff"), "text", "a.txt"),
    "texts that are all empty": (lambda f: (f / "a.txt").write_text(" \n"), "text", "holds no text"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case, tmp_path, capsys):
    write, flag, line = BAD_DATA[case]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    status, error = told(train.main, ["train.py", f"--{flag}", tmp_path / "data", "--image-side", 8, "--run", tmp_path / "run"], capsys)
    assert status == 1 and error.count("\n") == 1 and line in error and f"--{flag}" in error, error
    assert not (tmp_path / "run").exists()


def test_bad_items_are_counted_named_and_left_out(tmp_path, capsys):
    for i in range(14):
        picture(tmp_path, f"{i:02}.png", f"thing {i}")
        if i >= 2:
            (tmp_path / f"{i:02}.png").write_bytes(b"no picture")
    with pytest.raises(data.DataError, match=r"12 of 14 items .*11.png.*and 2 more\).*--skip-bad") as stopped:
        readers.read_images(tmp_path, 8, 3)
    assert "12.png" not in str(stopped.value) and "01.png" not in str(stopped.value)
    source = readers.read_images(tmp_path, 8, 3, skip_bad=True)
    assert source.texts == ["thing 0", "thing 1"] and "12 of 14" in capsys.readouterr().out


@pytest.mark.parametrize("mode, value, want", [("RGBA", (255, 0, 0, 0), 255), ("L", 100, 100), ("P", 0, 0), ("1", 1, 255), ("LA", (50, 255), 50),
                                               ("CMYK", (0, 0, 0, 255), 0), ("I;16", 257 * 77, 77)])
def test_pictures_of_every_mode_are_read(mode, value, want, tmp_path):
    Image.new(mode, (6, 6), value).save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    read = readers.open_picture(next(tmp_path.glob("a.*")), 4, 3)
    assert read.shape == (4, 4, 3) and abs(int(read[0, 0, 0]) - want) <= 2


def test_the_first_frame_of_a_gif_and_a_webp_are_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.webp", lossless=True)
    for name in ("a.gif", "a.webp"):
        assert readers.open_picture(tmp_path / name, 8, 3)[0, 0].tolist() == [255, 0, 0]


# ---------------------------------------------------------------------------------------------------------------------
# Wrong flags and prompts.

FLAGS = {
    "a device that does not exist": (["--device", "abacus"], "--device"),
    "a mode that does not exist": (["--modes", "jont=1"], "--modes"),
    "a share that is no number": (["--mix", "text=lots"], "not of the form"),
    "no share for a kind": (["--mix", "text=1", "--kinds", "text,speech-text"], "--mix gives speech-text"),
    "the toy world's flags with one's own data": (["--text", "shakespeare", "--kinds", "text"], "--kinds: of the toy world"),
    "a kind that does not exist": (["--kinds", "smell"], "--kinds"),
    "a learning rate of zero": (["--muon-lr", "0"], "--muon-lr"),
    "a negative learning rate": (["--lr", "-1"], "--lr"),
    "a weighting that does not exist": (["--weighting", "text=bond"], "--weighting"),
    "a time power of an unknown mode": (["--time-power", "frist=1"], "--time-power"),
    "a schedule that does not exist": (["--schedule", "linaer"], "linaer"),
    "a preset that does not exist": (["--preset", "huge"], "--preset"),
    "steps that are no number": (["--steps", "many"], "--steps"),
    "negative steps": (["--steps", "-3"], "--steps"),
    "a batch of no tokens": (["--batch-tokens", "0"], "--batch-tokens"),
    "modes that are all zero": (["--modes", "joint=0"], "--modes"),
    "a negative share": (["--mix", "text=-1"], "--mix text=-1"),
    "a share for the bench": (["--bench", "--mix", "text=1"], "--mix gives image-text"),
    "a row without room for a text": (["--text-length", "3"], "--text-length 3"),
    "a shape that is no mapping": (["--shape", "5"], "--shape"),
    "a head that rotary positions cannot turn": (["--shape", '{"width": 66, "head_dim": 33}'], "odd"),
    "a shape that is not JSON": (["--shape", "width"], "--shape"),
    "a shape with an unknown field": (["--shape", '{"widht": 64}'], "--shape"),
    "a width that heads do not divide": (["--shape", '{"width": 100}'], "multiple"),
    "a vocabulary below the bytes": (["--vocab-size", "100"], "--vocab-size"),
    "resuming where no run is": (["--resume"], "--resume"),
    "steps of codes that a crop does not hold": (["--speech-stride", "3"], "--speech-stride"),
    "a palette of one colour": (["--image-colours", "1"], "--image-colours"),
    "a level that is none": (["--image-levels", "1,5"], "--image-levels"),
    "squares that do not fill a picture": (["--patch", "5"], "--patch"),
    "negative steps of a tokenizer": (["--image-steps", "-5"], "--image-steps"),
    "an encoding that does not exist": (["--encoding", "gpt9"], "--encoding"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_wrong_flags(case, tmp_path, capsys):
    given, line = FLAGS[case]
    status, error = told(train.main, ["train.py", "--run", tmp_path / "run", *given], capsys)
    assert status == 2 and line in error and error.count("\n") == 1, (status, error)
    assert not (tmp_path / "run").exists()


PROMPTS = {
    "a run that is not there": (["text", "--run", "nowhere"], 2, "train.py --run nowhere"),
    "nothing at all": ([], 2, "which task? text, "),
    "nothing at all, and no run": (["--run", "nowhere"], 2, "python train.py makes one"),
    "an unknown task": (["text-to-smell"], 2, "invalid choice"),
    "no prompt": (["text-to-image"], 2, "needs a prompt"),
    "an empty prompt": (["text-to-image", " "], 2, "needs a prompt"),
    "a prompt longer than its slot": (["text-to-image", "red " * 60], 1, "longer than its slot"),
    "a prompt longer than a text": (["text", "red " * 200], 1, "shorten it"),
    "a picture that is not there": (["image-to-text", "nowhere.png"], 1, "no such file"),
    "a picture that is a text": (["image-to-text", "README.md"], 1, "cannot be read as a picture"),
    "a clip that is a text": (["speech-to-text", "README.md"], 1, "cannot be read as a recording"),
    "a hole that is not marked": (["infill", "the red circle"], 2, "___"),
    "a hole that is no range": (["infill", "a.png", "--hole", "half"], 2, "--hole"),
    "a sampler that does not exist": (["text", "--sampler", "best"], 2, "--sampler"),
    "no steps": (["image", "--steps", "0"], 2, "--steps"),
    "a grid that does not exist": (["image", "--grid", "round"], 2, "--grid"),
    "a caption of a text": (["infill", "the ___ circle", "--caption", "a"], 2, "--caption"),
    "a sampler for the page": (["page", "--steps", "3"], 2, "--steps"),
    "a negative temperature": (["image", "--temperature", "-1"], 2, "--temperature"),
    "a top-p over one": (["image", "--top-p", "1.5"], 2, "--top-p"),
    "no samples": (["image", "--n", "0"], 2, "--n"),
    "a negative seed": (["image", "--seed", "-1"], 2, "--seed"),
    "a length for a picture": (["image", "--length", "5"], 2, "--length"),
    "a prompt where none is taken": (["image", "a red circle"], 2, "takes no prompt"),
    "guidance for a hole": (["infill", "the ___ circle", "--guidance", "1"], 2, "--guidance"),
    "a task that is not judged": (["score", "infill"], 2, "score infill"),
    "a device that does not exist": (["image", "--device", "abacus"], 2, "--device"),
    "a folder that cannot be made": (["image", "--out", "README.md/out", "--steps", "1"], 1, "README.md"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_wrong_prompts(case, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    given, status, line = PROMPTS[case]
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    given = [tmp_path / "a.png" if g == "a.png" else g for g in given]
    run = [] if "--run" in given else ["--run", trained]
    got, error = told(sample.main, ["sample.py", *given, *run, *([] if "--out" in given else ["--out", tmp_path / "out"])], capsys)
    assert got == status and line in error and error.count("\n") == 1, (got, error)
    assert not (tmp_path / "out").exists()


def test_a_prompt_in_letters_never_seen_is_read(trained, tmp_path):
    done = command("sample.py", "text-to-image", "ß红🟥", "--run", trained, "--out", tmp_path, "--steps", "2")
    assert done.returncode == 0 and (tmp_path / "text-to-image-0-0.png").exists()


def test_tasks_of_another_run_are_named(tmp_path, capsys):
    assert command("train.py", "--run", tmp_path / "r", *TINY, "--kinds", "text").returncode == 0
    status, error = told(sample.main, ["sample.py", "text-to-image", "a", "--run", tmp_path / "r"], capsys)
    assert status == 1 and "not trained on image-text" in error


# ---------------------------------------------------------------------------------------------------------------------
# Damaged, hostile and lost files.

@pytest.mark.parametrize("name, change", [(n, c) for n in ("checkpoint.pt", "image.pt", "speech.pt") for c in ("cut", "altered", "empty")]
                         + [("text.json", "cut"), ("config.json", "cut"), ("validation.npz", "cut")])
def test_damaged_files_are_named(name, change, trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / name
    content = bytearray(path.read_bytes())
    if change == "altered":
        content[len(content) // 2] ^= 1
    path.write_bytes(content if change == "altered" else content[:len(content) // 2] if change == "cut" else b"")
    status, error = told(sample.main, ["sample.py", "text", "--run", tmp_path / "run", "--out", tmp_path / "out"], capsys)
    assert status == 1 and name in error and "damaged" in error and error.count("\n") == 1, error


def test_files_cannot_run_code(trained, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)
    shutil.copytree(trained, tmp_path / "run")
    for name in ("checkpoint.pt", "image.pt"):
        torch.save({"kind": Evil()}, tmp_path / "run" / name)
        status, error = told(sample.main, ["sample.py", "text", "--run", tmp_path / "run", "--out", tmp_path / "out"], capsys)
        assert status == 1 and "damaged, or not a file of ours" in error and not (tmp_path / "owned").exists()


def test_hostile_names_and_captions_stay_text(trained, tmp_path):
    """A caption with markup is escaped in the page; file names of outputs come from the task alone."""
    import page
    folder = tmp_path / "<script>alert(1)</script>"
    shutil.copytree(trained, folder)
    run = sample.load_run(folder)
    evil = "<script>evil()</script> and a tail"
    rows = safe.read_arrays(folder / "validation.npz")
    rows["text"] = run.stream.pack("text", run.tokenizers["text"].encode([evil] * 3))
    safe.write_arrays(folder / "validation.npz", **rows)
    html = page.write(folder, run).read_text(encoding="utf-8")
    assert "&lt;" in html and html.count("<script>") == 1 and "script&gt;</h1>" in html
    made = types.SimpleNamespace(outputs={"text": ["../../x"]})
    assert [p.parent for p in sample.write_outputs(made, tmp_path / "out", "text-0")] == [tmp_path / "out"]


def test_a_full_disk_leaves_the_last_checkpoint(trained, tmp_path):
    """Files above a limit cannot be written, as on a full disk: the run stops with one line, what was there stays whole."""
    shutil.copytree(trained, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    limit = ("import resource, sys, train, safe, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
             "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); safe.cli(train.main, 'train.py')")
    pytest.importorskip("resource")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["args"]["steps"] = config["steps"] = 12
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    done = command("-c", limit, "--resume", "--run", tmp_path / "run")
    assert done.returncode == 1 and "cannot write" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before and not list((tmp_path / "run").rglob("*.tmp"))


def same(a, b):
    a, b = (safe.load(f / "checkpoint.pt") for f in (a, b))
    return a["step"] == b["step"] and all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"]) and all(
        torch.equal(x, y) for x, y in zip(a["ema"], b["ema"]))


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_saves_and_says_how_to_go_on(trained, tmp_path):
    """One interrupt after the first logged step: the step is finished and saved, and resuming ends in the same weights."""
    log, folder = tmp_path / "run" / "log.jsonl", tmp_path / "run"
    slow = ("import sys, time, train, safe; real = train.noised\n"
            "def late(*a): time.sleep(0.2); return real(*a)\n"
            "train.noised = late; safe.cli(train.main, 'train.py')")
    going = subprocess.Popen([sys.executable, "-c", slow, "--run", str(folder), *TINY, "--save-every", "100"], cwd=ROOT,
                             stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        time.sleep(0.1)
        if log.exists() and log.read_text():
            break
    going.send_signal(signal.SIGINT)
    _, error = going.communicate(timeout=60)
    assert going.returncode == 1 and f"--resume --run {folder}" in error.splitlines()[-1] and "Traceback" not in error, error
    assert 1 <= safe.load(folder / "checkpoint.pt")["step"] < 6
    assert command("train.py", "--resume", "--run", folder).returncode == 0 and same(folder, trained)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(6))                                     # none lost, none twice


def test_resuming_refuses_other_settings(trained, tmp_path, capsys, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    for given, line in ((["--lr", "0.5"], "--lr is 0.001"), (["--steps", "60"], "--steps is 6"), (["--kinds", "text"], "--kinds")):
        status, error = told(train.main, ["train.py", "--resume", "--run", tmp_path / "run", *given], capsys)
        assert status == 2 and line in error
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume", "--micro-batch", "2"])       # what only shares the work out may differ
    args = flags.parser().parse_args()
    flags.settings_of(tmp_path / "run", args)
    assert args.micro_batch == 2 and args.steps == 6
    bare = flags.parser()
    assert set(flags.FREE) <= set(vars(bare.parse_args([])))


def test_resuming_refuses_other_data(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("to be or not to be. " * 60)
    assert command("train.py", "--run", tmp_path / "r", *SMALL, "--text", tmp_path / "a.txt").returncode == 0
    (tmp_path / "a.txt").write_text("to be or not to be? " * 60)
    status, error = told(train.main, ["train.py", "--resume", "--run", tmp_path / "r"], capsys)
    assert status == 1 and "text changed" in error


# ---------------------------------------------------------------------------------------------------------------------
# A folder's other files: a run removes and replaces what a run wrote, nothing else.

def contents(folder):
    """{path: bytes} of all files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def written(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


NO_RUNS = {
    "a site": {"index.html": "my home page", "config.json": '{"my": 1}', "scores.json": "[1]"},
    "a config that is a list": {"config.json": '["layout_version"]', "index.html": "a"},
    "a config that is not JSON": {"config.json": "layout_version = 6", "scores.json": "{}"},
    "an old folder alone": {"old/thesis.txt": "three years of work"},
    "a checkpoint of somebody else": {"checkpoint.pt": "weights"},
    "a hidden file": {".bashrc": "alias ll=ls"},
    "tokenizers beside other files": {"text.json": "{}", "notes.txt": "a"},
}


@pytest.mark.parametrize("case", NO_RUNS)
@pytest.mark.parametrize("given", [[], ["--overwrite"], ["--keep-tokenizers"], ["--resume"]], ids=lambda g: "".join(g) or "plain")
def test_a_folder_that_no_run_made_is_left_as_it_is(case, given, tmp_path, capsys):
    written(tmp_path / "mine", NO_RUNS[case])
    before = contents(tmp_path / "mine")
    status, error = told(train.main, ["train.py", *given, "--run", tmp_path / "mine", *TINY[:6]], capsys)
    damaged = "--resume" in given and "not JSON" in case              # might be a run whose config.json is damaged: says so
    assert status == (1 if damaged else 2) and error.count("\n") == 1, error
    assert ("damaged" if damaged else "holds no run" if "--resume" in given else "no run wrote") in error
    assert contents(tmp_path / "mine") == before


@pytest.mark.parametrize("name", ["", "."])
def test_the_folder_one_stands_in_is_left_as_it_is(name, tmp_path, capsys, monkeypatch):
    written(tmp_path, NO_RUNS["a site"])
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    status, error = told(train.main, ["train.py", "--overwrite", "--run", name, *TINY[:6]], capsys)
    assert status == 2 and "--run" in error and error.count("\n") == 1 and contents(tmp_path) == before


def test_a_file_is_no_run_folder(tmp_path, capsys):
    (tmp_path / "mine").write_text("a")
    status, error = told(train.main, ["train.py", "--run", tmp_path / "mine"], capsys)
    assert status == 2 and "is a file" in error and (tmp_path / "mine").read_text() == "a"


def test_a_persons_files_in_a_run_folder_stay(trained, tmp_path):
    """With --resume, which saves once more, and with --overwrite, which replaces the run's own files alone."""
    folder, mine = tmp_path / "run", {"old/thesis.txt": "three years of work", "notes.txt": "a", "cache/b.txt": "b"}
    shutil.copytree(trained, folder)
    written(folder, mine)
    config = json.loads((folder / "config.json").read_text())
    config["args"]["steps"] = config["steps"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    assert command("train.py", "--resume", "--run", folder).returncode == 0 and safe.load(folder / "checkpoint.pt")["step"] == 8
    assert mine.items() <= {name: (folder / name).read_text() for name in mine}.items()
    assert command("train.py", "--overwrite", "--run", folder, *TINY).returncode == 0 and same(folder, trained)
    assert mine.items() <= {name: (folder / name).read_text() for name in mine}.items()


def test_the_rest_of_a_failed_start_may_be_replaced(tmp_path, capsys, monkeypatch):
    """It has our config.json and no results. A page beside it is no rest of a start: it needs --overwrite."""
    def broken(modality, sources, args, folder, device):
        (folder / "text.json").write_text("half a tokenizer")
        raise data.DataError("no tokenizer")
    monkeypatch.setattr(prepare, "make_tokenizer", broken)
    for _ in range(2):
        status, error = told(train.main, ["train.py", "--run", tmp_path / "run", *TINY], capsys)
        assert status == 1 and "no tokenizer" in error
    written(tmp_path / "run", {"index.html": "my home page"})
    status, error = told(train.main, ["train.py", "--run", tmp_path / "run", *TINY], capsys)
    assert status == 2 and "--overwrite" in error and (tmp_path / "run" / "index.html").read_text() == "my home page"


def test_a_kill_while_making_way_leaves_the_rest_of_a_start(trained, tmp_path, monkeypatch):
    """Never a checkpoint without its tokenizers."""
    shutil.copytree(trained, tmp_path / "run")
    unlink, left = Path.unlink, []

    def watched(path, **options):
        unlink(path, **options)
        left.append({p.name for p in path.parent.iterdir()})
    monkeypatch.setattr(Path, "unlink", watched)
    train.make_way(tmp_path / "run", types.SimpleNamespace(overwrite=True, keep_tokenizers=False))
    assert all("config.json" in names and "checkpoint.pt" not in names for names in left) and "text.json" not in left[-1]


def test_tokenizers_copied_into_a_new_folder_are_kept(trained, tmp_path):
    (tmp_path / "run").mkdir()
    for name in train.TOKENIZERS:
        shutil.copy(trained / name, tmp_path / "run")
    assert command("train.py", "--keep-tokenizers", "--run", tmp_path / "run", *TINY).returncode == 0 and same(tmp_path / "run", trained)
    assert all((tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes() for name in train.TOKENIZERS)


def test_a_run_is_not_overwritten_by_chance(trained, capsys):
    before = (trained / "checkpoint.pt").read_bytes()
    status, error = told(train.main, ["train.py", "--run", trained, *TINY], capsys)
    assert status == 2 and "--overwrite" in error and (trained / "checkpoint.pt").read_bytes() == before


# ---------------------------------------------------------------------------------------------------------------------
# Values that are not finite.

def test_the_clip_far_over_full_scale_is_named_among_good_ones(tmp_path):
    for i in range(3):
        clip(tmp_path, f"{i}.wav", value=3.5)                          # over 1, and still read
    spike(tmp_path, 1e29)
    with pytest.raises(data.DataError, match=r"1 of 4 items .*a\.wav: holds a sample of 1e\+29"):
        readers.read_speech(tmp_path)
    assert len(readers.read_speech(tmp_path, skip_bad=True)) == 3


@pytest.mark.parametrize("what", ["loss", "gradient", "weight"])
def test_a_tokenizer_stops_where_a_value_is_not_finite(what):
    from tokenizers import fsq
    net, steps = torch.nn.Linear(2, 2), []
    net.register_buffer("mean", torch.zeros(1))

    def loss_of(rows, rng):
        steps.append(len(steps))
        loss = net(torch.ones(1, 2)).square().mean()
        if steps[-1] == 3 and what == "weight":
            net.mean.fill_(math.inf)
        if steps[-1] == 3 and what == "loss":
            loss = loss + math.nan                                     # its gradient is finite
        if steps[-1] == 3 and what == "gradient":
            loss = loss + (net.weight - net.weight.detach()).abs().sum().sqrt()     # 0, of an infinite slope
        return loss, {}
    with pytest.raises(data.DataError, match="^audio tokenizer: .* not finite") as stopped:
        fsq.fit(net, loss_of, 4, 2, 0.1, steps=8, name="audio tokenizer")
    assert len(steps) == (8 if what == "weight" else 4) and "\n" not in str(stopped.value)
    assert safe.finite(net.parameters())


@pytest.mark.parametrize("broken", ["waves", "pictures"])
def test_a_tokenizer_of_broken_samples_ends_in_one_line(broken, capsys):
    """Whatever reads them: the tokenizers look themselves."""
    from tokenizers import audio
    from tokenizers import image as pictures
    if broken == "waves":
        waves = [0.1 * np.random.default_rng(i).standard_normal(16000).astype(np.float32) for i in range(4)]
        waves[1][8000] = 1e29
        make = lambda: audio.train(waves, steps=20)
    else:
        make = lambda: pictures.train([np.zeros((8, 8, 3), np.uint8)] * 4, steps=20, lr=math.inf)
    status, error = told(make, ["train.py"], capsys)
    line = error.splitlines()[-1]                                      # after the bar's
    assert status == 1 and "not finite" in line and ("audio" if broken == "waves" else "image") in line, error


@pytest.mark.parametrize("what", ["gradient", "loss", "update"])
def test_training_that_breaks_keeps_the_last_good_checkpoint(what, trained, tmp_path, capsys, monkeypatch):
    """Also where the last update before a save breaks the weights: the broken ones are not saved."""
    real, calls = train.backward, []

    def backward(net, trunk, *rest):
        terms, loss = real(net, trunk, *rest)
        calls.append(len(calls))
        if calls[-1] == 3 and what == "gradient":
            next(net.parameters()).grad.fill_(math.nan)
        if calls[-1] == 3 and what == "update":
            next(net.parameters()).data[0] = math.inf                  # after the gradients, as an update might
        return terms, loss * math.nan if calls[-1] == 3 and what == "loss" else loss
    monkeypatch.setattr(train, "backward", backward)
    status, error = told(train.main, ["train.py", "--run", tmp_path / "run", *TINY, "--compile", "off"], capsys)
    line = error.splitlines()[-1]
    assert status == 1 and "not finite" in line and "last good checkpoint" in line, error
    saved = safe.load(tmp_path / "run" / "checkpoint.pt")
    assert saved["step"] == 2 and safe.finite([*saved["model"].values(), *saved["ema"]])
    monkeypatch.setattr(train, "backward", real)
    assert command("train.py", "--resume", "--run", tmp_path / "run").returncode == 0 and same(tmp_path / "run", trained)


# ---------------------------------------------------------------------------------------------------------------------
# Parts of a batch, and several processes.

def test_rows_in_parts_give_the_gradients_of_the_whole():
    import contextlib

    from test_train import options, toy_stream
    stream, rows, net = toy_stream()
    args = options()
    batches = data.Batches(stream, rows, {k: 5 for k in rows}, 0)
    batch = train.noised(batches, 0, args, train.diffusion.schedule("linear"))
    found = []
    for micro in (0, 2):
        net.zero_grad()
        terms, loss = train.backward(net, net.trunk, batch, args.loss_weights, contextlib.nullcontext, micro)
        found.append((terms, loss, [p.grad.clone() for p in net.parameters()]))
    (a, x, g), (b, y, h) = found
    assert a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-6) for k in a) and torch.allclose(x, y, atol=1e-6)
    assert all(torch.allclose(u, v, atol=1e-5) for u, v in zip(g, h))


def test_a_head_in_chunks_gives_the_same_gradients(monkeypatch):
    import contextlib

    from test_train import options, toy_stream
    stream, rows, net = toy_stream()
    batch = train.noised(data.Batches(stream, rows, {"text": 4}, 0), 0, options(), train.diffusion.schedule("linear"))
    grads = []
    for limit in (models.HEAD_LOGITS, 7 * net.config.vocab):
        monkeypatch.setattr(models, "HEAD_LOGITS", limit)
        net.zero_grad()
        train.backward(net, net.trunk, batch, options().loss_weights, contextlib.nullcontext)
        grads.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.allclose(u, v, atol=1e-6) for u, v in zip(*grads))


def test_memory_that_is_short_halves_the_rows_at_a_time():
    args, tried = types.SimpleNamespace(micro_batch=0), []

    def step():
        tried.append(args.micro_batch)
        if args.micro_batch == 0 or args.micro_batch > 3:
            raise torch.OutOfMemoryError("no")
    assert train.rows_that_fit(args, 24, step) == 3 and tried == [0, 12, 6, 3]


def test_two_processes_train_as_one(tmp_path):
    """In float32: what bfloat16 rounds depends on how the rows are shared out."""
    env, several = {**os.environ, "OMP_NUM_THREADS": "1"}, ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--")
    for name, start in (("one", ()), ("two", several)):
        done = command(*start, "train.py", "--run", tmp_path / name, *TINY, "--dtype", "float32", env=env)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = ([json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("one", "two"))
    assert len(one) == len(two) == 6
    for a, b in zip(one, two):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-2)
        assert a["terms"] == pytest.approx(b["terms"], rel=2e-3)
