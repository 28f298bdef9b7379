"""The one file that knows the words of the network in torch's errors, which have no class for gloo's."""

from __future__ import annotations

from torch import distributed as dist

__all__ = ["is_of_the_network"]

# What a RuntimeError of a collective has in its message, if another process or the network failed. NCCL's
# are mostly of a class of their own, gloo's never.
_MARKS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


def is_of_the_network(error: BaseException, /) -> bool:
    """Whether an error tells of another process or the network, and not of what this process computes."""
    if dist.is_available() and isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _MARKS)
