"""Text <-> codes: byte-level byte-pair encoding, learnt here and run by tiktoken.

The vocabulary starts as the 256 byte values, so every Unicode string has an exact encoding. To
train, find the adjacent pair of tokens that is most frequent inside pieces of text, give it a new
id, replace it everywhere, and repeat (Gage 1994; Sennrich et al., arXiv 1508.07909). By hand, on
"low low lower":

    pieces        l o w x1, _ l o w x1, _ l o w e r x1      (_ is the space)
    pairs         lo x3, ow x3, _l x2, we x1, er x1
    256 = l+o     tie of lo and ow: the smaller pair of ids wins ("l" is 108, "o" is 111)
    257 = lo+w    low x3
    258 = _+low   _low x2, which is all there is to share

Ids are in the order of the merges, which is also the order in which tiktoken applies them.
"""
import hashlib
import json
import re
import unicodedata
from collections import Counter

import numpy as np
import tiktoken
from tqdm import tqdm

import files

LONGEST = 32  # characters in a piece
BASE = 2**32  # the pair of ids a, b is kept as a BASE + b, which sorts like (a, b)
GAP = "\U0010ffff"  # above all ids
MOST = 10**6  # bytes of different pieces to learn from: the most frequent ones


def pattern_of(texts):
    """A regular expression that cuts texts into pieces. No token crosses a cut.

    A piece is a word with the space or apostrophe before it, up to 3 digits, a run of other signs,
    or blanks, of which the last is left to the next word. The characters are those of the texts,
    one by one: \\w and \\s mean one thing to Python's re, which cuts for training, and another to
    tiktoken's regex. All that the texts do not hold are other signs.
    """
    # by Unicode category: letters, marks and joiners that combine with them, numbers, blanks
    classes = {"L": "A-Za-z", "M": "\u200c\u200d", "N": "0-9", "Z": " \t-\r"}
    for character in sorted(set().union(*texts)):
        category = unicodedata.category(character)[0]
        if category in classes and not character.isascii():
            classes[category] += character
    letter, mark, digit, blank = classes.values()
    return (
        f"[ ']?[{letter}][{letter}{mark}]{{0,{LONGEST - 1}}}"
        f"| ?[{digit}]{{1,3}}"
        f"| ?[^{letter}{digit}{blank}]{{1,{LONGEST}}}"
        f"|[{blank}]{{1,{LONGEST}}}(?![^{blank}])"
        f"|[{blank}]{{1,{LONGEST}}}"
    )


def merges(counts, size):
    """Learn byte pairs from {piece as bytes: how often}.

    Returns the new tokens as bytes, in the order of their ids 256, 257, ..., until there are `size`
    ids or no pair occurs twice any more.
    """
    tokens = [bytes([i]) for i in range(256)]
    # all pieces in one string, a gap before each; a token is the character of its id
    line = "".join(GAP + piece.decode("latin-1") for piece in counts)
    times = np.array([0, *counts.values()])  # of what stands behind so many gaps
    bar = tqdm(total=max(0, size - 256), desc="text tokenizer", unit="merge", leave=False)
    while len(tokens) < size:
        ids = np.frombuffer(line.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
        gaps = ids == ord(GAP)
        at = np.flatnonzero(~(gaps[:-1] | gaps[1:]))  # places of pairs
        pairs, which = np.unique(ids[at] * BASE + ids[at + 1], return_inverse=True)
        found = np.bincount(which, times[gaps.cumsum()[at]])  # how often each pair occurs
        if found.max(initial=0) < 2:
            break
        a, b = divmod(int(pairs[found.argmax()]), BASE)  # of a tie the first: the smaller pair
        token = tokens[a] + tokens[b]
        if token not in tokens:  # two pairs may spell the same bytes: one token, one id
            tokens.append(token)
            bar.update()
        line = line.replace(chr(a) + chr(b), chr(tokens.index(token)))
    bar.close()
    return tokens[256:]


def train(texts, vocab_size=512, repeats=None):
    """Learn a vocabulary of at most vocab_size ids (256 bytes and merges) from strings.

    repeats: how many times each string counts (whole numbers; once if not given).
    """
    pattern = pattern_of(texts)
    counts = Counter()
    for text, times in zip(texts, repeats or [1] * len(texts), strict=True):
        for piece in re.findall(pattern, text):
            counts[piece.encode()] += times
    known = {}
    room = MOST
    for piece, times in counts.most_common():
        room -= len(piece)
        if room >= 0:
            known[piece] = times
    return Tokenizer(merges(known, vocab_size), pattern)


def load(path):
    """The tokenizer that Tokenizer.save wrote to path (.json). DataError for another file."""
    with files.reading(path), open(path, encoding="utf-8") as file:
        saved = json.load(file)
        return Tokenizer([token.encode("latin-1") for token in saved["tokens"]], saved["pattern"])


class Tokenizer:
    """str <-> codes in 0..size-1. Codes below 256 are bytes."""

    groups = 1

    def __init__(self, tokens, pattern):
        self.saved = {
            "pattern": pattern,
            "tokens": [token.decode("latin-1") for token in tokens],  # one character a byte
        }
        text = json.dumps(self.saved, sort_keys=True)
        self.name = hashlib.sha256(text.encode()).hexdigest()[:12]
        ranks = {bytes([i]): i for i in range(256)}
        ranks.update({token: 256 + i for i, token in enumerate(tokens)})
        self.bpe = tiktoken.Encoding(self.name, pat_str=pattern, mergeable_ranks=ranks,
                                     special_tokens={})
        self.size = len(ranks)

    def encode(self, samples):
        """List of str -> list of int32 (tokens,)."""
        return [np.array(self.bpe.encode_ordinary(text), np.int32) for text in samples]

    def decode(self, codes):
        """List of codes (tokens,) -> list of str. Bytes that are not UTF-8 become U+FFFD."""
        return [self.bpe.decode_bytes(list(row)).decode("utf-8", "replace") for row in codes]

    def save(self, path):
        """Write to path (.json)."""
        files.write_text(path, json.dumps(self.saved, indent=0))

    def report(self, samples):
        """Figures on texts."""
        codes = self.encode(samples)
        tokens = np.concatenate(codes)
        return {
            "items": len(codes),
            "size": self.size,
            "used": len(np.unique(tokens)),
            "tokens_per_item": len(tokens) / len(codes),
            "bytes_per_token": sum(len(text.encode()) for text in samples) / max(1, len(tokens)),
        }
