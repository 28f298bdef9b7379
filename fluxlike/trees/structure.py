"""Flatten and rebuild, with the checks that every transform relies on.

`flatten` is the only door into a tree: it names objects of unregistered classes that hold
tensors, registers subclasses of functors on first sight, and reports cycles. What depends on the
structure alone (paths, which places are trainable) is worked out once a treedef.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, NoReturn

import optree
import torch

from fluxlike.trees import paths
from fluxlike.trees.containers import is_known
from fluxlike.trees.functor import NAMESPACE, is_plain_class, spec_of
from fluxlike.trees.leaves import is_harmless, what_holds_tensors
from fluxlike.trees.nodes import TENSORS_RIDE

__all__ = ["Structure", "flatten", "leaves_like", "require_same", "structure_of"]

IsLeaf = Callable[[Any], bool]


def flatten(tree: Any, /, is_leaf: IsLeaf | None = None) -> tuple[list[Any], optree.PyTreeSpec]:
    """All leaves of a tree, constants and None included, and its treedef.

    Raises:
        TypeError: an object of an unregistered class holds tensors.
        ValueError: the tree contains itself.
    """
    for _ in range(100):  # each round registers at least one class; one is the usual number
        try:
            leaves, treedef = optree.tree_flatten(tree, is_leaf, none_is_leaf=True, namespace=NAMESPACE)
        except RecursionError as error:
            _report_cycle(tree, error)
        types = set(map(type, leaves))
        if is_harmless(types) or not _look_closer(leaves, treedef, is_leaf):
            return leaves, treedef
    raise RuntimeError("registering subclasses on first sight does not come to an end")


def _look_closer(leaves: list[Any], treedef: optree.PyTreeSpec, is_leaf: IsLeaf | None) -> bool:
    """Whether a class was registered on first sight, so that the tree must be flattened again."""
    for i, x in enumerate(leaves):
        if is_leaf is not None and is_leaf(x):
            continue
        if is_known(type(x)):
            return True  # now, or by another thread since the tree was flattened
        held = what_holds_tensors(x)
        if held is not None:
            _report_unregistered(structure_of(treedef).paths[i], x, held)
    return False


def _report_unregistered(path: str, x: Any, held: str) -> NoReturn:
    place = path or "the tree itself"
    name = type(x).__qualname__
    if isinstance(x, torch.nn.Module):
        hint = (
            "a torch.nn.Module keeps its parameters to itself; write fluxlike.from_torch(module), whose "
            "result is a tree"
        )
    elif type(x).__name__ in ("partial", "method"):
        hint = (
            "its tensors would be treated as constants; make it a class with a __call__, registered with "
            "@fluxlike.functor"
        )
    elif not is_plain_class(type(x)):
        hint = (
            "it would be treated as a constant; hold its content in a list, a tuple or a dict, or in a class "
            "registered with @fluxlike.functor"
        )
    else:
        hint = (
            f"register the class: put @fluxlike.functor above {name}, or call "
            f"fluxlike.functor({name}); if its tensors are not parameters, fluxlike.leaf({name}) "
            "makes it a constant"
        )
    raise TypeError(f"{place} is a {name}, which is not registered and holds a tensor at {held}: {hint}")


def _report_cycle(tree: Any, error: RecursionError) -> NoReturn:
    def visit(node: Any, path: str, above: dict[int, str]) -> None:
        if id(node) in above:
            origin = above[id(node)] or "the tree itself"
            raise ValueError(
                f"{path} is {origin} again: a tree can't contain itself; hold a key or an index "
                "there instead of the object"
            ) from error
        if not paths.is_node(node):
            return
        above = {**above, id(node): path}
        for step, child in paths.children(node):
            visit(child, path + step.text, above)

    with contextlib.suppress(RecursionError):
        visit(tree, "", {})
    raise ValueError("the tree is nested too deeply to be flattened (1,000 levels)") from error


class Structure:
    """What a treedef alone says: the paths of its leaves, and which places are trainable."""

    def __init__(self, treedef: optree.PyTreeSpec) -> None:
        self._accessors = treedef.accessors()
        #: Whether any node, of no leaves too, is an object of a registered class.
        self.holds_functor = _holds_functor(treedef)
        self.num_leaves = treedef.num_leaves

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The path of every leaf, such as ``.layers[2].bias``."""
        return tuple(accessor.codify("") for accessor in self._accessors)

    @cached_property
    def trainable(self) -> tuple[bool, ...]:
        """Whether each leaf is reached only through trainable children."""
        return tuple(all(_trains(entry) for entry in accessor) for accessor in self._accessors)

    @cached_property
    def all_trainable(self) -> bool:
        """Whether every place is trainable, so that no class names buffers."""
        return all(self.trainable)

    @cached_property
    def outside(self) -> tuple[bool, ...]:
        """Whether each leaf is in containers alone, in no object of a registered class."""
        return tuple(all(spec_of(entry.type) is None for entry in accessor) for accessor in self._accessors)

    @cached_property
    def scalar(self) -> tuple[bool, ...]:
        """Whether a float at each leaf's place is a scalar: an input, by what its class declares.

        It says nothing of what stands there: ask ``type(x) is float`` too.
        """
        return tuple(name is not None for name in self.scalar_names)

    @cached_property
    def scalar_names(self) -> tuple[str | None, ...]:
        """The name of each scalar: its class and the path below, such as ``….Adam.betas[0]``.

        Floats of one name and one value are one input: rules that were equal stay so.
        """
        return tuple(_scalar_name(accessor) for accessor in self._accessors)


