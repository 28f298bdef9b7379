"""The one file that hears the operations and collectives of one rank (private parts of torch)."""

from __future__ import annotations

from typing import Any

import torch
from torch._C._distributed_c10d import ProcessGroup, _resolve_process_group
from torch._subclasses.fake_tensor import FakeTensor

from fluxlike._private.autograd import backward_pass
from fluxlike._private.dispatch import TorchDispatchMode

__all__ = ["Heard", "WAITS", "group_of", "in_backward"]

#: Operations that return their argument once a collective has filled it; on fake tensors, a new one.
WAITS = (torch.ops._c10d_functional.wait_tensor.default,)

_PLAIN = (torch.Tensor, torch.nn.Parameter, FakeTensor)


class Heard(TorchDispatchMode):
    """A mode that hears each operation on plain tensors; a DTensor has made them of its own operations."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(t not in _PLAIN for t in types):
            return NotImplemented
        kwargs = kwargs or {}
        self.before(func, args, kwargs)
        out = self.run_operation(func, args, kwargs)
        self.after(func, args, kwargs, out)
        return out

    def run_operation(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """Run it."""
        return operation(*args, **kwargs)

    def before(self, operation: Any, args: Any, kwargs: Any) -> None:
        """An operation is about to run."""

    def after(self, operation: Any, args: Any, kwargs: Any, out: Any) -> None:
        """An operation ran."""


def in_backward() -> bool:
    """Whether autograd's engine runs, in this thread."""
    return backward_pass() is not None


def group_of(x: Any, /) -> Any:
    """The process group that an operation was given: itself, boxed, or by its name."""
    if isinstance(x, str):
        return _resolve_process_group(x)  # type: ignore[arg-type]
    return x if isinstance(x, ProcessGroup) else ProcessGroup.unbox(x)
