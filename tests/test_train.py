"""Training: the batch rule, the step, and runs from nothing to a table of scores."""
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import bench
import data
import diffusion
import flags
import model as models
import score
import train
from runs import SMALL, TINY, UNSCORED, run


@pytest.mark.parametrize("tokens, batch, kappa, lr", [(1e9, 64, 0.773, 0.879), (1e8, 32, 1.064, 1.032), (1e7, 16, 1.466, 1.211),
                                                      (6.4e12, 4096, 1.046, 1.023)])
def test_batch_rule_gives_the_known_values(tokens, batch, kappa, lr):
    base = {**train.BASE, "tokens": 13e9, "batch": 256}
    rule = train.batch_rule(batch, tokens, base)
    assert rule["kappa"] == pytest.approx(kappa, abs=6e-4) and rule["lr"] / base["lr"] == pytest.approx(lr, abs=6e-4)
    assert rule["beta2"] == pytest.approx(base["beta2"] ** rule["kappa"])
    assert rule["eps"] * rule["lr"] == pytest.approx(base["eps"] * base["lr"])


def test_batch_rule_recovers_the_two_known_rules():
    twice = train.batch_rule(2 * train.BASE["batch"], 5 * train.BASE["tokens"], gamma=0)      # Malladi et al.: B alone
    assert twice["kappa"] == 2 and 1 - twice["beta1"] == pytest.approx(2 * (1 - train.BASE["beta1"]), rel=0.06)
    r = train.batch_rule(2 * train.BASE["batch"], 5 * train.BASE["tokens"], gamma=1)           # Complete(d)P: m_B / m_D
    assert r["kappa"] == pytest.approx(2 / 5)
    assert train.batch_rule(train.BASE["batch"], train.BASE["tokens"]) == {"kappa": 1.0, **{k: train.BASE[k] for k in (
        "lr", "beta1", "beta2", "eps", "weight_decay", "ema", "muon_lr", "momentum")}}


def test_learning_rate_warms_up_and_ends_at_zero():
    factors = [train.lr_factor(s, 100, 10) for s in range(100)]
    assert factors[0] == 0.1 and factors[9] == 1 and max(factors) == 1 and factors[-1] < 1e-3
    assert all(a >= b for a, b in zip(factors[10:], factors[11:])) and train.lr_factor(100, 100, 10) == 0
    assert factors[55] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def options(*given):
    return flags.parser().parse_args(list(given))


def toy_stream():
    stream = data.Stream({"text": (1, 10), "image": (1, 4), "speech": (2, 6)},
                         {"text": [32], "image-text": [4, 5], "speech-text": [8, 5]})
    rng = np.random.default_rng(0)
    rows = {"text": stream.pack("text", [rng.integers(0, 10, n) for n in rng.integers(2, 20, 60)]),
            "image-text": np.stack([stream.row("image-text", [rng.integers(0, 4, 4), rng.integers(0, 10, 3)]) for _ in range(40)]),
            "speech-text": np.stack([stream.row("speech-text", [rng.integers(0, 6, 6), rng.integers(0, 10, 2)]) for _ in range(40)])}
    net = models.Transformer(models.ModelConfig(stream.vocab, stream.places, width=32, depth=2, head_dim=16, base_width=32,
                                                base_depth=2))
    return stream, rows, net


def no_autocast():
    return torch.autocast("cpu", enabled=False)


def test_a_batch_of_mixed_kinds_equals_its_parts():
    stream, rows, net = toy_stream()
    args = options()
    batch = train.noised(data.Batches(stream, rows, {k: 6 for k in rows}, 0), 3, args, diffusion.schedule("linear"))
    terms, loss = train.backward(net, net.trunk, batch, args.loss_weights, no_autocast)
    together = {n: p.grad.clone() for n, p in net.named_parameters()}
    net.zero_grad()
    apart = [train.backward(net, net.trunk, {k: b}, args.loss_weights, no_autocast) for k, b in batch.items()]
    assert float(loss) == pytest.approx(sum(float(part) for _, part in apart), rel=1e-6)
    assert all(torch.allclose(terms[n], v, atol=1e-6) for part, _ in apart for n, v in part.items())
    assert all(torch.allclose(together[n], p.grad, atol=1e-6) for n, p in net.named_parameters())


