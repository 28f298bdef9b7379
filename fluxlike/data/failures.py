"""What goes wrong while a batch is made, told with its place, from a worker process too."""

from __future__ import annotations

import pickle
import traceback
from typing import NoReturn

__all__ = ["Death", "Failure", "Told", "report"]


class Failure(Exception):
    """A part of making a batch raised its cause.

    Args:
        part: what it was, such as ``observation 3``.
    """

    @property
    def part(self) -> str:
        return str(self.args[0])


class Told:
    """A `Failure` that can be sent to another process."""

    def __init__(self, failure: Failure, process: str) -> None:
        cause = failure.__cause__ or failure
        self.part, self.cause = failure.part, _sendable(cause)
        lines = "".join(traceback.format_exception(cause)).rstrip()
        self.note = f"In {process}:\n{lines}"

    def failure(self) -> Failure:
        self.cause.add_note(self.note)
        failure = Failure(self.part)
        failure.__cause__ = self.cause
        return failure


def _sendable(error: BaseException) -> BaseException:
    """An error without its traceback; another one that says the same, where it can't be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class Death(Exception):
    """A worker process ended before its time.

    Args:
        how: it did.
    """


def report(error: Failure | Death, epoch: int, batch: int) -> NoReturn:
    """Raise the error that users see."""
    place = f"epoch {epoch}, batch {batch}"
    if isinstance(error, Death):
        raise RuntimeError(
            f"{place}: it did not come, or one of the next few: {error}. What your own code does to its "
            "process shows with workers=0. The batches before are good: go on by "
            f"loader.epoch({epoch}, start={batch}), or by load_state_dict"
        ) from error
    cause = error.__cause__ or error
    raise RuntimeError(f"{place}: {error.part} raised {type(cause).__name__}: {cause}") from cause
