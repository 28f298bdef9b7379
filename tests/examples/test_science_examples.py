"""The examples from science run to their goals in their quick form, and say what they need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What each needs.
PACKAGES = {
    "iris": "sklearn",
    "dqn": "gymnasium",
    "neural_ode": "torchdiffeq",
    "transfer_learning": "sklearn",
}
MADE = {"neural_ode": {"neural_ode.png"}, "transfer_learning": {"backbone.safetensors"}}

#: A script that runs another one where a package is missing.
WITHOUT = """
import runpy, sys
sys.modules[sys.argv[1]] = None
runpy.run_path(sys.argv[2], run_name="__main__")
"""


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_an_example_reaches_its_goal_quickly(name: str, tmp_path: Path):
    package = PACKAGES[name]
    pytest.importorskip(package, reason=f"the example needs {package}")
    out = ["--out", str(tmp_path)] if name in MADE else []
    done = run(tmp_path, str(ROOT / "examples" / f"{name}.py"), "--quick", *out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == MADE.get(name, set())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "package"), [("dqn", "gymnasium"), ("neural_ode", "torchdiffeq")])
def test_a_missing_package_is_an_error_that_says_what_installs_it(name: str, package: str, tmp_path: Path):
    if package == "torchdiffeq":
        pytest.importorskip("matplotlib")
    done = run(tmp_path, "-c", WITHOUT, package, str(ROOT / "examples" / f"{name}.py"))
    assert done.returncode != 0
    assert f"needs {package}" in done.stderr
    assert "pip install 'fluxlike[examples]'" in done.stderr
