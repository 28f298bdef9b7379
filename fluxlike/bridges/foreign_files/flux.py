"""The state of a Flux model, saved in Julia by JLD2."""

from __future__ import annotations

import os
from typing import Any

from fluxlike.bridges.foreign_files.faults import FileFault, open_file, told
from fluxlike.bridges.foreign_files.jld2 import Jld2
from fluxlike.bridges.foreign_files.loading import load_state
from fluxlike.placement.foreign.checkpoint import holds_arrays
from fluxlike.trees.places import Where

__all__ = ["load_flux", "read_flux"]

_KIND = "a JLD2 file"
_HEADERS = (b"HDF5-based Julia Data Format, version ", b"Julia data file (HDF5), version ")
_WRITE = 'in Julia, write jldsave("model.jld2"; model_state = Flux.state(cpu(model)))'


def load_flux(
    path: str | os.PathLike[str],
    /,
    like: Any,
    *,
    part: str | None = None,
    crosscor: Where | tuple[Where, ...] | None = None,
) -> Any:
    """A model with the arrays of a Flux model, whose state JLD2 saved.

    In Julia: ``jldsave("model.jld2"; model_state = Flux.state(cpu(model)))``. What changes on the way here,
    such as the order of axes and Flux's flipped kernels, is that of `load_foreign_state`.

    Args:
        path: the file.
        like: a model of ours of the same layers. Settings, such as the ``eps`` of a BatchNorm, are its own.
        part: what the state is called in the file. (default: ``"model_state"``, or the only one there is)
        crosscor: the convolutions that were ``CrossCor`` in Flux, whose kernels are not flipped, as in
            `load_foreign_state`. (default: none)

    Returns:
        A model of the structure and ties of `like`, which is unchanged.

    Raises:
        ValueError: the file is damaged, or no JLD2; it holds a type that is none of a state, data of other
            files, or more than its size allows; or an array is missing, left over, or of another shape or
            dtype, all of which are named at once. Of a file of another precision, give ``like=fl.f64(model)``
            or the like.
        FileNotFoundError: there is no such file.

    Example:
        >>> import fluxlike as fl
        >>> model = fl.Chain(fl.Conv((3, 3), 1, 8, fl.relu), fl.flatten, fl.Dense(5408, 10))
        >>> model = fl.load_flux("model.jld2", like=model)  # doctest: +SKIP
    """
    return load_state(path, like, _unwrapped(read_flux(path, part=part)), "flux", crosscor=crosscor)


def read_flux(path: str | os.PathLike[str], /, *, part: str | None = None) -> Any:
    """What Julia saved in a JLD2 file, as Python's dicts and tuples with numpy arrays.

    For a state that has to be rearranged before `load_foreign_state` takes it, or only to look.

    Args:
        path: the file.
        part: the name of what is read. (default: ``"model_state"``, or the only one there is)

    Returns:
        Dicts for named tuples and dictionaries, tuples, lists for vectors of anything, and arrays with
        the axes that Julia prints; their memory is in Fortran's order, as Julia's is. Numbers, strings and
        symbols are Python's or numpy's; ``nothing`` is None, and a function an empty tuple, as in
        ``Flux.state``.

    Raises:
        ValueError: as in `load_flux`, or there is nothing of this name.
        FileNotFoundError: there is no such file.

    Example:
        >>> import fluxlike as fl
        >>> state = fl.read_flux("model.jld2")  # doctest: +SKIP
        >>> state["layers"][0]["weight"].shape  # doctest: +SKIP
        (3, 3, 1, 8)
    """
    with open_file(path, _KIND) as stream, told(os.fspath(path), _KIND):
        data = stream.read()
    file = os.fspath(path)
    if not data.startswith(_HEADERS):
        raise FileFault(f"{file} is not {_KIND}: it does not start as one; {_WRITE}")
    content = Jld2(file, data)
    found = content.entries()
    chosen = part or (found[0] if len(found) == 1 else "model_state")
    if chosen not in found:
        there = ", ".join(found) or "nothing"
        raise FileFault(f"{file} holds {there}, and no {chosen}; say which, part=…, or {_WRITE}")
    return content.entry(chosen)


def _unwrapped(state: Any) -> Any:
    """A state without the ``layers`` that a Chain with names and a SkipConnection have, and ours have not."""
    if isinstance(state, (list, tuple)):
        return [_unwrapped(x) for x in state]
    if not isinstance(state, dict):
        return state
    inner = {k: _unwrapped(x) for k, x in state.items()}
    alone = not any(holds_arrays(x) for k, x in inner.items() if k != "layers")
    return inner["layers"] if isinstance(state.get("layers"), dict) and alone else inner
