"""Draws whose variance is scaled by the number of inputs and outputs, so that signals keep their size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fluxlike import random
from fluxlike.init.shapes import fans

__all__ = [
    "glorot_normal",
    "glorot_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
]


def glorot_uniform(shape: Sequence[int], /, *, gain: float = 1.0) -> Tensor:
    """Uniform in ±gain·√(6 / (fan_in + fan_out)).

    (Glorot & Bengio 2010, proceedings.mlr.press/v9/glorot10a.html.)

    Args:
        shape: (out, in, …), as weights are laid out.
        gain: a factor. (default: 1)

    Returns:
        A new tensor.

    Raises:
        TypeError: `shape` is no sequence of sizes.
        ValueError: a shape of fewer than two axes, which has no fans.

    Example:
        >>> import fluxlike as fl
        >>> w = fl.init.glorot_uniform((30, 20))
        >>> w.shape, bool(w.abs().max() <= (6 / 50) ** 0.5)
        (torch.Size([30, 20]), True)
    """
    bound = gain * (6.0 / sum(fans("glorot_uniform", shape))) ** 0.5
    return random.uniform(shape, -bound, bound)


def glorot_normal(shape: Sequence[int], /, *, gain: float = 1.0) -> Tensor:
    """Normal with standard deviation gain·√(2 / (fan_in + fan_out)).

    (Glorot & Bengio 2010, proceedings.mlr.press/v9/glorot10a.html.)

    Args:
        shape: (out, in, …), as weights are laid out.
        gain: a factor. (default: 1)

    Returns:
        A new tensor.

    Raises:
        TypeError: `shape` is no sequence of sizes.
        ValueError: a shape of fewer than two axes, which has no fans.

    Example:
        >>> import fluxlike as fl
        >>> fl.init.glorot_normal((3, 2)).shape
        torch.Size([3, 2])
    """
    return random.normal(shape, std=gain * (2.0 / sum(fans("glorot_normal", shape))) ** 0.5)


def kaiming_uniform(shape: Sequence[int], /, *, gain: float = 2.0**0.5) -> Tensor:
    """Uniform in ±gain·√(3 / fan_in) (He et al. 2015, arXiv 1502.01852).

    Args:
        shape: (out, in, …), as weights are laid out.
        gain: a factor, √2 for relu. (default: √2)

    Returns:
        A new tensor.

    Raises:
        TypeError: `shape` is no sequence of sizes.
        ValueError: a shape of fewer than two axes, which has no fans.

    Example:
        >>> import fluxlike as fl
        >>> bool(fl.init.kaiming_uniform((3, 24)).abs().max() <= 0.5)
        True
    """
    fan_in, _ = fans("kaiming_uniform", shape)
    bound = gain * (3.0 / fan_in) ** 0.5
    return random.uniform(shape, -bound, bound)


def kaiming_normal(shape: Sequence[int], /, *, gain: float = 2.0**0.5) -> Tensor:
    """Normal with standard deviation gain/√fan_in (He et al. 2015, arXiv 1502.01852).

    Args:
        shape: (out, in, …), as weights are laid out.
        gain: a factor, √2 for relu. (default: √2)

    Returns:
        A new tensor.

    Raises:
        TypeError: `shape` is no sequence of sizes.
        ValueError: a shape of fewer than two axes, which has no fans.

    Example:
        >>> import fluxlike as fl
        >>> fl.init.kaiming_normal((16, 3, 3, 3)).shape
        torch.Size([16, 3, 3, 3])
    """
    fan_in, _ = fans("kaiming_normal", shape)
    return random.normal(shape, std=gain / fan_in**0.5)


def lecun_uniform(shape: Sequence[int], /, *, gain: float = 1.0) -> Tensor:
    """Uniform in ±gain·√(3 / fan_in) (LeCun et al. 1998, doi 10.1007/3-540-49430-8_2).

    It is `kaiming_uniform` with a gain of 1, as `fluxlike.selu` wants it (arXiv 1706.02515).

    Args:
        shape: (out, in, …), as weights are laid out.
        gain: a factor. (default: 1)

    Returns:
        A new tensor.

    Raises:
        TypeError: `shape` is no sequence of sizes.
        ValueError: a shape of fewer than two axes, which has no fans.

    Example:
        >>> import fluxlike as fl
        >>> bool(fl.init.lecun_uniform((3, 12)).abs().max() <= 0.5)
        True
    """
    fan_in, _ = fans("lecun_uniform", shape)
    bound = gain * (3.0 / fan_in) ** 0.5
    return random.uniform(shape, -bound, bound)


def lecun_normal(shape: Sequence[int], /, *, gain: float = 1.0) -> Tensor:
    """Normal with standard deviation gain/√fan_in (LeCun et al. 1998, doi 10.1007/3-540-49430-8_2).

    It is `kaiming_normal` with a gain of 1, as `fluxlike.selu` wants it (arXiv 1706.02515), and not
    truncated, as JAX's of this name is.

    Args:
        shape: (out, in, …), as weights are laid out.
        gain: a factor. (default: 1)

    Returns:
        A new tensor.

    Raises:
        TypeError: `shape` is no sequence of sizes.
        ValueError: a shape of fewer than two axes, which has no fans.

    Example:
        >>> import fluxlike as fl
        >>> fl.init.lecun_normal((16, 3, 3, 3)).shape
        torch.Size([16, 3, 3, 3])
    """
    fan_in, _ = fans("lecun_normal", shape)
    return random.normal(shape, std=gain / fan_in**0.5)
