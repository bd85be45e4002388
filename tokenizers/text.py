"""Text <-> ids: byte-level byte-pair encoding, learnt here and run by tiktoken.

The vocabulary starts as the 256 byte values, so every Unicode string has an exact encoding. Training
repeats one step: find the adjacent pair of tokens that is most frequent inside words, give it a new id,
replace it everywhere (Gage 1994; Sennrich et al., arXiv 1508.07909). By hand, on "low low lower":

    words                      l o w x1, _ l o w x1, _ l o w e r x1      (_ is the space)
    pairs                      lo x3, ow x3, _l x2, we x1, er x1
    256 = l+o                  tie lo/ow: the smaller pair of ids wins ("l" is 108, "o" is 111)
    257 = lo+w                 low x3
    258 = _+low                _low x2, which is all there is to share

Ids are in the order of the merges, which is also the order in which tiktoken applies them.
"""

import hashlib
import heapq
import json
import os
import re
from collections import Counter, defaultdict

import numpy as np
import tiktoken
from tqdm import tqdm

import safe

# Words: a run of letters with the space or apostrophe before it; up to 3 digits; a run of other marks; blanks, of
# which the last is left to the next word. Means the same to Python's re and to tiktoken, and leaves no character out.
PATTERN = r"[ ']?[^\W\d_]+| ?\d{1,3}| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+"
ENCODINGS = ("gpt2", "cl100k_base", "o200k_base")  # ready-made vocabularies, fetched once by tiktoken


def merges(counts, size):
    """The byte-pair merges of a word list.

    counts: {word as bytes: how often}. size: wanted vocabulary, 256 and up. Returns the new tokens as bytes, in the
    order of their ids 256, 257, ...; fewer than asked when no pair occurs twice any more.
    """
    words = [(list(word), count) for word, count in sorted(counts.items())]
    tokens = [bytes([i]) for i in range(256)]
    ids = {token: i for i, token in enumerate(tokens)}
    pairs, where = Counter(), defaultdict(set)  # (a, b) -> occurrences; (a, b) -> indices of the words it is in
    for index, (word, count) in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += count
            where[pair].add(index)
    heap = [(-count, pair) for pair, count in pairs.items()]  # stale entries are corrected when they surface
    heapq.heapify(heap)
    bar = tqdm(total=max(0, size - 256), desc="text tokenizer", unit="merge", leave=False)
    while len(tokens) < size and heap:
        count, (a, b) = heapq.heappop(heap)
        if -count != pairs[a, b]:  # an old figure; every change has pushed the new one
            continue
        if count > -2:
            break
        joined = tokens[a] + tokens[b]
        if joined not in ids:  # two pairs may spell the same bytes: one token, one id
            ids[joined] = len(tokens)
            tokens.append(joined)
            bar.update()
        changed = set()
        for index in sorted(where.pop((a, b))):
            word, times = words[index]
            for pair in zip(word, word[1:]):
                pairs[pair] -= times
                changed.add(pair)
            word[:] = replaced(word, a, b, ids[joined])
            for pair in zip(word, word[1:]):
                pairs[pair] += times
                where[pair].add(index)
                changed.add(pair)
        for pair in changed:
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
    bar.close()
    return tokens[256:]


def replaced(word, a, b, new):
    """word (list of ids) with each a, b, from the left, replaced by new."""
    out, i = [], 0
    while i < len(word):
        if word[i] == a and i + 1 < len(word) and word[i + 1] == b:
            out.append(new)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


def train(samples, vocab_size=512, repeats=None):
    """Learn a vocabulary of at most vocab_size ids (256 bytes + merges) from strings. Deterministic.

    repeats: how many times each string counts (whole numbers; once if not given).
    """
    if isinstance(samples, str):
        raise ValueError("text.train wants a list of strings, got one string; put it in a list")
    if not 256 <= vocab_size <= 2**20:
        raise ValueError(f"vocab_size {vocab_size} is outside 256..1048576; the 256 byte values are always in")
    counts = Counter()
    for text, times in zip(samples, repeats or [1] * len(samples), strict=True):
        for word in re.findall(PATTERN, checked(text)):
            counts[word] += times
    if not counts:
        raise ValueError("text.train got no text; give at least one string that is not empty")
    return Tokenizer(merges({word.encode(): count for word, count in counts.items()}, vocab_size))


