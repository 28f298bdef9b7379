"""One-hot labels and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.trees.found import found

__all__ = ["onecold", "onehot", "onehotbatch"]


def onehot(label: Any, classes: Sequence[Any], /) -> Tensor:
    """One label as a vector with a 1 at its class.

    Args:
        label: one of the classes.
        classes: all classes, in order.

    Returns:
        float, of shape (C,), in the default dtype.

    Raises:
        ValueError: the label is not among the classes.
        TypeError: several labels; or classes that are no sequence, such as their number.

    Example:
        >>> import fluxlike as fl
        >>> fl.onehot("b", ["a", "b", "c"])
        tensor([0., 1., 0.])
    """
    several = label.ndim > 0 if isinstance(label, (Tensor, np.ndarray)) else isinstance(label, (list, range))
    if several:
        raise TypeError(
            f"onehot takes one label, then all classes, found {found(label)} and {found(classes)}; write "
            "onehot(label, classes), or onehotbatch(labels, classes)"
        )
    names = _names("onehot", classes)
    return onehotbatch([label.item() if isinstance(label, Tensor) else label], names)[0]


def onehotbatch(labels: Any, classes: Sequence[Any], /) -> Tensor:
    """Labels as one-hot vectors.

    Args:
        labels: a sequence of labels, or a tensor or array of any shape (N, …).
        classes: all classes, in order, such as ``range(10)``.

    Returns:
        float, of shape (N, C, …), in the default dtype, on the device of the labels.

    Raises:
        ValueError: a label is not among the classes, or a class is there twice.
        TypeError: a single label; or classes that are no sequence, such as their number.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.onehotbatch(torch.tensor([2, 0]), range(3))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """
    names = _names("onehotbatch", classes)
    if not isinstance(labels, (Tensor, Iterable)):
        raise TypeError(
            f"onehotbatch takes several labels, found {found(labels)}; write onehot(label, classes) for one"
        )
    if len(set(names)) != len(names):
        raise ValueError(f"the classes {names} hold one twice")
    hot = torch.nn.functional.one_hot(_numbers(labels, names), len(names))
    return hot.movedim(-1, 1 if hot.ndim > 1 else 0).to(torch.get_default_dtype())


def _names(name: str, classes: Any) -> list[Any]:
    """All classes, in order.

    Raises:
        TypeError: they are no sequence.
    """
    if not isinstance(classes, Iterable):
        hint = f"; write range({classes})" if isinstance(classes, int) else ""
        raise TypeError(f"{name} takes all classes in order, found {classes!r}{hint}")
    return classes.tolist() if isinstance(classes, Tensor) else list(classes)


def _numbers(labels: Any, names: list[Any]) -> Tensor:
    """The class number of every label."""
    if isinstance(labels, Tensor) and all(type(n) is int for n in names):
        return _compared(labels, torch.tensor(names, device=labels.device), names)
    if isinstance(labels, Tensor) and labels.is_floating_point() and _are_numbers(names):
        return _compared(labels, torch.tensor(names, device=labels.device, dtype=labels.dtype), names)
    device = labels.device if isinstance(labels, Tensor) else None
    given = labels.tolist() if isinstance(labels, (Tensor, np.ndarray)) else list(labels)
    array = np.array(given, dtype=object)
    position = {name: i for i, name in enumerate(names)}
    unknown = [x for x in array.flat if x not in position]
    if unknown:
        raise ValueError(f"the label {unknown[0]!r} is not among the classes {names}")
    numbers = torch.tensor([position[x] for x in array.flat], dtype=torch.int64, device=device)
    return numbers.reshape(array.shape)


def _are_numbers(names: list[Any]) -> bool:
    return all(isinstance(n, (int, float)) for n in names)


def _compared(labels: Tensor, known: Tensor, names: list[Any]) -> Tensor:
    match = labels.unsqueeze(-1) == known
    missing = ~match.any(-1)
    if bool(missing.any()):
        raise ValueError(f"the label {labels[missing][0].item()!r} is not among the classes {names}")
    return match.int().argmax(-1)


def onecold(y: Tensor, classes: Sequence[Any] | None = None, /, *, dim: int = 1) -> Any:
    """The class of the highest score: undoes `onehotbatch`.

    Args:
        y: scores or one-hot vectors of shape (N, C, …), or (C,) for one.
        classes: all classes, in order. (default: the numbers 0 to C-1)
        dim: the axis of the classes. (default: 1)

    Returns:
        int64 class numbers of shape (N, …); with `classes` of numbers a tensor of those; with other
        classes a (nested) list of them.

    Raises:
        ValueError: as many classes as scores are needed.
        TypeError: scores that are no tensor; or classes that are no sequence, such as their number.

    Example:
        >>> import torch, fluxlike as fl
        >>> scores = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
        >>> fl.onecold(scores)
        tensor([1, 0])
        >>> fl.onecold(scores, ["cat", "dog"])
        ['dog', 'cat']
    """
    if not isinstance(y, (Tensor, np.ndarray)):
        hint = "onecold(scores, classes)" if isinstance(classes, Tensor) else "torch.tensor(…)"
        raise TypeError(f"onecold takes the scores first, found {found(y)}; write {hint}")
    axis = 0 if y.ndim == 1 else dim
    numbers = y.argmax(axis)
    if classes is None:
        return numbers
    names = _names("onecold", classes)
    if len(names) != y.shape[axis]:
        raise ValueError(f"{len(names)} classes were given for {y.shape[axis]} scores")
    if _are_numbers(names):
        return torch.tensor(names, device=y.device)[numbers]

    def name(i: Any) -> Any:
        return [name(j) for j in i] if isinstance(i, list) else names[i]

    return name(numbers.tolist())
