"""`to_jax`: a function of torch as one of JAX, with its gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fluxlike.bridges.arrays.array_memory import is_array, is_jax_array, tensor_of
from fluxlike.bridges.arrays.convert import flatten_arrays
from fluxlike.bridges.jax.package import import_jax
from fluxlike.bridges.jax.runs import Called, Pulled, Run
from fluxlike.trees.structure import structure_of

__all__ = ["to_jax"]


def to_jax(f: Callable[..., Any], /) -> Callable[..., Any]:
    """A function of torch, or a model of fluxlike, as a function of JAX.

    Called with numbers it runs at once, on the device where they are. Under ``jax.jit`` it is a callback:
    torch runs it while JAX waits, with the arguments in main memory. ``jax.grad`` and all of reverse mode,
    to any order, ask torch for the gradient; ``jax.vmap`` maps by `fluxlike.vmap`. Forward mode
    (``jax.jvp``, ``jax.jacfwd``, ``jax.hessian``) is refused by JAX, as for every ``jax.custom_vjp``: write
    ``jax.jacrev`` in its place.

    A backward pass runs `f` a second time, since JAX keeps arrays and no graph of torch's. What `f` draws
    from torch's generators, or from the key around the call, is drawn again the same. Where JAX traces the
    call (``jax.jit``, ``jax.vmap``, ``jax.checkpoint``) the two runs don't know of each other, so draws are
    an error in the second: put a key in scope inside `f`, made of an argument. The new statistics of a
    BatchNorm in train mode have no place in JAX; return what `withupdates` collects, or they are dropped.

    Args:
        f: a function of trees of tensors. It has to be pure but for draws; under ``jax.jit`` its shapes must
            not depend on values. What it closes over is constant. It runs in the mode of the scope of the
            call, under ``jax.jit`` of the trace. It gets copies of the arguments, and its results are
            copied, since arrays of JAX never change.

    Returns:
        A function of the same arguments, with arrays of JAX in the places of tensors. Those are
        differentiated, other arrays and tensors are constants. It returns arrays of JAX. Whole numbers of 64
        bits become 32 while ``jax_enable_x64`` is off, after a check that they fit.

    Raises:
        TypeError: `f` is no function; from the call, floats of 64 bits while ``jax_enable_x64`` is off, or a
            dtype that JAX or torch has not.
        RuntimeError: from the call under ``jax.jit``, `f` asks for the value of a tensor; from the backward
            pass of a call that JAX traced, `f` draws.
        OverflowError: from the call, a whole number does not fit.
        ImportError: JAX is not there.

    Example:
        >>> import jax, jax.numpy as jnp, torch, fluxlike as fl
        >>> model = fl.Dense(3, 1)
        >>> flat, rebuild = fl.destructure(model)
        >>> predict = fl.to_jax(lambda flat, x: rebuild(flat)(x))
        >>> loss = lambda flat, x: predict(flat, x).sum()
        >>> jax.grad(loss)(fl.to_array(flat, "jax"), jnp.ones((2, 3)))
        Array([2., 2., 2., 2.], dtype=float32)
    """
    if not callable(f):
        raise TypeError(f"to_jax takes a function, found a {type(f).__name__}; write to_jax(f)(x)")
    import_jax()

    @functools.wraps(f, updated=())
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        called, arrays = _taken_apart(f, (args, kwargs))
        return called.filled(_differentiable(called)(*arrays))

    return wrapped


def _taken_apart(f: Callable[..., Any], given: tuple[Any, ...]) -> tuple[Called, list[Any]]:
    """A call, and the arrays of JAX among its arguments, each once."""
    leaves, treedef = flatten_arrays(given)
    arrays: dict[int, Any] = {id(x): x for x in leaves if is_jax_array(x)}
    numbers = {key: n for n, key in enumerate(arrays)}
    slots = [(i, numbers[id(x)]) for i, x in enumerate(leaves) if is_jax_array(x)]
    for i, x in enumerate(leaves):
        if is_jax_array(x):
            leaves[i] = None  # the call may live on in a compiled function, they must not
        elif is_array(x):
            leaves[i] = tensor_of(f"to_jax: argument {structure_of(treedef).paths[i]}", x, None)
    return Called(f, treedef, leaves, slots), list(arrays.values())


def _differentiable(run: Run) -> Callable[..., tuple[Any, ...]]:
    """A function of arrays of JAX, whose gradient is another one that is differentiable."""
    from fluxlike.bridges.jax.torch_call import call

    jax = import_jax()
    value = jax.custom_vjp(lambda *arrays: tuple(call(run, arrays)))

    def forward(*arrays: Any) -> Any:
        return value(*arrays), arrays

    def backward(arrays: Any, cotangents: Any) -> tuple[Any, ...]:
        numbers = [n for n, c in enumerate(cotangents) if c.dtype != jax.dtypes.float0]
        wanted = [n for n, x in enumerate(arrays) if jax.numpy.issubdtype(x.dtype, jax.numpy.inexact)]
        found: list[Any] = [None] * len(arrays)
        if wanted and numbers:
            pulled = Pulled(run, wanted, numbers, len(arrays))
            grads = _differentiable(pulled)(*arrays, *[cotangents[n] for n in numbers])
            for n, g in zip(wanted, grads, strict=True):
                found[n] = g
        return tuple(found)

    value.defvjp(forward, backward)
    found: Callable[..., tuple[Any, ...]] = value
    return found
