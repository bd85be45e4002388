"""One's own texts, pictures and recordings, as people keep them.

Pictures and recordings need a text each. It stands in one of these layouts:

    p00.txt beside p00.png             one text; of a picture, every line is a caption
    metadata.jsonl                     {"file_name": "p00.png", "text": "a caption"}, a line each
    metadata.csv, columns named        file_name,text or id|text|speaker, in any order
    metadata.csv, columns not named    id|text, id|raw|normalised, id|speaker|text, path|number|text

Metadata stand in the folder or in its subfolder train. The files that they name stand beside them
or in wavs. Links are followed. Hidden files and folders are not read.

Each item is judged once, as it will be used. Only names and texts stay in memory.
"""
import csv
import io
import itertools
import json
import os
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import soundfile
from PIL import Image, ImageOps

from files import DataError, printable, quoted, reason
from sources import Source, digest

SAMPLE_RATE = 16000  # Hz
LARGEST_SIDE = 64  # pixels, where no side is asked for
LOUDEST = 2.0  # full scale is 1: a decoded mp3 may exceed it a little, integers do by far
QUIETEST = 1e-4  # three steps of 16 bits
LEAST_TEXT = 100  # characters of all documents together
PICTURES = set(
    ".apng .avif .bmp .dib .gif .ico .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pcx .pgm .png .pnm .ppm "
    ".psd .qoi .sgi .tga .tif .tiff .webp".split()
)
CLIPS = set(".aif .aifc .aiff .au .caf .flac .mp3 .oga .ogg .opus .rf64 .w64 .wav .wave".split())
HIDDEN = (".", "__MACOSX", "@eaDir")  # beginnings of names that no person wrote
FILE_COLUMNS = "file_name filename file path audio_file audio_filepath audio wav image id".split()
TEXT_COLUMNS = (  # the first that is there
    "normalized_text normalized_transcription normalized normalised "
    "text caption transcription transcript sentence"
).split()


# ------------------------------------------------------------------------------------------------
# One file.


def content_of(file):
    """(bytes, how a message about them begins) of a path or of bytes."""
    if isinstance(file, bytes):
        return file, ""
    try:
        with open(file, "rb") as opened:
            return opened.read(), f"{quoted(file)}: "
    except OSError as error:
        missing = os.path.islink(file) and not os.path.exists(file)
        why = "a link to a file that is missing, fetch it" if missing else reason(error)
        raise DataError(f"{quoted(file)}: {why}")


def text_of(file):
    """The text in a file. DataError for what is no text."""
    content, name = content_of(file)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{name}not UTF-8: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def why_not(error):
    """Why PIL or libsndfile cannot read a file's bytes."""
    text = reason(error)
    return "unknown format: convert it" if "BytesIO" in text else text


def open_picture(file, side, channels):
    """A picture as uint8 (side, side, channels): its first frame, cropped to a square and resized.

    Transparent pixels become white. file: a path or bytes. DataError for what is no picture.
    """
    content, name = content_of(file)
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture = ImageOps.exif_transpose(eight_bits(picture))
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            picture = picture.convert({1: "L", 3: "RGB"}[channels])
            if picture.size != (side, side):
                picture = ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
            return np.asarray(picture, np.uint8).reshape(side, side, channels)
    except DataError as error:
        raise DataError(f"{name}{error}")
    except Exception as error:  # a broken file makes PIL raise nearly everything
        raise DataError(f"{name}cannot be read as a picture ({why_not(error)})")


