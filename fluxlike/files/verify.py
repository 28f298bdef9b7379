"""Whether a file is whole, without a tree to compare it with."""

from __future__ import annotations

import os

from fluxlike.files.reader import TensorFile
from fluxlike.files.tensors import described

__all__ = ["verify"]


def verify(path: str | os.PathLike[str], /) -> None:
    """Read a file that `save` wrote, one tensor at a time, and compare every checksum.

    Raises:
        ValueError: the file is truncated, damaged or was not written by `save`.
        FileNotFoundError: there is no such file.

    Example:
        >>> import os, tempfile, torch, fluxlike as fl
        >>> from fluxlike.files.verify import verify
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, "weights.safetensors")
        ...     fl.save(file, {"w": torch.ones(2)})
        ...     verify(file)
    """
    with TensorFile(path) as file:
        for name, checksum in described(path, file).checksums.items():
            file.read(name, checksum)
