"""`summary`: the table of a model's tensors and, for an example of the input, of its layers' outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fluxlike.aligned import aligned
from fluxlike.inspect.shapes import Shapes
from fluxlike.layers.auto import waiting
from fluxlike.trees.fmap import fleaves
from fluxlike.trees.functor import leaf, spec_of
from fluxlike.trees.html import tree_html
from fluxlike.trees.paths import children, is_node
from fluxlike.trees.show import number, printed, prints_arguments, size_text, totals, value_text
from fluxlike.trees.structure import flatten, structure_of
from fluxlike.trees.trainables import parameters

__all__ = ["LayerRow", "Summary", "TensorRow", "summary"]


class TensorRow(NamedTuple):
    """One tensor of a model.

    Attributes:
        path: where it stands.
        shape: its shape.
        dtype: its dtype.
        numel: how many numbers it holds.
        kind: ``"parameter"``, ``"buffer"`` or ``"tied to"`` and the path where it stands first.
    """

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    numel: int
    kind: str


class LayerRow(NamedTuple):
    """One layer of a model; a tied tensor is counted in the layer that holds it first.

    Attributes:
        path: where it stands.
        layer: its class and arguments, or the name of a function.
        output: the shape of its output, of several calls each; ``"-"`` where it was not called.
        parameters: how many trained numbers it holds.
        non_trainable: how many others.
        bytes: of both.
        tied: how many numbers that are counted further up.
    """

    path: str
    layer: str
    output: str
    parameters: int
    non_trainable: int
    bytes: int
    tied: int


def summary(model: Any, /, *inputs: Any, dtype: torch.dtype | None = None, **named: Any) -> Summary:
    """What a model holds, tensor by tensor, and what its layers return for an example of the input.

    Args:
        model: any tree; where there are inputs, a model that can be called. It may be on any device,
            the meta device too.
        inputs: what the model is called with: tensors, shapes such as ``(32, 3, 28, 28)`` in their place,
            or trees of these. The model runs on the meta device, without memory or numbers, in the mode
            of the scope: test mode, unless ``with mode("train")`` or a gradient surrounds the call.
        dtype: of the inputs given by their shape, as in `outputsize`.
        named: inputs by name, in the same way.

    Returns:
        An object that prints as tables: with inputs, one of the layers (path, output shape, parameters,
        other numbers, bytes); always one of the tensors (path, shape, dtype, how many numbers, which are
        tied), and the totals. A tied tensor is counted once. In a notebook, a tree that folds. Its
        ``tensors`` and ``layers`` are the rows.

    Raises:
        LayerError: a layer failed, with its path, what it got and what it wants; or a layer asks for the
            value of a tensor.
        TypeError: inputs are given and the model can't be called.
        ValueError: `dtype` without a shape.

    Example:
        >>> import fluxlike as fl
        >>> model = fl.Chain(fl.Dense(3, 2, fl.relu), fl.BatchNorm(2))
        >>> print(fl.summary(model))
        path                     shape   dtype    count  kind
        .layers[0].weight        (2, 3)  float32  6      parameter
        .layers[0].bias          (2,)    float32  2      parameter
        .layers[1].weight        (2,)    float32  2      parameter
        .layers[1].bias          (2,)    float32  2      parameter
        .layers[1].running_mean  (2,)    float32  2      buffer
        .layers[1].running_var   (2,)    float32  2      buffer
        Total: 6 tensors, 12 parameters, 4 non-trainable, 64 bytes
        >>> for row in fl.summary(model, (32, 3)).layers:
        ...     print(row.path, row.layer, row.output, row.parameters)
         Chain (32, 2) 12
        .layers[0] Dense(3, 2, relu) (32, 2) 8
        .layers[1] BatchNorm(2) (32, 2) 4
    """
    tensors = _tensor_rows(model)
    if not inputs and not named:
        if dtype is not None:
            raise ValueError(f"summary(dtype={dtype}): dtype= is that of inputs given by their shape")
        return Summary(model, tensors, None)
    shapes = Shapes("summary")
    shapes.run(model, inputs, dtype, named)
    return Summary(model, tensors, _Layers(model, shapes).rows)


@leaf
class Summary:
    """The tables of a model; made by `summary`.

    Attributes:
        tensors: a row a tensor.
        layers: a row a layer; None where no inputs were given.
        totals: the counts of the whole model, as text.
        waiting: the paths of layers made with `auto` that have no sizes yet.
    """

    def __init__(self, model: Any, tensors: Sequence[TensorRow], layers: Sequence[LayerRow] | None) -> None:
        self.tensors = tuple(tensors)
        self.layers = None if layers is None else tuple(layers)
        self.totals = totals(model)
        self.waiting = [path or "(root)" for path, _ in waiting(model)]
        self._html = tree_html(model, _Notes(self.tensors, self.layers or ()))

    def __str__(self) -> str:
        tables = [] if self.layers is None else [_table(_LAYER_HEAD, map(_layer_cells, self.layers)), ""]
        tables.append(_table(_TENSOR_HEAD, map(_tensor_cells, self.tensors)))
        return "\n".join([*tables, f"Total: {self.totals}", *self._hint()])

    def _hint(self) -> list[str]:
        if not self.waiting:
            return []
        return [
            f"Without sizes yet: {', '.join(self.waiting)}; model = fluxlike.autosize(model, x) finds them"
        ]

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self._html


_TENSOR_HEAD = ("path", "shape", "dtype", "count", "kind")
_LAYER_HEAD = ("path", "layer", "output", "parameters", "non-trainable", "bytes")


def _tensor_cells(row: TensorRow) -> tuple[str, ...]:
    dtype = str(row.dtype).removeprefix("torch.")
    return row.path or "(root)", str(row.shape), dtype, number(row.numel), row.kind


def _layer_cells(row: LayerRow) -> tuple[str, ...]:
    tied = f" + {number(row.tied)} tied" if row.tied else ""
    held = row.parameters or row.non_trainable or row.tied
    counts = (number(row.parameters) + tied, number(row.non_trainable), size_text(row.bytes))
    return row.path or "(root)", row.layer, row.output, *(counts if held else ("", "", ""))


def _table(head: Sequence[str], rows: Iterator[tuple[str, ...]]) -> str:
    return "\n".join(aligned([head, *rows]))


def _tensor_rows(model: Any) -> list[TensorRow]:
    leaves, treedef = flatten(model)
    structure = structure_of(treedef)
    trained = parameters(leaves, structure.trainable).number
    first: dict[int, str] = {}
    rows = []
    for path, x in zip(structure.paths, leaves, strict=True):
        if isinstance(x, Tensor):
            kind = "parameter" if id(x) in trained else "buffer"
            if id(x) in first:
                kind = f"tied to {first[id(x)]}"
            first.setdefault(id(x), path)
            rows.append(TensorRow(path, tuple(x.shape), x.dtype, x.numel(), kind))
    return rows


class _Layers:
    """The rows of the layers that were called, in the order of the tree."""

    def __init__(self, model: Any, shapes: Shapes) -> None:
        self.rows: list[LayerRow] = []
        leaves, treedef = flatten(model)
        self._trained = parameters(leaves, structure_of(treedef).trainable).number
        self._counted: set[int] = set()  # tensors that stand further up
        self._shapes = shapes
        self._above = {p[:i] for p in shapes.outputs for i, c in enumerate(p) if c in ".["}
        self._visit(model, "")

    def _visit(self, node: Any, path: str) -> None:
        called = path in self._shapes.outputs
        if called or self._is_unheard(node, path):
            self.rows.append(self._row(node, path, self._shapes.text(path) if called else "-"))
        for step, child in children(node):
            self._visit(child, path + step.text)
        if isinstance(node, Tensor):
            self._counted.add(id(node))

    def _is_unheard(self, node: Any, path: str) -> bool:
        """Whether a layer holds tensors, and neither it nor anything below was called."""
        is_layer = spec_of(type(node)) is not None and callable(node)
        return is_layer and path not in self._above and bool(fleaves(node))

    def _row(self, node: Any, path: str, output: str) -> LayerRow:
        tensors = fleaves(node)
        new = [x for x in tensors if id(x) not in self._counted]
        trained = sum(x.numel() for x in new if id(x) in self._trained)
        return LayerRow(
            path,
            _name(node),
            output,
            trained,
            sum(x.numel() for x in new) - trained,
            sum(x.numel() * x.element_size() for x in new),
            sum(x.numel() for x in tensors if id(x) in self._counted),
        )


def _name(node: Any) -> str:
    """A layer in one line: with its arguments where they fit."""
    if not is_node(node):
        return value_text(node)
    item = printed(node)
    fits = prints_arguments(node) and not item.foot and len(item.head) <= 48
    return item.head if fits else type(node).__name__


class _Notes:
    """What the folding tree says of each place besides its counts."""

    def __init__(self, tensors: Sequence[TensorRow], layers: Sequence[LayerRow]) -> None:
        self._notes = {row.path: f"{number(row.numel)}, {row.kind}" for row in tensors}
        self._notes.update((row.path, f"→ {row.output}") for row in layers if row.output != "-")

    def __call__(self, path: str) -> str:
        return self._notes.get(path, "")
