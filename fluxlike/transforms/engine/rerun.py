"""What a function needs to run again as it ran: the scope of its call."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import tracing
from fluxlike._private.dispatch import TorchDispatchMode, may_draw
from fluxlike.scope import assigned, seeded
from fluxlike.scope.autocast import autocast_now

__all__ = ["Rerun"]


class Rerun:
    """The scope at this moment: mode, assigned buffers, draws, autocast.

    Made before a function runs, it runs the function again as it ran: in the same mode, with the buffers
    read as they were and nothing assigned, with the same draws. The whole context is kept, so that it does
    not matter where or on which thread the second run happens.

    Args:
        inputs: the tensors that the function gets; the second time, others may stand for them.
    """

    def __init__(self, inputs: Sequence[Tensor] = ()) -> None:
        self._context = contextvars.copy_context()
        self._frames = assigned.frames_now()
        self._buffers = [(i, x) for i, x in enumerate(inputs) if assigned.is_held(x)] if self._frames else []
        self._draws = seeded.active()
        self._mark = 0 if self._draws is None else self._draws.mark()
        # In a trace there is no generator to set back: what was drawn is kept instead.
        traced = self._draws is None and tracing.tracing()
        self._drawn = _Keeping() if traced else None
        self._generators = None if tracing.tracing() else _generators()
        self._autocast = autocast_now()

    def first(self, f: Callable[[], Any], within: AbstractContextManager[Any] | None = None) -> Any:
        """Run the function for the first time, within a context."""
        if within is None and self._drawn is None:
            value = f()
        else:
            with within or nullcontext(), ExitStack() as stack:
                if self._draws is not None and within is not None:  # so that what is drawn is seen there
                    stack.callback(seeded.leave, seeded.enter(self._draws))
                if self._drawn is not None:
                    stack.enter_context(self._drawn)
                value = f()
        if self._generators is not None and _same(self._generators, _generators()):
            self._generators = None  # nothing was drawn from them
        return value

    def again(
        self,
        f: Callable[[], Any],
        inputs: Sequence[Tensor] = (),
        within: AbstractContextManager[Any] | None = None,
    ) -> Any:
        """Run the function once more, with other tensors for the inputs, within a context."""
        return self._context.copy().run(self._inside, f, inputs, within)

    def _inside(
        self, f: Callable[[], Any], inputs: Sequence[Tensor], within: AbstractContextManager[Any] | None
    ) -> Any:
        with within or nullcontext(), ExitStack() as stack:
            stack.callback(assigned.leave, assigned.enter_again(self._frames))
            for i, buffer in self._buffers:
                assigned.derive(inputs[i], buffer)
            if self._draws is not None:
                stack.callback(seeded.leave, seeded.enter(self._draws))
                stack.callback(self._draws.rewind, self._draws.mark())
                self._draws.rewind(self._mark)
            if self._generators is not None:
                stack.callback(_set_generators, _generators())
                _set_generators(self._generators)
            if self._drawn is not None:
                stack.enter_context(_Giving(self._drawn))
            stack.enter_context(self._autocast())
            return f()


def _generators() -> tuple[Tensor, list[Tensor]]:
    """The states of torch's generators, of the CPU and of the accelerators."""
    module = _accelerator()
    if module is None:
        states = []
    elif hasattr(module, "get_rng_state_all"):
        states = module.get_rng_state_all()
    else:
        states = [module.get_rng_state()]
    return torch.default_generator.get_state(), states


def _set_generators(states: tuple[Tensor, list[Tensor]]) -> None:
    cpu, others = states
    torch.default_generator.set_state(cpu)
    module = _accelerator()
    if others and module is not None:
        if hasattr(module, "set_rng_state_all"):
            module.set_rng_state_all(others)
        else:
            module.set_rng_state(others[0])


def _same(a: tuple[Tensor, list[Tensor]], b: tuple[Tensor, list[Tensor]]) -> bool:
    pairs = zip([a[0], *a[1]], [b[0], *b[1]], strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def _accelerator() -> Any:
    """torch's module for the accelerator, if there is one in use."""
    found = torch.accelerator.current_accelerator()
    if found is None:
        return None
    module = torch.get_device_module(found)
    return module if getattr(module, "is_initialized", lambda: True)() else None


class _Keeping(TorchDispatchMode):
    """Keeps what torch's random operations draw.

    Attributes:
        drawn: what was drawn, in order.
        asleep: whether a second run is on, which may be inside the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []
        self.asleep = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if may_draw(func) and not self.asleep:
            self.drawn.append(out.clone() if func._schema.is_mutable else out)  # it may be written to
        return out


class _Giving(TorchDispatchMode):
    """Gives what was drawn before, in the same order."""

    def __init__(self, kept: _Keeping) -> None:
        super().__init__()
        self._kept, self._left = kept, iter(kept.drawn)

    def __enter__(self) -> Any:
        self._before, self._kept.asleep = self._kept.asleep, True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._kept.asleep = self._before
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not may_draw(func):
            return func(*args, **(kwargs or {}))
        drawn = next(self._left, None)
        if drawn is None:  # while the first run is still on, and has not come here yet
            return func(*args, **(kwargs or {}))
        if func._schema.is_mutable:
            return args[0].copy_(drawn)
        return drawn
