"""When two constants are the same one."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["same_constant"]


def same_constant(a: Any, b: Any, /) -> bool:
    """Whether two constants agree in type and value; an object without a value, only with itself.

    NaN agrees with NaN, 0.0 not with -0.0, a tensor with itself alone.
    """
    if a is b:
        return True
    if type(a) is not type(b) or isinstance(a, Tensor):
        return False
    if isinstance(a, (float, complex)):
        return repr(a) == repr(b)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    try:
        return bool(a == b)
    except (ValueError, RuntimeError, TypeError):
        return False
