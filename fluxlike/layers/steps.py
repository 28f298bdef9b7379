"""What layers of several layers have in common: steps by number, by name and by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from fluxlike.advice import OF_CHAINS, call_hint
from fluxlike.layers.closed_over import warn_of_layers_in
from fluxlike.trees.adopt import adopted
from fluxlike.trees.step_names import holds_steps

__all__ = ["Steps", "refuse_attribute"]


class Steps:
    """The layers of a layer: a tuple, perhaps with names.

    Attributes:
        layers: the layers, a tuple.
        names: the names of the layers, or None.
    """

    layers: tuple[Any, ...]
    names: tuple[str, ...] | None = None

    def _take(self, layers: tuple[Callable[..., Any], ...], named: dict[str, Callable[..., Any]]) -> None:
        """Hold the layers that the constructor was given."""
        own = type(self).__name__
        if layers and named:
            raise TypeError(f"{own} takes layers either in order or by name, not both")
        object.__setattr__(self, "layers", tuple(map(adopted, layers or named.values())))
        if named:
            object.__setattr__(self, "names", tuple(named))
        for i, layer in enumerate(self.layers):
            _check(own, i, layer)

    def _take_some(
        self, layers: tuple[Callable[..., Any], ...], named: dict[str, Callable[..., Any]]
    ) -> None:
        """Hold the layers that the constructor was given, at least one."""
        self._take(layers, named)
        if not self.layers:
            raise ValueError(f"{type(self).__name__} takes at least one layer, found none")

    def __getitem__(self, key: int | str | slice) -> Any:
        if not isinstance(key, slice):
            return self.layers[self._index(key) if isinstance(key, str) else key]
        start, stop, stride = (
            self._index(k) if isinstance(k, str) else k for k in (key.start, key.stop, key.step)
        )
        key = slice(start, stop, stride)
        part = object.__new__(type(self))
        attributes = vars(part)
        attributes.update(vars(self), layers=self.layers[key])
        if self.names is not None:
            attributes["names"] = self._all_names()[key]
        return part

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} is never changed in place; write "
            f"model = fluxlike.at(model, lambda m: m[{key!r}]).set(…)"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_attribute(self, name, "m[-1]")
        object.__setattr__(self, name, value)

    if not TYPE_CHECKING:  # to type checkers, a name that is not there is an error

        def __getattr__(self, name: str) -> Any:
            own = type(self).__name__
            if name in OF_CHAINS:
                raise AttributeError(f"a {own} has no {name!r}: {OF_CHAINS[name]}")
            if name in (self.names or ()):
                raise AttributeError(f"a {own} has no {name!r}: its layer of this name is model[{name!r}]")
            raise AttributeError(
                f"a {own} has no {name!r}; its layers are {own.lower()}.layers, "
                f"named ones {own.lower()}['name']"
            )

    def _index(self, name: str) -> int:
        names = self._all_names()
        if name not in names:
            raise KeyError(f"no layer named {name!r}; the names are {names or 'not given'}")
        return names.index(name)

    def _all_names(self) -> tuple[str, ...]:
        names = self.names or ()
        if names and len(names) != len(self.layers):
            raise KeyError(
                f"the {type(self).__name__} has {len(self.layers)} layers and the names {names}; make it anew"
            )
        return names

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)


holds_steps(Steps, "layers", "names")


def refuse_attribute(layer: Any, name: str, place: str) -> None:
    """Refuse to set an attribute of a layer of ours; objects of a user's subclass may have others.

    Args:
        layer: the layer.
        name: the attribute.
        place: for the error, a place of a model `m` at which something may be set.

    Raises:
        AttributeError: it says what to write.
    """
    kind = type(layer)
    if kind.__module__.partition(".")[0] != "fluxlike":
        return
    if name in (vars(layer).get("names") or ()):
        place = f"m[{name!r}]"
    own, anew = kind.__name__, f"model = fluxlike.at(model, lambda m: {place}).set(…)"
    if name in vars(layer):
        raise AttributeError(f"a {own} is never changed in place: write {anew}, or a new fluxlike.{own}(…)")
    if name in OF_CHAINS:
        raise AttributeError(f"a {own} has no {name!r}: {OF_CHAINS[name]}")
    raise AttributeError(
        f"a {own} takes no attribute {name!r}, which no call would read: write {anew} for another layer "
        f"there, a new fluxlike.{own}(…) for one more, or a class of your own under @fluxlike.functor"
    )


def _check(own: str, i: int, layer: Any) -> None:
    """Refuse a step that can't be called, or that would not do what it seems to."""
    if isinstance(layer, type):
        raise TypeError(f"step {i} of {own} is the class {layer.__name__}: write {layer.__name__}(…)")
    if not callable(layer):
        kind, hint = type(layer).__name__, call_hint(layer)
        found = f"a {kind}" if hint else f"{layer!r} of {kind}"
        hint = hint or f"; write the layers one by one, or {own}(*layers)"
        raise TypeError(f"step {i} of {own} is {found}, which can't be called{hint}")
    warn_of_layers_in(own, i, layer)
