"""`gradient` of a torch module through `from_torch`, against ``loss.backward()`` of the module itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import fluxlike as fl
from benchmarks.harness import Row, at_threads, in_turns
from benchmarks.torchvision_here import torchvision

Loss = Callable[[Any, torch.Tensor], torch.Tensor]


def _resnet() -> tuple[nn.Module, torch.Tensor, Loss]:
    """ResNet-18 of torchvision on 8 images of 96 x 96."""
    return torchvision().models.resnet18(), torch.randn(8, 3, 96, 96), lambda m, x: m(x).square().mean()


def _gpt() -> tuple[nn.Module, torch.Tensor, Loss]:
    """A GPT-2 of transformers with 4 layers of width 256, on 4 sequences of 128 tokens."""
    import transformers

    config = transformers.GPT2Config(
        n_layer=4, n_embd=256, n_head=8, vocab_size=4096, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    return (
        transformers.GPT2LMHeadModel(config),
        torch.randint(0, 4096, (4, 128)),
        lambda m, x: m(input_ids=x, labels=x, use_cache=False).loss,
    )


def _pair(module: nn.Module, x: torch.Tensor, loss: Loss) -> tuple[Callable[[], None], Callable[[], None]]:
    """One gradient of the tree and of the module, in train mode both."""
    model = fl.from_torch(module)
    module.train()
    grads = None

    def ours() -> None:
        nonlocal grads
        grads = None  # as zero_grad does
        grads = fl.gradient(loss, model, x)

    def theirs() -> None:
        module.zero_grad()
        loss(module, x).backward()

    return ours, theirs


def rows() -> Iterator[Row]:
    """One row a model and number of threads."""
    for threads in at_threads(1, 2):
        for name, make in (("ResNet-18 of torchvision", _resnet), ("GPT-2 of transformers, 4 layers", _gpt)):
            torch.manual_seed(0)
            ours, theirs = in_turns(*_pair(*make()), rounds=31, budget=20.0)
            yield Row(f"gradient of {name}", "zero_grad and loss.backward()", threads, ours, theirs, 1.05)
