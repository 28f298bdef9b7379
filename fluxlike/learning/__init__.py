"""Learning: `train`, the `Learner` and its loop of phases, steps and callbacks. Imported when it is used."""

from __future__ import annotations

from fluxlike.lazily import lazily

__all__ = ["WHEN_USED", "imported"]

#: The module of each public name, below this package; a name that is its own module is that module.
WHEN_USED = {
    "Callback": "callback",
    "CallbackError": "events",
    "CancelEpoch": "events",
    "CancelFit": "events",
    "CancelStep": "events",
    "Learner": "learner",
    "Phase": "phase",
    "Step": "step",
    "TrainingPhase": "phase",
    "ValidationPhase": "phase",
    "RateSearch": "find_lr",
    "callbacks": "callbacks",
    "find_lr": "find_lr",
    "finetune": "finetune",
    "fit": "fit",
    "fit_one_cycle": "one_cycle",
    "History": "history.history",
    "Interpretation": "interpretation.interpret",
    "interpret": "interpretation.interpret",
    "load_learner": "resume",
    "logs": "logs",
    "metrics": "metrics",
    "show_predictions": "interpretation.show",
    "train": "train",
    "validate": "validate",
}

imported = lazily(__name__, WHEN_USED)
