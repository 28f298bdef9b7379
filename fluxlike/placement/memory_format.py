"""The order of a tensor's entries in memory: `channels_last` and `contiguous`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from fluxlike._private import functorch
from fluxlike.scope.assigned import Assigned, derive
from fluxlike.trees.fmap import fmap
from fluxlike.trees.values import is_tensor, value_of

__all__ = ["channels_last", "contiguous"]

T = TypeVar("T")

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(tree: T, /) -> T:
    """A tree with its images and kernels in channels-last memory, where convolutions are often faster.

    Shapes and values stay: of four axes (N, C, H, W) or five (N, C, D, H, W), the channels lie next to
    each other in memory. It pays where the model and its input are both laid out so.

    Args:
        tree: any tree: a model, a batch.

    Returns:
        A tree of the same structure and ties. Tensors of another number of axes, those that are laid
        out so already, and inside `vmap` those that are batched, are kept.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.channels_last(fl.Conv((3, 3), 4, 8))
        >>> model.weight.shape, model.weight.stride()
        (torch.Size([8, 4, 3, 3]), (36, 1, 12, 4))
        >>> model(fl.channels_last(torch.zeros(1, 4, 5, 5))).is_contiguous(memory_format=torch.channels_last)
        True
    """
    return _lay_out(tree, lambda x: _CHANNELS_LAST.get(x.ndim))


def contiguous(tree: T, /) -> T:
    """A tree with its tensors in torch's usual memory, the last axis next to each other.

    It undoes `channels_last`, and makes views such as those of `permute` tensors of their own.

    Args:
        tree: any tree.

    Returns:
        A tree of the same structure and ties; tensors that are laid out so already are kept.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.contiguous([fl.permute(torch.zeros(2, 3), "CN", "NC")])[0].stride()
        (2, 1)
    """
    return _lay_out(tree, lambda _: torch.contiguous_format)


def _lay_out(tree: Any, wanted: Callable[[Tensor], torch.memory_format | None]) -> Any:
    def move(x: Any) -> Any:
        if isinstance(x, Assigned):
            return Assigned(move(x.value))
        memory = wanted(x) if is_tensor(x) and x.layout is torch.strided else None
        if memory is None or (memory is not torch.contiguous_format and _is_batched(x)):
            return x
        value = value_of(x)
        new = value.contiguous(memory_format=memory)
        if new is value:
            return x
        derive(new, x)
        return new

    return fmap(move, tree, leaves="all")


def _is_batched(x: Tensor) -> bool:
    """Whether a ``vmap`` of those around made the tensor a batch: torch has no other memory for one."""
    while functorch.level_of(x):
        if functorch.is_batch(x):
            return True
        x = functorch.inner(x)
    return False
