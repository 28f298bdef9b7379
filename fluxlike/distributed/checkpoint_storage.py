"""How torch.distributed.checkpoint writes and reads files here: as safetensors, and nothing by pickle.

torch plans which rank writes and reads what. Its own `FileSystemWriter` keeps the plan as a pickle, which
`FileSystemReader` loads without restraint. Its `HuggingFaceStorageWriter` writes safetensors, but in place,
so that a save that dies leaves two halves; without the shapes of whole tensors, so that where a file is
missing a tensor is smaller; and without checksums. Here the tensors are safetensors too, which torch's reader
of such files can read as well; what is said of them is JSON, in `checkpoint_index`, written last; and every
byte has a checksum.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from fluxlike.distributed.checkpoint_index import FILE, INDEX, Chunk, Saved, file_name, written_index
from fluxlike.distributed.checkpoint_source import Source, box_of
from fluxlike.files.description import Description
from fluxlike.files.durable import leftovers, require_replaceable, write_whole
from fluxlike.files.reader import BLOCK, bytes_of
from fluxlike.files.writer import header_of

__all__ = ["Reader", "Writer"]

_OURS = re.compile(f"{FILE.pattern}|{re.escape(INDEX)}", re.ASCII)


class _Share(NamedTuple):
    """The file that a rank writes."""

    token: str
    number: int


class Writer(StorageWriter):
    """Writes each rank's share into a file of its own, and then, on the first rank, the index of all of them.

    Args:
        folder: where to; made where it is not there.
        about: the tree.
    """

    def __init__(self, folder: Path, about: Description) -> None:
        self._folder = folder
        self._about = about
        self._token = ""
        self._written: Path | None = None

    def discard(self) -> None:
        """Remove what this rank has written, after a save that failed."""
        if self._written is not None:
            with contextlib.suppress(OSError):  # the next save removes it
                self._written.unlink(missing_ok=True)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from other saves."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing is to be known beforehand."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Make the folder."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise NotADirectoryError(
                f"{self._folder} is, or lies in, a file; a checkpoint needs a folder"
            ) from None
        require_replaceable(self._folder / INDEX)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Name the files of all ranks."""
        self._token = secrets.token_hex(8)
        return [dataclasses.replace(p, storage_data=_Share(self._token, i)) for i, p in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's file, one tensor after another."""
        share: _Share = plan.storage_data
        results: list[WriteResult] = []
        if plan.items:
            self._written = self._folder / file_name(share.token, share.number)
            write_whole(self._written, _parts(plan.items, planner, share.number, results))
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index, by which this checkpoint takes the place of an older one, and remove that."""
        chunks: dict[str, list[Chunk]] = {name: [] for name in metadata.state_dict_metadata}
        for result in (result for of_rank in results for result in of_rank):
            if 0 not in result.storage_data.shape:
                chunks[result.index.fqn].append(result.storage_data)
        tensors = {}
        for name, x in metadata.state_dict_metadata.items():
            assert isinstance(x, TensorStorageMetadata)
            tensors[name] = Saved(x.properties.dtype, tuple(x.size), tuple(chunks[name]))
        text = written_index(self._token, self._about, tensors)
        write_whole(self._folder / INDEX, [text.encode()])
        ours = [path for path in self._folder.iterdir() if FILE.fullmatch(path.name)]
        stale = [path for path in ours if not path.name.startswith(self._token)]
        for path in (*stale, *leftovers(self._folder, _OURS)):
            with contextlib.suppress(OSError):  # the next save removes it
                path.unlink()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a path."""
        return isinstance(checkpoint_id, (str, os.PathLike))


def _parts(
    items: list[WriteItem], planner: SavePlanner, number: int, results: list[WriteResult]
) -> Iterator[bytes | memoryview]:
    """The file of a rank in parts, made one tensor at a time; what was written is noted in `results`."""
    by_name = {item.index.fqn: item for item in items}
    if len(by_name) < len(items):
        twice = next(item.index.fqn for item in items if by_name[item.index.fqn] is not item)
        raise ValueError(
            f"this rank holds two parts of {twice}, and a file of a checkpoint has one part of each; before "
            "it is saved, lay it out anew: to_device(tree, mesh, plan)"
        )
    forms, offsets = {}, {}
    for name, item in by_name.items():
        assert item.tensor_data is not None
        forms[name] = (item.tensor_data.properties.dtype, item.tensor_data.chunk.sizes)
        offsets[name] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
    # what torch's own reader of such files asks for
    header, order = header_of(forms, {"format": "pt", "DCP_SHARDING_INFO": json.dumps(offsets)})
    yield header
    for name in order:
        x = planner.resolve_data(by_name[name])
        assert isinstance(x, torch.Tensor)
        x = x.detach().cpu().contiguous()
        data = bytes_of(x) if x.numel() else memoryview(b"")
        sums = tuple(zlib.crc32(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK))
        chunk = Chunk(tuple(offsets[name]["saved_offsets"]), tuple(x.shape), number, sums)
        results.append(WriteResult(by_name[name].index, len(data), chunk))
        yield data


class Reader(StorageReader):
    """Reads boxes of tensors, each from the rows of the file where it lies.

    Args:
        source: what is stored.
        names: the stored name for each name in the plan; several may be one.
    """

    def __init__(self, source: Source, names: Mapping[str, str]) -> None:
        self._source = source
        self._names = names

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from other loads."""

    def read_metadata(self) -> Metadata:
        """The tensors and their chunks, as torch plans with them."""
        tensors = {
            key: TensorStorageMetadata(
                TensorProperties(self._source.tensors[name].dtype),
                torch.Size(self._source.tensors[name].shape),
                [
                    ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.shape))
                    for chunk in self._source.tensors[name].chunks
                ],
            )
            for key, name in self._names.items()
        }
        return Metadata(dict(tensors))

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing is to be known beforehand."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what this rank needs, a file and in it a box at a time."""
        by_file: dict[int, list[tuple[ReadItem, str, Chunk]]] = {}
        for item in plan.items:
            name = self._names[item.storage_index.fqn]
            chunk = self._chunk(name, item.storage_index)
            by_file.setdefault(chunk.file, []).append((item, name, chunk))
        for number in sorted(by_file):
            with self._source.open(number) as file:
                for item, name, chunk in by_file[number]:
                    x = box_of(self._source, file, name, chunk, item.storage_offsets, item.lengths)
                    target = planner.resolve_tensor(item)
                    target.copy_(x)
                    planner.commit_tensor(item, target)
        return _done(None)

    def _chunk(self, name: str, index: MetadataIndex) -> Chunk:
        assert index.index is not None
        return self._source.tensors[name].chunks[index.index]

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a path."""
        return isinstance(checkpoint_id, (str, os.PathLike))


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future
