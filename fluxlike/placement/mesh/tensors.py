"""The two kinds of tensors over a mesh: `Stored`, what a model keeps, and `Batched`, what flows through it.

Both are DTensors, so torch knows what they hold and how to compute with them. What they add is how the two
meet. A stored tensor that is sharded over an axis of the data is gathered just before it is used with
data, and its gradient is scattered again; data stay where they are. Functions that DTensor has no rule for,
or one that moves the data, take the way of `routes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import MethodWrapperType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.placement_types import Placement

from fluxlike._private.dtensors import beneath, local_of, of_local, spec_of, spec_over
from fluxlike.placement.mesh.rowwise import differentiable_again
from fluxlike.placement.mesh.unknown import explained
from fluxlike.placement.mesh.used import DONATED

__all__ = ["Batched", "GivenAway", "MeshTensor", "Stored", "data_dims", "gathered", "replicated"]

#: Names of axes of a mesh over which one computation is divided, not the data.
MODEL_AXES = ("model", "tensor")


class MeshTensor(DTensor):
    """A tensor over a mesh."""

    engine_alone = True  # read by `_private.autograd`: torch functions are ours in the backward pass, too

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if type(func) is MethodWrapperType and func.__name__ == "__get__":  # of an attribute, such as x.shape
            with beneath():
                out = func(*args)
            return _kind(out, type(args[0])) if isinstance(out, DTensor) else out  # such as x.mT
        return apply(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        local, where = local_of(self), ", ".join(map(repr, self.placements))
        part = f"this rank's part={local!r}, shape={tuple(self.shape)}, placements=({where},)"
        return f"{type(self).__name__}({part})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = of_local(local_of(self).clone(), spec_of(self), type(self))
        memo[id(self)] = new
        return new.requires_grad_(self.requires_grad)


class Stored(MeshTensor):
    """A tensor over a mesh that a model, or the state of an optimiser, keeps."""


class Batched(MeshTensor):
    """A tensor over a mesh that is data, or computed from it."""


class GivenAway(DTensor):
    """What a tensor over a mesh turns into when its memory was donated: any use of it raises."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise RuntimeError(DONATED)


#: Functions that look at tensors, and compute nothing from them.
_PASSED = {
    torch.autograd.grad, torch.autograd.backward, Tensor.backward, Tensor.register_hook,
    Tensor.requires_grad_, Tensor.size, Tensor.stride, Tensor.dim, Tensor.ndimension, Tensor.numel,
    Tensor.nelement, torch.numel, Tensor.element_size, Tensor.is_contiguous, Tensor.is_inference,
    Tensor.is_conj, Tensor.is_neg, Tensor.is_floating_point, Tensor.is_complex, torch.is_floating_point,
    torch.is_complex, Tensor.__len__, Tensor.__hash__, Tensor.__repr__, Tensor.storage_offset,
    Tensor.untyped_storage, Tensor.data_ptr,
}  # fmt: skip

#: Functions that give the same tensor with another history: what is divided stays so.
_SAME = {Tensor.detach, torch.detach, Tensor.detach_, torch.detach_}

#: Functions that read numbers: those of the whole tensor, gathered, so that every rank reads the same.
_READ = {
    Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__bool__, Tensor.__int__,
    Tensor.__float__, Tensor.__complex__, Tensor.__index__, Tensor.__contains__, torch.equal, Tensor.equal,
    torch.allclose, Tensor.allclose, torch.is_nonzero, Tensor.is_nonzero,
}  # fmt: skip

#: How functions compute that DTensor does not compute as wanted, by the function.
ROUTES: dict[Any, Any] = {}


def apply(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """A torch function of arguments of which some are over a mesh."""
    if func in _PASSED:
        with beneath():
            return func(*args, **kwargs)
    if func in _SAME:
        with beneath():
            return _kind(func(*args, **kwargs), type(args[0]))
    if func in _READ:
        kwargs = {name: _read(x) for name, x in kwargs.items()}
        return func(*map(_read, args), **kwargs)
    batched: MeshTensor | None = None
    stored: MeshTensor | None = None
    plain = False
    for x in _tensors(args, kwargs):
        if isinstance(x, Stored):
            stored = x
        elif isinstance(x, DTensor):
            batched = x if isinstance(x, MeshTensor) else batched
        else:
            plain = True
    some = batched if batched is not None else stored
    assert some is not None
    kind = Stored if batched is None else Batched
    if plain and args and type(args[0]) is Tensor and _writes(func):
        _require_no_graph(func, args, kwargs)
    if stored is not None or plain:
        mesh = some.device_mesh
        args = tuple(_meeting(x, mesh, batched is None) for x in args)
        kwargs = {name: _meeting(x, mesh, batched is None) for name, x in kwargs.items()}
    with beneath():
        route = ROUTES.get(func)
        try:
            out = NotImplemented if route is None else route(func, args, kwargs)
            if out is NotImplemented:
                out = func(*args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            better = explained(error, func, args, kwargs)
            if better is None:
                raise
            raise better from error
    return _kind(out, kind)


def _read(x: Any) -> Any:
    return x.full_tensor() if isinstance(x, DTensor) else x


def _meeting(x: Any, mesh: DeviceMesh, alone: bool) -> Any:
    if isinstance(x, Stored):
        return in_group(x) if alone else gathered(x)
    if isinstance(x, Tensor) and not isinstance(x, DTensor):
        return replicated(x, mesh)
    if isinstance(x, (tuple, list)) and type(x) in (tuple, list):
        return type(x)(_meeting(part, mesh, alone) for part in x)
    return x


@cache
def _writes(func: Any) -> bool:
    """Whether a function changes its first argument."""
    name = getattr(func, "__name__", "")
    operator = name.startswith("__i") and name != "__invert__"
    return operator or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _require_no_graph(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Refuse to write where the graph would be lost; of ``x += y``, Python makes ``x = x + y`` then."""
    if torch.is_grad_enabled() and any(y.requires_grad for y in _tensors(args[1:], kwargs)):
        x = args[0]
        what = "x[…] = value" if func is Tensor.__setitem__ else f"x.{func.__name__}(…)"
        raise TypeError(
            f"{what}: the value is over a mesh, and autograd can't follow it into x, a plain tensor of shape "
            f"{tuple(x.shape)}; make x from data over the mesh, such as data.new_zeros(…), or write what "
            "gives a new tensor"
        )


def _tensors(args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for x in (*args, *kwargs.values()):
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, (tuple, list)):
            yield from _tensors(x, {})


def _kind(out: Any, kind: type[MeshTensor]) -> Any:
    """Results as tensors of a kind; the class of a DTensor changes, not the object."""
    if isinstance(out, DTensor):
        if any(isinstance(p, Partial) and p.reduce_op not in ("sum", "avg") for p in out.placements):
            out = settled(out)  # DTensor takes what follows a pending maximum for what follows a sum
        if type(out) is DTensor:
            out.__class__ = kind
        return out
    if isinstance(out, (tuple, list)) and any(isinstance(x, DTensor) for x in out):
        parts = [_kind(x, kind) for x in out]
        same = all(x is y for x, y in zip(parts, out, strict=True))
        return out if same else type(out)(parts)
    return out


def data_dims(mesh: DeviceMesh, /) -> list[int]:
    """The axes of a mesh over which data are divided: all but those named for the model."""
    names = mesh.mesh_dim_names
    return [i for i in range(mesh.ndim) if names is None or names[i] not in MODEL_AXES]


#: Other ways to gather; each gives None where it is not for this one.
GATHER: list[Callable[[DTensor], DTensor | None]] = []


def in_group(x: DTensor, /) -> DTensor:
    """A stored tensor, gathered with others while the forward pass of its gradient is running."""
    for way in GATHER:
        found = way(x)
        if found is not None:
            return found
    return x


def gathered(x: DTensor, /) -> DTensor:
    """A stored tensor, whole along the axes of the data."""
    x = in_group(x)
    dims = data_dims(x.device_mesh)
    placements = list(x.placements)
    if all(isinstance(placements[i], Replicate) for i in dims):
        return x
    for i in dims:
        placements[i] = Replicate()
    return x.redistribute(placements=placements)


def replicated(x: Tensor, mesh: DeviceMesh, /) -> DTensor:
    """A plain tensor, which every rank has alike, over a mesh."""
    placements = [Replicate()] * mesh.ndim
    if x.requires_grad:
        return differentiable_again(DTensor.from_local(x, mesh, placements, run_check=False))
    return of_local(x, spec_over(mesh, placements, x.shape, x))


def settled(x: DTensor, /) -> DTensor:
    """A tensor without a pending sum."""
    if any(isinstance(p, Partial) for p in x.placements):
        placements: Sequence[Placement] = [Replicate() if isinstance(p, Partial) else p for p in x.placements]
        whole = x.redistribute(placements=placements)
        return differentiable_again(whole) if whole.requires_grad else whole
    return x
