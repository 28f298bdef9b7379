"""`fit`: the loop of epochs, phases and steps."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from time import perf_counter
from typing import Any

from fluxlike.learning.epoch import epoch_of
from fluxlike.learning.events import CancelEpoch, CancelFit, CancelStep, Event
from fluxlike.learning.interrupt import Interrupt
from fluxlike.learning.learner import Learner
from fluxlike.learning.phase import Phase, TrainingPhase
from fluxlike.learning.randomness import Seeds, kept, set_random_states
from fluxlike.learning.ranks import ranks_of
from fluxlike.learning.resume import INTERRUPTED, resumed
from fluxlike.learning.run import Run
from fluxlike.scope.seeded import seeded
from fluxlike.transforms.donation import Donated
from fluxlike.trees.fmap import fleaves

__all__ = ["fit", "fitted"]


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
        raises KeyboardInterrupt; over a mesh, Ctrl-C on any rank ends all after the same step, a step or two
        later. Torch's, numpy's and Python's random states are those from before; fits in
        several threads at once share these generators while they run, and take a key each.

    Raises:
        CallbackError: an error in a callback.
        NonFiniteLoss: a loss that is NaN or infinite; the learner is as it was before that step.
        ValueError: no epochs, no data, a checkpoint past the last epoch.
        Exception: whatever the model, the loss or the data raise. Of every error, ``error.learner`` is the
            learner after the last whole step.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.randn(64, 3)
        >>> data = fl.DataLoader((x, x.sum(1, keepdim=True)), batch_size=16, shuffle=True)
        >>> learner = fl.Learner(fl.Dense(3, 1), data, fl.Adam(0.1), fl.losses.mse, progress=False)
        >>> learner = fl.fit(learner, 2)
        >>> learner = fl.fit(learner, 3)
        >>> learner.epoch, learner.step
        (5, 20)
    """
    return fitted(learner, epochs, resume=resume, donate=donate, advice="fit(learner, {left})")


def fitted(
    learner: Learner,
    epochs: int,
    *,
    resume: bool | str | os.PathLike[str] = False,
    donate: bool = False,
    advice: str | None,
) -> Learner:
    """What `fit` gives.

    Args:
        advice: how to go on after Ctrl-C, with the number of epochs ``{left}``; ``None``: the caller tells.
    """
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 0:
        raise ValueError(f"fit(learner, {epochs!r}): write how many epochs, such as fit(learner, 10)")
    if not isinstance(learner, Learner):
        raise TypeError(
            f"fit takes a Learner first, found a {type(learner).__name__}: write fit(learner, 10)"
        )
    goal = learner.epoch + epochs
    for name, data in learner.data.items():
        if isinstance(data, Iterator) and epochs > 1:
            raise ValueError(
                f"the data of {name} is a {type(data).__name__}, which can be iterated once, and there are "
                f"{epochs} epochs: give a DataLoader, a list, or an object whose __iter__ begins anew"
            )
    found = None if resume is False else resumed(learner, resume, goal)
    ranks = ranks_of(learner)
    begun = ranks.agreed(found or learner, goal)
    run = Run(begun, goal, donate=donate or found is not None, resumes=resume is not False, ranks=ranks)
    if found is not None:
        run.stopped = found.stopped
    with kept(), Interrupt() as interrupt:
        return _Loop(run, interrupt, advice).go()


