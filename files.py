"""Whole files, checked checkpoints, one writer a folder, errors in one line, the device."""
import argparse
import contextlib
import json
import math
import os
import re
import shlex
import sys
import timeit
import zipfile
from pathlib import Path

# OpenMP's idle threads spin. Beside another busy process that costs most of the speed.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # how long: experiments/busy.py

import torch  # noqa: E402

# ------------------------------------------------------------------------------------------------
# Errors.


class DataError(Exception):
    """Something is wrong with data or a run. The text is one line: what it is, and what to do."""


class UsageError(DataError):
    """A flag or an argument cannot be right."""


def reason(error):
    """An exception in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    text = lines[0][:80] if lines else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def quoted(path):
    """A path as one would paste it into a shell."""
    return shlex.quote(str(path))


# not printable for Python, but harmless: French and Chinese blanks, joiners of Persian and emoji
HARMLESS = "\n\t\xa0\u202f\u3000\u200c\u200d"


def printable(text):
    """Text without control characters, which could write anywhere on a terminal."""
    return "".join(c if c.isprintable() or c in HARMLESS else repr(c)[1:-1] for c in text)


# ------------------------------------------------------------------------------------------------
# Files. A file that exists is complete: it is written beside its place and renamed.


@contextlib.contextmanager
def whole(path):
    """A temporary path to write to. It becomes `path` at the end, or nothing changes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # on the disk before the name changes
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # torch reports a full disk as a RuntimeError of its zip writer
        full_disk = isinstance(error, RuntimeError) and "inline_container" in str(error)
        if isinstance(error, OSError) or full_disk:
            raise DataError(f"cannot write {quoted(path)} ({reason(error)}): mend that; "
                            "what was saved before is whole")
        raise


def write_bytes(path, content):
    with whole(path) as temporary:
        temporary.write_bytes(content)


def write_text(path, text):
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1))


def save(path, value):
    """torch.save, whole or not at all."""
    with whole(path) as temporary:
        torch.save(value, temporary)


@contextlib.contextmanager
def reading(path):
    """What fails inside is a DataError: the file is lost or damaged, or none of ours."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes json, zipfile, pickle or torch raise
        raise DataError(f"{quoted(path)} cannot be read ({reason(error)}): restore it, "
                        "or train afresh")


def read_json(path, default=None):
    """The value in a JSON file, or default where there is none."""
    with reading(path), contextlib.suppress(FileNotFoundError):
        return json.loads(Path(path).read_text(encoding="utf-8"))
    return default


def load(path):
    """torch.load of tensors and plain values only, after the checksums (CRC-32) were compared."""
    with reading(path), zipfile.ZipFile(path) as file:
        altered = file.testzip()
        if altered:
            raise zipfile.BadZipFile(f"{altered} fails its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def sole_writer(folder):
    """Hold a folder's lock. It dies with the process. UsageError while another one holds it."""
    import fcntl  # not there on Windows
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--run {quoted(folder)}: another training is writing there; "
                             "wait for it, or choose another --run")
        yield


# ------------------------------------------------------------------------------------------------
# Device and precision.


def pick_device(name="auto"):
    """torch.device by name; auto takes cuda, then mps, then cpu. UsageError if it is not there."""
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else name
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # it has values: not so on meta
        return probe.device  # cuda -> cuda:0
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError):
        raise UsageError(f"--device {name}: no such device here; try --device cpu")


def fast_dtype(device):
    """The dtype for matrix products: bfloat16 where the hardware is fast at it, else float32.

    On a CPU both are timed here: bfloat16 must be 1.3 times as fast.
    """
    fast = False
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = product_seconds(torch.float32) > 1.3 * product_seconds(torch.bfloat16)
    return torch.bfloat16 if fast else torch.float32


def product_seconds(dtype):
    a = torch.ones(2048, 256, dtype=dtype)
    b = torch.ones(256, 768, dtype=dtype)
    times = timeit.repeat(lambda: a @ b, number=1, repeat=20)
    return min(times)  # others may use the machine


def autocast(device, dtype):
    """The context in which matrix products run in dtype."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


# ------------------------------------------------------------------------------------------------
# The command line.


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, through `command_line`."""

    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message):
        raise UsageError(f"{message} (--help lists all flags)")


def number(numeric, least, most=math.inf):
    """A type of flag: a finite number from least to most. numeric: int or float."""
    def parse(text):
        value = numeric(text)
        if not least <= value <= most or value == math.inf:  # nan is not between, either
            end = f" to {most:g}" if math.isfinite(most) else " up"
            raise argparse.ArgumentTypeError(f"{text} is not from {least:g}{end}")
        return value
    parse.__name__ = numeric.__name__  # argparse names it where the text is no number
    return parse


def message(error):
    """What a person is told of an exception: one line."""
    if isinstance(error, DataError):
        return str(error)
    # torch's own words, for GPUs and for CPUs
    if isinstance(error, MemoryError) or re.search("out of memory|tried to allocate", str(error)):
        return (f"out of memory ({reason(error)}): to train, a lower --micro-batch, --batch-tokens "
                "or --preset needs less; to sample, a lower --n")
    if isinstance(error, OSError) and error.filename:
        return f"{quoted(error.filename)}: {reason(error)}"
    return f"{reason(error)} (--debug shows where)"


def command_line(main, name):
    """Run main(). An error is one line on stderr; status 2 for a wrong flag, 1 for the rest.

    --debug, anywhere, shows the traceback instead.
    """
    debug = "--debug" in sys.argv
    sys.argv = [arg for arg in sys.argv if arg != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what cannot be shown must not end a run
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(f"{name}: stopped")
    except Exception as error:
        if debug:
            raise
        print(f"{name}: {printable(message(error))}", file=sys.stderr)
        sys.exit(1 + isinstance(error, UsageError))
