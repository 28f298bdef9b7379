"""How each class of layers keeps its parameters in Flux, Flax and Keras: the table of parameter rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fluxlike.placement.layout import Layout, permute
from fluxlike.trees import paths

__all__ = [
    "CHANNELS_LAST",
    "FRAMEWORKS",
    "ParameterRule",
    "Part",
    "Site",
    "Values",
    "axes",
    "parameter_rule",
    "require_framework",
    "require_known",
    "rule_of",
    "same",
    "sites",
    "slots",
]

FRAMEWORKS = ("flux", "flax", "keras")
#: Where a flatten of images puts the channels last; Flux's reversed memory flattens as torch's does.
CHANNELS_LAST = ("flax", "keras")

Values = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Part:
    """Tensors of a layer, and the arrays that hold the same numbers elsewhere.

    Attributes:
        ours: paths below the layer, such as ``.weight``.
        theirs: names elsewhere, dotted where nested; ``a|b`` is called a, and b is understood too.
        read: from their arrays, in order, to our tensors.
        write: from our tensors (None where the layer has none) to their arrays.
        collection: where Flax keeps it.
        in_place: the part that `convert_layout` takes instead. (default: this one)
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Callable[..., Values]
    write: Callable[..., Values]
    collection: str = "params"
    in_place: Part | None = None


Parts = Callable[[Any], Sequence[Part]]
Names = Callable[[Any], Sequence[str]]


@dataclass(frozen=True)
class ParameterRule:
    """How one class of layers keeps its parameters in one framework.

    Attributes:
        parts: the parts of a layer.
        names: what such a layer is called there; the first name is the one to write.
        rename: what an array is called in the parts, by its name in a checkpoint.
    """

    parts: Parts
    names: Names
    rename: Callable[[str], str] = str


_rules: dict[tuple[type, str], ParameterRule] = {}


def parameter_rule(
    cls: type,
    framework: str,
    /,
    *parts: Part | Parts,
    names: Sequence[str] | Names | None = None,
    rename: Callable[[str], str] = str,
) -> ParameterRule:
    """Say how a class of layers keeps its parameters in a framework; subclasses follow.

    Args:
        cls: the class of the layers.
        framework: ``"flux"``, ``"flax"`` or ``"keras"``.
        parts: parts, made by `same`, `axes` or `Part`, or functions that make a list of them from a
            layer, whose tensors may be in either layout.
        names: what such layers are called there, as in the names ``Dense_0`` or ``dense_1``; or a
            function of the layer. (default: the name of the class)
        rename: what an array is called in the parts, by its name in a checkpoint, where that has more
            to it. (default: the same)

    Returns:
        The rule.

    Raises:
        ValueError: an unknown framework.

    Example:
        >>> import fluxlike as fl
        >>> from fluxlike.placement.foreign.parameters import axes, same
        >>> class Linear(fl.Dense):
        ...     pass
        >>> rule = fl.parameter_rule(
        ...     Linear, "flax", axes(".weight", "kernel", "IO", "OI"), same(".bias", "bias")
        ... )
        >>> list(fl.foreign_state(fl.Chain(Linear(3, 2)), "flax")["params"])
        ['Linear_0']
    """
    require_framework("framework", framework)

    def of(layer: Any) -> Sequence[Part]:
        return [p for part in parts for p in ([part] if isinstance(part, Part) else part(layer))]

    called = tuple(names or (cls.__name__,)) if not callable(names) else ()
    rule = ParameterRule(of, names if callable(names) else lambda _: called, rename)
    _rules[cls, framework] = rule
    return rule


def require_framework(name: str, found: str, /, *more: str) -> None:
    """Refuse a framework that is not known.

    Raises:
        ValueError: it names those that are.
    """
    known = (*FRAMEWORKS, *more)
    if found not in known:
        raise ValueError(f"{name}={found!r}: write one of {', '.join(map(repr, known))}")


def rule_of(x: Any, framework: str, /) -> ParameterRule | None:
    """The rule of a layer's class, or of the nearest class that it inherits from."""
    return next((_rules[cls, framework] for cls in type(x).__mro__ if (cls, framework) in _rules), None)


@dataclass(frozen=True)
class Site:
    """A layer that has a rule, and where it stands in the model."""

    path: str
    entries: tuple[Any, ...]
    layer: Any
    rule: ParameterRule

    def parts(self) -> list[Part]:
        """The parts of which the layer has a tensor."""
        return [p for p in self.rule.parts(self.layer) if any(x is not None for _, x in slots(self, p))]


def slots(site: Site, part: Part, /) -> list[tuple[tuple[Any, ...], Any]]:
    """For each of our tensors of a part, the way from the layer to it, and what is there."""
    return [paths.lookup(site.layer, path) for path in part.ours]


def sites(model: Any, framework: str, /) -> Iterator[Site]:
    """The topmost nodes that have a rule, in order.

    Raises:
        TypeError: a tensor of two axes or more belongs to no class with a rule.
    """

    def visit(node: Any, path: str, entries: tuple[Any, ...], owner: Any) -> Iterator[Site]:
        rule = rule_of(node, framework)
        if rule is not None:
            yield Site(path, entries, node, rule)
            return
        require_known(path, node, owner, framework)
        for step, child in paths.children(node):
            yield from visit(child, path + step.text, (*entries, step.entry), node)

    yield from visit(model, "", (), None)


def require_known(path: str, x: Any, owner: Any, framework: str, /) -> None:
    """Refuse a tensor whose axes no rule explains; those of one axis mean the same everywhere.

    Raises:
        TypeError: it says how to write a rule.
    """
    if isinstance(x, Tensor) and x.ndim > 1:
        name = type(owner).__name__
        raise TypeError(
            f"{path or 'the tree'} has the shape {tuple(x.shape)}, and no rule says how {name} keeps it in "
            f"{framework}; write fluxlike.parameter_rule({name}, {framework!r}, …)"
        )


def same(ours: str, theirs: str, /, collection: str = "params") -> Part:
    """A part that is one tensor, the same there but for its name."""
    return Part((ours,), (theirs,), lambda x: (x,), lambda x: (x,), collection)


def axes(ours: str, theirs: str, src: str, dst: str, /, *, flip: bool = False) -> Part:
    """A part that is one tensor with its axes in another order.

    In a layout, S stands for the spatial axes, as many as there are, and R for the same from last to first.

    Args:
        ours: the path below the layer.
        theirs: the name elsewhere.
        src: the layout elsewhere.
        dst: the layout here.
        flip: whether the spatial axes run the other way, too. (default: False)
    """

    def layouts(x: Tensor) -> tuple[Layout, Layout, list[int]]:
        letters = "DHW"[3 - (x.ndim - len(src) + 1) :] if set(src) & set("SR") else ""
        there, here = (Layout(_spelt_out(layout, letters)) for layout in (src, dst))
        return there, here, [here.index(c) for c in letters]

    def read(x: Tensor) -> Values:
        there, here, spatial = layouts(x)
        y = permute(x, there, here)
        return (y.flip(spatial) if flip else y,)

    def write(x: Tensor) -> Values:
        there, here, spatial = layouts(x)
        return (permute(x.flip(spatial) if flip else x, here, there),)

    return Part((ours,), (theirs,), read, write)


def _spelt_out(layout: str, letters: str) -> str:
    return layout.replace("S", letters).replace("R", letters[::-1])
