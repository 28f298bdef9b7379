"""Philox 4x32-10, the counter-based generator (Salmon et al. 2011, doi 10.1145/2063384.2063405).

A block of four random words is a function of a counter of four words and a key of two. Words are
unsigned 32-bit numbers, held in Python ints or in int64 tensors: torch keeps the low 64 bits of a
product, and those of two words fit, so the bits are the same on every device and in every trace.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["WORD", "Word", "philox"]

Word: TypeAlias = int | Tensor

#: The bits of a word, as a mask.
WORD = 0xFFFFFFFF

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85  # what each round adds to the key: of the golden ratio, and of √3
_ROUNDS = 10


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word], /) -> tuple[Any, ...]:
    """The block of four words at a counter, elementwise where tensors are given.

    Args:
        counter: four words; what has several elements broadcasts.
        key: two words.

    Returns:
        Four words: ints if all arguments are, else tensors.

    Example:
        >>> [f"{word:08x}" for word in philox((0, 0, 0, 0), (0, 0))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    for i in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # What is multiplied must be a clean word; of c1, c3 and the key only the low 32 bits count.
        c0 = ((p1 >> 32) ^ c1 ^ (key[0] + i * _WEYL[0])) & WORD
        c2 = ((p0 >> 32) ^ c3 ^ (key[1] + i * _WEYL[1])) & WORD
        c1, c3 = _low(p1), _low(p0)
    return c0, c1 & WORD, c2, c3 & WORD


def _low(product: Word) -> Word:
    """A word whose low 32 bits are those of a product, and which fits into int64."""
    return product if isinstance(product, Tensor) else product & WORD
