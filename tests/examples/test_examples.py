"""Every example runs to its end in its quick form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torchvision_here import torchvision

ROOT = Path(__file__).parents[2]
QUICK = ("digits", "vision_transformer", "surgery", "maml", "population", "xnor", "checkpointing")
OPTIONS = {name: lambda folder: ["--out", str(folder)] for name in ("digits", "population")}

#: A script that runs another one after torchvision has been made to load beside a CPU build of torch.
WITH_TORCHVISION = """
import runpy, sys
from benchmarks import torchvision_here
torchvision_here.torchvision()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(folder: Path, *command: str) -> str:
    """What a command prints, to the end of which it has to come."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_an_example_runs_quickly_to_its_end(name: str, tmp_path: Path):
    script = ROOT / "examples" / f"{name}.py"
    pytest.importorskip("sklearn", reason="the examples read scikit-learn's digits")
    run(tmp_path, str(script), "--quick", *OPTIONS.get(name, lambda _: [])(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("torchvisions", [False, True], ids=["our own layers", "torchvision's model"])
def test_fine_tuning_ends_with_a_model_its_curve_and_its_mistakes(torchvisions, tmp_path):
    options = ["--quick", "--out", str(tmp_path)]
    script = str(ROOT / "examples" / "finetune.py")
    if torchvisions:
        torchvision()
        said = run(tmp_path, "-c", WITH_TORCHVISION, script, "--torchvision", *options)
    else:
        said = run(tmp_path, script, *options)
    assert "of 60 held-out images read right" in said
    made = {path.name for path in tmp_path.iterdir()}
    assert {"model.safetensors", "curve.png", "confusion.png", "mistakes.png", "checkpoints"} <= made
