"""Every test of `jit` runs twice: over the recorded graph alone, which is quick, and compiled."""

import warnings

import pytest


@pytest.fixture(params=["recorded", pytest.param("compiled", marks=pytest.mark.slow)], autouse=True)
def engine(request, monkeypatch):
    """What runs the graphs: torch's operations one by one, as without a C++ compiler, or Inductor."""
    if request.param == "recorded":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from fluxlike._private.compiler import build
        monkeypatch.setattr(build, "_can_compile", lambda: False)
    return request.param
