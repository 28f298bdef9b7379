"""What a transform can't know, a value or a shape of values, and the user's line that asks for it."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = ["INSTEAD_OF_A_SHAPE", "INSTEAD_OF_A_VALUE", "causes", "explain_in_vmap", "users_line"]

#: What to write instead of a shape that depends on values.
INSTEAD_OF_A_SHAPE = (
    "keep the shape: torch.where(mask, x, 0) instead of x[mask], a sum over (mask * x), or topk and sort "
    "with a number that is fixed"
)

#: What to write instead of asking for a value.
INSTEAD_OF_A_VALUE = (
    "use torch.where or fluxlike.cond for a branch, fluxlike.scan for a loop, torch.stack([a, b]) for "
    "torch.tensor([a, b])"
)

_OF_VALUES = ("calling .item() on a Tensor", "in some data-dependent control flow")
_OF_SHAPES = ("operators that can output dynamic shape", "operators that can support dynamic shape")


def explain_in_vmap(error: BaseException, /) -> None:
    """Raise a better error where a line asked for a value of one member, or for a shape by values."""
    if _AT_ONCE in str(error):  # a vmap inside has said so
        return
    for cause in reversed([*causes(error)]):
        said = str(cause)
        if any(words in said for words in _OF_VALUES):
            raise RuntimeError(
                f"{_AT_ONCE}, and this line asks for the value of one (by if, while, float(), int(), "
                f".item(), .tolist() or torch.tensor):\n  {users_line(cause)}{INSTEAD_OF_A_VALUE}; or "
                f"{_ONE_BY_ONE}"
            ) from error
        if any(words in said for words in _OF_SHAPES):
            raise RuntimeError(
                f"{_AT_ONCE}, in tensors of one shape, and the shape of what this line makes depends on the "
                f"values:\n  {users_line(cause)}{INSTEAD_OF_A_SHAPE}; or {_ONE_BY_ONE}"
            ) from error


_AT_ONCE = "vmap computes all members at once"
_ONE_BY_ONE = "call the function for one member after another, in a loop"


def causes(error: BaseException, /) -> Iterator[BaseException]:
    """An error, and those that it was raised from: layers say where in a model they stand."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def users_line(error: BaseException, /) -> str:
    """The innermost line of an error's way that is the user's own."""
    own, torchs = Path(__file__).parents[1], Path(torch.__file__).parent
    line = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if own not in path.parents and torchs not in path.parents and "/optree/" not in frame.filename:
            code = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
            if code or frame.filename != "<string>":  # a function that torch writes
                line = f"{frame.filename}:{frame.lineno}, in {frame.name}:\n    {code}\n"
    return line or "the function itself\n"
