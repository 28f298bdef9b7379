"""Which features the axes of every tensor of a call count: followed through the operations of ATen.

An operation without a rule is no guess: what it returns carries what it was made of, and where that meets
a parameter it is an error if the layouts differ there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import optree
import torch
from torch import Tensor

from fluxlike._private.dispatch import TorchDispatchMode, arguments
from fluxlike.placement.foreign.features import (
    BATCH,
    ONE,
    PLAIN,
    UNSURE,
    Axis,
    expand,
    factors_of,
    fresh_axis,
    same_axis,
)
from fluxlike.placement.foreign.forms import Axes, Form, Trace, Use, say_features

__all__ = ["Follower", "Given", "is_for_images", "length", "pointwise", "rule", "tensors"]


Given = Mapping[str, Any]
Rule = Callable[["Follower", Given, Any], Any]
_rules: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of operations, by their names.

    It takes the follower, the arguments and the output, and returns the axes of the output, or a list of
    them for several; or None where it can't tell.
    """

    def put(f: Rule) -> Rule:
        _rules.update(dict.fromkeys(names, f))
        return f

    return put


@dataclass
class _Known:
    x: Tensor  # kept, so that its id stays taken
    form: Form
    root: list[Tensor] = field(default_factory=list)  # all that share its memory


class Follower(TorchDispatchMode):
    """Follows features through a call; `uses` are those that need an explanation."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, _Known] = {}
        self._told: Form | None = None
        self.name = ""
        self.cuts: list[Trace] = []  # of the operation at hand
        self.uses: list[Use] = []

    def tell(self, x: Tensor, form: Form) -> None:
        """Say what the axes of a tensor count, whatever wraps it."""
        self._told = form
        torch.ops.aten.alias.default(x)

    def form(self, x: Tensor) -> Form:
        """What the axes of a tensor count."""
        if id(x) not in self._known:
            self._put(x, Form(tuple(fresh_axis(n, PLAIN) for n in x.shape)))
        return self._known[id(x)].form

    def _put(self, x: Tensor, form: Form, root: list[Tensor] | None = None) -> None:
        root = [] if root is None else root
        root.append(x)
        self._known[id(x)] = _Known(x, form, root)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._told is not None:
            self._put(args[0], self._told)
            self._told = None
        given = [x for x in tensors((args, kwargs)) if x.is_meta]
        for x in given:
            self.form(x)
        out = func(*args, **kwargs)
        made = [x for x in tensors(out) if x.is_meta]
        if made:
            self._follow(func, args, kwargs, given, out, made)
        return out

    def _follow(
        self, func: Any, args: Any, kwargs: Any, given: list[Tensor], out: Any, made: list[Tensor]
    ) -> None:
        name = func.__name__.partition(".")[0]
        changed = [x for x in made if any(x is y for y in given)]
        found, self.cuts = None, []
        if all(x.numel() for x in (*given, *made)):
            found = self._found(func, name, args, kwargs, out, in_place=bool(changed))
        forms = [] if name in NO_DATA else [self._known[id(x)].form for x in given]
        data = [f for f in forms if f.data]
        parameters = tuple(dict.fromkeys(p for f in forms for p in f.parameters))
        traces = tuple(dict.fromkeys(t for f in data for t in f.traces))
        if data:
            traces += tuple(self.cuts)
        elif parameters:
            self.uses.extend(Use(parameters, made_of=t.axes) for t in self.cuts)
        if found is None:
            axes = _unknown(data, made)
            keeps = all(x.ndim > 2 for x in made)
            traces += tuple(Trace(name, f.axes, keeps) for f in data if len(factors_of(f.axes)) > 1)
        else:
            axes = [found] if _is_one(found) else found
        if is_for_images(name) and made[0].ndim > 2:
            traces = tuple(replace(t, known=True) for t in traces)
        if data and parameters and traces:
            self.uses.append(Use(parameters, traces))
        if parameters and found is None and not data:
            self.uses.extend(Use(parameters, made_of=counted) for counted in axes)
        for x, counted in zip(made, axes, strict=True):
            form = Form(counted, bool(data), () if data else parameters, traces)
            if any(x is y for y in changed):
                self._change(name, x, form, data)
            else:
                shared = _alias_of(x, given)
                self._put(x, form, self._known[id(shared)].root if shared is not None else None)

    def _found(self, func: Any, name: str, args: Any, kwargs: Any, out: Any, *, in_place: bool) -> Any:
        """The axes of the output of an operation that has a rule."""
        if not hasattr(func, "_schema"):
            return None
        plain = name.removesuffix("_") if in_place else name
        follow = _rules.get(name) or _rules.get(plain) or (_rules["pool"] if is_for_images(name) else None)
        self.name = name
        if follow is None and torch.Tag.pointwise in func.tags:
            follow = pointwise
        return None if follow is None else follow(self, arguments(func, args, kwargs), out)

    def _change(self, name: str, x: Tensor, form: Form, data: list[Form]) -> None:
        """An operation in place: what shares the memory changes too."""
        known = self._known[id(x)]
        known.form = form
        others = [self._known[id(y)] for y in known.root if y is not x]
        for other in others:
            partial = other.x.numel() != x.numel()
            more = [Trace(f"{name} to a part", f.axes) for f in data if f is not form] if partial else []
            old = other.form
            other.form = Form(
                old.axes,
                old.data or form.data,
                () if form.data else old.parameters,
                tuple(dict.fromkeys((*old.traces, *form.traces, *more))),
            )

    def same(self, a: Axis, b: Axis, *forms: Form) -> bool:
        """Make two axes count the same; whether that is possible, or was said of a parameter."""
        if same_axis(a, b):
            return True
        parameters = tuple(p for f in forms for p in f.parameters)
        if parameters:
            self.uses.append(Use(parameters, clash=(a, b)))
            return True
        return False


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a tree."""
    return [x for x in optree.tree_leaves(tree, none_is_leaf=False) if isinstance(x, Tensor)]


