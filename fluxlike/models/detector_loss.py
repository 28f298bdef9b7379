"""The loss of a detector: which place answers for which object, and how well it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.models.boxes import complete_iou, iou, to_centres
from fluxlike.models.detector import Candidates
from fluxlike.models.objects import Objects, require_objects, require_pairs

__all__ = ["detection_loss", "padded_objects"]

#: The powers of score and overlap in what makes a place fit for an object, and how many places an object
#: has at most: the values of Feng et al. 2021.
SCORE_POWER, OVERLAP_POWER, PLACES = 1.0, 6.0, 13


def detection_loss(
    candidates: Candidates,
    targets: Tensor | Sequence[Objects],
    /,
    *,
    box_weight: float = 2.0,
    gamma: float = 2.0,
) -> Tensor:
    """The loss of what a detector says, beside the objects that are there.

    Each object is given the places that answer it best already, in score and overlap (task-aligned learning,
    Feng et al. 2021, arXiv 2108.07755), among those in its box, or within a stride of its centre. How well
    each does, from 0 to 1, is the quality q that its score p is to tell: the cost of scores is ``|q -
    p|^gamma · binarycrossentropy(p, q)``, everywhere else with q = 0; that of boxes is ``q·(1 -
    complete_iou)``. Both are added up and divided by the sum of q, or by 1 if that is less.

    Args:
        candidates: what a `Detector` gives.
        targets: (N, M, 5), a row an object: corners in pixels and the class, and rows of class -1 where an
            image has fewer than M; or for each image its boxes (M, 4) and classes (M,). Under `jit` the
            tensor, whose shape stays the same; `padded_objects` makes it.
        box_weight: the weight of the boxes. (default: 2)
        gamma: how fast an error of the score stops to count, at least 1. (default: 2)

    Returns:
        A number.

    Raises:
        TypeError: targets that are neither a tensor nor pairs of boxes and classes.
        ValueError: targets of another shape, or of another number of images; a box without area, outside
            the image or in shares of it, or a class that is not there (values are not asked under `jit` and
            `vmap`); `box_weight` below 0, or `gamma` below 1.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.YOLO(fl.models.ResNet(18), nclasses=3)
        >>> def loss(model, x, targets):
        ...     return fl.models.detection_loss(model(x), targets)
        >>> targets = [(torch.tensor([[4.0, 4.0, 40.0, 30.0]]), torch.tensor([2]))]
        >>> grads = fl.gradient(loss, model, torch.rand(1, 3, 64, 64), targets)
        >>> len(fl.trainables(grads)) == len(fl.trainables(model))
        True
    """
    if not gamma >= 1 or not box_weight >= 0:
        raise ValueError(
            f"detection_loss(box_weight={box_weight}, gamma={gamma}): write a box_weight of at least 0 and a "
            "gamma of at least 1"
        )
    if isinstance(targets, Tensor):
        rows, counts = targets, None
    else:
        rows, counts = _padded("detection_loss", targets)
    n = candidates.boxes.shape[0]
    if rows.ndim != 3 or rows.shape[0] != n or rows.shape[2] != 5:
        raise ValueError(
            f"detection_loss takes targets (N, M, 5), corners and class of each object of the {n} images, or "
            f"{n} pairs (boxes, classes), found {tuple(rows.shape)}"
        )
    edge = (candidates.points + candidates.strides[:, None] / 2).amax(0)
    require_objects("detection_loss", rows, counts, edge, candidates.logits.shape[2])
    rows = F.pad(rows, (0, 0, 0, 1), value=-1).to(candidates.boxes.dtype)  # at least one row to choose
    with torch.no_grad():
        boxes, classes, quality = _assigned(candidates, rows)
    logits = candidates.logits.to(boxes.dtype)
    wanted = quality[..., None] * (classes[..., None] == torch.arange(logits.shape[2], device=logits.device))
    cost = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    of_scores = ((wanted - logits.sigmoid()).abs() ** gamma * cost).sum()
    of_boxes = (quality * (1 - complete_iou(candidates.boxes, boxes))).sum()
    return (of_scores + box_weight * of_boxes) / quality.sum().clamp_min(1)


class _Assigned(NamedTuple):
    """What each place is to say: a box (N, P, 4), a class (N, P), and its quality (N, P), 0 for nothing."""

    boxes: Tensor
    classes: Tensor
    quality: Tensor


def _assigned(candidates: Candidates, rows: Tensor) -> _Assigned:
    """The object of each place; shapes are (N, objects, places) where nothing else is said."""
    boxes, classes = rows[..., :4], rows[..., 4].long()
    overlap = iou(boxes[:, :, None], candidates.boxes[:, None])
    own_class = classes.clamp_min(0)[:, None].expand(-1, candidates.logits.shape[1], -1)
    scores = candidates.logits.to(overlap.dtype).sigmoid().gather(2, own_class).transpose(1, 2)
    fit = scores**SCORE_POWER * overlap**OVERLAP_POWER

    near = _near(candidates, boxes) & (classes >= 0)[..., None]
    best = torch.where(near, fit, -1).topk(min(PLACES, fit.shape[2]), -1).indices
    chosen = near & torch.zeros_like(near).scatter(2, best, True)
    owner = torch.where(chosen, overlap, -1).argmax(1)  # a place answers for one object, (N, places)
    chosen &= owner[:, None] == torch.arange(fit.shape[1], device=fit.device)[:, None]

    fit, overlap = torch.where(chosen, fit, 0), torch.where(chosen, overlap, 0)
    best_fit = fit.amax(-1, keepdim=True).clamp_min(torch.finfo(fit.dtype).tiny)
    quality = (fit / best_fit * overlap.amax(-1, keepdim=True)).sum(1)
    rows = rows.gather(1, owner[..., None].expand(-1, -1, 5))
    return _Assigned(rows[..., :4], rows[..., 4].long(), quality)


def _near(candidates: Candidates, boxes: Tensor) -> Tensor:
    """Whether a place is in the box, or within a stride of its centre: a small box may hold no place."""
    centre, size = to_centres(boxes)[:, :, None].split(2, -1)
    reach = torch.maximum(size / 2, candidates.strides[:, None])
    return ((candidates.points - centre).abs() < reach).all(-1)


def padded_objects(objects: Sequence[Objects], /, most: int | None = None) -> Tensor:
    """The objects of several images as one tensor, with rows of class -1 where an image has fewer.

    Args:
        objects: for each image its boxes (M, 4) as corners in pixels, and classes (M,).
        most: how many rows each image gets, so that all batches have one shape. (default: as many as the
            image with the most objects has)

    Returns:
        (N, most, 5).

    Raises:
        TypeError: no pairs of tensors.
        ValueError: no image, one with more than `most` objects, boxes and classes that don't fit, a box
            without area, or a class that is none.

    Example:
        >>> import torch, fluxlike as fl
        >>> one = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([7])
        >>> none = torch.zeros(0, 4), torch.zeros(0)
        >>> padded_objects([one, none])
        tensor([[[ 1.,  2.,  3.,  4.,  7.]],
        <BLANKLINE>
                [[-1., -1., -1., -1., -1.]]])
    """
    rows, counts = _padded("padded_objects", objects, most)
    require_objects("padded_objects", rows, counts)
    return rows


def _padded(by: str, objects: Sequence[Objects], most: int | None = None) -> tuple[Tensor, list[int]]:
    """The rows, and how many of each image are objects."""
    require_pairs(by, objects)
    if not objects:
        raise ValueError(
            f"{by} takes a pair (boxes, classes) for each image, found none; an image without objects is "
            "(torch.zeros(0, 4), torch.zeros(0))"
        )
    counts = [len(classes) for _, classes in objects]
    most = max(counts) if most is None else most
    if max(counts) > most:
        i = counts.index(max(counts))
        raise ValueError(f"{by}(most={most}): image {i} has {counts[i]} objects; write a larger one")

    def padded(boxes: Tensor, classes: Tensor) -> Tensor:
        rows = torch.cat((boxes, classes[:, None].to(boxes.device)), 1)
        return F.pad(rows, (0, 0, 0, most - len(rows)), value=-1)

    return torch.stack([padded(*pair) for pair in objects]), counts
