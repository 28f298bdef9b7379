"""What is said of a function that neither DTensor nor a route knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.overrides import resolve_name

from fluxlike.placement.mesh.rowwise import tensors_over

__all__ = ["explained", "explaining"]

_MAPPED = "Cannot access storage of BatchedTensorImpl"  # by torch.func.vmap

_WORDS = (
    "does not have a sharding strategy",
    "Sharding propagation failed",
    "got mixed torch.Tensor and DTensor",
    "not supported with DTensor",
    "not supported for tensor subclasses",
    "in-place operations that require placement changes",
    _MAPPED,
)


def explained(
    error: Exception, func: Callable[..., Any] | None = None, args: Any = (), kwargs: Any = None
) -> Exception | None:
    """An error that says what to write instead of one of DTensor's; None for any other error.

    Args:
        error: what was raised.
        func: the function that was called. (default: not known, in a backward pass)
        args: what it was called with.
        kwargs: the same, by name.
    """
    text = str(error)
    if not isinstance(error, (RuntimeError, NotImplementedError)) or not any(w in text for w in _WORDS):
        return None
    if func is None:
        what = "the derivative of a function"
    else:
        name = resolve_name(func) or getattr(func, "__name__", str(func))
        tensors = list(tensors_over([list(args), list((kwargs or {}).values())]))
        meshes = [x.device_mesh for x in tensors]
        if any(mesh != meshes[0] for mesh in meshes):
            shapes = [dict(zip(mesh.mesh_dim_names or (), mesh.shape, strict=False)) for mesh in meshes]
            return ValueError(
                f"{name} of tensors over several meshes, {', '.join(map(str, shapes))}; a computation is "
                "over one: bring all to it, to_device(tree, mesh, plan) and shard_batch(batch, mesh)"
            )
        found = [f"{tuple(x.shape)} {', '.join(map(str, x.placements))}" for x in tensors]
        what = f"{name} of tensors over a mesh, {'; '.join(found)},"
    if _MAPPED in text:
        return NotImplementedError(
            f"{what} under torch.func.vmap: write fluxlike.vmap, which knows of meshes"
        )
    reason = " ".join(text.split())
    return NotImplementedError(
        f"{what} has no rule there ({reason[:160]}). Where it takes rows one by one, write "
        "fluxlike.distributed.on_rows(f, model, x), which calls f with this rank's rows; else "
        "fluxlike.distributed.on_all_rows(f, model, x), which calls it with all of them"
    )


@contextmanager
def explaining() -> Iterator[None]:
    """Explain what a backward pass raises inside."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        better = explained(error)
        if better is None:
            raise
        raise better from error
