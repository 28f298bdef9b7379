"""Keys, and the scope that draws from one: `Key` and `seeded`."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

import torch
from torch import Tensor

from fluxlike._private import functorch
from fluxlike.scope import torch_random
from fluxlike.scope.blocks import Domain, block, blocks, read
from fluxlike.scope.philox import WORD, Word
from fluxlike.trees.functor import functor
from fluxlike.trees.show import value_text

__all__ = ["Draws", "Key", "active", "enter", "leave", "seeded"]

_FEW = 16  # keys that Python's own integers derive sooner than tensors


@functor
class Key:
    """What random draws are a function of: an immutable tree that holds one small integer tensor.

    A key is split, folded, saved, moved, mapped by ``vmap`` and passed to a ``jit``-ted function like any
    other tree; it draws where `seeded` or ``gradient(..., key=key)`` puts it in scope. It draws the same
    every time, so each use takes a key of its own. Several keys, from `split`, are one Key with a
    leading axis, that iterates, has a ``len`` and is indexed.

    Args:
        seed: a whole number from 0 to 2⁶⁴ - 1.

    Attributes:
        data: the two 32-bit words of the key in int64, of shape (2,); of n keys, (n, 2).

    Raises:
        TypeError: a seed that is no whole number.
        ValueError: a seed out of range.

    Example:
        >>> import torch, fluxlike as fl
        >>> a, b = fl.Key(0).split(2)
        >>> with fl.seeded(a):
        ...     x = fl.random.uniform((3,))
        >>> with fl.seeded(a):
        ...     torch.equal(fl.random.uniform((3,)), x)
        True
        >>> with fl.seeded(b):
        ...     torch.equal(fl.random.uniform((3,)), x)
        False
    """

    data: Tensor

    def __init__(self, seed: int) -> None:
        seed = _whole("Key", seed, "a whole number as the seed", "Key(0)")
        if not 0 <= seed < 2**64:
            raise ValueError(f"Key({seed}): write a seed from 0 to 2**64 - 1")
        object.__setattr__(self, "data", torch.tensor([seed & WORD, seed >> 32], device="cpu"))

    def split(self, n: int = 2, /) -> Key:
        """n new keys, as one Key with a leading axis.

        Args:
            n: how many; key i is the same for every n. (default: 2)

        Raises:
            TypeError: `n` is no whole number.
            ValueError: a negative `n`, or these are several keys already.

        Example:
            >>> import fluxlike as fl
            >>> keys = fl.Key(0).split(3)
            >>> len(keys), keys.data.shape, keys[1].data.shape
            (3, torch.Size([3, 2]), torch.Size([2]))
        """
        n = _whole("split", n, "how many keys", "key.split(2)")
        if n < 0:
            raise ValueError(f"split({n}): write how many keys, such as key.split(2)")
        self._require_one("split")
        words = read(self.data)
        if n <= _FEW and words is not None:
            children = [block(i, Domain.SPLIT.number(), *words)[:2] for i in range(n)]
            return _key(torch.tensor(children, dtype=torch.int64, device="cpu").view(n, 2))
        index = torch.arange(n, device=self.data.device)
        return _key(blocks(self.data, Domain.SPLIT.number(), index)[:, :2])

    def fold_in(self, i: int | Tensor, /) -> Key:
        """The key for a step, an epoch or a member.

        Args:
            i: a whole number of 64 bits; or an integer tensor, one of shape (n,) for n keys.

        Raises:
            TypeError: `i` is no whole number.
            ValueError: an `i` of more than 64 bits, or these are several keys already.

        Example:
            >>> import torch, fluxlike as fl
            >>> key = fl.Key(0)
            >>> torch.equal(key.fold_in(7).data, key.fold_in(torch.tensor([6, 7]))[1].data)
            True
        """
        self._require_one("fold_in")
        if isinstance(i, Tensor):
            if i.is_floating_point() or i.is_complex():
                raise TypeError(f"fold_in takes whole numbers, found a tensor of {i.dtype}; write i.long()")
            index = i.to(self.data.device, torch.int64)
            return _key(blocks(self.data, Domain.FOLD.number(), index)[..., :2])
        i = _whole("fold_in", i, "a whole number or an integer tensor", "key.fold_in(3)")
        if not -(2**63) <= i < 2**63:
            raise ValueError(f"fold_in({i}): write a number of 64 bits, from -2**63 to 2**63 - 1")
        words = read(self.data)
        if words is None:
            return self.fold_in(torch.full((), i, device=self.data.device))
        return _key(torch.tensor(block(i, Domain.FOLD.number(), *words)[:2], device="cpu"))

    def __len__(self) -> int:
        self._require_several()
        return self.data.shape[0]

    def __getitem__(self, i: int | slice) -> Key:
        self._require_several()
        return _key(self.data[i])

    def __iter__(self) -> Iterator[Key]:
        self._require_several()
        return map(_key, self.data.unbind())

    def _require_one(self, use: str) -> None:
        if self.data.ndim > 1:
            raise ValueError(
                f"{use} takes one key, and these are {_many(self)}; take one, such as keys[0], or map over "
                "them with vmap"
            )

    def _require_several(self) -> None:
        if self.data.ndim == 1:
            raise TypeError("this is one key, not several; write key.split(n) for n of them")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(
            f"a Key does not change, so its {name!r} can't be set; derive one by split or fold_in"
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Key does not change, so its {name!r} can't be deleted")

    def __repr__(self) -> str:
        data = self.data
        if isinstance(data, Tensor) and data.ndim == 1:
            words = read(data)
            if words is not None:
                return f"Key({words[0] | words[1] << 32})"
        return f"Key({value_text(data)})"


def _key(data: Tensor) -> Key:
    """A key of given words."""
    key = object.__new__(Key)
    object.__setattr__(key, "data", data)
    return key


def _many(keys: Key) -> str:
    return f"{'×'.join(map(str, keys.data.shape[:-1]))} keys"


def _whole(name: str, n: Any, wanted: str, write: str) -> int:
    """A Python int, of whatever is a whole number."""
    if not isinstance(n, (bool, Tensor)):
        try:
            return operator.index(n)
        except TypeError:
            pass
    raise TypeError(f"{name} takes {wanted}, found {_say(n)}; write {write}")


def _say(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor of {x.dtype}"
    return f"{type(x).__name__} {x!r}" if isinstance(x, (bool, int, float, str)) else type(x).__name__


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

    __slots__ = ("_base", "_counter", "_level", "_reason", "_unseen", "key")

    def __init__(self, key: Key, base: Tensor | None = None) -> None:
        self.key, self._base = key, base
        self._counter, self._reason, self._unseen = _Counter(), "", True
        self._level = functorch.level()

    @classmethod
    def of(cls, key: Any, by: str, /) -> Draws:
        """The draws that a user's key opens.

        Raises:
            TypeError: it is no Key; `by` names who asks.
            ValueError: it is several keys.
        """
        if not isinstance(key, Key):
            write = f"Key({key})" if type(key) is int else "Key(0)"
            raise TypeError(f"{by} takes a Key, found {_say(key)}; write {write}")
        key._require_one(by)
        return cls(key)

    @classmethod
    def from_inputs(cls, data: Tensor, base: Tensor, /) -> Draws:
        """The draws of which `as_inputs` gave these tensors: what a trace draws from."""
        return cls(_key(data), base)

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
        return count if self._base is None else self._base + count

    def folded(self, i: int | Tensor, /) -> Draws:
        """The draws of member i: by a key of its own, counted on together with these."""
        draws = Draws(self.key.fold_in(i), self._base)
        draws._counter, draws._reason = self._counter, self._reason
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
    itself, and any other random operation is an error. Another key inside takes over until its end.

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
