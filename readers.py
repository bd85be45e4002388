"""Readers for one's own text, pictures and recordings, and the toy world, all as `Source`s: items of one kind.

Everything that comes from outside is checked here, once, before anything is trained: files that cannot be used are counted
and named, and stop the run or (--skip-bad) are left out. Of one's own data only file names and texts stay in memory.
"""
import contextlib
import functools
import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np

from safe import DataError, reason

SAMPLE_RATE = 16000
LARGEST = 64  # pixels along the side of a picture, where no flag says otherwise: 64 tokens
FULL_SCALE = 4.0  # largest sample of a recording: lossy codecs and mixes go a little over 1, broken or unscaled ones far
PICTURES, CLIPS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}, {".wav", ".flac", ".ogg"}


def rng(seed, *stream):
    """A counter-based generator: a pure function of seed and stream numbers."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))


def digest(*parts):
    """Short content key of strings and bytes."""
    h = hashlib.sha256()
    for part in parts:
        h.update(part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass"))
        h.update(b"\0")
    return h.hexdigest()[:16]


@dataclass
class Source:
    """Items of one kind. texts: documents, captions or transcripts; load(indices) -> list of pictures (uint8 HWC)
    or waveforms (float32, 16 kHz), None for text alone; key: changes with the content."""
    kind: str
    name: str
    texts: list
    load: Callable
    key: str

    def __len__(self):
        return len(self.texts)


# ---------------------------------------------------------------------------------------------------------------------
# One file.

def open_picture(path, side, channels):
    """A picture file (or its bytes) as uint8 (side, side, channels): the first frame, alpha on white, 16 bits to 8, cropped to
    a square and resized. Raises DataError for what is no picture."""
    from PIL import Image, ImageOps
    try:
        with Image.open(io.BytesIO(path) if isinstance(path, bytes) else path) as picture:
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I"):                       # PIL would clip 16 bits, not scale them
                picture = Image.fromarray((np.asarray(picture, np.int64).clip(0, 65535) // 257).astype(np.uint8))
            if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA"):
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            picture = picture.convert("L" if channels == 1 else "RGB")
            if picture.size != (side, side):
                picture = ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
            return np.asarray(picture, np.uint8).reshape(side, side, channels)
    except Exception as error:                                     # broken files make PIL raise nearly everything
        raise DataError(f"{'' if isinstance(path, bytes) else f'{path}: '}cannot be read as a picture ({reason(error)})")


def picture_format(folders):
    """(side, channels) that suit the pictures of folders: the shorter side of the first, at most LARGEST; one channel if all (of a folder's
    first thousand) are grey."""
    from PIL import Image
    found = []                                                     # (side, is it grey)
    for path in (p for f in folders for p in [p for p in sorted(Path(f).rglob("*")) if p.suffix.lower() in PICTURES][:1000]):
        with contextlib.suppress(Exception), Image.open(path) as picture:          # what cannot be read is named later, with the others
            found.append((min(picture.size), picture.mode in ("1", "L", "I;16", "I")))
    return (min(LARGEST, found[0][0]), 1 if all(grey for _, grey in found) else 3) if found else (32, 3)


def resample(wave, rate):
    """To 16 kHz by cutting or extending the spectrum (ideal low-pass). wave (n,), rate in Hz -> (m,) float32."""
    if rate == SAMPLE_RATE:
        return wave.astype(np.float32)
    spectrum, n = np.fft.rfft(wave), round(len(wave) * SAMPLE_RATE / rate)
    out = np.zeros(n // 2 + 1, complex)
    keep = min(len(out), len(spectrum))
    out[:keep] = spectrum[:keep]
    return (np.fft.irfft(out, n) * n / len(wave)).astype(np.float32)


def open_clip(path, shortest=0.05, longest=float("inf")):
    """A recording (a file, or its bytes) as float32 mono at 16 kHz, of shortest to longest seconds. Raises DataError else."""
    import soundfile
    name = "" if isinstance(path, bytes) else f"{path}: "
    try:
        wave, rate = soundfile.read(io.BytesIO(path) if isinstance(path, bytes) else path, dtype="float32", always_2d=True)
    except Exception as error:
        raise DataError(f"{name}cannot be read as a recording ({reason(error)})")
    if not shortest <= len(wave) / rate <= longest:
        raise DataError(f"{name}lasts {len(wave) / rate:.2f} s, not {shortest:g} to {longest:g} s"
                        + (" (--longest-clip)" if len(wave) / rate > longest else ""))
    if not np.isfinite(wave).all() or np.abs(wave).max() < 1e-4:
        raise DataError(f"{name}is silent, or holds values that are no numbers")
    if np.abs(wave).max() > FULL_SCALE:
        raise DataError(f"{name}holds a sample of {np.abs(wave).max():.2g}, where full scale is 1: scale it to -1 to 1")
    return resample(wave.mean(1), rate)


# ---------------------------------------------------------------------------------------------------------------------
# Folders.

def read_utf8(path):
    return path.read_text(encoding="utf-8-sig")


def refuse(bad, total, flag, skip_bad):
    """bad: [(name, why)]: a DataError that names the first ten, or with skip_bad a printed line."""
    if not bad:
        return
    named = "; ".join(f"{name}: {why}" for name, why in bad[:10]) + (f"; and {len(bad) - 10} more" if len(bad) > 10 else "")
    line = f"{flag}: {len(bad)} of {total} items cannot be used ({named})"
    if not skip_bad or len(bad) == total:
        raise DataError(line + ": mend or remove them" + ("" if skip_bad else ", or leave them out with --skip-bad"))
    print(line + ": left out", flush=True)


def captioned(folder, extensions, flag):
    """Items of a folder by metadata.jsonl, metadata.csv (id|text, with wavs/) or same-stem .txt files -> list of
    (name, file, text, None), or (name, None, "", why) for one that cannot be used."""
    folder, items, seen = Path(folder), [], set()
    if not folder.is_dir():
        raise DataError(f"{flag}: {folder} is not a folder")
    try:
        if (folder / "metadata.jsonl").exists():
            for number, line in enumerate(read_utf8(folder / "metadata.jsonl").split("\n"), 1):
                try:
                    row = json.loads(line) if line.strip() else None
                    if row is not None:
                        file, text = folder / row["file_name"], row["text"]
                        items.append((str(row["file_name"]), file, text, None) if isinstance(text, str) else
                                     (str(row["file_name"]), None, "", "its text is no string"))
                except (ValueError, KeyError, TypeError):
                    items.append((f"metadata.jsonl:{number}", None, "", 'not {"file_name": ..., "text": ...}'))
        elif (folder / "metadata.csv").exists():
            if not (folder / "wavs").is_dir():
                raise DataError(f"{flag}: {folder} has a metadata.csv but no folder wavs beside it")
            stems = {}
            for file in sorted((folder / "wavs").iterdir()):
                if file.suffix.lower() in extensions:
                    stems.setdefault(file.stem, []).append(file)
            for number, line in enumerate(read_utf8(folder / "metadata.csv").split("\n"), 1):
                if line.strip():
                    name, bar, text = line.partition("|")
                    files = stems.get(name, [])
                    why = ("not id|text" if not bar else "no such file in wavs" if not files else
                           "two files of that name in wavs" if len(files) > 1 else None)
                    items.append((name if bar else f"metadata.csv:{number}", None if why else files[0], text.split("|")[0], why))
        else:
            files = [f for f in sorted(folder.rglob("*")) if f.suffix.lower() in extensions]
            for file in files:
                text = file.with_suffix(".txt")
                name = str(file.relative_to(folder))
                why = ("a second file of that name" if file.with_suffix("") in seen else
                       None if text.exists() else f"{text.name} is missing")
                seen.add(file.with_suffix(""))
                try:
                    items.append((name, None, "", why) if why else (name, file, read_utf8(text).strip(), None))
                except UnicodeDecodeError:
                    items.append((name, None, "", f"{text.name} is not UTF-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{flag}: {folder}: its metadata cannot be read as UTF-8 ({reason(error)})")
    if not items:
        raise DataError(f"{flag}: {folder} holds no item with a text: add metadata.jsonl, metadata.csv or .txt files")
    return items


def usable(folder, extensions, flag, probe, skip_bad, longest_text):
    """The items of a folder that `probe(bytes of the file)` does not object to -> files, texts, content keys."""
    items, seen = captioned(folder, extensions, flag), set()
    root = Path(folder).resolve()

    def look(item):
        """Why an item cannot be used, or None, and its key."""
        try:
            return judged(*item)
        except (DataError, OSError, ValueError) as error:          # ValueError: a name or text that no system can hold
            return str(error), None

    def judged(name, file, text, why):
        if why is None:
            text.encode("utf-8")
            why = ("its text is empty" if not text.strip() else
                   f"its text has {len(text)} characters, over {longest_text} (--longest-caption)" if len(text) > longest_text
                   else "lies outside the folder" if root not in file.resolve().parents
                   else "no such file" if not file.is_file() else None)
        if why is not None:
            return why, None
        content = file.read_bytes()
        probe(content)
        return None, digest(text, content)

    looked = []
    with ThreadPoolExecutor() as pool:
        for i in range(0, len(items), 1024):
            looked += pool.map(look, items[i:i + 1024])
    for n, (name, file, _, _) in enumerate(items):
        if file is not None and file in seen and looked[n][0] is None:
            looked[n] = ("named twice", None)
        seen.add(file)
    refuse([(item[0], why) for item, (why, _) in zip(items, looked) if why is not None], len(items), flag, skip_bad)
    return zip(*((file, text, key) for (_, file, text, _), (why, key) in zip(items, looked) if why is None))


def read_text(path, skip_bad=False):
    """A .txt file, or all .txt files of a folder (each one document), as a Source."""
    path, texts, bad = Path(path), [], []
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    for file in files:
        try:
            texts.append(read_utf8(file))
        except (OSError, UnicodeDecodeError) as error:
            bad.append((str(file), reason(error)))
    refuse(bad, len(files), "--text", skip_bad)
    texts = [t for t in texts if t.strip()]
    if not texts:
        raise DataError(f"--text: {path} holds no text: give a .txt file or a folder of them")
    return Source("text", str(path), texts, None, digest(*texts))


def read_images(folder, side, channels, skip_bad=False, longest_text=300):
    """A folder of pictures with captions as a Source of uint8 (side, side, channels)."""
    files, texts, keys = usable(folder, PICTURES, "--images", lambda b: open_picture(b, side, channels), skip_bad, longest_text)
    return Source("image-text", str(folder), list(texts), lambda at: [open_picture(files[i], side, channels) for i in at],
                  digest(side, channels, *keys))


def read_speech(folder, skip_bad=False, longest_text=300, shortest=0.1, longest=20.0):
    """A folder of recordings with transcripts as a Source of float32 waves at 16 kHz; seconds that a clip may last."""
    files, texts, keys = usable(folder, CLIPS, "--speech", lambda b: open_clip(b, shortest, longest), skip_bad, longest_text)
    return Source("speech-text", str(folder), list(texts), lambda at: [open_clip(files[i], shortest) for i in at],
                  digest(*keys))


def toy_sources(seed, pictures, passages, utterances):
    """The embedded toy world as Sources; its items are made when first asked for."""
    import toyspeech
    import toyworld
    source_key = digest(Path(toyworld.__file__).read_bytes(), Path(toyspeech.__file__).read_bytes(), seed)
    scenes = toyworld.scenes(pictures, seed)
    phrases = toyspeech.phrases(utterances, seed)
    drawn = functools.lru_cache(maxsize=1)(lambda: toyworld.draw(scenes, seed))
    spoken = functools.lru_cache(maxsize=1)(lambda: toyspeech.speak(phrases, seed))
    return {
        "text": Source("text", "toy world", toyworld.passages(passages, seed), None, digest(source_key, passages)),
        "image-text": Source("image-text", "toy world", [toyworld.caption(s) for s in scenes],
                             lambda at: [drawn()[i] for i in at], digest(source_key, pictures)),
        "speech-text": Source("speech-text", "toy world", phrases,
                              lambda at: [spoken()[i] for i in at], digest(source_key, utterances)),
    }


def merge(sources):
    """Several sources of one kind as one."""
    if len(sources) == 1:
        return sources[0]
    owner = np.repeat(np.arange(len(sources)), [len(s) for s in sources])
    inner = np.concatenate([np.arange(len(s)) for s in sources])
    load = None if sources[0].load is None else lambda at: [sources[owner[i]].load([inner[i]])[0] for i in at]
    return Source(sources[0].kind, ", ".join(s.name for s in sources), [t for s in sources for t in s.texts], load,
                  digest(*(s.key for s in sources)))


def held_out(source, share=0.05, most=512):
    """Indices for training and for validation. Few long texts are cut instead: the last tenth of each is held out."""
    if source.load is None and len(source) < 100:
        cut = [int(0.9 * len(t)) for t in source.texts]
        first, last = ([f(t, c) for t, c in zip(source.texts, cut)] for f in (lambda t, c: t[:c], lambda t, c: t[c:]))
        n = len(source)
        return (Source(source.kind, source.name, first + last, None, source.key), np.arange(n), np.arange(n, 2 * n))
    order = rng(0, 17).permutation(len(source))
    n = min(most, max(1, int(share * len(source))))
    return source, np.sort(order[n:]), np.sort(order[:n])
