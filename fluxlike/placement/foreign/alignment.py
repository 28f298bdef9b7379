"""Which arrays of a foreign checkpoint belong to which layer of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from torch import Tensor

from fluxlike.placement.foreign.parameters import Part, Site, require_known, rule_of
from fluxlike.trees import paths

__all__ = [
    "Match",
    "align",
    "holds_steps",
    "holds_tensors",
    "is_array",
    "layers_below",
    "named_arrays",
    "step_names",
    "with_nesting",
]

_containers: dict[type, tuple[str, str]] = {}


def holds_steps(cls: type, steps: str, names: str, /) -> None:
    """Say that a class keeps layers in a tuple at one attribute, and may have names for them at another."""
    _containers[cls] = steps, names


def step_names(node: Any, /) -> tuple[str, list[str] | None] | None:
    """Where a container keeps its layers, and their names if they have any; None if it is none."""
    found = next((_containers[cls] for cls in type(node).__mro__ if cls in _containers), None)
    if found is None:
        return None
    names, layers = getattr(node, found[1]), getattr(node, found[0])
    named = isinstance(layers, tuple) and names is not None and len(names) == len(layers)
    return found[0], list(names) if named else None


class Match(NamedTuple):
    """A layer, or a tensor of no layer, with what a checkpoint holds for it and where."""

    site: Site | None
    path: str
    found: Any
    place: str


def is_array(x: Any, /) -> bool:
    """Whether a value of a checkpoint is an array of parameters; single numbers are settings."""
    return isinstance(x, Tensor) or (
        hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, np.generic)
    )


def with_nesting(state: Any, /) -> Any:
    """A checkpoint whose names with slashes, ``conv2d/kernel``, are nested dicts."""
    if not isinstance(state, Mapping):
        return state
    nested: dict[Any, Any] = {}
    for key, value in state.items():
        *above, last = key.strip("/").split("/") if isinstance(key, str) else (key,)
        inner = nested
        for name in above:
            inner = inner.setdefault(name, {})
        inner[last] = with_nesting(value)
    return nested


def align(model: Any, state: Any, framework: str, /) -> list[Match]:
    """Match a checkpoint with a model: by name where the names are there, else layer by layer in order.

    Raises:
        ValueError: they don't match; it says what is on both sides.
        TypeError: a tensor of the model belongs to no class with a rule.
    """
    return _Aligner(framework).visit(model, "", (), None, state, "")


def named_arrays(found: Any, parts: Sequence[Part], /) -> dict[str, Any]:
    """The arrays of one layer by dotted name; those of a list have the names of the parts in order."""
    while not is_array(found):  # wrappers such as "cell"
        items = [x for x in (found.values() if isinstance(found, Mapping) else found) if _holds_arrays(x)]
        if len(items) != 1:
            break
        (inner,) = items
        if is_array(inner):
            break
        found = inner
    if isinstance(found, Mapping):
        return {name: x for name, x in _dotted(found) if is_array(x)}
    names = [name.split("|")[0] for part in parts for name in part.theirs]
    arrays = [found] if is_array(found) else [x for x in found if is_array(x)]
    if len(arrays) != len(names):
        raise ValueError(f"{len(arrays)} arrays, where {len(names)} are expected: {', '.join(names)}")
    return dict(zip(names, arrays, strict=True))


def _dotted(found: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    result: list[tuple[str, Any]] = []
    for key, x in found.items():
        inner = _dotted(x) if isinstance(x, Mapping) else None
        result += [(str(key), x)] if inner is None else [(f"{key}.{name}", y) for name, y in inner]
    return result


def _holds_arrays(x: Any) -> bool:
    if isinstance(x, Mapping):
        return any(map(_holds_arrays, x.values()))
    if isinstance(x, (list, tuple)):
        return any(map(_holds_arrays, x))
    return is_array(x) and x.ndim > 0


def holds_tensors(node: Any, /) -> bool:
    """Whether a node holds numbers that a checkpoint has; counters and masks are the model's own."""
    if isinstance(node, Tensor):
        return node.is_floating_point() or node.is_complex()
    return any(holds_tensors(child) for _, child in paths.children(node))


