"""What a file says of a tree: its leaves and nodes as JSON, written, read back and compared.

Functions and other objects are written as their names, to be compared, never imported.
"""

from __future__ import annotations

import base64
import enum
import functools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import optree

from fluxlike.files.printing import shown
from fluxlike.files.sealed import sealed, unsealed
from fluxlike.trees import paths
from fluxlike.trees.functor import NAMESPACE, spec_of
from fluxlike.trees.nodes import PIN
from fluxlike.trees.records import is_printable, plain_settings, settings_of
from fluxlike.trees.show import value_text
from fluxlike.trees.state_dict import is_plain

__all__ = [
    "STORED", "Description", "Places", "compare_names", "compare_nodes", "parse", "plain_entry",
    "plain_value", "written", "path_steps",
]  # fmt: skip

#: The kinds of leaves whose values are stored as tensors.
STORED = ("tensor", "assigned", "array", "scalar")

_VERSION = 2


@dataclass(frozen=True)
class Description:
    """What a file says of a tree: each leaf and each node by path, and of each tensor its CRC-32 by name."""

    leaves: dict[str, dict[str, Any]]
    nodes: dict[str, dict[str, Any]]
    checksums: dict[str, int]

    def names(self) -> dict[str, str]:
        """The names of functions and other objects by path."""
        return {path: entry["name"] for path, entry in self.leaves.items() if "name" in entry}

    def names_of_tensors(self) -> dict[str, str]:
        """By the path of each leaf that is a tensor, the name under which it is stored."""
        return {path: entry["tensor"] or "tree" for path, entry in self.leaves.items() if "tensor" in entry}

    def stored(self) -> list[str]:
        """The names of stored tensors, in the order of the leaves."""
        named = ((e[kind] or "tree") for e in self.leaves.values() for kind in STORED if kind in e)
        return [*dict.fromkeys(named)]

    def text(self) -> str:
        """The description as JSON that ends in a checksum of itself."""
        parts = {"leaves": self.leaves, "nodes": self.nodes, "checksums": self.checksums}
        return sealed({"version": _VERSION, **parts})


def written(tree: Any, leaves: dict[str, dict[str, Any]], checksums: dict[str, int], /) -> str:
    """The description of a tree as JSON that ends in a checksum of itself."""
    return Description(leaves, dict(_nodes(tree, "")), checksums).text()


def parse(text: str, /) -> Description:
    """What `written` wrote.

    Raises:
        ValueError: it is not to be read, or was changed.
    """
    about = unsealed(text, _VERSION)
    leaves, nodes, checksums = about.get("leaves"), about.get("nodes"), about.get("checksums")
    if not (isinstance(leaves, dict) and isinstance(nodes, dict) and isinstance(checksums, dict)):
        raise ValueError("its leaves, nodes and checksums are not objects")
    for path, entry in leaves.items():
        if not isinstance(entry, dict) or not _is_entry(entry):
            raise ValueError(f"{shown(path)} is described by {shown(entry)}")
    for path, node in nodes.items():
        if not isinstance(node, dict) or node.keys() != {"class", "settings"} or not _is_node(node):
            raise ValueError(f"the node {shown(path)} is described by {shown(node)}")
    return Description(leaves, nodes, checksums)


def _is_entry(entry: dict[str, Any]) -> bool:
    kind = next(iter(entry), "")
    if kind in STORED:
        views = entry.keys() == {kind} or (entry.keys() == {kind, "as"} and entry["as"] == "complex128")
        return isinstance(entry[kind], str) and views
    value = entry.get(kind)
    if len(entry) != 1 or kind not in ("name", "bytes", "float", "complex", "value"):
        return False
    if kind == "complex":
        return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)
    if kind == "value":
        return value is None or isinstance(value, (bool, int, float, str))
    return isinstance(value, str)


def _is_node(node: dict[str, Any]) -> bool:
    settings = node["settings"]
    return (
        isinstance(node["class"], str)
        and isinstance(settings, dict)
        and all(isinstance(text, str) for text in settings.values())
    )


def plain_entry(x: Any, /) -> dict[str, Any]:
    """What a file says of a leaf that is no tensor: its value, or its name."""
    if isinstance(x, enum.Enum):
        return {"name": _object_name(x)}
    if isinstance(x, bytes):
        return {"bytes": base64.b64encode(x).decode()}
    if isinstance(x, complex):
        return {"complex": [repr(x.real), repr(x.imag)]}
    if isinstance(x, float) and not math.isfinite(x):
        return {"float": repr(float(x))}
    if x is None or type(x) in (bool, int, float, str):
        return {"value": x}
    return {"name": _object_name(x)}


