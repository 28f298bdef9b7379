"""UNet: a label for each pixel, from the feature maps of any backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fluxlike.layers.conv import Conv
from fluxlike.layers.errors import within
from fluxlike.models.configurations import as_tuple, require_counts
from fluxlike.models.pyramid import stages
from fluxlike.models.up_block import UpBlock
from fluxlike.trees.adopt import adopted
from fluxlike.trees.functor import functor

__all__ = ["Segmenter", "UNet"]


@functor(children=("encoder", "decoder", "head"))
class Segmenter:
    """Maps of an encoder, joined from the smallest to the largest, and scores for each pixel.

    What `UNet` makes.

    Args:
        encoder: stages, from the image's size to the smallest maps; each gets the map of the one before.
        decoder: blocks, one fewer; each gets the map made so far and the next larger one of the encoder.
        head: a layer, from the last map to scores.

    Attributes:
        encoder: the stages, a tuple.
        decoder: the blocks, a tuple.
        head: the layer.

    Input: (N, inchannels, H, W). Output: (N, nclasses, H, W), not normalised.

    Raises:
        ValueError: a decoder of another length.
        LayerError: from a call: a layer failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> encoder = [fl.Conv((3, 3), 1, 4, fl.relu, pad=1), fl.MaxPool((2, 2))]
        >>> def enlarge_and_add(small, large):
        ...     return fl.Upsample(2)(small) + large
        >>> model = fl.models.Segmenter(encoder, [enlarge_and_add], fl.Conv((1, 1), 4, 3))
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        encoder: Sequence[Callable[[Tensor], Tensor]],
        decoder: Sequence[Callable[[Tensor, Tensor], Tensor]],
        head: Callable[[Tensor], Tensor],
    ) -> None:
        if len(decoder) != len(encoder) - 1:
            raise ValueError(
                f"Segmenter takes one block of the decoder fewer than stages of the encoder, found "
                f"{len(decoder)} beside {len(encoder)}"
            )
        self.encoder, self.decoder = tuple(map(adopted, encoder)), tuple(map(adopted, decoder))
        self.head = adopted(head)

    def __call__(self, x: Tensor) -> Tensor:
        maps = []
        for i, stage in enumerate(self.encoder):
            x = within(f".encoder[{i}]", stage, x)
            maps.append(x)
        y = maps.pop()
        for i, block in enumerate(self.decoder):
            y = within(f".decoder[{i}]", block, y, maps.pop())
        return within(".head", self.head, y)


def UNet(
    backbone: Any, *, inchannels: int = 3, nclasses: int = 1, channels: Sequence[int] | None = None
) -> Segmenter:
    """A U-shaped network (Ronneberger et al. 2015, arXiv 1505.04597) over a backbone.

    The backbone is cut where its feature maps shrink. On the way back up, each block of the decoder brings
    the map to the size of the one before the cut, joins the two and convolves twice; the last joins what the
    backbone makes at the image's own size, or the image. So a backbone with weights that were trained for
    classes serves for pixels, as in TernausNet (Iglovikov & Shvets 2018, arXiv 1801.05746).

    Height and width need not be multiples of the largest stride: strided layers round a size up or down, so
    a map is not doubled but resized to the very size of the map it is joined with.

    Args:
        backbone: a `Classifier`, of which the backbone is taken, or a Chain from images to feature maps.
        inchannels: channels of the images. (default: 3)
        nclasses: channels of the output. (default: 1)
        channels: those of the decoder's blocks, from the smallest maps to the largest, one number for each
            time that the maps shrink. (default: 16 at the size of the image, twice as many at each smaller
            one)

    Returns:
        A `Segmenter`, whose encoder holds the layers of the backbone. Input: (N, inchannels, H, W), output:
        (N, nclasses, H, W), not normalised.

    Raises:
        TypeError: the backbone is neither a Classifier nor a Chain.
        ValueError: the backbone can't take such images, or has no pyramid of feature maps, as a
            transformer's; `channels` of another length, or a number that is none.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.UNet(fl.models.ResNet(18), nclasses=5)
        >>> model(torch.zeros(1, 3, 100, 70)).shape
        torch.Size([1, 5, 100, 70])
        >>> [stage.names for stage in model.encoder][1:]
        [('conv1',), ('maxpool', 'layer1'), ('layer2',), ('layer3',), ('layer4',)]
    """
    require_counts("UNet", inchannels=inchannels, nclasses=nclasses)
    if channels is not None:
        require_counts("UNet", shape=(None,), channels=as_tuple(channels))
    found = stages(backbone, inchannels, "UNet")
    *skips, deepest = (stage.channels for stage in found)
    n = len(skips)
    outputs = [16 * 2**i for i in reversed(range(n))] if channels is None else [*channels]
    if len(outputs) != n:
        strides = ", ".join(str(stage.stride) for stage in found[1:])
        raise ValueError(
            f"channels={tuple(outputs)}: the maps of this backbone shrink {n} times, to strides {strides}; "
            f"write {n} numbers"
        )
    blocks = list(map(UpBlock, [deepest, *outputs[:-1]], reversed(skips), outputs))
    return Segmenter([stage.layers for stage in found], blocks, Conv((1, 1), outputs[-1], nclasses))
