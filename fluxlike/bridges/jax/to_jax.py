"""`to_jax`: a function of torch as one of JAX, with its gradients."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.bridges.arrays.array_memory import is_array, is_jax_array, tensor_of
from fluxlike.bridges.arrays.convert import flatten_arrays, to_array
from fluxlike.bridges.jax.package import dtype_in_jax, fitted, handed, import_jax, torch_dtype
from fluxlike.transforms.pullback import pullback
from fluxlike.transforms.vmap import vmap
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["to_jax"]

Run = Callable[[Sequence[Tensor]], list[Tensor]]  # a function of torch, of lists of tensors


def to_jax(f: Callable[..., Any], /) -> Callable[..., Any]:
    """A function of torch, or a model of fluxlike, as a function of JAX.

    Called with numbers it runs at once, over the same memory where that can be shared. Under ``jax.jit`` it
    is a callback: torch runs it while JAX waits, with the arguments in main memory. ``jax.grad`` and all of
    reverse mode, to any order, ask torch for the gradient; ``jax.vmap`` maps by `fluxlike.vmap`. Forward
    mode (``jax.jvp``, ``jax.jacfwd``, ``jax.hessian``) is refused by JAX, as for every ``jax.custom_vjp``:
    write ``jax.jacrev`` in its place.

    Args:
        f: a function of trees of tensors. It has to be pure; under ``jax.jit`` its shapes must not depend on
            values. What it closes over is constant. It runs in the mode of the scope of the call, under
            ``jax.jit`` of the trace.

    Returns:
        A function of the same arguments, with arrays of JAX in the places of tensors. Those are
        differentiated, other arrays and tensors are constants. It returns arrays of JAX. Whole numbers of 64
        bits become 32 while ``jax_enable_x64`` is off, after a check that they fit.

    Raises:
        TypeError: `f` is no function; from the call, floats of 64 bits while ``jax_enable_x64`` is off, or a
            dtype that JAX or torch has not.
        RuntimeError: from the call under ``jax.jit``, `f` asks for the value of a tensor.
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


def _taken_apart(f: Callable[..., Any], given: tuple[Any, ...]) -> tuple[_Called, list[Any]]:
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
    return _Called(f, treedef, leaves, slots), list(arrays.values())


class _Called:
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

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that the function returns, in the scope of the call: JAX may ask on another thread."""
        return self._context.copy().run(self._run, tensors)

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

    def filled(self, results: Sequence[Any]) -> Any:
        """What the function returned, with arrays in the places of its tensors."""
        pairs = zip(self._places, self._constants, strict=True)
        return self._output.unflatten([c if n is None else results[n] for n, c in pairs])


def _differentiable(run: Run) -> Callable[..., tuple[Any, ...]]:
    """A function of arrays of JAX, whose gradient is another one that is differentiable."""
    jax = import_jax()

    value = jax.custom_vjp(lambda *arrays: _evaluated(run, arrays))

    def forward(*arrays: Any) -> Any:
        return value(*arrays), arrays

    def backward(arrays: Any, cotangents: Any) -> tuple[Any, ...]:
        numbers = [n for n, c in enumerate(cotangents) if c.dtype != jax.dtypes.float0]
        wanted = [n for n, x in enumerate(arrays) if jax.numpy.issubdtype(x.dtype, jax.numpy.inexact)]
        found: list[Any] = [None] * len(arrays)
        if wanted and numbers:
            pull = functools.partial(_pull, run, wanted, numbers, len(arrays))
            grads = _differentiable(pull)(*arrays, *[cotangents[n] for n in numbers])
            for n, g in zip(wanted, grads, strict=True):
                found[n] = g
        return tuple(found)

    value.defvjp(forward, backward)
    found: Callable[..., tuple[Any, ...]] = value
    return found


def _pull(
    run: Run, wanted: Sequence[int], numbers: Sequence[int], count: int, tensors: Sequence[Tensor]
) -> list[Tensor]:
    """The cotangents of some inputs, of these inputs and the cotangents of some results."""
    inputs, cotangents = tensors[:count], tensors[count:]

    def of(values: Sequence[Tensor]) -> list[Tensor]:
        filled = list(inputs)
        for n, value in zip(wanted, values, strict=True):
            filled[n] = value
        results = run(filled)
        return [results[n] for n in numbers]

    chosen = [inputs[n] for n in wanted]
    _, back = pullback(of, chosen)
    found = back([c.conj() for c in cotangents])  # JAX' cotangents are the conjugates of torch's
    pairs = zip(found, chosen, strict=True)
    return [torch.zeros_like(x) if g is None else g.conj().resolve_conj() for g, x in pairs]


def _evaluated(run: Run, arrays: Sequence[Any]) -> tuple[Any, ...]:
    """What a function of torch returns for arrays of JAX, or for what JAX traces."""
    jax = import_jax()
    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        shapes = _shapes(run, arrays)
        host = functools.partial(_on_host, run, [x.ndim for x in arrays], shapes)
        return tuple(jax.pure_callback(host, tuple(shapes), *arrays, vmap_method="expand_dims"))
    tensors = [tensor_of("an argument", x, None) for x in arrays]
    return tuple(handed(y, dtype_in_jax("a result", y.dtype)) for y in run(tensors))


def _shapes(run: Run, arrays: Sequence[Any]) -> tuple[Any, ...]:
    """The shapes of the results for those of traced arguments."""
    from fluxlike._private import fake

    inputs = [(x.shape, torch_dtype("an argument", x.dtype)) for x in arrays]
    try:
        found = fake.shapes(run, inputs)
    except fake.NEEDS_A_VALUE as error:
        raise RuntimeError(
            "to_jax: the function asks for the value of a tensor (by if, float(), .item(), x[mask], …), and "
            "JAX traces it with shapes alone; use torch.where or fluxlike.cond, or call it outside of "
            "jax.jit and jax.vmap"
        ) from error
    return tuple(import_jax().ShapeDtypeStruct(size, dtype_in_jax("a result", d)) for size, d in found)


def _on_host(run: Run, axes: Sequence[int], shapes: Sequence[Any], *arrays: Any) -> tuple[Any, ...]:
    """What JAX calls back for: the results in main memory, with the axes of ``jax.vmap`` in front."""
    tensors = [tensor_of("an argument", np.asarray(x), True) for x in arrays]
    extra = tensors[0].ndim - axes[0] if tensors else 0
    found = _mapped(run, tensors, extra)
    fit = [fitted(y.detach(), s.dtype) for y, s in zip(found, shapes, strict=True)]
    return tuple(to_array(y, "numpy") for y in fit)


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
