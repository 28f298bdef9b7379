"""`pullback`: the value of a function, and its derivative transposed, as a function to call later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import functorch
from fluxlike.placement.mesh import used
from fluxlike.scope.key import Key
from fluxlike.scope.seeded import Draws, enter, leave
from fluxlike.transforms.engine.called import Called
from fluxlike.transforms.engine.motors import Afterwards, one_deeper, open_motor
from fluxlike.transforms.engine.output import Output

__all__ = ["Pulled", "pullback"]


def pullback(
    f: Callable[..., Any], /, *args: Any, argnums: int | Sequence[int] = 0, key: Key | None = None
) -> tuple[Any, Callable[[Any], Any]]:
    """The value of ``f(*args)``, and the function that pulls a cotangent of it back to the arguments.

    ``back(c)`` is what `gradient` would be of the sum of ``c * f(*args)``: the Jacobian, transposed, times
    `c`. It may be called several times, and keeps the graph of the forward pass alive until it is
    forgotten. While `f` runs, layers of the differentiated arguments are in train mode.

    Args:
        f: returns any tree that holds floating or complex tensors.
        args: as in `gradient`.
        argnums: as in `gradient`. (default: 0)
        key: as in `gradient`. (default: the key in scope)

    Returns:
        ``(value, back)``: what `f` returned, without a graph unless another transform surrounds the call,
        and a function of one tree in its structure. None stands in it for any part of the output that is
        not used, a number for a 0-d tensor; what stands at constants and integers is not read. `back` gives
        what `gradient` gives: a tree, or a tuple for a tuple of `argnums`, with None at parameters that are
        not reached, the total of a tied one at its first place, and `Assigned` at buffers that moved. It
        is differentiable inside another transform, by the cotangent too.

    Raises:
        ValueError: `f` returns no floating tensor, the argument holds no parameter or `f` changes one in
            place; from `back`, a cotangent of another structure, shape, dtype or device.
        TypeError: as `gradient`; from `back`, a cotangent that is no tensor.
        RuntimeError: called under ``torch.inference_mode``; or `back` was called after the end of the
            transform that surrounds `pullback`, or mapped by `vmap` although the arguments are over a mesh.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = {"w": torch.tensor([1.0, 2.0]), "unused": torch.zeros(3)}
        >>> value, back = fl.pullback(lambda m, x: m["w"] * x, model, torch.tensor([3.0, 4.0]))
        >>> value
        tensor([3., 8.])
        >>> back(torch.tensor([1.0, 0.0]))
        {'w': tensor([3., 0.]), 'unused': None}
    """
    token = None if key is None else enter(Draws.of(key, "pullback"))
    try:
        pulled = Pulled("pullback", f, args, argnums, train=True)
    finally:
        if token is not None:
            leave(token)

    def back(cotangent: Any, /) -> Any:
        known = used.mesh()
        if known is not None and functorch.active() and any(map(known.over, pulled.call.handles)):
            raise RuntimeError(
                "pullback: back of tensors over a mesh can't be mapped by vmap; call back once for each "
                "cotangent, or write jacobian for all of them"
            )
        closer = Afterwards()
        grads = pulled.pull(pulled.output.cotangents(cotangent), create_graph=closer.differentiable)
        return pulled.call.trees(grads, closer)

    return pulled.value, back


class Pulled:
    """A forward pass that is kept, to pull cotangents back through it.

    Args:
        name: the transform, for errors.
        f: the function.
        args: its arguments.
        argnums: which of them to differentiate.
        train: whether layers of these are in train mode. (default: False, as around the call)
        may_be_constant: whether `f` may return no tensor that has a derivative. (default: False)
        mapped: whether many cotangents are pulled back at once, by vmap. (default: False)

    Attributes:
        call: the call, with its arguments opened.
        output: what the function returned, at the level of the motor.
        value: the same, as the caller may have it.
    """

    def __init__(
        self,
        name: str,
        f: Callable[..., Any],
        args: Sequence[Any],
        argnums: int | Sequence[int],
        *,
        train: bool = False,
        may_be_constant: bool = False,
        mapped: bool = False,
    ) -> None:
        self.call = Called(name, f, args, argnums)
        with open_motor() as motor, one_deeper() if mapped else nullcontext():
            self.call.open(motor)
            value = self.call.run_in_train_mode() if train else self.call.run()
            self.call.check()
            self.output = Output(name, value, may_be_constant=may_be_constant)
            self.value = self.output.closed(motor.close)

    def pull(
        self,
        cotangents: Sequence[Tensor | None],
        *,
        create_graph: bool,
        handles: Sequence[Tensor] | None = None,
    ) -> Sequence[Tensor | None]:
        """The cotangent of each handle, None for one that is not reached.

        Args:
            cotangents: one for each tensor of the output, None for zero.
            create_graph: whether what comes out is to be differentiated.
            handles: those that are wanted. (default: all)
        """
        handles = self.call.handles if handles is None else handles
        pairs = zip(self.output.tensors, cotangents, strict=True)
        wanted = [(y, c) for y, c in pairs if c is not None and y.requires_grad]
        if not wanted:
            return [None] * len(handles)
        outputs, given = zip(*wanted, strict=True)
        try:
            grads = torch.autograd.grad(
                outputs, handles, given, retain_graph=True, create_graph=create_graph, allow_unused=True
            )
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error):
                raise
            raise RuntimeError(
                "back was called after the transform that surrounded pullback had come to its end, and its "
                "graph is gone; call back inside, or take pullback outside too"
            ) from error
        known = used.mesh()
        return grads if known is None else known.placed_as(grads, handles)
