"""The random order of observations, drawn from a key."""

from __future__ import annotations

from torch import Tensor

from fluxlike import random
from fluxlike.scope.key import Key
from fluxlike.scope.seeded import Draws, seeded

__all__ = ["order_key", "random_order"]


def random_order(n: int, key: Key | None, /) -> Tensor:
    """A permutation of n observations, from a key or from what is in scope, in main memory."""
    if key is None:
        return random.permutation(n, device="cpu")
    with seeded(key):
        return random.permutation(n, device="cpu")


def order_key(by: str, key: Key | None, shuffle: bool, /) -> Key | None:
    """The key that a user gives for an order.

    Raises:
        TypeError: it is no Key.
        ValueError: it is several keys, or there is nothing to shuffle.
    """
    if key is None:
        return None
    Draws.of(key, by)
    if not shuffle:
        raise ValueError(f"{by} got a key but keeps the order of the data; write shuffle=True")
    return key