def layers_below(node: Any, path: str, entries: tuple[Any, ...], framework: str, /) -> list[Site]:
    """All layers at or below a node that keep parameters, in order, each object once.

    Raises:
        ValueError: a tensor there belongs to no such layer, so that it has no place in the order.
        TypeError: that tensor has axes that no rule explains.
    """
    found: list[Site] = []
    seen: set[int] = set()

    def collect(node: Any, path: str, entries: tuple[Any, ...], owner: Any) -> None:
        rule = rule_of(node, framework)
        if rule is not None:
            site = Site(path, entries, node, rule)
            if id(node) not in seen and site.parts():
                found.append(site)
            seen.add(id(node))
            return
        if isinstance(node, Tensor) and holds_tensors(node):
            require_known(path, node, owner, framework)
            raise ValueError(
                f"{path} belongs to {type(owner).__name__}, which has no rule in {framework}, so it has no "
                "number among the layers; name the steps of the Chain, fluxlike.Chain(name=…), and use "
                f"the names, or write fluxlike.parameter_rule({type(owner).__name__}, {framework!r}, …)"
            )
        for step, child in paths.children(node):
            collect(child, path + step.text, (*entries, step.entry), node)

    collect(node, path, entries, None)
    return found


class _Aligner:
    def __init__(self, framework: str) -> None:
        self._framework = framework

    def visit(
        self, node: Any, path: str, entries: tuple[Any, ...], owner: Any, state: Any, place: str
    ) -> list[Match]:
        rule = rule_of(node, self._framework)
        if rule is not None:
            return [Match(Site(path, entries, node, rule), path, state, place)]
        if isinstance(node, Tensor):
            require_known(path, node, owner, self._framework)
            return [Match(None, path, state, place)]
        every = [
            (step, child, path + step.text, (*entries, step.entry)) for step, child in paths.children(node)
        ]
        held = [child for child in every if holds_tensors(child[1])]
        pairs = self._pairs(node, every, held, state)
        if pairs is not None:
            return [
                match
                for (_, child, p, e), inner, key in pairs
                for match in self.visit(child, p, e, node, inner, f"{place}{key}")
            ]
        if len(held) == 1 and paths.is_node(held[0][1]):
            _, child, p, e = held[0]
            return self.visit(child, p, e, node, state, place)
        return self._in_order(node, path, entries, state, place)

    def _pairs(self, node: Any, every: list[Any], held: list[Any], state: Any) -> list[Any] | None:
        """Each child with its part of the state, if the names or the number of the children fit."""
        if isinstance(state, Mapping):
            keys = [next((k for k in _keys(step) if k in state), None) for step, *_ in held]
            if held and None not in keys and not _rest(state, keys):
                return [(child, state[k], f"[{k!r}]") for child, k in zip(held, keys, strict=True)]
            attribute, names = step_names(node) or ("", None)
            if names is not None and [step.entry for step, *_ in held] == [attribute]:
                _, items, p, e = held[0]
                named = [
                    ((step, child, p + step.text, (*e, step.entry)), name)
                    for (step, child), name in zip(paths.children(items), names, strict=True)
                    if holds_tensors(child)
                ]
                if all(n in state for _, n in named) and not _rest(state, [n for _, n in named]):
                    return [(child, state[n], f"[{n!r}]") for child, n in named]
            return None
        if isinstance(state, (list, tuple)) and isinstance(node, (list, tuple)):
            numbered = list(enumerate(state))
            full = [(i, x) for i, x in numbered if _holds_arrays(x)]
            for children, items in ((every, numbered), (held, full)):
                fits = len(children) == len(items) and all(
                    holds_tensors(c[1]) == _holds_arrays(x) for c, (_, x) in zip(children, items, strict=True)
                )
                if fits and not any(is_array(x) for _, x in items):
                    return [
                        (c, x, f"[{i}]")
                        for c, (i, x) in zip(children, items, strict=True)
                        if holds_tensors(c[1])
                    ]
        return None

    def _in_order(
        self, node: Any, path: str, entries: tuple[Any, ...], state: Any, place: str
    ) -> list[Match]:
        """Match all layers below a node: by class and number, or in order."""
        below = layers_below(node, path, entries, self._framework)
        if isinstance(state, Mapping):
            while len(state) == 1 and isinstance(inner := next(iter(state.values())), Mapping):
                if any(is_array(x) for x in inner.values()) and below:
                    break
                state = inner
            chosen = _by_number(below, {k: x for k, x in state.items() if _holds_arrays(x)})
        elif isinstance(state, (list, tuple)):
            chosen = _by_place(below, state)
        else:
            chosen = None
        if chosen is None:
            self._refuse(path, below, state, place)
        return [
            Match(site, site.path, x, f"{place}[{k!r}]") for site, (k, x) in zip(below, chosen, strict=True)
        ]

    def _refuse(self, path: str, below: list[Site], state: Any, place: str) -> NoReturn:
        ours = ", ".join(f"{site.path} ({type(site.layer).__name__})" for site in below) or "no layer"
        if isinstance(state, Mapping):
            theirs = f"the names {', '.join(map(str, state))}"
        elif isinstance(state, (list, tuple)):
            theirs = f"a list of {len(state)}"
        else:
            theirs = f"a {type(state).__name__}"
        called = ", ".join(dict.fromkeys(f"{site.rule.names(site.layer)[0]}_0" for site in below))
        raise ValueError(
            f"the {self._framework} state has {theirs} at {place or 'its root'}, and the model has "
            f"{ours} at {path or 'its root'}; give a dict with the model's own names, "
            + (f"names such as {called}, " if called else "")
            + "or a list with an entry for each of these layers in order"
        )


