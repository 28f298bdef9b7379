"""Images as patches: their tokens, positions and classifier, and what networks of patches share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from fluxlike.init import glorot_uniform, lecun_normal, truncated_normal
from fluxlike.layers.activations import gelu
from fluxlike.layers.basic import Dense, Init
from fluxlike.layers.checks import require_features, require_shape
from fluxlike.layers.compose import Chain
from fluxlike.layers.construct import new_weight
from fluxlike.layers.conv import Conv
from fluxlike.layers.dropout import Dropout
from fluxlike.layers.errors import within
from fluxlike.layers.layernorm import LayerNorm
from fluxlike.trees.functor import functor

__all__ = [
    "ClassToken",
    "PatchEmbedding",
    "Positions",
    "features_first",
    "features_last",
    "first_token",
    "mean_token",
    "mlp",
    "small_normal",
    "token_classifier",
    "token_norm",
]

#: The norm of networks over tokens.
token_norm = partial(LayerNorm, eps=1e-6)


def small_normal(shape: Sequence[int], /) -> Tensor:
    """Draws of standard deviation 0.02, at most twice as large: what transformers start with."""
    return truncated_normal(shape, std=0.02, low=-0.04, high=0.04)


@functor(children=("proj",))
class PatchEmbedding:
    """An image cut into square patches, each of which one linear map makes a token.

    (Dosovitskiy et al. 2020, arXiv 2010.11929, equation 1.) The map is a convolution whose stride is its
    kernel's size.

    Args:
        image_size: height and width of the images, or one number for both. `patch_size` divides them.
        patch_size: height and width of a patch.
        inchannels: channels of the images.
        dim: features of a token.
        init: makes the weight from its shape. (default: `init.lecun_normal`)

    Attributes:
        proj: a Conv.
        image_size: height and width of the images.
        length: how many patches an image has.

    Input: (N, inchannels, H, W) of that height and width. Output: (N, length, dim), row by row.

    Raises:
        ValueError: an image that is not made of whole patches; from a call: images of another size.
        TypeError: from a call: no tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.models.PatchEmbedding((32, 48), 16, 3, 64)(torch.zeros(2, 3, 32, 48)).shape
        torch.Size([2, 6, 64])
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        inchannels: int,
        dim: int,
        *,
        init: Init = lecun_normal,
    ) -> None:
        self.image_size = _sizes(image_size)
        if not isinstance(patch_size, int) or patch_size < 1:
            raise ValueError(f"patch_size={patch_size!r}: patches are square; write one whole number above 0")
        if any(n % patch_size for n in self.image_size):
            near = tuple(max(1, round(n / patch_size)) * patch_size for n in self.image_size)
            raise ValueError(
                f"image_size={image_size!r} is not made of whole patches of {patch_size}×{patch_size}; "
                f"write image_size={near}, or a patch_size that divides both"
            )
        self.proj = Conv((patch_size, patch_size), inchannels, dim, stride=patch_size, init=init)

    @property
    def length(self) -> int:
        height, width = (n // k for n, k in zip(self.image_size, self.proj.stride, strict=True))
        return height * width

    def __call__(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim != 4 or tuple(x.shape[2:]) != self.image_size:
            self._refuse(x)
        return within(".proj", self.proj, x).flatten(2).transpose(1, 2)

    def _refuse(self, x: Any) -> NoReturn:
        (height, width), channels = self.image_size, self.proj.weight.shape[1]
        wanted = f"(N, {channels}, {height}, {width})"
        require_features("PatchEmbedding", x, 1, channels, wanted, (4,))
        raise ValueError(
            f"PatchEmbedding takes images of {height}×{width}, found {tuple(x.shape)}: the network has a "
            f"fixed number of patches. Write image_size={tuple(x.shape[2:])} where it is made, or resize "
            f'what it gets: fluxlike.Upsample(size=({height}, {width}), mode="bilinear")'
        )

    def extra_repr(self) -> str:
        return f"image_size={self.image_size}"


@functor
class ClassToken:
    """A learnt token in front of the others: (N, L, dim) → (N, L + 1, dim).

    (Devlin et al. 2018, arXiv 1810.04805, whose [CLS] it is; Dosovitskiy et al. 2020, arXiv 2010.11929.)

    Args:
        dim: features of a token.

    Attributes:
        weight: (1, dim), zeros at first.

    Raises:
        ValueError: from a call: another shape.
        TypeError: from a call: no tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.models.ClassToken(8)(torch.ones(2, 4, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, dim: int) -> None:
        self.weight = torch.zeros(1, dim)

    def __call__(self, x: Tensor) -> Tensor:
        dim = self.weight.shape[1]
        require_features("ClassToken", x, -1, dim, f"(N, L, {dim})", (3,))
        return torch.cat((self.weight.expand(x.shape[0], 1, dim), x), 1)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}"


@functor
class Positions:
    """A learnt vector for each place of a sequence, added to its token.

    (Gehring et al. 2017, arXiv 1705.03122, section 3.1.)

    Args:
        length: how many tokens there are.
        dim: features of a token.
        init: makes the vectors from their shape. (default: draws of standard deviation 0.02)

    Attributes:
        weight: (length, dim).

    Input and output: (N, length, dim).

    Raises:
        ValueError: from a call: another shape.
        TypeError: from a call: no tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.models.Positions(4, 8)(torch.ones(2, 4, 8)).shape
        torch.Size([2, 4, 8])
    """

    def __init__(self, length: int, dim: int, *, init: Init = small_normal) -> None:
        self.weight = new_weight("Positions", init, (length, dim))

    def __call__(self, x: Tensor) -> Tensor:
        require_shape("Positions", x, tuple(self.weight.shape))
        return x + self.weight

    def extra_repr(self) -> str:
        length, dim = self.weight.shape
        return f"{length}, {dim}"


def features_last(x: Tensor, /) -> Tensor:
    """The second axis as the last one: (N, C, H, W) → (N, H, W, C), or tokens (N, L, C) → (N, C, L)."""
    return x.movedim(1, -1)


def features_first(x: Tensor, /) -> Tensor:
    """The last axis as the second one, which undoes `features_last`."""
    return x.movedim(-1, 1)


def first_token(x: Tensor, /) -> Tensor:
    """The token of the class, which is the first: (N, L, C) → (N, C)."""
    return x[:, 0]


def mean_token(x: Tensor, /) -> Tensor:
    """The mean of all tokens: (N, L, C) → (N, C)."""
    return x.mean(1)


def mlp(dim: int, hidden: int, init: Init = glorot_uniform) -> Chain:
    """Two Dense layers, with a gelu between them: (…, dim) → (…, dim)."""
    return Chain(fc1=Dense(dim, hidden, gelu, init=init), fc2=Dense(hidden, dim, init=init))


def token_classifier(
    pool: Callable[[Tensor], Tensor], dim: int, nclasses: int, dropout: float = 0.0
) -> Chain:
    """One vector of the tokens, and a Dense layer: (N, L, dim) → (N, nclasses).

    Args:
        pool: makes the one of the many: `first_token` or `mean_token`.
        dim: features of a token.
        nclasses: how many classes.
        dropout: the probability with which a feature is dropped. (default: 0)
    """
    return Chain(pool=pool, dropout=Dropout(dropout), fc=Dense(dim, nclasses))


def _sizes(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width."""
    sizes = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not (
        isinstance(sizes, (tuple, list))
        and len(sizes) == 2
        and all(isinstance(n, int) and n > 0 for n in sizes)
    ):
        raise ValueError(f"image_size={image_size!r}: write the height and the width, or one number for both")
    return tuple(sizes)  # type: ignore[return-value]
