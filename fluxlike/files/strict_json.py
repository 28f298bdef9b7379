"""JSON from files that nobody vouches for."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from fluxlike.files.printing import shown

__all__ = ["read_json", "require_few", "unique_keys"]

_MOST_VALUES = 5_000_000  # in JSON a value of two characters takes sixty bytes of memory


def read_json(text: str | bytes | bytearray, /) -> dict[str, Any]:
    """A JSON object, in which every key stands once.

    Raises:
        ValueError: it is no object, is nested too deeply, holds NaN, or too many values to be taken in.
    """
    require_few(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    try:
        found = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"its JSON is a {type(found).__name__}, not an object")
    return found


def require_few(raw: bytes | bytearray, /) -> None:
    """Refuse JSON of more values than `read_json` takes in.

    Raises:
        ValueError: it has more.
    """
    if sum(map(raw.count, (b"[", b"{", b","))) > _MOST_VALUES:
        raise ValueError(f"it describes more than {_MOST_VALUES} values")


def unique_keys(pairs: list[tuple[str, Any]], /) -> dict[str, Any]:
    """An object of JSON, from its keys and values: what `json.loads` takes as ``object_pairs_hook``.

    Raises:
        ValueError: a key stands there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
