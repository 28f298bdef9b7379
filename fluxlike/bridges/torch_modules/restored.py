"""The way back from `from_torch`: a node as a module of its own class, for `to_torch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fluxlike._private.modules import Contents, stripped_copy
from fluxlike.bridges.torch_modules.classes import RIDING
from fluxlike.bridges.torch_modules.node import TorchModule
from fluxlike.bridges.torch_modules.skeleton import Skeleton, Stand
from fluxlike.bridges.torch_modules.to_torch import module_of
from fluxlike.trees.paths import is_node

__all__ = ["restored"]


def restored(node: TorchModule, stand_in: Callable[[Tensor], Tensor], /) -> nn.Module:
    """A module of the class that a node stands for, with its settings and hooks, in train mode.

    Layers that surgery put into the tree are modules by `to_torch`.

    Args:
        node: the node.
        stand_in: the parameter or buffer for each tensor of the node.
    """
    module = stripped_copy(getattr(node, RIDING).module, lambda x: x)
    _fill(module, getattr(node, RIDING), node, stand_in, {})
    return module.train()


def _fill(
    module: nn.Module,
    skeleton: Skeleton,
    node: Any,
    stand_in: Callable[[Tensor], Tensor],
    frozen: dict[int, nn.Parameter],
) -> None:
    """Put tensors and layers in. A parameter that is not trained stays one, which requires no grad."""
    attributes = vars(node)
    held = Contents(module)
    for name in held.buffers:
        x = attributes[name]
        held.buffers[name] = stand_in(x) if isinstance(x, Tensor) else x
    for name in held.parameters:
        x = attributes[name]
        if isinstance(x, Tensor):
            x = stand_in(x)
            if not isinstance(x, nn.Parameter):
                x = frozen.setdefault(id(x), nn.Parameter(x, requires_grad=False))
        held.parameters[name] = x
    for name, inner in skeleton.children.items():
        child, below = attributes[name], held.modules[name]
        if getattr(child, "__dict__", {}).get(RIDING) is inner and below is not None:
            _fill(below, inner, child, stand_in, frozen)
        elif child is None or is_node(child):
            held.modules[name] = child and module_of(child, stand_in)
        else:
            held.modules[name] = Stand(child)
