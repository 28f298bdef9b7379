"""Image files as a model of `train` gets them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fluxlike.command.config import ImageFolder
from fluxlike.data.images import resize_and_crop
from fluxlike.data.readers.pictures import SUFFIXES, read_image

__all__ = ["found_images", "grey", "picture"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, section 2.5.1


def grey(image: Tensor, /) -> Tensor:
    """The luma of red, green and blue: (3, H, W) → (1, H, W)."""
    weights = torch.tensor(_LUMA, dtype=image.dtype, device="cpu")
    return (weights[:, None, None] * image).sum(0, keepdim=True)


def picture(path: str | os.PathLike[str], data: ImageFolder, /) -> Tensor:
    """An image as the training had it: float32 from 0 to 1, of shape (channels, size, size).

    Raises:
        ValueError: the file is damaged, or no image; the message names it.
    """
    image = resize_and_crop(read_image(path), data.size).contiguous().float() / 255
    return grey(image) if data.channels == 1 else image


def found_images(inputs: list[str], /) -> list[Path]:
    """The files that are meant by some files and folders; of a folder all images below it, in order.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a folder without images.
    """
    return [path for name in inputs for path in _below(Path(name))]


def _below(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder {path}")
        yield path
        return
    images = sorted(
        p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not _is_hidden(p, path)
    )
    if not images:
        raise ValueError(f"{path} holds no image; the names of images end in {', '.join(sorted(SUFFIXES))}")
    yield from images


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
