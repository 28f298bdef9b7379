"""Promises of gradient that readers of the code asked for."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fluxlike as fl


def test_two_parameters_never_share_one_gradient_tensor():
    model = {"a": torch.ones(2), "b": torch.zeros(2)}
    grads = fl.gradient(lambda m: (m["a"] + m["b"]).sum(), model)
    assert grads["a"] is not grads["b"]
    assert fl.tree.norm(grads).item() == pytest.approx(2)


def test_a_checkpoint_of_torch_computes_again_in_train_mode_and_assigns_once():
    torch.manual_seed(0)
    model = fl.Chain(fl.Dense(3, 4, fl.tanh), fl.BatchNorm(4), fl.Dropout(0.5))
    x = torch.randn(8, 3)

    def through_checkpoint(m, x):
        return checkpoint(m, x, use_reentrant=False).square().sum()

    torch.manual_seed(1)
    found = fl.gradient(through_checkpoint, model, x)
    torch.manual_seed(1)
    wanted = fl.gradient(lambda m, x: m(x).square().sum(), model, x)
    assert fl.tree.allclose(found, wanted, rtol=0, atol=0)


@fl.functor(buffers=("mean",))
class Centre:
    def __init__(self):
        self.mean = torch.zeros(2)
        self.weight = torch.ones(2)


class Setting(Centre):
    def __call__(self, x):
        self.mean = x.mean(0)
        return x * self.weight


class Caching(Centre):
    def __call__(self, x):
        self.hidden = x * self.weight
        return self.hidden


@pytest.mark.parametrize(("layer", "path"), [(Setting(), r"\[0\]\.mean"), (Caching(), r"\[0\]\.hidden")])
def test_an_attribute_that_the_loss_sets_is_an_error_that_names_it(layer, path):
    with pytest.raises(ValueError, match=path + r" of argument 0 was set .* fluxlike.assign"):
        fl.gradient(lambda m, x: m[0](x).sum(), [layer], torch.ones(3, 2))


def test_a_batch_statistic_can_not_leave_a_vmap_inside_the_gradient():
    model = fl.BatchNorm(2)
    with pytest.raises(ValueError, match=r"a value for each example of a vmap .* LayerNorm or GroupNorm"):
        fl.gradient(lambda m, x: torch.vmap(lambda z: m(z).sum())(x).sum(), model, torch.randn(5, 4, 2))


def test_an_assignment_inside_a_nested_functorch_gradient_is_unwrapped():
    model = fl.BatchNorm(2)

    def penalty(m, x):
        return torch.func.grad(lambda x: m(x).square().sum())(x).square().sum()

    grads = fl.gradient(penalty, model, torch.randn(4, 2))
    moved, _ = fl.update(fl.setup(fl.Descent(0.1), model), model, grads)
    assert type(moved.running_mean) is torch.Tensor
    assert torch.isfinite(moved.running_mean + 1).all()


def test_an_assigned_value_shares_no_memory_with_the_input():
    @fl.functor(buffers=("last",))
    class Last:
        def __init__(self):
            self.last, self.weight = torch.zeros(2), torch.ones(2)

        def __call__(self, x):
            fl.assign(self.last, x)
            return x * self.weight

    x = torch.ones(2)
    grads = fl.gradient(lambda m, x: m(x).sum(), Last(), x)
    x.add_(5)
    assert grads.last.value.tolist() == [1, 1]


def test_a_cast_of_an_outer_model_inside_an_inner_gradient_keeps_its_buffers_origin():
    model, x = fl.BatchNorm(2), torch.randn(4, 2)

    def outer(m, x):
        inner = fl.gradient(lambda x: fl.f64(m)(x.double()).square().sum(), x)
        return (inner * m.weight).sum()

    grads = fl.gradient(outer, model, x)
    assert isinstance(grads.running_mean, fl.Assigned)
    assert grads.running_mean.value.dtype == torch.float32


@pytest.mark.slow
def test_many_casts_inside_a_gradient_are_not_mixed_up():
    model, x = fl.BatchNorm(2), torch.randn(4, 2)

    def loss(m, x):
        for _ in range(20):
            fl.f64(m)
            gc.collect()
        return fl.f64(m)(x.double()).square().sum()

    once = fl.gradient(lambda m, x: fl.f64(m)(x.double()).square().sum(), model, x)
    assert fl.tree.allclose(fl.gradient(loss, model, x), once)


def test_no_cache_keeps_a_model_alive():
    @fl.functor(children=("w",))
    class Layer:
        def __init__(self):
            self.w, self.table = torch.ones(1), torch.zeros(10)

    def train_once():
        model = Layer()
        grads = fl.gradient(lambda m: m.w.sum(), model)
        moved, _ = fl.update(fl.setup(fl.Descent(0.1), model), model, grads)
        assert moved.table is model.table
        return weakref.ref(model.table)

    alive = [train_once() for _ in range(5)]
    gc.collect()
    assert [ref() for ref in alive] == [None] * 5


def test_what_is_not_a_function_is_an_error_that_shows_the_call():
    model = {"w": torch.ones(2)}
    with pytest.raises(TypeError, match=r"found Tensor as the function; write gradient\(loss, model, x, y\)"):
        fl.gradient(model["w"].sum(), model)


def test_an_error_of_the_loss_does_not_run_it_twice():
    calls = []

    def loss(w):
        calls.append(1)
        raise RuntimeError("bad out=3")

    with pytest.raises(RuntimeError, match="bad out=3"):
        fl.gradient(loss, torch.ones(2))
    assert len(calls) == 1


@fl.functor(buffers=("mean",))
class Weighed:
    def __init__(self, weight, mean):
        self.weight, self.mean = weight, mean


def test_an_outer_gradient_reaches_what_an_inner_argument_holds_as_a_buffer():
    def slope(t):
        inner = Weighed(torch.tensor(2.0), t * t)
        return fl.gradient(lambda m: m.weight.square() * m.mean, inner).weight  # 2 · 2 · t²

    assert fl.gradient(slope, torch.tensor(3.0)) == 24.0


def test_a_parameter_that_wrt_leaves_out_brings_no_graph_of_the_users_own_in():
    leaf = torch.ones(2, requires_grad=True)
    model, seen = {"a": torch.ones(2), "b": 3 * leaf}, []

    def loss(m):
        seen.append(m["b"].requires_grad)
        return (m["a"] * m["b"]).sum()

    assert fl.gradient(loss, model, wrt="['a']")["a"].tolist() == [3, 3]
    assert seen == [False]


def test_an_inner_gradient_at_the_outer_argument_itself_sees_other_uses_as_constants():
    def slope(x):
        return fl.gradient(lambda y: (x * y).sum(), x).sum()  # the sum of x

    assert fl.gradient(slope, torch.ones(2)).tolist() == [1, 1]
