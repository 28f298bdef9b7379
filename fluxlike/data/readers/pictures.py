"""One image file as a tensor, decoded by Pillow."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.files.opening import open_regular
from fluxlike.optional import optional

__all__ = ["SUFFIXES", "read_image"]

#: What the names of image files end in.
SUFFIXES = frozenset(
    (
        ".bmp",
        ".gif",
        ".jfif",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    )
)

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # none of them runs a program
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # whose greyscale of mode "I" has 16 bits
_ORIENTATION = 0x0112
_FAULTS = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error),
)


def read_image(path: str | os.PathLike[str], /) -> Tensor:
    """The pixels of an image file, the right way up, in red, green and blue.

    BMP, GIF, JPEG, PNG, PPM, TIFF and WebP are read; of several frames, the first. An image is turned as
    its EXIF says. Palettes, CMYK and greyscale become RGB, without colour profiles; greyscale of 16 bits is
    scaled to 8; transparency is dropped, and the colours under it stay.

    Args:
        path: the file.

    Returns:
        uint8 of shape (3, H, W).

    Raises:
        ImportError: Pillow is not installed: ``pip install 'fluxlike[training]'``.
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, cut off, or no image; it has more pixels than
            ``PIL.Image.MAX_IMAGE_PIXELS``, a decompression bomb; or numbers of 32 bits, without a range.

    Example:
        >>> import os, tempfile, fluxlike as fl
        >>> from PIL import Image
        >>> file = os.path.join(tempfile.mkdtemp(), "red.png")
        >>> Image.new("RGB", (4, 2), "red").save(file)
        >>> fl.data.read_image(file).shape
        torch.Size([3, 2, 4])
    """
    pil = optional("PIL.Image", "read_image")
    with io.BufferedReader(open_regular(path)) as stream:
        with _told(path):
            image = pil.open(stream, formats=_FORMATS)
        limit = pil.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise ValueError(_bomb(path, f"it says it is {image.width} × {image.height} pixels"))
        with _told(path):
            image.load()
            turn = image.getexif().get(_ORIENTATION, 1)
            pixels = _rgb(image)
    if pixels is None:
        raise ValueError(
            f"{path} holds one number of 32 bits a pixel (Pillow's mode {image.mode!r}), and not which is "
            "white; save it as an image of 8 or 16 bits"
        )
    for step in _UPRIGHT.get(turn, ()):
        pixels = step(pixels)
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _rgb(image: Any) -> np.ndarray | None:
    """Pixels of uint8 and shape (H, W, 3); None where it is not known which number is white."""
    if image.mode == "F" or (image.mode == "I" and image.format not in _SIXTEEN_BIT_FORMATS):
        return None
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.float32)
        grey = np.rint(wide.clip(0, 65535) / 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode != "RGB":
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.convert("RGB")
    return np.array(image)


def _transposed(pixels: np.ndarray) -> np.ndarray:
    return pixels.swapaxes(0, 1)


# What undoes each value of EXIF's tag Orientation (CIPA DC-008, section 4.6.4).
_UPRIGHT: dict[Any, tuple[Callable[[np.ndarray], np.ndarray], ...]] = {
    2: (np.fliplr,),
    3: (np.fliplr, np.flipud),
    4: (np.flipud,),
    5: (_transposed,),
    6: (_transposed, np.fliplr),
    7: (_transposed, np.fliplr, np.flipud),
    8: (_transposed, np.flipud),
}


@contextmanager
def _told(path: object) -> Iterator[None]:
    """Whatever a decoder raises about a damaged file, as a ValueError that names it."""
    pil = optional("PIL.Image", "read_image")
    try:
        yield
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        raise ValueError(_bomb(path, str(error))) from None
    except pil.UnidentifiedImageError:
        raise ValueError(f"{path} is no {', '.join(_FORMATS)} image, or its start is damaged") from None
    except _FAULTS as error:
        raise ValueError(f"{path} is damaged or cut off: {type(error).__name__}: {error}") from None


def _bomb(path: object, claim: str) -> str:
    return (
        f"{path}: {claim}, taken for a decompression bomb; if it is yours, make it smaller, or set "
        "PIL.Image.MAX_IMAGE_PIXELS"
    )
