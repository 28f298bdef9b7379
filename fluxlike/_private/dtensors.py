"""The one file that looks inside DTensor: local tensor, spec, and torch functions below a subclass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from fluxlike._private.dispatch import outside_modes

__all__ = ["Spec", "WeakStorage", "beneath", "local_of", "of_local", "spec_of", "spec_over", "storage_of"]

Spec = DTensorSpec

#: A context in which torch functions see a DTensor, and not its subclass.
beneath = torch._C.DisableTorchFunctionSubclass


def local_of(x: DTensor, /) -> Tensor:
    """The part of this rank, as it is: no graph leads from it."""
    return x._local_tensor


def spec_of(x: DTensor, /) -> Spec:
    """Mesh, placements, shape, strides and dtype."""
    return x._spec


def storage_of(x: Tensor, /) -> int:
    """What tells the memory of a tensor apart from that of others, as long as it lives; in a trace, too."""
    return x.untyped_storage()._cdata


class WeakStorage:
    """Holds the place of a tensor's memory, not the memory: meanwhile no other has the same `storage_of`."""

    def __init__(self, x: Tensor) -> None:
        self._reference = x.untyped_storage()._weak_ref()

    def __del__(self) -> None:
        torch.UntypedStorage._free_weak_ref(self._reference)


def spec_over(
    mesh: DeviceMesh, placements: Sequence[Placement], shape: Sequence[int], like: Tensor, /
) -> Spec:
    """The spec of a tensor of a shape whose parts are like `like`, laid out in the order of its strides."""
    size = torch.Size(shape)
    return DTensorSpec(mesh, tuple(placements), TensorMeta(size, _strides(size, like), like.dtype))


def _strides(shape: torch.Size, like: Tensor) -> tuple[int, ...]:
    """Strides of a whole whose parts are laid out as `like`: the same order of the axes, without holes."""
    order = sorted(range(len(shape)), key=lambda i: (like.stride(i), -i))
    strides, step = [0] * len(shape), 1
    for i in order:
        strides[i] = step
        step *= max(1, shape[i])
    return tuple(strides)


def _by_numbers(place: Any) -> Any:
    @functools.wraps(place)
    def found(*args: Any, **kwargs: Any) -> Any:
        with outside_modes(), torch.device("cpu"):
            return place(*args, **kwargs)

    return found


# torch finds the indices of such a part by tensors, which a trace and fake tensors would take for their own.
# The result is the same, so this may hold for the whole process, and on all threads.
_StridedShard.local_shard_size_and_offset = _by_numbers(  # type: ignore[method-assign]
    _StridedShard.local_shard_size_and_offset
)


def of_local(local: Tensor, spec: Spec, kind: type[Any] = DTensor, /) -> Any:
    """A tensor over a mesh of which this rank holds `local`; no graph leads to it."""
    return DTensor.__new__(kind, local, spec, requires_grad=False)
