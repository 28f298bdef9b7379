"""Rules of what the axes of a batch's arrays mean: as values, for a block, or for the whole process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fluxlike.placement.layout import Layout, generic_layout

__all__ = [
    "CONVENTIONS", "LayoutRule", "Place", "applies", "checked_rules", "layout_rule", "require_convention",
    "rules_for",
]  # fmt: skip

Kind = str | type
Dtype = torch.dtype | np.dtype | type | str

_KINDS = ("tensor", "numpy", "C", "F")
_lock = threading.Lock()


@dataclass(frozen=True)
class Place:
    """Where an array stands in a batch.

    Attributes:
        path: the path as it is printed, such as ``['image']``.
        key: the last step of it: a key, an index or the name of an attribute; None at the root.
    """

    path: str
    key: Any = None

    def is_called(self, key: Any, /) -> bool:
        """Whether a key is the path or the last step of it."""
        return any(
            found == key and (type(found) is bool) == (type(key) is bool) for found in (self.path, self.key)
        )


@dataclass(frozen=True, eq=False, repr=False)
class LayoutRule:
    """What the axes of some arrays of a batch mean elsewhere, and the order that they have here.

    `layout_rule` makes one. It is a value for ``rules=``; ``with rule:`` lets it hold in a block and its
    thread, and ``rule.register()`` in the whole process.

    Attributes:
        src: the layout elsewhere.
        dst: the layout here.
        dtypes: the names of the dtypes that it is about; None for any.
        kind: the kind of array that it is about; None for any.
        key: the key or path of the arrays that it is about; None for any.
        when: the predicate; None for always.
    """

    src: Layout
    dst: Layout
    dtypes: frozenset[str] | None = None
    kind: Kind | None = None
    key: Any = None
    when: Callable[[str, Any], bool] | None = None

    def register(self) -> Self:
        """Let the rule hold in the whole process from here on.

        Returns:
            The rule itself.

        Raises:
            ValueError: it is registered already.
        """
        global _registered
        with _lock:
            if any(rule is self for rule in _registered):
                raise ValueError(f"{self} is registered already")
            _registered = (*_registered, self)
        return self

    def remove(self) -> None:
        """Undo `register`.

        Raises:
            ValueError: it is not registered.
        """
        global _registered
        with _lock:
            if not any(rule is self for rule in _registered):
                raise ValueError(f"{self} is not registered")
            _registered = tuple(rule for rule in _registered if rule is not self)

    def __enter__(self) -> Self:
        _scoped.set((self, *_scoped.get()))
        return self

    def __exit__(self, *_: object) -> None:
        scoped = _scoped.get()
        innermost = scoped.index(self)
        _scoped.set((*scoped[:innermost], *scoped[innermost + 1 :]))

    def __repr__(self) -> str:
        dtypes = sorted(self.dtypes or ())
        dtype = dtypes[0] if len(dtypes) == 1 else dtypes or None
        conditions = {"dtype": dtype, "kind": self.kind, "key": self.key, "when": self.when}
        named = "".join(f", {name}={x!r}" for name, x in conditions.items() if x is not None)
        return f"layout_rule({str(self.src)!r}, {str(self.dst)!r}{named})"


_registered: tuple[LayoutRule, ...] = ()
_scoped: ContextVar[tuple[LayoutRule, ...]] = ContextVar("fluxlike_layout_rules", default=())


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
    """Say what the axes of some arrays of a batch mean elsewhere, and the order to give them here.

    The rule is a value. It holds in one call of `batch_first` or `batch_last` as ``rules=[rule]``, in a
    block and its thread by ``with rule:``, and in the whole process from ``rule.register()`` to
    ``rule.remove()``. It is about the arrays for which all its conditions hold. Where several rules are
    about an array, the nearest wins: those given to the call, then those of ``with`` blocks from the inner
    to the outer, then registered ones, then the convention's own. Of those given to the call, and of the
    registered ones, the one with the most conditions wins, and among these the latest.

    Args:
        src: the layout elsewhere, such as ``"FTN"``; it gives the number of axes too.
        dst: the layout here, of the same letters, such as ``"NTF"``.
        dtype: the dtype of the array, of torch or numpy, or a collection of them. (default: any)
        kind: ``"tensor"``, ``"numpy"``, ``"C"`` or ``"F"`` (a numpy array of that order in memory, which
            can't be told on the way back), or a class. (default: any)
        key: the path of the array in the batch, ``"['x'].image"``, or the last step of it, ``"image"``
            or 0. (default: any)
        when: a predicate of (path, array as it is elsewhere). (default: always)

    Returns:
        The rule.

    Raises:
        ValueError: layouts of different letters, or an unknown `kind`.
        TypeError: a `dtype` that neither torch nor numpy knows.

    Example:
        >>> import torch, fluxlike as fl
        >>> rule = fl.layout_rule("FTN", "NTF", key="sound")
        >>> batch = {"sound": torch.zeros(40, 100, 8), "label": torch.zeros(8)}
        >>> fl.batch_first(batch, rules=[rule])["sound"].shape
        torch.Size([8, 100, 40])
        >>> with rule:
        ...     fl.batch_first(batch)["sound"].shape
        torch.Size([8, 100, 40])
        >>> fl.batch_first(batch, "HWCN")["sound"].shape
        torch.Size([8, 40, 100])
    """
    there, here = Layout(src), Layout(dst)
    there.order(here)
    if kind is not None and kind not in _KINDS and not isinstance(kind, type):
        raise ValueError(f"kind={kind!r}: write one of {', '.join(_KINDS)}, or a class")
    return LayoutRule(there, here, None if dtype is None else _dtype_names(dtype), kind, key, when)


def checked_rules(rules: Iterable[LayoutRule], /) -> tuple[LayoutRule, ...]:
    """Refuse ``rules=`` that are no rules.

    Raises:
        TypeError: it says how to write them.
    """
    if isinstance(rules, LayoutRule):
        raise TypeError(f"rules= is one rule; write a list of them, rules=[{rules}]")
    for rule in rules:
        if not isinstance(rule, LayoutRule):
            raise TypeError(f"a rule is a fluxlike.layout_rule('WHCN', 'NCHW', …), found {rule!r}")
    return tuple(rules)


def applies(rule: LayoutRule, place: Place, x: Any, /) -> bool:
    """Whether all conditions of a rule hold for an array, as it is elsewhere."""
    return (
        x.ndim == len(rule.src)
        and (rule.dtypes is None or _dtype_name(x.dtype) in rule.dtypes)
        and (rule.kind is None or _is_of(x, rule.kind))
        and (rule.key is None or place.is_called(rule.key))
        and (rule.when is None or bool(rule.when(place.path, x)))
    )


def rules_for(convention: str, given: Sequence[LayoutRule], ndim: int, /) -> list[LayoutRule]:
    """All rules about arrays of a number of axes, the first to win first.

    Raises:
        ValueError: an unknown convention.
    """
    require_convention(convention)
    near = [*_by_conditions(given), *_scoped.get(), *_by_conditions(_registered)]
    return [rule for rule in near if len(rule.src) == ndim] + [CONVENTIONS[convention](ndim)]


def require_convention(convention: str, /) -> None:
    """Refuse what is no convention.

    Raises:
        ValueError: an unknown one.
    """
    if convention not in CONVENTIONS:
        raise ValueError(
            f"convention={convention!r}: write one of {', '.join(map(repr, CONVENTIONS))}; a convention of "
            "your own is a list of rules, rules=[fluxlike.layout_rule(…), …]"
        )


def _by_conditions(rules: Sequence[LayoutRule]) -> list[LayoutRule]:
    def without(rule: LayoutRule) -> int:
        return [rule.dtypes, rule.kind, rule.key, rule.when].count(None)

    latest_first = rules[::-1]
    return sorted(latest_first, key=without)


def _all_reversed(ndim: int) -> LayoutRule:
    layout = _REVERSED.get(ndim) or generic_layout(ndim)
    return LayoutRule(layout, layout.reversed)


def _last_to_front(ndim: int) -> LayoutRule:
    if ndim == 4:
        return LayoutRule(Layout("HWCN"), Layout("NCHW"))
    layout = generic_layout(ndim)
    return LayoutRule(layout, Layout("N" + layout[:-1]))


_REVERSED = {n: Layout(letters) for n, letters in ((2, "CN"), (3, "CLN"), (4, "WHCN"), (5, "WHDCN"))}

#: The two published conventions of Julia, by their layout of images: the rule for n axes.
CONVENTIONS: dict[str, Callable[[int], LayoutRule]] = {"WHCN": _all_reversed, "HWCN": _last_to_front}


def _dtype_names(dtype: Any) -> frozenset[str]:
    several = isinstance(dtype, Collection) and not isinstance(dtype, str)
    return frozenset(map(_dtype_name, dtype if several else (dtype,)))


def _dtype_name(dtype: Any) -> str:
    if isinstance(dtype, torch.dtype):
        return str(dtype).removeprefix("torch.")
    if isinstance(dtype, str):
        named = getattr(torch, dtype.removeprefix("torch."), None)
        if isinstance(named, torch.dtype) and dtype != "float":
            return _dtype_name(named)
    try:
        return np.dtype(dtype).name
    except TypeError:
        raise TypeError(
            f"dtype={dtype!r}: write a dtype of torch or numpy, such as torch.float32, or its name, 'float32'"
        ) from None


def _is_of(x: Any, kind: Kind) -> bool:
    if isinstance(kind, type):
        return isinstance(x, kind)
    if kind == "tensor":
        return isinstance(x, Tensor)
    return isinstance(x, np.ndarray) and (
        kind == "numpy" or bool(x.flags.f_contiguous if kind == "F" else x.flags.c_contiguous)
    )
