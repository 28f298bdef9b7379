"""`Callback`: what happens besides the steps of a fit, and what it may read and write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = ["DECLARED", "EVERYTHING", "Callback", "innermost"]

#: The parts of a run that callbacks declare. Everything else of it may be read by all.
DECLARED = ("model", "state", "batch", "out", "grads", "metrics", "history")

#: For ``reads``: all parts and what the other callbacks remember, so that it comes after them.
EVERYTHING = "everything"


class Callback:
    """What happens besides the steps of a fit: a subclass has a method for each event that it wants.

    The methods are ``fit_begin``, ``epoch_begin``, ``step_begin``, ``loss_begin``, ``backward_begin``,
    ``backward_end``, ``step_end``, ``epoch_end``, ``fit_end`` and ``exception``; each gets the run. Epochs
    and steps are those of every phase: ``run.phase`` says which. A callback holds its settings and nothing
    else, best as a frozen dataclass. What it remembers is ``run.memory``, a dict that is saved with
    every checkpoint; what lives only during a fit, such as an open file, is ``run.live``.

    A callback says which parts of the run it reads and writes. At one event, who writes a part comes
    before who reads it; two who write the same part are an error, unless one names the other's class
    in `after` or `before`.

    Attributes:
        reads: of ``"model"``, ``"state"`` (of the optimiser; one hyperparameter is ``"state.lr"``),
            ``"batch"``, ``"out"`` (what the step gave: loss, outputs, targets), ``"grads"``,
            ``"metrics"`` and ``"history"``; or ``"everything"``.
        writes: the same, but for everything.
        after: classes of callbacks that come first.
        before: classes of callbacks that come later.
        of_first_rank: whether only the first rank of a mesh calls it, as what prints or writes files. All
            ranks call the others, and must compute with tensors over the mesh alike. (default: False)

    Example:
        >>> import torch, fluxlike as fl
        >>> class Largest(fl.Callback):
        ...     reads = ("grads",)
        ...     def init(self):
        ...         return {"largest": 0.0}
        ...     def backward_end(self, run):
        ...         largest = max(g.abs().max().item() for g in fl.fleaves(run.grads))
        ...         run.memory["largest"] = max(run.memory["largest"], largest)
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> learner = fl.Learner(fl.Dense(2, 1), data, fl.Descent(0.1), fl.losses.mse, callbacks=[Largest()])
        >>> learner = fl.fit(learner, 3)
        >>> learner.memory["Largest"]["largest"] > 0
        True
    """

    reads: Any = ()
    writes: Any = ()
    #: Whether it ends a fit at a loss that is not finite: such a step is then not taken.
    guards: Any = False
    of_first_rank: Any = False
    after: ClassVar[tuple[type, ...]] = ()
    before: ClassVar[tuple[type, ...]] = ()

    @property
    def name(self) -> str:
        """What it is called in ``learner.memory`` and in errors."""
        return type(self).__name__

    def init(self) -> dict[str, Any]:
        """What it remembers before the first fit: nested dicts and lists of tensors, numbers and strings."""
        return {}

    def save(self, run: Any, /) -> Mapping[str, Any]:
        """What it remembers now, in the form of `init`."""
        return run.memory


def innermost(callback: Any, /) -> Any:
    """The callback that another one, such as a `ConditionalCallback`, is around; else itself."""
    while isinstance(inside := getattr(callback, "callback", None), Callback):
        callback = inside
    return callback
