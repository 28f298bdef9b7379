"""How the tree of a model is put together from the tensors of torch modules."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any, Final

from torch import Tensor, nn

from fluxlike._private.modules import member
from fluxlike.trees.functor import PIN, spec_of
from fluxlike.trees.paths import Step, children, is_node
from fluxlike.trees.structure import flatten

__all__ = ["MODULE", "RESERVED", "Kind", "Layout", "Slot", "at", "inner_names", "name_of"]

#: How a node stands in the tree that a module calls: in the mode of the root, in one of its own, or its
#: module in its place.
Kind = str | None
MODULE: Final = "module"

#: What an attribute of a module can't be named.
RESERVED = frozenset(dir(nn.Module())) | {
    "_bare", "_collect", "_inner", "_items", "_layout", "_layouts", "_new_layout", "_parts", "_run",
    "_run_compiled", "_tie", "_ties", "tree",
}  # fmt: skip

_counter = itertools.count()


class Slot:
    """The place of a tensor in a tree without tensors. Tied places hold the same slot.

    Attributes:
        trains: whether it is a parameter.
    """

    __slots__ = ("trains",)

    def __init__(self, trains: bool) -> None:
        self.trains = trains


def name_of(step: Step, /) -> str:
    """What a module calls the child at a step of its node; with a dot, it is in a module below.

    A name that every module has for something else, such as ``type``, gets an underscore.
    """
    text = step.text[1:] if step.text.startswith(".") else str(step.entry)
    return ".".join(f"{part}_" if part in RESERVED else part for part in text.split("."))


def inner_names(node: Any, /) -> list[str]:
    """What the module of a node calls those of the nodes below."""
    return [name_of(step) for step, child in children(node) if is_node(child)]


def at(module: nn.Module, name: str, /) -> Any:
    """What a module has by a name, which may go through modules below."""
    held = member(module, name)
    if held is not None:
        return held
    for part in name.split("."):
        module = getattr(module, part)
    return module


class Layout:
    """What goes where in a tree: worked out once for the modes that its nodes are in.

    Args:
        bare: the tree, with a `Slot` for every tensor.
        kinds: for each module of the tree, those below a MODULE left out, how its node stands there.
            (default: None, the tree as it is, all read from the module of its root)
        trains: whether any node is in train mode. (default: False)

    Attributes:
        number: one of its own.
        places: of each tensor, the numbers of the modules that have it, and its names there.
        parameters: the numbers of the tensors that are trained.
        buffers: the numbers of the others.
    """

    def __init__(self, bare: Any, kinds: Sequence[Kind] | None = None, *, trains: bool = False) -> None:
        leaves, treedef = flatten(bare)
        tree = treedef.unflatten(leaves)  # new nodes, which may be written to
        self.number = next(_counter)
        self._kinds = kinds
        self._number = 0
        self._opaque: dict[int, int] = {}
        self._places: dict[int, list[tuple[int, str]]] = {}
        self._visit(tree, 0, "")
        leaves, self._treedef = flatten(tree, lambda x: id(x) in self._opaque)
        self._modules = [(i, self._opaque[id(x)]) for i, x in enumerate(leaves) if id(x) in self._opaque]
        numbers = {key: k for k, key in enumerate(self._places)}
        self._slots = [(i, numbers[id(x)]) for i, x in enumerate(leaves) if isinstance(x, Slot)]
        self._template = [None if isinstance(x, Slot) or id(x) in self._opaque else x for x in leaves]
        self.places = list(self._places.values())
        self._first = [places[0] for places in self.places]
        trained = {k for i, k in self._slots if leaves[i].trains}
        self.parameters = [k for k in range(len(numbers)) if k in trained]
        self.buffers = [k for k in range(len(numbers)) if k not in trained]
        self._moving: list[int] | None = None if trains else []

    def _visit(self, node: Any, part: int, prefix: str) -> None:
        for step, child in children(node):
            name = prefix + name_of(step)
            if isinstance(child, Slot):
                self._places.setdefault(id(child), []).append((part, name))
            elif not is_node(child):
                continue
            elif self._kinds is None:
                self._visit(child, part, f"{name}.")
            else:
                self._number += 1
                self._visit_part(child, self._number, self._kinds[self._number])

    def _visit_part(self, node: Any, number: int, kind: Kind) -> None:
        if kind is MODULE:
            self._opaque[id(node)] = number
            return
        if kind is not None and spec_of(type(node)) is not None:
            _pin(node, kind)
        self._visit(node, number, "")

    @property
    def holds_modules(self) -> bool:
        """Whether modules stand in the tree themselves."""
        return bool(self._modules)

    def tensors(self, parts: Sequence[nn.Module]) -> list[Tensor]:
        """The tensors that the modules have now, a tied one once."""
        return [at(parts[part], name) for part, name in self._first]

    def fill(self, tensors: Sequence[Tensor], parts: Sequence[nn.Module] = ()) -> Any:
        """The tree with these tensors, and with modules where they stand themselves."""
        leaves = self._template.copy()
        for i, k in self._slots:
            leaves[i] = tensors[k]
        for i, number in self._modules:
            leaves[i] = parts[number]
        return self._treedef.unflatten(leaves)

    def note_moved(self, numbers: Collection[int]) -> None:
        """Remember which buffers a call has written."""
        if self._moving is None or not set(self._moving).issuperset(numbers):
            self._moving = sorted({*(self._moving or ()), *numbers})

    def moving(self) -> Sequence[int]:
        """The numbers of the buffers that calls write: those that one has, or before the first in train mode
        all.
        """
        return self.buffers if self._moving is None else self._moving


def _pin(node: Any, kind: Kind) -> None:
    try:
        object.__setattr__(node, PIN, kind)
    except AttributeError:
        raise TypeError(
            f"the module of a {type(node).__qualname__} is in another mode than the whole, and its __slots__ "
            f"leave no room for a mode; add {PIN!r} to its __slots__"
        ) from None
