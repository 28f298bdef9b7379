"""What a function can set beside its arguments and its result: variables that its code names, attributes.

To find out what it did set, make the namespaces before it runs, and ask each for its assignments afterwards.
"""

from __future__ import annotations

import enum
import functools
import inspect
import types
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from fluxlike.trees.functor import spec_of
from fluxlike.trees.paths import is_node

__all__ = [
    "Assignment",
    "Namespace",
    "attributes",
    "attributes_in",
    "filled",
    "reached",
    "variables",
    "within",
]


class Assignment(NamedTuple):
    """Something that was set, or deleted.

    Attributes:
        name: the variable that leads there, such as ``"self"``.
        path: the way from there, such as ``".model"``; empty for the variable itself.
        value: what is there now; None where it was deleted.
        put_back: puts there what was there before.
    """

    name: str
    path: str
    value: Any
    put_back: Callable[[], None]


class Namespace:
    """What a dict, a list or the cell of a closure held when this was made.

    Args:
        held: that dict, list, deque or cell; the attributes of an object are a dict.
        place: from a key to the name and the path of an `Assignment`.
        keys: those of the dict that count. (default: all)
    """

    def __init__(
        self, held: Any, place: Callable[[Any], tuple[str, str]], keys: Collection[str] | None = None
    ) -> None:
        self._held, self._place, self._keys = held, place, keys
        self._before = self._read()

    def _read(self) -> dict[Any, Any]:
        if isinstance(self._held, types.CellType):
            return {0: self._held.cell_contents} if filled(self._held) else {}
        if isinstance(self._held, dict):
            return {k: x for k, x in dict.copy(self._held).items() if self._keys is None or k in self._keys}
        return dict(enumerate(self._held))

    def assignments(self) -> Iterator[Assignment]:
        """What was set since: where another object is now, one more, or none."""
        before, now = self._before, self._read()
        for key in {**before, **now}:
            if key not in before or key not in now or before[key] is not now[key]:
                yield Assignment(*self._place(key), now.get(key), functools.partial(self._put_back, key))

    def _put_back(self, key: Any) -> None:
        if isinstance(self._held, types.CellType):
            if self._before:
                self._held.cell_contents = self._before[0]
            else:
                del self._held.cell_contents
        elif isinstance(self._held, dict):
            if key in self._before:
                self._held[key] = self._before[key]
            else:
                del self._held[key]
        else:
            self._held.clear()
            self._held.extend(self._before.values())


def variables(f: Callable[..., Any], /) -> Iterator[Namespace]:
    """The globals and the closure cells that the code of a function names.

    Functions inside of it count, and so do those that it names and that stand in the same file.
    """
    functions, cells, names = _named(f)
    if functions:
        yield Namespace(functions[0].__globals__, lambda name: (name, ""), names)
    for name, cell in cells:
        yield Namespace(cell, functools.partial(_itself, name))


def _itself(name: str, _: Any) -> tuple[str, str]:
    return name, ""


def reached(f: Callable[..., Any], /) -> dict[str, Any]:
    """What a function finds by its `variables`, by name, and the object whose method it is as ``self``."""
    functions, cells, names = _named(f)
    found = {
        name: functions[0].__globals__[name] for name in sorted(names) if name in functions[0].__globals__
    }
    found |= {name: cell.cell_contents for name, cell in cells if filled(cell)}
    owner = _owner(f)
    return found if owner is None else {"self": owner, **found}


_CLOSED = (Tensor, type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)


def attributes(x: Any, name: str, path: str = "", /) -> Namespace | None:
    """Those of an object, which stands at a path from a name; None for one that has no state to set.

    Modules, classes and functions, with what wraps a function and counts its calls, have none here.
    """
    held = None if issubclass(type(x), _CLOSED) else _own(x)
    if held is None or "__wrapped__" in held:
        return None
    return Namespace(held, lambda key: (name, f"{path}.{key}"))


def _own(x: Any) -> dict[str, Any] | None:
    try:
        held = object.__getattribute__(x, "__dict__")  # past what a class makes of looking it up
    except AttributeError:
        return None
    return held if type(held) is dict else None


def attributes_in(x: Any, /) -> dict[str, Any]:
    """The attributes of an object by their paths, and what is in those, as they are now.

    A path to a dict, a list or a tuple leads to its class and its keys, as its entries have paths of their
    own. Modules, classes, functions, enumerations and objects of torch have no such attributes, nor has an
    object with more of them than a call can look at, which is data.
    """
    found: dict[str, Any] = {}
    seen, queue = {id(x)}, deque([("", x)])
    while queue:
        path, part = queue.popleft()
        for step, inner in _settings(part):
            found[path + step] = _as_now(inner)
            if id(inner) not in seen:
                seen.add(id(inner))
                queue.append((path + step, inner))
            if len(found) > _MOST:
                return {}
    return found


