"""`checkpoint`: forget what a function computed, and compute it again in the backward pass.

Outside functorch the graph is that of the function itself, whose saved tensors are dropped and computed
anew when the backward pass asks for one; so values and gradients of any order are the same bits, and it
does not matter how a tensor gets into the function. Inside functorch, where autograd has no such hooks,
the function is one node whose backward pass runs it again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from fluxlike._private import autograd, functorch
from fluxlike.placement.mesh import used
from fluxlike.transforms.custom import keep_nothing
from fluxlike.transforms.engine.captured import Finding, Replacing
from fluxlike.transforms.engine.link import link
from fluxlike.transforms.engine.motors import at_depth, open_motor
from fluxlike.transforms.engine.rerun import Rerun
from fluxlike.transforms.engine.template import Template
from fluxlike.trees.functor import functor
from fluxlike.trees.leaves import can_train

__all__ = ["Checkpoint", "checkpoint"]


def checkpoint(f: Callable[..., Any], /) -> Checkpoint:
    """A function or layer that keeps nothing for the backward pass but its arguments, and runs again there.

    This trades time, one more forward pass, for memory. Of n layers in a row, put about √n of them into one
    checkpoint each time: then memory grows with √n. The second run is in the scope of the first: in the same
    mode, with the same draws and autocast; it assigns nothing. Values, gradients, and gradients of
    gradients are those of `f`, under every transform.

    Args:
        f: a layer, or any function. It must compute the same when it runs again, so it may not depend on
            what changes in between. What it closes over is differentiated as ever. Inside, fluxlike's
            transforms work, ``torch.func.grad`` and its kin do not.

    Returns:
        A functor that holds `f` as its child ``f`` and calls it, so a checkpointed layer may stand in a
        Chain.

    Raises:
        TypeError: `f` is no function.
        RuntimeError: from the backward pass: the second run did something else than the first.

    Example:
        >>> import torch, fluxlike as fl
        >>> layers = [fl.Dense(8, 8, fl.tanh) for _ in range(9)]
        >>> model = fl.Chain(*[fl.checkpoint(fl.Chain(*layers[i : i + 3])) for i in (0, 3, 6)])
        >>> x = torch.randn(4, 8)
        >>> grads = fl.gradient(lambda m: m(x).sum(), model)
        >>> same = fl.gradient(lambda m: m(x).sum(), fl.Chain(*layers))
        >>> torch.equal(grads.layers[1].f.layers[0].weight, same.layers[3].weight)
        True
    """
    if not callable(f):
        raise TypeError(
            f"checkpoint takes a function or a layer, found a {type(f).__name__}; write checkpoint(f)(x), "
            "not checkpoint(f(x))"
        )
    return Checkpoint(f)


@functor
class Checkpoint:
    """What `checkpoint` returns.

    Attributes:
        f: the function or layer.
    """

    def __init__(self, f: Callable[..., Any]) -> None:
        self.f = f

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.f(*args, **kwargs)
        run = _recomputed if functorch.in_forward_mode() else _dropped
        try:
            return run(self.f, args, kwargs)
        except Exception as error:
            within = getattr(error, "within", None)  # of a layer inside, whose path starts here
            found = error if within is None else within(".f")
            if found is error:
                raise
            raise found from error.__cause__


def _dropped(f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the function returns, with a graph that drops its saved tensors."""
    template = Template((*args, kwargs), "argument")
    inputs = template.take()
    rerun = Rerun(inputs)
    saved = _Dropped(f, template, rerun, inputs)
    token = keep_nothing.set(True)
    try:
        with saved_tensors_hooks(saved.drop, saved.restore):
            return rerun.first(lambda: f(*args, **kwargs))
    except RuntimeError as error:
        if "support saved tensor hooks" not in str(error):
            raise
        raise RuntimeError(
            "checkpoint: grad, vjp, jacrev and hessian of torch.func can't run inside; use fluxlike's "
            "gradient, pullback, jacobian and hessian there"
        ) from error
    finally:
        keep_nothing.reset(token)


