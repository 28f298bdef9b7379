"""Parts of torch that torch calls private are touched in the folder `_private` alone."""

import ast
import re
from pathlib import Path

import pytest
import torch

import fluxlike

ROOT = Path(fluxlike.__file__).parent

WITHOUT_UNDERSCORE = (
    "torch.autograd.Variable",
    "torch.fx.experimental",
    "torch.nn.parameter.is_lazy",
    "torch.ops.higher_order",
)
OF_VALUES = {  # whatever the name of the variable that holds a tensor, a storage, a generator or a module
    name
    for kind in (torch.Tensor, torch.UntypedStorage, torch.Generator, torch.nn.Module())
    for name in dir(kind)
    if re.match("_(?!_)", name)
} | {"_schema"}
IN_THE_OPEN = {
    "torch._foreach_": "the only operations on lists of tensors, of which torch.optim is made",
    "torch._pack_padded_sequence": "by this name torch.nn.utils.rnn comes to `__torch_function__`",
    "torch._pad_packed_sequence": "by this name torch.nn.utils.rnn comes to `__torch_function__`",
    "torch.nn._reduction": "what torch.nn.functional makes of size_average and reduce, which it still takes",
    "torch.Tensor._version": "counts the writes into a tensor, which nothing public does",
    "torch.Tensor._base": "the tensor that a view is of, which nothing public tells",
    "torch.Tensor._cdata": "which storage it is, where several objects of Python stand for one",
    "torch.Tensor._schema": "the arguments of an operation, which nothing public tells",
}


def dotted(node):
    """The text of a chain of attributes such as ``torch._C._functorch``."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def is_private(name):
    within = name.startswith("torch.") and any(re.match("_(?!_)", part) for part in name.split("."))
    return within or any(f"{name}.".startswith(f"{p}.") for p in WITHOUT_UNDERSCORE)


def private_parts(tree):
    """The private names of torch that a module imports, reads, or takes by ``getattr``."""
    nodes = list(ast.walk(tree))
    names, stands_for = set(), {}  # such as `aten` for `torch.ops.aten`

    def full(node):
        first, dot, rest = dotted(node).partition(".")
        return f"{stands_for.get(first, first)}{dot}{rest}"

    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            stands_for |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            stands_for |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.Assign) and full(node.value).startswith("torch."):
            stands_for |= {t.id: full(node.value) for t in node.targets if isinstance(t, ast.Name)}
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and dotted(node.value) == "self"}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            names.add(full(node))
            if node.attr in OF_VALUES - own and not full(node).startswith("torch."):
                names.add(f"torch.Tensor.{node.attr}")
        elif isinstance(node, ast.Call) and dotted(node.func) == "getattr":
            text = ast.unparse(node.args[1]).removeprefix("f").strip("'")
            names.add(f"{full(node.args[0])}.{text}")
    return {name for name in names if is_private(name)}


@pytest.fixture(scope="module")
def touched():
    """The private parts that each file outside of the folder touches."""
    return {
        path.relative_to(ROOT).as_posix(): private_parts(ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted(ROOT.rglob("*.py"))
        if "_private" not in path.parts
    }


def test_private_parts_are_touched_in_the_folder_private_alone(touched):
    hidden = {
        f"{path}: {name}"
        for path, names in touched.items()
        for name in names
        if not name.startswith(tuple(IN_THE_OPEN))
    }
    assert hidden == set()


def test_what_may_be_touched_in_the_open_is(touched):
    names = set().union(*touched.values())
    assert [allowed for allowed in IN_THE_OPEN if not any(n.startswith(allowed) for n in names)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import torch._dynamo",
        "from torch import _C",
        "from torch.utils import _pytree as trees",
        "import torch as t; t._C",
        "aten = torch.ops.aten; aten._to_copy",
        "getattr(torch, '_fused_adam_')",
        "getattr(torch, f'_fused_{name}_')",
        "from torch.fx.experimental import proxy_tensor",
        "f(x)._grad_fn",
        "model._parameters",
    ],
)
def test_a_private_part_is_seen_however_it_is_written(code):
    assert private_parts(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "torch.ops.aten.__eq__",
        "torch.nn.Linear",
        "getattr(torch, name)",
        "x.grad",
        "x._ours",
        "self._base = x; other._base",
    ],
)
def test_what_is_public_or_ones_own_is_no_private_part(code):
    assert private_parts(ast.parse(f"import torch; {code}")) == set()
