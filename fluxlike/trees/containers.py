"""Containers of other packages: what torch's own pytrees take apart, such as the outputs of transformers."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, cast

import optree

from fluxlike._private import pytree
from fluxlike.trees.constants import same_constant
from fluxlike.trees.functor import NAMESPACE, is_leaf_class, spec_of
from fluxlike.trees.leaves import is_harmless
from fluxlike.trees.nodes import TENSORS_RIDE

__all__ = ["is_known"]

_known: set[type] = set()
_lock = threading.Lock()


def is_known(cls: type, /) -> bool:
    """Whether objects of a class are nodes, by `functor` or because torch's own pytrees take them apart.

    Both are registered on first sight, so a tree that was flattened before must be flattened again.
    """
    if spec_of(cls) is not None or cls in _known:
        return True
    if not pytree.knows(cls) or is_harmless((cls,)) or is_leaf_class(cls):
        return False
    with _lock:
        if cls not in _known:
            _register(cls)
            _known.add(cls)
    return True


def _register(cls: type) -> None:
    def flatten(node: Any) -> tuple[list[Any], _Context, list[Any]]:
        keyed, context = pytree.opened(node)
        if cls not in TENSORS_RIDE and pytree.tensors_in(context):
            TENSORS_RIDE.add(cls)
        return [child for _, child in keyed], _Context(context), [_entry(key) for key, _ in keyed]

    def rebuild(context: _Context, children: Iterable[Any]) -> Any:
        return pytree.closed(cls, children, context.value)

    optree.register_pytree_node(cls, flatten, cast(Any, rebuild), path_entry_type=_Entry, namespace=NAMESPACE)


class _Context:
    """What torch keeps of a node beside its children. It need not be hashable."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Context) and same_constant(self.value, other.value)

    def __hash__(self) -> int:
        return hash(type(self.value))

    def __repr__(self) -> str:
        return repr(self.value)


class _Attribute(str):
    """The name of a child that is an attribute, where others are keys."""

    __slots__ = ()


def _entry(key: tuple[str, Any]) -> Any:
    kind, value = key
    return _Attribute(value) if kind == "attribute" else value


class _Entry(optree.PyTreeEntry):
    """The step to a child: an attribute, a key or an index."""

    __slots__ = ()

    def __call__(self, node: Any) -> Any:
        return getattr(node, self.entry) if isinstance(self.entry, _Attribute) else node[self.entry]

    def codify(self, node: str = "") -> str:
        return f"{node}.{self.entry}" if isinstance(self.entry, _Attribute) else f"{node}[{self.entry!r}]"
