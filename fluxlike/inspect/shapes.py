"""The shapes of what every layer of a model returns."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from torch import Tensor

from fluxlike._private import functorch, levels
from fluxlike.inspect.dry_run import DryRun
from fluxlike.transforms.activations import leaves_of_output
from fluxlike.transforms.listening import Call
from fluxlike.trees.show import value_text

__all__ = ["Shapes"]


class Shapes(DryRun):
    """Notes, by path, the shapes of what each call of a layer returns.

    Attributes:
        outputs: from path to the text of each output, in the order of the calls.
    """

    otherwise = ", and fluxlike.summary(model) without inputs counts what the model holds"

    def __init__(self, by: str) -> None:
        super().__init__(by)
        self.outputs: dict[str, list[str]] = {}
        self._level = functorch.level()

    def heard(self, call: Call) -> Any:
        y = super().heard(call)
        self.outputs.setdefault(call.path, []).append(self._text(y))
        return y

    def _text(self, y: Any) -> str:
        leaves, treedef = leaves_of_output(y)
        return repr(treedef.unflatten(map(self._shape, leaves)))

    def _shape(self, x: Any) -> Any:
        shape = tuple(levels.outside(x, self._level).shape) if isinstance(x, Tensor) else None
        return _Plain(value_text(x) if shape is None else str(shape))

    def text(self, path: str, /) -> str:
        """The outputs at a path: one shape, or each with the number of calls that gave it."""
        runs = [(shape, len(list(same))) for shape, same in groupby(self.outputs[path])]
        return ", then ".join(shape if n == 1 else f"{shape} ×{n}" for shape, n in runs)


class _Plain:
    """Text that prints without quotes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text
