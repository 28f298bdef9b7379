"""`SanityCheck`: what would go wrong later, found before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxlike.learning.callback import Callback, innermost
from fluxlike.learning.callbacks.metrics import Metrics, update
from fluxlike.learning.callbacks.nonfinite import first_nonfinite
from fluxlike.learning.phase import Phase, TrainingPhase, ValidationPhase
from fluxlike.learning.randomness import kept
from fluxlike.learning.ranks import mesh_of
from fluxlike.learning.step import SupervisedStep, pair
from fluxlike.placement.device import get_device, to_device
from fluxlike.scope.mode import mode
from fluxlike.scope.seeded import seeded
from fluxlike.trees import algebra
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["SanityCheck"]


@dataclass(frozen=True)
class SanityCheck(Callback):
    """Try every phase on one batch before the first step of a fit, and throw away what comes of it.

    It sees to it that model and batch are on one device, the model takes the batch, the labels are in
    range of the outputs, the loss is a finite 0-d tensor, and every metric takes outputs and targets.

    Training is tried on the batch that the fit has drawn anyway. Of the other phases' data a first
    batch is taken where that uses nothing up: of what has a method ``epoch``, as a `DataLoader` does, and
    of sequences; its device counts when it comes to its step. Anything else might be a stream that can
    be read once, and is tried when its first batch comes. The numbers of the run stay the same to the bit.

    Raises:
        ValueError: what is wrong, where, and what to write instead.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.learning.callbacks.sanity import SanityCheck
        >>> data = [(torch.ones(4, 2), torch.tensor([0, 1, 2, 3]))]
        >>> loss = fl.losses.logitcrossentropy
        >>> learner = fl.Learner(fl.Dense(2, 3), data, fl.Adam(), loss, callbacks=[SanityCheck()])
        >>> try:
        ...     fl.fit(learner, 1)
        ... except fl.CallbackError as error:
        ...     print(str(error.__cause__).splitlines()[0])
        the labels of training go from 0 to 3, and the outputs have 3 classes, 0 to 2: give the last layer 4
    """

    reads = ("model", "state", "batch")

    def step_begin(self, run: Any) -> None:
        tried = run.live.setdefault("tried", {})
        if tried.get(run.phase) == "whole":
            return
        with kept():
            for phase in run.learner.phases:
                if not isinstance(phase, (TrainingPhase, ValidationPhase)):
                    continue  # what a phase of your own makes of a batch is its own affair
                if phase.name == run.phase:
                    _check_devices(phase.name, run.model, run.batch)
                    if phase.name not in tried:
                        _try(run, phase, run.batch)
                elif phase.name not in tried:
                    found = _ahead(run, phase.name)
                    if found is not None:
                        _try(run, phase, _beside(run.model, found))
                        tried[phase.name] = "but for its device"
        tried[run.phase] = "whole"


def _ahead(run: Any, name: str) -> Any:
    """A batch of another phase, where taking it uses nothing up; else None."""
    data = run.learner.data[name]
    if hasattr(data, "epoch"):
        with seeded(run.learner.key):
            batches: Iterator[Any] = iter(data.epoch(run.completed))
            batch = next(batches, None)
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    elif isinstance(data, Sequence):
        batch = data[0] if len(data) else None
    else:
        return None
    if batch is None:
        raise ValueError(f"the data of {name} gives no batch; leave the phase out, or give it observations")
    return batch


def _beside(model: Any, batch: Any) -> Any:
    """A batch on the model's device, to which a callback may move the batches of the run."""
    if mesh_of(batch) is not None:
        return batch
    devices = {x.device for x in flatten(model)[0] if isinstance(x, Tensor)}
    return to_device(batch, devices.pop()) if len(devices) == 1 else batch


