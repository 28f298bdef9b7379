"""Which functions don't go through DTensor's rules, and how they go instead.

DTensor knows most of torch's functions of entries, sums and products. Here are those that it does not know or
moves the data for, and those that it computes wrongly; each `routes_*` file holds those of a kind.
"""

from __future__ import annotations

from fluxlike.placement.mesh import (
    routes_attention,
    routes_axes,
    routes_in_place,
    routes_losses,
    routes_pending,
    routes_pieces,
    routes_random,
    routes_recurrent,
    routes_rows,
    routes_vectors,
    routes_whole,
)
from fluxlike.placement.mesh.tensors import ROUTES

__all__ = ["ROUTES"]

for _kind in (
    routes_rows, routes_axes, routes_attention, routes_recurrent, routes_losses, routes_whole, routes_random,
    routes_in_place, routes_vectors, routes_pieces,
):  # fmt: skip
    ROUTES.update(_kind.ROUTES)
for _func, _of_pending in routes_pending.ROUTES.items():  # before the others, which know no pending sums
    ROUTES[_func] = _of_pending(ROUTES.get(_func))
