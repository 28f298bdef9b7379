"""What networks of dense layers over tokens and over features have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from torch import Tensor

from fluxlike.layers.compose import Chain
from fluxlike.models.blocks import depth_rates
from fluxlike.models.classifier import Classifier
from fluxlike.models.configurations import configuration, require_counts
from fluxlike.models.origins import Origin
from fluxlike.models.patches import PatchEmbedding, mean_token, token_classifier

__all__ = ["TIMM_NAMES", "Mixer", "MixerConfig"]


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """What a network of blocks over patches is made of.

    Attributes:
        depth: how many blocks.
        dim: features of a token.
        patch_size: height and width of a patch. (default: 16)
        expansion: how many times as many features there are between the two layers over features.
            (default: 4)

    Raises:
        ValueError: a number that is none, or below 1.
    """

    depth: int
    dim: int
    patch_size: int = 16
    expansion: int = 4

    def __post_init__(self) -> None:
        by = type(self).__name__
        require_counts(by, depth=self.depth, dim=self.dim)
        require_counts(by, patch_size=self.patch_size, expansion=self.expansion)


C = TypeVar("C", bound=MixerConfig)

#: timm's names of what all these networks have.
TIMM_NAMES = (
    (r"^stem\.", "backbone.patches."),
    (r"^(blocks|norm)\.", r"backbone.\1."),
    (r"^head\.", "classifier.fc."),
)


@dataclass(frozen=True)
class Mixer(Generic[C]):
    """A family of networks of equal blocks over the patches of an image, whose mean is classified.

    Attributes:
        family: its name, for errors.
        table: the published configurations.
        block: makes a block from the configuration, the number of tokens and the rate of stochastic depth.
        norm: makes the last norm from the number of features.
        origins: the libraries whose weights its networks can read.
    """

    family: str
    table: Mapping[Any, C]
    block: Callable[[C, int, float], Callable[[Tensor], Tensor]]
    norm: Callable[[int], Callable[[Tensor], Tensor]]
    origins: tuple[Origin, ...]

    def network(
        self,
        which: Any,
        image_size: int | tuple[int, int],
        patch_size: int | None,
        inchannels: int,
        nclasses: int,
        dropout: float,
        drop_path: float,
    ) -> Classifier:
        """A network of the family.

        Args:
            which: a name in the table, or a configuration.
            image_size: height and width of the images, or one number for both.
            patch_size: height and width of a patch; None for that of the configuration.
            inchannels: channels of the images.
            nclasses: how many classes.
            dropout: the probability with which a feature is dropped before the last layer.
            drop_path: the last block's rate of stochastic depth.
        """
        config = configuration(self.family, self.table, which)
        require_counts(self.family, inchannels=inchannels, nclasses=nclasses)
        if patch_size is not None:
            config = replace(config, patch_size=patch_size)
        patches = PatchEmbedding(image_size, config.patch_size, inchannels, config.dim)
        blocks: list[Any] = [
            self.block(config, patches.length, rate) for rate in depth_rates(drop_path, config.depth)
        ]
        backbone = Chain(patches=patches, blocks=Chain(*blocks), norm=self.norm(config.dim))
        classifier = token_classifier(mean_token, config.dim, nclasses, dropout)
        return Classifier(backbone, classifier, origins=self.origins)
