"""The one file that sees torch's operations below autograd (private parts of torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = ["TorchDispatchMode", "arguments", "may_draw", "outside_modes"]

#: What is called inside is seen by no mode: neither traced nor computed on fake tensors.
outside_modes = _disable_current_modes

_CHOICE = "_fused_sdp_choice"  # says which kernel of attention to call, and draws nothing


def arguments(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], /) -> dict[str, Any]:
    """All arguments of an operation of ATen by name, defaults included."""
    schema = operation._schema.arguments
    found = {a.name: a.default_value for a in schema if a.has_default_value()}
    found.update(zip((a.name for a in schema), args, strict=False))
    found.update(kwargs)
    return found


def may_draw(operation: Any, /) -> bool:
    """Whether an operation of ATen, or one of its overloads, draws from torch's generators."""
    if operation.__name__.partition(".")[0] == _CHOICE:
        return False
    if isinstance(operation, torch._ops.OpOverloadPacket):
        return any(may_draw(getattr(operation, overload)) for overload in operation.overloads())
    # torch.ops.aten.__eq__ is a method of the namespace, not an operation.
    return torch.Tag.nondeterministic_seeded in getattr(operation, "tags", ())
