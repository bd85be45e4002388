"""From settings to documents: read items, hold some out, train tokenizers, encode.

An item is a text, a picture with its caption, or a clip with its transcript.
"""
import dataclasses
import functools

import numpy as np
from tqdm import tqdm

import files
from data import HEAD, KINDS, MODALITIES, Documents, Stream, rng, round_up, save_documents
from data import tokenizer_module
from files import DataError, UsageError
from sources import Source, digest, folders, toyspeech, toyworld

HELD = 512  # held-out documents of each kind, at most

# ------------------------------------------------------------------------------------------------
# Items.


def sources_of(config):
    """{kind: Source} of one's own folders, or of the toy world. UsageError where --mix has none."""
    if config.text or config.images or config.speech:
        sources = own_sources(config)
    else:
        sources = toy_sources(config.items, config.seed)
        sources = {kind: s for kind, s in sources.items() if config.mix.get(kind)}
    for kind in sources:
        if not config.mix.get(kind, 0) > 0:
            raise UsageError(f"--mix gives {kind} no share: give it one, or no flag for its folder")
    return sources


def own_sources(config):
    sources = {}
    if config.text:
        text = folders.read_text(config.text, config.skip_bad)
        parts = sections(text.texts)
        sources["text"] = dataclasses.replace(text, texts=parts, keys=parts)
    if config.images:
        patch = config.image_tokenizer.get("patch", 4)
        sources["image-text"] = folders.read_images(
            config.images, config.image_side, config.skip_bad, config.longest_caption, patch)
    if config.speech:
        sources["speech-text"] = folders.read_speech(
            config.speech, config.skip_bad, config.longest_caption, longest=config.longest_clip)
    return sources


