"""Sizes that are found from an example: `auto` in place of a number, and `autosized` for classes.

A class says by `autosized` which arguments of its constructor its input tells. Called with `auto` there,
it gives a `Deferred` layer, which `fluxlike.autosize` replaces by the real one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from torch import Tensor

from fluxlike.scope.mode import testmode, trainmode
from fluxlike.trees.fmap import fmap_with_path
from fluxlike.trees.functor import PIN, functor
from fluxlike.trees.paths import is_node
from fluxlike.trees.show import printed, value_text

__all__ = ["Deferred", "Sizes", "Token", "auto", "autosized", "is_deferred", "require_sized", "waiting"]

Sizes = dict[str, Any]  # by argument: a number, or for an argument that is a layer, its own sizes

C = TypeVar("C", bound=Callable[..., Any])
Rule = int | Callable[..., Any] | None


def _refuse(self: Any, *others: Any) -> NoReturn:
    raise TypeError(
        "auto is not a number yet: a layer can take it only where its class says which axis of the input "
        "tells the size, by @fluxlike.autosized; write a number here"
    )


class Auto:
    """In place of a size in a constructor: `autosize` finds it from an example.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.Dense(fl.auto, 10)
        Dense(auto, 10)
        >>> fl.autosize(fl.Dense(fl.auto, 10), torch.zeros(1, 4))
        Dense(4, 10)  # 50 parameters
    """

    __slots__ = ()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __pow__ = __rpow__ = _refuse
    __floordiv__ = __rfloordiv__ = __truediv__ = __rtruediv__ = __mod__ = __rmod__ = __neg__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __int__ = __float__ = __index__ = _refuse

    def __repr__(self) -> str:
        return "auto"

    def __reduce__(self) -> str:
        return "auto"


#: In place of a size in a constructor. Any, so that type checkers take it for a number.
auto: Any = Auto()

_rules: dict[Any, Mapping[str, Rule]] = {}  # by class, or by function that makes a layer


def autosized(**sizes: Rule) -> Callable[[C], C]:
    """Say which arguments of a class's constructor `auto` may stand for.

    Only the construction is touched: with `auto` among its arguments, the class gives a layer that waits
    for `autosize`. Without, and in every call, it is the class it was. Subclasses that keep the
    constructor keep the rules. A function that makes a layer can be marked in the same way.

    Args:
        sizes: for each argument, the axis of the layer's first input that has this size; or a function
            from what the layer is called with to the size; or None for an argument that is itself a layer,
            which may have been made with `auto` and gets its sizes from the same call.

    Returns:
        A decorator, for above ``@functor``.

    Raises:
        TypeError: a name that is no argument of the constructor.

    Example:
        >>> import torch, fluxlike as fl
        >>> @fl.autosized(features=-1)
        ... @fl.functor
        ... class Scaled:
        ...     def __init__(self, features):
        ...         self.scale = torch.ones(features)
        ...     def __call__(self, x):
        ...         return self.scale * x
        >>> fl.autosize(Scaled(fl.auto), torch.zeros(5, 3))
        Scaled(scale=float32[3])  # 3 parameters
    """

    def declare(kind: Any) -> Any:
        known = _signature(kind).parameters
        for name in sizes:
            if name not in known:
                raise TypeError(
                    f"autosized({name}=…): the constructor of {kind.__qualname__} has no such argument; it "
                    f"has {', '.join(known) or 'none'}"
                )
        around = None in sizes.values()
        declared = _class_that_waits(kind, around) if isinstance(kind, type) else _maker(kind, around)
        _rules[declared] = sizes
        return declared

    return declare


def _class_that_waits(cls: Any, around: bool) -> Any:
    plain: Callable[..., Any] = cls.__new__

    def new(kind: Any, *args: Any, **kwargs: Any) -> Any:
        if _waits(args, kwargs, around):
            return Deferred(kind, args, kwargs)
        return plain(kind) if plain is object.__new__ else plain(kind, *args, **kwargs)

    new.__name__, new.__qualname__ = "__new__", f"{cls.__qualname__}.__new__"
    new.__wrapped__ = cls.__init__  # type: ignore[attr-defined]  # what inspect takes the signature from
    cls.__new__ = new
    return cls


def _maker(plain: Callable[..., Any], around: bool) -> Callable[..., Any]:
    @functools.wraps(plain)
    def make(*args: Any, **kwargs: Any) -> Any:
        if _waits(args, kwargs, around):
            return Deferred(make, args, kwargs)
        return plain(*args, **kwargs)

    return make


def _waits(args: tuple[Any, ...], kwargs: dict[str, Any], around: bool) -> bool:
    """Whether `auto` is among the arguments, or a layer that waits, around which another is put."""
    return any(_autos(x) or (around and is_deferred(x)) for x in (*args, *kwargs.values()))


def _autos(x: Any) -> int:
    """How many there are in an argument."""
    return sum(y is auto for y in x) if type(x) in (tuple, list) else int(x is auto)


def is_deferred(x: Any, /) -> bool:
    """Whether a layer was made with `auto` and waits for its sizes."""
    return isinstance(x, Deferred)


def waiting(tree: Any, /) -> list[tuple[str, Deferred]]:
    """The layers of a tree that wait for their sizes, each with its path."""
    found: list[tuple[str, Deferred]] = []

    def note(path: str, x: Any) -> None:
        if is_deferred(x):
            found.append((path, x))

    fmap_with_path(note, tree, is_leaf=is_deferred, leaves="all")
    return found


def require_sized(tree: Any, by: str, /) -> None:
    """Refuse a model whose layers wait for their sizes.

    Raises:
        RuntimeError: it names the first one, and who asks.
    """
    for path, layer in waiting(tree):
        raise RuntimeError(
            f"{by} takes a model of sized layers, and {path or 'the model'} is {layer!r}; find the sizes "
            "first, from an example of the input: model = fluxlike.autosize(model, x)"
        )


def _signature(kind: Any) -> inspect.Signature:
    """What a class or function is called with."""
    if not isinstance(kind, type):
        return inspect.signature(kind)
    signature = inspect.signature(kind.__init__)  # type: ignore[misc]
    return signature.replace(parameters=list(signature.parameters.values())[1:])


class Token:
    """What says that two deferred layers are one, however often the tree around them was rebuilt."""


@functor(children=())
class Deferred:
    """A layer whose class was called with `auto`.

    Args:
        kind: its class, or the function that makes it.
        args: what that was called with.
        kwargs: the same, by name.

    Raises:
        TypeError: arguments that the constructor does not take, or `auto` for one that the input does
            not tell.
    """

    def __init__(self, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.kind, self.args, self.kwargs = kind, args, kwargs
        self.token = Token()
        signature, bound = _signature(kind), self._bound()
        for name, value in bound.arguments.items():
            held = _autos(value)
            several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
            if held and name not in self.rules:
                self._refuse(name)
            if held > 1 or (held and value is not auto and not several):
                raise TypeError(
                    f"{kind.__name__}({name}={value!r}): auto stands for the whole argument; write it "
                    "alone, or numbers"
                )

    def _refuse(self, name: str) -> NoReturn:
        known = ", ".join(self.rules) or "none"
        raise TypeError(
            f"{self.kind.__name__}({name}=auto): of its arguments, the input tells {known}; write a number "
            f"for {name}, or say above a class of your own which axis it is: @fluxlike.autosized({name}=-1)"
        )

    @property
    def rules(self) -> Mapping[str, Rule]:
        """By argument, where its size is found."""
        names = _signature(self.kind).parameters
        kinds = self.kind.__mro__ if isinstance(self.kind, type) else (self.kind,)
        declared = next((_rules[kind] for kind in kinds if kind in _rules), {})
        return {name: rule for name, rule in declared.items() if name in names}

    def _bound(self) -> inspect.BoundArguments:
        try:
            return _signature(self.kind).bind(*self.args, **self.kwargs)
        except TypeError as error:
            if isinstance(self.kind, type):  # the constructor itself has more to say
                self.kind.__init__(object.__new__(self.kind), *self.args, **self.kwargs)  # type: ignore[misc]
            raise TypeError(f"{self.kind.__name__}: {error}") from None

    def sizes(self, *inputs: Any, **named: Any) -> Sizes:
        """The sizes that `auto` stands for, if this is what the layer is called with.

        Raises:
            TypeError: the first input is no tensor.
            ValueError: it has no such axis.
        """
        given, found = self._bound().arguments, {}
        for name, rule in self.rules.items():
            value = given.get(name)
            if rule is None:
                if isinstance(value, Deferred):
                    found[name] = value.sizes(*inputs, **named)
            elif _autos(value):
                found[name] = self._size(name, _axis(rule, value), inputs, named)
        return found

    def _size(
        self, name: str, rule: int | Callable[..., Any], inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        if callable(rule):
            return rule(*inputs, **named)
        x = next(iter((*inputs, *named.values())), None)
        if not isinstance(x, Tensor):
            raise TypeError(f"{self!r} finds {name} in its first input, a tensor; found {type(x).__name__}")
        if not -x.ndim <= rule < x.ndim:
            raise ValueError(
                f"{self!r} finds {name} in axis {rule} of its input, found the shape {tuple(x.shape)}"
            )
        return x.shape[rule]

    def make(self, sizes: Sizes) -> Any:
        """The real layer of these sizes, in the mode that this one is pinned to."""
        bound = self._bound()
        for name, size in sizes.items():
            value = bound.arguments[name]
            if is_deferred(value):
                bound.arguments[name] = value.make(size)
            elif value is auto:
                bound.arguments[name] = size
            else:
                bound.arguments[name] = tuple(size if x is auto else x for x in value)
        layer = self.kind(*bound.args, **bound.kwargs)
        pin = self.__dict__.get(PIN)
        return layer if pin is None else {"train": trainmode, "test": testmode}[pin](layer)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            f"{self!r} has no sizes yet; find them once, from an example of the input: "
            "model = fluxlike.autosize(model, x)"
        )

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_") or name in ("kind", "args", "kwargs"):
            raise AttributeError(name)
        raise AttributeError(
            f"{self!r} has no {name!r} yet: it is made by model = fluxlike.autosize(model, x)"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN:
            raise AttributeError(
                f"{self!r} can't take {name!r} yet: find its sizes, model = fluxlike.autosize(model, x), and "
                f"set it on the layer there, for example by at(model, …).set(…)"
            )
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        given = [*map(_text, self.args), *(f"{name}={_text(x)}" for name, x in self.kwargs.items())]
        return f"{self.kind.__name__}({', '.join(given)})"


_OWN = ("kind", "args", "kwargs", "token", PIN)


def _axis(rule: int | Callable[..., Any], value: Any) -> int | Callable[..., Any]:
    """The axis of one size among several, which are those of the last axes."""
    if callable(rule) or type(value) is not tuple:
        return rule
    after = value[next(i for i, x in enumerate(value) if x is auto) + 1 :]
    return rule - sum(isinstance(n, int) for n in after)


def _text(x: Any) -> str:
    if is_node(x) and printed(x).foot:
        return f"{type(x).__name__}(…)"
    return value_text(x).split("  #")[0]
