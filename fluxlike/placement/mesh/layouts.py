"""How the tensors of a tree are to lie over a mesh, as a plan says it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from fluxlike._private import tracing
from fluxlike.placement.mesh.agreement import first_difference
from fluxlike.placement.mesh.entries import is_entry
from fluxlike.placement.mesh.plans import Plan, replicate, require_plan
from fluxlike.scope.assigned import Assigned
from fluxlike.trees.structure import flatten, structure_of
from fluxlike.trees.trainables import parameters

__all__ = ["Layout", "agreed_layouts", "layouts"]


class Layout(NamedTuple):
    """How one tensor is to lie; the placements are None for a number that stays plain."""

    path: str
    tensor: Tensor
    placements: tuple[Placement, ...] | None


def layouts(tree: Any, mesh: DeviceMesh, plan: Plan | None, /) -> list[Layout]:
    """The layout of every tensor of a tree, once for a tied one.

    Parameters are divided by the plan. So is what an entry keeps for a parameter, along the axes that it
    shares with it; its numbers, such as counters, stay plain. All else is whole on each rank. Without a
    plan, what is over the mesh already is left out.

    Raises:
        TypeError: what is given for a plan is none.
        ValueError: the plan does not fit the tree; it names the path.
    """
    keep, plan = plan is None, replicate() if plan is None else plan
    leaves, treedef = flatten(tree, is_entry)
    structure = structure_of(treedef)
    require_plan(plan, "to_device")
    _require_found(plan, [p for p, x in zip(structure.paths, leaves, strict=True) if _is_placed(x)])
    trained = parameters(leaves, structure.trainable).number
    whole = (Replicate(),) * mesh.ndim
    found: dict[int, Layout] = {}
    for path, x in zip(structure.paths, leaves, strict=True):
        if is_entry(x):
            for kept in _of_entry(x, path, mesh, plan):
                if kept.placements is None:  # a number that is shared with another entry is one for both
                    found[id(kept.tensor)] = kept
                found.setdefault(id(kept.tensor), kept)
        elif isinstance(x, Assigned):
            found.setdefault(id(x.value), Layout(path, x.value, whole))
        elif isinstance(x, Tensor) and id(x) not in found:
            divided = id(x) in trained and x.ndim
            found[id(x)] = Layout(path, x, _placements(path, x, mesh, plan) if divided else whole)
    return [x for x in found.values() if not (keep and getattr(x.tensor, "device_mesh", None) == mesh)]


def _is_placed(x: Any) -> bool:
    return isinstance(x, Tensor) or is_entry(x)


def _of_entry(entry: Any, path: str, mesh: DeviceMesh, plan: Plan) -> list[Layout]:
    leaves, treedef = flatten(entry)
    inside = structure_of(treedef).paths
    tensors = [(path + p, x) for p, x in zip(inside, leaves, strict=True) if isinstance(x, Tensor)]
    shape = _common([x.shape for _, x in tensors if x.ndim])
    placements: Sequence[Placement] = (Replicate(),) * mesh.ndim
    if shape:
        like = torch.empty(shape, dtype=next(x.dtype for _, x in tensors if x.ndim), device="meta")
        placements = _placements(path, like, mesh, plan)

    def layout(x: Tensor) -> tuple[Placement, ...] | None:
        if not x.ndim and not x.is_meta and (shape or not x.is_floating_point()):
            return None
        return tuple(p if _shares(x, shape, p) else Replicate() for p in placements)

    return [Layout(where, x, layout(x)) for where, x in tensors]


def _common(shapes: Sequence[torch.Size]) -> tuple[int, ...]:
    """The shape of the parameter: the moments have it, and sums along some of its axes broadcast to it."""
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:  # a rule of the user's own, which keeps something else
        return ()


def _shares(x: Tensor, shape: Sequence[int], p: Placement) -> bool:
    """Whether a tensor has the axis that is divided."""
    return isinstance(p, Shard) and x.ndim == len(shape) and x.shape[p.dim] == shape[p.dim]


def _placements(path: str, x: Tensor, mesh: DeviceMesh, plan: Plan) -> tuple[Placement, ...]:
    divided: Any = plan(path, x, mesh)
    if not isinstance(divided, Mapping) or not all(isinstance(n, int) for xy in divided.items() for n in xy):
        raise TypeError(
            f"{path}: the plan gave {divided!r}; a plan gives {{axis of the mesh: axis of the tensor}}, both "
            "as numbers, such as {0: 1}, and {} for a tensor that is whole on each rank"
        )
    placements: list[Placement] = [Replicate()] * mesh.ndim
    for i, dim in divided.items():
        if not 0 <= i < mesh.ndim or not 0 <= dim < x.ndim:
            raise ValueError(
                f"{path}: the plan divides axis {dim} of a tensor of shape {tuple(x.shape)} over axis {i} of "
                f"a mesh of shape {tuple(mesh.shape)}"
            )
        placements[i] = Shard(dim)
    return tuple(placements)


def _require_found(plan: Any, paths: Sequence[str]) -> None:
    """Refuse a plan by paths, of which one is in no path of the tree."""
    for pattern in getattr(plan, "patterns", ()):
        if any(pattern.search(path) for path in paths):
            continue
        close = difflib.get_close_matches(pattern.pattern.replace("\\", ""), paths, 3, 0.5)
        if close:
            hint = f"the closest are {', '.join(close)}"
        else:
            hint = f"its paths are {', '.join(paths[:6])}{', …' if len(paths) > 6 else ''}"
        raise ValueError(f"by_path: {pattern.pattern!r} is found in no path of the tree; {hint}")


def agreed_layouts(tree: Any, mesh: DeviceMesh, plan: Plan | None, /) -> list[Layout]:
    """The layouts of the tensors of a tree, which every rank has alike.

    One gathering of a number for the whole tree.

    Raises:
        Exception: what `layouts` raised on this rank.
        ValueError: on every rank, where their trees differ in paths, shapes, dtypes, layouts or numbers; it
            names two ranks and the first path.
    """
    alone = mesh.size() == 1 or not tracing.concrete()
    try:
        wanted = layouts(tree, mesh, plan)
    except Exception as error:
        if not alone:  # the others wait for this rank
            first_difference([f"{type(error).__name__}: {error}"], mesh)
        raise
    if not alone:
        contents = _contents(wanted, mesh)
        _require_alike([f"{_described(x)}\n{n}" for x, n in zip(wanted, contents, strict=True)], mesh)
    return wanted


def _require_alike(texts: Sequence[str], mesh: DeviceMesh) -> None:
    found = first_difference(texts, mesh)
    if found is None:
        return
    (a, of_a), (b, of_b) = found
    on_a, on_b = of_a.partition("\n")[0], of_b.partition("\n")[0]
    if on_a == on_b:
        raise ValueError(
            f"to_device: {on_a}, holds other numbers on rank {b} than on rank {a}; "
            "write torch.manual_seed(0) before the tree is made, or load it from one file"
        )
    raise ValueError(
        f"to_device: the ranks hold different trees: rank {a} has {on_a or 'no more'}, where rank {b} has "
        f"{on_b or 'no more'}; make the same tree on every rank"
    )


def _described(x: Layout) -> str:
    where = "plain" if x.placements is None else ", ".join(map(repr, x.placements))
    return f"{x.path or 'the tensor'} of shape {tuple(x.tensor.shape)}, {x.tensor.dtype}, {where}"


def _contents(wanted: Sequence[Layout], mesh: DeviceMesh) -> list[int]:
    """For each tensor a number made of all that it holds; 0 for one that can't be read."""
    sums = {i: _sum_of_bits(x.tensor) for i, x in enumerate(wanted) if _is_readable(x.tensor)}
    values = torch.stack([s.to(mesh.device_type) for s in sums.values()]).tolist() if sums else []
    found = dict(zip(sums, values, strict=True))
    return [found.get(i, 0) for i in range(len(wanted))]


def _is_readable(t: Tensor) -> bool:
    """Whether a tensor is whole and its numbers are there."""
    return not (isinstance(t, DTensor) or t.is_meta or t.layout is not torch.strided or t.is_quantized)


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _sum_of_bits(x: Tensor) -> Tensor:
    """The sum of all numbers, read as whole ones: the same in whatever order it is taken."""
    x = x.detach()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    return x.resolve_neg().view(_BITS[x.element_size()]).sum(dtype=torch.int64)
