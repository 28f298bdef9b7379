"""`finetune`: training of a new head on a backbone that was trained before."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from fluxlike.learning.learner import Learner
from fluxlike.learning.one_cycle import Shape, cycle_of, cycled, steps_of
from fluxlike.learning.resume import resumed
from fluxlike.learning.step import Step, with_settings
from fluxlike.optimisers.adjust import freeze
from fluxlike.optimisers.state import ParamState, is_param_state
from fluxlike.scope.mode import testmode
from fluxlike.trees.at import at
from fluxlike.trees.paths import children, text_of
from fluxlike.trees.places import Where, find_places
from fluxlike.trees.structure import flatten
from fluxlike.trees.trainables import trainables

__all__ = ["finetune"]

HALF, TENTH = 0.5, 0.1


def finetune(
    learner: Learner,
    epochs: int,
    lr: float,
    *,
    backbone: Where | tuple[Where, ...] | None = None,
    frozen_epochs: int = 1,
    shape: Shape = "cosine",
    steps: int | None = None,
    resume: bool | str | os.PathLike[str] = False,
) -> Learner:
    """Train a new head on a trained backbone: first the head alone, then all, the backbone more slowly.

    While it is frozen the backbone is in test mode, so neither its parameters nor the statistics of its
    BatchNorms move, and its backward is not computed. Then everything is trained at half the rate, the
    backbone at a tenth of that. Both parts are cycles as of `fit_one_cycle`; the first rises over nearly all
    of its steps, the second begins at a fifth. Afterwards the learner has its own callbacks and rates again.

    Args:
        learner: the learner.
        epochs: epochs in which everything is trained.
        lr: the largest rate of the head.
        backbone: the place of the backbone in the model, as in `at`. (default: the first of the model's two
            children)
        frozen_epochs: epochs before, in which the head alone is trained. (default: 1)
        shape: as in `fit_one_cycle`. (default: ``"cosine"``)
        steps: batches an epoch, where the data has no length. (default: its length)
        resume: as in `fit`, in either part.

    Returns:
        The learner after the last epoch, or where it was stopped.

    Raises:
        ValueError: it is unclear what the backbone is, or nothing is left to train beside it; or as
            `fit_one_cycle`.
        KeyError: there is no such place.
        Exception: as `fit`.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.learning.finetune import finetune
        >>> model = fl.Chain(fl.Chain(fl.Dense(4, 8, fl.relu), fl.BatchNorm(8)), fl.Dense(8, 2))
        >>> data = fl.DataLoader((torch.randn(32, 4), torch.randint(0, 2, (32,))), batch_size=8)
        >>> learner = fl.Learner(model, data, fl.Adam(), fl.losses.logitcrossentropy, progress=False)
        >>> learner = finetune(learner, 2, 1e-2, backbone=lambda m: m.layers[0])
        >>> learner.epoch
        3

    Source: Howard & Gugger 2020, fastai, arXiv 2002.04688, section 3.
    """
    if isinstance(frozen_epochs, bool) or not isinstance(frozen_epochs, int) or frozen_epochs < 0:
        raise ValueError(f"frozen_epochs={frozen_epochs!r}: write how many epochs, or 0")
    body = _backbone(learner.model, backbone)
    head = _beside(learner.model, body)
    thawed = learner.epoch + frozen_epochs
    if resume is not False and frozen_epochs:
        found = resumed(learner, resume, thawed + epochs)
        if found is not None and found.epoch >= thawed:
            learner, frozen_epochs = learner.replace(epoch=thawed, phase=0, batch=0), 0
    if frozen_epochs:
        learner = _train_head(learner, frozen_epochs, lr, body, head, shape, steps, resume)
        resume = False
        if learner.stopped is not None:
            return learner
    total = steps_of(learner, epochs, steps)
    rates = {head: HALF * lr, body: HALF * TENTH * lr}
    cycles = [(place, {"lr": cycle_of(total, rate, shape=shape, div=5.0)}) for place, rate in rates.items()]
    return cycled(learner, epochs, cycles, resume)


def _train_head(
    learner: Learner,
    epochs: int,
    lr: float,
    body: _Paths,
    head: _Paths,
    shape: Shape,
    steps: Any,
    resume: Any,
) -> Learner:
    """The learner after epochs in which its backbone stays as it is."""
    going = learner.replace(steps=_HeadStep(with_settings(learner.steps, wrt=head), body))
    schedule = cycle_of(steps_of(learner, epochs, steps), lr, shape=shape, pct=0.99)
    try:
        return _own_step(cycled(going, epochs, [(head, {"lr": schedule})], resume), learner)
    except BaseException as error:
        stands = getattr(error, "learner", None)
        if isinstance(stands, Learner):
            error.learner = _own_step(stands, learner)  # type: ignore[attr-defined]
        raise


def _own_step(fitted: Learner, learner: Learner) -> Learner:
    """What was trained, with the step of another, and what that has compiled."""
    kept = {"steps", "precision", "jit", "_shared"}
    names = (field.name for field in dataclasses.fields(Learner))
    return learner.replace(**{name: getattr(fitted, name) for name in names if name not in kept})


class _HeadStep(Step):
    """A step around another, for which a part of the model is in test mode and frozen.

    Neither shows in the learner, so its checkpoints are those of any other.
    """

    def __init__(self, step: Step, body: _Paths) -> None:
        self.inner, self.body, self.precision = step, body, step.precision

    @property
    def has_parts(self) -> bool:
        return self.inner.has_parts

    def loss(self, model: Any, batch: Any, /) -> Any:
        return self.inner.loss(self._pinned(model), batch)

    def gradients(self, model: Any, state: Any, batch: Any, /, **settings: Any) -> tuple[Any, Any]:
        return self.inner.gradients(self._pinned(model), state, batch, **settings)

    def update(self, model: Any, state: Any, grads: Any, /, *, donate: bool = False) -> tuple[Any, Any]:
        model, new = self.inner.update(model, freeze(state, self.body), grads, donate=donate)
        return model, _thawed(new, state)

    def train(self, model: Any, state: Any, batch: Any) -> tuple[Any, Any, Any]:
        if self.has_parts:
            return super().train(model, state, batch)
        new, moved, out = self.inner.train(self._pinned(model), freeze(state, self.body), batch)
        return flatten(model)[1].unflatten(flatten(new)[0]), _thawed(moved, state), out

    def evaluate(self, model: Any, state: Any, batch: Any) -> Any:
        return self.inner.evaluate(model, state, batch)

    def _pinned(self, model: Any) -> Any:
        return at(model, self.body).apply(testmode)


def _thawed(new: Any, state: Any) -> Any:
    """A state that is as far frozen as another."""
    entries, treedef = flatten(new, is_param_state)
    known: dict[int, Any] = {}  # entries of tied places stay one
    for entry, before in zip(entries, flatten(state, is_param_state)[0], strict=True):
        if is_param_state(entry):
            known.setdefault(id(entry), ParamState(entry.rule, entry.state, before.frozen))
    return treedef.unflatten([known.get(id(entry), entry) for entry in entries])


_Paths = tuple[str, ...]


def _backbone(model: Any, where: Where | tuple[Where, ...] | None) -> _Paths:
    """The paths of the backbone."""
    if where is not None:
        found = tuple(text_of(model, place) for place in find_places(model, where)[0] if place)
        if not found:
            raise ValueError(
                "backbone= is the whole model, so there is no head to train; choose a part of it"
            )
        return found
    path, node = "", model
    inside = _trained_children(node, path)
    while len(inside) == 1:
        ((path, node),) = inside.items()
        inside = _trained_children(node, path)
    if len(inside) == 2:
        return (next(iter(inside)),)
    places = ", ".join(repr(place) for place in list(inside)[:-1][:12])
    raise ValueError(
        f"which part of the {type(model).__name__} is the backbone? It has {len(inside)} children with "
        "parameters, and not two; for all but the last write "
        f"backbone=({places}{', …' if len(inside) > 13 else ''})"
    )


def _trained_children(node: Any, path: str) -> dict[str, Any]:
    """The children of a node that hold parameters, by path."""
    return {path + step.text: child for step, child in children(node) if trainables(child)}


def _beside(model: Any, body: _Paths) -> _Paths:
    """The topmost places with parameters that are not of the backbone."""

    def visit(node: Any, path: str) -> list[str]:
        if path in body:
            return []
        if path and not any(place.startswith((f"{path}.", f"{path}[")) for place in body):
            return [path] if trainables(node) else []
        return [place for step, child in children(node) for place in visit(child, path + step.text)]

    found = tuple(visit(model, ""))
    if not found:
        raise ValueError(
            f"nothing is left to train beside the backbone, {', '.join(body)}; choose a part of the model"
        )
    return found
