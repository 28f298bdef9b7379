"""The objects of a JLD2 file: the part of HDF5 that JLD2.jl writes, every length checked before it is used.

Not by h5py, because HDF5 2.0 refuses the compressed arrays of JLD2 (JLD2.jl, pull request 716), and because
HDF5 makes room for whatever length a string claims. Source: the HDF5 File Format Specification, version 3.0,
and JLD2.jl's src.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

from fluxlike.bridges.foreign_files.jld2_filters import read_filters, unpacked
from fluxlike.bridges.foreign_files.jld2_types import NULL, Cursor, Kind, read_kind, read_space
from fluxlike.bridges.foreign_files.lookup3 import lookup3
from fluxlike.bridges.foreign_files.meter import Meter

__all__ = ["Dataset", "Image", "Object"]

_BASE = 512  # JLD2's own header is in front
_UNDEFINED = 2**64 - 1
_SPACE, _LINK_INFO, _TYPE, _LINK, _ELSEWHERE, _LAYOUT, _FILTERS, _ATTRIBUTE, _MORE, _HEAPED = (
    *(0x01, 0x02, 0x03, 0x06, 0x07, 0x08, 0x0B, 0x0C, 0x10, 0x15),
)
#: What a message or an entry of a heap, a byte of a type, and a byte of text may take in memory.
_ENTRY, _TYPE_BYTE, _TEXT = 128, 32, 4


@dataclass(frozen=True)
class Dataset:
    """Data with a type and a shape, as an attribute and an object have them."""

    kind: Kind
    space: int
    shape: tuple[int, ...]
    data: bytes


@dataclass
class Object:
    """What a header says."""

    address: int
    links: dict[str, int] = field(default_factory=dict)
    attributes: dict[str, bytes] = field(default_factory=dict)
    messages: dict[int, tuple[int, bytes]] = field(default_factory=dict)

    def is_group(self) -> bool:
        return _LINK_INFO in self.messages

    def is_dataset(self) -> bool:
        return _LAYOUT in self.messages


class Image:
    """The bytes of a file, each read as one thing only, and the objects in them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.meter = Meter(len(data))
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}
        self._objects: dict[int, Object] = {}
        self._kinds: dict[int, Kind] = {}
        start = Cursor(self._claimed(0, 48))
        if (
            start.take(8) != b"\x89HDF\r\n\x1a\n"
            or start.number(1) not in (2, 3)
            or start.take(2) != b"\x08\x08"
        ):
            raise ValueError(f"there is no superblock of version 2 or 3 behind the first {_BASE} bytes")
        start.take(1)
        base, _, end, self.root = (start.number(8) for _ in range(4))
        if base != _BASE or start.number(4) != lookup3(self._at(0, 44)):
            raise ValueError("the superblock is not what was written")
        if end + base > len(data) + _BASE:
            raise ValueError(f"it ends after {len(data)} bytes, of {end}")

    def object(self, address: int) -> Object:
        """The object whose header is at an address."""
        if address not in self._objects:
            self._objects[address] = self._header(address)
        return self._objects[address]

    def dataset(self, x: Object) -> Dataset:
        """The data of an object."""
        if _ELSEWHERE in x.messages:
            raise ValueError("it has its data in other files; only the file itself is read")
        kind = self.kind(x)
        space, shape = read_space(self._message(x, _SPACE))
        size = 0 if space == NULL else math.prod(shape) * kind.size
        self.meter.charge(size, f"it has the shape {shape}, {size} bytes")
        data = b"" if space == NULL else self._stored(x, size)
        if len(data) != size:
            raise ValueError(f"it has the shape {shape}, {size} bytes, and {len(data)} are there")
        return Dataset(kind, space, shape, data)

    def kind(self, x: Object) -> Kind:
        """The type of the data of an object, or the type that it is."""
        if x.address not in self._kinds:
            flags, content = x.messages.get(_TYPE, (0, b""))
            committed = x.address if _SPACE not in x.messages else None
            self._kinds[x.address] = self._kind(content, bool(flags & 2), committed)
        return self._kinds[x.address]

    def attribute(self, x: Object, name: str) -> Dataset | None:
        """What an attribute of an object holds."""
        content = x.attributes.get(name)
        if content is None:
            return None
        cursor = Cursor(content)
        version, flags, *sizes = cursor.number(1), cursor.number(1), *(cursor.number(2) for _ in range(3))
        if version not in (2, 3):
            raise ValueError(f"an attribute of version {version}")
        cursor.take(version == 3)
        _, kind, space = (cursor.take(n) for n in sizes)
        found = self._kind(kind, bool(flags & 1), None)
        family, shape = read_space(space)
        return Dataset(
            found, family, shape, cursor.take(math.prod(shape) * found.size if family != NULL else 0)
        )

    def text(self, place: bytes) -> str:
        """The text of variable length that 16 bytes point at."""
        length, heap, index = struct.unpack("<IQI", place)
        if length == 0:
            return ""
        self.meter.charge(_TEXT * length)
        return self._from_heap(heap, index, length).decode()

    def _message(self, x: Object, kind: int) -> bytes:
        if kind not in x.messages:
            raise ValueError(f"its header has no message {kind}")
        return x.messages[kind][1]

    def _at(self, address: int, n: int) -> bytes:
        if n < 0 or address < 0 or _BASE + address + n > len(self._data):
            raise ValueError(f"{n} bytes at {address} are not in the file")
        return self._data[_BASE + address : _BASE + address + n]

    def _claimed(self, address: int, n: int) -> bytes:
        self.meter.claim(address, n)
        return self._at(address, n)

    # Headers: chunks of messages, each with a checksum
    def _header(self, address: int) -> Object:
        x = Object(address)
        start = Cursor(self._at(address, 6))
        if start.take(4) != b"OHDR" or start.number(1) != 2:
            raise ValueError(f"there is no object at {address}")
        flags = start.number(1)
        front = 6 + 16 * bool(flags & 32) + 4 * bool(flags & 16)
        width = 1 << (flags & 3)
        size = int.from_bytes(self._at(address + front, width), "little")
        chunks = [(address, front + width + size + 4, front + width)]
        for count, (where, length, skipped) in enumerate(chunks):  # which grows as more is found
            chunk = self._claimed(where, length)
            if length < skipped + 4 or int.from_bytes(chunk[-4:], "little") != lookup3(chunk[:-4]):
                raise ValueError(f"the header of the object at {address} is not what was written")
            if count and chunk[:4] != b"OCHK":
                raise ValueError(f"the object at {address} goes on where there is nothing of it")
            cursor = Cursor(chunk[:-4], skipped)
            while cursor.left() >= 4:
                kind, n, about = cursor.number(1), cursor.number(2), cursor.number(1)
                cursor.take(2 * bool(flags & 4))
                self.meter.charge(_ENTRY)
                self._message_of(x, kind, about, cursor.take(n), chunks)
        return x

    def _message_of(
        self, x: Object, kind: int, flags: int, content: bytes, chunks: list[tuple[int, int, int]]
    ) -> None:
        """Add one message to an object, or where its header goes on to the chunks."""
        if kind == _LINK:
            name, target = _link(content)
            if name in x.links:
                raise ValueError(f"two of its entries are called {name}")
            x.links[name] = target
        elif kind == _ATTRIBUTE:
            cursor = Cursor(content, 2)
            n = cursor.number(2)
            cursor.at = 8 + (content[0] == 3)
            x.attributes[cursor.take(n).rstrip(b"\0").decode()] = content
        elif kind == _MORE:
            where, length = struct.unpack("<QQ", content[:16])
            chunks.append((where, length, 4))
        elif kind in (_LINK_INFO, _HEAPED):
            x.messages[kind] = flags, content
            if _UNDEFINED not in struct.unpack_from(
                "<Q", content, 2 + (8 if kind == _LINK_INFO else 2) * (content[1] & 1)
            ):
                raise ValueError("it has more entries than JLD2 writes, in a heap")
        elif kind:
            x.messages[kind] = flags, content

    # Types
    def _kind(self, content: bytes, shared: bool, committed: int | None) -> Kind:
        if not shared:
            self.meter.charge(_TYPE_BYTE * len(content))
            return read_kind(Cursor(content))._replace(committed=committed)
        version, what, address = struct.unpack("<BBQ", content[:10])
        if version not in (2, 3) or (what != 2 and version == 3):
            raise ValueError(f"a shared message of version {version}")
        found = self.object(address)
        if found.is_dataset() or _TYPE not in found.messages or found.messages[_TYPE][0] & 2:
            raise ValueError(f"there is no type at {address}")
        return self.kind(found)

    # Data
    def _stored(self, x: Object, size: int) -> bytes:
        cursor = Cursor(self._message(x, _LAYOUT))
        version, family = cursor.number(1), cursor.number(1)
        if version not in (3, 4) or family not in (0, 1, 2):
            raise ValueError("it has its data in other files, or as JLD2 does not write it")
        if family == 0:
            return cursor.take(cursor.number(2))
        if family == 1:
            address, length = cursor.number(8), cursor.number(8)
            if length != size:
                raise ValueError(f"its {size} bytes are said to be {length}")
            return self._claimed(address, size)
        flags, dims, width = (cursor.number(1) for _ in range(3))
        cursor.take(dims * width)
        if version == 3 or cursor.number(1) != 1:
            raise ValueError("it is in chunks; write it whole, jldsave(…) without them")
        length = cursor.number(8) if flags & 2 else size
        skipped = cursor.number(4) if flags & 2 else 0
        packed = self._claimed(cursor.number(8), length)
        filters = [f for i, f in enumerate(self._filters(x)) if not skipped >> i & 1]
        self.meter.charge(size * len(filters))
        return unpacked(packed, filters, size, self.kind(x).size)

    def _filters(self, x: Object) -> list[tuple[int, str]]:
        return read_filters(x.messages.get(_FILTERS, (0, b"\2\0"))[1])

    def _from_heap(self, heap: int, index: int, n: int) -> bytes:
        if heap not in self._heaps:
            self._heaps[heap] = self._heap(heap)
        at, length = self._heaps[heap].get(index, (0, -1))
        if length < n:
            raise ValueError(f"a text of {n} bytes is not in the heap at {heap}")
        return self._at(at, n)

    def _heap(self, address: int) -> dict[int, tuple[int, int]]:
        """Where the entries of a heap are, and their lengths."""
        start = Cursor(self._at(address, 16))
        if start.take(8) != b"GCOL\1\0\0\0":
            raise ValueError(f"there is no heap at {address}")
        length = start.number(8)
        self._claimed(address, length)
        # In JLD2 the length is without the 16 bytes of the start, in HDF5 with them.
        at, end = address + 16, min(address + 16 + length, len(self._data) - _BASE)
        found: dict[int, tuple[int, int]] = {}
        while at + 16 <= end:
            self.meter.charge(_ENTRY)
            index, _, n = struct.unpack("<HHxxxxQ", self._at(at, 16))
            if index == 0 or at + 16 + n > end:
                break
            found.setdefault(index, (at + 16, n))
            at += 16 + n + -n % 8
        return found


def _link(content: bytes) -> tuple[str, int]:
    cursor = Cursor(content)
    version, flags = cursor.number(1), cursor.number(1)
    family = cursor.number(1) if flags & 8 else 0
    cursor.take(8 * bool(flags & 4) + bool(flags & 16))
    name = cursor.take(cursor.number(1 << (flags & 3))).decode()
    if version != 1 or family:
        raise ValueError(f"{name} is a link to elsewhere; only the file itself is read")
    return name, cursor.number(8)
