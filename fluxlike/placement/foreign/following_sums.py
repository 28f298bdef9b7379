"""What sums and layers do to the features that axes count: rules of `Follower`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fluxlike.placement.foreign.features import CHANNEL, ONE, PLAIN, SPATIAL, factors_of, fresh_axis
from fluxlike.placement.foreign.following import Follower, Given, length, pointwise, rule, tensors
from fluxlike.placement.foreign.forms import Axes, Form, say_features, say_image

__all__ = ["summed"]


@rule(
    *("mean", "sum", "amax", "amin", "prod", "any", "all", "var", "std", "var_mean", "std_mean", "max"),
    *("min", "logsumexp", "linalg_vector_norm", "norm", "argmax", "argmin", "median", "nansum", "aminmax"),
)
def _reduced(follower: Follower, given: Given, out: Any) -> list[Axes] | None:
    if "other" in given:
        return pointwise(follower, given, out)
    axes = follower.form(given["self"]).axes
    dims = given.get("dim")
    over = (
        set(range(len(axes)))
        if dims is None or dims == []
        else {d % len(axes) for d in ([dims] if isinstance(dims, int) else dims)}
    )
    keep = given.get("keepdim", False)
    if follower.name.startswith("arg") and any(len(factors_of([axes[i]])) > 1 for i in over):
        return None
    left = tuple(ONE if i in over else a for i, a in enumerate(axes) if keep or i not in over)
    return [left] * len(tensors(out))


def summed(follower: Follower, a: Form, i: int, b: Form, j: int, left: tuple[int, int] = (0, 1)) -> bool:
    """Sum the products of two tensors over an axis of each, of which the axes `left` remain."""
    if not follower.same(a.axes[i], b.axes[j], a, b):
        return False
    for one, axis, other, k in ((a, i, b, left[1]), (b, j, a, left[0])):
        if one.data and not other.data:
            say_features(one, one.axes[axis])
            _say_channels(one, axis, other, k)
    return True


def _say_channels(form: Form, axis: int, other: Form, k: int) -> None:
    """What is made of the channels of every place are channels again."""
    summed = {f.role.kind for f in factors_of([form.axes[axis]])}
    others = {f.role.kind for i, a in enumerate(form.axes) if i != axis for f in factors_of([a])}
    channels = summed == {CHANNEL} or not summed | ({CHANNEL} & others)  # one channel has no factor
    if channels and SPATIAL in others and k < len(other.axes):
        for f in factors_of([other.axes[k]]):
            if f.role.said is None:
                f.role.say(CHANNEL)


_FACTORS = (
    *(("mat1", "mat2"), ("mat", "vec"), ("self", "mat2"), ("self", "vec")),
    *(("self", "tensor"), ("self", "other")),
)


@rule("mm", "addmm", "mv", "addmv", "dot", "vdot")
def _matmul(follower: Follower, given: Given, out: Tensor) -> Axes | None:
    names = next(n for n in _FACTORS if set(n) <= set(given))
    a, b = (follower.form(given[n]) for n in names)
    if not summed(follower, a, len(a.axes) - 1, b, 0):
        return None
    axes = (*a.axes[:-1], *b.axes[1:])
    return _added(follower, given, names, axes)


def _added(follower: Follower, given: Given, names: Sequence[str], axes: Axes) -> Axes | None:
    """The axes of a product, to which `self` is added if it is not one of those multiplied."""
    if "self" in names:
        return axes
    shift = follower.form(given["self"])
    for i in range(-len(shift.axes), 0):
        if length(shift.axes[i]) != 1 and not follower.same(axes[i], shift.axes[i], shift):
            return None
    return axes


@rule("bmm", "baddbmm")
def _bmm(follower: Follower, given: Given, out: Tensor) -> Axes | None:
    names = ("batch1", "batch2") if "batch1" in given else ("self", "mat2")
    a, b = (follower.form(given[n]) for n in names)
    if not follower.same(a.axes[0], b.axes[0], a, b) or not summed(follower, a, 2, b, 1, left=(1, 2)):
        return None
    return _added(follower, given, names, (a.axes[0], a.axes[1], b.axes[2]))


@rule("convolution")
def _convolution(follower: Follower, given: Given, out: Tensor) -> Axes | None:
    x, w = follower.form(given["input"]), follower.form(given["weight"])
    say_image(x, 1)
    groups, transposed = given["groups"], given["transposed"]
    channels = fresh_axis(out.shape[1], CHANNEL, CHANNEL)
    inner, outer = (w.axes[0], w.axes[1]) if transposed else (w.axes[1], w.axes[0])
    if groups == 1 or not transposed:
        channels = outer
    if groups == 1 or transposed:
        if not follower.same(x.axes[1], inner, x, w):
            return None
    elif len(factors_of([x.axes[1]])) > 1:
        return None
    bias = given["bias"]
    if bias is not None and not follower.same(channels, follower.form(bias).axes[0], w):
        return None
    for f in factors_of([channels]):
        if f.role.said is None:
            f.role.say(CHANNEL)
    return (x.axes[0], channels, *(fresh_axis(n, SPATIAL, SPATIAL) for n in out.shape[2:]))


@rule(
    *("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"),
    "native_group_norm",
)
def _channel_norm(follower: Follower, given: Given, out: Any) -> list[Axes] | None:
    x = follower.form(given["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        p = given.get(name)
        if p is not None and not follower.same(x.axes[1], follower.form(p).axes[0], follower.form(p)):
            return None
    if len(x.axes) > 2:
        say_image(x, 1)
    return _first(out, x.axes)


def _first(out: Any, axes: Axes) -> list[Axes]:
    """Axes of several outputs, the first of which are known."""
    return [axes, *(tuple(fresh_axis(n, PLAIN) for n in y.shape) for y in tensors(out)[1:])]


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def _trailing_norm(follower: Follower, given: Given, out: Any) -> list[Axes] | None:
    x = follower.form(given["input"])
    n = len(given["normalized_shape"])
    for name in ("weight", "bias"):
        p = follower.form(given[name]) if given.get(name) is not None else Form(())
        for a, b in zip(x.axes[-n:], p.axes, strict=False):
            if not follower.same(a, b, p):
                return None
    if n == 1:
        say_features(x, x.axes[-1])
    return _first(out, x.axes)


@rule("embedding")
def _embedding(follower: Follower, given: Given, out: Tensor) -> Axes:
    indices = follower.form(given["indices"])
    say_features(indices, ONE)
    return (*indices.axes, follower.form(given["weight"]).axes[1])


@rule("pool")
def _pooled(follower: Follower, given: Given, out: Any) -> list[Axes] | None:
    x = given["self"] if "self" in given else given["input"]
    axes = follower.form(x).axes
    first = tensors(out)[0]
    spatial = _spatial(follower.name, x)
    at = x.ndim - spatial - 1
    if at < 0 or first.ndim != x.ndim:
        return None
    say_image(follower.form(x), at)
    kept = first.shape[at] == x.shape[at] and "shuffle" not in follower.name
    channels = axes[at] if kept else fresh_axis(first.shape[at], CHANNEL, CHANNEL)
    places = (fresh_axis(n, SPATIAL, SPATIAL) for n in first.shape[at + 1 :])
    return [(*axes[:at], channels, *places)] * len(tensors(out))


def _spatial(name: str, x: Tensor) -> int:
    """How many axes of an operation's input are spatial, as its name says."""
    return next((n for n in (1, 2, 3) if f"{n}d" in name), 2 if name.startswith("pixel") else x.ndim - 2)


@rule(
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
    *("_scaled_dot_product_attention_math",),
)
def _attention(follower: Follower, given: Given, out: Any) -> list[Axes]:
    q, v = (follower.form(given[n]) for n in ("query", "value"))
    return _first(out, (*q.axes[:-1], v.axes[-1]))