class _Loop:
    """One fit."""

    def __init__(self, run: Run, interrupt: Interrupt, advice: str | None) -> None:
        self.run, self.interrupt, self.advice = run, interrupt, advice
        self.stop = run.ranks.vote()
        self.learner = run.learner
        self.steps_key, self.data_key = self.learner.key.split(2)

    def go(self) -> Learner:
        run = self.run
        try:
            try:
                Seeds(self.steps_key).begin()
                run.emit(Event.FIT_BEGIN)
                while run.completed < run.goal and run.stopped is None:
                    self.epoch()
            except CancelFit as cancel:
                run.stopped = cancel.reason
            with suppress(CancelFit):
                run.emit(Event.FIT_END)
            run.ranks.end()
        except BaseException as error:
            self.failed(error)
            raise
        if run.stopped == INTERRUPTED and self.advice is not None and run.ranks.first:
            left = run.goal - run.completed
            then = f"go on with {self.advice.format(left=left)}" if left else "its last epoch is complete"
            print(
                f"interrupted {run.where()}. The learner that is returned stands there: {then}",
                file=sys.stderr,
            )
        return run.as_learner()

    def epoch(self) -> None:
        run = self.run
        run.epoch = run.completed + 1
        for number in range(run.phase_number, len(self.learner.phases)):
            phase = self.learner.phases[number]
            self.begin(phase)
            seeds = Seeds(self.steps_key.fold_in(run.phase_number).fold_in(run.completed))
            seeds.begin()
            try:
                if run.batch_number == 0:
                    run.emit(Event.EPOCH_BEGIN)
                self.batches(phase, seeds)
            except CancelEpoch:
                pass
            # Where a checkpoint of the epoch's end goes on.
            run.phase_number, run.batch_number = number + 1, 0
            if run.phase_number == len(self.learner.phases):
                run.phase_number, run.completed = 0, run.completed + 1
            run.emit(Event.EPOCH_END)
            self.stop_if_asked()

    def begin(self, phase: Phase) -> None:
        run = self.run
        run.phase, run.trains = phase.name, isinstance(phase, TrainingPhase)
        run.waited, run.metrics, run.out = 0.0, {}, {}
        try:
            run.batches = len(self.learner.data[phase.name])
        except (TypeError, NotImplementedError):
            run.batches = None

    def batches(self, phase: Phase, seeds: Seeds) -> None:
        batches = self.data(phase)
        try:
            self.steps(phase, seeds, batches)
        finally:  # processes that make batches end now, and not when somebody forgets an error
            close = getattr(batches, "close", None)
            if close is not None:
                close()

    def steps(self, phase: Phase, seeds: Seeds, batches: Iterator[Any]) -> None:
        run = self.run
        trains, keyed, number = run.trains, run.keyed, run.batch_number
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
            run.step += trains
            if done:
                run.emit(Event.STEP_END)
            self.stop_if_asked()
        if number == 0 and not getattr(self.learner.data[phase.name], "partial", True):
            raise ValueError(
                f"the data of {phase.name} gave no batch in epoch {run.epoch}: it has fewer observations "
                "than a batch, and partial=False leaves them out"
            )
        if number == 0:
            raise ValueError(
                f"the data of {phase.name} gave no batch in epoch {run.epoch}; a generator can be iterated "
                "once: give a DataLoader, a list, or an object whose __iter__ begins anew"
            )

    def data(self, phase: Phase) -> Iterator[Any]:
        """The batches of an epoch from where the run stands."""
        run, start = self.run, self.run.batch_number
        key = self.data_key.fold_in(run.phase_number)
        batches = epoch_of(self.learner.data[phase.name], run.completed, start, key)
        if start and run.learner.random is not None:
            set_random_states(run.learner.random)
        return batches

    def stop_if_asked(self) -> None:
        if self.stop.put(self.interrupt.asked):
            raise CancelFit(INTERRUPTED)

    @contextmanager
    def again(self, seeds: Seeds) -> Iterator[None]:
        """The draws of the step that has just ended."""
        number = self.run.batch_number - 1
        with kept(), seeded(seeds.key.fold_in(number)) if self.run.keyed else _NOTHING:
            seeds.step(number)
            yield

    def failed(self, error: BaseException) -> None:
        """Tell the callbacks, and hand the learner as it stands to who catches the error."""
        run = self.run
        run.error = error
        then = []
        try:
            learner = run.as_learner()
            error.learner = learner  # type: ignore[attr-defined]
            lost = any(type(x) is Donated for x in fleaves((learner.model, learner.state)))
            then.append(_HALF_DONE if lost else "As `error.learner`, the learner goes on from there.")
        except Exception as another:
            then.append(f"Then {type(another).__name__}: {another}")
        then += run.tell(Event.EXCEPTION)
        error.add_note(" ".join((f"In a fit, {run.where()}.", *then)))


_END = object()
_HALF_DONE = (
    "The update was half done, and has written over the model: go on from a checkpoint, not from "
    "`error.learner`."
)
_NOTHING: AbstractContextManager[Any] = nullcontext()
