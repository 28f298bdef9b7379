"""Functions of JAX, traced once for arguments of certain shapes, and the functions derived from them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.extend.core import Literal, jaxpr_as_fun
from torch import Tensor

from fluxlike.bridges.jax.package import handed, x64, x64_enabled

__all__ = ["Program", "Pull"]

_KEPT = 64  # programs derived from one, and forward passes of it

Shape = jax.ShapeDtypeStruct
Arrays = Sequence[Any]
Pull = Callable[[Sequence[Tensor]], list[Tensor]]


class Program:
    """A function from arrays to arrays of JAX, traced once.

    Args:
        f: the function.
        inputs: the shapes of its arguments.

    Attributes:
        inputs: as given.
        outputs: the shapes of its results.
        floats: which of the results have derivatives.
        reached: whether one of these depends on each input, as far as JAX' trace says.
    """

    def __init__(self, f: Callable[..., Arrays], inputs: Sequence[Any]) -> None:
        self._x64 = x64_enabled()
        self._traced = jax.make_jaxpr(f)(*inputs)
        self._run = jax.jit(jaxpr_as_fun(self._traced))
        self.inputs = tuple(inputs)
        self.outputs = tuple(Shape(a.shape, a.dtype) for a in self._traced.out_avals)
        self.floats = [n for n, y in enumerate(self.outputs) if _trains(y)]
        self._derived, self._forwards = _Recent(), _Recent()
        with_derivative = [n in self.floats for n in range(len(self.outputs))]
        self.reached = _needed(self._traced.jaxpr, with_derivative)

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The results for plain tensors, in memory of their own."""
        with self._setting():
            return _taken(self._run(*_handed("an argument", tensors, self.inputs)), tensors)

    def _setting(self) -> AbstractContextManager[Any]:
        """JAX as it was set when this was traced: backward passes come later, and on other threads."""
        return x64(self._x64)

    def pulled(self, wanted: Sequence[int]) -> Program:
        """The program from the inputs and the cotangents of `floats` to the cotangents of some inputs."""

        def pull(*arrays: Any) -> list[Any]:
            inputs, cotangents = arrays[: len(self.inputs)], arrays[len(self.inputs) :]
            _, back, _ = jax.vjp(self._by(wanted, inputs), *[inputs[n] for n in wanted], has_aux=True)
            return _conjugate(back(_conjugate(cotangents)))

        return self._derive(("pulled", *wanted), pull, [*self.inputs, *self._float_shapes()])

    def pushed(self, moved: Sequence[int]) -> Program:
        """The program from the inputs and the tangents of some of them to the tangents of `floats`."""

        def push(*arrays: Any) -> list[Any]:
            inputs, tangents = arrays[: len(self.inputs)], arrays[len(self.inputs) :]
            given = [inputs[n] for n in moved], list(tangents)
            return jax.jvp(self._by(moved, inputs), *given, has_aux=True)[1]

        return self._derive(("pushed", *moved), push, [*self.inputs, *[self.inputs[n] for n in moved]])

    def mapped(self, axes: Sequence[int | None], size: int) -> Program:
        """The program for all members of a ``vmap``, whose results have the axis in front."""
        if all(axis is None for axis in axes):
            raise ValueError("no input has an axis to map over")
        inputs = [
            shape if axis is None else Shape((*shape.shape[:axis], size, *shape.shape[axis:]), shape.dtype)
            for shape, axis in zip(self.inputs, axes, strict=True)
        ]
        return self._derive(
            ("mapped", *axes, size), jax.vmap(jaxpr_as_fun(self._traced), tuple(axes)), inputs
        )

    def forward(self, tensors: Sequence[Tensor], wanted: Sequence[int]) -> tuple[list[Tensor], Pull]:
        """The results, and a function from the cotangents of `floats` to those of some inputs.

        It keeps what the backward pass needs of the forward pass, as JAX does.
        """
        with self._setting():
            forward = self._forwards.get(
                tuple(wanted), lambda: _Forward(self._traced, self._by, self.inputs, wanted)
            )
            found, back = forward(_handed("an argument", tensors, self.inputs))
            results = _taken(found, tensors)
        shapes = self._float_shapes()

        def pull(cotangents: Sequence[Tensor]) -> list[Tensor]:
            with self._setting():
                return _taken(back(_handed("a cotangent", cotangents, shapes)), cotangents)

        return results, pull

    def _derive(self, key: Hashable, f: Callable[..., Arrays], inputs: Sequence[Any]) -> Program:
        def make() -> Program:
            with self._setting():
                return Program(f, inputs)

        found: Program = self._derived.get(key, make)
        return found

    def _by(self, places: Sequence[int], inputs: Arrays) -> Callable[..., Any]:
        """The results that have derivatives, and all, as a function of the inputs at some places."""

        def of(*values: Any) -> tuple[list[Any], Arrays]:
            filled = list(inputs)
            for n, value in zip(places, values, strict=True):
                filled[n] = value
            results = jaxpr_as_fun(self._traced)(*filled)
            return [results[n] for n in self.floats], results

        return of

    def _float_shapes(self) -> list[Any]:
        return [self.outputs[n] for n in self.floats]


