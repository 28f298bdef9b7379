"""A detector of one stage over any backbone: at each place of some feature maps, a box and its classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fluxlike.layers.activations import silu
from fluxlike.layers.compose import Chain
from fluxlike.layers.conv import Conv
from fluxlike.layers.errors import within
from fluxlike.layers.parallel import Parallel
from fluxlike.models.blocks import concatenated, conv_norm
from fluxlike.models.boxes import to_corners
from fluxlike.models.configurations import as_tuple, require_counts
from fluxlike.models.pyramid import Level, stages
from fluxlike.models.up_block import UpBlock
from fluxlike.placement.numbers import at_least_float32
from fluxlike.trees.adopt import adopted
from fluxlike.trees.functor import functor

__all__ = ["YOLO", "Candidates", "Detector"]


class Candidates(NamedTuple):
    """What a detector says of a batch of images: at each place of its feature maps, one box.

    Attributes:
        boxes: corners in pixels, (N, P, 4).
        logits: the scores of the classes, not normalised, (N, P, nclasses).
        points: the middle of each place in the image, in pixels, (P, 2).
        strides: how many pixels each place stands for, (P,).
    """

    boxes: Tensor
    logits: Tensor
    points: Tensor
    strides: Tensor


@functor(children=("encoder", "neck", "heads"))
class Detector:
    """Maps of an encoder, joined from the smallest to the largest, and boxes with classes at each place.

    What `YOLO` makes.

    Args:
        encoder: stages; each gets the map of the one before.
        neck: as many: a layer for the smallest map, then blocks that get the map made so far and the next
            larger one of the encoder.
        heads: as many: layers from a map of the neck, the largest first, to numbers (N, 4 + nclasses, H, W):
            the distance of the box's centre from the middle of the place and the logarithms of its width and
            height, all in strides, and the scores of the classes.
        strides: how many pixels a place of each map stands for.

    Attributes:
        encoder: the stages, a tuple.
        neck: the layers, a tuple.
        heads: the layers, a tuple.
        strides: the strides, a tuple.

    Input: (N, inchannels, H, W). Output: `Candidates`.

    Raises:
        ValueError: parts of different lengths.
        LayerError: from a call: a layer failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> encoder, head = [fl.Conv((4, 4), 3, 8, fl.relu, stride=4)], fl.Conv((1, 1), 8, 4 + 2)
        >>> candidates = fl.models.Detector(encoder, [fl.identity], [head], [4])(torch.zeros(1, 3, 8, 12))
        >>> candidates.boxes.shape, candidates.logits.shape
        (torch.Size([1, 6, 4]), torch.Size([1, 6, 2]))
        >>> candidates.points[0]
        tensor([2., 2.])
    """

    def __init__(
        self,
        encoder: Sequence[Callable[[Tensor], Tensor]],
        neck: Sequence[Callable[..., Tensor]],
        heads: Sequence[Callable[[Tensor], Tensor]],
        strides: Sequence[int],
    ) -> None:
        lengths = [*map(len, (encoder, neck, heads, strides))]
        if len({*lengths}) != 1:
            raise ValueError(
                f"Detector takes as many layers of encoder, neck and heads as strides, found {lengths}"
            )
        self.encoder, self.neck, self.heads = (tuple(map(adopted, part)) for part in (encoder, neck, heads))
        self.strides = tuple(strides)

    def __call__(self, x: Tensor) -> Candidates:
        maps = []
        for i, stage in enumerate(self.encoder):
            x = within(f".encoder[{i}]", stage, x)
            maps.append(x)
        y = within(".neck[0]", self.neck[0], maps.pop())
        levels = [y]
        for i, block in enumerate(self.neck[1:], 1):
            y = within(f".neck[{i}]", block, y, maps.pop())
            levels.append(y)
        answers = [
            within(f".heads[{i}]", head, y)
            for i, (head, y) in enumerate(zip(self.heads, reversed(levels), strict=True))
        ]
        return _candidates(answers, self.strides)


def _candidates(answers: list[Tensor], strides: tuple[int, ...]) -> Candidates:
    """What the heads gave, as boxes in pixels; at least in float32, whose numbers are pixels up to 2²⁴."""
    flat = torch.cat([y.flatten(2) for y in answers], 2).transpose(1, 2)
    dtype, device = at_least_float32(flat.dtype), flat.device
    points, steps = [], []
    for y, stride in zip(answers, strides, strict=True):
        down, right = (stride * (torch.arange(n, dtype=dtype, device=device) + 0.5) for n in y.shape[2:])
        grid = torch.meshgrid(down, right, indexing="ij")
        points.append(torch.stack(grid[::-1], -1).flatten(0, 1))
        steps.append(torch.full((points[-1].shape[0],), float(stride), dtype=dtype, device=device))
    point, step = torch.cat(points), torch.cat(steps)
    moved, size = flat[..., :4].to(dtype).split(2, -1)
    size = size.clamp_max(_LARGEST).exp()
    boxes = torch.cat((point + moved * step[:, None], size * step[:, None]), -1)
    return Candidates(to_corners(boxes), flat[..., 4:], point, step)


#: The largest logarithm of a size in strides: far beyond any image, and no infinity.
_LARGEST = 10.0


def YOLO(
    backbone: Any,
    *,
    inchannels: int = 3,
    nclasses: int,
    channels: int = 128,
    strides: Sequence[int] = (8, 16, 32),
) -> Detector:
    """A detector that looks once (Redmon et al. 2015, arXiv 1506.02640), over a backbone.

    Without anchors, and with separate convolutions for boxes and classes, as in YOLOX (Ge et al. 2021,
    arXiv 2107.08430). Feature maps are joined upwards by resizing and concatenation as in YOLOv3 (Redmon &
    Farhadi 2018, arXiv 1804.02767), so that large maps know what the small ones saw. `detection_loss` trains
    it, `detect` gives what it finds.

    Args:
        backbone: a `Classifier`, of which the backbone is taken, or a Chain from images to feature maps.
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes.
        channels: of the convolutions above the backbone. (default: 128)
        strides: of the feature maps in which objects are looked for, ascending. Small objects need small
            strides. (default: (8, 16, 32))

    Returns:
        A `Detector`. Input: (N, inchannels, H, W), output: `Candidates`.

    Raises:
        TypeError: the backbone is neither a Classifier nor a Chain.
        ValueError: the backbone can't take such images, has no pyramid of feature maps, or none of these
            strides; or a number that is none.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.YOLO(fl.models.ResNet(18), nclasses=3)
        >>> model(torch.zeros(1, 3, 64, 96)).boxes.shape  # 8·12 + 4·6 + 2·3 places
        torch.Size([1, 126, 4])
        >>> fl.models.detect(model, torch.zeros(1, 3, 64, 96))[0].scores  # untrained, nothing is likely
        tensor([])
    """
    require_counts("YOLO", inchannels=inchannels, nclasses=nclasses, channels=channels)
    levels = _levels(stages(backbone, inchannels, "YOLO"), as_tuple(strides))
    neck: list[Callable[..., Tensor]] = [
        conv_norm(1, levels[-1].channels, channels, silu),
        *(UpBlock(channels, level.channels, channels) for level in reversed(levels[:-1])),
    ]
    heads = [_head(channels, nclasses) for _ in levels]
    return Detector([level.layers for level in levels], neck, heads, strides)


def _levels(found: list[Level], strides: tuple[int, ...]) -> list[Level]:
    """Stages that end at the wanted strides, each with the layers since the one before."""
    known = [stage.stride for stage in found]
    if not isinstance(strides, tuple) or not strides or sorted({*strides} & {*known}) != [*strides]:
        raise ValueError(
            f"strides={strides}: write ascending strides among those of this backbone, "
            f"{', '.join(map(str, known))}"
        )
    ends = [known.index(stride) + 1 for stride in strides]
    return [
        replace(found[b - 1], layers=Chain(*(stage.layers for stage in found[a:b] if len(stage.layers))))
        for a, b in zip([0, *ends], ends, strict=False)
    ]


def _head(channels: int, nclasses: int) -> Parallel:
    """Boxes and classes at the places of a map, each by a convolution of their own."""

    def branch(outputs: int) -> Chain:
        return Chain(conv=conv_norm(3, channels, channels, silu), out=Conv((1, 1), channels, outputs))

    boxes, classes = branch(4), branch(nclasses)
    # at first nothing is likely, else the many empty places drown the objects (Lin et al. 2017, 1708.02002)
    classes["out"].bias.fill_(-math.log(99))
    return Parallel(concatenated, boxes=boxes, classes=classes)
