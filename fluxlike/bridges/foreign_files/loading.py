"""From what a file of another framework holds to a model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from fluxlike.bridges.foreign_files.faults import FileFault, printed
from fluxlike.layers.layouts import load_foreign_state
from fluxlike.placement.foreign.checkpoint import is_array
from fluxlike.trees.structure import flatten

__all__ = ["load_state"]

_PRECISIONS = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}


def load_state(path: str | os.PathLike[str], like: Any, state: Any, src: str, /, **options: Any) -> Any:
    """`load_foreign_state`, whose errors name the file, and print its names escaped.

    Raises:
        ValueError: the state does not fit the model, or is none.
    """
    if not isinstance(state, (dict, list, tuple)) and not is_array(state):
        raise FileFault(f"{os.fspath(path)} holds a {type(state).__name__}, and no state of a model")
    try:
        return load_foreign_state(like, state, src, **options)
    except ValueError as error:
        text = "\n".join([f"{os.fspath(path)}: {error}", *_advice(like, state)])
    if any("\n" in name for name in _names(state)):  # which would make lines of their own
        raise FileFault(text)
    raise ValueError("\n".join(map(printed, text.split("\n"))))


def _names(state: Any) -> Iterator[str]:
    if isinstance(state, Mapping):
        yield from map(str, state)
    if isinstance(state, (Mapping, list, tuple)):
        for inner in state.values() if isinstance(state, Mapping) else state:
            yield from _names(inner)


def _advice(like: Any, state: Any) -> Iterator[str]:
    """What to write if the numbers of the file are of another precision than those of the model."""
    theirs = {str(x.dtype).removeprefix("torch.") for x in _arrays(state) if x.ndim} & _PRECISIONS.keys()
    leaves = [x for x in flatten(like)[0] if isinstance(x, Tensor) and x.ndim]
    ours = {str(x.dtype).removeprefix("torch.") for x in leaves} & _PRECISIONS.keys()
    if len(theirs) == len(ours) == 1 and theirs != ours:
        (file,), (model,) = theirs, ours
        to, back = _PRECISIONS[file], _PRECISIONS[model]
        yield (
            f"the file is of {file}, the model of {model}: give like=fl.{to}(model), and convert what you "
            f"get by fl.{back}, if you want {model}"
        )


def _arrays(state: Any) -> Iterator[Any]:
    if isinstance(state, (Mapping, list, tuple)):
        for inner in state.values() if isinstance(state, Mapping) else state:
            yield from _arrays(inner)
    elif is_array(state):
        yield state
