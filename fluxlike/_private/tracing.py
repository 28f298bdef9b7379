"""The one file that asks torch whether tensors have values here (private parts of torch)."""

from __future__ import annotations

import torch
from torch import Tensor

from fluxlike._private import functorch

__all__ = ["concrete", "readable", "tracing"]


def tracing() -> bool:
    """Whether operations are recorded or compiled (`make_fx`, fake tensors, torch.compile) here."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch.compiler.is_compiling()


def concrete() -> bool:
    """Whether tensors are plain numbers in memory: neither traced nor of a transform of functorch."""
    return not functorch.active() and not tracing()


def readable(x: Tensor, /) -> bool:
    """Whether the value of a tensor can be read without waiting for a device."""
    return type(x) is Tensor and x.device.type == "cpu" and not x.requires_grad and concrete()