def eight_bits(picture):
    """A picture whose values have 8 bits. DataError where its format does not say what white is."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    white = 65535
    if picture.format == "TIFF":
        white = 2 ** picture.tag_v2[258][0] - 1  # 258: bits a sample
    known = picture.mode.startswith("I;16") or picture.format in ("PNG", "PPM")
    if picture.mode == "F" or not known:
        raise DataError("holds floats or 32-bit integers and does not say which value is white: "
                        "save it with 8 or 16 bits")
    values = np.asarray(picture).astype(np.int64).clip(0, white)
    return Image.fromarray((values * 255 // white).astype(np.uint8))


def picture_format(files, patch=4):
    """(side, channels) that suit picture files. Those that cannot be read do not count.

    side: the median of their shorter sides, at most LARGEST_SIDE, whole patches.
    channels: 1 if all are grey, else 3.
    """
    sides = []
    grey = True
    for file in files:
        try:
            with Image.open(file) as picture:
                sides.append(min(picture.size))
                grey = grey and picture.mode.startswith(("1", "L", "I", "F"))
        except Exception:  # named when it is judged
            pass
    side = min(LARGEST_SIDE, sorted(sides or [patch])[len(sides) // 2])
    return max(patch, side // patch * patch), 1 if grey else 3


class Recording(soundfile.SoundFile):
    """A recording that is read from start to end: its header need not know where that is."""

    def seekable(self):
        return False


def open_clip(file, shortest=0.1, longest=20.0):
    """A recording as float32 (n,), mono at 16 kHz. It may last shortest to longest seconds.

    file: a path or bytes. DataError for what is no recording, is silent or beyond full scale.
    """
    content, name = content_of(file)
    blocks = []
    count = 0
    try:
        with Recording(io.BytesIO(content)) as opened:
            rate = opened.samplerate
            while count <= longest * rate:
                block = opened.read(65536, dtype="float32", always_2d=True)
                if len(block) == 0:
                    break
                blocks.append(block)
                count += len(block)
    except Exception as error:
        raise DataError(f"{name}cannot be read as a recording ({why_not(error)})")
    if count > longest * rate:
        raise DataError(f"{name}lasts over {longest:g} s (--longest-clip)")
    if count == 0 or count < shortest * rate:
        raise DataError(f"{name}lasts {count / rate:.2f} s, under {shortest:g} s")
    return mono(np.concatenate(blocks), rate, name)


def mono(channels, rate, name):
    """Channels (n, c) as one wave at 16 kHz. It is judged as it will be used."""
    loudest = np.abs(channels).max()
    if not np.isfinite(loudest):
        raise DataError(f"{name}holds values that are no numbers")
    if loudest > LOUDEST:
        raise DataError(f"{name}reaches {loudest:.2g}, where full scale is 1: divide its values")
    if loudest < QUIETEST:
        raise DataError(f"{name}is silent")
    wave = resample(channels.mean(1), rate)
    if np.abs(wave).max() < max(QUIETEST, 0.01 * loudest):
        raise DataError(f"{name}is silent as one channel at 16 kHz: keep one of its channels")
    return wave.astype(np.float32)


def resample(wave, rate):
    """wave (n,) at `rate` Hz -> (m,) at 16 kHz. Its spectrum is cut or extended."""
    if rate == SAMPLE_RATE:
        return wave
    length = round(len(wave) * SAMPLE_RATE / rate)
    spectrum = np.fft.rfft(wave)
    wanted = np.zeros(length // 2 + 1, complex)
    kept = min(len(spectrum), len(wanted))
    wanted[:kept] = spectrum[:kept]
    return np.fft.irfft(wanted, length) * length / len(wave)


# ------------------------------------------------------------------------------------------------
# The files of a folder, and the names that metadata have for them.


@dataclass
class Item:
    file: str = ""
    text: str = ""
    why: str = ""  # it cannot be used: a line that names it
    key: str = ""
    length: int = 0  # of its array


def ending(name):
    return os.path.splitext(name)[1].lower()


def folded(name):
    """One spelling of names that differ in case or in how accents are stored."""
    return unicodedata.normalize("NFC", name).casefold()


class Folder:
    """The files below a folder. Their names are paths in it."""

    def __init__(self, root):
        self.root = root
        self.names = []
        self.unreadable = []  # items that stand for subfolders
        self.used = set()  # names that are found or read
        self.index = {}  # folded name, with and without ending -> names
        self.walk("", ())
        for name in self.names:
            stem = os.path.splitext(name)[0]
            for key in {folded(name), folded(stem)}:
                self.index.setdefault(key, []).append(name)

    def path(self, name):
        return os.path.join(self.root, name)

    def walk(self, inside, above):
        """Add the names below the subfolder `inside`. above: the folders that hold it."""
        here = os.path.realpath(self.path(inside))
        if here in above:  # a link back
            return
        try:
            entries = sorted(os.listdir(here))
        except OSError as error:
            why = f"{quoted(self.path(inside).rstrip('/'))}: {reason(error)}"
            if not inside:
                raise DataError(why)
            self.unreadable.append(Item(why=why))
            return
        for entry in entries:
            name = os.path.join(inside, entry)
            if entry.startswith(HIDDEN):
                continue
            if os.path.isdir(self.path(name)):
                self.walk(name, above + (here,))
            else:
                self.names.append(name)

    def read(self, name):
        self.used.add(name)
        return text_of(self.path(name))

    def find(self, name, endings=()):
        """The file of that name, or "". DataError if there are two.

        The name may lack its ending. One of `endings` is preferred then.
        """
        found = self.index.get(folded(name), [])
        exact = [file for file in found if file == name]
        whole = [file for file in found if folded(file) == folded(name)]
        readable = [file for file in found if ending(file) in endings]
        found = exact or whole or readable or found
        if len(found) > 1:
            raise DataError(f"two files of that name ({', '.join(found)}): rename one")
        self.used.update(found)
        return "".join(found)

    def find_listed(self, name, inside, endings):
        """The file that metadata in the subfolder `inside` name. DataError if there is none.

        Names may also be relative to wavs or to the folder above, absolute, or of another system.
        Only files that `walk` found are found, so no name leads out of the folder.
        """
        for spelled in (name, name.replace("\\", "/")):
            for place in ("", "wavs", os.pardir):
                path = self.path(os.path.join(inside, place, spelled))
                path = os.path.relpath(path, self.root)
                found = self.find(path, endings)
                if found:
                    return found
        path = os.path.relpath(self.path(os.path.join(inside, spelled)), self.root)
        outside = path.startswith(os.pardir)
        raise DataError("lies outside the folder" if outside else "no such file")

    def left_aside(self):
        """How many files of each ending are not used."""
        left = [name for name in self.names if name not in self.used]
        return Counter(ending(name) or "without ending" for name in left)


# ------------------------------------------------------------------------------------------------
# Layouts. Each gives rows: (name of a file, its text, why they cannot be used).


def rows_beside(folder, metadata, endings):
    """Each file that has such an ending, with the .txt of the same name."""
    rows = []
    stems = set()
    for name in folder.names:
        if ending(name) not in endings:
            continue
        stem = os.path.splitext(name)[0]
        try:
            text = folder.find(stem + ".txt")
            if ending(text) != ".txt":
                raise DataError(f"{quoted(stem)}.txt is missing")
            if stem in stems:
                raise DataError(f"a second file beside {quoted(text)}")
            stems.add(stem)
            texts = [folder.read(text)]
            if endings is PICTURES:
                texts = [line for line in texts[0].split("\n") if line.strip()] or [""]
            rows += [(name, text, "") for text in texts]
        except DataError as error:
            rows.append((name, "", str(error)))
    return rows


def chosen_columns(names):
    """(column of the file, column of the text), or None where no name says so."""
    names = [name.strip(' "').lower().replace(" ", "_") for name in names]
    files = [names.index(name) for name in FILE_COLUMNS if name in names]
    texts = [names.index(name) for name in TEXT_COLUMNS if name in names]
    if files and texts:
        return files[0], texts[0]
    return None


def json_rows(folder, metadata, endings):
    """Rows of a metadata.jsonl."""
    rows = []
    for number, line in enumerate(folder.read(metadata).split("\n"), 1):
        if not line.strip():
            continue
        name = f"{os.path.basename(metadata)}:{number}"
        row = (name, "", 'not {"file_name": "a name", "text": "a text"}')
        try:
            cells = json.loads(line)
            file, text = chosen_columns(cells)
            cells = list(cells.values())
            if isinstance(cells[text], str):
                row = (str(cells[file]), cells[text], "")
        except (ValueError, TypeError, AttributeError):
            pass
        rows.append(row)
    return rows


def csv_rows(folder, metadata, endings):
    """Rows of a metadata.csv. DataError where nobody can tell which columns are meant."""
    content = folder.read(metadata)
    first = content.lstrip().split("\n")[0]
    columns = chosen_columns(first.split(","))
    if columns:  # quoted cells may hold line ends
        table = csv.reader(io.StringIO(content), strict=True)
    else:
        columns = chosen_columns(first.split("|"))
        table = [split_bars(line) for line in content.split("\n")]
    table = [cells for cells in table if any(cells)]
    widths = [len(cells) for cells in table]
    width = max(set(widths), key=widths.count, default=0)
    if width < 2:
        raise DataError(f"{quoted(folder.path(metadata))}: neither id|text nor a table whose first "
                        "line is file_name,text")
    if columns:
        width = len(table.pop(0))
    else:
        columns = 0, text_column([cells for cells in table if len(cells) == width])
    rows = []
    for cells in table:
        if len(cells) == width:
            rows.append((cells[columns[0]].strip(), cells[columns[1]], ""))
        else:
            rows.append((cells[0].strip(), "", f"has {len(cells)} column(s), others {width}"))
    return rows


def split_bars(line):
    """The cells of id|text. Quotes enclose a cell only if they stand as a CSV writer sets them."""
    cells = csv.reader([line], delimiter="|", strict=True, skipinitialspace=True)
    try:
        return next(cells, [])
    except csv.Error:  # they belong to the text
        return line.split("|")


def text_column(table):
    """The column of the texts, where none is named.

    It is the last of those that vary: of LJSpeech the normalised one, and neither a speaker nor
    a language, before the text or behind it.
    """
    counts = [len(set(column) - {""}) for column in zip(*table)][1:]
    varied = [column for column, count in enumerate(counts, 1) if 2 * count > max(counts)]
    return max(varied, default=1)


LAYOUTS = {
    "metadata.jsonl": json_rows,
    "metadata.csv": csv_rows,
    "train/metadata.jsonl": json_rows,
    "train/metadata.csv": csv_rows,
    "": rows_beside,
}


# ------------------------------------------------------------------------------------------------
# One reader.


def documents_of(path):
    """The items of a .txt file or of a folder of them, and what is left aside."""
    if os.path.exists(path) and not os.path.isdir(path):
        return [Item(path)], Counter()
    folder = Folder(path)
    names = [name for name in folder.names if ending(name) == ".txt"]
    folder.used.update(names)
    items = [Item(folder.path(name)) for name in names]
    return items + folder.unreadable, folder.left_aside()


def items_of(root, endings):
    """The items of a folder, and how many of its files are left aside, by ending."""
    present = [name for name in LAYOUTS if os.path.exists(os.path.join(root, name))]
    metadata = "".join(present[:1])
    inside = os.path.dirname(metadata)
    folder = Folder(root)
    items = folder.unreadable
    for name, text, why in LAYOUTS[metadata](folder, metadata, endings):
        item = Item(text=text)
        items.append(item)
        try:
            item.file = folder.path(folder.find_listed(name, inside, endings))
        except DataError as error:
            why = why or str(error)
        if why:
            item.why = f"{quoted(folder.path(os.path.join(inside, name)))}: {why}"
    left = folder.left_aside()
    if not items:
        raise DataError(f"{quoted(root)} holds no item with a text, but {counted(left)}: convert "
                        f"files to one of {' '.join(sorted(endings))}; add a .txt of the same name "
                        "to each, or a metadata.jsonl or metadata.csv")
    return items, left


def gather(flag, paths, read, *args):
    """What `read` says of all paths."""
    items = []
    left = Counter()
    for path in paths:
        try:
            more, aside = read(path, *args)
        except DataError as error:
            raise DataError(f"{flag} {error}")
        except csv.Error as error:
            raise DataError(f"{flag} {quoted(path)}: metadata.csv: {error}")
        items += more
        left += aside
    return items, left


def fault_of_text(text, longest=None):
    """Why a text cannot be used, or ""."""
    if not text:
        return "its text is empty"
    if "\0" in text:
        return "its text holds NUL characters: it is no text, or is not UTF-8"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "its text holds halves of characters (surrogates)"
    if longest and len(text) > longest:
        return f"its text has {len(text)} characters, over {longest} (--longest-caption)"
    return ""


def look(file, opened):
    """(key, length, why it cannot be used) of a file. opened(file) is its array."""
    try:
        array = opened(file)
        return digest(array), len(array), ""
    except DataError as error:
        return "", 0, str(error)


def judge(items, opened, longest_text):
    """Set the items' keys and lengths, or why they cannot be used. Each file is read once."""
    files = list(dict.fromkeys(item.file for item in items if not item.why))
    with ThreadPoolExecutor() as pool:
        looked = pool.map(look, files, itertools.repeat(opened))
        looked = dict(zip(files, looked))
    for item in items:
        if item.why:
            continue
        item.text = " ".join(item.text.split())
        fault = fault_of_text(item.text, longest_text)
        item.key, item.length, item.why = looked[item.file]
        if fault:
            item.why = f"{quoted(item.file)}: {fault}"


