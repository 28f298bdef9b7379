"""The floors of the design: imports go down, never up and never in a circle."""

import ast
import importlib
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
    "rooms": 0,
    "optional": 0,
    "advice": 0,
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


def homes_for_type_checkers():
    """The module of each public name, as the imports say that type checkers read; of a room, its own."""
    shown = next(node for node in parsed(ROOT / "__init__.py").body if isinstance(node, ast.If))
    homes = {}
    for node in shown.body:
        for alias in node.names:
            inside = f"{node.module}.{alias.name}"
            homes[alias.asname or alias.name] = inside if inside in MODULES else node.module
    return homes


def test_the_list_of_public_names_the_imports_of_type_checkers_and_the_homes_of_names_are_one():
    homes = homes_for_type_checkers()
    assert fluxlike.__all__ == sorted(homes, key=lambda name: fluxlike.__all__.index(name))
    assert homes == fluxlike._MODULES


def test_a_public_name_is_what_its_home_calls_so():
    homes = {n: importlib.import_module(module) for n, module in fluxlike._MODULES.items()}
    found = {name: getattr(home, name, home) for name, home in homes.items()}
    assert [name for name, at_home in found.items() if getattr(fluxlike, name) is not at_home] == []


def test_importing_a_room_first_hides_no_public_name_of_it():
    rooms = "; ".join(f"import {name}" for name in MODULES if name.count(".") == 1 and "__main__" not in name)
    code = (
        f"{rooms}; import fluxlike\n"
        "for name in fluxlike.__all__:\n"
        "    if name not in ('tree', 'callbacks', 'logs', 'metrics'):\n"
        "        print(name, type(getattr(fluxlike, name)).__name__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    modules = {line.split()[0] for line in run.stdout.splitlines() if line.endswith(" module")}
    assert modules == {name for name in fluxlike.__all__ if f"fluxlike.{name}" in MODULES}


def test_importing_fluxlike_loads_what_registers_and_no_room():
    ours = {m for m in loaded_by("import fluxlike") if m.startswith("fluxlike.")}
    above = {m for m in ours if floor(m) > 1 and not hasattr(sys.modules[m], "__path__")}
    assert above == {
        "fluxlike.optimisers.rule", "fluxlike.placement.mesh.used", "fluxlike.transforms.engine.motors",
    }  # fmt: skip


FIRST = "import torch, dataclasses\nimport fluxlike as fl\n"
DERIVED_BEFORE_ANY_TRANSFORM = """
w = torch.ones(3)
for f in (
    lambda w: fl.f64(w).pow(2).sum(),
    lambda w: fl.tree.norm({"w": w}),
    lambda w: fl.destructure({"w": w})[0].sum(),
    lambda w: fl.stack([w, w]).sum(),
):
    assert torch.func.grad(f)(w).abs().min() > 0.5
"""
RULE_BEFORE_ANY_RULE = """
@fl.functor
@dataclasses.dataclass(frozen=True)
class Own:
    lr: float
    def init(self, param): return None
    def apply(self, state, param, grad): return None, self.lr * grad

fl.functor(Own, scalars=("lr",))
both = fl.stack([fl.setup(Own(lr), {"w": torch.ones(2)}) for lr in (0.1, 0.2)])
assert both["w"].rule.lr.shape == (2,)
"""


@pytest.mark.parametrize("code", [DERIVED_BEFORE_ANY_TRANSFORM, RULE_BEFORE_ANY_RULE])
def test_what_lower_floors_are_told_is_told_before_anything_else_is_imported(code):
    run = subprocess.run(
        [sys.executable, "-c", FIRST + code], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert run.returncode == 0, run.stderr


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
