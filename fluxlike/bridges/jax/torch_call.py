"""The primitive of JAX that calls torch: at once with numbers, by a callback in what JAX compiles.

JAX' own callbacks are compiled anew, and kept, for each new function; with numbers nothing need be.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from torch import Tensor

from fluxlike.bridges.arrays.array_memory import tensor_of
from fluxlike.bridges.arrays.tensor_memory import jax_of, numpy_of
from fluxlike.bridges.jax.package import dtype_in_jax, fitted, torch_dtype
from fluxlike.bridges.jax.runs import Run
from fluxlike.transforms.vmap import vmap

__all__ = ["call"]

_primitive = Primitive("fluxlike_to_jax")
_primitive.multiple_results = True


def call(run: Run, arrays: Sequence[Any], /) -> list[Any]:
    """What a function of torch returns for arrays of JAX, or for what JAX traces."""
    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        found: list[Any] = _primitive.bind(*arrays, run=run, extra=0)
        return found
    return [_array(y) for y in run.first([_tensor(x) for x in arrays])]


def _at_once(*arrays: Any, run: Run, extra: int) -> list[Any]:
    """The results for numbers, with the axes of ``jax.vmap`` in front."""
    return [_array(y) for y in _mapped(run, [_tensor(x) for x in arrays], extra)]


def _tensor(x: Any) -> Tensor:
    return tensor_of("to_jax: an argument", x, True)  # the function may write to it


def _array(y: Tensor) -> Any:
    return jax_of("to_jax: a result", y.detach(), True)  # the function may write to it later


def _shapes(*inputs: Any, run: Run, extra: int) -> list[Any]:
    """The shapes of the results for those of the arguments."""
    axes = []
    for k in range(extra):
        sizes = [x.shape[k] for x in inputs]
        axes.append(next((n for n in sizes if n != 1), 1))
    given = [(tuple(x.shape[extra:]), torch_dtype("to_jax: an argument", x.dtype)) for x in inputs]
    return [
        jax.core.ShapedArray((*axes, *size), dtype_in_jax("to_jax: a result", dtype))
        for size, dtype in run.shapes(given)
    ]


def _batched(arrays: Sequence[Any], axes: Sequence[Any], *, run: Run, extra: int) -> Any:
    """One more axis in front of all arguments, of size 1 where the members share one."""
    front = [
        jnp.expand_dims(x, 0) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(arrays, axes, strict=True)
    ]
    found = _primitive.bind(*front, run=run, extra=extra + 1)
    return found, [0] * len(found)


def _compiled(*arrays: Any, run: Run, extra: int) -> list[Any]:
    shapes = [jax.ShapeDtypeStruct(y.shape, y.dtype) for y in _shapes(*arrays, run=run, extra=extra)]
    host = functools.partial(_on_host, run, extra, shapes)
    return jax.pure_callback(host, shapes, *arrays)


def _on_host(run: Run, extra: int, shapes: Sequence[Any], *arrays: Any) -> list[Any]:
    """What JAX calls back for: the results in main memory."""
    found = _mapped(run, [_tensor(np.asarray(x)) for x in arrays], extra)
    pairs = zip(found, shapes, strict=True)
    place = "to_jax: a result"
    return [numpy_of(place, fitted(place, y.detach(), s.dtype), True) for y, s in pairs]


def _mapped(run: Run, tensors: Sequence[Tensor], extra: int) -> list[Tensor]:
    """A function over some axes in front, which are of size 1 in tensors that all members share."""
    if not extra:
        return run(tensors)
    mapped = [x.shape[0] != 1 for x in tensors]
    inner = [x if one else x[0] for x, one in zip(tensors, mapped, strict=True)]
    if not any(mapped):
        return [y[None] for y in _mapped(run, inner, extra - 1)]
    axes = tuple(0 if one else None for one in mapped)
    found: list[Tensor] = vmap(lambda *members: _mapped(run, members, extra - 1), axes)(*inner)
    return found


_primitive.def_impl(_at_once)
_primitive.def_abstract_eval(_shapes)
batching.primitive_batchers[_primitive] = _batched
mlir.register_lowering(_primitive, mlir.lower_fun(_compiled, multiple_results=True))
