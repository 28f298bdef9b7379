"""Caches as in the first run on a machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._inductor.utils import fresh_cache

import fluxlike as fl


@contextmanager
def cold_caches() -> Iterator[None]:
    """A compiler that is loaded, with headers of its own that are compiled, and nothing else."""
    with fresh_cache():
        fl.jit(lambda x: x + 1)(torch.zeros(3))
        yield
