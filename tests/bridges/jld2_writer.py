"""JLD2 files as JLD2.jl writes them, byte by byte, from Python values that stand for Julia's.

Each function names the file of JLD2.jl (0.4 to 0.6, github.com/JuliaIO/JLD2.jl/src) that it answers to. The
format is HDF5's (version 3.0 of its specification): objects without names that only references lead to, all
headers of version 2 with their checksums, types committed below ``_types``.

| Python | Julia |
|---|---|
| numpy array, with its axes in Julia's order | Array |
| list | Vector{Any} |
| dict, tuple | NamedTuple, Tuple |
| Dict | Dict{Symbol,Any} |
| Struct | any struct, by its name |
| None, bool, int, float, numpy scalar, str, Symbol | Nothing, Bool, Int64, Float64, …, String, Symbol |
"""

import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

UNDEFINED = 2**64 - 1
DATASPACE, LINK_INFO, DATATYPE, FILL, LINK, LAYOUT, GROUP_INFO, FILTERS, ATTRIBUTE = (
    *(1, 2, 3, 5, 6, 8, 10, 11, 12),
)


class Symbol(str):
    pass


class Dict(dict):
    pass


@dataclass
class Struct:
    name: str
    fields: dict = field(default_factory=dict)


def lookup3(data):
    """Bob Jenkins' checksum (Lookup3.jl)."""

    def rotated(x, k):
        return ((x << k) | (x >> (32 - k))) & 0xFFFFFFFF

    a = b = c = (0xDEADBEEF + len(data)) & 0xFFFFFFFF
    last = max((len(data) - 1) // 12 * 12, 0)
    for start in range(0, last, 12):
        x, y, z = struct.unpack_from("<3I", data, start)
        a, b, c = (a + x) & 0xFFFFFFFF, (b + y) & 0xFFFFFFFF, (c + z) & 0xFFFFFFFF
        for k in (4, 6, 8, 16, 19, 4):
            a = ((a - c) & 0xFFFFFFFF) ^ rotated(c, k)
            c = (c + b) & 0xFFFFFFFF
            a, b, c = b, c, a
    if not data:
        return c
    x, y, z = struct.unpack("<3I", data[last:].ljust(12, b"\0"))
    a, b, c = (a + x) & 0xFFFFFFFF, (b + y) & 0xFFFFFFFF, (c + z) & 0xFFFFFFFF
    for k in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - rotated(b, k)) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b


def sized(n):
    """How wide a size is written: its flag and its format (misc.jl, size_flag and write_size)."""
    flag = sum(n > limit for limit in (0xFF, 0xFFFF, 0xFFFFFFFF))
    return flag, "<" + "BHIQ"[flag]


def packed(messages):
    return b"".join(struct.pack("<BHB", kind, len(m), flags) + m for kind, m, flags in messages)


# Types, as messages (datatypes.jl). The second number of the class is the version, 3.
def fixed_point(size, signed):
    return struct.pack("<BBBBIHH", 0x30, 0x08 if signed else 0, 0, 0, size, 0, 8 * size)


def floating_point(size):  # data/number_types.jl
    sign, exponent, mantissa = {2: (15, 5, 10), 4: (31, 8, 23), 8: (63, 11, 52)}[size]
    bias = 2 ** (exponent - 1) - 1
    layout = (0, 8 * size, mantissa, exponent, 0, mantissa, bias)
    return struct.pack("<BBBBIHHBBBBI", 0x31, 0x20, sign, 0, size, *layout)


def opaque(size):
    return struct.pack("<BBBBI", 0x35, 0, 0, 0, size)


def compound(size, names, offsets, members):
    width = sized(size)[1] if size > 0xFFFF or size <= 0xFF else "<H"
    body = b"".join(
        name.encode() + b"\0" + struct.pack(width, offset) + member
        for name, offset, member in zip(names, offsets, members, strict=True)
    )
    return struct.pack("<BBBBI", 0x36, len(names) & 0xFF, len(names) >> 8, 0, size) + body


BOOL = struct.pack("<BBBBIHH", 0x34, 0, 0, 0, 1, 0, 8)  # a bit field (data/number_types.jl)
REFERENCE = struct.pack("<BBBBI", 0x37, 0, 0, 0, 8)
VLEN_UTF8 = struct.pack("<BBBBI", 0x39, 0x11, 1, 0, 16) + fixed_point(1, False)
VLEN_REFERENCE = struct.pack("<BBBBI", 0x39, 0, 0, 0, 16) + REFERENCE
DATATYPE_OF_TYPES = compound(32, ["name", "parameters"], [0, 16], [VLEN_UTF8, VLEN_REFERENCE])


def number_type(dtype):
    if dtype.kind == "b":
        return BOOL
    return (
        floating_point(dtype.itemsize)
        if dtype.kind == "f"
        else fixed_point(dtype.itemsize, dtype.kind == "i")
    )


