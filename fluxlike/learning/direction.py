"""Whether less or more of a score is better."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

__all__ = ["Mode", "mode_of"]

Mode = Literal["min", "max"]

#: Names such as loss, l1_loss, BCELoss and squared_error.
_OF_LOSSES = re.compile(r"(^|[^a-zA-Z])(loss|error)$|[a-zA-Z](Loss|Error)$")


def mode_of(by: str | None, mode: Mode | None, metrics: Iterable[Any] | None = None, *, write: str) -> Mode:
    """Whether the least or the greatest of a score is the best.

    It is what the caller says; else what the metric of this name declares by its ``higher_is_better``, as
    those of torchmetrics do; else ``"min"`` for a name that ends in loss or error.

    Args:
        by: the name of the score; None where there is none, and so no better and worse.
        mode: what the caller says, or None.
        metrics: those of the learner, as `metrics_of` gives them. (default: not known)
        write: for the error, the call up to its `mode`, such as ``"EarlyStopping('f1'"``.

    Raises:
        ValueError: `mode` is another, or neither the metric nor its name says it.

    Example:
        >>> import fluxlike as fl
        >>> measured = fl.callbacks.Metrics(fl.metrics.accuracy).metrics
        >>> mode_of("accuracy", None, measured, write="EarlyStopping('accuracy'")
        'max'
        >>> mode_of("l1_loss", None, write="EarlyStopping('l1_loss'")
        'min'
    """
    if mode is not None:
        if mode not in ("min", "max"):
            raise ValueError(
                f"""mode={mode!r}: write {write}, mode="min") for a loss, "max" for an accuracy"""
            )
        return mode
    if by is None:
        return "min"
    declared = _declared(metrics or ())
    higher = declared.get(by)
    if higher is None and _OF_LOSSES.search(by):
        higher = False
    if higher is None:
        names = ", ".join(map(repr, declared)) or "none"
        there = "" if metrics is None else f" (the metrics of the learner are {names})"
        raise ValueError(
            f"nothing says whether more or less of {by!r} is better{there}: write {write}, "
            'mode="max") as of an accuracy, or mode="min" as of a loss'
        )
    return "max" if higher else "min"


def _declared(metrics: Iterable[Any], /) -> dict[str, bool | None]:
    """By column of the history, what the metrics say of themselves."""
    found: dict[str, bool | None] = {}
    for metric in metrics:
        higher = getattr(metric, "higher_is_better", None)
        found |= higher if isinstance(higher, Mapping) else {metric.name: higher}
    return found
