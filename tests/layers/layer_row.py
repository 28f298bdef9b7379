"""What one row of the table of layers says: `rows_*.py` hold the rows, `test_layer_table.py` the promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fluxlike as fl

Make = Callable[[], Any]


def floats(*shape: int) -> Callable[[], Tensor]:
    """An input without equal entries, so that no maximum is a tie."""

    def make() -> Tensor:
        x = torch.randn(shape, dtype=torch.float64)
        return x + torch.arange(x.numel(), dtype=torch.float64).reshape(shape) * 1e-6

    return make


def indices(*shape: int, below: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(below, shape)


def together(*inputs: Callable[[], Any]) -> Callable[[], tuple[Any, ...]]:
    """Several inputs of one call."""
    return lambda: tuple(make() for make in inputs)


def call(layer: Any, *inputs: Any) -> Any:
    return layer(*inputs)


def in_order(tensors: list[Tensor]) -> list[Tensor]:
    return tensors


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        name: the row's name in the tests.
        make: makes our layer, in float32.
        twin: makes the reference: torch's module of the same meaning, or a small module written in plain
            torch where torch has none. Its floating state and its parameters stand in the order of our
            tensors, or `order` puts them into it.
        input: makes the input in float64 (or integers), or a tuple of inputs. The first axis of each tensor
            is the batch.
        text: what `repr` prints.
        refused: shapes of a single input that are an error, which `wanted` matches; {} is the found shape.
        draws: whether train mode draws at random; the twin must then draw the same numbers from torch's
            generator.
        lone_row_trains: whether a batch of one works in train mode.
        call: how our layer is called, and what of its output (a tensor, or a tuple of tensors whose first
            axis is the batch) is compared.
        call_twin: the same of the twin.
        order: puts a list of the twin's tensors in the order of ours.
        tensors: draws our tensors anew from their shapes. (default: uniform in 0.5 to 1.5, positive as
            variances must be)
        half: the largest error in 16 bits, in spacings of the dtype at 1 relative to the largest output.
        empty: whether a batch of none gives an output of none.
        not_a_tensor: whether a string is refused by name.
        detached: whether train mode computes with numbers that depend on the parameters and that gradients
            take as constants.
        autocast: whether it gives under `jit` and autocast the dtypes that it gives without `jit`.
    """

    name: str
    make: Make
    twin: Callable[[], nn.Module]
    input: Callable[[], Any]
    text: str
    refused: tuple[tuple[int, ...], ...] = ()
    wanted: str = ""
    draws: bool = False
    lone_row_trains: bool = True
    call: Callable[..., Any] = call
    call_twin: Callable[..., Any] = call
    order: Callable[[list[Tensor]], list[Tensor]] = in_order
    tensors: Callable[[Any], Any] | None = None
    half: float = 8
    empty: bool = True
    not_a_tensor: bool = True
    detached: bool = False
    autocast: bool = True

    def inputs(self) -> tuple[Any, ...]:
        """The inputs as a tuple."""
        x = self.input()
        return x if isinstance(x, tuple) else (x,)

    def layer(self) -> Any:
        """Our layer in float64 with tensors drawn anew."""
        layer = fl.f64(self.make())
        return self.tensors(layer) if self.tensors else fl.fmap(_anew, layer)

    def run(self, layer: Any, *inputs: Any) -> tuple[Tensor, ...]:
        """Our outputs, as a tuple."""
        y = self.call(layer, *inputs)
        return y if isinstance(y, tuple) else (y,)

    def run_twin(self, twin: nn.Module, *inputs: Any) -> tuple[Tensor, ...]:
        """The twin's outputs, as a tuple."""
        y = self.call_twin(twin, *inputs)
        return y if isinstance(y, tuple) else (y,)


def _anew(t: Tensor) -> Tensor:
    return 0.5 + torch.rand(t.shape, dtype=torch.float64) if t.is_floating_point() else t


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x
