"""One array of another library as a tensor: over the same memory where torch can, else a copy."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from fluxlike.trees.functor import spec_of

__all__ = ["BY_VIEW", "NUMPY_DTYPES", "is_array", "is_jax_array", "tensor_of"]

#: The dtypes that numpy and torch share, by name.
NUMPY_DTYPES = frozenset(
    ["bool", "float16", "float32", "float64", "complex64", "complex128"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)

#: Those that numpy has from the package ml_dtypes, by name: in torch, and the one to carry them over.
BY_VIEW: dict[str, tuple[torch.dtype, str]] = {"bfloat16": (torch.bfloat16, "uint16")} | {
    name: (getattr(torch, name), "uint8")
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
}

_PROTOCOLS = ("__dlpack__", "__cuda_array_interface__", "__array_interface__", "__array__")
_COMMON = frozenset((type(None), bool, int, float, complex, str, bytes, dict, list, tuple, Tensor))


def is_array(x: object, /) -> bool:
    """Whether an object is an array of another library: its memory is offered by one of the protocols."""
    if type(x) in _COMMON or isinstance(x, (Tensor, type)):
        return False
    return any(hasattr(x, name) for name in _PROTOCOLS) and spec_of(type(x)) is None


def is_jax_array(x: object, /) -> bool:
    """Whether an object is an array of JAX; it can't be one before JAX is imported."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(x, jax.Array)


def tensor_of(place: str, x: Any, copy: bool | None, /) -> Tensor:
    """An array as a tensor, on the device where it is.

    Args:
        place: what to call the array in errors.
        x: an object that `is_array`.
        copy: None shares memory where that is possible, True never does, False raises where it is not.

    Raises:
        TypeError: torch has no such dtype, or an array that is more than its numbers.
        ValueError: `copy` is False, and a copy is needed.
    """
    if isinstance(x, (np.ndarray, np.generic)):
        return _of_numpy(place, x, copy)
    if is_jax_array(x):
        _require_plain_jax(place, x)
    if hasattr(x, "__dlpack__"):
        return _of_dlpack(place, x, copy)
    if hasattr(x, "__cuda_array_interface__"):
        tensor = torch.as_tensor(x, device="cuda")
        return tensor.clone() if copy else tensor
    return _of_interface(place, x, copy)


def _of_numpy(place: str, x: Any, copy: bool | None) -> Tensor:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{place} is a masked array, and torch has no masks: give x.filled(value), and the mask as an "
            "array of its own, np.ma.getmaskarray(x)"
        )
    if x.dtype.name not in NUMPY_DTYPES and x.dtype.name not in BY_VIEW:
        _refuse_dtype(place, x)
    problem = _why_copied(x)
    if problem and copy is False:
        raise ValueError(f"{place} {problem}; leave copy=False out, and it is copied")
    if problem or copy:
        native = x.dtype.newbyteorder("=")
        x = np.array(x, dtype=native, order="C", copy=True)
    x = np.asarray(x)  # without the subclass, such as a matrix or a memory-mapped file
    if x.dtype.name in NUMPY_DTYPES:
        return torch.from_numpy(x)
    dtype, carrier = BY_VIEW[x.dtype.name]
    return torch.from_numpy(x.view(carrier)).view(dtype)


def _why_copied(x: Any) -> str | None:
    """Why no tensor may lie over the memory of an array of numpy."""
    if isinstance(x, np.generic):
        return "is a scalar of numpy, which has no memory to share"
    if not x.flags.writeable:
        of_file = isinstance(x, np.memmap) or isinstance(x.base, np.memmap)
        hint = (
            " (a file that is mapped with mode='c' can be shared: writes don't reach it)" if of_file else ""
        )
        return f"is read-only, and torch can't keep a tensor from being written to{hint}"
    if not x.dtype.isnative:
        return "has the bytes of each number in the other order"
    if any(step < 0 for step in x.strides):
        return "runs backwards through memory (a negative stride), which torch has not"
    if not x.flags.aligned or any(step % x.itemsize for step in x.strides):
        return "lies at odd places of memory (an unaligned stride), which torch has not"
    return None


def _refuse_dtype(place: str, x: Any) -> NoReturn:
    kind, said = x.dtype.kind, f"of the dtype {x.dtype.name}"
    if x.dtype.names:
        kind, said = "fields", f"structured, with the fields {', '.join(x.dtype.names)}"
    hint = {
        "fields": "give a dict of them: {name: x[name] for name in x.dtype.names}",
        "O": "give np.stack(x) of arrays of one shape, x.astype('float64') of numbers",
        "U": "give the texts as numbers: np.unique(x, return_inverse=True)[1]",
        "M": "give the counts: x.astype('int64')",
        "f": "write x.astype('float64')",
        "c": "write x.astype('complex128')",
    }
    kind = {"S": "U", "T": "U", "m": "M"}.get(kind, kind)
    told = hint.get(kind, "write x.astype(…) with a dtype that it has")
    raise TypeError(f"{place} is {said}, which torch does not have; {told}")


def _require_plain_jax(place: str, x: Any) -> None:
    """Refuse what is called an array of JAX and is none in the memory of one device."""
    import jax

    if isinstance(x, jax.core.Tracer):
        raise TypeError(
            f"{place} is traced by JAX, so it has no numbers yet; make the function of torch one of JAX "
            "instead: fluxlike.to_jax(f)"
        )
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        raise TypeError(f"{place} is a key of JAX' random numbers; give jax.random.key_data(key)")
    if x.is_deleted():
        raise ValueError(f"{place} was deleted or donated in JAX; give the array that came out")
    if len(x.devices()) > 1:
        raise ValueError(
            f"{place} is spread over {len(x.devices())} devices of JAX; bring it to one by "
            "jax.device_put(x, jax.devices()[0])"
        )


def _of_dlpack(place: str, x: Any, copy: bool | None) -> Tensor:
    try:
        tensor = torch.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        if is_jax_array(x):
            raise TypeError(
                f"{place} is of the dtype {x.dtype.name}, which torch does not have; write x.astype(…) with "
                f"one that it has: {error}"
            ) from error
        if any(hasattr(x, name) for name in _PROTOCOLS[2:]):
            return _of_interface(place, x, copy)
        raise TypeError(f"{place}, a {type(x).__name__}, can't be shared by DLPack: {error}") from error
    return tensor.clone(memory_format=torch.contiguous_format) if copy else tensor


def _of_interface(place: str, x: Any, copy: bool | None) -> Tensor:
    """By ``__array_interface__``, which says where the memory is, or ``__array__``, which may make some."""
    found = np.asarray(x)
    if copy is False and not np.may_share_memory(found, np.asarray(x)):
        raise ValueError(
            f"{place}, a {type(x).__name__}, makes an array when asked for one, so that no memory is shared; "
            "leave copy=False out"
        )
    return _of_numpy(place, found, copy)
