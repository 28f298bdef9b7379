"""A function called on arguments of which some are differentiated: what the transforms share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fluxlike.placement.mesh import used
from fluxlike.scope import assigned, mode
from fluxlike.transforms.engine import over_mesh
from fluxlike.transforms.engine.argument import Argument, argument_numbers
from fluxlike.transforms.engine.function import require_function
from fluxlike.transforms.engine.motors import Closer, Motor, enclosed
from fluxlike.trees.places import Where
from fluxlike.trees.structure import flatten, structure_of
from fluxlike.trees.trainables import parameters
from fluxlike.trees.values import stands_for_float

__all__ = ["Called"]

_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class Called:
    """One call of a transform: made of what the user gave, opened by a motor, then run.

    Args:
        name: the transform, for errors.
        f: the function.
        args: its arguments.
        argnums: which of them to differentiate.
        wrt: places of the one differentiated.

    Attributes:
        numbers: the numbers of the arguments that are differentiated.
        handles: once opened, what stands for the parameters of all of them.
    """

    def __init__(
        self,
        name: str,
        f: Callable[..., Any],
        args: Sequence[Any],
        argnums: int | Sequence[int] = 0,
        wrt: Where | tuple[Where, ...] | None = None,
    ) -> None:
        require_function(name, f, args, argnums)
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"{name} can't work under torch.inference_mode, where autograd records nothing for "
                "good; use torch.no_grad, which it sees through, or call it outside"
            )
        simple = argnums == 0 and args
        self.numbers, self.single = ((0,), True) if simple else argument_numbers(argnums, len(args))
        if wrt is not None and not self.single:
            raise ValueError(f"wrt= chooses places of one argument, but argnums={argnums!r} names several")
        args = over_mesh.plain(tuple(args))
        known = used.mesh()
        if known is not None:
            known.require_one_mesh(
                [args[n] for n in self.numbers], [x for n, x in enumerate(args) if n not in self.numbers]
            )
        self._f, self._wrt = f, wrt
        self._args = list(args)
        self._floats = [n for n in self.numbers if isinstance(args[n], float)]
        for n in self._floats:  # before the motor opens its level, so that they are not inside it
            self._args[n] = torch.tensor(args[n], dtype=torch.float64)
        for n in self.numbers:
            if isinstance(args[n], Tensor) and stands_for_float(args[n]):  # one that is a tensor of its own
                self._args[n] = torch.tensor(args[n], dtype=torch.float64)

    @property
    def differentiated(self) -> list[Any]:
        """The arguments that are differentiated."""
        return [self._args[n] for n in self.numbers]

    @property
    def parameters(self) -> list[tuple[Tensor, int]]:
        """The parameters of these arguments, each with the number of its argument; before it is opened."""
        found: list[tuple[Tensor, int]] = []
        for number, tree in enumerate(self.differentiated):
            leaves, treedef = flatten(tree)
            first = parameters(leaves, structure_of(treedef).trainable).first
            found += [(leaves[i], number) for i in first]
        return found

    def open(self, *motors: Motor) -> None:
        """Put handles and aliases in the place of the tensors of the differentiated arguments.

        Args:
            motors: one for all, or one for each of them.
        """
        self._opened: list[Argument] = []
        self.handles: list[Tensor] = []
        buffers: list[Tensor] = []
        trained: list[Tensor] = []
        for i, n in enumerate(self.numbers):
            motor = motors[i] if len(motors) > 1 else motors[0]
            argument = Argument(self._args[n], n, motor, self._wrt, was_float=n in self._floats)
            self._args[n] = argument.tree
            self._opened.append(argument)
            self.handles += argument.handles
            buffers += argument.buffers
            trained += argument.parameters
        self._frame = assigned.Frame(buffers, trained)

    @property
    def places(self) -> list[int]:
        """For each handle, which leaf of `trees` it is."""
        found: list[int] = []
        before = 0
        for argument in self._opened:
            found += [before + i for i in argument.first]
            before += argument.num_leaves
        return found

    @property
    def trains(self) -> bool:
        """Whether a differentiated argument holds a functor, so that a gradient is in train mode."""
        return any(a.holds_functor for a in self._opened)

    def run(self, *, record: bool = True) -> Any:
        """What the function returns.

        Args:
            record: whether a backward pass follows. (default: True)
        """
        token = assigned.enter(self._frame)
        try:
            with self._gathering():
                if torch.is_grad_enabled() or not record:
                    value = self._f(*self._args)
                else:
                    with torch.enable_grad():
                        value = self._f(*self._args)
        except RuntimeError as error:
            self._explain_write(error)
            raise
        finally:
            assigned.leave(token)
        return value

    def _gathering(self) -> contextlib.AbstractContextManager[None]:
        """What gathers parameters over a mesh for this call, where nothing encloses it."""
        known = used.mesh()
        if known is None or enclosed(1):
            return _NOTHING
        return known.gathering(self.handles, flatten(self._args)[0])

    def run_in_train_mode(self) -> Any:
        """`run`, in train mode where a differentiated argument holds a functor."""
        if not self.trains:
            return self.run()
        token = mode.ambient("train")
        try:
            return self.run()
        finally:
            mode.restore(token)

    def check(self) -> None:
        """Raise where the function changed an argument."""
        for argument in self._opened:
            argument.check_unchanged()
            argument.check_attributes()

    def trees(
        self, grads: Sequence[Tensor | None], closer: Closer | None = None, *, assigned_too: bool = True
    ) -> Any:
        """Gradients for the handles as a tree, or a tuple of trees, of the differentiated arguments.

        Args:
            grads: one for each handle.
            closer: what closes them. (default: the motor)
            assigned_too: whether the buffers that were assigned are in the trees. (default: True)
        """
        frame = self._frame if assigned_too else assigned.Frame(())
        trees, start = [], 0
        for argument in self._opened:
            stop = start + len(argument.handles)
            trees.append(argument.gradient_tree(grads[start:stop], frame, closer))
            start = stop
        return trees[0] if self.single else tuple(trees)

    def _explain_write(self, error: RuntimeError) -> None:
        """Name the parameter where autograd refused an in-place change, by running `f` once more."""
        if not _is_refusal(error):
            return
        finder = _FindWrite()
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices), torch.enable_grad(), finder, contextlib.suppress(RuntimeError):
            self._f(*self._args)
        if finder.written is not None:
            for argument in self._opened:
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
