"""Which axes of a model's parameters count flattened images, found by running it without data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxlike.placement.dry import on_meta, without_data
from fluxlike.placement.dtype import f32
from fluxlike.placement.foreign import following_sums, following_views  # noqa: F401 — the rules
from fluxlike.placement.foreign.features import (
    BATCH,
    CHANNEL,
    PLAIN,
    SPATIAL,
    UNSURE,
    Axis,
    Order,
    Undecided,
    expand,
    factors_of,
    fresh_axis,
    order_of,
)
from fluxlike.placement.foreign.following import Follower
from fluxlike.placement.foreign.forms import Form, Trace, Use
from fluxlike.scope.mode import mode
from fluxlike.trees import paths
from fluxlike.trees.fmap import fleaves
from fluxlike.trees.functor import kinds_of
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Flattened", "flattened_features", "may_flatten", "may_meet", "reorder"]

_flattens: list[Any] = []
_harmless: list[Any] = []
_features: list[type] = []
_norms: list[type] = []


def may_meet(
    *,
    flattens: Iterable[Any],
    harmless: Iterable[Any],
    features: Iterable[type],
    norms: Iterable[type],
) -> None:
    """Say what flattens, which functions do not, and which classes of layers may take or make features.

    Those of `features` make images too, if a reshape comes after them; those of `norms` only take.
    """
    _flattens.extend(flattens)
    _harmless.extend(harmless)
    _features.extend(features)
    _norms.extend(norms)


def may_flatten(model: Any, /) -> bool:
    """Whether a model may flatten images before a layer whose parameters count them, or after one."""
    flattening = taking = False
    for node in _nodes(model):
        flattening = flattening or _reshapes(node)
        kinds = kinds_of(type(node))
        taking = taking or any(k in kinds for k in (*_features, *(_norms if flattening else ())))
    return flattening and taking


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for _, child in paths.children(node):
        yield from _nodes(child)


def _reshapes(node: Any) -> bool:
    """Whether a node is a function or a layer that may reshape, as far as we know."""
    if isinstance(node, (Tensor, type)) or not callable(node):
        return False
    if any(node is f for f in (*_flattens, *_harmless)):
        return any(node is f for f in _flattens)
    answers_to = kinds_of(type(node))[len(type(node).__mro__) :]
    if answers_to:  # what it stands for runs, unless a layer of ours would do in its place
        return not any(kind.__module__.startswith("fluxlike.") for kind in answers_to)
    owner = next((c for c in type(node).__mro__ if "__call__" in c.__dict__), type(node))
    return not owner.__module__.startswith("fluxlike.")


@dataclass(frozen=True)
class Flattened:
    """An axis of a parameter that counts the entries of images, and their order."""

    axis: int
    order: Order

    def index(self, *, ours: bool) -> Tensor:
        """The order of the entries in ours, as places in channels-last ones; or the other way round."""
        found: list[Tensor] = []
        start = 0
        for sizes, moves in self.order:
            n = torch.Size(sizes).numel()
            entries = torch.arange(start, start + n, device="cpu").reshape(sizes)
            found.append((entries.movedim(1, 2) if moves else entries).flatten())
            start += n
        there = torch.cat(found)
        return there.argsort() if ours else there


def flattened_features(model: Any, inputs: Any, /) -> dict[int, list[Flattened]]:
    """The axes of a model's leaves, by the number of the leaf, that count entries of flattened images.

    Args:
        model: a model of ours.
        inputs: an input, or a tuple of inputs, of the shapes that the model takes.

    Raises:
        RuntimeError: the model fails on the input.
        ValueError: a parameter would have to be in two orders, or in one that nothing tells.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    if any(x.numel() == 0 for x in fleaves(given)):
        raise ValueError("inputs= is empty; give an example of one entry at least")
    leaves, treedef = flatten(model)
    where = structure_of(treedef).paths
    seen: dict[int, int] = {}
    firsts = [seen.setdefault(id(x), i) for i, x in enumerate(leaves)]
    follower = Follower()
    forms: dict[int, Form] = {}
    try:
        with torch.no_grad(), mode("test"), without_data():
            there = f32(on_meta(model))  # shapes alone matter, so model and input may differ in dtype
            here = f32(on_meta(given))
            with follower:
                for i, x in enumerate(flatten(there)[0]):
                    if isinstance(x, Tensor) and firsts[i] == i:
                        forms[i] = Form(tuple(fresh_axis(n, PLAIN) for n in x.shape), parameters=(where[i],))
                        follower.tell(x, forms[i])
                for x in fleaves(here):
                    follower.tell(x, Form(_axes_of_input(x), data=True))
                there(*here)
    except Exception as error:
        raise RuntimeError(
            f"the model fails on inputs= ({type(error).__name__}: {error}); give an example of the shape "
            "that it takes, such as torch.zeros(1, 3, 32, 32)"
        ) from error
    for use in follower.uses:
        _require_explained(use, {where[i]: form for i, form in forms.items()})
    found: dict[int, list[Flattened]] = {}
    for i, first in enumerate(firsts):
        if first in forms and (uses := _flattened(where[first], forms[first])):
            found[i] = uses
    return found


