"""A model as nested dicts of tensors and plain values, and back."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fluxlike.trees import paths
from fluxlike.trees.found import found
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["fit", "is_plain", "load_state_dict", "state_dict"]

_LISTED = 10  # mismatches in an error

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def is_plain(x: object, /) -> bool:
    """Whether a leaf is a value that can be written down, as functions and other objects can't."""
    return type(x) in _PLAIN or isinstance(x, (Tensor, Assigned, np.ndarray, np.generic))


def state_dict(tree: Any, /) -> Any:
    """A tree as nested dicts: attribute names, keys and indices lead to tensors and plain values.

    Args:
        tree: any tree.

    Returns:
        A dict for every node that holds values. Functions and other objects are left out; tensors
        are the tree's own, not copies.

    Example:
        >>> import fluxlike as fl
        >>> d = fl.state_dict(fl.Chain(fl.Dense(2, 1), fl.relu))
        >>> d["layers"][0]["bias"]
        tensor([0.])
        >>> list(d["layers"])
        [0]
    """
    flatten(tree)
    return _nested(tree)


def _nested(node: Any) -> Any:
    if not paths.is_node(node):
        return node
    return {
        step.entry: _nested(child)
        for step, child in paths.children(node)
        if paths.is_node(child) or is_plain(child)
    }


def load_state_dict(tree: Any, d: Any, /) -> Any:
    """A new tree with the tensors and plain values of a state dict.

    Args:
        tree: the tree to take the structure, the ties and everything that is no plain value from.
        d: nested dicts, as `state_dict` returns them.

    Returns:
        A tree of the same structure; `tree` is unchanged.

    Raises:
        ValueError: something is missing, is not in the tree, has another shape, dtype or type, or
            differs between places that are tied. The first ten mismatches are named.
        TypeError: `d` is a tree of another kind, or stands before the tree.

    Example:
        >>> import torch, fluxlike as fl
        >>> a, b = fl.Dense(2, 1), fl.Dense(2, 1)
        >>> fl.tree.allclose(fl.load_state_dict(a, fl.state_dict(b)), b)
        True
    """
    flatten(tree)
    if not isinstance(d, dict) and paths.is_node(d):
        if isinstance(tree, dict):
            raise TypeError(
                f"load_state_dict takes a tree, then its state, found {found(tree)} and {found(d)}; write "
                "load_state_dict(model, d)"
            )
        raise TypeError(
            f"load_state_dict takes nested dicts, found {found(d)} as the state; write load_state_dict(tree, "
            "fluxlike.state_dict(other))"
        )
    try:
        return fit(tree, dict(_places(tree, d, "")), what="the state")
    except ValueError as error:
        if isinstance(d, dict) and any(type(name) is str and "." in name for name in d):
            raise ValueError(
                f"{error}\nits names have dots, as in torch: such a dict is read by "
                "fluxlike.load_checkpoint(d, model)"
            ) from None
        raise


def fit(
    tree: Any, found: dict[str, Any], /, *, what: str, faults: Sequence[str] = (), skip: Container[str] = ()
) -> Any:
    """A new tree with the tensors and plain values `found` by path; `what` names them in errors.

    `faults` are mismatches known already, to be named with the others; places in `skip` have one.

    Raises:
        ValueError: as `load_state_dict`.
    """
    leaves, treedef = flatten(tree)
    structure = structure_of(treedef)
    where, trainable = structure.paths, structure.trainable
    wanted = {where[i]: i for i, x in enumerate(leaves) if is_plain(x)}
    faults = list(faults)
    faults += [f"{p or 'the root'} is missing" for p in wanted if p not in found and p not in skip]
    faults += [f"{p or 'the root'} is not in the model" for p in found if p not in wanted]
    result = list(leaves)
    loaded: dict[int, tuple[int, Tensor]] = {}  # a tied tensor of the tree → first place, value
    given: dict[int, int] = {}  # a tensor found → the tensor of the tree that it went to
    for path, i in wanted.items():
        if path not in found:
            continue
        old, new = leaves[i], found[path]
        if type(old) is float and type(new) is int and abs(new) < 2**53:
            new = float(new)
        fault = _mismatch(old, new)
        if fault:
            faults.append(f"{path or 'the root'} {fault}")
            continue
        if isinstance(old, Tensor):
            if id(old) in loaded:
                first, value = loaded[id(old)]
                if new is value or _equal(new, value):
                    new = value
                elif old.ndim or trainable[i]:
                    faults.append(f"{path} is tied to {where[first]} in the model, but their values differ")
                # else a counter of an optimiser's state, which parameters share until they part
            elif given.setdefault(id(new), id(old)) != id(old):
                new = new.clone()  # one tensor found at two places must not tie two of the model
            loaded.setdefault(id(old), (i, new))
        result[i] = new
    if faults:
        lines = [_line(fault) for fault in faults[:_LISTED]]
        if len(faults) > _LISTED:
            lines.append(f"… and {len(faults) - _LISTED} more")
        raise ValueError(f"{what} does not fit the model:\n  " + "\n  ".join(lines))
    return treedef.unflatten(result)


def _line(text: str) -> str:
    """A mismatch in print: paths from a file may hold anything, and be as long as it is."""
    cut = text if len(text) <= 400 else f"{text[:300]}… ({len(text)} characters)"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def _places(node: Any, d: Any, path: str) -> list[tuple[str, Any]]:
    """Every value of a state dict with the path that it has, or would have, in the tree."""
    if not isinstance(d, dict):
        return [(path, d)]
    steps = {step.entry: (step.text, child) for step, child in paths.children(node)}
    found: list[tuple[str, Any]] = []
    for key, value in d.items():
        text, child = steps.get(key, (f"[{key!r}]", None))
        found += _places(child, value, path + text)
    return found


def _mismatch(old: Any, new: Any) -> str | None:
    numbers = type(old) is int and type(new) is float
    if isinstance(old, Tensor) != isinstance(new, Tensor) or (
        type(old) is not type(new) and not isinstance(old, Tensor) and not numbers
    ):
        return f"is a {type(new).__name__}, the model has a {type(old).__name__}"
    if isinstance(old, Assigned):
        return _mismatch(old.value, new.value)
    if isinstance(old, (Tensor, np.ndarray, np.generic)):
        if old.shape != new.shape:
            return f"has the shape {tuple(new.shape)}, the model has {tuple(old.shape)}"
        if old.dtype != new.dtype:
            return f"is of {new.dtype}, the model of {old.dtype}; convert one of them first"
    return None


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and bool((a == b).logical_or((a != a) & (b != b)).all())
