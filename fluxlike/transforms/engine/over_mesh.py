"""Transforms of tensors over a mesh: the function runs on plain ones, on each rank for its share of members.

Neither functorch nor forward mode knows of tensors over a mesh. So the function gets plain tensors: of what
is mapped, the members of this rank; of all else, arguments or not, the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fluxlike._private import functorch, pytree
from fluxlike.placement.mesh import used
from fluxlike.transforms.engine.argument import argument_numbers
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten

if TYPE_CHECKING:
    from fluxlike.placement.mesh.transforms import Share

__all__ = [
    "Region", "laid_out_like", "of_closures", "of_entries", "of_members", "placed_as", "placed_like", "plain",
    "zeros_like",
]  # fmt: skip


class Region(TorchFunctionMode):
    """Where a function runs on plain tensors, also for those over a mesh that it closes over.

    Args:
        share: of this rank; None where no argument is over a mesh, and every rank computes all.
    """

    def __init__(self, share: Share | None) -> None:
        super().__init__()
        self._share, self._asleep = share, False
        self._plain: dict[int, tuple[Tensor, Tensor]] = {}  # by id: a tensor over a mesh, and its stand-in
        self._meant: dict[int, Tensor] = {}  # by the id of a stand-in

    def __enter__(self) -> Region:
        self._token = _open.set(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _open.reset(self._token)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._asleep or not types:
            return func(*args, **(kwargs or {}))
        return func(*pytree.map_tensors(self.whole, args), **pytree.map_tensors(self.whole, kwargs or {}))

    @property
    def divides(self) -> bool:
        """Whether a rank computes some of the members alone."""
        return self._share is not None and self._share.count > 1

    def plain(self, tree: Any, /) -> Any:
        """A tree with whole, plain tensors in the place of those over a mesh."""
        leaves, treedef = flatten(tree)

        def local(x: Any) -> Any:
            if isinstance(x, Assigned):
                return Assigned(self.whole(x.value))
            return self.whole(x) if isinstance(x, Tensor) else x

        return treedef.unflatten([local(x) for x in leaves])

    def whole(self, x: Tensor, /) -> Tensor:
        """A tensor over a mesh, plain and whole; any other as it is."""
        known = used.mesh()
        if known is None or not known.over(x):
            return x
        found = self._plain.get(id(x))
        if found is None:
            with self._sleeping():
                new = known.whole(x) if self._share is None else self._share.whole(x)  # type: ignore[arg-type]
            found = self._plain[id(x)] = x, new
            self._meant[id(new)] = x
        return found[1]

    def part(self, x: Tensor, axis: int, /) -> Tensor:
        """The members of this rank, on an axis of a tensor."""
        if self._share is None:
            return x
        with self._sleeping():
            return self._share.part(x, axis)

    def joined(self, y: Tensor, axis: int | None, /) -> Tensor:
        """A result, over the mesh.

        Args:
            y: the part of this rank.
            axis: of the members; None for what all share.
        """
        if self._share is None:
            return y
        with self._sleeping():
            if axis is not None:
                return self._share.joined(y, axis)
            return self._meant[id(y)] if id(y) in self._meant else self._share.shared(y)

    def numbers(self, count: int, /) -> range:
        """Which of so many members are those of this rank: all, where they can't be shared equally."""
        if self._share is None or count % self._share.count:
            return range(count)
        size = count // self._share.count
        return range(size * self._share.number, size * (self._share.number + 1))

    def entries(self, y: Tensor, /) -> range:
        """Which entries of an output are those of this rank: those of its part of the first axis."""
        first, rest = (self.numbers(y.shape[0]), y[:1].numel()) if y.ndim else (range(1), 1)
        return range(first.start * rest, first.stop * rest)

    def shape_of_part(self, y: Tensor, /) -> torch.Size:
        """The shape of these entries."""
        return torch.Size((len(self.numbers(y.shape[0])), *y.shape[1:])) if y.ndim else y.shape

    def drawing(self) -> AbstractContextManager[None]:
        """Inside, torch's generators draw for each member of its own."""
        return self._share.drawing() if self._share is not None and self.divides else nullcontext()

    @contextmanager
    def _sleeping(self) -> Iterator[None]:
        """Inside, tensors over a mesh are what they are, and no transform of functorch sees them."""
        before, self._asleep = self._asleep, True
        try:
            with functorch.outside() if functorch.active() else nullcontext():
                yield
        finally:
            self._asleep = before


