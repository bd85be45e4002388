"""A speech recogniser's word errors on clips that speak.py or real.py wrote.

    python experiments/hear.py out/clips/clips.json --json experiments/results/hear.json
    python experiments/hear.py out/clips/clips.json --whisper MODEL

Each clip is heard by a recogniser that knows the clips' world, as a person would, and by one that
knows English alone. Pocketsphinx (`pip install pocketsphinx numpy`, its American English model
comes with it) is told of the world which word follows which in the texts of all clips. Whisper
(`pip install faster-whisper`, MODEL is a model's folder) is given a prompt of a dozen phrases. Both
need an environment of their own: this script imports nothing of the project. Numbers in digits
count as the words that they stand for; "and" does not count.
"""
import argparse
import json
import re
import wave
from pathlib import Path

UNITS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
         "fifteen sixteen seventeen eighteen nineteen").split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
PROMPT = ("a small red circle, a large blue square, a small green triangle, a large yellow star, "
          "a small purple cross, a large orange circle, twenty one, forty three, fifty six, "
          "seventy eight, ninety nine, thirteen, thirty.")
SILENCE = 8_000  # zero samples before and after each clip: recognisers expect some


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


def read_clip(path):
    """int16 samples of a WAV file at 16 kHz, in silence."""
    import numpy as np
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return np.pad(samples, SILENCE)


def sphinx(texts=()):
    """Pocketsphinx as a function clip -> text. texts: it expects their pairs of words alone."""
    from pocketsphinx import Decoder
    if not texts:
        decoder = Decoder(samprate=16000, loglevel="FATAL")
    else:
        decoder = Decoder(samprate=16000, lm=None, loglevel="FATAL")
        decoder.add_fsg("world", word_pairs(decoder, texts))
        decoder.activate_search("world")

    def hear(clip):
        decoder.start_utt()
        decoder.process_raw(clip.tobytes(), full_utt=True)
        decoder.end_utt()
        return decoder.hyp().hypstr if decoder.hyp() else ""
    return hear


def word_pairs(decoder, texts):
    """A grammar: a state a word, an arc where one follows the other in a text, all alike."""
    pairs = set()
    for text in texts:
        said = ["<s>", *words(text), "</s>"]
        pairs |= set(zip(said, said[1:]))
    names = sorted({word for pair in pairs for word in pair})
    state = {name: i for i, name in enumerate(names)}
    arcs = []
    for first, then in sorted(pairs):
        share = 1 / sum(a == first for a, _ in pairs)
        spoken_word = () if then == "</s>" else (then,)
        arcs.append((state[first], state[then], share, *spoken_word))
    return decoder.create_fsg("world", state["<s>"], state["</s>"], arcs)


def whisper(folder, prompt):
    """faster-whisper as a function clip -> text."""
    from faster_whisper import WhisperModel
    model = WhisperModel(folder, device="cpu", compute_type="float32")

    def hear(clip):
        pieces, _ = model.transcribe(
            clip.astype("float32") / 2 ** 15, language="en", beam_size=5, without_timestamps=True,
            initial_prompt=prompt, condition_on_previous_text=False)
        return " ".join(piece.text for piece in pieces).strip()
    return hear


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="clips.json")
    parser.add_argument("--whisper", metavar="MODEL", help="folder of a model for faster-whisper")
    parser.add_argument("--prompt", default=PROMPT, help="what Whisper is told of the world")
    parser.add_argument("--json", type=Path, help="where the rates go (beside the clips)")
    args = parser.parse_args()
    entries = json.loads(args.clips.read_text(encoding="utf-8"))
    if args.whisper:
        ears = {"knows the world": whisper(args.whisper, args.prompt),
                "knows English": whisper(args.whisper, None)}
    else:
        texts = [entry["text"] for entry in entries]
        ears = {"knows the world": sphinx(texts), "knows English": sphinx()}
    path = args.json or args.clips.with_name("hear.json")
    result = {"recogniser": Path(args.whisper or "pocketsphinx en-us").name, "groups": {}}
    for name, hear in ears.items():
        groups = {}
        for entry in entries:
            group = groups.setdefault(f"{entry['speaker']}, {entry['split']}", [])
            heard = hear(read_clip(args.clips.parent / entry["file"]))
            entry[name] = heard
            wanted = words(entry["text"])
            group.append((errors(words(heard), wanted), len(wanted)))
        for group, pairs in groups.items():
            found = rate(pairs)
            result["groups"].setdefault(group, {})[name] = found
            mean, spread = found["word_errors"]
            print(f"{group:32} {name:15} {100 * mean:5.1f} ± {100 * spread:.1f}% word errors, "
                  f"{found['without_any']} of {found['clips']} clips without any")
        args.clips.with_name("heard.json").write_text(json.dumps(entries, indent=1))
        path.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
