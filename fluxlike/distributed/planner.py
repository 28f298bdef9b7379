"""`estimate`: memory and communication of a training step on a mesh of any size, which need not be there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from fluxlike._private.dtensors import local_of
from fluxlike._private.fake import stand_ins, value_asked
from fluxlike._private.fake_ranks import fake_mesh
from fluxlike.aligned import aligned
from fluxlike.distributed.planner_memory import Memory
from fluxlike.distributed.planner_traffic import Sent, Traffic, traffic_table
from fluxlike.optimisers.state import setup
from fluxlike.optimisers.update import update
from fluxlike.placement.device import to_device
from fluxlike.placement.mesh.place import shard_batch
from fluxlike.placement.mesh.plans import Plan
from fluxlike.scope.assigned import Assigned
from fluxlike.scope.key import Key
from fluxlike.scope.seeded import active
from fluxlike.transforms.gradient import withgradient
from fluxlike.trees.fmap import fleaves, fmap
from fluxlike.trees.show import size_text
from fluxlike.trees.trainables import trainables

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True, repr=False)
class Estimate:
    """What one rank holds and sends in one step of training; made by `estimate`, prints as tables.

    Attributes:
        mesh: the sizes of the mesh's axes by their names.
        parameters: bytes of the rank's part of the trained tensors, each tied one once.
        gradients: bytes of its part of the gradients.
        state: bytes of its part of the optimiser's state.
        buffers: bytes of the model's other tensors.
        batch: bytes of the rank's share of the batch.
        activations: bytes that the forward pass leaves for the backward pass.
        gathered: bytes that it leaves beside these of gathered (or cast) parameters.
        peak: the most bytes that the rank holds at a moment of the forward and backward pass, with all of
            the above that is there by then.
        sent: what it sends, a row for each kind of collective, axis and phase: ``"forward"``,
            ``"backward"`` (until the gradients are there) or ``"update"``.
    """

    mesh: dict[str, int]
    parameters: int
    gradients: int
    state: int
    buffers: int
    batch: int
    activations: int
    gathered: int
    peak: int
    sent: tuple[Sent, ...]

    @property
    def bytes_sent(self) -> int:
        """The bytes that the rank sends in all."""
        return sum(row.bytes for row in self.sent)

    def __str__(self) -> str:
        ranks = 1
        for n in self.mesh.values():
            ranks *= n
        axes = ", ".join(f"{name}={n}" for name, n in self.mesh.items())
        memory = aligned(
            [("memory", "bytes"), *((n, size_text(getattr(self, n))) for n in _MEMORY)], right=[1]
        )
        return "\n".join([f"A rank of {ranks} ({axes})", *memory, "", *traffic_table(self.sent)])

    def __repr__(self) -> str:
        return str(self)


_MEMORY = ("parameters", "gradients", "state", "buffers", "batch", "activations", "gathered", "peak")


def estimate(
    loss: Callable[..., Any],
    model: Any,
    /,
    *batch: Any,
    mesh: Mapping[str, int] | DeviceMesh,
    plan: Plan | None = None,
    rule: Any = None,
) -> Estimate:
    """What a step of training would hold and send on one rank of a mesh of any size.

    The step itself is run, ``gradient(loss, model, *batch)`` on what ``to_device(model, mesh, plan)`` and
    ``shard_batch(batch, mesh)`` return, and then `update`: by this process alone, as rank 0, on tensors
    without memory, and with collectives that move nothing. What is counted is what that does, for any model.
    Nothing is allocated, so a model may be larger than the machine: make it under ``torch.device("meta")``.

    Args:
        loss: as for `gradient`.
        model: the whole model, on any device.
        batch: the other arguments of the loss, with the rows of all ranks.
        mesh: the size of each axis by its name, such as ``{"data": 64, "model": 8}``; or a mesh.
        plan: as for `to_device`. (default: ``replicate()``)
        rule: a rule of an optimiser, as for `setup`. (default: None, no state and no update)

    Returns:
        An `Estimate`. Bytes of parameters, gradients, state, buffers and batch are exact, as is what is
        sent: the volumes are those of `communication`. Activations and the peak leave out what kernels
        allocate inside, and are those of the device that the model is on (of the CPU for the meta
        device): another device may have another kernel of attention that keeps another amount. `update`
        with ``donate=True`` takes no more than the peak, as a rule; without, it makes new parameters and a
        new state beside the old ones.

    Raises:
        TypeError: `mesh` is no mapping and no mesh.
        ValueError: the size of an axis is no whole number from 1 on; or the plan does not fit.
        RuntimeError: the loss asks for the value of a tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.distributed.planner import estimate
        >>> with torch.device("meta"):
        ...     model = fl.Chain(fl.Dense(1024, 4096, fl.relu), fl.Dense(4096, 1024))
        ...     x = torch.empty(512, 1024)
        >>> loss = lambda model, x: model(x).square().mean()
        >>> report = estimate(loss, model, x, mesh={"data": 64}, rule=fl.AdamW())
        >>> report.parameters, report.state, report.batch, report.bytes_sent
        (33574912, 67149832, 32768, 66100616)
    """
    sizes, names = _axes(mesh)
    draws = active()
    mark = draws.mark() if draws is not None else 0
    try:
        device = _device(model)
        with fake_mesh(sizes, names, device.type) as ranks, stand_ins():
            return _Step(ranks, device).run(loss, model, batch, plan, rule)
    except Exception as error:
        asked = value_asked(error)
        if asked is None:
            raise
        raise RuntimeError(
            f"estimate runs the step on tensors without values, and this asks for one ({asked}); torch.where "
            "and fluxlike.cond choose without a value"
        ) from error
    finally:
        if draws is not None:
            draws.rewind(mark)


def _axes(mesh: Any) -> tuple[tuple[int, ...], tuple[str, ...] | None]:
    if isinstance(mesh, DeviceMesh):
        return tuple(mesh.shape), mesh.mesh_dim_names
    if not isinstance(mesh, Mapping) or not mesh:
        raise TypeError(
            f'estimate(mesh={mesh!r}): write the size of each axis, mesh={{"data": 64}}, or a mesh'
        )
    for name, n in mesh.items():
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ValueError(
                f"estimate(mesh={{{name!r}: {n!r}}}): the size of an axis is a whole number from 1 on"
            )
    return tuple(mesh.values()), tuple(mesh)


def _device(model: Any) -> torch.device:
    """Where the model is; the CPU where it is nowhere."""
    for x in fleaves(model):
        if x.device.type != "meta":
            return torch.device(x.device.type)
    return torch.device("cpu")


class _Step(Memory):
    """One step, whose operations are heard."""

    def __init__(self, mesh: DeviceMesh, device: torch.device) -> None:
        self._mesh, self._device, self._traffic = mesh, device, Traffic(mesh)

    def run(
        self, loss: Callable[..., Any], model: Any, batch: tuple[Any, ...], plan: Plan | None, rule: Any
    ) -> Estimate:
        model = to_device(fmap(self._stand_in, model, leaves="all"), self._mesh, plan)
        keys = [x if isinstance(x, Key) else None for x in batch]
        rows = fmap(self._stand_in, [None if isinstance(x, Key) else x for x in batch], leaves="all")
        shares = [
            x if key is None else key for x, key in zip(shard_batch(rows, self._mesh), keys, strict=True)
        ]
        state = None if rule is None else setup(rule, model)
        parameters = list(_parts(trainables(model)))
        trained = set(map(id, parameters))
        buffers = [x for x in _parts(model) if id(x) not in trained]
        data, kept = list(_parts(shares)), list(_parts(state))
        super().__init__(parameters, [*buffers, *data, *kept])
        with self:
            _, grads = withgradient(loss, model, *shares)
            peak, self.phase = self.peak, "update"
            if rule is not None:
                update(state, model, grads)
        names = self._mesh.mesh_dim_names or tuple(f"axis {i}" for i in range(self._mesh.ndim))
        return Estimate(
            mesh=dict(zip(names, self._mesh.shape, strict=True)),
            parameters=_bytes(parameters),
            gradients=_bytes(_parts(grads)),
            state=_bytes(kept),
            buffers=_bytes(buffers),
            batch=_bytes(data),
            activations=self.activations,
            gathered=self.gathered,
            peak=peak,
            sent=self._traffic.rows,
        )

    def before(self, operation: Any, args: Any, kwargs: Any) -> None:
        super().before(operation, args, kwargs)
        self._traffic.hear(operation, args, kwargs, self.phase)

    def _stand_in(self, x: Any) -> Any:
        if isinstance(x, Assigned):
            return Assigned(self._stand_in(x.value))
        if not isinstance(x, Tensor):
            return x
        if x.layout is not torch.strided or x.is_quantized:
            raise TypeError(
                f"estimate: a tensor of layout {x.layout} and dtype {x.dtype}; it takes dense ones"
            )
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=self._device)


def _parts(tree: Any) -> Iterator[Tensor]:
    """The rank's part of each tensor of a tree, a tied one once."""
    return (local_of(x) if isinstance(x, DTensor) else x for x in fleaves(tree))


def _bytes(tensors: Any) -> int:
    return sum(x.nbytes for x in tensors)
