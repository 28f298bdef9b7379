"""`jit`: what may be returned, what is closed over, and what `lower` shows."""

from dataclasses import dataclass

import pytest
import torch

import fluxlike as fl


def test_constants_come_back_as_they_are():
    marker = object()
    f = fl.jit(lambda x: (None, "a", 3, 2.5, True, torch.relu, marker, {}, [], ()))
    for _ in range(2):
        assert f(torch.ones(1)) == (None, "a", 3, 2.5, True, torch.relu, marker, {}, [], ())


def test_no_tensor_at_all():
    assert fl.jit(lambda: 3)() == 3
    assert fl.jit(lambda x: None)(torch.ones(1)) is None
    assert fl.jit(lambda: ())() == ()


def test_tensors_of_no_argument():
    assert fl.jit(lambda: torch.ones(2))().tolist() == [1, 1]
    assert fl.jit(lambda: torch.tensor([1.0, 2.0]))().tolist() == [1, 2]


def test_a_tensor_made_inside_is_another_one_at_each_call():
    f = fl.jit(lambda: (torch.tensor([1.0, 2.0]), torch.zeros(2)))
    for _ in range(2):
        literal, zeros = f()
        assert literal.tolist() == [1, 2]
        assert zeros.tolist() == [0, 0]
        literal += 1
        zeros += 1


def test_the_same_tensor_at_two_places_is_the_same_object():
    def f(x):
        y = x + 1
        return {"a": y, "b": [y], "c": y * 1}

    out = fl.jit(f)(torch.ones(2))
    assert out["a"] is out["b"][0]
    assert out["a"] is not out["c"]


def test_an_input_that_is_handed_on_is_the_same_object():
    model = fl.Chain(fl.Dense(2, 2), fl.BatchNorm(2))
    x = torch.ones(2)
    p = torch.nn.Parameter(torch.ones(2))
    f = fl.jit(lambda m, x, p: (m, [x], p, x + 1))
    for _ in range(2):
        out, [same], parameter, _ = f(model, x, p)
        assert out is not model
        assert out.layers[0].weight is model.layers[0].weight
        assert same is x
        assert parameter is p


def test_the_handed_on_tensor_is_that_of_the_call_not_of_the_trace():
    f = fl.jit(lambda x: x)
    first, second = torch.ones(2), torch.zeros(2)
    assert f(first) is first
    assert f(second) is second


def test_results_share_no_memory_with_arguments_or_each_other():
    f = fl.jit(
        lambda x, y: (
            x[0],
            x.T,
            x.view(-1),
            *x.chunk(2),
            x.detach(),
            y + 1,
            y + 1,
            (y + 1).view(-1),
            x.expand(2, 2, 2),
        )
    )
    x, y = torch.ones(2, 2), torch.ones(2)
    out = f(x, y)
    spans = [t.untyped_storage().data_ptr() for t in (x, y, *out)]
    assert len(set(spans)) == len(spans)


def test_strides_may_differ_but_shapes_and_values_do_not():
    def f(x):
        return (x.T, x[::2], x.permute(1, 0) * 2, x.unsqueeze(0).expand(3, 4, 2))

    x = torch.arange(8.0).view(4, 2)
    for found, expected in zip(fl.jit(f)(x), f(x), strict=True):
        assert torch.equal(found, expected)


@fl.functor
@dataclass(frozen=True)
class Result:
    loss: torch.Tensor
    name: str


class Sub(Result):
    pass


def test_objects_keep_their_class():
    out = fl.jit(lambda x: (Result(x + 1, "a"), Sub(x, "b")))(torch.ones(1))
    assert type(out[0]) is Result
    assert out[0].loss.tolist() == [2]
    assert type(out[1]) is Sub
    assert out[1].name == "b"


def test_gradients_with_assigned_and_none_come_back():
    norm = fl.BatchNorm(2)
    grads = fl.jit(lambda m, x: fl.gradient(lambda m: m(x).square().sum(), m))(norm, torch.rand(3, 2))
    assert isinstance(grads.running_mean, fl.Assigned)
    assert type(grads) is fl.BatchNorm
    assert torch.is_tensor(grads.weight)


def test_an_object_that_is_no_tree_is_refused():
    class Holder:
        def __init__(self, w):
            self.w = w

    with pytest.raises(TypeError, match="Holder, which is not registered"):
        fl.jit(lambda x: Holder(x + 1))(torch.ones(1))


def test_a_function_that_holds_what_was_computed_is_refused():
    def f(x):
        y = x + 1
        return {"later": lambda: y}

    with pytest.raises(
        TypeError, match=r"\['later'\].*closes over tensors computed inside; return the tensors"
    ):
        fl.jit(f)(torch.ones(1))