class _Recent:
    """What was made for the last few keys: sizes of a ``vmap`` may differ from call to call."""

    def __init__(self) -> None:
        self._made: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        made = make()  # which may take long, so that others don't wait
        with self._lock:
            found = self._made.setdefault(key, made)
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
        return found


class _Forward:
    """A forward pass that keeps what the backward pass needs, and the backward pass.

    What is kept and is an input, or a constant of the function, is not computed, so it costs no memory.
    """

    def __init__(self, traced: Any, by: Any, inputs: Sequence[Any], wanted: Sequence[int]) -> None:
        def both(*arrays: Any) -> Any:
            _, back, results = jax.vjp(by(wanted, arrays), *[arrays[n] for n in wanted], has_aux=True)
            return results, back

        graph, (results, back) = jax.make_jaxpr(both, return_shape=True)(*inputs)
        self._structure = jax.tree.structure(back)
        count = len(results)
        known = {v: ("input", n) for n, v in enumerate(graph.jaxpr.invars)}
        known |= {v: ("constant", n) for n, v in enumerate(graph.jaxpr.constvars)}
        self._constants = graph.consts
        self._sources: list[tuple[str, int]] = []
        computed = list(range(count))
        for n, v in enumerate(graph.jaxpr.outvars[count:]):
            source = None if isinstance(v, Literal) else known.get(v)
            if source is None:
                source = ("computed", len(computed))
                computed.append(count + n)
            self._sources.append(source)
        every = jaxpr_as_fun(graph)

        def run(*arrays: Any) -> list[Any]:
            found = every(*arrays)
            return [found[n] for n in computed]

        self._count, self._run = count, jax.jit(run)
        self._pull = jax.jit(lambda back, cotangents: _conjugate(back(_conjugate(cotangents))))

    def __call__(self, inputs: list[Any]) -> tuple[list[Any], Callable[[list[Any]], Any]]:
        found = self._run(*inputs)
        where = {"input": inputs, "constant": self._constants, "computed": found}
        back = jax.tree.unflatten(self._structure, [where[kind][n] for kind, n in self._sources])
        return found[: self._count], lambda cotangents: self._pull(back, cotangents)


def _conjugate(cotangents: Arrays) -> list[Any]:
    """The cotangents of torch as JAX has them, or back: the conjugate, where they are complex."""
    return [jnp.conj(c) if jnp.iscomplexobj(c) else c for c in cotangents]


def _trains(shape: Any) -> bool:
    return bool(jnp.issubdtype(shape.dtype, jnp.inexact))


def _needed(jaxpr: Any, wanted: Sequence[bool]) -> list[bool]:
    """Whether some of the results of a graph of JAX are computed from each input."""
    pairs = zip(jaxpr.outvars, wanted, strict=True)
    alive = {v for v, one in pairs if one and not isinstance(v, Literal)}
    for line in reversed(jaxpr.eqns):
        used = [v in alive for v in line.outvars]
        if not any(used):
            continue
        calls = line.primitive.name in ("jit", "pjit")
        mine = _needed(line.params["jaxpr"].jaxpr, used) if calls else [True] * len(line.invars)
        alive.update(
            v for v, one in zip(line.invars, mine, strict=True) if one and not isinstance(v, Literal)
        )
    return [v in alive for v in jaxpr.invars]


def _handed(place: str, tensors: Sequence[Tensor], shapes: Sequence[Any]) -> list[Any]:
    """Tensors as arrays of JAX, while a program runs."""
    return [handed(place, x, shape.dtype) for x, shape in zip(tensors, shapes, strict=True)]


def _taken(found: Sequence[Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Arrays of JAX as tensors, none over the memory of an input or of one another."""
    if not inputs or inputs[0].device.type == "cpu":
        jax.block_until_ready(found)  # elsewhere, streams wait for each other
    seen = {x.data_ptr() for x in inputs if x.numel()}
    results = []
    for array in found:
        x = torch.from_dlpack(array)
        if x.numel() and x.data_ptr() in seen:
            x = x.clone()
        seen.add(x.data_ptr())
        results.append(x)
    return results
