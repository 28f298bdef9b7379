"""Keys in scope: `seeded`, and the draws that are taken there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import functorch
from fluxlike._private.autograd import backward_pass
from fluxlike.scope import torch_random
from fluxlike.scope.blocks import Domain
from fluxlike.scope.key import Key, key_of, say
from fluxlike.scope.philox import WORD, Word

__all__ = ["Draws", "active", "enter", "leave", "seeded"]


_DRAWN_BACKWARD = (
    "a random draw during the backward pass, from a key that was put in scope before it. Where "
    "torch.utils.checkpoint runs a layer of fluxlike again, it would draw other numbers than the first time: "
    "write fluxlike.checkpoint(f)(x), which draws the same. In a backward pass of your own, put a key in "
    "scope there: with fluxlike.seeded(key)"
)


class Draws:
    """The draws of one scope: a key, and how many were taken from it.

    fluxlike's own draws and torch's random operations are counted apart, so that what torch does (which
    differs between eager and traced runs) moves none of ours. The two counts are one number, torch's in
    units of 2³².

    Args:
        key: one key.
        base: where the counts start, a 0-d int64 tensor. `jit` passes it as an input. (default: 0)

    Attributes:
        key: the key.
    """

    __slots__ = ("_backward", "_base", "_counter", "_level", "_reason", "_unseen", "key")

    def __init__(self, key: Key, base: Tensor | None = None) -> None:
        self.key, self._base = key, base
        self._counter, self._reason, self._unseen = _Counter(), "", True
        self._level = functorch.level()
        self._backward = backward_pass()

    @classmethod
    def of(cls, key: Any, by: str, /) -> Draws:
        """The draws that a user's key opens.

        Raises:
            TypeError: it is no Key; `by` names who asks.
            ValueError: it is several keys.
        """
        if not isinstance(key, Key):
            write = f"Key({key})" if type(key) is int else "Key(0)"
            raise TypeError(f"{by} takes a Key, found {say(key)}; write {write}")
        key.require_one(by)
        return cls(key)

    @classmethod
    def from_inputs(cls, data: Tensor, base: Tensor, /) -> Draws:
        """The draws of which `as_inputs` gave these tensors: what a trace draws from."""
        return cls(key_of(data), base)

    def as_inputs(self) -> tuple[Tensor, Tensor]:
        """The key and the counts as tensors, the inputs of a trace; `advance` by its `mark` afterwards."""
        count = self._counter.value
        data = self.key.data.contiguous()  # kernels read memory as it is
        return data, torch.tensor(count, device="cpu") if self._base is None else self._base + count

    def next(self) -> tuple[Key, Word]:
        """The key and the number for one draw of ours."""
        return self.key, Domain.DRAW.number(self._take(1) & WORD)

    def next_of_torch(self) -> tuple[Key, Word]:
        """The key and the number for one random operation of torch's."""
        return self.key, Domain.TORCH.number(self._take(1 << 32) >> 32)

    def _take(self, step: int) -> Any:
        if self._reason:
            raise RuntimeError(self._reason)
        if functorch.level() > self._level:
            _require_members_alike(self._level)
        count = self._counter.value
        self._counter.value = count + step
        running = backward_pass()
        if running is not None and running != self._backward:
            raise RuntimeError(_DRAWN_BACKWARD)
        return count if self._base is None else self._base + count

    def folded(self, i: int | Tensor, /) -> Draws:
        """The draws of member i: by a key of its own, counted on together with these."""
        draws = Draws(self.key.fold_in(i), self._base)
        draws._counter, draws._reason = self._counter, self._reason
        draws._backward = self._backward
        return draws

    def blocked(self, reason: str, /) -> Draws:
        """Draws that can't be taken: any raises a RuntimeError with this reason."""
        draws = Draws(self.key, self._base)
        draws._counter, draws._reason = self._counter, reason
        return draws

    def mark(self) -> int:
        """How much was drawn so far, for `rewind`."""
        return self._counter.value

    def rewind(self, mark: int, /) -> None:
        """Go back, or forth, to where `mark` was called: a recomputation draws the same again."""
        self._counter.value = mark
        self._backward = backward_pass()

    def advance(self, drawn: int, /) -> None:
        """Count what a trace has drawn: the `mark` of the draws made by `from_inputs`."""
        self._counter.value += drawn

    def first_entry(self) -> bool:
        """Whether these are entered for the first time, so that torch's generators are to be seeded."""
        first, self._unseen = self._unseen, False
        return first and not self._reason


class _Counter:
    """What several `Draws` count on together."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


def _require_members_alike(outer: int) -> None:
    """Raise inside a ``vmap`` that was told nothing of the key, where all members would draw the same."""
    if any(randomness != "same" for randomness in functorch.vmaps(outer)):
        raise RuntimeError(
            "a random draw inside torch.func.vmap, from a key that was put in scope outside it: map by "
            "fluxlike.vmap with randomness='different' or 'same', or put a key for each member in scope "
            "inside, such as with seeded(key) for a key that is mapped over"
        )


# A ContextVar belongs to its thread (and its asyncio task).
_scope: ContextVar[Draws | None] = ContextVar("fluxlike_draws", default=None)


def active() -> Draws | None:
    """The draws in scope; None where there is no key, and torch's own generators draw."""
    return _scope.get()


def enter(draws: Draws, /) -> object:
    """Put draws in scope, and torch's random operations under their key; returns the token for `leave`."""
    held = torch_random.take_over(draws)
    return _scope.set(draws), held


def leave(token: Any, /) -> None:
    """Undo `enter`."""
    scope, held = token
    _scope.reset(scope)
    torch_random.give_back(held)


@contextmanager
def seeded(key: Key, /) -> Iterator[None]:
    """Put a key in scope: everything random inside is a function of it.

    fluxlike's own draws (`Dropout`, ``fl.init``, ``fl.random``, shuffling) are drawn from the key, the same
    bits on every device, eager, under ``vmap`` and under ``jit``; the n-th draw inside has number n. torch's
    random operations are drawn from generators seeded by the key, whose state comes back at the end.
    Where functions are traced or mapped, torch's dropout, rand, randn and bernoulli are drawn from the key
    itself, and any other random operation is an error. Another key inside takes over until its end. Without
    ``with``, ``seeded(key)`` does nothing.

    Args:
        key: one key.

    Raises:
        TypeError: no Key.
        ValueError: several keys.

    Example:
        >>> import torch, fluxlike as fl
        >>> def build(key):
        ...     with fl.seeded(key):
        ...         return fl.Chain(fl.Dense(3, 4, fl.relu), fl.Dense(4, 1))
        >>> fl.tree.allclose(build(fl.Key(1)), build(fl.Key(1)))
        True
    """
    token = enter(Draws.of(key, "seeded"))
    try:
        yield
    finally:
        leave(token)
