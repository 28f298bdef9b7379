"""What the entries of a tensor's axes count, and how a framework with its channels last would order them.

An axis is a row of blocks (more than one after a `cat`), a block a product of factors (more than one after
a flatten). Factors of different tensors that count the same are made one: by a sum, or by a product that
runs over both. What a factor counts may be learned later than it is met, so orders are asked for at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

__all__ = [
    "BATCH",
    "CHANNEL",
    "ONE",
    "PLAIN",
    "SPATIAL",
    "UNSURE",
    "Axis",
    "Factor",
    "Order",
    "Undecided",
    "expand",
    "factors_of",
    "fresh_axis",
    "order_of",
    "same_axis",
]

BATCH: Final = "batch"
CHANNEL: Final = "channel"
SPATIAL: Final = "spatial"
PLAIN: Final = "plain"  # in the same order everywhere
UNSURE: Final = "unsure"  # of an input (N, a, b): channels, then places, or the other way round


class Undecided(ValueError):
    """An order that differs between layouts in a way that nothing tells.

    Attributes:
        unsure: whether that is so only because an input may be images or sequences.
    """

    def __init__(self, text: str, *, unsure: bool = False) -> None:
        super().__init__(text)
        self.unsure = unsure


class _Role:
    """What a factor counts: as a layer said, or else as assumed."""

    def __init__(self, assumed: str, kind: str | None = None, above: _Role | None = None) -> None:
        self.assumed, self._kind, self._above = assumed, kind, above
        self.contested = self.summed = False
        self._merged: _Role | None = None

    def root(self) -> _Role:
        role = self
        while role._merged is not None:
            role = role._merged
        return role

    @property
    def said(self) -> str | None:
        role: _Role | None = self.root()
        while role is not None:
            if role._kind is not None:
                return role._kind
            role = role._above.root() if role._above is not None else None
        return None

    @property
    def kind(self) -> str:
        return self.said or self.root().assumed

    def say(self, kind: str) -> None:
        role, known = self.root(), self.said
        if known is None:
            role._kind = kind
        if known not in (None, kind, BATCH) or (role.summed and kind == SPATIAL):
            role.contested = True

    def join(self, other: _Role) -> None:
        a, b = self.root(), other.root()
        if a is b:
            return
        said = {x for x in (a.said, b.said) if x is not None}
        assumed = {a.assumed, b.assumed}
        unknown = not said and assumed == {CHANNEL, SPATIAL}
        a.contested = a.contested or b.contested or len(said) == 2 or unknown
        a.summed = a.summed or b.summed
        a._kind, a._above = a.said or b.said, a._above or b._above
        a.assumed = min(a.assumed, b.assumed, key=_ASSUMED.index)
        b._merged = a


_ASSUMED = (BATCH, CHANNEL, SPATIAL, UNSURE, PLAIN)


class Factor:
    """A number of entries that count one thing."""

    def __init__(self, size: int, role: _Role) -> None:
        self.size, self.role = size, role
        self.equal: Axis | None = None  # what it turned out to be
        self.pieces: list[Factor] = []  # made of some of its entries

    def piece(self, size: int) -> Factor:
        """A factor of some of its entries."""
        made = Factor(size, self.role)
        self.pieces.append(made)
        return made

    def split(self, first: int) -> tuple[Factor, Factor]:
        """It as the product of two."""
        sizes = first, self.size // first
        made = tuple(Factor(n, _Role(self.role.root().assumed, above=self.role)) for n in sizes)
        self.equal = (made,)
        return made[0], made[1]


Block = tuple[Factor, ...]
Axis = tuple[Block, ...]

#: The axis of one entry, which counts nothing.
ONE: Final[Axis] = ((),)


def fresh_axis(size: int, assumed: str, said: str | None = None) -> Axis:
    """An axis that counts a new thing."""
    return ((Factor(size, _Role(assumed, said)),),) if size != 1 else ONE


def expand(axis: Axis) -> Axis:
    """An axis with each factor as what it turned out to be."""
    blocks: list[Block] = []
    for block in axis:
        if len(block) == 1 and block[0].equal is not None:
            blocks.extend(expand(block[0].equal))
            continue
        factors: list[Factor] = []
        for f in block:
            inner = expand(f.equal) if f.equal is not None else None
            factors.extend([f] if inner is None or len(inner) > 1 else inner[0])
        blocks.append(tuple(factors))
    return tuple(blocks)


def factors_of(axes: Iterable[Axis]) -> list[Factor]:
    """The factors of some axes."""
    return [f for axis in axes for block in expand(axis) for f in block]


def same_axis(a: Axis, b: Axis, /) -> bool:
    """Make two axes of one length count the same; whether that is possible."""
    a, b = expand(a), expand(b)
    if a == b:
        return True
    for one, other in ((a, b), (b, a)):
        if len(one) == 1 and len(one[0]) == 1 and len(other) > 1:
            one[0][0].equal = other
            return True
    if len(a) != len(b) or any(_size(x) != _size(y) for x, y in zip(a, b, strict=True)):
        return False
    return all(_same_block(x, y) for x, y in zip(a, b, strict=True))


def _size(block: Block) -> int:
    return math.prod(f.size for f in block)


def _same_block(a: Block, b: Block) -> bool:
    if any(f.equal is not None and len(expand(f.equal)) > 1 for f in (*a, *b)):
        return a == b
    left, right = list(a), list(b)
    while left and right:
        x, y = left.pop(0), right.pop(0)
        if x.size < y.size and y.size % x.size == 0:
            y, rest = y.split(x.size)
            right.insert(0, rest)
        elif x.size > y.size and x.size % y.size == 0:
            x, rest = x.split(y.size)
            left.insert(0, rest)
        elif x.size != y.size:
            return False
        if x.equal is not None or y.equal is not None:  # one that stands here twice
            if not same_axis(((x,),), ((y,),)):
                return False
        elif x is not y:
            x.role.join(y.role)
            y.equal = ((x,),)
            x.pieces.extend(y.pieces)
    return True


class Order(tuple[tuple[tuple[int, ...], bool], ...]):
    """For each block of an axis: its sizes (channels first), and whether the framework has them last."""

    __slots__ = ()

    @property
    def stays(self) -> bool:
        """Whether it is the same in both layouts."""
        return not any(moves for _, moves in self)


def order_of(axis: Axis) -> Order:
    """How a framework with its channels last orders an axis.

    Raises:
        Undecided: nothing tells.
    """
    return Order(_block_order(block) for block in expand(axis))


def _block_order(block: Sequence[Factor]) -> tuple[tuple[int, ...], bool]:
    _require_whole(block)
    return _orders(block)


def _orders(block: Sequence[Factor]) -> tuple[tuple[int, ...], bool]:
    block = [f for f in block if f.size != 1]
    kinds = [f.role.kind for f in block]
    first = next((i for i, kind in enumerate(kinds) if kind != BATCH), len(kinds))
    rest = kinds[first:]
    stays = (_size(tuple(block)),), False
    if len(rest) < 2 or set(rest) <= {rest[0]} - {UNSURE}:
        return stays
    said = ", ".join(f"{f.size} ({f.role.kind})" for f in block)
    if UNSURE in rest or any(f.role.root().contested for f in block[first:]):
        unsure = not {CHANNEL, SPATIAL} & set(rest)
        raise Undecided(f"nothing tells which of {said} are channels", unsure=unsure)
    channels = rest.count(CHANNEL)
    others = [kind for kind in rest if kind != CHANNEL]
    in_order = others == sorted(others, key=(SPATIAL, PLAIN, BATCH).index) and BATCH not in others
    if in_order and rest == [*others, *[CHANNEL] * channels]:
        return stays
    if set(others) == {SPATIAL} and rest[:channels] == [CHANNEL] * channels:
        sizes = [_size(tuple(x)) for x in (block[:first], block[first : first + channels])]
        return (*sizes, _size(tuple(block[first + channels :]))), True
    raise Undecided(f"the order of {said} is not known there")


def _require_whole(block: Iterable[Factor]) -> None:
    """Refuse factors of which some entries would have to be in another order than the others."""
    seen: set[int] = set()
    waiting = list(block)
    while waiting:
        f = waiting.pop()
        if id(f) in seen:
            continue
        seen.add(id(f))
        waiting.extend(f.pieces)
        for part in expand(f.equal) if f.equal is not None else ():
            waiting.extend(part)
            if _orders(part)[1]:
                raise Undecided(f"a part of {f.size} entries would be in another order")
