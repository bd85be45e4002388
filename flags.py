"""The flags of train.py: what they are, what they may be, and which of them a run keeps."""
import argparse
import json
import math

import data
import diffusion
import model as models
from data import KINDS
import safe
from rules import BASE
from safe import UsageError, read_json

def shares(text):
    """'a=0.2,b=0.8' -> {'a': 0.2, 'b': 0.8}"""
    try:
        return {k: float(v) for k, v in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=share,name=share")


def weightings(text):
    """'bound' -> {kind: 'bound'} for all kinds; 'image-text=unweighted' -> that one, and 'bound' for the rest."""
    named = dict(part.split("=", 1) for part in text.split(",")) if "=" in text else dict.fromkeys(KINDS, text)
    return {**dict.fromkeys(KINDS, "bound"), **named}


def numbers(text):
    return tuple(int(n) for n in text.split(","))


def parser(text=None):
    p = safe.Parser(description=text, formatter_class=safe.Help)
    g = p.add_argument_group("run")
    g.add_argument("--run", default="runs/toy", help="folder for everything the run writes")
    g.add_argument("--preset", default="toy", choices=models.PRESETS, help="size of the network")
    g.add_argument("--minutes", type=float, default=7.0, help="time for the model's training (tokenizers come on top)")
    g.add_argument("--steps", type=int, default=0, help="optimizer steps, instead of --minutes")
    g.add_argument("--resume", action="store_true", help="go on with the run in --run")
    g.add_argument("--overwrite", action="store_true", help="replace the run in --run: its files are removed, no others")
    g.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    g.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    g.add_argument("--plan", action="store_true", help="print sizes, cost and settings; train nothing")
    g.add_argument("--bench", action="store_true", help="time training steps on random tokens; train nothing")
    g.add_argument("--json", action="store_true", help="print what --bench finds as JSON")
    g.add_argument("--debug", action="store_true", help="show the traceback of an error")
    g.add_argument("--score-n", type=int, default=50, help="samples for each line of the closing table (0: none)")
    g = p.add_argument_group("data (none of these: the toy world)")
    g.add_argument("--text", action="append", metavar="PATH", help=".txt file or folder of them (repeatable)")
    g.add_argument("--images", action="append", metavar="DIR", help="pictures with metadata.jsonl or .txt captions")
    g.add_argument("--speech", action="append", metavar="DIR", help="metadata.csv and wavs/, or .txt transcripts")
    g.add_argument("--skip-bad", action="store_true", help="leave out items that cannot be used instead of stopping")
    g.add_argument("--longest-caption", type=int, default=300, help="characters of a caption or transcript")
    g.add_argument("--longest-clip", type=float, default=20.0, help="seconds of a clip")
    g.add_argument("--kinds", type=lambda s: s.split(","), default=list(KINDS), help="of the toy world: a subset of "
                   + ",".join(KINDS))
    g.add_argument("--pictures", type=int, default=30_000, help="of the toy world")
    g.add_argument("--passages", type=int, default=30_000, help="of the toy world")
    g.add_argument("--utterances", type=int, default=6_000, help="of the toy world")
    g.add_argument("--mix", type=shares, default=shares("text=0.26,image-text=0.44,speech-text=0.3"),
                   help="share of the training tokens of each kind")
    g.add_argument("--text-length", type=int, default=96, help="tokens in a row of packed text")
    g = p.add_argument_group("tokenizers")
    g.add_argument("--keep-tokenizers", action="store_true", help="use those that the run folder has already")
    g.add_argument("--vocab-size", type=int, default=512, help="byte pairs of the text tokenizer, bytes included")
    g.add_argument("--encoding", choices=("gpt2", "cl100k_base", "o200k_base"), metavar="NAME", help="a tiktoken vocabulary (gpt2, cl100k_base, o200k_base) instead of one's own")
    g.add_argument("--image-side", type=int, default=0, help="pixels (0: that of the first picture, at most 64)")
    g.add_argument("--patch", type=int, default=0, help="pixels along the side of an image token; 0: the most up to 8")
    g.add_argument("--image-colours", type=int, default=3, help="tokens for the main colours of a picture")
    g.add_argument("--image-levels", type=numbers, default=(5, 5, 5, 5), help="FSQ levels; their product is the codebook")
    g.add_argument("--speech-levels", type=numbers, default=(8, 5, 5), help="FSQ levels of a code")
    g.add_argument("--speech-stride", type=int, default=4, help="16 ms frames in a code step; divides 32")
    g.add_argument("--speech-groups", type=int, default=3, help="codes in a step")
    g.add_argument("--image-seconds", type=float, default=30, help="training time of the image tokenizer")
    g.add_argument("--speech-seconds", type=float, default=50, help="training time of the speech tokenizer")
    g.add_argument("--image-steps", type=int, help="instead of --image-seconds")
    g.add_argument("--speech-steps", type=int, help="instead of --speech-seconds")
    g.add_argument("--tokenizer-items", type=int, default=6000, help="pictures or clips that tokenizers are trained on")
    g = p.add_argument_group("diffusion")
    g.add_argument("--schedule", default="linear", help="linear, cosine or poly:P")
    g.add_argument("--weighting", type=weightings, default=weightings("text=bound,image-text=unweighted,speech-text=unweighted"),
                   help="of a masked token by its mask rate: " + ", ".join(diffusion.WEIGHTINGS)
                   + "; one for all, or kind=name,... (bound for the rest)")
    g.add_argument("--loss-weights", type=shares, help="of each kind's and modality's term of the loss, 0.2 if not named", default=shares(
        "text/text=0.2,image-text/image=0.3,image-text/text=0.15,speech-text/speech=0.25,speech-text/text=0.1"))
    g.add_argument("--complement", action=argparse.BooleanOptionalAction, default=False,
                   help="train on a mask and on its complement (anti-masking): same tokens a step, half as many items")
    g.add_argument("--modes", type=shares, help="how pairs are noised: shares of " + ", ".join(diffusion.PAIR_MODES),
                   default=shares("joint=0.05,first|second=0.45,second|first=0.4,first=0.07,second=0.03"))
    g.add_argument("--time-power", type=shares, default=shares("first|second=0.6,second|first=0.3"),
                   help="mode=p: times of that mode are drawn as u^p, below 1 at higher mask rates (joint=1: none changed)")
    g = p.add_argument_group("optimizer (values at the tuned point; the batch rule derives the ones used)")
    g.add_argument("--batch-tokens", type=int, default=BASE["batch"], help="tokens a step, all kinds together")
    g.add_argument("--micro-batch", type=int, default=0, help="rows of each kind that go through the network at a time; 0: all, "
                   "fewer if memory is short")
    g.add_argument("--lr", type=float, default=BASE["lr"], help="AdamW learning rate")
    g.add_argument("--optimizer", default="muon", choices=models.OPTIMIZERS, help="of the hidden matrices (the rest: AdamW)")
    g.add_argument("--muon-lr", type=float, default=BASE["muon_lr"], help="Muon's learning rate: the spectral norm of a step")
    g.add_argument("--weight-decay", type=float, default=BASE["weight_decay"], help="multiplied by lr, as in PyTorch")
    g.add_argument("--gamma", type=float, default=0.44, help="token-horizon exponent of the batch rule")
    g.add_argument("--warmup", type=float, default=0.05, help="share of the steps, at most 1000 steps")
    g.add_argument("--clip", type=float, default=1.0, help="largest gradient norm")
    g.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="auto: measured")
    g.add_argument("--compile", default="auto", choices=["auto", "on", "off"], help="auto: measured, if the run is long enough")
    g.add_argument("--shape", type=json.loads, default={}, help='changes to the preset, as {"width": 128}')
    g.add_argument("--log-every", type=int, default=10, help="steps from one line of log.jsonl to the next")
    g.add_argument("--score-every", type=int, default=0, help="quick scores and samples on the page every so many steps (0: at the end)")
    g.add_argument("--save-every", type=int, default=200, help="steps from one checkpoint, and look of the page, to the next")
    g = p.add_argument_group("plan")
    g.add_argument("--vocab", type=int, default=0, help="--plan: ids of all modalities; --bench: of text")
    g.add_argument("--tokens", type=float, default=0, help="token horizon, for --plan")
    g.add_argument("--throughput", type=float, default=0, help="tokens a second, for the hours that --plan prints")
    return p


