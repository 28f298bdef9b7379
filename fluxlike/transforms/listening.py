"""Listening to a model: which of its layers are called, with what, and what they return.

The model is rebuilt, with the same tensors, so that each of its objects is of a subclass made on the
fly whose ``__call__`` reports to the listener of this thread. Nothing that others hold is touched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import optree
from torch import Tensor

from fluxlike.trees.functor import leaf, spec_of
from fluxlike.trees.paths import children
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Listener", "require_model"]


def require_model(model: Any, by: str, /) -> None:
    """Refuse what can't be called on inputs.

    Raises:
        TypeError: it names who asks.
    """
    if not callable(model) or isinstance(model, type):
        raise TypeError(
            f"{by} calls the model on the inputs, found {model!r}, which is no model; write {by}(model, x)"
        )


class Listener:
    """Hears the calls of the layers of a model; `heard` says what it does about them.

    A layer is an object of a registered class, or a plain function that stands in a tuple, list or dict.
    """

    def __init__(self) -> None:
        self._paths: dict[int, str] = {}  # by the id of the rebuilt layer
        self._kept: list[Any] = []  # the rebuilt models, so that their ids stay taken

    def call(self, model: Callable[..., Any], /, *inputs: Any) -> Any:
        """Call a model, listening to its layers."""
        token = _listener.set(self)
        try:
            return self.rebuild(model)(*inputs)
        finally:
            _listener.reset(token)

    def heard(
        self,
        path: str,
        layer: Any,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Answer the call of the layer at a path: by ``forward(*args, **kwargs)``, the call itself."""
        return forward(*args, **kwargs)

    def rebuild(self, model: Any, path: str = "") -> Any:
        """The model that stands at a path, of the same tensors, with layers that report."""
        leaves, treedef = flatten(model)
        accessors, where = treedef.accessors(), structure_of(treedef).paths
        heard = [_Step(path + where[i], x) if _is_step(x, accessors[i]) else x for i, x in enumerate(leaves)]
        rebuilt = treedef.unflatten(heard)
        self._kept.append(rebuilt)
        self._listen(rebuilt, path)
        return rebuilt

    def _listen(self, node: Any, path: str) -> None:
        for step, child in children(node):
            self._listen(child, path + step.text)
        cls = type(node)
        if callable(node) and not isinstance(node, type) and spec_of(cls) is not None:
            self._paths[id(node)] = path
            object.__setattr__(node, "__class__", _reporting(cls))

    def report(self, layer: Any, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Pass a call on to `heard`, if it is that of a layer of this model."""
        path = self._paths.get(id(layer))
        if path is None:  # a copy that the model made of its layer
            return plain(layer, *args, **kwargs)
        return self.heard(path, layer, functools.partial(plain, layer), args, kwargs)


@leaf
class _Step:
    """A plain function in the place of a layer, which tells its calls; equal where the functions are."""

    def __init__(self, path: str, f: Callable[..., Any]) -> None:
        functools.update_wrapper(self, f)
        self._path, self._f = path, f

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        listener = _listener.get()
        if listener is None:
            return self._f(*args, **kwargs)
        return listener.heard(self._path, self._f, self._f, args, kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Step) and bool(self._f == other._f)

    def __hash__(self) -> int:
        return hash(self._f)


_listener: ContextVar[Listener | None] = ContextVar("fluxlike_listener", default=None)


def _is_step(x: Any, accessor: optree.PyTreeAccessor) -> bool:
    """Whether a leaf is a function in a container of layers, rather than a layer's own attribute."""
    return (
        callable(x)
        and not isinstance(x, (type, Tensor))
        and len(accessor) > 0
        and spec_of(accessor[-1].type) is None
    )


_made: dict[type, type] = {}  # the reporting class of each class, and of itself


def _reporting(cls: type) -> type:
    """The subclass of a layer's class whose calls are reported, and which is else the same."""
    if cls not in _made:
        made = _subclass(cls)
        _made[cls] = _made[made] = made
    return _made[cls]


def _subclass(cls: Any) -> type:
    plain: Callable[..., Any] = cls.__call__

    @functools.wraps(plain)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        listener = _listener.get()
        if listener is None:
            return plain(self, *args, **kwargs)
        return listener.report(self, plain, args, kwargs)

    same = {"__slots__": (), "__call__": call, "__module__": cls.__module__, "__doc__": cls.__doc__}
    try:
        made: type = type(cls)(cls.__name__, (cls,), same)
    except TypeError as error:
        raise TypeError(
            f"fluxlike listens to a {cls.__qualname__} through a subclass, which it refuses: {error}"
        ) from error
    made.__qualname__ = cls.__qualname__
    spec_of(made)  # a layer inside may be taken apart before it is flattened as a whole
    return made
