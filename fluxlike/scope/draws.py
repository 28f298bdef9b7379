"""The kinds of draws: uniforms, normals, Bernoullis, integers and permutations as functions of a key.

A draw is told apart by its key and its number in the scope; element i of it is lane i % k of the
block i // k of `philox`, where a block has the bits for k elements. So its bits depend on nothing
else: not on the device, on eager or traced, or on whether the key is one of a batch under ``vmap``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fluxlike.scope.blocks import blocks, in_pieces, read
from fluxlike.scope.philox import Word

__all__ = [
    "BITS",
    "PARTS",
    "bernoulli",
    "dropout",
    "integers",
    "normal",
    "permutation",
    "scale",
    "uniform",
]


# A kind of draw: from the words of blocks, (…, 4), to k values a block, (…, k).
Kind = Callable[[Tensor], Tensor]

#: The dtypes of uniforms and normals, and how many bits each has for a uniform below 1.
BITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}

#: What knows of tensors of which this process holds a part. From a tensor: the part, the place of its first
#: element among all, and how a result for the part stands for the whole; None for a tensor held whole, or of
#: which the part is not one stretch of elements.
PARTS: list[Callable[[Tensor], tuple[Tensor, int, Callable[[Tensor], Tensor]] | None]] = []


def uniform(
    data: Tensor, number: Word, shape: Sequence[int], dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """Uniforms in [0, 1), multiples of 2⁻ᵇ for the b of `BITS`: 24 in float32, 53 in float64."""
    bits = BITS[dtype]

    def narrow(words: Tensor) -> Tensor:
        return (words >> (32 - bits)).to(dtype) * 2.0**-bits

    def wide(words: Tensor) -> Tensor:
        return _fraction(words[..., 0::2], words[..., 1::2]).to(dtype) * 2.0**-bits

    return _draw(data, number, shape, *((wide, 2) if bits > 32 else (narrow, 4)), device)


def normal(
    data: Tensor, number: Word, shape: Sequence[int], dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """Standard normals (Box & Muller 1958); those of 16 bits are rounded from float32."""

    def narrow(words: Tensor) -> Tensor:
        first, second = (words[..., i::2].to(torch.float32) for i in (0, 1))
        return _box_muller((first + 1) * 2.0**-32, second * 2.0**-32).to(dtype)

    def wide(words: Tensor) -> Tensor:
        both = _fraction(words[..., 0::2], words[..., 1::2]).to(dtype)
        return _box_muller((both[..., :1] + 1) * 2.0**-53, both[..., 1:] * 2.0**-53)

    return _draw(data, number, shape, *((wide, 2) if dtype is torch.float64 else (narrow, 4)), device)


def _fraction(high: Tensor, low: Tensor) -> Tensor:
    """53 random bits of two words."""
    return ((high >> 5) << 26) | (low >> 6)


def _box_muller(u: Tensor, v: Tensor) -> Tensor:
    """Two normals from each pair of uniforms, u in (0, 1] and v in [0, 1)."""
    radius, angle = torch.sqrt(-2 * torch.log(u)), 2 * math.pi * v
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), -1).flatten(-2)


def bernoulli(
    data: Tensor,
    number: Word,
    shape: Sequence[int],
    p: float | Tensor,
    device: torch.device | None = None,
) -> Tensor:
    """True with probability p, to 2⁻³³: where the element's word is below p·2³²."""
    if isinstance(p, Tensor):
        below = (p.detach().to(torch.float64) * 2**32).round().to(torch.int64)
        return _draw(data, number, shape, lambda words: words, 4, device) < below
    threshold = _threshold(p)
    return _draw(data, number, shape, lambda words: words < threshold, 4, device)


def _threshold(p: float) -> int:
    """Which words are below it with probability p, to 2⁻³³."""
    return round(p * 2**32)


def dropout(data: Tensor, number: Word, x: Tensor, p: float) -> Tensor:
    """`x` with entries zeroed with probability p, and the others scaled by 1/(1-p)."""
    threshold = _threshold(p)
    return x * _draw_as(data, number, x, lambda words: words >= threshold, 4) * scale(p)


def scale(p: float) -> float:
    """What dropout multiplies the entries by that it keeps."""
    return 1 / (1 - p) if p < 1 else 0.0


def integers(
    data: Tensor, number: Word, shape: Sequence[int], low: int, high: int, device: torch.device | None = None
) -> Tensor:
    """Whole numbers from `low` to below `high`, in int64: 63 random bits modulo the range."""
    span = high - low
    return _draw(data, number, shape, lambda words: _wide_integers(words) % span + low, 2, device)


def _wide_integers(words: Tensor) -> Tensor:
    """63 random bits of two words."""
    return (words[..., 0::2] << 31) | (words[..., 1::2] >> 1)


def permutation(data: Tensor, number: Word, n: int, device: torch.device | None = None) -> Tensor:
    """The numbers 0 to n - 1 in random order: that of n random integers of 63 bits."""
    return torch.argsort(_draw(data, number, (n,), _wide_integers, 2, device), stable=True)


def _draw(
    data: Tensor,
    number: Word,
    shape: Sequence[int],
    kind: Kind,
    lanes: int,
    device: torch.device | None,
    start: int = 0,
) -> Tensor:
    """A tensor of draws of a kind that makes `lanes` of a block, from the element `start` on."""
    count = math.prod(shape)
    first, before = divmod(start, lanes)
    last = first - (-(before + count) // lanes)
    device = torch.get_default_device() if device is None else device
    index = torch.arange(first, last, device=device)
    if read(data) is None:
        drawn = kind(blocks(data, number, index))
    else:  # only the results go through memory
        drawn = in_pieces(lambda piece: kind(blocks(data, number, piece)), index)
    flat = drawn.flatten()
    if flat.shape[0] != count:
        flat = flat[before : before + count].clone()  # of no more memory than it shows
    return flat.reshape(tuple(shape))


def _draw_as(data: Tensor, number: Word, x: Tensor, kind: Kind, lanes: int) -> Tensor:
    """A draw for each element of a tensor, of which this process may hold a part."""
    for part_of in PARTS:
        found = part_of(x)
        if found is not None:
            part, start, as_whole = found
            return as_whole(_draw(data, number, part.shape, kind, lanes, part.device, start))
    return _draw(data, number, x.shape, kind, lanes, x.device)
