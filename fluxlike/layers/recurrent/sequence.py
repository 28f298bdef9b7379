"""A whole sequence through recurrent layers: by torch's kernel, or by the cells' formulas and `scan`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fluxlike._private import functorch, higher_order, tracing
from fluxlike.layers.lengths import require_inside
from fluxlike.layers.recurrent.autocast import settled
from fluxlike.layers.recurrent.cells import Cell, as_tuple
from fluxlike.layers.recurrent.fused import differentiable
from fluxlike.layers.recurrent.recurrence import over_time
from fluxlike.transforms.engine.motors import derived_again
from fluxlike.trees.structure import flatten

__all__ = ["run"]

States = tuple[Tensor, ...]


def run(
    cells: Sequence[Cell], x: Tensor, state: States, lengths: Tensor | None, bidirectional: bool
) -> tuple[Tensor, States]:
    """The outputs of the last layer, and the last state.

    Args:
        cells: a cell a layer and direction.
        x: (N, L, C).
        state: tensors of shape (cells, N, hidden size).
        lengths: (N,).
        bidirectional: whether every second cell runs backward.
    """
    kernel = _kernel_of(cells)
    if kernel is None or not _serves(kernel, x, lengths):
        return _by_formula(cells, x, state, lengths, bidirectional)
    directions, first = 1 + bidirectional, 1 + len(state)
    settings = len(cells[0].tensors) == 4, len(cells) // directions, bidirectional

    def by_kernel(tensors: Sequence[Tensor]) -> list[Tensor]:
        state = tuple(tensors[1:first])
        y, after = _by_kernel(kernel, tensors[0], state, tensors[first:], lengths, *settings)
        return [y, *after]

    def by_formula(tensors: Sequence[Tensor]) -> list[Tensor]:
        others = _with_tensors(cells, tensors[first:])
        y, after = _by_formula(others, tensors[0], tuple(tensors[1:first]), lengths, bidirectional)
        return [y, *after]

    tensors = [x, *state, *(t for cell in cells for t in cell.tensors)]
    if _has_every_derivative(x):
        y, *after = by_kernel(tensors)
    else:
        y, *after = differentiable(by_kernel, by_formula, tensors)
    return y, tuple(after)


def _has_every_derivative(x: Tensor) -> bool:
    """Whether torch's kernels for the device of an input need no rule: in a trace, it records loops."""
    return x.device.type in ("cpu", "meta") and not higher_order.recording()


def _kernel_of(cells: Sequence[Cell]) -> Callable[..., Any] | None:
    """torch's kernel of a sequence, where all cells have the same."""
    kinds = {(cell.kernels, len(cell.tensors)) for cell in cells}
    (kernels, _), *others = kinds
    return None if others or kernels is None else kernels[1]


def _serves(kernel: Callable[..., Any], x: Tensor, lengths: Tensor | None) -> bool:
    """Whether a kernel can be called here."""
    if functorch.in_forward_mode():
        return False
    if lengths is not None:  # sizes in it depend on them
        return bool(tracing.concrete() and x.shape[0] and not x.is_meta)
    if _is_one_operation(kernel, x):
        return not derived_again()  # its derivative can't be mapped, and its second is slower than a loop's
    return not higher_order.recording()


def _is_one_operation(kernel: Callable[..., Any], x: Tensor) -> bool:
    """Whether a kernel is one operation, oneDNN's: others on the CPU are taken apart, step by step."""
    onednn = torch.backends.mkldnn
    return (
        kernel is torch.lstm
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and onednn.is_available()
        and bool(onednn.enabled)
    )


def _by_kernel(
    kernel: Callable[..., Any],
    x: Tensor,
    state: States,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    biases: bool,
    layers: int,
    bidirectional: bool,
) -> tuple[Tensor, States]:
    train = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *state, *weights))
    settings = biases, layers, 0.0, train, bidirectional
    with _quiet() if x.is_cuda else nullcontext(), torch.set_grad_enabled(train):
        if lengths is None:
            hx = [s.contiguous() for s in state]
            y, *after = kernel(x, hx if len(hx) > 1 else hx[0], list(weights), *settings, True)
            return settled(y, tuple(after), state)
        counts = lengths.cpu()
        require_inside("the kernel", counts, 1, x.shape[1])  # beyond it, packing reads what is not there
        packed = pack_padded_sequence(x, counts, batch_first=True, enforce_sorted=False)
        data, sizes, order, back = packed
        assert order is not None
        assert back is not None
        hx = [s.index_select(1, order) for s in state]
        y, *after = kernel(data, sizes, hx if len(hx) > 1 else hx[0], list(weights), *settings)
    padded, _ = pad_packed_sequence(
        PackedSequence(y, sizes, order, back), batch_first=True, total_length=x.shape[1]
    )
    return settled(padded, tuple(s.index_select(1, back) for s in after), state)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out cuDNN's advice to keep the weights of a module in one piece: here they are values."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
        yield


def _by_formula(
    cells: Sequence[Cell], x: Tensor, state: States, lengths: Tensor | None, bidirectional: bool
) -> tuple[Tensor, States]:
    last: list[States] = []
    for i in range(0, len(cells), 1 + bidirectional):
        outputs = []
        for k in range(i, i + 1 + bidirectional):
            start = tuple(s[k] for s in state)
            gates = cells[k].project(x).transpose(0, 1)
            y, after = over_time(
                cells[k].step, start if len(start) > 1 else start[0], gates, lengths, reverse=k > i
            )
            outputs.append(y)
            last.append(as_tuple(after))
        x = (torch.cat(outputs, -1) if bidirectional else outputs[0]).transpose(0, 1)
    return settled(x, tuple(torch.stack(parts) for parts in zip(*last, strict=True)), state)


def _with_tensors(cells: Sequence[Cell], tensors: Sequence[Tensor]) -> Sequence[Cell]:
    """The cells with other tensors."""
    leaves, treedef = flatten(tuple(cells))
    new = iter(tensors)
    return cast(
        Sequence[Cell], treedef.unflatten([next(new) if isinstance(x, Tensor) else x for x in leaves])
    )
