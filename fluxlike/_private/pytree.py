"""The one file that touches torch's own pytrees (`torch.utils._pytree` is private)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils import _pytree

__all__ = ["closed", "knows", "map_tensors", "opened", "register", "tensors_in"]


def register(
    cls: type,
    flatten: Callable[[Any], tuple[tuple[Any, ...], Any, tuple[str, ...]]],
    rebuild: Callable[[Any, Iterable[Any]], Any],
    /,
) -> None:
    """Make objects of `cls` nodes for ``torch.func``, ``torch.vmap`` and ``torch.export``.

    A class that somebody told torch of before stays as that says.
    """
    if cls in _pytree.SUPPORTED_NODES:
        return

    def torch_flatten(node: Any) -> tuple[list[Any], Any]:
        children, static, _ = flatten(node)
        return list(children), static

    def torch_rebuild(children: Iterable[Any], static: Any) -> Any:
        return rebuild(static, children)

    def torch_keys(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
        children, static, names = flatten(node)
        keyed: list[tuple[Any, Any]] = [
            (_pytree.GetAttrKey(name), child) for name, child in zip(names, children, strict=True)
        ]
        return keyed, static

    _pytree.register_pytree_node(cls, torch_flatten, torch_rebuild, flatten_with_keys_fn=torch_keys)


def knows(cls: type, /) -> bool:
    """Whether torch takes objects of a class apart."""
    return cls in _pytree.SUPPORTED_NODES and not _pytree.is_constant_class(cls)


def opened(node: Any, /) -> tuple[list[tuple[tuple[str, Any], Any]], Any]:
    """The children of an object of a class that torch knows, and what it keeps beside them.

    Each child has the step to it: ``("attribute", name)``, ``("key", key)`` or ``("index", i)``.
    """
    torch_node = _pytree.SUPPORTED_NODES[type(node)]
    if torch_node.flatten_with_keys_fn is None:
        children, context = torch_node.flatten_fn(node)
        return [(("index", i), child) for i, child in enumerate(children)], context
    keyed, context = torch_node.flatten_with_keys_fn(node)
    return [(_step(key, i), child) for i, (key, child) in enumerate(keyed)], context


def _step(key: Any, i: int) -> tuple[str, Any]:
    if isinstance(key, _pytree.GetAttrKey):
        return "attribute", key.name
    return ("key", key.key) if isinstance(key, _pytree.MappingKey) else ("index", i)


def closed(cls: type, children: Iterable[Any], context: Any, /) -> Any:
    """The object that `opened` took apart, with other children."""
    return _pytree.SUPPORTED_NODES[cls].unflatten_fn(children, context)


def tensors_in(tree: Any, /) -> list[Tensor]:
    """The tensors among the arguments, or in the result, of an operation of torch."""
    return [x for x in _pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def map_tensors(f: Callable[[Tensor], Tensor], tree: Any, /) -> Any:
    """The arguments of an operation of torch with `f` of every tensor."""
    return _pytree.tree_map_only(Tensor, f, tree)
