"""The learner of a configuration: model, batches, rule, schedule and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fluxlike.command.config import Configuration, Mlp, Torchvision, Training
from fluxlike.command.models import built
from fluxlike.command.ranks import in_words
from fluxlike.command.tasks import Task
from fluxlike.data.loader import DataLoader
from fluxlike.layers.compose import Chain
from fluxlike.learning.callback import Callback
from fluxlike.learning.callbacks.checkpointer import Checkpointer
from fluxlike.learning.callbacks.scheduler import Scheduler
from fluxlike.learning.learner import Learner
from fluxlike.learning.one_cycle import cycle_of
from fluxlike.optimisers.rules.adam import Adam, AdamW
from fluxlike.optimisers.rules.adaptive import RMSProp
from fluxlike.optimisers.rules.descent import Descent, Momentum, Nesterov
from fluxlike.optimisers.rules.sign import Lion
from fluxlike.placement.device import to_device
from fluxlike.schedules import Cosine
from fluxlike.scope.key import Key
from fluxlike.scope.seeded import seeded
from fluxlike.trees.show import size_text
from fluxlike.trees.trainables import trainables

__all__ = ["learner_of", "loader_of"]

_RULES: tuple[Any, ...] = (Adam, AdamW, Lion, Momentum, Nesterov, RMSProp, Descent)
_EVERY = 500  # steps between checkpoints, besides the end of every epoch


def learner_of(run: Configuration, task: Task, key: Key, device: Any, checkpoints: Path, /) -> Learner:
    """A new learner.

    Args:
        run: the configuration.
        task: its data.
        key: what the first parameters, and all that is random in training, are drawn from.
        device: where to compute: a device, or a mesh.
        checkpoints: the folder in which to keep them.

    Raises:
        ValueError: a model that does not take the data, or is too large for the memory.
    """
    first, drawn = key.split(2)
    with seeded(first):
        model = _built(run, task, device)
    precision = run.training.precision
    rule = next(rule for rule in _RULES if rule.__name__ == run.training.rule)
    training = loader_of(run, task.training, device, shuffle=True)
    return Learner(
        model,
        (training, loader_of(run, task.validation, device)),
        rule(lr=run.training.lr),
        task.loss,
        metrics=task.metrics,
        callbacks=[
            *_scheduled(run.training, run.training.epochs * len(training)),
            Checkpointer(checkpoints, every=_EVERY, keep=1),
        ],
        key=drawn,
        jit=run.training.jit,
        precision=None if precision == "float32" else precision,
    )


def _built(run: Configuration, task: Task, device: Any) -> Chain:
    try:
        return to_device(built(run, task.inputs, task.outputs, task.targets), device)
    except (MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(run.model, Torchvision):  # whose numbers are not in the configuration
            raise
        raise ValueError(
            f"[model] the {run.model.kind} takes {_size(run, task)}, which {in_words(device)} does not have; "
            f"write smaller numbers in {'hidden' if isinstance(run.model, Mlp) else 'channels'}"
        ) from error


def _size(run: Configuration, task: Task) -> str:
    """How large a model is that can't be made."""
    try:
        with torch.device("meta"):
            model = built(run, task.inputs, task.outputs, task.targets)
    except (OverflowError, RuntimeError):
        return "more memory than 64 bits can count"
    return size_text(sum(x.nbytes for x in trainables(model)))


def loader_of(run: Configuration, data: Any, device: Any, /, *, shuffle: bool = False) -> DataLoader:
    """Batches of a data set, on a device.

    Where a shuffled epoch would end by a batch of one observation, which has no variance to normalise by,
    that one is left out, and in the next epoch it is another.
    """
    size = run.data.batch_size
    n = len(data[0]) if isinstance(data, tuple) else len(data)
    partial = not (shuffle and n > size > 1 and n % size == 1)
    return DataLoader(data, size, shuffle=shuffle, partial=partial, workers=run.data.workers, device=device)


def _scheduled(training: Training, steps: int) -> list[Callback]:
    if training.schedule == "constant":
        return []
    cycle = training.schedule == "one_cycle"
    schedule = cycle_of(steps, training.lr) if cycle else Cosine(training.lr, 0.0, steps)
    return [Scheduler(start=0, lr=schedule)]