POSITIVE = ("minutes", "muon_lr", "lr", "batch_tokens", "text_length", "image_colours", "speech_stride", "speech_groups", "image_seconds",
            "speech_seconds", "image_steps", "speech_steps", "tokenizer_items", "clip", "log_every", "save_every", "pictures", "passages", "utterances",
            "longest_caption", "longest_clip")
NOT_NEGATIVE = ("steps", "seed", "score_n", "score_every", "image_side", "patch", "micro_batch", "weight_decay", "gamma", "warmup",
                "vocab", "tokens", "throughput")

TOY_WORLD = {"kinds", "pictures", "passages", "utterances"}


def check(args):
    """A UsageError for a value that cannot be right: a number out of range, a share whose name nobody knows, a shape that is none."""
    if not args.run:
        raise UsageError("--run: the name of a folder is missing")
    for least, names in ((1e-12, POSITIVE), (0, NOT_NEGATIVE)):
        for name in (n for n in names if getattr(args, n) is not None):
            if not getattr(args, name) >= least:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(args, name):g}: must " + ("not be negative" if not least else "be above 0"))
    if args.vocab_size < 256:
        raise UsageError(f"--vocab-size {args.vocab_size}: the 256 bytes are part of it, so no less")
    try:
        diffusion.schedule(args.schedule)
    except ValueError as error:
        raise UsageError(f"--schedule: {error}")
    if args.text_length < data.HEAD + 2:
        raise UsageError(f"--text-length {args.text_length}: a row opens with {data.HEAD} tokens and needs room for a text: at least {data.HEAD + 2}")
    if not isinstance(args.shape, dict):
        raise UsageError('--shape: a mapping, as {"width": 128}')
    fields = [f for f in models.ModelConfig.__dataclass_fields__ if f not in ("vocab", "places", "causal")]
    unknown = [k for k in args.shape if k not in fields]
    if unknown:
        raise UsageError(f"--shape: no {unknown[0]!r}; choose from {', '.join(fields)}")
    for kind in args.kinds:
        if kind not in KINDS:
            raise UsageError(f"--kinds: no kind {kind!r}; choose from {', '.join(KINDS)}")
    if args.text or args.images or args.speech:
        for name in sorted(given_flags().keys() & TOY_WORLD):
            raise UsageError(f"--{name}: of the toy world; of your own data the folders say what is trained on (--text, --images, --speech)")
    shape = {"head_dim": 64, **models.PRESETS[args.preset], **args.shape}
    if shape["width"] % shape["head_dim"]:
        raise UsageError(f"--shape: width {shape['width']} is not a multiple of head_dim {shape['head_dim']}")
    if shape["head_dim"] % 2:
        raise UsageError(f"--shape: head_dim {shape['head_dim']} is odd, rotary positions turn pairs")
    terms = [f"{k}/{m}" for k, members in KINDS.items() for m in members]
    for flag, known in (("modes", diffusion.PAIR_MODES), ("time_power", diffusion.PAIR_MODES), ("mix", KINDS),
                        ("loss_weights", terms), ("weighting", KINDS)):
        for name in getattr(args, flag):
            if name not in known:
                raise UsageError(f"--{flag.replace('_', '-')}: no {name!r}; choose from {', '.join(known)}")
    for flag in ("modes", "mix", "loss_weights", "time_power"):
        for name, value in getattr(args, flag).items():
            if not 0 <= value < math.inf:
                raise UsageError(f"--{flag.replace('_', '-')} {name}={value:g}: must be a number that is not negative")
    if not sum(args.modes.values()):
        raise UsageError("--modes: all shares are 0: give one of them something")
    for name in args.weighting.values():
        if name not in diffusion.WEIGHTINGS:
            raise UsageError(f"--weighting: no {name!r}; choose from {', '.join(diffusion.WEIGHTINGS)}")


