"""Skeletons: torch modules without their tensors, and the copies of them that calls use.

A skeleton holds a module in which tensors on the meta device stand for parameters and buffers. A call takes
a copy of it that no other call is using, and gives it back. So calls from several threads, and calls inside
calls, don't meet.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from fluxlike._private.modules import Contents, children_of, same_settings, settings_of, stripped_copy
from fluxlike.trees.constants import same_constant
from fluxlike.trees.functor import leaf
from fluxlike.trees.records import plain_settings, says_settings

__all__ = ["Skeleton", "Slot"]


@leaf
class Skeleton:
    """A module without its tensors, and the copies of it that are free to run.

    Attributes:
        module: the module, with tensors on the meta device.
        children: the skeletons of the modules right below, by name.
    """

    __slots__ = ("__weakref__", "_free", "children", "module")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.children: dict[str, Skeleton] = {}
        self._free: list[Slot] = []

    def take(self) -> Slot:
        """A copy of the module that nobody uses."""
        try:
            return self._free.pop()
        except IndexError:
            return Slot(self, self.copy())

    def copy(self) -> nn.Module:
        """A copy of the module, which shares the tensors that hold no memory."""
        return stripped_copy(self.module, lambda x: x)

    def give_back(self, slot: Slot, counts: list[int]) -> bool:
        """Say that a copy is free again; whether it is, or the call left something that holds a module of it.

        That is so where `torch.utils.checkpoint` is to run a part again: it needs the tensors, and the copy
        goes when it does.
        """
        slot.tidy()
        if slot.references() != counts:
            return False
        slot.empty()
        self._free.append(slot)
        return True

    def __eq__(self, other: object) -> bool:
        """Whether two would do the same with the same tensors: modules of one class and of equal settings."""
        if self is other:
            return True
        if not isinstance(other, Skeleton):
            return NotImplemented
        return same_settings(self.module, other.module, _same_setting)

    def __hash__(self) -> int:
        return hash(type(self.module).__name__)

    def __deepcopy__(self, memo: Any) -> Skeleton:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.module, self.children)

    def __repr__(self) -> str:
        return f"{type(self.module).__name__}({self.module.extra_repr()})"


def _same_setting(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.device == b.device and not a.is_meta and torch.equal(a, b)
    return same_constant(a, b)


def _unpickled(module: nn.Module, children: dict[str, Skeleton]) -> Skeleton:
    skeleton = Skeleton(module)
    skeleton.children = children
    return skeleton


class Slot:
    """One module of a copy, and those below it.

    Attributes:
        skeleton: what it is a copy of.
        module: the module.
        contents: what it holds.
        children: the modules right below, by name.
        parameters: the names of its parameters, and whether each is one that torch does not train.
        recurrent: whether it is one of torch's recurrent layers.
        sets_modes: whether it, or one below, has a `train` of its own, as those have that keep a part in
            eval mode.
    """

    __slots__ = (
        "_all", "children", "contents", "module", "parameters", "recurrent", "sets_modes", "skeleton",
    )  # fmt: skip

    def __init__(self, skeleton: Skeleton, module: nn.Module) -> None:
        self.skeleton, self.module = skeleton, module
        self.children = [
            (name, Slot(inner, children_of(module)[name]))  # type: ignore[arg-type]
            for name, inner in skeleton.children.items()
        ]
        self.contents = Contents(module)
        self.parameters = [
            (name, p is not None and not p.requires_grad) for name, p in self.contents.parameters.items()
        ]
        self._all: tuple[nn.Module, ...] | None = None
        self.recurrent = isinstance(module, nn.RNNBase)
        self.sets_modes: bool = type(module).train is not nn.Module.train or any(
            child.sets_modes for _, child in self.children
        )

    def references(self) -> list[int]:
        """How often this module and those below are held."""
        if self._all is None:
            self._all = tuple(self.module.modules())
        return list(map(sys.getrefcount, self._all))

    def tidy(self) -> None:
        """Take off what the forward left on the modules."""
        self.contents.tidy()
        for _, child in self.children:
            child.tidy()

    def empty(self) -> None:
        """Take the tensors out again."""
        self.contents.empty()
        for _, child in self.children:
            child.empty()


says_settings(Skeleton, lambda skeleton: plain_settings(settings_of(skeleton.module)))
