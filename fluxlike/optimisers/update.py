"""`update` and `steps`: one step of an optimiser over a whole tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike.optimisers import lists
from fluxlike.optimisers.links import OptimiserChain, apply_all
from fluxlike.optimisers.rule import LeafError, forms
from fluxlike.optimisers.slots import Aligned, Slot
from fluxlike.optimisers.state import ParamState, computed
from fluxlike.transforms.motors import enclosed
from fluxlike.trees.structure import flatten
from fluxlike.trees.values import value_of

__all__ = ["steps", "update"]


def update(state: Any, model: Any, grads: Any, /) -> tuple[Any, Any]:
    """One step: the model moved by its gradients, and the next state of the optimiser.

    A parameter without a gradient (None) or frozen stays as it is, its state too. Gradients found
    at several places of a tied parameter are added up. `Assigned` buffers get their new value. No
    argument is changed. Inside `gradient`, the step is differentiable.

    Args:
        state: what `setup` or the last `update` returned.
        model: the model.
        grads: the gradients, a tree with the structure of the model.

    Returns:
        ``(model, state)``, both of the structure that they had.

    Raises:
        ValueError: the trees differ in structure; or a gradient differs from its parameter in
            shape, dtype or device; or the state is on another device. It names the place.
        TypeError: model and state are swapped.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = {"w": torch.tensor([1.0, 2.0])}
        >>> state = fl.setup(fl.Descent(0.1), model)
        >>> model, state = fl.update(state, model, {"w": torch.tensor([10.0, 10.0])})
        >>> model
        {'w': tensor([0., 1.])}
    """
    step = _Step(state, model, grads, kernels=not enclosed())
    return step.moved_model(), step.next_state()


def steps(state: Any, model: Any, grads: Any, /) -> tuple[Any, Any]:
    """The steps that `update` would subtract, without applying them, and the next state.

    Args:
        state: as in `update`.
        model: as in `update`.
        grads: as in `update`.

    Returns:
        ``(steps, state)``: a tree of the model's structure with what is subtracted from each
        parameter, at the first place of a tied one, and None elsewhere.

    Raises:
        ValueError: as `update`.
        TypeError: as `update`.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = {"w": torch.tensor([1.0, 2.0])}
        >>> fl.steps(fl.setup(fl.Descent(0.1), model), model, {"w": torch.ones(2)})[0]
        {'w': tensor([0.1000, 0.1000])}
    """
    step = _Step(state, model, grads, kernels=False)
    return step.step_tree(), step.next_state()


_Links = tuple[Sequence[Any], list[Any]]  # the links of one parameter's rule, and the state of each


class _Step:
    """One step; `kernels` allows kernels that move parameters without a step in between."""

    def __init__(self, state: Any, model: Any, grads: Any, *, kernels: bool) -> None:
        self.aligned = Aligned(state, model, grads)
        self.moving = self.aligned.moving
        if self.moving:
            self._apply(kernels)

    def _apply(self, kernels: bool) -> None:
        for slot in self.moving:
            assert slot.grad is not None
            if slot.grad.layout is not torch.strided:
                slot.grad = slot.grad.to_dense()
            slot.step = computed(slot.grad)
            self._check_state_device(slot)
            slot.param = value_of(slot.param)
        params = [computed(slot.param) for slot in self.moving]
        links = _links(self.moving)
        for k in range(max(len(rules) for rules, _ in links)):
            for members in _sharing(k, links):
                self._apply_link(k, members, links, params, kernels)
        for slot, x, (_, states) in zip(self.moving, params, links, strict=True):
            chain = isinstance(slot.entry.rule, OptimiserChain)
            slot.state = tuple(states) if chain else states[0]
            slot.before = x

    def _apply_link(
        self, k: int, members: list[int], links: list[_Links], params: list[Tensor], kernels: bool
    ) -> None:
        slots = [self.moving[m] for m in members]
        grads: list[Tensor] = [s.step for s in slots]  # type: ignore[misc]
        rule = links[members[0]][0][k]
        states = [links[m][1][k] for m in members]
        values = [params[m] for m in members]
        cls: type = type(rule)
        if kernels and forms(cls)[1] and all(k == len(links[m][0]) - 1 for m in members):
            moved = rule.move_all(states, values, grads)
            if moved is not None:
                for m, slot, after, x in zip(members, slots, *moved, strict=True):
                    links[m][1][k] = after
                    slot.after = x
                return
        try:
            states, out = apply_all(rule, states, values, grads)
        except LeafError as error:
            path = self.aligned.place(slots[error.leaf].first)
            raise ValueError(f"{type(rule).__name__} at {path}: {error}") from None
        except RuntimeError as error:
            self._explain_shapes(slots, error)
            raise
        if len(states) != len(members) or len(out) != len(members):
            raise ValueError(
                f"{type(rule).__name__}.apply_all returned {len(states)} states and {len(out)} steps "
                f"for {len(members)} leaves"
            )
        for m, slot, after, d in zip(members, slots, states, out, strict=True):
            if not isinstance(d, Tensor) or d.shape != params[m].shape:
                found = tuple(d.shape) if isinstance(d, Tensor) else repr(d)
                raise ValueError(
                    f"{type(rule).__name__} gave {self.aligned.place(slot.first)} a step of {found}; "
                    f"the parameter has the shape {tuple(params[m].shape)}"
                )
            links[m][1][k] = after
            slot.step = d

    def _explain_shapes(self, slots: list[Slot], error: RuntimeError) -> None:
        """Name the parameter whose moments have another shape, where a rule could not compute."""
        for slot in slots:
            shape = slot.before.shape if slot.before is not slot.param else computed(slot.param).shape
            for t in _tensors(slot.state):
                if t.ndim and t.shape == shape and t.dtype != slot.step.dtype:  # type: ignore[union-attr]
                    raise ValueError(
                        f"the state of {self.aligned.place(slot.first)} is of {t.dtype}, the parameter of "
                        f"{slot.param.dtype}; cast the state as the model was, for example by fluxlike.f64"
                    ) from error
                if t.ndim and t.shape != shape:
                    raise ValueError(
                        f"the state of {self.aligned.place(slot.first)} holds a tensor of shape "
                        f"{tuple(t.shape)}, the parameter has {tuple(slot.param.shape)}; after surgery, call "
                        "setup(rule, model) again"
                    ) from error

    def _check_state_device(self, slot: Slot) -> None:
        device = slot.param.device
        for t in _tensors(slot.state):
            if t.device != device:
                raise ValueError(
                    f"the state of {self.aligned.place(slot.first)} is on {t.device}, the parameter "
                    f"on {device}; write state = fluxlike.to_device(state, {str(device)!r})"
                )

    def moved_model(self) -> Any:
        values: dict[int, Tensor] = {}  # an nn.Parameter is read as its value, also where it stays
        result = [
            values.setdefault(id(x), value_of(x)) if isinstance(x, Tensor) and x.requires_grad else x
            for x in self.aligned.kept
        ]
        stepping = [s for s in self.moving if s.after is None]
        if stepping:
            moved = lists.sub([s.before for s in stepping], [s.step for s in stepping])  # type: ignore[misc]
            for slot, x in zip(stepping, moved, strict=True):
                slot.after = x
        for slot in self.moving:
            assert slot.after is not None
            new = _restored(slot.after, slot.param)
            for i in slot.places:
                result[i] = new
        return self.aligned.treedef.unflatten(result)

    def step_tree(self) -> Any:
        result: list[Any] = [None] * len(self.aligned.leaves)
        for slot in self.moving:
            step = slot.step
            assert step is not None
            result[slot.first] = torch.view_as_complex(step) if slot.param.is_complex() else step
        return self.aligned.treedef.unflatten(result)

    def next_state(self) -> Any:
        entries = list(self.aligned.entries)
        for slot in self.moving:
            new = ParamState(slot.entry.rule, slot.state, slot.entry.frozen)
            for i in slot.places:
                entries[i] = new
        return self.aligned.state_def.unflatten(entries)


def _tensors(state: Any) -> Iterator[Tensor]:
    """The tensors of a rule's state; tuples, which most are made of, without a flatten."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (tuple, list)):
        for part in state:
            yield from _tensors(part)
    elif state is not None:
        yield from (x for x in flatten(state)[0] if isinstance(x, Tensor))


def _restored(x: Tensor, like: Tensor) -> Tensor:
    """A computed parameter in the dtype that the model has it in, rounded once."""
    if like.is_complex():
        x = torch.view_as_complex(x)
    return x.to(like.dtype)


def _links(moving: list[Slot]) -> list[_Links]:
    """For each parameter the links of its rule, and the state of each link."""
    return [
        (s.entry.rule.rules, list(s.state))
        if isinstance(s.entry.rule, OptimiserChain)
        else ((s.entry.rule,), [s.state])
        for s in moving
    ]


def _sharing(k: int, links: list[_Links]) -> list[list[int]]:
    """The parameters grouped by their k-th link: the same object, or one of equal value."""
    by_object: dict[int, list[int]] = {}
    for m, (rules, _) in enumerate(links):
        if k < len(rules):
            by_object.setdefault(id(rules[k]), []).append(m)
    if len(by_object) < 2:
        return list(by_object.values())
    by_value: dict[Any, list[int]] = {}
    for members in by_object.values():
        rule = links[members[0]][0][k]
        try:
            hash(rule)
            key: Any = (type(rule), rule)
        except TypeError:
            key = id(rule)
        by_value.setdefault(key, []).extend(members)
    return [sorted(members) for members in by_value.values()]
