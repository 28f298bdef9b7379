"""A backbone cut into stages, each of which works at one size of feature maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fluxlike.inspect.outputsize import outputsize
from fluxlike.layers.compose import Chain
from fluxlike.layers.errors import LayerError
from fluxlike.models.classifier import Classifier

__all__ = ["Level", "stages"]

#: Height and width of the dry run. So much larger than a kernel that a convolution without padding takes off
#: a small share even of the smallest map, and what at least halves a map is told from it. And 17·32, so that
#: the sizes of maps are no usual numbers of channels.
SIZE = 544

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Level:
    """Layers of a backbone that work at one size.

    Attributes:
        layers: the layers; the first of them shrinks the maps, except in the first stage.
        channels: of the feature maps that they give.
        stride: how many pixels of the image, along an axis, one place of these maps stands for.
    """

    layers: Chain
    channels: int
    stride: int


def stages(backbone: Any, inchannels: int, by: str) -> list[Level]:
    """The stages of a backbone: its layers in order, cut before each that at least halves the maps.

    The sizes are found by a run on the meta device, without memory or numbers. A nested Chain stays whole
    unless it shrinks the maps after its first step: then the maps of the larger size would be lost in it, so
    its steps are taken apart, if all of them give maps.

    Args:
        backbone: a Chain from images to feature maps, or a Classifier, of which the backbone is taken.
        inchannels: channels of the images.
        by: what asks, for errors.

    Returns:
        The stages. The first has stride 1, and no layers where the backbone begins with one that shrinks.

    Raises:
        TypeError: the backbone is neither a Chain nor a Classifier.
        ValueError: it can't take images of that many channels, gives no feature maps, or never shrinks them.

    Example:
        >>> import fluxlike as fl
        >>> [(s.layers.names, s.channels, s.stride) for s in stages(fl.models.ResNet(18), 3, "doctest")][:3]
        [(None, 3, 1), (('conv1',), 64, 2), (('maxpool', 'layer1'), 64, 4)]
    """
    chain = backbone.backbone if isinstance(backbone, Classifier) else backbone
    if not isinstance(chain, Chain):
        raise TypeError(
            f"{by} takes a Chain of layers or a Classifier whose backbone is one, found "
            f"{type(chain).__name__}"
        )
    groups: list[list[_Step]] = [[]]
    for step in _Cutter(by).steps(chain, inchannels):
        groups += [[]] if step.factor > 1 else []
        groups[-1].append(step)
    if len(groups) == 1:
        raise ValueError(
            f"{by} needs a backbone with a pyramid, whose feature maps shrink on the way; those of this one "
            f"keep the size of the image. {_WRITE}"
        )
    found, channels, stride = [], inchannels, 1
    for group in groups:
        stride *= group[0].factor if group else 1
        channels = group[-1].gives[1] if group else channels
        found.append(Level(_chain(group), channels, stride))
    return found


_WRITE = "Write a convolutional one, such as fl.models.ResNet(34), or a Chain of convolutions and pools"


@dataclass(frozen=True)
class _Step:
    """A layer, the names or numbers of the steps that lead to it, and the shapes that it takes and gives."""

    path: tuple[str, ...]
    layer: Any
    takes: Shape
    gives: Any

    @property
    def name(self) -> str:
        return f"{'.'.join(self.path)} ({getattr(self.layer, '__name__', type(self.layer).__name__)})"

    @property
    def is_map(self) -> bool:
        """Whether it gives (N, C, H, W): of square images square maps, unlike where channels are last."""
        return isinstance(self.gives, tuple) and len(self.gives) == 4 and self.gives[2] == self.gives[3]

    @property
    def factor(self) -> int:
        """By what it divides the size of maps: 1 where it takes off a border or nothing."""
        return max(1, round(self.takes[2] / self.gives[2])) if self.is_map else 1


class _Cutter:
    """Walks a Chain with shapes.

    Args:
        by: what asks, for errors.
    """

    def __init__(self, by: str) -> None:
        self._by = by

    def steps(self, chain: Chain, inchannels: int) -> Iterator[_Step]:
        """The steps of a backbone, with those of nested Chains that are taken apart."""
        for step in self._each(chain, (), (1, inchannels, SIZE, SIZE)):
            if not step.is_map:
                raise ValueError(
                    f"{self._by} needs a backbone with a pyramid of feature maps (N, C, H, W), and the step "
                    f"{step.name} gives {_text(step.gives)}: tokens, or features that are no longer at a "
                    f"place. {_WRITE}; of a network with its classifier in one Chain write the layers before "
                    "that, network[:k]"
                )
            yield from self._apart(step)

    def _apart(self, step: _Step) -> list[_Step]:
        """A step, or in its place the steps of the Chain that it is."""
        if step.factor == 1 or self._shrinks_first(step):
            return [step]
        inner = list(self._each(step.layer, step.path, step.takes))
        if not all(one.is_map for one in inner):
            return [step]
        return [part for one in inner for part in self._apart(one)]

    def _shrinks_first(self, step: _Step) -> bool:
        """Whether a layer shrinks its input before it does anything else."""
        if not isinstance(step.layer, Chain):
            return True
        first = self._step(step.path, step.layer[0], step.takes)
        return first.factor == step.factor and self._shrinks_first(first)

    def _each(self, chain: Chain, path: tuple[str, ...], shape: Shape) -> Iterator[_Step]:
        for name, layer in zip(chain.names or map(str, range(len(chain))), chain, strict=True):
            step = self._step((*path, name), layer, shape)
            yield step
            shape = step.gives

    def _step(self, path: tuple[str, ...], layer: Any, takes: Shape) -> _Step:
        try:
            return _Step(path, layer, takes, outputsize(layer, takes))
        except Exception as error:
            if not LayerError.wraps(error):
                raise
            name = _Step(path, layer, takes, ()).name
            raise ValueError(
                f"{self._by} runs the backbone on an image of {SIZE}×{SIZE} without numbers, to see where "
                f"its feature maps shrink, and the step {name} failed for the shape {takes}: {error}. Write "
                "inchannels= of the backbone's own images; a backbone for one size of images alone has no "
                f"place here. {_WRITE}"
            ) from error


def _text(gives: Any) -> str:
    return f"the shape {tuple(gives)}" if isinstance(gives, tuple) else type(gives).__name__


def _chain(group: list[_Step]) -> Chain:
    """The layers of a stage, by name where all have one."""
    names = ["_".join(step.path) for step in group]
    numbered = any(part.isdecimal() for step in group for part in step.path)
    if not numbered and len({*names}) == len(names):
        return Chain(**{name: step.layer for name, step in zip(names, group, strict=True)})
    return Chain(*(step.layer for step in group))
