"""Functions on a module that close over a part of it, and so would run with the module's own tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from fluxlike._private.modules import hooks_of

__all__ = ["refuse_closures"]


def refuse_closures(module: nn.Module, /) -> None:
    """Refuse hooks, and functions among the attributes, that reach a part of the module past their arguments.

    A copy of the module runs them too, and they would still call the module itself.

    Raises:
        ValueError: it names the function, and the part.
    """
    parts = {id(m): path or "the module itself" for path, m in module.named_modules()}
    parts |= {id(p): path for path, p in (*module.named_parameters(), *module.named_buffers())}
    for path, m in module.named_modules():
        for f in (*hooks_of(m), *vars(m).values()):
            found = next((parts[id(x)] for x in _reached(f) if id(x) in parts), None)
            if found is not None:
                raise ValueError(
                    f"{path or 'the module'} has the function {getattr(f, '__qualname__', f)}, which closes "
                    f"over {found}, so it would go on with the module's own tensors; a hook gets the module "
                    "as its first argument, and a forward of your own belongs in a class"
                )


def _reached(f: Any) -> Iterator[Any]:
    """What a function reaches through its closure and defaults; a copy of a partial has copied arguments."""
    if isinstance(f, functools.partial):
        yield from _reached(f.func)
    if not isinstance(f, FunctionType):
        return
    found = [*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
    for cell in f.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not set yet
            continue
    for x in found:
        inner = [x] if not isinstance(x, (list, tuple, dict)) else x.values() if isinstance(x, dict) else x
        for y in inner:
            yield y.__self__ if isinstance(y, MethodType) else y