def _axes_of_input(x: Tensor) -> tuple[Axis, ...]:
    """Of four axes and more: images; of three: images or sequences, as the layers say."""
    if x.ndim < 2:
        return tuple(fresh_axis(n, PLAIN) for n in x.shape)
    images = [CHANNEL, *[SPATIAL] * (x.ndim - 2)]
    kinds = images if x.ndim > 3 else [UNSURE if x.ndim == 3 else PLAIN] * (x.ndim - 1)
    batch = fresh_axis(x.shape[0], BATCH, BATCH)
    return (batch, *(fresh_axis(n, kind) for n, kind in zip(x.shape[1:], kinds, strict=True)))


def _flattened(path: str, form: Form) -> list[Flattened]:
    found = []
    for i, axis in enumerate(form.axes):
        try:
            order = order_of(axis)
        except Undecided as error:
            raise ValueError(f"axis {i} of {path}: {error}; {_HELP}") from error
        if not order.stays:
            found.append(Flattened(i, order))
    return found


_HELP = (
    "convert the layers before and after on their own, and reorder this one by hand; or change the model so "
    "that the image is flattened by fluxlike.flatten right before it"
)


def _require_explained(use: Use, forms: dict[str, Form]) -> None:
    """Refuse what meets a parameter and is in an order that may differ there, in a way that nothing tells."""
    names = " and ".join(use.parameters)
    if use.clash and not all(map(_stays, use.clash)):
        _refuse_clash(use, forms)
    if not all(map(_stays, use.made_of)):
        raise ValueError(
            f"{names} is made into another tensor in a way that doesn't show which of its entries belong to "
            f"which entry of a flattened image; {_HELP}"
        )
    for trace in use.traces:
        if _differs(trace):
            raise ValueError(
                f"{names} meets what {trace.by} made of images, and nothing shows how its entries are "
                f"ordered where channels are last; {_HELP}"
            )


def _refuse_clash(use: Use, forms: dict[str, Form]) -> None:
    known = [(i, axis) for p in use.parameters if p in forms for i, axis in enumerate(forms[p].axes)]
    own = next(((i, axis) for i, axis in known for c in use.clash if expand(axis) == expand(c)), None)
    place = "" if own is None else f"axis {own[0]} of "
    in_order = sorted(use.clash, key=lambda c: own is None or expand(c) != expand(own[1]))
    first, second = (tuple(f.size for f in factors_of([axis])) for axis in in_order)
    raise ValueError(
        f"{place}{' and '.join(use.parameters)} takes flattened images of {first} and of {second} (C, …), "
        "and can be reordered for one of them only"
    )


def _stays(axis: Axis) -> bool:
    try:
        return order_of(axis).stays
    except Undecided:
        return False


def _differs(trace: Trace) -> bool:
    if not all(map(_stays, trace.axes)):
        return True
    if trace.known:
        return False
    try:
        return not order_of((tuple(factors_of(trace.axes)),)).stays
    except Undecided as error:
        return not (error.unsure and trace.keeps_axes)


def reorder(model: Any, found: dict[int, list[Flattened]], /, *, ours: bool) -> Any:
    """A model with its flattened axes in our order, from a channels-last one; or the other way round."""
    leaves, treedef = flatten(model)
    done: dict[int, Tensor] = {}
    for i, uses in found.items():
        x = leaves[i]
        if not isinstance(x, Tensor):
            continue
        if id(x) not in done:
            new = x
            for use in uses:
                new = new.index_select(use.axis, use.index(ours=ours).to(x.device))
            done[id(x)] = new
        leaves[i] = done[id(x)]
    return treedef.unflatten(leaves)
