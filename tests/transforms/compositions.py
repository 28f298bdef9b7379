"""Every transform around a function, alone and in pairs: what a derivative of one's own must agree under.

Each takes a function that works entry by entry, and three numbers, and gives a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import fluxlike as fl

Function = Callable[[Tensor], Tensor]


def slope(f: Function) -> Function:
    """The derivative of a function that works entry by entry."""
    return lambda x: fl.gradient(lambda x: f(x).sum(), x)


def slope_of_torch(f: Function) -> Function:
    return torch.func.grad(lambda x: f(x).sum())


def pushed(f: Function) -> Function:
    return lambda x: fl.pushforward(f, x, v=torch.ones_like(x))[1]


def pushed_by_torch(f: Function) -> Function:
    return lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]


def pulled(f: Function) -> Function:
    def run(x: Tensor) -> Tensor:
        value, back = fl.pullback(f, x)
        return value * back(torch.ones_like(x))

    return run


def reached_through_a_closure(f: Function) -> Function:
    """The function of a tensor that an inner gradient knows by a closure alone."""
    return lambda x: fl.gradient(lambda s: (s * f(x)).sum(), torch.ones_like(x)).square()


COMPOSITIONS: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "value": lambda f, x: f(x),
    "gradient": lambda f, x: slope(f)(x),
    "gradient of gradient": lambda f, x: slope(slope(f))(x),
    "gradient three deep": lambda f, x: slope(slope(slope(f)))(x),
    "gradient through a closure": lambda f, x: slope(reached_through_a_closure(f))(x),
    "vmap": lambda f, x: fl.vmap(f)(x),
    "vmap of gradient": lambda f, x: fl.vmap(slope(f))(x),
    "gradient of vmap": lambda f, x: slope(fl.vmap(f))(x),
    "vmap of gradient of gradient": lambda f, x: fl.vmap(slope(slope(f)))(x),
    "gradient of vmap of gradient": lambda f, x: slope(fl.vmap(slope(f)))(x),
    "vmap of vmap of gradient": lambda f, x: fl.vmap(fl.vmap(slope(f)))(x.view(1, -1)),
    "pullback": lambda f, x: pulled(f)(x),
    "gradient of pullback": lambda f, x: slope(pulled(f))(x),
    "vmap of pullback": lambda f, x: fl.vmap(pulled(f))(x),
    "pushforward": lambda f, x: pushed(f)(x),
    "pushforward of pushforward": lambda f, x: pushed(pushed(f))(x),
    "pushforward of gradient": lambda f, x: pushed(slope(f))(x),
    "gradient of pushforward": lambda f, x: slope(pushed(f))(x),
    "vmap of pushforward": lambda f, x: fl.vmap(pushed(f))(x),
    "pushforward of vmap": lambda f, x: pushed(fl.vmap(f))(x),
    "jacobian": lambda f, x: fl.jacobian(f, x),
    "jacobian of jacobian": lambda f, x: fl.jacobian(lambda x: fl.jacobian(f, x), x),
    "wide jacobian": lambda f, x: fl.jacobian(lambda x: f(x).expand(30), x[:1]),
    "gradient of jacobian": lambda f, x: slope(lambda x: fl.jacobian(f, x))(x),
    "hessian": lambda f, x: fl.hessian(lambda x: f(x).sum() ** 3, x),
    "vmap of hessian": lambda f, x: fl.vmap(lambda x: fl.hessian(lambda x: f(x).sum() ** 3, x))(
        x.view(1, -1)
    ),
    "diaghessian": lambda f, x: fl.diaghessian(lambda x: f(x).sum() ** 3, x),
    "hvp": lambda f, x: fl.hvp(lambda x: f(x).sum() ** 3, x, v=x),
    "gradient of hvp": lambda f, x: slope(lambda x: fl.hvp(lambda x: f(x).sum() ** 3, x, v=x))(x),
    "torch.func.grad": lambda f, x: slope_of_torch(f)(x),
    "torch.func.grad of grad": lambda f, x: slope_of_torch(slope_of_torch(f))(x),
    "torch.func.grad of gradient": lambda f, x: slope_of_torch(slope(f))(x),
    "gradient of torch.func.vmap of grad": lambda f, x: slope(torch.func.vmap(slope_of_torch(f)))(x),
    "torch.func.jvp": lambda f, x: pushed_by_torch(f)(x),
    "torch.func.jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "torch.func.jacfwd of jacfwd": lambda f, x: torch.func.jacfwd(torch.func.jacfwd(f))(x),
    "torch.func.hessian": lambda f, x: torch.func.hessian(lambda x: f(x).sum() ** 3)(x),
}

#: What torch's tracer can't do with plain operations either.
UNTRACEABLE = {"pushforward of pushforward", "torch.func.jacfwd of jacfwd"}


def traced(g: Callable[[Tensor], Any], x: Tensor, other: Tensor) -> Any:
    """What a trace made at x by `make_fx` over fake tensors, as jit makes it, computes of another input."""
    return make_fx(g, tracing_mode="fake", _allow_non_fake_inputs=True)(x)(other)
