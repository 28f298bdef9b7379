"""Registration: which classes are nodes of a tree, and what their children are."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast, overload

import optree
import torch

from fluxlike._private import pytree
from fluxlike.trees.nodes import (
    NAMESPACE,
    PIN,
    Spec,
    adds_attributes,
    declared,
    flattener,
    rebuilder,
    require_names,
)

__all__ = [
    "NAMESPACE", "PIN", "Spec", "default_scalars", "functor", "is_leaf_class", "is_plain_class", "kinds_of",
    "leaf", "on_register", "register", "spec_of",
]  # fmt: skip

C = TypeVar("C", bound=type)
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: set on every class written in Python

#: What floors above know of classes that say nothing of `scalars`: functions from a class to the names
#: of its attributes whose floats are inputs.
default_scalars: list[Callable[[type], Sequence[str]]] = []

_specs: dict[type, Spec] = {}
_leaf_classes: set[type] = set()
_kinds: dict[type, tuple[type, ...]] = {}
_lock = threading.RLock()


def spec_of(cls: type, /) -> Spec | None:
    """The registration of `cls`.

    On first sight, a subclass of a functor is registered like its parent, and a dataclass whole.
    """
    spec = _specs.get(cls)
    if spec is not None or is_leaf_class(cls):
        return spec
    for parent in cls.__mro__[1:]:
        if parent in _specs:
            with _lock:
                if cls not in _specs:
                    register(cls, _specs[parent], inherited=True)
            return _specs[cls]
    if dataclasses.is_dataclass(cls) and is_plain_class(cls):
        functor(cls)
        return _specs[cls]
    return None


def kinds_of(cls: type, /) -> tuple[type, ...]:
    """The classes whose entry in a table counts for a class, the nearest first."""
    others = (kind for base in cls.__mro__ for kind in _kinds.get(base, ()))
    return (*cls.__mro__, *others)


def is_leaf_class(cls: type, /) -> bool:
    """Whether `leaf` was said of `cls` or of a class it inherits from, nearer than a functor."""
    for ancestor in cls.__mro__:
        if ancestor in _leaf_classes:
            return True
        if ancestor in _specs:
            return False
    return False


@overload
def functor(cls: C, /) -> C: ...
@overload
def functor(
    cls: C,
    /,
    *,
    children: Sequence[str] | None = ...,
    trainable: Sequence[str] | None = ...,
    buffers: Sequence[str] | None = ...,
    scalars: Sequence[str] | None = ...,
) -> C: ...
@overload
def functor(
    *,
    children: Sequence[str] | None = ...,
    trainable: Sequence[str] | None = ...,
    buffers: Sequence[str] | None = ...,
    scalars: Sequence[str] | None = ...,
) -> Callable[[C], C]: ...


def functor(
    cls: Any = None,
    /,
    *,
    children: Sequence[str] | None = None,
    trainable: Sequence[str] | None = None,
    buffers: Sequence[str] | None = None,
    scalars: Sequence[str] | None = None,
) -> Any:
    """Register a class, so that its objects are nodes of a tree of parameters.

    Works on dataclasses (frozen too), `attrs` classes, classes with ``__slots__`` and plain
    classes, as a decorator or as a call on a class that is not yours. Objects are rebuilt
    without calling ``__init__``, ``__new__`` or ``__post_init__``; cached properties are dropped,
    so they are computed anew. A subclass is registered like its parent on first sight.

    Args:
        cls: the class.
        children: the attributes that are part of the tree; the others ride along unchanged.
            (default: every attribute)
        trainable: the children below which tensors are trained; those below the others are
            buffers. (default: all)
        buffers: the children below which tensors are not trained. Say this or `trainable`.
        scalars: the children whose floats are inputs: `jit` does not trace anew where one changes, and
            `stack` stacks them. It may be a float, or a tuple, list or dict of floats; an object of
            another registered class inside says itself which of its floats are. (default: none; of an
            optimiser's rule, every hyperparameter)

    Returns:
        The class itself, or a decorator where `cls` is left out.

    Raises:
        TypeError: `cls` is not a class, is a ``torch.nn.Module``, or has a built-in base that
            can't be rebuilt without its constructor.
        ValueError: a name that the class does not have, or a class registered differently before.

    Example:
        >>> import torch, fluxlike as fl
        >>> @fl.functor
        ... class Affine:
        ...     def __init__(self, n):
        ...         self.scale, self.shift = torch.ones(n), torch.zeros(n)
        ...     def __call__(self, x):
        ...         return self.scale * x + self.shift
        >>> fl.gradient(lambda m, x: m(x).sum(), Affine(2), torch.tensor([3.0, 4.0])).scale
        tensor([3., 4.])
    """
    if cls is None:
        return functools.partial(
            functor, children=children, trainable=trainable, buffers=buffers, scalars=scalars
        )
    if not isinstance(cls, type):
        raise TypeError(
            f"functor takes a class, found {cls!r} of type {type(cls).__name__}; write functor(TheClass) or "
            "@functor above its definition"
        )
    if trainable is not None and buffers is not None:
        raise ValueError(
            f"functor({cls.__qualname__}): give trainable= or buffers=, not both: what one does not name is "
            "the other"
        )
    spec = Spec(
        _names(cls, "children", children),
        _names(cls, "trainable", trainable),
        _names(cls, "buffers", buffers) or (),
        _default_scalars(cls, children) if scalars is None else _names(cls, "scalars", scalars) or (),
    )
    if spec.children is not None:
        for option in ("trainable", "buffers", "scalars"):
            require_names(cls, option, getattr(spec, option) or (), spec.children, "its children=")
    _check_class(cls, spec)
    with _lock:
        known = _specs.get(cls)
        if known is None:
            register(cls, spec)
        elif known != spec:
            raise ValueError(
                f"{cls.__qualname__} is registered already, as {_say(known)}, and now as "
                f"{_say(spec)}; register a class once, before its first use (a subclass that was "
                "used before its own registration counts as registered like its parent)"
            )
    return cls


def leaf(cls: C, /) -> C:
    """Make the objects of a class leaves: trees hold them whole, and never look inside.

    Args:
        cls: the class; its subclasses are leaves too, unless registered with `functor`.

    Returns:
        The class itself, so that it can be used as a decorator.

    Raises:
        ValueError: the class is a functor already.
        TypeError: `cls` is not a class, or optree knows it as a container.

    Example:
        >>> import fluxlike as fl
        >>> @fl.leaf
        ... class Vocabulary:
        ...     def __init__(self, words):
        ...         self.words = words
        >>> fl.children(Vocabulary(["a", "b"]))
        {}
    """
    if not isinstance(cls, type):
        raise TypeError(f"leaf takes a class, found {cls!r}")
    if cls in _specs:
        raise ValueError(f"{cls.__qualname__} is a functor already; a class is a node or a leaf")
    known = optree.register_pytree_node.get(cls, namespace=NAMESPACE)
    if known is not None or optree.is_namedtuple_class(cls):
        raise TypeError(
            f"{cls.__qualname__} is a container that trees look into; wrap it in a class of your own"
        )
    with _lock:
        _leaf_classes.add(cls)
    return cls


def _names(cls: type, option: str, names: Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str):
        raise ValueError(
            f"functor({cls.__qualname__}): {option}={names!r} is one string; write {option}=({names!r},)"
        )
    return tuple(names)


def _default_scalars(cls: type, children: Sequence[str] | None) -> tuple[str, ...]:
    """The attributes that a floor above knows to hold scalars, where the class itself says nothing."""
    known = dict.fromkeys(name for say in default_scalars for name in say(cls))
    return tuple(name for name in known if children is None or name in children)


def _say(spec: Spec) -> str:
    said = [f"{k}={v!r}" for k, v in spec._asdict().items() if v]
    return f"functor({', '.join(said)})"


def is_plain_class(cls: type, /) -> bool:
    """Whether the content of objects is in their attributes."""
    return not issubclass(cls, (torch.nn.Module, torch.Tensor)) and not _builtin_bases(cls)


def _builtin_bases(cls: type) -> list[type]:
    return [b for b in cls.__mro__ if b is not object and not b.__flags__ & _HEAP_TYPE]


def _check_class(cls: type, spec: Spec) -> None:
    if issubclass(cls, torch.nn.Module):
        raise TypeError(
            f"{cls.__qualname__} is a torch.nn.Module, which keeps parameters, modes and hooks in "
            "itself and can't be a plain tree; write fluxlike.from_torch(module), whose result is one"
        )
    builtin = _builtin_bases(cls)
    if builtin or issubclass(cls, torch.Tensor):
        name = builtin[0].__name__ if builtin else "Tensor"
        hint = (
            "; a named tuple is a node already, without registration"
            if optree.is_namedtuple_class(cls)
            else "; hold it in an attribute instead"
        )
        raise TypeError(f"{cls.__qualname__} inherits from {name}, whose content is not in attributes{hint}")
    attributes = declared(cls)
    if attributes is not None and not adds_attributes(cls):
        for option in ("children", "trainable", "buffers", "scalars"):
            require_names(cls, option, getattr(spec, option) or (), attributes, "its attributes")


def register(cls: type, spec: Spec, /, *, inherited: bool = False, answers_to: Sequence[type] = ()) -> None:
    """Make the objects of a class nodes, without the checks of `functor`.

    Args:
        cls: the class.
        spec: what its children are.
        inherited: whether the registration is that of a parent. (default: False)
        answers_to: other classes whose place its objects take, the nearest first: what is said of these
            in tables by class counts for them. (default: none)
    """
    with _lock:
        if cls in _specs:
            return
        flatten, rebuild = flattener(cls, spec, inherited=inherited), rebuilder(cls)
        optree.register_pytree_node(
            cls, flatten, cast(Any, rebuild), path_entry_type=_Attribute, namespace=NAMESPACE
        )
        pytree.register(cls, flatten, rebuild)
        _specs[cls] = spec
        _kinds[cls] = tuple(answers_to)
        for hook in _hooks:
            hook(cls)


class _Attribute(optree.GetAttrEntry):
    """The step to an attribute, which need not be an identifier: ``[0]`` in a torch module's children."""

    def codify(self, node: str = "") -> str:
        name = self.entry
        if name.isidentifier():
            return f"{node}.{name}"
        return f"{node}[{name}]" if name.isdecimal() else f"{node}[{name!r}]"


_hooks: list[Callable[[type], None]] = []


def on_register(hook: Callable[[type], None], /) -> None:
    """Call a function with each class that is, or will be, registered."""
    with _lock:
        _hooks.append(hook)
        for cls in _specs:
            hook(cls)
