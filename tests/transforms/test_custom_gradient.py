"""`custom_gradient` gives the backward that was written, under every transform; `stop_gradient` stops all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl
from tests.transforms.compositions import COMPOSITIONS, UNTRACEABLE, slope, traced


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual: Any, expected: Any) -> None:
    assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@fl.custom_gradient
def sign(x: Tensor) -> Any:
    """The straight-through sign of XNOR-networks."""
    return x.sign(), lambda g: g * (x.abs() < 1)


@fl.custom_gradient
def log1pexp(x: Tensor) -> Any:
    e = x.exp()
    return torch.log1p(e), lambda g: g * (1 - 1 / (1 + e))


def plain_log1pexp(x: Tensor) -> Tensor:
    return torch.log1p(x.exp())


# The backward that is written


def test_the_straight_through_sign_passes_the_gradient_where_it_may() -> None:
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    c = torch.arange(1.0, 8.0)
    value, grads = fl.withgradient(lambda x: (c * sign(x)).sum(), x)
    assert value == (c * x.sign()).sum()
    assert grads.tolist() == [0, 0, 3, 4, 5, 0, 0]


def test_a_network_of_signs_learns_through_them() -> None:
    model = fl.Chain(fl.Dense(3, 8), sign, fl.Dense(8, 1))
    grads = fl.gradient(lambda m: m(torch.randn(5, 3)).sum(), model)
    assert grads.layers[0].weight.abs().sum() > 0
    assert grads.layers[1] is None


def test_a_gradient_can_be_reversed() -> None:
    reverse = fl.custom_gradient(lambda x: (x, lambda g: -g))
    assert torch.equal(fl.gradient(lambda x: (3 * reverse(x)).sum(), torch.ones(2)), torch.full((2,), -3.0))


def test_a_gradient_can_be_clipped_on_its_way() -> None:
    clip = fl.custom_gradient(lambda x: (x, lambda g: g.clamp(-1, 1)))
    x = torch.tensor([0.1, 10.0])
    assert_close(fl.gradient(lambda x: clip(x).square().sum(), x), torch.tensor([0.2, 1.0]))


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_it_agrees_with_the_derivative_it_spells_out_under(name: str) -> None:
    x = randn(3)
    close(COMPOSITIONS[name](log1pexp, x), COMPOSITIONS[name](plain_log1pexp, x))


@pytest.mark.parametrize("name", [n for n in COMPOSITIONS if n not in UNTRACEABLE])
def test_it_agrees_in_a_trace_of(name: str) -> None:
    run, x, other = COMPOSITIONS[name], randn(3), randn(3, seed=1)
    close(traced(lambda x: run(log1pexp, x), x, other), run(plain_log1pexp, other))


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_false_derivative_is_followed_not_the_true_one_under(name: str) -> None:
    # The value is that of a constant to all gradients but the one that is written, that of tanh.
    false = fl.custom_gradient(lambda x: (x.sin(), lambda g: g * (1 - x.tanh() ** 2)))
    run, x = COMPOSITIONS[name], randn(3)
    if name in ("value", "vmap"):
        close(run(false, x), x.sin())
    else:
        by_surrogate = lambda x: x.tanh() + (x.sin() - x.tanh()).detach()  # noqa: E731
        close(run(false, x), run(by_surrogate, x))


def test_gradcheck_of_torch_agrees_in_every_mode() -> None:
    x = randn(4).requires_grad_()
    assert torch.autograd.gradcheck(log1pexp, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(log1pexp, x, check_fwd_over_rev=True, check_rev_over_rev=True)


# Trees


@fl.functor
class Scaled:
    def __init__(self) -> None:
        w = randn(3)
        self.scale, self.tied, self.unused, self.name = w, w, randn(2, seed=1), "scaled"


@fl.custom_gradient
def apply(model: Scaled, x: Tensor) -> Any:
    def back(g: dict[str, Any]) -> Any:
        by_scale, by_tied = (c.sum_to_size(model.scale.shape) for c in (g["y"] * x, g["y"]))
        places = fl.at(model, lambda m: (m.scale, m.tied, m.unused))
        return places.set((by_scale, by_tied, None)), g["y"] * model.scale

    return {"y": model.scale * x + model.tied, "count": torch.tensor(3), "kind": model.name}, back


def plain_apply(model: Scaled, x: Tensor) -> Tensor:
    return model.scale * x + model.tied


@pytest.mark.parametrize("around", [lambda f: f, fl.vmap], ids=["alone", "in vmap"])
def test_models_with_constants_ties_and_dead_ends_are_arguments(around: Callable[..., Any]) -> None:
    model, x = Scaled(), randn(5, 3, seed=2)

    def run(f: Callable[[Any, Tensor], Tensor]) -> Any:
        rows = lambda m: around(lambda x: f(m, x).square().sum()[None])(x).sum()  # noqa: E731
        return fl.gradient(rows, model)

    mine, theirs = run(lambda m, x: apply(m, x)["y"]), run(plain_apply)
    close(mine.scale, theirs.scale)
    assert mine.tied is None
    assert mine.unused is None


@fl.functor
class Gate:
    def __init__(self) -> None:
        self.weight = torch.tensor([2.0, 3.0])

    @fl.custom_gradient
    def __call__(self, x: Tensor) -> Any:
        by_self = lambda g: fl.at(self, lambda m: m.weight).set(g * x)  # noqa: E731
        return self.weight * x, lambda g: (by_self(g), -g)


def test_a_method_may_have_a_gradient_of_its_own() -> None:
    model = fl.Chain(Gate(), Gate())
    by_model, by_x = fl.gradient(lambda m, x: m(x).sum(), model, torch.ones(2), argnums=(0, 1))
    assert by_model.layers[1].weight.tolist() == [2, 3]
    assert by_model.layers[0].weight.tolist() == [-1, -1]
    assert by_x.tolist() == [1, 1]


def test_a_tree_comes_out_with_its_constants() -> None:
    out = fl.withgradient(lambda m: (apply(m, torch.ones(3))["y"].sum(), apply(m, torch.ones(3))), Scaled())[
        0
    ][1]
    assert out["kind"] == "scaled"
    assert out["count"] == 3


def test_an_output_that_is_not_used_has_a_zero_cotangent() -> None:
    seen: list[Any] = []

    @fl.custom_gradient
    def two(x: Tensor) -> Any:
        def back(g: Any) -> Tensor:
            seen.append(g)
            return g[0] + g[1]

        return (x + 1, x + 2, 7), back

    fl.gradient(lambda x: two(x)[0].sum(), torch.ones(2))
    assert torch.equal(seen[0][1], torch.zeros(2))
    assert seen[0][2] is None


def test_none_for_an_argument_leaves_it_unreached() -> None:
    f = fl.custom_gradient(lambda x, y: (x * y, lambda g: (g * y, None)))
    grads = fl.gradient(lambda x, y: f(x, y).sum(), torch.ones(2), torch.ones(2), argnums=(0, 1))
    assert torch.equal(grads[0], torch.ones(2))
    assert grads[1] is None


def test_a_number_is_a_gradient_of_a_scalar() -> None:
    f = fl.custom_gradient(lambda x: (x * 2, lambda g: 5))
    assert fl.gradient(f, 1.0) == 5.0


def test_it_needs_no_gradient_to_be_called() -> None:
    x = torch.tensor([0.5])
    assert not sign(x).requires_grad
    with torch.no_grad():
        assert not sign(x.clone().requires_grad_()).requires_grad
    assert sign.__name__ == "sign"


# Its scope


def test_outermost_the_function_runs_once() -> None:
    calls = []
    f = fl.custom_gradient(lambda x: (calls.append(1), (x.exp(), lambda g: g))[1])
    fl.gradient(lambda x: f(x).sum(), torch.ones(2))
    assert len(calls) == 1


@pytest.mark.parametrize("key", [None, fl.Key(0)])
def test_a_second_run_draws_what_the_first_drew(key: fl.Key | None) -> None:
    @fl.custom_gradient
    def noisy(x: Tensor) -> Any:
        noise = torch.rand(x.shape, dtype=x.dtype) if key is None else fl.random.uniform(x.shape)
        return x * noise, lambda g: g * noise * x

    x, drawn = randn(3), torch.zeros(3)

    def inner(x: Tensor) -> Tensor:
        nonlocal drawn
        _, grads = fl.withgradient(lambda x: (noisy(x).sum(), noisy(x)), x)
        return grads.sum()

    torch.manual_seed(0)
    _, grads = fl.withgradient(inner, x, key=key)
    torch.manual_seed(0)
    if key is None:
        expected = torch.rand(3, dtype=x.dtype)
    else:
        with fl.seeded(key):
            expected = fl.random.uniform((3,))
    close(grads, expected.to(grads))


def test_a_second_run_is_in_the_mode_of_the_first() -> None:
    seen = []

    @fl.custom_gradient
    def look(x: Tensor) -> Any:
        seen.append(fl.training())
        return x**3, lambda g: g * 3 * x**2

    with fl.mode("train"):
        _, back = fl.pullback(lambda x: slope(look)(x), torch.ones(2))
    back(torch.ones(2))
    assert len(seen) > 1
    assert all(seen)


def test_a_buffer_is_assigned_once() -> None:
    norm = fl.f64(fl.BatchNorm(3))
    scaled = fl.custom_gradient(lambda m, x: (m(x), lambda g: (None, g)))
    x = randn(4, 3)
    for loss in (lambda m: scaled(m, x).sum(), lambda m: slope(lambda x: scaled(m, x))(x).sum()):
        grads = fl.gradient(loss, norm)
        assert_close(grads.running_mean.value, 0.1 * x.mean(0))


def test_a_mapped_tensor_in_its_closure_is_followed() -> None:
    x, scale = randn(4, 3), randn(4, seed=1)

    def member(x: Tensor, s: Tensor) -> Tensor:
        f = fl.custom_gradient(lambda x: (x * s, lambda g: 2 * g * s))
        return f(x).square().sum()

    grads = fl.gradient(lambda x: fl.vmap(member)(x, scale).sum(), x)
    close(grads, 4 * x * scale[:, None] ** 2)


# Errors


def test_what_is_no_function_is_an_error() -> None:
    with pytest.raises(TypeError, match="custom_gradient takes a function, found a Tensor"):
        fl.custom_gradient(torch.ones(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("returned", [torch.ones(1), (torch.ones(1), 3), (torch.ones(1), len, 3)])
def test_a_function_without_a_backward_is_an_error_that_shows_one(returned: Any) -> None:
    f = fl.custom_gradient(lambda x: returned)
    with pytest.raises(TypeError, match=r"a function of the cotangent, such as x\.sign\(\), lambda g"):
        fl.gradient(lambda x: f(x).sum(), torch.ones(1))


@pytest.mark.parametrize("within", [lambda f: f, fl.vmap, lambda f: lambda x: fl.pushforward(f, x, v=x)[1]])
def test_closing_over_what_is_differentiated_is_an_error(within: Callable[..., Any]) -> None:
    def loss(w: Tensor) -> Tensor:
        f = fl.custom_gradient(lambda x: (x * w, lambda g: g))
        return within(f)(torch.ones(2)).sum()

    with pytest.raises(ValueError, match=r"closes over a tensor that is differentiated.*stop_gradient"):
        fl.gradient(loss, torch.tensor(2.0))


def test_closing_over_a_stopped_tensor_is_none() -> None:
    def loss(w: Tensor) -> Tensor:
        f = fl.custom_gradient(lambda x: (x * fl.stop_gradient(w), lambda g: g))
        return f(w * torch.ones(2)).sum()

    assert fl.gradient(loss, torch.tensor(2.0)) == 2


@pytest.mark.parametrize(
    ("back", "message"),
    [
        (lambda g: (g, None, None), "takes 2 arguments, so back returns a tuple of 2, .* found 3"),
        (lambda g: g, "so back returns a tuple of 2, .* found a Tensor"),
        (lambda g: (g.sum(), None), r"the gradient for \['w'\] of argument 0 has the shape \(\)"),
        (lambda g: ({"w": g[:1]}, None), r"\['w'\] of argument 0 has the shape \(1,\), the argument \(2,\)"),
        (
            lambda g: ({"w": 1.0}, None),
            r"the gradient for \['w'\] of argument 0 is 1\.0; give a tensor of shape",
        ),
        (
            lambda g: ({"v": g}, None),
            r"differ in structure: at the root, the gradient of argument 0 lacks 'w'",
        ),
        (lambda g: ({"w": g * 1j}, None), "complex.*take .real"),
    ],
)
def test_a_gradient_that_does_not_fit_is_an_error(back: Any, message: str) -> None:
    if "has the shape ()" in message.replace("\\", ""):
        back = lambda g: ({"w": g.sum()}, None)  # noqa: E731
    f = fl.custom_gradient(lambda m, x: (m["w"] * x, back))
    with pytest.raises((ValueError, TypeError), match=message):
        fl.gradient(lambda m: f(m, torch.ones(2)).sum(), {"w": torch.ones(2)})


# stop_gradient


@pytest.mark.parametrize("name", [n for n in COMPOSITIONS if n not in ("value", "vmap")])
def test_nothing_is_differentiated_through_stop_gradient_under(name: str) -> None:
    stopped = lambda x: x.sin() * fl.stop_gradient({"x": x})["x"]  # noqa: E731
    by_hand = lambda x: x.sin() * x.detach()  # noqa: E731
    run, x = COMPOSITIONS[name], randn(3)
    close(run(stopped, x), run(by_hand, x))


def test_stop_gradient_keeps_ties_constants_and_what_is_not_differentiated() -> None:
    w = torch.ones(2)
    tree = {"a": w, "b": w, "n": "name", "i": torch.arange(2)}
    assert fl.stop_gradient(tree)["a"] is w

    def loss(tree: Any) -> Tensor:
        stopped = fl.stop_gradient(tree)
        assert stopped["a"] is stopped["b"] is not tree["a"]
        assert stopped["n"] == "name"
        assert stopped["i"] is tree["i"]
        return (tree["a"] * stopped["b"]).sum()

    assert torch.equal(fl.gradient(loss, tree)["a"], torch.ones(2))


def test_the_statistics_of_a_stopped_layer_still_move() -> None:
    norm = fl.BatchNorm(2)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    moved = fl.gradient(lambda m: (fl.stop_gradient(m)(x) * m.weight).sum(), norm)
    assert_close(moved.running_mean.value, torch.tensor([0.2, 0.3]))
