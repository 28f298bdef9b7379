"""Tables as text."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

__all__ = ["aligned"]


def aligned(rows: Sequence[Sequence[str]], /, right: Container[int] = ()) -> Iterator[str]:
    """Rows of a table as lines.

    Args:
        rows: of one length.
        right: the numbers of the columns that are flush to the right. (default: none)

    Example:
        >>> list(aligned([("class", "count"), ("cat", "3")], right=[1]))
        ['class  count', 'cat        3']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