_open: ContextVar[Region | None] = ContextVar("fluxlike_region", default=None)


def plain(tree: Any, /) -> Any:
    """A tree for what is called here: inside a region, with plain tensors for those over a mesh."""
    region = _open.get()
    return tree if region is None else region.plain(tree)


def of_members(args: Any, tensors: Sequence[Tensor], axes: Sequence[int], /) -> Region | None:
    """The region in which `vmap` runs its function; None where there is no mesh, or inside of another.

    Args:
        args: all arguments of the function.
        tensors: those that are mapped.
        axes: the axis of each.
    """
    if used.mesh() is None or _open.get() is not None:
        return None
    over = _first_over(args)
    if over is None:
        return Region(None)
    from fluxlike.placement.mesh import transforms  # torch.distributed takes a while to import

    return Region(transforms.of_members(over.device_mesh, tensors, axes))


def of_closures() -> AbstractContextManager[Any]:
    """The region of a function none of whose arguments is over a mesh, for what it closes over."""
    return nullcontext() if used.mesh() is None or _open.get() is not None else Region(None)


@contextmanager
def of_entries(args: Sequence[Any], argnums: int | Sequence[int], /) -> Iterator[tuple[Region, list[Any]]]:
    """The region in which a derivative is computed entry by entry of an output, and its plain arguments.

    Args:
        args: the arguments of the function.
        argnums: which of them are differentiated.
    """
    known = used.mesh()
    if known is None or _open.get() is not None:
        yield Region(None), list(args)
        return
    numbers, _ = argument_numbers(argnums, len(args))
    known.require_one_mesh([args[n] for n in numbers], [x for n, x in enumerate(args) if n not in numbers])
    over, share = _first_over(args), None
    if over is not None:
        from fluxlike.placement.mesh import transforms

        share = transforms.of_entries(over.device_mesh)
    region = Region(share)
    local = [region.plain(x) for x in args]
    with region:
        yield region, local


def _first_over(tree: Any) -> Any:
    known = used.mesh()
    assert known is not None
    leaves = (x.value if isinstance(x, Assigned) else x for x in flatten(tree)[0])
    return next((x for x in leaves if known.over(x)), None)


def laid_out_like(x: Tensor, like: Tensor, /) -> Tensor:
    """A plain tensor laid out as one over a mesh, so that the two can meet in a backward pass."""
    known = used.mesh()
    if known is None or not known.over(like) or known.over(x):
        return x
    from fluxlike.placement.mesh import transforms

    return transforms.laid_out_like(x, like)


def zeros_like(y: Tensor, /) -> Tensor:
    """Zeros laid out as a tensor over a mesh is, whole where a sum is pending."""
    return laid_out_like(torch.zeros(y.shape, dtype=y.dtype, device=y.device), y)


def placed_as(grads: Any, args: Sequence[Any], argnums: int | Sequence[int], /) -> Any:
    """Trees of the differentiated arguments, laid out as these are."""
    known = used.mesh()
    if known is None:
        return grads
    numbers, single = argument_numbers(argnums, len(args))
    leaves, treedef = flatten(grads)
    like = flatten(args[numbers[0]] if single else tuple(args[n] for n in numbers))[0]
    return treedef.unflatten(known.placed_as(leaves, like))


def placed_like(x: Tensor, like: Tensor, /) -> Tensor:
    """A derivative over a mesh, laid out as what it is the derivative of."""
    from fluxlike.placement.mesh import transforms

    return transforms.placed_like(x, like)
