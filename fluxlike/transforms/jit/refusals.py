"""What a compiled function may not do, said in its user's terms: ask for values, write, leak."""

from __future__ import annotations

import traceback
import types
from collections.abc import Sequence
from typing import Any, NoReturn

import optree

from fluxlike.transforms.asked_values import (
    INSTEAD_OF_A_SHAPE,
    INSTEAD_OF_A_VALUE,
    causes,
    users_line,
)
from fluxlike.transforms.jit.call import Signature
from fluxlike.transforms.jit.leaks import holds_stand_in
from fluxlike.trees.functor import NAMESPACE
from fluxlike.trees.structure import structure_of

__all__ = ["explain", "require_attributes_unchanged", "require_no_writes", "require_result"]

_OF_PYTHON = (
    "() is not supported for tensor subclasses",
    "FakeTensor.__format__",
    "its data is not allocated yet",
)


def explain(error: BaseException) -> None:
    """Raise a better error where a line asked for what is not known while a function is traced."""
    from fluxlike._private.compiler.trace import NEEDS_A_SHAPE, NEEDS_A_VALUE

    for cause in causes(error):
        if isinstance(cause, NEEDS_A_SHAPE):
            raise RuntimeError(
                "jit can't know the values of a tensor while it traces, and the shape of what this line "
                f"makes depends on them:\n  {users_line(cause)}{INSTEAD_OF_A_SHAPE}"
            ) from error
        if isinstance(cause, NEEDS_A_VALUE) or _is_of_python(cause):
            raise RuntimeError(
                "jit can't know the value of a tensor while it traces, and this line asks for it (by if, "
                "while, float(), int(), .item(), .tolist(), .numpy() or torch.tensor):\n"
                f"  {users_line(cause)}{INSTEAD_OF_A_VALUE}, keep numbers as tensors (float arguments are "
                "0-d tensors here), or name an argument that never changes in jit(…, static=…)"
                f"{_checks_of_distributions(cause)}"
            ) from error


def _is_of_python(error: BaseException) -> bool:
    """Whether a tensor without a value was to become an array of numpy, text, or part of another."""
    said = str(error)
    return any(words in said for words in _OF_PYTHON)


def _checks_of_distributions(error: BaseException) -> str:
    asks = any("/distributions/" in frame.filename for frame in traceback.extract_tb(error.__traceback__))
    return "; torch.distributions check values unless given validate_args=False" if asks else ""


def require_no_writes(graph: Any, signature: Signature) -> None:
    """Raise where the function writes to an argument, or to a tensor that it closes over."""
    from fluxlike._private.compiler.memory import written_inputs

    written = written_inputs(graph.module)
    captured = len(graph.inputs) - len(graph.captured)
    for k, operation in sorted(written.items()):
        if k >= captured:
            shape = tuple(graph.inputs[k].shape)
            raise ValueError(
                f"a tensor of shape {shape} that the compiled function closes over is changed in place by "
                f"{operation}; pass it as an argument and return the new one"
            )
        raise ValueError(
            f"the argument {signature.place(k)} is changed in place by {operation} in the compiled function; "
            "compute a new tensor instead (w = w + 1, not w += 1) and return it, or give its memory away by "
            "jit(…, donate=…)"
        )


def require_attributes_unchanged(signature: Signature, tree: Any, leaves: Sequence[Any]) -> None:
    """Raise where the function set an attribute or an entry of an argument.

    Args:
        signature: that of the call.
        tree: the arguments that the function got.
        leaves: theirs, before the call.
    """
    after, treedef = optree.tree_flatten(tree, none_is_leaf=True, namespace=NAMESPACE)
    if treedef == signature.treedef and all(a is b for a, b in zip(after, leaves, strict=True)):
        return
    before, now = signature.paths, list(map(signature.label, structure_of(treedef).paths))
    changed = [p for p in now if p not in before]
    if now == before:
        changed = [p for p, a, b in zip(now, after, leaves, strict=True) if a is not b]
    place = changed[0] if changed else "an attribute"
    raise ValueError(
        f"{place} of the arguments was set by the function that is compiled, on a copy, so it would be "
        "lost; return what is new, and move buffers by fluxlike.assign"
    )


def require_result(leaves: Sequence[Any], paths: Sequence[str]) -> None:
    """Raise where the function returns a function that holds what has no value outside of the trace."""
    for path, x in zip(paths, leaves, strict=True):
        if isinstance(x, types.FunctionType) and holds_stand_in(x):
            _refuse_function(path, x)


def _refuse_function(path: str, x: Any) -> NoReturn:
    raise TypeError(
        f"{path or 'the result'} of what the compiled function returned is the function {x.__qualname__}, "
        "which closes over tensors computed inside; return the tensors, and make the function outside"
    )
