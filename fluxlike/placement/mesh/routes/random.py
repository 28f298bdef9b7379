"""Routes of what is drawn at random: each rank draws for its own rows, and other numbers than the others.

Under a key, fluxlike's own draws are functions of the place of an element, so a rank draws those of its rows.
torch's generators draw one number after another. They stand alike on all ranks, as long as the ranks were
seeded alike; one draw there seeds the generator that draws for the rows of a rank, by their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from fluxlike._private.dtensors import local_of
from fluxlike._private.fake import without_values
from fluxlike._private.tracing import tracing
from fluxlike.placement.mesh.parts import piece_of
from fluxlike.placement.mesh.routes.in_place import Beside
from fluxlike.placement.mesh.rowwise import ANY, Rowwise, common, leave, tensors_over, whole
from fluxlike.placement.mesh.signatures import named
from fluxlike.scope import draws

__all__ = ["Drawn", "ROUTES", "apart"]


@contextmanager
def apart(mesh: DeviceMesh, placements: Sequence[Placement], device: torch.device) -> Iterator[None]:
    """Inside, torch draws for the part of this rank; outside, the generators stand alike on all ranks.

    Args:
        mesh: the mesh.
        placements: how lies what is drawn for; ranks with the same part draw the same.
        device: where it is.
    """
    if without_values():
        yield
        return
    if tracing():
        raise RuntimeError(
            "a compiled function over a mesh draws by fluxlike.Dropout and torch's dropout, or from a key by "
            "fluxlike.random; other draws of torch's would be the same for the rows of every rank: write one "
            "of these, or leave out fluxlike.jit"
        )
    seed = int(torch.randint(1 << 31, (), device="cpu"))
    number, count = piece_of(mesh, placements)
    generator = _generator(device)
    before = generator.get_state()
    generator.manual_seed(seed * count + number)
    try:
        yield
    finally:
        generator.set_state(before)


def _generator(device: torch.device) -> torch.Generator:
    """torch's own generator of a device."""
    if device.type == "cpu":
        return torch.default_generator
    module = torch.get_device_module(device)
    index = module.current_device() if device.index is None else device.index
    return module.default_generators[index]


class Drawn:
    """How a random function of rows is called.

    Args:
        rows: as in `Rowwise`.
        of_rows: as in `Rowwise`.
    """

    def __init__(self, *rows: int | str, **of_rows: Any) -> None:
        self._rows, self._of_rows = rows, of_rows

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        by_rows = Rowwise(*self._rows, **self._of_rows)
        given: dict[int | str, Any] = dict(enumerate(args))
        given.update(kwargs)
        found = [x for k in self._rows for x in tensors_over(given.get(k))]
        if not found:
            return NotImplemented
        if not _draws(func, args, kwargs):
            return by_rows(func, args, kwargs)
        if kwargs.get("generator") is not None:
            raise ValueError(
                f"{func.__name__} over a mesh: a generator draws one number after another, which ranks with "
                "rows of their own can't share; draw from a key, fluxlike.seeded(key), or without a generator"
            )
        rows = by_rows.shared(found) or whole(found[0].placements)
        with apart(found[0].device_mesh, rows, found[0].device):
            return by_rows(func, args, kwargs)


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function draws at all: unless it is told that it is not in training."""
    if func in _OF_TRAIN:
        return bool(kwargs["train"] if "train" in kwargs else args[2])
    if not isinstance(func, FunctionType):
        return True
    return bool(named(func, args, kwargs).get("training", True))


class _Dropout:
    """Dropout, which is a product; in a trace, the factors of all rows are drawn, and a rank takes its own.

    The compiler computes no more than these.

    Args:
        eager: the route outside of a trace.
    """

    def __init__(self, eager: Callable[..., Any]) -> None:
        self._eager = eager

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x, *others = args or (kwargs["input"],)
        options = named(func, args, kwargs)
        if options.get("p") == 0 or not options.get("training", True):
            return x
        if not tracing() or not isinstance(x, DTensor) or not _draws(func, args, kwargs):
            return self._eager(func, args, kwargs)
        rest = {name: value for name, value in kwargs.items() if name != "input"}
        rows = common([x], ANY)
        factors = func(torch.ones(x.shape, dtype=x.dtype, device=x.device), *others, **rest)
        for i, p in enumerate(rows):
            if isinstance(p, Shard):
                size = factors.shape[p.dim] // x.device_mesh.size(i)
                factors = factors.narrow(p.dim, x.device_mesh.get_local_rank(i) * size, size)
        return x * leave(factors, x.device_mesh, rows)


def _in_place(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """Numbers drawn into a tensor."""
    x = args[0]
    if not isinstance(x, DTensor) or kwargs.get("generator") is not None:
        return _ELEMENTS(func, args, kwargs)
    x.zero_()  # its history and its version say that it was written
    with apart(x.device_mesh, x.placements, x.device), torch.no_grad():
        func(local_of(x), *args[1:], **kwargs)
    return x


_ELEMENTS = Drawn(0, "input", axes=ANY)
_DROPOUT = (F.dropout,)
_IN_PLACE = (F.alpha_dropout, F.rrelu)
_OF_TRAIN = (torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout)
_DROPOUT_OF_CHANNELS = (F.dropout1d, F.dropout2d, F.dropout3d)
_OF_ELEMENTS = (
    torch.dropout, torch.alpha_dropout, torch.bernoulli, Tensor.bernoulli, torch.rand_like,
    torch.randn_like, torch.randint_like, torch.poisson,
)  # fmt: skip
_OF_CHANNELS = (
    F.feature_alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout, F.fractional_max_pool2d,
    F.fractional_max_pool3d,
)  # fmt: skip
_INTO = (
    Tensor.bernoulli_, Tensor.uniform_, Tensor.normal_, Tensor.random_, Tensor.exponential_,
    Tensor.geometric_, Tensor.cauchy_, Tensor.log_normal_,
)  # fmt: skip

ROUTES: dict[Any, Any] = {
    **dict.fromkeys(_DROPOUT, Beside(_Dropout(_ELEMENTS))),
    **dict.fromkeys(_DROPOUT_OF_CHANNELS, Beside(_Dropout(Drawn(0, "input")))),
    **dict.fromkeys(_IN_PLACE, Beside(_ELEMENTS)),
    **dict.fromkeys(_OF_ELEMENTS, _ELEMENTS),
    **dict.fromkeys(_OF_CHANNELS, Drawn(0, "input")),
    **dict.fromkeys((torch.multinomial, Tensor.multinomial), Drawn(0, "input")),
    **dict.fromkeys(_INTO, _in_place),
    torch.normal: Drawn(0, 1, "mean", "std", axes=ANY),
    F.gumbel_softmax: Drawn(0, "logits"),
}


def _part(x: Tensor) -> Any:
    """The rows of this rank, where they begin among all elements, and how a result is put over the mesh."""
    if not isinstance(x, DTensor):
        return None
    # what is drawn for a pending sum is no sum itself
    rows = [Replicate() if isinstance(p, Partial) else p for p in x.placements]
    number, count = piece_of(x.device_mesh, rows)
    if any(p not in (Shard(0), Replicate()) for p in rows) or (count > 1 and x.shape[0] % count):
        return None  # not one stretch of elements
    local = local_of(x)
    return local, number * local.numel(), lambda y: leave(y, x.device_mesh, rows)


draws.PARTS.append(_part)
