"""The one file that touches torch's own pytrees (`torch.utils._pytree` is private)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.utils import _pytree

__all__ = ["register"]


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
