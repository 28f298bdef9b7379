"""Folders of images, one folder a class."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxlike.data.images import checked_size, resize_and_crop
from fluxlike.data.readers.opened import opened_in, there
from fluxlike.data.readers.pictures import SUFFIXES, read_image
from fluxlike.files.printing import shown
from fluxlike.optional import optional

__all__ = ["ImageFolder"]

_OF_THE_SYSTEM = frozenset(("Thumbs.db", "desktop.ini"))


class ImageFolder:
    """The images in the folders of a folder, whose names are the classes.

    This is the layout of ImageNet and Imagenette: ``ImageFolder("imagenette2/train")`` reads
    ``imagenette2/train/n01440764/*.JPEG`` and the other nine. Files are decoded as they are asked for, by
    Pillow. Hidden files, ``Thumbs.db`` and ``desktop.ini`` are passed over, and so is what lies beside the
    folders of the classes, if it is no image.

    Args:
        root: the folder that holds one folder a class.
        size: height and width, or one number for both: images are resized until they just cover it, and
            the middle is cut out, as by `resize_and_crop`. (default: None, the size they have)
        transform: a function of the image, for example an augmentation, or a transform of
            ``torchvision.transforms.v2``. (default: None)
        classes: the names of the folders, in the order of their numbers. For a second folder, give those
            of the first. (default: the sorted names)

    Attributes:
        classes: the names of the classes.
        labels: the class of each image, int64 of shape (N,).
        paths: the file of each image, sorted by class and name.

    ``folder[i]`` is ``(image, label)``: float32 from 0 to 1 of shape (3, H, W), or what `transform` made
    of it; and a 0-d int64 tensor. `read_image` says how files become pixels.

    Raises:
        ImportError: Pillow is not installed: ``pip install 'fluxlike[training]'``.
        FileNotFoundError: there is no such folder.
        ValueError: no class or a class without images; a file that is no image, or a folder, in the
            folder of a class; images without class; a folder that is none of `classes`. From an index, an
            image that is damaged, or a decompression bomb.

    Example:
        >>> import os, tempfile, fluxlike as fl
        >>> from PIL import Image
        >>> root = tempfile.mkdtemp()
        >>> for name, colour in (("cat", "black"), ("dog", "white")):
        ...     os.mkdir(os.path.join(root, name))
        ...     Image.new("RGB", (40, 30), colour).save(os.path.join(root, name, "1.png"))
        >>> pets = fl.data.ImageFolder(root, size=16)
        >>> pets, pets.classes, pets.labels
        (ImageFolder(2 images of 2 classes), ('cat', 'dog'), tensor([0, 1]))
        >>> image, label = pets[1]
        >>> image.shape, image.max(), label
        (torch.Size([3, 16, 16]), tensor(1.), tensor(1))
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        size: int | tuple[int, int] | None = None,
        transform: Callable[[Tensor], Any] | None = None,
        *,
        classes: Sequence[str] | None = None,
    ) -> None:
        optional("PIL.Image", "ImageFolder")
        self._size = None if size is None else checked_size("ImageFolder", size)
        if transform is not None and not callable(transform):
            raise TypeError(f"ImageFolder: transform is a {type(transform).__name__}; write a function")
        self._transform = transform
        folder = opened_in(Path(root))
        found = _class_folders(folder)
        self.classes = tuple(found) if classes is None else _agreed(folder, found, tuple(classes))
        files = [_images(folder / name) if name in found else [] for name in self.classes]
        self.paths = tuple(path for of_class in files for path in of_class)
        counts = torch.tensor([len(of_class) for of_class in files])
        self.labels = torch.repeat_interleave(torch.arange(len(files)), counts)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Any, Tensor]:
        i = operator.index(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"there is no image {i}; there are {len(self)}, from 0")
        image = read_image(self.paths[i])
        if self._size is not None:
            image = resize_and_crop(image, self._size)
        image = image.contiguous().float() / 255
        return image if self._transform is None else self._transform(image), self.labels[i]

    def __repr__(self) -> str:
        return f"ImageFolder({len(self)} images of {len(self.classes)} classes)"


def _class_folders(folder: Path) -> list[str]:
    """The sorted names of the folders of the classes."""
    names, stray = [], []
    for entry in _entries(folder):
        if entry.is_dir():
            names.append(entry.name)
        elif _is_image(entry.name):
            stray.append(entry.name)
    if stray:
        raise ValueError(
            f"{folder} holds images without class, such as {shown(min(stray))}; move each into a folder with "
            f"the name of its class, such as {folder / 'cat' / min(stray)}"
        )
    if not names:
        raise ValueError(f"{folder} holds no folder of images, one a class; it has {there(folder)}")
    return sorted(names)


def _agreed(folder: Path, found: list[str], classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes that a user names, all folders among them."""
    if len(set(classes)) != len(classes):
        raise ValueError(f"ImageFolder: classes={classes} holds one twice")
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise ValueError(
            f"{folder} has the folder {shown(unknown[0])}, which is none of the {len(classes)} classes given"
        )
    if not found or not any(name in found for name in classes):
        raise ValueError(f"{folder} has none of the classes given; it has {there(folder)}")
    return classes


def _images(folder: Path) -> list[str]:
    """The sorted images of a class."""
    files = []
    for entry in _entries(folder):
        if entry.is_dir():
            raise ValueError(
                f"{folder} is read as a class, and holds the folder {shown(entry.name)}; give ImageFolder "
                f"the folder that holds those of the classes, perhaps {folder}"
            )
        if not _is_image(entry.name):
            raise ValueError(
                f"{folder} holds {shown(entry.name)}, whose name is that of no image; those end in "
                f"{', '.join(sorted(SUFFIXES))}; rename it, or move it away"
            )
        files.append(entry.path)
    if not files:
        raise ValueError(f"{folder} is read as a class, and holds no image; add some, or remove it")
    return sorted(files)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [e for e in entries if not e.name.startswith(".") and e.name not in _OF_THE_SYSTEM]


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES
