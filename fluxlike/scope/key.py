"""`Key`: what random draws are a function of."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor

from fluxlike.scope.blocks import Domain, block, blocks, read
from fluxlike.scope.philox import WORD
from fluxlike.trees.functor import functor
from fluxlike.trees.show import value_text

__all__ = ["Key", "key_of", "say"]

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
        self.require_one("split")
        words = read(self.data)
        if n <= _FEW and words is not None:
            children = [block(i, Domain.SPLIT.number(), *words)[:2] for i in range(n)]
            return key_of(torch.tensor(children, dtype=torch.int64, device="cpu").view(n, 2))
        index = torch.arange(n, device=self.data.device)
        return key_of(blocks(self.data, Domain.SPLIT.number(), index)[:, :2])

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
        self.require_one("fold_in")
        if isinstance(i, Tensor):
            if i.is_floating_point() or i.is_complex():
                raise TypeError(f"fold_in takes whole numbers, found a tensor of {i.dtype}; write i.long()")
            index = i.to(self.data.device, torch.int64)
            return key_of(blocks(self.data, Domain.FOLD.number(), index)[..., :2])
        i = _whole("fold_in", i, "a whole number or an integer tensor", "key.fold_in(3)")
        if not -(2**63) <= i < 2**63:
            raise ValueError(f"fold_in({i}): write a number of 64 bits, from -2**63 to 2**63 - 1")
        words = read(self.data)
        if words is None:
            return self.fold_in(torch.full((), i, device=self.data.device))
        return key_of(torch.tensor(block(i, Domain.FOLD.number(), *words)[:2], device="cpu"))

    def __len__(self) -> int:
        self._require_several()
        return self.data.shape[0]

    def __getitem__(self, i: int | slice) -> Key:
        self._require_several()
        return key_of(self.data[i])

    def __iter__(self) -> Iterator[Key]:
        self._require_several()
        return map(key_of, self.data.unbind())

    def require_one(self, use: str) -> None:
        """Raise a ValueError that names the use, if these are several keys."""
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


def key_of(data: Tensor) -> Key:
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
    raise TypeError(f"{name} takes {wanted}, found {say(n)}; write {write}")


def say(x: Any) -> str:
    """What was found in the place of a key or a whole number, for an error."""
    if isinstance(x, Tensor):
        return f"a tensor of {x.dtype}"
    return f"{type(x).__name__} {x!r}" if isinstance(x, (bool, int, float, str)) else type(x).__name__
