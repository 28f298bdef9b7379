"""What the axes of an array mean, as a string of letters, and views in another order of axes."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fluxlike.trees.show import value_text

__all__ = ["Array", "Layout", "generic_layout", "permute"]

Array = TypeVar("Array", Tensor, np.ndarray)

_LETTERS = "ABCDEFGHIJKLMOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # all but N, the batch


class Layout(str):
    """What each axis of an array means: a string of distinct letters, one an axis.

    The letters are free; these are usual: N batch, C channels or features, L length, D, H, W depth,
    height and width, O and I the channels out of and into a kernel. The first letter is the axis
    that an array's shape names first, whatever its order in memory.

    Args:
        letters: the letters. (default: none, a single number)

    Raises:
        TypeError: it is no string.
        ValueError: a letter twice, or something that is no letter.

    Example:
        >>> import fluxlike as fl
        >>> fl.Layout("WHCN").order("NCHW")
        (3, 2, 1, 0)
        >>> fl.Layout("WHCN").reversed
        'NCHW'
    """

    __slots__ = ()

    def __new__(cls, letters: str = "") -> Layout:
        if type(letters) is cls:
            return letters
        if not isinstance(letters, str):
            raise TypeError(
                f"a layout is a string of axis letters such as 'NCHW', found {value_text(letters)}"
            )
        strange = next((c for c in letters if not (c.isascii() and c.isalpha())), None)
        if strange is not None:
            raise ValueError(
                f"the layout {letters!r} holds {strange!r}; write one letter of a to z or A to Z an axis, "
                "such as 'NCHW'"
            )
        twice = next((c for i, c in enumerate(letters) if c in letters[:i]), None)
        if twice is not None:
            raise ValueError(
                f"the layout {letters!r} has {twice!r} twice; each axis has a letter of its own, such as "
                "'NCHW'"
            )
        return super().__new__(cls, letters)

    @property
    def reversed(self) -> Layout:
        """The letters from last to first: the same memory, read in the other order."""
        return Layout(self[::-1])

    def order(self, to: str, /) -> tuple[int, ...]:
        """For each axis of another layout, its number in this one.

        Args:
            to: a layout of the same letters.

        Returns:
            The axes, as `torch.permute` and `numpy.transpose` take them.

        Raises:
            ValueError: the letters differ.

        Example:
            >>> import fluxlike as fl
            >>> fl.Layout("HWCN").order("NCHW")
            (3, 2, 0, 1)
        """
        to = Layout(to)
        if set(self) != set(to):
            lone = [f"{c} is only in {self!r}" for c in self if c not in to]
            lone += [f"{c} is only in {to!r}" for c in to if c not in self]
            raise ValueError(
                f"the layouts {str(self)!r} and {str(to)!r} don't have the same letters: {', '.join(lone)}"
            )
        return tuple(map(self.index, to))


def generic_layout(ndim: int, /) -> Layout:
    """Letters for axes of which nothing is known but that the last is the batch."""
    if not 1 <= ndim <= len(_LETTERS) + 1:
        raise ValueError(f"layouts have 1 to {len(_LETTERS) + 1} axes, found {ndim}")
    return Layout(_LETTERS[: ndim - 1] + "N")


def permute(x: Array, src: str, dst: str, /) -> Array:
    """An array with its axes in another order: a view, never a copy.

    Args:
        x: a tensor or numpy array of any dtype and strides, with as many axes as `src` has letters.
        src: the layout that it has.
        dst: the layout to give it, of the same letters.

    Returns:
        A view of the same memory, of the same kind. It is differentiable.

    Raises:
        TypeError: `x` is neither a tensor nor a numpy array, or a sparse tensor of rows or columns.
        ValueError: another number of axes, or layouts whose letters differ.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.permute(torch.zeros(32, 28, 3, 8), "WHCN", "NCHW").shape
        torch.Size([8, 3, 28, 32])
    """
    if not isinstance(x, (Tensor, np.ndarray)):
        texts = [t for t in (x, src, dst) if isinstance(t, str)]
        swapped = isinstance(x, str) and len(texts) == 2
        hint = f"; the array comes first: write permute(x, {texts[0]!r}, {texts[1]!r})" if swapped else ""
        raise TypeError(f"permute takes a tensor or a numpy array, found {type(x).__name__}{hint}")
    src = Layout(src)
    order = src.order(dst)
    if x.ndim != len(src):
        raise ValueError(
            f"permute from {str(src)!r} to {str(dst)!r} takes an array of {len(src)} axes, found the shape "
            f"{tuple(x.shape)} of {x.ndim}"
        )
    if not isinstance(x, Tensor):
        return x.transpose(order)
    if x.layout not in (torch.strided, torch.sparse_coo):
        raise TypeError(
            f"permute takes dense tensors and torch.sparse_coo, found {x.layout}, whose axes can't be moved "
            "as a view; write x.to_dense() or x.to_sparse() first"
        )
    return x.permute(order)