def plain_value(entry: dict[str, Any], /) -> Any:
    """The value of a leaf that is neither a tensor nor named only.

    Raises:
        ValueError: it is no number, or no base64.
    """
    if "bytes" in entry:
        return base64.b64decode(entry["bytes"], validate=True)
    if "complex" in entry:
        return complex(*map(float, entry["complex"]))
    return float(entry["float"]) if "float" in entry else entry["value"]


def _object_name(x: Any) -> str:
    if isinstance(x, enum.Enum):
        return f"{type(x).__name__}.{x.name}"
    if isinstance(x, functools.partial):
        given = [repr(a) if is_printable(a) else _object_name(a) for a in (*x.args, *x.keywords.values())]
        labels = [*[""] * len(x.args), *(f"{k}=" for k in x.keywords)]
        inside = "".join(f", {label}{text}" for label, text in zip(labels, given, strict=True))
        return f"partial({_object_name(x.func)}{inside})"
    return getattr(x, "__name__", None) or f"{type(x).__name__} object"


def _nodes(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each node its class by name, and in print the attributes that are not children, where plain,
    or what they say of their settings."""
    if not paths.is_node(node):
        return
    settings: dict[str, str] = {}
    if spec_of(type(node)) is not None:
        static: Any = optree.tree_flatten_one_level(node, none_is_leaf=True, namespace=NAMESPACE)[1]
        riding = static[1].values
        for rider in riding.values():
            settings |= settings_of(rider)
        settings |= plain_settings(riding)
    yield path, {"class": type(node).__name__, "settings": settings}
    for step, child in paths.children(node):
        yield from _nodes(child, path + step.text)


def compare_names(wanted: dict[str, Any], names: dict[str, str], found: dict[str, Any]) -> list[str]:
    """What is wrong with the functions and other objects of the model."""
    faults = []
    for path, x in wanted.items():
        place, here = path or "the root", value_text(x)
        if is_plain(x):
            if path in names:
                faults.append(f"{place} is {names[path]} in the file, the model has {here}")
        elif path in found:
            faults.append(f"{place} is a {type(found[path]).__name__} in the file, the model has {here}")
        elif path not in names:
            faults.append(f"{place} is missing")
        elif names[path] != _object_name(x):
            faults.append(f"{place} is {names[path]} in the file, the model has {here}")
    return faults + [f"{p} is not in the model" for p in names if p not in wanted]


def compare_nodes(like: Any, nodes: dict[str, Any]) -> dict[str, str]:
    """By path, what is wrong with the classes and settings: other ones would give other predictions."""
    faults = {}
    wanted = dict(_nodes(like, ""))
    for path, mine in wanted.items():
        theirs = nodes.get(path)
        if theirs is None:
            continue  # its leaves are missing too, or it has none and is named below
        if theirs["class"] != mine["class"]:
            found = theirs["class"]
            faults[path] = f"{path or 'the root'} is a {found} in the file, the model has a {mine['class']}"
            continue
        for name in {**mine["settings"], **theirs["settings"]}:
            a, b = theirs["settings"].get(name), mine["settings"].get(name)
            # A setting that only one of them has was added to the class, or removed; a pin was not.
            if a != b and (name == PIN or (a is not None and b is not None)):
                what = f"the pinned mode of {path or 'the root'}" if name == PIN else f"{path}.{name}"
                faults[f"{path}.{name}"] = f"{what} is {a} in the file, the model has {b}"
    for path in (p for p in nodes if p not in wanted):
        faults[path] = f"{path} is a {nodes[path]['class']} in the file, the model has none"
    for path in (p for p in wanted if p not in nodes):
        faults[path] = f"{path} is a {wanted[path]['class']} in the model, the file has none"
    return faults


class Places:
    """Some places of a tree, to be asked which paths lie below them: there, their own mismatch says all."""

    def __init__(self, places: Iterable[str]) -> None:
        self._root: dict[str | None, Any] = {}
        for place in places:
            node = self._root
            for step in path_steps(place):
                node = node.setdefault(step, {})
            node[None] = True

    def above(self, path: str) -> bool:
        """Whether one of the places lies above a path."""
        node = self._root
        for step in path_steps(path):
            if None in node:
                return True
            if step not in node:
                return False
            node = node[step]
        return False


#: A name, or what stands in brackets, where strings may hold brackets too.
_STEP = re.compile(
    r"""\.[^.\[]++ | \[(?: '(?:[^'\\]|\\.)*+' | "(?:[^"\\]|\\.)*+" | [^\]'"] )*+\]""", re.VERBOSE | re.DOTALL
)


def path_steps(path: str, /) -> Iterator[str]:
    """The steps of a path: ``.layers`` and ``[0]`` of ``.layers[0]``."""
    start = 0
    while step := _STEP.match(path, start):
        yield step.group()
        start = step.end()
    if start < len(path):
        yield path[start:]
