"""The one file that uses Dynamo's guard of tensors (a private part of torch).

It looks at the dtype, device, sizes, strides, class and need for a gradient of a tensor in 50 ns, where
Python takes 400.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch._C._dynamo import guards

__all__ = ["guard"]


def guard(
    tensors: Sequence[Tensor], dynamic: Mapping[int, Collection[int]] | None = None
) -> Callable[..., bool]:
    """A function of as many arguments that says whether they are tensors like these, none of them twice.

    Args:
        tensors: the tensors to compare with.
        dynamic: from the numbers of those whose sizes may differ to the axes of these.
    """
    if not tensors:
        return lambda: True
    sizes: Any = [[*x.shape] for x in tensors]
    strides: Any = [[*x.stride()] for x in tensors]
    for i, axes in (dynamic or {}).items():
        for axis in axes:
            sizes[i][axis] = None
        strides[i] = [None] * tensors[i].ndim  # contiguous, whatever the sizes
    return guards.TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
