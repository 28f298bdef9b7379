"""Errors of layers: which layer of the model, what it got, what it takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fluxlike.layers.place import Place, here, place_of

__all__ = [
    "LayerError", "explain_mixture", "got", "note_place", "require_activation", "require_features",
    "require_shape",
]  # fmt: skip

# What layers raise over what they got. Other kinds, and classes of the user's own that derive from
# these, mean something to whoever catches them.
_KINDS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)


class LayerError(RuntimeError):
    """A layer inside a model failed over what it got.

    It stands for a RuntimeError, ValueError, TypeError, IndexError or NotImplementedError, which is its
    ``__cause__``. An error of any other class keeps its class, and says where it arose in a note
    (``__notes__``), which tracebacks show.

    Attributes:
        path: the path of the layer in the outermost model that is being called, such as ``.layers[2]``.
        message: what the layer got, and its error.
    """

    #: The ids of the objects that `path` goes through, while they are called.
    around: frozenset[int] = frozenset()

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path, self.message = path, message

    def __reduce__(self) -> tuple[Any, ...]:
        kept = {k: v for k, v in self.__dict__.items() if k != "around"}
        return type(self), (self.path, self.message), kept

    def below(self, step: str, around: frozenset[int]) -> LayerError:
        """The same error, seen from further up."""
        error = LayerError(step + self.path, self.message)
        error.around = around | self.around
        return error

    def within(self, step: str) -> LayerError:
        """The same error, for the caller, a node that called the layer at a step below itself."""
        place = place_of(here())
        return self if place.layer in self.around else self.below(place.path + step, place.around)

    @classmethod
    def of(cls, path: str, layer: Any, x: Any, error: Exception, hint: str = "") -> LayerError:
        """The error of a layer at a path, with what it got and what may help."""
        return cls(path, f"{got(layer, x)} and failed: {type(error).__name__}: {error}{hint}")

    @staticmethod
    def wraps(error: Exception) -> bool:
        """Whether an error is one that a LayerError stands for, or is one."""
        return type(error) in _KINDS or isinstance(error, LayerError)


def note_place(error: Exception, step: str, place: Place, got: str) -> None:
    """Note on an error where a layer raised it."""
    notes = getattr(error, "__notes__", [])
    for i, note in enumerate(notes):
        if isinstance(note, _Note):
            if place.layer not in note.around:
                notes[i] = _Note(place.path + step + note, place.around | note.around)
            return
    error.add_note(_Note(f"{place.path}{step}: {got}", place.around))


class _Note(str):
    """A note on an error that begins with the path of the layer where it arose."""

    around: frozenset[int]

    def __new__(cls, text: str, around: frozenset[int]) -> _Note:
        note = super().__new__(cls, text)
        note.around = around
        return note

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def got(layer: Any, x: Any) -> str:
    """A layer and what it got, in words."""
    text = repr(layer)
    described = type(layer).__name__ if "\n" in text else text.split("  #")[0]
    return f"{getattr(layer, '__name__', described)} got {_say(x)}"


def _say(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor of shape {tuple(x.shape)} and {x.dtype}"
    if isinstance(x, (tuple, list)) and any(isinstance(item, Tensor) for item in x):
        return f"({', '.join(map(_say, x))})"
    return f"a {type(x).__name__}"


def require_features(
    name: str, x: Any, axis: int, size: int, wanted: str, ndims: tuple[int, ...] = ()
) -> None:
    """Refuse an input whose `axis` is not of length `size`, or whose rank is not among `ndims`.

    Raises:
        TypeError: `x` is no tensor.
        ValueError: the shape is not as `wanted` says.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} takes a tensor of shape {wanted}, found {type(x).__name__}")
    if ndims and x.ndim not in ndims:
        raise ValueError(f"{name} takes the shape {wanted}, found {tuple(x.shape)}")
    if x.ndim <= (axis if axis >= 0 else -axis - 1) or x.shape[axis] != size:
        raise ValueError(f"{name} takes the shape {wanted}, found {tuple(x.shape)}")


def require_shape(name: str, x: object, shape: tuple[int, ...]) -> None:
    """Refuse an input whose last axes are not of this shape.

    Raises:
        TypeError: `x` is no tensor.
        ValueError: other last axes.
    """
    wanted = f"(…, {', '.join(map(str, shape))})"
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} takes a tensor of shape {wanted}, found {type(x).__name__}")
    if x.ndim < len(shape) or tuple(x.shape[x.ndim - len(shape) :]) != shape:
        raise ValueError(f"{name} takes the shape {wanted}, found {tuple(x.shape)}")


def explain_mixture(name: str, weight: Tensor, x: Tensor, error: RuntimeError | None = None) -> None:
    """Raise an error where a layer and its input differ in device or dtype: a better one than torch's, if
    there was one.

    Raises:
        ValueError: it says both, and what to write.
    """
    if x.device != weight.device:
        raise ValueError(
            f"{name} is on {weight.device}, its input on {x.device}; write "
            f"fluxlike.to_device(x, {str(weight.device)!r})"
        ) from error
    if x.dtype != weight.dtype:
        wanted = str(weight.dtype).removeprefix("torch.")
        raise ValueError(
            f"{name} holds {wanted}, its input is {str(x.dtype).removeprefix('torch.')}; write "
            f"x.to(torch.{wanted}), or cast the model"
        ) from error


def require_activation(name: str, activation: Any) -> None:
    """Refuse an activation that can't be called, or that is a class.

    Raises:
        TypeError: it says what to write.
    """
    if isinstance(activation, type):
        raise TypeError(f"{name} got the class {activation.__name__}; write {activation.__name__}()")
    if not callable(activation):
        hint = f"; write fl.{activation}" if isinstance(activation, str) else ""
        raise TypeError(f"{name} got the activation {activation!r}, which can't be called{hint}")
