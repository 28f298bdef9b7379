"""Work that the ranks of a job do together: what one of them raises, all of them raise."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch.distributed as dist

__all__ = ["agreed", "alone", "count", "number", "raise_shared"]

Result = TypeVar("Result")


def number() -> int:
    """The number of this process among those of the job; 0 where it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes the job has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def agreed(work: Callable[[], Result], /) -> Result:
    """What this rank's work returns, once the work of every rank is done.

    Every rank of the job calls it; the work itself may not wait for other ranks.

    Raises:
        Exception: what the work raised here, or else what it raised on the first rank where it did, with that
            rank's number.
    """
    error: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    if dist.is_initialized():
        sent: list[Any] = [None] * count()
        dist.all_gather_object(sent, None if error is None else _packed(error))
        raise_shared({rank: each for rank, each in enumerate(sent) if each is not None}, error)
    elif error is not None:
        raise error
    return result


def alone(work: Callable[[], Result], /) -> Result | None:
    """What the work of the first rank returns, and None on the others, which wait for it.

    Raises:
        Exception: what the work raised, on every rank.
    """
    return agreed(work if number() == 0 else lambda: None)


def raise_shared(failed: Mapping[int, BaseException], own: BaseException | None, /) -> None:
    """Raise this rank's own error, or else that of the first rank that has one; nothing where none has."""
    if own is not None:
        raise own
    if failed:
        rank = min(failed)
        raise _told(failed[rank], rank) from failed[rank]


def _packed(error: Exception) -> Exception:
    """An error that can travel: as it is, or its words alone."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _told(error: BaseException, rank: int) -> BaseException:
    """An error of the same kind that says on which rank it was raised."""
    text = f"rank {rank} of the job failed: {error}"
    try:
        if isinstance(error, OSError) and error.errno is not None:
            return type(error)(
                error.errno, f"rank {rank} of the job failed: {error.strerror}", error.filename
            )
        return type(error)(text)
    except Exception:
        return RuntimeError(text)
