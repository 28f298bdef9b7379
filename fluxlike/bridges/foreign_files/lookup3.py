"""Bob Jenkins' checksum, which HDF5 puts behind its headers (https://burtleburtle.net/bob/c/lookup3.c)."""

from __future__ import annotations

import struct

__all__ = ["lookup3"]

_MASK = 0xFFFFFFFF


def lookup3(data: bytes, /) -> int:
    """The checksum ``hashlittle`` of some bytes.

    Args:
        data: the bytes.

    Returns:
        A number of 32 bits.
    """
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    if not data:
        return c
    last = (len(data) - 1) // 12 * 12
    for x, y, z in struct.iter_unpack("<3I", data[:last]):
        a, b, c = a + x & _MASK, b + y & _MASK, c + z & _MASK
        a = a - c & _MASK ^ (c << 4 & _MASK | c >> 28)
        c = c + b & _MASK
        b = b - a & _MASK ^ (a << 6 & _MASK | a >> 26)
        a = a + c & _MASK
        c = c - b & _MASK ^ (b << 8 & _MASK | b >> 24)
        b = b + a & _MASK
        a = a - c & _MASK ^ (c << 16 & _MASK | c >> 16)
        c = c + b & _MASK
        b = b - a & _MASK ^ (a << 19 & _MASK | a >> 13)
        a = a + c & _MASK
        c = c - b & _MASK ^ (b << 4 & _MASK | b >> 28)
        b = b + a & _MASK
    x, y, z = struct.unpack("<3I", data[last:].ljust(12, b"\0"))
    a, b, c = a + x & _MASK, b + y & _MASK, c + z & _MASK
    c = (c ^ b) - (b << 14 & _MASK | b >> 18) & _MASK
    a = (a ^ c) - (c << 11 & _MASK | c >> 21) & _MASK
    b = (b ^ a) - (a << 25 & _MASK | a >> 7) & _MASK
    c = (c ^ b) - (b << 16 & _MASK | b >> 16) & _MASK
    a = (a ^ c) - (c << 4 & _MASK | c >> 28) & _MASK
    b = (b ^ a) - (a << 14 & _MASK | a >> 18) & _MASK
    return (c ^ b) - (b << 24 & _MASK | b >> 8) & _MASK
