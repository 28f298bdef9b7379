"""The one file that tells torch.compile what to do with functions that it can't follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["become_operation", "run_while_compiling"]

F = TypeVar("F", bound=Callable[..., Any])


def run_while_compiling(f: F, /) -> F:
    """Let a function be called while torch.compile traces, its result a constant of what is compiled.

    It is what `torch.compiler.assume_constant_result` does, which loads the compiler.
    """
    f._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return f


def become_operation(f: Callable[..., Any], /) -> None:
    """Let torch.compile take a function of tensors as one operation, and trace what it does on tensors."""
    torch.compiler.allow_in_graph(f)