def _alias_of(x: Tensor, given: list[Tensor]) -> Tensor | None:
    """The argument that shares its memory with an output."""
    memory = x.untyped_storage()._cdata
    return next((y for y in given if y.untyped_storage()._cdata == memory), None)


def _unknown(data: list[Form], made: list[Tensor]) -> list[Axes]:
    unsure = any(f.role.kind == UNSURE for form in data for f in factors_of(form.axes))
    batch = [form.axes[0] for form in data if form.axes and _is_batch(form.axes[0])]
    assumed = UNSURE if unsure else PLAIN
    found = []
    for x in made:
        axes = [fresh_axis(n, assumed if x.ndim > 2 else PLAIN) for n in x.shape]
        if x.ndim and batch and x.shape[0] == length(batch[0]):
            axes[0] = batch[0]
        found.append(tuple(axes))
    return found


def _is_batch(axis: Axis) -> bool:
    return all(f.role.kind == BATCH for f in factors_of([axis]))


def length(axis: Axis) -> int:
    """The number of entries of an axis."""
    return sum(torch.Size([f.size for f in block]).numel() for block in expand(axis))


# Operations whose outputs hold nothing of their arguments but the shape.
NO_DATA = {
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like"),
    *("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided", "bernoulli"),
}
_FOR_IMAGES = {
    *("convolution", "native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"),
    *("native_group_norm", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
}
_IMAGE_PREFIXES = (
    *("max_pool", "avg_pool", "adaptive_", "_adaptive_", "fractional_max_pool", "upsample_", "_upsample"),
    *("reflection_pad", "replication_pad", "max_unpool"),
)


def is_for_images(name: str) -> bool:
    """Whether an operation takes channels before places."""
    return name in _FOR_IMAGES or name.startswith(_IMAGE_PREFIXES)


def _is_one(found: Any) -> bool:
    return isinstance(found, tuple)


@rule("_to_copy", "alias", "clone", "detach", "lift_fresh", "_softmax", "_log_softmax", "_safe_softmax")
def _kept(follower: Follower, given: Given, out: Any) -> Any:
    return follower.form(given["self"]).axes


@rule(*NO_DATA)
def _new(follower: Follower, given: Given, out: Any) -> Any:
    return tuple(fresh_axis(n, PLAIN) for n in out.shape)


@rule("copy")
def pointwise(follower: Follower, given: Given, out: Any) -> Any:
    """The axes of an operation that is elementwise, after broadcasting."""
    forms = [follower.form(x) for x in tensors(dict(given)) if x.is_meta]
    found = []
    for x in tensors(out):
        axes: list[Axis] = []
        for i in range(-x.ndim, 0):
            aligned = [f for f in forms if -i <= len(f.axes) and length(f.axes[i]) != 1]
            for f in aligned[1:]:
                if not follower.same(aligned[0].axes[i], f.axes[i], aligned[0], f):
                    return None
            if i == -1 and any(f.parameters and len(f.axes) == 1 for f in aligned):
                for f in aligned:
                    say_features(f, f.axes[-1])
            axes.append(aligned[0].axes[i] if aligned else ONE)
        found.append(tuple(axes))
    return found
