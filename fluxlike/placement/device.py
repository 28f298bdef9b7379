"""Moving whole trees: `to_device`, `cpu`, `gpu`, `get_device`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from fluxlike.placement.mesh import used
from fluxlike.scope.assigned import Assigned, derive
from fluxlike.trees.fmap import fmap_with_path
from fluxlike.trees.found import found
from fluxlike.trees.paths import is_node
from fluxlike.trees.structure import flatten, structure_of
from fluxlike.trees.values import is_tensor, value_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from fluxlike.placement.mesh.plans import Plan

__all__ = ["cpu", "get_device", "gpu", "to_device"]

T = TypeVar("T")


def to_device(tree: T, device: torch.device | str | int | DeviceMesh, plan: Plan | None = None, /) -> T:
    """A tree with all its tensors on a device, or over a mesh of devices.

    Args:
        tree: any tree: a model, a state of an optimiser, a batch.
        device: where to; ``torch.device``, ``"cuda:1"`` or a number; or a ``DeviceMesh``, over which
            every rank that takes part has to call this with the same tree.
        plan: how parameters are laid out over a mesh, from `fluxlike.distributed`: ``replicate()``,
            ``shard()``, ``by_path(…)``. In the state of an optimiser, moments are laid out as their
            parameter, by its path, and counters stay plain numbers. Buffers are whole on each rank.
            (default: ``replicate()``, and what is over the mesh already is kept)

    Returns:
        A tree of the same structure and ties; tensors that are there already are kept. Copies from
        pinned memory don't block. From a mesh to a device, tensors are gathered, whole and plain.

    Raises:
        ValueError: a tensor is on the meta device, which has no data to move; or a plan that does not fit;
            or the ranks of a mesh hold different trees.
        TypeError: a plan for one device, something that is no plan, or the device before the tree.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.to_device({"w": torch.ones(1)}, "cpu")
        {'w': tensor([1.])}
        >>> fl.to_device({"w": torch.ones(1)}, "meta")["w"].device
        device(type='meta')
    """
    if not isinstance(device, (torch.device, str, int)):
        if isinstance(tree, (torch.device, str, int)) and (isinstance(device, Tensor) or is_node(device)):
            raise TypeError(
                f"to_device takes the tree first, found {tree!r} and {found(device)}; write "
                f"to_device(tree, {tree if isinstance(tree, int) else str(tree)!r})"
            )
        from fluxlike.placement.mesh.place import onto_mesh  # torch.distributed takes a while to import

        return onto_mesh(tree, device, plan)
    if plan is not None:
        raise TypeError(
            f"to_device(tree, {device!r}, plan): a plan says how to divide a tree over many devices; write "
            f"to_device(tree, fluxlike.distributed.mesh(), plan), or to_device(tree, {device!r})"
        )
    target = torch.device(device)
    mesh = used.mesh()

    def move(path: str, x: Any) -> Any:
        if isinstance(x, Assigned):
            return Assigned(move(path, x.value))
        if not is_tensor(x):
            return x
        if x.is_meta and target.type != "meta":
            raise ValueError(
                f"{path or 'the tensor'} is on the meta device, which holds no data to move to {target}; "
                "fill the model first: load(path, like=model)"
            )
        if mesh is not None:
            x = mesh.whole(x)
        pinned = target.type == "cuda" and x.device.type == "cpu" and x.is_pinned()
        value = value_of(x)
        new = value.to(target, non_blocking=pinned)
        if new is value:
            return x
        derive(new, x)
        return new

    return fmap_with_path(move, tree, leaves="all")


def cpu(tree: T, /) -> T:
    """A tree with all its tensors in main memory.

    Args:
        tree: any tree.

    Returns:
        A tree of the same structure and ties.

    Raises:
        ValueError: a tensor is on the meta device.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.cpu([torch.ones(1)])
        [tensor([1.])]
    """
    return to_device(tree, "cpu")


_warned = False


def gpu(tree: T, /) -> T:
    """A tree with all its tensors on the accelerator: CUDA, else MPS, else XPU.

    Args:
        tree: any tree.

    Returns:
        A tree of the same structure and ties; the tree itself where there is no accelerator.

    Raises:
        ValueError: a tensor is on the meta device.

    Warns:
        UserWarning: once, where there is no accelerator.

    Example:
        >>> import torch, warnings, fluxlike as fl
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     model = fl.gpu(fl.Dense(2, 1))
    """
    for kind in ("cuda", "mps", "xpu"):
        backend = getattr(torch, kind, None)
        if backend is not None and backend.is_available():
            return to_device(tree, kind)
    global _warned
    if not _warned:
        _warned = True
        warnings.warn("gpu found no accelerator (CUDA, MPS, XPU); trees stay where they are", stacklevel=2)
    return tree


def get_device(tree: Any, /) -> torch.device:
    """The device of all tensors of a tree.

    Args:
        tree: any tree.

    Returns:
        The device; of a tree over a mesh, that on which this rank holds its part.

    Raises:
        ValueError: the tensors are on different devices, or some are over a mesh and others are not (it
            names two paths), or there are none.

    Example:
        >>> import fluxlike as fl
        >>> fl.get_device(fl.Dense(2, 1))
        device(type='cpu')
    """
    leaves, treedef = flatten(tree)
    where = structure_of(treedef).paths
    known = used.mesh()
    found: dict[torch.device, str] = {}
    tensors: list[tuple[str, Tensor]] = []
    for path, x in zip(where, leaves, strict=True):
        tensor = x.value if isinstance(x, Assigned) else x
        if is_tensor(tensor):
            found.setdefault(tensor.device, path)
            tensors.append((path, tensor))
    if known is not None:
        _require_one_mesh(known, tensors)
    if not found:
        raise ValueError("get_device: the tree holds no tensor, so it is on no device")
    if len(found) > 1:
        (a, at_a), (b, at_b) = list(found.items())[:2]
        raise ValueError(
            f"the tree is on several devices: {at_a} is on {a}, {at_b} on {b}; write to_device(tree, "
            f"{str(a)!r})"
        )
    return next(iter(found))


def _require_one_mesh(known: used.Mesh, tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Refuse tensors of which some are over a mesh; plain numbers, such as counters, may be beside them."""
    over = [(path, x) for path, x in tensors if x.ndim or known.over(x)]
    for path, x in over[1:]:
        first, other = over[0]
        if not known.together(x, other):
            raise ValueError(
                f"the tree is at several places: {first} is {known.where(other)}, {path} {known.where(x)}; "
                "write to_device(tree, mesh, plan), or cpu(tree)"
            )
