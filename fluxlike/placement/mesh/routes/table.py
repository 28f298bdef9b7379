"""Which functions don't go through DTensor's rules, and how they go instead.

DTensor knows most of torch's functions of entries, sums and products. Here are those that it does not know or
moves the data for, and those that it computes wrongly; each file beside this one holds those of a kind.
"""

from __future__ import annotations

from fluxlike.placement.mesh.routes import (
    attention,
    axes,
    in_place,
    losses,
    pending,
    pieces,
    random,
    recurrent,
    rows,
    vectors,
    whole,
)
from fluxlike.placement.mesh.tensors import ROUTES

__all__ = ["ROUTES"]

for _kind in (
    rows, axes, attention, recurrent, losses, whole, random,
    in_place, vectors, pieces,
):  # fmt: skip
    ROUTES.update(_kind.ROUTES)
for _func, _of_pending in pending.ROUTES.items():  # before the others, which know no pending sums
    ROUTES[_func] = _of_pending(ROUTES.get(_func))
