"""The output folder of a run: what lies there, and of which run it is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fluxlike.command.config import Configuration
from fluxlike.files.durable import write_whole
from fluxlike.files.opening import open_regular
from fluxlike.files.printing import shown
from fluxlike.files.strict_json import read_json

__all__ = ["RunFolder"]

_LARGEST = 100_000_000  # bytes
#: What may differ where a run goes on.
_FREE = ("[data] workers", "[training] device")


class RunFolder:
    """The output folder of a run.

    Args:
        path: the folder, which need not be there yet.

    Attributes:
        path: the folder.
        model: the file of the trained model, which is there once the run is finished.
        record: the file that says of which run the folder is.
        checkpoints: the folder of checkpoints.
        history: the file of what each epoch gave.
        steps: the file of the loss of each step.
        confusion: the picture of the confusion matrix.
    """

    def __init__(self, path: Path, /) -> None:
        self.path = path
        self.record = path / "run.json"
        self.model = path / "model.safetensors"
        self.checkpoints = path / "checkpoints"
        self.history = path / "history.csv"
        self.steps = path / "steps.csv"
        self.confusion = path / "confusion.png"

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.record.exists() and self.model.exists()

    def require(self, run: Configuration, /) -> None:
        """See that the folder is new, or that of a run of the same configuration.

        Raises:
            ValueError: it is of another configuration, whose differing keys are named, or of something else.
        """
        if not self.record.exists():
            self._require_new()
            return
        then, now = self._read()["configuration"], self._by_key(run)
        differing = [
            f"{key} is {_printed(now, key)} and was {_printed(then, key)}"
            for key in dict.fromkeys((*now, *then))
            if key not in _FREE and now.get(key) != then.get(key)
        ]
        if differing:
            raise ValueError(
                f"{self.path} has a run of another configuration: {'; '.join(differing)}. Write another "
                f"[output] folder, or remove {self.path} to begin anew there"
            )

    def begin(self, run: Configuration, data: Mapping[str, Any], /) -> None:
        """Make the folder, or see that a run that is there has the same data.

        Args:
            run: the configuration.
            data: what is known of the data, as JSON has it.

        Raises:
            ValueError: the data has changed.
        """
        if not self.record.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            about = {"configuration": self._by_key(run), "data": data}
            write_whole(self.record, [f"{json.dumps(about, indent=2)}\n".encode()])
            return
        then = self._read()["data"]
        changed = [key for key in data if data[key] != then.get(key)]
        if changed:
            what = ", ".join(f"{key} was {shown(then.get(key))} and is {shown(data[key])}" for key in changed)
            raise ValueError(
                f"the data is not that with which the run in {self.path} was begun: {what}. Put it back, or "
                f"write another [output] folder, or remove {self.path} to begin anew there"
            )

    def _require_new(self) -> None:
        own = (self.model, self.checkpoints, self.history, self.steps, self.confusion)
        for path in own:
            if os.path.lexists(path):
                raise ValueError(
                    f"{path} is there, of no run that {self.record} tells of, and would be written over; "
                    "write another [output] folder, or move it away"
                )

    def _read(self) -> dict[str, Any]:
        with open_regular(self.record) as file:
            raw = file.read(_LARGEST)
        try:
            found = read_json(raw.decode())
            if not isinstance(found["configuration"], dict) or not isinstance(found["data"], dict):
                raise ValueError("it has no configuration and data")
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{self.record} can't be read: {error}. Write another [output] folder, or remove "
                f"{self.path} to begin anew there"
            ) from None
        return found

    def _by_key(self, run: Configuration) -> dict[str, Any]:
        """The configuration as ``{"[training] lr": 0.001}``, as JSON has it.

        Paths start at the folder, so that a project may be moved with its runs.
        """
        tables = asdict(run).items()
        found = {f"[{name}] {key}": value for name, table in tables for key, value in table.items()}
        return json.loads(json.dumps(found, default=self._from_here))

    def _from_here(self, path: Path) -> str:
        try:
            return os.path.relpath(path, self.path)
        except ValueError:  # on another drive of Windows
            return str(path)


def _printed(table: Mapping[str, Any], key: str) -> str:
    return shown(table[key]) if table.get(key) is not None else "not given"
