"""What all tests share."""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# How fast a machine draws is no property of what is tested. Every run draws others.
hypothesis.settings.register_profile(
    "laws", suppress_health_check=[hypothesis.HealthCheck.too_slow], deadline=None, max_examples=50
)
hypothesis.settings.load_profile("laws")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # as many workers as cores: more threads would wait for each other


def pytest_collection_finish() -> None:
    """Keep what the imports left out of every collection: transformers and JAX are millions of objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, as it does but for jobs in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`jit` runs its graphs as recorded, as without a C++ compiler: kernels take seconds to compile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fluxlike._private.compiler import build
    monkeypatch.setattr(build, "_can_compile", lambda: False)
