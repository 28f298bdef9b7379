"""A model's predictions of classes, batch by batch: in test mode, without a graph, on its own device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fluxlike.learning.ranks import mesh_of, whole
from fluxlike.placement.device import get_device, to_device
from fluxlike.scope.mode import mode
from fluxlike.trees.fmap import fleaves

__all__ = ["Predicted", "class_names", "class_probabilities", "predicted", "predicted_batches"]

#: Turns a model's outputs into probabilities of classes, (N, C).
Probabilities = Callable[[Tensor], Tensor]


class Predicted(NamedTuple):
    """What a model says of one batch.

    Attributes:
        x: the inputs, on the device of the model.
        y: the targets, likewise.
        outputs: of the model.
        probabilities: of the classes, float, of shape (N, C).
        true: the class numbers of the targets, int64, of shape (N,).
    """

    x: Any
    y: Tensor
    outputs: Tensor
    probabilities: Tensor
    true: Tensor


def class_probabilities(outputs: Tensor, /) -> Tensor:
    """Unnormalised scores as probabilities: softmax, or of a single score the sigmoid.

    Args:
        outputs: scores of C classes, (N, C); or of the second of two classes, (N,) or (N, 1).

    Returns:
        The probabilities, of shape (N, C) or (N, 2), in at least float32.

    Raises:
        ValueError: another shape.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim not in (1, 2):
        found = f"the shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the model's outputs are of {found}; expected scores (N, C) of C classes, or (N,) of one; "
            "others become probabilities by probabilities=, a function of the outputs"
        )
    wide = outputs if outputs.dtype == torch.float64 else outputs.float()
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return wide.softmax(1)
    second = wide.reshape(-1).sigmoid()
    return torch.stack([1 - second, second], 1)


def predicted_batches(
    model: Any, data: Iterable[Any], probabilities: Probabilities, /
) -> Iterator[Predicted]:
    """What a model says of each batch ``(x, y)``.

    Raises:
        TypeError: the model can't be called or is a module of torch, or a batch is no pair with tensors.
        ValueError: outputs or targets that are not of classes, or outputs that are not finite.
    """
    for number, batch in enumerate(data):
        yield predicted(model, batch, probabilities, f"batch {number}")


def predicted(model: Any, batch: Any, probabilities: Probabilities, place: str, /) -> Predicted:
    """What a model says of one batch; `place` is what to call it in messages."""
    _require_model(model)
    x, y = _pair(batch, place)
    mesh = mesh_of(model)
    if mesh is not None:
        x, y = _over(mesh, (x, y))
    elif any(isinstance(leaf, Tensor) for leaf in fleaves(model)):
        x, y = to_device((x, y), get_device(model))
    with torch.no_grad(), mode("test"):
        x, y, outputs = whole((x, y, model(x)))
        shares = probabilities(outputs)
    _require_probabilities(shares, place)
    return Predicted(x, y, outputs, shares, _classes(y, shares, place))


def _over(mesh: Any, batch: Any) -> Any:
    from fluxlike.placement.mesh.place import shard_batch  # torch.distributed takes a while to import

    return shard_batch(batch, mesh)


def _require_model(model: Any) -> None:
    if isinstance(model, nn.Module):
        raise TypeError(
            f"the model is a torch module, a {type(model).__name__}, whose mode and buffers a run could "
            "change; give fluxlike.from_torch(module)"
        )
    if not callable(model):
        raise TypeError(f"the model is a {type(model).__name__}, which can't be called")


def _pair(batch: Any, place: str) -> tuple[Any, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        held = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise TypeError(
            f"{place} is a {type(batch).__name__}{held}; expected a pair (x, y): give batches, such as "
            "DataLoader((x, y), batch_size=64)"
        )
    if not isinstance(batch[1], Tensor):
        raise TypeError(f"the targets of {place} are a {type(batch[1]).__name__}; expected a tensor")
    return batch[0], batch[1]


def _require_probabilities(shares: Any, place: str) -> None:
    if not isinstance(shares, Tensor) or shares.ndim != 2 or shares.shape[1] < 2:
        found = f"the shape {tuple(shares.shape)}" if isinstance(shares, Tensor) else type(shares).__name__
        raise ValueError(f"the probabilities of {place} are of {found}; expected (N, C), with C at least 2")
    finite = shares.isfinite().all(1)
    if not bool(finite.all()):
        row = int(finite.int().argmin())
        raise ValueError(
            f"the probabilities of observation {row} of {place} are {_few(shares[row])}, so nothing is "
            "predicted there; mend the model, or leave the observation out"
        )
    low, high = (shares.min().item(), shares.max().item()) if shares.numel() else (0.0, 0.0)
    if low < 0 or high > 1.001:
        raise ValueError(
            f"the probabilities of {place} reach from {low:.4g} to {high:.4g}; expected numbers from 0 to 1: "
            "leave probabilities= out where the model gives unnormalised scores"
        )


def class_names(classes: Sequence[Any] | None, count: int, /) -> tuple[str, ...]:
    """The names of all classes: their numbers where there are none.

    Raises:
        ValueError: there are not as many as classes.
    """
    names = range(count) if classes is None else classes
    if len(names) != count:
        raise ValueError(
            f"{len(names)} classes are named, and the model gives probabilities of {count}; name all of them"
        )
    return tuple(map(str, names))


def _few(row: Tensor) -> str:
    more = ", …" if len(row) > 5 else ""
    return f"[{', '.join(f'{share:.3g}' for share in row[:5].tolist())}{more}]"


def _classes(y: Tensor, shares: Tensor, place: str) -> Tensor:
    """Targets as class numbers: of indices themselves, of one-hot vectors the largest."""
    n, count = shares.shape
    if y.shape == shares.shape:
        return y.argmax(1)
    if y.shape not in ((n,), (n, 1)):
        raise ValueError(
            f"the targets of {place} are of the shape {tuple(y.shape)}; for {n} predictions of {count} "
            f"classes expected class numbers ({n},), or one-hot vectors ({n}, {count})"
        )
    y = y.reshape(-1)
    true = y.long()
    wrong = (true != y) | (true < 0) | (true >= count)
    if bool(wrong.any()):
        raise ValueError(
            f"the targets of {place} hold {y[wrong][0].item()!r}; expected class numbers from 0 to "
            f"{count - 1}"
        )
    return true
