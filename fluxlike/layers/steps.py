"""What layers of several layers have in common: steps by number, by name and by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fluxlike.trees.adopt import adopted

__all__ = ["ELSEWHERE", "Steps"]


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
        self.layers = tuple(map(adopted, layers or named.values()))
        if named:
            self.names = tuple(named)
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
        part.__dict__.update(self.__dict__)
        part.layers = self.layers[key]
        if self.names is not None:
            part.names = self._all_names()[key]
        return part

    def __getattr__(self, name: str) -> Any:
        own = type(self).__name__
        if name in ELSEWHERE:
            raise AttributeError(f"a {own} has no {name!r}: {ELSEWHERE[name]}")
        raise AttributeError(
            f"a {own} has no {name!r}; its layers are {own.lower()}.layers, named ones {own.lower()}['name']"
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


def _check(own: str, i: int, layer: Any) -> None:
    """Refuse a step that can't be called, or that would not do what it seems to."""
    if isinstance(layer, type):
        raise TypeError(f"step {i} of {own} is the class {layer.__name__}: write {layer.__name__}(…)")
    if not callable(layer):
        raise TypeError(
            f"step {i} of {own} is {layer!r} of {type(layer).__name__}, which can't be called; "
            f"write the layers one by one, or {own}(*layers)"
        )


#: What users of torch.nn look for on a module, and what does it here.
ELSEWHERE = {
    "train": "gradient trains, everything else tests; fluxlike.mode and fluxlike.trainmode say otherwise",
    "eval": "everything but gradient tests; fluxlike.testmode pins a layer",
    "parameters": "write fluxlike.trainables(model)",
    "named_parameters": "write fluxlike.trainables(model, paths=True)",
    "to": "write fluxlike.to_device(model, device), or fluxlike.f16(model) for a dtype",
    "cuda": "write fluxlike.to_device(model, 'cuda')",
    "cpu": "write fluxlike.cpu(model)",
    "float": "write fluxlike.f32(model)",
    "double": "write fluxlike.f64(model)",
    "half": "write fluxlike.f16(model)",
    "bfloat16": "write fluxlike.bf16(model)",
    "apply": "write fluxlike.fmap(f, model), or fluxlike.reinit(model, {kind: init})",
    "modules": "write fluxlike.children(model)",
    "register_forward_hook": "write fluxlike.activations(model, x)",
    "state_dict": "write fluxlike.state_dict(model), or fluxlike.to_torch(model).state_dict() for torch's",
    "load_state_dict": "write fluxlike.load_state_dict(model, d), or fluxlike.load_checkpoint(d, model) of "
    "torch's dict",
    "zero_grad": "gradients are values here, there is nothing to zero",
    "requires_grad_": "write fluxlike.freeze(state, where), or gradient(…, wrt=where)",
}
