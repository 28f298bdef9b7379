"""The bytes of a safetensors file, without a copy of the tensors.

The library of the format is no part of this: it copies tensors before it writes them, and what it writes is
neither brought to the disk nor renamed into its place, so a full disk or a crash leaves half a file.

The format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fluxlike.files.reader import DTYPES, bytes_of

__all__ = ["parts_of"]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8  # bytes: where the data starts


def parts_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], /) -> list[bytes | memoryview]:
    """A safetensors file in parts: the header, and the memory of each tensor, which is contiguous on the CPU.

    Raises:
        ValueError: a dtype that the format lacks.
    """
    # Wide dtypes first, so that every tensor is aligned to its own.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, x in ordered:
        if x.dtype not in _NAMES:
            raise ValueError(f"safetensors has no dtype {x.dtype}")
        start, end = end, end + x.nbytes
        header[name] = {"dtype": _NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return [len(text).to_bytes(8, "little"), text, *(bytes_of(x) for _, x in ordered if x.numel())]
