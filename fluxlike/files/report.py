"""What came of matching a checkpoint with a model, as a table and as an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fluxlike.files.printing import shown
from fluxlike.files.rename import plain_name
from fluxlike.trees.paths import dotted

__all__ = ["CheckpointMatch", "Differing", "mismatch_text", "mismatches"]

_LISTED = 10  # mismatches in an error; twice as many a section of the table
_COMPARED = 300  # names among which a similar one is looked for


@dataclass(frozen=True)
class Differing:
    """A place whose tensor in the checkpoint can't stand there.

    Attributes:
        path: the place in the model.
        name: the tensor's name in the checkpoint.
        found: its shape or dtype in the checkpoint.
        wanted: that in the model.
        unused: other names of this tensor, which is tied, that fit and are not loaded because of this one.
    """

    path: str
    name: str
    found: Any
    wanted: Any
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        also = (
            f"; so {', '.join(map(shown, self.unused))} is not loaded, being tied to it"
            if self.unused
            else ""
        )
        return f"{_place(self.path)} is {self.found} in the checkpoint, {self.wanted} in the model{also}"


@dataclass(frozen=True)
class CheckpointMatch:
    """What `match_checkpoint` found; it prints as a table.

    Attributes:
        model: the model with every tensor that fits, and its own at the other places.
        loaded: for each place that was found, its name in the checkpoint; of tied places the first.
        missing: the places whose tensors are not in the checkpoint.
        kept: the places that a checkpoint may leave out, as torch's do: buffers that are not persistent, and
            counts of batches. They keep what the model has.
        unexpected: the names in the checkpoint that no place has.
        reshaped: the places where the shapes differ, each a `path`, `name`, `found` and `wanted`.
        retyped: the places where the dtypes differ, likewise.
        dropped: the names that `rename` dropped, and counters of batches that no layer here keeps.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.match_checkpoint({"weight": torch.ones(1, 2), "scale": torch.ones(1)}, fl.Dense(2, 1))
        loaded      1
        missing     1  in the model, not in the checkpoint
          .bias
        kept        0
        unexpected  1  in the checkpoint, not in the model
          'scale'
        reshaped    0
        retyped     0
        dropped     0
    """

    model: Any
    loaded: dict[str, str]
    missing: tuple[str, ...]
    kept: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[Differing, ...]
    retyped: tuple[Differing, ...]
    dropped: tuple[str, ...]

    def __repr__(self) -> str:
        sections = [
            ("missing", list(map(_place, self.missing)), "in the model, not in the checkpoint"),
            ("kept", list(map(_place, self.kept)), "not in the checkpoint, which may leave them out"),
            ("unexpected", list(map(shown, self.unexpected)), "in the checkpoint, not in the model"),
            ("reshaped", self.reshaped, "of another shape"),
            ("retyped", self.retyped, "of another dtype"),
            ("dropped", list(map(shown, self.dropped)), "left out on purpose"),
        ]
        return "\n".join(
            [f"loaded      {len(self.loaded)}", *(line for s in sections for line in _section(*s))]
        )


def _section(title: str, items: Sequence[Any], meaning: str) -> list[str]:
    lines = [f"  {item}" for item in items[: 2 * _LISTED]]
    more = len(items) - len(lines)
    head = f"{title:<12}{len(items)}" + (f"  {meaning}" if items else "")
    return [head, *lines, *([f"  … and {more} more"] if more else [])]


def _place(path: str) -> str:
    return path or "the root"


def mismatch_text(title: str, found: CheckpointMatch, names: Mapping[str, str], /) -> str | None:
    """The first mismatches by path and what to do about them, or None where all fits.

    Args:
        title: what to call the checkpoint.
        found: what came of matching it.
        names: what its names became.
    """
    lines = mismatches(found, names)
    if not lines:
        return None
    head = f"{title} does not fit the model, which is left as it was:"
    return "\n  ".join([head, *lines]) + "\n" + "; ".join(_advice(found))


def mismatches(found: CheckpointMatch, names: Mapping[str, str], /) -> list[str]:
    """The first mismatches by path, and how many more there are; none where all fits.

    Args:
        found: what came of matching a checkpoint.
        names: what its names became.
    """
    differing = [*found.reshaped, *found.retyped]
    count = len(found.missing) + len(differing) + len(found.unexpected)
    lines = [f"{_place(path)} is missing{_hint(path, found, names)}" for path in found.missing[:_LISTED]]
    lines += map(str, differing[:_LISTED])
    for name in found.unexpected[:_LISTED]:
        became = f" as {shown(names[name])}" if names[name] != plain_name(name) else ""
        lines.append(f"{shown(name)} of the checkpoint has no place{became}")
    lines = lines[:_LISTED]
    if count > len(lines):
        lines.append(f"… and {count - len(lines)} more")
    return lines


def _hint(path: str, found: CheckpointMatch, names: Mapping[str, str]) -> str:
    """A name left over that is like the one missing, or was it before it was renamed."""
    left = {names[name]: name for name in found.unexpected[:_COMPARED] if len(name) < 200}
    wanted = dotted(path)
    if names.get(wanted, wanted) != wanted and wanted in found.unexpected:
        return f": rename made {shown(names[wanted])} of it"
    near = difflib.get_close_matches(wanted, list(left), 1)
    return f"; did you mean {left[near[0]]!r} of the checkpoint?" if near else ""


def _advice(found: CheckpointMatch) -> list[str]:
    advice = []
    if found.missing and found.unexpected:
        rules = _prefix(found.missing, found.unexpected) or _places(found.missing, found.unexpected)
        rules = rules or "'their name': 'the name here'"
        advice.append(f"map names by rename={{{rules}}}")
    if found.unexpected:
        advice.append("drop what is not wanted by rename={'name': None}")
    if any(d.found.is_floating_point and d.wanted.is_floating_point for d in found.retyped if _dtypes(d)):
        advice.append("cast=True converts to the model's dtype")
    return [*advice, "match_checkpoint gives a report, and a model with all that fits"]


def _dtypes(differing: Differing) -> bool:
    return isinstance(differing.found, torch.dtype) and isinstance(differing.wanted, torch.dtype)


def _prefix(missing: Sequence[str], unexpected: Sequence[str]) -> str | None:
    """The rule that takes off, or puts on, what the checkpoint's names have more, or less, than ours."""
    wanted, first = set(map(dotted, missing)), dotted(missing[0])
    for name in unexpected[:_COMPARED]:
        if name.endswith(f".{first}"):
            more = name.removesuffix(first)
            if wanted <= {n.removeprefix(more) for n in unexpected if n.startswith(more)}:
                return f"{more[:-1]!r}: ''"
        if first.endswith(f".{name}"):
            less = first.removesuffix(name)
            if wanted <= {less + n for n in unexpected}:
                return f"'': {less[:-1]!r}"
    return None


def _places(missing: Sequence[str], unexpected: Sequence[str]) -> str | None:
    """The rules from layer to layer, in order, where each has tensors of the same names as the other."""
    ours, theirs = _by_layer(map(dotted, missing)), _by_layer(map(plain_name, unexpected))
    if len(ours) > _LISTED or list(ours.values()) != list(theirs.values()):
        return None
    return ", ".join(f"{old!r}: {new!r}" for old, new in zip(theirs, ours, strict=True) if old != new)


def _by_layer(names: Iterable[str]) -> dict[str, set[str]]:
    """The names of the tensors of each layer, without the count of batches that torch alone keeps."""
    layers: dict[str, set[str]] = {}
    for name in names:
        layer, _, tensor = name.rpartition(".")
        if tensor != "num_batches_tracked":
            layers.setdefault(layer, set()).add(tensor)
    return layers
