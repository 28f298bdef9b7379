"""One call of a compiled function, taken apart: which leaves are inputs, and what the others are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from operator import is_, itemgetter
from typing import Any, NamedTuple

import numpy as np
import optree
import torch
from torch import Tensor

from fluxlike._private.guards import guard
from fluxlike.transforms.jit.constants import Constants
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.nodes import PIN, Riding
from fluxlike.trees.structure import structure_of

__all__ = ["Signature", "number", "pins", "taker"]


def taker(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """A function from a list to the tuple of its items at some places."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda items: tuple(items[i] for i in places)


#: The dtypes of arrays that torch has, too.
_ARRAYS = frozenset(map(np.dtype, "?bhiqBHIQefdFD"))


def pins(leaves: Sequence[Any], treedef: optree.PyTreeSpec, /) -> tuple[Any, ...]:
    """The modes to which `trainmode` and `testmode` pinned nodes: equal treedefs may differ in them."""
    found: list[Any] = []

    def visit(kind: Any, data: Any, children: Any) -> None:
        if type(data) is tuple and isinstance(data[-1], Riding):
            found.append(data[-1].values.get(PIN))

    treedef.walk(leaves, visit)
    return tuple(found) if any(found) else ()


class _Kind(NamedTuple):
    """What an input was when the trace was made; `plain` if neither an array nor a leaf of autograd."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    plain: bool


class Signature:
    """What one trace holds for: the kinds of all leaves of a call, and the values of the static ones.

    Inputs are tensors (each tied one once), arrays, and floats: those that a class declares by
    ``functor(scalars=…)``, and those that lie in no object of a class at all. Everything else is static.

    Args:
        leaves: those of the call.
        treedef: the structure of its arguments.
        label: from a path in that structure to one that starts with the name of an argument.
        dynamic: whether sizes of tensors outside of objects may change.
        seen: earlier ones; where a size was another in one of these, it may change too.

    Attributes:
        treedef: the structure of the arguments.
        paths: for each leaf its path, from the name of its argument.
        tensors: for each input that is a tensor or an array, the first leaf that holds it.
        scalars: for each input that is a number, the first leaf that holds it.
        input_at: from the number of a leaf to that of its input; tensors come first, then scalars.
        dynamic: from the number of each input whose sizes may change to the axes of these.
    """

    def __init__(
        self,
        leaves: Sequence[Any],
        treedef: optree.PyTreeSpec,
        label: Callable[[str], str],
        *,
        dynamic: bool,
        seen: Sequence[Signature] = (),
    ) -> None:
        self.treedef, self.label = treedef, label
        structure = structure_of(treedef)
        self.paths = [label(path) for path in structure.paths]
        self.tensors: list[int] = []
        self.input_at: dict[int, int] = {}
        self._arrays: list[int] = []
        self._assigned: list[int] = []
        scalars: list[int] = []
        static: list[int] = []
        number: dict[int, int] = {}
        again: list[tuple[int, int]] = []
        for i, x in enumerate(leaves):
            if isinstance(x, Assigned):
                self._assigned.append(i)
                x = x.value
            if isinstance(x, Tensor) and x.layout is torch.strided:
                if id(x) in number:
                    again.append((self.tensors[number[id(x)]], i))
                else:
                    number[id(x)] = len(self.tensors)
                    self.tensors.append(i)
                self.input_at[i] = number[id(x)]
            elif isinstance(x, np.ndarray) and x.dtype.newbyteorder("=") in _ARRAYS:
                self._arrays.append(i)
                self.input_at[i] = len(self.tensors)
                self.tensors.append(i)
            elif isinstance(x, float) and (structure.scalar[i] or structure.outside[i]):
                scalars.append(i)
            else:
                static.append(i)
        self.dynamic = self._changing(leaves, seen) if dynamic else {}
        self._take_scalars(leaves, scalars, structure.scalar_names)
        self._take_static = taker(static)
        self.static = static
        self._constants = Constants(self._take_static(leaves))
        self._take = taker(self.tensors)
        self._again = taker([i for _, i in again]), taker([i for i, _ in again])
        self._ties = bool(again)
        opened = self._opened(leaves)
        assert opened is not None
        examples = self._take(opened)
        plain = [
            type(x) is Tensor and not x.requires_grad and i not in self._arrays
            for i, x in zip(self.tensors, examples, strict=True)
        ]
        self.kinds = [_Kind(x.dtype, tuple(x.shape), p) for x, p in zip(examples, plain, strict=True)]
        self._guard = guard(examples, self.dynamic)
        self._lazy = [k for k, x in enumerate(examples) if x.is_conj() or x.is_neg()]
        # These are read as their values, so where autograd records, one with a graph is another case.
        self._read = [k for k, x in enumerate(examples) if x.requires_grad]

    def _changing(self, leaves: Sequence[Any], seen: Sequence[Signature]) -> dict[int, frozenset[int]]:
        """The axes whose sizes may change: the first ones, and those that were of another size before."""
        outside, found = structure_of(self.treedef).outside, {}
        for k, i in enumerate(self.tensors):
            x = leaves[i].value if isinstance(leaves[i], Assigned) else leaves[i]
            if not outside[i] or x.ndim == 0:
                continue
            axes = {0}
            for other in seen:
                number = other.input_at.get(i) if other.treedef == self.treedef else None
                shape = other.kinds[number].shape if number is not None and number < len(other.kinds) else ()
                if len(shape) == x.ndim:
                    axes |= {a for a, n in enumerate(x.shape) if n != shape[a]}
            found[k] = frozenset(axes)
        return found

    def _take_scalars(self, leaves: Sequence[Any], places: list[int], names: Sequence[str | None]) -> None:
        """Group the scalars: of one name and one value there is one input."""
        first: dict[Any, int] = {}
        like: list[int] = []
        for n, i in enumerate(places):
            like.append(first.setdefault((names[i] or self.paths[i], repr(float(leaves[i]))), n))
        kept = sorted(set(like))
        self.scalars = [places[n] for n in kept]
        for i, n in zip(places, like, strict=True):
            self.input_at[i] = len(self.tensors) + kept.index(n)
        self._scalar_values, self._scalar_like = taker(places), taker(like)
        self._kept = taker(kept)
        self._any_scalars = bool(places)

    def _opened(self, leaves: Sequence[Any]) -> Sequence[Any] | None:
        """The leaves with tensors in the place of arrays and of `Assigned`; None if these are not there."""
        if not (self._arrays or self._assigned or self.dynamic):
            return leaves
        opened = list(leaves)
        for i in self._assigned:
            if not isinstance(opened[i], Assigned):
                return None
            opened[i] = opened[i].value
        for i in self._arrays:
            if not isinstance(opened[i], np.ndarray):
                return None
            opened[i] = _tensor(opened[i])
        for k in self.dynamic:
            i = self.tensors[k]
            x = opened[i]
            if not isinstance(x, Tensor):
                return None
            if not x.is_contiguous():
                apart = x.detach().contiguous()
                for j, number in self.input_at.items():
                    if number == k and opened[j] is x:
                        opened[j] = apart
        return opened

    def inputs(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[float, ...]] | None:
        """The tensors and the scalars of a call; None if it is not of this kind."""
        opened = self._opened(leaves)
        if opened is None:
            return None
        tensors = self._take(opened)
        if not self._guard(*tensors):  # which refuses one that stands there twice too, a new tie
            return None
        if self._read and torch.is_grad_enabled() and any(tensors[k].grad_fn is not None for k in self._read):
            return None
        if self._ties and any(
            a is not b for a, b in zip(self._again[0](opened), self._again[1](opened), strict=True)
        ):
            return None
        if self._lazy:  # kernels read memory as it is
            tensors = tuple(
                x.resolve_conj().resolve_neg() if k in self._lazy else x for k, x in enumerate(tensors)
            )
        if not self._constants.agree(self._take_static(leaves)):
            return None
        if not self._any_scalars:
            return tensors, ()
        values = self._scalar_values(leaves)
        kept = self._kept(values)
        if not _are_floats(values) or not _alike(values, self._scalar_like(values), 0.0 in kept):
            return None
        return tensors, kept

    def stand_ins(self, leaves: Sequence[Any]) -> list[Tensor]:
        """The inputs of a trace: the tensors, and the scalars as 0-d tensors."""
        taken = self.inputs(leaves)
        assert taken is not None
        return [*taken[0], *map(number, taken[1])]

    def place(self, k: int) -> str:
        """The path of the first leaf that is an input."""
        return self.paths[next(i for i, number in self.input_at.items() if number == k)]

    @property
    def statics(self) -> tuple[Any, ...]:
        """The values of the static leaves."""
        return self._constants.values

    @cached_property
    def described(self) -> list[str]:
        """For each leaf, in words what a trace holds it to."""
        words = [""] * len(self.paths)
        for i, x in zip(self.static, self.statics, strict=True):
            words[i] = repr(x)
        for i, k in self.input_at.items():
            x = self.kinds[k] if k < len(self.tensors) else None
            words[i] = "a float" if x is None else f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
        return words

    def kind(self, place: int) -> type:
        """The class of a static leaf."""
        return self._constants.types[self.static.index(place)]

    def rebuilt(self, inputs: Sequence[Tensor]) -> list[Any]:
        """The leaves of the arguments over other inputs."""
        leaves: list[Any] = [None] * len(self.paths)
        for i, x in zip(self.static, self.statics, strict=True):
            leaves[i] = x
        for i, k in self.input_at.items():
            leaves[i] = inputs[k]
        for i in self._assigned:
            leaves[i] = Assigned(leaves[i])
        return leaves


def number(x: float, /) -> Tensor:
    """A scalar as an input of a graph."""
    return torch.tensor(x, dtype=torch.float64, device="cpu")


def _tensor(x: np.ndarray) -> Tensor:
    """An array as a tensor, of the same memory where torch can share it."""
    plain = x.flags.writeable and all(stride >= 0 for stride in x.strides) and x.dtype.isnative
    return torch.from_numpy(x if plain else np.array(x, dtype=x.dtype.newbyteorder("=")))


def _are_floats(values: tuple[Any, ...]) -> bool:
    types = set(map(type, values))
    return types == {float} or all(issubclass(t, float) for t in types)


def _alike(xs: tuple[float, ...], ys: tuple[float, ...], zeros: bool) -> bool:
    """Whether floats are the same numbers, NaN and the signs of zeros among them."""
    if all(map(is_, xs, ys)) if zeros else xs == ys:
        return True
    return all(x is y or repr(float(x)) == repr(float(y)) for x, y in zip(xs, ys, strict=True))
