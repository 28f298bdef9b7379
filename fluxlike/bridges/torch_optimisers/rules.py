"""Which optimiser of torch.optim is which rule, and their hyperparameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from fluxlike.optimisers.links import WeightDecay
from fluxlike.optimisers.rules.adam import Adam, AdaMax, AdamW, AMSGrad, NAdam, RAdam
from fluxlike.optimisers.rules.adaptive import AdaDelta, AdaGrad, RMSProp
from fluxlike.optimisers.rules.descent import Descent, Momentum, Nesterov
from fluxlike.optimisers.rules.matrix import Adafactor, Muon, MuonState
from fluxlike.optimisers.rules.sign import Rprop
from fluxlike.optimisers.state import ParamState
from fluxlike.optimisers.wrappers import OptimiserChain

__all__ = ["Pair", "rule_of", "torch_form"]


@dataclass(frozen=True)
class Pair:
    """A rule, and the optimiser of torch that does the same; names of hyperparameters are shared.

    Attributes:
        rule: the rule's class.
        torch: torch's class.
        options: what only torch has, with the values that make it this rule.
        buffer: torch's name for a state that is one tensor.
        counts: whether torch counts steps that the rule has no need of.
    """

    rule: Any
    torch: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    buffer: str = ""
    counts: bool = False


_o = torch.optim
_PAIRS = (
    Pair(Nesterov, _o.SGD, {"nesterov": True, "dampening": 0}, "momentum_buffer"),
    Pair(Descent, _o.SGD, {"momentum": 0, "nesterov": False}),
    Pair(Momentum, _o.SGD, {"nesterov": False, "dampening": 0}, "momentum_buffer"),
    Pair(AMSGrad, _o.Adam, {"amsgrad": True}),
    Pair(AdamW, _o.AdamW, {"amsgrad": False, "decoupled_weight_decay": True}),
    Pair(Adam, _o.Adam, {"amsgrad": False, "decoupled_weight_decay": False}),
    Pair(NAdam, _o.NAdam),
    Pair(RAdam, _o.RAdam),
    Pair(AdaMax, _o.Adamax),
    Pair(AdaGrad, _o.Adagrad),
    Pair(AdaDelta, _o.Adadelta, counts=True),
    Pair(RMSProp, _o.RMSprop, counts=True),
    Pair(Rprop, _o.Rprop, counts=True),
    Pair(Adafactor, _o.Adafactor),
    Pair(Muon, _o.Muon),
)

_SAME_FAMILY: dict[Any, Any] = {_o.AdamW: _o.Adam}  # they differ by an option that every group has

_NEAREST_IN_TORCH = {
    "OAdam": "torch.optim.Adam",
    "AdaBelief": "torch.optim.Adam",
    "Lion": "torch.optim.SGD with momentum",
    "Lamb": "torch.optim.AdamW",
    "ScheduleFree": "torch.optim.AdamW",
    "Scheduled": "the rule inside, and a scheduler of torch.optim.lr_scheduler on its optimiser",
    "EMA": "the rule inside, and torch.optim.swa_utils.AveragedModel",
    "Lookahead": "the rule inside",
    "MixedPrecision": "the rule inside, over a float32 module",
    "ApplyIfFinite": "the rule inside, and torch.amp.GradScaler, which skips such steps",
    "AccumGrad": "the rules after it, and backward n times before each step, of the loss divided by n",
    "ClipGrad": "the rules after it, and torch.nn.utils.clip_grad_value_ before each step",
    "ClipNorm": "the rules after it, and torch.nn.utils.clip_grad_norm_ on each parameter",
    "ClipGlobalNorm": "the rules after it, and torch.nn.utils.clip_grad_norm_ before each step",
    "SignDecay": "the rules after it, and the penalty in the loss",
    "WeightDecay": "the rule after it, with weight_decay",
}

_NEAREST_HERE = {
    "ASGD": "fluxlike.EMA(fluxlike.Descent(lr))",
    "LBFGS": "fluxlike.Rprop, which also takes gradients over all data",
    "SparseAdam": "fluxlike.Adam",
}


def torch_form(entry: ParamState, path: str) -> tuple[Pair, dict[str, Any], Any]:
    """The pair of a rule, the hyperparameters of torch's group, and the state of the rule itself."""
    rule, state, penalty = entry.rule, entry.state, 0.0
    if isinstance(rule, OptimiserChain):
        links = list(zip(rule.rules, state, strict=True))
        if len(links) > 1 and type(links[0][0]) is WeightDecay:
            penalty = _number(links.pop(0)[0].weight_decay)
        if len(links) != 1:
            odd = next((r for r, _ in links if type(r).__name__ in _NEAREST_IN_TORCH), rule)
            _no_torch(odd, path)
        rule, state = links[0]
    pair = next((p for p in _PAIRS if type(rule) is p.rule), None)
    if pair is None or (isinstance(rule, AdamW) and not rule.couple):
        _no_torch(rule, path)
    if isinstance(rule, Muon) and not isinstance(state, MuonState):
        raise ValueError(
            f"{path} is no matrix, so Muon leaves it to {type(rule.rest).__name__}, and torch.optim.Muon has "
            "matrices alone; freeze the others to translate these, and set up two rules by path for both"
        )
    names = [f.name for f in dataclasses.fields(rule)]
    known = pair.torch([torch.nn.Parameter(torch.zeros(1, 1))]).defaults
    hyper = {name: _number(getattr(rule, name)) for name in names if name in known}
    hyper.update(pair.options)
    if penalty:
        decoupled = hyper.get("decoupled_weight_decay", pair.torch in (_o.Muon, _o.Adafactor))
        if hyper.get("weight_decay", 0) or decoupled or "weight_decay" not in known:
            _no_torch(OptimiserChain(WeightDecay(penalty), rule), path)
        hyper["weight_decay"] = penalty
    return pair, hyper, state


