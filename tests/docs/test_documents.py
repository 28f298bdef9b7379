"""The README and the documentation: every code block runs, every public name is described."""

import inspect
import re
from pathlib import Path

import pytest
import torch

import fluxlike as fl

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODULES = {name: getattr(fl, name) for name in ("tree", "losses", "init", "random", "schedules")}
PUBLIC = sorted(
    [name for name in fl.__all__ if name not in MODULES]
    + [f"{prefix}.{name}" for prefix, module in MODULES.items() for name in module.__all__]
)


def lookup(name):
    found = fl
    for part in name.split("."):
        found = getattr(found, part)
    return found


def is_torchs_own(name):
    return lookup(name).__module__ != "fluxlike" and not lookup(name).__module__.startswith("fluxlike.")


WITH_CODE = [d for d in DOCUMENTS if BLOCK.search(d.read_text())]


@pytest.mark.parametrize("document", WITH_CODE, ids=[d.name for d in WITH_CODE])
def test_the_code_blocks_of_a_document_run_from_top_to_bottom(document):
    torch.manual_seed(0)
    namespace = {"__name__": "document"}
    text = document.read_text()
    for block in BLOCK.finditer(text):
        line = text[: block.start(1)].count("\n")
        code = compile("\n" * line + block.group(1), str(document), "exec")
        exec(code, namespace)


FUNCTIONS = [n for n in PUBLIC if inspect.isfunction(lookup(n)) and not is_torchs_own(n)]


def test_there_is_code_to_run():
    assert len(WITH_CODE) >= 8


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_in_the_reference(name):
    reference = (ROOT / "docs" / "api.md").read_text()
    assert re.search(rf"fluxlike\.{re.escape(name)}$|`{re.escape(name)}`", reference, re.MULTILINE)


@pytest.mark.parametrize("name", [n for n in PUBLIC if not is_torchs_own(n)])
def test_a_public_name_has_a_docstring_with_an_example(name):
    doc = inspect.getdoc(lookup(name)) or ""
    assert doc
    assert ">>>" in doc or name in ("Assigned", "LayerError", "ParamState", "Rule", "schedules.Schedule")


@pytest.mark.parametrize(
    "name", [n for n in PUBLIC if inspect.isfunction(lookup(n)) and not is_torchs_own(n)]
)
def test_a_public_function_describes_its_arguments(name):
    function = lookup(name)
    doc = inspect.getdoc(function) or ""
    parameters = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.name not in ("args", "rest", "others")
    ]
    missing = [p for p in parameters if not re.search(rf"^    {p}: ", doc, re.MULTILINE)]
    assert not missing


def test_a_link_in_a_document_leads_to_a_file():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
