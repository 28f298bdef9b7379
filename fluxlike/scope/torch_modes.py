"""torch's random operations, drawn from a key instead of a generator: under traces and under ``vmap``.

A trace sees each operation below autograd (`Traced`), so the dropout inside torch's attention and LSTM
is drawn too. Under ``vmap`` the members are apart only in what Python calls (`Mapped`). What can't be
drawn from the key is an error that names it.
"""

from __future__ import annotations

from functools import cache
from types import FunctionType
from typing import Any, NoReturn

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from fluxlike._private import functorch
from fluxlike._private.dispatch import TorchDispatchMode, arguments, may_draw
from fluxlike.scope.torch_operations import FUNCTIONS, OPERATIONS, Numbers, Source

__all__ = ["Mapped", "Traced"]


class Traced(TorchDispatchMode):
    """Draws below autograd, where torch's own compositions have come apart into their operations."""

    def __init__(self, numbers: Numbers) -> None:
        super().__init__()
        # Here all levels of functorch are left, so the key is seen without their wrappers.
        self._source = Source(numbers, lambda data: functorch.at_level(data, 0))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if may_draw(func) and kwargs.get("generator") is None:
            if func in OPERATIONS:
                return OPERATIONS[func](self._source, *args, **kwargs)
            _refuse_if_random(func, args, kwargs, func.__name__.partition(".")[0])
        return func(*args, **kwargs)


class Mapped(TorchFunctionMode):
    """Draws above ``vmap``, for each member from its key."""

    def __init__(self, numbers: Numbers) -> None:
        super().__init__()
        self._source = Source(numbers, lambda data: data)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _may_draw_inside(func) or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if func in FUNCTIONS:
            return FUNCTIONS[func](self._source, *args, **kwargs)
        name = resolve_name(func) or func.__name__
        try:
            with _Refused(name):
                return func(*args, **kwargs)
        except RuntimeError as error:
            if "randomness error mode" in str(error):  # functorch's own refusal, which names nothing
                _refuse(name, func.__name__)
            raise


class _Refused(TorchDispatchMode):
    """Refuses the random operations that a function of torch calls inside."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if may_draw(func):
            _refuse_if_random(func, args, kwargs, self._name)
        return func(*args, **kwargs)


@cache
def _may_draw_inside(func: Any) -> bool:
    """Whether a function of torch may draw: by the operation of its name, or as Python that calls any."""
    if isinstance(func, FunctionType) or func in FUNCTIONS:
        return True
    operation = getattr(torch.ops.aten, getattr(func, "__name__", ""), None)
    return operation is not None and may_draw(operation)


def _refuse_if_random(func: Any, args: Any, kwargs: Any, name: str) -> None:
    """Raise unless the arguments say that nothing is drawn: no dropout, not in training."""
    given = arguments(func, args, kwargs)
    chances = [given[n] for n in ("dropout_p", "dropout", "p") if isinstance(given.get(n), float)]
    if 0.0 in chances or False in (given.get("train"), given.get("training")):
        return
    _refuse(name, func.__name__.partition(".")[0])


def _refuse(name: str, operation: str) -> NoReturn:
    inside = "" if name.rpartition(".")[2] == operation else f" (its {operation})"
    write = _INSTEAD.get(operation, "one of these, or a draw of fluxlike.random")
    raise RuntimeError(
        f"{name}{inside} draws from torch's generator, which a key can't replace in a traced or mapped "
        "function; of torch's, dropout, rand, randn, bernoulli, uniform_ and normal_ are drawn from the key: "
        f"write {write}"
    )


_INSTEAD = {
    "bernoulli_": "its dropout outside of it, by fluxlike.Dropout",
    "exponential_": "-torch.log1p(-torch.rand_like(x))",
    "multinomial": "(logits - torch.log(-torch.log1p(-torch.rand_like(logits)))).argmax(-1)",
    "normal": "mean + std * torch.randn_like(mean)",
    "randint": "fluxlike.random.integers(shape, low, high)",
    "randint_like": "fluxlike.random.integers(x.shape, low, high)",
    "randperm": "fluxlike.random.permutation(n)",
}
