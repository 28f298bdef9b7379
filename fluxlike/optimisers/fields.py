"""States of many leaves, field by field; the form in which formulas and kernels take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

__all__ = ["Columns", "fields_of_state"]


class Columns:
    """The states of leaves that move together.

    Attributes:
        kind: the class of a state: a NamedTuple, `Tensor` or None's.
        names: the names of its fields; ``("",)`` for a state that is one tensor.
        fields: by name, the tensors of all leaves; without the fields that are None.
        scalars: by name, a 0-d tensor that all leaves share.
    """

    __slots__ = ("fields", "kind", "names", "scalars")

    def __init__(self, states: Sequence[Any], shared: Sequence[str]) -> None:
        first = states[0]
        self.kind: Any = type(first)
        self.names: tuple[str, ...] = getattr(self.kind, "_fields", ("",))
        self.fields: dict[str, list[Tensor]] = {}
        self.scalars: dict[str, Tensor] = {}
        columns = zip(*states, strict=True) if isinstance(first, tuple) else (states,)
        for name, column in zip(self.names, columns, strict=True):
            if name in shared:
                self.scalars[name] = column[0]
            elif column[0] is not None:
                self.fields[name] = list(column)

    def state(self, fields: dict[str, Any]) -> Any:
        """One state of the kind, with anything in its fields."""
        if self.kind is type(None):
            return None
        if not issubclass(self.kind, tuple):
            return fields[""]
        return self.kind(*(fields.get(f) for f in self.names))

    def rows(self, n: int, fields: dict[str, list[Tensor]], scalars: dict[str, Tensor]) -> Iterator[Any]:
        """The states of n leaves with these fields, leaf by leaf."""
        if self.kind is type(None):
            return iter([None] * n)
        if not issubclass(self.kind, tuple):
            return iter(fields[""])
        known: dict[str, list[Any]] = {name: [t] * n for name, t in scalars.items()}
        known.update(fields)
        return map(self.kind, *(known.get(f) or [None] * n for f in self.names))


def fields_of_state(state: Any) -> tuple[Any, ...]:
    """The parts of a state; of one that is a tensor or None, itself."""
    return state if isinstance(state, tuple) else (state,)
