"""What the tests of the training loop share."""

from __future__ import annotations

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fluxlike._private.compiler import build


@pytest.fixture(autouse=True)
def recorded(request, monkeypatch):
    """Quick tests run the graphs of jit as they are recorded, without Inductor's kernels."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(build, "_can_compile", lambda: False)
