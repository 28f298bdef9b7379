"""What a trace may not leave behind: tensors without values in a variable, an attribute or a list."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import levels
from fluxlike._private.fake import is_stand_in
from fluxlike.transforms.outside import Assignment, Namespace, filled, reached, variables, within
from fluxlike.trees.functor import spec_of

__all__ = ["holds_stand_in", "nothing_left_outside"]


@contextmanager
def nothing_left_outside(f: Callable[..., Any], objects: Mapping[str, Any], /) -> Iterator[None]:
    """Put back what a function sets outside of its results to something of the trace, and refuse it.

    Args:
        f: the function.
        objects: those of its arguments that are no trees, so that it gets no copy of them, by name.

    Raises:
        RuntimeError: the function set something so, and raised nothing itself.
    """
    roots = {**reached(f), **objects}
    spaces = [*variables(f), *(space for name, x in roots.items() for space in within(x, name))]
    try:
        yield
    except BaseException:
        _put_back(spaces)
        raise
    places = _put_back(spaces)
    if places:
        names = ", ".join(places[:4]) + (", …" if len(places) > 4 else "")
        raise RuntimeError(
            f"the compiled function sets {names}, outside of its results; it runs once, on tensors without "
            "values, so later calls would set nothing (what was there is put back): take "
            f"{places[0]} as an argument and return the new one, as in "
            "model, state, value = step(model, state, x, y)"
        )


def _put_back(spaces: list[Namespace]) -> list[str]:
    """Put back what holds something of the trace, and return the places."""
    found: list[Assignment] = [a for space in spaces for a in space.assignments() if holds_stand_in(a.value)]
    for assignment in found:
        assignment.put_back()
    return list(dict.fromkeys(a.name + a.path for a in found))


def holds_stand_in(x: Any, /) -> bool:
    """Whether a tensor or a size of a trace is in a tree, or in the closure of a function."""
    seen: set[int] = set()

    def holds(x: Any) -> bool:
        if id(x) in seen:
            return False
        seen.add(id(x))
        if isinstance(x, Tensor):
            return is_stand_in(levels.outside(x, 0))
        if isinstance(x, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return True
        return any(map(holds, _parts(x)))

    return holds(x)


def _parts(x: Any) -> list[Any]:
    if isinstance(x, (list, tuple, set, deque)):
        return list(x)
    if isinstance(x, dict):
        return list(x.values())
    if isinstance(x, types.FunctionType):
        return list(x.__closure__ or ())
    if isinstance(x, types.CellType):
        return [x.cell_contents] if filled(x) else []
    return list(vars(x).values()) if spec_of(type(x)) is not None and hasattr(x, "__dict__") else []
