"""One's own texts, pictures and recordings, as people keep them.

Pictures and recordings need a text each. It stands in one of these layouts:

    p00.txt beside p00.png             one text; of a picture, every line is a caption
    metadata.jsonl                     {"file_name": "p00.png", "text": "a caption"}, a line each
    metadata.csv, columns named        file_name,text or id|text|speaker, in any order
    metadata.csv, columns not named    id|text, id|raw|normalised, id|speaker|text, path|number|text

Metadata stand in the folder or in its subfolder train. The files that they name stand beside them,
in wavs, or are named from the folder above. Links are followed. Hidden files are not read.

A reader lists a folder's files, pairs them with texts, judges each pair once, as it will be used,
and says in one line what it found. Only names and texts stay in memory.
"""
import contextlib
import csv
import functools
import io
import json
import math
import os
import re
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
SHORTEST = 0.1  # seconds of a recording
LOUDEST = 2.0  # full scale is 1: a decoded mp3 may exceed it a little, integers do by far
QUIETEST = 1e-4  # three steps of 16 bits
LEAST_TEXT = 100  # characters of all documents together
PICTURES = set(
    ".apng .avif .bmp .dib .gif .ico .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pcx .pgm .png .pnm .ppm "
    ".psd .qoi .sgi .tga .tif .tiff .webp".split()
)
CLIPS = set(".aif .aifc .aiff .au .caf .flac .mp3 .oga .ogg .opus .rf64 .w64 .wav .wave".split())
KIND_OF = {"--text": "text", "--images": "image-text", "--speech": "speech-text"}
METADATA = (  # the first that is there
    "metadata.jsonl metadata.csv train/metadata.jsonl train/metadata.csv"
).split()
HIDDEN = (".", "__MACOSX", "@eaDir")  # beginnings of names that no person wrote
FILE_COLUMNS = "file_name filename file path audio_file audio_filepath audio wav image id".split()
TEXT_COLUMNS = (  # the first that is there
    "normalized_text normalized_transcription normalized normalised "
    "text caption transcription transcript sentence"
).split()


# ------------------------------------------------------------------------------------------------
# One file.


@contextlib.contextmanager
def reading(path, what):
    """The stream of a file's bytes. What fails inside is a DataError that names the path."""
    try:
        if os.path.islink(path) and not os.path.exists(path):
            raise DataError("a link to a file that is missing, fetch it")
        with open(path, "rb") as file:
            content = file.read()
        yield io.BytesIO(content)
    except DataError as error:
        raise DataError(f"{quoted(path)}: {error}")
    except Exception as error:  # a broken file makes PIL raise nearly everything
        why = "unknown format: convert it" if "BytesIO" in str(error) else reason(error)
        if not getattr(error, "filename", ""):  # it could be opened
            why = f"cannot be read as a {what} ({why})"
        raise DataError(f"{quoted(path)}: {why}")


def text_of(path):
    """The text in a file. DataError for what is no text."""
    with reading(path, "text") as stream:
        try:
            return io.TextIOWrapper(stream, "utf-8-sig").read()  # every line ends in \n
        except UnicodeDecodeError:
            raise DataError("not UTF-8: save it as UTF-8")


