"""From what the flags name (or the toy world) to tokenizers, token cache and rows: all that comes before the training loop."""
import time

from tqdm import tqdm

import data
import flags
import readers
from data import KINDS, MODALITIES
from safe import DataError, UsageError, read_json, write_json

TOKENIZER_BYTES = 2 ** 29  # of pictures or clips that a tokenizer is trained on, at most


# What the flags make of a tokenizer's settings; shape: that of a sample, if there is one.
CONFIGS = {
    "image": lambda module, args, *shape: module.ImageConfig(*shape, patch=args.patch, colours=args.image_colours, levels=args.image_levels),
    "speech": lambda module, args, *_: module.AudioConfig(stride=args.speech_stride, groups=args.speech_groups, levels=args.speech_levels),
}
NAMED = {"image": "--image-side, --patch, --image-colours, --image-levels", "speech": "--speech-stride, --speech-levels"}  # what can be wrong there


def config_of(modality, args, *shape):
    """Settings of a modality's tokenizer. A UsageError for flags that cannot be right."""
    try:
        return CONFIGS[modality](data.tokenizer_module(modality), args, *shape)
    except ValueError as error:
        raise UsageError(f"{NAMED[modality]}: {error}")


def make_tokenizer(modality, sources, args, folder, device):
    """Train (or load, if the run folder has it) the tokenizer of a modality; prints its report."""
    path, module = folder / MODALITIES[modality].file, data.tokenizer_module(modality)
    if path.exists():
        return module.load(path)
    start = time.time()
    if modality == "text":
        texts = [t for s in sources for t in s.texts]
        if args.encoding:
            tokenizer = module.from_tiktoken(args.encoding)
        else:
            # each kind counts alike, else the words of transcripts beside a book are spelt; a hundredfold at most, lest a handful fills it
            sizes = [sum(map(len, s.texts)) for s in sources]
            repeats = [min(100, max(1, round(max(sizes) / max(1, n)))) for n, s in zip(sizes, sources) for _ in s.texts]
            tokenizer = module.train(texts, args.vocab_size, repeats)
        held = texts[:: max(1, len(texts) // 200)]
    else:
        source = readers.merge(sources)
        samples, at = [], data.rng(args.seed, 2).permutation(len(source))[:args.tokenizer_items]
        for i in range(0, len(at), 64):
            samples += source.load(at[i:i + 64])
            if sum(s.nbytes for s in samples) > TOKENIZER_BYTES:
                break
        held, samples = samples[:max(1, len(samples) // 20)], samples[max(1, len(samples) // 20):] or samples
        steps, seconds = (getattr(args, f"{modality}_{unit}") for unit in ("steps", "seconds"))
        budget = dict(steps=steps) if steps else dict(seconds=seconds)
        tokenizer = module.train(samples, config_of(modality, args, *samples[0].shape), **budget, seed=args.seed, device=device)
        tokenizer.to("cpu")
    report = tokenizer.report(held)
    print(module.lines(report), f"({time.time() - start:.0f} s)", flush=True)
    tokenizer.save(path)
    write_json(folder / "tokenizers.json", {**read_json(folder / "tokenizers.json", {}), modality: report})
    return tokenizer


class Clock:
    """Seconds by part of a run: clock("what") starts that part and ends the one before."""

    def __init__(self, began):
        self.seconds, self.last, self.part = {}, began, "imports"

    def __call__(self, part):
        now = time.time()
        self.seconds[self.part] = self.seconds.get(self.part, 0.0) + now - self.last
        self.last, self.part = now, part

    def line(self):
        return "seconds: " + ", ".join(f"{part} {s:.0f}" for part, s in self.seconds.items() if s >= 0.5)


def gather(args):
    """Sources by kind: one's own data where a flag names some, the toy world otherwise."""
    if not (args.text or args.images or args.speech):
        for modality in {m for k in args.kinds for m in KINDS[k]} & set(CONFIGS):
            config_of(modality, args)                              # wrong flags stop a run before anything is made
        sources = readers.toy_sources(args.seed, args.pictures, args.passages, args.utterances)
        sources = {k: sources[k] for k in args.kinds}
    else:
        sources = own_sources(args)
    flags.check_mix(args, sources)
    return sources


def own_sources(args):
    """Sources by kind of the folders that --text, --images and --speech name."""
    sources, common = {}, dict(skip_bad=args.skip_bad)
    if args.text:
        sources["text"] = readers.merge([readers.read_text(p, **common) for p in args.text])
    common["longest_text"] = args.longest_caption
    if args.images:
        side, channels = readers.picture_format(args.images)
        unit = args.patch or 4
        side = args.image_side or max(unit, side // unit * unit)
        config_of("image", args, side, side, channels)
        sources["image-text"] = readers.merge([readers.read_images(p, side, channels, **common) for p in args.images])
    if args.speech:
        config = config_of("speech", args)
        sources["speech-text"] = readers.merge([readers.read_speech(p, **common, shortest=config.step / config.sample_rate,
                                                                    longest=args.longest_clip) for p in args.speech])
    for kind, source in sources.items():
        if source.load is not None and len(source) < 2:
            raise DataError(f"{source.name}: one item alone cannot be trained on and held out: give more")
    return sources


def prepare(sources, args, folder, device, clock):
    """Sources by kind -> tokenizers -> token cache. Returns stream, {kind: training rows}, {kind: validation rows}."""
    needed = {m for k in sources for m in KINDS[k]}
    tokenizers, codes, split = {}, {}, {}
    for m in (m for m in MODALITIES if m in needed):
        clock(f"{m} tokenizer")
        tokenizers[m] = make_tokenizer(m, [s for s in sources.values() if m in KINDS[s.kind]], args, folder, device)
    clock("encoding")
    for kind, source in sources.items():
        sources[kind], *split[kind] = readers.held_out(source)
        with tqdm(total=len(sources[kind]), desc=f"encoding {kind}", leave=False) as bar:
            def progress(n):
                bar.n = n
                bar.refresh()
            codes[kind] = data.cached_codes(sources[kind], tokenizers, folder / "cache", progress)
    slots = {"text": [args.text_length]} if "text" in sources else {}
    for kind in sources:
        if len(KINDS[kind]) > 1:
            slots[kind] = [data.slot_for(m, offsets, tokenizers[m].groups) for m, (_, offsets) in
                           zip(KINDS[kind], codes[kind])]
    stream = data.Stream({m: (t.groups, t.size) for m, t in tokenizers.items()}, slots)
    keys = {k: data.digest(s.key, *(tokenizers[m].name for m in KINDS[k])) for k, s in sources.items()}
    made = {k: [data.make_rows(stream, k, codes[k], at, folder / "cache", keys[k] + part)
                for at, part in zip(split[k], ("train", "held"))] for k in sources}
    return stream, {k: m[0] for k, m in made.items()}, {k: m[1] for k, m in made.items()}
