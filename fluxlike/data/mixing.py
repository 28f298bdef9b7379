"""Batches whose examples are mixed with one another: MixUp and CutMix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fluxlike import random
from fluxlike._private.tracing import concrete

__all__ = ["CutMix", "MixUp"]


@dataclass(frozen=True)
class MixUp:
    """Mix each example of a batch with another one: λx + (1 - λ)x′, and their targets alike.

    One λ a batch is drawn from Beta(α, α), and the partners are a random permutation of the batch; both
    from the key in scope, or by torch's generator where there is none.

    Args:
        alpha: α; near 0 one of the two is hardly seen, and 1 is uniform. (default: 0.2)
        classes: how many classes there are, where targets are class numbers. (default: None)

    A call takes and returns ``(x, y)``: `x` floating, of shape (N, …); `y` class numbers of shape (N,),
    integers from 0 to `classes` - 1, or probabilities of shape (N, C). It returns probabilities, (N, C).

    Raises:
        TypeError: from a call, an `x` or probabilities that are not floating.
        ValueError: settings out of range; from a call, shapes that don't fit, class numbers without
            `classes`, or labels outside them.

    Example:
        >>> import torch, fluxlike as fl
        >>> mix = fl.data.MixUp(0.2, classes=3)
        >>> with fl.seeded(fl.Key(0)):
        ...     x, y = mix((torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])))
        >>> x.shape, y.shape, y.sum(1)
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]), tensor([1., 1., 1., 1.]))

    See Zhang et al. 2018, "mixup: beyond empirical risk minimization", arXiv 1710.09412.
    """

    alpha: float = 0.2
    classes: int | None = None

    def __post_init__(self) -> None:
        _check_settings("MixUp", self.alpha, self.classes)

    def __call__(self, batch: tuple[Tensor, Tensor], /) -> tuple[Tensor, Tensor]:
        x, y = _checked("MixUp", batch, self.classes)
        share, other = _symmetric_beta(self.alpha), random.permutation(x.shape[0], device=x.device)
        return _blend(share, x, x[other]), _blend(share, y, y[other])


@dataclass(frozen=True)
class CutMix:
    """Paste a box of another example into each image of a batch, and mix the targets by its area.

    One box a batch: of the share 1 - λ of the image, for λ from Beta(α, α), around a random pixel, and
    cut off at the edges. The targets are mixed by the area that is left of it, exactly. Partners are a
    random permutation of the batch; all from the key in scope, or by torch's generator where there is none.

    Args:
        alpha: α; 1 makes the share of the box uniform. (default: 1)
        classes: how many classes there are, where targets are class numbers. (default: None)

    A call takes and returns ``(x, y)`` as `MixUp` does, with images `x` of shape (N, C, H, W).

    Raises:
        TypeError: as `MixUp`.
        ValueError: as `MixUp`, or an `x` of another number of axes.

    Example:
        >>> import torch, fluxlike as fl
        >>> black_and_white = torch.stack((torch.zeros(1, 8, 8), torch.ones(1, 8, 8)))
        >>> with fl.seeded(fl.Key(4)):
        ...     x, y = fl.data.CutMix(classes=2)((black_and_white, torch.tensor([0, 1])))
        >>> torch.equal(x.mean((1, 2, 3)), y[:, 1])  # the share of white is that of its class
        True

    See Yun et al. 2019, "CutMix: regularization strategy to train strong classifiers with localizable
    features", arXiv 1905.04899.
    """

    alpha: float = 1.0
    classes: int | None = None

    def __post_init__(self) -> None:
        _check_settings("CutMix", self.alpha, self.classes)

    def __call__(self, batch: tuple[Tensor, Tensor], /) -> tuple[Tensor, Tensor]:
        x, y = _checked("CutMix", batch, self.classes)
        if x.ndim != 4:
            raise ValueError(
                f"CutMix cuts boxes out of images of shape (N, C, H, W), found {tuple(x.shape)}; MixUp takes "
                "any shape"
            )
        share, centre = _symmetric_beta(self.alpha), random.uniform((2,), dtype=torch.float64, device="cpu")
        other = random.permutation(x.shape[0], device=x.device)
        rows, columns = (_span(n, share, c) for n, c in zip(x.shape[2:], centre.unbind(), strict=True))
        inside = _within(rows, x.shape[2], x.device)[:, None] & _within(columns, x.shape[3], x.device)
        area = (rows[1] - rows[0]) * (columns[1] - columns[0])
        kept = 1 - area.to(torch.float64) / (x.shape[2] * x.shape[3])
        return torch.where(inside, x[other], x), _blend(kept, y, y[other])


def _blend(share: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return share * a + (1 - share) * b


def _symmetric_beta(alpha: float) -> Tensor:
    """One draw from Beta(α, α), in float64 in main memory, by two uniforms and no rejection.

    If T has Student's t-distribution with 2α degrees of freedom, (1 + T / √(2α + T²)) / 2 has it; and
    √(2α (U^(-1/α) - 1)) cos 2πV is such a T (Bailey 1994, doi 10.2307/2153537; Devroye 1996, "Random
    variate generation in one line of code").
    """
    u, v = random.uniform((2,), dtype=torch.float64, device="cpu").unbind()
    log, cosine = torch.log(u) / alpha, torch.cos(2 * math.pi * v)
    near = torch.exp(log)  # U^(1/α)
    far = -torch.expm1(log) * cosine.square()
    smaller = near / (near + far) / (1 + torch.sqrt(far / (near + far))) / 2
    return torch.where(cosine < 0, smaller, 1 - smaller)


def _span(n: int, share: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Where the box starts and ends on an axis of n pixels."""
    half = (n * torch.sqrt(1 - share) / 2).floor().to(torch.int64)
    middle = (n * centre).floor().to(torch.int64)
    return (middle - half).clamp(min=0), (middle + half).clamp(max=n)


def _within(span: tuple[Tensor, Tensor], n: int, device: torch.device) -> Tensor:
    place = torch.arange(n, device=device)
    return (place >= span[0]) & (place < span[1])


def _check_settings(name: str, alpha: float, classes: int | None) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        raise ValueError(f"{name}(alpha={alpha!r}): write a number above 0; to mix nothing, leave {name} out")
    if classes is not None and (type(classes) is not int or classes < 1):
        raise ValueError(f"{name}(classes={classes!r}): write how many classes there are, such as classes=10")


def _checked(name: str, batch: tuple[Tensor, Tensor], classes: int | None) -> tuple[Tensor, Tensor]:
    """The two tensors of a batch, the targets as probabilities."""
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise TypeError(f"{name} takes one batch (x, y), found a {type(batch).__name__}; write mix((x, y))")
    x, y = batch
    for part, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: {part} is a {type(value).__name__}; write a tensor")
    if not x.is_floating_point():
        raise TypeError(f"{name}: x is of {x.dtype}, whose mixtures would be rounded; write x.float() / 255")
    if x.ndim == 0 or y.ndim == 0 or x.shape[0] != y.shape[0]:
        raise ValueError(
            f"{name}: x has the shape {tuple(x.shape)} and y {tuple(y.shape)}; their first axes count the "
            "examples, and must be as long"
        )
    return x, _probabilities(name, y, classes)


def _probabilities(name: str, y: Tensor, classes: int | None) -> Tensor:
    if y.ndim == 2:
        if not y.is_floating_point():
            raise TypeError(f"{name}: y of shape {tuple(y.shape)} is of {y.dtype}; write y.float()")
        if classes not in (None, y.shape[1]):
            raise ValueError(f"{name}(classes={classes}): y has the shape {tuple(y.shape)}")
        return y
    if y.ndim != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(
            f"{name}: y is of {y.dtype} and shape {tuple(y.shape)}; write class numbers, integers of shape "
            "(N,), or probabilities of shape (N, C)"
        )
    if classes is None:
        raise ValueError(f"{name}: y holds class numbers; say how many there are, such as {name}(classes=10)")
    if concrete() and len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(
            f"{name}(classes={classes}): labels run from 0 to {classes - 1}, found {int(y.min())} to "
            f"{int(y.max())}"
        )
    return (y[:, None] == torch.arange(classes, device=y.device)).to(torch.get_default_dtype())
