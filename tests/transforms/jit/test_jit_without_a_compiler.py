"""`jit` where no C++ compiler is found, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import warnings

import torch

import fluxlike as fl

model = fl.f64(fl.Chain(fl.Dense(3, 4, fl.tanh), fl.BatchNorm(4), fl.Dense(4, 2)))
state = fl.setup(fl.Momentum(0.1), model)


def step(model, state, x):
    value, grads = fl.withgradient(lambda m: (m(x) - 1).square().mean(), model)
    return *fl.update(state, model, grads), value


x = torch.rand(5, 3, dtype=torch.float64)
pure, donated = (model, state), fl.tree.clone((model, state))
jitted, other = fl.jit(step, donate=(0, 1)), fl.jit(lambda x: x + 1)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(3):
        *pure, value = step(*pure, x)
        old = donated
        *donated, found = jitted(*donated, x)
        assert torch.allclose(value, found)
        try:
            old[0](x)
        except RuntimeError as error:
            assert "donated" in str(error)
        else:
            raise AssertionError("what was donated is still there")
    assert other(torch.zeros(2)).tolist() == [1, 1]
assert fl.tree.allclose(pure, donated, rtol=1e-10, atol=1e-12)
assert jitted.cache_info() == (3, 1)
said = [w for w in seen if issubclass(w.category, RuntimeWarning)]
assert len(said) == 1, [str(w.message) for w in seen]
assert "jit found no C++ compiler" in str(said[0].message)
assert "CXX" in str(said[0].message)
print("as expected")
"""


@pytest.fixture
def engine():
    """Which engine runs is what is tested here."""


def test_it_says_so_once_and_runs_the_graph(tmp_path):
    env = {**os.environ, "CXX": "/nonexistent/c++", "PATH": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[3]
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=root, env=env)
    assert run.stdout.strip() == "as expected", run.stderr[-2000:]
