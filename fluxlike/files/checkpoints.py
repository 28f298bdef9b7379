"""Checkpoints from elsewhere, by name into any model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fluxlike.files.locating import source_of
from fluxlike.files.match import Match
from fluxlike.files.parts import part_of, parts_in
from fluxlike.files.printing import shown
from fluxlike.files.reader import TensorFile
from fluxlike.files.rename import Rename
from fluxlike.files.report import CheckpointMatch, mismatch_text
from fluxlike.files.sources import refuse_others
from fluxlike.files.tensors import described

__all__ = ["load_checkpoint", "match_checkpoint", "read_checkpoint"]

Checkpoint = str | os.PathLike[str] | Mapping[str, Any]


def read_checkpoint(path: str | os.PathLike[str], /, *, part: str | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, in main memory.

    Nothing in the file is run: files of torch are read with ``weights_only=True``. Files are read, not
    mapped, so they may change or shrink afterwards.

    Args:
        path: a safetensors file; a file of `torch.save`, whose nested dicts give names in dots; the
            ``.index.json`` of shards; or a folder that holds, in this order, ``model.safetensors``,
            ``model.safetensors.index.json``, ``pytorch_model.bin`` or ``pytorch_model.bin.index.json``. The
            first bytes say what a file is, and its ending must not say otherwise.
        part: the entry of a file of torch, or of `save`, that holds the model, such as ``"state_dict"``,
            where there are others beside it. (default: the whole file)

    Returns:
        A dict from name to tensor. No two share memory.

    Raises:
        ValueError: the file is truncated, damaged or of another kind; it holds anything but tensors, or
            tensors that unfold to far more than itself; or shards are missing, lie outside the folder, or do
            not hold what the index says.
        FileNotFoundError: there is no such file.

    Example:
        >>> import os, tempfile, torch, fluxlike as fl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, "last.ckpt")
        ...     torch.save({"epoch": 3, "state_dict": torch.nn.Linear(2, 1).state_dict()}, file)
        ...     checkpoint = fl.read_checkpoint(file, part="state_dict")
        >>> list(checkpoint)
        ['weight', 'bias']
    """
    source = source_of(path, part)
    refuse_others(source, source.others)
    found = dict(source.read(source.forms))
    return {name: found[name] for name in source.forms}


def load_checkpoint(
    source: Checkpoint,
    /,
    like: Any,
    *,
    rename: Rename = None,
    part: str | None = None,
    cast: bool = False,
) -> Any:
    """A model with the tensors of a checkpoint, each at the place of its name: all of them, or an error.

    Names are matched with paths in dots: ``layers.0.weight`` is the place ``.layers[0].weight``. A tied
    parameter is found if the checkpoint has any of its names. As in torch, buffers that are not persistent
    may be missing, and so may ``num_batches_tracked``, which is passed by where a layer keeps no such count.

    Args:
        source: a path, as in `read_checkpoint`, or a dict of tensors by name such as a `state_dict` of
            torch, whose tensors are copied.
        like: the model. Devices and dtypes are taken from it; one on the meta device gives a model in main
            memory. Shards are read one at a time. Safetensors that do not fit are not read; files of torch
            are read as a whole, shards of them twice.
        rename: how names in the checkpoint become names in the model. A dict renames places with all that
            is below them: ``{"module": "", "fc": "head"}``, of several that fit the longest; a list of pairs
            ``(pattern, replacement)`` applies `re.sub` for each in order; a function takes a name and
            returns the new one. None as the new name drops a tensor, or what is none. (default: names stay)
        part: as in `read_checkpoint`.
        cast: whether floating tensors may be of another floating dtype than the model's, to which they are
            converted, and complex ones likewise. (default: False, which makes that an error)

    Returns:
        A new model with the structure and ties of `like`, which is unchanged.

    Raises:
        ValueError: a tensor is missing, has no place, or has another shape or dtype: the first ten are named.
            A rule of `rename` fits nothing, or two names become one; tied places have different values; a
            number is beyond the dtype that `cast` gives it; the checkpoint can't be read.
        TypeError: `like` is a class, or a module of torch.
        FileNotFoundError: there is no such file.

    Example:
        >>> import torch, fluxlike as fl
        >>> theirs = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> model = fl.Chain(fl.Dense(2, 3, fl.tanh), fl.Dense(3, 1))
        >>> rules = {"0": "layers.0", "2": "layers.1"}
        >>> model = fl.load_checkpoint(theirs.state_dict(), model, rename=rules)
        >>> x = torch.ones(1, 2)
        >>> torch.allclose(model(x), theirs(x))
        True
    """
    opened = source_of(source, part)
    match = Match(opened, like, rename, cast=cast)
    fault = mismatch_text(opened.title, match.report, match.names)
    if fault:
        raise ValueError(fault + ("" if part is not None or match.report.loaded else _parts(source, match)))
    return match.filled()


def _parts(source: Checkpoint, match: Match) -> str:
    """What `part` may be for a file that `save` wrote, and for which of them the model is."""
    if isinstance(source, Mapping) or not os.path.isfile(source):
        return ""
    try:
        with TensorFile(source) as file:
            about = described(source, file)
    except ValueError:  # a file of others
        return ""
    known = parts_in(about)
    fits = [part for part in known if {*match.report.missing} & {*part_of(about, part, "")[1].leaves}]
    write = f"; the model's names are in one: write part={fits[0]!r}" if len(fits) == 1 else ""
    return (
        f"\npart= reads one of its parts alone: {', '.join(map(shown, known[:10]))}{write}" if known else ""
    )


def match_checkpoint(
    source: Checkpoint,
    /,
    like: Any,
    *,
    rename: Rename = None,
    part: str | None = None,
    cast: bool = False,
) -> CheckpointMatch:
    """A model with those tensors of a checkpoint that fit, and a report of what did not.

    For fine-tuning with another head, and to find the rules for `rename`: look at the report, then take
    its `model`, or give the rules to `load_checkpoint`.

    Args:
        source: as in `load_checkpoint`.
        like: as in `load_checkpoint`.
        rename: as in `load_checkpoint`.
        part: as in `load_checkpoint`.
        cast: as in `load_checkpoint`.

    Returns:
        A `CheckpointMatch`, which prints as a table: what was loaded, missing, kept, unexpected, of another
        shape or dtype, or dropped; and the model, with its own tensors where none fits.

    Raises:
        ValueError: the checkpoint can't be read, a rule fits nothing, two names become one, tied places have
            different values, or a number is beyond its new dtype.
        TypeError: `like` is a class, or a module of torch.
        FileNotFoundError: there is no such file.

    Example:
        >>> import torch, fluxlike as fl
        >>> theirs = {"body.weight": torch.ones(2, 2), "head.weight": torch.ones(1000, 2)}
        >>> model = {"body": fl.Dense(2, 2, bias=False), "head": fl.Dense(2, 5, bias=False)}
        >>> found = fl.match_checkpoint(theirs, model)
        >>> print(found.reshaped[0])
        ['head'].weight is (1000, 2) in the checkpoint, (5, 2) in the model
        >>> model = found.model
    """
    match = Match(source_of(source, part), like, rename, cast=cast)
    return dataclasses.replace(match.report, model=match.filled())
