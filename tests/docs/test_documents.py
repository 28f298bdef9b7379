"""The README and the documentation: every code block runs, every public name is described."""

import importlib
import importlib.util
import inspect
import re
import warnings
from pathlib import Path

import pytest
import torch

import fluxlike as fl

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fluxlike._private.compiler import build

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ON_GITHUB = "https://github.com/fluxlike/fluxlike/blob/main/"
DOCUMENTS = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- needs: ([^\n]*) -->\n)?```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROOMS = (
    "tree", "losses", "init", "random", "schedules", "data", "callbacks", "metrics", "logs", "models",
    "distributed",
)  # fmt: skip
MODULES = {name: getattr(fl, name) for name in ROOMS}
PUBLIC = sorted(
    [name for name in fl.__all__ if name not in MODULES]
    + [
        f"{prefix}.{name}"
        for prefix, module in MODULES.items()
        for name in module.__all__
        if getattr(fl, name, None) is not getattr(module, name)
    ]
)
# What is shown with what it belongs to.
WITHOUT_EXAMPLE = (
    "Assigned", "CallbackError", "CancelEpoch", "LayerError", "ParamState", "Rule", "callbacks.NonFiniteLoss",
    "logs.Log", "metrics.Meter", "schedules.Schedule", "models.Candidates", "models.Detections",
    "models.Encoded", "models.LanguageModel", "models.Origin", "distributed.Estimate", "distributed.Traffic",
)  # fmt: skip
CONFIGURATION = re.compile(r"models\.\w+Config")  # shown with their networks


def lookup(name):
    found = fl
    for part in name.split("."):
        found = getattr(found, part)
    return found


def is_ours(name):
    """Whether it is written here, and no function of torch, module or constant."""
    return getattr(lookup(name), "__module__", "").startswith("fluxlike")


# What takes mostly the compiler's time.
COMPILED = [DOCS / "guides" / name for name in ("inference.md", "int8.md", "jit.md")]
WITH_CODE = [d for d in DOCUMENTS if BLOCK.search(d.read_text())]


def is_missing(package):
    """Whether a package that a block needs can't be imported here."""
    if package in ("torchvision", "transformers", "torchmetrics"):  # which import torchvision
        importlib.import_module("torchvision_here")
    return importlib.util.find_spec(package) is None


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's exporter to ONNX
@pytest.mark.filterwarnings("ignore::Warning:lightning")  # advice about workers and logs
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit")  # when torchao is imported
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
@pytest.mark.parametrize(
    "document",
    [
        pytest.param(d, id=str(d.relative_to(ROOT)), marks=pytest.mark.slow if d in COMPILED else ())
        for d in WITH_CODE
    ],
)
def test_the_code_blocks_of_a_document_run_from_top_to_bottom(document, monkeypatch):
    if document not in COMPILED:  # the graphs of jit as they are recorded, without Inductor's kernels
        monkeypatch.setattr(build, "_can_compile", lambda: False)
    torch.manual_seed(0)
    namespace = {"__name__": "document"}
    text = document.read_text()
    left_out = {}
    for block in BLOCK.finditer(text):
        needs, source = block.groups()
        line = text[: block.start(2)].count("\n")
        missing = [package for package in (needs or "").split() if is_missing(package)]
        if missing:
            left_out[line] = missing
            continue
        code = compile("\n" * line + source, str(document), "exec")
        exec(code, namespace)
    if left_out:
        packages = ", ".join(sorted({p for missing in left_out.values() for p in missing}))
        pytest.skip(f"the others ran; the blocks at lines {list(left_out)} need {packages}")


def test_what_a_block_needs_is_told_right_before_it():
    for document in WITH_CODE:
        text = document.read_text()
        assert text.count("<!-- needs:") == sum(block[1] is not None for block in BLOCK.finditer(text))


FUNCTIONS = [n for n in PUBLIC if inspect.isfunction(lookup(n)) and is_ours(n)]
REFERENCE = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))


def test_there_is_code_to_run():
    assert len(WITH_CODE) >= 8


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_in_the_reference(name):
    assert re.search(rf"fluxlike\.{re.escape(name)}$|`{re.escape(name)}`", REFERENCE, re.MULTILINE)


@pytest.mark.parametrize("name", [n for n in PUBLIC if is_ours(n)])
def test_a_public_name_has_a_docstring_with_an_example(name):
    doc = inspect.getdoc(lookup(name)) or ""
    assert doc
    assert ">>>" in doc or name in WITHOUT_EXAMPLE or CONFIGURATION.fullmatch(name)


@pytest.mark.parametrize("name", FUNCTIONS)
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
        prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", prose):
            ours = target.removeprefix(ON_GITHUB)
            if ours != target or not target.startswith("http"):
                there = (ROOT if ours != target else document.parent) / ours
                assert there.exists(), f"{document.relative_to(ROOT)}: {target}"
