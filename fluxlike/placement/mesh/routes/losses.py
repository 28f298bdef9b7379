"""Routes of torch's losses: each rank reduces its own rows, and what is pending is a sum over the ranks.

DTensor has rules for a few of them, and some of these take the entries of a rank for all of them: the weights
in the mean of `nll_loss`, the number of entries in the gradient of `mse_loss`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement
from torch.nn import _reduction

from fluxlike._private import collectives
from fluxlike._private.dtensors import of_local, spec_over
from fluxlike.placement.mesh.parts import piece_of
from fluxlike.placement.mesh.rowwise import Divided, Rowwise, Whole, common, tensors_over
from fluxlike.placement.mesh.signatures import named
from fluxlike.placement.mesh.tensors import replicated

__all__ = ["ROUTES"]

_Arguments = dict[str, Any]


class _Loss:
    """A loss with an argument ``reduction``, whose mean is that of entries that count alike.

    Args:
        rows: the names of the arguments with rows.
        broadcast: those whose axes are counted from the last one.
        alike: whether the first two are brought to one shape, as torch does with a warning.
    """

    def __init__(self, *rows: str, broadcast: Sequence[str] = (), alike: bool = False) -> None:
        self._rows, self._broadcast, self._alike = rows, tuple(broadcast), alike

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = named(func, args, kwargs)
        if self._alike:
            self._bring_together(func, given)
        found = [x for name in self._rows for x in tensors_over(given.get(name))]
        reduction = _reduction_of(given)
        if not found:
            return NotImplemented
        rows = common(found, 1)
        if reduction == "none" or Shard(0) not in rows:
            return self._on_rows(func, given)
        return self._reduced(func, given, reduction, found, rows)

    def _on_rows(self, func: Any, given: _Arguments) -> Any:
        return Rowwise(*self._rows, broadcast=self._broadcast)(func, (), given)

    def _reduced(
        self, func: Any, given: _Arguments, reduction: str, found: list[DTensor], rows: list[Placement]
    ) -> Any:
        """A local value of which the sum over the ranks is the loss."""
        mesh = found[0].device_mesh
        _, pieces = piece_of(mesh, rows)

        def reduced(**local: Any) -> Tensor:
            value: Tensor = func(**local)
            return value if reduction == "sum" else value / pieces

        return _summed(Rowwise(*self._rows, broadcast=self._broadcast), reduced, given, mesh, rows)

    def _bring_together(self, func: Any, given: _Arguments) -> None:
        first, second = (given[name] for name in self._rows[:2])
        if first.shape != second.shape:
            warnings.warn(
                f"{func.__name__}: the prediction has the shape {tuple(first.shape)}, the target "
                f"{tuple(second.shape)}; they are broadcast, which is seldom meant: reshape one",
                stacklevel=4,
            )
            given |= zip(self._rows[:2], torch.broadcast_tensors(first, second), strict=True)


class _OfClasses(_Loss):
    """`cross_entropy` and `nll_loss`, whose mean is over the weights of the targets that count."""

    def _reduced(
        self, func: Any, given: _Arguments, reduction: str, found: list[DTensor], rows: list[Placement]
    ) -> Any:
        scores, target = given["input"], given["target"]
        if scores.ndim == 1 or reduction == "sum" or target.shape == scores.shape:
            return super()._reduced(func, given, reduction, found, rows)
        mesh = found[0].device_mesh

        def reduced(**local: Any) -> Tensor:
            mass = _mass(local["input"], local["target"], local["weight"], local["ignore_index"])
            for i, p in enumerate(rows):
                if isinstance(p, Shard):
                    mass = collectives.all_reduce(mass, mesh, i)
            total: Tensor = func(**local | {"reduction": "sum"})
            return total / mass

        return _summed(Rowwise(*self._rows), reduced, given, mesh, rows)


def _mass(scores: Tensor, target: Tensor, weight: Tensor | None, ignored: int) -> Tensor:
    """The weights of all targets that count, added up."""
    kept = target != ignored
    if weight is None:
        return kept.sum().to(scores.dtype)
    return (weight.detach()[torch.where(kept, target, 0)] * kept).sum()


def _summed(by_rows: Rowwise, reduced: Any, given: _Arguments, mesh: DeviceMesh, rows: Any) -> Any:
    """What a function of this rank's rows gives, as its part of a sum over the ranks."""
    value: list[Tensor] = []

    def keep(**local: Any) -> None:
        value.append(reduced(**local))

    by_rows(keep, (), given)
    return _pending_sum(value[0], mesh, rows)


