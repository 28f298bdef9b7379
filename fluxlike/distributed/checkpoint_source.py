"""Where the tensors of a load come from: the folder of a sharded checkpoint, or one safetensors file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fluxlike.distributed.checkpoint_index import INDEX, Chunk, Saved, file_name, read_index
from fluxlike.files.description import Description
from fluxlike.files.printing import shown
from fluxlike.files.reader import TensorFile
from fluxlike.files.tensors import described

__all__ = ["Folder", "OneFile", "Source", "box_of", "source_of"]


class Source(Protocol):
    """What is stored, described but not yet read."""

    title: str
    about: Description

    @property
    def tensors(self) -> Mapping[str, Saved]:
        """The tensors by name."""

    def open(self, number: int, /) -> AbstractContextManager[TensorFile]:
        """One of its files."""

    def verify(self, rank: int, ranks: int, /) -> None:
        """Compare the checksums that reading boxes has not compared, a share on each rank."""

    def close(self) -> None:
        """Give back what it holds open."""


def source_of(path: Path, /) -> Source:
    """What is at a path: the folder of a checkpoint, or a file.

    Raises:
        FileNotFoundError: there is nothing, or no checkpoint in the folder.
        ValueError: it is damaged, or was not written by `fluxlike.save` or `fluxlike.distributed.save`.
    """
    return Folder(path) if path.is_dir() else OneFile(path)


class Folder:
    """The folder of a sharded checkpoint."""

    def __init__(self, folder: Path, /) -> None:
        index = read_index(folder)
        self.title = f"the checkpoint {folder}"
        self.about, self.tensors = index.about, index.tensors
        self._folder, self._token = folder, index.token

    def open(self, number: int, /) -> AbstractContextManager[TensorFile]:
        """The file of a rank.

        Raises:
            ValueError: it is not there, or damaged.
        """
        path = self._folder / file_name(self._token, number)
        try:
            return TensorFile(path)
        except FileNotFoundError:
            # no FileNotFoundError, by which a program knows that it has to begin anew
            raise ValueError(
                f"{self.title} is damaged: there is no file {path.name}, which its {INDEX} names; copy the "
                "whole folder, and let no other job save into it meanwhile"
            ) from None

    def verify(self, rank: int, ranks: int, /) -> None:
        """Nothing is left to be compared."""

    def close(self) -> None:
        """Nothing is held open."""


class OneFile:
    """A file of `fluxlike.save`, or of `consolidate`; it stays open, so that it is one file all the time."""

    def __init__(self, path: Path, /) -> None:
        self.title = f"the file {path}"
        self._file = TensorFile(path)
        try:
            self.about = described(path, self._file)
        except BaseException:
            self.close()
            raise
        self.tensors = {
            name: Saved(x.dtype, x.shape, _whole(x.shape)) for name, x in self._file.tensors.items()
        }

    def open(self, number: int, /) -> AbstractContextManager[TensorFile]:
        """The file."""
        return contextlib.nullcontext(self._file)

    def verify(self, rank: int, ranks: int, /) -> None:
        """Compare the checksums of some tensors, which are of tensors as a whole.

        Raises:
            ValueError: one does not agree.
        """
        sizes = {name: x.end - x.start for name, x in self._file.tensors.items()}
        largest = sorted(sizes, key=lambda name: -sizes[name])
        for name in largest[rank::ranks]:
            self._file.require(name, self.about.checksums[name])

    def close(self) -> None:
        """Close the file."""
        self._file.__exit__()


def _whole(shape: tuple[int, ...]) -> tuple[Chunk, ...]:
    return () if 0 in shape else (Chunk((0,) * len(shape), shape, 0, None),)


def box_of(
    source: Source, file: TensorFile, name: str, chunk: Chunk, offsets: Sequence[int], shape: Sequence[int], /
) -> Tensor:
    """A box of a chunk, of which only the rows that it lies in are read.

    Raises:
        ValueError: the file does not hold the chunk that is expected there, or is damaged.
    """
    stored = file.tensors.get(name)
    if stored is None or (stored.dtype, stored.shape) != (source.tensors[name].dtype, chunk.shape):
        found = "nothing" if stored is None else f"{stored.dtype} of shape {stored.shape}"
        raise ValueError(
            f"{source.title} is damaged: a file holds {found} for {shown(name)}, where its index says "
            f"{source.tensors[name].dtype} of shape {chunk.shape}"
        )
    if not chunk.shape:
        return file.rows(name, 0, 1, chunk.checksums)
    box = file.rows(name, offsets[0], shape[0], chunk.checksums)
    for dim in range(1, len(shape)):
        box = box.narrow(dim, offsets[dim], shape[dim])
    return box
