"""The private parts of torch that the files of _private wrap: these fail loudly when torch moves them."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree

import fluxlike as fl
from fluxlike._private import autograd, functorch, fused, tracing


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


def test_functorch_tells_levels_and_batches() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append((functorch.level(), functorch.at_level(x, 0)))
        return x

    torch.func.vmap(look)(torch.ones(2))
    assert seen == [(1, None)]
    assert functorch.level() == 0


def test_the_engine_of_autograd_gives_what_torch_autograd_grad_gives() -> None:
    x, unused = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    grads = autograd.grad((x**3).sum(), [x, unused], create_graph=True)
    assert torch.equal(grads[0], torch.autograd.grad((x**3).sum(), x)[0])
    assert grads[1] is None
    assert grads[0].grad_fn is not None


@pytest.mark.parametrize("skip", [None, 0.0, 1.0])
@pytest.mark.parametrize("decoupled", [False, True])
def test_the_fused_adam_of_torch_takes_what_we_give(decoupled: bool, skip: float | None) -> None:
    p, g, m, v = torch.ones(3), torch.ones(3), torch.zeros(3), torch.zeros(3)
    assert fused.fits(p, [g, m, v])
    held = None if skip is None else torch.tensor(skip)
    hyper = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    fused.adam([p], [g], [m], [v], [], [torch.tensor(1.0)], held, decoupled=decoupled, **hyper)
    moves = skip != 1.0
    assert p.tolist() == pytest.approx([0.9 if moves else 1.0] * 3)
    assert m.tolist() == pytest.approx([0.1 if moves else 0.0] * 3)
    assert v.tolist() == pytest.approx([0.001 if moves else 0.0] * 3)


@pytest.mark.parametrize("skip", [None, 0.0, 1.0])
def test_the_fused_sgd_and_adagrad_of_torch_take_what_we_give(skip: float | None) -> None:
    held = None if skip is None else torch.tensor(skip)
    moves = skip != 1.0
    p, v = torch.ones(3), torch.ones(3)
    fused.sgd([p], [torch.ones(3)], [v], held, lr=0.1, momentum=0.9, nesterov=False)
    assert p.tolist() == pytest.approx([0.81 if moves else 1.0] * 3)
    assert v.tolist() == pytest.approx([1.9 if moves else 1.0] * 3)
    p, total = torch.ones(3), torch.zeros(3)
    hyper = {"lr": 0.1, "lr_decay": 0.0, "weight_decay": 0.0, "eps": 1e-10}
    fused.adagrad([p], [torch.full((3,), 2.0)], [total], [torch.tensor(1.0)], held, **hyper)
    assert p.tolist() == pytest.approx([0.9 if moves else 1.0] * 3)
    assert total.tolist() == pytest.approx([4.0 if moves else 0.0] * 3)


def test_a_kernel_is_not_given_lists_that_it_would_read_beyond() -> None:
    assert not fused.fits(torch.ones(3), [torch.ones(2)])
    assert not fused.fits(torch.ones(3), [torch.ones(3, dtype=torch.float64)])
    assert not fused.fits(torch.ones(2, 3), [torch.ones(3, 2).T])


def test_tracing_is_seen_under_make_fx_and_fake_tensors() -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append((tracing.tracing(), tracing.readable(x)))
        return x + 1

    f(torch.ones(2))
    make_fx(f, tracing_mode="fake")(torch.ones(2))
    torch.func.vmap(f)(torch.ones(2))
    assert seen == [(False, True), (True, False), (False, False)]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own
def test_a_transform_of_functorch_is_seen_from_inside_alone() -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append(functorch.active())
        return x.sum()

    x = torch.ones(2)
    torch.func.grad(f)(x)
    torch.func.vmap(f)(x)
    torch.func.jvp(f, (x,), (x,))
    f(x)
    assert seen == [True, True, True, False]


def test_levels_count_up() -> None:
    with functorch.grad_level() as outer, functorch.grad_level() as inner:
        assert inner == outer + 1


def test_a_level_closes_after_an_error() -> None:
    with functorch.grad_level():
        with pytest.raises(KeyError, match="mine"), functorch.grad_level():
            raise KeyError("mine")
        assert functorch.active()
    assert not functorch.active()


def test_a_level_differentiates_what_it_wrapped() -> None:
    x = torch.tensor([1.0, 2.0])
    with functorch.grad_level() as level:
        handle = functorch.differentiable(x, level)
        constant = functorch.wrap(x, level)
        assert handle.requires_grad
        assert not constant.requires_grad
        (grad,) = torch.autograd.grad((handle**2 * constant).sum(), [handle])
        grad = functorch.unwrap(grad, level)
    assert torch.equal(grad, torch.tensor([2.0, 8.0]))
    assert not x.requires_grad


def test_marking_a_tensor_differentiable_restores_the_guard() -> None:
    x = torch.ones(1)
    with functorch.grad_level() as level:
        before = torch._C._functorch.get_inplace_requires_grad_allowed()
        functorch.differentiable(x, level)
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
