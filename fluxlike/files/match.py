"""Which tensor of a checkpoint stands for which place of a model, decided before any of them is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fluxlike.files.reader import bytes_of
from fluxlike.files.rename import Rename, renamed
from fluxlike.files.report import CheckpointMatch, Differing
from fluxlike.files.sources import Form, Source
from fluxlike.trees.paths import dotted
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Match"]


class Match:
    """A checkpoint and a model, matched by names in dots.

    Attributes:
        report: what fits and what does not, with the model as it was.
    """

    def __init__(self, source: Source, like: Any, rename: Rename, *, cast: bool) -> None:
        self._source = source
        self._leaves, self._treedef = flatten(like)
        where = structure_of(self._treedef).paths
        self._path = {id(x): path for path, x in reversed([*zip(where, self._leaves, strict=True)])}
        wanted = {path: x for path, x in zip(where, self._leaves, strict=True) if isinstance(x, Tensor)}
        name_of = {new: name for name, new in renamed(source.forms, rename).items() if new is not None}
        self._goes: dict[str, Tensor] = {}  # by the name in the checkpoint, the tensor of the model
        loaded: dict[str, str] = {}
        missing: list[str] = []
        differing: list[Differing] = []
        for paths in _tied(wanted):
            x, held = wanted[paths[0]], {p: name_of[dotted(p)] for p in paths if dotted(p) in name_of}
            faults = [
                d for p, name in held.items() if (d := _differing(p, name, source.forms[name], x, cast))
            ]
            differing += faults
            if not held:
                missing.append(paths[0])
            elif not faults:
                loaded[paths[0]] = next(iter(held.values()))
                self._goes.update((name, x) for name in held.values())
        places = set(map(dotted, wanted))
        left = {new: name for new, name in name_of.items() if new not in places}
        counters = {new: name for new, name in left.items() if _counts_batches(new, set(map(dotted, loaded)))}
        used = set(name_of.values())
        self.report = CheckpointMatch(
            model=like,
            loaded=loaded,
            missing=tuple(missing),
            unexpected=tuple(name for new, name in left.items() if new not in counters),
            reshaped=tuple(d for d in differing if isinstance(d.wanted, tuple)),
            retyped=tuple(d for d in differing if not isinstance(d.wanted, tuple)),
            dropped=(*(name for name in source.forms if name not in used), *counters.values()),
        )

    def filled(self) -> Any:
        """The model with every tensor that fits.

        Raises:
            ValueError: a tensor can't be read, or those of tied places differ.
        """
        new: dict[int, Tensor] = {}
        first: dict[int, str] = {}
        for name, found in self._source.read(self._goes):
            old = self._goes[name]
            device = torch.device("cpu") if old.is_meta else old.device
            x = found.to(device, old.dtype)
            if first.setdefault(id(old), name) == name:
                new[id(old)] = x
            elif not _same_bits(new[id(old)], x):
                raise ValueError(
                    f"{self._path[id(old)] or 'the root'} is one tensor at several places of the model, and "
                    f"{first[id(old)]!r} and {name!r} of {self._source.title} differ; drop one by "
                    f"rename={{{name!r}: None}}, or untie the places"
                )
        return self._treedef.unflatten([new.get(id(x), x) for x in self._leaves])


def _tied(wanted: dict[str, Tensor]) -> list[list[str]]:
    """The places of each tensor; no two places may have the same name in dots."""
    groups: dict[int, list[str]] = {}
    first: dict[str, str] = {}
    for path, x in wanted.items():
        groups.setdefault(id(x), []).append(path)
        if first.setdefault(dotted(path), path) != path:
            raise ValueError(
                f"{first[dotted(path)]} and {path} of the model are both called {dotted(path)!r}"
            )
    return list(groups.values())


def _differing(path: str, name: str, form: Form, x: Tensor, cast: bool) -> Differing | None:
    if form.shape != tuple(x.shape):
        return Differing(path, name, form.shape, tuple(x.shape))
    if form.layout != x.layout:
        return Differing(path, name, form.layout, x.layout)
    if form.dtype != x.dtype and not (cast and _castable(form.dtype, x.dtype)):
        return Differing(path, name, form.dtype, x.dtype)
    return None


def _castable(a: torch.dtype, b: torch.dtype) -> bool:
    return (a.is_floating_point and b.is_floating_point) or (a.is_complex and b.is_complex)


def _counts_batches(name: str, loaded: set[str]) -> bool:
    """Whether a name is that of torch's count of batches, in a layer whose statistics were loaded.

    torch's BatchNorm writes it always, and reads it only where ``momentum=None``.
    """
    head, _, last = name.rpartition(".")
    return last == "num_batches_tracked" and (f"{head}.running_mean" if head else "running_mean") in loaded


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return not a.numel() or bytes_of(a.cpu().contiguous()) == bytes_of(b.cpu().contiguous())
