"""What the pages for maintainers say of files and names is so."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.test_floors import FLOORS

ROOT = Path(__file__).parents[2]
ARCHITECTURE = ROOT / "docs" / "maintainers" / "architecture.md"
PAGES = [ARCHITECTURE, ROOT / "CONTRIBUTING.md"]
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
#: A path, perhaps with a name in it: ``layers/``, ``tests/layers/rows_*.py``, ``trees/adopt.py::adopt``.
MENTIONED = re.compile(r"`([\w./*-]+(?:/|\.(?:py|md|txt|toml|svg)))(?:::([\w.]+))?`")


def mentions(page: Path) -> list[tuple[str, str]]:
    """The paths in backticks, each with the name that is said to be there, or an empty one."""
    return sorted({m.groups("") for m in MENTIONED.finditer(FENCED.sub("", page.read_text()))})


def found(path: str) -> list[Path]:
    """The files or folders that a path means, from the repository's root or from the package."""
    return [p for folder in (ROOT, ROOT / "fluxlike") for p in folder.glob(path.rstrip("/"))]


@cache
def names_in(path: Path) -> set[str]:
    """The functions, classes, methods and variables that a file defines."""

    def inside(body: list[ast.stmt], prefix: str) -> set[str]:
        names: set[str] = set()
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                names |= inside(node.body, f"{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names |= {t.id for t in targets if isinstance(t, ast.Name) and not prefix}
        return names

    return inside(ast.parse(path.read_text()).body, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_maintainers_read_of_exists_and_holds_the_name(page: Path):
    told = mentions(page)
    assert len(told) >= 5
    missing = [path for path, _ in told if not found(path)]
    assert missing == []
    moved = [
        f"{path}::{name}" for path, name in told if name and not any(name in names_in(p) for p in found(path))
    ]
    assert moved == []


def test_every_room_of_the_package_is_in_the_table_of_floors_and_in_the_picture():
    rows = re.findall(r"^\| (\d) \| ([^|]*) \|", ARCHITECTURE.read_text(), re.MULTILINE)
    told = {
        room.removesuffix("/").removesuffix(".py"): int(floor)
        for floor, cell in rows
        for room in re.findall(r"`([\w.]+/?)`", cell)
    }
    assert told == {room: floor for room, floor in FLOORS.items() if room != "__main__"}
    picture = (ROOT / "docs" / "pictures" / "floors.svg").read_text()
    assert [room for room in told if not re.search(rf"\b{room}\b", picture)] == []
