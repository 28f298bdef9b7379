"""Bridges to what is written for other systems. Each is imported when it is used first."""

from __future__ import annotations

from typing import Any

import torch

from fluxlike.trees.adopt import adopt

__all__: list[str] = []


def _in_a_chain(module: torch.nn.Module) -> Any:
    from fluxlike.bridges.torch_modules.from_torch import from_torch

    return from_torch(module)


adopt(torch.nn.Module, _in_a_chain)
