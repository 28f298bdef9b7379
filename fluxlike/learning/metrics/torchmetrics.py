"""Metrics of torchmetrics, which is imported only by those who hand one in.

https://lightning.ai/docs/torchmetrics
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fluxlike.learning.metrics.host import Scalar
from fluxlike.learning.metrics.unchanged import unchanged
from fluxlike.trees.fmap import fleaves, fmap

__all__ = ["TorchMetric", "is_torchmetric"]

_CACHES = ("_computed", "_forward_cache", "_cache")
_MOST_COLUMNS = 1000
_ABSENT = object()
_KINDS = "biufcmM"  # of arrays
_NOT_SAVED = "and can't be saved in the middle of an epoch"


def is_torchmetric(value: Any, /) -> bool:
    """Whether it is a metric or a collection of torchmetrics, without importing that."""
    return isinstance(value, nn.Module) and any(
        cls.__name__ in ("Metric", "MetricCollection") and cls.__module__.partition(".")[0] == "torchmetrics"
        for cls in type(value).__mro__
    )


class TorchMetric:
    """A metric or a collection of torchmetrics, updated with the outputs and targets of every batch.

    It works on copies, on the device of the outputs; the object handed in is not changed. The copies of
    several ranks don't talk to each other: over a mesh each gets all outputs and targets. A metric of one
    number is a column with its name. Of a vector or tuple every entry is one, ``name_0``, ``name_1`` and so
    on, of a matrix ``name_0_1``. The entries of a collection or a dict go by their own names, after ``name_``
    if a name is given.

    Args:
        metric: a `torchmetrics.Metric` or `torchmetrics.MetricCollection`.
        name: what its columns are called or begin with. (default: the name of its class)
    """

    def __init__(self, metric: nn.Module, name: str | None = None) -> None:
        fresh: Any = copy.deepcopy(metric)
        fresh.reset()
        for _, part in _parts(fresh):
            vars(part).update(sync_on_compute=False, _to_sync=False)
        self._metric = fresh
        self._named = name is not None
        self.name = type(metric).__name__ if name is None else name

    def __repr__(self) -> str:
        return f"TorchMetric({self.name})"

    @property
    def higher_is_better(self) -> bool | dict[str, bool | None] | None:
        """What the metric declares, or those of a collection by column; None where it is not known."""
        metric: Any = self._metric
        if not isinstance(metric, Mapping | nn.ModuleDict):
            return getattr(metric, "higher_is_better", None)
        before = f"{self.name}_" if self._named else ""
        return {f"{before}{name}": getattr(part, "higher_is_better", None) for name, part in metric.items()}

    def init(self) -> _TorchMeter:
        return _TorchMeter(self, copy.deepcopy(self._metric), 0)

    def restore(self, state: Mapping[str, Any], /) -> _TorchMeter:
        """The meter that gave this state.

        Raises:
            ValueError: it is the state of another metric.
        """
        metric = copy.deepcopy(self._metric)
        parts = dict(_parts(metric))
        if set(parts) != set(state["parts"]):
            raise ValueError(
                f"the state of the metric {self.name!r} has the parts {sorted(state['parts'])}, and this "
                f"metric {sorted(parts)}; go on with the metrics that the run was started with"
            )
        copies: dict[int, Tensor | np.ndarray] = {}
        for path, found in state["parts"].items():
            parts[path].__dict__.update({key: _copied(value, copies) for key, value in found.items()})
        return _TorchMeter(self, metric, state["updates"])

    def columns(self, result: Any, /) -> dict[str, Scalar]:
        """What the metric gave, a number a column."""
        found = dict(_columns("" if isinstance(result, Mapping) and not self._named else self.name, result))
        if len(found) > _MOST_COLUMNS:
            raise ValueError(
                f"the metric {self.name!r} gave {len(found)} numbers, more than the {_MOST_COLUMNS} that a "
                "history takes; give one that sums them up, and call this one on the predictions afterwards"
            )
        return found

    def changes(self, metric: nn.Module, /) -> dict[str, dict[str, Any]]:
        """What a copy has gathered: its states, and whatever else is not as at the start.

        Raises:
            ValueError: some of it can't be saved.
        """
        parts, copies = dict(_parts(metric)), dict[int, Tensor | np.ndarray]()
        fresh = dict(_parts(self._metric))
        if set(parts) != set(fresh):
            raise ValueError(
                f"the metric {self.name!r} has changed its parts, from {sorted(fresh)} to {sorted(parts)}, "
                "and can't be saved in the middle of an epoch"
            )
        return {path: _changed(part, fresh[path], self._place(path), copies) for path, part in parts.items()}

    def _place(self, path: str) -> str:
        within = path.partition(".")[2]
        return f"the metric {self.name!r}" + (f", in its part {within!r}," if within else "")


class _TorchMeter:
    def __init__(self, metric: TorchMetric, running: Any, updates: int) -> None:
        self._metric, self._running, self._updates = metric, running, updates
        self._device: torch.device | None = None

    def update(self, outputs: Any, targets: Any, n: int, /) -> None:
        device = _device(outputs, targets)
        if device is not None and device != self._device:
            self._running, self._device = self._running.to(device), device
        try:
            self._running.update(_detached(outputs), _detached(targets))
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"the metric {self._metric.name!r} does not take outputs {_said(outputs)} and targets "
                f"{_said(targets)}: {error}"
            ) from error
        self._updates += 1

    def compute(self) -> dict[str, Scalar]:
        return self._metric.columns(self._running.compute()) if self._updates else {}

    def state(self) -> dict[str, Any]:
        return {"updates": self._updates, "parts": self._metric.changes(self._running)}


def _parts(metric: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The metric and those inside it: of a collection, of a composition such as ``a + b``, of a wrapper."""
    for path, part in metric.named_modules():
        if is_torchmetric(part):
            yield f"metric.{path}" if path else "metric", part


