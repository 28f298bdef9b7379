"""Checkpoints written in the background, while the run goes on."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from fluxlike.learning.checkpoints.content import Prepared
from fluxlike.learning.checkpoints.store import Store
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten

__all__ = ["AsyncWriter", "snapshot"]


class AsyncWriter:
    """Writes checkpoints of a `Store` in one background thread.

    `save` copies everything to main memory and returns; what later becomes of the tensors, donated or
    written over, does not touch the copy. One checkpoint is written at a time, and none is dropped: a `save`
    waits for the one before. An error in the thread is raised by the next `save`, which then begins nothing
    itself, or by `close`. The end of the interpreter waits, and warns of an error that nobody has seen.

    Args:
        store: where to. It is closed with the writer.

    Example:
        >>> import tempfile, torch
        >>> from fluxlike.learning.checkpoints.store import Store
        >>> from fluxlike.learning.checkpoints.writer import AsyncWriter
        >>> w = torch.zeros(2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = Store(folder)
        ...     with AsyncWriter(store) as writer:
        ...         writer.save(1, {"w": w})
        ...         _ = w.add_(1)
        ...     store.load(store.newest(), like={"w": w})
        ({'w': tensor([0., 0.])}, None)
    """

    def __init__(self, store: Store, /) -> None:
        self.store = store
        self._saving = threading.Lock()
        self._state = _State()
        weakref.finalize(self, _report, self._state)

    def save(
        self, step: int, tree: Any, plain: Any = None, scores: Mapping[str, Any] | None = None, /
    ) -> None:
        """Copy a checkpoint to main memory and begin to write it; the arguments of `Store.save`.

        Raises:
            TypeError, ValueError, RuntimeError: as `Store.save`, at once.
            Exception: what was raised when the checkpoint before was written, such as OSError of a full
                disk. This one was not begun; call again to do so.
        """
        with self._saving:
            self._settle(f"the checkpoint of step {step} was not begun: save it again")
            self.store.open()
            prepared = self.store.prepared(step, snapshot(tree), plain, scores)
            self._state.begin(self.store, prepared)

    def close(self) -> None:
        """Wait until the last checkpoint is written, and close the store.

        Raises:
            Exception: what was raised when it was written.
        """
        with self._saving:
            try:
                self._settle("it is not there")
            finally:
                self.store.close()

    def __enter__(self) -> AsyncWriter:
        self.store.open()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"besides, a checkpoint was not written: {failure}")

    def _settle(self, consequence: str) -> None:
        error = self._state.settled()
        if error is not None:
            error.add_note(f"This was raised in the background, writing a checkpoint; {consequence}.")
            raise error


class _State:
    """The thread that writes, and what it raised."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, store: Store, prepared: Prepared) -> None:
        # Not a daemon: the end of the interpreter waits for it.
        thread = threading.Thread(target=self._write, args=(store, prepared), name="checkpoint", daemon=False)
        thread.start()
        self._thread = thread

    def _write(self, store: Store, prepared: Prepared) -> None:
        try:
            store.write(prepared)
        except BaseException as error:
            self._error = error

    def settled(self) -> BaseException | None:
        """What the last write raised, once it has ended."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        return error


def _report(state: _State) -> None:
    error = state.settled()
    if error is not None:
        warnings.warn(
            f"nobody closed the writer, so nobody has seen that {error}", RuntimeWarning, stacklevel=1
        )


def snapshot(tree: Any, /) -> Any:
    """A copy of a tree in main memory, with its ties and its order of memory; other leaves are shared."""
    leaves, treedef = flatten(tree)
    copies: dict[int, Any] = {}
    for i, x in enumerate(leaves):
        if id(x) not in copies:
            copies[id(x)] = _copied(x)
        leaves[i] = copies[id(x)]
    return treedef.unflatten(leaves)


def _copied(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.detach() if x.is_meta else x.detach().to("cpu", copy=True)
    if isinstance(x, Assigned):
        return Assigned(_copied(x.value))
    return x.copy() if isinstance(x, np.ndarray) else x
