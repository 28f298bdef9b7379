"""`pullback` gives the value and a function that transposes the derivative, on trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outermost(compute: Callable[[], Any]) -> Any:
    return compute()


def nested(compute: Callable[[], Any]) -> Any:
    return fl.withgradient(lambda s: (s * 1.0, compute()), torch.tensor(2.0))[0][1]


def under_vmap(compute: Callable[[], Any]) -> Any:
    return torch.func.vmap(lambda _: compute(), out_dims=None)(torch.zeros(2))


def under_grad(compute: Callable[[], Any]) -> Any:
    return torch.func.grad_and_value(lambda s: (s * 1.0, compute()), has_aux=True)(torch.tensor(2.0))[1][1]


def under_jvp(compute: Callable[[], Any]) -> Any:
    return fl.pushforward(lambda s: (s * 1.0, compute()), torch.tensor(2.0), v=1.0)[0][1]


PLACES = [outermost, nested, under_vmap, under_grad, under_jvp]


@pytest.mark.parametrize("place", PLACES)
def test_back_is_the_jacobian_transposed_times_the_cotangent(place: Callable[..., Any]) -> None:
    w, x, c = randn(3, 4), randn(4, seed=1), randn(3, seed=2)
    value, grads = place(
        lambda: (lambda pair: (pair[0], pair[1](c)))(fl.pullback(lambda x: (w @ x).sin(), x))
    )
    assert_close(value, (w @ x).sin())
    assert_close(grads, w.T @ ((w @ x).cos() * c))


@pytest.mark.parametrize("place", PLACES)
def test_back_gives_what_gradient_gives(place: Callable[..., Any]) -> None:
    w = torch.ones(2)
    model = {"w": w, "tied": w, "unused": torch.ones(3), "zero": torch.ones(2), "name": "n"}

    def compute() -> Any:
        _, back = fl.pullback(lambda m: m["w"] + 3 * m["tied"] + 0 * m["zero"], model)
        grads = back(torch.ones(2))
        assert grads["unused"] is None
        assert grads["name"] is None
        assert (grads["w"] is None) != (grads["tied"] is None)
        return grads["tied"] if grads["w"] is None else grads["w"], grads["zero"]

    total, zero = place(compute)
    assert torch.equal(total, torch.full((2,), 4.0))
    assert torch.equal(zero, torch.zeros(2))


def test_the_output_is_any_tree_with_constants() -> None:
    f = lambda x: {"y": (x, x**2), "name": "f", "count": torch.tensor(2), "nothing": None}  # noqa: E731
    value, back = fl.pullback(f, torch.tensor([1.0, 2.0]))
    assert value["name"] == "f"
    assert value["nothing"] is None
    ones = fl.fmap(torch.ones_like, value)
    assert torch.equal(back(ones), torch.tensor([3.0, 5.0]))


@pytest.mark.parametrize(
    ("cotangent", "expected"),
    [
        ((torch.ones(2), None), [1.0, 1.0]),
        ((None, {"a": 2.0, "b": None}), [2.0, 2.0]),
        ((None, {"a": 0, "b": torch.ones(2)}), [2.0, 4.0]),
        ((torch.ones(2), {"a": None, "b": torch.ones(2)}), [3.0, 5.0]),
    ],
)
def test_none_stands_for_any_part_that_is_not_used(cotangent: Any, expected: list[float]) -> None:
    _, back = fl.pullback(lambda x: (x, {"a": x.sum(), "b": x**2}), torch.tensor([1.0, 2.0]))
    assert back(cotangent).tolist() == expected


def test_none_alone_reaches_nothing() -> None:
    _, back = fl.pullback(lambda m: (m["w"], m["w"]), {"w": torch.ones(2)})
    assert back(None) == {"w": None}
    assert back((None, None)) == {"w": None}


def test_cotangents_of_one_tensor_at_two_places_add_up() -> None:
    def twice(x: Tensor) -> Any:
        y = x**2
        return y, y

    value, back = fl.pullback(twice, torch.ones(2))
    assert value[0] is value[1]
    assert torch.equal(back((torch.ones(2), torch.ones(2))), torch.full((2,), 4.0))
    assert torch.equal(back((torch.ones(2), None)), torch.full((2,), 2.0))


def test_an_argument_may_be_returned_as_it_is() -> None:
    x = torch.ones(2)
    value, back = fl.pullback(lambda x: x, x)
    assert torch.equal(value, x)
    assert torch.equal(back(torch.full((2,), 3.0)), torch.full((2,), 3.0))


def test_several_arguments_get_a_tuple() -> None:
    _, back = fl.pullback(lambda x, y, z: x * y * z, 2.0, 3.0, torch.tensor(5.0), argnums=(0, -1))
    assert back(1.0) == (15.0, torch.tensor(6.0))
    assert type(back(1.0)[0]) is float


def test_a_float_gets_a_tensor_inside_another_transform() -> None:
    total = lambda s: fl.pullback(lambda x: x**3 * s, 2.0)[1](s)  # noqa: E731
    assert fl.gradient(total, torch.tensor(3.0, dtype=torch.float64)) == 2 * 12 * 3


def test_back_may_be_called_several_times() -> None:
    _, back = fl.pullback(torch.exp, torch.zeros(2))
    assert torch.equal(back(torch.ones(2)), back(torch.ones(2)))


def test_outermost_nothing_carries_a_graph() -> None:
    value, back = fl.pullback(torch.exp, torch.zeros(2, requires_grad=True))
    assert not value.requires_grad
    assert not back(torch.ones(2)).requires_grad


def test_back_is_differentiable_by_its_cotangent() -> None:
    x = randn(3)
    _, back = fl.pullback(torch.sin, x)
    assert_close(fl.gradient(lambda c: back(c).pow(3).sum(), torch.ones_like(x)), 3 * x.cos() ** 3)
    assert not fl.gradient(lambda c: back(c).sum(), x).requires_grad
    assert_close(fl.vmap(back)(torch.eye(3, dtype=x.dtype)), torch.diag(x.cos()))
    assert not fl.vmap(back)(torch.eye(3, dtype=x.dtype)).requires_grad


def test_two_pullbacks_are_a_pushforward() -> None:
    x, v = randn(3), randn(3, seed=1)
    value, back = fl.pullback(torch.sin, x)
    _, again = fl.pullback(back, torch.zeros_like(value))
    assert_close(again(v), x.cos() * v)


def test_a_value_is_differentiable_inside_a_gradient() -> None:
    def total(x: Tensor) -> Tensor:
        value, back = fl.pullback(torch.sin, x)
        return (value * back(value)).sum()

    x = randn(3)
    expected = torch.autograd.functional.jacobian(lambda x: (x.sin() ** 2 * x.cos()).sum(), x)
    assert_close(fl.gradient(total, x), expected)


def test_a_tensor_closed_over_is_constant() -> None:
    x = torch.tensor(3.0)
    assert fl.pullback(lambda y: x * y, x)[1](1.0) == 3


def test_buffers_that_moved_come_back_as_assigned() -> None:
    norm, x = fl.BatchNorm(2), torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    value, back = fl.pullback(lambda m: m(x), norm)
    grads, expected = back(torch.ones_like(value)), fl.gradient(lambda m: m(x).sum(), norm)
    assert torch.equal(grads.running_mean.value, expected.running_mean.value)
    assert torch.equal(grads.weight, expected.weight)
    moved, _ = fl.update(fl.setup(fl.Descent(0.1), norm), norm, grads)
    assert_close(moved.running_mean, torch.tensor([0.2, 0.4]))


def test_a_model_is_in_train_mode_while_it_runs() -> None:
    seen = []
    look = fl.Chain(fl.Dense(1, 1), lambda x: (seen.append(fl.training()), x)[1])
    fl.pullback(lambda m, x: m(x), look, torch.ones(1, 1))
    fl.pullback(lambda x: look(x), torch.ones(1, 1))
    assert seen == [True, False]
    assert not fl.training()


def test_a_key_decides_what_is_drawn() -> None:
    run = lambda key: fl.pullback(lambda x: x * fl.random.uniform(x.shape), torch.ones(5), key=key)[0]  # noqa: E731
    assert torch.equal(run(fl.Key(1)), run(fl.Key(1)))
    assert not torch.equal(run(fl.Key(1)), run(fl.Key(2)))


def test_it_works_under_no_grad() -> None:
    with torch.no_grad():
        _, back = fl.pullback(torch.exp, torch.zeros(2))
        assert torch.equal(back(torch.ones(2)), torch.ones(2))


def test_complex_numbers_follow_torch() -> None:
    x = torch.complex(randn(3), randn(3, seed=1))
    c = torch.complex(randn(3, seed=2), randn(3, seed=3))
    theirs = x.clone().requires_grad_()
    (theirs**2).backward(c)
    assert_close(fl.pullback(lambda x: x**2, x)[1](c), theirs.grad)


# Errors


@pytest.mark.parametrize(
    ("cotangent", "error", "message"),
    [
        (torch.ones(2), ValueError, "differ in structure: at the root, the cotangent has a leaf"),
        ({"y": torch.ones(3), "s": None}, ValueError, r"\['y'\] has the shape \(3,\), the output \(2,\)"),
        ({"y": torch.ones(2)}, ValueError, "at the root, the cotangent lacks 's'"),
        ({"y": None, "z": None}, ValueError, "at the root, the cotangent lacks 's'"),
        ({"y": 1.0, "s": None}, TypeError, r"\['y'\] is 1\.0, and the output is a tensor of shape \(2,\)"),
        (
            {"y": torch.ones(2).double(), "s": None},
            ValueError,
            r"of torch\.float64 on cpu, .* write c\.to\(y\)",
        ),
    ],
)
def test_a_cotangent_that_does_not_fit_is_an_error(cotangent: Any, error: type, message: str) -> None:
    _, back = fl.pullback(lambda x: {"y": x * 2, "s": x.sum()}, torch.ones(2))
    with pytest.raises(error, match=message):
        back(cotangent)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (1.5, r"only float: did you call \.item\(\)"),
        (None, "only NoneType; did you forget to return"),
        ((torch.arange(2), "name"), r"returned only str, torch\.int64"),
        ((), "returned nothing"),
    ],
)
def test_an_output_without_a_floating_tensor_is_an_error(returned: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"pullback needs a function that returns a floating .*{message}"):
        fl.pullback(lambda x: returned, torch.ones(2))


def test_what_is_no_function_is_an_error_that_shows_the_call() -> None:
    with pytest.raises(TypeError, match=r"write pullback\(f, model, x, y\)"):
        fl.pullback(torch.ones(1), torch.ones(1))  # type: ignore[arg-type]


def test_arguments_are_checked_as_by_gradient() -> None:
    with pytest.raises(ValueError, match="no parameter in argument 0"):
        fl.pullback(lambda x: x, torch.arange(2))
    with pytest.raises(TypeError, match=r"write 2\.0"):
        fl.pullback(lambda x: x, 2)
    with pytest.raises(ValueError, match="does not name different ones of the 1 arguments"):
        fl.pullback(lambda x: x, 2.0, argnums=1)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="pullback can't work under"):
        fl.pullback(lambda x: x, 2.0)


def test_a_parameter_changed_in_place_is_an_error_with_its_path() -> None:
    with pytest.raises(ValueError, match=r"\['w'\] of argument 0 was changed in place"):
        fl.pullback(lambda m: m["w"].add_(1), {"w": torch.ones(2)})


def test_back_called_after_the_gradient_around_it_is_an_error_that_says_so() -> None:
    left = []

    def total(x: Tensor) -> Tensor:
        value, back = fl.pullback(torch.exp, x)
        left.append(back)
        return back(value).sum()

    fl.gradient(total, torch.ones(2))
    with pytest.raises(
        RuntimeError, match="after the transform that surrounded pullback had come to its end"
    ):
        left[0](torch.ones(2))