def test_the_loss_is_the_sum_written_out():
    stream, rows, net = toy_stream()
    batch = train.noised(data.Batches(stream, rows, {k: 4 for k in rows}, 0), 0, options(), diffusion.schedule("cosine"))
    weights = {n: 0.1 + 0.1 * i for i, n in enumerate(options().loss_weights)}
    terms, loss = train.backward(net, net.trunk, batch, weights, no_autocast)
    want = 0.0
    for kind, b in batch.items():
        logits = net(b["x"], b["place"], b["doc"]).double()
        columns = (b[n].tolist() for n in ("target", "low", "high", "weight", "member"))
        for (i, j), target, low, high, weight, member in zip(b["masked"].nonzero().tolist(), *columns):
            nll = -logits[i, j, low:high].log_softmax(0)[target - low].item()
            want += weights[f"{kind}/{data.KINDS[kind][member]}"] * weight * nll / int(b["counts"][member])
    assert float(loss) == pytest.approx(want, rel=1e-5) and set(terms) == set(weights)


def test_batches_and_masks_are_a_function_of_seed_and_step():
    stream, rows, _ = toy_stream()
    make = lambda step, *flags: train.noised(data.Batches(stream, rows, {k: 4 for k in rows}, 0), step, options(*flags),
                                             diffusion.schedule("linear"))
    a, b = make(5), make(5)
    assert all(torch.equal(a[k]["x"], b[k]["x"]) for k in a)
    assert any(not torch.equal(a[k]["x"], c) for k in a for c in (make(6)[k]["x"], make(5, "--seed", "1")[k]["x"]))


def test_complement_doubles_the_views_of_the_same_items():
    stream, rows, _ = toy_stream()
    batch = train.noised(data.Batches(stream, rows, {"text": 4}, 0), 0, options("--complement"), diffusion.schedule("linear"))["text"]
    first, second = batch["masked"].chunk(2)
    noisy = batch["counts"][0] // 2
    assert not (first & second).any() and (first | second).sum() == noisy


def test_end_to_end(trained):
    folder, done = trained
    assert {f.name for f in folder.iterdir()} >= {"config.json", "checkpoint.pt", "text.json", "image.pt", "speech.pt", "log.jsonl",
                                                  "index.html", "scores.json", "validation.npz"}
    scores = json.loads((folder / "scores.json").read_text())
    assert set(scores) == {"text", "text-to-image", "image-to-text", "text-to-speech", "speech-to-text", "image", "speech", "bound", "tokenizers"}
    for task, result in scores.items():
        if task not in ("bound", "tokenizers"):
            assert 0 <= result["accuracy"] <= 1 and result["n"] >= 2 and result["nfe"] > 0 and result["seconds"] > 0
    assert scores["text-to-image"]["n"] == 4 and score.samples_of(scores["text-to-image"]) == 8, "accuracy is of the seen cells, time of all"
    assert {t for t in scores if "diversity" in scores[t]} == set(scores) - {"bound", "tokenizers"}
    assert all(0 <= r["tokens"][0] <= r["true"][0] == 1 for r in scores["tokenizers"].values())
    assert all(s["diversity"]["entropy"] > 0 for s in scores.values() if "diversity" in s)
    assert len(scores["bound"]) == 7 and all(0 < b["nats_per_token"] < 20 for b in scores["bound"].values())
    assert "text-to-image" in done.stdout and not list(folder.rglob("*.tmp"))
    shown = (folder / "index.html").read_text(encoding="utf-8")
    assert shown.count("<h2>") == 10 + 3 and "data:audio/wav" in shown and "://" not in shown  # base64 has no colon; 3: scores and settings
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == [0, 2, 4, 5]