def _changed(
    part: nn.Module, fresh: nn.Module, place: str, copies: dict[int, Tensor | np.ndarray]
) -> dict[str, Any]:
    """What a part has gathered in its attributes, copied.

    Raises:
        ValueError: an attribute has gathered what a checkpoint does not hold.
    """
    states, before = getattr(part, "_defaults", {}), vars(fresh)
    gone = [key for key in before if key not in vars(part) and key not in _CACHES]
    if gone:
        raise ValueError(f"{place} has lost its attribute {gone[0]!r}, {_NOT_SAVED}; set it to None instead")
    found = {}
    for key, value in vars(part).items():
        changed = key in states or not unchanged(value, before.get(key, _ABSENT), apart=is_torchmetric)
        if key in _CACHES or not changed:
            continue
        if not _is_plain(value):
            raise ValueError(
                f"{place} has a {type(value).__name__} in its attribute {key!r}, which has changed, "
                f"{_NOT_SAVED}; keep it as tensors, arrays, numbers, strings, lists and dicts, "
                "such as sorted(…) for a set, or save at the ends of epochs alone"
            )
        found[key] = _copied(value, copies)
    return found


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint holds it; subclasses would come back as what they are subclasses of."""
    kind = type(value)
    if kind is dict:
        return all(type(key) in (str, int) and _is_plain(item) for key, item in value.items())
    if kind in (list, tuple):
        return all(map(_is_plain, value))
    if kind is np.ndarray or isinstance(value, np.generic):
        return value.dtype.kind in _KINDS
    return value is None or kind in (bool, int, float, str) or isinstance(value, Tensor)


def _copied(value: Any, copies: dict[int, Tensor | np.ndarray]) -> Any:
    """A deep copy; a tensor that several metrics share, as in a collection, is copied once."""
    if isinstance(value, (Tensor, np.ndarray)):
        if id(value) not in copies:
            copies[id(value)] = value.detach().clone() if isinstance(value, Tensor) else value.copy()
        return copies[id(value)]
    if isinstance(value, dict):
        return {key: _copied(v, copies) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(v, copies) for v in value)
    return value


def _columns(name: str, value: Any) -> Iterator[tuple[str, Scalar]]:
    if isinstance(value, Mapping):
        pairs: Any = value.items()
    elif isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.ndim):
        pairs = enumerate(value)
    elif isinstance(value, (Tensor, bool, int, float)):
        yield name, value
        return
    else:
        raise TypeError(f"the metric gave a {type(value).__name__} for {name!r}, and a history takes numbers")
    for key, inner in pairs:
        yield from _columns(f"{name}_{key}" if name else str(key), inner)


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return fmap(lambda x: x.detach(), value)


def _device(*values: Any) -> torch.device | None:
    for value in values:
        for leaf in [value] if isinstance(value, Tensor) else fleaves(value):
            if isinstance(leaf, Tensor):
                return leaf.device
    return None


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"of shape {tuple(value.shape)} and {value.dtype}"
    return f"that are a {type(value).__name__}"
