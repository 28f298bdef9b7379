"""`LogHyperParams`: what was chosen for a run, in its logs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from fluxlike.learning.callback import innermost
from fluxlike.learning.callbacks.logging import Logging
from fluxlike.learning.callbacks.metrics import Metrics
from fluxlike.learning.callbacks.scheduler import Scheduler
from fluxlike.learning.logs.protocol import Log, plain_values
from fluxlike.learning.metrics.functions import FunctionMetric
from fluxlike.optimisers.rule import is_rule, rules_in
from fluxlike.optimisers.state import is_param_state
from fluxlike.trees.structure import flatten
from fluxlike.trees.trainables import trainables

__all__ = ["LogHyperParams", "hyperparameters"]

Plain = bool | int | float | str | None


class LogHyperParams(Logging):
    """Writes what was chosen for a run to logs, once a run: see `hyperparameters`.

    TensorBoard compares runs by the loss and the metrics of every phase, which `LogMetrics` writes.

    Args:
        logs: a `TensorBoardLog` or `JSONLinesLog`, or several.
        more: other choices by name, numbers, strings or None; they take the place of those of the same name.

    Raises:
        TypeError: no log, one that keeps no hyperparameters, or a choice that is anything else.

    Example:
        >>> import tempfile, torch, fluxlike as fl
        >>> from pathlib import Path
        >>> from fluxlike.learning.callbacks.log_hyperparams import LogHyperParams
        >>> from fluxlike.learning.logs import JSONLinesLog
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logging = LogHyperParams(JSONLinesLog(f"{folder}/run.jsonl"), width=2)
        ...     learner = fl.Learner(
        ...         fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, callbacks=[logging], progress=False
        ...     )
        ...     _ = fl.fit(learner)
        ...     '"lr": 0.001' in Path(f"{folder}/run.jsonl").read_text()
        True
    """

    kinds = ("hyperparameters",)
    reads = ("model", "state")
    of_first_rank = True

    def __init__(self, *logs: Log, **more: Plain) -> None:
        super().__init__(*logs)
        self.more = plain_values(more)

    def init(self) -> dict[str, Any]:
        return {"written": False}

    def fit_begin(self, run: Any) -> None:
        super().fit_begin(run)
        if run.memory["written"]:
            return
        values = {**hyperparameters(run), **self.more}
        for log in self.logs:
            log.hyperparameters(values, _compared(run.learner))
        run.memory["written"] = True


def hyperparameters(run: Any, /) -> dict[str, Plain]:
    """What was chosen for a run, by name: numbers, strings and None.

    These are the model, its number of parameters and their device, the loss, the rule and its
    hyperparameters, schedules, the batch size, the last epoch, the precision, `jit` and the key. A
    hyperparameter that two rules of a chain have is called by its rule's name and its own; one that differs
    from layer to layer is a string of all values.

    Args:
        run: a run, as callbacks get it.
    """
    learner = run.learner
    parameters = trainables(run.model)
    step = learner.steps
    found: dict[str, Plain] = {
        "model": type(run.model).__name__,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "device": ", ".join(dict.fromkeys(str(parameter.device) for parameter in parameters)),
        "loss": _plain(getattr(step, "criterion", None) or getattr(step, "function", None) or step),
    }
    found |= _of_rules(run.state)
    for callback in map(innermost, learner.callbacks):
        if isinstance(callback, Scheduler):
            place = "" if callback.where is None else f" at {_plain(callback.where)}"
            found |= {f"schedule of {name}{place}": _plain(f) for name, f in callback.schedules}
    batch_size = getattr(learner.data.get("training"), "batch_size", None)
    if batch_size is not None:
        found["batch_size"] = _plain(batch_size)
    return {
        **found,
        "epochs": run.goal,
        "precision": learner.precision,
        "jit": learner.jit,
        "key": repr(learner.key),
    }


def _of_rules(state: Any) -> dict[str, Plain]:
    """The rules of a state and their hyperparameters."""
    entries = [entry for entry in flatten(state, is_param_state)[0] if is_param_state(entry)]
    rules = list({id(entry.rule): entry.rule for entry in entries}.values())
    owners: dict[str, dict[str, None]] = {}
    values: dict[tuple[str, str], list[Plain]] = {}
    for rule in rules:
        for owner, name, value in _choices(rule):
            owners.setdefault(name, {})[owner] = None
            seen = values.setdefault((owner, name), [])
            if value not in seen:
                seen.append(value)
    found: dict[str, Plain] = {"rule": ", ".join(dict.fromkeys(map(_words, rules)))}
    for (owner, name), seen in values.items():
        full = name if len(owners[name]) == 1 else f"{owner}.{name}"
        found[full] = seen[0] if len(seen) == 1 else ", ".join(map(str, seen))
    return found


def _choices(rule: Any) -> Iterator[tuple[str, str, Plain]]:
    """The class, the name and the value of each hyperparameter of a rule and of the rules inside it."""
    for part in rules_in(rule):
        for field in dataclasses.fields(part) if dataclasses.is_dataclass(part) else ():
            value = getattr(part, field.name)
            if not any(map(is_rule, value if isinstance(value, tuple) else (value,))):
                yield type(part).__name__, field.name, _plain(value)


def _words(rule: Any) -> str:
    """The classes of a rule and of the rules inside it."""
    return " ".join(type(part).__name__ for part in rules_in(rule))


def _plain(value: Any) -> Plain:
    """A value as a number or some words, without addresses."""
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(inner)}" for name, inner in value.items())
    if isinstance(value, (tuple, list)):
        return f"({', '.join(str(_plain(inner)) for inner in value)})"
    words = repr(value)
    return words if " at 0x" not in words else str(getattr(value, "__qualname__", type(value).__name__))


def _compared(learner: Any) -> list[str]:
    """The names of the scalars by which runs are compared."""
    metrics = [c.metrics for c in map(innermost, learner.callbacks) if isinstance(c, Metrics)]
    names = [metric.name for some in metrics for metric in some if isinstance(metric, FunctionMetric)]
    return [f"{phase.name}/{name}" for phase in learner.phases for name in ("loss", *names)]
