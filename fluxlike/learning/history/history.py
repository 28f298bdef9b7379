"""What a run has seen: a row an epoch and phase, and a row a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fluxlike.learning.history.plot import plotted
from fluxlike.learning.history.show import counted, table_html, table_text
from fluxlike.learning.history.table import Table

__all__ = ["History"]


@dataclass(frozen=True, repr=False)
class History:
    """The history of a run, two tables that never change: to add a row is to make a new history.

    Attributes:
        epochs: a row for every epoch and phase: ``epoch``, ``phase``, then what is known of ``loss``, metrics
            by name, ``learning_rate``, ``seconds``.
        steps: a row for every step: ``step``, ``epoch``, ``phase``, then what is known of ``loss``,
            ``learning_rate`` and others.

    Example:
        >>> import fluxlike as fl
        >>> from fluxlike.learning.history.history import History
        >>> history = History()
        >>> history = history.add_epoch({"epoch": 1, "phase": "training", "loss": 0.5})
        >>> history = history.add_epoch({"epoch": 1, "phase": "validation", "loss": 0.75})
        >>> history["validation", "loss"]
        [0.75]
        >>> history.last("training", "loss")
        0.5
        >>> history
        History(1 epoch, 0 steps)
          epoch       phase  loss
              1    training   0.5
              1  validation  0.75
    """

    epochs: Table = field(default_factory=Table)
    steps: Table = field(default_factory=Table)

    def add_epoch(self, row: Mapping[str, Any], /) -> History:
        """A history with one epoch of one phase more.

        Args:
            row: by column, with ``epoch`` and ``phase``; 0-d tensors stay on their device.

        Raises:
            ValueError: a column is missing.
        """
        _require(row, "epoch", "phase")
        return replace(self, epochs=self.epochs.append(row))

    def add_step(self, row: Mapping[str, Any], /) -> History:
        """A history with one step more.

        Args:
            row: by column, with ``step``, ``epoch`` and ``phase``; 0-d tensors stay on their device.

        Raises:
            ValueError: a column is missing.
        """
        _require(row, "step", "epoch", "phase")
        return replace(self, steps=self.steps.append(row))

    def add_steps(self, rows: Iterable[Mapping[str, Any]], /) -> History:
        """A history with several steps more, in which what is None is left out."""
        found = [{name: cell for name, cell in row.items() if cell is not None} for row in rows]
        return replace(self, steps=self.steps.extend(found))

    def __getitem__(self, key: tuple[str, str], /) -> list[Any]:
        """A column of one phase, epoch by epoch: ``history["validation", "loss"]``.

        Raises:
            KeyError: no epoch of that phase has it.
        """
        if not (isinstance(key, tuple) and len(key) == 2):
            raise TypeError(f'write history["validation", "loss"], a phase and a column; found {key!r}')
        phase, name = key
        rows = [row for row in self.epochs if row["phase"] == phase]
        found = [row[name] for row in rows if name in row]
        if not found:
            raise KeyError(_missing(self.epochs, rows, phase, name))
        return found

    def last(self, phase: str, name: str, /) -> Any:
        """What a column had in the last epoch of a phase that has it.

        Raises:
            KeyError: no epoch of that phase has it.
        """
        return self[phase, name][-1]

    def plot(self, names: Sequence[str] | None = None) -> Any:
        """Loss and metrics by epoch, for every phase; loss and learning rate by step.

        Args:
            names: the columns to draw by epoch. (default: all with numbers, the first twelve of them)

        Returns:
            A `matplotlib.figure.Figure`, which nothing else holds: ``figure.savefig("run.png")``. No window
            is opened, and no setting of matplotlib is changed.

        Raises:
            ImportError: matplotlib is not installed.
            KeyError: no epoch has such a column.
            ValueError: there is nothing to draw.
        """
        return plotted(self.epochs, self.steps, names)

    def state(self) -> dict[str, Any]:
        """All of it as tensors in main memory and plain values."""
        return {"epochs": self.epochs.state(), "steps": self.steps.state()}

    @classmethod
    def restore(cls, state: Mapping[str, Any], /) -> History:
        """The history that gave this state."""
        return cls(Table.restore(state["epochs"]), Table.restore(state["steps"]))

    def __repr__(self) -> str:
        return table_text(self.epochs, f"History({self._counted()})")

    def _repr_html_(self) -> str:
        return table_html(self.epochs, f"History: {self._counted()}")

    def _counted(self) -> str:
        epochs = len(set(self.epochs["epoch"])) if len(self.epochs) else 0
        return f"{counted(epochs, 'epoch')}, {counted(len(self.steps), 'step')}"


def _require(row: Mapping[str, Any], *names: str) -> None:
    missing = [name for name in names if name not in row]
    if missing:
        raise ValueError(f"a row of the history needs {', '.join(missing)}; found {list(row)}")


def _missing(epochs: Table, rows: list[dict[str, Any]], phase: str, name: str) -> str:
    if not rows:
        phases = list(dict.fromkeys(epochs["phase"])) if len(epochs) else []
        return f"there is no epoch of the phase {phase!r}; there are the phases {phases}"
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return f"no epoch of the phase {phase!r} has the column {name!r}; there are {columns}"
