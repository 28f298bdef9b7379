"""`gradient` and `withgradient`: reverse mode on trees."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fluxlike.scope import assigned, mode
from fluxlike.transforms.argument import Argument
from fluxlike.transforms.motors import Motor, open_motor
from fluxlike.trees.functor import NAMESPACE, spec_of
from fluxlike.trees.places import Where

__all__ = ["gradient", "withgradient"]


def gradient(
    f: Callable[..., Any],
    /,
    *args: Any,
    argnums: int | Sequence[int] = 0,
    wrt: Where | tuple[Where, ...] | None = None,
) -> Any:
    """The gradient of the scalar ``f(*args)`` as a tree of the same structure as the argument.

    Parameters have their gradient, or None where the loss does not reach them; a tied one has the
    total at its first place and None at the others. Buffers that a layer assigned have their new
    value as `Assigned`; everything else is None. While it runs, layers of the differentiated
    arguments are in train mode. Nothing is changed, and no graph is kept: inside another gradient,
    or inside ``torch.func``, the result is differentiable again.

    Args:
        f: returns a real 0-d tensor; or a tuple whose first item is that; or a dict, named tuple
            or dataclass with an entry ``loss``.
        args: trees, tensors, or floats (which get a float); any other objects for constants.
        argnums: which arguments to differentiate; a tuple of numbers gives a tuple of trees.
            (default: 0)
        wrt: places of the one differentiated argument, as in `at`: everything else in it is
            constant, and its backward pass is not computed. (default: the whole argument)

    Returns:
        A tree with the treedef of the argument, or a tuple of trees.

    Raises:
        ValueError: the loss is not a real scalar tensor, the argument holds no parameter, or `f`
            changes one in place.
        TypeError: the argument is an int, or an object of an unregistered class that holds tensors.
        RuntimeError: called under ``torch.inference_mode``.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.gradient(lambda x, y, z: x * y * z, 2.0, 3.0, 5.0, argnums=(0, 1, 2))
        (15.0, 10.0, 6.0)
        >>> model = {"w": torch.tensor([1.0, 2.0]), "unused": torch.zeros(3), "name": "linear"}
        >>> fl.gradient(lambda m, x: (m["w"] * x).sum(), model, torch.tensor([3.0, 4.0]))
        {'w': tensor([3., 4.]), 'unused': None, 'name': None}
    """
    return withgradient(f, *args, argnums=argnums, wrt=wrt)[1]


def withgradient(
    f: Callable[..., Any],
    /,
    *args: Any,
    argnums: int | Sequence[int] = 0,
    wrt: Where | tuple[Where, ...] | None = None,
) -> tuple[Any, Any]:
    """The value of ``f(*args)`` together with its `gradient`.

    Args:
        f: as in `gradient`. Whatever it returns beside the loss comes back in the value.
        args: as in `gradient`.
        argnums: as in `gradient`.
        wrt: as in `gradient`.

    Returns:
        ``(value, grads)``: all that `f` returned, without a graph, and the tree of gradients.

    Raises:
        ValueError: as `gradient`.
        TypeError: as `gradient`.
        RuntimeError: as `gradient`.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.tensor([1.0, 2.0, 4.0])
        >>> fl.withgradient(lambda x: ((1 / x).sum(), 1 / x), x)
        ((tensor(1.7500), tensor([1.0000, 0.5000, 0.2500])), tensor([-1.0000, -0.2500, -0.0625]))
    """
    if not callable(f):
        raise TypeError(
            f"gradient takes a function and its arguments, found {type(f).__name__} as the function; write "
            "gradient(loss, model, x, y), not gradient(loss(model, x, y), model)"
        )
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "gradient can't work under torch.inference_mode, where autograd records nothing for "
            "good; use torch.no_grad, which it sees through, or call it outside"
        )
    numbers, single = ((0,), True) if argnums == 0 and args else _numbers(argnums, len(args))
    if wrt is not None and not single:
        raise ValueError(f"wrt= chooses places of one argument, but argnums={argnums!r} names several")
    called = list(args)
    floats = [n for n in numbers if isinstance(args[n], float)]
    for n in floats:  # before the motor opens its level, so that they are not inside it
        called[n] = torch.tensor(args[n], dtype=torch.float64)
    with open_motor() as run:
        opened = [Argument(called[n], n, run, wrt, was_float=n in floats) for n in numbers]
        for n, argument in zip(numbers, opened, strict=True):
            called[n] = argument.tree
        handles = [h for argument in opened for h in argument.handles]
        frame = assigned.Frame(
            [b for a in opened for b in a.buffers], [p for a in opened for p in a.parameters]
        )
        frame_token = assigned.enter(frame)
        mode_token = mode.ambient("train") if any(a.holds_functor for a in opened) else None
        try:
            try:
                if torch.is_grad_enabled():
                    value = f(*called)
                else:
                    with torch.enable_grad():
                        value = f(*called)
            except RuntimeError as error:
                _explain_write(error, f, called, opened)
                raise
            finally:
                assigned.leave(frame_token)
            loss = _loss(value)
            for argument in opened:
                argument.check_unchanged()
                argument.check_attributes()
            # In the mode of the forward pass, for checkpoints that compute it again.
            flat = run.gradients(loss, handles) if loss.requires_grad else [None] * len(handles)
        finally:
            if mode_token is not None:
                mode.restore(mode_token)
        grads, start = [], 0
        for argument in opened:
            stop = start + len(argument.handles)
            grads.append(argument.gradient_tree(flat[start:stop], frame))
            start = stop
        return _close(value, run), grads[0] if single else tuple(grads)


def _numbers(argnums: int | Sequence[int], count: int) -> tuple[tuple[int, ...], bool]:
    single = isinstance(argnums, int)
    given = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    numbers = tuple(n + count if n < 0 else n for n in given)
    if not numbers or any(not 0 <= n < count for n in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"argnums={argnums!r} does not name different ones of the {count} arguments given; "
            "they are counted from 0, without the function"
        )
    return numbers, single


def _loss(value: Any) -> Tensor:
    """The loss in what the function returned, checked."""
    loss, said = value, "the function returned"
    if isinstance(value, Tensor):
        pass
    elif isinstance(value, Mapping):
        if "loss" not in value:
            raise ValueError(f"the function returned a dict without an entry 'loss': {list(value)}")
        loss, said = value["loss"], "the entry 'loss' is"
    elif optree.is_namedtuple(value) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        if not hasattr(value, "loss"):
            raise ValueError(f"the function returned a {type(value).__name__} without a field 'loss'")
        loss, said = value.loss, "the field 'loss' is"
    elif isinstance(value, tuple) and value:
        loss, said = value[0], "the first item returned is"
    if isinstance(loss, Tensor):
        if loss.ndim:
            raise ValueError(
                f"gradient needs a scalar loss, and {said} a tensor of shape {tuple(loss.shape)}; reduce "
                "it with .sum() or .mean(). Did you mean the jacobian, every entry's own gradient?"
            )
        if loss.is_complex():
            raise ValueError(
                f"gradient needs a real loss, and {said} a {loss.dtype} scalar; take .abs() or .real"
            )
        if not loss.is_floating_point():
            raise ValueError(f"gradient needs a floating loss, and {said} of {loss.dtype}")
        return loss
    if isinstance(loss, (float, int)):
        raise ValueError(
            f"gradient needs a 0-d tensor, and {said} the Python {type(loss).__name__} {loss!r}: "
            "did you call .item() or float()? The loss must stay a tensor"
        )
    hint = "; did you forget to return the loss?" if loss is None else ""
    raise ValueError(f"gradient needs a 0-d tensor, and {said} {loss!r} of {type(loss).__name__}{hint}")


def _close(value: Any, run: Motor) -> Any:
    """What the function returned, as the caller may have it (outermost: without a graph)."""

    def close(x: Any) -> Any:
        if isinstance(x, Tensor):
            return run.close(x)
        if isinstance(x, assigned.Assigned):
            return assigned.Assigned(run.close(x.value))
        if not isinstance(x, type) and spec_of(type(x)) is not None:
            return _close(x, run)  # of a subclass of a functor that was not seen before
        if isinstance(x, Mapping):  # one that is no node, such as the outputs of transformers
            entries = {key: _close(entry, run) for key, entry in x.items()}
            if not isinstance(x, MutableMapping):
                return entries
            closed: Any = copy.copy(x)
            closed.update(entries)
            return closed
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            closed = copy.copy(x)
            for field in dataclasses.fields(x):
                object.__setattr__(closed, field.name, _close(getattr(x, field.name), run))
            return closed
        return x

    if isinstance(value, Tensor):
        return run.close(value)
    return optree.tree_map(close, value, none_is_leaf=True, namespace=NAMESPACE)


def _explain_write(
    error: RuntimeError, f: Callable[..., Any], called: list[Any], opened: list[Argument]
) -> None:
    """Name the parameter where autograd refused an in-place change, by running `f` once more."""
    if not _is_refusal(error):
        return
    finder = _FindWrite()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.enable_grad(), finder, contextlib.suppress(RuntimeError):
        f(*called)
    if finder.written is not None:
        for argument in opened:
            path = argument.path_of(finder.written)
            if path is not None:
                argument.report_write(path, error)


def _is_refusal(error: RuntimeError) -> bool:
    """Whether torch refused to write to a tensor that is differentiated."""
    said = str(error)
    return any(
        words in said
        for words in (
            "leaf Variable that requires grad",
            "out=... arguments don't support automatic differentiation",
            "would mutate a captured Tensor",
        )
    )


class _FindWrite(TorchFunctionMode):
    """Remembers the tensor whose in-place change autograd refused."""

    written: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError as error:
            out = (kwargs or {}).get("out", args[0] if args else None)
            if _is_refusal(error) and self.written is None and isinstance(out, Tensor):
                self.written = out
            raise
