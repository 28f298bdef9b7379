"""`activations`: the output of every layer in one call of a model.

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

from fluxlike._private import functorch, levels
from fluxlike.trees.functor import NAMESPACE, leaf, spec_of
from fluxlike.trees.paths import children
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["activations"]


def activations(model: Callable[..., Any], /, *inputs: Any) -> dict[str, Any]:
    """Call a model and return the output of every layer by path.

    A layer is an object of a registered class that the forward pass calls; methods other than
    ``__call__`` are not looked at. A plain function is one where it stands in a tuple, list or dict
    of layers, as a step of a Chain does. Outputs stay differentiable, so they may be part of a loss.
    The mode is that of the scope: test mode, unless a gradient or ``with mode("train")`` surrounds it.

    Args:
        model: a model that can be called.
        inputs: what it is called with.

    Returns:
        From path to output, in the order of the calls; the model's own output stands under ``""``.
        A layer called again has its later outputs under ``".cell (call 2)"`` and so on. What was
        called under a ``vmap`` inside the model is there as a whole, the mapped axis first. A copy
        that the model itself makes of a layer (a cast, a stack of layers) is not listened to.

    Raises:
        TypeError: the model can't be called, or a class of a layer can't have subclasses.
        ValueError: an output was changed in place after its layer had returned it.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.Chain(fl.Dense(3, 4), fl.relu, fl.Dense(4, 2))
        >>> for path, y in fl.activations(model, torch.ones(5, 3)).items():
        ...     print(repr(path), tuple(y.shape))
        '' (5, 2)
        '.layers[0]' (5, 4)
        '.layers[1]' (5, 4)
        '.layers[2]' (5, 2)
    """
    if not callable(model) or isinstance(model, type):
        raise TypeError(
            f"activations calls the model on the inputs, found {model!r}, which is no model; write "
            "activations(model, x)"
        )
    listener = _Listener()
    token = _listener.set(listener)
    try:
        listener.rebuild(model)(*inputs)
    finally:
        _listener.reset(token)
    listener.check_unchanged()
    return listener.outputs


class _Listener:
    """Notes what the layers of one rebuilt model return."""

    def __init__(self) -> None:
        self.outputs: dict[str, Any] = {}
        self._level = functorch.level()
        self._calls: dict[str, int] = {}
        self._paths: dict[int, str] = {}  # by the id of the rebuilt layer
        self._versions: list[tuple[str, Tensor, int]] = []

    def rebuild(self, model: Any) -> Any:
        """The model, of the same tensors, with layers that report."""
        leaves, treedef = flatten(model)
        accessors, where = treedef.accessors(), structure_of(treedef).paths
        heard = [_Step(where[i], x) if _is_step(x, accessors[i]) else x for i, x in enumerate(leaves)]
        self._model = treedef.unflatten(heard)  # kept, so that its ids stay taken
        self._listen(self._model, "")
        return self._model

    def _listen(self, node: Any, path: str) -> None:
        for step, child in children(node):
            self._listen(child, path + step.text)
        cls = type(node)
        if callable(node) and not isinstance(node, type) and spec_of(cls) is not None:
            self._paths[id(node)] = path
            object.__setattr__(node, "__class__", _reporting(cls))

    def call(self, layer: Any, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a layer and note its output, if it is one of this model."""
        path = self._paths.get(id(layer))
        if path is None:  # a copy that the model made of its layer
            return plain(layer, *args, **kwargs)
        return self.note(path, plain, (layer, *args), kwargs)

    def note(self, path: str, f: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a function and note its output under a path."""
        count = self._calls[path] = self._calls.get(path, 0) + 1
        name = path if count == 1 else f"{path} (call {count})"
        self.outputs[name] = None  # holds the place in the order of the calls
        y = f(*args, **kwargs)
        self.outputs[name] = optree.tree_map(
            functools.partial(self._note, name), y, none_is_leaf=True, namespace=NAMESPACE
        )
        return y

    def _note(self, name: str, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if not x.is_inference():  # of those, nobody counts the changes
            self._versions.append((name, x, x._version))
        return levels.outside(x, self._level)

    def check_unchanged(self) -> None:
        """Raise where an output is not what the layer returned any more."""
        for name, x, version in self._versions:
            if x._version != version:
                raise ValueError(
                    f"the output of {name or 'the model'} was changed in place after it was returned, so it "
                    "can't be shown; write h = h + x, not h += x, and relu(h), not relu_(h), in the model"
                )


@leaf
class _Step:
    """A plain function in the place of a layer, which tells its output; equal where the functions are."""

    def __init__(self, path: str, f: Callable[..., Any]) -> None:
        functools.update_wrapper(self, f)
        self._path, self._f = path, f

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        listener = _listener.get()
        if listener is None:
            return self._f(*args, **kwargs)
        return listener.note(self._path, self._f, args, kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Step) and bool(self._f == other._f)

    def __hash__(self) -> int:
        return hash(self._f)


_listener: ContextVar[_Listener | None] = ContextVar("fluxlike_listener", default=None)


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
        return listener.call(self, plain, args, kwargs)

    same = {"__slots__": (), "__call__": call, "__module__": cls.__module__, "__doc__": cls.__doc__}
    try:
        made: type = type(cls)(cls.__name__, (cls,), same)
    except TypeError as error:
        raise TypeError(
            f"activations listens to a {cls.__qualname__} through a subclass, which it refuses: {error}"
        ) from error
    made.__qualname__ = cls.__qualname__
    return made