def usable(items, flag, skip_bad):
    """The items that can be used. DataError names the others. With skip_bad they are printed."""
    bad = [item.why for item in items if item.why]
    good = [item for item in items if not item.why]
    if not bad:
        return good
    named = bad[:10]
    if len(bad) > 10:
        named.append(f"and {len(bad) - 10} more")
    line = f"{flag}: {len(bad)} of {len(items)} items cannot be used ({'; '.join(named)})"
    if not good:
        raise DataError(f"{line}: mend them")
    if not skip_bad:
        raise DataError(f"{line}: mend or remove them, or leave them out with --skip-bad")
    print(printable(f"{line}: left out"), flush=True)
    return good


def counted(endings):
    """Counts of endings in words."""
    return ", ".join(f"{n} {name}" for name, n in endings.most_common()) or "nothing"


def shown(flag, source, what, left):
    """The source, after a line that lets a person see whether it is what was meant."""
    lengths = sorted(len(text) for text in source.texts)
    line = (f"{flag} {source.name}: {what}; texts of {lengths[len(lengths) // 2]} characters "
            f"(median) to {lengths[-1]}; the first: {source.texts[0][:60]!r}")
    if left:
        line += f"; left aside: {counted(left)}"
    print(printable(line), flush=True)
    return source


def name_of(paths):
    return printable(", ".join(quoted(path) for path in paths))


