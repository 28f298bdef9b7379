"""CIFAR-10 and CIFAR-100 in their binary version: records of labels and pixels."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fluxlike.data.readers.opened import checked_labels, checked_split, filled, opened_in, there
from fluxlike.files.opening import open_regular
from fluxlike.files.printing import shown

__all__ = ["CIFAR10", "CIFAR100", "read_class_names"]

_PIXELS = 3 * 32 * 32
_LONGEST = 2**20
_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"


def CIFAR10(root: str | os.PathLike[str], /, split: str = "train") -> tuple[Tensor, Tensor]:
    """The images and labels of CIFAR-10, from its binary version (``cifar-10-binary.tar.gz``, unpacked).

    Its files are ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, of records of a byte
    for the label and 3072 for the pixels. They are not downloaded. `read_class_names` reads
    ``batches.meta.txt``.

    Args:
        root: the folder of the files, or the one that holds ``cifar-10-batches-bin``.
        split: ``"train"`` or ``"test"``. (default: ``"train"``)

    Returns:
        Images in uint8 of shape (N, 3, 32, 32), red, green and blue; and labels from 0 to 9 in int64 of
        shape (N,). A model takes ``images.float() / 255``.

    Raises:
        FileNotFoundError: the folder or a file is not there, or it is the version for Python.
        ValueError: an unknown split, or a file that is damaged or holds something else.

    Example:
        >>> import fluxlike as fl
        >>> images, labels = fl.data.CIFAR10("cifar-10-batches-bin", "test")  # doctest: +SKIP

    See A. Krizhevsky 2009, "Learning multiple layers of features from tiny images";
    https://www.cs.toronto.edu/~kriz/cifar.html describes the format.
    """
    train = checked_split("CIFAR10", split, ("train", "test")) == "train"
    folder = _folder(Path(root), "cifar-10-batches-bin")
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
    files = [_found(folder, name, "cifar-10-binary.tar.gz") for name in names]
    records = [_records(file, labels=1) for file in files]
    counts = {len(part) for part in records}
    if len(counts) > 1:
        found = ", ".join(f"{file.name} {len(part)}" for file, part in zip(files, records, strict=True))
        raise ValueError(f"the batches in {folder} hold as many images each, found {found}; one is cut off")
    labels = [checked_labels(file, part[:, 0], 10) for file, part in zip(files, records, strict=True)]
    return torch.cat([_images(part, 1) for part in records]), torch.cat(labels)


def CIFAR100(root: str | os.PathLike[str], /, split: str = "train") -> tuple[Tensor, dict[str, Tensor]]:
    """The images and labels of CIFAR-100, from its binary version (``cifar-100-binary.tar.gz``, unpacked).

    Its files are ``train.bin`` and ``test.bin``, of records of a byte for the coarse label, one for the
    fine label, and 3072 for the pixels. They are not downloaded. `read_class_names` reads
    ``fine_label_names.txt`` and ``coarse_label_names.txt``.

    Args:
        root: the folder of the files, or the one that holds ``cifar-100-binary``.
        split: ``"train"`` or ``"test"``. (default: ``"train"``)

    Returns:
        Images in uint8 of shape (N, 3, 32, 32), and a dict of the labels in int64 of shape (N,): ``"fine"``
        from 0 to 99, ``"coarse"`` from 0 to 19.

    Raises:
        FileNotFoundError: as `CIFAR10`.
        ValueError: as `CIFAR10`.

    Example:
        >>> import fluxlike as fl
        >>> images, labels = fl.data.CIFAR100("cifar-100-binary")  # doctest: +SKIP
        >>> data = (images.float() / 255, labels["fine"])  # doctest: +SKIP

    See A. Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """
    name = f"{checked_split('CIFAR100', split, ('train', 'test'))}.bin"
    file = _found(_folder(Path(root), "cifar-100-binary"), name, "cifar-100-binary.tar.gz")
    records = _records(file, labels=2)
    coarse, fine = checked_labels(file, records[:, 0], 20), checked_labels(file, records[:, 1], 100)
    return _images(records, 2), {"coarse": coarse, "fine": fine}


def read_class_names(path: str | os.PathLike[str], /) -> tuple[str, ...]:
    """The names of classes in a text file of one a line, such as CIFAR's.

    Args:
        path: the file, in UTF-8. Blank lines may stand at its end.

    Returns:
        The names, in the file's order: number i is class i.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text, over 1 MiB, empty, or has a blank line or the same name twice.

    Example:
        >>> import os, tempfile, fluxlike as fl
        >>> file = os.path.join(tempfile.mkdtemp(), "batches.meta.txt")
        >>> with open(file, "w") as stream:
        ...     _ = stream.write("airplane\\nautomobile\\n\\n")
        >>> fl.data.read_class_names(file)
        ('airplane', 'automobile')
    """
    with io.BufferedReader(open_regular(path)) as stream:
        data = stream.read(_LONGEST + 1)
    if len(data) > _LONGEST:
        raise ValueError(f"{path} is over {_LONGEST} bytes long; a file of class names has one a line")
    try:
        names = [line.strip() for line in data.decode("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None
    if not names:
        raise ValueError(f"{path} holds no names; write one a line")
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"{path}, line {number}, is blank; write a name of a class on every line")
        if names.index(name) != number - 1:
            raise ValueError(f"{path}, line {number}, has the name {shown(name)} for the second time")
    return tuple(names)


def _folder(root: Path, usual: str) -> Path:
    inner = opened_in(root) / usual
    return inner if inner.is_dir() else root


def _found(folder: Path, name: str, archive: str) -> Path:
    file = folder / name
    if file.is_file():
        return file
    if (folder / name.removesuffix(".bin")).is_file():
        raise FileNotFoundError(
            f"{folder} holds the version for Python, of pickles: to read them is to run what they say. "
            f"Take the binary version, {archive}, from {_HOME}"
        )
    raise FileNotFoundError(f"{folder} has no {name}, which is in {archive}; it has {there(folder)}")


def _records(file: Path, labels: int) -> Tensor:
    """The records of a file, uint8 of shape (N, labels + 3072)."""
    length = labels + _PIXELS
    with open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        if not size or size % length:
            raise ValueError(
                f"{file} has {size} bytes, and is made of records of {length}, {labels} for the labels and "
                f"{_PIXELS} for the pixels: it is cut off, or something else"
            )
        data = np.empty((size // length, length), np.uint8)
        if filled(stream, data.reshape(-1)) != size:
            raise ValueError(f"{file} had {size} bytes when it was opened, and ended before them")
    return torch.from_numpy(data)


def _images(records: Tensor, labels: int) -> Tensor:
    return records[:, labels:].reshape(-1, 3, 32, 32)
