"""`pushforward`: forward mode on trees."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fluxlike._private import functorch
from fluxlike.placement.mesh import used
from fluxlike.transforms.engine import over_mesh
from fluxlike.transforms.engine.called import Called
from fluxlike.transforms.engine.motors import Afterwards, differentiated, one_deeper, open_motor
from fluxlike.transforms.engine.output import Output, leaves_or_none
from fluxlike.trees.structure import flatten, structure_of
from fluxlike.trees.trainables import parameters

__all__ = ["Directions", "directions", "push", "pushforward"]


def pushforward(
    f: Callable[..., Any], /, *args: Any, v: Any, argnums: int | Sequence[int] = 0
) -> tuple[Any, Any]:
    """The value of ``f(*args)``, and its derivative in the direction `v`: the Jacobian times `v`.

    Forward mode computes the derivative along with the value, in one run of `f` and without keeping
    anything, so it takes the direction right away, where `pullback` returns a function; ``vmap`` over `v`
    pushes several directions at once. The mode, train or test, is that of the scope around the call. Where
    the argument is over a mesh, two passes of reverse mode compute the same.

    Args:
        f: returns any tree that holds floating or complex tensors.
        args: as in `gradient`.
        v: a tree with the structure of the argument, or a tuple of trees for a tuple of `argnums`. None
            stands for zero at any part of it; a tied parameter has its tangent at the first place, and
            the same or None at the others; a float argument has a number. What stands at buffers and
            constants is not read.
        argnums: as in `gradient`. (default: 0)

    Returns:
        ``(value, tangent)``: what `f` returned, and a tree of its structure with the tangents of its
        tensors; None at what `v` does not reach, at integers and at constants.

    Raises:
        ValueError: `v` has another structure, shape, dtype or device than the argument, two tangents for
            a tied parameter, or none at all; otherwise as `pullback`.
        TypeError: as `pullback`.
        NotImplementedError: torch has no forward mode for an operation in `f`. It names the operation.
        RuntimeError: as `pullback`.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = {"w": torch.tensor([1.0, 2.0]), "name": "squares"}
        >>> v = {"w": torch.tensor([1.0, 0.5]), "name": None}
        >>> fl.pushforward(lambda m: (m["w"] ** 2, m["name"]), model, v=v)
        ((tensor([1., 4.]), 'squares'), (tensor([2., 2.]), None))
    """
    call = Called("pushforward", f, args, argnums)
    along = directions("pushforward", call, v)
    if not any(along):
        raise ValueError(
            "pushforward: v holds no tangent of a parameter; give a tensor for at least one, or call the "
            "function without pushforward"
        )
    closer = Afterwards()
    output, tangents = push("pushforward", call, along)
    return output.closed(closer.close), output.tree(
        [None if t is None else closer.close(t) for t in tangents]
    )


#: For each argument, the parameters that move, by id, each with its tangent.
Directions = list[dict[int, tuple[Tensor, Tensor]]]


def directions(name: str, call: Called, v: Any) -> Directions:
    """The tangents in `v`, which the user gave for the differentiated arguments of a call.

    Raises:
        ValueError: a structure, shape, dtype or device differs, or a tied parameter has two tangents.
        TypeError: something stands in the place of a tangent that is none.
    """
    trees = (v,) if call.single else v
    if not isinstance(trees, (tuple, list)) or len(trees) != len(call.numbers):
        raise ValueError(
            f"{name}: v is a {type(v).__name__}; for {len(call.numbers)} argnums give a tuple of "
            f"{len(call.numbers)}, with None for an argument that does not move"
        )
    pairs = zip(call.numbers, call.differentiated, trees, strict=True)
    return [_directions(name, tree, one, n) for n, tree, one in pairs]


def _directions(name: str, tree: Any, v: Any, number: int) -> dict[int, tuple[Tensor, Tensor]]:
    leaves, treedef = flatten(tree)
    structure = structure_of(treedef)
    trained = parameters(leaves, structure.trainable).number
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for i, (x, t) in enumerate(
        zip(leaves, leaves_or_none(treedef, v, name="v", like=f"argument {number}"), strict=True)
    ):
        if t is None or id(x) not in trained:
            continue
        where = f"{name}: {structure.paths[i] or 'the whole'} of v"
        t = _tangent(where, x, t)
        if id(x) in found and found[id(x)][1] is not t:
            raise ValueError(
                f"{where} is a second tangent of a tied parameter; put the tangent at its first place, and "
                "the same tensor or None at the others"
            )
        found[id(x)] = x, t
    return found


def _tangent(where: str, x: Tensor, t: Any) -> Tensor:
    if isinstance(t, (int, float)) and x.ndim == 0:
        return torch.full_like(x, t)
    if not isinstance(t, Tensor):
        raise TypeError(f"{where} is {t!r}; give a tensor of shape {tuple(x.shape)}, or None for zero")
    if t.shape != x.shape:
        raise ValueError(
            f"{where} has the shape {tuple(t.shape)}, the argument {tuple(x.shape)}; nothing is broadcast"
        )
    if t.dtype != x.dtype or t.device != x.device:
        raise ValueError(
            f"{where} is of {t.dtype} on {t.device}, the argument of {x.dtype} on {x.device}; write t.to(x)"
        )
    return over_mesh.laid_out_like(t, x)


def push(name: str, call: Called, along: Directions) -> tuple[Output, list[Tensor | None]]:
    """What the function returns, and the tangent of each of its tensors, None where there is none."""
    known = used.mesh()
    if known is not None and any(known.over(x) for x, _ in call.parameters):
        return _by_two_reverse_passes(name, call, along)
    moved = [pair for one in along for pair in one.values()]
    result: list[tuple[Output, list[Tensor | None]]] = []

    def run(*duals: Tensor) -> list[Tensor]:
        level, left = functorch.level(), iter(duals)
        call.open(*[_Forward(level, {key: next(left) for key in one}) for one in along])
        value = call.run(record=False)
        call.check()
        output = Output(name, value)
        tangents = [forward_ad.unpack_dual(y).tangent for y in output.tensors]
        result.append(
            (
                Output(
                    name, output.closed(lambda x: functorch.unwrap(forward_ad.unpack_dual(x).primal, level))
                ),
                [None if t is None else functorch.unwrap(t, level) for t in tangents],
            )
        )
        return output.tensors

    try:
        with _alone(), over_mesh.of_closures():
            functorch.jvp(run, tuple(x for x, _ in moved), tuple(t for _, t in moved))
    except NotImplementedError as error:
        _explain(name, error)
        raise
    return result[0]


def _by_two_reverse_passes(name: str, call: Called, along: Directions) -> tuple[Output, list[Tensor | None]]:
    """The same for tensors over a mesh, which have no forward mode.

    A pullback is linear in the cotangent, and its own pullback is the derivative.
    """
    tangents = [along[number].get(id(x), (x, None))[1] for x, number in call.parameters]
    differentiable = differentiated() and torch.is_grad_enabled()
    with open_motor() as motor, one_deeper():
        call.open(motor)
        value = call.run()
        call.check()
        output = Output(name, value)
        outputs = {k: y for k, y in enumerate(output.tensors) if y.requires_grad}
        moving = [(x, t) for x, t in zip(call.handles, tangents, strict=True) if t is not None]
        cotangents = [over_mesh.zeros_like(y).requires_grad_() for y in outputs.values()]
        grads = _derived(list(outputs.values()), [x for x, _ in moving], cotangents, create_graph=True)
        pairs = [(g, t) for g, (_, t) in zip(grads, moving, strict=True) if g is not None and g.requires_grad]
        found = _derived(
            [g for g, _ in pairs], cotangents, [t for _, t in pairs], create_graph=differentiable
        )
        result: list[Tensor | None] = [None] * len(output.tensors)
        for (k, y), t in zip(outputs.items(), found, strict=True):
            result[k] = None if t is None else over_mesh.placed_like(t, y)
        return Output(name, output.closed(motor.close)), result


def _derived(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], given: Sequence[Tensor], *, create_graph: bool
) -> Sequence[Tensor | None]:
    """`torch.autograd.grad`, which is asked nothing where there is nothing."""
    if not outputs or not inputs:
        return [None] * len(inputs)
    return torch.autograd.grad(
        outputs, inputs, given, retain_graph=True, create_graph=create_graph, allow_unused=True
    )


class _Forward:
    """The motor of forward mode: handles carry tangents."""

    concrete = False

    def __init__(self, level: int, duals: Mapping[int, Tensor]) -> None:
        self._level, self._duals = level, duals

    def handle(self, x: Tensor, /) -> Tensor:
        dual = self._duals.get(id(x))
        return self.alias(x) if dual is None else dual

    def alias(self, x: Tensor, /) -> Tensor:
        return functorch.wrap(x, self._level)

    def constant(self, x: Tensor, /) -> Tensor:
        return x

    def gradients(self, loss: Tensor, handles: Sequence[Tensor], /) -> NoReturn:
        raise AssertionError("forward mode has no gradients")

    def close(self, x: Tensor, /) -> Tensor:
        return functorch.unwrap(x, self._level)


# The tangents of torch's forward mode are those of the whole process, so threads take turns.
_turn = threading.RLock()
_has_turn: ContextVar[bool] = ContextVar("fluxlike_has_turn", default=False)


@contextmanager
def _alone() -> Iterator[None]:
    if _has_turn.get():  # also in a recomputation, which may be on another thread than its forward pass
        yield
        return
    with _turn:
        token = _has_turn.set(True)
        try:
            yield
        finally:
            _has_turn.reset(token)


def _explain(name: str, error: NotImplementedError) -> None:
    """Name the operation that has no forward mode, and a way around it."""
    words = str(error).partition("forward AD with ")[2].split()
    if words:
        raise NotImplementedError(
            f"{name}: torch has no forward mode for {words[0]}. Two reverse passes give the same: write "
            "value, back = pullback(f, x); _, again = pullback(back, zeros_like(value)); tangent = again(v). "
            "Of attention, torch.nn.attention.sdpa_kernel(SDPBackend.MATH) chooses a kernel that has it"
        ) from error
