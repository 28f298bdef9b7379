"""`from_jax`: a function of JAX as one of torch, with its derivatives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxlike.bridges.arrays.array_memory import is_array, tensor_of
from fluxlike.bridges.arrays.convert import flatten_arrays
from fluxlike.bridges.jax.package import dtype_in_jax, handed, import_jax, torch_dtype, x64_enabled
from fluxlike.transforms.retraced import Retraced
from fluxlike.trees.structure import structure_of

__all__ = ["from_jax"]

_KEPT = 256  # kinds of calls of one function, of which the traces are kept


def from_jax(f: Callable[..., Any], /) -> Callable[..., Any]:
    """A function of JAX as a function of torch, with derivatives of every order.

    JAX traces and compiles it once for each structure of the arguments, their shapes and dtypes, and the
    values of what is no array. Tensors go in and come out over the same memory where they can. Gradients,
    forward mode, `vmap` and all that is made of them are those of JAX, and under `jit` the function is one
    operation of the graph.

    Args:
        f: a function of trees of arrays. It has to be pure, as JAX asks of everything that it compiles.

    Returns:
        A function of the same arguments, with tensors in the places of arrays. Arrays of numpy and JAX are
        taken too, as constants. Numbers of Python, strings, None and other objects are part of what is
        traced, compared by value, so a number that changes should be a tensor. It returns tensors on the
        device of the arguments, also for arrays of numpy. What JAX' trace shows to be unused gets no
        gradient (None); what is multiplied by zero, or stopped, gets zeros, as always in JAX. Whole numbers
        of 64 bits become 32 while ``jax_enable_x64`` is off, after a check that they fit.

    Raises:
        TypeError: `f` is no function; from the call, a dtype that JAX or torch has not, floats of 64 bits
            while ``jax_enable_x64`` is off, a constant that can't be compared, or a result that JAX alone
            knows.
        OverflowError: from the call, a whole number does not fit.
        ImportError: JAX is not there.

    Warns:
        UserWarning: eight traces were made because one value or shape changed; it names its path.

    Example:
        >>> import jax.numpy as jnp, torch, fluxlike as fl
        >>> softplus = fl.from_jax(lambda x: jnp.logaddexp(x, 0.0))
        >>> x = torch.tensor([0.0, 2.0])
        >>> softplus(x)
        tensor([0.6931, 2.1269])
        >>> fl.gradient(lambda x: softplus(x).sum(), x)
        tensor([0.5000, 0.8808])
    """
    if not callable(f):
        raise TypeError(f"from_jax takes a function, found a {type(f).__name__}; write from_jax(f)(x)")
    import_jax()
    retraced = Retraced(f"from_jax: {_name(f)}", stacklevel=4)
    traced = functools.lru_cache(_KEPT)(functools.partial(_trace, f, retraced))

    @functools.wraps(f, updated=())
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from fluxlike.bridges.jax.operator import call

        kind, tensors = _taken_apart((args, kwargs))
        program, output = traced(kind)
        results = call(program, tensors)
        leaves = [results[x.number] if type(x) is _Slot else x for x in output.leaves]
        return output.treedef.unflatten(leaves)

    return wrapped


@dataclass(frozen=True)
class _Slot:
    """The place of an array in a tree."""

    number: int


@dataclass(frozen=True)
class _Constant:
    """A constant, equal to others of its type and value."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constant) and _identity(self.value) == _identity(other.value)

    def __hash__(self) -> int:
        return hash(_identity(self.value))


def _identity(x: Any) -> tuple[type, Any]:
    return type(x), repr(x) if isinstance(x, (float, complex)) else x


@dataclass(frozen=True)
class _Kind:
    """All that a trace depends on."""

    treedef: Any
    leaves: tuple[_Slot | _Constant, ...]
    shapes: tuple[Any, ...]
    x64: bool


@dataclass(frozen=True)
class _Output:
    """What a function returned, with slots in the places of arrays."""

    treedef: Any
    leaves: list[Any]


