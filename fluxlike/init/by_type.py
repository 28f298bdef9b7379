"""New initial values for the layers of a model, by their type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from fluxlike.scope.key import Key
from fluxlike.scope.seeded import seeded
from fluxlike.trees.functor import kinds_of, spec_of
from fluxlike.trees.leaves import can_train
from fluxlike.trees.show import value_text
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["declare_weights", "reinit"]

Init = Callable[[Sequence[int]], Tensor]


class _Names(NamedTuple):
    """The attributes of a class that hold weights, and those that hold biases; of many, the starts."""

    weights: tuple[str, ...] = ("weight",)
    biases: tuple[str, ...] = ("bias",)


_declared: dict[type, _Names] = {}


def reinit(model: Any, inits: Mapping[type, Init], /, *, key: Key | None = None) -> Any:
    """Give all layers of a type new initial values.

    Each weight of a layer becomes what the function makes of its shape, each bias zero. Weights are the
    layer's own parameters in attributes whose names start with ``weight`` (``weight_ih``, …), biases those
    in attributes that start with ``bias``; `init.declare_weights` says otherwise for a class. Everything
    else stays as it is: other parameters (the magnitudes of a WeightNorm too), buffers such as running
    statistics, pinned modes, and the layers inside a layer, which are named by their own types.

    Args:
        model: any tree.
        inits: from a class to a function of a shape, such as those of `fluxlike.init`; it counts for
            subclasses too, unless one of them is named itself.
        key: what to draw from. (default: the key in scope, or torch's generator)

    Returns:
        A new tree. A tied tensor is made anew once, at all its places. Tensors keep their dtype and
        device; they are drawn in the default dtype, and cast.

    Raises:
        ValueError: no layer of a class holds weights or biases, a function returns another shape or fails,
            or tied places belong to types with different functions. It names the place.
        TypeError: a key of `inits` is no class, or a value no function.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.Chain(fl.Dense(3, 4, fl.relu), fl.BatchNorm(4), fl.Dense(4, 2))
        >>> new = fl.reinit(model, {fl.Dense: fl.init.orthogonal})
        >>> w = new.layers[2].weight
        >>> torch.allclose(w @ w.T, torch.eye(2), atol=1e-6)
        True
        >>> new.layers[1].weight is model.layers[1].weight
        True
    """
    _check_inits(inits)
    leaves, treedef = flatten(model)
    structure = structure_of(treedef)
    owners = [_owner(accessor) for accessor in treedef.accessors()]
    found: dict[int, _Place] = {}
    holding: dict[type, type | None] = {}  # from types that hold weights to what was said of them
    for x, owner, path, trains in zip(leaves, owners, structure.paths, structure.trainable, strict=True):
        role = _role(owner) if owner is not None and trains and can_train(x) else None
        if owner is None or role is None:
            continue
        cls = holding[owner.type] = _nearest(owner.type, inits)
        if cls is not None:
            place = _Place(path, owner.type, torch.zeros if role == "bias" else inits[cls])
            _check_tie(found.setdefault(id(x), place), place)
    _check_all_used(inits, holding, treedef)
    with nullcontext() if key is None else seeded(key):
        new = {i: found[i].make(x) for i, x in _once(leaves, found).items()}
    return treedef.unflatten([new.get(id(x), x) for x in leaves])


def declare_weights(cls: type, /, weights: Sequence[str], biases: Sequence[str] = ()) -> None:
    """Say which attributes of a class `reinit` makes anew.

    It is needed only where attributes don't start with ``weight`` and ``bias``.

    Args:
        cls: the class; it counts for subclasses too.
        weights: the attributes, or starts of their names, that hold weights, laid out as (out, in, …).
        biases: those that start at zero. (default: none)

    Raises:
        TypeError: `cls` is no class, or the names are one string.

    Example:
        >>> import torch, fluxlike as fl
        >>> @fl.functor
        ... class Table:
        ...     def __init__(self, n):
        ...         self.entries = torch.zeros(n, n)
        >>> fl.init.declare_weights(Table, ["entries"])
        >>> fl.reinit(Table(2), {Table: torch.ones}).entries
        tensor([[1., 1.],
                [1., 1.]])
    """
    if not isinstance(cls, type):
        raise TypeError(f"declare_weights takes a class, found {cls!r}")
    for names in (weights, biases):
        if isinstance(names, str):
            raise TypeError(f"declare_weights({cls.__name__}): {names!r} is one string; write [{names!r}]")
    _declared[cls] = _Names(tuple(weights), tuple(biases))


class _Place(NamedTuple):
    """Where a tensor stands that is made anew, and by what."""

    path: str
    kind: type
    init: Init

    def make(self, old: Tensor) -> Tensor:
        shape = tuple(old.shape)
        where = f"reinit: {self.path} of {self.kind.__name__}, of shape {shape}"
        try:
            with torch.device(old.device):
                new = self.init(shape)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{where}: {error}") from error
        if not isinstance(new, Tensor) or tuple(new.shape) != shape:
            what = f"the shape {tuple(new.shape)}" if isinstance(new, Tensor) else f"a {type(new).__name__}"
            raise ValueError(f"{where}: the function returned {what}; write one that takes and gives a shape")
        return new.to(old.device, old.dtype)


def _once(leaves: list[Any], found: dict[int, _Place]) -> dict[int, Tensor]:
    """Each tensor that is made anew, by its id, in the order of first places."""
    return {id(x): x for x in leaves if id(x) in found}


def _owner(accessor: optree.PyTreeAccessor) -> optree.PyTreeEntry | None:
    """The attribute of the nearest object of a registered class that holds a leaf."""
    return next((entry for entry in reversed(accessor) if spec_of(entry.type) is not None), None)


def _nearest(cls: type, known: Mapping[type, Any]) -> type | None:
    return next((base for base in kinds_of(cls) if base in known), None)


def _role(owner: optree.PyTreeEntry) -> str | None:
    declared = _nearest(owner.type, _declared)
    names = _Names() if declared is None else _declared[declared]
    if owner.entry.startswith(names.weights):
        return "weight"
    return "bias" if owner.entry.startswith(names.biases) else None


def _check_tie(first: _Place, place: _Place) -> None:
    if first.init is not place.init:
        raise ValueError(
            f"reinit: {first.path} of {first.kind.__name__} and {place.path} of {place.kind.__name__} are "
            "tied, and would get different values; give their types one function, or untie them with "
            "fluxlike.at"
        )


def _check_inits(inits: Any) -> None:
    if not isinstance(inits, Mapping):
        raise TypeError(
            f"reinit takes a dict from classes to functions, such as {{fluxlike.Dense: "
            f"fluxlike.init.glorot_uniform}}, found a {type(inits).__name__}"
        )
    for cls, init in inits.items():
        if not isinstance(cls, type):
            raise TypeError(f"reinit takes classes as keys, found {cls!r}{_class_meant(cls)}")
        if not callable(init) or isinstance(init, type):
            raise TypeError(
                f"reinit: for {cls.__name__} found {value_text(init)}; write a function of a shape, such as "
                "fluxlike.init.glorot_uniform or torch.zeros"
            )


def _class_meant(key: Any) -> str:
    """Of a layer, its class; of a function that says what it makes, the class of that."""
    if spec_of(type(key)):
        return f"; write {type(key).__name__}"
    made = getattr(key, "__annotations__", {}).get("return")
    if made is None:
        return ""
    name = made if isinstance(made, str) else getattr(made, "__name__", str(made))
    return f"; {key.__name__} is a function that makes a {name}; write {name}"


def _check_all_used(
    inits: Mapping[type, Init], holding: Mapping[type, type | None], treedef: optree.PyTreeSpec
) -> None:
    """Refuse a class of which the model holds no layer with weights."""
    for cls in inits:
        if cls not in holding.values():
            present = any(issubclass(entry.type, cls) for a in treedef.accessors() for entry in a)
            held = ", ".join(kind.__name__ for kind in holding) or "none"
            raise ValueError(
                f"reinit: {'no' if present else 'there is no'} {cls.__name__} "
                f"{'holds weights of its own' if present else 'here'}; the types that hold weights are {held}"
            )
