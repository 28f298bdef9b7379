"""The one file that runs functions of tensors for their shapes alone (private parts of torch)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

__all__ = ["NEEDS_A_VALUE", "shapes"]

Shape = tuple[tuple[int, ...], torch.dtype]

#: What is raised where a function asks for the value of a tensor, or makes a shape of it.
NEEDS_A_VALUE = (DataDependentOutputException, DynamicOutputShapeException)


def shapes(f: Callable[[list[Tensor]], Sequence[Tensor]], inputs: Sequence[Shape], /) -> list[Shape]:
    """The shapes and dtypes of what a function returns, for those of its inputs; nothing is computed."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True  # it logs what it raises
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            given = [torch.empty(size, dtype=dtype) for size, dtype in inputs]
            return [(tuple(map(int, y.shape)), y.dtype) for y in f(given)]
    finally:
        log.disabled = before
