"""The tensors of a model as nested dicts, in the layout and under the names of another framework."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from fluxlike.placement.foreign.convert import parts_of
from fluxlike.placement.foreign.numbering import holds_tensors, layers_below
from fluxlike.placement.foreign.parameters import Site, rule_of, slots
from fluxlike.trees import paths
from fluxlike.trees.step_names import step_names
from fluxlike.trees.values import value_of

__all__ = ["Writer"]


class Writer:
    """The tensors of a model as nested dicts, of one of Flax' collections."""

    def __init__(self, framework: str, crosscor: set[tuple[Any, ...]], collection: str) -> None:
        self._framework, self._crosscor, self._collection = framework, crosscor, collection

    def nested(self, node: Any, path: str, entries: tuple[Any, ...]) -> Any:
        rule = rule_of(node, self._framework)
        if rule is not None:
            return self._layer(Site(path, entries, node, rule))
        if isinstance(node, Tensor):
            return value_of(node)
        children = [(s, child, path + s.text, (*entries, s.entry)) for s, child in paths.children(node)]
        if self._framework == "flux" and isinstance(node, (tuple, list)) and not hasattr(node, "_fields"):
            return tuple(
                self.nested(child, p, e) if holds_tensors(child) else () for _, child, p, e in children
            )
        if self._framework != "flux":
            container = step_names(node)
            if container is not None and container[1] is not None:
                (items, path, entries) = next(c[1:] for c in children if c[0].entry == container[0])
                return {
                    name: self.nested(child, path + s.text, (*entries, s.entry))
                    for name, (s, child) in zip(container[1], paths.children(items), strict=True)
                    if self._has(child)
                }
            if container is not None or (isinstance(node, (tuple, list)) and not hasattr(node, "_fields")):
                return self._numbered(node, path, entries)
        return {s.entry: self.nested(child, p, e) for s, child, p, e in children if self._has(child)}

    def _has(self, node: Any) -> bool:
        if isinstance(node, Tensor):
            return holds_tensors(node) and self._collection == "params"
        rule = rule_of(node, self._framework)
        if rule is not None:
            parts = Site("", (), node, rule).parts()
            return any(p.collection == self._collection for p in parts)
        return any(self._has(child) for _, child in paths.children(node))

    def _numbered(self, node: Any, path: str, entries: tuple[Any, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        counts: Counter[str] = Counter()
        for site in layers_below(node, path, entries, self._framework):
            name = site.names()[0]
            number = counts[name]
            counts[name] += 1
            if self._has(site.layer):
                bare = self._framework == "keras" and number == 0
                result[name if bare else f"{name}_{number}"] = self._layer(site)
        return result

    def _layer(self, site: Site) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for part in parts_of(site, self._framework, self._crosscor):
            if part.collection != self._collection:
                continue
            ours = [value_of(x) if isinstance(x, Tensor) else x for _, x in slots(site, part)]
            try:
                arrays = part.write(*ours)
            except ValueError as error:
                raise ValueError(
                    f"{site.path or 'the layer'} ({type(site.layer).__name__}): {error}"
                ) from error
            for names, x in zip(part.theirs, arrays, strict=True):
                *above, last = names.split("|")[0].split(".")
                inner = result
                for name in above:
                    inner = inner.setdefault(name, {})
                inner[last] = x
        return result
