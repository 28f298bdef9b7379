"""The fast lane: a step that goes on from what the last one returned.

Most steps of a training run are alike: one rule with a kernel for all parameters, and model and state
just as the step before returned them. What that step found out about them (they fit each other, and
a kernel, and share no memory) holds still, so that only the gradients need to be looked at.
"""

from __future__ import annotations

import copy
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import fused
from fluxlike.optimisers.fields import Columns
from fluxlike.optimisers.group import kernel_of
from fluxlike.optimisers.kernels import Kernel, move
from fluxlike.optimisers.rule import form_of
from fluxlike.optimisers.state import ParamState
from fluxlike.transforms.donation import require_donatable, span
from fluxlike.transforms.updates import put_assigned
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Lane", "lane_of"]

_lanes: dict[int, tuple[weakref.ref[ParamState], Lane]] = {}  # by the id of a state's first entry


class Lane:
    """What one step found out, for the next one.

    Args:
        rule: the one rule of all parameters.
        kernel: its kernel.
        places: for each parameter, the leaves of the model that hold it.
        treedef: that of the model.
        state_def: that of the state above its entries.
        params: the parameters.
        entries: their entries in the state.
        spans: the sorted first and last addresses of all donated memory, if it was checked.
    """

    __slots__ = (
        "_dtype", "_entries", "_layouts", "_others", "_params", "_places", "_pointers", "_sizes", "_spans",
        "_state_def", "_treedef", "kernel", "rule",
    )  # fmt: skip

    def __init__(
        self,
        rule: Any,
        kernel: Kernel,
        places: Sequence[Sequence[int]],
        treedef: Any,
        state_def: Any,
        params: Sequence[Tensor],
        entries: Sequence[ParamState],
    ) -> None:
        self.rule, self.kernel = rule, kernel
        self._places, self._treedef, self._state_def = places, treedef, state_def
        taken = {i for where in places for i in where}
        self._others = [i for i in range(treedef.num_leaves) if i not in taken]
        self._dtype = params[0].dtype
        self._layouts = [(x.shape, x.stride(), x.device) for x in params]
        self._sizes = [x.nbytes for x in params]
        self._spans: tuple[list[int], list[int]] | None = None
        self._take(params, entries)

    @staticmethod
    def over(
        rule: Any,
        places: Sequence[Sequence[int]],
        treedef: Any,
        state_def: Any,
        params: Sequence[Tensor],
        entries: Sequence[ParamState],
    ) -> Lane | None:
        """A lane for these parameters and states, if one kernel can move them all together."""
        cls: type = type(rule)
        kernel = kernel_of(rule) if form_of(cls) == "formula" else None
        if kernel is None or params[0].device.type not in ("cpu", "cuda"):
            return None
        lane = Lane(rule, kernel, places, treedef, state_def, params, entries)
        return lane if lane._holds(params, entries) else None

    def _holds(self, params: Sequence[Tensor], entries: Sequence[ParamState]) -> bool:
        states = [entry.state for entry in entries]
        columns, device = Columns(states, self.rule.shared), params[0].device
        for x, state, *fields in zip(params, states, *columns.fields.values(), strict=True):
            if (
                type(state) is not columns.kind
                or x.dtype is not self._dtype
                or x.device != device
                or any(getattr(state, name) is not t for name, t in columns.scalars.items())
                or (isinstance(state, tuple) and [t is None for t in state] != [t is None for t in states[0]])
                or not fused.fits(x, fields)
            ):
                return False
        return True

    def _take(
        self, params: Sequence[Tensor], entries: Sequence[ParamState], pointers: list[list[int]] | None = None
    ) -> None:
        """Remember model and state, without keeping them alive, and where their memory is."""
        self._params = [weakref.ref(x) for x in params]
        self._entries = [weakref.ref(entry) for entry in entries]
        if pointers is None:
            columns = Columns([entry.state for entry in entries], self.rule.shared)
            pointers = [[t.data_ptr() for t in column] for column in (params, *columns.fields.values())]
        self._pointers = pointers

    def keep(self, first: ParamState) -> None:
        """Wait for the step that gets the state of which `first` is the first entry."""
        key = id(first)
        _lanes[key] = (weakref.ref(first, lambda _: _lanes.pop(key, None)), self)

    def follow(self, before: Sequence[Any], after: Sequence[Any], state_def: Any) -> None:
        """Go on at a state of other hyperparameters, if it differs in nothing else and a kernel takes them.

        Args:
            before: the entries of a state that may be the one that this lane waits for.
            after: those of the other state.
            state_def: the treedef of both.
        """
        if state_def != self._state_def:
            return
        firsts = [where[0] for where in self._places]
        rule = after[firsts[0]].rule
        kernel = kernel_of(rule)
        if kernel is None:
            return
        for i, known in zip(firsts, self._entries, strict=True):
            old, new = known(), after[i]
            if old is None or before[i] is not old or new.state is not old.state or new.rule is not rule:
                return
        lane = copy.copy(self)
        lane.rule, lane.kernel = rule, kernel
        lane._entries = [weakref.ref(after[i]) for i in firsts]
        lane.keep(after[firsts[0]])

    def step(
        self, entries: list[Any], state_def: Any, model: Any, grads: Any, donate: bool
    ) -> tuple[Any, Any, list[Tensor]] | None:
        """The next model and state, and the tensors that were consumed; None where this is another case."""
        leaves, treedef = flatten(model)
        gs, grads_def = flatten(grads)
        if treedef != self._treedef or state_def != self._state_def or grads_def != treedef:
            return None
        unchanged = self._unchanged(entries, leaves)
        if unchanged is None or not self._grads_fit(gs):
            return None
        xs, columns = unchanged
        for i in self._others:
            x = leaves[i]
            if entries[i] is not None or (isinstance(x, Tensor) and x.requires_grad):
                return None
            if gs[i] is not None and not isinstance(gs[i], Assigned):
                return None
        found = [gs[where[0]] for where in self._places]
        if donate and not self._may_write(xs, columns, leaves, found):
            return None
        consumed: list[Tensor] | None = [] if donate else None
        if any(gs[i] is not None for i in self._others):
            leaves = put_assigned(leaves, gs, structure_of(treedef).paths)
        return self._move((entries, state_def), (leaves, treedef), (xs, columns), found, consumed)

    def _unchanged(self, entries: list[Any], leaves: list[Any]) -> tuple[list[Tensor], Columns] | None:
        """Parameters and states, if they are those of the last step, in the memory that they had."""
        xs, states = [], []
        for where, param, known, (shape, stride, _) in zip(
            self._places, self._params, self._entries, self._layouts, strict=True
        ):
            first = where[0]
            x, entry = leaves[first], entries[first]
            if (
                not isinstance(x, Tensor)
                or x is not param()
                or entry is not known()
                or x.requires_grad
                or x.shape != shape
                or x.stride() != stride
            ):
                return None
            for i in where[1:]:
                if leaves[i] is not x or entries[i] is not entry:
                    return None
            xs.append(x)
            states.append(entry.state)
        columns = Columns(states, self.rule.shared)
        for column, pointers in zip((xs, *columns.fields.values()), self._pointers, strict=True):
            if [t.data_ptr() for t in column] != pointers:  # somebody put other memory under a tensor
                return None
        return xs, columns

    def _grads_fit(self, gs: list[Any]) -> bool:
        dtype = self._dtype
        for where, (shape, stride, device) in zip(self._places, self._layouts, strict=True):
            g = gs[where[0]]
            if (
                type(g) is not Tensor
                or g.dtype is not dtype
                or g.shape != shape
                or g.stride() != stride
                or g.device != device
                or g.requires_grad
            ):
                return False
            for i in where[1:]:
                if gs[i] is not None:
                    return False
        return True

    def _may_write(self, xs: list[Tensor], columns: Columns, leaves: list[Any], gs: list[Tensor]) -> bool:
        """Whether all memory to write over is apart from all other; if not, the long way says where."""
        if self._spans is None:
            fields = columns.fields.values()
            donated = [("", t) for column in (xs, *fields) for t in column if column is xs or t.ndim]
            try:
                require_donatable(donated, [("", g) for g in gs])
            except ValueError:
                return False
            spans = sorted(span(t) for _, t in donated)
            self._spans = [s for s, _ in spans], [e for _, e in spans]
        starts, stops = self._spans
        found = [(g.data_ptr(), n) for g, n in zip(gs, self._sizes, strict=True)]  # laid out as parameters
        for i in self._others:
            x = leaves[i]
            if isinstance(x, Tensor) and x.layout is torch.strided:
                start, stop = span(x)
                found.append((start, stop - start))
        for start, size in found:
            k = bisect_right(starts, start)
            if (k and stops[k - 1] > start) or (k < len(starts) and starts[k] < start + size):
                return False
        return True

    def _move(
        self,
        state: tuple[list[Any], Any],
        model: tuple[list[Any], Any],
        moving: tuple[list[Tensor], Columns],
        gs: list[Tensor],
        consumed: list[Tensor] | None,
    ) -> tuple[Any, Any, list[Tensor]]:
        (entries, state_def), (leaves, treedef), (xs, columns) = state, model, moving
        rule = self.rule
        columns.scalars = {name: t + 1 for name, t in columns.scalars.items()}
        moved, fields = move(self.kernel, columns, xs, gs, None, consumed)
        new = [ParamState(rule, s) for s in columns.rows(len(xs), fields, columns.scalars)]
        leaves, entries = list(leaves), list(entries)
        for where, x, entry in zip(self._places, moved, new, strict=True):
            for i in where:
                leaves[i], entries[i] = x, entry
        result = treedef.unflatten(leaves), state_def.unflatten(entries)
        after = Lane.__new__(Lane)
        for name in ("rule", "kernel", "_places", "_others", "_dtype", "_layouts", "_sizes"):
            setattr(after, name, getattr(self, name))
        after._treedef, after._state_def = treedef, state_def
        # What is made in inference mode may be written over in inference mode alone.
        known = consumed is not None and not torch.is_inference_mode_enabled()
        after._spans = self._spans if known else None
        stayed = consumed is not None and all(x.ndim for x in moved)  # numbers are not written over
        after._take(moved, new, self._pointers if stayed else None)
        after.keep(new[0])
        return (*result, consumed or [])


def lane_of(entries: Sequence[Any]) -> Lane | None:
    """The lane of the step that returned the state with these entries."""
    first = next((e for e in entries if e is not None), None)
    found = _lanes.get(id(first))
    return found[1] if found is not None and found[0]() is first else None
