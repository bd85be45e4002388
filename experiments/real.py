"""What of real handwriting and real speech comes out right, by judges that the model never saw?

Question: after training on one's own pictures of one thing each (say handwritten digits) and clips of numbers or the like: does a classifier
read generated pictures as what was asked for, do captions and transcripts of held-out items match, does a speech recogniser understand
what the model says, and how much of that do the tokenizers lose?
Set-up: a small convolutional classifier, trained here for four epochs on the pictures that the run trained on, tells the captions apart; it reads
those that the run held out, the same after the tokenizer (which may have seen some of them), and --n generated ones for each caption.
Captions and transcripts: all items that the run held out (a number has one recording, so its transcripts are of numbers never heard).
Clips: the held-out recordings as they are, after the tokenizer, and generated from their own texts, from a hundred of the training and from
those of --missing, a text file of phrases that no recording has, each the best of --candidates as the network itself finds. They go to --out
with a list, clips.json, for any speech recogniser; `hear.py` beside this file is one, to be run from an environment of its own. Nothing is trained or chosen on what is judged.
On two cores at half their speed about 7 minutes:
    python experiments/real.py --run runs/real --images digits/ --speech numbers/ --missing missing.txt --out out/real
"""
import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import common
from common import data, safe, sample, score  # common finds the folder above
import readers


def classifier(pictures, labels, classes, seed=0, epochs=4, batch=64):
    """uint8 (N, H, W, C), labels (N,) -> a function from pictures to labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.LazyConv2d(32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(1152, classes))
        prepare = lambda x: torch.from_numpy(np.ascontiguousarray(x)).movedim(-1, 1).float() / 127.5 - 1
        net(prepare(pictures[:2]))
    steps = epochs * len(pictures) // batch
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for step in tqdm(range(steps), desc="classifier", leave=False):
        at, rng = np.arange(step * batch, (step + 1) * batch), data.rng(seed, 51, step * batch // len(pictures))
        at, shift = rng.permutation(len(pictures))[at % len(pictures)], data.rng(seed, 52, step).integers(-2, 3, 2)
        x = prepare(np.roll(pictures[at], tuple(shift), (1, 2)))                          # a few pixels to and fro
        F.cross_entropy(net(x), torch.from_numpy(labels[at])).backward()
        optimizer.step()
        plan.step()
        optimizer.zero_grad()
    net.eval()
    read = lambda x: torch.cat([net(prepare(part)).argmax(1) for part in np.array_split(x, -(-len(x) // 256))]).numpy()
    return torch.inference_mode()(read)


def share(right):
    mean, error = score.mean_and_error(right)
    return {"right": mean, "stderr": error, "n": len(right)}


def read_pictures(run, folder, n, seed, out):
    """Shares of real, tokenized and generated pictures that the classifier reads as their captions say."""
    config = run.tokenizers["image"].config
    source = readers.read_images(folder, config.height, config.channels)
    names = sorted(set(source.texts))
    labels, pictures = np.array([names.index(t) for t in source.texts]), np.stack(source.load(range(len(source))))
    _, train, test = readers.held_out(source)                                             # as the run has them
    read = classifier(pictures[train], labels[train], len(names))
    again = np.stack(run.tokenizers["image"].decode(run.tokenizers["image"].encode(pictures[test])))
    made = sample.generate(run, "text-to-image", [name for name in names for _ in range(n)], seed=seed)
    generated = np.stack(made.outputs["image"])
    sheet = generated.reshape(len(names), n, *generated.shape[1:])[:, :10].transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(len(names) * config.height, -1, config.channels)
    from PIL import Image
    Image.fromarray(sheet[:, :, 0] if config.channels == 1 else sheet).save(out / "pictures.png")
    return {"real": share(read(pictures[test]) == labels[test]), "after the tokenizer": share(read(again) == labels[test]),
            "generated": {**share(read(generated) == np.repeat(np.arange(len(names)), n)), "nfe": made.nfe}}


def write_clips(run, folder, missing, seed, out, changes):
    """Clips for a recogniser: held-out recordings, the same after the tokenizer, and what the model makes of their texts and others
    (changes: to the sampler's settings)."""
    import soundfile
    step = run.tokenizers["speech"].config.step / readers.SAMPLE_RATE
    source, train, held = readers.held_out(readers.read_speech(folder, shortest=step))
    some = train[data.rng(0, 54).permutation(len(train))][:100]
    texts, clips = [source.texts[i] for i in held], source.load(held)
    groups = {"recordings": (texts, clips), "after the tokenizer": (texts, run.tokenizers["speech"].decode(run.tokenizers["speech"].encode(clips)))}
    for name, phrases in (("generated, held-out texts", texts), ("generated, phrases without a recording", missing),
                          ("generated, texts of the training", [source.texts[i] for i in some])):
        if phrases:
            groups[name] = (phrases, sample.generate(run, "text-to-speech", phrases, seed=seed, **changes).outputs["speech"])
    entries = []
    for g, (name, (phrases, waves)) in enumerate(groups.items()):
        for i, (text, wave) in enumerate(zip(phrases, waves)):
            path = out / f"{g}-{i:03}.wav"
            soundfile.write(path, wave, readers.SAMPLE_RATE, subtype="PCM_16")
            entries.append({"group": name, "text": text, "file": path.name})
    safe.write_json(out / "clips.json", entries)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", default="runs/real")
    p.add_argument("--images", help="the folder that the run was trained on")
    p.add_argument("--speech", help="the folder that the run was trained on")
    p.add_argument("--missing", help="text file: phrases that no recording has, one a line")
    p.add_argument("--n", type=int, default=20, help="generated pictures for each caption")
    p.add_argument("--candidates", type=int, default=4, help="of speech, the network keeps the one that fits best")
    p.add_argument("--rounds", type=int, default=4, help="masks under which it judges them")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", default="out/real")
    args = p.parse_args()
    torch.set_num_threads(os.cpu_count())  # common.py asked for one
    run, out = sample.load_run(args.run), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    changes = {"candidates": args.candidates, "rounds": args.rounds}
    result = {"run": args.run, "seed": args.seed, "speech": changes}
    if args.images:
        result["pictures"] = read_pictures(run, args.images, args.n, args.seed, out)
    if args.speech:
        missing = Path(args.missing).read_text(encoding="utf-8").split("\n") if args.missing else []
        write_clips(run, args.speech, [t.strip() for t in missing if t.strip()], args.seed, out, changes)
    result.update({task: cells["held out"] for task, r in score.score(run, 10**6).items() if (cells := r.get("cells"))})
    safe.write_json(out / "real.json", result)
    print(json.dumps(result, indent=1))
    print(f"wrote {out}" + (f"; now, where there is a recogniser: python experiments/hear.py MODEL {out / 'clips.json'}" if args.speech else ""))


if __name__ == "__main__":
    common.safe.cli(main, "real.py")
