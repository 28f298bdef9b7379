"""A task: the data of a configuration read, split and measured."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fluxlike.command.config import Configuration, Csv, ImageFolder
from fluxlike.command.models import Spread, spread_of_images, spread_of_rows
from fluxlike.command.pictures import grey
from fluxlike.command.tables import Rows, read_rows
from fluxlike.data.observations import num_observations, splitobs
from fluxlike.data.readers.image_folder import ImageFolder as Images
from fluxlike.learning.metrics.accuracy import accuracy
from fluxlike.losses.classes import logitcrossentropy
from fluxlike.losses.regression import mae, mse
from fluxlike.scope.key import Key
from fluxlike.trees.show import plural

__all__ = ["Task", "task_of"]


@dataclass(frozen=True)
class Task:
    """What there is to learn.

    Attributes:
        training: a data set of pairs (x, y).
        validation: the same.
        inputs: the spread of what the model gets.
        targets: the spread of the values to predict; None for classes.
        classes: the names of the classes; None for values.
        columns: the names of the columns that the model gets; none for images.
        checksum: of the names of the images, or of the table: another one is other data.
    """

    training: Any
    validation: Any
    inputs: Spread
    targets: Spread | None
    classes: tuple[str, ...] | None
    columns: tuple[str, ...]
    checksum: int

    @property
    def outputs(self) -> int:
        """How many numbers a model gives for an observation."""
        return 1 if self.classes is None else len(self.classes)

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Of outputs and targets: cross-entropy, or the squared error in units of the targets' variance."""
        if self.targets is None:
            return logitcrossentropy
        return partial(_share_of_variance, self.targets.deviation.item())

    @property
    def metrics(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """By name: accuracy, or the mean absolute error in the targets' unit."""
        return {"accuracy": accuracy} if self.targets is None else {"mean_absolute_error": mae}

    @property
    def sizes(self) -> tuple[int, int]:
        """How many observations are trained on, and how many validated on."""
        return num_observations(self.training), num_observations(self.validation)


def _share_of_variance(deviation: float, outputs: Tensor, targets: Tensor) -> Tensor:
    return mse(outputs / deviation, targets / deviation)


def task_of(run: Configuration, key: Key, /) -> Task:
    """The task of a configuration.

    Args:
        run: the configuration.
        key: what the split is drawn from.

    Raises:
        ValueError: data that is damaged, of another kind than the configuration says, or too little.
        FileNotFoundError: data that is not there.
    """
    task = _of_images(run.data, key) if isinstance(run.data, ImageFolder) else _of_table(run.data, key)
    if task.classes is not None and len(task.classes) < 2:
        raise ValueError(
            f"{run.data.path} has one class, {task.classes[0]!r}; there must be two to tell apart"
        )
    training, validation = task.sizes
    if training < 2 or not validation:
        raise ValueError(
            f"{run.data.path} leaves {plural(training, 'observation')} to train on and {validation} to "
            "validate on; at least 2 and 1 are needed: add some, or write another [data] validation"
        )
    return task


def _split(data: Any, share: float, key: Key) -> tuple[Any, Any]:
    training, validation = splitobs(data, 1 - share, shuffle=True, key=key)
    return training, validation


def _of_images(data: ImageFolder, key: Key) -> Task:
    read = partial(Images, size=data.size, transform=grey if data.channels == 1 else None)
    images = read(data.path)
    if isinstance(data.validation, Path):
        training, validation = images, read(data.validation, classes=images.classes)
        names = [*_names(images, data.path), *_names(validation, data.validation)]
    else:
        training, validation = _split(images, data.validation, key)
        names = _names(images, data.path)
    checksum = zlib.crc32("\0".join(names).encode("utf-8", "surrogateescape"))
    spread = spread_of_images(data.channels)
    return Task(training, validation, spread, None, images.classes, (), checksum)


def _names(images: Images, root: Path) -> list[str]:
    return [str(Path(path).relative_to(root)) for path in images.paths]


def _of_table(data: Csv, key: Key) -> Task:
    rows = read_rows(data)
    if isinstance(data.validation, Path):
        training, held = rows.data, read_rows(data, like=rows)
        validation, tables = held.data, [rows, held]
    else:
        (training, validation), tables = _split(rows.data, data.validation, key), [rows]
    if not len(training[0]):
        raise ValueError(f"{data.path} leaves no row to train on; write another [data] validation")
    targets = spread_of_rows(training[1]) if rows.classes is None else None
    spread = spread_of_rows(training[0])
    return Task(training, validation, spread, targets, rows.classes, rows.columns, _checksum(tables))


def _checksum(tables: Sequence[Rows]) -> int:
    checksum = 0
    for rows in tables:
        for x in rows.data:
            checksum = zlib.crc32(x.numpy().tobytes(), checksum)
    return checksum
