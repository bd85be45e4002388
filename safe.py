"""What keeps a run safe: files that are whole or not there, checkpoints that are checked, errors told in one line."""
import argparse
import contextlib
import errno
import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np


class DataError(Exception):
    """Something that went wrong with data or a run, told in one line: which file or field, and what to do."""


class UsageError(DataError):
    """A flag or argument that cannot be right."""


def reason(error):
    """An exception in a few words."""
    text = str(error).splitlines()[0] if str(error) else ""
    return type(error).__name__ + (f": {text[:80]}" if text and "BytesIO" not in text else "")


@contextlib.contextmanager
def whole(path):
    """A temporary path beside `path` to write to; renamed to it at the end, so that a file that exists is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())                        # on the disk before the name changes: a power cut leaves one of the two
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) or (isinstance(error, RuntimeError) and "inline_container" in str(error)):   # torch's
            raise DataError(f"cannot write {path} ({reason(error)}): make room there; what was saved before is whole")
        raise


def write_text(path, text):
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1))


def read_json(path, default=None):
    """The value in a JSON file, or default if there is none. Raises DataError for a damaged one."""
    path = Path(path)
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({reason(error)}): restore it, or train afresh")


def is_run(folder):
    """Whether a run made this folder: its config.json is an object that holds "layout_version"."""
    try:
        saved = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(saved, dict) and "layout_version" in saved


def write_array(path, array):
    with whole(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def write_arrays(path, **arrays):
    with whole(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_arrays(path):
    """An .npz file. Raises DataError for a missing or damaged one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} is missing or damaged ({reason(error)}): train afresh")


def finite(tensors):
    """Whether all values of all tensors are finite."""
    return all(bool(t.isfinite().all()) for t in tensors)


def save(path, value):
    """torch.save, whole or not at all."""
    import torch
    with whole(path) as temporary:
        torch.save(value, temporary)


def load(path):
    """torch.load of tensors and plain values only (no code), after the checksums in the file (CRC-32 of every part) were
    compared. Raises DataError for a file that is cut, altered or not of that kind."""
    import torch
    try:
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
        if bad is None:
            return torch.load(path, map_location="cpu", weights_only=True)
        why = f"{bad} fails its checksum"
    except FileNotFoundError:
        raise DataError(f"{path} is missing: train first")
    except (MemoryError, PermissionError):
        raise
    except Exception as error:                             # what a damaged file makes zipfile, pickle or torch raise
        why = reason(error)
    raise DataError(f"{path} is damaged, or not a file of ours ({why}): restore a copy, or train afresh")


def pick_device(name="auto"):
    """torch.device by name; auto takes cuda, then mps, then cpu. Raises UsageError for one that is not there."""
    import torch
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        return device
    except (RuntimeError, AssertionError):
        raise UsageError(f"--device {name}: no such device here; try --device cpu")


class Help(argparse.RawDescriptionHelpFormatter):
    """Help with the defaults, as one would type them."""

    def _get_help_string(self, action):
        value = action.default
        if value is None or value is False or value == {} or value == argparse.SUPPRESS:
            return action.help
        typed = (",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else
                 ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value)
        return f"{action.help} (default: {typed})"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, through `cli`."""

    def error(self, message):
        raise UsageError(f"{message} (--help lists all flags)")


SHORT = ("out of memory", "tried to allocate")             # what torch says where memory is short, of a GPU and of a CPU
OUT_OF_MEMORY = "out of memory ({}): to train, a lower --micro-batch (rows at a time), --batch-tokens or --preset needs less; to sample, a lower --n"


def cli(main, name):
    """Run a command line: errors are one line on stderr, with status 2 for a wrong flag and 1 for the rest (--debug: a traceback)."""
    status, debug = 1, "--debug" in sys.argv
    sys.argv = [arg for arg in sys.argv if arg != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show must not end a run
    try:
        main()
        sys.stdout.flush()
        return
    except Exception as error:
        if debug:
            raise
        if isinstance(error, BrokenPipeError):             # the reader of our output went away: nobody left to tell
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(status)
        if isinstance(error, (DataError, ValueError)):
            status, text = 1 + isinstance(error, UsageError), str(error)
        elif isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(s in str(error) for s in SHORT)):
            text = OUT_OF_MEMORY.format(reason(error))
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            text = f"no space left ({error.filename or error.strerror}): make room, then go on with --resume"
        else:
            text = f"{reason(error)} (--debug shows where)"
    except KeyboardInterrupt:
        text = "stopped"
    print(f"{name}: {text}", file=sys.stderr)
    sys.exit(status)