def check_mix(args, kinds):
    """A UsageError for a kind to train on that --mix leaves out."""
    for kind in kinds:
        if args.mix.get(kind, 0) <= 0:
            raise UsageError(f"--mix gives {kind} no share: give it one, or leave it out (--kinds; or no flag for its folder)")


HERE = ("run", "resume", "overwrite", "plan", "bench", "json", "debug", "device")  # of one call, not of the run
FREE = HERE + ("score_n", "score_every", "save_every", "log_every", "micro_batch")  # may differ on resuming: the weights do not, but for rounding


def plain(args):
    return {k: v for k, v in vars(args).items() if k not in HERE}


def given_flags():
    """{name: value} of the flags on the command line, without defaults."""
    bare = parser()
    for action in bare._actions:
        action.default = argparse.SUPPRESS
    return vars(bare.parse_args())


def settings_of(folder, args):
    """Make args those of the run in folder. A UsageError for a flag that asks for something else."""
    saved = read_json(folder / "config.json")
    if not safe.is_run(folder):
        raise UsageError(f"--resume: {folder} holds no run: start one with python train.py --run {folder}")
    data.check_layout(saved["layout_version"], folder)
    given = given_flags()
    for name, value in given.items():
        old = saved["args"].get(name)
        settled = name in ("compile", "dtype", "steps") and value in ("auto", 0)    # what was chosen then holds
        if name not in FREE and not settled and value != old and list(value if isinstance(value, tuple) else [value]) != old:
            raise UsageError(f"--resume goes on with the run's own settings: --{name.replace('_', '-')} is {old} there; leave "
                             f"it out, or start another run with --run")
    for name, value in saved["args"].items():
        if name not in given or name not in FREE:
            setattr(args, name, value)
