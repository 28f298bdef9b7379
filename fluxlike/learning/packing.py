"""A learner as what a checkpoint holds."""

from __future__ import annotations

from typing import Any

import torch

from fluxlike.data.loader import DataLoader

__all__ = ["environment", "packed", "settings_of"]


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
        "data": {name: settings_of(data) for name, data in learner.data.items()},
    }
    return tree, plain


def environment() -> dict[str, Any]:
    """What the bits of a run depend on besides the learner."""
    return {"torch": str(torch.__version__), "threads of torch": torch.get_num_threads()}


def settings_of(data: Any, /) -> dict[str, Any] | None:
    """What a loader of ours is made with, on which the batches of an epoch depend; None of other data."""
    return data.state_dict()["loader"] if isinstance(data, DataLoader) else None
