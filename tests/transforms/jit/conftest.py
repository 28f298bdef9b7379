"""Every test of `jit` runs twice: over the recorded graph alone, which is quick, and compiled.

A file whose promises are kept before a graph is built says ``RECORDED_ALONE = True``, and runs once. A test
that parametrizes ``engine`` itself runs as it says.
"""

import warnings

import pytest


def pytest_generate_tests(metafunc):
    named = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "engine" in metafunc.fixturenames and "engine" not in named:
        alone = getattr(metafunc.module, "RECORDED_ALONE", False)
        compiled = [] if alone else [pytest.param("compiled", marks=pytest.mark.slow)]
        metafunc.parametrize("engine", ["recorded", *compiled], indirect=True)


@pytest.fixture(autouse=True)
def engine(request, monkeypatch):
    """What runs the graphs: torch's operations one by one, as without a C++ compiler, or Inductor."""
    if request.param == "recorded":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from fluxlike._private.compiler import build
        monkeypatch.setattr(build, "_can_compile", lambda: False)
    return request.param
