"""The pages of concepts: what their comments say is printed, is printed."""

import ast
import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from fluxlike._private.compiler import build

CONCEPTS = Path(__file__).parents[2] / "docs" / "concepts"
PAGES = sorted(page for page in CONCEPTS.glob("*.md") if page.stem != "index")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def told(lines: list[str], statement: ast.stmt) -> str:
    """What the comments say that a statement prints: that at its end, and the lines of comments below it."""
    assert statement.end_lineno is not None
    found = [lines[statement.end_lineno - 1].encode()[statement.end_col_offset or 0 :].decode()]
    for line in lines[statement.end_lineno :]:
        if not line.startswith("#"):
            break
        found.append(line)
    return " ".join(" ".join(line.strip().removeprefix("#") for line in found).split())


def test_there_is_a_page_for_each_row_of_the_table():
    index = (CONCEPTS / "index.md").read_text()
    linked = set(re.findall(r"^\|.*?\]\((\w+)\.md\)", index, re.MULTILINE))
    assert linked == {page.stem for page in PAGES}
    listed = re.search(r"^:{3,}\{toctree\}\n:hidden:\n\n(.*?)^:{3,}", index, re.MULTILINE | re.DOTALL)
    assert listed is not None
    assert sorted(listed[1].split()) == [page.stem for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_prints_what_its_comments_say(page: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "_can_compile", lambda: False)  # the graphs of jit as they are recorded
    torch.manual_seed(0)
    namespace = {"__name__": "document"}
    printed = 0
    for block in BLOCK.findall(page.read_text()):
        lines = block.split("\n")
        for statement in ast.parse(block).body:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(ast.Module([statement], []), str(page), "exec"), namespace)
            if out.getvalue():
                assert " ".join(out.getvalue().split()) == told(lines, statement)
                printed += 1
    assert printed >= 2
