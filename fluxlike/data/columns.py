"""Arrays as columns of observations: tensors, and what torch can't share or take rows of as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["Column", "Copied", "Numbers", "column", "is_masked"]


@dataclass(frozen=True)
class Copied:
    """A numpy array whose rows are copied as they are asked for, such as a memory map opened for reading."""

    array: Any
    device: ClassVar[torch.device] = torch.device("cpu")

    def __getitem__(self, rows: slice) -> Tensor:
        return torch.from_numpy(np.array(self.array[rows], self._dtype, order="C"))

    def index_select(self, _: int, rows: Tensor) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.array[rows.numpy()], self._dtype))

    @property
    def _dtype(self) -> np.dtype[Any]:
        return _native(self.array)


@dataclass(frozen=True)
class Numbers:
    """One number an observation, of a dtype that ``index_select`` takes rows of, but not single numbers."""

    tensor: Tensor

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, rows: slice) -> Tensor:
        return self.tensor[rows]

    def index_select(self, _: int, rows: Tensor) -> Tensor:
        return self.tensor.unsqueeze(1).index_select(0, rows).squeeze(1)


#: Each has a device, slices and ``index_select``.
Column = Tensor | Copied | Numbers


def column(path: str, x: Tensor | np.ndarray[Any, Any], /) -> Column:
    """An array at some path of the data, of the same memory.

    Raises:
        TypeError: torch has not its dtype, or can't take its rows; or it is masked.
    """
    if not isinstance(x, Tensor):
        if is_masked(x):
            raise TypeError(
                f"{path or 'the data'} is a masked array, and torch has no masks: give x.filled(value), and "
                "the mask as an array of its own, np.ma.getmaskarray(x)"
            )
        _require_dtype(path, x)
        if not _is_shareable(x):
            return Copied(x)
        x = torch.from_numpy(x)
    if x.layout is not torch.strided:
        raise TypeError(
            f"{path or 'the data'} is a tensor of the layout {x.layout}, whose rows torch can't slice; make "
            "it dense by .to_dense(), or give a data set whose samples are dense"
        )
    return Numbers(x) if x.ndim == 1 and not _selects(x) else x


def is_masked(x: Any, /) -> bool:
    """Whether it is an array of numpy's with a mask, which torch would not see."""
    if type(x) is np.ndarray or not isinstance(x, np.ndarray):  # numpy.ma is imported when it is looked at
        return False
    return isinstance(x, np.ma.MaskedArray)


def _require_dtype(path: str, x: np.ndarray[Any, Any]) -> None:
    try:
        torch.from_numpy(np.empty(0, _native(x)))
    except TypeError:
        raise TypeError(
            f"{path or 'the data'} is a numpy array of {x.dtype}, which torch does not have; convert it to "
            "numbers first, such as labels by onehotbatch"
        ) from None


def _native(x: np.ndarray[Any, Any]) -> np.dtype[Any]:
    return x.dtype.newbyteorder("=")


def _is_shareable(x: np.ndarray[Any, Any]) -> bool:
    """Whether torch can have a tensor of the same memory, which may be written to."""
    whole_steps = all(step >= 0 and step % x.itemsize == 0 for step in x.strides)
    return x.flags.writeable and x.flags.aligned and x.dtype.isnative and whole_steps


def _selects(x: Tensor) -> bool:
    some = x[:1]
    try:
        some.index_select(0, torch.zeros(len(some), dtype=torch.int64, device=x.device))
    except RuntimeError:
        return False
    return True
