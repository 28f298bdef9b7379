"""Trees in print: the `repr` of layers and models."""

from __future__ import annotations

import contextlib
import functools
import math
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fluxlike.trees import functor as registry
from fluxlike.trees import paths
from fluxlike.trees.fmap import fleaves
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten
from fluxlike.trees.trainables import trainables

__all__ = [
    "Printed", "counts", "deserves_lines", "no_tree", "number", "plural", "printed", "prints_arguments",
    "size_text", "totals", "tree_repr", "value_text",
]  # fmt: skip

_WIDTH = 92


def number(n: int, /) -> str:
    """A number with its thousands grouped."""
    return f"{n:_}"


def plural(n: int, noun: str, /) -> str:
    """So many of something."""
    return f"{number(n)} {noun}" + ("" if n == 1 else "s")


def size_text(n: int, /) -> str:
    """A number of bytes in a unit of its size."""
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
        return _printable(x.__qualname__.removeprefix("_VariableFunctionsClass."))
    if isinstance(x, np.ndarray):
        return f"{x.dtype}{list(x.shape)} in numpy"
    if type(x) is functools.partial:
        named = [f"{_printable(str(name))}={value_text(value)}" for name, value in x.keywords.items()]
        return f"partial({', '.join([*map(value_text, (x.func, *x.args)), *named])})"
    try:
        return _one_line(repr(x))
    except Exception as error:  # of a class that is not ours; a repr must not raise
        return f"<{type(x).__qualname__}, whose repr raises a {type(error).__name__}>"


def _one_line(text: str) -> str:
    """Text without line breaks, cut where it had some and is long."""
    if "\n" in text:
        text = " ".join(text.split())
        text = text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
    return _printable(text)


