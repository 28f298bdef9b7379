"""The dtypes of what a recurrence gives under autocast, the same by torch's kernels and by the formulas.

torch's kernels and operations differ in it: on the CPU a LSTM gives bfloat16, but float32 from packed
sequences or for one step, and a GRU float32; on CUDA all give 16 bits, states too.
"""

from __future__ import annotations

from torch import Tensor

from fluxlike.layers.autocast import autocast_dtype

__all__ = ["settled"]


def settled(
    y: Tensor, state: tuple[Tensor, ...], before: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """An output in autocast's dtype, and a state in the dtypes it had, so that it can be a loop's carry.

    Where autocast is off, and for dtypes that it leaves alone, they are as they are.

    Args:
        y: the output.
        state: the new state.
        before: the state that it follows.
    """
    dtype = autocast_dtype(y)
    if dtype is None:
        return y, state
    return y.to(dtype), tuple(new.to(old.dtype) for new, old in zip(state, before, strict=True))
