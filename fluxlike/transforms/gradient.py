"""`gradient` and `withgradient`: reverse mode on trees."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import optree
from torch import Tensor

from fluxlike.advice import teaching_function
from fluxlike.scope import assigned, mode
from fluxlike.scope.key import Key
from fluxlike.scope.seeded import Draws, enter, leave
from fluxlike.transforms.engine.called import Called
from fluxlike.transforms.engine.loss import scalar_loss
from fluxlike.transforms.engine.motors import Motor, open_motor
from fluxlike.trees.functor import NAMESPACE
from fluxlike.trees.paths import is_node
from fluxlike.trees.places import Where

__all__ = ["gradient", "withgradient"]


@teaching_function
def gradient(
    f: Callable[..., Any],
    /,
    *args: Any,
    argnums: int | Sequence[int] = 0,
    wrt: Where | tuple[Where, ...] | None = None,
    key: Key | None = None,
) -> Any:
    """The gradient of the scalar ``f(*args)`` as a tree of the same structure as the argument.

    Parameters have their gradient, or None where the loss does not reach them; a tied one has the
    total at its first place and None at the others. Buffers that a layer assigned have their new
    value as `Assigned`; everything else is None. While it runs, layers of the differentiated
    arguments are in train mode. Nothing is changed, and no graph is kept: inside another gradient,
    or inside ``torch.func``, the result is differentiable again.

    Args:
        f: returns a real 0-d tensor; or a tuple whose first item is that; or a dict, named tuple
            or dataclass with an entry ``loss``.
        args: trees, tensors, or floats (which get a float); any other objects for constants.
        argnums: which arguments to differentiate; a tuple of numbers gives a tuple of trees.
            (default: 0)
        wrt: places of the one differentiated argument, as in `at`: everything else in it is
            constant, and its backward pass is not computed. (default: the whole argument)
        key: what everything random inside is drawn from, as under `seeded`. (default: the key in scope;
            where there is none, torch's generators)

    Returns:
        A tree with the treedef of the argument, or a tuple of trees.

    Raises:
        ValueError: the loss is not a real scalar tensor, the argument holds no parameter, or `f`
            changes one in place.
        TypeError: the argument is an int, the state of an optimiser, or an object of an unregistered class
            that holds tensors; `key` is no Key.
        RuntimeError: called under ``torch.inference_mode``.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.gradient(lambda x, y, z: x * y * z, 2.0, 3.0, 5.0, argnums=(0, 1, 2))
        (15.0, 10.0, 6.0)
        >>> model = {"w": torch.tensor([1.0, 2.0]), "unused": torch.zeros(3), "name": "linear"}
        >>> fl.gradient(lambda m, x: (m["w"] * x).sum(), model, torch.tensor([3.0, 4.0]))
        {'w': tensor([3., 4.]), 'unused': None, 'name': None}
    """
    return withgradient(f, *args, argnums=argnums, wrt=wrt, key=key)[1]


@teaching_function
def withgradient(
    f: Callable[..., Any],
    /,
    *args: Any,
    argnums: int | Sequence[int] = 0,
    wrt: Where | tuple[Where, ...] | None = None,
    key: Key | None = None,
) -> tuple[Any, Any]:
    """The value of ``f(*args)`` together with its `gradient`.

    Args:
        f: as in `gradient`. Whatever it returns beside the loss comes back in the value.
        args: as in `gradient`.
        argnums: as in `gradient`.
        wrt: as in `gradient`.
        key: as in `gradient`.

    Returns:
        ``(value, grads)``: all that `f` returned, without a graph, and the tree of gradients.

    Raises:
        ValueError: as `gradient`.
        TypeError: as `gradient`.
        RuntimeError: as `gradient`.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.tensor([1.0, 2.0, 4.0])
        >>> fl.withgradient(lambda x: ((1 / x).sum(), 1 / x), x)
        ((tensor(1.7500), tensor([1.0000, 0.5000, 0.2500])), tensor([-1.0000, -0.2500, -0.0625]))
    """
    if key is not None:
        token = enter(Draws.of(key, "gradient"))
        try:
            return withgradient(f, *args, argnums=argnums, wrt=wrt)
        finally:
            leave(token)
    call = Called("gradient", f, args, argnums, wrt)
    with open_motor() as motor:
        call.open(motor)
        token = mode.ambient("train") if call.trains else None
        try:
            value = call.run()
            loss = scalar_loss(value)
            call.check()
            # In the mode of the forward pass, for checkpoints of torch's that compute it again.
            grads = motor.gradients(loss, call.handles) if loss.requires_grad else [None] * len(call.handles)
        finally:
            if token is not None:
                mode.restore(token)
        return _close(value, motor), call.trees(grads)


def _close(value: Any, run: Motor) -> Any:
    """What the function returned, as the caller may have it (outermost: without a graph)."""

    def close(x: Any) -> Any:
        if isinstance(x, Tensor):
            return run.close(x)
        if isinstance(x, assigned.Assigned):
            return assigned.Assigned(run.close(x.value))
        if is_node(x):
            return _close(x, run)  # of a class that was not seen before
        if isinstance(x, Mapping):  # one that is no node
            entries = {key: _close(entry, run) for key, entry in x.items()}
            if not isinstance(x, MutableMapping):
                return entries
            closed: Any = copy.copy(x)
            closed.update(entries)
            return closed
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            closed = copy.copy(x)
            for field in dataclasses.fields(x):
                object.__setattr__(closed, field.name, _close(getattr(x, field.name), run))
            return closed
        return x

    if isinstance(value, Tensor):
        return run.close(value)
    return optree.tree_map(close, value, none_is_leaf=True, namespace=NAMESPACE)
