"""From items of text, pictures and speech (readers.py) to rows of one token stream.

A row is a task token followed by the members of its kind, each opened by a boundary token:
  text         [task] [text] the document ... [end] [end]        several documents packed into a row, PAD at its end
  image-text   [task] [image] colours, squares [text] the caption [end] [end] ...
  speech-text  [task] [speech] codes ... [end] [end] [text] the transcript [end] [end] ...
Slots of pairs have one size for all rows; what a clip or a caption leaves free is filled with the modality's end id,
which is noised and predicted like any other token: so the model learns where things end. The paper packs text and pads
pairs too; this exact layout is our choice. A new modality is a row of MODALITIES and a file in tokenizers/, a new
pairing a row of KINDS (README's exercise 8 lists what makes, shows and judges them).
"""
import functools
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from readers import digest, rng
from safe import DataError, write_array


def check_layout(version, folder):
    """A DataError if the run in folder has another layout version than this code."""
    if version != LAYOUT_VERSION:
        raise DataError(f"{folder} was made by another version of the layout ({version}, not {LAYOUT_VERSION}): train afresh")


@dataclass(frozen=True)
class Modality:
    module: str      # file in tokenizers/
    file: str        # name of the trained tokenizer in a run folder
    open_end: bool   # variable length, closed by an end id
    unit: str        # what people count: the bound is reported per unit, too


MODALITIES = {
    "text": Modality("text", "text.json", True, "character"),
    "image": Modality("image", "image.pt", False, "pixel-channel"),
    "speech": Modality("audio", "speech.pt", True, "second"),
}
KINDS = {"text": ("text",), "image-text": ("image", "text"), "speech-text": ("speech", "text")}
PAD, MASK = 0, 1
LAYOUT_VERSION = 6  # of rows, vocabulary, picture tokens and checkpoints: raised whenever old files can no longer be read
SPECIALS = ["<pad>", "<mask>", *(f"<task {k}>" for k in KINDS), *(f"<{m}>" for m in MODALITIES)]
HEAD = 2  # a document of a text row begins with its task token and the boundary token of text


@functools.cache
def made_by():
    """Digest of the code that makes tokens and rows: whoever changes it gets new ones instead of those in a run's cache."""
    here = Path(__file__).parent
    return digest(LAYOUT_VERSION, *(path.read_bytes() for path in (here / "data.py", here / "readers.py", *sorted((here / "tokenizers").glob("*.py")))))


def tokenizer_module(modality):
    import importlib
    return importlib.import_module(f"tokenizers.{MODALITIES[modality].module}")


# ---------------------------------------------------------------------------------------------------------------------
# The unified vocabulary and the layout of rows.

