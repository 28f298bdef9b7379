"""The mode under which a function is watched: it compares contents around every operation."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from fluxlike._private import tracing
from fluxlike.scope import seeded
from fluxlike.transforms.purity.copies import contents, differ, storage_of, view_of
from fluxlike.transforms.purity.randomness import RandomStates
from fluxlike.transforms.purity.watched import Watched

__all__ = ["Watch"]


class Watch(TorchFunctionMode):
    """Compares, around each operation, what was there before the run and is among its arguments."""

    def __init__(self, trees: list[Watched], states: RandomStates) -> None:
        super().__init__()
        self._trees, self._states = trees, states
        self._changed: dict[str, list[str]] = {}
        self._places: dict[int, list[str]] = {}  # by the id of a tensor or generator
        self._leaves: dict[int, list[tuple[Tensor, type]]] = {}  # by the id of the storage
        for tree in trees:
            for leaf in tree.leaves:
                self._register(leaf.place, leaf.value)
        # Every tensor that Python knows of; what is not among them is made by the function itself.
        tensors = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
        self._existing = {id(s): s for s in map(storage_of, tensors) if s is not None}
        self._first: dict[int, Tensor] = {}  # contents to put back, by the id of the storage

    def _register(self, place: str, x: Any) -> None:
        known = id(x) in self._places
        self._places.setdefault(id(x), []).append(place)
        storage = storage_of(x) if isinstance(x, Tensor) else None
        if storage is not None and not known:
            self._leaves.setdefault(id(storage), []).append((x, type(x)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "__get__" or tracing.tracing():
            return func(*args, **kwargs)
        tensors = list(_tensors((args, kwargs)))
        generator = kwargs.get("generator")
        contents_before = self._contents(tensors)
        forms = [(x, _form(x)) for x in tensors if id(x) in self._places]
        random_before, own_before = self._states.read(), generator and generator.get_state()
        result = func(*args, **kwargs)
        for number, old in contents_before.items():
            if not torch.equal(contents(self._existing[number]), old):
                self._first.setdefault(number, old)
                self._note(self._written(number, old, tensors), func)
        for x, form in forms:
            if _form(x) != form:
                self._note(self._places[id(x)], func)
        if seeded.active() is None and self._states.moved(random_before):
            self._states.note(_name(func))
        if own_before is not None and not torch.equal(generator.get_state(), own_before):
            self._note(self._places.get(id(generator), []), func)
        return result

    def _contents(self, tensors: list[Tensor]) -> dict[int, Tensor]:
        """The bytes under the tensors that were there before the run, by the id of the storage."""
        storages = {id(s): s for s in map(storage_of, tensors) if s is not None}
        return {number: contents(s).clone() for number, s in storages.items() if number in self._existing}

    def _written(self, number: int, old: Tensor, tensors: list[Tensor]) -> list[str]:
        """The places of the tensors in a storage whose contents have changed."""
        leaves = [x for x, kind in self._leaves.get(number, ()) if type(x) is kind]
        places = [place for x in leaves if differ(x, view_of(old, x)) for place in self._places[id(x)]]
        if places:
            return places
        x = next(x for x in tensors if id(storage_of(x)) == number)
        return [f"a closed-over {str(x.dtype).removeprefix('torch.')} tensor of shape {tuple(x.shape)}"]

    def _note(self, places: list[str], func: Any) -> None:
        for place in places:
            self._add(place, _name(func))

    def _add(self, place: str, operation: str) -> None:
        by = self._changed.setdefault(place, [])
        if operation not in by:
            by.append(operation)

    def finish(self) -> dict[str, tuple[str, ...]]:
        """Every place that was changed, and by what."""
        for tree in self._trees:
            for place, operation in list(tree.differences(self._changed)):
                self._add(place, operation)
        return {place: tuple(by) for place, by in self._changed.items()}

    def restore(self) -> None:
        """Give tensors that the function reached by a closure their contents of before."""
        for number, old in self._first.items():
            storage = self._existing[number]
            if storage.nbytes() == old.numel():
                contents(storage).copy_(old)
        for tree in self._trees:
            tree.put_back()


def _form(x: Tensor) -> tuple[Any, ...]:
    """What a tensor is beside its contents, and which memory it lies in."""
    return type(x), x.dtype, x.shape, x.stride(), x.storage_offset(), x.requires_grad, id(storage_of(x))


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (tuple, list)):
        for part in x:
            yield from _tensors(part)
    elif isinstance(x, dict):
        for part in x.values():
            yield from _tensors(part)


def _name(func: Any) -> str:
    known = resolve_name(func) or str(func)
    if known.startswith("aten."):
        return f"torch.ops.{known}"
    return f"torch.{func.__name__}" if inspect.isbuiltin(func) else known
