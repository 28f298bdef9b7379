"""Batches on their way from a worker: large tensors in shared memory, small ones by value."""

from __future__ import annotations

import io
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

from fluxlike.data.failures import Failure

__all__ = ["packed"]

# In bytes. Memory is shared by handing over a file, which takes longer than to copy this much.
_SMALL = 1 << 16


def packed(item: Any) -> bytes:
    """An item as bytes, for ``pickle.loads`` in the main process, while this one lives.

    torch would pack it in another thread, where an error is lost and the main process waits for ever.

    Raises:
        Failure: something in it can't be sent.
    """
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(item)
    except Exception as error:
        raise Failure("sending the batch from its worker") from error
    return buffer.getvalue()


class _Pickler(ForkingPickler):
    def reducer_override(self, x: Any) -> Any:
        if type(x) is not Tensor or x.layout is not torch.strided:
            return NotImplemented
        if x.is_conj() or x.is_neg():  # which shared memory does not hold
            return _itself, (x.resolve_conj().resolve_neg(),)
        if not _is_small(x):
            return NotImplemented
        return _unpacked, (bytearray(x.contiguous().flatten().view(torch.uint8).numpy()), x.dtype, x.shape)


def _is_small(x: Tensor) -> bool:
    plain = x.device.type == "cpu" and not x.is_quantized and not x.requires_grad
    return plain and 0 < x.nbytes <= _SMALL


def _itself(x: Tensor) -> Tensor:
    return x


def _unpacked(buffer: bytearray, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return torch.frombuffer(buffer, dtype=dtype).view(shape)
