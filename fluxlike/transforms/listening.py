"""Listening to a model: which of its layers are called, with what, and what they return.

The model is rebuilt, with the same tensors, so that every place has an object of its own. While a listener
is at work, the classes of these objects have another ``__call__``, which reports the calls of these objects
in this context and passes all others on. Afterwards the classes are what they were.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import optree
from torch import Tensor

from fluxlike.advice import call_hint
from fluxlike.trees.constants import StandIn
from fluxlike.trees.found import found, written
from fluxlike.trees.functor import leaf, spec_of
from fluxlike.trees.paths import children
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Call", "Listener", "overheard", "require_model", "same_place"]


def require_model(model: Any, by: str, /) -> None:
    """Refuse what can't be called on inputs.

    Raises:
        TypeError: it names who asks.
    """
    if not callable(model) or isinstance(model, type):
        hint = call_hint(model) or f"; write {by}(model, x)"
        raise TypeError(f"{by} calls the model on the inputs, found {written(model, found(model))}{hint}")


class Call(NamedTuple):
    """The call of the layer at a path; `answer` makes it."""

    path: str
    layer: Any
    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def answer(self) -> Any:
        """What the layer returns."""
        return self.forward(*self.args, **self.kwargs)


class Listener:
    """Hears the calls of the layers of a model; `heard` says what it does about them.

    A layer is an object of a registered class, or a plain function that stands in a tuple, list or dict.
    """

    def __init__(self) -> None:
        self._places: dict[int, _Place] = {}  # by the id of the rebuilt layer
        self._classes: set[type] = set()

    def call(self, model: Callable[..., Any], /, *inputs: Any, **named: Any) -> Any:
        """Call a model, listening to its layers."""
        token = _listener.set(self)
        try:
            return self.rebuild(model)(*inputs, **named)
        finally:
            _listener.reset(token)
            while self._classes:
                _release(self._classes.pop())

    def heard(self, call: Call) -> Any:
        """Answer the call of a layer."""
        return call.answer()

    def rebuild(self, model: Any, path: str = "") -> Any:
        """The model that stands at a path, of the same tensors, with layers that report."""
        leaves, treedef = flatten(model)
        accessors, where = treedef.accessors(), structure_of(treedef).paths
        heard = [
            _Step(self, path + where[i], x) if _is_step(x, accessors[i]) else x for i, x in enumerate(leaves)
        ]
        rebuilt = treedef.unflatten(heard)
        self._listen(rebuilt, path)
        return rebuilt

    def _listen(self, node: Any, path: str) -> None:
        for step, child in children(node):
            self._listen(child, path + step.text)
        if callable(node) and not isinstance(node, type) and spec_of(type(node)) is not None:
            self.place(node, path)

    def place(self, layer: Any, path: str) -> None:
        """Hear the calls of one object as those of the layer at a path."""
        cls = next(base for base in type(layer).__mro__ if "__call__" in base.__dict__)
        if cls not in self._classes:
            _hold(cls)
            self._classes.add(cls)
        self._places[id(layer)] = _Place(path, layer, cls)

    def path_of(self, layer: Any, cls: type | None = None) -> str | None:
        """Where an object stands whose calls are heard, or those to the ``__call__`` of a class."""
        place = self._places.get(id(layer))
        return place.path if place is not None and cls in (None, place.cls) else None


class _Place(NamedTuple):
    """Where a layer stands; it is kept, so that its id stays taken, with the class whose call it has."""

    path: str
    layer: Any
    cls: type


def same_place(new: Any, old: Any, /) -> Any:
    """Say of a layer that it is called in place of another, of which it is a copy; give it back."""
    listener = _listener.get()
    path = None if listener is None else listener.path_of(old)
    if listener is not None and path is not None:
        listener.place(new, path)
    return new


def overheard(layer: Any, /) -> Callable[[Callable[..., Any]], Callable[..., Any]] | None:
    """What makes a function report its calls as those of a layer, or None where nobody hears the layer."""
    listener = _listener.get()
    path = None if listener is None else listener.path_of(layer)
    if listener is None or path is None:
        return None

    def report(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: listener.heard(Call(path, layer, forward, args, kwargs))

    return report


@leaf
class _Step(StandIn):
    """A plain function in the place of a layer, which tells its calls."""

    def __init__(self, listener: Listener, path: str, f: Any) -> None:
        f = f.meant if isinstance(f, _Step) else f
        super().__init__(f)
        functools.update_wrapper(self, f)
        self._listener, self._path = listener, path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _listener.get() is not self._listener:
            return self.meant(*args, **kwargs)
        return self._listener.heard(Call(self._path, self.meant, self.meant, args, kwargs))


_listener: ContextVar[Listener | None] = ContextVar("fluxlike_listener", default=None)


def _is_step(x: Any, accessor: optree.PyTreeAccessor) -> bool:
    """Whether a leaf is a function in a container of layers, rather than a layer's own attribute."""
    return (
        callable(x)
        and not isinstance(x, (type, Tensor))
        and len(accessor) > 0
        and spec_of(accessor[-1].type) is None
    )


class _Held:
    """A class whose calls are reported, and by how many listeners."""

    def __init__(self, cls: type) -> None:
        self.plain, self.listeners = cls.__dict__["__call__"], 0
        self.reporting = _reporting(cls, self.plain)


_held: dict[type, _Held] = {}
_lock = threading.Lock()


def _hold(cls: type) -> None:
    """Have the calls of a class reported, for one listener more."""
    with _lock:
        held = _held.get(cls)
        if held is None:
            held = _Held(cls)
            try:
                type.__setattr__(cls, "__call__", held.reporting)
            except TypeError as error:
                raise TypeError(
                    f"fluxlike listens to a {cls.__qualname__} through its __call__, and the class can't be "
                    f"changed: {error}"
                ) from error
            _held[cls] = held
        held.listeners += 1


def _release(cls: type) -> None:
    """Make a class what it was, if no other listener hears its calls."""
    with _lock:
        held = _held[cls]
        held.listeners -= 1
        if not held.listeners:
            del _held[cls]
            if cls.__dict__.get("__call__") is held.reporting:  # else somebody else has changed it
                type.__setattr__(cls, "__call__", held.plain)


def _reporting(cls: type, plain: Any) -> Callable[..., Any]:
    """What stands for the ``__call__`` of a class: a function, or any descriptor or callable."""
    bind = getattr(type(plain), "__get__", None)

    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        forward = plain if bind is None else bind(plain, self, type(self))
        listener = _listener.get()
        path = None if listener is None else listener.path_of(self, cls)
        if listener is None or path is None:  # also of a copy that the model made, and super().__call__
            return forward(*args, **kwargs)
        return listener.heard(Call(path, self, forward, args, kwargs))

    return functools.update_wrapper(call, plain)
