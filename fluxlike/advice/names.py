"""Errors of names that a module or a class does not have, which say what to write."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NoReturn

from fluxlike.advice.words_of_jax_and_flux import OF_FLUX, OF_JAX
from fluxlike.advice.words_of_torch import WORDS

__all__ = ["Absent", "absent", "call_hint"]


class Absent:
    """An attribute that a class does not have: reading it says what to write.

    Unlike ``__getattr__``, it costs other attributes nothing. `hasattr` is False, and an attribute of an
    object or of a subclass comes before it.

    Args:
        name: the attribute.
        write: what to write.
    """

    def __init__(self, name: str, write: str) -> None:
        self._name, self._write = name, write

    def __get__(self, instance: Any, owner: type) -> NoReturn:
        text = f"{owner.__name__} has no {self._name!r}: {self._write}"
        raise AttributeError(text, name=self._name, obj=None)


def call_hint(x: Any, /) -> str:
    """What to add to the error of an object that can't be called: something if its class has a `forward`."""
    if callable(x) or not callable(getattr(type(x), "forward", None)):
        return ""
    return (
        f"; define __call__ in {type(x).__name__} (fluxlike calls models directly; forward is "
        "torch.nn.Module's name)"
    )


def absent(module: str, name: str, known: Iterable[str], /) -> AttributeError:
    """The error of a name that a module does not have.

    Args:
        module: the full name of the module.
        name: what it was asked for.
        known: the names that it has.

    Returns:
        An AttributeError that says what to write for a name of torch, JAX or Flux, and else which name is
        near.
    """
    text = f"module {module!r} has no attribute {name!r}"
    words = next((words for words in (WORDS, OF_JAX, OF_FLUX) if name in words), None)
    if words is not None:
        text += f": write {words[name]}"
    elif not name.startswith("_"):  # which tools ask for, and nobody mistypes
        near = difflib.get_close_matches(name, known, 1)
        text += f"; did you mean {near[0]!r}?" if near else ""
    # Without an object Python does not add a guess of its own, such as Bilinear for Linear.
    return AttributeError(text, name=name, obj=None)