def dataspace(dims):
    """Scalar, simple, or null where `dims` is None (dataspaces.jl)."""
    kind = 2 if dims is None else 1 if dims else 0
    return struct.pack("<BBBB", 2, len(dims or ()), 0, kind) + b"".join(
        struct.pack("<Q", n) for n in dims or ()
    )


@dataclass(frozen=True)
class Type:
    """How a field is written: the message of its type, None if it has no data, and where it is committed."""

    message: bytes | None
    size: int = 0
    committed: int = 0


class Writer:
    """What JLD2.jl calls a JLDFile: an image of the file, and what was written already."""

    def __init__(self, *, ghosts_named=True, type_attribute="julia_type", compress=False):
        self.image = bytearray(512 + 48)  # data starts behind the superblock (superblock.jl)
        self.types, self.known, self.arrays, self.heap = [], {}, {}, None
        self.ghosts_named, self.type_attribute, self.compress = ghosts_named, type_attribute, compress
        self.kept = []

    # Objects (object_headers.jl, datasets.jl, groups.jl)
    def append(self, data):
        offset = len(self.image) - 512
        self.image += data
        return offset

    def header(self, messages):
        body = packed(messages)
        flag, width = sized(len(body))
        start = b"OHDR" + bytes([2, flag]) + struct.pack(width, len(body)) + body
        return self.append(start + struct.pack("<I", lookup3(start)))

    def group(self, links, at_first=None):
        """A group; the links after the first ones are in a continuation, as when a file is opened again."""
        messages = [
            (LINK_INFO, struct.pack("<BBQQ", 0, 0, UNDEFINED, UNDEFINED), 0),
            (GROUP_INFO, b"\0\0", 0),
        ]
        for name, target in links.items():
            raw = name.encode()
            flag, width = sized(len(raw))
            start = struct.pack("<BBB", 1, flag | 16, 1) + struct.pack(width, len(raw))
            messages.append((LINK, start + raw + struct.pack("<Q", target), 0))
        more = [] if at_first is None else messages[2 + at_first :]
        last = (0, bytes(16), 0)  # room for a continuation
        if more:
            chunk = b"OCHK" + packed([*more, last])
            at = self.append(chunk + struct.pack("<I", lookup3(chunk)))
            messages, last = messages[: 2 + at_first], (16, struct.pack("<QQ", at, len(chunk) + 4), 0)
        return self.header([*messages, last])

    def dataset(self, dims, kind, data, attributes=(), committed=False):
        messages = [(FILL, b"\3\x09", 0), (DATASPACE, dataspace(dims), 0)]
        messages += [(ATTRIBUTE, a, 0) for a in attributes]
        messages.append((DATATYPE, kind, 1 | 2 * committed))
        if len(data) >= 8192 and self.compress:
            messages += self.chunked(dims, data)
        elif len(data) >= 8192:
            at = self.append(data)
            messages.append((LAYOUT, struct.pack("<BBQQ", 4, 1, at, len(data)), 0))
        else:
            messages.append((LAYOUT, struct.pack("<BBH", 4, 0, len(data)) + data, 0))
        return self.header(messages)

    def chunked(self, dims, data):
        """One chunk, deflated (compression.jl, write_chunked_storage_message): an index of type 1."""
        size = len(data) // int(np.prod(dims))
        packed = zlib.compress(data)
        at = self.append(packed)
        layout = struct.pack("<BBBBB", 4, 2, 2, len(dims) + 1, 8)
        layout += b"".join(struct.pack("<Q", n) for n in (*dims, size))
        layout += struct.pack("<BQIQ", 1, len(packed), 0, at)
        return [(FILTERS, struct.pack("<BBHHHI", 2, 1, 1, 0, 1, 5), 0), (LAYOUT, layout, 0)]

    def attribute(self, name, kind, dims, data, committed=False):
        """attributes.jl"""
        raw, space = name.encode() + b"\0", dataspace(dims)
        sizes = struct.pack("<BBHHH", 2, committed, len(raw), len(kind), len(space))
        return sizes + raw + kind + space + data

    def vlen(self, data, count):
        """A place in the global heap (global_heaps.jl), and how many entries are there."""
        if not data:
            return bytes(16)
        need = 16 + -(-len(data) // 8) * 8
        if self.heap is None or need + 16 >= self.heap[2]:
            length = max(4096, need)  # which JLD2 writes without the 16 bytes in front, HDF5 with them
            at = self.append(b"GCOL" + struct.pack("<IQ", 1, length) + bytes(length))
            self.heap = [at, 16, length, 0]
        at, used, free, index = self.heap
        index += 1
        start = 512 + at + used
        self.image[start : start + 16] = struct.pack("<HHIQ", index, 1, 0, len(data))
        self.image[start + 16 : start + 16 + len(data)] = data
        if free - need >= 16:
            self.image[start + need : start + need + 16] = struct.pack("<HHIQ", 0, 0, 0, free - need - 16)
        self.heap = [at, used + need, free - need, index]
        return struct.pack("<IQI", count, at, index)

    def text(self, x):
        return self.vlen(x.encode(), len(x.encode()))

    # Types (data/writing_datatypes.jl)
    def shared(self, offset):
        return struct.pack("<BBQ", 3, 2, offset)

    def type_data(self, name, parameters=()):
        return self.text(name) + self.vlen(
            b"".join(struct.pack("<Q", p) for p in parameters), len(parameters)
        )

    def commit(self, key, message, name, parameters=(), attributes=(), written=None):
        if "DataType" not in self.known:
            here = len(self.image) - 512 if self.heap else None
            if here is None:  # make the heap first, so that the type can point at itself
                self.text("Core.DataType")
                here = len(self.image) - 512
            own = self.attribute(
                self.type_attribute, self.shared(here), (), self.type_data("Core.DataType"), True
            )
            assert self.header([(DATATYPE, DATATYPE_OF_TYPES, 64), (ATTRIBUTE, own, 0)]) == here
            self.known["DataType"] = here
            self.types.append(here)
        of_types = self.shared(self.known["DataType"])
        about = [self.attribute(self.type_attribute, of_types, (), self.type_data(name, parameters), True)]
        if written is not None:
            about.append(self.attribute("written_type", of_types, (), self.type_data(written), True))
        messages = [(DATATYPE, message, 64), *((ATTRIBUTE, a, 0) for a in (*about, *attributes))]
        offset = self.header(messages)
        self.known[key] = offset
        self.types.append(offset)
        return offset

    def key(self, x):
        """What stands for the type of a value."""
        if isinstance(x, (dict, Struct)) and not isinstance(x, Dict):
            inner = x.fields if isinstance(x, Struct) else x
            name = x.name if isinstance(x, Struct) else "NamedTuple"
            return (name, *((k, self.key(v)) for k, v in inner.items()))
        if isinstance(x, tuple):
            return ("Tuple", *map(self.key, x))
        return type(x) if not isinstance(x, np.ndarray) else "Array"

    def long(self, x):
        return isinstance(x, tuple) and len(x) > 10 and len({self.key(v) for v in x}) == 1

    def of(self, x):
        """The type of a field that holds a value: h5fieldtype."""
        if isinstance(x, bool):
            return Type(BOOL, 1)
        if isinstance(x, (int, float, np.generic)):
            dtype = np.dtype({int: "i8", float: "f8"}.get(type(x), getattr(x, "dtype", None)))
            return Type(number_type(dtype), dtype.itemsize)
        if isinstance(x, Symbol):
            at = self.known.get(Symbol) or self.commit(Symbol, VLEN_UTF8, "Core.Symbol")
            return Type(VLEN_UTF8, 16, at)
        if isinstance(x, str):
            return Type(VLEN_UTF8, 16)
        if isinstance(x, (np.ndarray, list, Dict)):
            return Type(REFERENCE, 8)
        if self.long(x):  # an array instead (data/specialcased_types.jl, NTUPLE_INLINE_THRESHOLD)
            key = self.key(x)
            at = self.known.get(key) or self.commit(key, REFERENCE, "NTuple", written="Core.Array")
            return Type(REFERENCE, 8, at)
        found = self.immutable(x)
        return found if found.message is None or found.size <= 1024 else Type(REFERENCE, 8)

    def immutable(self, x):
        """A type without data, or a compound of fields: commit_compound."""
        key = self.key(x)
        if key in self.known:
            return self.known[key]
        fields = (
            x.fields if isinstance(x, Struct) else dict(enumerate(x, 1)) if isinstance(x, tuple) else x or {}
        )
        name = {type(None): "Core.Nothing", tuple: "Tuple", dict: "Core.NamedTuple"}.get(type(x)) or x.name
        types = {str(k): self.of(v) for k, v in fields.items()}
        held = {k: t for k, t in types.items() if t.message is not None}
        if not held:
            empty = self.attribute("empty", fixed_point(1, False), (), b"\1")
            found = Type(None, 1, self.commit(key, opaque(1), name, attributes=[empty]))
        else:
            offsets = np.cumsum([0, *(t.size for t in held.values())]).tolist()
            message = compound(offsets[-1], list(held), offsets[:-1], [t.message for t in held.values()])
            found = Type(message, offsets[-1], self.commit(key, message, name, attributes=self.about(types)))
        self.known[key] = found
        return found

    def about(self, types):
        """What HDF5 can't say of the fields. Before 0.6 there were no fields without data."""
        told = types if self.ghosts_named else {k: t for k, t in types.items() if t.message is not None}
        if not any(t.committed for t in told.values()):
            return []
        refs = b"".join(struct.pack("<Q", t.committed) for t in told.values())
        if not self.ghosts_named:
            return [self.attribute("field_datatypes", REFERENCE, (len(told),), refs)]
        names = b"".join(self.text(k) for k in told)
        return [
            self.attribute("field_names", VLEN_UTF8, (len(told),), names),
            self.attribute("field_types", REFERENCE, (len(told),), refs),
        ]

    # Values: h5convert!
    def data(self, x, kind):
        if kind.message is None:
            return b""
        if kind.message == REFERENCE:
            return struct.pack("<Q", self.write(list(x) if self.long(x) else x))
        if isinstance(x, str):
            return self.text(x)
        if isinstance(x, (bool, int, float, np.generic)):
            return np.asarray(x).astype(np.bool_ if isinstance(x, bool) else np.asarray(x).dtype).tobytes()
        fields = x.fields if isinstance(x, Struct) else dict(enumerate(x)) if isinstance(x, tuple) else x
        return b"".join(self.data(v, self.of(v)) for v in fields.values())

    def write(self, x):
        """A dataset without a name: write_dataset. An array that was written is not written again."""
        if id(x) in self.arrays and isinstance(x, (np.ndarray, list, Dict)):
            return self.arrays[id(x)]
        at = self._write(x)
        self.kept.append(x)
        self.arrays[id(x)] = at
        return at

    def _write(self, x):
        if isinstance(x, np.ndarray) and x.dtype.kind == "c":
            part = floating_point(x.dtype.itemsize // 2)
            half = x.dtype.itemsize // 2
            message = compound(2 * half, ["re", "im"], [0, half], [part, part])
            at = self.known.get(x.dtype) or self.commit(x.dtype, message, "Base.Complex")
            return self.dataset(x.shape[::-1], self.shared(at), x.tobytes("F"), committed=True)
        if isinstance(x, np.ndarray):
            dims, about = x.shape[::-1], []
            if not x.ndim:
                dims, about = (1,), [self.attribute("dimensions", fixed_point(8, True), (0,), b"")]
            return self.dataset(dims, number_type(x.dtype), x.tobytes("F"), about)
        if isinstance(x, list):
            refs = b"".join(struct.pack("<Q", self.write(v)) for v in x)
            return self.dataset((len(x),), REFERENCE, refs)
        if isinstance(x, Dict):
            pairs = [Struct("Core.Pair", {"first": Symbol(k), "second": [v]}) for k, v in x.items()]
            at = self.known.get(Dict) or self.commit(Dict, REFERENCE, "Base.Dict", written="Core.Array")
            refs = []
            for pair in pairs:  # Pair{Symbol,Any}: the second is behind a reference, whatever it is
                kind = self.immutable(pair)
                data = self.text(pair.fields["first"]) + struct.pack(
                    "<Q", self.write(pair.fields["second"][0])
                )
                refs.append(self.dataset((), self.shared(kind.committed), data, committed=True))
            inner = self.dataset((len(refs),), REFERENCE, struct.pack(f"<{len(refs)}Q", *refs))
            return self.dataset((), self.shared(at), struct.pack("<Q", inner), committed=True)
        if isinstance(x, str) and not isinstance(x, Symbol):
            raw = x.encode()
            return self.dataset((), struct.pack("<BBBBI", 0x33, 0x11, 0, 0, len(raw)), raw)
        if x is None or isinstance(x, (tuple, dict, Struct)):
            kind = self.immutable(x)
            dims = None if kind.message is None else ()
            return self.dataset(dims, self.shared(kind.committed), self.data(x, kind), committed=True)
        kind = self.of(x)
        message = self.shared(kind.committed) if kind.committed else kind.message
        return self.dataset((), message, self.data(x, kind), committed=bool(kind.committed))

    def finished(self, links):
        """The groups, the superblock and the header of the file (superblock.jl, file_header.jl)."""
        types = (
            {"_types": self.group({f"{i:08}": at for i, at in enumerate(self.types, 1)})}
            if self.types
            else {}
        )
        root = self.group({**links, **types})
        start = b"\x89HDF\r\n\x1a\n" + bytes([2, 8, 8, 0])
        start += struct.pack("<4Q", 512, UNDEFINED, len(self.image), root)
        self.image[512:560] = start + struct.pack("<I", lookup3(start))
        text = b"HDF5-based Julia Data Format, version 0.1.0\0 (Julia 1.11.3 64-bit LE)\0"
        self.image[: len(text)] = text
        return bytes(self.image)


def jldsave(path, *, writer=None, **values):
    """``jldsave(path; name = value, …)``"""
    writer = writer or Writer()
    Path(path).write_bytes(writer.finished({name: writer.write(x) for name, x in values.items()}))
    return path
