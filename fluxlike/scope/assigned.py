"""Buffers that move without being written to: `assign` and `current`.

A transform that reports assignments opens a `Frame` with the buffers of its arguments. A layer's
`assign` goes to the innermost frame that holds the buffer, and is lost where none does: then the
model was only closed over, and nothing may change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextvars import ContextVar

from torch import Tensor

from fluxlike._private import functorch
from fluxlike.trees.leaves import Assigned

__all__ = [
    "Assigned",
    "Frame",
    "Replayed",
    "assign",
    "current",
    "derive",
    "enter",
    "enter_again",
    "enter_frames",
    "frames_now",
    "inside",
    "is_held",
    "leave",
]


class Frame:
    """The buffers that one call of a transform answers for, and their newest values."""

    __slots__ = ("_kept", "_level", "_origin", "_parameters", "values")

    def __init__(self, buffers: Iterable[Tensor], parameters: Sequence[Tensor] | frozenset[int] = ()) -> None:
        # By id, because equal tensors are not the same buffer; `_kept` keeps the ids from reuse.
        self._kept = list(buffers)
        self._origin: dict[int, Tensor] = {id(b): b for b in self._kept}
        self._parameters = parameters
        self._level = functorch.level()
        self.values: dict[int, Tensor] = {}

    def origin(self, buffer: Tensor) -> Tensor | None:
        """The argument's buffer that `buffer` is, or was cast or moved from."""
        return self._origin.get(id(buffer))

    def trains(self, x: Tensor) -> bool:
        """Whether `x` is a parameter of the arguments, which can't be assigned."""
        if not isinstance(self._parameters, frozenset):  # most frames are never asked
            self._parameters = frozenset(map(id, self._parameters))
        return id(x) in self._parameters

    def set(self, origin: Tensor, value: Tensor) -> None:
        """Note the newest value of a buffer, as a copy that shares nothing with what made it."""
        seen = functorch.at_level(value.detach(), self._level)
        if seen is None:
            raise ValueError(
                f"assign: the buffer of shape {tuple(origin.shape)} got a value for each example of a vmap "
                "inside the gradient, and there is one buffer; pin the layer by fluxlike.testmode, use a "
                "norm without running statistics such as LayerNorm or GroupNorm, or take the vmap outside"
            )
        self.values[id(origin)] = seen.to(origin, copy=True)

    def newest(self) -> list[tuple[Tensor, Tensor]]:
        """Each buffer that has a value newer than its own, with it."""
        return [(self._origin[key], value) for key, value in self.values.items()]

    def derive(self, new: Tensor, origin: Tensor) -> None:
        """Note that `new` is `origin` with another dtype or on another device."""
        self._kept.append(new)
        self._origin[id(new)] = origin


class Replayed(Frame):
    """A frame as it was at one time: what is assigned goes no further than this copy."""

    __slots__ = ()

    def __init__(self, frame: Frame) -> None:
        self._kept, self._origin = list(frame._kept), dict(frame._origin)
        self._parameters, self._level = frame._parameters, frame._level
        self.values = dict(frame.values)

    def set(self, origin: Tensor, value: Tensor) -> None:
        self.values[id(origin)] = value.detach().to(origin)


_frames: ContextVar[tuple[Frame, ...]] = ContextVar("fluxlike_frames", default=())


def _holder(buffer: Tensor) -> tuple[Frame, Tensor] | None:
    for frame in reversed(_frames.get()):
        origin = frame.origin(buffer)
        if origin is not None:
            return frame, origin
    return None


def is_held(buffer: Tensor, /) -> bool:
    """Whether a frame in scope answers for a buffer."""
    return _holder(buffer) is not None


def assign(buffer: Tensor, value: Tensor, /) -> None:
    """Give a buffer of a layer a new value, without writing to it.

    `gradient` places the value as `Assigned` in the tree of gradients, and `update` puts it into
    the new model; `withupdates` does it without gradients. Where no transform holds the model as an
    argument, nothing happens.

    Args:
        buffer: the tensor that the layer holds, itself.
        value: the new value, of the same shape. It is detached, and cast to the buffer's dtype.

    Raises:
        TypeError: `buffer` or `value` is no tensor.
        ValueError: the shapes differ, or `buffer` is a parameter.

    Example:
        >>> import torch, fluxlike as fl
        >>> @fl.functor(buffers=("calls",))
        ... class Counting:
        ...     def __init__(self):
        ...         self.calls = torch.tensor(0)
        ...     def __call__(self, x):
        ...         fl.assign(self.calls, fl.current(self.calls) + 1)
        ...         return x
        >>> model = Counting()
        >>> _, updates = fl.withupdates(lambda m: m(m(1.0)), model)
        >>> fl.apply_updates(model, updates).calls, model.calls
        (tensor(2), tensor(0))
    """
    if not isinstance(buffer, Tensor) or not isinstance(value, Tensor):
        raise TypeError(
            f"assign takes the buffer and its new value, two tensors; found {type(buffer).__name__} "
            f"and {type(value).__name__}"
        )
    if buffer.shape != value.shape:
        raise ValueError(
            f"assign: the buffer has the shape {tuple(buffer.shape)}, the value {tuple(value.shape)}; "
            "a buffer keeps its shape"
        )
    if any(frame.trains(buffer) for frame in _frames.get()):
        raise ValueError(
            f"assign: the tensor of shape {tuple(buffer.shape)} is a parameter, which update moves; "
            "name its attribute in functor(buffers=…) to make it a buffer"
        )
    holder = _holder(buffer)
    if holder is not None:
        frame, origin = holder
        frame.set(origin, value)


def current(buffer: Tensor, /) -> Tensor:
    """The newest value of a buffer in this scope: what was assigned last, else the buffer itself.

    Args:
        buffer: the tensor that the layer holds, itself.

    Returns:
        A tensor with the buffer's shape, dtype and device.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.current(torch.tensor(3))
        tensor(3)
    """
    holder = _holder(buffer)
    if holder is None:
        return buffer
    frame, origin = holder
    value = frame.values.get(id(origin))
    return buffer if value is None else value.to(buffer)


def derive(new: Tensor, old: Tensor, /) -> None:
    """Say that `new` is `old`, cast or moved, so that assignments to it reach the argument."""
    if new is not old:
        for frame in _frames.get():
            origin = frame.origin(old)
            if origin is not None:
                frame.derive(new, origin)


def enter(frame: Frame, /) -> object:
    """Make a frame the innermost one of this thread; returns the token for `leave`."""
    return enter_frames((*_frames.get(), frame))


def enter_frames(frames: tuple[Frame, ...], /) -> object:
    """Put frames in scope, in the place of those that are; returns the token for `leave`."""
    return _frames.set(frames)


def frames_now() -> tuple[Replayed, ...]:
    """Copies of the frames in scope with their values of this moment."""
    return tuple(map(Replayed, _frames.get()))


def enter_again(frames: tuple[Frame, ...], /) -> object:
    """Put earlier frames in scope for a recomputation, which assigns nothing; `leave` takes the token."""
    return enter_frames(tuple(map(Replayed, frames)))


def leave(token: object, /) -> None:
    """Undo `enter`, `enter_frames` or `enter_again`."""
    _frames.reset(token)  # type: ignore[arg-type]


def inside() -> bool:
    """Whether a transform that collects assignments surrounds this call."""
    return bool(_frames.get())
