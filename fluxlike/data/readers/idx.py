"""IDX, the format of MNIST: one array of numbers a file."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fluxlike.data.readers.opened import checked_labels, checked_split, filled, opened_in, there
from fluxlike.files.opening import open_regular

__all__ = ["MNIST", "read_idx"]

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"
_MOST_AXES = 64
_SPLITS = {"train": "train", "test": "t10k"}


def read_idx(path: str | os.PathLike[str], /) -> Tensor:
    """The array of an IDX file, compressed by gzip or not.

    The format, big-endian: two zero bytes, one byte for the dtype, one for the number of axes, an unsigned
    32-bit length of each axis, and the numbers in C's order.

    Args:
        path: the file.

    Returns:
        A tensor of the file's shape and dtype: uint8, int8, int16, int32, float32 or float64.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no IDX, it is truncated, or longer than its header says; or a compressed
            file that claims more than 64 MiB and 64 times its own size.

    Example:
        >>> import os, tempfile, fluxlike as fl
        >>> file = os.path.join(tempfile.mkdtemp(), "labels-idx1-ubyte")
        >>> with open(file, "wb") as stream:
        ...     _ = stream.write(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        >>> fl.data.read_idx(file)
        tensor([7, 2, 1], dtype=torch.uint8)

    See Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits",
    http://yann.lecun.com/exdb/mnist.
    """
    with io.BufferedReader(open_regular(path)) as stream:
        size = os.fstat(stream.fileno()).st_size
        if stream.peek(2)[:2] != _GZIP:
            return _array(path, stream, size)
        with gzip.GzipFile(fileobj=stream) as unzipped:
            try:
                return _array(path, unzipped, None, allowed=2**26 + 64 * size)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(f"{path} is damaged: it starts as a gzip file, but {error}") from None


def MNIST(root: str | os.PathLike[str], /, split: str = "train") -> tuple[Tensor, Tensor]:
    """The images and labels of MNIST, Fashion-MNIST or any data set in its four files.

    They are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``, each with ``.gz`` or not, and are not downloaded.

    Args:
        root: the folder of the files.
        split: ``"train"`` or ``"test"``. (default: ``"train"``)

    Returns:
        Images in uint8 of shape (N, 1, 28, 28), and labels from 0 to 9 in int64 of shape (N,). A model takes
        ``images.float() / 255``.

    Raises:
        FileNotFoundError: the folder or a file is not there.
        ValueError: an unknown split, or a file that is damaged or holds something else.

    Example:
        >>> import fluxlike as fl
        >>> images, labels = fl.data.MNIST("mnist")  # doctest: +SKIP
        >>> data = fl.DataLoader((images.float() / 255, labels), batch_size=64)  # doctest: +SKIP
    """
    folder = Path(root)
    start = _SPLITS[checked_split("MNIST", split, tuple(_SPLITS))]
    image_file = _found(folder, f"{start}-images-idx3-ubyte")
    label_file = _found(folder, f"{start}-labels-idx1-ubyte")
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != (28, 28):
        raise ValueError(
            f"{image_file} holds {images.dtype} of shape {tuple(images.shape)}, and MNIST's images are uint8 "
            "of shape (N, 28, 28); read_idx reads other arrays"
        )
    if labels.dtype != torch.uint8 or tuple(labels.shape) != (len(images),):
        raise ValueError(
            f"{label_file} holds {labels.dtype} of shape {tuple(labels.shape)}, and the labels of "
            f"{len(images)} images are uint8 of shape ({len(images)},)"
        )
    return images[:, None], checked_labels(label_file, labels, 10)


def _found(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise FileNotFoundError(f"{opened_in(folder)} has no {name}, with .gz or not; it has {there(folder)}")


def _array(path: object, stream: io.BufferedIOBase, size: int | None, allowed: int = 0) -> Tensor:
    """The array of a stream of `size` bytes, or of unknown size and at most `allowed` bytes of numbers."""
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _DTYPES:
        raise ValueError(
            f"{path} is no IDX file: it starts with {start.hex(' ') or 'nothing'}, and one starts with 00 "
            "00, the dtype as one of 08, 09, 0b, 0c, 0d and 0e, and the number of axes"
        )
    dtype, axes = np.dtype(_DTYPES[start[2]]), start[3]
    if not 1 <= axes <= _MOST_AXES:
        raise ValueError(f"{path} says it has {axes} axes; an IDX file has from 1 to {_MOST_AXES}")
    lengths = stream.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise ValueError(
            f"{path} ends in its header: {axes} axes take {4 * axes} bytes, found {len(lengths)}"
        )
    shape = struct.unpack(f">{axes}I", lengths)
    needed = math.prod(shape) * dtype.itemsize
    claim = f"{path} says it is of shape {shape} and {dtype.name}, which takes {needed} bytes"
    if size is not None and needed != size - 4 - 4 * axes:
        raise ValueError(f"{claim}; after the header it has {size - 4 - 4 * axes}")
    if size is None and needed > allowed:
        raise ValueError(f"{claim}, more than a compressed file of its size may; if it is yours, unzip it")
    if math.prod(max(n, 1) for n in shape) >= 2**60:
        raise ValueError(f"{claim}; its axes are too long for any array")
    array = np.empty(math.prod(shape), dtype)
    found = filled(stream, array.view(np.uint8))
    if found < needed:
        raise ValueError(f"{claim}; it ends after {found} of them")
    if stream.read(1):
        raise ValueError(f"{claim}; there is more after them")
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=False)).reshape(shape)
