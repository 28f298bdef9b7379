"""Batch normalisation by the statistics of the rows of all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from fluxlike._private import collectives
from fluxlike._private.dtensors import local_of
from fluxlike.placement.mesh.rowwise import Rowwise, common, enter, leave, whole
from fluxlike.placement.mesh.signatures import named

__all__ = ["batch_norm"]


def batch_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """``torch.nn.functional.batch_norm`` over a mesh; running statistics move as on one device."""
    given = named(func, args, kwargs)
    rows = given["input"]
    if not isinstance(rows, DTensor):
        return NotImplemented
    mesh, placements = rows.device_mesh, common([rows], 1)
    dims = [i for i, p in enumerate(placements) if isinstance(p, Shard)]
    if not dims or not given["training"] or rows.numel() == rows.shape[1]:
        return Rowwise(0, "input")(func, args, kwargs)
    none, scales = whole(placements), (given["weight"], given["bias"])
    weight, bias = (None if t is None else enter(t, none, placements) for t in scales)
    x = enter(rows, placements)
    y, mean, var = _Normalise.apply(x, weight, bias, given["eps"], mesh, dims)
    if given["running_mean"] is not None and given["running_var"] is not None:
        count = _count(x, mesh, dims)
        moved = (given["running_mean"], mean), (given["running_var"], var * (count / (count - 1)))
        with torch.no_grad():
            for running, now in moved:
                local = local_of(running)
                local.copy_(local.to(now.dtype).lerp(now, given["momentum"]))
    return leave(y, mesh, placements)


def _count(x: Tensor, mesh: DeviceMesh, dims: list[int]) -> int:
    """How many numbers of all ranks make one mean."""
    count = x.numel() // x.shape[1]
    for i in dims:
        count *= mesh.size(i)
    return count


def _wide(x: Tensor) -> Tensor:
    """In the dtype of sums: at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _summed(x: Tensor, mesh: DeviceMesh, dims: list[int]) -> Tensor:
    for i in dims:
        x = collectives.all_reduce(x, mesh, i)
    return x


def _moments(x: Tensor, mesh: DeviceMesh, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all ranks (Chan et al. 1979), by one collective an axis of the mesh."""
    axes = [i for i in range(x.ndim) if i != 1]
    var, mean = torch.var_mean(_wide(x), axes, correction=0)
    for i in dims:
        means, variances = collectives.all_gather(torch.stack((mean, var))[None], mesh, i).unbind(1)
        between, mean = torch.var_mean(means, 0, correction=0)
        var = variances.mean(0) + between
    return mean, var


class _Sum(torch.autograd.Function):
    """The sum over ranks, differentiable to any order: its transpose is itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: DeviceMesh, dims: list[int]) -> Tensor:
        ctx.mesh, ctx.dims = mesh, dims
        return _summed(x, mesh, dims)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Sum.apply(grads[0], ctx.mesh, ctx.dims), None, None


def _by_operations(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mesh: DeviceMesh, dims: list[int]
) -> Tensor:
    """The same as a graph of operations."""
    dtype, x = x.dtype, _wide(x)
    axes = [i for i in range(x.ndim) if i != 1]
    count = _count(x, mesh, dims)
    x = x - _Sum.apply(x.sum(axes, keepdim=True), mesh, dims) / count
    var = _Sum.apply(x.square().sum(axes, keepdim=True), mesh, dims) / count
    y = x * torch.rsqrt(var + eps)
    shape = [-1 if i == 1 else 1 for i in range(x.ndim)]
    if weight is not None:
        y = y * weight.reshape(shape)
    return (y if bias is None else y + bias.reshape(shape)).to(dtype)


class _Normalise(torch.autograd.Function):
    """Normalise rows by the moments of all ranks' rows; gives them too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mesh: Any, dims: Any
    ) -> Any:
        mean, var = _moments(x, mesh, dims)
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.rest = eps, mesh, dims
        ctx.mark_non_differentiable(mean, var)
        # torch takes rows of a narrow dtype with all else in float32
        w, b = (None if t is None else t.to(mean.dtype) for t in (weight, bias))
        return F.batch_norm(x, mean, var, w, b, False, 0.0, eps), mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, bias, mean, var = ctx.saved_tensors
        g, (eps, mesh, dims) = grads[0], ctx.rest
        if torch.is_grad_enabled():  # the backward pass is differentiated in turn
            wanted = [t for t, need in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if need]
            y = _by_operations(x, weight, bias, eps, mesh, dims)
            found = iter(torch.autograd.grad(y, wanted, g, create_graph=True))
            return *(next(found) if need else None for need in ctx.needs_input_grad[:3]), None, None, None
        axes = [i for i in range(x.ndim) if i != 1]
        shape = [-1 if i == 1 else 1 for i in range(x.ndim)]
        dtype, g, x = x.dtype, _wide(g), _wide(x)
        scale = torch.rsqrt(var + eps)
        normal = (x - mean.reshape(shape)) * scale.reshape(shape)
        sums = torch.stack((g.sum(axes), (g * normal).sum(axes)))
        if ctx.needs_input_grad[0]:
            a, b = _summed(sums, mesh, dims) / _count(x, mesh, dims)
            scale = scale if weight is None else scale * weight
            gx = ((g - a.reshape(shape) - normal * b.reshape(shape)) * scale.reshape(shape)).to(dtype)
        else:
            gx = None
        gw, gb = (None if t is None else s.to(t.dtype) for t, s in ((weight, sums[1]), (bias, sums[0])))
        return gx, gw, gb, None, None, None
