"""A call of a model on the meta device: shapes without numbers, memory or draws."""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fluxlike._private.fake import stand_ins, value_asked
from fluxlike.layers.errors import LayerError
from fluxlike.placement.dry import on_meta, shape_of, without_data
from fluxlike.transforms.listening import Call, Listener, require_model
from fluxlike.trees.fmap import fleaves, fmap

__all__ = ["DryRun"]


class DryRun(Listener):
    """Runs models on the meta device, and says which layer failed.

    Args:
        by: the public function that asks, for errors.

    Attributes:
        otherwise: what that function offers for models that ask for values, for errors.
    """

    otherwise = ""

    def __init__(self, by: str) -> None:
        super().__init__()
        self._by = by
        self._failure: tuple[Call, Exception] | None = None

    def run(
        self,
        model: Any,
        inputs: tuple[Any, ...],
        dtype: torch.dtype | None,
        named: dict[str, Any] | None = None,
    ) -> Any:
        """The output on the meta device, for inputs and others by name.

        Raises:
            LayerError: a layer failed, or needs the value of a tensor.
        """
        require_model(model, self._by)
        with stand_ins(), without_data():
            example = _example(model, [*inputs, *(named or {}).values()], dtype, self._by)
            first, others = (
                example[: len(inputs)],
                dict(zip(named or {}, example[len(inputs) :], strict=True)),
            )
            try:
                return self.call(on_meta(model), *first, **others)
            except Exception as error:
                self._explain(error)
                raise

    def heard(self, call: Call) -> Any:
        try:
            return call.answer()
        except Exception as error:
            if self._failure is None or self._failure[1] not in _causes(error):
                self._failure = call, error
            raise

    def _explain(self, error: Exception) -> None:
        """Raise a better error: one that names the innermost layer that failed."""
        if self._failure is None:
            return
        (path, layer, _, args, kwargs), origin = self._failure
        asked = _asked(origin)
        if asked is not None:
            origin = RuntimeError(
                f"{self._by} runs the model on the meta device, which knows shapes and no values, and this "
                f"asks for the value of a tensor or for what has no rule of shapes ({asked}); torch.where "
                "and fluxlike.cond choose without a value, fluxlike.activations(model, x) shows the outputs "
                f"of a real call{self.otherwise}"
            )
            origin.__cause__ = error
            if not path:
                raise origin from error
        if path and LayerError.wraps(origin) and not isinstance(origin, LayerError):
            raise LayerError.of(path, layer, next(iter((*args, *kwargs.values())), None), origin) from origin
        if origin is not error:
            raise origin


def _asked(error: Exception) -> str | None:
    """The operation that failed because there are no values; None where it failed for another reason."""
    asked = value_asked(error)
    if asked is None and _NO_VALUE.search(str(error)):
        return str(error).splitlines()[0].split(". ")[0].rstrip(".!")
    return asked


_NO_VALUE = re.compile(r"\bmeta\b|\bMeta\b|data-independent")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _example(model: Any, inputs: list[Any], dtype: torch.dtype | None, by: str) -> list[Any]:
    """The inputs on the meta device, tensors made of shapes among them."""
    given = any(_is_shape(y) for x in inputs for y in fleaves(x, is_leaf=_is_shape, leaves="all"))
    if dtype is not None and not given:
        raise ValueError(f"{by}(dtype={dtype}): dtype= is that of inputs given by their shape; found none")
    kind = dtype if dtype is not None or not given else _dtype_of(model)

    def make(x: Any) -> Any:
        if _is_shape(x):
            return torch.empty(tuple(map(int, x)), dtype=kind, device="meta")
        return shape_of(x) if isinstance(x, Tensor) else x

    return [fmap(make, x, is_leaf=_is_shape, leaves="all") for x in inputs]


def _is_shape(x: Any) -> bool:
    if isinstance(x, torch.Size):
        return True
    return (
        type(x) in (tuple, list)
        and len(x) > 0
        and all(isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in x)
    )


def _dtype_of(model: Any) -> torch.dtype:
    """The floating dtype that most numbers of the model have."""
    count: dict[torch.dtype, int] = {}
    for x in fleaves(model):
        if x.is_floating_point():
            count[x.dtype] = count.get(x.dtype, 0) + x.numel()
    return max(count, key=lambda d: count[d], default=torch.get_default_dtype())
