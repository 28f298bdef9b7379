"""`ConditionalCallback` and `throttle`: callbacks that are called less often."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from fluxlike.learning.callback import Callback
from fluxlike.learning.callbacks.custom import event_name
from fluxlike.learning.events import Event
from fluxlike.learning.view import View

__all__ = ["ConditionalCallback", "throttle"]

_EVENTS = {event.value for event in Event}


class _Around(Callback):
    """A callback around another, whose events, declarations and name it has."""

    callback: Callback

    def __post_init__(self) -> None:
        if not isinstance(self.callback, Callback):
            raise TypeError(f"{type(self).__name__.strip('_')} is around a callback, found {self.callback!r}")
        for declared in ("reads", "writes", "after", "before", "of_first_rank"):
            object.__setattr__(self, declared, getattr(self.callback, declared))

    @property
    def name(self) -> str:
        return self.callback.name

    def __getattr__(self, name: str) -> Any:
        handler = getattr(self.__dict__.get("callback"), name, None) if name in _EVENTS else None
        if handler is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return lambda run: self._called(name, handler, run)

    def _called(self, event: str, handler: Callable[[Any], None], run: Any) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class ConditionalCallback(_Around):
    """A callback that is called only where a condition holds.

    It has the name, the memory and the declarations of the callback inside.

    Args:
        callback: the callback.
        condition: a function of the run, which sees what the callback sees; it is asked at each event
            that the callback listens to.

    Raises:
        TypeError: `callback` is no callback, or `condition` no function.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.learning.callbacks.custom import CustomCallback
        >>> from fluxlike.learning.callbacks.conditional import ConditionalCallback
        >>> show = CustomCallback("epoch_end", lambda run: print("epoch", run.epoch))
        >>> late = ConditionalCallback(show, lambda run: run.epoch > 2)
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> options = {"callbacks": [late], "progress": False}
        >>> learner = fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, **options)
        >>> learner = fl.fit(learner, 3)
        epoch 3
    """

    callback: Callback
    condition: Callable[[Any], Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.condition, type) or not callable(self.condition):
            raise TypeError(
                f"the condition is {self.condition!r}; write a function of the run, lambda run: …"
            )

    def init(self) -> dict[str, Any]:
        return self.callback.init()

    def save(self, run: Any, /) -> Mapping[str, Any]:
        return self.callback.save(run)

    def _called(self, event: str, handler: Callable[[Any], None], run: Any) -> None:
        if self.condition(run):
            handler(run)


def throttle(
    callback: Callback, event: str = "step_end", *, every: int | None = None, seconds: float | None = None
) -> Callback:
    """A callback of which one event comes less often; its other events come as ever.

    Args:
        callback: the callback.
        event: the name of the event. (default: ``"step_end"``)
        every: call it at every so many of these events, of each phase; the count is saved, so a resumed run
            goes on with it.
        seconds: instead, call it after at least so many seconds, from the first event of a fit on and from
            call to call; on the ranks of a mesh at the same event, one or two after the first clock says so.

    Returns:
        A callback with the name and the declarations of the one given; it remembers ``"inside"``, what that
        one remembers, and ``"count"``.

    Raises:
        TypeError: no callback, or not one of `every` and `seconds`.
        ValueError: a number out of range, no such event, or one that the callback does not listen to.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.learning.callbacks.custom import CustomCallback
        >>> from fluxlike.learning.callbacks.conditional import throttle
        >>> show = throttle(CustomCallback("step_end", lambda run: print("step", run.step)), every=2)
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 5
        >>> options = {"callbacks": [show], "progress": False}
        >>> learner = fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, **options)
        >>> learner = fl.fit(learner, 1)
        step 2
        step 4
    """
    if (every is None) == (seconds is None):
        raise TypeError("throttle takes one of every= and seconds=, such as throttle(callback, every=10)")
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ValueError(f"throttle got every={every!r}; write a number of events, from 1")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"throttle got seconds={seconds!r}; write a number above 0")
    return _Throttle(callback, event_name(event, "throttle"), every, seconds)


@dataclass(frozen=True)
class _Throttle(_Around):
    """What `throttle` returns."""

    callback: Callback
    event: str
    every: int | None
    seconds: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.callback, self.event):
            heard = ", ".join(e.value for e in Event if hasattr(self.callback, e.value))
            raise ValueError(f"{self.callback.name} does not listen to {self.event}; it listens to {heard}")

    def init(self) -> dict[str, Any]:
        return {"inside": self.callback.init(), "count": {}}

    def save(self, run: Any, /) -> Mapping[str, Any]:
        return {"inside": self.callback.save(self._inside(run)), "count": run.memory["count"]}

    def _inside(self, run: Any) -> Any:
        """The run as the callback inside sees it."""
        if "view" not in run.live:
            if "inside" not in run.memory:  # of the callback alone, in the fits before this one
                run.memory = {"inside": run.memory, "count": {}}
            run.live["view"] = View(run, self.callback, self.name, run.memory["inside"])
            run.live["last"], run.live["vote"], run.live["answered"] = monotonic(), run.ranks.vote(), 0
        return run.live["view"]

    def _called(self, event: str, handler: Callable[[Any], None], run: Any) -> None:
        inside = self._inside(run)
        if event != self.event or self._due(run):
            handler(inside)

    def _due(self, run: Any) -> bool:
        if self.every is not None:
            count = run.memory["count"]
            count[run.phase] = (count.get(run.phase, 0) + 1) % self.every
            return count[run.phase] == 0
        assert self.seconds is not None
        live, now = run.live, monotonic()
        due = now - live["last"] >= self.seconds
        if not self.of_first_rank:  # the clocks of the ranks differ, and what is called may need all ranks
            due = live["vote"].put(due) and not live["answered"]
            live["answered"] = live["vote"].delay if due else max(live["answered"] - 1, 0)
        if due:
            live["last"] = now
        return due