def toy_sources(items, seed):
    """The toy world, {kind: Source}: items passages, as many pictures, a fifth as many clips."""
    scenes = toyworld.scenes(items, seed)
    phrases = toyspeech.phrases(max(2, items // 5), seed)

    @functools.cache
    def drawn():
        return toyworld.draw(scenes, seed)

    @functools.cache
    def spoken():
        return toyspeech.speak(phrases, seed)

    passages = toyworld.passages(items, seed)
    captions = [toyworld.caption(scene) for scene in scenes]
    sources = [
        Source("text", "toy world", passages, None, passages),
        Source("image-text", "toy world", captions, lambda at: [drawn()[i] for i in at],
               [digest(p) for p in drawn()]),
        Source("speech-text", "toy world", phrases, lambda at: [spoken()[i] for i in at],
               [digest(w) for w in spoken()]),
    ]
    return {source.kind: source for source in sources}


def split(source, share=0.05, most=1024):
    """Indices of training and held-out items. Items of one content stand on one side."""
    groups = {}
    for i, key in enumerate(source.keys):
        groups.setdefault(key, []).append(i)
    groups = list(groups.values())
    if len(groups) < 2:
        raise DataError(f"{source.name}: one item cannot be trained on and held out: give more")
    wanted = min(most, max(1, int(share * len(source.keys))))
    held = []
    for n in rng(0, 17).permutation(len(groups))[:-1]:
        if len(held) >= wanted:
            break
        held += groups[n]
    train = np.setdiff1d(np.arange(len(source.keys)), held)
    return train, np.sort(held)


def sections(texts):
    """Texts, of which those longer than a 20th of all are cut into some hundredths of all, so that
    some can be held out whole: at a line end, else at a blank, else anywhere."""
    total = sum(map(len, texts))
    size = max(200, total // 100)
    parts = []
    for text in texts:
        start = 0
        while 20 * len(text) > total and len(text) - start > 1.5 * size:
            end = start + size
            cut = text.rfind("\n", start, end)
            if cut <= start:
                cut = text.rfind(" ", start, end)
            if cut > start:
                end = cut + 1
            parts.append(text[start:end])
            start = end
        parts.append(text[start:])
    return parts


# ------------------------------------------------------------------------------------------------
# Tokens.

TOKENIZER_ITEMS = 6000     # pictures or clips that a tokenizer is trained on, at most
TOKENIZER_BYTES = 2 ** 29  # and their size


def train_tokenizer(modality, sources, train, config, device):
    """Train the tokenizer of a modality on the training items of all sources that have it.

    train: {kind: indices}. config: train.py's. Returns the tokenizer.
    """
    module = tokenizer_module(modality)
    if modality == "text" and config.encoding:
        return module.from_tiktoken(config.encoding)
    if modality == "text":
        texts = [[source.texts[i] for i in train[kind]] for kind, source in sources.items()]
        sizes = [sum(map(len, part)) for part in texts]
        samples = []
        repeats = []
        for part, size in zip(texts, sizes):
            # each kind counts alike: else the words of transcripts beside a book would be spelt
            times = round(max(sizes) / max(1, size))
            samples += part
            repeats += [min(100, max(1, times))] * len(part)
        return module.train(samples, config.vocab_size, repeats)
    source = next(s for kind, s in sources.items() if KINDS[kind][0] == modality)
    at = rng(config.seed, 2).permutation(train[source.kind])[:TOKENIZER_ITEMS]
    samples = []
    for i in range(0, len(at), 64):
        samples += source.load(at[i:i + 64])
        if sum(sample.nbytes for sample in samples) > TOKENIZER_BYTES:
            break
    if modality == "image":
        height, width, channels = samples[0].shape
        options = dict(height=height, width=width, channels=channels, **config.image_tokenizer)
        settings = module.ImageConfig(**options)
        steps = config.image_steps
    else:
        settings = module.AudioConfig(**config.speech_tokenizer)
        steps = config.speech_steps
    return module.train(samples, settings, steps=steps, seed=config.seed, device=device).to("cpu")


def encode(source, tokenizers, batch=512):
    """Codes of all items: a list (members) of lists (items) of arrays."""
    codes = []
    for modality in KINDS[source.kind]:
        if modality == "text":
            codes.append(tokenizers["text"].encode(source.texts))
            continue
        encoded = []
        for i in tqdm(range(0, len(source), batch), desc=f"encoding {source.kind}", leave=False):
            samples = source.load(range(i, min(i + batch, len(source))))
            encoded += tokenizers[modality].encode(samples)
        codes.append(encoded)
    return codes


def slot_for(modality, codes, groups):
    """Tokens of a member that fit the longest item and its end."""
    longest = max(map(len, codes))
    if not MODALITIES[modality].open_end:
        return longest
    return round_up(longest + groups, groups if groups > 1 else 4)


def make_documents(stream, kind, codes, at):
    """Documents of the items at the indices `at`, from codes as `encode` returns them."""
    documents = []
    for i in at:
        if kind == "text":
            documents += stream.texts(codes[0][i])
        else:
            documents.append(stream.document(kind, [member[i] for member in codes]))
    return documents


def prepare(config, folder, device, clock):
    """Settings -> stream and {kind: (training, held-out) Documents}.

    Writes tokenizers, their reports and documents.npz into folder. Items are held out by content:
    none is in the training set, not even as the same tokens. Tokenizers see training items only.
    """
    sources = sources_of(config)
    train, held = {}, {}
    for kind, source in sources.items():
        train[kind], held[kind] = split(source)
    tokenizers, reports = {}, {}
    for modality, row in MODALITIES.items():
        having = {k: s for k, s in sources.items() if modality in KINDS[k]}
        if not having:
            continue
        clock(f"{modality} tokenizer")
        tokenizer = train_tokenizer(modality, having, train, config, device)
        tokenizer.save(folder / row.file)
        kind, source = next(iter(having.items()))
        samples = held[kind][:200]
        samples = source.load(samples) if modality != "text" else [source.texts[i] for i in samples]
        reports[modality] = tokenizer.report(samples)
        print(tokenizer_module(modality).lines(reports[modality]), flush=True)
        tokenizers[modality] = tokenizer
    files.write_json(folder / "tokenizers.json", reports)
    clock("encoding")
    codes = {kind: encode(source, tokenizers) for kind, source in sources.items()}
    slots = {}
    for kind in sources:
        members = zip(KINDS[kind], codes[kind])
        slots[kind] = [slot_for(m, c, tokenizers[m].groups) for m, c in members]
    if "text" in slots:
        slots["text"] = [config.text_length - HEAD]
    stream = Stream({m: (t.groups, t.size) for m, t in tokenizers.items()}, slots)
    documents = {}
    for kind in sources:
        learnt = make_documents(stream, kind, codes[kind], train[kind])
        known = {ids.tobytes() for ids in learnt}
        fresh = make_documents(stream, kind, codes[kind], held[kind])
        fresh = [ids for ids in fresh if ids.tobytes() not in known][:HELD]
        if not fresh:
            raise DataError(f"{sources[kind].name}: every held-out item has the same tokens as a "
                            "training item: give more, and more different, items")
        documents[kind] = (Documents.of(learnt, stream), Documents.of(fresh, stream))
    save_documents(folder / "documents.npz", documents)
    return stream, documents