def test_a_cut_line_of_the_log_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0, "terms": {"a": 1}}\n{"step": 1, "terms": {"a": 1}}\n{"step": 2, "terms": {"a": 1}')
    train.keep_until(path, 5)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1]
    train.keep_until(path, 0)
    assert path.read_text() == '{"step": 0, "terms": {"a": 1}}\n'


def test_the_page_is_written_during_training(trained, tmp_path):
    folder = tmp_path / "r"
    done = run("train.py", "--run", folder, "--steps", "4", "--score-every", "2", *UNSCORED, "--kinds", "text,speech-text")
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4] and {"text-to-speech", "text"} <= set(lines[0])
    shown = (folder / "index.html").read_text(encoding="utf-8")
    assert shown.count("<svg") == 2 and "scores, share right" in shown and "kappa" in shown and "seconds: " in done.stdout


def test_bench_times_all_three_and_adds_up(tmp_path):
    out = run("train.py", "--bench", "--json", "--steps", "5", "--kinds", "text", "--compile", "off", "--device", "cpu", "--text-length", "32", "--vocab",
              "65", "--batch-tokens", "256", "--shape", '{"width": 64, "depth": 1, "head_dim": 32}').stdout
    result = json.loads(out)
    assert result["real_share"] == 1 and result["tokens_per_step"] == 256 and result["matmul_flops"] > 1e9
    for what in ("diffusion", "autoregressive"):
        parts = result[what]["milliseconds"]
        assert result[what]["step_ms"] == pytest.approx(parts["forward"] + parts["backward"] + parts["optimizer"])
        assert result[what]["tokens_per_second"] == pytest.approx(256 / result[what]["step_ms"] * 1000, rel=1e-6)
        config = models.ModelConfig(65, 1, width=64, depth=1, head_dim=32, causal=what == "autoregressive")
        assert 0.3 < result[what]["flops_per_step"] / (256 * models.flops_per_token(config, 32, 0.75)) < 1.7
        shapes = [(64, 64)] * 4 + [(64, 176)] * 3                        # Muon: q, k, v, out; gate, up, down: three steps of three products
        assert result[what]["optimizer_flops"] == sum(3 * (2 * a * a * b * 2 + 2 * a ** 3) for a, b in shapes)
        assert result[what]["products"] > result[what]["utilisation"]
    assert result["plain"]["tokens_per_second"] > 0 and result["peak_bytes"] > 1e7


def test_the_bench_of_complements_has_as_many_rows():
    """Four rows under a mask and its complement: every token of four rows goes through the head, once."""
    args = flags.parser().parse_args(["--complement", "--steps", "3", "--kinds", "text", "--compile", "off", "--dtype", "float32", "--text-length", "32",
                                      "--vocab", "65", "--shape", '{"width": 64, "depth": 1, "head_dim": 32}'])
    stream, rows = bench.make_rows(args)
    head = bench.time_step(args, stream, rows, {"text": 8}, torch.device("cpu"))[3]
    assert head == 4 * int((stream.describe("text", rows["text"][:1].astype(np.int64)).member >= 0).sum())


def test_the_autoregressive_twin_predicts_every_token_from_those_before_it():
    stream, rows, net = toy_stream()
    rows = {"text": rows["text"], "image-text": rows["image-text"]}
    batch = train.next_tokens(data.Batches(stream, rows, {k: 3 for k in rows}, 0), 0)
    for kind, b in batch.items():
        at = [(i, j) for i in range(3) for j in range(b["x"].shape[1]) if b["masked"][i, j]]
        assert b["target"].tolist() == [int(b["x"][i, j + 1]) for i, j in at]
        described = stream.describe(kind, b["x"].numpy())
        assert len(at) == (described.member >= 0).sum() == b["counts"].sum()
        assert all(b["low"][n] <= t < b["high"][n] for n, t in enumerate(b["target"]))
    causal = models.Transformer(replace(net.config, causal=True))
    b = batch["text"]
    x = b["x"].clone()
    read = lambda network, x: network.trunk((x, b["place"], b["doc"])).view(*x.shape, -1)[:, :-1]     # all but the last token
    before, plain = read(causal, x), read(net, x)
    x[:, -1] = data.MASK
    assert torch.equal(before, read(causal, x)) and not torch.equal(plain, read(net, x))


