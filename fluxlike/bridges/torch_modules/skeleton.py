"""Skeletons: torch modules without their tensors, which run the forward of nodes.

A skeleton holds a module in which tensors on the meta device stand for parameters and buffers. A call
takes a copy of it that no other call is using, puts the tensors of the node in, calls it, reports the
buffers that were written as assigned, and takes everything off again: also what the forward set on the
module. So calls from several threads, and calls inside calls, don't meet, and nothing outlives a call.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fluxlike._private import functorch
from fluxlike._private.lazy_clone import lazy_clone, shared_until_written, was_written
from fluxlike._private.modules import NORMS, Contents, children_of, same_settings, stripped_copy
from fluxlike.bridges.torch_modules.classes import RIDING
from fluxlike.scope import example
from fluxlike.scope.assigned import assign, current, is_held
from fluxlike.scope.mode import training
from fluxlike.transforms.listening import overheard
from fluxlike.transforms.motors import derived_again
from fluxlike.trees.constants import same_constant
from fluxlike.trees.functor import leaf
from fluxlike.trees.nodes import PIN
from fluxlike.trees.structure import flatten
from fluxlike.trees.values import value_of

__all__ = ["Run", "Skeleton", "Stand"]


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
        self._free: list[_Slot] = []

    def take(self) -> _Slot:
        """A copy of the module that nobody uses."""
        try:
            return self._free.pop()
        except IndexError:
            return _Slot(self, stripped_copy(self.module, _same))

    def give_back(self, slot: _Slot, counts: list[int]) -> bool:
        """Say that a copy is free again; whether it is, or the call left something that holds a module of it.

        That is so where `torch.utils.checkpoint` is to run a part again: it needs the tensors, and the copy
        goes when it does.
        """
        if slot.references() != counts:
            return False
        slot.restore()
        self._free.append(slot)
        return True

    def __eq__(self, other: object) -> bool:
        """Whether two would do the same with the same tensors: modules of one class and of equal settings."""
        if self is other:
            return True
        if not isinstance(other, Skeleton):
            return NotImplemented
        return same_settings(self.module, other.module, same_constant)

    def __hash__(self) -> int:
        return hash(type(self.module))

    def __deepcopy__(self, memo: Any) -> Skeleton:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.module, self.children)


def _same(x: Tensor) -> Tensor:
    return x


def _unpickled(module: nn.Module, children: dict[str, Skeleton]) -> Skeleton:
    skeleton = Skeleton(module)
    skeleton.children = children
    return skeleton


class _Slot:
    """One module of a copy, and those below it."""

    __slots__ = (
        "_all", "children", "contents", "module", "normalises", "parameters", "recurrent", "skeleton",
    )  # fmt: skip

    def __init__(self, skeleton: Skeleton, module: nn.Module) -> None:
        self.skeleton, self.module = skeleton, module
        self.children = [
            (name, _Slot(inner, children_of(module)[name]))  # type: ignore[arg-type]
            for name, inner in skeleton.children.items()
        ]
        self.contents = Contents(module)
        # A parameter that torch does not train may be written by the forward, as MoCo's encoder is.
        self.parameters = [
            (name, p is not None and not p.requires_grad) for name, p in self.contents.parameters.items()
        ]
        self._all: tuple[nn.Module, ...] | None = None
        self.normalises = isinstance(module, NORMS)
        # torch's fused kernels would take a copy of these weights, and don't write to them.
        self.recurrent = isinstance(module, nn.RNNBase)

    def references(self) -> list[int]:
        """How often this module and those below are held."""
        if self._all is None:
            self._all = tuple(self.module.modules())
        return list(map(sys.getrefcount, self._all))

    def restore(self) -> None:
        """Take everything off again."""
        self.contents.restore()
        for _, child in self.children:
            child.restore()

    def places(self, path: str = "") -> Iterator[tuple[_Slot, str]]:
        """This module and those below, with their paths in torch's names."""
        yield self, path
        for name, child in self.children:
            yield from child.places(f"{path}.{name}" if path else name)


class _Copied(NamedTuple):
    """A tensor that the forward may write, and the copy of it that it was given."""

    held: dict[str, Tensor | None]
    name: str
    slot: _Slot
    origin: Tensor
    start: Tensor
    copy: Tensor


