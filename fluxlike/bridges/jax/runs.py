"""The runs of a function of torch that JAX asks for: of its value, and once more for each derivative."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from fluxlike._private import functorch
from fluxlike._private.dispatch import TorchDispatchMode, may_draw
from fluxlike.scope import seeded
from fluxlike.transforms.engine.rerun import Rerun
from fluxlike.transforms.pullback import pullback
from fluxlike.trees.structure import flatten

__all__ = ["Called", "Pulled", "Run", "Shape"]

Shape = tuple[tuple[int, ...], torch.dtype]


class Run(Protocol):
    """A function of torch, of lists of tensors."""

    def __call__(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """A run that no other one belongs to."""

    def first(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """A run that `again` may repeat."""

    def again(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """The same run once more, for a derivative."""

    def shapes(self, inputs: Sequence[Shape], /) -> Sequence[Shape]:
        """The shapes and dtypes of the results for those of the tensors; nothing is computed."""


class Called:
    """One call: a function of lists of tensors, and the trees around it.

    Args:
        f: the function.
        treedef: that of its arguments.
        leaves: those that are no arrays of JAX.
        slots: the places of the others, and which of the tensors stands there.
    """

    def __init__(
        self, f: Callable[..., Any], treedef: Any, leaves: list[Any], slots: list[tuple[int, int]]
    ) -> None:
        self._f, self._treedef = f, treedef
        self._leaves, self._slots = leaves, slots
        self._context = contextvars.copy_context()
        self._rerun: Rerun | None = None
        self._shapes: dict[tuple[Shape, ...], list[Shape]] = {}

    def __call__(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """The tensors that the function returns, in the scope of the call: JAX may ask on another thread."""
        return self._context.copy().run(self._run, tensors)

    def first(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        def run() -> list[Tensor]:
            self._rerun = Rerun(tensors)
            return self._rerun.first(lambda: self._run(tensors))

        return self._context.copy().run(run)

    def again(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        if self._rerun is not None:
            return self._rerun.again(lambda: self._run(tensors), tensors)
        return self._context.copy().run(self._run_without_draws, tensors)

    def shapes(self, inputs: Sequence[Shape], /) -> Sequence[Shape]:
        from fluxlike._private import fake

        key = tuple(inputs)
        if key not in self._shapes:  # JAX asks more than once
            try:
                self._shapes[key] = fake.shapes(self, inputs)
            except fake.NEEDS_A_VALUE as error:
                raise RuntimeError(
                    "to_jax: the function asks for the value of a tensor (by if, float(), .item(), x[mask], "
                    "…), and JAX traces it with shapes alone; use torch.where or fluxlike.cond, or call it "
                    "outside of jax.jit"
                ) from error
        return self._shapes[key]

    def _run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        leaves = list(self._leaves)
        for i, n in self._slots:
            leaves[i] = tensors[n]
        args, kwargs = self._treedef.unflatten(leaves)
        found, self._output = flatten(self._f(*args, **kwargs))
        results: dict[int, Tensor] = {id(y): y for y in found if isinstance(y, Tensor)}
        places = {key: n for n, key in enumerate(results)}
        self._places = [places.get(id(y)) if isinstance(y, Tensor) else None for y in found]
        self._constants = [None if isinstance(y, Tensor) else y for y in found]
        return list(results.values())

    def _run_without_draws(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        with _no_draws_of_a_key():
            before = _generators()
            found = self._run(tensors)
            if _generators() != before:  # it drew, or another thread did
                with torch.no_grad(), _Refusing(seeded.active()):
                    self._run(tensors)
        return found

    def filled(self, results: Sequence[Any], /) -> Any:
        """What the function returned, with arrays in the places of its tensors."""
        pairs = zip(self._places, self._constants, strict=True)
        return self._output.unflatten([c if n is None else results[n] for n, c in pairs])


class Pulled:
    """From the inputs and the cotangents of some results to the cotangents of some inputs.

    Args:
        run: the function whose derivative it is.
        wanted: the inputs whose cotangents are wanted.
        numbers: the results that have cotangents.
        count: how many inputs there are.
    """

    def __init__(self, run: Run, wanted: Sequence[int], numbers: Sequence[int], count: int) -> None:
        self._run, self._count = run, count
        self._wanted, self._numbers = wanted, numbers

    def __call__(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        inputs, cotangents = tensors[: self._count], tensors[self._count :]

        def of(values: Sequence[Tensor]) -> list[Tensor]:
            filled = list(inputs)
            for n, value in zip(self._wanted, values, strict=True):
                filled[n] = value
            results = self._run.again(filled)
            return [results[n] for n in self._numbers]

        chosen = [inputs[n] for n in self._wanted]
        _, back = pullback(of, chosen)
        found = back([c.conj() for c in cotangents])  # JAX' cotangents are the conjugates of torch's
        pairs = zip(found, chosen, strict=True)
        return [torch.zeros_like(x) if g is None else g.conj().resolve_conj() for g, x in pairs]

    def first(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        return self(tensors)

    def again(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        return self(tensors)

    def shapes(self, inputs: Sequence[Shape], /) -> Sequence[Shape]:
        return [inputs[n] for n in self._wanted]


_DRAWS = (
    "to_jax: the function draws random numbers, and where JAX traces (jax.jit, jax.vmap, jax.checkpoint, …) "
    "its run for the gradient would draw others than the one that gave the value; put a key in scope inside, "
    "made of an argument: def f(x, step): with fluxlike.seeded(fluxlike.Key(0).fold_in(step)): …"
)


@contextmanager
def _no_draws_of_a_key() -> Iterator[None]:
    """A scope in which draws from the key around it are errors."""
    draws = seeded.active()
    token = None if draws is None else seeded.enter(draws.blocked(_DRAWS))
    try:
        yield
    finally:
        if token is not None:
            seeded.leave(token)


def _generators() -> list[bytes]:
    """The states of torch's generators, those of all threads."""
    with functorch.outside():
        states = [torch.default_generator.get_state()]
        if torch.cuda.is_initialized():
            states += torch.cuda.get_rng_state_all()
        return [state.numpy().tobytes() for state in states]


class _Refusing(TorchDispatchMode):
    """Refuses torch's random operations, but those under a key that is put in scope inside."""

    def __init__(self, outer: seeded.Draws | None) -> None:
        super().__init__()
        self._outer = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if may_draw(func) and seeded.active() is self._outer:
            raise RuntimeError(_DRAWS)
        return func(*args, **(kwargs or {}))
