"""A speech recogniser's word errors on clips that speak.py or real.py wrote.

    python experiments/hear.py MODEL out/clips/clips.json --json results/hear.json

Needs faster-whisper (`pip install faster-whisper`, best in an environment of its own) and a
model's folder, such as Whisper tiny.en's. It imports nothing of this project, so that it runs
there. Each clip is heard twice: as it is, and with a prompt of a dozen of the world's phrases, as
by a person who knows the world. Numbers in digits count as the words that they stand for; "and"
does not count.
"""
import argparse
import json
import re
from pathlib import Path

UNITS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
         "fifteen sixteen seventeen eighteen nineteen").split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
PROMPT = ("a small red circle, a large blue square, a small green triangle, a large yellow star, "
          "a small purple cross, a large orange circle, twenty one, forty three, fifty six, "
          "seventy eight, ninety nine, thirteen, thirty.")
SILENCE = 3_000  # zero samples before and after each clip: recognisers expect some


def spoken(n):
    """0..999999 in words."""
    if n < 20:
        return UNITS[n]
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if n >= size:
            rest = f" {spoken(n % size)}" if n % size else ""
            return f"{spoken(n // size)} {name}{rest}"
    return TENS[n // 10] + (f" {UNITS[n % 10]}" if n % 10 else "")


def words(text):
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower())
    text = re.sub(r"\d{1,6}", lambda match: f" {spoken(int(match.group()))} ", text)
    return [word for word in re.sub(r"[^a-z' ]", " ", text).split() if word != "and"]


def errors(heard, wanted):
    """Word edit distance."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(heard, 1):
        last, row = row, [i]
        for j, b in enumerate(wanted, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
    return row[-1]


def rate(pairs):
    """[(errors, words) a clip] -> word error rate [mean, standard error], clips without any."""
    total = sum(n for _, n in pairs)
    mean = sum(e for e, _ in pairs) / total
    spread = sum((e - mean * n) ** 2 for e, n in pairs) ** 0.5 / total
    return {"clips": len(pairs), "word_errors": [mean, spread],
            "without_any": sum(e == 0 for e, _ in pairs)}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a Whisper model for faster-whisper")
    parser.add_argument("clips", type=Path, help="clips.json")
    parser.add_argument("--prompt", default=PROMPT, help="what the recogniser is told of the world")
    parser.add_argument("--json", type=Path, help="where the rates go (beside the clips)")
    args = parser.parse_args()
    import numpy as np
    from faster_whisper import WhisperModel, decode_audio
    recogniser = WhisperModel(args.model, device="cpu", compute_type="float32")
    entries = json.loads(args.clips.read_text(encoding="utf-8"))
    result = {"model": Path(args.model).name, "prompt": args.prompt, "groups": {}}
    for name, prompt in (("without a prompt", None), ("with the prompt", args.prompt)):
        groups = {}
        for entry in entries:
            wave = np.pad(decode_audio(str(args.clips.parent / entry["file"])), SILENCE)
            pieces, _ = recogniser.transcribe(
                wave, language="en", beam_size=5, without_timestamps=True, initial_prompt=prompt,
                condition_on_previous_text=False)
            heard = " ".join(piece.text for piece in pieces).strip()
            wanted = words(entry["text"])
            entry[f"heard {name}"] = heard
            group = groups.setdefault(f"{entry['speaker']}, {entry['split']}", [])
            group.append((errors(words(heard), wanted), len(wanted)))
        for group, pairs in groups.items():
            found = rate(pairs)
            result["groups"].setdefault(group, {})[name] = found
            mean, spread = found["word_errors"]
            print(f"{group:32} {name:17} {100 * mean:5.1f} ± {100 * spread:.1f}% word errors, "
                  f"{found['without_any']} of {found['clips']} clips without any")
    args.clips.with_name("heard.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")
    path = args.json or args.clips.with_name("hear.json")
    path.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
