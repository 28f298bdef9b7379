"""Where the layers of a Keras model that has other models in it belong in a model of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fluxlike.bridges.foreign_files.faults import FileFault
from fluxlike.placement.foreign.numbering import holds_tensors
from fluxlike.placement.foreign.parameters import Site, require_known, rule_of
from fluxlike.trees import paths
from fluxlike.trees.step_names import step_names

__all__ = ["placed"]


def placed(model: Any, state: Any, /) -> Any:
    """A checkpoint by our own names, wherever a Keras model has models among its layers.

    Keras numbers the layers of each model apart, and a file does not say in which order layers of
    different classes are; so the models of one class go to our Chains in order.

    Raises:
        FileFault: models of several classes, or another number of them than of Chains here.
        TypeError: a tensor of the model belongs to no class with a rule.
    """
    if not isinstance(state, dict):
        return state
    layers = state.get("layers")
    if isinstance(layers, dict) and any(map(_is_model, layers.values())):
        if len(state) > 1:
            beside = ", ".join(k for k in state if k != "layers")
            raise FileFault(f"a Keras model has layers, and beside them {beside}")
        return _Model(model, layers).placed()
    if isinstance(layers, dict) and len(state) == 1:
        return state
    children = {str(step.entry): child for step, child in paths.children(model)}
    return {name: placed(children[name], x) if name in children else x for name, x in state.items()}


def _is_model(entry: Any) -> bool:
    return isinstance(entry, dict) and "layers" in entry


class _Model:
    """One of our containers, with the layers that Keras has in one model."""

    def __init__(self, node: Any, layers: dict[str, Any]) -> None:
        self._node = node
        self._queues: dict[str, list[tuple[int, Any]]] = {}
        self._models: list[tuple[int, Any]] = []
        self._kinds: set[str] = set()
        for name, entry in layers.items():
            kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", name, re.DOTALL).groups()  # type: ignore[union-attr]
            if _is_model(entry):
                self._kinds.add(kind)
                self._models.append((int(number or 0), entry))
            else:
                self._queues.setdefault(kind, []).append((int(number or 0), entry))
        for queue in (self._models, *self._queues.values()):
            queue.sort(key=lambda found: found[0])
        self._done: dict[int, Any] = {}

    def placed(self) -> Any:
        chains = {id(chain) for chain in _chains(self._node)}
        if len(self._kinds) > 1 or len(chains) != len(self._models):
            raise FileFault(
                f"the Keras model has {len(self._models)} models in it ({', '.join(sorted(self._kinds))}), "
                f"and ours {len(chains)} Chains; if they are not in one order, read the file by read_keras, "
                "and give load_foreign_state the parts by your own names"
            )
        found = self._at(self._node, "", None)
        left = [f"{kind} ({len(queue)})" for kind, queue in self._queues.items() if queue]
        if left:
            raise FileFault(f"the Keras model has layers for which ours has none: {', '.join(left)}")
        return found

    def _at(self, node: Any, path: str, owner: Any) -> Any:
        if id(node) in self._done:
            return self._done[id(node)]
        rule = rule_of(node, "keras")
        if rule is not None:
            found = self._layer(Site(path, (), node, rule))
        elif node is not self._node and step_names(node) is not None:
            found = placed(node, self._models.pop(0)[1])
        else:
            require_known(path, node, owner, "keras")
            steps = [(step, child) for step, child in paths.children(node) if holds_tensors(child)]
            found = {step.entry: self._at(child, path + step.text, node) for step, child in steps}
        if paths.is_node(node):
            self._done[id(node)] = found
        return found

    def _layer(self, site: Site) -> Any:
        if not site.parts():
            return {}
        name = next((n for n in site.names() if self._queues.get(n)), None)
        if name is None:
            left = ", ".join(f"{kind} ({len(queue)})" for kind, queue in self._queues.items() if queue)
            raise FileFault(
                f"{site.path} ({type(site.layer).__name__}) is a {site.names()[0]} in Keras, and the file "
                f"has no more of them; it has {left or 'nothing'} left"
            )
        return self._queues[name].pop(0)[1]


def _chains(node: Any, root: bool = True) -> Iterator[Any]:
    """The topmost Chains below a node that hold tensors."""
    if rule_of(node, "keras") is not None or not paths.is_node(node) or not holds_tensors(node):
        return
    if not root and step_names(node) is not None:
        yield node
        return
    for _, child in paths.children(node):
        yield from _chains(child, False)
