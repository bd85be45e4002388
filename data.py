"""The stream of tokens: its vocabulary, documents, rows and batches.

A document is a task token and the members of its kind, each opened by a boundary token:
  text         [task] [text] the text, [end] [end]
  image-text   [task] [image] colours, squares [text] the caption, [end] [end] ...
  speech-text  [task] [speech] codes, [end] [end] [text] the transcript, [end] [end] ...
A member of a pair has one number of tokens, its slot, in all documents. What a clip or a caption
leaves free is filled with the modality's end id, which is noised and predicted like any other
token: so the model learns where things end. Documents of all kinds are packed into rows of one
length. By second-hand accounts the paper packs texts and pads pairs; this layout is our choice.

A kind has one member, or two of which one is a text. A new modality needs, beside its row below:
  here        rows of KINDS, and another LAYOUT_VERSION, since all ids move
  tokenizers  a file
  sources     prepare.py: a source, the tokenizer's training; for own folders a reader, own_sources
  train.py    its share in mix, loss_weights, weighting; for own folders a flag, a word in OWN_DATA
  sample.py   rows of TASKS, DEFAULTS, FILES; read_prompt; for holes in it run_infill, infill_file
  tools       how it looks (masked.py, page.py, watch.py); units_of, and TOY_CELLS to be scored
"""
import functools
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch

import diffusion
import files
from files import DataError
from tokenizers import audio, image, text

# ------------------------------------------------------------------------------------------------
# Tables.


@dataclass(frozen=True)
class Modality:
    load: Callable  # of its tokenizer, from a path
    file: str       # name of the trained tokenizer in a run folder
    open_end: bool  # of variable length, closed by an end id
    unit: str       # what people count: the bound is told per unit, too


MODALITIES = {
    "text": Modality(text.load, "text.json", True, "character"),
    "image": Modality(image.load, "image.pt", False, "pixel-channel"),
    "speech": Modality(audio.load, "speech.pt", True, "second"),
}
KINDS = {"text": ("text",), "image-text": ("image", "text"), "speech-text": ("speech", "text")}
MEMBERS = [(kind, modality) for kind, members in KINDS.items() for modality in members]
LAYOUT_VERSION = 8  # raised whenever old run folders can no longer be read

PAD, MASK = 0, 1
SPECIALS = ["<pad>", "<mask>", *(f"<task {k}>" for k in KINDS), *(f"<{m}>" for m in MODALITIES)]
FIRST_TASK = 2  # id of the first task token; the others follow in the order of KINDS
HEAD = 2  # a document begins with its task token and a boundary token
ROUND = 8  # a text and the ends that fill it, its extent, are a multiple: that hides its length


