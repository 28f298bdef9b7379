"""Optimisers of torch.optim as rules and states, and back, in the middle of a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from fluxlike.bridges.torch_optimisers.names import match, named_parameters, owned
from fluxlike.bridges.torch_optimisers.rules import Pair, rule_of, torch_form
from fluxlike.optimisers.rule import is_rule
from fluxlike.optimisers.state import ParamState, computed, is_param_state, setup
from fluxlike.optimisers.wrappers import OptimiserChain
from fluxlike.trees.structure import flatten, structure_of
from fluxlike.trees.trainables import parameters

__all__ = ["from_torch_optimiser", "to_torch_optimiser"]


def to_torch_optimiser(rule: Any, state: Any, module: Any, /) -> torch.optim.Optimizer:
    """The optimiser of torch that goes on where a state is.

    The parameters of the module must have the model's values; this takes hyperparameters, moments and
    counters. Parameters are matched by name, as ``.layers[0].weight`` and ``layers.0.weight``; where no
    name is shared, by their order and shape. Frozen ones are left out of the optimiser.

    Args:
        rule: the rule, or the function from paths to rules, that the state was set up with.
        state: the state; its rules, with what `adjust` changed, are those that count. None for a fresh
            start by `rule`.
        module: the `nn.Module` with the parameters, or an iterable of them in the order of the model.

    Returns:
        An optimiser with copies of the moments, and a group for each different rule.

    Raises:
        ValueError: a rule that torch has not, with the nearest; rules of more than one class; or
            parameters that don't fit those of the state.
        TypeError: arguments of the wrong kind, or in the wrong order.

    Warns:
        UserWarning: the moments of 16-bit parameters are rounded, since torch keeps them in 16 bits.

    Example:
        >>> import torch, fluxlike as fl
        >>> module = torch.nn.Linear(3, 2)
        >>> model = {name: p.detach().clone() for name, p in module.named_parameters()}
        >>> state = fl.setup(fl.AdamW(1e-3), model)
        >>> type(fl.to_torch_optimiser(fl.AdamW(1e-3), state, module)).__name__
        'AdamW'
    """
    named = named_parameters(module)
    if state is None:
        if not is_rule(rule):
            raise ValueError(
                "state=None starts afresh with one rule for all; give the state for rules by path"
            )
        state = setup(rule, dict(named))
    if is_rule(state) or isinstance(state, torch.nn.Module):
        raise TypeError("write to_torch_optimiser(rule, state, module)")
    entries, treedef = flatten(state, is_param_state)
    if not any(map(is_param_state, entries)):
        raise TypeError(
            f"state is {type(state).__name__}, which holds no state of an optimiser; give what setup returned"
        )
    paths = structure_of(treedef).paths
    found = {p: e for p, e in zip(paths, entries, strict=True) if is_param_state(e)}
    matched = match(found, named)
    groups: dict[Any, dict[str, Any]] = {}
    classes: dict[type, str] = {}
    kept: list[tuple[Tensor, dict[str, Any]]] = []
    for path, (param, entry) in matched.items():
        if entry.frozen:
            continue
        pair, hyper, inner = torch_form(entry, path)
        classes.setdefault(pair.torch, path)
        group = groups.setdefault(repr(sorted(hyper.items(), key=str)), {"params": [], **hyper})
        group["params"].append(param)
        kept.append((param, _torch_state(pair, inner, param, path)))
    if len(classes) != 1:
        _report_classes(classes)
    if any(p.element_size() < (8 if p.is_complex() else 4) for p, _ in kept):
        warnings.warn(
            "torch keeps the moments of 16-bit parameters in 16 bits: they were rounded", stacklevel=2
        )
    cls: Any = next(iter(classes))
    optimiser: torch.optim.Optimizer = cls(list(groups.values()))
    for param, values in kept:
        if values:
            optimiser.state[param] = values
    return optimiser


def _report_classes(classes: dict[Any, str]) -> NoReturn:
    if not classes:
        raise ValueError("all parameters of the state are frozen, so there is nothing to optimise")
    said = ", ".join(f"torch.optim.{cls.__name__} at {path}" for cls, path in classes.items())
    raise ValueError(
        f"the parameters need an optimiser of torch each: {said}; translate them one by one, with the others "
        "frozen"
    )


def from_torch_optimiser(
    optimiser: torch.optim.Optimizer, model: Any, /, *, module: Any = None
) -> tuple[Any, Any]:
    """The rule and the state with which a run of torch goes on.

    The model must have the values of the optimiser's parameters; this takes hyperparameters, moments and
    counters. Parameters are matched by identity, where the model holds the module's own; then by name;
    then by order and shape, where there is one group and no dict in the model (the keys of a dict have an
    order of their own). Those that the optimiser has not are frozen.

    Args:
        optimiser: the optimiser of torch.
        model: the model, a tree.
        module: the `nn.Module` whose parameters the optimiser has, for their names. Not needed where the
            optimiser was made of ``module.named_parameters()``, or the model holds the parameters.
            (default: None)

    Returns:
        ``(rule, state)``: a rule, or a function from paths to rules where groups differ, as `setup` takes
        it; and the state for `update`.

    Raises:
        ValueError: an optimiser or option that fluxlike has not, with the nearest; or parameters that
            don't fit those of the model.
        TypeError: arguments of the wrong kind, or in the wrong order.

    Example:
        >>> import torch, fluxlike as fl
        >>> module = torch.nn.Linear(3, 2)
        >>> optimiser = torch.optim.Adam(module.parameters(), 1e-2)
        >>> module(torch.ones(3)).sum().backward()
        >>> optimiser.step()
        >>> rule, state = fl.from_torch_optimiser(optimiser, dict(module.named_parameters()))
        >>> rule, int(state["bias"].state.step)
        (Adam(lr=0.01, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0), 1)
    """
    if not isinstance(optimiser, torch.optim.Optimizer):
        raise TypeError(
            f"the first argument is a {type(optimiser).__name__}, no optimiser of torch; write "
            "from_torch_optimiser(optimiser, model)"
        )
    rules = [rule_of(optimiser, group) for group in optimiser.param_groups]
    leaves, treedef = flatten(model)
    structure = structure_of(treedef)
    mine = parameters(leaves, structure.trainable)
    places = {structure.paths[i]: leaves[i] for i in mine.first}
    theirs = owned(optimiser, places, module)
    entries: dict[int, ParamState] = {}
    scalars: dict[Any, Tensor] = {}
    rule_of_leaf: dict[int, Any] = {}
    for path, x in places.items():
        number, param = theirs.get(path, (0, None))
        rule = rule_of_leaf[id(x)] = rules[number]
        start = rule.init(computed(x.detach()))
        if param is None:
            entries[id(x)] = ParamState(rule, start, frozen=True)
            continue
        kept = optimiser.state.get(param, {})
        entries[id(x)] = ParamState(rule, _our_state(rule, start, kept, path, scalars))
    state = treedef.unflatten([entries.get(id(x)) if isinstance(x, Tensor) else None for x in leaves])
    distinct = {repr(rule): rule for rule in rules}
    if len(distinct) == 1:
        return rules[0], state
    by_path = {structure.paths[i]: rule_of_leaf[id(x)] for i, x in enumerate(leaves) if id(x) in rule_of_leaf}
    return lambda path: by_path.get(path, rules[0]), state


def _torch_state(pair: Pair, state: Any, param: Tensor, path: str) -> dict[str, Any]:
    """torch's state of one parameter: copies, in the parameter's dtype."""
    if state is None:
        return {}
    if isinstance(state, Tensor):
        return {pair.buffer: _for_torch(state, param, path)}
    values = {name: t for name, t in state._asdict().items() if t is not None}
    result: dict[str, Any] = {"step": torch.zeros(())} if pair.counts else {}
    for name, t in values.items():
        if name == "step":
            result[name] = torch.tensor(float(t), dtype=torch.float32)
        elif name in pair.rule.shared:
            result[name] = t.clone()
        else:
            result[name] = _for_torch(t, param, path)
    return result


def _for_torch(t: Tensor, param: Tensor, path: str) -> Tensor:
    if param.is_complex():
        t = torch.view_as_complex(t.contiguous())
    if t.ndim == param.ndim and any(n not in (m, 1) for n, m in zip(t.shape, param.shape, strict=True)):
        raise ValueError(
            f"the state of {path} is of shape {tuple(t.shape)}, the parameter of the module of "
            f"{tuple(param.shape)}"
        )
    return t.detach().to(device=param.device, dtype=param.dtype, copy=True)


def _our_state(rule: Any, start: Any, kept: Mapping[str, Any], path: str, scalars: dict[Any, Tensor]) -> Any:
    """The state of a rule with torch's values; `start` is that of its first step."""
    if isinstance(rule, OptimiserChain):
        return (*start[:-1], _our_state(rule.rules[-1], start[-1], kept, path, scalars))
    if start is None or not kept:
        return start
    if isinstance(start, Tensor):
        buffer = kept.get("momentum_buffer")
        return start if buffer is None else _for_us(buffer, start, path)
    values: dict[str, Any] = {}
    for name, old in start._asdict().items():
        if old is None:
            values[name] = None
        elif name in rule.shared:
            value = float(kept[name])
            key = (name, value, old.device)
            values[name] = scalars.setdefault(key, torch.full_like(old, value))
        else:
            values[name] = _for_us(kept[name], old, path)
    return type(start)(**values)


def _for_us(t: Tensor, like: Tensor, path: str) -> Tensor:
    if t.is_complex():
        t = torch.view_as_real(t)
    if t.shape != like.shape:
        raise ValueError(
            f"torch's state for {path} is of shape {tuple(t.shape)}, the parameter's here of "
            f"{tuple(like.shape)}"
        )
    return t.detach().to(device=like.device, dtype=like.dtype, copy=True)
