"""What hyperparameters may be: each check refuses the rest."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fluxlike.optimisers.rule import is_rule

__all__ = ["number", "positive", "two_rates", "whole", "within"]


def number(name: str, value: Any) -> bool:
    """Whether a hyperparameter is a number; a 0-d tensor has no value to look at, the rest is refused."""
    if isinstance(value, Tensor):
        if value.ndim == 0:
            return False
        raise TypeError(
            f"{name} is a tensor of shape {tuple(value.shape)}; write a number or a 0-d tensor. In stacked "
            "trees each member has its own: go over them with fluxlike.vmap"
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = ""
        if name == "lr":
            hint = (
                "; parameters go to setup(rule, model), a schedule to Scheduled(rule, lr=schedule), a place "
                "to adjust by name: where="
            )
        elif is_rule(value):
            hint = "; rules follow one another in OptimiserChain(first, second)"
        kind = type(value).__name__
        raise TypeError(
            f"{name} is {'an' if kind[0] in 'AEIOaeio' else 'a'} {kind}; write a number or a 0-d tensor{hint}"
        )
    return True


def whole(name: str, value: Any, *, least: int) -> None:
    """Refuse anything but a whole number of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: write a whole number of at least {least}")


def positive(name: str, value: Any, *, zero: bool = True) -> None:
    """Refuse a negative hyperparameter (or zero)."""
    if number(name, value) and not (value >= 0 if zero else value > 0):
        raise ValueError(f"{name}={value!r}: write a number {'of at least' if zero else 'above'} 0")


def within(name: str, value: Any) -> None:
    """Refuse a decay rate outside [0, 1)."""
    if number(name, value) and not 0 <= value < 1:
        raise ValueError(f"{name}={value!r}: write a number of at least 0 and below 1")


def two_rates(name: str, values: Any) -> None:
    """Refuse anything but a pair of decay rates."""
    if not isinstance(values, tuple) or len(values) != 2:
        raise ValueError(f"{name}={values!r}: write a pair of decay rates, such as (0.9, 0.999)")
    within(f"{name}[0]", values[0])
    within(f"{name}[1]", values[1])
