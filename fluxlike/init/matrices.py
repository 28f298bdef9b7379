"""Weights that are made as matrices: orthogonal, sparse, identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from fluxlike import random
from fluxlike.init.shapes import matrix, require_shape
from fluxlike.placement.numbers import at_least_float32

__all__ = ["identity", "orthogonal", "sparse"]


def orthogonal(shape: Sequence[int], /, *, gain: float = 1.0) -> Tensor:
    """A random matrix with orthonormal rows or columns, whichever are fewer.

    (Saxe et al. 2013, arXiv 1312.6120.) Of more than two axes, the matrix is (out, in·…). It is uniform
    among all such matrices: the Q of a normal one, with the signs of R's diagonal
    (Mezzadri 2006, arXiv math-ph/0609050).

    Args:
        shape: (out, in, …), as weights are laid out.
        gain: a factor. (default: 1)

    Returns:
        A new tensor.

    Raises:
        TypeError: `shape` is no sequence of sizes.
        ValueError: a shape of fewer than two axes.

    Example:
        >>> import torch, fluxlike as fl
        >>> w = fl.init.orthogonal((3, 8))
        >>> torch.allclose(w @ w.T, torch.eye(3), atol=1e-5)
        True
    """
    rows, columns = matrix("orthogonal", shape)
    dtype = torch.get_default_dtype()
    drawn = random.normal((rows, columns), dtype=at_least_float32(dtype))
    q, r = torch.linalg.qr(drawn if rows >= columns else drawn.mT)
    diagonal = r.diagonal()
    q = q * torch.where(diagonal < 0, -gain, gain)
    return (q if rows >= columns else q.mT).to(dtype).reshape(tuple(shape)).contiguous()


def sparse(shape: Sequence[int], /, sparsity: float, *, std: float = 0.01) -> Tensor:
    """Normal draws, of which a part of every column is zero (Martens 2010, "Deep learning via Hessian-free").

    Args:
        shape: (out, in).
        sparsity: the part of each column that is zero, from 0 to 1: ``⌈sparsity·out⌉`` entries, of
            the decimal number as it is written (torch rounds first: 0.07 of 100 is 8 there).
        std: the standard deviation of the others. (default: 0.01)

    Returns:
        A new tensor.

    Raises:
        TypeError: `shape` is no sequence of sizes.
        ValueError: a shape of other than two axes, or `sparsity` outside [0, 1].

    Example:
        >>> import fluxlike as fl
        >>> (fl.init.sparse((10, 3), 0.7) == 0).sum(0)
        tensor([7, 7, 7])
        >>> layer = fl.Dense(3, 10, init=lambda shape: fl.init.sparse(shape, 0.7))
    """
    require_shape("sparse", shape)
    if len(shape) != 2:
        raise ValueError(f"sparse got the shape {tuple(shape)}: it makes matrices, (out, in)")
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparse: sparsity={sparsity}; write the part that is zero, from 0 to 1")
    zeros = math.ceil(Fraction(str(float(sparsity))) * shape[0])  # 0.07 of 100 is 7, and 7.000…1 in floats
    values = random.normal(shape, std=std)
    # A random permutation for each column.
    order = random.uniform(shape, dtype=torch.float32).argsort(dim=0, stable=True)
    return torch.where(order < zeros, 0, values)


def identity(
    shape: Sequence[int], /, *, gain: float = 1.0, groups: int = 1, shift: int | Sequence[int] = 0
) -> Tensor:
    """The weight that passes its input on: the identity matrix, and for convolutions that at the middle tap.

    Channels that have no partner are zero. As ``torch.nn.init.eye_`` and ``dirac_``, and as Flux's
    ``identity_init``.

    Args:
        shape: (out, in / groups, …), as weights are laid out.
        gain: a factor. (default: 1)
        groups: of a grouped convolution, each of which passes its own channels on. (default: 1)
        shift: by how many places to roll the first axes: one number for the outputs, or one for each of
            several axes. (default: 0)

    Returns:
        A new tensor.

    Raises:
        TypeError: `shape` is no sequence of sizes.
        ValueError: a shape of fewer than two axes, outputs that `groups` does not divide, or more shifts
            than axes.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.init.identity((2, 3))
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
        >>> x = torch.randn(1, 4, 9)
        >>> torch.equal(fl.Conv((3,), 4, 4, pad=1, init=fl.init.identity)(x), x)
        True
    """
    matrix("identity", shape)
    shifts = (shift,) if isinstance(shift, int) else tuple(shift)
    if len(shifts) > len(shape):
        raise ValueError(
            f"identity: {len(shifts)} shifts were given for the {len(shape)} axes of {tuple(shape)}"
        )
    outputs, inputs, *window = shape
    if groups < 1 or outputs % groups:
        raise ValueError(f"identity: groups={groups} does not divide the {outputs} outputs")
    hit = torch.arange(outputs)[:, None] % max(outputs // groups, 1) == torch.arange(inputs)
    for size in window:
        hit = hit[..., None] & (torch.arange(size) == size // 2)
    rolled = torch.roll(hit, shifts, tuple(range(len(shifts)))) if any(shifts) else hit
    return rolled.to(torch.get_default_dtype()) * gain
