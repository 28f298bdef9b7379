"""`jit`: a whole function of trees as one compiled graph."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, overload

import torch
from torch import Tensor

from fluxlike._private import functorch, tracing
from fluxlike.advice import teaching_function
from fluxlike.scope import assigned, mode, seeded
from fluxlike.scope.autocast import autocast_dtypes
from fluxlike.transforms.engine.motors import enclosed
from fluxlike.transforms.jit.arguments import Arguments
from fluxlike.transforms.jit.cache import Cache
from fluxlike.transforms.jit.call import Signature, pins
from fluxlike.transforms.jit.over_mesh import OfParts, Places, joined, parted
from fluxlike.transforms.jit.record import record
from fluxlike.transforms.jit.trace import Taken, Trace
from fluxlike.trees.structure import flatten
from fluxlike.trees.values import is_lent

__all__ = ["CacheInfo", "Jitted", "Lowered", "jit", "surrounded"]

Names = int | str | Sequence[int | str]
P = ParamSpec("P")
R = TypeVar("R")

_compiling = threading.RLock()  # the compiler's options are those of the whole process


class CacheInfo(NamedTuple):
    """What a compiled function has done so far.

    Attributes:
        calls: how often it was called.
        traces: how often it was traced and compiled.
    """

    calls: int
    traces: int


class Lowered(NamedTuple):
    """A trace to look at; ``print(lowered)`` shows it whole.

    Attributes:
        graph: the graph of aten operations, before the compiler changes it.
        captured: the tensors that the function uses without getting them as arguments.
    """

    graph: torch.fx.GraphModule
    captured: list[Tensor]

    def __str__(self) -> str:
        lines = [self.graph.print_readable(print_output=False).strip()]
        for n, x in enumerate(self.captured):
            dtype = str(x.dtype).removeprefix("torch.")
            lines.append(f"captured_{n}: {dtype}{list(x.shape)} on {x.device}, closed over")
        return "\n".join(lines)


@overload
def jit(
    f: Callable[P, R], /, *, donate: Names = (), static: Names = (), dynamic: bool = False
) -> Jitted[P, R]: ...
@overload
def jit(
    f: None = None, /, *, donate: Names = (), static: Names = (), dynamic: bool = False
) -> Callable[[Callable[P, R]], Jitted[P, R]]: ...
@teaching_function
def jit(
    f: Callable[..., Any] | None = None,
    /,
    *,
    donate: Names = (),
    static: Names = (),
    dynamic: bool = False,
) -> Any:
    """Compile a whole function of trees to one graph, for example a train step.

    At its first call the function runs once on stand-ins without values; what it does to tensors, its
    gradients and its update included, is recorded as one graph of flat tensors and compiled by Inductor.
    Later calls of the same kind run the compiled graph. Inside another transform, and inside another
    ``jit``, the function itself runs.

    Inputs of the graph are tensors, numpy arrays, floats among the arguments, and the floats that a
    class declares by ``functor(scalars=…)``, such as the hyperparameters of rules: other values of these
    run the same graph. Inside, a float is a 0-d tensor; one that is handed on comes back as a float, a
    computed one as a 0-d float64 tensor. Other floats, ints, bools, strings and functions are static:
    another value is another trace, as are other shapes, strides, dtypes, devices, ties, structures, and
    another mode, autocast, default dtype or device. The key in scope is an input; without one, what is
    random is drawn anew at each call, and ``torch.manual_seed`` repeats it. Where no C++ compiler is found,
    a warning says so, and the recorded graph runs operation by operation.

    A tensor that `f` closes over is captured, and listed by ``lower``: what is written to it between calls
    is seen, another tensor under its name is not, so a model that is trained is an argument. Results share
    no memory with arguments or with each other; what is handed on is the same object.

    Args:
        f: a pure function of trees, or a layer, whose parameters are inputs then. None gives a decorator.
        donate: the arguments, by number or name, whose memory results may be written over, as
            ``update(…, donate=True)`` does. A result takes the memory of a tensor of its shape and dtype,
            in a tree of the same structure if there is one. Tensors that were written over can't be used any
            more; those that are handed on unchanged can. (default: none)
        static: the arguments, by number or name, that are compared by value, floats too. (default: none)
        dynamic: whether the first sizes of tensors that lie in no object of a class, such as batches, may
            change without another trace. Their other sizes may, once they have changed. (default: False)

    Returns:
        A function with the arguments of `f`, and with ``lower(*args)``, the graph of a call, and
        ``cache_info()``, the number of calls and traces.

    Raises:
        RuntimeError: from a call: a line of `f` asks for the value of a tensor, by ``if`` or ``.item()``, or
            makes a tensor whose shape depends on values, by ``x[x > 0]``; it names the line. Or `f` sets what
            it computed outside of its results, by ``self.model = …`` or ``global``; what was there is put
            back.
        ValueError: `donate` or `static` names no argument; or from a call: `f` changes an argument or a
            tensor that it closes over; or a donated tensor shares memory with another, or lies in memory
            that torch does not own.
        TypeError: `f` is no function; or from a call: a static argument holds a tensor, or `f` returns a
            function that closes over what it computed.

    Warns:
        UserWarning: eight traces were made because one value changed; it names its path.

    Example:
        >>> import torch, fluxlike as fl
        >>> @fl.jit(donate=(0, 1))
        ... def step(model, state, x, y):
        ...     loss = lambda m: (m(x) - y).square().mean()
        ...     value, grads = fl.withgradient(loss, model)
        ...     model, state = fl.update(state, model, grads)
        ...     return model, state, value
        >>> model = fl.Chain(fl.Dense(3, 8, fl.tanh), fl.Dense(8, 1))
        >>> state = fl.setup(fl.Adam(1e-2), model)
        >>> for _ in range(3):
        ...     model, state, value = step(model, state, torch.ones(4, 3), torch.ones(4, 1))
        >>> step.cache_info()
        CacheInfo(calls=3, traces=1)
    """
    if f is None:
        return functools.partial(jit, donate=donate, static=static, dynamic=dynamic)
    if not callable(f):
        raise TypeError(f"jit takes a function, found {type(f).__name__} {f!r}; write jit(step)(…)")
    return Jitted(f, donate=donate, static=static, dynamic=dynamic)


class Jitted(Generic[P, R]):
    """A function that `jit` compiles, once for each kind of call.

    Args:
        f: as in `jit`.
        donate: as in `jit`. (default: none)
        static: as in `jit`. (default: none)
        dynamic: as in `jit`. (default: False)
        frozen: whether tensors that `f` closes over are constants: what follows from them alone is computed
            once, and what is written to them later is not seen. (default: False)
    """

    def __init__(
        self,
        f: Callable[P, R],
        *,
        donate: Names = (),
        static: Names = (),
        dynamic: bool = False,
        frozen: bool = False,
    ) -> None:
        functools.update_wrapper(self, f, updated=())
        self._f, self._dynamic, self._frozen = f, dynamic, frozen
        self._arguments = Arguments(f, donate=donate, static=static)
        self._calls = 0
        if frozen:
            cache = Cache(f"inference({f.__qualname__})", "pad to one size")
        else:
            cache = Cache(repr(self), "write jit(…, dynamic=True) for sizes that change, or pad to one size")
        # Behind a function: what a trace keeps is no part of a model that the compiled function stands in.
        self._get_cache = lambda: cache

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        self._calls += 1
        if surrounded():
            return self._f(*args, **kwargs)
        tree, static = self._arguments.split(args, kwargs)
        leaves, treedef = flatten(tree)
        if self._arguments.donates and any(isinstance(x, Tensor) and is_lent(x) for x in leaves):
            leaves = _owned(leaves, self._arguments.donated(tree, args, kwargs))
        settings = (*_settings(), pins(leaves, treedef), *static)
        over = parted(leaves)
        if over is not None:
            return self._over_mesh(leaves, treedef, settings, over, args, kwargs)
        found = self._get_cache().find(leaves, treedef, settings)
        if found is None and not _differentiated(leaves):
            donated = self._arguments.donated(tree, args, kwargs)
            found = self._traced(leaves, treedef, settings, self._arguments.call(static), donated)
        if found is None or found[0].differentiated:
            return self._f(*args, **kwargs)
        trace, taken = found
        return trace(leaves, taken)

    def _over_mesh(
        self,
        leaves: Sequence[Any],
        treedef: Any,
        settings: tuple[Any, ...],
        over: tuple[list[Any], Places],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A call with tensors over a mesh: the graph is of the parts that this rank holds."""
        parts, places = over
        settings = (*settings, places)
        found = self._get_cache().find(parts, treedef, settings)
        if found is None and not _differentiated(leaves):
            tree, static = self._arguments.split(args, kwargs)
            donated = self._arguments.donated(tree, args, kwargs)
            call = OfParts(self._arguments.call(static), places)
            found = self._traced(parts, treedef, settings, call, donated)
        if found is None or found[0].differentiated:
            return self._f(*args, **kwargs)
        trace, taken = found
        assert isinstance(trace.call, OfParts)
        result, treedef = flatten(trace(parts, taken))
        return treedef.unflatten(joined(result, trace.call.results, leaves))

    def _traced(
        self,
        leaves: Sequence[Any],
        treedef: Any,
        settings: tuple[Any, ...],
        call: Callable[[Any], Any],
        donated: Sequence[bool] | None,
    ) -> tuple[Trace, Taken]:
        """A new trace for a call, and its inputs."""
        cache = self._get_cache()
        with _compiling:
            found = cache.find(leaves, treedef, settings)  # another thread may have made one
            if found is None:
                signature = self._signature(leaves, treedef)
                cache.add(Trace(call, signature, leaves, settings, donated, frozen=self._frozen))
                found = cache.find(leaves, treedef, settings)
        assert found is not None
        return found

    def _signature(self, leaves: Sequence[Any], treedef: Any) -> Signature:
        seen = self._get_cache().signatures() if self._dynamic else []
        return Signature(leaves, treedef, self._arguments.label, dynamic=self._dynamic, seen=seen)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __repr__(self) -> str:
        return f"jit({getattr(self._f, '__qualname__', type(self._f).__qualname__)})"

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """The graph of a call with these arguments, without compiling or running it.

        Args:
            args: as in a call.
            kwargs: as in a call.

        Returns:
            The graph, and the tensors that it captured; its text shows both.

        Example:
            >>> import torch, fluxlike as fl
            >>> shift = torch.ones(3)
            >>> lowered = fl.jit(lambda x: x.sin() + shift).lower(torch.zeros(3))
            >>> [n.name for n in lowered.graph.graph.nodes], lowered.captured
            (['arg0_1', 'captured_0', 'sin', 'add', 'output'], [tensor([1., 1., 1.])])
        """
        tree, static = self._arguments.split(args, kwargs)
        leaves, treedef = flatten(tree)
        signature = self._signature(leaves, treedef)
        with _compiling:
            noted = record(
                self._arguments.call(static), signature, signature.stand_ins(leaves), seeded.active()
            )
        return Lowered(noted.graph.module, noted.graph.captured)

    def cache_info(self) -> CacheInfo:
        """How often the function was called and traced.

        Example:
            >>> import torch, fluxlike as fl
            >>> double = fl.jit(lambda x: 2 * x)
            >>> double(torch.ones(3)), double(torch.zeros(3))
            (tensor([2., 2., 2.]), tensor([0., 0., 0.]))
            >>> double.cache_info()
            CacheInfo(calls=2, traces=1)
        """
        return CacheInfo(self._calls, len(self._get_cache().traces))


def surrounded() -> bool:
    """Whether something around the call has to see the source run: a transform, or what watches it."""
    return (
        enclosed()
        or functorch.in_forward_mode()
        or tracing.tracing()
        or tracing.watched()
        or assigned.inside()
    )


def _settings() -> tuple[Any, ...]:
    """What a trace depends on beside its arguments."""
    draws = seeded.active()
    return (
        *mode.state(),
        None if draws is None else draws.key.data.device,
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        tracing.default_device(),
        autocast_dtypes(),
    )


def _owned(leaves: Sequence[Any], donated: Sequence[bool] | None) -> list[Any]:
    """The leaves with copies of those that are donated and whose memory is somebody else's."""
    if donated is None:
        return list(leaves)
    copies: dict[int, Tensor] = {}
    for x, given in zip(leaves, donated, strict=True):
        if given and isinstance(x, Tensor) and is_lent(x) and id(x) not in copies:
            copies[id(x)] = x.detach().clone()
    return [copies.get(id(x), x) for x in leaves]


def _differentiated(leaves: Sequence[Any]) -> bool:
    """Whether autograd records what happens to an argument, so that the source has to run."""
    return torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad and x.grad_fn is not None for x in leaves
    )
