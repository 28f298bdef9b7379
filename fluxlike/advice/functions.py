"""Functions that say what to write for an argument which they do not have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from fluxlike.advice.constructors import clause
from fluxlike.advice.words_for_arguments import OF_FUNCTIONS

__all__ = ["teaching_function"]

F = TypeVar("F", bound=Callable[..., Any])


def teaching_function(f: F, /) -> F:
    """A function of ours that says what to write for named arguments that it does not have.

    Arguments are looked at only after a TypeError, and one from inside is raised as it is.

    Args:
        f: the function, which takes no named argument of any name.

    Returns:
        A function with the same signature, so that this can be used as a decorator.
    """
    own, words = f.__name__, OF_FUNCTIONS.get(f.__name__, {})

    @functools.wraps(f)
    def taught(*args: Any, **kwargs: Any) -> Any:
        try:
            return f(*args, **kwargs)
        except TypeError:
            parameters = inspect.signature(f).parameters
            strange = {name: value for name, value in kwargs.items() if name not in parameters}
            if not strange:
                raise
            named = [
                name for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY)
            ]
            found = [clause(own, name, value, "", words, named) for name, value in strange.items()]
            takes = "" if strange.keys() <= words.keys() else f"; it takes {', '.join(named)}"
            if takes and any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
                takes += ", and arguments of f by place"
            raise TypeError(f"{own} has {'; '.join(found)}{takes}") from None

    return cast(F, taught)
