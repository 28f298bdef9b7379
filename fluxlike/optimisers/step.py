"""One step over a whole tree: every link of every rule, and the trees that come of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike.optimisers.batch import Batch, perform
from fluxlike.optimisers.lane import Lane
from fluxlike.optimisers.on_ranks import divided_as, require_together
from fluxlike.optimisers.rule import (
    BatchRule,
    LeafError,
    form_of,
    hyperparameters,
    hyperparameters_of,
    key_of,
    one_of_equal,
    rules_in,
)
from fluxlike.optimisers.slots import Aligned, Slot
from fluxlike.optimisers.state import ParamState, computed, is_param_state
from fluxlike.optimisers.wrappers import OptimiserChain
from fluxlike.placement.mesh import used
from fluxlike.transforms.donation import require_donatable
from fluxlike.trees.structure import flatten
from fluxlike.trees.values import is_lent, value_of

__all__ = ["Step"]


_Links = tuple[Sequence[Any], list[Any]]  # the links of one parameter's rule, and the state of each


class Step:
    """One step; `move` says that what counts are the moved parameters, not the steps."""

    def __init__(
        self, state: Any, model: Any, grads: Any, *, move: bool, consumed: list[Tensor] | None = None
    ) -> None:
        self.aligned = Aligned(state, model, grads)
        self.moving = self.aligned.moving
        self.move = move
        self.consumed = None if consumed is None or self._recorded() else consumed
        if self.moving:
            self._prepare()
            self._apply()

    def _recorded(self) -> bool:
        """Whether autograd records the step, so that it is inside a transform of the user's own."""
        if not torch.is_grad_enabled():
            return False
        rules = {id(s.entry.rule): s.entry.rule for s in self.moving}.values()
        hyper = (h for rule in rules for h in hyperparameters(rule) if isinstance(h, Tensor))
        values = (t for s in self.moving for t in (s.grad, *_tensors(s.state)))
        return any(t is not None and t.requires_grad for t in (*hyper, *values))

    def _prepare(self) -> None:
        self._check_rules()
        if self.consumed is not None:
            require_donatable(*self._memory())
        for slot in self.moving:
            assert slot.grad is not None
            if slot.grad.layout is not torch.strided:
                slot.grad = slot.grad.to_dense()
            slot.flow = computed(slot.grad)
            slot.param = self._value(slot.param)
            slot.before = computed(slot.param)
            if used.mesh() is not None:
                self._bring_together(slot)
            cls: type = type(slot.entry.rule)
            if form_of(cls) != "formula":  # which looks itself
                self._check_state_device(slot)

    def _check_rules(self) -> None:
        for slot in {id(s.entry.rule): s for s in self.moving}.values():
            for name, value in _own_hyperparameters(slot.entry.rule):
                if isinstance(value, Tensor) and value.ndim:
                    raise ValueError(
                        f"{name} at {self.aligned.place(slot.first)} is of shape {tuple(value.shape)}, as in "
                        "stacked trees: write fluxlike.vmap(fluxlike.update)(state, model, grads), or take "
                        "the members out with fluxlike.unstack"
                    )

    def _value(self, x: Tensor) -> Tensor:
        """A parameter as its value; donation copies that of a torch module, and leaves the module alone."""
        value = value_of(x)
        if self.consumed is None or (value is x and not is_lent(x)):
            return value
        return value.clone()

    def _memory(self) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
        """The tensors that a donated step may write over, and those that must stay, with their places."""
        place = self.aligned.place
        known = used.mesh()
        local = (lambda x: x) if known is None else known.local
        donated, others = [], []
        moving: set[int] = set()  # what is written over
        ids = {id(slot.param) for slot in self.moving}
        for slot in self.moving:
            path = place(slot.first)
            if value_of(slot.param) is slot.param and not is_lent(slot.param):
                moving.add(id(slot.param))
                donated.append((f"{path} of the model", local(slot.param)))
            # Numbers are never written over, so counters may be shared.
            donated += [(f"the state of {path}", local(t)) for t in _tensors(slot.state) if t.ndim]
        for i, (x, g) in enumerate(zip(self.aligned.leaves, self.aligned.grads, strict=True)):
            if isinstance(x, Tensor) and id(x) not in moving and x.layout is torch.strided:
                others.append((f"{place(i)} of the model", local(x)))
            if isinstance(g, Tensor) and g.layout is torch.strided:
                others.append((f"{place(i)} of the gradients", local(g)))
            entry = self.aligned.entries[i]
            if is_param_state(entry) and id(x) not in ids:
                others += [(f"the state of {place(i)}", local(t)) for t in _tensors(entry.state)]
        return donated, others

    def _apply(self) -> None:
        links = _links(self.moving)
        for k in range(max(len(rules) for rules, _ in links)):
            for members in _sharing(k, links):
                self._apply_link(k, members, links)
        for slot, (_, states) in zip(self.moving, links, strict=True):
            chain = isinstance(slot.entry.rule, OptimiserChain)
            slot.state = tuple(states) if chain else states[0]

    def _apply_link(self, k: int, members: list[int], links: list[_Links]) -> None:
        """One link over the parameters that share it."""
        slots = [self.moving[m] for m in members]
        rule = links[members[0]][0][k]
        batch = Batch(
            [links[m][1][k] for m in members],
            [s.before for s in slots],
            [s.flow for s in slots],
            [s.passing for s in slots],
            last=self.move and all(k == len(links[m][0]) - 1 for m in members),
            consumed=self.consumed,
        )
        try:
            moved = perform(rule, batch)
        except LeafError as error:
            path = self.aligned.place(slots[error.leaf].first)
            raise ValueError(f"{type(rule).__name__} at {path}: {error}") from None
        except RuntimeError as error:
            self._explain_shapes(slots, error)
            raise
        out = moved.moved(batch) if batch.last else moved.stepped(batch)
        for m, slot, state, x, mask in zip(members, slots, moved.states, out, moved.passing, strict=True):
            links[m][1][k] = state
            slot.passing = mask
            if batch.last:
                slot.after = x
            else:
                slot.flow = x

    def _explain_shapes(self, slots: list[Slot], error: RuntimeError) -> None:
        """Name the parameter whose moments have another shape, where a rule could not compute."""
        for slot in slots:
            path, x = self.aligned.place(slot.first), slot.before
            for t in _tensors(slot.state):
                if t.ndim and t.shape == x.shape and t.dtype != x.dtype:
                    raise ValueError(
                        f"the state of {path} is of {t.dtype}, the parameter of {slot.param.dtype}; cast the "
                        "state as the model was, for example by fluxlike.f64"
                    ) from error
                if t.ndim and t.shape != x.shape:
                    raise ValueError(
                        f"the state of {path} holds a tensor of shape {tuple(t.shape)}, the parameter has "
                        f"{tuple(slot.param.shape)}; after surgery, call setup(rule, model, carry=state)"
                    ) from error

    def _check_state_device(self, slot: Slot) -> None:
        device = slot.param.device
        for t in _tensors(slot.state):
            if t.device != device:
                raise ValueError(
                    f"the state of {self.aligned.place(slot.first)} is on {t.device}, the parameter "
                    f"on {device}; write state = fluxlike.to_device(state, {str(device)!r})"
                )

    def _bring_together(self, slot: Slot) -> None:
        """Over a mesh, a state divided as its parameter is."""
        for t in _tensors(slot.state):
            require_together("state", t, self.aligned.place(slot.first), slot.before)
        slot.state = divided_as(slot.before, slot.state)

    def moved_model(self) -> Any:
        moved = {i for slot in self.moving for i in slot.places}
        values: dict[int, Tensor] = {}  # an nn.Parameter is read as its value, also where it stays
        result = [
            x if i in moved or not isinstance(x, Tensor) or not x.requires_grad else _own_value(x, values)
            for i, x in enumerate(self.aligned.kept)
        ]
        for slot in self.moving:
            after = slot.after if slot.after is not None else slot.before - slot.flow
            new = self._restored(after, slot)
            for i in slot.places:
                result[i] = new
        return self.aligned.treedef.unflatten(result)

    def _restored(self, x: Tensor, slot: Slot) -> Tensor:
        """A moved parameter in the dtype that the model has it in, rounded once; donated, in its memory."""
        old = self.aligned.leaves[slot.first]
        if slot.param.is_complex():
            x = torch.view_as_complex(x)
        if self.consumed is None:
            return x.to(slot.param.dtype)
        if not _same_memory(x, slot.param) or x.dtype != slot.param.dtype:
            new = slot.param.detach().copy_(x)
        elif slot.param.is_complex():
            new = slot.param.detach()  # not the view of a view that it was computed through
        else:
            return x
        if slot.param is old:
            self.consumed.append(old)
        return new

    def step_tree(self) -> Any:
        result: list[Any] = [None] * len(self.aligned.leaves)
        for slot in self.moving:
            complex_step = slot.param.is_complex()
            result[slot.first] = torch.view_as_complex(slot.flow) if complex_step else slot.flow
        return self.aligned.treedef.unflatten(result)

    def next_state(self) -> Any:
        entries = list(self.aligned.entries)
        rules = one_of_equal(slot.entry.rule for slot in self.moving)
        for slot in self.moving:
            new = slot.entry = ParamState(rules[id(slot.entry.rule)], slot.state, slot.entry.frozen)
            for i in slot.places:
                entries[i] = new
        return self.aligned.state_def.unflatten(entries)

    def open_lane(self) -> None:
        """Let the next step skip what this one found out, if all parameters move by one kernel."""
        moving, aligned = self.moving, self.aligned
        covered = sum(len(slot.places) for slot in moving)
        if not moving or covered != sum(entry is not None for entry in aligned.entries):
            return
        rule = moving[0].entry.rule
        params = [slot.after for slot in moving if slot.after is not None and slot.passing is None]
        same = all(
            s.entry.rule is rule and s.param.dtype == x.dtype for s, x in zip(moving, params, strict=False)
        )
        if len(params) < len(moving) or not same or moving[0].param.is_complex():
            return
        lane = Lane.over(
            rule,
            [s.places for s in moving],
            aligned.treedef,
            aligned.state_def,
            params,
            [s.entry for s in moving],
        )
        if lane is not None:
            lane.keep(moving[0].entry)


