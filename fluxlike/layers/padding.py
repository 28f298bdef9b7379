"""Padding of convolutions and pools: SamePad, and pads that differ by end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from fluxlike.layers.printing import sizes_text
from fluxlike.layers.sizes import whole

__all__ = [
    "Pad", "Pads", "SamePad", "as_pads", "explain_pads", "explain_window", "pad_text", "pads_by_axis",
    "pads_for_torch", "split_pads",
]  # fmt: skip


class SamePad:
    """Padding that keeps the size: an output of ⌈n / stride⌉ for an input of n.

    ("Half padding" in Dumoulin & Visin 2016, arXiv 1603.07285.) A window that covers k entries of an axis
    is padded by k - 1 in total, whatever the input; where that is odd, the larger pad comes first. A
    `ConvTranspose` is padded so that its output is n · stride.

    Example:
        >>> import torch, fluxlike as fl
        >>> conv = fl.Conv((5, 5), 1, 1, stride=2, pad=fl.SamePad())
        >>> conv(torch.zeros(1, 1, 100, 100)).shape
        torch.Size([1, 1, 50, 50])
        >>> fl.MaxPool((2,), stride=1, pad=fl.SamePad())
        MaxPool((2,), stride=1, pad=((1, 0),))
    """

    def __repr__(self) -> str:
        return "SamePad()"


Pad: TypeAlias = int | Sequence[int | Sequence[int]] | SamePad
Pads: TypeAlias = tuple[int, ...] | tuple[tuple[int, int], ...]


def as_pads(pad: Pad, same: Sequence[int]) -> Pads:
    """One number for each axis where all axes are padded alike at both ends, else pairs (before, after).

    Args:
        pad: as a user writes it.
        same: what `SamePad` adds to each axis.

    Raises:
        ValueError: another number of them, or a negative one.
    """
    n = len(same)
    if isinstance(pad, SamePad):
        pairs = tuple((total - total // 2, total // 2) for total in same)
    elif isinstance(pad, Sequence):
        pairs = _pairs(pad, n)
    elif isinstance(pad, type):
        raise ValueError(f"pad={pad.__name__}: write {pad.__name__}()")
    else:
        pairs = tuple((number, number) for number in whole("pad", pad, (pad,) * n, 0))
    return tuple(lo for lo, _ in pairs) if all(lo == hi for lo, hi in pairs) else pairs


def _pairs(pad: Sequence[int | Sequence[int]], n: int) -> tuple[tuple[int, int], ...]:
    """Numbers an axis, pairs an axis, or Flux's 2n numbers, as pairs."""
    entries = tuple(pad)
    if len(entries) == 2 * n and not any(isinstance(entry, Sequence) for entry in entries):
        entries = tuple(zip(entries[::2], entries[1::2], strict=True))  # type: ignore[arg-type]
    ends = [tuple(entry) if isinstance(entry, Sequence) else (entry, entry) for entry in entries]
    if len(ends) != n or any(len(both) != 2 for both in ends):
        raise ValueError(
            f"pad={pad!r}: write one number, or {n} of them, one an axis; where the ends differ, "
            f"{n} pairs (before, after), or SamePad()"
        )
    return tuple((lo, hi) for lo, hi in (whole("pad", pad, both, 0) for both in ends))


def pads_by_axis(pads: Pads) -> tuple[tuple[int, int], ...]:
    """(before, after) for each axis."""
    return tuple(p if isinstance(p, tuple) else (p, p) for p in pads)


def pads_for_torch(pads: Pads) -> tuple[int, ...]:
    """The numbers that `torch.nn.functional.pad` takes, the last axis first; none where nothing is padded."""
    numbers = tuple(number for both in reversed(pads_by_axis(pads)) for number in both)
    return numbers if any(numbers) else ()


def split_pads(pads: Pads, before: bool = False) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What torch's kernels pad by themselves, and what is padded before, as `pads_for_torch` gives it."""
    even = tuple(p for p in pads if not isinstance(p, tuple))
    if before or len(even) < len(pads):
        return (0,) * len(pads), pads_for_torch(pads)
    return even, ()


def pad_text(pads: Pads) -> str:
    """The pads as one more argument in print, nothing for none."""
    if any(isinstance(p, tuple) for p in pads):
        return f", pad={pads}"
    return sizes_text("pad", pads, (0,) * len(pads))  # type: ignore[arg-type]


def explain_window(name: str, part: str, x: Tensor, reach: Sequence[int], pads: Pads) -> None:
    """Raise an error where the padded input is smaller than what the window covers.

    Raises:
        ValueError: it says both sizes.
    """
    sizes = tuple(n + lo + hi for n, (lo, hi) in zip(x.shape[2:], pads_by_axis(pads), strict=True))
    if any(size < r for size, r in zip(sizes, reach, strict=True)):
        raise ValueError(
            f"the {part} of {name} covers {tuple(reach)}, its input with the pads is only {sizes}; write "
            f"a smaller {part}, or pad=SamePad()"
        )


def explain_pads(name: str, x: Tensor, pads: Pads, mode: str) -> None:
    """Raise an error where the input is too small to be padded by what it holds itself.

    Raises:
        ValueError: it says both sizes.
    """
    most = {"reflect": -1, "circular": 0}.get(mode)
    if most is None:
        return
    if any(max(both) > n + most for n, both in zip(x.shape[2:], pads_by_axis(pads), strict=True)):
        bound = "less than" if most else "at most"
        raise ValueError(
            f"{name} pads by {tuple(pads)} with padding_mode={mode!r}, which takes pads of {bound} the "
            f"input's size, found {tuple(x.shape[2:])}; write a smaller pad, or padding_mode='replicate'"
        )