class Run:
    """One call of a node: ``with Run(node) as run:`` puts the node's tensors into ``run.module``.

    Attributes:
        node: the node.
        nodes: the nodes by the ids of the modules that run for them.
        kept: whether something holds a module after the call.
    """

    def __init__(self, node: Any) -> None:
        self.node = node
        self._alone = example.alone()
        self._kernels = ExitStack()
        self._slots: list[tuple[Skeleton, _Slot]] = []
        self._counts: list[list[int]] = []
        self.kept = False
        self._copied: list[_Copied] = []  # buffers
        self._kept: list[_Copied] = []  # parameters, which no call may write
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        self._filled: dict[int, Any] = {}
        self._training = training()
        self._eager = not functorch.active()
        self.nodes: dict[int, Any] = {}

    @property
    def module(self) -> nn.Module:
        """The module that runs."""
        return self._slots[0][1].module

    def __enter__(self) -> Run:
        skeleton = getattr(self.node, RIDING)
        slot = skeleton.take()
        self._slots.append((skeleton, slot))
        try:
            self._fill(slot, self.node)
        except BaseException:
            self.close()
            raise
        self._counts = [slot.references() for _, slot in self._slots]
        if derived_again():  # the fused kernels of attention have one derivative, in reverse mode
            self._kernels.enter_context(sdpa_kernel(SDPBackend.MATH))
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            self._kernels.close()
            if error is None:
                self._report()
        finally:
            self.close()

    def close(self) -> None:
        """Give the modules back."""
        while self._slots:
            skeleton, slot = self._slots.pop()
            self.kept |= not skeleton.give_back(slot, self._counts.pop() if self._counts else [])

    def _fill(self, slot: _Slot, node: Any) -> None:
        attributes: dict[str, Any] = node.__dict__
        contents = slot.contents
        self.nodes[id(slot.module)] = node
        pin = attributes.get(PIN)
        contents.attributes["training"] = self._training if pin is None else pin == "train"
        if self._alone and slot.normalises and contents.attributes["training"]:
            raise ValueError(f"{type(slot.module).__name__} is in train mode; {example.NO_BATCH}")
        for name, frozen in slot.parameters:
            x = attributes[name]
            if isinstance(x, Tensor):
                if frozen and self._eager:
                    x = self._copy(contents.parameters, name, slot, x)
                elif x.requires_grad:
                    x = value_of(x)
                elif self._eager and not slot.recurrent:
                    x = self._guarded(contents.parameters, name, slot, x)
            contents.parameters[name] = x
        for name in contents.buffers:
            x = attributes[name]
            if isinstance(x, Tensor):
                x = self._copy(contents.buffers, name, slot, x)
            contents.buffers[name] = x
        for name, child in slot.children:
            contents.modules[name] = self._module(child, attributes[name], name)
        forward = overheard(node)
        if forward is not None and node is not self.node:
            contents.attributes["forward"] = forward(slot.module.forward)

    def _module(self, slot: _Slot, node: Any, name: str) -> nn.Module | None:
        """The module to call for a child: the one that was there, or what surgery put in its place."""
        if getattr(node, "__dict__", {}).get(RIDING) is not slot.skeleton:
            return self._other(node, name)
        before = self._filled.setdefault(id(slot.module), node)
        if before is not node:  # a module at two places, whose nodes may have parted
            if _same_leaves(before, node):
                return slot.module
            return self._other(node, name)
        self._fill(slot, node)
        return slot.module

    def _other(self, node: Any, name: str) -> nn.Module | None:
        if node is None:
            return None
        skeleton = getattr(node, "__dict__", {}).get(RIDING)
        if skeleton is None:
            if not callable(node) or isinstance(node, type):
                raise TypeError(f"the module {name!r} was replaced by {node!r}, which can't be called")
            return Stand(node)
        slot = skeleton.take()
        self._slots.append((skeleton, slot))
        self._fill(slot, node)
        return slot.module

    def _copy(self, held: dict[str, Tensor | None], name: str, slot: _Slot, x: Tensor) -> Tensor:
        """A copy of a tensor for the forward, made when it writes to it."""
        known = self._copies.get(id(x))
        if known is None:
            start = current(x)
            known = self._copies[id(x)] = start, lazy_clone(start)
        self._copied.append(_Copied(held, name, slot, x, *known))
        return known[1]

    def _guarded(self, held: dict[str, Tensor | None], name: str, slot: _Slot, x: Tensor) -> Tensor:
        """A parameter for a plain call, which is not to write to it."""
        known = self._copies.get(id(x))
        if known is None:
            shared = shared_until_written(x)
            if shared is None:
                return x
            known = self._copies[id(x)] = x, shared
        self._kept.append(_Copied(held, name, slot, x, *known))
        return known[1]

    def _report(self) -> None:
        """Assign the buffers that were written, and refuse a parameter that was."""
        for one in self._kept:
            if one.held.get(one.name) is not one.copy or self._was_written(one):
                raise RuntimeError(
                    f"the call writes the parameter {one.name!r} of a {type(one.slot.module).__name__}, and "
                    "a tree is never changed in place; change the module before from_torch, or make a new "
                    "tree with fluxlike.at, fluxlike.reinit or fluxlike.update"
                )
        told: set[int] = set()
        for one in self._copied:
            if not one.slot.module.training or id(one.origin) in told or not is_held(one.origin):
                continue
            new = one.held.get(one.name)
            if new is None or (new is one.copy and not self._was_written(one)):
                continue
            told.add(id(one.origin))
            if new.shape != one.origin.shape:
                warnings.warn(
                    f"the forward of {type(one.slot.module).__name__} changed the shape of its buffer "
                    f"{one.name!r} from {tuple(one.origin.shape)} to {tuple(new.shape)}; a buffer keeps its "
                    "shape, so the change is not kept",
                    stacklevel=4,
                )
                continue
            assign(one.origin, new)

    def _was_written(self, one: _Copied) -> bool:
        written = was_written(one.copy)
        if written is not None:
            return written
        if self._eager and type(one.copy) is Tensor:
            return not torch.equal(one.copy, one.start)
        # In a trace, or with a value for each example, only the declared writes can be seen.
        return one.slot.normalises or one.copy.is_floating_point()


def _same_leaves(a: Any, b: Any) -> bool:
    mine, theirs = flatten(a)[0], flatten(b)[0]
    return len(mine) == len(theirs) and all(x is y for x, y in zip(mine, theirs, strict=True))


class Stand(nn.Module):
    """What is called where a module was replaced by a layer of ours, or by any callable."""

    def __init__(self, layer: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._layer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)
