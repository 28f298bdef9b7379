"""``python -m benchmarks [NAME …]``: run rows of the table of speed, print the ratios, and draw them."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import HEADER
from benchmarks.machine import machine, sentence
from benchmarks.results import Results

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
    "inference",
    "resnet_training",
    "distributed",
    "scaling",
    "flatten",
    "startup",
    "data",
    "training",
)


def measure(name: str, results: Results) -> None:
    """Run one benchmark in this process, and print its rows."""
    module = importlib.import_module(f"benchmarks.{name}")
    found = machine()
    print(f"{name}: {sentence(found)}\n\n{getattr(module, 'HEADER', HEADER)}", flush=True)
    results.start(name, found)
    for row in module.rows():
        print(row, flush=True)
        results.add(name, row.as_dict())
    results.finish(name)
    print(flush=True)


def apart(names: list[str], path: Path) -> list[str]:
    """Run each benchmark in a process of its own, as what one leaves in the allocator slows the next.

    Returns:
        The names of those that failed.
    """
    command = [sys.executable, "-m", "benchmarks", "--json", str(path)]
    return [name for name in names if subprocess.run([*command, name], check=False).returncode]


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--json", type=Path, help="write the rows here; those of other names stay")
    parser.add_argument("--picture", type=Path, help="draw the rows to this file, .png or .svg")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="measure nothing, draw these rows")
    options = parser.parse_args(arguments)
    unknown = [n for n in options.names if n not in NAMES]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; choose from {', '.join(NAMES)}")
    if options.draw and not (options.picture and options.draw.exists()):
        parser.error(f"--draw takes a file with rows and --picture FILE, found {options.draw}")
    names, failed = options.names or list(NAMES), []
    with tempfile.TemporaryDirectory() as folder:
        path = options.draw or options.json or Path(folder, "rows.json")
        try:
            results = Results(path)
        except ValueError as error:
            parser.error(str(error))
        if not options.draw and len(names) == 1:
            measure(names[0], results)
        elif not options.draw:
            failed = apart(names, path)
            results = Results(path)
        if options.picture:
            from benchmarks.picture import draw

            for picture in draw(results, names, options.picture):
                print(f"drawn: {picture}")
    if failed:
        print(f"these failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
