"""gMLP: dense layers over the features, gated by a dense layer over the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fluxlike.layers.activations import gelu
from fluxlike.layers.basic import Dense
from fluxlike.layers.checks import refuse_input, require_callable
from fluxlike.layers.compose import Chain
from fluxlike.layers.errors import within
from fluxlike.layers.layernorm import LayerNorm
from fluxlike.models.classifier import Classifier
from fluxlike.models.mixers import TIMM_NAMES, Mixer, MixerConfig
from fluxlike.models.origins import Origin
from fluxlike.models.patches import features_first, features_last, token_norm
from fluxlike.models.residual import Residual
from fluxlike.random import normal
from fluxlike.trees.adopt import adopted
from fluxlike.trees.functor import functor

__all__ = ["SplitGate", "gMLP", "gMLPConfig"]


@dataclass(frozen=True, kw_only=True)
class gMLPConfig(MixerConfig):
    """What a gMLP is made of.

    Attributes:
        expansion: how many times as many features there are between the two layers over features, of which
            one half is a gate. (default: 6, as in table 1 of the paper)
    """

    expansion: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expansion * self.dim % 2:
            raise ValueError(
                f"gMLPConfig(dim={self.dim}, expansion={self.expansion}): the features between two layers "
                f"are halved, found {self.expansion * self.dim}; write an even number for one of the two"
            )


G_MLPS = {
    "tiny": gMLPConfig(depth=30, dim=128),
    "small": gMLPConfig(depth=30, dim=256),
    "base": gMLPConfig(depth=30, dim=512),
}

ORIGINS = (
    Origin(
        "timm",
        (
            *TIMM_NAMES,
            (r"(blocks\.\d+)\.(norm|mlp_channels)\.", r"\1.branch.\2."),
            (r"mlp_channels\.", ""),
            (r"gate\.", "gate.layer."),
        ),
    ),
)


@functor
class SplitGate:
    """One half of the features times what a layer makes of the other: ``a · layer(b)``.

    (Liu et al. 2021, arXiv 2105.08050, section 2.1.)

    Args:
        layer: a layer, or any callable, which keeps the shape of one half.

    Attributes:
        layer: the layer.

    Input: (…, 2·dim). Output: (…, dim).

    Raises:
        TypeError: a layer that can't be called; from a call: no tensor.
        ValueError: from a call: an odd number of features.
        LayerError: from a call: the layer failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.models.SplitGate(torch.sigmoid)(torch.tensor([1.0, 2.0, 0.0, 0.0]))
        tensor([0.5000, 1.0000])
    """

    def __init__(self, layer: Callable[[Tensor], Tensor]) -> None:
        require_callable("SplitGate", "layer", layer)
        self.layer = adopted(layer)

    def __call__(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[-1] % 2:
            refuse_input("SplitGate", x, "(…, 2·dim)", "; it halves the features")
        a, b = x.chunk(2, -1)
        return a * within(".layer", self.layer, b)


def _block(config: gMLPConfig, length: int, drop_path: float) -> Residual:
    dim, hidden = config.dim, config.expansion * config.dim
    proj = Dense(length, length, init=lambda shape: 1e-6 * normal(shape))
    proj.bias = torch.ones(length)  # so that the gate passes nearly everything at first
    gate = Chain(norm=LayerNorm(hidden // 2), turn=features_last, proj=proj, turn_back=features_first)
    branch = Chain(
        norm=token_norm(dim),
        fc1=Dense(dim, hidden, gelu),
        gate=SplitGate(gate),
        fc2=Dense(hidden // 2, dim),
    )
    return Residual(branch, drop_path=drop_path)


_FAMILY = Mixer("gMLP", G_MLPS, _block, token_norm, ORIGINS)


def gMLP(
    config: str | gMLPConfig = "small",
    *,
    image_size: int | tuple[int, int] = 224,
    patch_size: int | None = None,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Classifier:
    """Dense layers over the features, between which a dense layer over the tokens is a gate.

    (Liu et al. 2021, arXiv 2105.08050.) Its backbone gives tokens (N, L, C), normalised.

    Args:
        config: "tiny", "small" or "base", or a configuration of one's own. (default: "small")
        image_size: as in `MLPMixer`. (default: 224)
        patch_size: as in `MLPMixer`. (default: 16)
        inchannels: as in `MLPMixer`. (default: 3)
        nclasses: as in `MLPMixer`. (default: 1000)
        dropout: as in `MLPMixer`. (default: 0)
        drop_path: as in `MLPMixer`. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, \\*image_size), output: (N, nclasses).

    Raises:
        ValueError: there is no network of this name, or images that are not made of whole patches; from a
            call: images of another size.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.models.gMLP("tiny", image_size=64, nclasses=10)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """
    return _FAMILY.network(config, image_size, patch_size, inchannels, nclasses, dropout, drop_path)