def _keys(step: paths.Step) -> tuple[Any, ...]:
    return (step.entry, str(step.entry))


def _rest(state: Mapping[Any, Any], keys: Sequence[Any]) -> list[Any]:
    return [k for k, x in state.items() if k not in keys and _holds_arrays(x)]


_NUMBERED = re.compile(r"(.*?)(?:_(\d+))?")


def _by_number(below: list[Site], state: Mapping[Any, Any]) -> list[tuple[Any, Any]] | None:
    """The entries ``Dense_0``, ``Dense_1``, … of a state for the layers of a class, by number."""
    by_name: dict[str, list[tuple[int, Any, Any]]] = {}
    for key, x in state.items():
        name, number = _NUMBERED.fullmatch(str(key)).groups()  # type: ignore[union-attr]
        by_name.setdefault(name, []).append((int(number or 0), key, x))
    queues = {name: sorted(found, key=lambda f: f[0]) for name, found in by_name.items()}
    chosen = []
    for site in below:
        name = next((n for n in site.rule.names(site.layer) if queues.get(n)), None)
        if name is None:
            return None
        _, key, x = queues[name].pop(0)
        chosen.append((key, x))
    return chosen if not any(queues.values()) else None


def _by_place(below: list[Site], state: Sequence[Any]) -> list[tuple[Any, Any]] | None:
    """The entries of a list for layers in order: a dict or list a layer, or all arrays in a row."""
    full = [(i, x) for i, x in enumerate(state) if _holds_arrays(x)]
    if not any(is_array(x) for _, x in full) and len(full) == len(below):
        return full
    arrays, chosen = _in_a_row(state), []
    if len(arrays) != sum(len(part.theirs) for site in below for part in site.parts()):
        return None
    start = 0
    for site in below:
        n = sum(len(part.theirs) for part in site.parts())
        chosen.append((start, arrays[start : start + n]))
        start += n
    return chosen


def _in_a_row(state: Any) -> list[Any]:
    """The arrays of lists in lists."""
    if not isinstance(state, (list, tuple)):
        return [state] if _holds_arrays(state) else []
    return [x for inner in state for x in _in_a_row(inner)]
