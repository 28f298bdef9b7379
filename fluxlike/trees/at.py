"""Model surgery: a new tree that differs from the old one at chosen places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fluxlike.trees import paths
from fluxlike.trees.adopt import adopted
from fluxlike.trees.found import found
from fluxlike.trees.places import Entries, Where, find_places

__all__ = ["At", "at"]


def at(tree: Any, where: Where | tuple[Where, ...], /) -> At:
    """Choose places of a tree, to read them or to make a new tree with other values there.

    Exactly the places named change: of a tied tensor, the other places keep the old one, so this
    is how to untie. Everything that is not on the way to a place is kept as it is.

    Args:
        tree: any tree.
        where: a selector (``lambda m: m.layers[-1]``, or one that returns a tuple or list of
            places), a path (``".layers[0].weight"``; for a layer that has a name ``"['head'].weight"``), a
            predicate over (path, node), which chooses every topmost node or leaf of which it is true, or a
            tuple of these. The root has the path ``""``, so for all leaves but those of a head write
            ``lambda path, node: isinstance(node, torch.Tensor) and not path.startswith(".head")``.

    Returns:
        The chosen places, with ``get``, ``set`` and ``apply``.

    Raises:
        ValueError: the selector returned something that is not a place; or the predicate is true of a
            node by its path alone, and false of leaves inside.
        KeyError: there is no such path, or the predicate chose nothing.
        TypeError: `where` is none of these.

    Example:
        >>> import fluxlike as fl
        >>> model = fl.Chain(fl.Dense(4, 3), fl.Dense(3, 10))
        >>> at_head = fl.at(model, lambda m: m.layers[-1])
        >>> at_head.set(fl.Dense(3, 2)).layers[-1]
        Dense(3, 2)  # 8 parameters
        >>> at_head.get()
        Dense(3, 10)  # 40 parameters
    """
    places, several = find_places(tree, where)
    return At(tree, places, several)


class At:
    """Chosen places of a tree; made by `at`."""

    def __init__(self, tree: Any, places: list[Entries], several: bool) -> None:
        self._tree, self._places, self._several = tree, places, several

    def get(self) -> Any:
        """What is at the place, or a tuple of what is at each of several.

        Example:
            >>> import fluxlike as fl
            >>> fl.at({"a": 1, "b": 2}, ("['a']", "['b']")).get()
            (1, 2)
        """
        found = tuple(self._get(entries) for entries in self._places)
        return found if self._several else found[0]

    def set(self, value: Any, /) -> Any:
        """A new tree with `value` at the place; of several places, a tuple of as many values.

        A torch module becomes a tree by `from_torch`.

        Raises:
            ValueError: several places, and not as many values.

        Example:
            >>> import fluxlike as fl
            >>> fl.at({"a": 1, "b": 2}, "['b']").set("new")
            {'a': 1, 'b': 'new'}
        """
        if not self._several:
            return paths.replace(self._tree, {self._places[0]: adopted(value)})
        if not isinstance(value, (tuple, list)) or len(value) != len(self._places):
            found = (
                f"{len(value)} values" if isinstance(value, (tuple, list)) else f"one {type(value).__name__}"
            )
            raise ValueError(
                f"{len(self._places)} places were chosen, and set got {found}; give a tuple with "
                "one value for each, or write .apply(lambda old: value)"
            )
        for i, place in enumerate(self._places):
            if place in self._places[:i]:
                raise ValueError(
                    f"the place {paths.text_of(self._tree, place)} is chosen twice, and set has a value for "
                    "each; choose it once"
                )
        return self._replace(dict(zip(self._places, map(adopted, value), strict=True)))

    def apply(self, f: Callable[[Any], Any], /) -> Any:
        """A new tree with ``f(old)`` at each place.

        Raises:
            TypeError: `f` is no function.

        Example:
            >>> import fluxlike as fl
            >>> fl.at([1, 2.0, 3], lambda path, x: isinstance(x, int)).apply(lambda x: 10 * x)
            [10, 2.0, 30]
        """
        if not callable(f):
            raise TypeError(
                f"apply takes a function of what is there, found {found(f)}; write .set(value) to put "
                "a value there"
            )
        return self._replace({entries: adopted(f(self._get(entries))) for entries in self._places})

    def _get(self, entries: Entries) -> Any:
        return paths.descend(self._tree, entries)

    def _replace(self, new: dict[Entries, Any]) -> Any:
        for a in new:
            for b in new:
                if a != b and a == b[: len(a)]:
                    outer, inner = paths.text_of(self._tree, a), paths.text_of(self._tree, b)
                    raise ValueError(f"the place {inner} lies inside {outer}; choose one of them")
        return paths.replace(self._tree, new)
