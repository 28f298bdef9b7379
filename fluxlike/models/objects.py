"""The objects that are in images, as a detector is told them, and what is refused of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike._private.tracing import concrete

__all__ = ["Objects", "require_objects", "require_pairs"]

#: The objects of an image: boxes (M, 4) as corners in pixels, and classes (M,).
Objects = tuple[Tensor, Tensor]


def require_pairs(by: str, objects: Any, /) -> None:
    """Refuse what is not a pair of boxes (M, 4) and classes (M,) for each image.

    Raises:
        TypeError: no sequence of pairs of tensors.
        ValueError: boxes or classes of another shape.
    """
    if not isinstance(objects, Sequence):
        raise TypeError(
            f"{by} takes a list with a pair (boxes, classes) for each image, found {type(objects).__name__}"
        )
    for i, pair in enumerate(objects):
        if isinstance(pair, dict):
            raise TypeError(
                f"{by} takes a pair (boxes, classes) of each image, found a dict for image {i}; write "
                "[(t['boxes'], t['labels']) for t in targets], with classes from 0 on"
            )
        if not isinstance(pair, (tuple, list)) or [isinstance(x, Tensor) for x in pair] != [True, True]:
            raise TypeError(
                f"{by} takes a pair of tensors (boxes, classes) of each image, found "
                f"{_kinds(pair)} for image {i}"
            )
        boxes, classes = pair
        if boxes.ndim != 2 or boxes.shape[1] != 4 or classes.shape != boxes.shape[:1]:
            raise ValueError(
                f"{by} takes boxes (M, 4) and classes (M,) of each image, found "
                f"{tuple(boxes.shape)} and {tuple(classes.shape)} for image {i}"
            )


def _kinds(pair: Any) -> str:
    if not isinstance(pair, (tuple, list)):
        return type(pair).__name__
    return f"({', '.join(type(x).__name__ for x in pair)})"


def require_objects(
    by: str,
    rows: Tensor,
    /,
    counts: Sequence[int] | None = None,
    size: Tensor | None = None,
    nclasses: int | None = None,
) -> None:
    """Refuse objects that can't be learnt; under a trace or in a transform, values can't be asked.

    Args:
        by: who refuses, for errors.
        rows: (N, M, 5), corners and the class of each object, and rows of class -1 where there is none.
        counts: how many rows of each image are objects. (default: all but those of class -1)
        size: width and height of the images, (2,). (default: not known)
        nclasses: how many classes there are. (default: not known)

    Raises:
        ValueError: a box or a class that is none, with its image and row.
    """
    if not all(x is None or (type(x) is Tensor and not x.is_meta) for x in (rows, size)) or not concrete():
        return
    rows = rows.detach()
    low, high, classes = rows[..., :2], rows[..., 2:4], rows[..., 4]
    there = classes != -1
    if counts is not None:
        there = torch.arange(rows.shape[1]).expand(there.shape) < torch.tensor(counts)[:, None]
        there = there.to(rows.device)
    no_class = (classes < 0) | (classes != classes.floor())
    if nclasses is not None:
        no_class |= classes >= nclasses
    turned = ~(low < high).all(-1)
    outside = (high <= 0).any(-1)
    if size is not None:
        outside |= (low >= size.to(low)).any(-1)
    # the whole batch: one box in the first pixel may well be there
    shares = ((low >= 0).all(-1) & (high <= 1).all(-1) | ~there).all() & there
    faults = (~rows.isfinite().all(-1), there & no_class, there & turned, there & outside, shares)
    if torch.stack(faults).any():  # one question, since each waits for the device
        _refuse(by, rows, [fault.nonzero().tolist() for fault in faults], size, nclasses)


def _refuse(
    by: str, rows: Tensor, faults: list[list[list[int]]], size: Tensor | None, nclasses: int | None
) -> None:
    k, (i, j) = next((k, places[0]) for k, places in enumerate(faults) if places)
    box, c = f"({', '.join(f'{x:g}' for x in rows[i, j, :4].tolist())})", f"{rows[i, j, 4].item():g}"
    corners = "write corners (x1, y1, x2, y2) in pixels"
    area = "" if size is None else f" of {' × '.join(f'{x:g}' for x in size.tolist())} pixels"
    last = "" if nclasses is None else f" to {nclasses - 1}"
    raise ValueError(
        f"{by}: image {i}, "
        + (
            f"box {j} is {box} of class {c}; write finite numbers",
            f"object {j} is of class {c}; write an integer from 0{last}"
            + (", and more of nclasses where there are more" if last else ""),
            f"box {j} is {box}, which has no area; {corners}; boxes given by centres: to_corners",
            f"box {j} is {box}, outside the image{area}; {corners}, and leave out what can't be seen",
            f"box {j} is {box}, within one pixel as all others; {corners}: shares of the image times its "
            "width and height",
        )[k]
    )
