"""A pretended accelerator: tells without a true one whether all is moved where it is needed.

Its tensors say that they are on the meta device, and hold a CPU tensor inside. An operation on
tensors of both kinds raises, as it would on a GPU.
"""
import torch
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")  # the only other one that a build for CPUs can differentiate on
aten = torch.ops.aten
MIXED = (aten.copy_.default, aten._to_copy.default)  # may have a tensor of each
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
           aten._index_put_impl_.default)  # CPU indices are allowed


class Held(torch.Tensor):
    """A tensor of the pretended device; `inner` has its values."""

    @staticmethod
    def __new__(cls, inner):
        held = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=DEVICE)
        held.inner = inner
        return held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})

    def tolist(self):
        return self.inner.tolist()

    def __reduce_ex__(self, protocol):
        return self.inner.__reduce_ex__(protocol)


def is_held(value):
    return isinstance(value, Held)


def strange(function, args, tensor):
    """Whether this tensor may not meet one of the device."""
    if is_held(tensor) or not tensor.dim():
        return False
    index = tensor.dtype in (torch.int64, torch.bool)
    return not (index and function in INDEXED and is_held(args[0]))


def run(function, args, kwargs):
    """Do an operation on the tensors inside. RuntimeError where devices are mixed."""
    with _disable_current_modes():
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        held = [t for t in tensors if is_held(t)]
        left = [tuple(t.shape) for t in tensors if strange(function, args, t)]
        if held and left and function not in MIXED:
            raise RuntimeError(f"{function} on tensors of two devices; of the CPU: {left}")
        there = bool(held)
        plain_args, plain = tree_map(lambda v: v.inner if is_held(v) else v, (args, kwargs))
        if function is aten.copy_.default:
            there = is_held(args[0])
        elif kwargs.get("device") is not None:
            there = kwargs["device"] == DEVICE
            plain["device"] = torch.device("cpu")
        out = function(*plain_args, **plain)
        if function is aten._local_scalar_dense.default or not there:
            return out
        out = tree_map(lambda v: Held(v) if isinstance(v, torch.Tensor) else v, out)
        if held:
            return return_and_correct_aliasing(function, args, kwargs, out)
        return out


class Pretended(TorchDispatchMode):
    """Within it new tensors on DEVICE are pretended ones."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


class Generator(torch.Generator):
    """A CPU's, which knows what device asked for it."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls)
        generator.wanted = device
        return generator


def pretend(patch):
    """Change, by pytest's monkeypatch, what torch does not route through the mode: tensors of lists
    and arrays, random numbers."""
    rand = torch.rand

    def drawn(*shape, device="cpu", generator=None, **kwargs):
        numbers = rand(*shape, generator=generator, **kwargs)
        return numbers.to(getattr(generator, "wanted", device))

    def of_data(make):
        def made(values, *args, device=None, **kwargs):
            tensor = values
            if not isinstance(values, torch.Tensor):
                tensor = make(values, *args, **kwargs)
            return tensor if device is None else tensor.to(device)
        return made

    for name in ("tensor", "as_tensor"):
        patch.setattr(torch, name, of_data(getattr(torch, name)))
    patch.setattr(torch, "rand", drawn)
    patch.setattr(torch, "Generator", Generator)
