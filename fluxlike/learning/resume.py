"""Learners from checkpoints: `load_learner`, and where a fit goes on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

from fluxlike.learning.callback import innermost
from fluxlike.learning.callbacks.checkpointer import Checkpointer
from fluxlike.learning.callbacks.metrics import metrics_of
from fluxlike.learning.checkpoints.entry import Entry
from fluxlike.learning.checkpoints.store import Store
from fluxlike.learning.direction import Mode, mode_of
from fluxlike.learning.history.history import History
from fluxlike.learning.learner import Learner
from fluxlike.learning.packing import environment, packed, settings_of

__all__ = ["INTERRUPTED", "load_learner", "resumed"]

#: Why a fit ended that Ctrl-C has ended: it goes on when it is resumed.
INTERRUPTED = "interrupted"


def load_learner(
    folder: str | os.PathLike[str],
    like: Learner,
    *,
    by: str | None = None,
    mode: Mode | None = None,
) -> Learner:
    """The learner of the newest checkpoint of a folder, or of the best one.

    Args:
        folder: that of a `Checkpointer`.
        like: a learner of the same model, rule and callbacks, which stays as it is.
        by: the score by which to take the best one. (default: the newest is taken)
        mode: ``"min"`` where less is better, or ``"max"``. (default: that of the learner's `Checkpointer` by
            the same score, else as there)

    Returns:
        The learner as it stood then, in memory of its own; `fit` goes on from it.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is damaged, or of a learner of another structure; or nothing says whether more or
            less of `by` is better.

    Example:
        >>> import tempfile, torch, fluxlike as fl
        >>> x = torch.randn(64, 3)
        >>> data = fl.DataLoader((x, x.sum(1, keepdim=True)), batch_size=16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saving = fl.callbacks.Checkpointer(folder, by="loss")
        ...     begun = fl.Learner(
        ...         fl.Dense(3, 1), data, fl.Adam(0.1), fl.losses.mse, callbacks=[saving], progress=False
        ...     )
        ...     _ = fl.fit(begun, 3)
        ...     newest = fl.load_learner(folder, like=begun)
        ...     best = fl.load_learner(folder, like=begun, by="loss")
        >>> newest.epoch, best.history.last("training", "loss") == min(newest.history["training", "loss"])
        (3, True)
    """
    if mode is None:
        savers = [c for c in map(innermost, like.callbacks) if isinstance(c, Checkpointer) and c.by == by]
        mode = savers[0].mode if savers else None
    write = f"load_learner(folder, like=learner, by={by!r}"
    store = Store(folder, by=by, mode=mode_of(by, mode, metrics_of(like.callbacks), write=write))
    found = _loaded(store, store.newest if by is None else store.best, like)
    if found is None:
        raise FileNotFoundError(f"there is no checkpoint in {store.folder}")
    return found[1]


def resumed(learner: Learner, resume: bool | str | os.PathLike[str], goal: int) -> Learner | None:
    """The learner of the newest checkpoint, if there is one.

    Raises:
        ValueError: there is no folder, or the checkpoint is past the goal.
    """
    store = Store(_folder(learner, resume))
    loaded = _loaded(store, store.newest, learner)
    if loaded is None:
        return None
    entry, found = loaded
    if found.epoch > goal or (found.epoch == goal and (found.phase, found.batch) != (0, 0)):
        raise ValueError(
            f"{entry.path} has {found.epoch} complete epochs, and this fit ends at epoch {goal}: write how "
            "many epochs there are to be in all, or go on from load_learner(folder, like=learner)"
        )
    return found


def _loaded(store: Store, choose: Callable[[], Entry | None], like: Learner) -> tuple[Entry, Learner] | None:
    """The checkpoint that is chosen, if there is one, and its learner.

    A run that writes to the folder meanwhile may remove the chosen one for another, which is chosen then.
    """
    gone = None
    while (entry := choose()) is not None:
        try:
            return entry, _unpacked(store, entry, like)
        except FileNotFoundError:
            if entry == gone:
                raise
            gone = entry
    return None


def _unpacked(store: Store, entry: Entry, like: Learner) -> Learner:
    tree, plain = store.load(entry, like=packed(like)[0])
    now = environment()
    for name, then in plain["environment"].items():
        if now.get(name) != then:
            warnings.warn(
                f"{entry.path} was saved with {name} {then}, and now it is {now.get(name)}: the run goes on, "
                "but perhaps not to the same bits",
                stacklevel=5,
            )
    if plain["batch"]:
        _require_same_data(entry, plain["data"], like)
    return like.replace(
        **tree,
        keyed=like.keyed,
        step=plain["step"],
        epoch=plain["epoch"],
        phase=plain["phase"],
        batch=plain["batch"],
        random=plain["random"],
        memory={**like.memory, **plain["memory"]},
        history=History.restore(plain["history"]),
        stopped=None if plain["stopped"] == INTERRUPTED else plain["stopped"],
    )


def _require_same_data(entry: Entry, then: dict[str, Any], like: Learner) -> None:
    """In the middle of an epoch the loaders must give the batches that are left of it."""
    for name, settings in then.items():
        now = settings_of(like.data[name]) if name in like.data else settings
        for key, value in (settings or {}).items():
            if now is not None and now.get(key) != value:
                raise ValueError(
                    f"{entry.path} stands in the middle of an epoch, of a loader for {name} with "
                    f"{key}={value!r}, and now it has {key}={now.get(key)!r}: its other batches would be "
                    f"left out; resume with {key}={value!r}"
                )


def _folder(learner: Learner, resume: bool | str | os.PathLike[str]) -> str | os.PathLike[str]:
    if resume is not True:
        return resume  # type: ignore[return-value]
    folders = [
        innermost(callback).folder
        for callback in learner.callbacks
        if isinstance(innermost(callback), Checkpointer)
    ]
    if len(folders) != 1:
        raise ValueError(
            f"resume=True takes the folder of the learner's Checkpointer, and it has {len(folders)} of them: "
            "write resume='the/folder', or give callbacks=[fl.callbacks.Checkpointer('the/folder')]"
        )
    return folders[0]
