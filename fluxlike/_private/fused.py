"""The one file that calls torch's fused optimiser kernels (private parts of torch).

A kernel reads and writes each number once, where a list of foreach operations walks through memory
ten times. All write in place, to their parameters and to the lists of their state. Steps are counted
from 1 in float32. `skip` is a 0-d float32 tensor, or None: where it is 1, a kernel writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["adagrad", "adam", "fits", "sgd"]

Tensors = list[Tensor]


def fits(param: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether the kernels can take a leaf: plain, dense, and its tensors alike in dtype and layout."""
    dtype, stride = param.dtype, param.stride()
    return (
        (dtype is torch.float32 or dtype is torch.float64)
        and param.numel() > 0
        and (param.is_contiguous() or (param.ndim == 4 and _channels_last(param)))
        and type(param) is Tensor
        and all(
            type(x) is Tensor and x.dtype is dtype and x.shape == param.shape and x.stride() == stride
            for x in others
        )
    )


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def adam(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    max_exp_avg_sqs: Tensors,
    steps: Tensors,
    skip: Tensor | None,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """Adam, AdamW if `decoupled`, AMSGrad if there are maxima."""
    kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
    kernel(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs,
        steps,
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=bool(max_exp_avg_sqs),
        maximize=False,
        found_inf=skip,
    )


def sgd(
    params: Tensors,
    grads: Tensors,
    momenta: Tensors,
    skip: Tensor | None,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
) -> None:
    """Descent with momentum."""
    torch._fused_sgd_(
        params,
        grads,
        momenta,
        weight_decay=0.0,
        momentum=momentum,
        lr=lr,
        dampening=0.0,
        nesterov=nesterov,
        maximize=False,
        is_first_step=False,
        found_inf=skip,
    )


def adagrad(
    params: Tensors,
    grads: Tensors,
    sums: Tensors,
    steps: Tensors,
    skip: Tensor | None,
    *,
    lr: float,
    lr_decay: float,
    weight_decay: float,
    eps: float,
) -> None:
    """AdaGrad."""
    torch._fused_adagrad_(
        params,
        grads,
        sums,
        steps,
        lr=lr,
        lr_decay=lr_decay,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
        found_inf=skip,
    )
