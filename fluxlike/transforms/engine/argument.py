"""One argument of a gradient: which of its leaves are differentiated, and its gradient as a tree."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NoReturn

import optree
from torch import Tensor

from fluxlike.placement.mesh.entries import is_entry
from fluxlike.scope.assigned import Frame
from fluxlike.transforms.engine.motors import Closer, Motor
from fluxlike.trees.functor import NAMESPACE
from fluxlike.trees.leaves import Assigned, can_train
from fluxlike.trees.places import Where, selected_leaves
from fluxlike.trees.structure import flatten, structure_of
from fluxlike.trees.trainables import parameters

__all__ = ["Argument", "argument_numbers"]


def argument_numbers(argnums: int | Sequence[int], count: int, /) -> tuple[tuple[int, ...], bool]:
    """The numbers of the arguments to differentiate, and whether one was asked for by itself.

    Raises:
        ValueError: they do not name different ones of `count` arguments, or there is none.
    """
    if not count:
        raise ValueError(
            "there is no argument to differentiate: a gradient is taken by what the function is given, and "
            "not by what it closes over; write gradient(loss, model, x, y)"
        )
    single = isinstance(argnums, int)
    given = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    numbers = tuple(n + count if n < 0 else n for n in given)
    if not numbers or any(not 0 <= n < count for n in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"argnums={argnums!r} does not name different ones of the {count} arguments given; "
            "they are counted from 0, without the function"
        )
    return numbers, single


class Argument:
    """An argument that is differentiated, taken apart for one call.

    Attributes:
        tree: what the function gets: the argument with handles and aliases for its tensors.
        handles: the handles of the parameters, each tied one once.
        first: for each handle, the number of the first leaf that it stands for.
        buffers: the aliases of the tensors that are not parameters.
    """

    def __init__(
        self,
        tree: Any,
        number: int,
        motor: Motor,
        wrt: Where | tuple[Where, ...] | None = None,
        *,
        was_float: bool = False,
    ) -> None:
        self._number, self._motor, self._was_float = number, motor, was_float
        self._leaves, self._treedef = flatten(tree)
        self._structure = structure_of(self._treedef)
        self._open(self._chosen(tree, wrt), motor)
        if not self.handles:
            self._report_no_parameter(tree, wrt)

    @property
    def holds_functor(self) -> bool:
        """Whether the argument holds an object of a registered class."""
        return self._structure.holds_functor

    @property
    def num_leaves(self) -> int:
        """The number of leaves, constants and None included."""
        return len(self._leaves)

    def _chosen(self, tree: Any, wrt: Where | tuple[Where, ...] | None) -> set[int] | None:
        """The ids of the tensors to differentiate; None for every tensor that can be."""
        if wrt is None and self._structure.all_trainable:
            return None
        wanted = set(parameters(self._leaves, self._structure.trainable).number)
        if wrt is not None:
            places = selected_leaves(tree, self._leaves, self._treedef, wrt)
            wanted &= {id(self._leaves[i]) for i in places}
        return wanted

    def _open(self, wanted: set[int] | None, motor: Motor) -> None:
        """Put a handle in the place of every tensor to differentiate, an alias in that of a buffer."""
        leaves, trainable = self._leaves, self._structure.trainable
        self.handles: list[Tensor] = []
        self.buffers: list[Tensor] = []
        self.parameters: list[Tensor] = []  # the handles, and the parameters left out by wrt=
        self.first: list[int] = []
        self._buffer_places: list[int] = []
        self._tensors: list[tuple[int, Tensor]] = []
        stand_in: dict[int, Tensor] = {}
        opened = list(leaves)
        for i, x in enumerate(leaves):
            if not isinstance(x, Tensor):
                continue
            key = id(x)
            new = stand_in.get(key)
            if new is None:
                if x.is_inference():
                    self._report_inference(i)
                if can_train(x) if wanted is None else key in wanted:
                    new = motor.handle(x)
                    self.handles.append(new)
                    self.parameters.append(new)
                    self.first.append(i)
                elif trainable[i] and can_train(x):  # left out by wrt=
                    new = motor.constant(x)
                    self.parameters.append(new)
                else:
                    new = motor.alias(x)
                    self.buffers.append(new)
                    self._buffer_places.append(i)
                stand_in[key] = new
                self._tensors.append((i, x))
            opened[i] = new
        self.tree = self._treedef.unflatten(opened)
        self._opened = opened
        self._versions = self._read_versions()

    def _report_inference(self, leaf: int) -> NoReturn:
        raise ValueError(
            f"{self._say(self._structure.paths[leaf])} was made under torch.inference_mode and can't be "
            "differentiated; make it outside, or pass fluxlike.tree.clone(model)"
        )

    def _read_versions(self) -> list[int]:
        """How often each tensor of the argument was written to."""
        return [x._version for _, x in self._tensors]

    def check_unchanged(self) -> None:
        """Raise where the function wrote to a tensor of the argument."""
        now = self._read_versions()
        if now == self._versions:
            return
        changes = zip(self._tensors, self._versions, now, strict=True)
        changed = next(i for (i, _), before, after in changes if before != after)
        self.report_write(self._structure.paths[changed])

    def check_attributes(self) -> None:
        """Raise where a call set an attribute of the copy that the function got: it would be lost."""
        leaves, treedef = optree.tree_flatten(self.tree, none_is_leaf=True, namespace=NAMESPACE)
        if all(map(operator.is_, leaves, self._opened)) and treedef == self._treedef:
            return
        before, after = set(self._structure.paths), structure_of(treedef).paths
        found = dict(zip(after, leaves, strict=True))
        was = dict(zip(self._structure.paths, self._opened, strict=True))
        changed = [p for p in after if p not in before or found[p] is not was[p]]
        changed += [p for p in self._structure.paths if p not in found]
        path = changed[0] if changed else "an attribute that is no child"
        raise ValueError(
            f"{self._say(path)} was set by the function that is differentiated, on a copy of the model, so "
            "it would be lost; declare a tensor that moves with functor(buffers=…) and write "
            "fluxlike.assign(self.buffer, new), and return anything else along with the loss"
        )

    def report_write(self, path: str, cause: BaseException | None = None) -> NoReturn:
        """Raise the error for a tensor that was changed in place."""
        raise ValueError(
            f"{self._say(path)} was changed in place by the function that is differentiated; "
            "compute a new tensor instead (w = w + 1, not w += 1), and move buffers with "
            "fluxlike.assign"
        ) from cause

    def path_of(self, x: Tensor) -> str | None:
        """The path of the tensor of the argument that `x` stands for, or is a view of."""
        stand_ins = flatten(self.tree)[0]
        for i, mine in enumerate(stand_ins):
            if isinstance(mine, Tensor) and (mine is x or mine is x._base or _share_memory(mine, x)):
                return self._structure.paths[i]
        return None

    def gradient_tree(self, grads: Sequence[Tensor | None], frame: Frame, motor: Closer | None = None) -> Any:
        """The gradients and the assigned buffers, in the structure of the argument.

        Args:
            grads: one for each handle.
            frame: what was assigned.
            motor: what closes the results. (default: the motor that made the handles)
        """
        motor = motor or self._motor
        close = motor.close
        if self._was_float and motor.concrete and (grads[0] is None or not grads[0].ndim):
            return None if grads[0] is None else float(grads[0])
        result: list[Any] = [None] * len(self._leaves)
        placed: set[int] = set()
        for i, g in zip(self.first, grads, strict=True):
            if g is None:
                continue
            # autograd may give two parameters one tensor (x + y); that would be a tie.
            result[i] = close(g.view_as(g) if id(g) in placed else g)
            placed.add(id(g))
        for i, alias in zip(self._buffer_places, self.buffers, strict=True):
            value = frame.values.get(id(alias))
            if value is not None:
                result[i] = Assigned(close(value))
        return self._treedef.unflatten(result)

    def _say(self, path: str) -> str:
        return f"{path or 'the whole'} of argument {self._number}"

    def _report_no_parameter(self, tree: Any, wrt: Any) -> None:
        if isinstance(tree, int):
            raise TypeError(
                f"argument {self._number} is the {type(tree).__name__} {tree!r}, which can't be "
                f"differentiated; write {float(tree)!r}"
            )
        if any(map(is_entry, flatten(tree, is_entry)[0])):
            raise TypeError(
                f"argument {self._number} is the state of an optimiser: update returns (model, state), in "
                "this order; write model, state = update(state, model, grads)"
            )
        kinds = sorted({self._kind(i) for i in range(len(self._leaves))})
        what = f"holds {', '.join(kinds)}" if kinds else "is empty"
        where = "" if wrt is None else " at the places of wrt="
        raise ValueError(
            f"there is no parameter in argument {self._number}{where}: a {type(tree).__qualname__} that "
            f"{what}. Parameters are floating or complex tensors reached through trainable children; "
            "use argnums= to differentiate another argument"
        )

    def _kind(self, i: int) -> str:
        x = self._leaves[i]
        if not isinstance(x, Tensor):
            return type(x).__name__
        kind = f"{str(x.dtype).removeprefix('torch.')} tensors"
        return kind if self._structure.trainable[i] else f"buffers ({kind})"


def _share_memory(a: Tensor, b: Tensor) -> bool:
    try:
        return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # tensors of a functorch level have no storage
        return False
