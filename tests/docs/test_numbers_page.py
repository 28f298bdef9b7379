"""The page on numbers names tests that exist, what they assert, and all that have an outside reference."""

import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evidence" / "numbers.md").read_text()
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PATH = re.compile(r"`(tests/[\w/]+\.py)`")
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| (?!what \|)", line)]
TOLERANCE = re.compile(r"(?<![\w.])(?:\d+e-\d+|0\.\d+)")

# The rule: a file has an outside reference if it uses a package that is no tool of tests, an optimiser of
# torch or finite differences, or if the name of a test says so. Other parts of torch are used everywhere.
IMPORT = re.compile(r"^ *(?:import (\w+)|from (\w+)[\w.]* import )|importorskip\(\"(\w+)", re.MULTILINE)
OF_TORCH = re.compile(r"\btorch\.optim\b|\bgrad(?:grad)?check\(")
PROMISE = re.compile(
    r"^ *def test_(?:\w*_)?(?:torchs|torchvisions|timms|optaxs|scikit_learns|of_backward|known_answers"
    r"|published|golden|papers?)(?:_\w*)?\(",
    re.MULTILINE,
)
TOOLS = {
    "attrs", "benchmarks", "fluxlike", "hypothesis", "matplotlib", "numpy", "optree", "pytest", "rich",
    "tests", "torch", "torchao",
}  # fmt: skip
OWN = {path.stem for path in TESTS} - {"torchvision_here"}  # which imports torchvision

#: Files that the rule finds and that compare nothing, and what the package or the name is there for.
NOT_COMPARED = {
    "tests/command/test_file_summary.py": "safetensors writes files",
    "tests/command/test_torchvision_command.py": "a model of torchvision is trained by its name",
    "tests/distributed/test_unknown_functions.py": "an error of torch's vmap names ours",
    "tests/examples/test_examples.py": "digits of scikit-learn are data",
    "tests/examples/test_generative_examples.py": "digits of scikit-learn are data, and a paper names layers",
    "tests/examples/test_many_devices_example.py": "digits of scikit-learn are data",
    "tests/files/test_hostile_files.py": "safetensors writes files",
    "tests/files/test_torch_checkpoints.py": "safetensors and h5py write files",
    "tests/inspect/test_autosize.py": "torch's generator draws for us",
    "tests/layers/test_construct.py": "torch's inits are taken as inits",
    "tests/models/test_configurations.py": "published configurations are there",
    "tests/models/test_weights.py": "weights of others, in errors that name what does not fit",
    "tests/optimisers/test_setup.py": "an optimiser of torch is refused",
    "tests/placement/test_layout_batches.py": "arrays of JAX are laid out",
    "tests/placement/test_layout_foreign.py": "ml_dtypes makes arrays",
    "tests/scope/test_key.py": "torch's generator is given back",
    "tests/test_private_parts.py": "it reads which names of torch are private",
    "tests/test_arguments_of_torch.py": "what is advised for an argument of torch does what that does",
}


@cache
def text_of(path: str) -> str:
    return (ROOT / path).read_text()


def has_reference(path: str) -> bool:
    """Whether a file has an outside reference, by the rule above."""
    text = text_of(path)
    packages = {next(filter(None, found)) for found in IMPORT.findall(text)}
    outside = packages - TOOLS - OWN - sys.stdlib_module_names
    return bool(outside or OF_TORCH.search(text) or PROMISE.search(text))


def test_every_row_names_tests_that_exist():
    assert len(ROWS) > 100
    assert [row for row in ROWS if not PATH.search(row)] == []
    assert sorted(path for path in set(PATH.findall(PAGE)) if not (ROOT / path).exists()) == []


def test_the_tolerances_of_a_row_stand_in_its_tests():
    missing = []
    for row in ROWS:
        *_, agreement, files, _ = row.split(" |")
        text = "".join(map(text_of, PATH.findall(files)))
        for number in TOLERANCE.findall(agreement):
            if not re.search(rf"(?<![\w.]){re.escape(number)}(?![\w.])", text):
                missing.append((number, row))
    assert missing == []


def test_every_file_with_an_outside_reference_is_on_the_page():
    """Give a new one a row of the page, or say in NOT_COMPARED what it needs the package for."""
    files = [str(path.relative_to(ROOT)) for path in TESTS if path.name.startswith("test_")]
    named = set(PATH.findall(PAGE)) | NOT_COMPARED.keys()
    assert [file for file in files if file not in named and has_reference(file)] == []


def test_exceptions_are_needed_and_not_on_the_page():
    assert [path for path in NOT_COMPARED if not (ROOT / path).exists() or not has_reference(path)] == []
    assert NOT_COMPARED.keys() & set(PATH.findall(PAGE)) == set()
