"""Where items come from: the toy world, or one's own folders. All are a `Source`."""
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass
class Source:
    """Items of one kind: texts, pictures with captions, or recordings with transcripts.

    load(indices) gives their pictures, uint8 (side, side, channels), or their waves, float32 (n,)
    at 16 kHz. It reads them anew at each call. It is None for text alone.
    """

    kind: str  # "text", "image-text" or "speech-text"
    name: str  # what messages call it
    texts: list[str]  # documents, captions or transcripts
    load: Callable | None
    keys: list[str]  # what tells each item's content: a digest, or its text

    def __len__(self):
        return len(self.texts)


def digest(*parts):
    """16 hex digits of strings, bytes, arrays and whatever else str() tells apart."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype} {part.shape}".encode())
            part = part.tobytes()
        if not isinstance(part, bytes):
            part = str(part).encode("utf-8", "surrogatepass")
        sha.update(len(part).to_bytes(8, "little"))  # ("ab", "c") is not ("a", "bc")
        sha.update(part)
    return sha.hexdigest()[:16]
