"""Values of Julia in a JLD2 file: named tuples, tuples, dictionaries, arrays and numbers.

JLD2 is HDF5 with Julia's types beside it: an immutable value is a compound of its fields, everything else
stands behind a reference, and a committed type below ``_types`` carries the type's name. Fields without
data, such as functions, are not stored; newer files name them. Source: JLD2.jl 0.4 to 0.6, src/data and
src/datasets.jl.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fluxlike.bridges.foreign_files.faults import FileFault, told
from fluxlike.bridges.foreign_files.jld2_objects import Dataset, Image, Object
from fluxlike.bridges.foreign_files.jld2_types import NULL, SCALAR, Kind

__all__ = ["Jld2"]

_KIND = "a JLD2 file"
_MODULES = ("Core.", "Base.")
_DICTIONARIES = ("Dict", "IdDict", "ImmutableDict")
_MOST_OBJECTS, _MOST_FIELDS, _MOST_CONTAINERS = 100_000, 10_000, 100
_FIELD = 256  # what one takes in memory
_NUMBERS = ("integer", "float", "bits")


class _Pair(NamedTuple):
    first: Any
    second: Any


class Jld2:
    """The values of one file, each object read once."""

    def __init__(self, name: str, data: bytes) -> None:
        self._name = name
        with told(name, _KIND):
            self._image = Image(data)
            self._entries = self._image.object(self._image.root).links
        #: What was read already, of how many objects it is made, and how deep.
        self._values: dict[int, tuple[Any, int, int]] = {}
        self._names: dict[int, str] = {}
        self._fields: dict[int, tuple[list[str] | None, list[int]] | None] = {}
        self._above: list[int] = []
        self._depth = self._deepest = 0
        self._total = 0

    def entries(self) -> list[str]:
        """The names of what was saved."""
        return [name for name in self._entries if name != "_types"]

    def entry(self, name: str) -> Any:
        """What was saved under a name.

        Raises:
            FileFault: it is damaged, holds itself, or a type that is none of a model's state.
        """
        return self._value(self._entries[name], f".{name}")

    def _fault(self, place: str, text: str) -> FileFault:
        return FileFault(f"{self._name}: {place} {text}")

    def _count(self, place: str, n: int) -> None:
        self._total += n
        if self._total > _MOST_OBJECTS:
            raise self._fault(place, f"is one of more than {_MOST_OBJECTS} objects; no model has so many")
        self._image.meter.charge(len(place))

    @contextlib.contextmanager
    def _within(self, place: str) -> Iterator[None]:
        """One container further down."""
        self._depth += 1
        self._reach(place, self._depth)
        yield
        self._depth -= 1

    def _reach(self, place: str, depth: int) -> None:
        self._deepest = max(self._deepest, depth)
        if depth > _MOST_CONTAINERS:
            raise self._fault(place, f"lies in more than {_MOST_CONTAINERS} containers; no model does")

    def _value(self, address: int, place: str) -> Any:
        if address in self._above:
            raise self._fault(place, "holds itself")
        if address in self._values:
            found, parts, height = self._values[address]
            self._count(place, parts)
            self._reach(place, self._depth + height)
            return found
        objects, deepest, self._deepest = self._total, self._deepest, self._depth
        self._count(place, 1)
        self._above.append(address)
        with told(f"{self._name}: {place}", _KIND), self._within(place):
            found = self._object(self._image.object(address), place)
        self._above.pop()
        self._values[address] = found, self._total - objects, self._deepest - self._depth
        self._deepest = max(deepest, self._deepest)
        return found

    def _object(self, x: Object, place: str) -> Any:
        if x.is_group():
            return {name: self._value(at, f"{place}.{name}") for name, at in x.links.items()}
        if not x.is_dataset():
            raise self._fault(place, "is a type, no value; save Flux.state(model)")
        found = self._image.dataset(x)
        dimensions = self._image.attribute(x, "dimensions")
        if found.space == NULL:
            return self._without_data(found.kind.committed) if dimensions is None else []
        if found.space == SCALAR:
            return self._scalar(found.data, found.kind, found.kind.committed, place)
        without_axes = dimensions is not None and dimensions.shape == (0,)  # which is written with one
        return self._array(found, () if without_axes else found.shape, place)

    def _array(self, found: Dataset, shape: tuple[int, ...], place: str) -> Any:
        """Julia's axes are those of HDF5 in reverse, and of the same memory."""
        kind, name = found.kind, self._type_name(found.kind.committed)
        if kind.family in _NUMBERS and name is None:
            array = np.frombuffer(found.data, kind.dtype).reshape(shape).T
            return array != 0 if kind.family == "bits" else array.copy("K")
        if name == "Complex" and [field for field, *_ in kind.fields] == ["re", "im"]:
            parts = np.dtype([(field, inner.dtype or "V") for field, _, inner in kind.fields])
            array = np.frombuffer(found.data, parts).reshape(shape).T
            return array["re"] + np.asarray(1j, np.result_type(parts["re"], np.complex64)) * array["im"]
        if len(shape) != 1:
            raise self._fault(place, f"is an array of {len(shape)} axes, and not of numbers")
        self._count(place, shape[0])
        items = [found.data[i * kind.size : (i + 1) * kind.size] for i in range(shape[0])]
        return [self._scalar(x, kind, kind.committed, f"{place}[{i}]") for i, x in enumerate(items, 1)]

    def _scalar(self, data: bytes, kind: Kind, committed: int | None, place: str) -> Any:
        """One value, as it is stored in a field, an array or an object."""
        name = self._type_name(committed)
        if kind.family == "compound":
            return self._compound(data, kind, committed, name, place)
        if kind.family == "reference" and name in (None, "NTuple", *_DICTIONARIES):
            found = self._behind(data, place)
            if name == "NTuple" and isinstance(found, (list, np.ndarray)):
                self._count(place, len(found))
                return tuple(found)  # one of more than ten
            return self._dictionary(found, place) if name in _DICTIONARIES else found
        if kind.family == "text" and name in (None, "Symbol"):
            return self._image.text(data)
        if kind.family == "fixed text" and name in (None, "Symbol"):
            self._image.meter.charge(4 * len(data))
            return data.decode()
        if kind.family in _NUMBERS and name is None:
            number = np.frombuffer(data, kind.dtype)[0]
            return (
                bool(number) if kind.family == "bits" else int(number) if kind.family == "integer" else number
            )
        raise self._unknown(place, name)

    def _compound(self, data: bytes, kind: Kind, committed: int | None, name: str | None, place: str) -> Any:
        if name not in (None, "NamedTuple", "Tuple", "NTuple", "Pair", "Complex"):
            raise self._unknown(place, name)
        stored = {field: (offset, inner) for field, offset, inner in kind.fields}
        types = self._field_types(committed, list(stored), place)
        fields = list(dict.fromkeys([*types, *stored]))
        self._count(place, len(fields))
        found: dict[str, Any] = {}
        with self._within(place):
            for field in fields:
                self._image.meter.charge(_FIELD + len(place))
                found[field] = self._field(data, stored.get(field), types.get(field), f"{place}.{field}")
        if name in ("Tuple", "NTuple"):
            return self._tuple(found, place)
        if name == "Pair":
            return _Pair(found.get("first"), found.get("second"))
        return complex(found["re"], found["im"]) if name == "Complex" else found

    def _field(self, data: bytes, stored: tuple[int, Kind] | None, committed: int | None, place: str) -> Any:
        if stored is None:
            return self._without_data(committed)
        offset, kind = stored
        self._image.meter.charge(kind.size)
        return self._scalar(data[offset : offset + kind.size], kind, committed, place)

    def _field_types(self, committed: int | None, stored: list[str], place: str) -> dict[str, int | None]:
        """Where the types of fields are committed; fields that are not stored have no data."""
        if committed is None:
            return {}
        if committed not in self._fields:
            self._fields[committed] = self._committed_fields(committed)
        told_by = self._fields[committed]
        if told_by is None:
            return {}
        names, places = told_by
        known = stored if names is None else names
        if len(known) != len(places):
            raise self._fault(place, f"has {len(known)} fields, and {len(places)} types of them")
        return {name: at or None for name, at in zip(known, places, strict=True)}

    def _committed_fields(self, committed: int) -> tuple[list[str] | None, list[int]] | None:
        """The names of a type's fields, which older files leave out, and where their types are."""
        x = self._image.object(committed)
        names = self._image.attribute(x, "field_names")
        types = self._image.attribute(x, "field_types" if names else "field_datatypes")
        if types is None:
            return None
        known = None
        if names is not None:
            known = [self._image.text(names.data[i : i + 16]) for i in range(0, len(names.data), 16)]
        return known, np.frombuffer(types.data, "<u8").tolist()

    def _tuple(self, fields: dict[str, Any], place: str) -> tuple[Any, ...]:
        """Fields 1, 2, …; older files leave out those without data, which are ()."""
        numbers = {int(k) if k.isdecimal() and len(k) < 9 else 0 for k in fields}
        last = max(numbers, default=0)
        if 0 in numbers or last > _MOST_FIELDS:
            raise self._fault(place, f"is a tuple with the fields {', '.join(fields)}")
        self._count(place, last)
        return tuple(fields.get(str(i), ()) for i in range(1, last + 1))

    def _behind(self, reference: bytes, place: str) -> Any:
        address = int.from_bytes(reference, "little")
        if not address:
            raise self._fault(place, "is not assigned, #undef in Julia")
        return self._value(address, place)

    def _dictionary(self, pairs: Any, place: str) -> dict[Any, Any]:
        if not isinstance(pairs, list) or not all(isinstance(pair, _Pair) for pair in pairs):
            raise self._fault(place, "is a dictionary that is no list of pairs")
        for key, _ in pairs:
            if not isinstance(key, (str, int, float, np.generic)):
                raise self._fault(place, f"is a dictionary with a key that is a {type(key).__name__}")
        found = {key if isinstance(key, (str, int)) else str(key): x for key, x in pairs}
        if len(found) < len(pairs):
            raise self._fault(place, "is a dictionary with two entries of one name")
        return found

    def _without_data(self, committed: int | None) -> Any:
        """A field or an object of a type that has one value: nothing, an empty tuple, a function."""
        return None if self._type_name(committed) == "Nothing" else ()

    def _type_name(self, committed: int | None) -> str | None:
        """The name of a type in Julia, without its parameters, and without the modules that all have."""
        if committed is None:
            return None
        if committed not in self._names:
            x = self._image.object(committed)
            told_by = self._image.attribute(x, "julia_type") or self._image.attribute(x, "julia type")
            named = told_by is not None and len(told_by.data) >= 16
            name = self._image.text(told_by.data[:16]) if told_by and named else "type without a name"
            self._names[committed] = next((name[len(m) :] for m in _MODULES if name.startswith(m)), name)
        return self._names[committed]

    def _unknown(self, place: str, name: str | None) -> FileFault:
        advice = "save Flux.state(model), which is named tuples, tuples, arrays and numbers"
        if name and any(gpu in name for gpu in ("CuArray", "ROCArray", "MtlArray", "oneArray")):
            advice = "its numbers are on a GPU; save Flux.state(cpu(model))"
        elif name and any(part in name for part in ("Array", "Adjoint", "Transpose")):
            advice = "make it an array of its own, collect(x), and save Flux.state(model)"
        return self._fault(place, f"is a {name or 'value that Julia does not write'}; in Julia, {advice}")
