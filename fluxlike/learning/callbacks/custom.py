"""`CustomCallback`: a function that is called at one event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fluxlike.learning.callback import Callback
from fluxlike.learning.events import Event

__all__ = ["CustomCallback", "event_name"]

_OUTSIDE = ("fit_begin", "fit_end")


@dataclass(frozen=True)
class CustomCallback(Callback):
    """Call a function at one event.

    Args:
        event: the name of the event, such as ``"step_end"``.
        f: a function of the run; what it puts into ``run.memory`` is saved.
        phase: the only phase in which to call it. (default: all)
        reads: what it reads, as in `Callback`. (default: none)
        writes: what it writes. (default: none)

    Raises:
        TypeError: `f` is no function.
        ValueError: there is no such event, or it is of no phase.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.learning.callbacks.custom import CustomCallback
        >>> show = CustomCallback("epoch_end", lambda run: print("epoch", run.epoch), phase="training")
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> options = {"callbacks": [show], "progress": False}
        >>> learner = fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, **options)
        >>> learner = fl.fit(learner, 2)
        epoch 1
        epoch 2
    """

    event: str
    f: Callable[[Any], None]
    phase: str | None = None
    reads: Any = ()
    writes: Any = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "event", event_name(self.event, "CustomCallback"))
        if isinstance(self.f, type) or not callable(self.f):
            raise TypeError(
                f"CustomCallback calls a function of the run, found {self.f!r}; write lambda run: …"
            )
        if self.phase is not None and self.event in _OUTSIDE:
            raise ValueError(
                f"{self.event} belongs to no phase; write CustomCallback({self.event!r}, f) without one"
            )

    def __getattr__(self, name: str) -> Any:
        if name == self.__dict__.get("event"):
            return self._call
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _call(self, run: Any) -> None:
        if self.phase is None or run.phase == self.phase:
            self.f(run)


def event_name(event: Any, by: str, /) -> str:
    """The name of an event, as callbacks have methods of it.

    Raises:
        ValueError: there is no such event.
    """
    known = [e.value for e in Event]
    name = event.value if isinstance(event, Event) else event
    if name not in known:
        raise ValueError(f"{by} got the event {event!r}; the events are {', '.join(known)}")
    return name
