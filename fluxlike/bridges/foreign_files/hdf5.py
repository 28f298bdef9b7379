"""HDF5 files from elsewhere, read by h5py: plain arrays only, and no more memory than such a file needs."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from fluxlike.bridges.foreign_files.faults import FileFault, allowance, open_file, told
from fluxlike.optional import optional

__all__ = ["Hdf5", "opened"]

_DEFLATE, _SHUFFLE, _CHECKSUM = 1, 2, 3
_MOST_OBJECTS = 100_000


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], kind: str, /, content: BinaryIO | None = None) -> Iterator[Hdf5]:
    """An open HDF5 file; `content` is what to read, if that is not the file itself.

    Raises:
        ImportError: h5py is not installed.
        FileFault: the file is damaged, or holds what it must not.
    """
    h5py = optional("h5py", "a file of HDF5", install="'fluxlike[hdf5]'")
    name = os.fspath(path)
    with told(name, kind), open_file(path, kind) if content is None else content as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        with h5py.File(path if content is None else content, "r") as file:
            yield Hdf5(h5py, file, stream, str(name), size)


class Hdf5:
    """One open file, and what it may still claim."""

    def __init__(self, h5py: Any, file: Any, stream: BinaryIO, name: str, size: int) -> None:
        self.h5py, self.root = h5py, file
        self._stream, self._name, self._size = stream, name, size
        self._bytes, self._objects = allowance(size), _MOST_OBJECTS

    def fault(self, place: str, text: str) -> FileFault:
        return FileFault(f"{self._name}: {place or 'the root'} {text}")

    def count(self, place: str, n: int = 1) -> None:
        """Refuse more objects than a model has, such as containers that hold one another many times."""
        self._objects -= n
        if self._objects < 0:
            raise self.fault(place, f"is one of more than {_MOST_OBJECTS} objects; no checkpoint has so many")

    def address(self, x: Any) -> int:
        """Where an object lies in the file, which tells whether two are one."""
        return int(self.h5py.h5o.get_info(x.id if isinstance(x, self.h5py.HLObject) else x).addr)

    def is_opaque(self, dataset: Any) -> bool:
        """Whether its elements are bytes that HDF5 does not know."""
        return bool(dataset.id.get_type().get_class() == self.h5py.h5t.OPAQUE)

    def children(self, group: Any, place: str) -> Iterator[tuple[str, Any]]:
        """The objects of a group by name, none of which may lie in another file."""
        for name in group:
            self.count(place)
            link = group.get(name, getlink=True)
            if not isinstance(link, self.h5py.HardLink):
                raise self.fault(
                    f"{place}/{name}",
                    f"is a {type(link).__name__} to {link.path}; only the file itself is read",
                )
            yield name, group[name]

    def array(self, dataset: Any, place: str) -> Any:
        """The numbers of a dataset, after a look at whether they are there.

        Raises:
            FileFault: they lie in another file, or the file holds fewer than it says.
        """
        if dataset.is_virtual or dataset.external:
            raise self.fault(place, "has its data in other files; only the file itself is read")
        shape, each = dataset.shape, dataset.id.get_type().get_size()
        claimed = math.prod(shape) * each
        self._bytes -= claimed
        if self._bytes < 0:
            raise self.fault(
                place,
                f"has the shape {shape}, {claimed} bytes, and a file of {self._size} bytes is not taken to "
                f"hold more than {allowance(self._size)}; if it is yours, do not compress it",
            )
        if dataset.chunks is not None:
            return self._chunked(dataset, place, each)
        if dataset.id.get_storage_size() < claimed:
            raise self.fault(
                place,
                f"has the shape {shape}, {claimed} bytes, and the file holds "
                f"{dataset.id.get_storage_size()} of them",
            )
        return dataset[()]

    def _chunked(self, dataset: Any, place: str, each: int) -> Any:
        """The numbers of a dataset in chunks, unpacked here, since a chunk may unpack to any size."""
        filters = self._filters(dataset, place, each)
        shape, chunk = dataset.shape, dataset.chunks
        stored, known_type = dataset.id.get_type(), self.h5py.h5t.py_create(dataset.dtype)
        if dataset.dtype.itemsize != each or not (self.is_opaque(dataset) or stored.equal(known_type)):
            raise self.fault(place, "is no array of numbers that numpy has, and yet in chunks")
        if math.prod(chunk) * each > 2 * math.prod(shape) * each + 2**20:
            raise self.fault(place, f"has the shape {shape}, in chunks of {chunk}")
        starts = [range(0, n, step) for n, step in zip(shape, chunk, strict=True)]
        known = self._chunks(dataset, math.prod(map(len, starts)))
        if sum(info.size for info in known.values()) > 2 * self._size:
            raise self.fault(place, "has chunks that lie over one another")
        if len(known) < math.prod(map(len, starts)):
            raise self.fault(
                place, f"has the shape {shape}, and the file holds {len(known)} chunks of {chunk}"
            )
        result = np.empty(shape, dataset.dtype)
        for start in itertools.product(*starts):
            if start not in known:
                raise self.fault(place, f"has the shape {shape}, and the chunk at {start} is not in the file")
            raw, skipped = self._bytes_of(known[start]), known[start].filter_mask
            applied = [code for i, code in enumerate(filters) if not skipped >> i & 1]
            data = _unpacked(raw, applied, math.prod(chunk) * each, each)
            if data is None:
                raise self.fault(place, f"has a chunk at {start} that does not unpack to {chunk}")
            block = np.frombuffer(data, dataset.dtype).reshape(chunk)
            here = tuple(slice(a, a + n) for a, n in zip(start, chunk, strict=True))
            there = tuple(slice(0, min(n, end - a)) for a, n, end in zip(start, chunk, shape, strict=True))
            result[here] = block[there]
        return result

    def _chunks(self, dataset: Any, count: int) -> dict[tuple[int, ...], Any]:
        """Where the chunks of a dataset are by their starts, of no more of them than it has."""
        known: dict[tuple[int, ...], Any] = {}
        seen = itertools.count(1)

        def keep(info: Any) -> bool | None:
            known[info.chunk_offset] = info
            return True if next(seen) > count else None  # which ends the search

        dataset.id.chunk_iter(keep)
        return known

    def _bytes_of(self, chunk: Any) -> bytes:
        """The bytes of a chunk, not by HDF5, which writes behind its memory if a damaged file says so."""
        if self.root.userblock_size or chunk.byte_offset is None or chunk.size > self._size:
            return b""
        self._stream.seek(chunk.byte_offset)
        return self._stream.read(chunk.size)

    def _filters(self, dataset: Any, place: str, each: int) -> list[int]:
        creation = dataset.id.get_create_plist()
        filters = [creation.get_filter(i) for i in range(creation.get_nfilters())]
        for code, _, values, name in filters:
            if code == _SHUFFLE and tuple(values) != (each,):
                raise self.fault(place, f"is shuffled by {values} bytes, and its numbers have {each}")
            if code not in (_DEFLATE, _SHUFFLE, _CHECKSUM):
                raise self.fault(
                    place,
                    f"is compressed by {name.decode(errors='replace') or 'filter'} ({code}); write the file "
                    "without compression, or by deflate",
                )
        return [code for code, *_ in filters]


def _unpacked(raw: bytes, filters: list[int], size: int, each: int) -> bytes | None:
    """The bytes of a chunk, if they are as many as they have to be; more are never made."""
    try:
        for code in reversed(filters):
            if code == _DEFLATE:
                raw = zlib.decompressobj().decompress(raw, size + 8)
            elif code == _CHECKSUM:
                raw, told_sum = raw[:-4], raw[-4:]
                if _fletcher32(raw) != struct.unpack("<HH", told_sum):
                    return None
            else:
                raw = np.frombuffer(raw, np.uint8).reshape(each, -1).T.tobytes()
    except (ValueError, struct.error, zlib.error):
        return None
    return raw if len(raw) == size else None


def _fletcher32(data: bytes) -> tuple[int, int]:
    """The sums of HDF5's checksum, of 16-bit words (H5_checksum_fletcher32)."""
    words = np.frombuffer(data + bytes(len(data) % 2), ">u2").astype(np.int64)
    first = second = 0
    for start in range(0, len(words), 1 << 14):  # the sums of which fit into 64 bits
        part = words[start : start + (1 << 14)]
        second += len(part) * first + int(part @ np.arange(len(part), 0, -1))
        first += int(part.sum())
    return _folded(first), _folded(second)


def _folded(total: int) -> int:
    return (total - 1) % 0xFFFF + 1 if total else 0
