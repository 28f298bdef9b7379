"""``import fluxlike`` beyond ``import torch``, each in a new process."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from benchmarks.harness import Row

_CODE = "import time, torch; t = time.perf_counter(); import fluxlike; print(time.perf_counter() - t)"


def rows() -> Iterator[Row]:
    """One row; the peer is the target of 40 ms, so the ratio must be at most 1."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        # With bytecode, as pip leaves an installed package; the first run writes it.
        settings = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        settings["PYTHONPYCACHEPREFIX"] = folder
        for _ in range(10):
            run = subprocess.run(
                [sys.executable, "-c", _CODE], capture_output=True, text=True, check=True, env=settings
            )
            times.append(float(run.stdout))
    times = times[1:]
    yield Row("import fluxlike beyond import torch", "40 ms", 1, statistics.median(times), 0.040, 1.0)
