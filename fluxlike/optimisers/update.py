"""`update` and `steps`: one step of an optimiser over a whole tree."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

from torch import Tensor

from fluxlike._private import tracing
from fluxlike.optimisers.lane import lane_of
from fluxlike.optimisers.state import is_param_state
from fluxlike.optimisers.step import Step
from fluxlike.scope.autocast import is_autocast, without_autocast
from fluxlike.transforms.donation import consume
from fluxlike.transforms.engine.motors import enclosed
from fluxlike.trees.structure import flatten

__all__ = ["steps", "update"]

S = TypeVar("S")
M = TypeVar("M")


def update(state: S, model: M, grads: Any, /, *, donate: bool = False) -> tuple[M, S]:
    """One step: the model moved by its gradients, and the next state of the optimiser.

    A parameter without a gradient (None) or frozen stays as it is, its state too. Gradients found
    at several places of a tied parameter are added up. `Assigned` buffers get their new value. Unless
    `donate` is true, no argument is changed. Inside `gradient`, the step is differentiable.

    Args:
        state: what `setup` or the last `update` returned.
        model: the model.
        grads: the gradients, a tree with the structure of the model.
        donate: whether parameters and state may be written over, which saves the time and the memory
            of new ones. The numbers are the same. The tensors that were written over can't be used
            any more, wherever else they are held: any use raises an error. Keep a copy by
            ``fluxlike.tree.clone``. A view of such a tensor made before (``w[0]``, ``w.detach()``, a numpy
            array of it) shares its memory, and changes with it. The parameters of a torch module are
            copied. Inside a transform it has no effect. (default: False)

    Returns:
        ``(model, state)``, both of the structure that they had.

    Raises:
        ValueError: the trees differ in structure; or a gradient differs from its parameter in
            shape, dtype or device; or the state is on another device; or of model, state and gradients some
            are over a mesh and others are not, or over another one; or a donated tensor shares memory with
            another, is expanded or may be read-only. It names the place.
        TypeError: model and state are swapped.
        RuntimeError: an argument holds a tensor that was donated before.

    Warns:
        UserWarning: there are parameters that are not frozen, and none has a gradient: the loss did not
            depend on the model that it was given. Assigned buffers don't count.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = {"w": torch.tensor([1.0, 2.0])}
        >>> state = fl.setup(fl.Descent(0.1), model)
        >>> model, state = fl.update(state, model, {"w": torch.tensor([5.0, 5.0])})
        >>> model
        {'w': tensor([0.5000, 1.5000])}
    """
    if is_autocast():
        with without_autocast():
            return update(state, model, grads, donate=donate)
    plain = not enclosed() and tracing.concrete()
    donating = donate and plain
    entries, state_def = flatten(state, is_param_state)
    lane = lane_of(entries) if plain else None
    result = lane.step(entries, state_def, model, grads, donating) if lane is not None else None
    if result is None:
        consumed: list[Tensor] | None = [] if donating else None
        try:
            step = Step(state, model, grads, move=True, consumed=consumed)
            result = step.moved_model(), step.next_state(), step.consumed or []
        except BaseException:
            consume(consumed or [])  # what was written before the error has no meaning any more
            raise
        if plain:
            step.open_lane()
        if not step.moving and step.aligned.lacks_every_gradient():
            warnings.warn(
                "update found no gradient: every one is None, so nothing is trained. The loss did not depend "
                "on the model that it was given: it used the one outside instead of its argument (write "
                "gradient(lambda m: loss(m, x), model)), or an argmax, a comparison, detach() or item() "
                "ended the gradient",
                stacklevel=2,
            )
    consume(result[2])
    return result[0], result[1]


def steps(state: S, model: M, grads: Any, /) -> tuple[M, S]:
    """The steps that `update` would subtract, without applying them, and the next state.

    Args:
        state: as in `update`.
        model: as in `update`.
        grads: as in `update`.

    Returns:
        ``(steps, state)``: a tree of the model's structure with what is subtracted from each
        parameter, at the first place of a tied one, and None elsewhere.

    Raises:
        ValueError: as `update`.
        TypeError: as `update`.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = {"w": torch.tensor([1.0, 2.0])}
        >>> fl.steps(fl.setup(fl.Descent(0.1), model), model, {"w": torch.ones(2)})[0]
        {'w': tensor([0.1000, 0.1000])}
    """
    if is_autocast():
        with without_autocast():
            return steps(state, model, grads)
    step = Step(state, model, grads, move=False)
    return step.step_tree(), step.next_state()
