"""Rules of what the axes of a batch's arrays mean: as values, for a block, or for the whole process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.placement.layout import Layout, generic_layout, permute

__all__ = ["CONVENTIONS", "LayoutRule", "Place", "layout_rule", "layout_rules", "rules_for"]

Kind = str | type
Dtype = torch.dtype | np.dtype | type | str

_KINDS = ("tensor", "numpy", "C", "F")


@dataclass(frozen=True)
class Place:
    """Where an array stands in a batch.

    Attributes:
        path: the path as it is printed, such as ``['image']``.
        key: the last step of it: a key, an index or the name of an attribute; None at the root.
    """

    path: str
    key: Any = None


@dataclass(frozen=True, eq=False)
class LayoutRule:
    """What the axes of some arrays of a batch mean elsewhere, and the order that they have here.

    A value: give it to `batch_first` and `batch_last` as ``rules=``, or to `layout_rules` for a block.
    It applies to the arrays for which all its conditions hold.

    Args:
        src: the layout elsewhere, such as ``"FTN"``.
        dst: the layout here, of the same letters, such as ``"NTF"``.
        dtype: the dtype of the array, of torch or numpy, or a collection of them. (default: any)
        kind: ``"tensor"``, ``"numpy"``, ``"C"`` or ``"F"`` (a numpy array of that order in memory), or
            a class. (default: any)
        key: the path of the array in the batch, ``"['x'].image"``, or the last step of it, ``"image"``
            or 0. (default: any)
        when: a predicate of (path, array as it is elsewhere). (default: always)

    Attributes:
        ndim: the number of axes, which is that of the letters.

    Raises:
        ValueError: layouts of different letters, or an unknown `kind`.

    Example:
        >>> import torch, fluxlike as fl
        >>> rule = fl.LayoutRule("FTN", "NTF", key="sound")
        >>> batch = {"sound": torch.zeros(40, 100, 8), "label": torch.zeros(8)}
        >>> fl.batch_first(batch, rules=[rule])["sound"].shape
        torch.Size([8, 100, 40])
    """

    src: str
    dst: str
    dtype: Dtype | Collection[Dtype] | None = None
    kind: Kind | None = None
    key: Any = None
    when: Callable[[str, Any], bool] | None = None

    def __post_init__(self) -> None:
        for name in ("src", "dst"):
            object.__setattr__(self, name, Layout(getattr(self, name)))
        self.src.order(self.dst)  # type: ignore[attr-defined]
        if self.kind is not None and self.kind not in _KINDS and not isinstance(self.kind, type):
            raise ValueError(f"kind={self.kind!r}: write one of {', '.join(_KINDS)}, or a class")
        if self.dtype is not None:
            _dtype_names(self.dtype)

    @property
    def ndim(self) -> int:
        """The number of axes of the arrays that it is about."""
        return len(self.src)

    @property
    def conditions(self) -> int:
        """How many conditions it sets beside the number of axes: more are more specific."""
        return sum(c is not None for c in (self.dtype, self.kind, self.key, self.when))

    def applies(self, place: Place, x: Any, /) -> bool:
        """Whether all its conditions hold for an array, as it is elsewhere."""
        return (
            x.ndim == self.ndim
            and (self.dtype is None or _dtype_name(x.dtype) in _dtype_names(self.dtype))
            and (self.kind is None or _is_of(x, self.kind))
            and (self.key is None or self.key in (place.path, place.key))
            and (self.when is None or bool(self.when(place.path, x)))
        )

    def there(self, x: Any, /) -> Any:
        """The array as it is elsewhere."""
        return permute(x, self.dst, self.src)

    def here(self, x: Any, /) -> Any:
        """The array as it is here."""
        return permute(x, self.src, self.dst)

    def remove(self) -> None:
        """Take a rule that `layout_rule` registered out of the registry again.

        Raises:
            ValueError: it is not registered.
        """
        with _lock:
            global _registered
            if not any(rule is self for rule in _registered):
                raise ValueError(f"{self} is not registered")
            _registered = tuple(rule for rule in _registered if rule is not self)

    def __repr__(self) -> str:
        named = "".join(
            f", {name}={getattr(self, name)!r}"
            for name in ("dtype", "kind", "key", "when")
            if getattr(self, name) is not None
        )
        return f"LayoutRule({str(self.src)!r}, {str(self.dst)!r}{named})"


_lock = threading.Lock()
_registered: tuple[LayoutRule, ...] = ()
_scoped: ContextVar[tuple[tuple[LayoutRule, ...], ...]] = ContextVar("fluxlike_layout_rules", default=())


def layout_rule(
    src: str,
    dst: str,
    /,
    *,
    dtype: Dtype | Collection[Dtype] | None = None,
    kind: Kind | None = None,
    key: Any = None,
    when: Callable[[str, Any], bool] | None = None,
) -> LayoutRule:
    """Register what the axes of some arrays mean, for `batch_first` and `batch_last` from here on.

    Of the rules that apply to an array, the nearest wins: those given to the call as ``rules=``, then
    those of the innermost `layout_rules` block, then registered ones, then the convention's own. Among
    those equally near, the one with the most conditions wins, and of several such the latest.

    Args:
        src: the layout elsewhere, such as ``"FTN"``; it gives the number of axes too.
        dst: the layout here, of the same letters.
        dtype: as in `LayoutRule`.
        kind: as in `LayoutRule`.
        key: as in `LayoutRule`.
        when: as in `LayoutRule`.

    Returns:
        The rule; its ``remove()`` undoes the registration.

    Raises:
        ValueError: as `LayoutRule`.

    Example:
        >>> import torch, fluxlike as fl
        >>> rule = fl.layout_rule("FTN", "NTF", dtype=torch.float32)
        >>> fl.batch_first(torch.zeros(40, 100, 8), "HWCN").shape
        torch.Size([8, 100, 40])
        >>> rule.remove()
        >>> fl.batch_first(torch.zeros(40, 100, 8), "HWCN").shape
        torch.Size([8, 40, 100])
    """
    rule = LayoutRule(src, dst, dtype, kind, key, when)
    global _registered
    with _lock:
        _registered = (*_registered, rule)
    return rule


@contextmanager
def layout_rules(*rules: LayoutRule) -> Iterator[None]:
    """Rules that hold inside a block, in this thread; they come before registered ones.

    Args:
        rules: the rules.

    Example:
        >>> import numpy as np, fluxlike as fl
        >>> with fl.layout_rules(fl.LayoutRule("CN", "CN", key="table")):
        ...     fl.batch_first({"table": np.zeros((3, 8))})["table"].shape
        (3, 8)
    """
    token = _scoped.set((*_scoped.get(), _checked(rules)))
    try:
        yield
    finally:
        _scoped.reset(token)


def rules_for(convention: str, given: Sequence[LayoutRule], ndim: int, /) -> list[LayoutRule]:
    """All rules about arrays of a number of axes, the first to win first."""
    if convention not in CONVENTIONS:
        raise ValueError(
            f"convention={convention!r}: write one of {', '.join(map(repr, CONVENTIONS))}; "
            "a convention of your own is a list of rules, rules=[fluxlike.LayoutRule(…), …]"
        )
    levels = [_checked(given), *reversed(_scoped.get()), _registered]
    near = [rule for level in levels for _, rule in sorted(enumerate(level), key=_nearness)]
    return [rule for rule in near if rule.ndim == ndim] + [CONVENTIONS[convention](ndim)]


def _nearness(numbered: tuple[int, LayoutRule]) -> tuple[int, int]:
    number, rule = numbered
    return -rule.conditions, -number


def _checked(rules: Sequence[LayoutRule]) -> tuple[LayoutRule, ...]:
    for rule in rules:
        if not isinstance(rule, LayoutRule):
            raise TypeError(f"a rule is a fluxlike.LayoutRule('WHCN', 'NCHW', …), found {rule!r}")
    return tuple(rules)


def _all_reversed(ndim: int) -> LayoutRule:
    layout = _REVERSED.get(ndim) or generic_layout(ndim)
    return LayoutRule(layout, layout.reversed)


def _last_to_front(ndim: int) -> LayoutRule:
    if ndim == 4:
        return LayoutRule("HWCN", "NCHW")
    layout = generic_layout(ndim)
    return LayoutRule(layout, "N" + layout[:-1])


_REVERSED = {n: Layout(letters) for n, letters in ((2, "CN"), (3, "CLN"), (4, "WHCN"), (5, "WHDCN"))}

#: The two published conventions of Julia, by their layout of images: the rule for n axes.
CONVENTIONS: dict[str, Callable[[int], LayoutRule]] = {"WHCN": _all_reversed, "HWCN": _last_to_front}


def _dtype_name(dtype: Any) -> str:
    if isinstance(dtype, torch.dtype):
        return str(dtype).removeprefix("torch.")
    return np.dtype(dtype).name


def _dtype_names(dtype: Any) -> set[str]:
    several = isinstance(dtype, Collection) and not isinstance(dtype, str)
    return {_dtype_name(d) for d in (dtype if several else (dtype,))}


def _is_of(x: Any, kind: Kind) -> bool:
    if isinstance(kind, type):
        return isinstance(x, kind)
    if kind == "tensor":
        return isinstance(x, Tensor)
    return isinstance(x, np.ndarray) and (
        kind == "numpy" or bool(x.flags.f_contiguous if kind == "F" else x.flags.c_contiguous)
    )
