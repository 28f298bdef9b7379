"""The state of an optimiser: a tree in the model's shape, with a `ParamState` per parameter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fluxlike.layers.auto import require_sized
from fluxlike.optimisers.counters import shared_counters
from fluxlike.optimisers.on_ranks import require_together
from fluxlike.optimisers.rule import Rule, as_functor, hook, is_rule, rules_in
from fluxlike.placement.dtype import stays_float32
from fluxlike.placement.mesh.entries import belongs_to_parameter
from fluxlike.schedules.schedule import Formula
from fluxlike.trees.fmap import fleaves
from fluxlike.trees.functor import functor
from fluxlike.trees.structure import flatten, structure_of
from fluxlike.trees.trainables import parameters
from fluxlike.trees.values import value_of

__all__ = ["ParamState", "computed", "is_param_state", "setup"]


@functor(trainable=("rule",))
@dataclass(frozen=True, repr=False)
class ParamState:
    """What an optimiser keeps for one parameter.

    Attributes:
        rule: the rule that moves it, with its hyperparameters.
        state: the rule's own state.
        frozen: whether updates pass it by.
    """

    rule: Any
    state: Any
    frozen: bool = False

    def __repr__(self) -> str:
        return f"ParamState({self.rule!r}{', frozen' if self.frozen else ''})"

    if not TYPE_CHECKING:  # to type checkers, a name that is not there is an error

        def __getattr__(self, name: str) -> Any:
            # A layer asks what it takes for its weight for a shape, where the state was given for the model.
            raise AttributeError(
                f"a ParamState, what an optimiser keeps for one parameter, has no {name!r}; if a model was "
                "meant: update returns (model, state), in this order"
            )


stays_float32(ParamState)
belongs_to_parameter(ParamState)


def is_param_state(x: object, /) -> bool:
    """Whether `x` is a `ParamState`."""
    return type(x) is ParamState


def computed(x: Tensor, /) -> Tensor:
    """A parameter or gradient in the form in which rules compute: real, and at least float32."""
    if x.is_complex():
        wide = x.to(torch.complex64) if x.dtype == torch.complex32 else x
        return torch.view_as_real(wide.resolve_conj())
    return x.float() if x.is_floating_point() and x.element_size() < 4 else x


def setup(rule: Rule | Callable[[str], Rule], model: Any, /, *, carry: Any = None) -> Any:
    """The first state of an optimiser for a model.

    Args:
        rule: a rule for all parameters, or a function from the path of a parameter to its rule.
        model: any tree.
        carry: the state of the model before surgery. A parameter that has a state there, at its path
            and of its shape, goes on with it, frozen or not, if the rule there is of the same kind; the
            hyperparameters are those of `rule`. A new part of the old shape can't be told from the old
            one: take its state out, ``carry=fl.at(state, where).set(None)``. (default: a fresh start)

    Returns:
        A tree in the model's shape, with a `ParamState` at each parameter (at all places of a tied
        one) and None elsewhere. It is a tree like any other: save it, move it, map over it.

    Raises:
        TypeError: `rule` is no rule, or a class instead of an object, or the two are swapped, or `model` is
            a state, or `carry` is none; or a rule for real matrices meets a complex parameter.
        ValueError: the function gives different rules to places that are tied; or what is carried over is
            not over the mesh of its parameter.
        RuntimeError: a layer made with `auto` has no sizes yet.

    Warns:
        UserWarning: there is nothing to train, or nothing to carry over, or a function of the path tells no
            parameter from another.

    Example:
        >>> import fluxlike as fl
        >>> model = fl.Chain(fl.Dense(4, 3), fl.Dense(3, 2))
        >>> state = fl.setup(fl.Adam(1e-3), model)
        >>> state.layers[0].weight.rule
        Adam(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0)
        >>> by_path = lambda path: fl.Descent(0.1) if path.startswith(".layers[0]") else fl.Adam()
        >>> fl.setup(by_path, model).layers[0].bias.rule
        Descent(lr=0.1)

        A new head; the body goes on with the moments that it has:

        >>> model = fl.at(model, lambda m: m.layers[1]).set(fl.Dense(3, 5))
        >>> state = fl.setup(fl.Adam(1e-3), model, carry=state)
    """
    if is_rule(model) and not is_rule(rule):
        raise TypeError("the rule and the model are swapped: write setup(rule, model)")
    if isinstance(model, Iterator):
        raise TypeError(
            f"the model is a {type(model).__name__}, which can be read once; of a module's parameters, write "
            "setup(rule, dict(module.named_parameters()))"
        )
    require_sized(model, "setup")
    leaves, treedef = flatten(model)
    structure = structure_of(treedef)
    found = parameters(leaves, structure.trainable)
    if not found.first:
        if any(map(is_param_state, flatten(model, is_param_state)[0])):
            raise TypeError(
                "the model is the state of an optimiser: update returns (model, state), in this order; write "
                "model, state = update(state, model, grads)"
            )
        warnings.warn("setup found no parameter to train in the model", stacklevel=2)
    rule_at = _rule_function(rule)
    earlier = _entries_by_path(carry) if carry is not None else {}
    carried = 0
    made: dict[int, tuple[str, ParamState]] = {}
    result: list[Any] = [None] * len(leaves)
    with shared_counters() as counters:
        for i, x in enumerate(leaves):
            if id(x) not in found.number:
                continue
            path = structure.paths[i]
            chosen = rule_at(path)
            if not is_rule(chosen):
                raise TypeError(_no_rule(chosen, path))
            if id(x) in made:
                first, entry = made[id(x)]
                if entry.rule is not chosen and entry.rule != chosen:
                    raise ValueError(
                        f"{first} and {path} are tied, but have the rules {entry.rule!r} and {chosen!r}; "
                        "give all places of a tied parameter the same rule"
                    )
            else:
                counters.of(chosen, x)
                entry, continued = _first_entry(chosen, x, path, earlier.get(path))
                carried += continued
                made[id(x)] = path, entry
            result[i] = entry
    if not is_rule(rule):
        _require_told_apart([(path, entry.rule) for path, entry in made.values()])
    if earlier and not carried:
        kinds = sorted({type(e.rule).__name__ for e in earlier.values()})
        warnings.warn(
            "setup found no parameter whose state could be carried over: none has its path, its shape and "
            f"the kind of its rule in the state, which is of {', '.join(kinds)}",
            stacklevel=2,
        )
    return treedef.unflatten(result)


def _require_told_apart(chosen: list[tuple[str, Any]]) -> None:
    """Warn of a function of the path that gives all parameters one rule: what it looks for isn't there."""
    rules = iter(chosen)
    path, first = next(rules, ("", None))
    printed = repr(first)
    if len(chosen) > 1 and all(rule is first or repr(rule) == printed for _, rule in rules):
        warnings.warn(
            f"the function of the path gave all {len(chosen)} parameters the rule {printed:.200}: it tells "
            f"none of their paths from another, which are as {path} and {chosen[-1][0]}; if one rule is "
            "meant, write setup(rule, model)",
            stacklevel=3,
        )


