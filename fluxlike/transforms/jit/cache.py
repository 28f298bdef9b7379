"""The traces of one function: finding that of a call, and saying what each depends on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from fluxlike.transforms.jit.arguments import Static
from fluxlike.transforms.jit.call import Signature
from fluxlike.transforms.jit.trace import Taken, Trace
from fluxlike.transforms.retraced import Retraced

__all__ = ["Cache"]


class Cache:
    """The traces of one function.

    Args:
        name: what the function is called in warnings.
        sizes: what to do where the sizes of an input change.

    Attributes:
        traces: the traces, the newest first.
    """

    def __init__(self, name: str, sizes: str) -> None:
        self.traces: tuple[Trace, ...] = ()
        self._sizes = sizes
        self._retraced = Retraced(name, stacklevel=5)

    def find(
        self, leaves: Sequence[Any], treedef: Any, settings: tuple[Any, ...]
    ) -> tuple[Trace, Taken] | None:
        """The trace for a call, and its inputs."""
        for trace in self.traces:
            taken = trace.inputs(leaves, treedef, settings)
            if taken is not None:
                return trace, taken
        return None

    def signatures(self) -> list[Signature]:
        """Those of all traces."""
        return [trace.signature for trace in self.traces]

    def add(self, trace: Trace) -> None:
        """Keep a new trace."""
        self.traces = (trace, *self.traces)
        self._retraced.note(trace.signature.treedef, lambda: _described(trace, self._sizes))


def _described(trace: Trace, sizes: str) -> Iterator[tuple[str, str, str]]:
    """What a trace depends on: the place, what stands there, what to do if that changes."""
    signature = trace.signature
    for i, (path, what) in enumerate(zip(signature.paths, signature.described, strict=True)):
        hint = sizes if i in signature.input_at else _hint(signature.kind(i))
        yield f"the argument {path}", what, hint
    for s in trace.settings:
        if isinstance(s, Static):
            hint = "leave it out of static=, or hold it as a tensor"
            yield f"the static argument {s.name!r}", repr(s.value), hint


def _hint(kind: type) -> str:
    """What to do about a constant of a class that changes."""
    if kind is float:
        return "declare it by functor(scalars=…), or hold it as a 0-d tensor"
    if kind in (int, bool):
        return "hold it as a tensor, such as torch.tensor(3)"
    if kind is str:
        return "each string is compiled anew, so pass few different ones"
    if issubclass(kind, Tensor):
        return "dense tensors are inputs, others are static"
    return "hold the same object from call to call; functions made anew at each call are never equal"
