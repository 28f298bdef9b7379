"""A tree that is watched during one run: what was in it before, and what differs afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import optree
import torch
from torch import Tensor

from fluxlike.transforms.outside import reached
from fluxlike.transforms.purity.copies import Copies, differ
from fluxlike.trees.functor import NAMESPACE, spec_of
from fluxlike.trees.nodes import riding
from fluxlike.trees.paths import children, is_node
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Watched"]


class _Leaf(NamedTuple):
    """A leaf that the function sees, and what it was before."""

    place: str
    value: Any
    kind: type
    old: Any
    grad: Tensor | None


class Watched:
    """A tree that a function gets, or closes over.

    Attributes:
        tree: what the function sees.
        leaves: its leaves, of a tie the first.
    """

    def __init__(self, tree: Any, name: str, before: list[Any], *, closed_over: bool) -> None:
        self.tree, self._name, self._closed_over = tree, name, closed_over
        leaves, treedef = flatten(tree)
        self._was = dict(zip(structure_of(treedef).paths, leaves, strict=True))
        self.leaves: list[_Leaf] = []
        seen: set[int] = set()
        for path, x, old in zip(self._was, leaves, before, strict=True):
            if id(x) not in seen:
                seen.add(id(x))
                self.leaves.append(_Leaf(self._place(path), x, type(x), old, _grad(x)))
        self._riding = list(_riding(tree, "", Copies()))

    @classmethod
    def copied(cls, tree: Any, name: str, copies: Copies) -> Watched:
        """A copy of a tree."""
        leaves, treedef = flatten(tree)
        fresh = treedef.unflatten([copies.leaf(x) for x in leaves])
        for _, node, values in _riding(fresh, "", copies):
            for attribute, value in values.items():
                object.__setattr__(node, attribute, value)
        return cls(fresh, name, leaves, closed_over=False)

    @classmethod
    def closed_over(cls, f: Callable[..., Any]) -> list[Watched]:
        """The trees that a function reaches by a name of its own, themselves."""
        found = []
        for name, value in _names_in(f).items():
            if isinstance(value, torch.nn.Module):
                value = {**dict(value.named_parameters()), **dict(value.named_buffers())}
            try:
                leaves, _ = flatten(value)
            except (TypeError, ValueError):  # no tree
                continue
            if is_node(value) or isinstance(value, (Tensor, torch.Generator, np.ndarray)):
                copies = Copies()
                before = [copies.leaf(x) for x in leaves]
                found.append(cls(value, f"the closed-over {name}", before, closed_over=True))
        return found

    def _place(self, path: str) -> str:
        return f"{path} of {self._name}" if path else self._name

    def differences(self, known: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
        """What differs from before, as pairs (place, operation), beside what is `known`."""
        for leaf in self.leaves:
            if type(leaf.value) is not leaf.kind:  # donation makes a tensor unreadable
                yield leaf.place, "donating it"
                continue
            if leaf.place not in known and differ(leaf.value, leaf.old):
                yield leaf.place, "something that torch does not show, such as numpy or .data"
            grad = _grad(leaf.value)
            if grad is not leaf.grad or (grad is not None and differ(grad, leaf.old.grad)):
                yield leaf.place, "backward(), which fills .grad"
        yield from self._entries()
        for path, node, values in self._riding:
            current = riding(node)
            for name in {**values, **current}:
                if name not in values or name not in current or _unlike(current[name], values[name]):
                    yield self._place(f"{path}.{name}"), "setting it"

    def _entries(self) -> Iterator[tuple[str, str]]:
        """The attributes and entries that were set or deleted."""
        leaves, treedef = optree.tree_flatten(self.tree, none_is_leaf=True, namespace=NAMESPACE)
        now = dict(zip(structure_of(treedef).paths, leaves, strict=True))
        for path in {**self._was, **now}:
            if path not in now:
                yield self._place(path), "deleting it"
            elif path not in self._was or _replaced(now[path], self._was[path]):
                yield self._place(path), "setting it"

    def put_back(self) -> None:
        """Give what a function closes over its contents of before."""
        if not self._closed_over:
            return
        for _, x, kind, old, _ in self.leaves:
            if type(x) is not kind:
                continue
            if isinstance(x, Tensor) and x.shape == old.shape and differ(x, old):
                x.detach().copy_(old.detach())
            elif isinstance(x, torch.Generator):
                x.set_state(old.get_state())
            elif isinstance(x, np.ndarray) and differ(x, old):
                x[...] = old


def _grad(x: Any) -> Tensor | None:
    return x.grad if isinstance(x, Tensor) and x.is_leaf else None


def _riding(node: Any, path: str, copies: Copies) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Every object of a registered class, with copies of its attributes that are no children."""
    if spec_of(type(node)) is not None and not isinstance(node, type):
        yield path, node, {name: copies.leaf(value) for name, value in riding(node).items()}
    for step, child in children(node):
        yield from _riding(child, path + step.text, copies)


def _replaced(now: Any, was: Any) -> bool:
    """Whether a leaf is another one: of tensors another object, of constants another value."""
    return now is not was and (isinstance(now, Tensor) or _unlike(now, was))


def _unlike(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return True
    if isinstance(a, (Tensor, np.ndarray, torch.Generator)):
        return differ(a, b)
    try:
        return a is not b and not bool(a == b)
    except (ValueError, RuntimeError, TypeError):  # arrays inside: only the same is equal
        return True


def _names_in(f: Any) -> dict[str, Any]:
    """What a function closes over, by name."""
    if isinstance(f, functools.partial):
        given = {f"argument {i} of partial": x for i, x in enumerate(f.args)}
        return {**_names_in(f.func), **given, **f.keywords}
    found = reached(f)
    if isinstance(f, torch.nn.Module):
        found["module"] = found.pop("self")
    return found