def _number(value: Any) -> Any:
    """A hyperparameter as a number: torch takes no tensors for most."""
    if isinstance(value, tuple):
        return tuple(_number(v) for v in value)
    return value.item() if isinstance(value, Tensor) else value


def _no_torch(rule: Any, path: str) -> NoReturn:
    nearest = _NEAREST_IN_TORCH.get(type(rule).__name__, "an optimiser of your own")
    if isinstance(rule, OptimiserChain):
        nearest = "an optimiser for its last rule, with the links before it applied to p.grad"
    if isinstance(rule, AdamW):
        nearest = "torch.optim.AdamW with weight_decay divided by lr"
    raise ValueError(f"torch.optim has nothing for {rule!r} at {path}; the nearest is {nearest}")


def rule_of(optimiser: torch.optim.Optimizer, group: dict[str, Any]) -> Any:
    """The rule that does what a group of an optimiser of torch does."""
    cls: Any = type(optimiser)
    family = _SAME_FAMILY.get(cls, cls)
    name = cls.__name__
    if not any(family is _SAME_FAMILY.get(p.torch, p.torch) for p in _PAIRS):
        nearest = _NEAREST_HERE.get(name, "a rule of your own, with init and apply")
        raise ValueError(f"fluxlike has no rule for {name}; the nearest is {nearest}")
    if group.get("maximize"):
        raise ValueError(
            f"{name} maximises, which no rule of fluxlike does; minimise the loss with a minus sign"
        )
    for pair in _PAIRS:
        same = _SAME_FAMILY.get(pair.torch, pair.torch) is family
        if same and all(group.get(key) == value for key, value in pair.options.items()):
            break
    else:
        odd = {k: group[k] for k in ("dampening", "nesterov", "momentum", "amsgrad") if k in group}
        raise ValueError(f"fluxlike has no rule for {name} with {odd}; the nearest is fluxlike.Momentum")
    hyper = {f.name: _hyper(f, group[f.name]) for f in dataclasses.fields(pair.rule) if f.name in group}
    rule = pair.rule(**hyper)
    penalty = _number(group.get("weight_decay", 0))
    return (
        OptimiserChain(WeightDecay(float(penalty)), rule) if penalty and "weight_decay" not in hyper else rule
    )


def _hyper(known: Any, value: Any) -> Any:
    value = _number(value)
    if isinstance(value, list):
        value = tuple(value)
    return float(value) if type(value) is int and isinstance(known.default, float) else value
