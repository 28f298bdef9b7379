"""The memory of one rank in a step of training, followed tensor by tensor without having any."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fluxlike._private.fake_ranks import is_fake, propagating
from fluxlike._private.heard import WAITS, Heard, in_backward

__all__ = ["Memory"]

#: Operations of ATen that make tensors with nothing in them.
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


@dataclass
class _Held:
    """Memory that some tensor holds.

    Attributes:
        bytes: how much.
        resident: whether it was there before the step.
        of_parameters: whether it holds parameters, or what was made of parameters alone; None as long as it
            is empty.
        storage: a weak reference to it.
    """

    bytes: int
    resident: bool
    of_parameters: bool | None
    storage: Any


class Memory(Heard):
    """Hears the operations of a step on tensors without memory, and keeps account of what they would hold.

    Args:
        parameters: the tensors of the model that are trained.
        others: all else that is there before the step and stays.

    Attributes:
        activations: the bytes that the forward pass leaves for the backward pass, beside what was there and
            what was made of parameters alone.
        gathered: the bytes that it leaves of what was made of parameters alone: gathered, or cast to
            another dtype.
        peak: the most bytes that were held at any moment, all of them.
        phase: ``"forward"``, and from the begin of the backward pass on ``"backward"``.
    """

    def __init__(self, parameters: Iterable[Tensor], others: Iterable[Tensor]) -> None:
        super().__init__()
        self._held: dict[int, _Held] = {}
        self._live = 0
        for x in parameters:
            self._hold(x, resident=True, of_parameters=True)
        for x in others:
            self._hold(x, resident=True, of_parameters=False)
        self.peak = self._live
        self.activations = self.gathered = 0
        self.phase = "forward"

    def before(self, operation: Any, args: Any, kwargs: Any) -> None:
        if self.phase == "forward" and in_backward():
            self.phase = "backward"
            left = [h for h in self._held.values() if not h.resident]
            self.gathered = sum(h.bytes for h in left if h.of_parameters)
            self.activations = sum(h.bytes for h in left if not h.of_parameters)

    def run_operation(self, operation: Any, args: Any, kwargs: Any) -> Any:
        return args[0] if operation in WAITS else super().run_operation(operation, args, kwargs)

    def after(self, operation: Any, args: Any, kwargs: Any, out: Any) -> None:
        new = [x for x in _fakes(out) if id(x.untyped_storage()) not in self._held]
        writes = getattr(operation, "_schema", None) is not None and operation._schema.is_mutable
        if propagating() or not (new or writes):
            return
        given = [self._held.get(id(x.untyped_storage())) for x in _fakes((args, tuple(kwargs.values())))]
        filled = [h for h in given if h is None or h.of_parameters is not None]
        alone = all(h is not None and h.of_parameters for h in filled) if filled else None
        if alone is None and operation.__name__.partition(".")[0] not in _EMPTY:
            alone = False
        for x in new:
            self._hold(x, resident=False, of_parameters=alone)
        if writes and alone is not None:
            for h in given:
                if h is not None and not h.resident:
                    h.of_parameters = alone
        self.peak = max(self.peak, self._live)

    def _hold(self, x: Tensor, *, resident: bool, of_parameters: bool | None) -> None:
        storage = x.untyped_storage()
        name = id(storage)
        if name in self._held:
            return

        def freed(_: Any) -> None:
            self._live -= self._held.pop(name).bytes

        size = storage.nbytes()
        self._held[name] = _Held(size, resident, of_parameters, weakref.ref(storage, freed))
        self._live += size


def _fakes(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        if is_fake(x):
            yield x
    elif isinstance(x, (tuple, list)):
        for part in x:
            yield from _fakes(part)
