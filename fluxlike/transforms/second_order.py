"""`hessian`, `diaghessian` and `hvp`: second derivatives of a scalar, by differentiating its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fluxlike.transforms.engine.called import Called
from fluxlike.transforms.engine.entrywise import (
    Blocks,
    OverMesh,
    check_chunk_size,
    check_real,
    rows,
    tree_of_trees,
)
from fluxlike.transforms.engine.function import require_function
from fluxlike.transforms.engine.loss import scalar_loss
from fluxlike.transforms.engine.motors import Afterwards, open_motor
from fluxlike.transforms.engine.over_mesh import Region, of_entries, placed_as
from fluxlike.transforms.pullback import Pulled
from fluxlike.transforms.pushforward import directions

__all__ = ["diaghessian", "hessian", "hvp"]

# The rows of a Hessian that are computed at once where only their diagonal is kept.
_ROWS = 128


def hessian(
    f: Callable[..., Any],
    /,
    *args: Any,
    argnums: int | Sequence[int] = 0,
    chunk_size: int | None = None,
) -> Any:
    """The second derivatives of the scalar ``f(*args)``, as a tree of trees: the `jacobian` of the gradient.

    The mode, train or test, is that of the scope around the call.

    Args:
        f: as in `gradient`.
        args: as in `gradient`.
        argnums: as in `gradient`. (default: 0)
        chunk_size: how many rows are computed at once; fewer take less memory. (default: all)

    Returns:
        A tree with the treedef of the argument, whose parameters x have a tree of that treedef in their
        place: there, parameter y has the tensor of shape ``x.shape + y.shape``. It is symmetric. None in
        the place of a parameter that `f` does not reach, and where the derivative by x does not depend on
        y. For a tuple of `argnums`, both the tree and each tree in it are tuples.

    Raises:
        ValueError: as `gradient` and `jacobian`.
        TypeError: as `gradient`.
        RuntimeError: as `gradient`, or torch has no second derivative of an operation in `f`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.hessian(lambda p: p["a"] ** 2 * p["b"], {"a": torch.tensor(2.0), "b": torch.tensor(3.0)})
        {'a': {'a': tensor(6.), 'b': tensor(4.)}, 'b': {'a': tensor(4.), 'b': None}}
    """
    check_chunk_size(chunk_size)
    with of_entries(args, argnums) as (region, local):
        pulled = _pulled_gradient("hessian", f, local, argnums)
        closer = Afterwards()
        blocks: Blocks = [
            rows(pulled, k, differentiable=closer.differentiable, region=region, chunk_size=chunk_size)
            for k in range(len(pulled.output.tensors))
        ]
        return tree_of_trees(pulled, blocks, closer, region)


def diaghessian(
    f: Callable[..., Any],
    /,
    *args: Any,
    argnums: int | Sequence[int] = 0,
    chunk_size: int | None = None,
) -> Any:
    """The diagonal of the Hessian of the scalar ``f(*args)``: the second derivative by each entry alone.

    It takes the time of the blocks of the Hessian on its diagonal, parameter by parameter, but keeps only
    their diagonals.

    Args:
        f: as in `gradient`.
        args: as in `gradient`.
        argnums: as in `gradient`. (default: 0)
        chunk_size: how many rows are computed at once. (default: 128)

    Returns:
        A tree like a gradient: at each parameter a tensor of its shape; None where the second derivative
        is not reached, and at the further places of a tied parameter.

    Raises:
        ValueError: as `hessian`.
        TypeError: as `hessian`.
        RuntimeError: as `hessian`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.diaghessian(lambda x: (x**3).sum(), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[ 6., 12.],
                [18., 24.]])
    """
    check_chunk_size(chunk_size)
    with of_entries(args, argnums) as (region, local):
        found = _diagonal(f, local, argnums, chunk_size, region)
    return placed_as(found, args, argnums)


def _diagonal(
    f: Callable[..., Any],
    args: Sequence[Any],
    argnums: int | Sequence[int],
    chunk_size: int | None,
    region: Region,
) -> Any:
    """The part that this rank computes, as the whole."""
    pulled = _pulled_gradient("diaghessian", f, args, argnums)
    handles, closer = pulled.call.handles, Afterwards()
    found: list[Tensor | None] = [None] * len(handles)
    for k, (n, y) in enumerate(zip(_reached(pulled), pulled.output.tensors, strict=True)):
        (diagonal,) = rows(
            pulled,
            k,
            differentiable=closer.differentiable,
            region=region,
            chunk_size=chunk_size or _ROWS,
            wanted=[handles[n]],
            take=lambda start, block: block.reshape(len(block), -1).diagonal(start),
        )
        if diagonal is not None:
            found[n] = OverMesh(closer, region, y).close(diagonal.reshape(region.shape_of_part(y)))
    return pulled.call.trees(found, closer, assigned_too=False)


def hvp(f: Callable[..., Any], /, *args: Any, v: Any, argnums: int | Sequence[int] = 0) -> Any:
    """The Hessian of the scalar ``f(*args)`` times `v`, without the Hessian.

    It costs a few times what `gradient` does: the gradient is differentiated once, in the direction `v`, by
    a second reverse pass (faster than forward mode over it, and open to more operations).

    Args:
        f: as in `gradient`.
        args: as in `gradient`.
        v: as in `pushforward`: a tree with the structure of the argument, with None for zero.
        argnums: as in `gradient`. (default: 0)

    Returns:
        A tree like a gradient, or a tuple of trees; None where `v` reaches nothing.

    Raises:
        ValueError: as `gradient`, and as `pushforward` for `v`.
        TypeError: as `gradient`, and as `pushforward` for `v`.
        RuntimeError: as `hessian`.

    Example:
        >>> import torch, fluxlike as fl
        >>> x, v = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])
        >>> fl.hvp(lambda x: (x**2).sum() * x.sum(), x, v=v)
        tensor([10.,  6.])
    """
    call = Called("hvp", f, args, argnums)
    along = directions("hvp", call, v)
    tangents = [along[number].get(id(x), (x, None))[1] for x, number in call.parameters]
    pulled = _pulled_gradient("hvp", f, args, argnums)
    closer = Afterwards()
    found = pulled.pull([tangents[n] for n in _reached(pulled)], create_graph=closer.differentiable)
    return pulled.call.trees(found, closer, assigned_too=False)


def _pulled_gradient(
    name: str, f: Callable[..., Any], args: Sequence[Any], argnums: int | Sequence[int]
) -> Pulled:
    """The gradient of a scalar, kept to be differentiated."""
    require_function(name, f, args, argnums)

    def slope(*inner: Any) -> Any:
        call = Called(name, f, inner, argnums)
        with open_motor() as motor:
            call.open(motor)
            loss = scalar_loss(call.run())
            call.check()
            reached = loss.requires_grad
            return call.trees(motor.gradients(loss, call.handles) if reached else [None] * len(call.handles))

    pulled = Pulled(name, slope, args, argnums, may_be_constant=True)
    check_real(name, pulled)
    return pulled


def _reached(pulled: Pulled) -> list[int]:
    """For each tensor of the gradient, the number of the handle that it belongs to."""
    number = {place: n for n, place in enumerate(pulled.call.places)}
    return [number[place] for place in pulled.output.places]
