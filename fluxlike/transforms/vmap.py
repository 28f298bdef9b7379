"""`vmap`: a function of one member, over all members at once, on trees with constants in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NoReturn

import optree
import torch
from torch import Tensor

from fluxlike._private import functorch
from fluxlike._private.tracing import tracing
from fluxlike.advice import teaching_function
from fluxlike.scope import seeded
from fluxlike.scope.key import Key
from fluxlike.transforms.asked_values import explain_in_vmap
from fluxlike.transforms.axes import Inputs, spread, tensor_in
from fluxlike.transforms.engine import over_mesh
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import Structure, flatten, structure_of

__all__ = ["Randomness", "vmap"]

Randomness = Literal["error", "different", "same"]


@teaching_function
def vmap(
    f: Callable[..., Any],
    /,
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: Randomness = "error",
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """Map a function over an axis of its arguments, all members at once.

    ``vmap(f)(xs)`` is the stack of ``f(x)`` for every x of xs. The function runs once, with tensors that
    lack the axis. Functions, None, strings and numbers, in arguments and in results, are the same
    for all members, and go through unchanged. Ties stay ties; a layer's `assign` gives every member
    its own buffers. It goes on in the mode of the scope around it. It composes with `gradient` and with
    itself, either way round.

    Over a mesh, the ranks share the members as they share any tensor that is mapped: `f` runs on plain
    tensors, of this rank's members and of the whole of what members share, and the results are divided by
    their members.

    Args:
        f: a function of trees.
        in_dims: the axis of each argument that is mapped, None for one that all members share: one for
            all arguments, or a tuple with one for each. In the place of an argument that is a tree, a
            prefix of it will do: a node of its kind with an axis, None or prefix for each child.
            (default: 0)
        out_dims: where the axis is in what `f` returns, or a prefix of it. A tensor that is the same for
            all members is expanded; None says that it is to come out as it is. (default: 0)
        randomness: what draws do: ``"different"``, member i draws from the scope's key folded by i;
            ``"same"``, all draw the same; ``"error"``. Without a key, torch's generator draws so.
            (default: "error")
        chunk_size: the number of members computed at once, to save memory; the results are the same.
            (default: all)

    Returns:
        A function of the same arguments. Keyword arguments are shared by all members.

    Raises:
        TypeError: `f` is no function.
        ValueError: another `randomness` or `chunk_size`; from the call, no mapped tensor, axes of several
            sizes, a prefix that does not fit. It names the place.

    Example:
        >>> import torch, fluxlike as fl
        >>> models = [fl.Dense(3, 2, fl.relu) for _ in range(5)]
        >>> x = torch.randn(4, 3)
        >>> fl.vmap(lambda m, x: m(x), in_dims=(0, None))(fl.stack(models), x).shape
        torch.Size([5, 4, 2])
        >>> fl.vmap(lambda d: {"double": 2 * d["x"], "name": d["name"]})({"x": torch.arange(3), "name": "x"})
        {'double': tensor([0, 2, 4]), 'name': 'x'}
    """
    if not callable(f):
        raise TypeError(
            f"vmap takes a function, found a {type(f).__name__}; write vmap(f)(x), not vmap(f(x))"
        )
    if randomness not in ("error", "different", "same"):
        raise ValueError(f"randomness={randomness!r}: write 'error', 'different' or 'same'")
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise ValueError(f"chunk_size={chunk_size!r}: write a whole number of at least 1, or None")

    def mapped(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = over_mesh.plain((args, kwargs))
        inputs = Inputs(args, in_dims)
        region = over_mesh.of_members((args, kwargs), inputs.tensors, inputs.axes)
        if region is None:
            return run(inputs, kwargs, over_mesh.Region(None))
        kwargs = region.plain(kwargs)
        with region:
            return run(inputs, kwargs, region)

    def run(inputs: Inputs, kwargs: dict[str, Any], region: over_mesh.Region) -> Any:
        tensors = [region.part(x, axis) for x, axis in zip(inputs.tensors, inputs.axes, strict=True)]
        inputs.put_shared(region.whole)
        outputs, keyed = _Outputs(out_dims, region), _Keyed(randomness, region, inputs.size)

        def member(number: Tensor, *tensors: Tensor) -> list[Tensor]:
            with keyed.member(number):
                return outputs.take(f(*inputs.with_(tensors), **kwargs))

        # Of no members, no chunk can be made.
        chunk = chunk_size if inputs.size else None
        at_once = torch.func.vmap(member, (0, *inputs.axes), randomness=randomness, chunk_size=chunk)
        try:
            with keyed.unkeyed():
                found = at_once(keyed.numbers, *tensors)
        except Exception as error:
            if isinstance(error, RuntimeError) and "random operation while in randomness error" in str(error):
                raise RuntimeError(_UNSAID) from error
            explain_in_vmap(error)
            inputs.note(error)
            raise
        return outputs.result(found)

    return mapped


class _Keyed:
    """The draws of the members, where a key is in scope.

    Attributes:
        numbers: that of each member.
    """

    def __init__(self, randomness: Randomness, region: over_mesh.Region, size: int) -> None:
        self._draws, self._randomness, self._region = seeded.active(), randomness, region
        if self._draws is None and randomness == "different" and region.divides and tracing():
            self._draws = seeded.Draws(Key(0)).blocked(_TRACED)
        self._mark = 0 if self._draws is None else self._draws.mark()
        device = None if self._draws is None else self._draws.key.data.device
        numbers = region.numbers(size)
        self.numbers = torch.arange(numbers.start, numbers.stop, device=device)

    def unkeyed(self) -> AbstractContextManager[None]:
        """What the members run in, for draws from torch's generators."""
        if self._draws is None and self._randomness == "different":
            return self._region.drawing()
        return nullcontext()

    @contextmanager
    def member(self, number: Tensor) -> Iterator[None]:
        """Put the draws of a member, or of a chunk of them, in scope."""
        draws = self._draws
        if draws is None:
            yield
            return
        draws.rewind(self._mark)  # every chunk draws as if it were alone
        if self._randomness == "different":
            draws = draws.folded(number)
        elif self._randomness == "error":
            draws = draws.blocked(_BLOCKED)
        token = seeded.enter(draws)
        try:
            yield
        finally:
            seeded.leave(token)


