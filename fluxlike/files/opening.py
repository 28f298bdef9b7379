"""Files are opened if they are files, and told apart by their first bytes."""

from __future__ import annotations

import io
import os
import stat

__all__ = ["SAFETENSORS", "START", "TORCH", "kind_of", "open_regular"]

SAFETENSORS = "a safetensors file"
TORCH = "a file of torch.save"

#: How many bytes `kind_of` looks at.
START = 32

_ARCHIVE = b"PK\x03\x04"
_LEGACY = (
    b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # in a pickle, the number that torch.save wrote before archives
)
_HDF5 = b"\x89HDF\r\n\x1a\n"


def kind_of(start: bytes | bytearray, /) -> str | None:
    """What a file is by its first bytes, if that is known.

    The formats: https://huggingface.co/docs/safetensors, torch.serialization, the HDF5 specification.
    """
    if start[:4] == _ARCHIVE or (start[:1] == b"\x80" and _LEGACY in start[:START]):
        return TORCH
    if start[:8] == _HDF5:
        return "an HDF5 file"
    return SAFETENSORS if start[8:9] == b"{" else None


def open_regular(path: str | os.PathLike[str], /) -> io.FileIO:
    """An ordinary file, open for reading: opening a pipe would wait, and a device has no end.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, a pipe or a device.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"the path of a file is a str or a Path, found a {type(path).__name__}")
    try:
        file = io.FileIO(path, opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0)))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise ValueError(
            f"{path} is a folder; give the file in it, or read a checkpoint of many ranks by "
            "fluxlike.distributed.load"
        ) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path} is a pipe or a device, not a file")
    return file
