"""Kinds of leaves: parameter, buffer, constant, and the buffer assignments that ride in gradients."""

from __future__ import annotations

import enum
import functools
import types
import weakref
from collections import deque
from collections.abc import ItemsView, Iterable, KeysView, ValuesView
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike._private import pytree
from fluxlike.trees.functor import is_leaf_class, spec_of
from fluxlike.trees.nodes import slots
from fluxlike.trees.values import is_tensor

__all__ = ["Assigned", "can_train", "is_harmless", "what_holds_tensors"]


class Assigned:
    """The new value of a buffer, at that buffer's place in a tree of gradients.

    `gradient` puts it there for every buffer that a layer assigned, and `update` puts its value
    into the new model. It is a leaf that `fmap` and arithmetic on trees pass by.

    Attributes:
        value: the new value, with the shape and dtype of the buffer.
    """

    __slots__ = ("value",)

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __repr__(self) -> str:
        if isinstance(self.value, Tensor):
            return f"Assigned({str(self.value.dtype).removeprefix('torch.')}{list(self.value.shape)})"
        return f"Assigned({self.value!r})"


# For torch's own transforms it is a node, so that they unwrap the tensor that it carries.
pytree.register(Assigned, lambda a: ((a.value,), None, ("value",)), lambda _, values: Assigned(*values))


_TRAINED = frozenset(
    dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)
)


def can_train(x: object, /) -> bool:
    """Whether a leaf is of the kind that is trained: a floating or complex strided tensor."""
    return is_tensor(x) and x.dtype in _TRAINED and x.layout is torch.strided


# Types whose objects are constants for certain; others are looked into, object by object.
_harmless: set[type] = {
    Tensor,
    torch.nn.Parameter,
    Assigned,
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    range,
    slice,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
    np.ndarray,
    np.ufunc,
    torch.dtype,
    torch.device,
    torch.Size,
    torch.layout,
    torch.memory_format,
    torch.Generator,
}


def is_harmless(types_: Iterable[type], /) -> bool:
    """Whether objects of all these types can be leaves without a closer look."""
    return _harmless.issuperset(types_)


def what_holds_tensors(x: Any, /) -> str | None:
    """Where inside a leaf a tensor or a functor hides, as an attribute path, or None."""
    if type(x) in _harmless:
        return None
    if isinstance(x, (Tensor, np.generic, np.ndarray, type, enum.Enum)) or is_leaf_class(type(x)):
        if not isinstance(x, type):
            _harmless.add(type(x))
        return None
    if isinstance(x, functools.partial):  # it can't change, so once is enough
        if x in _cleared:
            return None
        held = _search(x)
        if held is None:
            _cleared.add(x)
        return held
    return _search(x)


_cleared: weakref.WeakSet[Any] = weakref.WeakSet()
_FAR = 1000  # objects looked at inside one constant; tensors lie near the surface


def _search(x: Any) -> str | None:
    """The nearest tensor or functor inside an object, breadth first."""
    queue, seen = deque([("", x)]), {id(x)}
    for _ in range(_FAR):
        if not queue:
            return None
        place, part = queue.popleft()
        if isinstance(part, Tensor):
            return place
        if place and not isinstance(part, type) and spec_of(type(part)) is not None:
            return place
        for name, inner in _parts(part):
            if id(inner) not in seen and len(queue) < _FAR:
                seen.add(id(inner))
                queue.append((place + name, inner))
    return None


def _parts(x: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(x, (dict, types.MappingProxyType)):
        return ((f"[{k!r}]", v) for k, v in islice(x.items(), _FAR))
    if isinstance(x, (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)):
        return ((f"[{i}]", v) for i, v in enumerate(islice(x, _FAR)))
    if isinstance(x, functools.partial):
        return [(".func", x.func), (".args", x.args), (".keywords", x.keywords)]
    if isinstance(x, types.MethodType):
        return [(".__self__", x.__self__)]
    if isinstance(x, type) or type(x) in _harmless:
        return []
    if type(x).__module__ in ("builtins", "types", "torch") and not isinstance(x, types.SimpleNamespace):
        return []
    held = {n: getattr(x, n) for n in slots(type(x)) if hasattr(x, n)}
    held.update(getattr(x, "__dict__", ()))
    return [(f".{n}", v) for n, v in held.items()]
