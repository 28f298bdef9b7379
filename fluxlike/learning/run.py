"""`Run`: what changes while a fit is under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fluxlike.learning.events import CallbackError, Cancel, CancelFit, Event, LearningError
from fluxlike.learning.functions import functions, is_finite
from fluxlike.learning.learner import Learner
from fluxlike.learning.order import names
from fluxlike.learning.precision import all_finite
from fluxlike.learning.randomness import random_states
from fluxlike.learning.ranks import Ranks, whole_numbers
from fluxlike.learning.view import View
from fluxlike.optimisers.averages import averaged
from fluxlike.trees import algebra
from fluxlike.trees.fmap import fleaves, fmap
from fluxlike.trees.structure import flatten

__all__ = ["Run"]

_MANY = 1024  # rows


class Run:
    """What changes while a fit is under way. A callback sees it through what it declares.

    Attributes:
        batch: the batch of this step.
        out: what the step gave: a dict with ``"loss"``, and ``"outputs"`` and ``"targets"`` of a standard
            step.
        grads: the gradient, at ``backward_end``.
        metrics: of the epoch that ends: numbers by name.
        hyperparameters: those that a schedule has set, by name.
        history: the `History`.
        learner: the learner that `fit` was given.
        phase: the name of the phase.
        trains: whether it is a `TrainingPhase`, of whatever name.
        epoch: the number of the epoch, from 1.
        step: how many batches of training were taken.
        batch_number: how many batches of this phase were taken.
        batches: how many this phase has, or None where that is not known.
        goal: the number of the epoch with which the fit ends.
        resumes: whether the fit goes on from a checkpoint if there is one.
        waited: seconds that this phase has waited for its data.
        randomness: a function that gives a context, at ``step_end``, of the same draws as the step.
        error: at ``exception``, what was raised.
        keyed: whether steps draw from a key in scope, and not from torch's generators, which would draw the
            same for the rows of every rank.
        ranks: the `Ranks` that fit together; ``ranks.first`` is whether this is the first of them.
    """

    def __init__(
        self, learner: Learner, goal: int, *, donate: bool, resumes: bool, ranks: Ranks | None = None
    ) -> None:
        self.learner, self.goal, self.resumes = learner, goal, resumes
        self.ranks = Ranks(None) if ranks is None else ranks
        self.keyed = learner.keyed or self.ranks.over_mesh
        own = (learner.model, learner.state)
        self._model, self._state = own if donate else algebra.clone(own)
        self.step, self.completed = learner.step, learner.epoch
        self.epoch = self.completed + 1
        self.phase_number, self.batch_number = learner.phase, learner.batch
        self.stopped: str | None = None
        self._history = learner.history
        self._rows: list[dict[str, Any]] = []
        self.phase, self.trains = "", False
        self.batch: Any = None
        self.out: Mapping[str, Any] = {}
        self.grads: Any = None
        self.metrics: dict[str, Any] = {}
        self.hyperparameters: dict[str, Any] = {}
        self.batches: int | None = None
        self.waited = 0.0
        self.randomness: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.error: BaseException | None = None
        self.guarded = any(callback.guards for callback in learner.callbacks)
        self._views = [
            View(self, callback, name, _copied(learner.memory.get(name, callback.init())))
            for callback, name in zip(learner.callbacks, names(learner.callbacks), strict=True)
        ]
        order = learner._shared.get("order", {})
        self._handlers: dict[Event, list[tuple[Callable[[Any], None], View]]] = {
            event: [
                (getattr(learner.callbacks[i], event.value), self._views[i])
                for i in order.get(event, ())
                if self.ranks.first or not learner.callbacks[i].of_first_rank
            ]
            for event in Event
        }
        self.heard_inside = any(self._handlers[event] for event in Event if event.inside_step)
        self.loss_scale = learner.loss_scale
        self._train, self._evaluate = functions(learner, self.guarded)
        self._averaged: tuple[Any, Any, Any] | None = None

    @property
    def model(self) -> Any:
        """The model. Tensors that are set from elsewhere are copied: steps write over those of the run."""
        return self._model

    @model.setter
    def model(self, model: Any) -> None:
        self._model = _own(model, self._model)

    @property
    def state(self) -> Any:
        """The state of the optimiser, kept as the model is."""
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        self._state = _own(state, self._state)

    @property
    def history(self) -> Any:
        """The `History`, with all that was recorded."""
        if self._rows:
            self._history, self._rows = self._history.add_steps(self._rows), []
        return self._history

    @history.setter
    def history(self, history: Any) -> None:
        self._history, self._rows = history, []

    def record(self, row: dict[str, Any], /) -> None:
        """Add a step to the history, when somebody looks at it."""
        self._rows.append(row)
        if len(self._rows) >= _MANY:
            _ = self.history

    @property
    def loss(self) -> Any:
        """The loss of this step, a 0-d tensor."""
        return self.out.get("loss")

    @property
    def samples(self) -> int:
        """How many observations the batch has: the length of the first axis of its first array."""
        return _samples(self.batch)

    def emit(self, event: Event, /) -> None:
        """Call the callbacks that listen to an event, all of them; then raise what one of them has raised.

        Raises:
            Cancel: what a callback raised, the widest of several.
            CallbackError: an error in a callback.
        """
        handlers = self._handlers[event]
        if not handlers:
            return
        cancelled: Cancel | None = None
        failed: CallbackError | None = None
        for handler, view in handlers:
            try:
                handler(view)
            except Cancel as cancel:
                if not cancel.allowed_at(event):
                    failed = failed or _misplaced(cancel, event, view)
                elif cancelled is None or cancel.rank > cancelled.rank:
                    cancelled = cancel
                    if isinstance(cancel, CancelFit):
                        self.stopped = cancel.reason  # for a checkpoint at this very event
            except LearningError:
                raise
            except Exception as error:
                if failed is None:
                    text = f"{view._name}.{event.value} raised {type(error).__name__}: {error}"
                    failed = CallbackError(f"{text} ({self.where()})")
                    failed.__cause__ = error
        if failed is not None:
            raise failed
        if cancelled is not None:
            raise cancelled

    def tell(self, event: Event, /) -> list[str]:
        """Call all callbacks that listen to an event; what they raise is given back, in words."""
        raised = []
        for handler, view in self._handlers[event]:
            try:
                handler(view)
            except Exception as error:
                raised.append(f"{view._name}.{event.value} raised {type(error).__name__}: {error}.")
        return raised

    def train(self) -> None:
        """Take the learner's step of training on the batch: model, state and out are new."""
        self._averaged = None
        if self.heard_inside:
            self.out, self.grads = self._gradients()
            self.emit(Event.BACKWARD_END)
            self._update()
        elif self.loss_scale is None:
            self._model, self._state, self.out = self._train(self._model, self._state, self.batch)
        else:
            given = self._model, self._state, self.batch, self.loss_scale
            self._model, self._state, self.out, self.loss_scale = self._train(*given)
        self.out = whole_numbers(self.out)

    def evaluate(self) -> None:
        """Take the learner's step of validation on the batch, of the averaged model if it says so."""
        model, state = self._model, self._state
        if self.learner.averaged:
            known = self._averaged
            if known is None or known[0] is not model or known[1] is not state:
                known = self._averaged = model, state, averaged(state, model)
            model = known[2]
        self.out = whole_numbers(self._evaluate(model, state, self.batch))

    def _gradients(self) -> tuple[Any, Any]:
        """The step's gradients, telling the callbacks between forward and backward."""

        def before_backward(out: Mapping[str, Any]) -> None:
            self.out = whole_numbers(fmap(torch.Tensor.detach, dict(out)))
            self.emit(Event.BACKWARD_BEGIN)

        heard = before_backward if self._handlers[Event.BACKWARD_BEGIN] else None
        scale = {} if self.loss_scale is None else {"loss_scale": self.loss_scale}
        given = self._model, self._state, self.batch
        return self.learner.steps.gradients(*given, before_backward=heard, **scale)

    def _update(self) -> None:
        """The step's update; none where the loss is not finite, and a callback stops at that.

        Under a scale of the loss none where a gradient is not finite either.
        """
        if self.guarded and not is_finite(self.loss):
            return
        if self.loss_scale is not None:
            finite = all_finite(self.grads)
            self.loss_scale = self.loss_scale.after(finite)
            if not finite:
                return
        given = self._model, self._state, self.grads
        self._model, self._state = self.learner.steps.update(*given, donate=True)

    def saved(self) -> dict[str, Any]:
        """What the callbacks remember, by name."""
        return {
            view._name: callback.save(view)
            for callback, view in zip(self.learner.callbacks, self._views, strict=True)
        }

    def as_learner(self, **changes: Any) -> Learner:
        """The learner as it stands now."""
        return self.learner.replace(
            model=self._model,
            state=self._state,
            loss_scale=self.loss_scale,
            step=self.step,
            epoch=self.completed,
            phase=self.phase_number,
            batch=self.batch_number,
            memory={**self.learner.memory, **_copied(self.saved())},
            history=self.history,
            random=random_states() if self.batch_number else None,
            stopped=self.stopped,
            **changes,
        )

    @property
    def place(self) -> tuple[int, int, int]:
        """Where the learner stands: complete epochs, complete phases, batches of the next one."""
        return self.completed, self.phase_number, self.batch_number

    def where(self) -> str:
        """Where the run is, in words."""
        of = "" if self.batches is None else f" of {self.batches}"
        batch = f", batch {self.batch_number}{of}" if self.batch_number else ""
        phase = f", {self.phase}{batch}" if self.phase else ""
        return f"after step {self.step}, epoch {self.epoch} of {self.goal}{phase}"


def _misplaced(cancel: Cancel, event: Event, view: View) -> CallbackError:
    kind, advice = type(cancel).__name__, cancel.advice
    return CallbackError(f"{view._name}.{event.value} raised {kind}, which comes too late there: {advice}")


def _own(new: Any, old: Any) -> Any:
    """A tree whose tensors are those of another, or copies."""
    known = {id(x) for x in fleaves(old)}
    if all(id(x) in known for x in fleaves(new)):
        return new
    return fmap(lambda x: x if id(x) in known else x.clone(), new)


def _samples(batch: Any) -> int:
    """The length of the first axis of a batch's first array; of a list where there is none, its own."""
    for x in flatten(batch)[0]:
        shape = getattr(x, "shape", None)
        if shape is not None:
            return int(shape[0]) if len(shape) else 1
    while isinstance(batch, tuple) and batch:
        batch = batch[0]
    return len(batch) if isinstance(batch, list) and batch else 1


def _copied(memory: Any) -> Any:
    """Dicts and lists of what is remembered, anew."""
    if isinstance(memory, dict):
        return {name: _copied(value) for name, value in memory.items()}
    if isinstance(memory, list):
        return [_copied(value) for value in memory]
    return memory.clone() if isinstance(memory, Tensor) else memory
