"""One tensor as an array of another library: over the same memory where that library can, else a copy."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike._private import functorch
from fluxlike.bridges.arrays.array_memory import BY_VIEW, NUMPY_DTYPES
from fluxlike.bridges.jax.package import dtype_in_jax, fitted, import_jax
from fluxlike.trees.values import lent, value_of

__all__ = ["LIBRARIES", "jax_of", "numpy_of"]


def numpy_of(place: str, x: Tensor, copy: bool | None, /) -> np.ndarray:
    """A tensor as an array of numpy, in main memory."""
    name = _name(x)
    if name not in NUMPY_DTYPES and name not in BY_VIEW:
        raise TypeError(
            f"{place} is of {x.dtype}, which numpy does not have; write x.to(torch.complex64)"
            if x.is_complex()
            else f"{place} is of {x.dtype}, which numpy does not have; cast it"
        )
    x, copied = _plain(place, x, copy)
    if x.device.type != "cpu":
        if copy is False:
            raise ValueError(
                f"{place} is on {x.device}, and arrays of numpy are in main memory; leave copy=False out, "
                "and it is copied there"
            )
        x, copied = x.cpu(), True
    if copy and not copied:
        x = x.clone(memory_format=torch.contiguous_format)
    if name in NUMPY_DTYPES:
        return x.numpy()
    dtype = _from_ml_dtypes(place, x, name)
    return x.view(getattr(torch, BY_VIEW[name][1])).numpy().view(dtype)


def _from_ml_dtypes(place: str, x: Tensor, name: str) -> Any:
    try:
        return getattr(importlib.import_module("ml_dtypes"), name)
    except (ImportError, AttributeError) as error:
        raise TypeError(
            f"{place} is of {x.dtype}, which numpy has from the package ml_dtypes alone: pip install "
            "ml_dtypes, or give float32, to_array(fluxlike.f32(tree))"
        ) from error


def jax_of(place: str, x: Tensor, copy: bool | None, /) -> Any:
    """A tensor as an array of JAX, on the device where it is."""
    jax = import_jax()
    given, dtype = x, dtype_in_jax(place, x.dtype)
    x, copied = _plain(place, x, copy)
    if copy is False and dtype.itemsize != x.element_size():
        raise ValueError(
            f"{place} is of {x.dtype}, and JAX is set to 32 bits; leave copy=False out, and it is copied, if "
            'its numbers fit, or turn on the others: jax.config.update("jax_enable_x64", True)'
        )
    if copy is False and not x.is_contiguous():
        raise ValueError(
            f"{place} is not contiguous (strides {x.stride()}), as the arrays of JAX are; leave copy=False "
            "out, and it is copied"
        )
    if copy is False and x.device.type == "cpu" and x.data_ptr() % _ALIGNED:
        raise ValueError(
            f"{place} starts at an address that {_ALIGNED} does not divide, where JAX has no arrays; leave "
            "copy=False out, and it is copied"
        )
    if copy and not copied:
        x = x.clone(memory_format=torch.contiguous_format)
    x = fitted(place, x, dtype)
    try:
        # Transposed ones are not shared: versions of JAX up to 0.7 compute with them as if they were not.
        array = jax.dlpack.from_dlpack(x.contiguous())
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"JAX can't take {place}, of {x.dtype} on {x.device}: {error}") from error
    if x.numel() and array.unsafe_buffer_pointer() == given.data_ptr():
        _note_shared(given)
    return array


_ALIGNED = 64  # bytes, for XLA on the CPU


def _note_shared(x: Tensor) -> None:
    """Say that another library looks at the memory of a tensor, so that no donation writes to it."""
    lent(x)
    if x.device.type == "cpu":  # from now on, torch says that it does not own it alone
        x.detach().view(_BYTES[x.element_size()]).numpy()


_BYTES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def cupy_of(place: str, x: Tensor, copy: bool | None, /) -> Any:
    """A tensor on a GPU as an array of CuPy."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise ImportError(
            f"CuPy can't be imported ({error}): pip install cupy-cuda12x, for your version of CUDA"
        ) from error
    given = x
    x, copied = _plain(place, x, copy)
    if copy and not copied:
        x, copied = x.clone(), True
    try:
        array = cupy.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        hint = (
            "; its arrays are on GPUs: to_array(fluxlike.gpu(tree), 'cupy')" if x.device.type == "cpu" else ""
        )
        raise TypeError(f"CuPy can't take {place}, of {x.dtype} on {x.device}: {error}{hint}") from error
    if not copied:
        _note_shared(given)
    return array


#: How to make arrays of a library.
LIBRARIES = {"numpy": numpy_of, "jax": jax_of, "cupy": cupy_of}


def _plain(place: str, x: Tensor, copy: bool | None) -> tuple[Tensor, bool]:
    """The value of a tensor as plain numbers in memory, and whether they had to be computed.

    Raises:
        ValueError: it has no numbers to give, or a derivative would be lost.
        TypeError: it is of a kind that has no strides.
    """
    _require_numbers(place, x)
    x = value_of(x)
    if x.requires_grad or (functorch.in_forward_mode() and functorch.has_tangent(x)):
        raise ValueError(
            f"{place} is differentiated, and an array has no gradient; write "
            "to_array(fluxlike.stop_gradient(tree)) for its value alone, or call functions of JAX by "
            "fluxlike.from_jax, which has gradients"
        )
    if not x.is_conj() and not x.is_neg():
        return x.detach(), False
    if copy is False:
        raise ValueError(
            f"{place} is a view that is conjugated or negated when it is read, which only torch has; leave "
            "copy=False out, and it is copied"
        )
    return x.detach().resolve_conj().resolve_neg(), True


def _require_numbers(place: str, x: Tensor) -> None:
    if functorch.level_of(x):
        raise ValueError(
            f"{place} is a tensor of vmap or of a derivative, which stands for many or is not known yet; "
            "call to_array outside of them, or functions of JAX by fluxlike.from_jax"
        )
    if x.is_meta:
        raise ValueError(f"{place} is on the meta device, which holds no numbers")
    if x.is_nested or x.layout is not torch.strided:
        raise TypeError(f"{place} is {_kind(x)}; write x.to_dense(), or take its parts apart")
    if x.is_quantized:
        raise TypeError(f"{place} is quantised; write x.dequantize()")
    if type(x) not in (Tensor, torch.nn.Parameter):
        hint = (
            "a stand-in while a function is traced: make arrays outside, or call functions of JAX by "
            "fluxlike.from_jax"
            if type(x).__name__ in ("FakeTensor", "FunctionalTensor")
            else "a subclass: write x.full_tensor() of a DTensor, else x.as_subclass(torch.Tensor)"
        )
        raise TypeError(f"{place} is a {type(x).__name__}, {hint}")


def _kind(x: Tensor) -> str:
    return "nested" if x.is_nested else f"sparse (of the layout {x.layout})"


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
