"""The one file that asks torch whether tensors have values here (private parts of torch)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._device import DeviceContext

from fluxlike._private import functorch

__all__ = ["concrete", "default_device", "depth", "readable", "tracing", "watched"]


def tracing() -> bool:
    """Whether operations are recorded or compiled (`make_fx`, fake tensors, torch.compile) here."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch.compiler.is_compiling()


def depth() -> int:
    """How many modes see the operations here; a trace of `make_fx` or with fake tensors is deeper."""
    return torch._C._len_torch_dispatch_stack()


def concrete() -> bool:
    """Whether tensors are plain numbers in memory: neither traced nor of a transform of functorch."""
    return not functorch.active() and not tracing()


def readable(x: Tensor, /) -> bool:
    """Whether the value of a tensor can be read without waiting for a device."""
    return type(x) is Tensor and x.device.type == "cpu" and not x.requires_grad and concrete()


def default_device() -> torch.device | None:
    """The device that ``with torch.device(…)`` or ``torch.set_default_device`` names; None for neither."""
    return torch.get_default_device() if torch._C._len_torch_function_stack() else None


def watched() -> bool:
    """Whether a mode of the user's own sees the calls of torch's functions here."""
    if not torch._C._len_torch_function_stack():
        return False
    return any(not isinstance(mode, DeviceContext) for mode in functorch.function_modes())
