"""torch's own random operations under a key.

Where tensors are numbers in memory, torch's generators are seeded from the key and put back at the end,
which costs a few microseconds. Where operations are traced, or mapped by ``vmap``, there is no generator
to seed: the operations themselves are drawn from the key (`torch_modes`).
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from fluxlike._private import functorch, tracing
from fluxlike.scope.blocks import Domain, block
from fluxlike.scope.torch_modes import Mapped, Traced
from fluxlike.scope.torch_operations import Numbers

__all__ = ["give_back", "take_over"]


class Scope(Numbers, Protocol):
    """What is asked of `Draws`."""

    key: Any

    def first_entry(self) -> bool:
        """Whether the generators are to be seeded from these draws, and were not yet."""


def take_over(draws: Scope, /) -> Any:
    """Put torch's random operations under the key of these draws; returns what `give_back` takes."""
    held: Any
    if functorch.vmaps():
        held = Mapped(draws)
    elif tracing.tracing():
        held = Traced(draws)
    elif draws.first_entry():
        held = _Seeded(draws.key.data)
    else:
        return None
    held.__enter__()
    return held


def give_back(held: Any, /) -> None:
    """Undo `take_over`."""
    if held is not None:
        held.__exit__(None, None, None)


class _Seeded:
    """torch's generators, seeded from a key while it is in scope.

    They are those of all threads. Where threads overlap, what torch draws is a function of no key, but the
    last to leave still gives the generators back as the first found them.
    """

    _open: ClassVar[list[_Seeded]] = []
    _before: ClassVar[_States]
    _lock = threading.Lock()

    def __init__(self, data: Tensor) -> None:
        low, high, _, _ = block(0, Domain.SEED.number(), *data.tolist())
        self._seed = (high >> 1 << 32) | low  # of 63 bits, which every generator takes

    def __enter__(self) -> None:
        with self._lock:
            self._found = _States()
            if not self._open:
                _Seeded._before = self._found
            self._open.append(self)
            torch.default_generator.manual_seed(self._seed)
            if self._found.cuda:
                torch.cuda.manual_seed_all(self._seed)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._open.remove(self)
            (self._found if self._open else self._before).restore()


class _States:
    """The states of torch's generators."""

    def __init__(self) -> None:
        self._cpu = torch.default_generator.get_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        torch.default_generator.set_state(self._cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
