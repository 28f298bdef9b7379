"""Tensors from a file take the places of those of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fluxlike.placement.mesh import used

__all__ = ["placed", "require_model"]


def require_model(like: Any, /) -> None:
    """Refuse what is given by mistake for a model, and has no tensors to be found by path.

    Raises:
        TypeError: it is a class, or a module of torch.
    """
    if isinstance(like, type):
        raise TypeError(f"like is the class {like.__name__}; give a model of it, {like.__name__}(...)")
    if isinstance(like, nn.Module):
        raise TypeError(
            f"like is a torch module, a {type(like).__name__}; give fluxlike.from_torch(module), or "
            "call its own load_state_dict"
        )


def placed(x: Tensor, old: Tensor, /) -> Tensor:
    """A tensor on the device of another, which the meta device is not, and in that order of memory.

    Another order, such as channels_last, would be another model to a compiled function. Where the other is
    over a mesh, so is the tensor, divided as the other is.
    """
    mesh = used.mesh()
    if mesh is not None and mesh.over(old):
        from fluxlike.placement.mesh.parts import laid_out_as  # which imports torch.distributed

        return laid_out_as(x, old)
    x = x.to(torch.device("cpu") if old.is_meta else old.device)
    if x.layout is not torch.strided or old.layout is not torch.strided or x.stride() == old.stride():
        return x
    if x.is_quantized or x.shape != old.shape:
        return x
    order = torch.empty_like(old.detach(), device="meta").stride()  # dense, as memory is to be taken
    if order == x.stride():
        return x
    return torch.empty_strided(x.shape, order, dtype=x.dtype, device=x.device).copy_(x)
