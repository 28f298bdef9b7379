"""The one file that uses Dynamo's guard of tensors (a private part of torch).

It looks at the dtype, device, sizes, strides, class and need for a gradient of a tensor in 50 ns, where
Python takes 400.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch._C._dynamo import guards

__all__ = ["guard"]


def guard(tensors: Sequence[Tensor], dynamic: frozenset[int] = frozenset()) -> Callable[..., bool]:
    """A function of as many arguments that says whether they are tensors like these.

    Args:
        tensors: the tensors to compare with.
        dynamic: the numbers of those whose sizes may differ.
    """
    if not tensors:
        return lambda: True
    sizes: Any = [[None] * x.ndim if i in dynamic else [*x.shape] for i, x in enumerate(tensors)]
    strides: Any = [[None] * x.ndim if i in dynamic else [*x.stride()] for i, x in enumerate(tensors)]
    return guards.TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
