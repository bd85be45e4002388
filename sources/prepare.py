"""From settings to documents: read items, hold some out, train tokenizers, encode.

An item is a text, a picture with its caption, or a clip with its transcript. On its way into a row
a picture becomes pixels (a source's load), codes (a tokenizer's encode), ids of the stream between
task and boundary tokens (Stream.document), and a part of a row (Batches).
"""
import time

import numpy as np
from tqdm import tqdm

import files
from data import HEAD, KINDS, MODALITIES, Stream, rng, round_up, save_documents
from files import DataError, UsageError
from sources import Source, digest, folders, toyspeech, toyworld
from tokenizers import audio, image, text

HELD = 512  # held-out documents of each kind, at most

# ------------------------------------------------------------------------------------------------
# Items.


def sources_of(config):
    """{kind: Source} of one's own folders, or of the toy world. UsageError where --mix or
    --loss-weights give one nothing, DataError where there is one item only."""
    if config.own_data:
        sources = own_sources(config)
    else:
        kinds = [kind for kind in KINDS if config.mix.get(kind)]
        sources = {kind: toy_source(kind, config.items, config.seed) for kind in kinds}
    for kind, source in sources.items():
        terms = [f"{kind}/{modality}" for modality in KINDS[kind]]
        if not config.mix.get(kind):
            raise UsageError(f"--mix gives {kind} no share: give it one, or no flag for its folder")
        if config.loss_weights and not any(config.loss_weights.get(name) for name in terms):
            raise UsageError(f"--loss-weights: give {' or '.join(terms)} a weight above 0")
        if len(set(source.keys)) < 2:
            raise DataError(f"{source.name}: holds only one item, or several copies of one: give "
                            "two or more, since some are held out")
    return sources


def own_sources(config):
    sources = {}
    if config.text:
        source = folders.read_text(config.text, config.skip_bad)
        parts = sections(source.texts)
        sources["text"] = Source("text", source.name, parts, None, parts)
    if config.images:
        patch = config.image_tokenizer.get("patch") or 4
        sources["image-text"] = folders.read_images(
            config.images, config.image_side, config.skip_bad, config.longest_caption, patch)
    if config.speech:
        sources["speech-text"] = folders.read_speech(
            config.speech, config.skip_bad, config.longest_caption, longest=config.longest_clip)
    return sources