def from_tiktoken(encoding):
    """A ready-made vocabulary: gpt2, cl100k_base or o200k_base. Fetched by tiktoken, once."""
    return Tokenizer(encoding=encoding)


def load(path):
    """The tokenizer that Tokenizer.save wrote to path (.json)."""
    saved = safe.read_json(path, {})
    if saved.get("kind") != "text":
        raise ValueError(f"{path} is not a text tokenizer of ours; train one with text.train")
    return Tokenizer([t.encode("latin-1") for t in saved["tokens"]], saved["pattern"], saved["encoding"])


def fetch(encoding):
    """tiktoken's own Encoding, or one line that says what to do when it cannot be had."""
    if encoding not in ENCODINGS:
        raise ValueError(f"unknown encoding {encoding!r}; choose one of {', '.join(ENCODINGS)}, or train one")
    try:
        return tiktoken.get_encoding(encoding)
    except Exception as error:  # whatever the network layer throws
        raise ValueError(
            f"cannot fetch tiktoken's {encoding!r} ({type(error).__name__}): go online once, or set "
            f"TIKTOKEN_CACHE_DIR to a folder that already holds it"
        ) from None


def checked(text):
    """text itself if it is a string that UTF-8 can hold."""
    if not isinstance(text, str):
        raise ValueError(f"a text sample must be a str, got {type(text).__name__}; decode bytes first")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"lone surrogate {text[error.start]!r} at character {error.start}: not valid Unicode text; clean the "
            f"sample with text.encode('utf-8', 'replace').decode()"
        ) from None
    return text


class Tokenizer:
    """str <-> ids in 0..size-1; ids below 256 of a vocabulary learnt here are bytes."""

    groups = 1

    def __init__(self, tokens=(), pattern=PATTERN, encoding=None):
        self.saved = {
            "kind": "text",
            "encoding": encoding,
            "pattern": pattern,
            "tokens": [t.decode("latin-1") for t in tokens],  # one character a byte: legible and exact
        }
        self.name = hashlib.sha256(json.dumps(self.saved, sort_keys=True).encode()).hexdigest()[:12]
        if encoding:
            self.bpe = fetch(encoding)
            self.size = len(self.bpe.token_byte_values())  # without the special tokens that follow
        else:
            ranks = {token: i for i, token in enumerate([bytes([i]) for i in range(256)] + list(tokens))}
            self.bpe = tiktoken.Encoding(self.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
            self.size = len(ranks)

    def encode(self, samples):
        """List of str -> list of int32 arrays (tokens,). "<|endoftext|>" and its like are ordinary text."""
        samples = [checked(text) for text in samples]
        threads = min(8, os.cpu_count() or 1)
        return [np.array(ids, np.int32) for ids in self.bpe.encode_ordinary_batch(samples, num_threads=threads)]

    def decode(self, codes):
        """List of id arrays -> list of str; bytes that are not UTF-8 become U+FFFD."""
        return [self.bpe.decode_bytes(self.checked_ids(ids)).decode("utf-8", errors="replace") for ids in codes]

    def checked_ids(self, ids):
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and (ids.min() < 0 or ids.max() >= self.size)):
            raise ValueError(f"text ids must be one row of ids in 0..{self.size - 1}; take control ids out first")
        return ids.tolist()

    def save(self, path):
        """Write to path (.json) whole or not at all."""
        safe.write_text(path, json.dumps(self.saved, indent=0))

    def report(self, samples):
        """Figures on samples; bytes_per_token of the baseline (one token a byte) is 1."""
        ids = self.encode(samples)
        tokens = sum(map(len, ids))
        used = len(np.unique(np.concatenate(ids))) if tokens else 0
        size = sum(len(text.encode()) for text in samples)
        return {
            "items": len(ids),
            "size": self.size,
            "used": used,
            "tokens_per_item": tokens / max(1, len(ids)),
            "bytes_per_token": size / max(1, tokens),
            "baseline_bytes_per_token": 1.0,
        }


def lines(report):
    """report() in a line."""
    return (
        "text tokenizer: {bytes_per_token:.2f} bytes a token (plain bytes: {baseline_bytes_per_token:.2f}), "
        "{tokens_per_item:.1f} tokens an item, {used} of {size} ids used on {items} items".format(**report)
    )
