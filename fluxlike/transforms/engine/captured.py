"""Tensors that a function reaches by its closure: found while it runs, replaced when it runs again.

Inside functorch's transforms a backward pass may run at another level than the forward pass did, where the
tensors that a closure holds mean nothing, or not the same. So they are passed along like inputs, and put
in the place of the old ones in each operation of torch that the function calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from fluxlike._private import functorch, pytree

__all__ = ["Finding", "Replacing"]


class Finding(TorchFunctionMode):
    """Finds the tensors that operations take and that are neither inputs nor made by operations.

    Those of no transform and no gradient are left out: they mean the same everywhere.

    Args:
        inputs: what the function gets.

    Attributes:
        found: the tensors as the function holds them, each once.
        meant: the tensors that stand for them here, those of a `Replacing` further out.
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self._inputs = list(inputs)  # kept, so that no other tensor gets their ids
        self._known = set(map(id, self._inputs))
        self._level = functorch.level()
        self.found: list[Tensor] = []
        self.meant: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if functorch.level() < self._level:  # called by a mode that works further down
            return func(*args, **(kwargs or {}))
        for x in pytree.tensors_in((args, kwargs)):
            self._look_at(x)
        out = func(*args, **(kwargs or {}))
        # By id alone: a reference would keep what the function forgets. What it closes over was there before
        # and stays, so nothing that is made has its id.
        self._known.update(map(id, pytree.tensors_in(out)))
        return out

    def _look_at(self, x: Tensor) -> None:
        if id(x) in self._known:
            return
        meant, handed_on = _meant(x), False
        while functorch.level_of(meant) > self._level:  # made by a transform inside the function, of what?
            handed_on = handed_on or not functorch.is_batch(meant)
            x = functorch.inner(meant)
            if id(x) in self._known:
                return
            meant = _meant(x)
        if not _depends_on_level(meant):
            return
        if handed_on:
            raise RuntimeError(
                f"a tensor of shape {tuple(x.shape)} that the function closes over is handed to a transform "
                "of torch.func inside it, where it can't be followed; pass it to the function as an "
                "argument, or use the transform of fluxlike"
            )
        if not any(x is old for old in self.found):
            self.found.append(x)
            self.meant.append(meant)


def _meant(x: Tensor) -> Tensor:
    """The tensor that operations called here see in the place of another."""
    for mode in functorch.function_modes():
        if isinstance(mode, Replacing):
            x = mode.replaced(x)
    return functorch.unwrap_dead(x)


def _depends_on_level(x: Tensor) -> bool:
    if functorch.active():
        return functorch.level_of(x) > 0 or x.requires_grad
    return x.requires_grad or functorch.has_tangent(x)


class Replacing(TorchFunctionMode):
    """Puts tensors in the place of others in every operation.

    Args:
        new: the tensors to put, by the id of those to replace, which must be alive.
    """

    def __init__(self, new: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._new = new
        self._level = functorch.level()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if functorch.level() < self._level:
            return func(*args, **(kwargs or {}))
        return func(
            *pytree.map_tensors(self.replaced, args), **pytree.map_tensors(self.replaced, kwargs or {})
        )

    def replaced(self, x: Tensor) -> Tensor:
        """The tensor to put in the place of another."""
        new = self._new.get(id(x))
        if new is not None:
            return new
        if functorch.is_batch(x) and functorch.level_of(x):
            inner = functorch.inner(x)
            new = self.replaced(inner)
            return x if new is inner else functorch.batch_like(new, x)
        return x
