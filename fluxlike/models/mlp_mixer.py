"""MLP-Mixer: dense layers over tokens and over features in turn."""

from __future__ import annotations

from fluxlike.layers.compose import Chain
from fluxlike.models.classifier import Classifier
from fluxlike.models.mixers import TIMM_NAMES, Mixer, MixerConfig
from fluxlike.models.origins import Origin
from fluxlike.models.patches import features_first, features_last, mlp, token_norm
from fluxlike.models.residual import Residual

__all__ = ["MLPMixer"]

MLP_MIXERS = {
    "small": MixerConfig(depth=8, dim=512),
    "base": MixerConfig(depth=12, dim=768),
    "large": MixerConfig(depth=24, dim=1024),
    "huge": MixerConfig(depth=32, dim=1280, patch_size=14),
}

ORIGINS = (
    Origin(
        "timm",
        (
            *TIMM_NAMES,
            (r"\.norm1\.", ".tokens.branch.norm."),
            (r"\.mlp_tokens\.", ".tokens.branch.mlp."),
            (r"\.norm2\.", ".features.branch.norm."),
            (r"\.mlp_channels\.", ".features.branch.mlp."),
        ),
    ),
)


def _block(config: MixerConfig, length: int, drop_path: float) -> Chain:
    dim = config.dim
    tokens = Chain(
        norm=token_norm(dim), turn=features_last, mlp=mlp(length, dim // 2), turn_back=features_first
    )
    features = Chain(norm=token_norm(dim), mlp=mlp(dim, config.expansion * dim))
    return Chain(
        tokens=Residual(tokens, drop_path=drop_path), features=Residual(features, drop_path=drop_path)
    )


_FAMILY = Mixer("MLPMixer", MLP_MIXERS, _block, token_norm, ORIGINS)


def MLPMixer(
    config: str | MixerConfig = "base",
    *,
    image_size: int | tuple[int, int] = 224,
    patch_size: int | None = None,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Classifier:
    """Two dense layers over the tokens, and two over the features, in turn.

    (MLP-Mixer, Tolstikhin et al. 2021, arXiv 2105.01601.) Its backbone gives tokens (N, L, C), normalised.

    Args:
        config: "small", "base", "large" or "huge", or a configuration of one's own. (default: "base")
        image_size: height and width of the images, or one number for both. (default: 224)
        patch_size: height and width of a patch, which divides those of the images. (default: 16, for "huge"
            14)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer. (default: 0)
        drop_path: the probability with which an example goes around a branch of the last block; it falls in
            equal steps to 0 for the first. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, \\*image_size), output: (N, nclasses).

    Raises:
        ValueError: there is no network of this name, or images that are not made of whole patches; from a
            call: images of another size.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.MLPMixer("small", image_size=64, patch_size=32, nclasses=10)
        >>> model(torch.zeros(2, 3, 64, 64)).shape, model.backbone(torch.zeros(2, 3, 64, 64)).shape
        (torch.Size([2, 10]), torch.Size([2, 4, 512]))
    """
    return _FAMILY.network(config, image_size, patch_size, inchannels, nclasses, dropout, drop_path)
