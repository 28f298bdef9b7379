"""`fit`: the loop of epochs, phases and steps."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Any

from fluxlike.learning.events import CancelEpoch, CancelFit, CancelStep, Event
from fluxlike.learning.interrupt import Interrupt
from fluxlike.learning.learner import Learner
from fluxlike.learning.phase import Phase, TrainingPhase
from fluxlike.learning.randomness import Seeds, kept, set_random_states
from fluxlike.learning.resume import INTERRUPTED, resumed
from fluxlike.learning.run import Run
from fluxlike.scope.seeded import seeded

__all__ = ["fit"]


def fit(
    learner: Learner,
    epochs: int = 1,
    *,
    resume: bool | str | os.PathLike[str] = False,
    donate: bool = False,
) -> Learner:
    """Train for a number of epochs.

    Args:
        learner: the learner, which stays as it is.
        epochs: how many more epochs; one that was left in the middle counts as the first. (default: 1)
        resume: go on from the newest checkpoint in the folder of the learner's `Checkpointer`, or in the
            folder given, up to the epoch at which this fit would end; begin anew where there is none.
            (default: False)
        donate: give up the tensors of the learner's model and state, which saves a copy of them.
            (default: False)

    Returns:
        The learner after the last epoch; or as it stands where a callback or Ctrl-C has stopped it:
        ``learner.stopped`` says so, and another `fit` goes on. The first Ctrl-C lets the step end, a second
        raises KeyboardInterrupt.

    Raises:
        CallbackError: an error in a callback.
        NonFiniteLoss: a loss that is NaN or infinite; the learner is as it was before that step.
        ValueError: no epochs, no data, a checkpoint past the last epoch.
        Exception: whatever the model, the loss or the data raise. Of every error, ``error.learner`` is the
            learner after the last whole step.
    """
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 0:
        raise ValueError(f"fit(learner, {epochs!r}): write how many epochs, such as fit(learner, 10)")
    if not isinstance(learner, Learner):
        raise TypeError(
            f"fit takes a Learner first, found a {type(learner).__name__}: write fit(learner, 10)"
        )
    goal = learner.epoch + epochs
    found = None if resume is False else resumed(learner, resume, goal)
    run = Run(learner, goal, donate) if found is None else Run(found, goal, donate=True)
    if found is not None:
        run.stopped = found.stopped
    with kept(), Interrupt() as interrupt:
        return _Loop(run, interrupt).go()


class _Loop:
    """One fit."""

    def __init__(self, run: Run, interrupt: Interrupt) -> None:
        self.run, self.interrupt = run, interrupt
        self.learner = run.learner
        self.steps_key, self.data_key = self.learner.key.split(2)

    def go(self) -> Learner:
        run = self.run
        try:
            run.emit(Event.FIT_BEGIN)
            try:
                while run.completed < run.goal and run.stopped is None:
                    self.epoch()
            except CancelFit as cancel:
                run.stopped = cancel.reason
            run.emit(Event.FIT_END)
        except BaseException as error:
            self.failed(error)
            raise
        if run.stopped == INTERRUPTED:
            left = run.goal - run.completed
            print(
                f"interrupted {run.where()}. The learner that fit returns stands there: go on with "
                f"fit(learner, {left})",
                file=sys.stderr,
            )
        return run.as_learner()

    def epoch(self) -> None:
        run = self.run
        run.epoch = run.completed + 1
        for number in range(run.phase_number, len(self.learner.phases)):
            phase = self.learner.phases[number]
            self.begin(phase)
            try:
                if run.batch_number == 0:
                    run.emit(Event.EPOCH_BEGIN)
                self.batches(phase)
            except CancelEpoch:
                pass
            # Where a checkpoint of the epoch's end goes on.
            run.phase_number, run.batch_number = number + 1, 0
            if run.phase_number == len(self.learner.phases):
                run.phase_number, run.completed = 0, run.completed + 1
            run.emit(Event.EPOCH_END)

    def begin(self, phase: Phase) -> None:
        run = self.run
        run.phase, run.waited, run.metrics, run.out = phase.name, 0.0, {}, {}
        try:
            run.batches = len(self.learner.data[phase.name])
        except TypeError:
            run.batches = None

    def batches(self, phase: Phase) -> None:
        run, learner = self.run, self.learner
        seeds = Seeds(self.steps_key.fold_in(run.phase_number).fold_in(run.completed))
        batches = self.data(phase, seeds)
        training, keyed = isinstance(phase, TrainingPhase), learner.keyed
        number = run.batch_number
        run.randomness = partial(self.again, seeds)
        while True:
            start = perf_counter()
            run.batch = batch = next(batches, _END)
            run.waited += perf_counter() - start
            if batch is _END:
                break
            try:
                with seeded(seeds.key.fold_in(number)) if keyed else _NOTHING:
                    seeds.step(number)
                    run.emit(Event.STEP_BEGIN)
                    phase.step(run)
                done = True
            except CancelStep:
                done = False
            run.batch_number = number = number + 1
            run.step += training
            if done:
                run.emit(Event.STEP_END)
            if self.interrupt.asked:
                raise CancelFit(INTERRUPTED)
        if number == 0:
            raise ValueError(
                f"the data of {phase.name} gave no batch in epoch {run.epoch}; a generator can be iterated "
                "once: give a DataLoader, a list, or an object whose __iter__ begins anew"
            )

    def data(self, phase: Phase, seeds: Seeds) -> Iterator[Any]:
        """The batches of an epoch from where the run stands."""
        run, data, start = self.run, self.learner.data[phase.name], self.run.batch_number
        seeds.begin()
        with seeded(self.data_key.fold_in(run.phase_number)):
            of_epoch: Callable[..., Iterator[Any]] | None = getattr(data, "epoch", None)
            batches = iter(data) if of_epoch is None else iter(of_epoch(run.completed, start=start))
        if of_epoch is None:
            for _ in islice(batches, start):
                pass
        if start and run.learner.random is not None:
            set_random_states(run.learner.random)
        return batches

    @contextmanager
    def again(self, seeds: Seeds) -> Iterator[None]:
        """The draws of the step that has just ended."""
        number = self.run.batch_number - 1
        with kept(), seeded(seeds.key.fold_in(number)) if self.learner.keyed else _NOTHING:
            seeds.step(number)
            yield

    def failed(self, error: BaseException) -> None:
        """Tell the callbacks, and hand the learner as it stands to who catches the error."""
        run = self.run
        run.error = error
        then = run.tell(Event.EXCEPTION)
        try:
            error.learner = run.as_learner()  # type: ignore[attr-defined]
            then.insert(0, "As `error.learner`, the learner goes on from there.")
        except Exception as another:
            then.append(f"Then {type(another).__name__}: {another}")
        error.add_note(" ".join((f"In a fit, {run.where()}.", *then)))


_END = object()
_NOTHING: AbstractContextManager[Any] = nullcontext()
