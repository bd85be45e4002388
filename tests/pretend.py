"""A pretended accelerator. Its tensors say that they are on the meta device and hold a CPU tensor inside; an operation on tensors of both
kinds raises, as it would on a GPU. So a machine without one can tell whether everything is moved to where it is needed."""
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")                          # the only other one that a build for CPUs can differentiate on
aten = torch.ops.aten
MIXED = (aten.copy_.default, aten._to_copy.default)    # may have a tensor of each
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)   # CPU indices are allowed


class Held(torch.Tensor):
    """A tensor of the pretended device; `inner` has its values."""

    @staticmethod
    def __new__(cls, inner):
        held = torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
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


def run(function, args, kwargs):
    if function is aten._fused_sdp_choice.default:
        return 0                                       # attention by plain products: the others are chosen by the true device
    with _disable_current_modes():
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        held = [t for t in tensors if isinstance(t, Held)]
        strange = [t for t in tensors if not isinstance(t, Held) and t.dim()
                   and not (function in INDEXED and isinstance(args[0], Held) and t.dtype in (torch.int64, torch.bool))]
        if held and strange and function not in MIXED:
            raise RuntimeError(f"{function} on tensors of two devices; of the CPU: {[tuple(t.shape) for t in strange]}")
        asked = kwargs.get("device")
        here = isinstance(args[0], Held) if function is aten.copy_.default else asked == DEVICE if asked is not None else bool(held)
        plain_args, plain = tree_map(lambda t: t.inner if isinstance(t, Held) else t, (args, kwargs))
        out = function(*plain_args, **{**plain, **({"device": torch.device("cpu")} if asked is not None else {})})
        if function is aten._local_scalar_dense.default or not here:
            return out
        out = tree_map(lambda t: Held(t) if isinstance(t, torch.Tensor) else t, out)
        return return_and_correct_aliasing(function, args, kwargs, out) if held else out


class Pretended(TorchDispatchMode):
    """Within it new tensors on DEVICE are pretended ones."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def pretend(patch):
    """What torch does not route through the mode, by pytest's monkeypatch: data from lists and arrays, and random numbers."""
    made = {name: getattr(torch, name) for name in ("tensor", "as_tensor", "rand")}

    class Generator(torch.Generator):                  # a CPU's, which knows what device asked for it
        def __new__(cls, device="cpu"):
            one = super().__new__(cls)
            one.wanted = device
            return one

    def of_data(make):
        def moved(values, *args, device=None, **kwargs):
            tensor = values if isinstance(values, torch.Tensor) else make(values, *args, **kwargs)
            return tensor if device is None else tensor.to(device)
        return moved

    for name in ("tensor", "as_tensor"):
        patch.setattr(torch, name, of_data(made[name]))
    patch.setattr(torch, "Generator", Generator)
    patch.setattr(torch, "rand", lambda *shape, device="cpu", generator=None, **kwargs: made["rand"](
        *shape, generator=generator, **kwargs).to(getattr(generator, "wanted", device)))
