"""What the readers share: folders, splits, labels, and bytes read to the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.files.printing import shown

__all__ = ["checked_labels", "checked_split", "filled", "opened_in", "there"]

_FEW = 8


def opened_in(folder: Path, /) -> Path:
    """A folder that is there.

    Raises:
        FileNotFoundError: it is not.
        ValueError: it is a file.
    """
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the folder of the data set")
    return folder


def there(folder: Path, /) -> str:
    """What is in a folder, in print."""
    names = sorted(entry.name for entry in folder.iterdir())
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return (", ".join(map(shown, names[:_FEW])) or "nothing") + more


def filled(stream: Any, room: np.ndarray, /) -> int:
    """How many bytes of `room`, flat and of uint8, a stream has filled: all, or those that there were."""
    count = 0
    while count < len(room):
        more = stream.readinto(room[count:])
        if not more:
            break
        count += more
    return count


def checked_split(reader: str, split: str, known: tuple[str, ...], /) -> str:
    """The name of a part of a data set.

    Raises:
        ValueError: there is none of this name.
    """
    if split not in known:
        raise ValueError(f"{reader} has no split {split!r}; write {' or '.join(map(repr, known))}")
    return split


def checked_labels(file: object, labels: Tensor, classes: int, /) -> Tensor:
    """Labels of uint8, in int64.

    Raises:
        ValueError: one is not below `classes`.
    """
    wrong = torch.nonzero(labels >= classes)
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"{file} gives example {first} the label {int(labels[first])}; there are {classes} classes"
        )
    return labels.long()
