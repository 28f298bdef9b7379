"""Columns of a table: a part of each, packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.learning.metrics.host import host_numbers

__all__ = ["ABSENT", "Cells", "column_from", "column_state", "packed", "unpacked"]

#: What a row without the column has there, inside a table.
ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "absent"})()

#: Cells of some rows: on a device, packed in memory, or one by one.
Cells = Tensor | np.ndarray | list

_LARGEST = 2**63 - 1


def packed(cells: list[Any], /) -> Cells:
    """The same cells in less memory, with nothing read from a device."""
    first = cells[0]
    if isinstance(first, Tensor):
        dtype, device = first.dtype, first.device
        if all(isinstance(c, Tensor) and c.dtype is dtype and c.device == device for c in cells):
            return torch.stack(cells)
        return cells
    if type(first) is float and all(type(c) is float for c in cells):
        return np.array(cells, dtype=np.float64)
    if type(first) is int and all(type(c) is int and abs(c) <= _LARGEST for c in cells):
        return np.array(cells, dtype=np.int64)
    return cells


def unpacked(cells: Cells, /) -> list[Any]:
    """The same cells as numbers and strings of Python, with `ABSENT` among them."""
    if not isinstance(cells, list):
        return cells.tolist()
    places = [i for i, cell in enumerate(cells) if isinstance(cell, Tensor)]
    found = list(cells)
    for place, number in zip(places, host_numbers([cells[i] for i in places]), strict=True):
        found[place] = number
    return found


def column_state(cells: Sequence[Any], /) -> dict[str, Any]:
    """A column as tensors and plain values: which rows have it, if not all, and what is there."""
    at = [row for row, cell in enumerate(cells) if cell is not ABSENT]
    here = [cells[row] for row in at]
    state: dict[str, Any] = {}
    if len(here) < len(cells):
        state["rows"] = torch.tensor(at, dtype=torch.int64)
    compact = packed(here)
    if isinstance(compact, np.ndarray):
        state["numbers"] = torch.from_numpy(compact)
    elif all(type(cell) is str for cell in here):
        words = {word: code for code, word in enumerate(dict.fromkeys(here))}
        state["words"] = list(words)
        state["codes"] = torch.tensor([words[cell] for cell in here], dtype=torch.int64)
    else:
        state["cells"] = here
    return state


def column_from(state: Mapping[str, Any], length: int, /) -> list[Any]:
    """The column that gave this state."""
    if "numbers" in state:
        here = state["numbers"].tolist()
    elif "words" in state:
        here = [state["words"][code] for code in state["codes"].tolist()]
    else:
        here = list(state["cells"])
    if "rows" not in state:
        return here
    found = [ABSENT] * length
    for row, cell in zip(state["rows"].tolist(), here, strict=True):
        found[row] = cell
    return found
