"""Lining up state, model and gradients: which parameters move, and every check on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fluxlike.optimisers.on_ranks import require_together
from fluxlike.optimisers.rule import is_rule
from fluxlike.optimisers.state import ParamState, is_param_state
from fluxlike.placement.mesh import used
from fluxlike.transforms.updates import put_assigned
from fluxlike.trees import paths
from fluxlike.trees.leaves import Assigned, can_train
from fluxlike.trees.show import value_text
from fluxlike.trees.structure import flatten, leaves_like, require_same, structure_of

__all__ = ["Aligned", "Slot", "matched"]


class Slot:
    """One parameter that moves: where it stands, and everything its rule needs."""

    __slots__ = ("after", "before", "entry", "first", "flow", "grad", "param", "passing", "places", "state")

    def __init__(self, first: int, param: Tensor, entry: ParamState) -> None:
        self.first, self.param, self.entry = first, param, entry
        self.places = [first]
        self.grad: Tensor | None = None
        self.state = entry.state
        self.before = self.flow = param  # the parameter, and what flows from link to link, as rules compute
        self.after: Tensor | None = None  # the parameter in that form, moved
        self.passing: Tensor | None = None  # whether this step moves it; None if so


class Aligned:
    """State, model and gradients, leaf by leaf.

    Attributes:
        moving: the parameters that have a gradient and are not frozen, each tied one once.
        kept: the leaves of the model, with the assigned buffers in place.
        entries: the leaves of the state, a `ParamState` whole.
        treedef: that of the model.
        state_def: that of the state above its entries.

    Raises:
        ValueError: the trees don't fit each other; it names the place.
        TypeError: an argument is not what it should be, or can be read only once, or they are swapped.
    """

    def __init__(self, state: Any, model: Any, grads: Any) -> None:
        self.entries, self.state_def = flatten(state, is_param_state)
        _check_order(state, self.entries, model, grads)
        self.leaves, self.treedef = flatten(model)
        _require_fit(state, self.entries, self.state_def, model, self.treedef)
        self.structure = structure_of(self.treedef)
        self.grads = _leaves_of_gradients(grads, model, self.treedef)
        self.moving = self._collect()  # before the buffers: of another model, its parameters say more
        self.kept = put_assigned(self.leaves, self.grads, self.structure.paths)

    def place(self, leaf: int) -> str:
        """The path of a leaf."""
        return self.structure.paths[leaf] or "the root"

    def lacks_every_gradient(self) -> bool:
        """Whether there is something to train, and no parameter has a gradient, frozen or not."""
        found = [(e, g) for e, g in zip(self.entries, self.grads, strict=True) if type(e) is ParamState]
        return any(not e.frozen for e, _ in found) and all(g is None for _, g in found)

    def _collect(self) -> list[Slot]:
        """The parameters that have a gradient and are not frozen, each tied one once."""
        slots: dict[int, Slot] = {}
        frozen: set[int] = set()
        for i, (x, entry, g) in enumerate(zip(self.leaves, self.entries, self.grads, strict=True)):
            if type(entry) is not ParamState:
                # Constants pass, as in arithmetic on trees; but not where the model has another.
                if not (g is None or g is x or isinstance(g, Assigned)):
                    self._report_stray(i, g)
                continue
            if isinstance(g, Assigned):
                raise ValueError(f"{self.place(i)} is a parameter, and grads assign it as a buffer")
            slot = slots.get(id(x))
            if slot is None:
                slot = slots[id(x)] = Slot(i, x, entry)
            else:
                self._tie(slot, i, entry)
            if entry.frozen:
                frozen.add(id(x))
            if g is not None:
                self._check_gradient(i, x, g)
                slot.grad = g if slot.grad is None else slot.grad + g
        return [s for key, s in slots.items() if s.grad is not None and key not in frozen]

    def _tie(self, slot: Slot, i: int, entry: ParamState) -> None:
        slot.places.append(i)
        if entry.rule is not slot.entry.rule and entry.rule != slot.entry.rule:
            raise ValueError(
                f"{self.place(slot.first)} and {self.place(i)} are tied, but the state has the rules "
                f"{slot.entry.rule!r} and {entry.rule!r} for them; adjust both places alike"
            )

    def _check_gradient(self, i: int, x: Any, g: Any) -> None:
        if (
            isinstance(g, Tensor)
            and isinstance(x, Tensor)
            and g.shape == x.shape
            and g.dtype == x.dtype
            and g.device == x.device
        ):
            if used.mesh() is not None:
                require_together("gradient", g, self.place(i), x)
            return
        path = self.place(i)
        if not isinstance(x, Tensor):
            raise ValueError(
                f"at {path}, the state is that of a parameter, but the model has {x!r}; after surgery, "
                "call setup(rule, model, carry=state)"
            )
        if not isinstance(g, Tensor):
            raise ValueError(f"at {path}, grads hold {g!r} of {type(g).__name__}; write a tensor or None")
        another = "nothing is broadcast: are these the gradients of another model?"
        for what, found, wanted, hint in (
            ("the shape", tuple(g.shape), tuple(x.shape), another),
            ("the dtype", g.dtype, x.dtype, "cast the gradient"),
            ("the device", g.device, x.device, "move one with fluxlike.to_device"),
        ):
            if found != wanted:
                raise ValueError(
                    f"at {path}, the gradient has {what} {found} and the parameter {wanted}; {hint}"
                )

    def _report_stray(self, i: int, g: Any) -> None:
        path, x = self.place(i), self.leaves[i]
        if not isinstance(g, Tensor):
            raise ValueError(
                f"grads hold {value_text(g)} at {path}, the model {value_text(x)}; if the model and the "
                "gradients are swapped, write model, state = update(state, model, grads)"
            )
        if can_train(x) and self.structure.trainable[i]:
            what = "the state holds nothing for it; after surgery, call setup(rule, model, carry=state)"
        elif isinstance(x, Tensor):
            what = "the model has a buffer there; buffers move by Assigned"
        else:
            what = f"the model has the constant {value_text(x)} there"
        raise ValueError(f"grads hold a tensor at {path}, but {what}")


def matched(state: Any, model: Any) -> tuple[list[Any], list[Any], Any]:
    """The entries of a state, the leaves of its model one by one beside them, and the model's treedef."""
    entries, state_def = flatten(state, is_param_state)
    leaves, treedef = flatten(model)
    if (
        entries
        and not any(map(is_param_state, entries))
        and any(map(is_param_state, flatten(model, is_param_state)[0]))
    ):
        raise TypeError("the state and the model are swapped: write averaged(state, model)")
    _require_fit(state, entries, state_def, model, treedef)
    return entries, leaves, treedef