class _Dropped:
    """The saved tensors of one call, computed again when one is asked for."""

    def __init__(
        self, f: Callable[..., Any], template: Template, rerun: Rerun, inputs: Sequence[Tensor]
    ) -> None:
        self._f, self._template, self._rerun = f, template, rerun
        self._require_grad = [x.requires_grad for x in inputs]
        # A node that saves the inputs as autograd does: a checkpoint further out can drop them in its turn,
        # and a change in place is noticed.
        start = torch.empty(0, requires_grad=True)
        self._inputs = _Saved.apply(start, *[x.detach() for x in inputs]).grad_fn
        self._kinds: list[tuple[torch.Size, torch.dtype]] = []
        self._found: dict[int, Tensor] = {}
        self._lock = threading.RLock()  # the backward pass has a thread for each device

    def drop(self, x: Tensor) -> int | Tensor:
        if functorch.level_of(x):  # of a transform inside the function, which ends there
            return functorch.without_graph(x)
        self._kinds.append((x.shape, x.dtype))
        return len(self._kinds) - 1

    def restore(self, dropped: int | Tensor) -> Tensor:
        if isinstance(dropped, Tensor):
            return dropped
        with self._lock:
            if dropped not in self._found:
                self._run_again()
            return self._found.pop(dropped)

    def _run_again(self) -> None:
        kept: list[Tensor] = []

        def keep(x: Tensor) -> int | Tensor:
            if functorch.level_of(x):
                return functorch.without_graph(x)
            kept.append(x.detach())
            return len(kept) - 1

        def give(number: int | Tensor) -> Tensor:
            return number if isinstance(number, Tensor) else kept[number]

        def run() -> None:
            *args, kwargs = self._template.fill(inputs)
            known = used.mesh()
            together = nullcontext() if known is None else known.gathering((), inputs)
            with together, torch.enable_grad(), saved_tensors_hooks(keep, give):
                self._f(*args, **kwargs)

        with functorch.outside():
            pairs = zip(self._inputs.saved_tensors, self._require_grad, strict=True)
            inputs = [x.detach().requires_grad_(requires) for x, requires in pairs]
            self._rerun.again(run, inputs)
        same = [(x.shape, x.dtype) for x in kept[: len(self._kinds)]] == self._kinds
        if not same:
            name = getattr(self._f, "__name__", type(self._f).__name__)
            raise RuntimeError(
                f"checkpoint: {name} did something else when it ran again in the backward pass; it may "
                "depend only on its arguments, on what does not change, and on draws from torch or a key"
            )
        self._found = dict(enumerate(kept))
        autograd.after_backward(self._found.clear)


class _Saved(torch.autograd.Function):
    """A node that holds tensors."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return start.detach()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        raise AssertionError("nothing is computed from this node")


def _recomputed(f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the function returns, as one node of autograd that runs the function again."""
    template = Template((*args, kwargs), "argument")
    inputs = template.take()
    rerun, finding = Rerun(inputs), Finding(inputs)
    with torch.no_grad(), functorch.forward_mode(False):
        out = rerun.first(lambda: f(*args, **kwargs), finding)
    output = Template((out,), "output")
    results = output.take()
    numbers = [slot.number for slot in output.slots if slot.trains]
    found, count = finding.found, len(inputs)

    def again(*tensors: Tensor) -> list[Tensor]:
        *args, kwargs = template.fill(tensors)
        new = {id(old): x for old, x in zip(found, tensors[count:], strict=True)}

        def run() -> Any:
            with at_depth(1):
                return f(*args, **kwargs)

        outputs = Template((rerun.again(run, tensors, Replacing(new) if new else None),), "output").take()
        return [outputs[n] for n in numbers]

    linked = link(_Recomputation(again), [results[n] for n in numbers], [*inputs, *finding.meant])
    for n, y in zip(numbers, linked, strict=True):
        results[n] = y
    return output.fill(results)[0]


class _Recomputation:
    """The `Rule` of a function of tensors: run it, and differentiate that."""

    def __init__(self, run: Callable[..., Sequence[Tensor]]) -> None:
        self._run = run

    def backward(
        self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> list[Tensor | None]:
        differentiable = torch.is_grad_enabled()
        wanted = [i for i, x in enumerate(inputs) if needed[i] and can_train(x)]
        opened = list(inputs)
        with at_depth(1), open_motor() as motor:
            for i in wanted:
                opened[i] = motor.handle(inputs[i])
            with torch.enable_grad():
                outputs = self._run(*opened)
        pairs = zip(outputs, cotangents, strict=True)
        used = [(y, c) for y, c in pairs if c is not None and y.requires_grad]
        result: list[Tensor | None] = [None] * len(inputs)
        if used and wanted:
            ys, cs = zip(*used, strict=True)
            handles = [opened[i] for i in wanted]
            # After the level has closed, so that it does not record the backward pass.
            grads = torch.autograd.grad(ys, handles, cs, create_graph=differentiable, allow_unused=True)
            for i, g in zip(wanted, grads, strict=True):
                result[i] = None if g is None else functorch.unwrap_dead(g)
        return result

    def forward_mode(self, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor]:
        pairs = zip(inputs, tangents, strict=True)
        outputs = self._run(*[x if t is None else forward_ad.make_dual(x, t) for x, t in pairs])
        unpacked = [forward_ad.unpack_dual(y) for y in outputs]
        return [torch.zeros_like(y) if t is None else t for y, t in unpacked]

    def mapped(
        self, randomness: str, axes: Sequence[int | None], output_axes: Sequence[int | None]
    ) -> _Recomputation:
        run = torch.func.vmap(self._run, tuple(axes), randomness=randomness)

        def run_mapped(*inputs: Tensor) -> list[Tensor]:
            pairs = zip(run(*inputs), output_axes, strict=True)
            # An output that is the same for all members is that of the first.
            return [y[0] if axis is None else y.movedim(0, axis) for y, axis in pairs]

        return _Recomputation(run_mapped)
