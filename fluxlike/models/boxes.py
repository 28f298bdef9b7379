"""Boxes in images: their two forms, how much of them is common, and the suppression of double ones.

A box is four numbers on the last axis of a tensor. Its corners are (x1, y1, x2, y2) with x1 ≤ x2 and y1 ≤ y2,
in pixels from the left upper corner of the image; its centre form is (x, y, width, height). Overlaps are
those of the boxes whose leading axes meet as torch broadcasts them, so `iou(a, b)` is of boxes in pairs and
`iou(a[:, None], b)` is of every box of `a` with every box of `b`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fluxlike.placement.numbers import at_least_float32

__all__ = ["complete_iou", "generalised_iou", "iou", "non_maximum_suppression", "to_centres", "to_corners"]


def to_corners(boxes: Tensor, /) -> Tensor:
    """Corners (x1, y1, x2, y2) of boxes given as (x, y, width, height), where (x, y) is the centre.

    COCO's boxes give a corner instead: ``torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)``.

    Args:
        boxes: (…, 4).

    Returns:
        (…, 4).

    Raises:
        ValueError: the last axis is not of length 4.

    Example:
        >>> import torch, fluxlike as fl
        >>> to_corners(torch.tensor([5.0, 4.0, 2.0, 6.0]))
        tensor([4., 1., 6., 7.])
    """
    _require_boxes("to_corners", boxes)
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), -1)


def to_centres(boxes: Tensor, /) -> Tensor:
    """Boxes given by their corners as (x, y, width, height), what undoes `to_corners`.

    Args:
        boxes: (…, 4).

    Returns:
        (…, 4).

    Raises:
        ValueError: the last axis is not of length 4.

    Example:
        >>> import torch, fluxlike as fl
        >>> to_centres(torch.tensor([4.0, 1.0, 6.0, 7.0]))
        tensor([5., 4., 2., 6.])
    """
    _require_boxes("to_centres", boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def iou(a: Tensor, b: Tensor, /) -> Tensor:
    """Intersection over union: the area that two boxes share, of the area that they cover together.

    Args:
        a: (…, 4), corners.
        b: (…, 4), corners; the leading axes are broadcast with those of `a`.

    Returns:
        Numbers from 0 to 1, (…); at least in float32, since areas leave the range of 16 bits. Two boxes
        without area have 0.

    Raises:
        ValueError: the last axis is not of length 4.

    Example:
        >>> import torch, fluxlike as fl
        >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]])
        >>> iou(boxes[:, None], boxes)
        tensor([[1.0000, 0.3333],
                [0.3333, 1.0000]])
    """
    return _overlap(*_wide("iou", a, b))[0]


def generalised_iou(a: Tensor, b: Tensor, /) -> Tensor:
    """`iou`, less the share of the smallest box around both that neither covers.

    (Rezatofighi et al. 2019, arXiv 1902.09630.) So boxes that are apart have a gradient too: ``1 -
    generalised_iou(pred, target)`` is a loss.

    Args:
        a: (…, 4), corners.
        b: (…, 4), corners; the leading axes are broadcast with those of `a`.

    Returns:
        Numbers from -1 to 1, (…), at least in float32.

    Raises:
        ValueError: the last axis is not of length 4.

    Example:
        >>> import torch, fluxlike as fl
        >>> generalised_iou(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 4.0, 1.0]))
        tensor(-0.5000)
    """
    a, b = _wide("generalised_iou", a, b)
    share, union = _overlap(a, b)
    around = _area(_size(*_around(a, b)))
    return share - (around - union) / _not_zero(around)


def complete_iou(a: Tensor, b: Tensor, /) -> Tensor:
    """`iou`, less a penalty for the distance of the centres and one for the difference of the shapes.

    (Zheng et al. 2019, arXiv 1911.08287.) ``iou - ρ²/c² - α·v``: ρ is the distance of the centres and c the
    diagonal of the smallest box around both; ``v = 4/π²·(atan(w_b/h_b) - atan(w_a/h_a))²`` and ``α = v / (1 -
    iou + v)``, which counts as a constant in the gradient, as in the paper. ``1 - complete_iou(pred,
    target)`` is a loss.

    Args:
        a: (…, 4), corners.
        b: (…, 4), corners; the leading axes are broadcast with those of `a`.

    Returns:
        Numbers of at most 1, (…), at least in float32.

    Raises:
        ValueError: the last axis is not of length 4.

    Example:
        >>> import torch, fluxlike as fl
        >>> complete_iou(torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, 3.0, 2.0]))
        tensor(0.2564)
    """
    a, b = _wide("complete_iou", a, b)
    share, _ = _overlap(a, b)
    diagonal = _size(*_around(a, b)).square().sum(-1)
    distance = ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2).square().sum(-1)
    v = 4 / math.pi**2 * (_slant(b) - _slant(a)).square()
    alpha = (v / _not_zero(1 - share + v)).detach()
    return share - distance / _not_zero(diagonal) - alpha * v


def non_maximum_suppression(
    boxes: Tensor, scores: Tensor, classes: Tensor | None = None, /, *, iou: float = 0.5
) -> Tensor:
    """Which boxes are left, when each that overlaps a better one too much is dropped.

    Boxes are gone through from the best score on; each that is left drops the worse ones of its class whose
    intersection over union with it is above `iou`. Of equal scores the earlier box is the better one, so the
    result does not depend on the device.

    The best 1024 boxes are gone through at once (the fixed point of Zheng et al. 2020, arXiv 2005.03572):
    which boxes are left is found from those that were thought to be left, until nothing changes. After k
    rounds that is right for the k best boxes, and mostly a few rounds do for all. What these do not drop of
    the others is gone through next, so the memory does not grow as the square of the boxes. Classes are told
    apart in the matrix of overlaps and not, as is usual, by moving each class elsewhere, which would round
    the boxes.

    Args:
        boxes: (P, 4), corners.
        scores: (P,).
        classes: (P,), integers. (default: all boxes are of one class)
        iou: the overlap above which the worse box is dropped. (default: 0.5)

    Returns:
        The places of the boxes that are left, from the best to the worst, (K,) in int64.

    Raises:
        ValueError: the shapes don't fit, or `iou` is not from 0 to 1.

    Example:
        >>> import torch, fluxlike as fl
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0], [6.0, 0.0, 9.0, 3.0]])
        >>> non_maximum_suppression(boxes, torch.tensor([0.6, 0.9, 0.7]))
        tensor([1, 2])
        >>> non_maximum_suppression(boxes, torch.tensor([0.6, 0.9, 0.7]), torch.tensor([0, 1, 0]))
        tensor([1, 2, 0])
    """
    _require_boxes("non_maximum_suppression", boxes)
    if boxes.ndim != 2 or any(x is not None and x.shape != boxes.shape[:1] for x in (scores, classes)):
        shapes = ", ".join(str(tuple(x.shape)) for x in (boxes, scores, classes) if x is not None)
        raise ValueError(
            f"non_maximum_suppression takes boxes (P, 4), scores (P,) and classes (P,) of one image, found "
            f"{shapes}"
        )
    if not 0 <= iou <= 1:
        raise ValueError(f"non_maximum_suppression: iou={iou}; write a number from 0 to 1")

    def drops(a: Tensor, b: Tensor) -> Tensor:
        """Whether the boxes at the places `a` drop those at `b`."""
        over = _overlap(*_wide("", boxes[a][:, None], boxes[b]))[0] > iou
        return over if classes is None else over & (classes[a][:, None] == classes[b])

    rest, kept = scores.argsort(descending=True, stable=True), []
    while True:
        best, rest = rest[:_AT_ONCE], rest[_AT_ONCE:]
        best = best[_left(drops(best, best).triu(1))]
        kept.append(best)
        if not len(rest):
            return torch.cat(kept)
        rest = torch.cat([others[~drops(best, others).any(0)] for others in rest.split(_AT_ONCE)])


#: How many boxes are compared with as many others at a time: their overlaps are this squared.
_AT_ONCE = 1024


def _left(drops: Tensor) -> Tensor:
    """Which boxes, from the best to the worst, are left, when `drops[i, j]` says that i drops j."""
    left = drops.new_ones(drops.shape[1])
    while True:
        before, left = left, ~(drops & left[:, None]).any(0)
        if torch.equal(before, left):
            return left


def _require_boxes(by: str, *boxes: Tensor) -> None:
    for x in boxes:
        if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[-1] != 4:
            found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{by} takes boxes, a tensor (…, 4), found {found}")


def _wide(by: str, *boxes: Tensor) -> list[Tensor]:
    """Boxes in the dtype that they are computed in."""
    _require_boxes(by, *boxes)
    dtype = at_least_float32(torch.promote_types(boxes[0].dtype, boxes[1].dtype))
    return [x.to(dtype if dtype.is_floating_point else torch.float32) for x in boxes]


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the union."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = _area(_size(low, high))
    union = _area(_size(a[..., :2], a[..., 2:])) + _area(_size(b[..., :2], b[..., 2:])) - both
    return both / _not_zero(union), union


def _around(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Corners of the smallest box around two."""
    return torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])


def _size(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp_min(0)


def _area(size: Tensor) -> Tensor:
    return size[..., 0] * size[..., 1]


def _slant(boxes: Tensor) -> Tensor:
    """The angle of the diagonal, which says how wide a box is for its height."""
    size = _size(boxes[..., :2], boxes[..., 2:])
    return torch.atan(size[..., 0] / _not_zero(size[..., 1]))


def _not_zero(x: Tensor) -> Tensor:
    """A divisor, at least as large as the spacing of numbers at 1."""
    return x.clamp_min(torch.finfo(x.dtype).eps)
