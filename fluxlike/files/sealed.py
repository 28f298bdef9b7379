"""JSON that ends in a checksum of itself."""

from __future__ import annotations

import json
import zlib
from typing import Any

from fluxlike.files.printing import shown
from fluxlike.files.strict_json import read_json

__all__ = ["sealed", "unsealed"]

_SEAL = ', "crc32": '


def sealed(about: dict[str, Any], /) -> str:
    """A JSON object with its CRC-32 as the last entry."""
    text = json.dumps(about)[:-1]
    return f"{text}{_SEAL}{zlib.crc32(text.encode())}}}"


def unsealed(text: str, version: int, /) -> dict[str, Any]:
    """What `sealed` wrote, of a version.

    Raises:
        ValueError: it is not to be read, is of another version, or was changed.
    """
    about = read_json(text)
    if about.get("version") != version:
        raise ValueError(f"it is of version {shown(about.get('version'))}; this fluxlike reads {version}")
    body = text.rpartition(_SEAL)[0].encode("utf-8", "surrogatepass")
    if about.get("crc32") != zlib.crc32(body):
        raise ValueError("its checksum does not agree with it: it was changed")
    return about
