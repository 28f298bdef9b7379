"""The one file that calls torch's fused optimiser kernels (private parts of torch).

A kernel reads and writes each number once, where a list of foreach operations walks through memory
ten times. It writes in place, so it gets copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = list[Tensor]

__all__ = ["Kernel", "adam", "adamw", "can_fuse", "run"]


_CACHED = 1 << 19  # bytes of one list in a block; four lists of it fit a core's cache

Kernel = Callable[..., None]
adam: Kernel = torch._fused_adam_
adamw: Kernel = torch._fused_adamw_


def can_fuse(*lists: Sequence[Tensor]) -> bool:
    """Whether a kernel can take these lists: plain, dense, of one dtype, and without a graph."""
    params = lists[0]
    dtype, device = params[0].dtype, params[0].device
    return dtype in (torch.float32, torch.float64) and all(
        type(x) is Tensor
        and x.shape == p.shape  # a kernel does not look, and would read beyond the end
        and x.dtype == dtype
        and x.device == device
        and x.is_contiguous()
        and not x.requires_grad
        and x.numel() > 0
        for xs in lists
        for p, x in zip(params, xs, strict=True)
    )


def run(
    kernel: Kernel,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    hyper: tuple[Any, Any, Any, Any, Any],
) -> tuple[Tensors, Tensors, Tensors]:
    """The next parameters and moments by one of Adam's kernels.

    Args:
        kernel: `adam` or `adamw`.
        params: the parameters.
        grads: their gradients.
        exp_avgs: their first moments.
        exp_avg_sqs: their second moments.
        steps: for each, the number of this step, counted from 1.
        hyper: lr, the two betas, eps and weight_decay.
    """
    counts = [t.to(torch.float32) for t in steps]  # the kernels want floats
    lr, beta1, beta2, eps, weight_decay = hyper
    p: Tensors = []
    m: Tensors = []
    v: Tensors = []
    for start, stop in _blocks(params):
        copies = [[x.clone() for x in xs[start:stop]] for xs in (params, exp_avgs, exp_avg_sqs)]
        kernel(
            copies[0],
            list(grads[start:stop]),
            copies[1],
            copies[2],
            [],
            counts[start:stop],
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
        for whole, part in zip((p, m, v), copies, strict=True):
            whole += part
    return p, m, v


def _blocks(xs: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Ranges of a list; on the CPU small enough that copies are still in the cache when used."""
    if xs[0].device.type != "cpu":
        return [(0, len(xs))]
    blocks, start, size = [], 0, 0
    for i, x in enumerate(xs):
        size += x.numel() * x.element_size()
        if size >= _CACHED:
            blocks.append((start, i + 1))
            start, size = i + 1, 0
    return blocks if start == len(xs) else [*blocks, (start, len(xs))]