def read_text(paths, skip_bad=False):
    """.txt files, or all those in folders, as a Source. Each file is a document."""
    items, left = gather("--text", paths, documents_of)
    for item in items:
        if item.why:
            continue
        try:
            item.text = text_of(item.file).strip()
            fault = item.text and fault_of_text(item.text)
            item.why = fault and f"{quoted(item.file)}: {fault}"
        except DataError as error:
            item.why = str(error)
    items = usable(items, "--text", skip_bad)
    texts = [item.text for item in items if item.text]
    left["empty"] = len(items) - len(texts)
    total = sum(len(text) for text in texts)
    if total < LEAST_TEXT:
        raise DataError(f"--text {name_of(paths)}: {total} character(s) in all, too little text to "
                        f"learn from: give .txt files, or folders of them, with {LEAST_TEXT}")
    keys = [digest(text) for text in texts]
    source = Source("text", name_of(paths), texts, None, keys)
    return shown("--text", source, f"{len(texts)} document(s), {total:,} characters", +left)


def pairs(flag, kind, folders, items, opened):
    """Items with files as a Source."""
    files = [item.file for item in items]

    def load(indices):
        return [opened(files[i]) for i in indices]

    texts = [item.text for item in items]
    keys = [item.key for item in items]
    if len(set(keys)) < 2:
        raise DataError(f"{flag} {name_of(folders)}: holds only one item, or several copies of "
                        "one: give two or more, since some are held out")
    return Source(kind, name_of(folders), texts, load, keys)


