"""What a tree is beside the numbers in it: what has to stay the same from turn to turn of a loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten, require_same, structure_of

__all__ = ["Form"]


class Form:
    """A tree taken apart: its structure and constants, and its tensors, each tied one once.

    Args:
        tree: the tree.
        name: what it is called in errors, and in the results of reading others.
    """

    def __init__(self, tree: Any, name: str) -> None:
        self._name = name
        self._leaves, self._treedef = flatten(tree)
        self._places = structure_of(self._treedef).paths
        found = [_tensor(x) for x in self._leaves]
        self._tie([None if x is None else id(x) for x in found])

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors, those inside `Assigned` among them, each tied one once."""
        return [_tensor(self._leaves[i]) for i in self._first]  # type: ignore[misc]

    def _tie(self, names: Sequence[Any]) -> None:
        """Leaves of one name have one tensor; None names none."""
        number: dict[Any, int] = {}
        self._first: list[int] = []
        self._slots: list[int | None] = []
        for i, name in enumerate(names):
            if name is not None and name not in number:
                number[name] = len(number)
                self._first.append(i)
            self._slots.append(None if name is None else number[name])
        self._tied = len(self._first) < sum(slot is not None for slot in self._slots)

    @property
    def paths(self) -> list[str]:
        """The path of each tensor."""
        return [self._places[i] for i in self._first]

    def fill(self, tensors: Sequence[Tensor], /) -> Any:
        """The tree with other tensors."""
        return self._treedef.unflatten(
            x if slot is None else _with(x, tensors[slot])
            for x, slot in zip(self._leaves, self._slots, strict=True)
        )

    def check(self, tree: Any, name: str, hint: str) -> list[Any]:
        """The leaves of another tree, which must have this form.

        Args:
            tree: the other tree.
            name: what it is called.
            hint: what to do, the end of the error.

        Raises:
            ValueError: it has another form; the error names the place.
        """
        leaves, treedef = flatten(tree)
        if treedef != self._treedef:
            try:
                require_same(treedef, self._treedef, name=name, like=self._name)
            except ValueError as error:
                raise ValueError(f"{error}; {hint}") from None
            raise ValueError(
                f"{name} and {self._name} differ in an attribute that is no child of its object; {hint}"
            )
        for i, (old, new) in enumerate(zip(self._leaves, leaves, strict=True)):
            if old is not new and (fault := _fault(old, new)):
                path = self._places[i] or "the root"
                raise ValueError(f"{name} is {fault[1]} at {path}, {self._name} {fault[0]}; {hint}")
        return leaves

    def tensors_of(self, leaves: Sequence[Any]) -> list[Tensor]:
        """The tensors in the leaves of a tree of this form, by the slots of this one."""
        return [_tensor(leaves[i]) for i in self._first]  # type: ignore[misc]

    def untie(self, leaves: Sequence[Any]) -> bool:
        """Keep the ties alone that the leaves of another tree have too; whether any was given up."""
        if not self._tied:
            return False
        count = len(self._first)
        both = zip(self._slots, map(_tensor, leaves), strict=True)
        self._tie([None if slot is None else (slot, id(x)) for slot, x in both])
        return len(self._first) > count


def _tensor(x: Any) -> Tensor | None:
    """The tensor in a leaf."""
    if isinstance(x, Assigned):
        x = x.value
    return x if isinstance(x, Tensor) else None


def _with(leaf: Any, x: Tensor) -> Any:
    return Assigned(x) if isinstance(leaf, Assigned) else x


def _fault(old: Any, new: Any) -> tuple[str, str] | None:
    """How two leaves differ in what has to stay: what the one is and what the other."""
    a, b = _tensor(old), _tensor(new)
    if isinstance(old, Assigned) == isinstance(new, Assigned) and a is not None and b is not None:
        if a.shape != b.shape or a.dtype != b.dtype:
            return _kind(a), _kind(b)
        return (f"on {a.device}", f"on {b.device}") if a.device != b.device else None
    if a is None and b is None and (old is new or (type(old) is type(new) and _equal(old, new))):
        return None
    return _say(old), _say(new)


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b) or (a != a and b != b)
    except (ValueError, RuntimeError, TypeError):  # arrays: equal only if the same
        return False


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


def _say(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor {_kind(x)}"
    return "Assigned" if isinstance(x, Assigned) else f"the constant {x!r}"
