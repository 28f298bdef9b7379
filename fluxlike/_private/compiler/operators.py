"""Operators that graphs are written with, and what Inductor makes of them."""

from __future__ import annotations

from types import NoneType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch._inductor import ir
from torch._inductor.graph import GraphLowering
from torch._inductor.lowering import clone, permute, register_lowering
from torch._inductor.virtualized import V

__all__ = ["matmul", "realize", "settle"]

_library = torch.library.Library("fluxlike", "DEF")
_library.define("realize(Tensor x) -> Tensor")
_library.define("settle(Tensor x) -> Tensor")
_library.define("matmul(Tensor a, Tensor b, Tensor? bias) -> Tensor")


@torch.library.impl(_library, "realize", "CompositeExplicitAutograd")
def _realize(x: Tensor) -> Tensor:
    return x.clone()


@torch.library.impl(_library, "settle", "CompositeExplicitAutograd")
def _settle(x: Tensor) -> Tensor:
    return x.clone()


@torch.library.impl(_library, "matmul", "CompositeExplicitAutograd")
def _matmul(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


def _fake_realize(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _fake_matmul(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[1]))


torch.library.register_fake("fluxlike::realize", _fake_realize)
torch.library.register_fake("fluxlike::settle", _fake_realize)
torch.library.register_fake("fluxlike::matmul", _fake_matmul)


#: The tensor itself, kept in memory rather than computed anew by each kernel that reads it.
realize = torch.ops.fluxlike.realize.default

#: A result: the tensor itself, or a copy where it lies in the memory of an input or of another result. What
#: looks for operations that do nothing can't see through it.
settle = torch.ops.fluxlike.settle.default

#: ``a @ b + bias`` by oneDNN instead of the BLAS that torch was built with.
matmul = torch.ops.fluxlike.matmul.default


@register_lowering(realize, type_promotion_kind=None)
def _lower_realize(x: ir.TensorBox) -> ir.TensorBox:
    x.realize()
    return x


_results: WeakKeyDictionary[GraphLowering, list[Any]] = WeakKeyDictionary()  # their memory


@register_lowering(settle, type_promotion_kind=None)
def _lower_settle(x: ir.TensorBox) -> ir.TensorBox:
    inside: Any = getattr(x, "data", None)
    while isinstance(inside, ir.BaseView):
        inside = inside.data
        inside = inside.data if isinstance(inside, ir.TensorBox) else inside
    given = _results.setdefault(V.graph, [])
    lies = getattr(inside, "data", None)  # None for a number in the code
    if isinstance(lies, (ir.InputBuffer, NoneType)) or any(inside is other for other in given):
        x = clone(x)
        x.realize()
        inside = x.data
    given.append(inside)
    return x


@register_lowering(matmul, type_promotion_kind=None)
def _lower_matmul(a: ir.TensorBox, b: ir.TensorBox, bias: ir.TensorBox | None) -> ir.TensorBox:
    kernel = torch.ops.mkldnn._linear_pointwise.default
    call = ir.FallbackKernel.create(kernel, a, permute(b, [1, 0]), bias, "none", [], "")
    return ir.TensorBox.create(call)