def read_images(folders, side=0, skip_bad=False, longest_text=300, patch=4):
    """Folders of pictures with captions as a Source of uint8 (side, side, channels).

    side 0: as picture_format says, whole patches. longest_text: characters of a caption.
    """
    items, left = gather("--images", folders, items_of, PICTURES)
    files = dict.fromkeys(item.file for item in items if item.file)
    usual, channels = picture_format(files, patch)
    how = "as asked for" if side else f"the median of shorter sides, at most {LARGEST_SIDE}"
    side = side or usual

    def opened(file):
        return open_picture(file, side, channels)

    judge(items, opened, longest_text)
    items = usable(items, "--images", skip_bad)
    source = pairs("--images", "image-text", folders, items, opened)
    count = len({item.file for item in items})
    what = f"{count} picture(s), side {side} ({how}), {channels} channel(s)"
    if count < len(items):
        what += f", {len(items)} captions (one a line)"
    return shown("--images", source, what, left)


def read_speech(folders, skip_bad=False, longest_text=300, shortest=0.1, longest=20.0):
    """Folders of recordings with transcripts as a Source of float32 waves at 16 kHz.

    longest_text: characters of a transcript. shortest, longest: seconds of a recording.
    """
    items, left = gather("--speech", folders, items_of, CLIPS)

    def opened(file):
        return open_clip(file, shortest, longest)

    judge(items, opened, longest_text)
    items = usable(items, "--speech", skip_bad)
    source = pairs("--speech", "speech-text", folders, items, opened)
    seconds = sum(item.length for item in items) / SAMPLE_RATE
    return shown("--speech", source, f"{len(items)} recording(s), {seconds:,.1f} s in all", left)
