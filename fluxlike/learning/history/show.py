"""Tables as text, and in notebooks."""

from __future__ import annotations

from html import escape
from typing import Any

from fluxlike.aligned import aligned

__all__ = ["counted", "table_html", "table_text"]

_EDGE = 8  # rows shown at each end of a long table
_BOX = "border-collapse:collapse;font-variant-numeric:tabular-nums"
_HEAD = "padding:.2em .8em;text-align:right;border-bottom:1px solid rgba(128,128,128,.6)"
_CELL = "padding:.1em .8em;text-align:right"
_QUIET = "opacity:.7"


def counted(number: int, what: str, /) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def table_text(table: Any, head: str, /) -> str:
    """A heading, and under it a table in columns: its first and last rows."""
    if not len(table):
        return head
    rows = _shown(table)
    cells = [[row.get(name, "") for name in table.columns] for row in rows if row is not None]
    texts = list(aligned([table.columns, *cells], right=range(len(table.columns))))
    if None in rows:
        texts.insert(1 + rows.index(None), "…")
    return "\n".join([head, *(f"  {text}".rstrip() for text in texts)])


def table_html(table: Any, head: str, /) -> str:
    """The same as HTML, without colours of its own."""
    head = f'<div style="{_QUIET}">{escape(head)}</div>'
    if not len(table):
        return head
    names = "".join(f'<th style="{_HEAD}">{escape(name)}</th>' for name in table.columns)
    body = "".join(_html_row(table.columns, row) for row in _shown(table))
    return f'{head}<table style="{_BOX}"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'


def _shown(table: Any) -> list[dict[str, str] | None]:
    """The rows to show, as text; None where others are left out."""
    whole = len(table) <= 2 * _EDGE + 1
    places = range(len(table)) if whole else [*range(_EDGE), None, *range(len(table) - _EDGE, len(table))]
    return [
        None if place is None else {name: _text(cell) for name, cell in table[place].items()}
        for place in places
    ]


def _html_row(columns: tuple[str, ...], row: dict[str, str] | None) -> str:
    if row is None:
        return f'<tr><td style="{_CELL}" colspan="{len(columns)}">…</td></tr>'
    cells = (f'<td style="{_CELL}">{escape(row.get(name, ""))}</td>' for name in columns)
    return f"<tr>{''.join(cells)}</tr>"


def _text(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
