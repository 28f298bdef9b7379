"""Copies of what can change, with ties and views of each other, and comparing contents bit by bit."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike._private import levels

__all__ = ["Copies", "contents", "differ", "storage_of", "view_of"]


class Copies:
    """Copies of leaves: tensors that shared memory share it again, and one object stays one."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}  # with the original, so that its id stays taken
        self._memory: dict[int, Tensor] = {}

    def leaf(self, x: Any, /) -> Any:
        """A copy of a leaf that can change; any other leaf itself."""
        if id(x) not in self._made:
            self._made[id(x)] = x, self._copy(x)
        return self._made[id(x)][1]

    def _copy(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            new = self._tensor(x)
            new.requires_grad_(x.requires_grad)
            if x.is_leaf and x.grad is not None:
                new.grad = x.grad.clone()
            return new
        if isinstance(x, torch.Generator):
            return torch.Generator(x.device).set_state(x.get_state())
        if isinstance(x, (np.ndarray, list, dict, set, bytearray, deque)):
            try:
                return copy.deepcopy(x)
            except Exception:  # an object inside that can't be copied
                return x
        return x

    def _tensor(self, x: Tensor) -> Tensor:
        storage = storage_of(x)
        if storage is None or x.is_conj() or x.is_neg() or type(x) not in (Tensor, torch.nn.Parameter):
            return x.detach().clone()
        if id(storage) not in self._memory:
            self._memory[id(storage)] = contents(storage).clone()
        new = view_of(self._memory[id(storage)], x)
        return torch.nn.Parameter(new, x.requires_grad) if isinstance(x, torch.nn.Parameter) else new


def storage_of(x: Tensor, /) -> torch.UntypedStorage | None:
    """The memory under a tensor, below all transforms; None for one that has none or many."""
    try:
        storage = levels.outside(x, 0).untyped_storage()
    except (NotImplementedError, RuntimeError, ValueError):  # the last of a parameter without a shape
        return None
    return None if storage.device.type == "meta" else storage


def contents(storage: torch.UntypedStorage, /) -> Tensor:
    """The bytes of a storage, themselves."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def view_of(memory: Tensor, x: Tensor, /) -> Tensor:
    """The tensor that lies in other memory as `x` does in its own."""
    x = levels.outside(x, 0)
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(
        memory.untyped_storage(), x.storage_offset(), x.shape, x.stride()
    )


def differ(x: Any, old: Any, /) -> bool:
    """Whether a leaf that can change has other contents than its copy."""
    if x is old:
        return False
    if isinstance(x, Tensor) and isinstance(old, Tensor):
        return (x.shape, x.dtype, x.device) != (old.shape, old.dtype, old.device) or not _same_bits(x, old)
    if isinstance(x, np.ndarray) and isinstance(old, np.ndarray):
        return x.shape != old.shape or x.dtype != old.dtype or x.tobytes() != old.tobytes()
    if isinstance(x, torch.Generator) and isinstance(old, torch.Generator):
        return not torch.equal(x.get_state(), old.get_state())
    if isinstance(x, (list, dict, set, bytearray, deque)):
        return bool(x != old)
    return (x is None) != (old is None)


def _same_bits(x: Tensor, old: Tensor) -> bool:
    x, old = x.detach(), old.detach()
    if x.is_meta:
        return True
    if x.layout is not torch.strided:
        x, old = x.to_dense(), old.to_dense()
    if x.is_quantized:
        x, old = x.int_repr(), old.int_repr()
    flat = [part.resolve_conj().resolve_neg().contiguous().reshape(-1) for part in (x, old)]
    return torch.equal(flat[0].view(torch.uint8), flat[1].view(torch.uint8))