def _pending_sum(value: Tensor, mesh: DeviceMesh, rows: Sequence[Placement]) -> DTensor:
    """The sum of the numbers that ranks with different rows have computed."""
    placements: list[Placement] = [Partial() if isinstance(p, Shard) else Replicate() for p in rows]
    if not value.requires_grad:
        found: DTensor = of_local(value, spec_over(mesh, placements, (), value))
        return found
    return DTensor.from_local(value, mesh, placements, run_check=False)


def _reduction_of(given: _Arguments) -> str:
    """The reduction, also where the old arguments name it, which are taken out."""
    average, reduce = given.pop("size_average", None), given.pop("reduce", None)
    if average is not None or reduce is not None:
        given["reduction"] = _reduction.legacy_get_string(average, reduce)
    return str(given["reduction"])


def _ctc(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """`ctc_loss` of scores (T, N, C), whose rows stand on axis 1."""
    given = named(func, args, kwargs)
    scores, target = given["log_probs"], given["targets"]
    found = list(tensors_over([scores]))
    if not found or scores.ndim != 3 or target.ndim != 2:  # targets one after another belong to no row
        return Whole()(func, args, kwargs)
    mesh = scores.device_mesh
    for name in ("input_lengths", "target_lengths"):
        given[name] = _over(given[name], mesh)
    of_rows = [target, given["input_lengths"], given["target_lengths"]]
    rows = Divided([scores, *of_rows], [1, 0, 0, 0])
    value = func(**{name: rows.enter(x) for name, x in given.items()})
    if given["reduction"] == "none":
        return rows.leave(value, 0)
    places = rows.at(0)
    _, pieces = piece_of(mesh, places)
    return _pending_sum(value / pieces if given["reduction"] == "mean" else value, mesh, places)


def _over(lengths: Any, mesh: DeviceMesh) -> DTensor:
    """Lengths as a tensor over the mesh; they may be numbers, too."""
    return lengths if isinstance(lengths, DTensor) else replicated(torch.as_tensor(lengths), mesh)


def _weighted(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """A loss of entries; with weights, torch composes it of operations that DTensor has rules for."""
    weighted = named(func, args, kwargs)["weight"] is not None
    return NotImplemented if weighted else _ENTRIES(func, args, kwargs)


_ENTRIES = _Loss("input", "target", alike=True)
_ROWS = _Loss("input", "target")
_OF_ROWS = (
    F.soft_margin_loss, F.kl_div, F.multi_margin_loss, F.multilabel_margin_loss,
    F.multilabel_soft_margin_loss,
)  # fmt: skip
_BINARY = _Loss("input", "target", broadcast=("weight", "pos_weight"))
_CLASSES = _OfClasses("input", "target")

ROUTES: dict[Any, Any] = {
    **dict.fromkeys((F.mse_loss, F.l1_loss, F.huber_loss), _weighted),
    **dict.fromkeys((F.smooth_l1_loss,), _ENTRIES),
    **dict.fromkeys((F.cross_entropy, F.nll_loss), _CLASSES),
    **dict.fromkeys(_OF_ROWS, _ROWS),
    **dict.fromkeys((F.binary_cross_entropy, F.binary_cross_entropy_with_logits), _BINARY),
    F.ctc_loss: _ctc,
}