def _taken_apart(given: tuple[Any, ...]) -> tuple[_Kind, list[Tensor]]:
    """The kind of a call, and its tensors, each tied one once."""
    leaves, treedef = flatten_arrays(given)
    where = structure_of(treedef).paths
    tensors: list[Tensor] = []
    shapes = []
    numbers: dict[int, int] = {}
    kept: list[_Slot | _Constant] = []
    for path, x in zip(where, leaves, strict=True):
        if not isinstance(x, Tensor) and not is_array(x):
            _require_comparable(path, x)
            kept.append(_Constant(x))
            continue
        if id(x) not in numbers:
            numbers[id(x)] = len(tensors)
            tensor = x if isinstance(x, Tensor) else tensor_of(_place(path), x, None)
            tensors.append(tensor)
            shapes.append(_shape(path, tensor))
        kept.append(_Slot(numbers[id(x)]))
    return _Kind(treedef, tuple(kept), tuple(shapes), x64_enabled()), tensors


def _place(path: str) -> str:
    """Where a leaf of the arguments is: ``argument 0['w']``, or ``argument name``."""
    first, _, below = path[4:].partition("]")  # after [0] of the positional arguments, or [1] of the others
    return f"argument {first}{below}"


def _require_comparable(path: str, x: Any) -> None:
    try:
        hash(x)
    except TypeError as error:
        raise TypeError(
            f"from_jax: {_place(path)} is a {type(x).__name__}, which can't be compared with that of the "
            "next call; close over it, or give a tuple"
        ) from error


def _shape(path: str, x: Tensor) -> Any:
    """What JAX sees of a tensor."""
    place = f"from_jax: {_place(path)}"
    if x.layout is not torch.strided or x.is_quantized or x.is_nested:
        raise TypeError(f"{place} is a tensor of the layout {x.layout}, which JAX has not; give x.to_dense()")
    return import_jax().ShapeDtypeStruct(tuple(map(int, x.shape)), dtype_in_jax(place, x.dtype))


def _name(f: Callable[..., Any]) -> str:
    return getattr(f, "__qualname__", repr(f))


def _described(kind: _Kind) -> list[tuple[str, str, str]]:
    """What a trace depends on, for each leaf: its path, what is said of it, and what to do if it changes."""
    found = []
    for path, x in zip(structure_of(kind.treedef).paths, kind.leaves, strict=True):
        if isinstance(x, _Slot):
            shape = kind.shapes[x.number]
            found.append((_place(path), f"{shape.dtype}{list(shape.shape)}", "pad to one size"))
        elif isinstance(x.value, (bool, int, float, complex)):
            found.append((_place(path), repr(x.value), "hold it as a tensor, such as torch.tensor(3.0)"))
        else:
            found.append((_place(path), repr(x.value), "hold one that is equal from call to call"))
    return found


def _trace(f: Callable[..., Any], retraced: Retraced, kind: _Kind) -> tuple[Any, _Output]:
    """The program for a kind of call, and what the function returned."""
    from fluxlike.bridges.jax.programs import Program

    outputs: list[_Output] = []

    def flat(*arrays: Any) -> list[Any]:
        leaves = [arrays[x.number] if isinstance(x, _Slot) else x.value for x in kind.leaves]
        args, kwargs = kind.treedef.unflatten(leaves)
        found, output = _results(f(*args, **kwargs))
        outputs.append(output)
        return found

    try:
        program = Program(flat, kind.shapes)
    except Exception as error:
        error.add_note(f"in fluxlike.from_jax of {_name(f)}")
        raise
    retraced.note(kind.treedef, lambda: _described(kind))
    return program, outputs[-1]


def _results(value: Any) -> tuple[list[Any], _Output]:
    """The arrays that a function of JAX returned, each once, and the rest of it."""
    jax = import_jax()
    leaves, treedef = flatten_arrays(value)
    arrays: list[Any] = []
    numbers: dict[int, int] = {}
    kept: list[Any] = []
    for path, x in zip(structure_of(treedef).paths, leaves, strict=True):
        if not isinstance(x, jax.Array) and not is_array(x):
            kept.append(x)
            continue
        place = f"from_jax: {path or 'the result'}"
        if id(x) not in numbers:
            numbers[id(x)] = len(arrays)
            arrays.append(x if isinstance(x, jax.Array) else _constant(place, x))
            torch_dtype(place, arrays[-1].dtype)
        kept.append(_Slot(numbers[id(x)]))
    return arrays, _Output(treedef, kept)


def _constant(place: str, x: Any) -> Any:
    """An array of numpy among the results as one of JAX: JAX itself would cut 64 bits in silence."""
    tensor = tensor_of(place, x, True)
    return handed(place, tensor, dtype_in_jax(place, tensor.dtype))