def test_a_function_that_holds_nothing_of_it_comes_back():
    shift = torch.ones(1)

    def plus(x):
        return x + shift

    assert fl.jit(lambda x: (plus, x + 1))(torch.ones(1))[0] is plus


# What is closed over


def test_what_is_written_to_a_captured_tensor_is_seen():
    shift = torch.ones(2)
    f = fl.jit(lambda x: x + shift)
    assert f(torch.zeros(2)).tolist() == [1, 1]
    shift += 1
    assert f(torch.zeros(2)).tolist() == [2, 2]
    assert f.cache_info().traces == 1


def test_another_tensor_under_the_same_name_is_not_seen():
    shift = torch.ones(2)
    f = fl.jit(lambda x: x + shift)
    f(torch.zeros(2))
    shift = torch.zeros(2)
    assert f(torch.zeros(2)).tolist() == [1, 1]


@pytest.mark.parametrize(
    "new", [torch.ones(2, dtype=torch.float64), torch.ones(3), torch.ones(2, 2), torch.ones(4)[::2]]
)
def test_captured_memory_that_was_exchanged_is_another_trace(new):
    shift = torch.zeros(2)
    f = fl.jit(lambda x: x + shift)
    f(torch.zeros(1))
    shift.data = new
    for _ in range(2):
        out = f(torch.zeros(1))
        assert torch.equal(out, torch.zeros(1) + new)
    assert f.cache_info().traces == 2


def test_a_torch_module_that_is_closed_over():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    f = fl.jit(lambda x: module(x))
    x = torch.randn(5, 3)
    assert torch.allclose(f(x), module(x), atol=1e-6)
    assert not f(x).requires_grad
    with torch.no_grad():
        module[0].weight.mul_(2)
    assert torch.allclose(f(x), module(x), atol=1e-6)
    assert f.cache_info().traces == 1
    module.double()
    assert torch.allclose(f(x.double()), module(x.double()))


def test_a_captured_tensor_that_is_used_twice_is_one():
    w = torch.full((2,), 3.0)
    lowered = fl.jit(lambda x: (x * w).sum() + w.sum()).lower(torch.ones(2))
    assert [c is w for c in lowered.captured] == [True]
    assert fl.jit(lambda x: (x * w).sum() + w.sum())(torch.ones(2)).item() == 12


def test_a_captured_tensor_that_is_returned_is_itself():
    w = torch.ones(2)
    out, shifted = fl.jit(lambda x: (w, x + w))(torch.ones(2))
    assert out is w
    assert shifted.tolist() == [2, 2]


def test_a_captured_tensor_with_a_graph_keeps_it():
    w = torch.ones(2, requires_grad=True)
    doubled = w * 2
    f = fl.jit(lambda x: (x * doubled).sum())
    for _ in range(2):
        (grad,) = torch.autograd.grad(f(torch.full((2,), 3.0)), w, retain_graph=True)
        assert grad.tolist() == [6, 6]
    with torch.no_grad():
        assert not f(torch.ones(2)).requires_grad


# lower


def test_lower_shows_the_graph_and_what_is_captured():
    shift = torch.ones(3)
    f = fl.jit(lambda x: x.sin() + shift)
    lowered = f.lower(torch.zeros(3))
    text = str(lowered)
    assert "torch.ops.aten.sin" in text
    assert "torch.ops.aten.add" in text
    assert "captured_0: float32[3] on cpu, closed over" in text
    assert lowered.captured[0] is shift
    assert f.cache_info() == (0, 0)


def test_numbers_in_the_function_are_not_captured():
    def f(x):
        y = x.clone()
        y[0] = 5
        return y * torch.tensor(2.0) + torch.tensor([1.0])

    lowered = fl.jit(f).lower(torch.ones(3))
    assert lowered.captured == []
    assert fl.jit(f)(torch.ones(3)).tolist() == [11, 3, 3]


def test_lower_shows_a_whole_step():
    model = fl.Chain(fl.Dense(2, 3, fl.tanh), fl.Dense(3, 1))
    state = fl.setup(fl.Momentum(), model)

    def step(model, state, x):
        grads = fl.gradient(lambda m: m(x).square().sum(), model)
        return fl.update(state, model, grads)

    lowered = fl.jit(step, donate=(0, 1)).lower(model, state, torch.ones(4, 2))
    assert "tanh_backward" in str(lowered)
    assert lowered.captured == []
    assert model.layers[0].weight.sum().isfinite()  # nothing was donated
