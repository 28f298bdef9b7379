"""Routes of functions that mix along some axes: along one that an argument names, or along the last ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.placement.mesh.routes.in_place import Beside
from fluxlike.placement.mesh.rowwise import ANY, Rowwise, Whole

__all__ = ["ROUTES"]


class _Along:
    """How a function is called that mixes along the axis it is told: the axes before it are rows.

    Args:
        place: of the argument that names the axis.
        name: of the same argument.
        default: the axis where none is given; None for all.
    """

    def __init__(self, place: int, name: str = "dim", default: int | None = None) -> None:
        self._place, self._name, self._default = place, name, default

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[self._place] if len(args) > self._place else kwargs.get(self._name, self._default)
        x = args[0] if args else kwargs["input"]
        before = given % x.ndim if isinstance(given, int) and x.ndim else 0
        return (Rowwise(0, "input", axes=before) if before else Whole())(func, args, kwargs)


def _of(names: str, *rooms: Any) -> list[Any]:
    """The functions of these names in torch and among the methods of a tensor, where they are there."""
    return [
        getattr(room, name)
        for name in names.split()
        for room in rooms or (torch, Tensor)
        if hasattr(room, name)
    ]


def _affine_grid(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """A grid for each row, whose size names all rows."""

    def of_rows(theta: Tensor, size: Any, align_corners: bool | None = None) -> Tensor:
        return F.affine_grid(theta, [theta.shape[0], *size[1:]], align_corners)

    return Rowwise(0, "theta")(of_rows, args, kwargs)


def _distances(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """Distances of all pairs: of each row to all others, or for each example of a batch."""
    x = args[0] if args else kwargs["x1"]
    route = Rowwise(0, "x1") if x.ndim == 2 else Rowwise(0, 1, "x1", "x2", trailing=2)
    return route(func, args, kwargs)


def _shaped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """Another shape: DTensor's rule, or where it would cut rows in the middle of a part, from all rows."""
    try:
        return func(*args, **kwargs)
    except RuntimeError:
        return Whole()(func, args, kwargs)


def _one_hot(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """One-hot rows; how many classes there are may depend on all of them."""
    classes = args[1] if len(args) > 1 else kwargs.get("num_classes", -1)
    if classes == -1:
        classes = int(Whole()(torch.max, args[:1] or (kwargs["tensor"],), {}).item()) + 1
    return Rowwise(0, "tensor", axes=ANY)(func, (*(args[:1] or (kwargs["tensor"],)), classes), {})


_ELEMENTS = _of("hardshrink softshrink logsigmoid", F, torch, Tensor)
_IN_PLACE = _of("relu6 hardtanh hardswish hardsigmoid", F)

_OF_MATRICES = "inv inv_ex cholesky cholesky_ex pinv eigh eigvalsh svd svdvals qr lu_factor matrix_exp"
_MATRICES = _of(_OF_MATRICES, torch.linalg)

ROUTES: dict[Any, Any] = {
    **dict.fromkeys(_ELEMENTS, Rowwise(0, "input", axes=ANY)),
    **dict.fromkeys(_IN_PLACE, Beside(Rowwise(0, "input", axes=ANY))),
    **dict.fromkeys(_of("polar"), Rowwise(0, 1, "abs", "angle", axes=ANY)),
    **dict.fromkeys(_of("prod cumprod cummax cummin"), _Along(1)),
    **dict.fromkeys([Tensor.unfold], _Along(1, "dimension")),
    **dict.fromkeys(_MATRICES, Rowwise(0, "A", "input", trailing=2)),
    torch.linalg.solve: Rowwise(0, 1, "A", "B", trailing=2),
    torch.searchsorted: Rowwise(0, 1, "sorted_sequence", "input", trailing=1),
    torch.stft: Rowwise(0, "input", trailing=1),
    torch.istft: Rowwise(0, "input", trailing=2),
    torch.cdist: _distances,
    F.bilinear: Rowwise(0, 1, "input1", "input2", trailing=1),
    F.affine_grid: _affine_grid,
    F.one_hot: _one_hot,
    **dict.fromkeys([*_of("reshape"), Tensor.view, *_of("unflatten")], _shaped),
}
