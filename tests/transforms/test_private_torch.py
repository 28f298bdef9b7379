"""The private parts of torch that the files of _private wrap: these fail loudly when torch moves them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

import fluxlike as fl
from fluxlike._private import autograd, dispatch, functorch, fused, higher_order, levels, pytree, tracing


@pytest.mark.parametrize(
    "name",
    [
        "_grad_increment_nesting",
        "_grad_decrement_nesting",
        "_wrap_for_grad",
        "_unwrap_for_grad",
        "peek_interpreter_stack",
        "_add_batch_dim",
        "get_interpreter_stack",
        "get_unwrapped",
        "is_batchedtensor",
        "maybe_get_bdim",
        "maybe_get_level",
        "unwrap_if_dead",
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


def test_a_derivative_around_the_call_is_told_from_a_map() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(functorch.differentiating())
        return x.sum()

    look(torch.ones(2))
    torch.func.vmap(look)(torch.ones(2))
    torch.func.grad(look)(torch.ones(2))
    torch.func.vmap(torch.func.grad(look))(torch.ones(2))
    functorch.jvp(look, (torch.ones(2),), (torch.ones(2),))
    assert seen == [False, False, True, True, True]


def test_wrappers_of_closed_levels_come_off() -> None:
    x = torch.ones(2)
    with functorch.grad_level() as outer:
        once = functorch.wrap(x, outer)
        with functorch.grad_level() as inner:
            twice = functorch.wrap(once, inner)
            assert functorch.level_of(twice) == inner
            assert functorch.unwrap_dead(twice) is twice
            assert functorch.inner(twice) is once
        assert functorch.unwrap_dead(twice) is once
    assert functorch.level_of(twice) == 0
    assert functorch.unwrap_dead(twice) is x


def test_a_tensor_becomes_a_batch_like_another() -> None:
    def member(x: Tensor) -> Tensor:
        assert functorch.is_batch(x)
        return functorch.batch_like(functorch.inner(x) + 1, x)

    x = torch.arange(6.0).view(2, 3)
    assert torch.equal(torch.func.vmap(member, 1, 1)(x), x + 1)


def test_a_tensor_of_a_level_loses_the_graph_of_that_level_alone() -> None:
    x = torch.ones(2, requires_grad=True) * 2
    with functorch.grad_level() as level:
        y = functorch.differentiable(functorch.wrap(x, level)) ** 2
        bare = functorch.without_graph(y)
        assert y.requires_grad
        assert not bare.requires_grad
        assert functorch.unwrap(bare, level).requires_grad


def test_transforms_can_be_left_for_a_while() -> None:
    def look(x: Tensor) -> Tensor:
        with functorch.outside():
            assert not functorch.active()
            assert torch.ones(2).exp().shape == (2,)
        assert functorch.active()
        return x

    torch.func.vmap(torch.func.grad(lambda x: look(x).sum()))(torch.ones(2, 2))


def test_modes_are_listed_from_the_innermost() -> None:
    class Mode(TorchFunctionMode):
        pass

    with Mode() as outer, Mode() as inner:
        assert functorch.function_modes() == [inner, outer]
    assert functorch.function_modes() == []


def test_forward_mode_is_seen_and_loads_without_a_warning() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append((functorch.in_forward_mode(), functorch.has_tangent(x)))
        return x.exp()

    x = torch.zeros(2)
    look(x)
    functorch.jvp(look, (x,), (x + 1,))
    with forward_ad.dual_level():
        look(x)
        dual = look(forward_ad.make_dual(x, x + 1))
        assert functorch.has_tangent(dual)
        with functorch.forward_mode(False):
            assert not functorch.has_tangent(forward_ad.make_dual(x, x + 1).exp())
    torch.func.vmap(look)(x)
    assert seen == [(False, False), (True, True), (True, False), (True, True), (True, False)]


def test_a_call_can_wait_for_the_end_of_a_backward_pass() -> None:
    done: list[str] = []

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            autograd.after_backward(lambda: done.append("end"))
            done.append("node")
            return g

    Node.apply(torch.ones(1, requires_grad=True)).sum().backward()
    autograd.after_backward(lambda: done.append("never"))
    assert done == ["node", "end"]


def test_each_backward_pass_has_a_number_and_outside_there_is_none() -> None:
    numbers: list[int | None] = []

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            numbers.append(autograd.backward_pass())
            return g

    y = Node.apply(torch.ones(1, requires_grad=True)).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert autograd.backward_pass() is None
    assert None not in numbers
    assert len(set(numbers)) == 2


def test_tensors_of_an_operation_are_found_and_replaced() -> None:
    x, y = torch.ones(1), torch.zeros(1)
    args = ((x, [y, 2]), {"out": x, "dim": 0})
    assert [t is x for t in pytree.tensors_in(args)] == [True, False, True]
    assert pytree.map_tensors(lambda t: y, args) == ((y, [y, 2]), {"out": y, "dim": 0})


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
        handle = functorch.differentiable(functorch.wrap(x, level))
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
        functorch.differentiable(functorch.wrap(x, level))
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


def test_the_vmaps_around_a_call_say_what_they_make_of_randomness() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append((functorch.vmaps(), functorch.vmaps(1)))
        return x.sum()

    def inner(x: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(look), randomness="same")(x)

    look(torch.ones(2))
    torch.func.vmap(inner, randomness="different")(torch.ones(2, 3))
    assert seen == [([], []), (["different", "same"], ["same"])]


def test_an_operation_of_aten_says_whether_it_draws() -> None:
    aten = torch.ops.aten
    drawing = (aten.bernoulli_.float, aten.rand, aten.multinomial, aten.scaled_dot_product_attention)
    assert all(map(dispatch.may_draw, drawing))
    assert not any(map(dispatch.may_draw, (aten.add.Tensor, aten.sum, aten._fused_sdp_choice)))


def test_a_dispatch_mode_sees_operations_with_their_arguments() -> None:
    seen = []

    class See(dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((func, dispatch.arguments(func, args, kwargs or {})))
            return func(*args, **(kwargs or {}))

    x = torch.ones(3)
    with See():
        torch.dropout(x, 0.25, True)
    given = {func.__name__: arguments for func, arguments in seen}["bernoulli_.float"]
    assert (given["p"], given["generator"]) == (0.75, None)


def test_a_batch_is_seen_from_outside_with_its_axes_in_front() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append((levels.outside(2 * x, 0), levels.outside(x, functorch.level()) is x))
        return x

    x = torch.arange(24.0).reshape(2, 3, 4)
    torch.func.vmap(torch.func.vmap(look, in_dims=1), in_dims=1)(x)
    ((outside, same),) = seen
    assert torch.equal(outside, 2 * x.permute(1, 2, 0))
    assert same


def test_loops_and_branches_are_recorded_as_operations() -> None:
    seen = []

    def f(carry: Tensor, xs: Tensor, w: Tensor) -> list[Tensor]:
        seen.append(higher_order.recording())
        with higher_order.unrecorded():
            seen.append(higher_order.recording())
            body, found = higher_order.record(lambda c, x: [c * w + x, 2 * x], [carry + 0, xs[0] + 0])
        seen.append(found[0] is w)
        higher_order.lift(body, found)
        last, doubled = higher_order.scan(body, [carry], [xs], found)
        yes, _ = higher_order.record(lambda x: [x.sin(), x], [last + 0])
        higher_order.keep(yes, 1)
        no, _ = higher_order.record(lambda x: [x.cos()], [last + 0])
        return [*higher_order.cond(last.sum() > 0, yes, no, [last]), doubled]

    args = [torch.ones(2), torch.ones(3, 2), torch.tensor(2.0)]
    graph = make_fx(f, tracing_mode="fake")(*args)
    names = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
    assert (names.count("scan"), names.count("cond")) == (1, 1)
    assert seen == [True, False, True]
    chosen, doubled = graph(*args)
    assert torch.equal(chosen, torch.full((2,), 15.0).sin())
    assert torch.equal(doubled, torch.full((3, 2), 2.0))


def test_a_graph_says_whether_it_draws() -> None:
    for f, draws in ((torch.nn.functional.dropout, True), (torch.sin, False)):
        graph, _ = higher_order.record(lambda x: [f(x)], [torch.ones(2)])
        assert higher_order.draws(graph) is draws


def test_a_tensor_without_a_value_is_none_to_branch_on() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(higher_order.has_value(x))
        return x

    x = torch.ones(2)
    look(x)
    torch.func.grad(lambda x: look(x.sum()))(x)
    torch.func.vmap(look)(x)
    make_fx(look, tracing_mode="fake")(x)
    look(torch.ones((), device="meta"))
    assert seen == [True, True, False, False, False]
