"""A learner as what a checkpoint holds."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["environment", "packed"]


def packed(learner: Any) -> tuple[Any, dict[str, Any]]:
    """What a checkpoint holds: a tree of the structure of the learner, and what has no fixed structure."""
    tree = {
        "model": learner.model,
        "state": learner.state,
        "loss_scale": learner.loss_scale,
        "key": learner.key,
    }
    plain = {
        "step": learner.step,
        "epoch": learner.epoch,
        "phase": learner.phase,
        "batch": learner.batch,
        "stopped": learner.stopped,
        "random": learner.random,
        "memory": learner.memory,
        "history": learner.history.state(),
        "environment": environment(),
    }
    return tree, plain


def environment() -> dict[str, Any]:
    """What the bits of a run depend on besides the learner."""
    return {"torch": str(torch.__version__), "threads of torch": torch.get_num_threads()}
