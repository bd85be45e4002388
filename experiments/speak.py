"""Clips of a run for a speech recogniser (hear.py): the synthesiser's own, the same after the
tokenizer, and the model's, of phrases that training had and of those that it left out.

    python experiments/speak.py --run runs/toy --out out/clips --n 200
"""
import os
from pathlib import Path

import torch

from common import files, sample  # finds the folder above
from sources import toyspeech

SEED = 99_999  # of phrases and voices that no score uses


def write_clips(out, groups):
    """groups: {(who speaks, split): (texts, waves)} -> WAV files under out, and clips.json."""
    entries = []
    for number, ((speaker, split), (texts, waves)) in enumerate(groups.items()):
        for i, (text, wave) in enumerate(zip(texts, waves)):
            path = out / f"{number}-{i:03}.wav"
            files.write_bytes(path, sample.wav(wave))
            entries.append({"speaker": speaker, "split": split, "text": text, "file": path.name})
    files.write_json(out / "clips.json", entries)
    return out / "clips.json"


def after_tokenizer(run, waves):
    tokenizer = run.tokenizers["speech"]
    return tokenizer.decode(tokenizer.encode(waves))


def speak(run, n, seed, **changes):
    """n phrases of each split, spoken by all. changes: to how the model samples."""
    groups = {}
    for number, split in enumerate(("seen", "unseen")):
        phrases = toyspeech.phrases(n, seed + number, split)
        waves = toyspeech.speak(phrases, seed + number)
        made = sample.generate(run, "text-to-speech", phrases, seed=seed, **changes)
        groups["synthesiser", split] = phrases, waves
        groups["after the tokenizer", split] = phrases, after_tokenizer(run, waves)
        groups["model", split] = phrases, made.outputs["speech"]
    return groups


def main():
    parser = files.Parser(description=__doc__)
    parser.add_argument("--run", default="runs/toy", help="a folder that train.py made")
    parser.add_argument("--out", default="out/clips", help="folder for the clips")
    parser.add_argument("--n", type=files.number(int, 1), default=200, help="phrases a split")
    parser.add_argument("--seed", type=files.number(int, 0), default=0, help="which phrases")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    run = sample.load_run(args.run)
    path = write_clips(Path(args.out), speak(run, args.n, SEED + 10 * args.seed))
    print(f"wrote {path}; where pocketsphinx is: python experiments/hear.py {path}")


if __name__ == "__main__":
    files.command_line(main, "speak.py")
