"""Checkpoints that every rank writes its share of, and that any number of ranks loads."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.tensor import DTensor

from fluxlike.distributed.checkpoint_filling import Filling, as_stored_part
from fluxlike.distributed.checkpoint_source import Folder, Source, box_of, source_of
from fluxlike.distributed.checkpoint_storage import Reader, Writer
from fluxlike.files import description
from fluxlike.files.durable import write_whole
from fluxlike.files.naming import Naming
from fluxlike.files.reader import TensorFile, bytes_of
from fluxlike.files.tensors import FORMAT, require_readable
from fluxlike.files.writer import header_of
from fluxlike.placement.mesh import ranks
from fluxlike.placement.mesh.tensors import settled

__all__ = ["consolidate", "load", "save"]


def save(folder: str | os.PathLike[str], tree: Any, /) -> None:
    """Write a tree over a mesh to a folder, each rank what it holds of it.

    Nothing is gathered. What several ranks hold is written by one of them, each about as much. A save that
    dies half-way leaves an older checkpoint whole: new files are written beside those of the older one, and
    take their place when the first rank, once all are on the disk, renames the index ``checkpoint.json``.

    Every rank of the job calls it with the same tree and folder, on a file system that all of them share;
    plain tensors are taken to be equal on all ranks. One job at a time saves into a folder. Without a process
    group it saves the tree of this process.

    The files are safetensors and JSON: torch's own checkpoints (``torch.distributed.checkpoint``, by whose
    plans this is written) keep a pickle, which can run code where it is loaded.

    Args:
        folder: made where it is not there. Other files in it stay.
        tree: any tree: a model, the state of an optimiser, or both in a dict. Numbers, strings and the names
            of functions are kept with it, as by `fluxlike.save`.

    Raises:
        ValueError: the ranks have different trees; or a tensor is on the meta device, or of a layout or dtype
            that safetensors lack.
        OSError: a rank can't write its file; every rank raises it.

    Example:
        >>> import tempfile, fluxlike as fl
        >>> model = fl.to_device(fl.Dense(4, 2), fl.distributed.mesh(), fl.distributed.shard())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fl.distributed.save(folder, model)
        ...     plain = fl.distributed.load(folder, like=fl.Dense(4, 2))
        >>> fl.tree.allclose(plain, fl.cpu(model))
        True
    """
    naming, about = ranks.agreed(lambda: _described(folder, tree))
    _require_same_tree(naming)
    tensors = {
        name: as_stored_part(settled(x) if isinstance(x, DTensor) else x)
        for name, x in naming.tensors.items()
    }
    writer = Writer(_absolute(folder), about)
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        _run(lambda alone: dcp.save(tensors, storage_writer=writer, planner=planner, no_dist=alone))
    except BaseException:
        writer.discard()
        raise


def load(path: str | os.PathLike[str], /, like: Any) -> Any:
    """Read a checkpoint into the layout of a tree, each rank what it holds of it: all of it, or an error.

    The number of ranks and the plan may be others than when it was saved; a tree of plain tensors is read
    whole, with or without a process group. Where there is a group, every rank of the job calls it.

    Args:
        path: the folder of `save`; or a file of `consolidate` or `fluxlike.save`, of which each rank reads
            its part, and for the checksums a share of the rest.
        like: a tree of the structure expected, as in `fluxlike.load`. Tensors go where it has them: to the
            same part of a mesh, or the same device; from the meta device to those of the mesh, or to main
            memory.

    Returns:
        A tree of the structure and ties of `like`, in memory of its own.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is truncated or damaged, or one of its files is missing; or a leaf is missing, is not
            in `like`, or has another shape, dtype, type, name or setting. The first ten are named.
        TypeError: `like` is a class, or a module of torch.

    What one rank raises, all ranks raise.

    Example:
        >>> import tempfile, torch, fluxlike as fl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fl.distributed.save(folder, {"w": torch.ones(2), "step": 3})
        ...     fl.distributed.load(folder, like={"w": torch.empty(2), "step": 0})
        {'w': tensor([1., 1.]), 'step': 3}
    """
    with ExitStack() as stack:

        def prepared() -> tuple[Source, Filling]:
            source = source_of(_absolute(path))
            stack.callback(source.close)
            return source, Filling(source, like)

        source, filling = ranks.agreed(prepared)
        reader = Reader(source, filling.names)
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        _run(lambda alone: dcp.load(filling.targets, storage_reader=reader, planner=planner, no_dist=alone))

        def finished() -> Any:
            source.verify(ranks.number(), ranks.count())
            return filling.tree()

        return ranks.agreed(finished)


def consolidate(folder: str | os.PathLike[str], file: str | os.PathLike[str], /) -> None:
    """Turn a checkpoint of many ranks into one safetensors file, which `fluxlike.load` reads anywhere.

    One tensor at a time is in memory; each is read twice, for its checksum and to be written. In a job of
    many ranks the first one does it, and the others wait.

    Args:
        folder: of `save`; it stays as it is.
        file: the file. One that is there is replaced, when the new one is on the disk.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is truncated or damaged, or one of its files is missing.
        OSError: the file can't be written; of a full disk, it says how much was needed and is free.

    Example:
        >>> import os, tempfile, torch, fluxlike as fl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fl.distributed.save(folder, {"w": torch.ones(2)})
        ...     file = os.path.join(folder, "weights.safetensors")
        ...     fl.distributed.consolidate(folder, file)
        ...     fl.load(file, like={"w": torch.empty(2)})
        {'w': tensor([1., 1.])}
    """
    ranks.alone(lambda: _consolidated(_absolute(folder), _absolute(file)))


def _consolidated(folder: Path, file: Path) -> None:
    source = Folder(folder)
    with ExitStack() as stack:
        opened = cache(lambda number: stack.enter_context(source.open(number)))
        checksums = {}
        for name in source.about.stored():
            x = _whole(source, name, opened)
            checksums[name] = zlib.crc32(bytes_of(x)) if x.numel() else 0
            del x
        about = description.Description(source.about.leaves, source.about.nodes, checksums)
        forms = {name: (x.dtype, torch.Size(x.shape)) for name, x in source.tensors.items()}
        header, order = header_of(forms, {FORMAT: about.text()})

        def parts() -> Iterator[bytes | memoryview]:
            yield header
            for name in order:
                x = _whole(source, name, opened)
                if x.numel():
                    yield bytes_of(x)

        write_whole(file, parts(), require_readable)


def _whole(source: Source, name: str, opened: Callable[[int], TensorFile]) -> Tensor:
    """A tensor put together from its chunks."""
    saved = source.tensors[name]
    x = torch.empty(saved.shape, dtype=saved.dtype, device="cpu")
    for chunk in saved.chunks:
        part = x
        for dim, (start, size) in enumerate(zip(chunk.offsets, chunk.shape, strict=True)):
            part = part.narrow(dim, start, size)
        none = (0,) * len(chunk.shape)
        part.copy_(box_of(source, opened(chunk.file), name, chunk, none, chunk.shape))
    return x


def _described(folder: Any, tree: Any) -> tuple[Naming, description.Description]:
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(
            f"save takes the folder first, found a {type(folder).__name__}: write save(folder, tree)"
        )
    naming = Naming(tree)
    return naming, description.parse(description.written(tree, naming.entries, {}))


def _require_same_tree(naming: Naming) -> None:
    """Refuse trees that differ between ranks, of which some parts would be written and others not."""
    if ranks.count() == 1:
        return
    mine = {path: _form(entry, naming) for path, entry in naming.entries.items()}
    digest = zlib.crc32(repr(mine).encode("utf-8", "surrogatepass"))
    digests: list[Any] = [None] * ranks.count()
    dist.all_gather_object(digests, digest)
    if len(set(digests)) == 1:
        return
    firsts = [mine]
    dist.broadcast_object_list(firsts, src=0)
    rank = next(rank for rank, each in enumerate(digests) if each != digests[0])
    others = [mine]
    dist.broadcast_object_list(others, src=rank)
    a, b = firsts[0], others[0]
    path = next(p for p in (*a, *b) if a.get(p) != b.get(p))
    raise ValueError(
        f"the ranks have different trees: {path or 'the root'} is {a.get(path, 'not there')} on rank 0 and "
        f"{b.get(path, 'not there')} on rank {rank}; every rank must save the same tree"
    )


def _form(entry: dict[str, Any], naming: Naming) -> str:
    kind, value = next(iter(entry.items()))
    x = naming.tensors.get(value) if kind in description.STORED else None
    if x is None:
        return str(value)
    layout = f" with {list(x.placements)}" if isinstance(x, DTensor) else ""
    return f"{x.dtype} of shape {tuple(x.shape)}{layout}"


def _absolute(path: Any) -> Path:
    return Path(os.path.abspath(path))


def _run(checkpoint: Callable[[bool], object]) -> None:
    """Let torch save or load; what ranks raise comes as it was raised."""
    alone = not dist.is_initialized()
    failed: dict[int, BaseException] = {}
    try:
        with warnings.catch_warnings():
            if alone:
                warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or")
            checkpoint(alone)
    except dcp.CheckpointException as error:
        failed = {rank: each for rank, (each, _) in error.failures.items()}
    ranks.raise_shared(failed, failed.get(ranks.number()))
