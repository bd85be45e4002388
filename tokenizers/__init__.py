"""Three tokenizers: text (byte-pair encoding), image and audio (autoencoders with FSQ).

    text.train(texts, vocab_size)              image.train(samples, config, steps), audio likewise
    tokenizer.encode(samples), .decode(ids)    lists of samples <-> lists of int32 arrays (n,)
    tokenizer.save(path), module.load(path)    .json for text, .pt for image and audio
    tokenizer.report(samples)                  figures
    tokenizer.groups, tokenizer.size           position p has an id of group p % groups, below size
    tokenizer.name                             12 hex digits that change whenever the ids could

A sample is a str, a uint8 picture (height, width, channels) or a float32 wave (samples,) at 16 kHz
in [-1, 1]. Ids that cannot be decoded raise a ValueError.
"""
import numpy as np


def row_of_ids(ids, size):
    """Ids as int64 (n,). ValueError unless they are one row of ids below size."""
    ids = np.asarray(ids, np.int64)
    if ids.ndim != 1 or not ((ids >= 0) & (ids < size)).all():
        raise ValueError(f"ids must be one row in 0..{size - 1}; take control ids out first")
    return ids
