"""`activations`: the output of every layer in one call of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optree
from torch import Tensor
from torch.autograd import Function

from fluxlike._private import functorch, levels, tracing
from fluxlike._private.lazy_clone import lazy_clone, shared_until_written
from fluxlike.transforms.listening import Call, Listener, require_model
from fluxlike.trees.functor import NAMESPACE
from fluxlike.trees.structure import flatten

__all__ = ["activations", "leaves_of_output"]


def activations(model: Callable[..., Any], /, *inputs: Any, **named: Any) -> dict[str, Any]:
    """Call a model and return the output of every layer by path.

    A layer is an object of a registered class that the forward pass calls; methods other than
    ``__call__`` are not looked at. A plain function is one where it stands in a tuple, list or dict
    of layers, as a step of a Chain does. Outputs stay differentiable, so they may be part of a loss.
    The mode is that of the scope: test mode, unless a gradient or ``with mode("train")`` surrounds it.

    Args:
        model: a model that can be called.
        inputs: what it is called with.
        named: the same, by name.

    Returns:
        From path to output, in the order of the calls; the model's own output stands under ``""``.
        A layer called again has its later outputs under ``".cell (call 2)"`` and so on. What was
        called under a ``vmap`` inside the model is there as a whole, the mapped axis first. A copy
        that the model itself makes of a layer (a cast, a stack of layers) is not listened to, nor is
        what it calls in a `jit` of its own. An output that is changed in place later, as by a ReLU of
        torch that works in place, is there as its layer returned it.

    Raises:
        TypeError: the model can't be called, or the class of a layer can't be changed, as one made in C.

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
    require_model(model, "activations")
    listener = _Outputs()
    listener.call(model, *inputs, **named)
    return listener.outputs()


def leaves_of_output(y: Any, /) -> tuple[list[Any], optree.PyTreeSpec]:
    """What a layer returned, apart; an object that is no tree, such as a cache of transformers, is a leaf."""
    try:
        return flatten(y)
    except TypeError:
        return optree.tree_flatten(y, none_is_leaf=True, namespace=NAMESPACE)


class _Outputs(Listener):
    """Notes what the layers of one model return."""

    def __init__(self) -> None:
        super().__init__()
        self._level, self._depth = functorch.level(), tracing.depth()
        self._calls: dict[str, int] = {}
        self._noted: dict[str, tuple[list[Any], Any]] = {}

    def heard(self, call: Call) -> Any:
        if tracing.depth() > self._depth:  # what a trace inside the model sees are no outputs
            return call.answer()
        count = self._calls[call.path] = self._calls.get(call.path, 0) + 1
        name = call.path if count == 1 else f"{call.path} (call {count})"
        self._noted[name] = [], None  # holds the place in the order of the calls
        y = call.answer()
        leaves, treedef = leaves_of_output(y)
        self._noted[name] = [self._note(x) for x in leaves], treedef
        return y

    def _note(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if functorch.in_forward_mode():
            return levels.outside(x.clone(), self._level)
        return _Differentiable(x, x._version, _copy(x)) if x.requires_grad else lazy_clone(x)

    def outputs(self) -> dict[str, Any]:
        """The outputs by path, as the layers returned them."""
        return {
            name: None if treedef is None else treedef.unflatten(map(_as_returned, leaves))
            for name, (leaves, treedef) in self._noted.items()
        }


class _Differentiable(NamedTuple):
    """An output with a graph, its version when it was returned, and a copy for where it changed since."""

    x: Tensor
    version: int
    copy: Tensor


def _as_returned(x: Any) -> Any:
    """An output itself, of which derivatives can be taken too, unless it was changed in place."""
    if not isinstance(x, _Differentiable):
        return x
    return x.x if x.x._version == x.version else x.copy


def _copy(x: Tensor) -> Tensor:
    """A copy with the graph of a tensor, in its memory until somebody writes."""
    shared = shared_until_written(x)
    return x.clone() if shared is None else _Copy.apply(x, shared)


class _Copy(Function):
    """The graph of one tensor for the content of another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, copy: Tensor) -> Tensor:
        return copy.detach()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy, None
