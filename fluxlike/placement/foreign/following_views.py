"""What operations that only move entries do to the features that axes count: rules of `Follower`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fluxlike.placement.foreign.features import (
    CHANNEL,
    ONE,
    PLAIN,
    SPATIAL,
    Axis,
    Factor,
    expand,
    factors_of,
    fresh_axis,
)
from fluxlike.placement.foreign.following import Follower, Given, length, rule, tensors
from fluxlike.placement.foreign.forms import Axes, Trace

__all__ = ["reshaped"]


def _at(given: Given, name: str = "dim") -> list[int]:
    """The axes that an argument names, counted from the front."""
    n = given["self"].ndim
    dims = given[name]
    return [d % n for d in ([dims] if isinstance(dims, int) else dims)]


def _counted(axis: Axis) -> list[Factor]:
    """The factors of an axis; one of them where all count channels, or all places."""
    found = factors_of([axis])
    said = {f.role.said for f in found}
    return found[:1] if said in ({CHANNEL}, {SPATIAL}) else found


def reshaped(axes: Axes, sizes: Sequence[int]) -> tuple[Axes, list[Axis]]:
    """The axes of a tensor in another shape, and what was cut through to get there."""
    old = [a for a in axes if length(a) != 1]
    wanted = [n for n in sizes if n != 1]
    found: list[Axis] = []
    cut: list[Axis] = []
    while wanted:
        group, new = [old.pop(0)], [wanted.pop(0)]
        have, want = length(group[0]), new[0]
        while have != want:
            if have < want:
                group.append(old.pop(0))
                have *= length(group[-1])
            else:
                new.append(wanted.pop(0))
                want *= new[-1]
        made = group if len(group) == len(new) == 1 else _regrouped(group, new) or _of_one_kind(group, new)
        if made is None:
            cut.append((tuple(factors_of(group)),))
        elif len(new) > 1:
            cut.extend(_mixed(group, made))
        found.extend(made or (fresh_axis(n, PLAIN) for n in new))
    rest = iter(found)
    return tuple(ONE if n == 1 else next(rest) for n in sizes), cut


def _of_one_kind(group: list[Axis], sizes: list[int]) -> list[Axis] | None:
    """New axes in place of some that count only channels, or only places: they do too."""
    said = {f.role.said for f in factors_of(group)}
    kind = next((kind for kind in (CHANNEL, SPATIAL) if said == {kind}), None)
    return None if kind is None else [fresh_axis(n, kind, kind) for n in sizes]


def _mixed(group: list[Axis], made: list[Axis]) -> list[Axis]:
    """New axes of several factors that are a part of one axis, or of parts of several."""
    several = [a for a in made if len(factors_of([a])) > 1]
    return [a for a in several if len(group) > 1 or len(factors_of([a])) < len(factors_of(group))]


def _regrouped(group: list[Axis], sizes: list[int]) -> list[Axis] | None:
    group = [expand(axis) for axis in group]
    if any(len(axis) > 1 for axis in group):
        return None
    factors = [f for axis in group for f in axis[0]]
    made: list[Axis] = []
    for n in sizes:
        block: list[Factor] = []
        have = 1
        while have < n:
            f = factors.pop(0)
            if have * f.size <= n:
                block.append(f)
            elif n % have == 0 and f.size % (n // have) == 0:
                if f.equal is not None:
                    return None
                first, second = f.split(n // have)
                block.append(first)
                factors.insert(0, second)
            else:
                return None
            have *= block[-1].size
        if have != n:
            return None
        made.append((tuple(block),))
    return made


@rule("view", "_unsafe_view", "_reshape_alias", "reshape", "_reshape_copy", "view_copy")
def _view(follower: Follower, given: Given, out: Tensor) -> Any:
    x = given["self"]
    if x.dtype != out.dtype:
        return None
    form = follower.form(x)
    found, cut = reshaped(form.axes, out.shape)
    if not cut:
        return found
    follower.cuts = [Trace("a reshape", (axis,)) for axis in cut]
    return found


@rule("permute")
def _permute(follower: Follower, given: Given, out: Tensor) -> Axes:
    axes = follower.form(given["self"]).axes
    return tuple(axes[d] for d in _at(given, "dims"))


@rule("transpose", "t", "swapaxes", "swapdims")
def _transpose(follower: Follower, given: Given, out: Tensor) -> Axes:
    axes = list(follower.form(given["self"]).axes)
    if len(axes) < 2:
        return tuple(axes)
    i, j = given.get("dim0", 0) % len(axes), given.get("dim1", 1) % len(axes)
    axes[i], axes[j] = axes[j], axes[i]
    return tuple(axes)


@rule("squeeze")
def _squeeze(follower: Follower, given: Given, out: Tensor) -> Axes:
    axes = follower.form(given["self"]).axes
    dims = _at(given) if given.get("dim") is not None else range(len(axes))
    return tuple(a for i, a in enumerate(axes) if i not in dims or length(a) != 1)


@rule("unsqueeze")
def _unsqueeze(follower: Follower, given: Given, out: Tensor) -> Axes:
    axes = list(follower.form(given["self"]).axes)
    axes.insert(given["dim"] % (len(axes) + 1), ONE)
    return tuple(axes)


@rule("expand", "repeat")
def _expand(follower: Follower, given: Given, out: Tensor) -> Axes | None:
    axes = follower.form(given["self"]).axes
    padded = (*(ONE,) * (out.ndim - len(axes)), *axes)
    if any(length(a) not in (1, n) for a, n in zip(padded, out.shape, strict=True)):
        return None
    return tuple(
        a if length(a) == n else fresh_axis(n, PLAIN) for a, n in zip(padded, out.shape, strict=True)
    )


@rule("select")
def _select(follower: Follower, given: Given, out: Tensor) -> Axes | None:
    axes = follower.form(given["self"]).axes
    (dim,) = _at(given)
    if len(_counted(axes[dim])) > 1:
        return None
    return (*axes[:dim], *axes[dim + 1 :])


@rule("unbind")
def _unbind(follower: Follower, given: Given, out: Sequence[Tensor]) -> list[Axes] | None:
    one = _select(follower, given, out[0])
    return None if one is None else [one] * len(out)


def _part(axis: Axis, start: int, size: int) -> Axis | None:
    """Some entries of an axis: whole blocks, or a part of one factor."""
    blocks = expand(axis)
    if size == length(axis):
        return axis
    counted = _counted(axis)
    if len(counted) == 1:
        return ((counted[0].piece(size),),) if size > 1 else ONE
    chosen, at = [], 0
    for block in blocks:
        n = length((block,))
        if start <= at and at + n <= start + size:
            chosen.append(block)
        at += n
    return tuple(chosen) if chosen and length(tuple(chosen)) == size else None


def _parts(follower: Follower, given: Given, out: Sequence[Tensor]) -> list[Axes] | None:
    axes = follower.form(given["self"]).axes
    (dim,) = _at(given)
    found: list[Axes] = []
    start = 0
    for x in out:
        part = _part(axes[dim], start, x.shape[dim])
        if part is None:
            return None
        found.append((*axes[:dim], part, *axes[dim + 1 :]))
        start += x.shape[dim]
    return found


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk")
def _split(follower: Follower, given: Given, out: Sequence[Tensor]) -> list[Axes] | None:
    return _parts(follower, given, out)


@rule("slice", "narrow")
def _slice(follower: Follower, given: Given, out: Tensor) -> Axes | None:
    axes = follower.form(given["self"]).axes
    (dim,) = _at(given)
    start, n = given.get("start") or 0, length(axes[dim])
    alone = len(_counted(axes[dim])) <= 1
    if given.get("step", 1) != 1 and not alone:
        return None
    part = _part(axes[dim], start + n if start < 0 else min(start, n), out.shape[dim])
    return None if part is None else (*axes[:dim], part, *axes[dim + 1 :])


@rule("flip", "roll", "cumsum", "cumprod", "index_select", "sort", "topk")
def _along(follower: Follower, given: Given, out: Any) -> list[Axes] | None:
    """Other entries of axes that count one thing each."""
    axes = list(follower.form(given["self"]).axes)
    for d in _at(given, "dims" if "dims" in given else "dim"):
        found = _counted(axes[d])
        if len(found) > 1:
            return None
        size = tensors(out)[0].shape[d]
        axes[d] = ((found[0].piece(size),),) if found and size > 1 else fresh_axis(size, PLAIN)
    return [tuple(axes)] * len(tensors(out))


@rule("constant_pad_nd")
def _pad(follower: Follower, given: Given, out: Tensor) -> Axes | None:
    axes = list(follower.form(given["self"]).axes)
    for d, n in enumerate(out.shape):
        found = _counted(axes[d])
        if n != length(axes[d]):
            if len(found) > 1:
                return None
            axes[d] = ((found[0].piece(n),),) if found and n != 1 else fresh_axis(n, PLAIN)
    return tuple(axes)


@rule("cat")
def _cat(follower: Follower, given: Given, out: Tensor) -> Axes | None:
    forms = [f for f in (follower.form(x) for x in given["tensors"]) if len(f.axes) == out.ndim]
    dim = given["dim"] % out.ndim
    for i in range(out.ndim):
        for f in forms[1:] if i != dim else []:
            if not follower.same(forms[0].axes[i], f.axes[i], forms[0], f):
                return None
    axes = [f.axes for f in forms]
    flat = out.ndim < 3 and dim > 0
    joined = _joined([a[dim] for a in axes], out.shape[dim], flat=flat)
    return (*axes[0][:dim], joined, *axes[0][dim + 1 :])


def _joined(parts: list[Axis], size: int, *, flat: bool) -> Axis:
    """A row of axes; one new factor where each counts one thing of the same kind."""
    found = [_counted(a) for a in parts]
    if not flat and all(len(f) <= 1 for f in found):
        first = next((f[0] for f in found if f), None)
        axis = fresh_axis(size, PLAIN)
        if first is not None and length(axis) != 1:
            for f in found:
                if f:
                    f[0].role.join(first.role)
            axis[0][0].role.join(first.role)
            axis[0][0].pieces.extend(f[0] for f in found if f)
        return axis
    blocks: list[tuple[Factor, ...]] = []
    for axis in parts:
        blocks.extend(expand(axis) if length(axis) != 1 else [()])
    return tuple(blocks)


@rule("stack")
def _stack(follower: Follower, given: Given, out: Tensor) -> Axes | None:
    forms = [follower.form(x) for x in given["tensors"]]
    for f in forms[1:]:
        for a, b in zip(forms[0].axes, f.axes, strict=True):
            if not follower.same(a, b, forms[0], f):
                return None
    axes = list(forms[0].axes)
    axes.insert(given["dim"] % out.ndim, fresh_axis(len(forms), PLAIN))
    return tuple(axes)
