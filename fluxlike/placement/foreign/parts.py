"""Parts: tensors of a layer, and the arrays that hold the same numbers in another framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fluxlike.placement.layout import Layout, permute

__all__ = ["Part", "Parts", "Values", "Written", "as_part", "axes", "parts_from", "same", "spatial"]

Values = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Part:
    """Tensors of a layer, and the arrays that hold the same numbers elsewhere.

    Attributes:
        ours: paths below the layer, such as ``.weight``.
        theirs: names elsewhere, dotted where nested; ``a|b`` is called a, and b is understood too.
        read: from their arrays, in order, to our tensors.
        write: from our tensors (None where the layer has none) to their arrays.
        collection: where Flax keeps it.
        ranks: how many axes each of our tensors has. (default: any number)
        in_place: the part that `convert_layout` takes instead. (default: this one)
        crosscor: the part of a layer that Flux calls CrossCor. (default: it can't be one)
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Callable[..., Values]
    write: Callable[..., Values]
    collection: str = "params"
    ranks: tuple[int, ...] | None = None
    in_place: Part | None = None
    crosscor: Part | None = None


Written = tuple[Any, ...]  # (ours, theirs), (ours, theirs, src, dst) or (ours, theirs, read, write)
Parts = Callable[[Any], Sequence[Part | Written]]


def same(ours: str, theirs: str, /, collection: str = "params", *, rank: int | None = None) -> Part:
    """A part that is one tensor, the same there but for its name."""
    ranks = None if rank is None else (rank,)
    return Part((ours,), (theirs,), lambda x: (x,), lambda x: (x,), collection, ranks)


def axes(
    ours: str,
    theirs: str,
    src: str,
    dst: str,
    /,
    *,
    flip: Sequence[str] = (),
    collection: str = "params",
) -> Part:
    """A part that is one tensor with its axes in another order, from the layout there to the one here.

    Args:
        ours: the path below the layer.
        theirs: the name elsewhere.
        src: the layout elsewhere.
        dst: the layout here.
        flip: the axes that run the other way there. (default: none)
        collection: where Flax keeps it. (default: ``"params"``)
    """
    there, here = Layout(src), Layout(dst)
    there.order(here)
    flipped = [here.index(c) for c in flip]

    def read(x: Tensor) -> Values:
        y = permute(x, there, here)
        return (y.flip(flipped) if flipped else y,)

    def write(x: Tensor) -> Values:
        return (permute(x.flip(flipped) if flipped else x, here, there),)

    return Part((ours,), (theirs,), read, write, collection, (len(here),))


def spatial(layout: str, layer: Any, /) -> str:
    """A layout with its S written as the spatial axes of a layer, one for each stride; R is the reverse."""
    if not set(layout) & set("SR"):
        return layout
    if not isinstance(stride := getattr(layer, "stride", None), tuple):
        raise TypeError(
            f"in the layout {layout!r} S and R stand for the axes that a layer strides along, and "
            f"{type(layer).__name__} has no tuple .stride; write a letter for each axis, such as 'HWIO'"
        )
    letters = "DHW"[-len(stride) :]
    return layout.replace("S", letters).replace("R", letters[::-1])


def as_part(written: Any, /) -> Part | Parts:
    """A part, or what makes parts from a layer, as it may be written in a `parameter_rule`.

    Raises:
        TypeError: it is not written in one of the ways.
        ValueError: layouts of different letters, or several names where one is expected.
    """
    if isinstance(written, Part) or (callable(written) and not isinstance(written, type)):
        return written
    if not isinstance(written, tuple) or len(written) not in (2, 4):
        _refuse(written)
    names, collection = _names(written, written[1])
    ours, _ = _names(written, written[0], sep=None)
    if len(written) == 4 and all(map(callable, written[2:])):
        read, write = (_giving_tuples(f) for f in written[2:])
        return Part(ours, names, read, write, collection)
    if not all(isinstance(layout, str) for layout in written[2:]):
        _refuse(written)
    if len(ours) != 1 or len(names) != 1:
        raise ValueError(
            f"the part {written!r} has several names; write a part for each, or say by two functions, "
            "(ours, theirs, read, write), how the ones are made of the others"
        )
    if len(written) == 2:
        return same(ours[0], names[0], collection)
    src, dst = written[2:]
    Layout(src).order(dst.replace("R", "S") if "S" in src else dst.replace("S", "R"))

    def of(layer: Any) -> list[Part]:
        there, here = spatial(src, layer), spatial(dst, layer)
        return [axes(ours[0], names[0], there, here, collection=collection)]

    return of


def parts_from(made: Sequence[Part | Parts | Written], layer: Any, /) -> Iterator[Part]:
    """All parts of a layer."""
    for part in made:
        known = as_part(part)
        if isinstance(known, Part):
            yield known
        else:
            yield from parts_from(known(layer), layer)


def _names(written: Written, found: Any, sep: str | None = "/") -> tuple[tuple[str, ...], str]:
    """One name or several, without the collection that they may start with; and the collection."""
    names = found if isinstance(found, tuple) else (found,)
    if not names or not all(isinstance(name, str) and name for name in names):
        _refuse(written)
    if sep is None:
        return names, ""
    split = [name.rpartition(sep) for name in names]
    collections = {collection or "params" for collection, _, _ in split}
    if len(collections) > 1:
        raise ValueError(f"the part {written!r} is in several collections; write a part for each")
    return tuple(name for *_, name in split), collections.pop()


def _giving_tuples(f: Callable[..., Any]) -> Callable[..., Values]:
    def given(*xs: Any) -> Values:
        found = f(*xs)
        return (found,) if found is None or isinstance(found, Tensor) else tuple(found)

    return given


def _refuse(written: Any) -> None:
    raise TypeError(
        f"a part of a parameter rule is a tuple: (ours, theirs) such as ('.bias', 'bias'), with two layouts "
        f"such as ('.weight', 'kernel', 'IO', 'OI'), or with two functions, to read and to write; found "
        f"{written!r}"
    )
