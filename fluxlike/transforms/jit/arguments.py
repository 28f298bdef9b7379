"""The arguments of a compiled function: which are part of the tree, which are static, which are donated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fluxlike.transforms.jit.constants import Constants
from fluxlike.transforms.jit.leaks import nothing_left_outside
from fluxlike.trees.functor import spec_of
from fluxlike.trees.paths import is_node
from fluxlike.trees.structure import flatten

__all__ = ["Arguments", "Static"]

Names = int | str | Sequence[int | str]


class Arguments:
    """How to take the arguments of one function apart, and put them together.

    Args:
        f: the function; a layer is part of the tree, so that its parameters are inputs.
        donate: the donated arguments, by number or name.
        static: the static ones.
    """

    def __init__(self, f: Callable[..., Any], *, donate: Names, static: Names) -> None:
        self._f = f
        self._whole = spec_of(type(f)) is not None
        self._names = _Names(f)
        self._donate, self._static = self._names.both("donate", donate), self._names.both("static", static)
        twice = sorted(self._donate & self._static, key=str)
        if twice:
            raise ValueError(
                f"the argument {twice[0]!r} is donated and static; a static one has no memory to give"
            )

    def split(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Static, ...]]:
        """The tree of the arguments, None in the place of static ones, and the static ones."""
        static: tuple[Static, ...] = ()
        if self._static:
            chosen = self._chosen(self._static, args, kwargs)
            static = tuple(Static(n, v) for n, v in chosen)
            named = {n for n, _ in chosen}
            args = tuple(None if n in named else a for n, a in enumerate(args))
            kwargs = {n: None if n in named else v for n, v in kwargs.items()}
        return ((self._f, *args) if self._whole else args, kwargs), static

    def label(self, path: str) -> str:
        """A path in the tree of the arguments as one from the name of an argument, ``model.layers[0]``."""
        kind, _, rest = path[1:].partition("]")
        entry, _, rest = rest[1:].partition("]")
        if kind == "1":  # by name
            return entry.strip("'") + rest
        n = int(entry) - self._whole
        return ("self" if n < 0 else self._names.of(n)) + rest

    def call(self, static: tuple[Static, ...]) -> Callable[[Any], Any]:
        """The function of the tree of its arguments, which runs on what a trace gives it."""
        f, whole = self._f, self._whole
        values = {s.name: s.value for s in static}

        def call(tree: Any) -> Any:
            args, kwargs = tree
            g, args = (args[0], args[1:]) if whole else (f, args)
            if values:
                args = tuple(values.get(n, a) for n, a in enumerate(args))
                kwargs = {n: values.get(n, v) for n, v in kwargs.items()}
            with nothing_left_outside(g, self._objects(args, kwargs)):
                return g(*args, **kwargs)

        return call

    def _objects(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments that are no trees, by name."""
        named = {**{self._names.of(n): x for n, x in enumerate(args)}, **kwargs}
        return {name: x for name, x in named.items() if not is_node(x)}

    @property
    def donates(self) -> bool:
        """Whether any argument is donated."""
        return bool(self._donate)

    def donated(self, tree: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[bool] | None:
        """For each leaf of the tree, whether its memory is given away; None if none is."""
        if not self._donate:
            return None
        chosen = {n for n, _ in self._chosen(self._donate, args, kwargs)}
        by_place, by_name = tree
        marks = [(a, n - self._whole in chosen) for n, a in enumerate(by_place)]
        marks += [(by_name[n], n in chosen) for n in sorted(by_name)]
        return [gives for part, gives in marks for _ in flatten(part)[0]]

    def _chosen(
        self, names: frozenset[int | str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[tuple[int | str, Any]]:
        numbers = {n + len(args) if isinstance(n, int) and n < 0 else n for n in names}
        found: list[tuple[int | str, Any]] = [(n, a) for n, a in enumerate(args) if n in numbers]
        return found + [(n, v) for n, v in sorted(kwargs.items()) if n in numbers]


class Static:
    """The value of a static argument, equal to another of the same structure, types and values."""

    def __init__(self, name: int | str, value: Any) -> None:
        self.name, self.value = name, value
        leaves, treedef = flatten(value)
        held = next((x for x in leaves if isinstance(x, (Tensor, np.ndarray))), None)
        if held is not None:
            raise TypeError(
                f"the static argument {name!r} holds a {type(held).__name__}, which is compared by value at "
                "each call; leave it out of static=, arrays are inputs"
            )
        self._kind, self._constants = (name, treedef), Constants(leaves)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Static)
            and self._kind == other._kind
            and other._constants.agree(self._constants.values)
        )


class _Names:
    """The names of a function's arguments."""

    def __init__(self, f: Callable[..., Any]) -> None:
        try:
            parameters = list(inspect.signature(f).parameters.values())
        except (ValueError, TypeError):  # of C
            self._by_place, self._by_name, self._open = [], set(), True
            return
        self._by_place = [
            p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        self._by_name = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        self._open = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)

    def of(self, number: int) -> str:
        """What to call the argument of a number."""
        return self._by_place[number] if number < len(self._by_place) else f"args[{number}]"

    def both(self, option: str, given: Names) -> frozenset[int | str]:
        """The chosen arguments, each by its number and by its name where it has both."""
        chosen = (given,) if isinstance(given, (int, str)) else tuple(given)
        both: set[int | str] = set()
        for name in chosen:
            if isinstance(name, bool) or not isinstance(name, (int, str)):
                raise TypeError(f"{option}={given!r}: write numbers of arguments, or their names")
            both |= self._of_one(option, name)
        return frozenset(both)

    def _of_one(self, option: str, name: int | str) -> set[int | str]:
        count = len(self._by_place)
        if isinstance(name, str):
            if name in self._by_place:
                return {name, self._by_place.index(name)}
            if name in self._by_name or self._open:
                return {name}
        else:
            number = name if name >= 0 or self._open else name + count
            if 0 <= number < count:
                return {number, self._by_place[number]}
            if self._open:
                return {number}
        known = ", ".join(self._by_place + sorted(self._by_name.difference(self._by_place)))
        raise ValueError(f"{option}={name!r} names no argument of the function; it has ({known})")
