"""Which arrays of a foreign checkpoint belong to which layer of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from fluxlike.placement.foreign.checkpoint import arrays_in_a_row, holds_arrays, is_array
from fluxlike.placement.foreign.numbering import holds_tensors, layers_below
from fluxlike.placement.foreign.parameters import Site, require_known, rule_of
from fluxlike.trees import paths
from fluxlike.trees.step_names import step_names

__all__ = ["Match", "align"]


class Match(NamedTuple):
    """A layer, or a tensor of no layer, with what a checkpoint holds for it and where."""

    site: Site | None
    path: str
    found: Any
    place: str


class _Node(NamedTuple):
    """A place of the model."""

    path: str
    entries: tuple[Any, ...]
    value: Any
    owner: Any = None

    def children(self) -> Iterator[tuple[paths.Step, _Node]]:
        for step, child in paths.children(self.value):
            yield step, _Node(self.path + step.text, (*self.entries, step.entry), child, self.value)


class _Pair(NamedTuple):
    """A place of the model, and the part of the checkpoint that is about it."""

    node: _Node
    state: Any
    key: Any


def align(model: Any, state: Any, framework: str, /) -> list[Match]:
    """Match a checkpoint with a model: by name where the names are there, else layer by layer in order.

    Raises:
        ValueError: they don't match; it says what is on both sides.
        TypeError: a tensor of the model belongs to no class with a rule.
    """
    return _align(_Node("", (), model), state, "", framework)


def _align(node: _Node, state: Any, place: str, framework: str) -> list[Match]:
    if not holds_tensors(node.value):
        return []
    rule = rule_of(node.value, framework)
    if rule is not None:
        return [Match(Site(node.path, node.entries, node.value, rule), node.path, state, place)]
    if isinstance(node.value, Tensor):
        require_known(node.path, node.value, node.owner, framework)
        return [Match(None, node.path, state, place)]
    pairs = _by_name(node, state) if isinstance(state, Mapping) else _by_number(node, state)
    if pairs is not None:
        return [
            match
            for pair in pairs
            for match in _align(pair.node, pair.state, f"{place}[{pair.key!r}]", framework)
        ]
    held = _holding(node)
    if len(held) == 1 and paths.is_node(held[0][1].value):
        return _align(held[0][1], state, place, framework)
    return _in_order(node, state, place, framework)


def _holding(node: _Node) -> list[tuple[paths.Step, _Node]]:
    return [(step, child) for step, child in node.children() if holds_tensors(child.value)]


def _by_name(node: _Node, state: Mapping[Any, Any]) -> list[_Pair] | None:
    """Each child with its part of the state, if the state has the names of the children."""
    held = _holding(node)
    keys = [next((k for k in (step.entry, str(step.entry)) if k in state), None) for step, _ in held]
    if held and None not in keys and _are_all(keys, state):
        return [_Pair(child, state[k], k) for (_, child), k in zip(held, keys, strict=True)]
    attribute, names = step_names(node.value) or ("", None)
    if names is None or [step.entry for step, _ in held] != [attribute]:
        return None
    layers = [child for _, child in held[0][1].children()]
    named = [(n, child) for n, child in zip(names, layers, strict=True) if holds_tensors(child.value)]
    if all(n in state for n, _ in named) and _are_all([n for n, _ in named], state):
        return [_Pair(child, state[n], n) for n, child in named]
    return None


def _are_all(keys: Sequence[Any], state: Mapping[Any, Any]) -> bool:
    return not any(holds_arrays(x) for k, x in state.items() if k not in keys)


def _by_number(node: _Node, state: Any) -> list[_Pair] | None:
    """Each item with its part of the state, if both are lists of one length."""
    if not isinstance(state, (list, tuple)) or not isinstance(node.value, (list, tuple)):
        return None
    items = list(enumerate(state))
    every = [child for _, child in node.children()]
    held = [child for child in every if holds_tensors(child.value)]
    full = [(i, x) for i, x in items if holds_arrays(x)]
    for children, chosen in ((every, items), (held, full)):
        fits = len(children) == len(chosen) and all(
            holds_tensors(child.value) == holds_arrays(x)
            for child, (_, x) in zip(children, chosen, strict=True)
        )
        if fits and not any(is_array(x) for _, x in chosen):
            pairs = [_Pair(child, x, i) for child, (i, x) in zip(children, chosen, strict=True)]
            return [pair for pair in pairs if holds_tensors(pair.node.value)]
    return None


def _in_order(node: _Node, state: Any, place: str, framework: str) -> list[Match]:
    """All layers below a node, by class and number, or in order."""
    below = layers_below(node.value, node.path, node.entries, framework)
    chosen = None
    if isinstance(state, Mapping):
        while len(state) == 1 and isinstance(inner := next(iter(state.values())), Mapping):
            if any(is_array(x) for x in inner.values()) and below:
                break
            state = inner
        chosen = _by_class({k: x for k, x in state.items() if holds_arrays(x)}, below)
    elif isinstance(state, (list, tuple)):
        chosen = _by_place(state, below)
    if chosen is None:
        _refuse(node.path, below, state, place, framework)
    return [Match(site, site.path, x, f"{place}[{k!r}]") for site, (k, x) in zip(below, chosen, strict=True)]


_NUMBERED = re.compile(r"(.*?)(?:_(\d+))?", re.DOTALL)


def _by_class(state: Mapping[Any, Any], below: list[Site]) -> list[tuple[Any, Any]] | None:
    """The entries ``Dense_0``, ``Dense_1``, … of a state for the layers of a class, by number."""
    by_name: dict[str, list[tuple[int, Any, Any]]] = {}
    for key, x in state.items():
        name, number = _NUMBERED.fullmatch(str(key)).groups()  # type: ignore[union-attr]
        by_name.setdefault(name, []).append((int(number or 0), key, x))
    queues = {name: sorted(found, key=lambda f: f[0]) for name, found in by_name.items()}
    chosen = []
    for site in below:
        name = next((n for n in site.names() if queues.get(n)), None)
        if name is None:
            return None
        _, key, x = queues[name].pop(0)
        chosen.append((key, x))
    return chosen if not any(queues.values()) else None


def _by_place(state: Sequence[Any], below: list[Site]) -> list[tuple[Any, Any]] | None:
    """The entries of a list for layers in order: a dict or list a layer, or all arrays in a row."""
    full = [(i, x) for i, x in enumerate(state) if holds_arrays(x)]
    if not any(is_array(x) for _, x in full) and len(full) == len(below):
        return full
    arrays, chosen = arrays_in_a_row(state), []
    counts = [sum(len(part.theirs) for part in site.parts()) for site in below]
    if len(arrays) != sum(counts):
        return None
    start = 0
    for n in counts:
        chosen.append((start, arrays[start : start + n]))
        start += n
    return chosen


def _refuse(path: str, below: list[Site], state: Any, place: str, framework: str) -> NoReturn:
    ours = ", ".join(f"{site.path} ({type(site.layer).__name__})" for site in below) or "no layer"
    if isinstance(state, Mapping):
        theirs = f"the names {', '.join(map(str, state))}"
    elif isinstance(state, (list, tuple)):
        theirs = f"a list of {len(state)}"
    else:
        theirs = f"a {type(state).__name__}"
    called = ", ".join(dict.fromkeys(f"{site.names()[0]}_0" for site in below))
    raise ValueError(
        f"the {framework} state has {theirs} at {place or 'its root'}, and the model has "
        f"{ours} at {path or 'its root'}; give a dict with the model's own names, "
        + (f"names such as {called}, " if called else "")
        + "or a list with an entry for each of these layers in order"
    )
