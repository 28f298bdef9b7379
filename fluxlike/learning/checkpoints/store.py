"""The checkpoints of a run in a folder: saved, listed, ranked, loaded, and the worse ones removed."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxlike.files.durable import leftovers, sync_folder
from fluxlike.files.placing import require_model
from fluxlike.files.tensors import save
from fluxlike.learning.checkpoints.content import Prepared, content_of, fault_of, read_content
from fluxlike.learning.checkpoints.entry import NAME, Entry, named, read_entry, step_of
from fluxlike.learning.checkpoints.keeping import kept, ranked
from fluxlike.learning.checkpoints.lock import FolderLock
from fluxlike.learning.direction import Mode, mode_of

__all__ = ["Store"]


class Store:
    """The checkpoints of one run, each a file ``step-000000100.safetensors`` in its folder.

    A file appears by one rename when all of it is on the disk, and only then are older ones removed; so a run
    that is killed at any instant leaves whole checkpoints. One process at a time writes to a folder: the
    first `save`, or `open`, takes a lock, which the system takes back when the process ends. Reading needs
    none.

    Args:
        folder: made by `open` and `save` where it is not there.
        keep: how many of the best are kept; the newest is kept besides. None keeps all. (default: 3)
        by: the score that says which are the best. (default: the newest are)
        mode: "min" where a lower score is better, "max" where a higher one is. Of equal scores the earlier
            is better; one without a score, or with NaN, is worse than any number. (default: "min" for a name
            that ends in loss or error, and an error for another)

    Raises:
        TypeError, ValueError: an argument is none of these.

    Example:
        >>> import tempfile, torch
        >>> from fluxlike.learning.checkpoints.store import Store
        >>> with tempfile.TemporaryDirectory() as folder, Store(folder, keep=1, by="loss") as store:
        ...     for step, loss in ((10, 0.5), (20, 0.25), (30, 0.75)):
        ...         tree = {"w": torch.full((2,), loss)}
        ...         store.save(step, tree, {"history": [loss]}, {"loss": loss})
        ...     print([entry.step for entry in store.list()], store.best().step)
        ...     tree, plain = store.load(store.newest(), like={"w": torch.empty(2)})
        [20, 30] 20
        >>> tree, plain
        ({'w': tensor([0.7500, 0.7500])}, {'history': [0.75]})
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        /,
        keep: int | None = 3,
        *,
        by: str | None = None,
        mode: Mode | None = None,
    ) -> None:
        if keep is not None and (type(keep) is not int or keep < 1):
            raise ValueError(f"keep={keep!r}: write how many checkpoints to keep, from 1, or None for all")
        if by is not None and not isinstance(by, str):
            raise TypeError(f'by is the name of a score, such as by="loss", found a {type(by).__name__}')
        self.folder = Path(os.path.abspath(folder))
        self.keep, self.by = keep, by
        self.mode = mode_of(by, mode, write=f"Store(folder, by={by!r}")
        self._lock: FolderLock | None = None
        self._writing = threading.Lock()

    def open(self) -> Store:
        """Take the lock of the folder, and remove what a killed run left half-written there.

        Returns:
            The store itself, which `close`, or the end of a ``with`` block, closes.

        Raises:
            RuntimeError: another run, or another store, writes there.
            OSError: the folder can't be made.
        """
        if self._lock is not None and self._lock.held:
            return self
        _make(self.folder)
        self._lock = FolderLock(self.folder)
        if self._lock.alone:
            for path in leftovers(self.folder, NAME):
                path.unlink()
        return self

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Store:
        return self.open()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def list(self) -> list[Entry]:
        """The checkpoints that are there, in the order of steps; of a damaged one, what is wrong with it."""
        paths, before = self._paths(), None
        while True:
            found = []
            for path in paths:
                with contextlib.suppress(FileNotFoundError):  # the run that writes here removed it, and ...
                    found.append(read_entry(path))
            if len(found) == len(paths) or paths == before:
                return found
            paths, before = self._paths(), paths  # ... a later one is there

    def newest(self) -> Entry | None:
        """The checkpoint of the latest step, damaged or not; None where there is none."""
        gone = None
        while paths := self._paths():
            try:
                return read_entry(paths[-1])
            except FileNotFoundError:  # the run that writes here removed it for a later one
                if paths[-1] == gone:
                    raise
                gone = paths[-1]
        return None

    def best(self, by: str | None = None, mode: Mode | None = None) -> Entry | None:
        """The best checkpoint by a score; None where there is no checkpoint.

        Args:
            by: the score. (default: the store's)
            mode: "min" or "max". (default: the store's, for its own score)

        Raises:
            ValueError: no score is named, none of the checkpoints has it, one is damaged, so that its score
                is not known, or nothing says whether more or less of it is better.
        """
        by = self.by if by is None else by
        if by is None:
            raise ValueError('say by which score: store.best("loss"), or Store(folder, by="loss")')
        entries = self.list()
        for entry in entries:
            if entry.fault:
                raise ValueError(
                    f"the score of the checkpoint of step {entry.step} is not known: {entry.fault}; move "
                    f"{entry.path} elsewhere, or choose from store.list()"
                )
        if not entries:
            return None
        if all(math.isnan(entry.scores.get(by, math.nan)) for entry in entries):
            names = sorted({name for entry in entries for name in entry.scores})
            raise ValueError(f"no checkpoint in {self.folder} has a number as {by!r}; their scores: {names}")
        if mode is None and by == self.by:
            mode = self.mode
        return ranked(entries, by, mode_of(by, mode, write=f"store.best({by!r}"))[0]

    def save(
        self, step: int, tree: Any, plain: Any = None, scores: Mapping[str, Any] | None = None, /
    ) -> None:
        """Write a checkpoint to the disk, then remove those that are no longer kept.

        Args:
            step: how many steps the run has made. A checkpoint of the same step is replaced.
            tree: of a structure that is known when it is loaded: models, states, keys. Stored by `fl.save`.
            plain: of any structure: None, numbers, strings, bytes, tensors, arrays, and dicts, lists and
                tuples of them. Stored exactly.
            scores: numbers by name. None, or an empty dict, where nothing was measured.

        Raises:
            TypeError, ValueError: a part can't be stored; its place is named. The score that the store
                keeps by is missing among others. Or a later checkpoint is there, of another run.
            RuntimeError: another run writes to the folder.
            OSError: it can't be written, as on a full disk. Older checkpoints are as they were, nothing of
                the new one is left, and the run can go on.
        """
        self.write(self.prepared(step, tree, plain, scores))

    def prepared(self, step: int, tree: Any, plain: Any, scores: Mapping[str, Any] | None, /) -> Prepared:
        """A checkpoint that `write` writes; the arguments of `save`. The tensors are those of `tree`.

        Raises:
            TypeError, ValueError: as `save`.
        """
        if type(step) is not int or not 0 <= step < 10**18:
            raise ValueError(f"step is how many steps were made, a whole number, found {step!r:.100}")
        numbers = _numbers(scores or {})
        if self.by is not None and numbers and self.by not in numbers:
            raise ValueError(
                f"the store keeps the best by {self.by!r}, which is not among the scores {sorted(numbers)}; "
                "give scores=None where nothing was measured"
            )
        self._require_latest(step)
        return Prepared(step, content_of(step, tree, plain, numbers))

    def write(self, prepared: Prepared, /) -> None:
        """Write what was `prepared`.

        Raises:
            ValueError, RuntimeError, OSError: as `save`.
        """
        with self._writing:
            self.open()
            self._require_latest(prepared.step)
            try:
                save(named(self.folder, prepared.step), prepared.content)
            except OSError as error:
                raise self._unwritten(prepared.step, error) from error
            self._remove_worse()

    def load(self, entry: Entry, /, like: Any) -> tuple[Any, Any]:
        """Read a checkpoint, to the bit, into fresh memory; all of it, or an error.

        Args:
            entry: which one, from `newest`, `best` or `list`.
            like: a tree of the structure that was saved, as in `fl.load`. It says the devices; the
                order in memory (channels_last) is the saved one's.

        Returns:
            The tree, with the ties of `like`; and the plain part, whose tensors are in main memory.

        Raises:
            ValueError: the checkpoint is damaged: the error says how, which others are whole, and how to go
                on; or it does not fit `like`.
            FileNotFoundError: it is not there any more.
        """
        if not isinstance(entry, Entry):
            raise TypeError(
                f"load takes an entry of the store, found a {type(entry).__name__}: write "
                "store.load(store.newest(), like=tree)"
            )
        require_model(like)
        try:
            return read_content(entry.path, like)
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:
            fault = fault_of(entry.path)
            if fault is None:  # it is whole, and of another structure
                raise
            raise ValueError(self._damaged(entry, fault)) from error

    def rewind(self, entry: Entry, /) -> None:
        """Remove all checkpoints later than one, so that a run can go on from it.

        Raises:
            RuntimeError: another run writes to the folder.
        """
        with self._writing:
            self.open()
            for path in self._paths():
                if (step_of(path) or 0) > entry.step:
                    path.unlink()
            sync_folder(self.folder)

    def _paths(self) -> tuple[Path, ...]:
        try:
            steps = {path: step_of(path) for path in self.folder.iterdir()}
        except FileNotFoundError:
            return ()
        except NotADirectoryError:
            raise NotADirectoryError(f"{self.folder} is a file; checkpoints need a folder") from None
        return tuple(
            sorted((p for p, step in steps.items() if step is not None), key=lambda p: steps[p] or 0)
        )

    def _require_latest(self, step: int) -> None:
        paths = self._paths()
        latest = step_of(paths[-1]) if paths else None
        if latest is not None and step < latest:
            raise ValueError(
                f"{self.folder} has a checkpoint of step {latest}, this one is of step {step}: they are of "
                "two runs. Resume from the newest, give this run a folder of its own, or, to go back for "
                "good, remove the later ones with store.rewind(entry), where entry is of store.list()"
            )

    def _remove_worse(self) -> None:
        if self.keep is None:
            return
        whole = [entry for entry in self.list() if entry.fault is None]
        staying = {entry.step for entry in kept(whole, self.keep, self.by, self.mode)}
        for entry in whole:
            if entry.step not in staying:
                entry.path.unlink(missing_ok=True)

    def _unwritten(self, step: int, error: OSError) -> OSError:
        steps = [step_of(path) for path in self._paths()]
        others = f"those of steps {steps} are as they were" if steps else "there is no other"
        text = f"the checkpoint of step {step} was not written: {error}; {others}. Make room, and save again"
        return OSError(text) if error.errno is None else OSError(error.errno, text)

    def _damaged(self, entry: Entry, fault: str) -> str:
        whole = [e.step for e in self.list() if e.step != entry.step and fault_of(e.path) is None]
        way = (
            f"Those of steps {whole} are whole, but none is taken by itself: to go on from step "
            f"{whole[-1]}, move {entry.path} elsewhere and resume again"
            if whole
            else f"No other checkpoint in {self.folder} is whole: begin anew in another folder"
        )
        return f"the checkpoint of step {entry.step} can't be read: {fault}. {way}"


def _make(folder: Path) -> None:
    if folder.is_dir():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"{folder} is, or lies in, a file; checkpoints need a folder") from None
    sync_folder(folder.parent)


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, score in scores.items():
        try:
            numbers[name] = float(score)
        except (TypeError, ValueError, RuntimeError):
            found = f"{score!r:.100}"
            raise TypeError(f"the score {name!r} is {found}, not a number: a mean, or x.item()") from None
        if not isinstance(name, str):
            raise TypeError(f"the name of a score is a string, found {name!r:.100}")
    return numbers
