"""What a rule around others is: it moves the whole batch, and hands it on to the rule inside."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from fluxlike.optimisers.batch import Performing
from fluxlike.optimisers.rule import is_rule
from fluxlike.trees.show import value_text

__all__ = ["Wrapper", "wrapped"]


class Wrapper(Performing):
    """A rule around others, which moves whole batches; base of the built-in ones."""

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in fields)})"

    def parts(self, state: Any, param: Tensor, /) -> list[tuple[Any, Any, Tensor]]:
        """The rules inside, each with its state and the parameter that it moves."""
        raise NotImplementedError


def wrapped(name: str, rule: Any) -> None:
    """Refuse anything but a rule as the one that a wrapper is around."""
    if not is_rule(rule):
        hint = f"{rule.__name__}()" if isinstance(rule, type) else "a rule, such as Adam()"
        raise TypeError(f"{name} is around a rule, found {value_text(rule)}; write {hint}")
