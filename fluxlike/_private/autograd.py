"""The one file that calls autograd's engine directly (a private part of torch).

``torch.autograd.grad`` spends 10 µs on options that are not used here; of a small model's backward
pass that is a fifth. And of a subclass that handles torch functions it runs the whole backward pass below
them, where what a checkpoint computes again would be another thing than before; one that says
``engine_alone = True`` is given to the engine itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["after_backward", "backward_pass", "grad"]

_engine = torch.autograd.Variable._execution_engine


def grad(
    loss: Tensor, inputs: Sequence[Tensor], /, *, retain_graph: bool = False, create_graph: bool = False
) -> Sequence[Tensor | None]:
    """``torch.autograd.grad(loss, inputs, allow_unused=True)`` of a scalar."""
    if type(loss) is not Tensor and not getattr(loss, "engine_alone", False):  # it may have its own backward
        return torch.autograd.grad(
            loss, inputs, allow_unused=True, retain_graph=retain_graph, create_graph=create_graph
        )
    return _engine.run_backward(
        (loss,),
        (torch.ones_like(loss),),
        retain_graph,
        create_graph,
        tuple(inputs),
        allow_unreachable=True,
        accumulate_grad=False,
    )


def after_backward(call: Callable[[], None], /) -> None:
    """Call a function when the backward pass that is running has ended; not at all where none is."""
    if backward_pass() is not None:
        _engine.queue_callback(call)


def backward_pass() -> int | None:
    """The number of the backward pass that is running on this thread; None where none is."""
    number: int = torch._C._current_graph_task_id()
    return None if number == -1 else number