_MOST = 500  # attributes that are looked at in one object
_WITHOUT = (*_CLOSED, types.MethodWrapperType, enum.Enum, functools.partial)


def _settings(x: Any) -> Iterator[tuple[str, Any]]:
    kind = type(x)
    if kind is dict or kind is list or kind is tuple:
        if len(x) <= _MOST:
            yield from ((_entry(k), part) for k, part in (x.items() if kind is dict else enumerate(x)))
    elif not issubclass(kind, _WITHOUT) and kind.__module__.partition(".")[0] not in ("torch", "fluxlike"):
        for name, part in (_own(x) or {}).items():
            yield f".{name}", part


def _as_now(x: Any) -> Any:
    kind = type(x)
    if kind is dict or kind is list or kind is tuple:
        return kind, tuple(x) if kind is dict else len(x)
    return set(x) if kind is set else bytes(x) if kind is bytearray else x


_MANY = 1000  # a list or a dict of more entries holds data, not models
_DEEP = 2  # so many objects in a row that are no nodes are gone through: a trainer, and what it holds


def within(x: Any, name: str, /) -> Iterator[Namespace]:
    """All that can be set in a value: entries of lists and dicts, attributes of layers and other objects."""
    seen: set[int] = set()

    def visit(x: Any, path: str, objects: int) -> Iterator[Namespace]:
        kind = type(x)
        if id(x) in seen:
            return
        seen.add(id(x))
        parts: dict[str, Any] = {}
        if issubclass(kind, (dict, list, tuple, deque)):
            if not issubclass(kind, tuple):
                yield Namespace(x, lambda key: (name, f"{path}{_entry(key)}"))
            if len(x) <= _MANY:
                entries = dict.copy(x) if issubclass(kind, dict) else dict(enumerate(x))
                parts = {_entry(key): part for key, part in entries.items()}
        elif spec_of(kind) is not None or objects:
            objects = _DEEP if spec_of(kind) is not None else objects - 1
            own = attributes(x, name, path)
            if own is not None:
                yield own
                parts = {f".{key}": part for key, part in (_own(x) or {}).items()}
        for step, part in parts.items():
            yield from visit(part, path + step, objects)

    yield from visit(x, "", _DEEP)


def _entry(key: Any) -> str:
    return f"[{key!r}]" if isinstance(key, (str, int)) else f"[a {type(key).__name__}]"


_Named = tuple[list[types.FunctionType], list[tuple[str, types.CellType]], set[str]]


def _named(f: Callable[..., Any]) -> _Named:
    """A function with those of its file that it names; their cells by name; the globals that they name."""
    first = _function(f)
    functions = [] if first is None else [first]
    cells: dict[int, tuple[str, types.CellType]] = {}
    names: set[str] = set()
    for g in functions:  # which grows meanwhile
        names |= set(_names(g.__code__))
        own = list(zip(g.__code__.co_freevars, g.__closure__ or (), strict=True))
        cells |= {id(cell): (name, cell) for name, cell in own if id(cell) not in cells}
        values = [cell.cell_contents for _, cell in own if filled(cell)]
        values += [g.__globals__[name] for name in _names(g.__code__) if name in g.__globals__]
        for value in values:
            if (
                type(value) is types.FunctionType
                and value.__globals__ is g.__globals__
                and not any(value is known for known in functions)
            ):
                functions.append(value)
    return functions, list(cells.values()), names


def _function(f: Any) -> types.FunctionType | None:
    """The function of Python that runs when something is called."""
    while not isinstance(f, types.FunctionType) or hasattr(f, "__wrapped__"):
        if isinstance(f, functools.partial):
            f = f.func
        elif inspect.ismethod(f):
            f = f.__func__
        elif hasattr(f, "__wrapped__"):
            f = f.__wrapped__
        else:
            f = inspect.getattr_static(type(f), "__call__", None)
            if not isinstance(f, types.FunctionType):
                return None
    return f


def _owner(f: Any) -> Any:
    """The object whose method is called; None where that is a tree, which is watched as one."""
    while isinstance(f, functools.partial) or (hasattr(f, "__wrapped__") and not inspect.ismethod(f)):
        f = f.func if isinstance(f, functools.partial) else f.__wrapped__
    if inspect.ismethod(f):
        return f.__self__
    return None if isinstance(f, types.FunctionType) or is_node(f) else f


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def filled(cell: types.CellType, /) -> bool:
    """Whether a cell of a closure has a value yet."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
