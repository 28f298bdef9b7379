"""Average precision: how well detections meet the objects that are there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor

from fluxlike.models.boxes import iou as overlap_of
from fluxlike.models.detections import Detections
from fluxlike.models.objects import Objects, require_pairs

__all__ = ["average_precision", "mean_average_precision"]


def average_precision(
    detections: Sequence[Detections],
    targets: Tensor | Sequence[Objects],
    /,
    *,
    iou: float | Sequence[float] = 0.5,
) -> dict[int, float]:
    """The average precision of each class, as COCO has it (Lin et al. 2014, arXiv 1405.0312).

    In each image, detections of a class take objects in the order of their scores: each the one that it
    overlaps most of those that are left, if by at least `iou`; otherwise it is false. Over all images, of the
    k best detections a share is right (precision), and a share of the objects is found (recall). The average
    precision is the mean, over the recalls 0, 0.01, …, 1, of the best precision at that recall or a higher
    one, and 0 where that is not reached.

    Args:
        detections: of each image, with a low threshold of the score.
        targets: as in `detection_loss`.
        iou: from which overlap on a box is right, or several, of which the mean is taken: COCO's own measure
            is over 0.5, 0.55, …, 0.95. (default: 0.5)

    Returns:
        From each class of which there are objects to its average precision.

    Raises:
        TypeError: targets that are no pairs of boxes and classes.
        ValueError: as many detections as targets are not there, or no overlap.

    Example:
        >>> import torch, fluxlike as fl
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [5.0, 5.0, 9.0, 9.0]])
        >>> found = fl.models.Detections(boxes[:1], torch.tensor([0.9]), torch.tensor([0]))
        >>> average_precision([found], [(boxes, torch.tensor([0, 1]))])
        {0: 1.0, 1: 0.0}
    """
    objects = _unpadded(targets) if isinstance(targets, Tensor) else targets
    require_pairs("average_precision", objects)
    if len(objects) != len(detections):
        raise ValueError(
            f"average_precision takes detections and targets of the same images, found {len(detections)} and "
            f"{len(objects)}"
        )
    overlaps = [iou] if isinstance(iou, (int, float)) else list(iou)
    if not overlaps:
        raise ValueError(f"average_precision(iou={iou!r}): write a number, or several")
    found = _by_class(detections, objects)
    return {c: fmean(_precision(one, t) for t in overlaps) for c, one in sorted(found.items()) if one.objects}


def mean_average_precision(
    detections: Sequence[Detections],
    targets: Tensor | Sequence[Objects],
    /,
    *,
    iou: float | Sequence[float] = 0.5,
) -> float:
    """The mean of `average_precision` over the classes of which there are objects; NaN without objects.

    Args:
        detections: of each image.
        targets: as in `detection_loss`.
        iou: from which overlap on a box is right, or several. (default: 0.5)

    Raises:
        TypeError: as `average_precision`.
        ValueError: as `average_precision`.

    Example:
        >>> import torch, fluxlike as fl
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [5.0, 5.0, 9.0, 9.0]])
        >>> found = fl.models.Detections(boxes[:1], torch.tensor([0.9]), torch.tensor([0]))
        >>> mean_average_precision([found], [(boxes, torch.tensor([0, 1]))])
        0.5
    """
    each = average_precision(detections, targets, iou=iou).values()
    return fmean(each) if each else float("nan")


def _unpadded(rows: Tensor) -> list[Objects]:
    return [(image[:, :4], image[:, 4]) for image in (x[x[:, 4] >= 0] for x in rows)]


@dataclass
class _Found:
    """What was found of a class.

    Attributes:
        objects: how many objects there are.
        scores: of the detections.
        overlaps: for each image, its detections from the best on, and of each the overlap with each object.
    """

    objects: int = 0
    scores: list[float] = field(default_factory=list)
    overlaps: list[list[list[float]]] = field(default_factory=list)


def _by_class(detections: Sequence[Detections], objects: Sequence[Objects]) -> dict[int, _Found]:
    every: dict[int, _Found] = defaultdict(_Found)
    for found, (boxes, classes) in zip(detections, objects, strict=True):
        order = found.scores.argsort(descending=True, stable=True)
        overlaps = overlap_of(found.boxes[order][:, None], boxes.to(found.boxes)).tolist()
        scores, places = found.scores[order].tolist(), _places(classes)
        for c, columns in places.items():
            every[c].objects += len(columns)
        for c, rows in _places(found.classes[order]).items():
            every[c].scores += [scores[i] for i in rows]
            every[c].overlaps.append([[overlaps[i][j] for j in places.get(c, ())] for i in rows])
    return every


def _places(classes: Tensor) -> dict[int, list[int]]:
    """Where each class is."""
    places: dict[int, list[int]] = defaultdict(list)
    for i, c in enumerate(classes.tolist()):
        places[int(c)].append(i)
    return places


def _precision(found: _Found, iou: float) -> float:
    scores = torch.tensor(found.scores, dtype=torch.float64)
    right = torch.tensor([hit for rows in found.overlaps for hit in _right(rows, iou)], dtype=torch.float64)
    hits = right[scores.argsort(descending=True, stable=True)].cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    best_from_here = precision.flip(0).cummax(0).values.flip(0)
    recalls = torch.arange(101, dtype=torch.float64) / 100
    reached = torch.searchsorted(hits / found.objects, recalls)
    return torch.cat((best_from_here, torch.zeros(1, dtype=torch.float64)))[reached].mean().item()


def _right(overlaps: list[list[float]], iou: float) -> list[bool]:
    """Whether each detection, from the best on, takes an object of those that are left."""
    taken: set[int] = set()
    right = []
    for row in overlaps:
        left = [j for j, overlap in enumerate(row) if j not in taken and overlap >= iou]
        taken |= {max(left, key=row.__getitem__)} if left else set()
        right.append(bool(left))
    return right
