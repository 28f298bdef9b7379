"""Functions that write into a tensor: computed beside it, then copied, which autograd follows over a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from fluxlike.placement.mesh.rowwise import Rowwise, Whole, tensors_over
from fluxlike.placement.mesh.signatures import bound

__all__ = ["ROUTES", "Beside"]


class Beside:
    """A route of a function that may be told to write into its first argument.

    Args:
        route: of the same function, which writes nowhere.
    """

    def __init__(self, route: Callable[..., Any]) -> None:
        self._route = route

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = bound(func, args, kwargs)
        if not call.arguments.get("inplace"):
            return self._route(func, args, kwargs)
        call.arguments["inplace"] = False
        name, x = next(iter(call.arguments.items()))
        call.arguments[name] = x.clone()  # what autograd keeps of it must not be written over
        return _written(x, self._route(func, call.args, call.kwargs))


def _written(x: Any, y: Any) -> Any:
    return y if y is NotImplemented else x.copy_(y)


def _set_item(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """``x[index] = value``: by rows where it says the same of all rows, else on all of them."""
    x, index, value = args

    def changed(x: Tensor, index: Any, value: Any) -> Tensor:
        y = x.clone()
        y[index] = value
        return y

    _written(x, _by_rows(x, index, value)(changed, args, {}))


def _by_rows(x: DTensor, index: Any, value: Any) -> Callable[..., Any]:
    """How to compute what an assignment gives."""
    number = not isinstance(value, Tensor) or value.ndim == 0
    if isinstance(index, Tensor):
        return Rowwise(0, 1) if number and index.shape == x.shape else Whole()
    first = index[0] if isinstance(index, tuple) and index else index
    everywhere = isinstance(first, slice) and first == slice(None)
    return Rowwise(0) if everywhere and number and not list(tensors_over([index])) else Whole()


ROUTES: dict[Any, Any] = {Tensor.__setitem__: _set_item}