class Stream:
    """Ids and positions. Every code group of a modality owns a range of ids whose last one is its end id.

    codes: {modality: (groups, size)}; slots: {kind: [tokens of each member]} (for "text": tokens of a row).
    """

    def __init__(self, codes, slots):
        self.codes, self.slots = {m: tuple(c) for m, c in codes.items()}, {k: list(s) for k, s in slots.items()}
        self.start, self.place_start, self.vocab, self.places = {}, {}, len(SPECIALS), 1
        for modality, (groups, size) in self.codes.items():
            self.start[modality], self.vocab = self.vocab, self.vocab + groups * (size + 1)
            longest = max([n for k, s in self.slots.items() for m, n in zip(KINDS[k], s) if m == modality])
            self.place_start[modality], self.places = self.places, self.places + longest

    def special(self, name):
        return SPECIALS.index(name)

    def ranges(self, modality, position):
        """First id, and last id plus one, allowed at positions of a slot. Fixed-size modalities have no end."""
        groups, size = self.codes[modality]
        low = self.start[modality] + (position % groups) * (size + 1)
        return low, low + size + MODALITIES[modality].open_end

    def to_ids(self, modality, codes):
        """A tokenizer's codes (n,) -> ids of the stream (n,)."""
        return self.ranges(modality, np.arange(len(codes)))[0] + codes

    def fit(self, modality, codes, slot):
        """Ids of one item, filled with end ids to the slot. Raises DataError if it does not fit."""
        if len(codes) > slot - MODALITIES[modality].open_end:
            raise DataError(f"{modality} item of {len(codes)} tokens is longer than its slot of {slot} "
                            f"(one is the end): shorten it, or train with a longer slot")
        ids = self.ranges(modality, np.arange(slot))[1] - 1
        ids[:len(codes)] = self.to_ids(modality, np.asarray(codes, np.int64))
        return ids

    def to_codes(self, modality, ids):
        """Ids of a slot -> the tokenizer's codes, cut at the first end; a last incomplete step of groups is dropped."""
        groups, size = self.codes[modality]
        codes = np.asarray(ids) - self.ranges(modality, np.arange(len(ids)))[0]
        ends = np.flatnonzero(codes >= size)
        codes = codes[:ends[0]] if len(ends) else codes
        return codes[:len(codes) // groups * groups].astype(np.int32)

    @functools.lru_cache(maxsize=None)
    def layout(self, kind):
        """The fixed part of a pair's rows: ids (PAD where content goes), member, place, low, high; each (L,) int64."""
        columns = [(self.special(f"<task {kind}>"), -1, 0, 0, 0)]
        for index, (modality, slot) in enumerate(zip(KINDS[kind], self.slots[kind])):
            columns.append((self.special(f"<{modality}>"), -1, 0, 0, 0))
            for p in range(slot):
                columns.append((PAD, index, self.place_start[modality] + p, *map(int, self.ranges(modality, p))))
        names = ("ids", "member", "place", "low", "high")
        return SimpleNamespace(**{n: np.array(c, np.int64) for n, c in zip(names, zip(*columns))})

    def length(self, kind):
        return self.slots[kind][0] if len(KINDS[kind]) == 1 else len(self.layout(kind).ids)

    def describe(self, kind, ids):
        """Everything the model and the loss need to know of rows ids (B, L): ids, member (-1: never noised), place,
        low, high as (B, L) int64, doc (B, L) for packed rows or None for one document a row."""
        if len(KINDS[kind]) > 1:
            fixed = self.layout(kind)
            shaped = {n: np.broadcast_to(getattr(fixed, n), ids.shape) for n in ("member", "place", "low", "high")}
            return SimpleNamespace(ids=ids, doc=None, **shaped)
        modality = KINDS[kind][0]
        begins = ids == self.special(f"<task {kind}>")
        doc = np.where(ids == PAD, -1, begins.cumsum(1))
        column = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        position = column - np.maximum.accumulate(np.where(begins, column, 0), 1) - HEAD
        inside = (position >= 0) & (ids != PAD)
        low, high = self.ranges(modality, np.maximum(position, 0))
        return SimpleNamespace(ids=ids, member=np.where(inside, 0, -1), doc=doc, low=np.where(inside, low, 0),
                               high=np.where(inside, high, 0),
                               place=np.where(inside, self.place_start[modality] + position, 0))

    def row(self, kind, items, slot=None):
        """One row from the codes of its members; None leaves a member masked. slot: tokens of a lone text document.

        Returns ids (L,). Raises DataError for an item longer than its slot.
        """
        slots = self.slots[kind] if len(KINDS[kind]) > 1 else [slot]
        parts = [[self.special(f"<task {kind}>")]]
        for modality, n, codes in zip(KINDS[kind], slots, items):
            ids = np.full(n, MASK) if codes is None else self.fit(modality, codes, n)
            parts += [[self.special(f"<{modality}>")], ids]
        return np.concatenate(parts).astype(np.int64)

    def pack(self, kind, documents, round_to=8):
        """Documents (lists of codes) -> packed rows (N, L).

        Short documents are filled with end ids to a multiple of round_to (so that their extent does not give away where
        they end) and put first-fit into rows. Longer ones are cut into rows of their own, one after another.
        """
        modality, length = KINDS[kind][0], self.slots[kind][0]
        head = [self.special(f"<task {kind}>"), self.special(f"<{modality}>")]
        rows, open_rows = [], []                                                        # open: [free, index]
        for codes in documents:
            ids, room = self.to_ids(modality, np.asarray(codes, np.int64)), length - HEAD
            end = self.ranges(modality, 0)[1] - 1
            ids = np.append(ids, end)
            for chunk in (ids[i:i + room] for i in range(0, len(ids), room)):
                whole = min(room, -(-len(chunk) // round_to) * round_to)
                piece = np.concatenate((head, chunk, np.full(whole - len(chunk), end)))
                found = next((o for o in open_rows if o[0] >= len(piece)), None)
                if found is None:
                    rows.append(np.full(length, PAD, np.int64))
                    found = [length, len(rows) - 1]
                    open_rows = (open_rows + [found])[-32:]                             # look back at 32 rows only
                rows[found[1]][length - found[0]:length - found[0] + len(piece)] = piece
                found[0] -= len(piece)
        return np.stack(rows)

    def as_dict(self):
        return {"codes": self.codes, "slots": self.slots}


# ---------------------------------------------------------------------------------------------------------------------
# The token cache: made once, memory-mapped, keyed by content, tokenizers and layout.

def encode_items(source, tokenizers, batch=512, progress=None):
    """Codes of every item and member of a source: a list (members) of lists (items) of code arrays."""
    members = KINDS[source.kind]
    codes = {"text": tokenizers["text"].encode(source.texts)}
    if source.load is not None:
        tokenizer, encoded = tokenizers[members[0]], []
        for i in range(0, len(source), batch):
            encoded += tokenizer.encode(source.load(range(i, min(i + batch, len(source)))))
            if progress:
                progress(len(encoded))
        codes[members[0]] = encoded
    return [codes[m] for m in members]


def cached_codes(source, tokenizers, folder, progress=None):
    """`encode_items`, read back from the cache where it is there: flat codes and offsets, memory-mapped."""
    key = digest(made_by(), source.key, len(source), *(tokenizers[m].name for m in KINDS[source.kind]))
    out = []
    for member in KINDS[source.kind]:
        flat, ends = folder / f"{key}-{member}-codes.npy", folder / f"{key}-{member}-ends.npy"
        if not (flat.exists() and ends.exists()):
            for m, items in zip(KINDS[source.kind], encode_items(source, tokenizers, progress=progress)):
                write_array(folder / f"{key}-{m}-codes.npy", np.concatenate(items).astype(np.int32))
                write_array(folder / f"{key}-{m}-ends.npy", np.cumsum([len(i) for i in items]))
        ends = np.load(ends)
        out.append((np.load(flat, mmap_mode="r"), np.concatenate(([0], ends))))
    return out


def slot_for(modality, offsets, codes_groups, multiple=4):
    """A slot that fits the longest item, and its end, rounded up."""
    longest = int(np.diff(offsets).max()) + (codes_groups if MODALITIES[modality].open_end else 0)
    step = codes_groups if MODALITIES[modality].open_end and codes_groups > 1 else multiple
    return -(-longest // step) * step if MODALITIES[modality].open_end else longest


def make_rows(stream, kind, codes, at, folder, key):
    """Rows (N, L) of the items `at`, from the cache or made and cached; the smallest dtype that holds the ids."""
    path = folder / f"{digest(made_by(), key, stream.as_dict(), kind)}-rows.npy"
    if not path.exists():
        item = [lambda i, c=c, o=o: c[o[i]:o[i + 1]] for c, o in codes]
        if len(KINDS[kind]) == 1:
            rows = stream.pack(kind, [item[0](i) for i in at])
        else:
            rows = np.stack([stream.row(kind, [get(i) for get in item]) for i in at])
        write_array(path, rows.astype(np.uint16 if stream.vocab < 65536 else np.int32))
    return np.load(path, mmap_mode="r")


class Batches:
    """Rows of every kind for every step: a pure function of (seed, step), so that resuming needs no state.

    rows: {kind: (N, L)}; per_step: {kind: rows that the network reads a step}, each under so many views (two with --complement).
    Every epoch is a fresh permutation.
    """

    def __init__(self, stream, rows, per_step, seed, views=1):
        self.stream, self.rows, self.per_step, self.seed = stream, rows, {k: n // views for k, n in per_step.items()}, seed
        self._order = functools.lru_cache(maxsize=8)(lambda kind, epoch: rng(
            seed, 1, list(KINDS).index(kind), epoch).permutation(len(rows[kind])))

    def __call__(self, step):
        out = {}
        for kind, count in self.per_step.items():
            number = step * count + np.arange(count)
            size = len(self.rows[kind])
            at = np.array([self._order(kind, int(n) // size)[n % size] for n in number])
            out[kind] = self.stream.describe(kind, self.rows[kind][at].astype(np.int64))
            if out[kind].doc is not None and (out[kind].doc == 1).all():
                out[kind].doc = None                                       # whole rows need no mask of documents
        return out


def rows_per_step(stream, mix, batch_tokens, kinds):
    """Rows of each kind so that a step has about batch_tokens tokens in about the shares `mix` ({kind: share of tokens}): whole
    pairs of rows (each with its complement), at least one pair."""
    total = sum(mix[k] for k in kinds)
    return {k: max(2, 2 * round(batch_tokens * mix[k] / total / stream.length(k) / 2)) for k in kinds if mix[k] > 0}