_UNSAID = (
    "a random draw inside vmap: write vmap(…, randomness='different') for one of its own for each member, or "
    "'same' for one for all; or put a key for each member in scope inside, with seeded(key)"
)

_BLOCKED = (
    "a random draw inside vmap, from the key in scope outside: write vmap(…, randomness='different') for one "
    "of each member's own, or 'same' for one for all; or give each member its key, as an argument"
)


_TRACED = (
    "a compiled vmap over a mesh draws from a key, since torch's own draws would be the same for the members "
    "of every rank: put one in scope, with seeded(key), or give each member its key, as an argument"
)


class _Outputs:
    """What the function returned: constants as they are, and the place of every tensor."""

    def __init__(self, out_dims: Any, region: over_mesh.Region) -> None:
        self._out_dims, self._region = out_dims, region
        self._treedef: optree.PyTreeSpec | None = None

    def take(self, value: Any) -> list[Tensor]:
        """Note what was returned, and give the tensors that get the axis, each once."""
        leaves, treedef = flatten(value)
        structure = structure_of(treedef)
        axes = spread(self._out_dims, value, option="out_dims", of="what the function returned")
        mapped: list[Tensor] = []
        known: dict[tuple[int, int], int] = {}
        slots: dict[int, tuple[int, int]] = {}
        shares: list[int] = []  # the places of tensors without the axis
        outer = functorch.level() - 1
        for i, (leaf, axis) in enumerate(zip(leaves, axes, strict=True)):
            x = tensor_in(leaf)
            if x is None:
                continue
            x = self._region.whole(x)
            if axis is None:
                shared = functorch.at_level(x, outer)
                if shared is None:
                    self._report_batched(structure, i)
                leaves[i] = Assigned(shared) if isinstance(leaf, Assigned) else shared
                shares.append(i)
                continue
            if not -x.ndim - 1 <= axis <= x.ndim:
                self._report_axis(structure, i, x, axis)
            axis %= x.ndim + 1
            if (id(x), axis) not in known:
                known[id(x), axis] = len(mapped)
                mapped.append(x)
            slots[i] = known[id(x), axis], axis
        if self._treedef is None:  # of several chunks the first
            self._leaves, self._treedef, self._slots, self._shares = leaves, treedef, slots, shares
        return mapped

    def result(self, tensors: Sequence[Tensor]) -> Any:
        """What `vmap` returns, of the tensors with the axis in front."""
        assert self._treedef is not None
        made: dict[Any, Tensor] = {}  # each tensor once, so that ties stay ties
        for i, (k, axis) in self._slots.items():
            if (k, axis) not in made:
                x = tensors[k].movedim(0, axis) if axis else tensors[k]
                made[k, axis] = self._region.joined(x, axis)
            self._put(i, made[k, axis])
        for i in self._shares:
            x = self._leaves[i]
            x = x.value if isinstance(x, Assigned) else x
            if id(x) not in made:
                made[id(x)] = self._region.joined(x, None)
            self._put(i, made[id(x)])
        return self._treedef.unflatten(self._leaves)

    def _put(self, i: int, x: Tensor) -> None:
        self._leaves[i] = Assigned(x) if isinstance(self._leaves[i], Assigned) else x

    def _report_batched(self, structure: Structure, i: int) -> NoReturn:
        raise ValueError(
            f"vmap: {_place(structure, i)} of what the function returned differs from member to member, but "
            "out_dims gives None for it; give it an axis, or reduce it over the members after vmap"
        )

    def _report_axis(self, structure: Structure, i: int, x: Tensor, axis: int) -> NoReturn:
        raise ValueError(
            f"vmap: {_place(structure, i)} of what the function returned is of shape {tuple(x.shape)}, which "
            f"has no place {axis} for the axis; write 0 to {x.ndim} in out_dims"
        )


def _place(structure: Structure, i: int) -> str:
    return structure.paths[i] or "the whole"
