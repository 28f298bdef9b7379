"""A call of a model on the meta device: shapes without numbers, memory or draws."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optree
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fluxlike.layers.errors import LayerError
from fluxlike.scope.seeded import active
from fluxlike.transforms.listening import Listener, require_model
from fluxlike.trees.fmap import fleaves, fmap

__all__ = ["DryRun", "on_meta"]


class DryRun(Listener):
    """Runs models on the meta device, and says which layer failed.

    Args:
        by: the public function that asks, for errors.
    """

    def __init__(self, by: str) -> None:
        super().__init__()
        self._by = by
        self._failure: tuple[str, Any, Any, Exception] | None = None

    def run(self, model: Any, inputs: tuple[Any, ...], dtype: torch.dtype | None) -> Any:
        """The output on the meta device.

        Raises:
            LayerError: a layer failed, or needs the value of a tensor.
        """
        require_model(model, self._by)
        example = _example(model, inputs, dtype, self._by)
        with torch.device("meta"), _WithOthers(), _draws_rewound():
            try:
                return self.call(on_meta(model), *example)
            except Exception as error:
                self._explain(error)
                raise

    def heard(
        self,
        path: str,
        layer: Any,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            return forward(*args, **kwargs)
        except Exception as error:
            if self._failure is None or self._failure[3] not in _causes(error):
                self._failure = path, layer, next(iter((*args, *kwargs.values())), None), error
            raise

    def _explain(self, error: Exception) -> None:
        """Raise a better error: one that names the innermost layer that failed."""
        if self._failure is None:
            return
        path, layer, x, origin = self._failure
        if _NO_VALUE.search(str(origin)):
            origin = RuntimeError(
                f"{self._by} runs the model on the meta device, which knows shapes and no values, and this "
                "asks for the value of a tensor or for what has no rule of shapes "
                f"({_first_sentence(origin)}); torch.where and fluxlike.cond choose without a value, and "
                "fluxlike.activations(model, x) shows the outputs of a real call"
            )
            origin.__cause__ = error
            if not path:
                raise origin from error
        if path and LayerError.wraps(origin):
            raise LayerError.at(path, layer, x, origin) from error
        if origin is not error:
            raise origin


def _first_sentence(error: Exception) -> str:
    return str(error).splitlines()[0].split(". ")[0].rstrip(".!")


_NO_VALUE = re.compile(r"\bmeta\b|\bMeta\b|data-independent")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


class _WithOthers(TorchFunctionMode):
    """Lets tensors that are no children of the model, such as those a function closes over, take part."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given: Any = (args, kwargs)
        leaves, treedef = optree.tree_flatten(given)
        if len({x.is_meta for x in leaves if isinstance(x, Tensor)}) == 2:
            args, kwargs = treedef.unflatten(map(_moved, leaves))
        return func(*args, **kwargs)


def _moved(x: Any) -> Any:
    return _shadow(x) if isinstance(x, Tensor) and not x.is_meta else x


@contextmanager
def _draws_rewound() -> Iterator[None]:
    """What is drawn inside counts for nothing."""
    draws = active()
    mark = draws.mark() if draws is not None else 0
    try:
        yield
    finally:
        if draws is not None:
            draws.rewind(mark)


def on_meta(tree: Any, /) -> Any:
    """A tree whose tensors are shapes without memory, with the same ties; no buffer of it is held."""
    return fmap(_shadow, tree)


def _shadow(x: Tensor) -> Tensor:
    if x.layout is torch.strided and not x.is_quantized:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return x.detach().to("meta")


def _example(model: Any, inputs: tuple[Any, ...], dtype: torch.dtype | None, by: str) -> tuple[Any, ...]:
    """The inputs on the meta device, tensors made of shapes among them."""
    shapes = [x for x in fleaves(inputs, is_leaf=_is_shape, leaves="all") if _is_shape(x)]
    if dtype is not None and not shapes:
        raise ValueError(f"{by}(dtype={dtype}): dtype= is that of inputs given by their shape; found none")
    kind = dtype if dtype is not None or not shapes else _dtype_of(model)

    def make(x: Any) -> Any:
        if _is_shape(x):
            return torch.empty(tuple(map(int, x)), dtype=kind, device="meta")
        return _shadow(x) if isinstance(x, Tensor) else x

    return fmap(make, inputs, is_leaf=_is_shape, leaves="all")


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
