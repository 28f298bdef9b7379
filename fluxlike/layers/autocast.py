"""The dtype of a layer's output under autocast, where torch's differs by the way it is computed."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["autocast_dtype"]

_CAST = (torch.float32, torch.bfloat16, torch.float16)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """In which dtype autocast multiplies a tensor, None where it is off or leaves the tensor alone.

    torch's products give this dtype, except inside `vmap`, where their bias is added in its own.
    """
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device) or x.dtype not in _CAST:
        return None
    return torch.get_autocast_dtype(device)
