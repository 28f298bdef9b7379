"""Initial values of weights: functions of a shape. The formulas are those of ``torch.nn.init``.

They take the default dtype and device (``with torch.device("meta"):`` too), and draw from torch's
generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["glorot_normal", "glorot_uniform", "kaiming_normal", "kaiming_uniform"]


def glorot_uniform(shape: Sequence[int], /, *, gain: float = 1.0) -> Tensor:
    """Uniform in ±gain·√(6 / (fan_in + fan_out)) (Glorot & Bengio 2010).

    Args:
        shape: (out, in, …), as weights are laid out.
        gain: a factor. (default: 1)

    Returns:
        A new tensor.

    Raises:
        ValueError: a shape of fewer than two axes, which has no fans.

    Example:
        >>> import fluxlike as fl
        >>> w = fl.init.glorot_uniform((30, 20))
        >>> w.shape, bool(w.abs().max() <= (6 / 50) ** 0.5)
        (torch.Size([30, 20]), True)
    """
    weight = _empty("glorot_uniform", shape)
    return torch.nn.init.xavier_uniform_(weight, gain) if weight.numel() else weight


def glorot_normal(shape: Sequence[int], /, *, gain: float = 1.0) -> Tensor:
    """Normal with standard deviation gain·√(2 / (fan_in + fan_out)) (Glorot & Bengio 2010).

    Args:
        shape: (out, in, …), as weights are laid out.
        gain: a factor. (default: 1)

    Returns:
        A new tensor.

    Raises:
        ValueError: a shape of fewer than two axes, which has no fans.

    Example:
        >>> import fluxlike as fl
        >>> fl.init.glorot_normal((3, 2)).shape
        torch.Size([3, 2])
    """
    weight = _empty("glorot_normal", shape)
    return torch.nn.init.xavier_normal_(weight, gain) if weight.numel() else weight


def kaiming_uniform(shape: Sequence[int], /, *, gain: float = 2.0**0.5) -> Tensor:
    """Uniform in ±gain·√(3 / fan_in) (He et al. 2015, arXiv 1502.01852).

    Args:
        shape: (out, in, …), as weights are laid out.
        gain: a factor, √2 for relu. (default: √2)

    Returns:
        A new tensor.

    Raises:
        ValueError: a shape of fewer than two axes, which has no fans.

    Example:
        >>> import fluxlike as fl
        >>> bool(fl.init.kaiming_uniform((3, 24)).abs().max() <= 0.5)
        True
    """
    bound = gain * (3.0 / _fan_in("kaiming_uniform", shape)) ** 0.5
    return torch.empty(tuple(shape)).uniform_(-bound, bound)


def kaiming_normal(shape: Sequence[int], /, *, gain: float = 2.0**0.5) -> Tensor:
    """Normal with standard deviation gain/√fan_in (He et al. 2015, arXiv 1502.01852).

    Args:
        shape: (out, in, …), as weights are laid out.
        gain: a factor, √2 for relu. (default: √2)

    Returns:
        A new tensor.

    Raises:
        ValueError: a shape of fewer than two axes, which has no fans.

    Example:
        >>> import fluxlike as fl
        >>> fl.init.kaiming_normal((16, 3, 3, 3)).shape
        torch.Size([16, 3, 3, 3])
    """
    return torch.empty(tuple(shape)).normal_(0.0, gain / _fan_in("kaiming_normal", shape) ** 0.5)


def _empty(name: str, shape: Sequence[int]) -> Tensor:
    _check(name, shape)
    return torch.empty(tuple(shape))


def _fan_in(name: str, shape: Sequence[int]) -> int:
    _check(name, shape)
    fan = 1
    for n in tuple(shape)[1:]:
        fan *= n
    return max(fan, 1)


def _check(name: str, shape: Sequence[int]) -> None:
    if len(tuple(shape)) < 2:
        raise ValueError(
            f"{name} got the shape {tuple(shape)}: weights have at least two axes, (out, in, …); "
            "biases start at zero"
        )
