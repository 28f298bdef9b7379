"""``python -m fluxlike summary FILE``: what a file of tensors holds, as a tree."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fluxlike.aligned import aligned
from fluxlike.command.arguments import Subparsers, add_json, count
from fluxlike.command.contents import Contents, HeldTensor, HeldValue, contents_of
from fluxlike.command.printing import Line, escaped, show, show_json
from fluxlike.files.printing import shown
from fluxlike.trees.show import number, plural, size_text

__all__ = ["add", "run"]

_DEEPEST = 100  # steps in a name
_MOST_PLACES = 1_000_000
_WIDTH = 72  # of plain values on one line
_BRACKETS = {"": ("(", ")"), "tuple": ("(", ")"), "list": ("[", "]"), "dict": ("{", "}")}


def add(commands: Subparsers[Any], common: argparse.ArgumentParser, /) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "summary",
        parents=[common],
        help="what a file of tensors holds",
        description=(
            "Show the tree of names in a file: shapes, dtypes, how many numbers and bytes, what is tied, "
            "and the plain values that fluxlike.save wrote beside them. A file does not say which of its "
            "tensors are trained, so all are counted. Nothing in it is run."
        ),
        epilog=(
            "A tied tensor is counted where it stands first. Of safetensors only the header is read; files "
            "of torch.save are read whole, into main memory."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a safetensors file, a file of torch.save, the .index.json of shards, or a folder with one",
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--depth", type=count, metavar="N", help="how many levels of names to show, at least 1 (all)"
    )
    add_json(choice)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace, /) -> None:
    """Print what the file holds."""
    contents = contents_of(given.file)
    if given.json:
        show_json(_as_json(contents))
    else:
        show(_lines(contents, given.depth or _DEEPEST))


def _as_json(contents: Contents) -> dict[str, Any]:
    tensors = [{**x._asdict(), "shape": list(x.shape)} for x in contents.tensors]
    for row in tensors:
        del row["steps"]
    return {
        "file": contents.title,
        "format": contents.format,
        "totals": _totals(contents),
        "tensors": tensors,
        "values": [{"path": x.path, **x.entry} for x in contents.values],
        "nodes": [{"path": "".join(steps), "class": name} for steps, name in contents.nodes.items()],
        "metadata": contents.metadata,
    }


def _totals(contents: Contents) -> dict[str, Any]:
    own = [x for x in contents.tensors if x.tied_to is None]
    by_dtype: Counter[str] = Counter()
    for x in own:
        by_dtype[x.dtype] += x.numbers
    return {
        "tensors": len(own),
        "tied": len(contents.tensors) - len(own),
        "numbers": sum(x.numbers for x in own),
        "bytes": sum(x.bytes for x in own),
        "numbers_by_dtype": dict(by_dtype.most_common()),
        "values": len(contents.values),
        "file_bytes": contents.bytes,
    }


@dataclass
class _Place:
    """A place in the tree of names, with what is below it."""

    below: dict[str, _Place] = field(default_factory=dict)
    tensor: HeldTensor | None = None
    value: HeldValue | None = None
    about: str = ""
    numbers: int = 0
    bytes: int = 0
    tensors: int = 0
    values: int = 0


def _tree(contents: Contents) -> _Place:
    root = _Place()
    made = 0
    for held in contents.held:
        if len(held.steps) > _DEEPEST:
            raise ValueError(f"{contents.title}: the name {shown(held.path)} has more than {_DEEPEST} parts")
        way = [root]
        for step in held.steps:
            made += step not in way[-1].below
            way.append(way[-1].below.setdefault(step, _Place()))
        if made > _MOST_PLACES:
            raise ValueError(f"{contents.title} has more than {_MOST_PLACES} names; write --json")
        _count(held, way)
    for steps, name in contents.nodes.items():
        _describe(root, steps, name)
    return root


def _count(held: HeldTensor | HeldValue, way: list[_Place]) -> None:
    """Put what is held at the end of a way down, and count it all the way."""
    if isinstance(held, HeldValue):
        way[-1].value = held
        for place in way:
            place.values += 1
        return
    way[-1].tensor = held
    for place in way:
        place.tensors += 1
        if held.tied_to is None:
            place.numbers += held.numbers
            place.bytes += held.bytes


def _describe(root: _Place, steps: tuple[str, ...], name: str) -> None:
    """Say of what class a place is, where there is anything below it."""
    place: _Place | None = root
    for step in steps:
        place = place.below.get(step) if place is not None else None
    if place is not None:
        place.about = shown(name)[1:-1]


def _lines(contents: Contents, depth: int) -> Iterator[Line]:
    root = _tree(contents)
    about = f", a {root.about}" if root.about else ""
    yield Line(escaped(f"{contents.title}: {contents.format}{about}"), "bold")
    for name, text in contents.metadata.items():
        yield Line(f"  {escaped(name)}: {shown(text)}", "dim")
    rows = list(_rows(root, "(root)", 0, depth))
    if rows:
        table = aligned([("name", "numbers", "bytes", "dtype", ""), *(cells for cells, _ in rows)], (1, 2))
        for text, style in zip(table, ["bold", *(style for _, style in rows)], strict=True):
            yield Line(text, style)
    yield from _total_lines(_totals(contents))


_Row = tuple[tuple[str, str, str, str, str], str]


def _rows(place: _Place, label: str, level: int, depth: int) -> Iterator[_Row]:
    """The rows of a place and of what is below it, down to a depth; the root itself only if it holds one."""
    name = f"{'  ' * max(level - 1, 0)}{escaped(label) or repr('')}"
    if place.tensor is not None:
        yield _tensor_row(name, place.tensor)
    if place.value is not None:
        yield (name, "", "", "", place.value.text), "dim"
    if not place.below:
        return
    if level:
        inline = "" if place.tensors else _inline(place)
        if inline and len(inline) <= _WIDTH:
            yield (name, "", "", "", inline), "dim"
            return
        yield _node_row(name, place, folded=level == depth)
    if level < depth:
        for step, child in place.below.items():
            yield from _rows(child, step, level + 1, depth)


def _tensor_row(name: str, x: HeldTensor) -> _Row:
    text = str(x.shape) if x.kind == "tensor" else f"{x.shape} {x.kind}"
    if x.tied_to is not None:
        return (name, "-", "-", x.dtype, f"{text} tied to {escaped(x.tied_to)}"), "yellow"
    return (name, number(x.numbers), size_text(x.bytes), x.dtype, text), ""


def _node_row(name: str, place: _Place, *, folded: bool) -> _Row:
    notes = [place.about] if place.about else []
    if folded:
        notes.append(plural(place.tensors, "tensor"))
        notes += [plural(place.values, "plain value")] if place.values else []
    counts = (number(place.numbers), size_text(place.bytes)) if place.tensors else ("", "")
    return (name, *counts, "", ", ".join(notes)), "cyan"


def _inline(place: _Place) -> str:
    """Plain values alone, on one line, as far as it is needed to see that they don't fit."""
    if place.value is not None:
        return place.value.text
    parts, length = [], 0
    for step, child in place.below.items():
        parts.append(_label(step, place.about) + _inline(child))
        length += len(parts[-1])
        if length > _WIDTH:
            break
    start, end = _BRACKETS.get(place.about, (f"{place.about}(", ")"))
    return f"{start}{', '.join(parts)}{end}"


def _label(step: str, about: str) -> str:
    """What stands before a value among others: a name, a key, or nothing for an index."""
    if about == "dict":
        return f"{escaped(step[1:-1])}: "
    return "" if step.startswith("[") else f"{escaped(step.removeprefix('.'))}="


def _total_lines(totals: dict[str, Any]) -> Iterator[Line]:
    tied = f" and {plural(totals['tied'], 'tied name')}" if totals["tied"] else ""
    values = f", {plural(totals['values'], 'plain value')}" if totals["values"] else ""
    size = f", a file of {size_text(totals['file_bytes'])}" if totals["file_bytes"] is not None else ""
    numbers = f"{plural(totals['numbers'], 'number')}, {size_text(totals['bytes'])}"
    yield Line(f"Total: {plural(totals['tensors'], 'tensor')}{tied}, {numbers}{values}{size}", "bold")
    if len(totals["numbers_by_dtype"]) > 1:
        shares = (f"{plural(n, 'number')} of {dtype}" for dtype, n in totals["numbers_by_dtype"].items())
        yield Line(f"  {', '.join(shares)}")
