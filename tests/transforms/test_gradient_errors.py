"""What `gradient` refuses, and how it says so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import fluxlike as fl

# Losses that are none


def loss_of(value: Any) -> Callable[[], Any]:
    return lambda: fl.gradient(lambda w: value(w), torch.tensor([1.0, 2.0]))


def test_a_loss_that_is_no_scalar_asks_whether_the_jacobian_was_meant() -> None:
    with pytest.raises(ValueError, match=r"scalar loss.*shape \(2,\).*\.sum\(\).*jacobian"):
        loss_of(lambda w: w * 2)()


def test_a_loss_of_one_entry_that_is_not_0d_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        loss_of(lambda w: w.sum(0, keepdim=True))()


def test_a_complex_loss_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"real loss.*complex64.*\.abs\(\) or \.real"):
        loss_of(lambda w: (w * 1j).sum())()


@pytest.mark.parametrize("convert", [lambda x: x.item(), float], ids=["item", "float"])
def test_a_python_float_asks_about_item(convert: Callable[[Tensor], float]) -> None:
    with pytest.raises(ValueError, match=r"Python float 3\.0: did you call \.item\(\)"):
        loss_of(lambda w: convert(w.sum().detach()))()


def test_none_asks_whether_the_return_was_forgotten() -> None:
    with pytest.raises(ValueError, match="None of NoneType; did you forget to return the loss"):
        loss_of(lambda w: None)()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_an_integer_loss_is_an_error(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"floating loss.*{dtype}"):
        loss_of(lambda w: w.detach().sum().to(dtype))()


class NoLoss(NamedTuple):
    logits: Tensor


@dataclass
class NoLossEither:
    logits: Tensor


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda w: (w, w.sum()), r"the first item returned is a tensor of shape \(2,\)"),
        (lambda w: {"loss": w}, r"the entry 'loss' is a tensor of shape \(2,\)"),
        (lambda w: {"logits": w}, r"dict without an entry 'loss': \['logits'\]"),
        (NoLoss, "NoLoss without a field 'loss'"),
        (NoLossEither, "NoLossEither without a field 'loss'"),
        (lambda w: (), r"the function returned \(\) of tuple"),
        (lambda w: "text", "the function returned 'text' of str"),
    ],
)
def test_a_value_without_a_loss_says_what_was_found(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_of(value)()


# Arguments that can't be differentiated


@pytest.mark.parametrize("f", [lambda m: m, torch.sum, functools.partial(fl.losses.mse, agg=None)])
@pytest.mark.parametrize("model", [fl.Dense(2, 2), {"w": torch.ones(2)}, torch.ones(2)])
def test_a_model_before_the_function_says_which_comes_first(model: Any, f: Any) -> None:
    for name in ("gradient", "per_example_gradient", "hessian", "diaghessian"):
        with pytest.raises(TypeError, match=rf"function first, .* write {name}\(loss, model, x, y\), not "):
            getattr(fl, name)(model, f, torch.ones(2), torch.ones(2))
    with pytest.raises(TypeError, match=r"write gradient\(loss, model, x, y\), not gradient\(model, loss"):
        fl.withgradient(model, f, torch.ones(2))
    for name in ("pullback", "jacobian"):
        with pytest.raises(TypeError, match=rf"write {name}\(f, model, x, y\), not {name}\(model, f"):
            getattr(fl, name)(model, f, torch.ones(2), argnums=(1, 0))
    for name in ("pushforward", "hvp"):
        with pytest.raises(TypeError, match=rf"{name} takes the function first"):
            getattr(fl, name)(model, f, torch.ones(2), v=model)


def test_a_function_among_the_arguments_that_is_not_differentiated_stays_one() -> None:
    model = fl.Dense(2, 2)
    pooled = fl.gradient(lambda m, f, x: f(m(x)), model, torch.sum, torch.ones(1, 2))
    assert torch.equal(pooled.bias, torch.ones(2))
    assert fl.gradient(fl.Chain(model, torch.sum), torch.ones(2)).shape == (2,)


def test_an_int_says_to_write_a_float() -> None:
    with pytest.raises(TypeError, match=r"argument 1 is the int 2, .* write 2\.0"):
        fl.gradient(lambda x, y: x * y, 1.0, 2, argnums=1)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (torch.tensor([1, 2]), "argument 0: a Tensor that holds int64 tensors"),
        ({"n": torch.tensor([1]), "s": "text"}, "argument 0: a dict that holds int64 tensors, str"),
        ([], "argument 0: a list that is empty"),
        (None, "argument 0: a NoneType that holds NoneType"),
    ],
)
def test_an_argument_without_a_parameter_says_what_it_holds(tree: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fl.gradient(lambda t: torch.tensor(0.0), tree)


def test_an_argument_that_holds_buffers_alone_says_so() -> None:
    with pytest.raises(ValueError, match=r"no parameter in argument 0.*buffers \(float32 tensors\)"):
        fl.gradient(lambda m: m.running_mean.sum(), fl.BatchNorm(2, affine=False))


def test_wrt_without_a_parameter_says_so() -> None:
    with pytest.raises(ValueError, match="no parameter in argument 0 at the places of wrt="):
        fl.gradient(lambda m: m["w"].sum(), {"w": torch.ones(1), "n": torch.tensor(1)}, wrt="['n']")


def test_a_function_without_arguments_is_an_error_that_shows_how_to_hand_the_model_in() -> None:
    model = fl.Dense(2, 1)
    with pytest.raises(ValueError, match=r"no argument to differentiate.*write gradient\(loss, model"):
        fl.gradient(lambda: model(torch.ones(1, 2)).sum())


def test_wrt_with_several_argnums_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"wrt= chooses places of one argument, but argnums=\(0, 1\)"):
        fl.gradient(lambda a, b: a * b, 1.0, 2.0, argnums=(0, 1), wrt=lambda m: m)


def test_wrt_that_is_no_place_names_the_path() -> None:
    with pytest.raises(KeyError, match=r"no place .*nowhere.* the root is a dict"):
        fl.gradient(lambda m: m["w"].sum(), {"w": torch.ones(1)}, wrt="['nowhere']")


class Unregistered:
    def __init__(self) -> None:
        self.weight = torch.ones(1)


def test_an_object_of_an_unregistered_class_is_named_with_its_path() -> None:
    with pytest.raises(TypeError, match=r"\['layer'\] is a Unregistered, .*\.weight.*fluxlike\.functor"):
        fl.gradient(lambda m: m["w"].sum(), {"w": torch.ones(1), "layer": Unregistered()})


# Inference mode


def test_inference_mode_is_an_error_that_says_so() -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch\.inference_mode.*torch\.no_grad"):
        fl.gradient(lambda w: w.sum(), torch.ones(2))


def test_a_parameter_made_in_inference_mode_is_named_with_its_path() -> None:
    with torch.inference_mode():
        made = torch.ones(2)
    model = {"a": torch.ones(2), "b": [made]}
    message = r"\['b'\]\[0\] of argument 0 was made under torch\.inference_mode.*fluxlike\.tree\.clone"
    with pytest.raises(ValueError, match=message):
        fl.gradient(lambda m: (m["a"] * m["b"][0]).sum(), model)


def test_a_buffer_made_in_inference_mode_is_named_with_its_path() -> None:
    model = fl.BatchNorm(2)
    with torch.inference_mode():
        model.running_var = torch.ones(2)
    with pytest.raises(ValueError, match=r"\.running_var of argument 0 was made under torch\.inference_mode"):
        fl.gradient(lambda m, x: m(x).sum(), model, torch.randn(3, 2))


def test_a_clone_of_a_model_made_in_inference_mode_can_be_differentiated() -> None:
    with torch.inference_mode():
        model = {"w": torch.ones(2)}
    grads = fl.gradient(lambda m: (m["w"] ** 2).sum(), fl.tree.clone(model))
    assert torch.equal(grads["w"], torch.full((2,), 2.0))


# Changes in place


def add_in_place(w: Tensor) -> None:
    w += 1


def multiply_in_place(w: Tensor) -> None:
    w.mul_(2)


def assign_an_index(w: Tensor) -> None:
    w[0] = 5.0


def write_as_out(w: Tensor) -> None:
    torch.add(w.detach(), 1, out=w)


def write_a_view(w: Tensor) -> None:
    w.view(-1)[1:].zero_()


WRITES = [add_in_place, multiply_in_place, assign_an_index, write_as_out, write_a_view]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "no_grad"])
def test_a_parameter_changed_in_place_is_named_with_its_path(
    write: Callable[[Tensor], None], recorded: bool
) -> None:
    model = {"other": torch.ones(3), "layers": [torch.ones(3)]}

    def loss(m: Any) -> Tensor:
        with torch.set_grad_enabled(recorded):
            write(m["layers"][0])
        return (m["other"] * m["layers"][0]).sum()

    with pytest.raises(ValueError, match=r"^\['layers'\]\[0\] of argument 0 was changed in place"):
        fl.gradient(loss, model)


def test_the_second_argument_is_named_where_it_is_changed() -> None:
    def loss(a: Tensor, b: Any) -> Tensor:
        b["w"].add_(1)
        return (a * b["w"]).sum()

    with pytest.raises(ValueError, match=r"\['w'\] of argument 1 was changed in place"):
        fl.gradient(loss, torch.ones(2), {"w": torch.ones(2)}, argnums=(0, 1))


def test_a_whole_argument_changed_in_place_is_named() -> None:
    def loss(w: Tensor) -> Tensor:
        w.mul_(2)
        return w.sum()

    with pytest.raises(ValueError, match="the whole of argument 0 was changed in place"):
        fl.gradient(loss, torch.ones(2))


def test_a_buffer_changed_in_place_is_named_and_assign_is_shown() -> None:
    @fl.functor(buffers=("seen",))
    class Counting:
        def __init__(self) -> None:
            self.weight, self.seen = torch.ones(2), torch.zeros(())

        def __call__(self) -> Tensor:
            self.seen.add_(1)
            return self.weight.sum()

    with pytest.raises(ValueError, match=r"\.seen of argument 0 was changed in place.*fluxlike\.assign"):
        fl.gradient(lambda m: m(), Counting())


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "no_grad"])
def test_a_change_in_place_inside_a_nested_gradient_is_named(recorded: bool) -> None:
    model = {"w": torch.ones(2)}

    def inner(m: Any) -> Tensor:
        with torch.set_grad_enabled(recorded):
            m["w"].mul_(2)
        return (m["w"] ** 2).sum()

    with pytest.raises(ValueError, match=r"\['w'\] of argument 0 was changed in place"):
        fl.gradient(lambda s: (s * fl.gradient(inner, model)["w"]).sum(), torch.tensor(1.0))


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "no_grad"])
@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad])
def test_a_change_in_place_inside_torch_func_is_named(transform: Any, recorded: bool) -> None:
    model = {"w": torch.ones(2)}

    def inner(m: Any, s: Tensor) -> Tensor:
        with torch.set_grad_enabled(recorded):
            m["w"].mul_(2)
        return (m["w"] ** 2).sum() * s

    outer = transform(lambda s: fl.gradient(inner, model, s)["w"].sum())
    with pytest.raises(ValueError, match=r"\['w'\] of argument 0 was changed in place"):
        outer(torch.tensor(1.0) if transform is torch.func.grad else torch.ones(3))


def test_a_change_in_place_of_what_was_computed_is_allowed() -> None:
    def loss(m: Any) -> Tensor:
        y = m["w"] * 2
        y += 1
        y[0] = 0.0
        return y.sum()

    assert torch.equal(fl.gradient(loss, {"w": torch.ones(2)})["w"], torch.tensor([0.0, 2.0]))


def test_an_error_of_the_function_itself_comes_through_unchanged() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fl.gradient(lambda w: (w @ torch.ones(5, 5)).sum(), torch.ones(2, 3))
