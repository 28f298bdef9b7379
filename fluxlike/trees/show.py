"""Trees in print: the `repr` of layers and models, and `summary`."""

from __future__ import annotations

import contextlib
import math
import types
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from fluxlike.trees import functor as registry
from fluxlike.trees import paths
from fluxlike.trees.fmap import fleaves
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten, structure_of
from fluxlike.trees.trainables import parameters, trainables

__all__ = ["summary"]

_WIDTH = 92


def _count(n: int) -> str:
    return f"{n:_}"


def _plural(n: int, noun: str) -> str:
    return f"{_count(n)} {noun}" + ("" if n == 1 else "s")


def _bytes(n: int) -> str:
    if n < 1024:
        return f"{n} bytes"
    exponent = min(int(math.log2(n) // 10), 4)
    return f"{n / 1024**exponent:.3f} {('KiB', 'MiB', 'GiB', 'TiB')[exponent - 1]}"


def value_text(x: Any, /) -> str:
    """One leaf in print: its dtype and shape for a tensor, its name for a function."""
    if isinstance(x, Tensor):
        place = "" if x.device.type == "cpu" else f" on {x.device}"
        shape = list(x.shape)
        if x.ndim == 0 and type(x) is Tensor and x.device.type == "cpu" and not x.requires_grad:
            with contextlib.suppress(RuntimeError):  # a tensor of a transform has no value to show
                shape = f"({x.item()})"  # type: ignore[assignment]
        return f"{str(x.dtype).removeprefix('torch.')}{shape}{place}"
    if isinstance(x, (types.FunctionType, types.BuiltinFunctionType, type)):
        return x.__qualname__.removeprefix("_VariableFunctionsClass.")
    return repr(x)


def _arguments(node: Any) -> str | None:
    """The arguments in print of a node that describes itself by ``extra_repr``, as in torch.nn."""
    describe = getattr(type(node), "extra_repr", None)
    try:
        return None if describe is None else describe(node)
    except (AttributeError, TypeError, ValueError):  # of gradients, of states, or stacked
        return None


def _comment(node: Any) -> str:
    trained = trainables(node)
    ids = set(map(id, trained))
    others = [x for x in fleaves(node) if id(x) not in ids]
    parts = []
    if trained:
        parts.append(_plural(sum(p.numel() for p in trained), "parameter"))
    if others:
        parts.append(f"{_count(sum(x.numel() for x in others))} non-trainable")
    assigned = sum(isinstance(x, Assigned) for x in fleaves(node, leaves="all"))
    if assigned:
        parts.append(f"{assigned} assigned")
    pin = getattr(node, registry.PIN, None)
    if pin is not None:
        parts.append(f"{pin} mode")
    return ", ".join(parts)


def _describe(node: Any, label: str, indent: int, lines: list[tuple[str, str]], tail: str) -> None:
    """Append the lines of one node, each with its comment."""
    margin = "  " * indent
    own = _own_repr(node)
    if own is not None:
        lines.append((f"{margin}{label}{own}{tail}", ""))
        return
    start, end = _brackets(node)
    arguments = _arguments(node)
    inner = [(step, child) for step, child in paths.children(node)]
    nested = [c for _, c in inner if _deserves_lines(c)]
    if not paths.is_node(node):
        lines.append((f"{margin}{label}{value_text(node)}{tail}", ""))
        return
    if arguments is not None and not nested:
        lines.append((f"{margin}{label}{start}{arguments}{end}{tail}", _comment(node)))
        return
    if not nested:
        text = ", ".join(_named(node, step) + _short(child) for step, child in inner)
        if len(margin) + len(label) + len(text) <= _WIDTH:
            lines.append((f"{margin}{label}{start}{text}{end}{tail}", _comment(node)))
            return
    only = inner[0][1] if len(inner) == 1 else None
    if registry.spec_of(type(node)) is not None and type(only) is tuple and arguments is None:
        # A Chain shows its layers, not the tuple that holds them; by name if it has names.
        inner = list(paths.children(only))
        names = getattr(node, "names", None)
        labels = [f"{n}=" for n in names] if names and len(names) == len(inner) else [""] * len(inner)
    else:
        labels = [_named(node, step) for step, _ in inner]
    lines.append((f"{margin}{label}{start}", ""))
    if arguments:
        lines.append((f"{margin}  {arguments},", ""))
    for label_, (_, child) in zip(labels, inner, strict=True):
        _describe(child, label_, indent + 1, lines, ",")
    lines.append((f"{margin}{end}{tail}", _comment(node) if indent else ""))


def _own_repr(node: Any) -> str | None:
    """What an author's `__repr__` says of a functor, if it is one line."""
    method: Any = type(node).__repr__
    if registry.spec_of(type(node)) is None or method in (tree_repr, object.__repr__):
        return None
    text = repr(node)
    return None if "\n" in text else text


def _deserves_lines(x: Any) -> bool:
    """Whether a child is worth lines of its own: a functor, or a container that holds one."""
    if not paths.is_node(x):
        return False
    return registry.spec_of(type(x)) is not None or any(_deserves_lines(c) for _, c in paths.children(x))


def _short(x: Any) -> str:
    if not paths.is_node(x):
        return value_text(x)
    start, end = _brackets(x)
    inner = ", ".join(_named(x, step) + _short(child) for step, child in paths.children(x))
    return f"{start}{inner}{end}"


def _brackets(node: Any) -> tuple[str, str]:
    plain: dict[type, tuple[str, str]] = {tuple: ("(", ")"), list: ("[", "]"), dict: ("{", "}")}
    return plain.get(type(node), (f"{type(node).__name__}(", ")"))


def _named(node: Any, step: paths.Step) -> str:
    if type(node) in (tuple, list):
        return ""
    return f"{step.entry!r}: " if isinstance(node, dict) else f"{step.text.removeprefix('.')}="


def _align(lines: Iterable[tuple[str, str]]) -> str:
    lines = list(lines)
    if len(lines) == 1:
        text, comment = lines[0]
        return f"{text}  # {comment}" if comment else text
    width = min(max((len(text) for text, comment in lines if comment), default=0), _WIDTH)
    return "\n".join(f"{text:<{width}}  # {comment}" if comment else text for text, comment in lines)


def tree_repr(node: Any) -> str:
    """The printed form of a functor: a line a layer, with parameter counts, and totals."""
    lines: list[tuple[str, str]] = []
    try:
        _describe(node, "", 0, lines, "")
        if len(lines) > 1:
            lines[-1] = (lines[-1][0], f"Total: {_totals(node)}")
    except (TypeError, ValueError) as error:  # no tree, but a repr must not raise
        return f"<{type(node).__qualname__}, which is no tree: {error}>"
    return _align(lines)


def _totals(tree: Any) -> str:
    tensors = fleaves(tree)
    trained = trainables(tree)
    other = sum(x.numel() for x in tensors) - sum(p.numel() for p in trained)
    size = sum(x.numel() * x.element_size() for x in tensors)
    parts = [_plural(len(tensors), "tensor"), _plural(sum(p.numel() for p in trained), "parameter")]
    if other:
        parts.append(f"{_count(other)} non-trainable")
    return ", ".join([*parts, _bytes(size)])


def summary(model: Any, /) -> str:
    """A table of the tensors of a model: path, shape, dtype, how many numbers, and which are tied.

    Args:
        model: any tree.

    Returns:
        The table as text, with the totals below: tensors, parameters, non-trainable numbers and
        bytes. A tied tensor is counted once.

    Example:
        >>> import fluxlike as fl
        >>> print(fl.summary(fl.Chain(fl.Dense(3, 2, fl.relu), fl.BatchNorm(2))))
        path                     shape   dtype    count  kind
        .layers[0].weight        (2, 3)  float32  6      parameter
        .layers[0].bias          (2,)    float32  2      parameter
        .layers[1].weight        (2,)    float32  2      parameter
        .layers[1].bias          (2,)    float32  2      parameter
        .layers[1].running_mean  (2,)    float32  2      buffer
        .layers[1].running_var   (2,)    float32  2      buffer
        Total: 6 tensors, 12 parameters, 4 non-trainable, 64 bytes
    """
    leaves, treedef = flatten(model)
    structure = structure_of(treedef)
    trained = parameters(leaves, structure.trainable).number
    first: dict[int, str] = {}
    rows = [("path", "shape", "dtype", "count", "kind")]
    for path, x in zip(structure.paths, leaves, strict=True):
        if not isinstance(x, Tensor):
            continue
        kind = "parameter" if id(x) in trained else "buffer"
        if id(x) in first:
            kind = f"tied to {first[id(x)]}"
        first.setdefault(id(x), path)
        dtype = str(x.dtype).removeprefix("torch.")
        rows.append((path or "(root)", str(tuple(x.shape)), dtype, _count(x.numel()), kind))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    table = ["  ".join([*(c.ljust(w) for c, w in zip(row[:4], widths, strict=True)), row[4]]) for row in rows]
    return "\n".join([*table, f"Total: {_totals(model)}"])


def _give_repr(cls: type) -> None:
    """Print objects of a registered class as trees, unless its author wrote a `__repr__`."""
    base = next(base for base in cls.__mro__ if "__repr__" in base.__dict__)
    if base is object or (_is_generated(base) and not getattr(cls, "prints_itself", False)):
        cls.__repr__ = tree_repr  # type: ignore[assignment]


def _is_generated(cls: type) -> bool:
    """Whether the `__repr__` of a class was written by dataclass or attrs, and prints whole tensors."""
    method: Any = cls.__dict__["__repr__"]
    if "__dataclass_params__" in cls.__dict__:
        return bool(cls.__dict__["__dataclass_params__"].repr) and hasattr(method, "__wrapped__")
    code = getattr(method, "__code__", None)
    return code is not None and code.co_filename.startswith("<attrs generated")


registry.on_register(_give_repr)
