"""How each class of layers keeps its parameters in Flux, Flax and Keras: the table of parameter rules."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fluxlike.placement.foreign.parts import Part, Parts, Written, as_part, parts_from
from fluxlike.trees import paths
from fluxlike.trees.functor import kinds_of

__all__ = [
    "CHANNELS_LAST",
    "FRAMEWORKS",
    "ParameterRule",
    "Site",
    "parameter_rule",
    "require_framework",
    "require_known",
    "require_ranks",
    "rule_of",
    "sites",
    "slots",
]

FRAMEWORKS = ("flux", "flax", "keras")
#: Where a flatten of images puts the channels last; Flux's reversed memory flattens as torch's does.
CHANNELS_LAST = ("flax", "keras")

Names = Callable[[Any], Sequence[str]]


@dataclass(frozen=True)
class ParameterRule:
    """How one class of layers keeps its parameters in one framework.

    Attributes:
        cls: the class; its subclasses follow.
        framework: the framework.
        parts: what it keeps, as it was written.
        names: what such a layer is called there, or a function of it; the first name is the one to write.
        rename: what an array is called in the parts, by its name in a checkpoint.
    """

    cls: type
    framework: str
    parts: tuple[Part | Parts | Written, ...]
    names: tuple[str, ...] | Names
    rename: Callable[[str], str] = str

    def remove(self) -> None:
        """Take the rule out of the table again.

        Raises:
            ValueError: it is not in it.
        """
        with _lock:
            if _rules.get((self.cls, self.framework)) is not self:
                raise ValueError(f"this rule of {self.cls.__name__} in {self.framework} is not registered")
            del _rules[self.cls, self.framework]

    def names_of(self, layer: Any, /) -> Sequence[str]:
        """What a layer is called there."""
        return self.names(layer) if callable(self.names) else self.names


_lock = threading.Lock()
_rules: dict[tuple[type, str], ParameterRule] = {}


def parameter_rule(
    cls: type,
    framework: str,
    /,
    *parts: Part | Parts | Written,
    names: Sequence[str] | Names | None = None,
    rename: Callable[[str], str] = str,
) -> ParameterRule:
    """Say how a class of layers keeps its parameters in a framework; subclasses follow.

    Args:
        cls: the class of the layers.
        framework: ``"flux"``, ``"flax"`` or ``"keras"``.
        parts: what it keeps, a tuple for each. ``(ours, theirs)`` is the path of a tensor below the layer
            and its name there, for a tensor that is the same there. ``(ours, theirs, src, dst)`` adds the
            layout there and the one here, in which S stands for the axes that the layer strides along.
            ``(ours, theirs, read, write)`` has functions from their arrays to our tensors, and back; there
            `ours` and `theirs` may be tuples. Names are dotted where nested, and those in a collection of
            Flax start with it, ``"batch_stats/mean"``. A function of a layer that returns a list of such
            tuples may stand for a tuple.
        names: what such layers are called there, as in the names ``Dense_0`` or ``dense_1``; or a
            function of the layer. (default: the name of the class)
        rename: what an array is called in the parts, by its name in a checkpoint, where that has more
            to it. (default: the same)

    Returns:
        The rule; its ``remove()`` undoes the registration.

    Raises:
        TypeError: `cls` is no class, or a part is written in another way.
        ValueError: an unknown framework, layouts of different letters, or the class has another rule.

    Example:
        >>> import torch, fluxlike as fl
        >>> class Affine(fl.Dense):
        ...     pass
        >>> rule = fl.parameter_rule(
        ...     Affine, "flax", (".weight", "matrix", "IO", "OI"), (".bias", "shift"), names=["Affine"]
        ... )
        >>> state = fl.foreign_state(fl.Chain(Affine(3, 2)), "flax")
        >>> fl.fmap(lambda x: tuple(x.shape), state)
        {'params': {'Affine_0': {'matrix': (3, 2), 'shift': (2,)}}}
        >>> rule.remove()
    """
    require_framework("framework", framework)
    if not isinstance(cls, type):
        raise TypeError(f"parameter_rule takes the class of the layers first, found {cls!r}")
    if isinstance(names, str):
        raise TypeError(f"names={names!r}: write a list of names, names=[{names!r}]")
    for part in parts:
        as_part(part)
    called = names if callable(names) else tuple(names or (cls.__name__,))
    rule = ParameterRule(cls, framework, parts, called, rename)
    with _lock:
        known = _rules.setdefault((cls, framework), rule)
    if known != rule:
        raise ValueError(
            f"{cls.__qualname__} has a rule in {framework} already; register a class once, or take the "
            "first rule out again, rule.remove()"
        )
    return known


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
    return next(filter(None, (_rules.get((cls, framework)) for cls in kinds_of(type(x)))), None)


@dataclass(frozen=True)
class Site:
    """A layer that has a rule, and where it stands in the model."""

    path: str
    entries: tuple[Any, ...]
    layer: Any
    rule: ParameterRule

    def parts(self) -> list[Part]:
        """The parts of which the layer has a tensor."""
        every = parts_from(self.rule.parts, self.layer)
        return [p for p in every if any(x is not None for _, x in slots(self, p))]

    def names(self) -> Sequence[str]:
        """What the layer is called there; the first name is the one to write."""
        return self.rule.names_of(self.layer)


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


def require_ranks(model: Any, framework: str, /) -> None:
    """Refuse layers of ours whose tensors have other numbers of axes than their class, as stacked ones do.

    Raises:
        ValueError: it names the first, and says how to convert a stacked model.
    """
    for site in sites(model, framework):
        for part in site.parts():
            for path, (_, x), rank in zip(part.ours, slots(site, part), part.ranks or (), strict=False):
                if isinstance(x, Tensor) and x.ndim != rank:
                    raise ValueError(
                        f"{site.path}{path} has the shape {tuple(x.shape)}, and in a "
                        f"{type(site.layer).__name__} it has {rank} axes; if the model is stacked, convert "
                        "each of fluxlike.unstack(model)"
                    )
