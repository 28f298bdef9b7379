"""ResMLP: a mixer without norms, whose branches start small."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fluxlike.layers.basic import Dense, Scale
from fluxlike.layers.compose import Chain
from fluxlike.models.classifier import Classifier
from fluxlike.models.mixers import TIMM_NAMES, Mixer, MixerConfig
from fluxlike.models.origins import Origin, Squeezed
from fluxlike.models.patches import features_first, features_last, mlp
from fluxlike.models.residual import Residual

__all__ = ["ResMLP", "ResMLPConfig"]


@dataclass(frozen=True, kw_only=True)
class ResMLPConfig(MixerConfig):
    """What a ResMLP is made of.

    Attributes:
        layer_scale: the factor of each branch's features at first; the smaller the deeper the network is, as
            in CaiT (Touvron et al. 2021, arXiv 2103.17239, section 2). (default: 0.1)
    """

    layer_scale: float = 0.1


RES_MLPS: dict[int | str, ResMLPConfig] = {
    12: ResMLPConfig(depth=12, dim=384),
    24: ResMLPConfig(depth=24, dim=384, layer_scale=1e-5),
    36: ResMLPConfig(depth=36, dim=384, layer_scale=1e-6),
    "big": ResMLPConfig(depth=24, dim=768, patch_size=8, layer_scale=1e-6),
}

ORIGINS = (
    Origin(
        "timm",
        (
            *TIMM_NAMES,
            (r"alpha$", "weight"),
            (r"beta$", "bias"),
            (r"\.norm1\.", ".tokens.branch.affine."),
            (r"\.linear_tokens\.", ".tokens.branch.fc."),
            (r"\.ls1$", ".tokens.branch.scale.weight"),
            (r"\.norm2\.", ".features.branch.affine."),
            (r"\.mlp_channels\.", ".features.branch.mlp."),
            (r"\.ls2$", ".features.branch.scale.weight"),
        ),
        Squeezed(r"(alpha|beta)$", (0, 1)),
    ),
)


def _block(config: ResMLPConfig, length: int, drop_path: float) -> Chain:
    dim = config.dim

    def branch(**layers: Any) -> Residual:
        small = partial(torch.full, fill_value=config.layer_scale)
        return Residual(
            Chain(affine=Scale(dim), **layers, scale=Scale(dim, bias=False, init=small)), drop_path=drop_path
        )

    return Chain(
        tokens=branch(turn=features_last, fc=Dense(length, length), turn_back=features_first),
        features=branch(mlp=mlp(dim, config.expansion * dim)),
    )


_FAMILY = Mixer("ResMLP", RES_MLPS, _block, Scale, ORIGINS)


def ResMLP(
    depth: int | str | ResMLPConfig = 24,
    *,
    image_size: int | tuple[int, int] = 224,
    patch_size: int | None = None,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Classifier:
    """One dense layer over the tokens, and two over the features, in turn; scales and shifts for norms.

    (Touvron et al. 2021, arXiv 2105.03404.) Its backbone gives tokens (N, L, C).

    Args:
        depth: 12, 24, 36, or "big", which is 24 blocks of twice the features on patches of half the size; or
            a configuration of one's own. (default: 24)
        image_size: as in `MLPMixer`. (default: 224)
        patch_size: as in `MLPMixer`. (default: 16, for "big" 8)
        inchannels: as in `MLPMixer`. (default: 3)
        nclasses: as in `MLPMixer`. (default: 1000)
        dropout: as in `MLPMixer`. (default: 0)
        drop_path: as in `MLPMixer`. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, \\*image_size), output: (N, nclasses).

    Raises:
        ValueError: there is no network of this depth, or images that are not made of whole patches; from a
            call: images of another size.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.models.ResMLP(12, image_size=64, nclasses=10)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """
    return _FAMILY.network(depth, image_size, patch_size, inchannels, nclasses, dropout, drop_path)
