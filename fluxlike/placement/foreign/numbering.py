"""The layers of a model in order, as other frameworks number them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fluxlike.placement.foreign.parameters import Site, require_known, rule_of
from fluxlike.trees import paths

__all__ = ["holds_tensors", "layers_below"]


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
