"""Every example runs to its end in its quick form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONS = {name: lambda folder: ["--out", str(folder)] for name in ("digits", "population")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["digits", "vision_transformer", "surgery", "maml", "population", "xnor", "checkpointing"]
)
def test_an_example_runs_quickly_to_its_end(name: str, tmp_path: Path):
    script = ROOT / "examples" / f"{name}.py"
    if not script.exists():
        pytest.skip(f"there is no {script.name}")
    pytest.importorskip("sklearn", reason="the examples read scikit-learn's digits")
    command = [sys.executable, str(script), "--quick", *OPTIONS.get(name, lambda _: [])(tmp_path)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
