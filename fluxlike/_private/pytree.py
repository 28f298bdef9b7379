"""The one file that touches torch's own pytrees (`torch.utils._pytree` is private)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils import _pytree

__all__ = ["map_tensors", "register", "tensors_in"]


def register(
    cls: type,
    flatten: Callable[[Any], tuple[tuple[Any, ...], Any, tuple[str, ...]]],
    rebuild: Callable[[Any, Iterable[Any]], Any],
    /,
) -> None:
    """Make objects of `cls` nodes for ``torch.func``, ``torch.vmap`` and ``torch.export``."""

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


def tensors_in(tree: Any, /) -> list[Tensor]:
    """The tensors among the arguments, or in the result, of an operation of torch."""
    return [x for x in _pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def map_tensors(f: Callable[[Tensor], Tensor], tree: Any, /) -> Any:
    """The arguments of an operation of torch with `f` of every tensor."""
    return _pytree.tree_map_only(Tensor, f, tree)