def _first_entry(rule: Any, x: Tensor, path: str, earlier: ParamState | None) -> tuple[ParamState, bool]:
    """The first entry of one parameter, and whether it continues an earlier one."""
    as_functor(rule)
    if x.is_complex() and any(hook(r, "real_only") for r in rules_in(rule)):
        raise TypeError(
            f"{path} is a complex parameter, for which {rule!r} has no formula; use Adam or Momentum"
        )
    wide = computed(value_of(x))
    state = rule.init(wide)
    if (
        earlier is None
        or [type(r) for r in rules_in(earlier.rule)] != [type(r) for r in rules_in(rule)]
        or not _alike(earlier.state, state)
        or not _belongs(rule, earlier.state, x, wide)
    ):
        return ParamState(rule, state), False
    for t in fleaves(earlier.state):
        require_together("state", t, path, wide)
    return ParamState(rule, earlier.state, earlier.frozen), True


def _belongs(rule: Any, state: Any, x: Tensor, wide: Tensor) -> bool:
    """Whether the copies of the parameter that a state holds, if any, are of this parameter."""
    own = hook(rule, "belongs")
    if own is not None and not own(state, x):
        return False
    parts = hook(rule, "parts")
    inside = parts(state, wide) if parts is not None else ()
    return all(_belongs(r, s, x, p) for r, s, p in inside)


def _alike(state: Any, like: Any) -> bool:
    """Whether two states have one structure, and tensors of one shape, dtype and device."""
    (xs, a), (ys, b) = flatten(state), flatten(like)
    return a == b and all(
        isinstance(x, Tensor) is isinstance(y, Tensor)
        and (not isinstance(y, Tensor) or (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device))
        for x, y in zip(xs, ys, strict=True)
    )


def _entries_by_path(state: Any) -> dict[str, ParamState]:
    """The entries of a state by the path of their parameter."""
    entries, treedef = flatten(state, is_param_state)
    if not any(map(is_param_state, entries)):
        raise TypeError(
            "carry holds no state of an optimiser; write setup(rule, edited_model, carry=state) with what "
            "setup or update returned"
        )
    paths = structure_of(treedef).paths
    return {path: e for path, e in zip(paths, entries, strict=True) if is_param_state(e)}


def _rule_function(rule: Any) -> Callable[[str], Any]:
    if is_rule(rule):
        return lambda path: rule
    if isinstance(rule, type) or not callable(rule) or isinstance(rule, Formula) or fleaves(rule):
        raise TypeError(_no_rule(rule, None))
    return rule


def _no_rule(rule: Any, path: str | None) -> str:
    where = "" if path is None else f" for {path}"
    if isinstance(rule, Formula):
        return f"setup got the schedule {rule!r}{where}; write setup(Scheduled(Adam(), lr=schedule), model)"
    if isinstance(rule, (list, tuple)) and rule and all(map(is_rule, rule)):
        return f"setup got a {type(rule).__name__} of rules{where}; write OptimiserChain(*rules)"
    if isinstance(rule, type) and issubclass(rule, torch.optim.Optimizer):
        return f"setup got torch's class {rule.__name__}{where}: write a rule, such as fluxlike.Adam(1e-3)"
    if isinstance(rule, type):
        return f"setup got the class {rule.__name__}{where} instead of a rule: write {rule.__name__}()"
    if isinstance(rule, torch.optim.Optimizer):
        return f"setup got a torch optimiser{where}: write the rule, such as fluxlike.Adam(1e-3)"
    if path is None and isinstance(rule, (dict, list, tuple)):
        return (
            f"setup got a {type(rule).__name__} instead of a rule such as Adam(1e-3); for rules by place, "
            "write a function of the path: setup(lambda path: Adam(1e-3) if '.bias' in path else "
            "Adam(1e-4), model)"
        )
    if any(map(is_param_state, flatten(rule, is_param_state)[0])):
        return (
            f"setup got the state of an optimiser{where} instead of a rule such as Adam(1e-3); a Learner "
            "takes it besides the rule: Learner(model, data, rule, loss, state=state)"
        )
    if callable(rule) and fleaves(rule):
        return f"setup got a {type(rule).__name__}{where}, with tensors, instead of a rule such as Adam(1e-3)"
    hint = "; to leave a parameter alone, freeze(state, where)" if rule is None else ""
    return f"setup got {rule!r}{where} instead of a rule such as Adam(1e-3){hint}"
