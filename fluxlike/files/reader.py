"""Safetensors files, read without mapping them: every offset checked, each tensor in memory of its own.

The library's reader maps the file, so a file that shrinks while it is read ends the process (SIGBUS), a pipe
is waited for without end, and one replaced meanwhile gives another file's values. Here one descriptor serves
header and data. The format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from fluxlike.files.opening import START, TORCH, kind_of, open_regular
from fluxlike.files.printing import shown
from fluxlike.files.strict_json import read_json

__all__ = ["BLOCK", "DTYPES", "Stored", "TensorFile", "bytes_of"]

#: Bytes of a tensor that a checksum of blocks is of.
BLOCK = 1 << 22

_LARGEST_HEADER = 100_000_000  # bytes: the format's own limit
_CHUNK = 1 << 20  # so that a checksum finds in the cache what was read

#: The dtypes of the format by name.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


class Stored(NamedTuple):
    """What the header says of a tensor; its bytes start and end there, counted from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """An open safetensors file: its header read and checked, its tensors not yet.

    Attributes:
        tensors: what is stored, by name.
        metadata: the texts that the writer put beside them.
        identity: the same for the same unchanged file.
    """

    def __init__(self, path: str | os.PathLike[str], /) -> None:
        self._path = path
        self._file = open_regular(path)
        try:
            status = os.fstat(self._file.fileno())
            self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            self.tensors, self.metadata = self._header(status.st_size)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def read(self, name: str, /, checksum: int | None = None) -> Tensor:
        """One tensor in main memory, in memory of its own.

        Raises:
            ValueError: the file ended meanwhile, the CRC-32 is not `checksum`, or a bool is neither 0 nor 1.
        """
        stored = self.tensors[name]
        try:
            x = torch.empty(stored.shape, dtype=stored.dtype, device="cpu")
        except RuntimeError as error:
            size = stored.end - stored.start
            raise MemoryError(f"{shown(name)} of {self._path} takes {size} bytes: {error}") from None
        total = 0
        if x.numel():
            data = x.reshape(-1).view(torch.uint8)
            for start, chunk in self._chunks(stored.start, stored.end):
                data[start : start + len(chunk)] = torch.frombuffer(chunk, dtype=torch.uint8)
                if checksum is not None:
                    total = zlib.crc32(chunk, total)
            self._require_bools(name, x)
        self._require_checksum(name, total, checksum)
        return x

    def require(self, name: str, checksum: int, /) -> None:
        """Read one tensor, of which nothing is kept, and compare its checksum.

        Raises:
            ValueError: as `read`.
        """
        stored = self.tensors[name]
        total = 0
        for _, chunk in self._chunks(stored.start, stored.end):
            total = zlib.crc32(chunk, total)
        self._require_checksum(name, total, checksum)

    def rows(self, name: str, start: int, count: int, /, checksums: Sequence[int] | None = None) -> Tensor:
        """Some rows of one tensor, of which no more is read than their blocks.

        Args:
            name: the tensor; of no axes, it has one row.
            start: the first row.
            count: how many.
            checksums: the CRC-32 of each `BLOCK` bytes of the tensor. (default: none is compared)

        Raises:
            ValueError: the file ended meanwhile, a block has another CRC-32, or a bool is neither 0 nor 1.
        """
        stored = self.tensors[name]
        shape = stored.shape or (1,)
        x = torch.empty((count, *shape[1:]), dtype=stored.dtype, device="cpu")
        if x.numel():
            size = stored.end - stored.start
            first, last = (size // shape[0] * row for row in (start, start + count))
            data = x.reshape(-1).view(torch.uint8)
            for i in range(first // BLOCK, -(-last // BLOCK)):
                begin, end = i * BLOCK, min((i + 1) * BLOCK, size)
                if checksums is None:
                    begin, end = max(begin, first), min(end, last)
                total = 0
                for offset, chunk in self._chunks(stored.start + begin, stored.start + end):
                    total = zlib.crc32(chunk, total) if checksums is not None else 0
                    here = begin + offset
                    a, b = max(here, first), min(here + len(chunk), last)
                    if a < b:
                        data[a - first : b - first] = torch.frombuffer(
                            chunk[a - here : b - here], dtype=torch.uint8
                        )
                if checksums is not None:
                    self._require_checksum(name, total, checksums[i])
            self._require_bools(name, x)
        return x if stored.shape else x.reshape(())

    def _chunks(self, start: int, end: int) -> Iterator[tuple[int, memoryview]]:
        """The bytes of the data from one to another in pieces, with where they begin in them.

        A piece is overwritten by the next.
        """
        buffer = bytearray(min(end - start, _CHUNK))
        for offset in range(0, end - start, _CHUNK):
            chunk = memoryview(buffer)[: min(end - start - offset, _CHUNK)]
            self._file.seek(self._data + start + offset)
            self._fill(chunk)
            yield offset, chunk

    def _require_bools(self, name: str, x: Tensor) -> None:
        if x.dtype == torch.bool and x.view(torch.uint8).max() > 1:
            self._refuse(f"{shown(name)} holds bytes that are no bools")

    def _require_checksum(self, name: str, found: int, checksum: int | None) -> None:
        if checksum is not None and found != checksum:
            self._refuse(f"the checksum of {shown(name)} does not agree with its values")

    def _fill(self, chunk: memoryview) -> None:
        while chunk:
            count = self._file.readinto(chunk)
            if not count:
                self._refuse("it ended while it was read")
            chunk = chunk[count:]

    def _header(self, size: int) -> tuple[dict[str, Stored], dict[str, str]]:
        start = bytearray(8)
        if size < 8:
            self._refuse(f"it has {size} bytes")
        if kind_of(self._file.read(START)) == TORCH:
            raise ValueError(
                f"{self._path} is {TORCH}, or another archive, and no safetensors file; read a checkpoint "
                "into a model with fluxlike.load_checkpoint"
            )
        self._file.seek(0)
        self._fill(memoryview(start))
        length = int.from_bytes(start, "little")
        if length > min(size - 8, _LARGEST_HEADER):
            self._refuse(f"its header would take {length} of {size} bytes")
        raw = bytearray(length)
        self._fill(memoryview(raw))
        self._data = 8 + length
        try:
            if raw[:1] != b"{":
                raise ValueError("its header is no JSON object")
            header = read_json(raw)
            metadata = _metadata(header.pop("__metadata__", {}))
            tensors = {name: _stored(name, entry) for name, entry in header.items()}
            _require_filled(tensors, size - self._data)
        except ValueError as error:
            self._refuse(str(error))
        return tensors, metadata

    def _refuse(self, why: str) -> NoReturn:
        raise ValueError(f"{self._path} is damaged, or no safetensors file: {why}")


def bytes_of(x: Tensor, /) -> memoryview:
    """The memory of a contiguous tensor on the CPU that has any, to be read.

    Not by `Tensor.numpy`, which would make the memory one that torch can't resize, nor a step take as a
    donation.
    """
    return np.from_dlpack(x.detach().reshape(-1).view(torch.uint8)).data.toreadonly()


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError("its metadata are not texts by name")
    return found


def _stored(name: str, entry: Any) -> Stored:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{shown(name)} has no dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise ValueError(f"{shown(name)} has the dtype {shown(entry['dtype'])}, which is not known")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or len(shape) > 64:
        raise ValueError(f"{shown(name)} has the shape {shown(shape)} and the offsets {shown(offsets)}")
    start, end = offsets
    # Even beside a 0, torch multiplies the other sizes into strides of 64 bits.
    if math.prod(max(n, 1) for n in shape) >= 2**63 or math.prod(shape) * dtype.itemsize != end - start:
        raise ValueError(f"{shown(name)} of the shape {shown(shape)} has the offsets {shown(offsets)}")
    return Stored(dtype, tuple(shape), start, end)


def _counts(found: Any) -> bool:
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 2**63 for n in found)


def _require_filled(tensors: dict[str, Stored], size: int) -> None:
    """Raise unless the tensors fill the data, without holes and without overlap."""
    end = 0
    for name, stored in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if stored.start != end:
            raise ValueError(f"{shown(name)} starts at byte {stored.start} of the data, not at {end}")
        end = stored.end
    if end != size:
        raise ValueError(f"its header describes {end} bytes of data, it holds {size}")
