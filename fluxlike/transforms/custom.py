"""`custom_gradient` and `stop_gradient`: derivatives that the user decides on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import functorch
from fluxlike.scope import assigned
from fluxlike.transforms.engine.captured import Finding, Replacing
from fluxlike.transforms.engine.link import link
from fluxlike.transforms.engine.motors import at_depth
from fluxlike.transforms.engine.rerun import Rerun
from fluxlike.transforms.engine.template import Template
from fluxlike.transforms.pullback import Pulled
from fluxlike.trees.fmap import fleaves
from fluxlike.trees.leaves import can_train
from fluxlike.trees.structure import flatten

__all__ = ["custom_gradient", "is_differentiated", "keep_nothing", "stop_gradient"]


def stop_gradient(tree: Any, /) -> Any:
    """The same tree, constant to every gradient and pushforward around the call.

    Args:
        tree: any tree.

    Returns:
        A tree of the same structure. Tensors that may be differentiated are new objects with the same
        content, tied where they were; everything else is the same object.

    Raises:
        TypeError: an object of an unregistered class that holds tensors.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.gradient(lambda x: (x * fl.stop_gradient(x)).sum(), torch.tensor([2.0, 3.0]))
        tensor([2., 3.])
    """
    leaves, treedef = flatten(tree)
    stopped = {id(x): _stopped(x) for x in leaves if isinstance(x, Tensor)}
    return treedef.unflatten([stopped.get(id(x), x) if isinstance(x, Tensor) else x for x in leaves])


def _stopped(x: Tensor) -> Tensor:
    if not is_differentiated(x):
        return x
    stopped = x.detach()
    assigned.derive(stopped, x)
    return stopped


def is_differentiated(x: Tensor) -> bool:
    """Whether a derivative by a tensor may be asked for."""
    return can_train(x) and (functorch.active() or x.requires_grad or functorch.has_tangent(x))


def custom_gradient(f: Callable[..., tuple[Any, Callable[[Any], Any]]], /) -> Callable[..., Any]:
    """Give a function a backward pass of your own, under every transform.

    The function returns its value together with `back`, which takes the cotangent of the value and returns
    the gradient for each argument. What `back` closes over is differentiated in its turn, so gradients of
    gradients go through `back` as it is written. Forward mode (`pushforward`) uses the transpose of `back`,
    which has to be linear in the cotangent there.

    Outermost, `f` runs once. Where its gradient is differentiated again, or inside functorch, `f` runs once
    more in the backward pass, in the scope of the first run: in the same mode and with the same draws.

    Args:
        f: a function of trees that returns ``(value, back)``. Gradients are taken by its positional
            arguments; what it closes over must be constant. `back` returns, for one argument, a tree as
            `gradient` gives it: None where there is none, and anything at constants; for several
            arguments, a tuple of these.

    Returns:
        A function of the same arguments that returns the value.

    Raises:
        TypeError: `f` is no function; from the call, it did not return a value and a function.
        ValueError: from the call, `f` closes over a tensor that is differentiated, or returns no floating
            tensor; from the backward pass, a gradient of another structure or shape than its argument.

    Example:
        >>> import torch, fluxlike as fl
        >>> @fl.custom_gradient
        ... def sign(x):  # straight through where |x| < 1, as in XNOR-networks
        ...     return x.sign(), lambda g: g * (x.abs() < 1)
        >>> fl.gradient(lambda x: (sign(x) * torch.tensor([3.0, 4.0])).sum(), torch.tensor([-0.5, 2.0]))
        tensor([3., 0.])
    """
    if not callable(f):
        raise TypeError(f"custom_gradient takes a function, found a {type(f).__name__}; write it above a def")

    @functools.wraps(f)
    def differentiable(*args: Any, **kwargs: Any) -> Any:
        rule = _Given(f, args, kwargs)
        if any(map(is_differentiated, rule.inputs.peek())):
            return rule.run()
        value = rule.value_and_back(args)[0]
        for y in fleaves(value):
            _check_constant(rule.name, y)
        return value

    return differentiable


#: Whether what is kept for a backward pass is to be given up, as inside a `checkpoint`.
keep_nothing: ContextVar[bool] = ContextVar("fluxlike_keep_nothing", default=False)


class _Given:
    """The `Rule` of one call of a function with a gradient of its own."""

    def __init__(self, f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._f, self._kwargs = f, kwargs
        self.name = f"custom_gradient of {getattr(f, '__qualname__', repr(f))}"
        self.inputs = Template(args, "argument")

    def run(self) -> Any:
        """The value, as a node of autograd that asks this rule."""
        tensors = self.inputs.take()
        within = functorch.active()
        self._rerun = Rerun(tensors)
        stopped = [_stopped(x) for x in tensors]
        finding = Finding(stopped) if within else None
        # Gradients inside are not differentiated by those outside: the derivative is what `back` says.
        with at_depth(0), torch.enable_grad():
            value, back = self._rerun.first(lambda: self.value_and_back(self.inputs.fill(stopped)), finding)
        self._found, meant = (finding.found, finding.meant) if finding else ([], [])
        # Kept for a backward pass at this level, where what it closes over means the same.
        self._back = None if within or keep_nothing.get() else back
        self._output = Template((value,), "output")
        results = self._output.take()
        numbers = self._numbers = [slot.number for slot in self._output.slots if slot.trains]
        for n in numbers:
            _check_constant(self.name, results[n])
        linked = link(self, [results[n] for n in numbers], [*tensors, *meant])
        for n, y in zip(numbers, linked, strict=True):
            results[n] = y
        return self._output.fill(results)[0]

    def value_and_back(self, args: Sequence[Any]) -> tuple[Any, Callable[[Any], Any]]:
        """What the function returns.

        Raises:
            TypeError: it is no pair of a value and a function.
        """
        pair = self._f(*args, **self._kwargs)
        if not (isinstance(pair, tuple) and len(pair) == 2 and callable(pair[1])):
            found = f"a {type(pair).__name__}" + (f" of {len(pair)}" if isinstance(pair, tuple) else "")
            raise TypeError(
                f"{self.name}: the function returns its value and a function of the cotangent, such as "
                f"x.sign(), lambda g: g * (x.abs() < 1); found {found}"
            )
        return pair

    def backward(
        self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> list[Tensor | None]:
        count = len(self.inputs.slots)
        if self._back is not None and not torch.is_grad_enabled():
            return self._pull(self._back, cotangents)

        def again() -> list[Tensor | None]:
            back = self.value_and_back(self.inputs.fill(inputs[:count]))[1]
            return self._pull(back, cotangents)

        found = self._rerun.again(again, inputs, self._replacing(inputs))
        return [*found, *[None] * (len(inputs) - count)]

    def forward_mode(self, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor]:
        """``back`` is linear in the cotangent, and its transpose takes tangents to tangents."""
        count = len(self.inputs.slots)
        moved = [n for n in range(count) if tangents[n] is not None]
        slots = [self._output.slots[n] for n in self._numbers]

        def pull(cotangents: list[Tensor]) -> list[Tensor | None]:
            back = self.value_and_back(self.inputs.fill(inputs[:count]))[1]
            found = self._pull(back, cotangents)
            return [found[n] for n in moved]

        def transpose() -> Sequence[Tensor | None]:
            pulled = Pulled(self.name, pull, [[slot.zeros() for slot in slots]], 0)
            given = [tangents[moved[i]] for i in pulled.output.places]
            return pulled.pull(given, create_graph=True)

        found = self._rerun.again(transpose, inputs, self._replacing(inputs))
        return [slot.zeros() if t is None else t for slot, t in zip(slots, found, strict=True)]

    def _replacing(self, inputs: Sequence[Tensor]) -> Replacing | None:
        if not self._found:
            return None
        new = inputs[len(self.inputs.slots) :]
        return Replacing({id(old): x for old, x in zip(self._found, new, strict=True)})

    def _pull(self, back: Callable[[Any], Any], cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        given: list[Tensor | None] = [None] * len(self._output.slots)
        for n, c in zip(self._numbers, cotangents, strict=True):
            given[n] = c
        found = back(self._output.cotangents(given)[0])
        number = self.inputs.number_of_trees
        if number == 1:
            found = (found,)
        elif not isinstance(found, (tuple, list)) or len(found) != number:
            what = f"{len(found)}" if isinstance(found, (tuple, list)) else f"a {type(found).__name__}"
            raise ValueError(
                f"{self.name} takes {number} arguments, so back returns a tuple of {number}, with None for "
                f"an argument without a gradient; found {what}"
            )
        return self.inputs.read_gradients(found)


def _check_constant(name: str, y: Tensor) -> None:
    """Raise where the value depends on something that is differentiated, other than by an argument."""
    depends = functorch.has_tangent(y) or y.requires_grad
    while not depends and functorch.level_of(y):
        y = functorch.inner(y)
        depends = y.requires_grad
    if depends:
        raise ValueError(
            f"{name}: the function closes over a tensor that is differentiated, and its gradient would be "
            "lost; pass it as an argument, with a gradient of its own from back, or close over "
            "fluxlike.stop_gradient of it"
        )
