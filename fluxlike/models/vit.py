"""Vision transformers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from fluxlike.layers.attention.transformer import TransformerBlock
from fluxlike.layers.compose import Chain
from fluxlike.layers.dropout import Dropout
from fluxlike.layers.layernorm import LayerNorm
from fluxlike.models.blocks import depth_rates
from fluxlike.models.classifier import Classifier
from fluxlike.models.configurations import configuration, require_counts
from fluxlike.models.origins import Origin, Squeezed, Tensors, packed
from fluxlike.models.patches import (
    ClassToken,
    PatchEmbedding,
    Positions,
    first_token,
    mean_token,
    token_classifier,
)

__all__ = ["ViT", "ViTConfig"]


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """What a vision transformer is made of.

    Attributes:
        depth: how many blocks.
        dim: features of a token; four times as many between the two layers of a block.
        num_heads: heads of each attention, which divide `dim`.
        patch_size: height and width of a patch. (default: 16)
        eps: added to the variances by norms. (default: 1e-6; in weights of transformers it is 1e-12)

    Raises:
        ValueError: a number that is none, or below 1.
    """

    depth: int
    dim: int
    num_heads: int
    patch_size: int = 16
    eps: float = 1e-6

    def __post_init__(self) -> None:
        require_counts("ViTConfig", depth=self.depth, dim=self.dim, num_heads=self.num_heads)
        require_counts("ViTConfig", patch_size=self.patch_size)


VITS = {
    "tiny": ViTConfig(depth=12, dim=192, num_heads=3),
    "small": ViTConfig(depth=12, dim=384, num_heads=6),
    "base": ViTConfig(depth=12, dim=768, num_heads=12),
    "large": ViTConfig(depth=24, dim=1024, num_heads=16),
    "huge": ViTConfig(depth=32, dim=1280, num_heads=16, patch_size=14),
}

_TORCHVISION = (
    (r"^class_token", "backbone.class_token.weight"),
    (r"^conv_proj", "backbone.patches.proj"),
    (r"^encoder\.pos_embedding", "backbone.positions.weight"),
    (r"^encoder\.layers\.encoder_layer_", "backbone.blocks."),
    (r"^encoder\.ln\.", "backbone.norm."),
    (r"^heads\.head", "classifier.fc"),
    (r"\.ln_(\d)", r".norm\1"),
    (r"self_attention\.in_proj_", "self_attn.in_proj."),
    (r"self_attention\.", "self_attn."),
    (r"mlp\.(0|linear_1)\.", "linear1."),  # the second is how the published files name it
    (r"mlp\.(3|linear_2)\.", "linear2."),
)
_TIMM = (
    (r"^cls_token", "backbone.class_token.weight"),
    (r"^pos_embed", "backbone.positions.weight"),
    (r"^patch_embed\.", "backbone.patches."),
    (r"^(blocks|norm)\.", r"backbone.\1."),
    (r"^head\.", "classifier.fc."),
    (r"attn\.qkv", "self_attn.in_proj"),
    (r"attn\.proj", "self_attn.out_proj"),
    (r"mlp\.fc", "linear"),
)
_TRANSFORMERS = (
    (r"^classifier\.", "classifier.fc."),
    (r"^vit\.embeddings\.cls_token", "backbone.class_token.weight"),
    (r"^vit\.embeddings\.position_embeddings", "backbone.positions.weight"),
    (r"^vit\.embeddings\.patch_embeddings\.projection", "backbone.patches.proj"),
    (r"^vit\.layernorm", "backbone.norm"),
    (r"^vit\.(encoder\.layer|layers)\.", "backbone.blocks."),
    (r"\.layernorm_before", ".norm1"),
    (r"\.layernorm_after", ".norm2"),
    (r"attention\.qkv", "self_attn.in_proj"),
    (r"attention\.(o_proj|output\.dense)", "self_attn.out_proj"),
    (r"(mlp\.fc1|intermediate\.dense)", "linear1"),
    (r"(mlp\.fc2|output\.dense)", "linear2"),
)
_LEARNT = Squeezed(r"class_token$|cls_token$|pos_embed|position_embeddings$", (0,))


def _of_transformers(tensors: Tensors) -> Tensors:
    """One projection for queries, keys and values in place of three, which two releases name otherwise."""
    tensors = _LEARNT(tensors)
    for three in (
        ("attention.attention.query.", "attention.attention.key.", "attention.attention.value."),
        ("attention.q_proj.", "attention.k_proj.", "attention.v_proj."),
    ):
        tensors = packed(tensors, three, "attention.qkv.")
    return tensors


ORIGINS = (
    Origin("torchvision", _TORCHVISION, _LEARNT),
    Origin("timm", _TIMM, _LEARNT),
    Origin("transformers", _TRANSFORMERS, _of_transformers),
)


def ViT(
    config: str | ViTConfig = "base",
    *,
    image_size: int | tuple[int, int] = 224,
    patch_size: int | None = None,
    inchannels: int = 3,
    nclasses: int = 1000,
    pool: str = "class",
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Classifier:
    """A vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929).

    Its backbone gives tokens (N, L, C), normalised: first that of the class, then one a patch, row by row.

    Args:
        config: "tiny", "small", "base", "large" or "huge", or a configuration of one's own. (default: "base")
        image_size: height and width of the images, or one number for both. (default: 224)
        patch_size: height and width of a patch, which divides those of the images. (default: 16, for "huge"
            14)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        pool: what is classified: "class", the token of the class, or "mean", the mean of all tokens, in a
            network without a token of the class. (default: "class")
        dropout: the probability for the tokens with their positions, for the attention's weights and in both
            branches of a block, as in TransformerBlock; unlike in the other networks for images, nothing is
            dropped before the last layer. (default: 0)
        drop_path: the probability with which an example goes around a branch of the last block; it falls in
            equal steps to 0 for the first. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, \\*image_size), output: (N, nclasses).

    Raises:
        ValueError: there is no network of this name, images that are not made of whole patches, or another
            `pool`; from a call: images of another size.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.ViT("tiny", image_size=32, patch_size=8, nclasses=10)
        >>> model(torch.zeros(2, 3, 32, 32)).shape, model.backbone(torch.zeros(2, 3, 32, 32)).shape
        (torch.Size([2, 10]), torch.Size([2, 17, 192]))
    """
    made = configuration("ViT", VITS, config)
    require_counts("ViT", inchannels=inchannels, nclasses=nclasses)
    pools = {"class": first_token, "mean": mean_token}
    if pool not in pools:
        raise ValueError(f'pool={pool!r}: write "class" for the token of the class, or "mean" for all tokens')
    size = made.patch_size if patch_size is None else patch_size
    patches = PatchEmbedding(image_size, size, inchannels, made.dim)
    steps: dict[str, Any] = {"patches": patches}
    if pool == "class":
        steps["class_token"] = ClassToken(made.dim)
    steps["positions"] = Positions(patches.length + (pool == "class"), made.dim)
    steps["dropout"] = Dropout(dropout)
    norm = partial(LayerNorm, eps=made.eps)
    steps["blocks"] = Chain(
        *(
            TransformerBlock(made.dim, made.num_heads, dropout=dropout, drop_path=rate, norm=norm)
            for rate in depth_rates(drop_path, made.depth)
        )
    )
    steps["norm"] = norm(made.dim)
    classifier = token_classifier(pools[pool], made.dim, nclasses)
    return Classifier(Chain(**steps), classifier, origins=ORIGINS)