def rng(seed, *numbers):
    """A counter-based generator: a pure function of the seed and these numbers."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *numbers])))


def opens(ids):
    """Where documents begin in rows ids (B, L): (B, L) bool."""
    return (ids >= FIRST_TASK) & (ids < FIRST_TASK + len(KINDS))


def round_up(n, multiple):
    return -(-n // multiple) * multiple


def load_tokenizers(folder, names):
    """The tokenizers of a run, {modality: tokenizer}; names as in its config.json.

    DataError where one is lost, altered, or another one than the run was trained with.
    """
    tokenizers = {}
    for modality, name in names.items():
        path = folder / MODALITIES[modality].file
        tokenizers[modality] = MODALITIES[modality].load(path)
        if tokenizers[modality].name != name:
            raise DataError(f"{files.quoted(path)} is not the tokenizer that this run was trained "
                            "with: restore it")
    return tokenizers


def check_layout(version, folder):
    if version != LAYOUT_VERSION:
        raise DataError(f"{files.quoted(folder)} was made by another version of the layout "
                        f"({version}, not {LAYOUT_VERSION}): train afresh")


# ------------------------------------------------------------------------------------------------
# The stream: vocabulary, and what stands where.


@dataclass
class Rows:
    """What stands where in rows of the stream; all (B, L) int64."""
    ids: torch.Tensor
    member: torch.Tensor  # index into MEMBERS; -1: never noised
    place: torch.Tensor   # where in its member a token stands; each modality has its own range
    low: torch.Tensor     # first id that may stand there
    high: torch.Tensor    # last id that may stand there, plus one
    doc: torch.Tensor     # which document it belongs to; -1: padding

    def of(self, kind, *modalities):
        """(B, L) bool: the tokens of these members."""
        found = torch.zeros_like(self.member, dtype=torch.bool)
        for modality in modalities:
            found |= self.member == MEMBERS.index((kind, modality))
        return found


class Stream:
    """The ids of all modalities in one vocabulary, and the layout of documents.

    codes: {modality: (groups, size)}: a tokenizer's codes cycle through `groups` code books of
    `size` ids. slots: {kind: tokens of each member}; of a text: the most. Every code book owns a
    range of ids whose last one is its end id.
    """

    def __init__(self, codes, slots):
        self.codes = {m: tuple(c) for m, c in codes.items()}
        self.slots = {k: list(s) for k, s in slots.items()}
        self.start = {}        # first id of each modality
        self.first_place = {}  # first place of each modality; 0 is that of specials
        self.vocab = len(SPECIALS)
        self.places = 1
        for modality, (groups, size) in self.codes.items():
            self.start[modality] = self.vocab
            self.first_place[modality] = self.places
            self.vocab += groups * (size + 1)
            self.places += max(slot for k, s in self.slots.items()
                               for m, slot in zip(KINDS[k], s) if m == modality)
        self.table = self.offset_table()

    def offset_table(self):
        """(kinds, longest, 4): member, place, low, high at each offset behind a task token."""
        longest = max(1 + len(slots) + sum(slots) for slots in self.slots.values())
        table = np.zeros((len(KINDS), longest, 4), np.int64)
        table[:, :, 0] = -1
        for kind, slots in self.slots.items():
            offset = 1
            for modality, slot in zip(KINDS[kind], slots):
                offset += 1  # the boundary token
                at = np.arange(slot)
                low, high = self.ranges(modality, at)
                member = np.full(slot, MEMBERS.index((kind, modality)))
                place = self.first_place[modality] + at
                part = table[list(KINDS).index(kind), offset:offset + slot]
                part[:] = np.stack((member, place, low, high), 1)
                offset += slot
        return torch.from_numpy(table)

    def ranges(self, modality, position):
        """First id, and last id plus one, at positions of a member. Fixed sizes have no end."""
        groups, size = self.codes[modality]
        low = self.start[modality] + (position % groups) * (size + 1)
        return low, low + size + MODALITIES[modality].open_end

    def to_ids(self, modality, codes):
        """A tokenizer's codes (n,) -> ids of the stream (n,)."""
        return self.ranges(modality, np.arange(len(codes)))[0] + np.asarray(codes, np.int64)

    def to_codes(self, modality, ids):
        """Ids of a member -> codes up to its first end, whole steps of groups. Masks read as 0."""
        groups, size = self.codes[modality]
        ids = np.asarray(ids)
        codes = ids - self.ranges(modality, np.arange(len(ids)))[0]
        codes[ids == MASK] = 0
        ends = np.flatnonzero(codes >= size)
        if len(ends):
            codes = codes[:ends[0]]
        return codes[:len(codes) // groups * groups].astype(np.int32)

    def filled(self, modality, codes, slot):
        """Ids of a member, filled with ends to its slot. DataError if the codes do not fit."""
        if len(codes) + MODALITIES[modality].open_end > slot:
            raise DataError(f"{modality} of {len(codes)} tokens does not fit into {slot}: shorten "
                            "it, or train with longer ones")
        ids = self.ranges(modality, np.arange(slot))[1] - 1  # ends; a member of fixed size has none
        ids[:len(codes)] = self.to_ids(modality, codes)
        return ids

    def document(self, kind, codes, slots=None):
        """Ids (L,) of one document from the codes of its members; None: a masked member.

        slots: tokens of each member, if they are not the kind's own (texts).
        """
        ids = [SPECIALS.index(f"<task {kind}>")]
        for modality, slot, code in zip(KINDS[kind], slots or self.slots[kind], codes):
            ids.append(SPECIALS.index(f"<{modality}>"))
            ids.extend([MASK] * slot if code is None else self.filled(modality, code, slot))
        return np.array(ids, np.int64)

    def texts(self, codes):
        """Documents of a text: its codes and an end, in pieces of at most slots["text"] tokens."""
        longest = self.slots["text"][0]
        end = self.ranges("text", 0)[1] - 1
        ids = np.append(self.to_ids("text", codes), end)
        head = self.document("text", [None], [0])  # task and boundary token
        documents = []
        for i in range(0, len(ids), longest):
            piece = ids[i:i + longest]
            extent = min(longest, round_up(len(piece), ROUND))
            ends = np.full(extent - len(piece), end)
            documents.append(np.concatenate((head, piece, ends)))
        return documents

    def describe(self, ids):
        """What stands where in rows ids (B, L), packed or not -> Rows.

        A task token opens a document. The offset from it and its kind say all the rest.
        """
        column = torch.arange(ids.shape[1], device=ids.device)
        begins = opens(ids)                                               # (B, L)
        start = torch.where(begins, column, 0).cummax(1).values           # where its document opens
        kind = (ids.gather(1, start) - FIRST_TASK).clamp(0, len(KINDS) - 1)
        offset = (column - start).clamp(max=self.table.shape[1] - 1)
        member, place, low, high = self.table.to(ids.device)[kind, offset].unbind(-1)
        pad = ids == PAD
        doc = begins.flatten().cumsum(0).view_as(ids) - 1
        return Rows(ids, member.masked_fill(pad, -1), place, low, high, doc.masked_fill(pad, -1))


def stacked(documents):
    """Documents, (n,) ids each -> rows (B, longest) of one document each, PAD behind it."""
    rows = [torch.from_numpy(ids) for ids in documents]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


# ------------------------------------------------------------------------------------------------
# Documents and batches. The documents of a kind are a list of ids, (n,) int64 each.


def lengths(documents):
    """Tokens of each document, (documents,)."""
    return np.array([len(ids) for ids in documents])


def save_documents(path, documents):
    """{kind: (training, held-out) documents} -> one file: all ids, and where each document ends."""
    saved = {}
    for kind, parts in documents.items():
        saved[kind] = []
        for part in parts:
            ids = torch.from_numpy(np.concatenate(part))
            ends = torch.from_numpy(lengths(part).cumsum())
            saved[kind].append((ids.int(), ends))
    files.save(path, saved)


def load_documents(path):
    """What save_documents wrote. DataError for another file."""
    saved = files.load(path)
    documents = {}
    with files.reading(path):
        for kind, parts in saved.items():
            documents[kind] = []
            for ids, ends in parts:
                documents[kind].append(np.split(ids.long().numpy(), ends.tolist()[:-1]))
    return documents


def documents_per_step(documents, mix, batch_tokens):
    """{kind: documents a step}, so that each kind has about its share of the tokens."""
    total = sum(mix[kind] for kind in documents)
    counts = {}
    for kind, docs in documents.items():
        tokens = batch_tokens * mix[kind] / total
        counts[kind] = max(1, round(tokens / lengths(docs).mean()))
    return counts


def fit_rows(documents, length):
    """Pack documents into rows of this length: the longest first, each where least room is left.

    Returns (row, start) of each document and the number of rows.
    """
    sizes = lengths(documents)
    room = np.full(len(sizes), length)  # an empty row has most room, so it is the last choice
    spots = np.zeros((len(sizes), 2), int)
    for i in np.argsort(-sizes, kind="stable"):
        row = np.where(room >= sizes[i], room, length + 1).argmin()
        spots[i] = row, length - room[row]
        room[row] -= sizes[i]
    return spots, int((room < length).sum())


class Batches:
    """The rows of each step: a pure function of (seed, step), so that resuming needs no state.

    documents: {kind: documents}. counts: {kind: documents a step}. Each kind goes through shuffled
    epochs of its own.
    """

    def __init__(self, documents, counts, seed):
        self.documents = documents
        self.counts = counts
        self.seed = seed
        self.order = functools.lru_cache(maxsize=8)(self.shuffled)
        self.row_count, self.length = self.shape()

    def shuffled(self, kind, epoch):
        random = rng(self.seed, 1, list(KINDS).index(kind), epoch)
        return random.permutation(len(self.documents[kind]))

    def drawn(self, step):
        """The documents of a step."""
        chosen = []
        for kind, count in self.counts.items():
            size = len(self.documents[kind])
            for number in range(step * count, (step + 1) * count):
                at = self.order(kind, number // size)[number % size]
                chosen.append(self.documents[kind][at])
        return chosen

    def shape(self):
        """(rows, tokens a row) of all steps: the cheapest that hold those of the first eight."""
        drawn = [self.drawn(step) for step in range(8)]
        longest = max(int(lengths(docs).max()) for docs in self.documents.values())
        shapes = []
        for length in range(round_up(longest, 8), 2 * longest + 8, 8):
            rows = max(fit_rows(documents, length)[1] for documents in drawn)
            cost = rows * length * (length + 600)  # attention grows with the length
            shapes.append((cost, rows, length))
        return min(shapes)[1:]

    def __call__(self, step):
        """Rows (row_count, length) of ids. What finds no room in them waits for another epoch."""
        chosen = self.drawn(step)
        spots, _ = fit_rows(chosen, self.length)
        rows = np.full((self.row_count, self.length), PAD, np.int64)
        for ids, (row, start) in zip(chosen, spots):
            if row < self.row_count:
                rows[row, start:start + len(ids)] = ids
        return torch.from_numpy(rows)


ROLES = torch.tensor(list(diffusion.PAIR_MODES.values()))  # (modes, 2)
# (S,) which of its kind's members each of MEMBERS is
POSITION = torch.tensor([KINDS[kind].index(modality) for kind, modality in MEMBERS])


def document_noise(kind, config, random):
    """Times (N,) and roles (N, S) of documents. kind (N,): their indices in KINDS.

    Times are stratified within a kind. How a pair is noised is drawn from config.modes. time_power
    replaces t by t^p in a mode: below 1 it sees higher mask rates, where short answers are
    decided. The loss is then no longer unbiased for the bound.
    """
    modes = list(diffusion.PAIR_MODES)
    share = np.array([config.modes.get(mode, 0.0) for mode in modes])
    power = np.array([config.time_power.get(mode, 1.0) for mode in modes])
    mode = random.choice(len(modes), len(kind), p=share / share.sum())
    t = np.zeros(len(kind))
    for k, members in enumerate(KINDS.values()):
        at = random.permutation(np.flatnonzero(kind == k))
        t[at] = diffusion.stratified_times(len(at), random.random())
        if len(members) == 1:
            mode[at] = modes.index("joint")
        else:
            t[at] **= power[mode[at]]
    return torch.from_numpy(t), ROLES[mode][:, POSITION]  # columns of other kinds are never read


def noised_batch(stream, ids, config, step):
    """The batch of a step: rows ids (B, L) under the forward process; with config.complement, all
    rows again under the complement of their masks (anti-masking). A function of (seed, step)."""
    rows = stream.describe(ids)
    random = rng(config.seed, 3, step)
    kinds = ids[opens(ids)] - FIRST_TASK                                  # (N,)
    t, roles = document_noise(kinds.numpy(), config, random)
    u = torch.from_numpy(random.random(ids.shape))
    schedule = diffusion.schedule(config.schedule)
    unweighted = torch.tensor([config.weighting.get(kind) == "unweighted" for kind, _ in MEMBERS])
    draws = [(u, False)]
    if config.complement:
        draws.append((1 - u, True))  # hides what u shows
    views = []
    for u, complement in draws:
        rate, weight = diffusion.noise_levels(t, roles, schedule, complement, unweighted)
        views.append(diffusion.corrupt(ids, rows.doc, rows.member, rate, weight, u, MASK))
    x, weight, noised = (torch.cat(parts) for parts in zip(*views))       # (B or 2B, L)
    same = dict(place=rows.place, doc=rows.doc, target=ids, low=rows.low, high=rows.high,
                member=rows.member.clamp(min=0))
    same = {name: torch.cat([z] * len(views)) for name, z in same.items()}
    counts = torch.bincount(same["member"][noised], minlength=len(MEMBERS))
    return diffusion.Batch(x=x, weight=weight, counts=counts, **same)


def next_tokens(stream, ids):
    """The batch of the autoregressive twin: predict every token from the tokens before it."""
    rows = stream.describe(ids)

    def following(z, end=0):
        return torch.nn.functional.pad(z[:, 1:], (0, 1), value=end)       # (B, L)

    member = following(rows.member, -1)
    return diffusion.Batch(
        x=ids, place=rows.place, doc=rows.doc, target=following(ids), low=following(rows.low),
        high=following(rows.high), member=member.clamp(min=0), weight=(member >= 0).float(),
        counts=torch.bincount(member[member >= 0], minlength=len(MEMBERS)))


def show(ids, member):
    """Print one row, (L,) each, tinted by member."""
    words = []
    for i, m in zip(ids.tolist(), member.tolist()):
        name = SPECIALS[i] if i < len(SPECIALS) else str(i)
        words.append(f"\033[{31 + m}m{name}\033[0m" if m >= 0 else name)
    print("  " + " ".join(words))


def main():
    """Show documents packed into rows, what stands where, and a pair under each mode of noise."""
    stream = Stream({"text": (1, 90), "image": (1, 50), "speech": (2, 30)},
                    {"text": [16], "image-text": [6, 6], "speech-text": [8, 4]})
    random = rng(0)
    short = stream.texts(random.integers(0, 90, 5))[0]
    pair = stream.document("image-text", [random.integers(0, 50, 6), random.integers(0, 90, 4)])
    clip = stream.document("speech-text", [random.integers(0, 30, 6), random.integers(0, 90, 2)])
    print("a text and a picture with its caption in one row, a clip with its transcript:")
    rows = stream.describe(stacked([np.concatenate((short, pair)), clip]))
    for ids, member in zip(rows.ids, rows.member):
        show(ids, member)
    print("what is known of the first row: member, place, first id, last id + 1, document")
    for z in (rows.member, rows.place, rows.low, rows.high, rows.doc):
        print("  " + " ".join(f"{value:3}" for value in z[0].tolist()))
    rows = stream.describe(stacked([pair]))
    u = torch.from_numpy(random.random(rows.ids.shape))
    linear = diffusion.schedule("linear")
    print("the pair at time 0.5 in each mode, and the loss weight of a masked token by member")
    for mode, roles in zip(diffusion.PAIR_MODES, ROLES):
        levels = diffusion.noise_levels(torch.tensor([0.5]).double(), roles[None, POSITION], linear)
        x, _, _ = diffusion.corrupt(rows.ids, rows.doc, rows.member, *levels, u, MASK)
        print(f"{mode}: weights {levels[1][0, 1:3].tolist()}")
        show(x[0], rows.member[0])


if __name__ == "__main__":
    main()