def _same_memory(x: Tensor, y: Tensor) -> bool:
    known = used.mesh()
    if known is not None and known.over(x):
        x, y = known.local(x), known.local(y)
    return x.data_ptr() == y.data_ptr()


def _own_hyperparameters(rule: Any) -> Iterator[tuple[str, Any]]:
    """The hyperparameters of rules of ours, in which each is a number or a 0-d tensor."""
    for part in rules_in(rule):
        for name in sorted(hyperparameters_of(part)) if isinstance(part, BatchRule) else ():
            value = getattr(part, name)
            for v in value if isinstance(value, tuple) else (value,):
                yield f"{type(part).__name__}'s {name}", v


def _own_value(x: Tensor, known: dict[int, Tensor]) -> Tensor:
    """The value of a module's parameter in memory of its own, which a later step may write over."""
    if id(x) not in known:
        value = value_of(x)
        known[id(x)] = value.clone() if value is not x else x
    return known[id(x)]


def _tensors(state: Any) -> Iterator[Tensor]:
    """The tensors of a rule's state; tuples, which most are made of, without a flatten."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (tuple, list)):
        for part in state:
            yield from _tensors(part)
    elif state is not None:
        yield from (x for x in flatten(state)[0] if isinstance(x, Tensor))


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
        by_value.setdefault(key_of(links[members[0]][0][k]), []).extend(members)
    return [sorted(members) for members in by_value.values()]
