"""The docstrings of the folders of optimisers are maps: a newcomer finds every file there."""

from __future__ import annotations

from pathlib import Path

import pytest

import fluxlike.optimisers.rules


@pytest.mark.parametrize(
    "package", [fluxlike.optimisers, fluxlike.optimisers.rules], ids=lambda p: p.__name__
)
def test_the_docstring_of_the_folder_names_every_file_of_it(package: object) -> None:
    here = Path(package.__file__).parent  # type: ignore[attr-defined]
    files = {f"`{path.stem}`" for path in here.glob("*.py") if path.stem != "__init__"}
    folders = {f"`{path.parent.name}/`" for path in here.glob("*/__init__.py")}
    assert {name for name in files | folders if name not in (package.__doc__ or "")} == set()
