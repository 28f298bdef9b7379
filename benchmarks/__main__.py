"""``python -m benchmarks [NAME …]``: run rows of the table of speed and print the ratios."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
from pathlib import Path

import torch

from benchmarks.harness import HEADER

NAMES = (
    "gradient",
    "layers",
    "modules",
    "checkpoint",
    "per_example",
    "population",
    "update",
    "memory",
    "jit",
    "flatten",
    "startup",
    "data",
    "training",
)


def machine() -> str:
    """The kind of machine, in words."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, torch {torch.__version__}, Python {platform.python_version()}"


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    options = parser.parse_args()
    unknown = [n for n in options.names if n not in NAMES]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; choose from {', '.join(NAMES)}")
    print(f"{machine()}\n\n{HEADER}", flush=True)
    done = []
    for name in options.names or NAMES:
        for row in importlib.import_module(f"benchmarks.{name}").rows():
            print(row, flush=True)
            done.append(row.as_dict())
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": done}, indent=2))


if __name__ == "__main__":
    main()
