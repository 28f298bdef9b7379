"""`activations`: the output of every layer in one call of a model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import optree
from torch import Tensor

from fluxlike._private import functorch, levels, tracing
from fluxlike.transforms.listening import Call, Listener, require_model
from fluxlike.trees.functor import NAMESPACE

__all__ = ["activations"]


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
        what it calls in a `jit` of its own.

    Raises:
        TypeError: the model can't be called, or the class of a layer can't be changed, as one made in C.
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
    require_model(model, "activations")
    listener = _Outputs()
    listener.call(model, *inputs, **named)
    listener.check_unchanged()
    return listener.outputs


class _Outputs(Listener):
    """Notes what the layers of one model return."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, Any] = {}
        self._level, self._depth = functorch.level(), tracing.depth()
        self._calls: dict[str, int] = {}
        self._versions: list[tuple[str, Tensor, int]] = []

    def heard(self, call: Call) -> Any:
        if tracing.depth() > self._depth:  # what a trace inside the model sees are no outputs
            return call.answer()
        count = self._calls[call.path] = self._calls.get(call.path, 0) + 1
        name = call.path if count == 1 else f"{call.path} (call {count})"
        self.outputs[name] = None  # holds the place in the order of the calls
        y = call.answer()
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
