"""Errors inside a model: which of its layers failed, and what it got."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor

from fluxlike._private.network_errors import is_of_the_network
from fluxlike.layers.place import Place, here, place_of

__all__ = ["LayerError", "fail", "within"]

# What layers raise over what they got. Other kinds, and classes of the user's own that derive from
# these, mean something to whoever catches them.
_KINDS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)


class LayerError(RuntimeError):
    """A layer inside a model failed over what it got.

    It stands for a RuntimeError, ValueError, TypeError, IndexError or NotImplementedError, which is its
    ``__cause__``. An error of any other class, and one of the network in a collective, keeps its class, and
    says where it arose in a note (``__notes__``), which tracebacks show.

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

    @classmethod
    def of(cls, path: str, layer: Any, x: Any, error: Exception, hint: str = "") -> LayerError:
        """The error of a layer at a path, with what it got and what may help."""
        return cls(path, f"{_got(layer, x)} and failed: {type(error).__name__}: {error}{hint}")

    @staticmethod
    def wraps(error: Exception) -> bool:
        """Whether an error is one that a LayerError stands for, or is one."""
        if isinstance(error, LayerError):
            return True
        return type(error) in _KINDS and not is_of_the_network(error)


def fail(step: str, layer: Any, inputs: tuple[Any, ...], error: Exception, hint: str = "") -> NoReturn:
    """Raise the error of a layer one step below, with its path, what it got, and what may help.

    The traceback begins below the caller, which the raise puts in front again; so each step is there once.
    """
    below = error.__traceback__ and error.__traceback__.tb_next
    around = place_of(here())
    x = inputs[0] if len(inputs) == 1 else inputs
    if isinstance(error, LayerError):  # one error and one cause, however deep
        known = around.layer in error.around
        found = error if known else error.below(around.path + step, around.around)
        raise found.with_traceback(below) from error.__cause__
    if not LayerError.wraps(error):
        _note_place(error, step, around, _got(layer, x))
        raise error.with_traceback(below)
    found = LayerError.of(step, layer, x, error, hint)
    raise found.below(around.path, around.around) from error


def within(step: str, layer: Callable[..., Any], x: Any, *others: Any, **named: Any) -> Any:
    """``layer(x, …)``, where an error says that the layer is found at `step`, and what it got.

    Raises:
        LayerError: the layer failed over what it got.
    """
    try:
        return layer(x, *others, **named)
    except Exception as error:
        fail(step, layer, (x, *others), error)


def _note_place(error: Exception, step: str, place: Place, got: str) -> None:
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


def _got(layer: Any, x: Any) -> str:
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