def _try(run: Any, phase: Phase, batch: Any) -> None:
    step, training = run.learner.steps, isinstance(phase, TrainingPhase)
    try:
        if isinstance(step, SupervisedStep):
            _check_labels(run, phase.name, training, batch)
        with _draws(run):
            out = _step(step, run, training, batch)
    except _Found as found:
        raise ValueError(str(found)) from found.__cause__
    except Exception as error:
        raise ValueError(
            f"a step of {phase.name} fails on its first batch, which is {_described(batch)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    _check_loss(run, phase.name, out, batch)
    _check_metrics(run, phase.name, out)


def _draws(run: Any) -> AbstractContextManager[Any]:
    """A scope of draws that takes none from the run's; the global generators are put back around it."""
    return seeded(run.learner.key) if run.keyed else nullcontext()


def _step(step: Any, run: Any, training: bool, batch: Any) -> Mapping[str, Any]:
    if training:
        with step.autocast(run.model):
            return step.train(*algebra.clone((run.model, run.state)), batch)[2]
    with torch.no_grad(), step.autocast(run.model):
        return step.evaluate(run.model, run.state, batch)


class _Found(Exception):
    """What is wrong, in words."""


def _check_devices(name: str, model: Any, batch: Any) -> None:
    if not any(isinstance(x, Tensor) for x in flatten(model)[0]):
        return
    device = get_device(model)
    for path, x in _tensors(batch):
        if x.ndim and x.device != device:
            raise ValueError(
                f"the batch of {name} is on {x.device} at {path}, the model on {device}; write "
                f"callbacks=[fluxlike.callbacks.ToDevice({str(device)!r})], or DataLoader(…, "
                f"device={str(device)!r})"
            )


def _check_labels(run: Any, name: str, training: bool, batch: Any) -> None:
    """Refuse labels out of the outputs' range, which is an error that can't be caught on CUDA."""
    step, (x, y) = run.learner.steps, pair(batch)
    with _draws(run), torch.no_grad(), step.autocast(run.model), mode("train" if training else "test"):
        outputs = run.model(x)
    if not _are_classes(outputs, y):
        return
    low, high, classes = int(y.min()), int(y.max()), outputs.shape[1]
    if low >= 0 and high < classes:
        return
    try:
        with torch.no_grad():
            step.criterion(*to_device((outputs.float(), y), "cpu"))
    except Exception as error:
        write = f"give the last layer {high + 1}" if low >= 0 else "count classes from 0"
        raise _Found(
            f"the labels of {name} go from {low} to {high}, and the outputs have {classes} classes, 0 to "
            f"{classes - 1}: {write}"
        ) from error


def _are_classes(outputs: Any, y: Any) -> bool:
    """Whether targets look like indices of classes, which are the second axis of the outputs."""
    return (
        isinstance(outputs, Tensor)
        and isinstance(y, Tensor)
        and outputs.is_floating_point()
        and outputs.ndim > 1
        and outputs.shape[1] > 1
        and y.numel() > 0
        and y.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        and y.shape == (outputs.shape[0], *outputs.shape[2:])
    )


def _check_loss(run: Any, name: str, out: Mapping[str, Any], batch: Any) -> None:
    loss = out.get("loss")
    if not isinstance(loss, Tensor) or loss.ndim:
        found = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(
            f"the loss of {name} is {found}; a step gives a 0-d tensor: take the mean, and don't call .item()"
        )
    if not torch.isfinite(loss):
        with _draws(run):
            where = first_nonfinite(run.learner.steps, run.model, batch)
        raise ValueError(f"the loss of {name} is {float(loss)} before the first step: {where}")


def _check_metrics(run: Any, name: str, out: Mapping[str, Any]) -> None:
    for callback in map(innermost, run.learner.callbacks):
        for metric in callback.metrics if isinstance(callback, Metrics) else ():
            missing = [part for part in ("outputs", "targets") if part not in out]
            if missing:
                raise ValueError(
                    f"the metric {metric.name!r} needs outputs and targets, and the step of {name} gives no "
                    f"{missing[0]!r}, but {', '.join(map(repr, out))}"
                )
            try:
                meter = metric.init()
                update([meter], out["outputs"], out["targets"], run.samples)
                meter.compute()
            except Exception as error:
                raise ValueError(
                    f"the metric {metric.name!r} does not take the outputs and targets of {name}, which are "
                    f"{_described((out['outputs'], out['targets']))}: {type(error).__name__}: {error}"
                ) from error


def _tensors(tree: Any) -> list[tuple[str, Tensor]]:
    leaves, treedef = flatten(tree)
    pairs = zip(structure_of(treedef).paths, leaves, strict=True)
    return [(path or "its root", x) for path, x in pairs if isinstance(x, Tensor)]


def _described(tree: Any) -> str:
    """Shapes and dtypes by path."""
    found = [f"{path} {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for path, x in _tensors(tree)]
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return ", ".join(found[:4]) + more or f"a {type(tree).__name__} without tensors"
