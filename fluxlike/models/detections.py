"""What a detector finds: of its boxes at all places, one an object."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fluxlike.models.boxes import non_maximum_suppression
from fluxlike.models.detector import Candidates

__all__ = ["Detections", "decode", "detect"]


class Detections(NamedTuple):
    """The objects found in one image, from the best score to the worst.

    Attributes:
        boxes: corners in pixels, (K, 4).
        scores: from 0 to 1, (K,).
        classes: (K,) in int64.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def decode(candidates: Candidates, /) -> tuple[Tensor, Tensor, Tensor]:
    """The box, the score and the class of each place: its likeliest class.

    Args:
        candidates: what a `Detector` gives.

    Returns:
        Boxes (N, P, 4) as corners in pixels, scores (N, P) from 0 to 1, and classes (N, P).

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.YOLO(fl.models.ResNet(18), nclasses=3, strides=(16, 32))
        >>> [x.shape for x in decode(model(torch.zeros(2, 3, 64, 64)))]
        [torch.Size([2, 20, 4]), torch.Size([2, 20]), torch.Size([2, 20])]
    """
    scores, classes = candidates.logits.sigmoid().max(-1)
    return candidates.boxes, scores, classes


def detect(
    model: Callable[[Tensor], Candidates],
    images: Tensor,
    /,
    *,
    score: float = 0.25,
    iou: float = 0.5,
    most: int = 100,
) -> list[Detections]:
    """The objects in each image: likely boxes, of which `non_maximum_suppression` leaves one an object.

    Args:
        model: a `Detector`.
        images: (N, inchannels, H, W).
        score: what the score has to reach; about 0.01 to measure `average_precision`, which weighs unlikely
            boxes itself. (default: 0.25)
        iou: the overlap of two boxes of a class above which the worse one is dropped. (default: 0.5)
        most: how many objects of an image are given at most, the best ones, at least 1. (default: 100)

    Returns:
        `Detections` of each image, boxes cut to the image, without those of which nothing is left then.

    Raises:
        ValueError: `most` is below 1, or `iou` not from 0 to 1.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.YOLO(fl.models.ResNet(18), nclasses=3)
        >>> found = detect(model, torch.rand(2, 3, 64, 64), score=0.0, most=5)
        >>> len(found), found[0].boxes.shape, found[0].classes.shape
        (2, torch.Size([5, 4]), torch.Size([5]))
    """
    if not most >= 1:
        raise ValueError(f"detect(most={most}): write how many objects of an image to give, at least 1")
    with torch.no_grad():
        batch = decode(model(images))
    return [_one_an_object(*image, images.shape, score, iou, most) for image in zip(*batch, strict=True)]


#: How many boxes of an image are compared, the best ones: the time that it takes grows as the square.
_COMPARED = 2000


def _one_an_object(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    shape: torch.Size,
    score: float,
    iou: float,
    most: int,
) -> Detections:
    edge = boxes.new_tensor([shape[3], shape[2], shape[3], shape[2]])
    cut = boxes.clamp_min(0).minimum(edge)
    likely = ((scores >= score) & (cut[:, :2] < cut[:, 2:]).all(-1)).nonzero().flatten()
    best = likely[scores[likely].argsort(descending=True, stable=True)[:_COMPARED]]
    left = best[non_maximum_suppression(boxes[best], scores[best], classes[best], iou=iou)[:most]]
    return Detections(cut[left], scores[left], classes[left])
