"""Samples to a batch: trees of samples stacked leaf by leaf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor

from fluxlike.data.columns import is_masked
from fluxlike.trees.structure import flatten, leaves_like, structure_of

__all__ = ["SampleError", "collate"]


class SampleError(ValueError):
    """A sample that does not go into a batch with the others.

    Attributes:
        sample: its number in the batch.
    """

    def __init__(self, sample: int, message: str) -> None:
        super().__init__(sample, message)
        self.sample = sample

    def __str__(self) -> str:
        return f"sample {self.sample}{self.args[1]}"


def collate(samples: Sequence[Any], /) -> Any:
    """One batch of several samples, stacked leaf by leaf along a new first axis.

    Args:
        samples: trees of one structure: of tensors and numpy arrays of the same shapes and dtypes, of
            numbers, strings and None.

    Returns:
        A tree like each sample. Tensors and arrays of shape (…) are a tensor of shape (N, …), whole numbers
        int64, floats the default dtype, complex numbers its complex kind, truth values bool; strings and
        bytes are a list of N, and None everywhere is None.

    Raises:
        SampleError: a ValueError that names the sample, the path, and what is there and elsewhere: the
            structures, kinds, shapes or dtypes differ, or it is something that can't be stacked.
        ValueError: there are no samples.

    Example:
        >>> import torch
        >>> from fluxlike.data.collation import collate
        >>> collate([{"x": torch.ones(2), "label": 3}, {"x": torch.zeros(2), "label": 4}])
        {'x': tensor([[1., 1.],
                [0., 0.]]), 'label': tensor([3, 4])}
    """
    if not samples:
        raise ValueError("collate takes at least one sample, found none")
    first, treedef = flatten(samples[0])
    rows = [first, *(_leaves(i, sample, treedef) for i, sample in enumerate(samples[1:], 1))]
    columns = zip(*rows, strict=True)
    return treedef.unflatten([_join(treedef, k, column) for k, column in enumerate(columns)])


def _leaves(i: int, sample: Any, treedef: optree.PyTreeSpec) -> list[Any]:
    try:
        return treedef.flatten_up_to(sample)
    except (ValueError, TypeError):
        pass
    try:
        return leaves_like(treedef, sample, name=f"sample {i}", like="sample 0")
    except ValueError as error:
        raise SampleError(i, str(error).removeprefix(f"sample {i}")) from None


def _join(treedef: optree.PyTreeSpec, k: int, column: tuple[Any, ...]) -> Any:
    """What the samples hold at leaf k, as one."""
    kind = type(column[0])
    if len(set(map(type, column))) > 1 and not all(isinstance(x, Tensor) for x in column):
        _refuse(treedef, k, column, lambda x: f"a {type(x).__name__}")
    if issubclass(kind, (Tensor, np.ndarray, np.generic)):
        if is_masked(column[0]):
            raise SampleError(
                0,
                f": {_place(treedef, k)} is a masked array, and torch has no masks: give x.filled(value) in "
                "the data set, and the mask as an array of its own, np.ma.getmaskarray(x)",
            )
        return _stack(treedef, k, column)
    if issubclass(kind, (bool, int, float, complex)):
        return _numbers(treedef, k, column)
    if issubclass(kind, (str, bytes)):
        return list(column)
    if kind is type(None):
        return None
    raise SampleError(
        0,
        f": {_place(treedef, k)} is a {kind.__name__}, which can't be stacked; make it a tensor, an array or "
        "a number in the data set, or say how to join samples by collate=",
    )


def _stack(treedef: optree.PyTreeSpec, k: int, column: tuple[Any, ...]) -> Tensor:
    if len({x.dtype for x in column}) > 1:
        _refuse(treedef, k, column, lambda x: str(x.dtype))
    try:
        if isinstance(column[0], Tensor):
            return torch.stack(column)
        return torch.from_numpy(np.stack(column))
    except (RuntimeError, ValueError):
        if len({x.shape for x in column}) > 1:
            _refuse(treedef, k, column, lambda x: f"of shape {tuple(x.shape)}")
        raise
    except TypeError:
        raise SampleError(
            0,
            f": {_place(treedef, k)} is a numpy array of {column[0].dtype}, which torch does not have; make "
            "it numbers in the data set",
        ) from None


def _numbers(treedef: optree.PyTreeSpec, k: int, column: tuple[Any, ...]) -> Tensor:
    try:
        return torch.tensor(column, device="cpu")
    except (RuntimeError, OverflowError, ValueError):
        large = next(i for i, x in enumerate(column) if not -(2**63) <= x < 2**63)
        raise SampleError(
            large, f": {_place(treedef, k)} is {column[large]}, which has more than 64 bits"
        ) from None


def _refuse(treedef: optree.PyTreeSpec, k: int, column: tuple[Any, ...], say: Callable[[Any], str]) -> None:
    """Raise over the first sample of which something else is said than of the others."""
    first = say(column[0])
    i, found = next((i, say(x)) for i, x in enumerate(column) if say(x) != first)
    raise SampleError(
        i,
        f": {_place(treedef, k)} is {found}, in sample 0 it is {first}; make them alike in the data set, or "
        "say how to join samples by collate=",
    )


def _place(treedef: optree.PyTreeSpec, k: int) -> str:
    return structure_of(treedef).paths[k] or "it"
