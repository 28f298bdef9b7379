"""Calls without data: on the meta device, with shapes alone, and nothing drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optree
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fluxlike.scope.seeded import active
from fluxlike.trees.fmap import fmap

__all__ = ["on_meta", "shape_of", "without_data"]


def on_meta(tree: Any, /) -> Any:
    """A tree whose tensors are shapes without memory, with the same ties; no buffer of it is held."""
    return fmap(shape_of, tree)


def shape_of(x: Tensor, /) -> Tensor:
    """A tensor on the meta device of the same shape, strides and dtype."""
    if x.layout is torch.strided and not x.is_quantized:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return x.detach().to("meta")


@contextmanager
def without_data() -> Iterator[None]:
    """A scope for a call on the meta device: tensors from outside take part, and draws count for nothing."""
    draws = active()
    mark = draws.mark() if draws is not None else 0
    try:
        with torch.device("meta"), _WithOthers():
            yield
    finally:
        if draws is not None:
            draws.rewind(mark)


class _WithOthers(TorchFunctionMode):
    """Lets tensors that are no children of the model, such as those a function closes over, take part."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given: Any = (args, kwargs)
        leaves, treedef = optree.tree_flatten(given)
        if len({x.is_meta for x in leaves if isinstance(x, Tensor)}) == 2:
            args, kwargs = treedef.unflatten(map(_moved, leaves))
        return func(*args, **kwargs)


def _moved(x: Any) -> Any:
    return shape_of(x) if isinstance(x, Tensor) and not x.is_meta else x
