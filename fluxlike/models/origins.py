"""How other libraries name and lay out the weights of a network of the zoo."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxlike.layers.steps import Steps

__all__ = ["Origin", "Rules", "Squeezed", "Tensors", "packed"]

Rules = tuple[tuple[str, str | None], ...]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Origin:
    """How a library names the weights of a model, and which arrays it lays out otherwise.

    Attributes:
        library: its name, such as ``"torchvision"``.
        rules: pairs ``(pattern, replacement)``; `re.sub` applies them in order to each name. None drops what
            the pattern fits. Names of steps of a Chain may stand for their numbers.
        prepare: makes tensors of our shapes, by the library's names, from the library's. (default: None)
    """

    library: str
    rules: Rules
    prepare: Callable[[Tensors], Tensors] | None = None

    def renamed(self, name: str, model: Any) -> str | None:
        """The dotted place in a model of the name in the library's checkpoint, None for one to drop."""
        for pattern, replacement in self.rules:
            if replacement is not None:
                name = re.sub(pattern, replacement, name)
            elif re.search(pattern, name):
                return None
        return _numbered(name, model)


def _numbered(name: str, model: Any) -> str:
    """A dotted name with the layers of Chains by number."""
    node, found = model, []
    for part in name.split("."):
        if isinstance(node, Steps):
            names = node.names or ()
            if part in names or part.isdecimal():
                i = names.index(part) if part in names else int(part)
                found += ["layers", str(i)]
                node = node.layers[i] if i < len(node.layers) else None
                continue
        found.append(part)
        if isinstance(node, (tuple, list)) and part.isdecimal():
            node = node[int(part)] if int(part) < len(node) else None
        else:
            node = getattr(node, "__dict__", {}).get(part)
    return ".".join(found)


def packed(tensors: Tensors, three: tuple[str, str, str], joined: str) -> Tensors:
    """For an `Origin`: one projection for queries, keys and values in place of three.

    Args:
        tensors: the library's, by name.
        three: the parts of names that are of queries, of keys and of values.
        joined: what stands there in the name of the one.

    Raises:
        KeyError: keys or values lack beside queries.

    Example:
        >>> import torch
        >>> theirs = {f"0.{part}.bias": torch.ones(2) for part in ("query", "key", "value")}
        >>> {name: x.shape for name, x in packed(theirs, (".query.", ".key.", ".value."), ".qkv.").items()}
        {'0.qkv.bias': torch.Size([6])}
    """
    found, query = dict(tensors), three[0]
    for name in tensors:
        if query in name:
            parts = [found.pop(name.replace(query, part)) for part in three]
            found[name.replace(query, joined)] = torch.cat(parts)
    return found


@dataclass(frozen=True)
class Squeezed:
    """For an `Origin`: what drops axes of length one of the tensors whose names a pattern fits.

    Attributes:
        pattern: as `re.search` takes it.
        axes: the axes; those that a tensor does not have, or that are longer, stay as they are.
    """

    pattern: str
    axes: tuple[int, ...]

    def __call__(self, tensors: Tensors) -> Tensors:
        return {
            name: x.squeeze(tuple(a for a in self.axes if a < x.ndim)) if re.search(self.pattern, name) else x
            for name, x in tensors.items()
        }
