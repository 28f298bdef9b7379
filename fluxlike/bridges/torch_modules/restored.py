"""The way back from `from_torch`: a node as a module of its own class, for `to_torch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fluxlike._private.modules import buffers_of, children_of, parameters_of
from fluxlike.bridges.torch_modules.classes import RIDING
from fluxlike.bridges.torch_modules.node import TorchModule
from fluxlike.bridges.torch_modules.run import Stand, same_leaves
from fluxlike.bridges.torch_modules.skeleton import Skeleton
from fluxlike.trees.nodes import PIN
from fluxlike.trees.paths import is_node

__all__ = ["restored"]


def restored(
    node: TorchModule, stand_in: Callable[[Tensor], Tensor], of_layer: Callable[[Any], nn.Module], /
) -> nn.Module:
    """A module of the class that a node stands for, with its settings and hooks, in train mode.

    What is pinned has the mode of its pin, until somebody calls ``train()``.

    Args:
        node: the node.
        stand_in: the parameter or buffer for each tensor of the node.
        of_layer: the module for a layer that surgery put into the tree.
    """
    filling = _Filling(stand_in, of_layer)
    module = filling.made(node).train()
    for part, mode in filling.pinned:
        part.training = mode
    return module


class _Filling:
    """Modules being filled with the tensors and layers of nodes."""

    def __init__(self, stand_in: Callable[[Tensor], Tensor], of_layer: Callable[[Any], nn.Module]) -> None:
        self._stand_in, self._of_layer = stand_in, of_layer
        self._frozen: dict[int, nn.Parameter] = {}
        self._filled: dict[int, Any] = {}
        self.pinned: list[tuple[nn.Module, bool]] = []

    def made(self, node: Any) -> nn.Module:
        """A new module for a node."""
        skeleton: Skeleton = getattr(node, RIDING)
        module = skeleton.copy()
        self._fill(module, skeleton, node)
        return module

    def _fill(self, module: nn.Module, skeleton: Skeleton, node: Any) -> None:
        attributes = vars(node)
        if PIN in attributes:
            self.pinned.append((module, attributes[PIN] == "train"))
        buffers, parameters, modules = buffers_of(module), parameters_of(module), children_of(module)
        for name in buffers:
            x = attributes[name]
            buffers[name] = self._stand_in(x) if isinstance(x, Tensor) else x
        for name in parameters:
            x = attributes[name]
            parameters[name] = self._parameter(x) if isinstance(x, Tensor) else x
        for name, inner in skeleton.children.items():
            modules[name] = self._child(modules[name], inner, attributes[name])

    def _parameter(self, x: Tensor) -> nn.Parameter:
        """One that is not trained stays a parameter, which requires no grad."""
        new = self._stand_in(x)
        if isinstance(new, nn.Parameter):
            return new
        return self._frozen.setdefault(id(new), nn.Parameter(new, requires_grad=False))

    def _child(self, module: nn.Module | None, skeleton: Skeleton, node: Any) -> nn.Module | None:
        riding = getattr(node, "__dict__", {}).get(RIDING)
        if riding is skeleton and module is not None:
            before = self._filled.setdefault(id(module), node)
            if before is node:
                self._fill(module, skeleton, node)
                return module
            return module if same_leaves(before, node) else self.made(node)
        if riding is not None:
            return self.made(node)
        if node is None:
            return None
        return self._of_layer(node) if is_node(node) else Stand(node)
