"""What one callback sees of a run: what it declares, and what it remembers."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from fluxlike.learning.callback import DECLARED, EVERYTHING, Callback

__all__ = ["View"]

_OWN = ("memory", "live")
#: What callbacks read at every step and every one may read; by `__getattr__` it takes eight times as long.
_QUICK = (
    "batch_number", "batches", "epoch", "goal", "hyperparameters", "learner", "loss_scale", "phase", "record",
    "samples", "step", "trains",
)  # fmt: skip


class View:
    """A run as one callback may use it.

    Attributes:
        memory: what the callback remembers, a dict that is saved with every checkpoint.
        live: what lives only during this fit, a dict.
    """

    __slots__ = ("_hidden", "_name", "_run", "_writable", "live", "memory")

    def __init__(self, run: Any, callback: Callback, name: str, memory: dict[str, Any]) -> None:
        own = object.__setattr__
        reads = {part.split(".")[0] for part in callback.reads}
        writes = {part.split(".")[0] for part in callback.writes}
        own(self, "_run", run)
        own(self, "_name", name)
        own(self, "_hidden", set() if EVERYTHING in reads else set(DECLARED) - reads - writes)
        own(self, "_writable", writes)
        own(self, "memory", memory)
        own(self, "live", {})

    def __getattr__(self, part: str) -> Any:
        if part in self._hidden:
            raise AttributeError(
                f"{self._name} reads run.{part} but does not say so; declare reads = ({part!r},) in the class"
            )
        return getattr(self._run, part)

    def __setattr__(self, part: str, value: Any) -> None:
        if part in _OWN:
            object.__setattr__(self, part, value)
        elif part in self._writable:
            setattr(self._run, part, value)
        elif part in DECLARED:
            raise AttributeError(
                f"{self._name} writes run.{part} but does not say so; declare writes = ({part!r},) in the "
                "class"
            )
        else:
            raise AttributeError(
                f"run.{part} can't be set; keep what {self._name} remembers in run.memory[{part!r}]"
            )


def _declared(part: str) -> property:
    """A part of the run for those who say that they read it; the others get to `View.__getattr__`."""

    def get(view: View) -> Any:
        if part in view._hidden:
            raise AttributeError(part)
        return getattr(view._run, part)

    return property(get)


for _part in DECLARED:
    setattr(View, _part, _declared(_part))
for _part in _QUICK:
    setattr(View, _part, property(attrgetter(f"_run.{_part}")))
