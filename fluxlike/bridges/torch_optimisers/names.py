"""Which parameter of a torch module stands for which of a tree: by identity, by name, or by order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike.optimisers.state import ParamState
from fluxlike.trees.paths import dotted

__all__ = ["match", "named_parameters", "owned"]


def named_parameters(module: Any) -> dict[str, Tensor]:
    """The parameters of a module by name, or of an iterable by number."""
    if isinstance(module, torch.nn.Module):
        return dict(module.named_parameters())
    if isinstance(module, (torch.optim.Optimizer, Tensor, str)) or not isinstance(module, Iterable):
        raise TypeError(
            f"module is a {type(module).__name__}; write to_torch_optimiser(rule, state, module) with an "
            "nn.Module or its parameters"
        )
    items = module.items() if isinstance(module, Mapping) else enumerate(module)
    return {str(name): p for name, p in items}


def match(found: dict[str, ParamState], named: dict[str, Tensor]) -> dict[str, tuple[Tensor, ParamState]]:
    """By the first path of each parameter of a state, the module's parameter and the entry."""
    places: dict[int, list[str]] = {}  # those of a tied parameter share the entry
    for path, entry in found.items():
        places.setdefault(id(entry), []).append(path)
    names = {paths[0]: [n for n in map(dotted, paths) if n in named] for paths in places.values()}
    if any(names.values()):
        missing = next((path for path, found_names in names.items() if not found_names), None)
        if missing is not None:
            raise ValueError(f"the module has no parameter {dotted(missing)!r} for {missing} of the state")
        return {path: (named[found_names[0]], found[path]) for path, found_names in names.items()}
    _refuse_order(names, "give the model's dict the names of the module's parameters")
    if len(names) != len(named):
        raise ValueError(
            f"the state has {len(names)} parameters and the module {len(named)}, and no name is shared: "
            f"{next(iter(names), 'nothing')} here, {next(iter(named), 'nothing')} there"
        )
    return {path: (param, found[path]) for path, param in zip(names, named.values(), strict=True)}


def owned(
    optimiser: torch.optim.Optimizer, places: dict[str, Tensor], module: Any
) -> dict[str, tuple[int, Tensor]]:
    """For each path of the model, the number of its group and the optimiser's parameter."""
    groups = optimiser.param_groups
    number = {id(p): k for k, group in enumerate(groups) for p in group["params"]}
    all_params = [p for group in groups for p in group["params"]]
    same = {path: (number[id(x)], x) for path, x in places.items() if id(x) in number}
    if same:
        _require_all(len(same), all_params)
        return same
    names = _names_in(optimiser, module)
    if names:
        wanted = {path: names.get(dotted(path)) for path in places}
        by_name = {
            path: (number[id(p)], p) for path, p in wanted.items() if p is not None and id(p) in number
        }
        if by_name:
            _require_all(len({id(p) for _, p in by_name.values()}), all_params)
            return _checked(by_name, places)
    if module is not None and not any(id(p) in number for p in names.values()):
        raise ValueError(
            "the optimiser has none of the module's parameters; give the module that it was made for"
        )
    if names and module is not None:
        in_order: Sequence[Tensor] = list(names.values())
    elif len(groups) == 1:
        in_order = all_params
    else:
        raise ValueError(
            "the optimiser has several groups and no names, so that its parameters can't be told apart; "
            "write from_torch_optimiser(optimiser, model, module=module)"
        )
    _refuse_order(places, "write from_torch_optimiser(optimiser, model, module=module)")
    if len(in_order) != len(places):
        raise ValueError(f"there are {len(in_order)} parameters of torch and {len(places)} in the model")
    pairs = zip(places, in_order, strict=True)
    return _checked({path: (number[id(p)], p) for path, p in pairs if id(p) in number}, places)


def _names_in(optimiser: torch.optim.Optimizer, module: Any) -> dict[str, Tensor]:
    if module is not None:
        return named_parameters(module)
    groups = optimiser.param_groups
    if any("param_names" not in group for group in groups):
        return {}
    return {name: p for g in groups for name, p in zip(g["param_names"], g["params"], strict=True)}


def _refuse_order(paths: Collection[str], hint: str) -> None:
    keyed = next((path for path in paths if "['" in path), None)
    if keyed is not None and len(paths) > 1:
        raise ValueError(
            f"{keyed} stands in a dict, whose order says nothing about the order in torch, and no name is "
            f"shared; {hint}"
        )


def _require_all(count: int, params: Sequence[Tensor]) -> None:
    if count < len(params):
        raise ValueError(
            f"the optimiser has {len(params)} parameters, of which the model has {count}; the moments of the "
            "others would be lost"
        )


def _checked(
    owned: dict[str, tuple[int, Tensor]], places: dict[str, Tensor]
) -> dict[str, tuple[int, Tensor]]:
    for path, (_, p) in owned.items():
        if p.shape != places[path].shape:
            raise ValueError(
                f"{path} of the model is of shape {tuple(places[path].shape)}, the parameter of torch that "
                f"stands for it of {tuple(p.shape)}"
            )
    return owned
