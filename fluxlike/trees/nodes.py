"""Nodes: how an object of a registered class is taken apart, and rebuilt without its constructor."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, NamedTuple

import optree
from torch import Tensor

from fluxlike.trees.constants import same_constant

__all__ = [
    "NAMESPACE",
    "PIN",
    "TENSORS_RIDE",
    "Riding",
    "Spec",
    "Static",
    "adds_attributes",
    "as_now",
    "declared",
    "flattener",
    "rebuilder",
    "require_names",
    "riding",
    "slots",
]

#: The name under which optree knows our nodes.
NAMESPACE = "fluxlike"

#: The attribute in which `trainmode` and `testmode` keep a node's pinned mode. It rides along
#: with the node, is never a child, and two trees that differ only in it have equal treedefs.
PIN = "_pinned_mode"


class Spec(NamedTuple):
    """What was said when a class was registered: names, or None for 'every attribute'."""

    children: tuple[str, ...] | None = None
    trainable: tuple[str, ...] | None = None
    buffers: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    riding: tuple[str, ...] = ()  # what is no child where every other attribute is one

    def trains(self, name: str) -> bool:
        """Whether parameters below the child `name` are trainable."""
        if self.trainable is not None:
            return name in self.trainable
        return name not in self.buffers

    def has_scalars(self, name: str) -> bool:
        """Whether floats in the attribute `name` are inputs: not traced into a graph, but stacked."""
        return name in self.scalars


def require_names(cls: type, option: str, names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise unless the names given as `option` are all among the known ones."""
    known = tuple(known)
    missing = [n for n in names if n not in known]
    if missing:
        raise ValueError(
            f"functor({cls.__qualname__}): {option}= names {missing[0]!r}, which is not among "
            f"{where}: {', '.join(known) or 'none'}"
        )


def slots(cls: type, /) -> tuple[str, ...]:
    """Every slot of the class, parents first, under the name that getattr takes."""
    names = []
    for base in reversed(cls.__mro__):
        own = base.__dict__.get("__slots__", ())
        for name in (own,) if isinstance(own, str) else own:
            if name in ("__dict__", "__weakref__", PIN):
                continue
            hidden = name.startswith("__") and not name.endswith("__")
            names.append(f"_{base.__name__.lstrip('_')}{name}" if hidden else name)
    return tuple(dict.fromkeys(names))


def _has_dict(cls: type) -> bool:
    return any("__dict__" in base.__dict__ for base in cls.__mro__)


def declared(cls: type) -> tuple[str, ...] | None:
    """The attributes of a class whose definition lists them all, else None."""
    if dataclasses.is_dataclass(cls):
        return tuple(f.name for f in dataclasses.fields(cls))
    attrs_fields = getattr(cls, "__attrs_attrs__", None)
    if attrs_fields is not None:
        return tuple(f.name for f in attrs_fields)
    return None if _has_dict(cls) else slots(cls)


def adds_attributes(cls: type) -> bool:
    """Whether a dataclass or attrs class may set attributes that are not among its fields."""
    return any(hasattr(cls, name) for name in ("__post_init__", "__attrs_post_init__"))


class Riding:
    """The attributes of one node that are not children: equal by value, ignoring a pinned mode."""

    __slots__ = ("_compared", "values")

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        # What is compared later on is what is there now: a dict may be changed in the meantime.
        changing = any(type(v) in _CHANGING for v in values.values())
        self._compared = {k: as_now(v) for k, v in values.items()} if changing else values

    @property
    def changes(self) -> bool:
        """Whether a value is a container that may be changed, and may hold anything."""
        return self._compared is not self.values

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Riding):
            return NotImplemented
        mine = {k: v for k, v in self._compared.items() if k != PIN}
        theirs = {k: v for k, v in other._compared.items() if k != PIN}
        return mine.keys() == theirs.keys() and all(same_constant(v, theirs[k]) for k, v in mine.items())

    def __hash__(self) -> int:
        return hash(tuple(k for k in self.values if k != PIN))

    def __repr__(self) -> str:
        return f"Riding({self.values!r})"


_CHANGING = frozenset((dict, list, set, bytearray))


def as_now(x: Any) -> Any:
    """A container as it is now, and what it holds."""
    if type(x) is dict:
        return {k: as_now(v) for k, v in x.items()}
    return type(x)(map(as_now, x)) if type(x) in (list, set) else bytearray(x) if type(x) is bytearray else x


def _holds_tensor(x: Any) -> bool:
    """Whether what rides along is a tensor, or a list, set or dict of some; tuples are settings."""
    if type(x) in (dict, list, set):
        return any(map(_holds_tensor, x.values() if type(x) is dict else x))
    return isinstance(x, Tensor)


_NOTHING = Riding({})

#: Classes of which an object had a tensor that rides along: no cache may keep their treedefs.
TENSORS_RIDE: set[type] = set()


# What optree keeps for a node: the names of its children, and the attributes that ride along.
Static = tuple[tuple[str, ...], Riding]
Flatten = Callable[[Any], tuple[tuple[Any, ...], Static, tuple[str, ...]]]


