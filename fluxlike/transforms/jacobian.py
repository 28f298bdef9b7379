"""`jacobian`: the derivative of every entry of the output, as a tree of trees."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fluxlike.transforms.engine.called import Called
from fluxlike.transforms.engine.entrywise import (
    Blocks,
    check_chunk_size,
    check_real,
    mapped,
    rows,
    tree_of_trees,
)
from fluxlike.transforms.engine.motors import Afterwards
from fluxlike.transforms.engine.over_mesh import Region, of_entries
from fluxlike.transforms.engine.rerun import Rerun
from fluxlike.transforms.pullback import Pulled
from fluxlike.transforms.pushforward import Directions, push

__all__ = ["jacobian"]

# Reverse mode takes a pass for each entry of the output, forward mode one for each entry of the argument and
# one more run of the function. From this ratio on, forward mode is faster (measured on dense networks).
_WIDE = 8


def jacobian(
    f: Callable[..., Any],
    /,
    *args: Any,
    argnums: int | Sequence[int] = 0,
    chunk_size: int | None = None,
) -> Any:
    """The derivative of every entry of ``f(*args)`` by every entry of the argument.

    All rows come from one forward pass and a ``vmap`` of its backward pass; where the output is far larger
    than the argument, all columns come from a ``vmap`` of forward mode instead, with the same numbers. The
    mode, train or test, is that of the scope around the call. Over a mesh, each rank runs `f` whole, and
    computes the rows of its part of the first axis of the output.

    Args:
        f: returns any tree that holds floating tensors.
        args: as in `gradient`.
        argnums: as in `gradient`. (default: 0)
        chunk_size: how many rows or columns are computed at once; fewer take less memory. (default: all)

    Returns:
        The tree that `f` returned, with a tree in the place of each floating tensor y, and None elsewhere.
        That tree has the treedef of the argument, with a tensor of shape ``y.shape + x.shape`` at each
        parameter x; None where y does not depend on x, and at the further places of a tied parameter. It is
        a tuple of trees for a tuple of `argnums`. For a float argument and a 0-d y it is a float.

    Raises:
        ValueError: as `pullback`; or an argument or output is complex, or `chunk_size` is not positive.
        TypeError: as `pullback`.
        RuntimeError: as `pullback`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.jacobian(lambda x: x**2, torch.tensor([1.0, 2.0]))
        tensor([[2., 0.],
                [0., 4.]])
        >>> model = {"w": torch.ones(2, 3), "b": torch.zeros(2)}
        >>> jac = fl.jacobian(lambda m, x: m["w"] @ x + m["b"], model, torch.ones(3))
        >>> jac["w"].shape, jac["b"].shape
        (torch.Size([2, 2, 3]), torch.Size([2, 2]))
    """
    check_chunk_size(chunk_size)
    with of_entries(args, argnums) as (region, local):
        return _jacobian(f, local, argnums, chunk_size, region)


def _jacobian(
    f: Callable[..., Any],
    args: Sequence[Any],
    argnums: int | Sequence[int],
    chunk_size: int | None,
    region: Region,
) -> Any:
    """The part that this rank computes, as the whole."""
    rerun = Rerun()
    pulled = Pulled("jacobian", f, args, argnums, mapped=True)
    check_real("jacobian", pulled)
    outputs, handles, closer = pulled.output.tensors, pulled.call.handles, Afterwards()
    blocks: Blocks | None = None
    entries = [region.entries(y) for y in outputs]
    if sum(map(len, entries)) > _WIDE * sum(x.numel() for x in handles):
        # Reverse mode can do what forward mode and vmap can't: a branch on a value for one.
        with contextlib.suppress(RuntimeError):
            columns = rerun.again(lambda: _columns(f, args, argnums, chunk_size))
            blocks = [
                [x if x is None else x.reshape(y.numel(), x.shape[-1])[some.start : some.stop] for x in row]
                for y, some, row in zip(outputs, entries, columns, strict=True)
            ]
    if blocks is None:
        create = closer.differentiable
        numbers = range(len(outputs))
        blocks = [
            rows(pulled, k, differentiable=create, region=region, chunk_size=chunk_size) for k in numbers
        ]
    return tree_of_trees(pulled, blocks, closer, region)


def _columns(
    f: Callable[..., Any], args: Sequence[Any], argnums: int | Sequence[int], chunk_size: int | None
) -> Blocks:
    """All derivatives in forward mode, a ``vmap`` for each parameter."""
    columns = []
    for i, (x, _) in enumerate(Called("jacobian", f, args, argnums).parameters):

        def push_one(tangent: Tensor, i: int = i) -> list[Tensor | None]:
            call = Called("jacobian", f, args, argnums)
            moved, number = call.parameters[i]
            along: Directions = [{} for _ in call.numbers]
            along[number] = {id(moved): (moved, tangent)}
            return push("jacobian", call, along)[1]

        found = mapped(push_one, x, chunk_size)
        columns.append([None if column is None else column.movedim(0, -1) for column in found])
    return [list(row) for row in zip(*columns, strict=True)]
