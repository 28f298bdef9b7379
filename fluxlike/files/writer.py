"""The bytes of a safetensors file, without a copy of the tensors.

The library of the format is no part of this: it copies tensors before it writes them, and what it writes is
neither brought to the disk nor renamed into its place, so a full disk or a crash leaves half a file.

The format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fluxlike.files.reader import DTYPES, bytes_of

__all__ = ["header_of", "parts_of"]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8  # bytes: where the data starts


def parts_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], /) -> Iterator[bytes | memoryview]:
    """A safetensors file in parts: the header, and the memory of each tensor, which is contiguous on the CPU.

    Raises:
        ValueError: a dtype that the format lacks.
    """
    header, order = header_of({name: (x.dtype, x.shape) for name, x in tensors.items()}, metadata)
    return _parts(header, (tensors[name] for name in order))


def header_of(
    forms: Mapping[str, tuple[torch.dtype, torch.Size]], metadata: Mapping[str, str], /
) -> tuple[bytes, list[str]]:
    """The header of a safetensors file, from dtypes and shapes by name, and the order in which they follow.

    Raises:
        ValueError: a dtype that the format lacks.
    """
    # Wide dtypes first, so that every tensor is aligned to its own.
    order = sorted(forms, key=lambda name: (-forms[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        dtype, shape = forms[name]
        if dtype not in _NAMES:
            raise ValueError(f"safetensors has no dtype {dtype}")
        start, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, order


def _parts(header: bytes, tensors: Iterator[Tensor]) -> Iterator[bytes | memoryview]:
    yield header
    yield from (bytes_of(x) for x in tensors if x.numel())
