"""Plans: which axis of a tensor is divided over which axis of a mesh."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from fluxlike.placement.mesh.tensors import data_dims

__all__ = ["Plan", "by_path", "combined", "replicate", "require_plan", "shard", "split"]

Plan: TypeAlias = Callable[[str, Tensor, DeviceMesh], Mapping[int, int]]
"""From a parameter's path, the parameter and the mesh to ``{axis of the mesh: axis of the tensor}``.

Along the axes of the mesh that are left out, the parameter is whole on each rank.
"""


def replicate() -> Plan:
    """Every parameter whole on each rank, as DistributedDataParallel has it.

    Returns:
        A plan.

    Example:
        >>> import torch, fluxlike as fl
        >>> mesh = fl.distributed.mesh()
        >>> model = fl.to_device(fl.Dense(4, 2), mesh, fl.distributed.replicate())
        >>> model.weight.placements
        (Replicate(),)
    """
    return lambda path, x, mesh: {}


def shard(*, at_least: int = 0) -> Plan:
    """Every parameter divided over the ranks that divide the data, as FSDP has it (ZeRO stage 3).

    (Rajbhandari et al. 2020, arXiv 1910.02054.) A rank keeps 1/n of parameters, gradients and state, and
    has a parameter whole only while it computes with it. The first axis that n divides is divided, else
    the longest.

    Args:
        at_least: parameters with fewer numbers stay whole on each rank; they cost more time to gather than
            memory to keep. (default: 0)

    Returns:
        A plan.

    Example:
        >>> import torch, fluxlike as fl
        >>> mesh = fl.distributed.mesh()
        >>> model = fl.to_device(fl.Dense(4, 2), mesh, fl.distributed.shard())
        >>> model.weight.placements
        (Shard(dim=0),)
    """

    def plan(path: str, x: Tensor, mesh: DeviceMesh) -> dict[int, int]:
        return {} if x.numel() < at_least else _divided(x, mesh, data_dims(mesh), set())

    return plan


def _divided(x: Tensor, mesh: DeviceMesh, dims: list[int], taken: set[int]) -> dict[int, int]:
    """The axes of a tensor, none of those taken, that are divided over axes of a mesh."""
    found: dict[int, int] = {}
    for i in dims:
        free = [d for d in range(x.ndim) if d not in taken and d not in found.values() and x.shape[d] > 1]
        fits = [d for d in free if x.shape[d] % mesh.size(i) == 0]
        if fits or free:
            found[i] = fits[0] if fits else max(free, key=lambda d: x.shape[d])
    return found


def split(dim: int, axis: str = "model") -> Plan:
    """Every parameter divided along one of its axes over a named axis of the mesh.

    Args:
        dim: the axis of the parameter; from the end, if negative.
        axis: the axis of the mesh. Over ``"model"`` and ``"tensor"``, the computation is divided with the
            parameter; over any other, the parameter is gathered where it is used. (default: "model")

    Returns:
        A plan.

    Raises:
        ValueError: from `to_device`: an axis of the mesh or of the parameter that is not there.

    Example:
        >>> import fluxlike as fl
        >>> mesh = fl.distributed.mesh(data=1, model=1)
        >>> plan = fl.distributed.by_path({"weight": fl.distributed.split(-1)})
        >>> fl.to_device(fl.Dense(4, 2), mesh, plan).weight.placements
        (Replicate(), Shard(dim=1))
    """

    def plan(path: str, x: Tensor, mesh: DeviceMesh) -> dict[int, int]:
        names = mesh.mesh_dim_names or ()
        if axis not in names:
            known = ", ".join(map(repr, names)) or "no names"
            raise ValueError(
                f"{path}: split({dim}, {axis!r}) divides over the axis {axis!r} of a mesh that has {known}; "
                f"write fluxlike.distributed.mesh({axis}=…), or init_device_mesh(…, "
                f"mesh_dim_names=({axis!r},)) of torch"
            )
        if not -x.ndim <= dim < x.ndim:
            raise ValueError(
                f"{path}: split({dim}) of a parameter of shape {tuple(x.shape)}; choose the parameters that "
                f"have the axis, by_path({{r'weight$': split({dim}, {axis!r})}})"
            )
        return {names.index(axis): dim % x.ndim}

    return plan


def combined(*plans: Plan) -> Plan:
    """Several plans at once, each for axes of the mesh that those before leave.

    Args:
        plans: the plans; where a later one would divide an axis of a parameter that is divided already, it
            takes the next that fits.

    Returns:
        A plan.

    Raises:
        TypeError: something that is no plan.

    Example:
        >>> import fluxlike as fl
        >>> plan = fl.distributed.combined(fl.distributed.split(0, "data"), fl.distributed.shard())
        >>> fl.to_device(fl.Dense(4, 2), fl.distributed.mesh(), plan).weight.placements
        (Shard(dim=0),)
    """

    for each in plans:
        require_plan(each, "combined")

    def plan(path: str, x: Tensor, mesh: DeviceMesh) -> dict[int, int]:
        found: dict[int, int] = {}
        for each in plans:
            wanted = each(path, x, mesh)
            kept = {i: d for i, d in wanted.items() if i not in found and d not in found.values()}
            found |= kept
            moved = [i for i in wanted if i not in found]
            found |= _divided(x, mesh, moved, set(found.values()))
        return found

    return _with_patterns(plan, plans)


def by_path(plans: Mapping[str, Plan], /, rest: Plan | None = None) -> Plan:
    """A plan for each kind of path.

    Args:
        plans: from regular expressions to plans; of those found in a path, the first counts.
        rest: the plan of all other parameters. (default: `replicate`)

    Returns:
        A plan; its attribute ``patterns`` are the expressions.

    Raises:
        TypeError: something that is no plan.
        ValueError: from `to_device`: an expression that is found in no path of the tree.
        re.error: no regular expression.

    Example:
        >>> import fluxlike as fl
        >>> d = fl.distributed
        >>> plan = d.by_path({r"layers\\[0\\]": d.shard()}, rest=d.replicate())
        >>> model = fl.to_device(fl.Chain(fl.Dense(4, 8), fl.Dense(8, 2)), d.mesh(), plan)
        >>> model.layers[0].weight.placements, model.layers[1].weight.placements
        ((Shard(dim=0),), (Replicate(),))
    """
    rest = replicate() if rest is None else rest
    for each in (*plans.values(), rest):
        require_plan(each, "by_path")
    rules = [(re.compile(pattern), plan) for pattern, plan in plans.items()]

    def plan(path: str, x: Tensor, mesh: DeviceMesh) -> Mapping[int, int]:
        for pattern, each in rules:
            if pattern.search(path):
                return each(path, x, mesh)
        return rest(path, x, mesh)

    return _with_patterns(plan, [*plans.values(), rest], [pattern for pattern, _ in rules])


def _with_patterns(plan: Plan, inside: Iterable[Plan], own: Sequence[re.Pattern[str]] = ()) -> Plan:
    """A plan that says by which expressions it chooses, those of the plans inside it too."""
    of_others = [pattern for each in inside for pattern in getattr(each, "patterns", ())]
    plan.patterns = [*own, *of_others]  # type: ignore[attr-defined]
    return plan


def require_plan(plan: object, function: str, /) -> None:
    """Refuse what is no plan.

    Args:
        plan: what was given for one.
        function: that it was given to, to be named.

    Raises:
        TypeError: it can't be called with a path, a tensor and a mesh.
    """
    if not callable(plan):
        raise TypeError(
            f"{function} got {plan!r} for a plan; write one, such as fluxlike.distributed.shard(), or a "
            "function of path, tensor and mesh"
        )
    try:
        inspect.signature(plan).bind("", None, None)
    except ValueError:  # of a builtin, which doesn't say what it takes
        return
    except TypeError:
        name = getattr(plan, "__name__", repr(plan))
        raise TypeError(
            f"{function} got {name} for a plan, which can't be called with a path, a tensor and a mesh; "
            f"write the plan that it makes, {name}(…)"
        ) from None
