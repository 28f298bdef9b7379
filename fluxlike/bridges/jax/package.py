"""JAX as it is set here: whether it is installed, which numbers it has, and tensors handed to it."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fluxlike.bridges.arrays.array_memory import BY_VIEW, NUMPY_DTYPES

__all__ = [
    "dtype_in_jax",
    "fitted",
    "handed",
    "import_jax",
    "torch_dtype",
    "x64",
    "x64_enabled",
]

_CUT = {torch.int64: torch.int32, torch.uint64: torch.uint32}


def import_jax() -> Any:
    """The package, or an error that says how to get it."""
    try:
        return importlib.import_module("jax")
    except ImportError as error:
        raise ImportError(f"JAX can't be imported ({error}): pip install 'fluxlike[jax]'") from error


def x64_enabled() -> bool:
    """Whether JAX has numbers of 64 bits here."""
    return bool(import_jax().config.jax_enable_x64)


def x64(on: bool, /) -> AbstractContextManager[Any]:
    """Let JAX have numbers of 64 bits, or not, on this thread."""
    if x64_enabled() == on:
        return nullcontext()
    jax = import_jax()
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    found: AbstractContextManager[Any] = enable(on)
    return found


def _require_width(place: str, dtype: torch.dtype) -> None:
    """Refuse what JAX would round: it has no 64 bits unless they are turned on."""
    if dtype in (torch.float64, torch.complex128) and not x64_enabled():
        raise TypeError(
            f"{place} is of {dtype}, and JAX would cut it to 32 bits; turn on the others at the start of the "
            'program, jax.config.update("jax_enable_x64", True), or give fluxlike.f32(tree)'
        )


def dtype_in_jax(place: str, dtype: torch.dtype, /) -> Any:
    """The dtype that JAX has a tensor in: of whole numbers of 64 bits, the 32 that it may be set to.

    Whether they fit, `fitted` looks.

    Raises:
        TypeError: it has none that keeps the values.
    """
    jax = import_jax()
    if dtype in _CUT and not x64_enabled():
        dtype = _CUT[dtype]
    _require_width(place, dtype)
    try:
        return jax.numpy.dtype(str(dtype).removeprefix("torch."))
    except TypeError as error:
        raise TypeError(f"{place} is of {dtype}, which JAX does not have") from error


def torch_dtype(place: str, dtype: Any, /) -> torch.dtype:
    """The dtype in which torch has an array of JAX.

    Raises:
        TypeError: it has none.
    """
    if dtype.name not in NUMPY_DTYPES and dtype.name not in BY_VIEW:
        raise TypeError(f"{place} is of the dtype {dtype.name}, which torch does not have; write x.astype(…)")
    found: torch.dtype = getattr(torch, dtype.name)
    return found


def fitted(place: str, x: Tensor, dtype: Any, /) -> Tensor:
    """A tensor in the dtype that `dtype_in_jax` said.

    Raises:
        OverflowError: a whole number of 64 bits does not fit into 32.
    """
    if x.dtype not in _CUT or dtype.itemsize == 8:
        return x
    small = x.to(_CUT[x.dtype])
    if not torch.equal(small.to(x.dtype), x):
        raise OverflowError(
            f"{place} holds whole numbers of {x.dtype} that don't fit into the 32 bits that JAX is set to; "
            'turn on the others at the start of the program: jax.config.update("jax_enable_x64", True)'
        )
    return small


def handed(place: str, x: Tensor, dtype: Any, /) -> Any:
    """The value of a tensor as an array of JAX of a dtype that `dtype_in_jax` said, for a short while.

    It looks at the tensor's memory, and nobody else knows: what is to stay, copy first.

    Raises:
        OverflowError: a whole number of 64 bits does not fit into 32.
        RuntimeError: JAX can't use the device.
    """
    jax = import_jax()
    x = fitted(place, x.detach().resolve_conj().resolve_neg(), dtype).contiguous()
    try:
        return jax.dlpack.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise RuntimeError(
            f"JAX can't take {place}, of {x.dtype} on {x.device}, and has {jax.devices()}; move it to main "
            f"memory, fluxlike.cpu(tree), or install JAX for that device: {error}"
        ) from error