def open_picture(path, side, channels):
    """A picture as uint8 (side, side, channels): its first frame, cropped to a square and resized.

    Transparent pixels become white, except in 16 bits. DataError for what is no picture.
    """
    with reading(path, "picture") as stream, Image.open(stream) as picture:
        picture = ImageOps.exif_transpose(eight_bits(picture))
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        picture = picture.convert({1: "L", 3: "RGB"}[channels])
        picture = ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
        return np.asarray(picture, np.uint8).reshape(side, side, channels)


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
    made = Image.fromarray((values * 255 // white).astype(np.uint8))
    made.getexif()[0x112] = picture.getexif().get(0x112, 1)  # which side is up
    return made


def picture_format(files, patch=4):
    """(side, channels) that suit picture files. Those that cannot be read do not count.

    side: the median of their shorter sides, at most LARGEST_SIDE, whole patches.
    channels: 1 if all are grey, else 3.
    """
    sides = []
    grey = True
    for file in files:
        with contextlib.suppress(Exception), Image.open(file) as picture:
            sides.append(min(picture.size))
            grey = grey and Image.getmodebase(picture.mode) == "L"
    side = min(LARGEST_SIDE, sorted(sides or [patch])[len(sides) // 2])
    return max(patch, side // patch * patch), 1 if grey else 3


def open_clip(path, longest=20.0):
    """A recording as float32 (n,), mono at 16 kHz. It may last SHORTEST to longest seconds.

    DataError for what is no recording, is silent or beyond full scale.
    """
    with reading(path, "recording") as stream, soundfile.SoundFile(stream) as recording:
        recording.seekable = lambda: False  # its header need not know where it ends
        rate = recording.samplerate
        channels = recording.read(int(longest * rate) + 1, dtype="float32", always_2d=True)
        seconds = len(channels) / rate
        if is_cut(recording, len(channels), longest):
            raise DataError("ends before its header says: fetch it again")
        if seconds > longest:
            raise DataError(f"lasts over {longest:g} s: cut it, or train with longer ones "
                            "(--longest-clip)")
        if seconds < SHORTEST:
            raise DataError(f"lasts {seconds:.2f} s, under {SHORTEST:g} s")
        loudest = np.abs(channels).max()
        if not np.isfinite(loudest):
            raise DataError("holds values that are no numbers")
        if loudest > LOUDEST:
            raise DataError(f"reaches {loudest:.2g}, where full scale is 1: divide its values")
        if loudest < QUIETEST:
            raise DataError("is silent")
        wave = resample(channels.mean(1), rate)
        if np.abs(wave).max() < max(QUIETEST, 0.01 * loudest):
            raise DataError("is silent as one channel at 16 kHz: keep one of its channels")
        return wave.astype(np.float32)


def is_cut(recording, length, longest):
    """Whether an MP3, WAV, AIFF or AU file ends before its header says. length: samples read."""
    if recording.format == "MP3":
        return length < 0.9 * min(recording.frames, longest * recording.samplerate)
    told = re.search(r"(?:data|SSND|Size) *: (\d+) \(should be (\d+)", recording.extra_info)
    return bool(told) and int(told[2]) < int(told[1]) < 2 ** 31 - 4096  # more: a stream's header


def resample(wave, rate):
    """wave (n,) at `rate` Hz -> (m,) at 16 kHz. Its spectrum is cut or extended."""
    if rate == SAMPLE_RATE:
        return wave
    length = round(len(wave) * SAMPLE_RATE / rate)
    spectrum = np.fft.rfft(wave).astype(complex)
    return np.fft.irfft(spectrum, length) * length / len(wave)


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
    """One spelling of names that differ in case, in slashes or in how accents are stored."""
    return unicodedata.normalize("NFC", name).casefold().replace("\\", "/")


class Folder:
    """The files below a folder. Their names are paths in it."""

    def __init__(self, root):
        self.root = root
        self.names = []
        self.unreadable = []  # items that stand for subfolders
        self.used = set()  # names of items and of texts
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
            entries = [name for name in sorted(os.listdir(here)) if not name.startswith(HIDDEN)]
        except OSError as error:
            why = f"{quoted(self.path(inside).rstrip('/'))}: {reason(error)}"
            if not inside:
                raise DataError(why)
            self.unreadable.append(Item(why=why))
            return
        for entry in entries:
            name = os.path.join(inside, entry)
            if os.path.isdir(self.path(name)):
                self.walk(name, above + (here,))
            else:
                self.names.append(name)

    def read(self, name):
        self.used.add(name)
        return text_of(self.path(name))

    def find(self, name, places, endings):
        """The file of that name in one of the subfolders `places`. DataError if none, or two.

        The name may lack its ending: one of `endings` is preferred then. It may be absolute, or of
        another system. Only files that `walk` found are found: no name leads out of the folder.
        """
        name = name.replace("\\", "/")
        paths = [os.path.join(self.root, place, name) for place in places]
        paths = [os.path.relpath(path, self.root) for path in paths]
        for path in paths:
            found = self.index.get(folded(path), [])
            exact = [file for file in found if file == path]
            whole = [file for file in found if folded(file) == folded(path)]
            readable = [file for file in found if ending(file) in endings]
            found = exact or whole or readable or found
            if len(found) > 1:
                raise DataError(f"two files of that name ({', '.join(found)}): rename one")
            if found:
                return found[0]
        outside = paths[0].startswith(os.pardir)
        raise DataError("lies outside the folder" if outside else "no such file")

    def left_aside(self):
        """How many files of each ending are not used."""
        left = [name for name in self.names if name not in self.used]
        return Counter(ending(name) or "without ending" for name in left)


# ------------------------------------------------------------------------------------------------
# Layouts. Each gives rows: (name of a file, its text, why they cannot be used).


def rows_beside(folder, endings):
    """Each file that has such an ending, with the .txt of the same name."""
    names = [name for name in folder.names if ending(name) in endings]
    stems = {os.path.splitext(name)[0] for name in names}
    rows = []
    for name in names:
        stem = os.path.splitext(name)[0]
        try:
            if folded(f"{stem}.txt") not in folder.index:
                raise DataError(f"{quoted(stem)}.txt is missing")
            text = folder.find(f"{stem}.txt", [""], [".txt"])
            owner = os.path.splitext(text)[0]
            if owner != stem and owner in stems:  # a.txt is a.png's, not A.png's
                raise DataError(f"{quoted(stem)}.txt is missing")
            if text in folder.used:
                raise DataError(f"a second file beside {quoted(text)}")
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
    return (files[0], texts[0]) if files and texts else None


def json_rows(content):
    """Rows of a metadata.jsonl."""
    rows = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        row = (f"metadata.jsonl:{number}", "", 'not {"file_name": "a name", "text": "a text"}')
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            cells = json.loads(line)
            file, text = chosen_columns(cells)
            cells = list(cells.values())
            if isinstance(cells[text], str):
                row = (str(cells[file]), cells[text], "")
        rows.append(row)
    return rows


def csv_rows(content):
    """Rows of a metadata.csv. DataError where nobody can tell which columns are meant."""
    first = content.lstrip().split("\n")[0]
    columns = chosen_columns(first.split(","))
    if columns:  # quoted cells may hold line ends
        table = csv.reader(io.StringIO(content), strict=True, skipinitialspace=True)
    else:
        columns = chosen_columns(first.split("|"))
        table = [split_bars(line) for line in content.split("\n")]
    table = [cells for cells in table if any(cells)]
    if columns:
        width = len(table.pop(0))
    else:
        widths = [len(cells) for cells in table]
        width = max(set(widths), key=widths.count, default=0)
        if width < 2:
            raise DataError("neither id|text nor a table whose first line is file_name,text")
        columns = 0, text_column([cells for cells in table if len(cells) == width])
    rows = []
    for cells in table:
        if len(cells) == width:
            rows.append((cells[columns[0]].strip(), cells[columns[1]], ""))
        else:
            why = f"has {len(cells)} column(s), not {width}: quote a text with a comma or bar in it"
            rows.append((cells[0].strip(), "", why))
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

    It is the last of those that hold words and vary: of LJSpeech the normalised one, and neither a
    speaker nor a language, before the text or behind it. DataError if another one is far longer.
    """
    def worded(column):  # no seconds or shares, such as 3.21
        return [cell for cell in column if re.search(r"[^\W\d_]", cell) or cell.isdecimal()]

    columns = list(map(worded, zip(*table)))
    counts = [len(set(column)) for column in columns][1:]
    varied = [column for column, count in enumerate(counts, 1) if 2 * count > max(counts)]
    sizes = [sum(map(len, columns[column])) for column in varied]
    if sizes and 2 * sizes[-1] < max(sizes):
        raise DataError("two columns may be the texts: name them in a first line, as id|text")
    return max(varied, default=1)


# ------------------------------------------------------------------------------------------------
# From paths to items, and what is wrong with them.


def items_of(root, endings):
    """The items of a folder, and how many of its files are left aside, by ending."""
    folder = Folder(root)
    metadata = next((name for name in METADATA if name in folder.names), "")
    inside = os.path.dirname(metadata)
    places = [os.path.join(inside, place) for place in ("", "wavs", os.pardir)]
    if metadata:
        content = folder.read(metadata)
        try:
            rows = json_rows(content) if metadata.endswith(".jsonl") else csv_rows(content)
        except (DataError, csv.Error) as error:
            raise DataError(f"{quoted(folder.path(metadata))}: {error}")
    else:
        rows = rows_beside(folder, endings)
    items = folder.unreadable
    for name, text, why in rows:
        item = Item(text=" ".join(text.split()))
        items.append(item)
        try:
            found = folder.find(name, places, endings)
            folder.used.add(found)
            item.file = folder.path(found)
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


def documents_of(path):
    """The items of a .txt file or of a folder of them, and what is left aside."""
    files = [path]
    items = []
    left = Counter()
    if os.path.isdir(path) or not os.path.exists(path):
        folder = Folder(path)
        names = [name for name in folder.names if ending(name) == ".txt"]
        folder.used.update(names)
        files = [folder.path(name) for name in names]
        items = folder.unreadable
        left = folder.left_aside()
    for file in files:
        try:
            items.append(Item(file, text_of(file).strip()))
        except DataError as error:
            items.append(Item(why=str(error)))
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
        items += more
        left += aside
    return items, left


def judge_text(item, longest=math.inf):
    """Set why an item's text cannot be used, if so."""
    fault = ""
    if not item.text:
        fault = "is empty"
    elif "\0" in item.text:
        fault = "holds NUL characters: it is no text, or is not UTF-8"
    elif re.search("[\ud800-\udfff]", item.text):
        fault = "holds halves of characters (surrogates)"
    elif len(item.text) > longest:
        fault = f"has {len(item.text)} characters, over {longest} (--longest-caption)"
    if fault and not item.why:
        item.why = f"{quoted(item.file)}: its text {fault}"


def judge(items, opened, longest_text):
    """Set the items' keys and lengths, or why they cannot be used.

    opened(file) is the array of a file. Each file is read once.
    """
    def look(file):
        try:
            array = opened(file)
            return digest(array), len(array), ""
        except DataError as error:
            return "", 0, str(error)

    for item in items:
        judge_text(item, longest_text)
    good = [item for item in items if not item.why]
    files = list(dict.fromkeys(item.file for item in good))
    with ThreadPoolExecutor() as pool:
        looked = dict(zip(files, pool.map(look, files)))
    for item in good:
        item.key, item.length, item.why = looked[item.file]


def usable(flag, items, skip_bad):
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


# ------------------------------------------------------------------------------------------------
# The three readers.


def names_of(paths):
    return printable(", ".join(map(quoted, paths)))


def counted(endings):
    """Counts of endings in words."""
    return ", ".join(f"{n} {name}" for name, n in endings.most_common()) or "nothing"


def source_of(flag, paths, items, opened, what, left):
    """The items as a Source, after a line that shows whether they are what was meant."""
    def load(indices):
        return [opened(items[i].file) for i in indices]

    name = names_of(paths)
    texts = [item.text for item in items]
    lengths = sorted(len(text) for text in texts)
    line = (f"{flag} {name}: {what}; texts of {lengths[len(lengths) // 2]} characters (median) "
            f"to {lengths[-1]}; the first: {texts[0][:60]!r}")
    if left:
        line += f"; left aside: {counted(left)}"
    print(printable(line), flush=True)
    keys = [item.key for item in items]
    return Source(KIND_OF[flag], name, texts, load if opened else None, keys)


def read_text(paths, skip_bad=False):
    """.txt files, or all those in folders, as a Source. Each file is a document."""
    found, left = gather("--text", paths, documents_of)
    items = [item for item in found if item.text or item.why]
    left["empty"] = len(found) - len(items)
    for item in items:
        judge_text(item)
        item.key = digest(item.text)
    items = usable("--text", items, skip_bad)
    total = sum(len(item.text) for item in items)
    if total < LEAST_TEXT:
        raise DataError(f"--text {names_of(paths)}: {total} character(s) in all, too little text "
                        f"to learn from: give .txt files, or folders of them, with {LEAST_TEXT}")
    what = f"{len(items)} document(s), {total:,} characters"
    return source_of("--text", paths, items, None, what, +left)


def read_images(folders, side=0, skip_bad=False, longest_text=300, patch=4):
    """Folders of pictures with captions as a Source of uint8 (side, side, channels).

    side 0: as picture_format says, whole patches. longest_text: characters of a caption.
    """
    items, left = gather("--images", folders, items_of, PICTURES)
    files = {item.file for item in items if item.file}
    usual, channels = picture_format(files, patch)
    how = "as asked for" if side else f"the median of shorter sides, at most {LARGEST_SIDE}"
    side = side or usual
    opened = functools.partial(open_picture, side=side, channels=channels)
    judge(items, opened, longest_text)
    items = usable("--images", items, skip_bad)
    count = len({item.file for item in items})
    what = f"{count} picture(s), side {side} ({how}), {channels} channel(s)"
    if count < len(items):
        what += f", {len(items)} captions (one a line)"
    return source_of("--images", folders, items, opened, what, left)


def read_speech(folders, skip_bad=False, longest_text=300, longest=20.0):
    """Folders of recordings with transcripts as a Source of float32 waves at 16 kHz.

    longest_text: characters of a transcript. longest: seconds of a recording.
    """
    items, left = gather("--speech", folders, items_of, CLIPS)
    transcripts = {}
    for item in items:
        if item.file and transcripts.setdefault(item.file, item.text) != item.text:
            item.why = item.why or f"{quoted(item.file)}: has two transcripts"
    opened = functools.partial(open_clip, longest=longest)
    judge(items, opened, longest_text)
    items = usable("--speech", items, skip_bad)
    seconds = sum(item.length for item in items) / SAMPLE_RATE
    what = f"{len(items)} recording(s), {seconds:,.1f} s in all"
    return source_of("--speech", folders, items, opened, what, left)
