"""A network of published size beside that of another library, without the numbers of either.

The largest have hundreds of millions of weights. That theirs find their places, and that the same work is
done with them, is seen from shapes; that it gives the same numbers is held by the small networks of each
family (`zoo_parity`).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo_parity import on_meta

import fluxlike as fl
from fluxlike._private.fake import stand_ins

__all__ = ["assert_fits"]


def assert_fits(
    make: Callable[[], Any], make_theirs: Callable[[], nn.Module], *, size: int = 224, published: int = 0
) -> None:
    """Hold a network to that of another library by all that shapes tell.

    - Each tensor of their checkpoint finds a place of its shape and dtype, and no place is left.
    - There are as many parameters, and as many as were published.
    - An image takes as many operations of each kind: in convolutions and products of matrices, and in each
      activation, pool and softmax. So strides, groups, heads and dilations are theirs.
    - Norms have the same eps, and statistics the same momentum.

    Args:
        make: ours, of 1000 classes.
        make_theirs: that of the other library.
        size: height and width of the image.
        published: the number of parameters, 0 where nobody says. (default: 0)
    """
    ours, theirs = on_meta(make), on_meta(make_theirs).eval()
    with stand_ins(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Accessing the data pointer")  # they have none
        state = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in theirs.state_dict().items()}
        loaded = fl.models.load_weights(state, ours)
    counts = [sum(x.numel() for x in xs) for xs in (fl.trainables(loaded), theirs.parameters())]
    assert counts[0] == counts[1] == (published or counts[1])
    norms = [x for x in fl.fleaves(ours, is_leaf=_is_norm) if _is_norm(x)]
    assert _settings(norms) == _settings(x for x in theirs.modules() if isinstance(x, _THEIR_NORMS))
    image = torch.empty(1, 3, size, size, device="meta")
    assert _work(ours, image) == _work(theirs, image)


_THEIR_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)


def _is_norm(x: Any) -> bool:
    return isinstance(x, (fl.BatchNorm, fl.LayerNorm))


def _settings(norms: Any) -> Counter[tuple[float, float | None]]:
    """How many norms there are of an eps and a momentum."""
    return Counter((x.eps, round(getattr(x, "momentum", 0), 9)) for x in norms)


def _elements(*_: Any, out_shape: Any, **__: Any) -> int:
    """Of what an operation gives; of several tensors, the first."""
    return prod(out_shape if isinstance(out_shape, torch.Size) else out_shape[0])


_KINDS = (
    "relu", "hardtanh", "gelu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "_softmax",
    "_safe_softmax", "max_pool2d_with_indices", "avg_pool2d",
)  # fmt: skip
_COUNTED = {
    getattr(torch.ops.aten, name): _elements
    for kind in _KINDS
    for name in (kind, kind + "_")
    if hasattr(torch.ops.aten, name)
}
_PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm")  # one of 1×1 stands for another


def _work(model: Any, image: torch.Tensor) -> Counter[str]:
    """How much a call computes, by what: multiplications and additions, elsewhere elements."""
    with FlopCounterMode(display=False, custom_mapping=_COUNTED) as counter:
        model(image)
    found: Counter[str] = Counter()
    for operation, n in counter.get_flop_counts()["Global"].items():
        name = str(operation).removeprefix("aten.").removesuffix("_")
        found["product" if name in _PRODUCTS else name] += n
    return found
