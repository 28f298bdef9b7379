"""Whether a computation over a mesh gives the numbers of a single process: what several tests compare by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

import fluxlike as fl
from fluxlike import distributed as d

__all__ = ["PLANS", "disagreements", "differences", "traffic", "with_rows"]

PLANS: dict[str, Callable[[], Any]] = {"replicate": d.replicate, "shard": d.shard}


def with_rows(tree: Any, n: int) -> Any:
    """The tensors of a tree with n rows, chosen at random among those they have, and not quite the same."""

    def again(x: Tensor) -> Tensor:
        rows = x[torch.randint(len(x), (n,))]
        return rows + 0.1 * torch.randn(rows.shape, dtype=x.dtype) if x.is_floating_point() else rows

    return fl.fmap(again, tree)


def differences(found: Any, expected: Any, tolerance: float = 1e-10) -> list[str]:
    """What is wrong with a result over a mesh: nothing, or words a leaf."""
    wrong = []
    mine, other = _leaves(found), _leaves(expected)
    if len(mine) != len(other):
        return [f"{len(mine)} leaves instead of {len(other)}"]
    for (path, x), (place, y) in zip(mine, other, strict=True):
        if path != place:
            wrong.append(f"{path} stands where {place or 'the whole'} is expected")
        if isinstance(x, fl.Assigned) and isinstance(y, fl.Assigned):
            x, y = x.value, y.value
        if isinstance(y, Tensor):
            whole = x.full_tensor() if isinstance(x, DTensor) else x
            if not isinstance(whole, Tensor):
                wrong.append(f"{path}: {whole!r} instead of a tensor")
            elif whole.shape != y.shape or whole.dtype != y.dtype or tuple(x.shape) != tuple(y.shape):
                wrong.append(f"{path}: {tuple(whole.shape)} {whole.dtype}, not {tuple(y.shape)} {y.dtype}")
            elif not torch.allclose(whole, y, rtol=tolerance, atol=tolerance, equal_nan=True):
                wrong.append(f"{path}: {float((whole - y).abs().max()):.1e} beside the number of one process")
        elif type(x) is not type(y) or not _same(x, y, tolerance):
            wrong.append(f"{path}: {x!r} instead of {y!r}")
    return wrong


def _same(x: Any, y: Any, tolerance: float) -> bool:
    return math.isclose(x, y, rel_tol=tolerance, abs_tol=tolerance) if isinstance(y, float) else x == y


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    paths, leaves, _ = optree.tree_flatten_with_path(tree, none_is_leaf=True, namespace="fluxlike")
    return [("".join(f".{entry}" for entry in path), x) for path, x in zip(paths, leaves, strict=True)]


def traffic(f: Callable[[], Any]) -> dict[str, int]:
    """The collectives of a call by their kinds, those among them that DTensor calls of its own accord.

    torch's CommDebugMode doesn't see the latter: it knows DTensor itself, and not our subclasses of it.
    """
    with d.communication() as sent:
        f()
    return sent.counts


def disagreements(
    f: Callable[..., Any],
    args: tuple[Any, ...],
    plan: str,
    *,
    loss: Callable[..., Any] | None = None,
    quiet: bool = True,
    shared: bool = True,
) -> list[str]:
    """What a function of a model and of batches does otherwise over the mesh of all ranks.

    Compared are its outputs in test mode, and the value and the gradients of a loss of it with respect to the
    model and to all floating batches. Where all is well, there is nothing to say.

    Args:
        f: ``f(model, *batches)``, a tensor or a tree of tensors; None for a model is none.
        args: the model and the batches, plain.
        plan: how the model is laid out, a name in `PLANS`.
        loss: of the outputs. (default: one that every entry has its own weight in)
        quiet: whether the rows don't mix, so that with whole parameters no collective may be called.
        shared: whether the output is divided by its rows, where the batches are.
    """
    mesh = d.mesh()
    loss = weighed if loss is None else loss
    model, *batches = args
    divided = all(len(x) % mesh.size() == 0 for x in fl.fleaves(batches))
    over = (fl.to_device(model, mesh, PLANS[plan]()), *d.shard_batch(tuple(batches), mesh))
    wrong = []
    expected = f(*args)
    with torch.no_grad():
        found = f(*over)
    wrong += [f"output {text}" for text in differences(found, expected)]
    for y in fl.fleaves(found):
        if not isinstance(y, DTensor):
            wrong.append("output: a plain tensor")
        elif divided and shared and not any(isinstance(p, Shard) for p in y.placements):
            wrong.append(f"output: {y.placements}")
    if quiet and plan == "replicate":
        with torch.no_grad():
            counts = traffic(lambda: f(*over))
        if counts:
            wrong.append(f"output: collectives {counts}")
    argnums = tuple(i for i, x in enumerate(args) if fl.trainables(x))
    if not argnums:
        return wrong

    def total(*args: Any) -> Any:
        return loss(f(*args))

    value, grads = fl.withgradient(total, *over, argnums=argnums)
    value_expected, grads_expected = fl.withgradient(total, *args, argnums=argnums)
    wrong += [f"loss {text}" for text in differences(value, value_expected)]
    return wrong + [f"gradient {text}" for text in differences(grads, grads_expected)]


def weighed(outputs: Any) -> Tensor:
    """A loss in which every entry of every output counts in another way, mixed by a mean and a sum."""
    total: Any = 0.0
    for y in fl.fleaves(outputs):
        x = y if y.is_floating_point() else y.double()
        total = total + x.square().mean() + x.sin().sum() / math.sqrt(y.numel())
    return total