def toy_source(kind, items, seed):
    """The items of the toy world. Of clips there are a fifth as many."""
    if kind == "text":
        passages = toyworld.passages(items, seed)
        return Source(kind, "toy world", passages, None, passages)
    if kind == "image-text":
        scenes = toyworld.scenes(items, seed)
        texts = [toyworld.caption(scene) for scene in scenes]
        samples = toyworld.draw(scenes, seed)
    else:
        texts = toyspeech.phrases(max(2, items // 5), seed)
        samples = toyspeech.speak(texts, seed)
    keys = [digest(sample) for sample in samples]
    return Source(kind, "toy world", texts, lambda at: [samples[i] for i in at], keys)


def split(source):
    """Indices of training and held-out items. Items of one content stand on one side."""
    groups = {}
    for i, key in enumerate(source.keys):
        groups.setdefault(key, []).append(i)
    groups = list(groups.values())
    wanted = min(2 * HELD, len(source) // 20)  # some have a training item's tokens: left out
    order = rng(0, 17).permutation(len(groups))  # the same for every seed
    held = []
    for n in sorted(order, key=lambda n: max(wanted, len(groups[n])))[:-1]:  # most copies last
        held += groups[n]
        if len(held) >= wanted:
            break
    train = np.setdiff1d(np.arange(len(source)), held)
    return train, np.sort(held)


def sections(texts):
    """Texts, the long ones in parts, so that some can be held out whole. One longer than a 20th of
    all is cut into hundredths of all: at a line end, else at a blank, else anywhere."""
    total = sum(map(len, texts))
    size = max(200, total // 100)
    parts = []
    for document in texts:
        start = 0
        while 20 * len(document) > total and len(document) - start > 1.5 * size:
            end = start + size
            cut = document.rfind("\n", start, end)
            if cut <= start:
                cut = document.rfind(" ", start, end)
            if cut > start:
                end = cut + 1
            parts.append(document[start:end])
            start = end
        parts.append(document[start:])
    return parts


# ------------------------------------------------------------------------------------------------
# Tokens.

TOKENIZER_ITEMS = 6000     # pictures or clips that a tokenizer is trained on, at most
TOKENIZER_BYTES = 2 ** 29  # and their size
BATCH = 512                # items that are encoded at once


def train_tokenizer(modality, sources, train, config, device):
    """A tokenizer, trained on the training items of the sources that have the modality."""
    if modality == "text":
        return train_text(sources, train, config)
    samples = some_samples(sources[0], train[sources[0].kind], config.seed)
    if modality == "image":
        side, _, channels = samples[0].shape
        settings = image.ImageConfig(side, channels, **config.image_tokenizer)
        return image.train(samples, settings, config.image_steps, config.seed, device)
    settings = audio.AudioConfig(**config.speech_tokenizer)
    return audio.train(samples, settings, config.speech_steps, config.seed, device)


def train_text(sources, train, config):
    """A text tokenizer from the training texts of all sources."""
    texts = [samples_of(source, "text", train[source.kind]) for source in sources]
    sizes = [sum(map(len, part)) for part in texts]
    samples = []
    repeats = []
    for part, size in zip(texts, sizes):
        samples += part
        # each kind counts alike: else the words of transcripts beside a book would be spelt
        repeats += [min(100, round(max(sizes) / size))] * len(part)
    return text.train(samples, config.vocab_size, repeats)


def some_samples(source, at, seed):
    """Pictures or clips of items at the indices `at`, shuffled, within the limits above."""
    at = rng(seed, 2).permutation(at)[:TOKENIZER_ITEMS]
    samples = []
    for i in range(0, len(at), 64):
        samples += source.load(at[i:i + 64])
        if sum(sample.nbytes for sample in samples) > TOKENIZER_BYTES:
            break
    return samples


def samples_of(source, modality, at):
    """The members of items at the indices `at`."""
    if modality == "text":
        return [source.texts[i] for i in at]
    return source.load(at)


def encode(source, tokenizers):
    """Codes of all items: a list (members) of lists (items) of arrays."""
    codes = []
    for modality in KINDS[source.kind]:
        encoded = []
        starts = range(0, len(source), BATCH)
        for i in tqdm(starts, desc=f"encoding {source.kind}", leave=False):
            at = range(i, min(i + BATCH, len(source)))
            encoded += tokenizers[modality].encode(samples_of(source, modality, at))
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


def prepare(config, sources, folder, device, clock):
    """Sources -> stream, {kind: (training, held-out) documents} and {modality: tokenizer}.

    Writes tokenizers, their reports and documents.pt into folder. Items are held out by content:
    none is in the training set, not even as the same tokens. Tokenizers see training items only.
    clock: (part, when it began) of the run so far; parts of this one are added.
    """
    train, held = {}, {}
    for kind, source in sources.items():
        train[kind], held[kind] = split(source)
    tokenizers, reports = {}, {}
    for modality, row in MODALITIES.items():
        having = [source for kind, source in sources.items() if modality in KINDS[kind]]
        if not having:
            continue
        clock.append((f"{modality} tokenizer", time.time()))
        tokenizer = train_tokenizer(modality, having, train, config, device)
        tokenizer.save(folder / row.file)
        samples = samples_of(having[0], modality, held[having[0].kind][:200])
        reports[modality] = tokenizer.report(samples)
        told = [f"{name} {value:.4g}" for name, value in reports[modality].items()]
        print(f"{modality} tokenizer: {', '.join(told)}", flush=True)
        tokenizers[modality] = tokenizer
    files.write_json(folder / "tokenizers.json", reports)
    clock.append(("encoding", time.time()))
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
        documents[kind] = learnt, fresh
    save_documents(folder / "documents.pt", documents)
    return stream, documents, tokenizers
