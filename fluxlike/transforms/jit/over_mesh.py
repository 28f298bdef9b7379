"""A function of tensors over a mesh as one of the parts that this rank holds, which a graph can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fluxlike.placement.mesh import used
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten

__all__ = ["OfParts", "Places", "joined", "parted"]

Places = tuple[Any, ...]  # for each leaf, how it lies over a mesh; None for one that does not


def parted(leaves: Sequence[Any], /) -> tuple[list[Any], Places] | None:
    """The parts of this rank and how they lie over the mesh; None where no leaf does."""
    known = used.mesh()
    if known is None:
        return None
    places = tuple(known.place(x.value if isinstance(x, Assigned) else x) for x in leaves)
    if not any(place is not None for place in places):
        return None
    return [_local(known, x) for x in leaves], places


def _local(known: used.Mesh, x: Any) -> Any:
    if isinstance(x, Assigned):
        return Assigned(known.local(x.value))
    return known.local(x)


def joined(leaves: Sequence[Any], places: Places, before: Sequence[Any] = (), /) -> list[Any]:
    """The leaves over a mesh of which this rank holds these parts.

    Args:
        leaves: the parts, and other leaves.
        places: as `parted` gives them.
        before: leaves over the mesh that may be among them, handed on.
    """
    known = used.mesh()
    assert known is not None
    made: dict[int, Any] = {id(known.local(x)): x for x in before if known.over(x)}

    def whole(x: Any, place: Any) -> Any:
        if place is None or not isinstance(x, Tensor):
            return x
        if id(x) not in made:
            made[id(x)] = known.joined(x, place)
        return made[id(x)]

    return [
        Assigned(whole(x.value, place)) if isinstance(x, Assigned) else whole(x, place)
        for x, place in zip(leaves, places, strict=True)
    ]


class OfParts:
    """A function of a tree, called with the parts of its tensors; gives the parts of its result.

    Args:
        call: the function.
        places: how the leaves of its argument lie over the mesh.

    Attributes:
        results: after a call, how those of its result lie.
    """

    def __init__(self, call: Callable[[Any], Any], places: Places) -> None:
        self._call, self._places = call, places
        self.results: Places = ()

    def __call__(self, tree: Any) -> Any:
        leaves, treedef = flatten(tree)
        result = self._call(treedef.unflatten(joined(leaves, self._places)))
        leaves, treedef = flatten(result)
        found = parted(leaves)
        if found is None:
            self.results = (None,) * len(leaves)
            return result
        parts, self.results = found
        return treedef.unflatten(parts)
