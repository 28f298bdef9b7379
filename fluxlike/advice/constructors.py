"""Constructors that say what to write for an argument which they do not have."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, TypeVar

from fluxlike.advice.words_for_arguments import Advice, words_for

__all__ = ["clause", "teaching"]

C = TypeVar("C", bound=type)


def teaching(cls: C, /) -> C:
    """A class of ours whose constructor says what to write for arguments that it does not have.

    Its signature stays. Arguments are looked at only after a TypeError, and one from inside is raised as it
    is. A constructor that takes any name is left as it is.

    Args:
        cls: the class.

    Returns:
        The class itself, so that it can be used as a decorator.
    """
    init: Any = cls.__init__  # type: ignore[misc]
    code = getattr(init, "__code__", None)
    if code is None or code.co_flags & inspect.CO_VARKEYWORDS:
        return cls

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except TypeError:
            _refuse(type(self), inspect.signature(init), args, kwargs)
            raise

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


def _refuse(
    cls: type, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Raise over arguments that a constructor does not have, if there are any.

    With any of them the call did not begin, so what was raised is not from inside.
    """
    cls = next(base for base in cls.__mro__ if base.__module__.startswith("fluxlike."))
    own, words, known = cls.__name__, words_for(cls), list(signature.parameters.values())[1:]
    names = [p.name for p in known]
    by_place = [p.name for p in known if p.kind is p.POSITIONAL_OR_KEYWORD]
    strange = {name: value for name, value in kwargs.items() if name not in names}
    if args and "params" in words and names and names[0] in kwargs and not isinstance(args[0], Real):
        strange, args = {"params": args[0], **strange}, args[1:]  # as a rule of torch has them, first
    if strange:
        given = ", ".join([*map(repr, args), *(f"{n}={v!r}" for n, v in kwargs.items() if n in names)])
        found = [clause(own, name, value, given, words, names) for name, value in strange.items()]
        takes = "" if strange.keys() <= words.keys() else f"; it takes {', '.join(names) or 'none'}"
        raise TypeError(f"{own} has {'; '.join(found)}{takes}") from None
    if len(args) > len(by_place) < len(names) and not any(p.kind is p.VAR_POSITIONAL for p in known):
        by_name = ", ".join(f"{name}=" for name in names if name not in by_place)
        raise TypeError(
            f"{own} takes {len(by_place)} arguments by place, {', '.join(by_place)}, and found {len(args)}: "
            f"write the others by name, {by_name}"
        ) from None


def clause(
    own: str, name: str, value: Any, given: str, words: Mapping[str, Advice], names: Sequence[str]
) -> str:
    """What is said of one argument: what to write for a word of others, and else which name is near."""
    if name in words:
        advice = words[name]
        filled = {"own": own, "value": repr(value), "given": given}
        return f"no {name}=: {advice.format(**filled) if isinstance(advice, str) else advice(value)}"
    near = difflib.get_close_matches(name, names, 1)
    return f"no {name}=" + (f" (did you mean {near[0]}=?)" if near else "")