def test_stopped_and_resumed_equals_never_stopped(trained, tmp_path):
    whole, _ = trained
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    script = ("import sys, train, torch; real = train.lr_factor\n"
              "def stop(step, *a):\n"
              "    if step == 4: raise KeyboardInterrupt\n"
              "    return real(step, *a)\n"
              "train.lr_factor = stop; sys.argv = ['train.py', *sys.argv[1:]]; train.main()")
    broken = run("-c", script, "--run", folder, "--overwrite", "--steps", "6", "--save-every", "3", *UNSCORED, check=False)
    assert broken.returncode != 0 and torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 3
    run("train.py", "--resume", "--run", folder)
    a, b = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (whole, folder))
    assert a["step"] == b["step"] == 6
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    assert all(torch.equal(x, y) for x, y in zip(a["ema"], b["ema"]))


def test_timing_steps_changes_nothing(trained, tmp_path):
    """A run planned in minutes, whose steps are timed before it begins, and one that times none end in the same weights."""
    for name, planned in (("timed", ("--minutes", "0.001")), ("untimed", ("--steps", "10"))):        # ten steps at least
        shutil.copytree(trained[0], tmp_path / name)
        run("train.py", "--run", tmp_path / name, "--overwrite", "--keep-tokenizers", *planned, *UNSCORED)
    a, b = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("timed", "untimed"))
    assert a["step"] == b["step"] == 10 and all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    assert all(torch.equal(x, y) and not x.requires_grad for x, y in zip(a["ema"], b["ema"]))


@pytest.mark.parametrize("kinds,scored", [("text", False), ("image-text", True), ("speech-text", True), ("text,speech-text", False)])
def test_any_subset_of_the_modalities_trains(kinds, scored, tmp_path):
    run("train.py", "--run", tmp_path / "r", "--steps", "2", *(TINY if scored else UNSCORED), "--kinds", kinds)
    assert list(json.loads((tmp_path / "r" / "config.json").read_text())["stream"]["slots"]) == kinds.split(",")


def test_own_data_trains_and_is_scored(tmp_path):
    import soundfile
    from PIL import Image
    pictures, speech = tmp_path / "pictures", tmp_path / "speech"
    pictures.mkdir(), (speech / "wavs").mkdir(parents=True)
    for i in range(12):
        Image.fromarray(np.full((12, 12), 20 * i, np.uint8)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"grey number {i}", encoding="utf-8")
        soundfile.write(speech / "wavs" / f"{i}.flac", 0.3 * np.sin(np.arange(3000 + 500 * i) * 0.02 * (i + 1)), 16000)
    (speech / "metadata.csv").write_text("".join(f"{i}|tone {i}\n" for i in range(12)), encoding="utf-8")
    (tmp_path / "t.txt").write_text("to be or not to be, that is the question. " * 40, encoding="utf-8")
    done = run("train.py", "--run", tmp_path / "r", "--steps", "2", *SMALL, "--text", tmp_path / "t.txt", "--images", pictures,
               "--speech", speech)
    assert "image-to-text" in done.stdout and "bits" in done.stdout
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert config["stream"]["slots"]["image-text"][0] == 3 + 2 * 2           # a palette, squares of 6 pixels
    run("experiments/film.py", "--run", tmp_path / "r", "--out", tmp_path / "film.gif")             # grey pictures, few rows, line ends
    assert (tmp_path / "film.gif").stat().st_size > 1000


def test_wrong_flags_leave_an_old_run_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"layout_version": 1}')
    (tmp_path / "checkpoint.pt").write_text("precious")
    done = run("train.py", "--run", tmp_path, "--overwrite", "--mix", "text=1", check=False)
    assert done.returncode != 0 and "--mix gives" in done.stderr and (tmp_path / "checkpoint.pt").read_text() == "precious"


def test_plan_prints_the_papers_size():
    out = run("train.py", "--plan", "--preset", "3b").stdout
    assert "width 2816, depth 22" in out and "GiB" in out and "7754" in out
