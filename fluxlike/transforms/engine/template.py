"""Trees without their tensors, to put others in: what a backward pass may keep of a call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike.transforms.engine.output import leaves_or_none
from fluxlike.trees.leaves import can_train
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Slot", "Template"]


class Slot:
    """The place of a tensor, and its kind.

    Attributes:
        number: which of the tensors of the template.
        trains: whether it has a derivative: a floating or complex tensor.
    """

    __slots__ = ("_device", "dtype", "number", "shape", "trains")

    def __init__(self, number: int, x: Tensor) -> None:
        self.number, self.trains = number, can_train(x)
        self.shape, self.dtype, self._device = x.shape, x.dtype, x.device

    def zeros(self) -> Tensor:
        """Zeros of that kind."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self._device)


class Template:
    """Trees whose tensors are taken out, each tied one once.

    Args:
        trees: the trees.
        said: what each is called, for errors.

    Attributes:
        slots: one for each of the tensors.
    """

    def __init__(self, trees: Iterable[Any], said: str) -> None:
        self._said = said
        self._flat = []
        self._taken: dict[int, Tensor] = {}
        known: dict[int, Slot] = {}
        for tree in trees:
            leaves, treedef = flatten(tree)
            for i, x in enumerate(leaves):
                if isinstance(x, Tensor):
                    if id(x) not in known:
                        known[id(x)] = Slot(len(known), x)
                        self._taken[id(x)] = x
                    leaves[i] = known[id(x)]
            self._flat.append((leaves, treedef))
        self.slots = list(known.values())

    @property
    def number_of_trees(self) -> int:
        return len(self._flat)

    def peek(self) -> list[Tensor]:
        """The tensors."""
        return list(self._taken.values())

    def take(self) -> list[Tensor]:
        """The tensors, which are not kept here from now on."""
        taken, self._taken = list(self._taken.values()), {}
        return taken

    def fill(self, tensors: Sequence[Any]) -> list[Any]:
        """The trees with other objects in the place of the tensors."""
        return [
            treedef.unflatten([tensors[x.number] if type(x) is Slot else x for x in leaves])
            for leaves, treedef in self._flat
        ]

    def cotangents(self, found: Sequence[Tensor | None]) -> list[Any]:
        """The trees with a cotangent for each floating tensor, at its first place, and None elsewhere.

        Zeros stand for None, and at the further places of a tie.
        """
        trees, seen = [], set()
        for leaves, treedef in self._flat:
            filled: list[Any] = [None] * len(leaves)
            for i, x in enumerate(leaves):
                if type(x) is Slot and x.trains:
                    c = None if x.number in seen else found[x.number]
                    filled[i] = x.zeros() if c is None else c
                    seen.add(x.number)
            trees.append(treedef.unflatten(filled))
        return trees

    def read_gradients(self, given: Sequence[Any]) -> list[Tensor | None]:
        """The gradient for each tensor in trees given by the user, added up over ties.

        Raises:
            ValueError: a structure or a shape differs.
            TypeError: something stands in the place of a gradient that is none.
        """
        result: list[Tensor | None] = [None] * len(self.slots)
        for n, ((leaves, treedef), tree) in enumerate(zip(self._flat, given, strict=True)):
            name = f"{self._said} {n}"
            found = leaves_or_none(treedef, tree, name=f"the gradient of {name}", like="the argument")
            for i, (slot, g) in enumerate(zip(leaves, found, strict=True)):
                if type(slot) is not Slot or not slot.trains or g is None:
                    continue
                g = _checked(g, slot, f"{structure_of(treedef).paths[i] or 'the whole'} of {name}")
                before = result[slot.number]
                result[slot.number] = g if before is None else before + g
        return result


def _checked(g: Any, slot: Slot, where: str) -> Tensor:
    if isinstance(g, (int, float)) and not slot.shape:
        return slot.zeros() + g
    if not isinstance(g, Tensor):
        raise TypeError(
            f"the gradient for {where} is {g!r}; give a tensor of shape {tuple(slot.shape)}, or None where "
            "there is no gradient"
        )
    if g.shape != slot.shape:
        raise ValueError(
            f"the gradient for {where} has the shape {tuple(g.shape)}, the argument {tuple(slot.shape)}; "
            "nothing is broadcast: add up what was broadcast in the function, with .sum_to_size(x.shape)"
        )
    if g.is_complex() and not slot.dtype.is_complex:
        raise ValueError(
            f"the gradient for {where} is of {g.dtype}, the argument of {slot.dtype}; take .real"
        )
    return g.to(slot.dtype)
