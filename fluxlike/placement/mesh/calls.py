"""Functions that DTensor knows nothing of, called on plain tensors: `on_rows` and `on_all_rows`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.placement_types import Placement

from fluxlike.placement.mesh.rowwise import common, enter, fitting, leave, whole
from fluxlike.placement.mesh.tensors import Batched, Stored, gathered
from fluxlike.trees.fmap import fleaves, fmap

__all__ = ["on_all_rows", "on_rows"]


def on_rows(f: Callable[..., Any], /, *args: Any) -> Any:
    """``f(*args)`` of a function that takes rows one by one, computed by each rank for its own rows.

    Inside, all tensors are plain ones of this rank: rows of the batch, and whole parameters. So it may call
    anything: kernels of your own, ``torch.func``, `vmap` and `per_example_gradient`. It has to compute each
    row without the others; a mean over rows, or BatchNorm in train mode, would be that of a rank alone.

    Args:
        f: returns a tree of tensors (N, …).
        args: trees; those of batches have rows (N, …). All that `f` depends on is an argument.

    Returns:
        The tree over the mesh, divided by its rows, and differentiable.

    Raises:
        ValueError: no tensor among the arguments is over a mesh, or batches have different numbers of rows.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = fl.distributed.shard_batch(torch.ones(4, 3), fl.distributed.mesh())
        >>> fl.distributed.on_rows(torch.vmap(torch.trace), x[:, :, None] * x[:, None]).shape
        torch.Size([4])
    """
    found = _over(f, args)
    batched = [x for x in found if isinstance(x, Batched) and x.ndim]
    rows = common(batched, 1) if batched else whole(found[0].placements)
    return _called(f, args, rows, batched[0].shape if batched else ())


def on_all_rows(f: Callable[..., Any], /, *args: Any) -> Any:
    """``f(*args)``, computed by each rank for all rows, which are gathered: right for any function.

    Args:
        f: returns a tree of tensors, and draws nothing at random.
        args: trees. All that `f` depends on is an argument.

    Returns:
        The tree over the mesh, whole on each rank, and differentiable.

    Raises:
        ValueError: no tensor among the arguments is over a mesh.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.placement.mesh.calls import on_all_rows
        >>> x = fl.distributed.shard_batch(torch.eye(3), fl.distributed.mesh())
        >>> on_all_rows(torch.linalg.matrix_rank, x).item()
        3
    """
    return _called(f, args, whole(_over(f, args)[0].placements), ())


def _over(f: Any, args: Any) -> list[DTensor]:
    found = [x for x in fleaves(args) if isinstance(x, DTensor)]
    if not found:
        name = getattr(f, "__name__", "f")
        raise ValueError(f"no tensor among the arguments is over a mesh; call {name}(…) itself")
    return found


def _called(f: Callable[..., Any], args: Any, rows: list[Placement], shape: Any) -> Any:
    mesh = _over(f, args)[0].device_mesh

    def local(x: Tensor) -> Tensor:
        if not isinstance(x, DTensor):
            return x
        if isinstance(x, Stored):
            return enter(gathered(x), whole(rows), rows)
        places = fitting(rows, shape, x)
        if places is None:
            raise ValueError(
                f"on_rows: batches of {shape[0]} and of {x.shape[0] if x.ndim else 1} rows; all of them have "
                "rows of the same examples"
            )
        return enter(x, places, rows)

    def over(y: Tensor) -> Tensor:
        if not y.ndim and any(not isinstance(p, Replicate) for p in rows):
            raise ValueError(
                "on_rows: f returned one number for all rows; return one for each, and reduce them outside"
            )
        new = leave(y, mesh, rows)
        new.__class__ = Batched
        return new

    return fmap(over, f(*fmap(local, args)))
