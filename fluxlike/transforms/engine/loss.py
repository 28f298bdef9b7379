"""The scalar loss in what a function returned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import optree
from torch import Tensor

__all__ = ["scalar_loss"]


def scalar_loss(value: Any, /) -> Tensor:
    """The loss: what the function returned, the first item of a tuple, or the entry or field ``loss``.

    Raises:
        ValueError: there is none, or it is no real floating 0-d tensor.
    """
    loss, said = value, "the function returned"
    if isinstance(value, Tensor):
        pass
    elif isinstance(value, Mapping):
        if "loss" not in value:
            raise ValueError(f"the function returned a dict without an entry 'loss': {list(value)}")
        loss, said = value["loss"], "the entry 'loss' is"
    elif optree.is_namedtuple(value) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        if not hasattr(value, "loss"):
            raise ValueError(f"the function returned a {type(value).__name__} without a field 'loss'")
        loss, said = value.loss, "the field 'loss' is"
    elif isinstance(value, tuple) and value:
        loss, said = value[0], "the first item returned is"
    if isinstance(loss, Tensor):
        if loss.ndim:
            raise ValueError(
                f"gradient needs a scalar loss, and {said} a tensor of shape {tuple(loss.shape)}; reduce "
                "it with .sum() or .mean(). Did you mean the jacobian, every entry's own gradient?"
            )
        if loss.is_complex():
            raise ValueError(
                f"gradient needs a real loss, and {said} a {loss.dtype} scalar; take .abs() or .real"
            )
        if not loss.is_floating_point():
            raise ValueError(f"gradient needs a floating loss, and {said} of {loss.dtype}")
        return loss
    if isinstance(loss, (float, int)):
        raise ValueError(
            f"gradient needs a 0-d tensor, and {said} the Python {type(loss).__name__} {loss!r}: "
            "did you call .item() or float()? The loss must stay a tensor"
        )
    hint = "; did you forget to return the loss?" if loss is None else ""
    raise ValueError(f"gradient needs a 0-d tensor, and {said} {loss!r} of {type(loss).__name__}{hint}")