def _printable(text: str) -> str:
    """Text with what moves or colours a terminal in escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _arguments(node: Any) -> str | None:
    """The arguments in print of a node that describes itself by ``extra_repr``, as in torch.nn.

    What the node holds has lines below them, unless its ``arguments_say_all`` is true.
    """
    describe = getattr(type(node), "extra_repr", None)
    try:
        return None if describe is None else describe(node)
    except Exception:  # of gradients, of states, or stacked
        return None


class Printed(NamedTuple):
    """One node or leaf in print; `inner` where its children have lines of their own.

    Attributes:
        node: what is printed.
        path: where it stands.
        label: what is in front of it: ``scale=``, ``'head': `` or nothing.
        head: all of it, ``Dense(4, 2)``; of a node with lines inside, the start ``Chain(``.
        arguments: the first line inside, of a node that has both.
        inner: the lines inside.
        foot: the end of a node with lines inside.
    """

    node: Any
    path: str
    label: str
    head: str
    arguments: str = ""
    inner: tuple[Printed, ...] = ()
    foot: str = ""

    @property
    def comment(self) -> str:
        """Its counts: none of a leaf, and of what prints itself."""
        return counts(self.node) if paths.is_node(self.node) and _own_repr(self.node) is None else ""


def printed(node: Any, path: str = "", label: str = "", depth: int = 0) -> Printed:
    """A tree as it is printed."""
    own = _own_repr(node)
    if own is not None or not paths.is_node(node):
        return Printed(node, path, label, value_text(node) if own is None else own)
    start, end = _brackets(node)
    arguments = _arguments(node)
    inner = list(paths.children(node))
    said = arguments is not None and getattr(node, "arguments_say_all", False)
    nested = not said and any(deserves_lines(c) for _, c in inner)
    if arguments is not None and not nested:
        return Printed(node, path, label, f"{start}{arguments}{end}")
    labelled = _labelled(node, inner, nested and len(inner) == 1)
    if not nested:
        text = ", ".join(label_ + _short(child) for _, label_, child in labelled)
        if 2 * depth + len(label) + len(text) <= _WIDTH:
            return Printed(node, path, label, f"{start}{text}{end}")
    lines = tuple(printed(child, path + step, label_, depth + 1) for step, label_, child in labelled)
    return Printed(node, path, label, start, arguments or "", lines, end)


def _labelled(node: Any, inner: list[tuple[paths.Step, Any]], only: bool) -> list[tuple[str, str, Any]]:
    """The children, each with the step to it and its label.

    A Chain shows its layers, not the tuple that holds them, by name if it has names; a Parallel shows
    its connection before them. So does any class whose `only` child is a tuple.
    """
    layers: Any
    last, layers = inner[-1] if inner else (paths.Step("", None), None)
    opened = type(layers) is tuple and (only or last.text == ".layers")
    if not opened or registry.spec_of(type(node)) is None or _arguments(node) is not None:
        return [(step.text, _named(node, step), child) for step, child in inner]
    names = getattr(node, "names", None)
    labels = (
        [f"{_printable(str(n))}=" for n in names]
        if names and len(names) == len(layers)
        else [""] * len(layers)
    )
    steps = [f"{last.text}[{i}]" for i in range(len(layers))]
    return [*((step.text, "", child) for step, child in inner[:-1]), *zip(steps, labels, layers, strict=True)]


def counts(node: Any, /) -> str:
    """What a node holds: parameters, non-trainable numbers, assigned buffers, a pinned mode."""
    trained = trainables(node)
    ids = set(map(id, trained))
    others = [x for x in fleaves(node) if id(x) not in ids]
    parts = []
    if trained:
        parts.append(plural(sum(p.numel() for p in trained), "parameter"))
    if others:
        parts.append(f"{number(sum(x.numel() for x in others))} non-trainable")
    assigned = sum(isinstance(x, Assigned) for x in fleaves(node, leaves="all"))
    if assigned:
        parts.append(f"{assigned} assigned")
    pin = getattr(node, registry.PIN, None)
    if pin is not None:
        parts.append(f"{pin} mode")
    return ", ".join(parts)


def _own_repr(node: Any) -> str | None:
    """What an author's `__repr__` says of a functor, if it is one line."""
    method: Any = type(node).__repr__
    if registry.spec_of(type(node)) is None or method in (tree_repr, object.__repr__):
        return None
    try:
        text = repr(node)
    except Exception:
        return value_text(node)
    return None if "\n" in text else text


def deserves_lines(x: Any, /) -> bool:
    """Whether a child is worth lines of its own: a functor, or a container that holds one."""
    if not paths.is_node(x):
        return False
    return registry.spec_of(type(x)) is not None or any(deserves_lines(c) for _, c in paths.children(x))


def prints_arguments(node: Any, /) -> bool:
    """Whether a node says itself what to print of it."""
    return _own_repr(node) is not None or _arguments(node) is not None


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
    return f"{step.entry!r}: " if isinstance(node, dict) else f"{_printable(step.text.removeprefix('.'))}="


def _lines(item: Printed, indent: int = 0, tail: str = "") -> Iterator[tuple[str, str]]:
    """The lines of one node, each with its comment."""
    margin = "  " * indent
    if not item.foot:
        yield f"{margin}{item.label}{item.head}{tail}", item.comment
        return
    yield f"{margin}{item.label}{item.head}", ""
    if item.arguments:
        yield f"{margin}  {item.arguments},", ""
    for inner in item.inner:
        yield from _lines(inner, indent + 1, ",")
    yield f"{margin}{item.foot}{tail}", item.comment if indent else f"Total: {totals(item.node)}"


def _align(lines: list[tuple[str, str]]) -> str:
    if len(lines) == 1:
        text, comment = lines[0]
        return f"{text}  # {comment}" if comment else text
    width = min(max((len(text) for text, comment in lines if comment), default=0), _WIDTH)
    return "\n".join(f"{text:<{width}}  # {comment}" if comment else text for text, comment in lines)


def tree_repr(node: Any) -> str:
    """The printed form of a functor: a line a layer, with parameter counts, and totals."""
    try:
        flatten(node)  # reports what is no tree, a cycle too
        return _align(list(_lines(printed(node))))
    except (TypeError, ValueError) as error:  # no tree, but a repr must not raise
        return no_tree(node, error)


def no_tree(node: Any, error: Exception) -> str:
    """What is printed of an object that is no tree."""
    return f"<{type(node).__qualname__}, which is no tree: {error}>"


def totals(tree: Any, /) -> str:
    """What a whole tree holds: tensors, parameters, non-trainable numbers, bytes; each tied tensor once."""
    tensors = fleaves(tree)
    trained = trainables(tree)
    other = sum(x.numel() for x in tensors) - sum(p.numel() for p in trained)
    size = sum(x.numel() * x.element_size() for x in tensors)
    parts = [plural(len(tensors), "tensor"), plural(sum(p.numel() for p in trained), "parameter")]
    if other:
        parts.append(f"{number(other)} non-trainable")
    return ", ".join([*parts, size_text(size)])


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