def _require_fit(state: Any, entries: list[Any], state_def: Any, model: Any, treedef: Any) -> None:
    try:
        require_same(state_def, treedef, name="state", like="the model")
    except ValueError as error:
        if isinstance(model, Iterator):
            raise TypeError(
                f"the model is a {type(model).__name__}, which can be read once; of a module's parameters, "
                "give dict(module.named_parameters()) to setup and update"
            ) from None
        raise ValueError(f"{error}; {_advice(state, entries, model)}") from None


def _advice(state: Any, entries: list[Any], model: Any) -> str:
    """What to write where state and model are of different structure."""
    right = "write state = setup(rule, model)"
    if not any(map(is_param_state, entries)):
        return f"the state holds no parameter: {right}"
    if isinstance(state, list) and all(map(is_param_state, state)) and not isinstance(model, list):
        return f"the state is that of a list of parameters, such as trainables(model): {right}"
    if isinstance(model, list) and all(isinstance(x, Tensor) for x in model) and not isinstance(state, list):
        return "the model is a list of parameters, such as trainables(model): give the whole model"
    return "after surgery, call setup(rule, model, carry=state)"


def _leaves_of_gradients(grads: Any, model: Any, treedef: Any) -> list[Any]:
    """The leaves of the gradients, which have the structure of the model."""
    try:
        return leaves_like(treedef, grads, name="grads", like="the model")
    except ValueError as error:
        if isinstance(grads, Iterator):
            raise TypeError(
                f"grads are a {type(grads).__name__}, which can be read once; write list(grads)"
            ) from None
        if isinstance(grads, (Tensor, float)):
            raise ValueError(
                f"{error}; if it is the loss: value, grads = withgradient(loss, model, x, y)"
            ) from None
        if isinstance(grads, tuple) and isinstance(model, list):
            raise ValueError(f"{error}; write list(grads)") from None
        part = _part_like(model, flatten(grads)[1])
        if part is None:
            raise
        raise ValueError(
            f"{error}; it fits the model's {part}: gradient returns the tree itself, so write "
            "grads = gradient(loss, model, x, y), without [0]"
        ) from None


def _part_like(node: Any, treedef: Any, path: str = "") -> str | None:
    """The path of the first node below another that has this structure; None if none has."""
    for step, child in paths.children(node):
        here = path + step.text
        if paths.is_node(child):
            found = here if flatten(child)[1] == treedef else _part_like(child, treedef, here)
            if found is not None:
                return found
    return None


def _check_order(state: Any, entries: list[Any], model: Any, grads: Any) -> None:
    """Refuse what is no state of an optimiser, and results that were not unpacked."""
    right = "write model, state = update(state, model, grads)"
    if is_rule(state):
        raise TypeError(f"the first argument is a rule: write state = setup(rule, model) first, then {right}")
    for name, x in (("state", state), ("model", model)):
        if _is_pair_of_update(x):
            raise TypeError(f"the {name} is all that update returned: unpack it, {right}")
    if isinstance(grads, tuple) and len(grads) == 2 and not isinstance(model, (tuple, list)):
        raise TypeError(
            "grads is a pair: unpack it, value, grads = withgradient(loss, model, x, y), or differentiate "
            "one argument"
        )
    if any(is_param_state(x) for x in entries) or not any(isinstance(x, Tensor) for x in entries):
        return
    if any(is_param_state(x) for x in flatten(model, is_param_state)[0]):
        raise TypeError(f"the state and the model are swapped: {right}")
    raise TypeError(
        "the first argument of update holds tensors, but no state of an optimiser: write "
        f"state = setup(rule, model), then {right}"
    )


def _is_pair_of_update(x: Any) -> bool:
    if not (type(x) is tuple and len(x) == 2):
        return False
    first, second = (any(map(is_param_state, flatten(part, is_param_state)[0])) for part in x)
    return second and not first
