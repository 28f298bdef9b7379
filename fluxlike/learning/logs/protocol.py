"""What a log is to the loop, and what all logs refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from torch import Tensor

from fluxlike.files.durable import require_replaceable
from fluxlike.learning.metrics.host import Scalar

__all__ = ["Kind", "Log", "not_kept", "plain_values", "require_new", "require_step", "requires"]

#: Something that a log may keep: "scalars", "histograms", "images", "figures", "text", "hyperparameters".
Kind = str


class Log(Protocol):
    """Where a run writes what it sees as it goes.

    Nothing is opened before the first write. Steps never go back, except by `rewind`. What a log does not
    keep it refuses with a TypeError; `requires` asks before a run starts.

    Attributes:
        keeps: the kinds that it keeps.
    """

    keeps: frozenset[Kind]

    def scalar(self, name: str, value: Scalar, step: int, /) -> None:
        """A number, or a 0-d tensor."""

    def scalars(self, values: Mapping[str, Scalar], step: int, /) -> None:
        """Several, read from their device together."""

    def later(self, values: Mapping[str, Scalar], step: int, /) -> None:
        """Scalars that may wait a little, so that those of many steps are read from their device together.

        They are written before whatever is written next, and by `flush` and `close`.
        """

    def histogram(self, name: str, values: Tensor, step: int, /) -> None:
        """How the entries of a tensor are spread."""

    def image(self, name: str, image: Tensor, step: int, /) -> None:
        """Pictures: bytes, or floats from 0 to 1, of shape (C, H, W), (H, W), or (N, C, H, W) for several."""

    def figure(self, name: str, figure: Any, step: int, /) -> None:
        """A figure of matplotlib, which is left as it is."""

    def text(self, name: str, text: str, step: int, /) -> None:
        """Some text."""

    def hyperparameters(self, values: Mapping[str, Any], metrics: Sequence[str] = (), /) -> None:
        """What was chosen for this run, and the names of the scalars that runs are compared by."""

    def rewind(self, step: int, /) -> None:
        """Take back what was written after this step: a run goes on from there.

        At this very step it may write again what it wrote already, and that is there once.
        """

    def flush(self) -> None:
        """Hand over to the system what was written, so that it stays if the process is killed."""

    def close(self) -> None:
        """Let go of the files; a later write opens them again and goes on."""


def requires(log: Log, *kinds: Kind, what: str) -> None:
    """Refuse a log that does not keep what is to be written.

    Args:
        log: the log.
        kinds: what it is to keep.
        what: who writes it, for the error.

    Raises:
        TypeError: the log does not keep it, or it is no log.
    """
    if isinstance(log, type) or not hasattr(log, "keeps"):
        found = f"the class {log.__name__}" if isinstance(log, type) else f"{log!r}"
        raise TypeError(
            f"{what} takes logs, such as CSVLog('run.csv') or TensorBoardLog('run'); found {found}"
        )
    missing = [kind for kind in kinds if kind not in log.keeps]
    if missing:
        raise TypeError(f"{what} writes {_and(missing)}, and {_keeps(log)}")


def not_kept(log: Log, kind: Kind, /) -> NoReturn:
    """Refuse a kind that a log does not keep."""
    raise TypeError(f"{_keeps(log)}, not {kind}")


def require_step(place: str, step: int, last: int | None, /) -> None:
    """Refuse a step that is no number or lies before the last.

    Raises:
        TypeError: it is no int.
        ValueError: it is below 0, or a later one was written.
    """
    if type(step) is not int:
        raise TypeError(f"{place}: a step is an int, found a {type(step).__name__}")
    if step < 0 or (last is not None and step < last):
        after = "below 0" if step < 0 else f"after step {last} was written"
        raise ValueError(
            f"{place}: step {step} {after}; to go on from an earlier step, call rewind(step) first; for "
            "another run, give another place"
        )


def require_new(place: str, path: Path, begun: bool, /) -> None:
    """Refuse to write into the file of another run, or into what is no file.

    Raises:
        FileExistsError: there is something in it.
        ValueError: it is a pipe, a device or a folder.
    """
    require_replaceable(path)
    if not begun and path.exists() and path.stat().st_size:
        raise FileExistsError(
            f"{place}: another run is in this file already; give another path, remove "
            "the file, or go on from that run's checkpoint, which calls rewind(step)"
        )


def plain_values(values: Mapping[str, Any], /) -> dict[str, Any]:
    """Hyperparameters, each a number, a string or None.

    Raises:
        TypeError: one is anything else.
    """
    for name, value in values.items():
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise TypeError(
                f"the hyperparameter {name!r} is a {type(value).__name__}; write a number, a string or None, "
                f"for example {name}=str(…)"
            )
    return dict(values)


def _keeps(log: Log) -> str:
    return f"{type(log).__name__} keeps {_and(sorted(log.keeps))}; TensorBoardLog keeps all kinds"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
