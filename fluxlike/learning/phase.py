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
        """Take ``run.batch``: ``run.train()`` or ``run.evaluate()``, or what you like with ``run.model``."""
        raise NotImplementedError(f"write {type(self).__name__}.step(self, run)")


class TrainingPhase(Phase):
    """Training: the learner's step on every batch.

    Example:
        >>> import fluxlike as fl
        >>> class Practice(fl.TrainingPhase):
        ...     name = "practice"
        >>> phases = [fl.TrainingPhase(), Practice()]
        >>> data = {"training": [], "practice": []}
        >>> fl.Learner(fl.Dense(2, 1), data, fl.Descent(0.1), fl.losses.mse, phases=phases)
        Learner(Dense, Descent(lr=0.1), phases training, practice: epoch 0, step 0)
    """

    name = "training"

    def step(self, run: Any, /) -> None:
        run.emit(Event.LOSS_BEGIN)
        run.train()


class ValidationPhase(Phase):
    """Validation: the loss and the outputs of every batch, in test mode and without a graph.

    Example:
        >>> import torch, fluxlike as fl
        >>> class Testing(fl.ValidationPhase):
        ...     name = "testing"
        >>> batches = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> phases = [fl.TrainingPhase(), Testing()]
        >>> data = {"training": batches, "testing": batches}
        >>> options = {"phases": phases, "progress": False}
        >>> learner = fl.fit(fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, **options))
        >>> learner.history.epochs["phase"]
        ['training', 'testing']
    """

    name = "validation"

    def step(self, run: Any, /) -> None:
        run.emit(Event.LOSS_BEGIN)
        run.evaluate()
