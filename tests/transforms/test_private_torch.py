"""The private parts of torch that two files wrap: these fail loudly when torch moves them."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

import fluxlike as fl
from fluxlike.transforms import _functorch


@pytest.mark.parametrize(
    "name",
    [
        "_grad_increment_nesting",
        "_grad_decrement_nesting",
        "_wrap_for_grad",
        "_unwrap_for_grad",
        "peek_interpreter_stack",
        "get_inplace_requires_grad_allowed",
        "set_inplace_requires_grad_allowed",
    ],
)
def test_functorch_has_the_function_that_we_wrap(name: str) -> None:
    assert callable(getattr(torch._C._functorch, name))


def test_no_other_file_reaches_into_torch_c() -> None:
    package = Path(inspect.getfile(fl)).parent
    users = [
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if "torch._C" in file.read_text(encoding="utf-8")
    ]
    assert users == ["transforms/_functorch.py"]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own
def test_a_transform_of_functorch_is_seen_from_inside_alone() -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append(_functorch.active())
        return x.sum()

    x = torch.ones(2)
    torch.func.grad(f)(x)
    torch.func.vmap(f)(x)
    torch.func.jvp(f, (x,), (x,))
    f(x)
    assert seen == [True, True, True, False]


def test_levels_count_up() -> None:
    with _functorch.grad_level() as outer, _functorch.grad_level() as inner:
        assert inner == outer + 1


def test_a_level_closes_after_an_error() -> None:
    with _functorch.grad_level():
        with pytest.raises(KeyError, match="mine"), _functorch.grad_level():
            raise KeyError("mine")
        assert _functorch.active()
    assert not _functorch.active()


def test_a_level_differentiates_what_it_wrapped() -> None:
    x = torch.tensor([1.0, 2.0])
    with _functorch.grad_level() as level:
        handle = _functorch.differentiable(x, level)
        constant = _functorch.wrap(x, level)
        assert handle.requires_grad
        assert not constant.requires_grad
        (grad,) = torch.autograd.grad((handle**2 * constant).sum(), [handle])
        grad = _functorch.unwrap(grad, level)
    assert torch.equal(grad, torch.tensor([2.0, 8.0]))
    assert not x.requires_grad


def test_marking_a_tensor_differentiable_restores_the_guard() -> None:
    x = torch.ones(1)
    with _functorch.grad_level() as level:
        before = torch._C._functorch.get_inplace_requires_grad_allowed()
        _functorch.differentiable(x, level)
        assert torch._C._functorch.get_inplace_requires_grad_allowed() == before


def test_torch_registers_nodes_with_keys() -> None:
    assert "flatten_with_keys_fn" in inspect.signature(_pytree.register_pytree_node).parameters
    assert str(_pytree.GetAttrKey("weight")) == ".weight"


@fl.functor
class Weights:
    def __init__(self) -> None:
        self.first, self.second = torch.ones(2), torch.zeros(2)


def test_a_functor_is_a_node_of_torch_with_its_attributes_as_keys() -> None:
    leaves, spec = _pytree.tree_flatten_with_path({"w": Weights()})
    assert [_pytree.keystr(path) for path, _ in leaves] == ["['w'].first", "['w'].second"]
    rebuilt = _pytree.tree_unflatten([x for _, x in leaves], spec)
    assert type(rebuilt["w"]) is Weights


def test_torch_func_takes_a_functor_as_argument_and_result() -> None:
    grads = torch.func.grad(lambda m: (m.first * 3).sum() + m.second.sum())(Weights())
    assert type(grads) is Weights
    assert torch.equal(grads.first, torch.full((2,), 3.0))
    doubled = torch.func.vmap(lambda m: m)(Weights())
    assert type(doubled) is Weights


def test_assigned_is_a_node_of_torch() -> None:
    leaves, spec = _pytree.tree_flatten(fl.Assigned(torch.ones(2)))
    assert len(leaves) == 1
    assert isinstance(_pytree.tree_unflatten(leaves, spec), fl.Assigned)
