"""`Phase`: a part of every epoch, with its own data and its own kind of step."""

from __future__ import annotations

from typing import Any, ClassVar

from fluxlike.learning.events import Event

__all__ = ["Phase", "TrainingPhase", "ValidationPhase"]


class Phase:
    """A part of every epoch. A subclass has a `name`, and a `step` that says what happens to a batch.

    Attributes:
        name: what its data is called in the learner, and its rows in the history.

    Example:
        >>> import torch, fluxlike as fl
        >>> class Recalibrate(fl.Phase):
        ...     name = "recalibrate"
        ...     def step(self, run):
        ...         _, updates = fl.withupdates(lambda m, x: m(x), run.model, run.batch[0])
        ...         run.model = fl.apply_updates(run.model, updates)
        >>> data = {"training": [(torch.rand(8, 2), torch.rand(8, 2))]}
        >>> data["recalibrate"] = data["training"]
        >>> phases = [fl.TrainingPhase(), Recalibrate()]
        >>> learner = fl.Learner(fl.BatchNorm(2), data, fl.Adam(), fl.losses.mse, phases=phases)
        >>> learner = fl.fit(learner, 1)
    """

    name: ClassVar[str] = ""

    def step(self, run: Any, /) -> None:
        """Take ``run.batch``: set ``run.model``, ``run.state``, and ``run.out``, a dict with the loss."""
        raise NotImplementedError(f"write {type(self).__name__}.step(self, run)")


class TrainingPhase(Phase):
    """Training: the learner's step on every batch."""

    name = "training"

    def step(self, run: Any, /) -> None:
        run.emit(Event.LOSS_BEGIN)
        if not run.heard_inside:
            run.model, run.state, run.out = run.train(run.model, run.state, run.batch)
            return
        run.out, run.grads = run.gradients(run.model, run.state, run.batch)
        run.emit(Event.BACKWARD_END)
        run.model, run.state = run.update(run.model, run.state, run.grads)


class ValidationPhase(Phase):
    """Validation: the loss and the outputs of every batch, in test mode and without a graph."""

    name = "validation"

    def step(self, run: Any, /) -> None:
        run.emit(Event.LOSS_BEGIN)
        run.out = run.evaluate(run.model, run.state, run.batch)
