"""The floors of the design: imports go down, never up and never in a circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fluxlike

ROOT = Path(fluxlike.__file__).parent

FLOORS = {
    "_private": 0,
    "aligned": 0,
    "lazily": 0,
    "optional": 0,
    "words_of_torch": 0,
    "trees": 1,
    "scope": 2,
    "random": 2,
    "placement": 3,
    "transforms": 4,
    "init": 5,
    "layers": 5,
    "losses": 5,
    "optimisers": 5,
    "schedules": 5,
    "data": 5,
    "files": 5,
    "bridges": 6,
    "deployment": 7,
    "models": 7,
    "learning": 7,
    "inspect": 7,
    "distributed": 7,
    "command": 7,
    "__main__": 7,
}

PRIVATE = (
    "torch._C",
    "torch._decomp",
    "torch._dynamo",
    "torch._functorch",
    "torch._guards",
    "torch._inductor",
    "torch._ops",
    "torch._lazy_clone",
    "torch._subclasses",
    "torch.fx.experimental",
    "torch.nn.Module._call_impl",
    "torch.nn.modules.batchnorm._NormBase",
    "torch.nn.parameter.is_lazy",
    "torch.utils._device",
    "torch.utils._pytree",
    "torch.utils.data._utils",
    "torch.utils._python_dispatch",
    "torch._fused_adam_",
    "torch._fused_adamw_",
    "torch._fused_sgd_",
    "torch._fused_adagrad_",
    "torch.autograd.Variable._execution_engine",
    "torch.ops.higher_order",
)
MAY_TOUCH_PRIVATE = {
    f"_private/{name}.py"
    for name in (
        "autograd",
        "compiler/__init__",
        "compiler/build",
        "compiler/freezing",
        "compiler/functional",
        "compiler/operators",
        "compiler/trace",
        "compiler/winograd",
        "data_workers",
        "dispatch",
        "dtensors",
        "fake",
        "fake_ranks",
        "functorch",
        "fused",
        "guards",
        "heard",
        "higher_order",
        "inductor",
        "joint",
        "lazy_clone",
        "levels",
        "modules",
        "pytree",
        "tracing",
    )
}

HEAVY = (
    "matplotlib",
    "sklearn",
    "rich",
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "jax",
    "pandas",
    "scipy",
    "PIL",
    "tensorboard",
    "torchmetrics",
)

MODULES = {
    ".".join(("fluxlike", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(name, path):
    """The modules of fluxlike that a module imports, wherever in the file."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative path"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                found.add(module if module in MODULES else node.module)
    return {m for m in found if m in MODULES and m != name}


def floor(module):
    return FLOORS[module.split(".")[1]]


@pytest.mark.parametrize("name", [n for n in MODULES if n != "fluxlike"])
def test_a_file_imports_from_its_own_floor_or_below(name):
    above = {m for m in imported(name, MODULES[name]) if m == "fluxlike" or floor(m) > floor(name)}
    assert above == set()


def test_no_import_goes_in_a_circle():
    graph = {name: imported(name, path) for name, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def dotted(node):
    """The text of a chain of attributes such as ``torch._C._functorch``."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def touches_private(path):
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(dotted(node))
    return {n for n in names if any(n == p or n.startswith(f"{p}.") for p in PRIVATE)}


def test_only_the_named_files_touch_private_parts_of_torch():
    touching = {path.relative_to(ROOT).as_posix() for path in MODULES.values() if touches_private(path)}
    assert touching == MAY_TOUCH_PRIVATE


def imported_names(nodes):
    return {alias.asname or alias.name for node in nodes for alias in node.names}


def test_the_package_lists_every_public_name_it_imports():
    body = parsed(ROOT / "__init__.py").body
    at_once = imported_names(
        node for node in body if isinstance(node, ast.ImportFrom) and node.module != "typing"
    )
    later = imported_names(inner for node in body if isinstance(node, ast.If) for inner in node.body)
    at_once -= {"TYPE_CHECKING", "Any", "bridges", "learning"}
    assert set(fluxlike.__all__) == at_once | later
    assert set(fluxlike._ROOMS) == later
    assert all(getattr(fluxlike, name).__name__.rpartition(".")[2] == name for name in later)


def test_every_file_says_what_it_is_and_lists_its_public_names():
    for name, path in MODULES.items():
        tree = parsed(path)
        assert ast.get_docstring(tree), f"{name} has no docstring"
        if path.name != "__init__.py":
            targets = [
                t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if hasattr(t, "id")
            ]
            assert "__all__" in targets, f"{name} has no __all__"


def loaded_by(statement):
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    return set(run.stdout.split())


def test_importing_fluxlike_loads_no_heavy_package():
    extra = loaded_by("import fluxlike") - loaded_by("import torch")
    heavy = {m for m in extra if any(m == h or m.startswith(f"{h}.") for h in HEAVY)}
    assert heavy == set()
