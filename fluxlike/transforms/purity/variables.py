"""The variables that a function names, and the attributes of objects that are no trees: which it set."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from fluxlike.transforms.outside import attributes as attributes_of
from fluxlike.transforms.outside import reached, variables
from fluxlike.trees.paths import is_node

__all__ = ["Variables"]


class Variables:
    """What they hold before a run. Trees that stand there are watched as trees.

    Args:
        f: the function.
        args: its arguments.
    """

    def __init__(self, f: Callable[..., Any], args: tuple[Any, ...]) -> None:
        objects = {f"the closed-over {name}": x for name, x in reached(f).items()}
        objects |= {f"argument {i}": x for i, x in enumerate(args)}
        self._variables = list(variables(f))
        found = [(x, attributes_of(x, name)) for name, x in objects.items() if not is_node(x)]
        self._attributes = [(type(x), space) for x, space in found if space is not None]

    def assigned(self) -> Iterator[str]:
        """The places that were set since."""
        for space in self._variables:
            for assignment in space.assignments():
                yield f"the closed-over {assignment.name}"
        for kind, space in self._attributes:
            for assignment in space.assignments():
                # To compute one at its first use is no change.
                known = inspect.getattr_static(kind, assignment.path[1:], None)
                if not isinstance(known, functools.cached_property):
                    yield f"{assignment.path} of {assignment.name}"