def flattener(cls: type, spec: Spec, *, inherited: bool = False) -> Flatten:
    """Build ``flatten(node)`` → (children, static, names); what is read of the class, is read once."""
    # Which attributes an object has may differ between objects of one class; each set of them is
    # analysed once: how to read the children, their names, the names that ride along.
    layouts: dict[tuple[str, ...], tuple[Callable[[Any], Any], tuple[str, ...], tuple[str, ...], Static]] = {}
    fixed = slots(cls)
    # One order for all objects of a class, whichever attribute each happened to get first.
    order: dict[str, int] = {name: i for i, name in enumerate(declared(cls) or ())}

    def ride(attributes: dict[str, Any], names: tuple[str, ...]) -> Riding:
        values = {n: attributes[n] for n in names}
        if cls not in TENSORS_RIDE and any(isinstance(v, Tensor) for v in values.values()):
            TENSORS_RIDE.add(cls)
        rest = Riding(values)
        if rest.changes and cls not in TENSORS_RIDE and any(map(_holds_tensor, values.values())):
            TENSORS_RIDE.add(cls)
        return rest

    def analyse(present: tuple[str, ...], attributes: dict[str, Any]) -> tuple[Any, ...]:
        names = [
            n
            for n in present
            if not (n.startswith("__") and n.endswith("__"))  # typing's, such as __orig_class__
            and not isinstance(_class_attribute(cls, n), functools.cached_property)
        ]
        names.sort(key=lambda n: order.setdefault(n, len(order)))
        chosen = spec.children
        if chosen is None:
            chosen = tuple(n for n in names if n != PIN and n not in spec.riding)
        for option in ("children", "trainable", "buffers", "scalars"):
            require_names(cls, option, getattr(spec, option) or (), names, "the attributes of this object")
        rides = tuple(n for n in names if n not in chosen)
        if inherited:
            _check_inherited(cls, {n: attributes[n] for n in rides}, chosen)
        layouts[present] = _reader(chosen), chosen, rides, (chosen, _NOTHING)
        return layouts[present]

    def flatten_dict(node: Any) -> tuple[tuple[Any, ...], Static, tuple[str, ...]]:
        attributes = node.__dict__
        present = tuple(attributes)
        layout = layouts.get(present)
        read, names, rides, static = layout if layout is not None else analyse(present, attributes)
        if rides:
            static = (names, ride(attributes, rides))
        return read(attributes), static, names

    def flatten_slots(node: Any) -> tuple[tuple[Any, ...], Static, tuple[str, ...]]:
        attributes = {n: getattr(node, n) for n in fixed if hasattr(node, n)}
        attributes.update(getattr(node, "__dict__", ()))
        if hasattr(node, PIN):
            attributes[PIN] = getattr(node, PIN)
        present = tuple(attributes)
        layout = layouts.get(present)
        read, names, rides, static = layout if layout is not None else analyse(present, attributes)
        if rides:
            static = (names, ride(attributes, rides))
        return read(attributes), static, names

    return flatten_slots if fixed else flatten_dict


def riding(node: Any) -> dict[str, Any]:
    """The attributes of an object of a registered class that are not children, a pinned mode among them."""
    registered: Any = optree.register_pytree_node.get(type(node), namespace=NAMESPACE)
    static: Static = registered.flatten_func(node)[1]
    return static[1].values


def _check_inherited(cls: type, riding: dict[str, Any], children: tuple[str, ...]) -> None:
    """Refuse to leave the tensors of a subclass out of the tree because its parent chose children."""
    for name, value in riding.items():
        if isinstance(value, Tensor):
            raise TypeError(
                f"{cls.__qualname__}.{name} is a tensor, but not among children={children!r}, which "
                f"{cls.__qualname__} has from its parent; put @fluxlike.functor(children=…) above "
                f"{cls.__qualname__} to say which attributes take part"
            )


def _reader(names: tuple[str, ...]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """A function from attributes to the tuple of those named."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda attributes: tuple(attributes[name] for name in names)


def _class_attribute(cls: type, name: str) -> Any:
    for base in cls.__mro__:
        if name in base.__dict__:
            return base.__dict__[name]
    return None


def rebuilder(cls: type) -> Callable[[Static, Iterable[Any]], Any]:
    """Build ``unflatten(static, children)`` → node, which calls no code of the class."""
    new, assign = object.__new__, object.__setattr__

    def rebuild_dict(static: Static, children: Iterable[Any]) -> Any:
        node: Any = new(cls)
        names, riding = static
        attributes = node.__dict__
        attributes.update(zip(names, children, strict=True))
        if riding is not _NOTHING:
            attributes.update(riding.values)
        return node

    def rebuild_slots(static: Static, children: Iterable[Any]) -> Any:
        node: Any = new(cls)
        names, riding = static
        for name, value in zip(names, children, strict=True):
            assign(node, name, value)
        for name, value in riding.values.items():
            assign(node, name, value)
        return node

    return rebuild_slots if slots(cls) else rebuild_dict
