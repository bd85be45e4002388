"""A speech recogniser's word errors on the clips that real.py wrote: python hear.py MODEL clips.json

Needs faster-whisper (`pip install faster-whisper`, best in an environment of its own) and a model's folder, such as Whisper tiny.en's. It
imports nothing of this project, so that it runs there. Numbers in digits count as the words they stand for; "and" does not count.
"""
import json
import re
import sys
from pathlib import Path

UNITS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen").split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()


def spoken(n):
    """0..999999 in words."""
    if n < 20:
        return UNITS[n]
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if n >= size:
            return f"{spoken(n // size)} {name}" + (f" {spoken(n % size)}" if n % size else "")
    return TENS[n // 10] + (f" {UNITS[n % 10]}" if n % 10 else "")


def words(text):
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower())
    text = re.sub(r"\d+", lambda m: f" {spoken(int(m.group()))} " if len(m.group()) < 7 else f" {m.group()} ", text)
    return [w for w in re.sub(r"[^a-z0-9' ]", " ", text).split() if w != "and"]


def errors(heard, wanted):
    """Word edit distance."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(heard, 1):
        row, last = [i], row
        for j, b in enumerate(wanted, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
    return row[-1]


def main(model, path):
    from faster_whisper import WhisperModel
    recogniser, groups, heard = WhisperModel(model, device="cpu", compute_type="float32"), {}, []
    for entry in json.loads(Path(path).read_text(encoding="utf-8")):
        pieces, _ = recogniser.transcribe(str(Path(path).parent / entry["file"]), language="en", beam_size=5, without_timestamps=True,
                                          condition_on_previous_text=False)
        text = " ".join(piece.text for piece in pieces)
        wanted = words(entry["text"])
        made = (errors(words(text), wanted), len(wanted))
        groups.setdefault(entry["group"], []).append(made)
        heard.append({**entry, "heard": text.strip(), "errors": made[0], "words": made[1]})
    Path(path).with_name("heard.json").write_text(json.dumps(heard, indent=1), encoding="utf-8")
    for name, made in groups.items():
        rate = sum(e for e, _ in made) / sum(n for _, n in made)
        spread = (sum((e - rate * n) ** 2 for e, n in made) ** 0.5) / sum(n for _, n in made)
        print(f"{name:40} {100 * rate:5.1f} ± {100 * spread:.1f}% word errors, {sum(e == 0 for e, _ in made)} of {len(made)} without any")


if __name__ == "__main__":
    main(*sys.argv[1:])
