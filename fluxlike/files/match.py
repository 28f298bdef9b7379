"""Which tensor of a checkpoint stands for which place of a model, decided before any of them is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fluxlike.files.placing import placed, require_model
from fluxlike.files.reader import bytes_of
from fluxlike.files.rename import Rename, renamed
from fluxlike.files.report import CheckpointMatch, Differing
from fluxlike.files.sources import Form, Source, refuse_others
from fluxlike.trees.paths import children, dotted, is_node
from fluxlike.trees.records import names_it_may_lack
from fluxlike.trees.step_names import step_names
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Match"]


class Match:
    """A checkpoint and a model, matched by names in dots.

    Attributes:
        report: what fits and what does not, with the model as it was.
        names: what each name of the checkpoint became; those dropped are left out.
    """

    def __init__(self, source: Source, like: Any, rename: Rename, *, cast: bool) -> None:
        require_model(like)
        self._source = source
        self._leaves, self._treedef = flatten(like)
        where = structure_of(self._treedef).paths
        self._path = {id(x): path for path, x in reversed([*zip(where, self._leaves, strict=True)])}
        wanted = {path: x for path, x in zip(where, self._leaves, strict=True) if isinstance(x, Tensor)}
        every = renamed((*source.forms, *source.others), rename)
        self.names = {name: new for name, new in every.items() if new is not None}
        refuse_others(source, self.names)
        name_of = _numbered({new: name for name, new in self.names.items()}, like, wanted)
        self._goes: dict[str, Tensor] = {}  # by the name in the checkpoint, the tensor of the model
        loaded: dict[str, str] = {}
        absent: list[list[str]] = []
        differing: list[Differing] = []
        for paths in _tied(wanted):
            x, held = wanted[paths[0]], {p: name_of[dotted(p)] for p in paths if dotted(p) in name_of}
            faults = {
                name: d for p, name in held.items() if (d := _differing(p, name, source.forms[name], x, cast))
            }
            if not held:
                absent.append(paths)
            elif not faults:
                loaded[paths[0]] = next(iter(held.values()))
                self._goes.update((name, x) for name in held.values())
            else:
                unused = tuple(name for name in held.values() if name not in faults)
                differing += [replace(d, unused=unused) for d in faults.values()]
        places = set(map(dotted, wanted))
        filled = set(map(dotted, loaded))
        left = {new: name for new, name in name_of.items() if new not in places}
        counters = {new: name for new, name in left.items() if _counts_batches(new, filled)}
        kept = _kept(like, wanted, absent, filled)
        self._zeros = [wanted[p] for p in kept if wanted[p].is_meta]  # counts of batches
        self.report = CheckpointMatch(
            model=like,
            loaded=loaded,
            missing=tuple(paths[0] for paths in absent if paths[0] not in kept),
            kept=tuple(kept),
            unexpected=tuple(name for new, name in left.items() if new not in counters),
            reshaped=tuple(d for d in differing if isinstance(d.wanted, tuple)),
            retyped=tuple(d for d in differing if not isinstance(d.wanted, tuple)),
            dropped=(*(name for name, new in every.items() if new is None), *counters.values()),
        )

    def filled(self) -> Any:
        """The model with every tensor that fits.

        Raises:
            ValueError: a tensor can't be read or converted, or those of tied places differ.
        """
        new: dict[int, Tensor] = {id(x): torch.zeros_like(x, device="cpu") for x in self._zeros}
        first: dict[int, str] = {}
        for name, found in self._source.read(self._goes):
            old = self._goes[name]
            x = placed(self._converted(name, found, old.dtype), old)
            if first.setdefault(id(old), name) == name:
                new[id(old)] = x
            elif not _same_bits(new[id(old)], x):
                raise ValueError(
                    f"{self._path[id(old)] or 'the root'} is one tensor at several places of the model, and "
                    f"{first[id(old)]!r} and {name!r} of {self._source.title} differ; drop one by "
                    f"rename={{{name!r}: None}}, or untie the places"
                )
            del found, x
        return self._treedef.unflatten([new.get(id(x), x) for x in self._leaves])

    def _converted(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        """A tensor of another dtype, in which no number may become infinite."""
        if x.dtype == dtype:
            return x
        converted = x.to(dtype)
        if torch.finfo(dtype).max >= torch.finfo(x.dtype).max:
            return converted
        infinite = ~_finite(converted)
        if not infinite.any():
            return converted
        values = _parts(x)[-1]
        lost = infinite & _finite(x)
        if lost.any():
            raise ValueError(
                f"{name!r} of {self._source.title} holds {values[lost][0].item()}, which {dtype} can't; make "
                f"the model of {x.dtype} first"
            )
        return converted


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


def _numbered(name_of: dict[str, str], like: Any, wanted: dict[str, Tensor]) -> dict[str, str]:
    """Names by place, where the layers of a Chain may be called by their own names, as torch calls them."""
    places = set(map(dotted, wanted))
    number = {
        called: dotted(path)
        for path, called in _called(like, "", "")
        if called in name_of and called not in places and dotted(path) not in name_of
    }
    return {number.get(new, new): name for new, name in name_of.items()}


def _called(node: Any, path: str, name: str) -> Iterator[tuple[str, str]]:
    """The places below a node, with their names in dots where each layer of a container has its own name."""
    container, names = step_names(node) or ("", None)
    for step, child in children(node):
        below, called = path + step.text, f"{name}.{dotted(step.text)}" if name else dotted(step.text)
        if names is not None and step.entry == container:
            for (inner, layer), own in zip(children(child), names, strict=True):
                yield from _called(layer, below + inner.text, f"{name}.{own}" if name else own)
        elif is_node(child):
            yield from _called(child, below, called)
        else:
            yield below, called


def _kept(like: Any, wanted: dict[str, Tensor], absent: list[list[str]], filled: set[str]) -> list[str]:
    """The places not found that keep what the model has: a checkpoint may leave them out."""
    if not absent:
        return []
    lacking = {path for path in _may_lack(like, "") if path not in wanted or not wanted[path].is_meta}
    return [
        paths[0] for paths in absent if lacking.issuperset(paths) or _counts_batches(dotted(paths[0]), filled)
    ]


def _may_lack(node: Any, path: str) -> Iterator[str]:
    names = names_it_may_lack(node)
    for step, child in children(node):
        if step.entry in names:
            yield path + step.text
        yield from _may_lack(child, path + step.text)


def _counts_batches(name: str, loaded: set[str]) -> bool:
    """Whether a name is that of torch's count of batches, in a layer whose statistics were loaded.

    torch's BatchNorm writes it since 0.4.1, reads it only where ``momentum=None``, and doesn't insist on it.
    """
    head, _, last = name.rpartition(".")
    return last == "num_batches_tracked" and (f"{head}.running_mean" if head else "running_mean") in loaded


def _finite(x: Tensor) -> Tensor:
    """Which of the entries that a tensor stores are finite."""
    values = _parts(x)[-1]
    return (values.float() if values.itemsize == 1 else values).isfinite()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.is_quantized:
        return torch.equal(a, b)
    return all(
        x.shape == y.shape
        and (not x.numel() or bytes_of(x.cpu().contiguous()) == bytes_of(y.cpu().contiguous()))
        for x, y in zip(_parts(a), _parts(b), strict=True)
    )


def _parts(x: Tensor) -> list[Tensor]:
    """The tensors that make up a tensor; the last one holds its entries."""
    if x.layout is torch.strided:
        return [x]
    if x.layout is torch.sparse_coo:
        x = x.coalesce()
        return [x.indices(), x.values()]
    if x.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [x.crow_indices(), x.col_indices(), x.values()]
    if x.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [x.ccol_indices(), x.row_indices(), x.values()]
    return [x.to_dense()]
