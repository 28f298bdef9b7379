"""Images as tensors: resized, cropped, flipped and normalised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike import random

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Normalise",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "checked_size",
    "resize_and_crop",
]

#: The mean of ImageNet's red, green and blue, from 0 to 1, that its pretrained models were trained with:
#: github.com/facebookarchive/fb.resnet.torch, and https://docs.pytorch.org/vision/stable/models.html
IMAGENET_MEAN = (0.485, 0.456, 0.406)
#: Their standard deviation, from the same source.
IMAGENET_STD = (0.229, 0.224, 0.225)

_TRIES = 10  # of a random box, before a central one is taken


def resize_and_crop(image: Tensor, /, size: int | tuple[int, int]) -> Tensor:
    """The middle of an image, of a given size: as little as possible is cut off.

    The image is resized with its proportions kept until it just covers the size, antialiased and bilinear,
    and what stands over on two sides is cut off. Of an image more than five times as long as wide, the ends
    are cut off first, so that a line of pixels takes no more memory than a picture.

    Args:
        image: uint8 or floating, of shape (…, C, H, W).
        size: height and width in pixels, or one number for both.

    Returns:
        Of shape ``(…, C, *size)`` and the same dtype.

    Raises:
        TypeError: an image of another dtype.
        ValueError: a size below 1, or an image of fewer than three axes or without pixels.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.data.resize_and_crop(torch.rand(3, 100, 150), 64).shape
        torch.Size([3, 64, 64])
    """
    height, width = checked_size("resize_and_crop", size)
    h, w = _sides("resize_and_crop", image)
    if height * w < width * h:
        image, covering, top = _without_ends(image, -2, (h, w), (height, width))
        return _resized(image, (covering, width))[..., top : top + height, :]
    image, covering, left = _without_ends(image, -1, (w, h), (width, height))
    return _resized(image, (height, covering))[..., left : left + width]


def _without_ends(
    image: Tensor, axis: int, sides: tuple[int, int], wanted: tuple[int, int]
) -> tuple[Tensor, int, int]:
    """An image without most of what is to be cut off, how long it will be, and where the middle then begins.

    Args:
        image: of shape (…, C, H, W).
        axis: the one that is too long.
        sides: of the image, that axis first.
        wanted: the sides of the middle, likewise.
    """
    long, short = sides
    covering = long * wanted[1] // short
    start = round((covering - wanted[0]) / 2)
    # Squares, whose pixels become whole pixels, so the rest stays where it was; one at each end is left to
    # the filter.
    squares = max(0, (covering - wanted[0]) // (2 * wanted[1]) - 1)
    if squares:
        image = image.narrow(axis, squares * short, long - 2 * squares * short)
    return image, covering - 2 * squares * wanted[1], start - squares * wanted[1]


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random box of an image, resized: the usual augmentation of ImageNet's training.

    A box has a random share of the area and a random ratio of width to height, uniform in its logarithm.
    Where ten such boxes don't fit, it is the largest in the middle of a permitted ratio. It is drawn from
    the key in scope, or by torch's generator where there is none.

    Args:
        size: height and width of the result in pixels, or one number for both.
        scale: the least and the greatest share of the area. (default: (0.08, 1))
        ratio: the least and the greatest ratio of width to height. (default: (3/4, 4/3))

    A call takes an image, uint8 or floating, of shape (…, C, H, W), all of one box, and returns it as
    ``(…, C, *size)``, bilinear and antialiased.

    Raises:
        TypeError: from a call, an image of another dtype.
        ValueError: settings out of range; from a call, an image of fewer than three axes or without pixels.

    Example:
        >>> import torch, fluxlike as fl
        >>> crop = fl.data.RandomResizedCrop(64)
        >>> crop(torch.rand(3, 100, 150)).shape
        torch.Size([3, 64, 64])

    See Szegedy et al. 2015, "Going deeper with convolutions", arXiv 1409.4842, section 6.
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        checked_size("RandomResizedCrop", self.size)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"RandomResizedCrop(scale={self.scale}): write two shares, such as (0.08, 1)")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"RandomResizedCrop(ratio={self.ratio}): write two ratios, such as (0.75, 1.33)")

    def __call__(self, image: Tensor, /) -> Tensor:
        h, w = _sides("RandomResizedCrop", image)
        top, left, height, width = self._box(h, w)
        box = image[..., top : top + height, left : left + width]
        return _resized(box, checked_size("RandomResizedCrop", self.size))

    def _box(self, h: int, w: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of a box in an image of h × w pixels."""
        draws = random.uniform((_TRIES, 4), dtype=torch.float64, device="cpu").tolist()
        (small, large), (tall, wide) = self.scale, self.ratio
        for share, shape, down, right in draws:
            area = h * w * (small + (large - small) * share)
            ratio = math.exp(math.log(tall) + (math.log(wide) - math.log(tall)) * shape)
            height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < height <= h and 0 < width <= w:
                return int(down * (h - height + 1)), int(right * (w - width + 1)), height, width
        height, width = min(h, max(1, round(w / tall))), min(w, max(1, round(h * wide)))
        return (h - height) // 2, (w - width) // 2, height, width


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """An image, or its mirror image with probability `p`.

    Drawn from the key in scope, or by torch's generator where there is none.

    Args:
        p: the probability. (default: 0.5)

    A call takes a tensor of any dtype and of shape (…, W), and returns one of the same shape: all of it is
    flipped or nothing.

    Raises:
        ValueError: a `p` outside [0, 1].

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.data.RandomHorizontalFlip(p=1.0)(torch.tensor([[[1, 2, 3]]]))
        tensor([[[3, 2, 1]]])
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"RandomHorizontalFlip(p={self.p!r}): write a probability, from 0 to 1")

    def __call__(self, image: Tensor, /) -> Tensor:
        return image.flip(-1) if bool(random.bernoulli((), self.p, device="cpu")) else image


@dataclass(frozen=True)
class Normalise:
    """Images minus a mean and divided by a standard deviation, one of each a channel.

    Args:
        mean: one number a channel. (default: `IMAGENET_MEAN`)
        std: one number a channel. (default: `IMAGENET_STD`)

    A call takes floating images of shape (…, C, H, W), and returns the same shape and dtype.

    Raises:
        TypeError: from a call, images that are not floating.
        ValueError: not as many numbers, or a `std` that is not above 0; from a call, another number of
            channels.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.data.Normalise(mean=[0.5], std=[0.25])(torch.tensor([[[0.0, 0.5, 1.0]]]))
        tensor([[[-2.,  0.,  2.]]])
    """

    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(number) for number in getattr(self, name)))
        if len(self.mean) != len(self.std) or not all(0 < s < math.inf for s in self.std):
            raise ValueError(
                f"Normalise(mean={self.mean}, std={self.std}): write as many of both, and every std above 0"
            )

    def __call__(self, images: Tensor, /) -> Tensor:
        if not images.is_floating_point():
            raise TypeError(f"Normalise: the images are of {images.dtype}; write images.float() / 255 first")
        if images.ndim < 3 or images.shape[-3] != len(self.mean):
            raise ValueError(
                f"Normalise has a mean for {len(self.mean)} channels, and the images have the shape "
                f"{tuple(images.shape)}; write (…, C, H, W)"
            )
        mean, std = (images.new_tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return (images - mean) / std


def checked_size(name: str, size: int | tuple[int, int], /) -> tuple[int, int]:
    """Height and width.

    Raises:
        ValueError: it is not one or two whole numbers of at least 1; `name` says who asks.
    """
    both = (size, size) if type(size) is int else size
    if isinstance(both, (tuple, list)) and len(both) == 2 and all(type(n) is int and n > 0 for n in both):
        return both[0], both[1]
    raise ValueError(f"{name}(size={size!r}): write height and width in pixels, such as 224 or (192, 256)")


def _sides(name: str, image: Tensor) -> tuple[int, int]:
    """Height and width of an image."""
    if not isinstance(image, Tensor):
        raise TypeError(f"{name} takes an image as a tensor, found a {type(image).__name__}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"{name}: the image is of {image.dtype}; write uint8, or floats from 0 to 1")
    if image.ndim < 3 or 0 in image.shape[-3:]:
        raise ValueError(f"{name}: the image has the shape {tuple(image.shape)}; write (C, H, W)")
    return image.shape[-2], image.shape[-1]


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (…, C, H, W) of another size, bilinear and antialiased."""
    if tuple(image.shape[-2:]) == size:
        return image
    flat = image.reshape(-1, *image.shape[-3:])
    # torch resizes uint8 on the CPU alone, where 2.13 writes noise into images one pixel wide
    whole = image.dtype == torch.uint8 and image.device.type == "cpu" and size[1] > 1
    if whole or image.dtype in (torch.float32, torch.float64):
        values = F.interpolate(flat, size, mode="bilinear", antialias=True)
    else:
        values = F.interpolate(flat.float(), size, mode="bilinear", antialias=True)
        values = (values if image.is_floating_point() else values.round().clamp(0, 255)).to(image.dtype)
    return values.reshape(*image.shape[:-2], *size)