def _holds_functor(treedef: optree.PyTreeSpec) -> bool:
    kind = treedef.type
    return (kind is not None and spec_of(kind) is not None) or any(map(_holds_functor, treedef.children()))


def _trains(entry: optree.PyTreeEntry) -> bool:
    spec = spec_of(entry.type)
    return spec is None or spec.trains(entry.entry)


def _scalar_name(accessor: optree.PyTreeAccessor) -> str | None:
    below = ""
    for entry in reversed(accessor):  # the nearest object of a registered class says it
        below = entry.codify("") + below
        spec = spec_of(entry.type)
        if spec is not None:
            named = spec.has_scalars(entry.entry)
            return f"{entry.type.__module__}.{entry.type.__qualname__}{below}" if named else None
    return None


_structures = lru_cache(maxsize=1024)(Structure)


def structure_of(treedef: optree.PyTreeSpec, /) -> Structure:
    """The `Structure` of a treedef, worked out once."""
    if TENSORS_RIDE and _mentions(treedef, TENSORS_RIDE):
        return Structure(treedef)  # a cache would keep alive what rides along
    return _structures(treedef)


def _mentions(treedef: optree.PyTreeSpec, classes: set[type]) -> bool:
    return treedef.type in classes or any(_mentions(child, classes) for child in treedef.children())


def _same_shape(a: optree.PyTreeSpec, b: optree.PyTreeSpec) -> bool:
    """Whether two treedefs differ at most in what rides along with their nodes."""
    return structure_of(a).paths == structure_of(b).paths and _kinds(a) == _kinds(b)


def _kinds(treedef: optree.PyTreeSpec) -> list[Any]:
    return [treedef.type, [_kinds(child) for child in treedef.children()]]


def leaves_like(
    treedef: optree.PyTreeSpec,
    other: Any,
    /,
    *,
    name: str,
    like: str,
    is_leaf: IsLeaf | None = None,
) -> list[Any]:
    """The leaves of `other`, which must have the structure `treedef`.

    Attributes that ride along may differ (an edited dropout rate, a pinned mode): they are no
    part of the structure. `name` and `like` name the two trees in the error.

    Raises:
        ValueError: the structures differ; it names the first place where they do.
    """
    leaves, found = flatten(other, is_leaf)
    require_same(found, treedef, name=name, like=like)
    return leaves


def require_same(found: optree.PyTreeSpec, treedef: optree.PyTreeSpec, /, *, name: str, like: str) -> None:
    """Raise a ValueError that names the first difference, unless the structures agree."""
    if found == treedef or _same_shape(found, treedef):
        return
    raise ValueError(
        f"{name} and {like} differ in structure: {_first_difference(found, treedef, name, like)}"
    )


def _first_difference(
    found: optree.PyTreeSpec, wanted: optree.PyTreeSpec, name: str, like: str, path: str = ""
) -> str:
    where = path or "the root"
    mine, theirs = found.type, wanted.type
    entries, expected = found.entries(), wanted.entries()
    if mine is not theirs and (_say(mine) != _say(theirs) or list(entries) == list(expected)):
        return f"at {where}, {name} has {_say(mine)}, {like} has {_say(theirs)}"
    if list(entries) != list(expected):
        missing = [e for e in expected if e not in entries]
        extra = [e for e in entries if e not in expected]
        if missing:
            return f"at {where}, {name} lacks {missing[0]!r}, which {like} has"
        if extra:
            return f"at {where}, {name} has {extra[0]!r}, which {like} lacks"
        return f"at {where}, {name} has {list(entries)}, {like} has them in the order {list(expected)}"
    for step, a, b in zip(paths.steps(found), found.children(), wanted.children(), strict=True):
        if a != b and not _same_shape(a, b):
            return _first_difference(a, b, name, like, path + step)
    return f"at {where}, the nodes are of different kinds"


def _say(kind: type | None) -> str:
    return "a leaf" if kind is None else f"a {kind.__qualname__}"
