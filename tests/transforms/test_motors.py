"""The three motors give the same numbers, and compose with each other and with torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl

# torch's own forward mode compiles decompositions with torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual: Any, expected: Any) -> None:
    assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def mlp(seed: int = 0) -> dict[str, Tensor]:
    return {
        "w1": randn(4, 3, seed=seed),
        "b1": randn(4, seed=seed + 1),
        "w2": randn(2, 4, seed=seed + 2),
        "b2": randn(2, seed=seed + 3),
    }


def predict(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x @ p["w1"].T + p["b1"]) @ p["w2"].T + p["b2"]


def mse(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return ((predict(p, x) - y) ** 2).mean()


def by_hand(loss: Tensor, params: dict[str, Tensor], create_graph: bool = False) -> dict[str, Tensor]:
    grads = torch.autograd.grad(loss, list(params.values()), create_graph=create_graph)
    return dict(zip(params, grads, strict=True))


def leaves(p: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.clone().requires_grad_() for k, v in p.items()}


# The places that a gradient can be called in


def outermost(compute: Callable[[], Any]) -> Any:
    return compute()


def nested(compute: Callable[[], Any]) -> Any:
    return fl.withgradient(lambda s: (s * 1.0, compute()), torch.tensor(2.0))[0][1]


def nested_twice(compute: Callable[[], Any]) -> Any:
    return nested(lambda: nested(compute))


def under_vmap(compute: Callable[[], Any]) -> Any:
    return torch.func.vmap(lambda _: compute(), out_dims=None)(torch.zeros(2))


def under_grad(compute: Callable[[], Any]) -> Any:
    return torch.func.grad_and_value(lambda s: (s * 1.0, compute()), has_aux=True)(torch.tensor(2.0))[1][1]


def under_jvp(compute: Callable[[], Any]) -> Any:
    s = torch.tensor(2.0)
    return torch.func.jvp(lambda s: (s * 1.0, compute()), (s,), (s,), has_aux=True)[2]


def vmap_inside_gradient(compute: Callable[[], Any]) -> Any:
    return nested(lambda: under_vmap(compute))


def gradient_inside_vmap(compute: Callable[[], Any]) -> Any:
    return under_vmap(lambda: nested(compute))


PLACES = [
    outermost,
    nested,
    nested_twice,
    under_vmap,
    under_grad,
    under_jvp,
    vmap_inside_gradient,
    gradient_inside_vmap,
]


@pytest.mark.parametrize("place", PLACES)
def test_every_motor_gives_the_gradients_of_backward(place: Callable[..., Any]) -> None:
    model, x, y = mlp(), randn(5, 3, seed=8), randn(5, 2, seed=9)
    theirs = leaves(model)
    close(place(lambda: fl.gradient(mse, model, x, y)), by_hand(mse(theirs, x, y), theirs))


@pytest.mark.parametrize("place", PLACES)
def test_every_motor_totals_a_tied_parameter_at_its_first_place(place: Callable[..., Any]) -> None:
    w = torch.ones(2)

    def compute() -> Any:
        grads = fl.gradient(lambda m: (3 * m["x"]).sum() + (13 * m["z"]).sum(), {"x": w, "z": w})
        assert grads["z"] is None
        return grads["x"]

    assert torch.equal(place(compute), torch.full((2,), 16.0))


@pytest.mark.parametrize("place", PLACES)
def test_every_motor_keeps_none_apart_from_zero(place: Callable[..., Any]) -> None:
    def compute() -> Any:
        model = {"used": torch.ones(2), "unused": torch.ones(2), "zero": torch.ones(2), "name": "n"}
        grads = fl.gradient(lambda m: m["used"].sum() + (0 * m["zero"]).sum(), model)
        assert grads["unused"] is None
        assert grads["name"] is None
        return grads["zero"]

    assert torch.equal(place(compute), torch.zeros(2))


@pytest.mark.parametrize("place", PLACES)
def test_every_motor_gives_none_where_the_loss_reaches_nothing(place: Callable[..., Any]) -> None:
    def compute() -> Any:
        value, grads = fl.withgradient(lambda m: torch.tensor(7.0), {"w": torch.ones(2)})
        assert grads == {"w": None}
        return value

    assert torch.equal(place(compute), torch.tensor(7.0))


@pytest.mark.parametrize("place", PLACES)
def test_every_motor_differentiates_the_chosen_places_alone(place: Callable[..., Any]) -> None:
    def compute() -> Any:
        model = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
        grads = fl.gradient(lambda m: m["a"] ** 2 * m["b"], model, wrt="['a']")
        assert grads["b"] is None
        return grads["a"]

    assert torch.equal(place(compute), torch.tensor(12.0))


@pytest.mark.parametrize("place", PLACES)
def test_every_motor_treats_a_model_closed_over_too_as_constant(place: Callable[..., Any]) -> None:
    def compute() -> Any:
        model = {"w": torch.tensor(3.0)}
        return fl.gradient(lambda m: m["w"] * model["w"], model)["w"]

    assert torch.equal(place(compute), torch.tensor(3.0))


@pytest.mark.parametrize("place", PLACES)
def test_every_motor_differentiates_complex_parameters_as_torch_does(place: Callable[..., Any]) -> None:
    w = torch.tensor([1.0 + 2.0j, 3.0 - 1.0j], dtype=torch.complex128)
    theirs = w.clone().requires_grad_()
    (theirs.abs() ** 3).sum().backward()
    close(place(lambda: fl.gradient(lambda w: (w.abs() ** 3).sum(), w)), theirs.grad)


@pytest.mark.parametrize("place", PLACES)
def test_every_motor_assigns_the_statistics_of_batchnorm(place: Callable[..., Any]) -> None:
    norm = fl.fmap(lambda x: x.double(), fl.BatchNorm(3))
    theirs = torch.nn.BatchNorm1d(3).double()
    x = randn(6, 3)
    theirs(x).pow(3).sum().backward()

    def compute() -> Any:
        grads = fl.gradient(lambda m: m(x).pow(3).sum(), norm)
        return grads.weight, grads.running_mean.value, grads.running_var.value

    expected = theirs.weight.grad, theirs.running_mean, theirs.running_var
    close(place(compute), expected)


@pytest.mark.parametrize("place", PLACES)
def test_every_motor_works_under_no_grad(place: Callable[..., Any]) -> None:
    def compute() -> Any:
        with torch.no_grad():
            return fl.gradient(lambda w: (w**3).sum(), torch.tensor([1.0, 2.0]))

    assert torch.equal(place(compute), torch.tensor([3.0, 12.0]))


# Gradients of gradients


def penalty_by_hand(p: dict[str, Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(predict(p, x).pow(2).sum(), [x], create_graph=True)
    return g.pow(2).sum()


@pytest.mark.parametrize("place", PLACES)
def test_a_gradient_penalty_is_differentiated_by_the_model(place: Callable[..., Any]) -> None:
    model, x = mlp(), randn(5, 3, seed=8)
    theirs = leaves(model)
    expected = torch.autograd.grad(penalty_by_hand(theirs, x), list(theirs.values()), allow_unused=True)

    def penalty(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return fl.gradient(lambda x: predict(p, x).pow(2).sum(), x).pow(2).sum()

    close(place(lambda: fl.gradient(penalty, model, x)), dict(zip(theirs, expected, strict=True)))


def test_a_gradient_penalty_beside_a_loss_has_the_gradients_of_both() -> None:
    x, y = randn(5, 3, seed=8), randn(5, 2, seed=9)
    theirs = leaves(mlp())
    expected = by_hand(mse(theirs, x, y) + penalty_by_hand(theirs, x), theirs)

    def loss(p: dict[str, Tensor]) -> Tensor:
        slope = fl.gradient(lambda x: predict(p, x).pow(2).sum(), x)
        return mse(p, x, y) + slope.pow(2).sum()

    close(fl.gradient(loss, mlp()), expected)


def test_an_inner_gradient_of_the_same_parameters_builds_the_second_order() -> None:
    x, y = randn(5, 3, seed=8), randn(5, 2, seed=9)
    theirs = leaves(mlp())
    inner = by_hand(mse(theirs, x, y), theirs, create_graph=True)
    expected = by_hand(sum(g.pow(2).sum() for g in inner.values()), theirs)
    mine = fl.gradient(lambda p: sum(g.pow(2).sum() for g in fl.gradient(mse, p, x, y).values()), mlp())
    close(mine, expected)


def test_under_no_grad_an_inner_gradient_is_constant() -> None:
    def loss(w: Tensor) -> Tensor:
        with torch.no_grad():
            slope = fl.gradient(lambda w: w**2, w)
        assert not slope.requires_grad
        return slope * w

    assert fl.gradient(loss, torch.tensor(3.0)) == torch.tensor(6.0)


def test_the_values_of_an_inner_call_stay_differentiable() -> None:
    def loss(w: Tensor) -> Tensor:
        (value, aux), slope = fl.withgradient(lambda v: (v**2, v**3), w)
        return value + aux + slope

    assert fl.gradient(loss, torch.tensor(3.0)) == torch.tensor(6.0 + 27.0 + 2.0)


def test_the_gradient_of_a_float_inside_another_is_differentiable() -> None:
    assert fl.gradient(lambda a: fl.gradient(lambda b: a**2 * b**3, 2.0), 3.0) == 72.0


@pytest.mark.parametrize("place", PLACES)
def test_every_motor_takes_a_loss_that_is_the_parameter_itself(place: Callable[..., Any]) -> None:
    w = torch.tensor(3.0)

    def compute() -> Any:
        value, grads = fl.withgradient(lambda m: m["w"], {"w": w})
        return value, grads["w"]

    assert place(compute) == (torch.tensor(3.0), torch.tensor(1.0))


@pytest.mark.parametrize("place", PLACES)
def test_every_motor_takes_a_float(place: Callable[..., Any]) -> None:
    x = torch.tensor(5.0, dtype=torch.float64)
    grad = place(lambda: torch.as_tensor(fl.gradient(lambda b: x * b**3, 2.0)))
    assert torch.equal(grad.double(), torch.tensor(60.0, dtype=torch.float64))


@pytest.mark.parametrize("place", PLACES)
def test_three_gradients_deep(place: Callable[..., Any]) -> None:
    def derivative(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: fl.gradient(f, x)

    third = derivative(derivative(derivative(lambda x: x**5)))
    x = torch.tensor(2.0, dtype=torch.float64)
    close(place(lambda: third(x)), torch.tensor(240.0).double())


def test_derivatives_of_either_library_mix_three_deep() -> None:
    mine, theirs = lambda f: lambda x: fl.gradient(f, x), torch.func.grad
    x = torch.tensor(2.0, dtype=torch.float64)
    for a in (mine, theirs):
        for b in (mine, theirs):
            for c in (mine, theirs):
                close(a(b(c(lambda x: x**5)))(x), torch.tensor(240.0).double())


# Learning to learn


def adam_by_hand(
    p: dict[str, Tensor], moments: dict[str, tuple[Any, Any]], g: dict[str, Tensor], t: int, lr: float
) -> dict[str, Tensor]:
    new = {}
    for k in p:
        m, v = moments.get(k, (0.0, 0.0))
        m, v = 0.9 * m + 0.1 * g[k], 0.999 * v + 0.001 * g[k] ** 2
        moments[k] = m, v
        new[k] = p[k] - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return new


@pytest.mark.parametrize("rule", [fl.Descent(0.1), fl.Adam(0.1)], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("place", [outermost, nested, under_vmap, under_grad])
def test_maml_has_its_second_order(rule: Any, place: Callable[..., Any]) -> None:
    xs, ys, xq, yq = randn(5, 3, seed=8), randn(5, 2, seed=9), randn(5, 3, seed=10), randn(5, 2, seed=11)
    model = mlp()
    theirs = leaves(model)
    fast, moments = theirs, {}
    for t in (1, 2):
        g = by_hand(mse(fast, xs, ys), fast, create_graph=True)
        if isinstance(rule, fl.Adam):
            fast = adam_by_hand(fast, moments, g, t, 0.1)
        else:
            fast = {k: fast[k] - 0.1 * g[k] for k in fast}
    expected = by_hand(mse(fast, xq, yq), theirs)

    def meta_loss(p: dict[str, Tensor]) -> Tensor:
        state = fl.setup(rule, p)
        for _ in range(2):
            p, state = fl.update(state, p, fl.gradient(mse, p, xs, ys))
        return mse(p, xq, yq)

    close(place(lambda: fl.gradient(meta_loss, model)), expected)


# With torch.func


def test_vmap_over_gradient_gives_per_example_gradients() -> None:
    x, y = randn(6, 3, seed=8), randn(6, 2, seed=9)
    grads = torch.func.vmap(fl.gradient, in_dims=(None, None, 0, 0))(mse, mlp(), x, y)
    for i in range(6):
        close({k: g[i] for k, g in grads.items()}, fl.gradient(mse, mlp(), x[i], y[i]))


def test_vmap_over_gradient_takes_models_with_constants_by_their_leaves() -> None:
    model = fl.f64(fl.Chain(fl.Dense(3, 4, fl.tanh), fl.Dense(4, 2)))
    x, y = randn(6, 3, seed=8), randn(6, 2, seed=9)

    def one(x: Tensor, y: Tensor) -> Any:
        return fl.gradient(lambda m: ((m(x) - y) ** 2).mean(), model)

    for read in (fl.trainables, fl.fleaves):
        grads = torch.func.vmap(lambda x, y: read(one(x, y)))(x, y)
        for i in range(6):
            close([g[i] for g in grads], read(one(x[i], y[i])))


def test_vmap_over_models_gives_each_its_gradient() -> None:
    models = [mlp(seed=10 * i) for i in range(3)]
    stacked = {k: torch.stack([m[k] for m in models]) for k in models[0]}
    x, y = randn(5, 3, seed=8), randn(5, 2, seed=9)
    grads = torch.func.vmap(lambda p: fl.gradient(mse, p, x, y))(stacked)
    for i, model in enumerate(models):
        close({k: g[i] for k, g in grads.items()}, fl.gradient(mse, model, x, y))


def test_gradient_of_a_vmapped_loss() -> None:
    x, y = randn(5, 3, seed=8), randn(5, 2, seed=9)
    each = torch.func.vmap(mse, in_dims=(None, 0, 0))
    close(fl.gradient(lambda p: each(p, x, y).mean(), mlp()), fl.gradient(mse, mlp(), x, y))


def test_torch_func_grad_over_gradient_is_the_second_derivative() -> None:
    x = randn(3)
    second = torch.func.grad(lambda x: fl.gradient(lambda x: (x**4).sum(), x).sum())(x)
    close(second, 12 * x**2)


def test_gradient_over_torch_func_grad_is_the_second_derivative() -> None:
    x = randn(3)
    second = fl.gradient(lambda x: torch.func.grad(lambda x: (x**4).sum())(x).sum(), x)
    close(second, 12 * x**2)


def test_torch_func_jvp_over_gradient_is_the_hessian_vector_product() -> None:
    x, v = randn(3), randn(3, seed=1)
    slope, hvp = torch.func.jvp(lambda x: fl.gradient(lambda x: (x**4).sum(), x), (x,), (v,))
    close(slope, 4 * x**3)
    close(hvp, 12 * x**2 * v)


def test_torch_func_jacobians_over_gradient_are_the_hessian() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)

    def slope(x: Tensor) -> Tensor:
        return fl.gradient(lambda x: (x**3).sum(), x)

    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        diagonal = jacobian(slope)(x).reshape(4, 4)
        close(diagonal, torch.diag(torch.tensor([6.0, 12.0, 18.0, 24.0], dtype=torch.float64)))


def test_values_closed_over_from_torch_func_stay_differentiable() -> None:
    a, x = torch.tensor(3.0), torch.tensor(2.0)
    slope = torch.func.grad(lambda a: fl.gradient(lambda x: a**2 * x**3, x))(a)
    assert torch.equal(slope, torch.tensor(72.0))


def test_vmap_over_the_gradient_of_batchnorm_gives_each_group_its_own() -> None:
    model = fl.fmap(lambda x: x.double(), fl.Chain(fl.Dense(3, 4), fl.BatchNorm(4, fl.tanh), fl.Dense(4, 1)))
    groups = randn(3, 8, 3, seed=8)

    def one(x: Tensor) -> Any:
        grads = fl.gradient(lambda m: (m(x) ** 2).mean(), model)
        norm = grads.layers[1]
        return fl.trainables(grads), norm.running_mean.value, norm.running_var.value

    together = torch.func.vmap(one)(groups)
    for i, x in enumerate(groups):
        grads, mean, var = one(x)
        close([g[i] for g in together[0]], grads)
        close((together[1][i], together[2][i]), (mean, var))


def test_results_of_the_outermost_call_carry_no_graph() -> None:
    model = {"w": torch.tensor([1.0, 2.0], requires_grad=True)}
    (value, aux), grads = fl.withgradient(
        lambda m: (fl.gradient(lambda w: (w**3).sum(), m["w"]).sum(), m["w"] * 2), model
    )
    assert not grads["w"].requires_grad
    assert not value.requires_grad
    assert not aux.requires_grad


def test_whether_a_tensor_requires_grad_never_decides_the_motor() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    grads = fl.gradient(lambda w: (w**3).sum(), w * 2)
    assert not grads.requires_grad
    assert torch.equal(grads, torch.tensor([12.0, 48.0]))


def test_checkpointed_parts_of_the_loss_give_the_same_numbers() -> None:
    from torch.utils.checkpoint import checkpoint

    x, y = randn(5, 3, seed=8), randn(5, 2, seed=9)
    mine = fl.gradient(lambda p: checkpoint(mse, p, x, y, use_reentrant=False), mlp())
    close(mine, fl.gradient(mse, mlp(), x, y))
