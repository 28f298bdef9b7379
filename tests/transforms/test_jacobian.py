"""`jacobian`, `hessian`, `diaghessian` and `hvp`, on trees."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def mlp() -> Any:
    return fl.Chain(fl.Dense(3, 4, fl.tanh), fl.Dense(4, 2))


def loss(model: Any, x: Tensor) -> Tensor:
    return model(x).square().sum()


def matrix(model: Any, f: Callable[[Any], Tensor], of: Callable[..., Any]) -> Tensor:
    """A derivative by all parameters as one vector."""
    flat, rebuild = fl.destructure(model)
    return of(lambda p: f(rebuild(p)))(flat)


@pytest.fixture(params=["reverse", "forward"])
def direction(request: Any, monkeypatch: Any) -> None:
    """Jacobians in one direction, whatever the sizes."""
    module = sys.modules["fluxlike.transforms.jacobian"]
    monkeypatch.setattr(module, "_WIDE", 0 if request.param == "forward" else 1e9)


# jacobian


@pytest.mark.usefixtures("direction")
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 100])
def test_jacobian_is_that_of_torch_on_tensors(chunk_size: int | None) -> None:
    x, w = torch.randn(2, 3), torch.randn(3, 4)
    f = lambda x: (x @ w).sin()  # noqa: E731
    assert_close(fl.jacobian(f, x, chunk_size=chunk_size), torch.func.jacrev(f)(x))


@pytest.mark.usefixtures("direction")
def test_jacobian_is_a_tree_of_trees() -> None:
    w = torch.tensor([1.0, 2.0])
    model = {"w": w, "tied": w, "unused": torch.ones(3), "name": "n"}
    f = lambda m: ({"y": m["w"] * m["tied"], "one": torch.ones(2)}, 7, m["w"].sum())  # noqa: E731
    jac = fl.jacobian(f, model)
    first, other = ("tied", "w") if jac[2]["w"] is None else ("w", "tied")
    assert jac[1] is None
    assert jac[0]["one"] == {"w": None, "tied": None, "unused": None, "name": None}
    assert torch.equal(jac[0]["y"][first], torch.diag(2 * w))
    assert torch.equal(jac[2][first], torch.ones(2))
    assert {jac[0]["y"][k] for k in (other, "unused", "name")} == {None}


@pytest.mark.usefixtures("direction")
def test_jacobian_by_several_arguments_is_a_tuple() -> None:
    f = lambda x, n, y: x[:, None] * y * n  # noqa: E731
    by_x, by_y = fl.jacobian(f, torch.ones(2), 3, torch.ones(4), argnums=(0, 2))
    assert by_x.shape == (2, 4, 2)
    assert torch.equal(by_y[1], 3 * torch.eye(4))


@pytest.mark.usefixtures("direction")
def test_jacobian_by_a_float() -> None:
    assert fl.jacobian(lambda x: x**3, 2.0) == 12
    assert type(fl.jacobian(lambda x: x**3, 2.0)) is float
    assert fl.jacobian(lambda x: torch.stack([x, x**2]), 3.0).tolist() == [1, 6]


@pytest.mark.usefixtures("direction")
def test_jacobian_of_nothing_and_by_nothing_keeps_its_shape() -> None:
    assert fl.jacobian(lambda x: x[:0], torch.ones(3)).shape == (0, 3)
    assert fl.jacobian(lambda m: m[0].sum() + m[1], [torch.ones(0), torch.ones(2)])[0].shape == (2, 0)


@pytest.mark.usefixtures("direction")
def test_jacobian_of_a_model_is_in_test_mode() -> None:
    model = fl.Chain(fl.Dense(3, 4), fl.Dropout(0.5), fl.BatchNorm(4))
    x = torch.randn(2, 3)
    jac = fl.jacobian(lambda m: m(x), model)
    assert jac.layers[2].running_mean is None
    flat = matrix(fl.testmode(model), lambda m: m(x), torch.func.jacrev)
    assert_close(jac.layers[0].weight.flatten(2), flat[..., :12])


@pytest.mark.usefixtures("direction")
def test_jacobian_draws_the_same_for_every_entry() -> None:
    with fl.seeded(fl.Key(1)):
        jac = fl.jacobian(lambda x: x * fl.random.uniform(x.shape), torch.ones(4))
    with fl.seeded(fl.Key(1)):
        assert_close(jac, torch.diag(fl.random.uniform((4,))))
    torch.manual_seed(3)
    jac = fl.jacobian(lambda x: x * torch.rand_like(x), torch.ones(4))
    torch.manual_seed(3)
    assert_close(jac, torch.diag(torch.rand(4)))


def test_a_branch_on_a_value_is_no_obstacle() -> None:
    f = lambda x: (x if x > 0 else -x).expand(100)  # noqa: E731
    assert torch.equal(fl.jacobian(f, torch.tensor(-2.0)), -torch.ones(100))


def test_a_wide_jacobian_runs_the_function_by_columns() -> None:
    runs = []
    fl.jacobian(lambda x: (runs.append(1), x.expand(100))[1], torch.tensor(1.0))
    fl.jacobian(lambda x: (runs.append(1), x * 2)[1], torch.ones(100))
    assert len(runs) == 3


def test_outermost_nothing_carries_a_graph() -> None:
    x = torch.ones(2, requires_grad=True)
    for result in (fl.jacobian(torch.exp, x), fl.hessian(lambda x: x.exp().sum(), x)):
        assert not result.requires_grad
    assert not fl.diaghessian(lambda x: x.exp().sum(), x).requires_grad
    assert not fl.hvp(lambda x: x.exp().sum(), x, v=x).requires_grad


# Second derivatives


def test_the_hessian_of_cubes() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    hess = fl.hessian(lambda x: (x**3).sum(), x)
    assert torch.equal(hess.reshape(4, 4), torch.diag(torch.tensor([6.0, 12.0, 18.0, 24.0])))
    assert fl.diaghessian(lambda x: (x**3).sum(), x).tolist() == [[6, 12], [18, 24]]


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_the_hessian_of_a_model_is_that_of_its_vector(chunk_size: int | None) -> None:
    model, x = mlp(), torch.randn(5, 3)
    hess = fl.hessian(loss, model, x, chunk_size=chunk_size)
    expected = matrix(model, lambda m: loss(m, x), torch.func.hessian)
    shapes = [p.shape for p in fl.trainables(model)]
    blocks = [
        torch.cat([b.reshape(s.numel(), -1) for b in fl.trainables(row)], 1)
        for row, s in zip(
            [r for layer in hess.layers for r in (layer.weight, layer.bias)], shapes, strict=True
        )
    ]
    assert_close(torch.cat(blocks), expected)
    assert hess.layers[0].activation is None
    assert hess.layers[0].weight.layers[1].bias.shape == (4, 3, 2)


@pytest.mark.parametrize("chunk_size", [None, 1, 5])
def test_the_diagonal_is_that_of_the_hessian(chunk_size: int | None) -> None:
    model, x = mlp(), torch.randn(5, 3)
    diagonal = fl.diaghessian(loss, model, x, chunk_size=chunk_size)
    expected = matrix(model, lambda m: loss(m, x), torch.func.hessian).diagonal()
    assert_close(torch.cat([d.flatten() for d in fl.trainables(diagonal)]), expected)
    assert diagonal.layers[0].activation is None


def test_hvp_is_the_hessian_times_the_vector() -> None:
    model, x = mlp(), torch.randn(5, 3)
    v = fl.fmap(torch.randn_like, model)
    product = fl.hvp(loss, model, x, v=v)
    expected = matrix(model, lambda m: loss(m, x), torch.func.hessian) @ fl.destructure(v)[0]
    assert_close(torch.cat([p.flatten() for p in fl.trainables(product)]), expected)


def test_ties_and_dead_ends() -> None:
    w = torch.tensor([1.0, 2.0])
    model = {"a": w, "b": w, "linear": torch.ones(2), "unused": torch.ones(2), "name": "n"}
    f = lambda m: (m["a"] ** 2 * m["b"]).sum() + m["linear"].sum()  # noqa: E731
    hess, diagonal = fl.hessian(f, model), fl.diaghessian(f, model)
    assert torch.equal(hess["a"]["a"], torch.diag(6 * w))
    assert torch.equal(diagonal["a"], 6 * w)
    assert hess["linear"] == {"a": None, "b": None, "linear": None, "unused": None, "name": None}
    nothing = {"b": None, "unused": None, "name": None}
    assert {k: hess[k] for k in nothing} == nothing
    assert {k: diagonal[k] for k in (*nothing, "linear")} == {**nothing, "linear": None}
    v = {"a": torch.ones(2), "b": None, "linear": torch.ones(2), "unused": torch.ones(2), "name": None}
    product = fl.hvp(f, model, v=v)
    assert torch.equal(product["a"], 6 * w)
    assert {k: product[k] for k in (*nothing, "linear")} == {**nothing, "linear": None}


def test_a_tied_place_may_hold_the_direction_later() -> None:
    w = torch.ones(2)
    f = lambda m: (m[0] ** 2 * m[1]).sum()  # noqa: E731
    assert torch.equal(fl.hvp(f, [w, w], v=[None, torch.ones(2)])[0], torch.full((2,), 6.0))


def test_several_arguments_give_tuples() -> None:
    f = lambda x, y: (x**2 * y).sum()  # noqa: E731
    x, y = torch.tensor([2.0]), torch.tensor([3.0])
    (xx, xy), (yx, yy) = fl.hessian(f, x, y, argnums=(0, 1))
    assert (xx.item(), xy.item(), yx.item(), yy) == (6, 4, 4, None)
    assert fl.diaghessian(f, x, y, argnums=(0, 1)) == (torch.tensor([6.0]), None)
    assert [p.item() for p in fl.hvp(f, x, y, v=(None, y), argnums=(0, 1))[:1]] == [12]


def test_floats_get_floats() -> None:
    cube = lambda x: x**3  # noqa: E731
    results = fl.hessian(cube, 2.0), fl.diaghessian(cube, 2.0), fl.hvp(cube, 2.0, v=1.0)
    assert results == (12.0, 12.0, 12.0)
    assert {type(r) for r in results} == {float}


def test_a_function_that_reaches_nothing_has_none() -> None:
    for result in (fl.hessian(lambda x: torch.tensor(1.0), torch.ones(2)),):
        assert result is None
    assert fl.diaghessian(lambda x: torch.tensor(1.0), torch.ones(2)) is None
    assert fl.hvp(lambda x: torch.tensor(1.0), torch.ones(2), v=torch.ones(2)) is None


def test_second_derivatives_are_in_the_mode_around_them() -> None:
    seen = []
    model = fl.Chain(fl.Dense(1, 1), lambda x: (seen.append(fl.training()), x)[1])
    f = lambda m: m(torch.ones(1, 1)).square().sum()  # noqa: E731
    calls = (
        lambda: fl.hessian(f, model),
        lambda: fl.diaghessian(f, model),
        lambda: fl.hvp(f, model, v=model),
    )
    for call in calls:
        call()
    assert seen == [False] * 3
    with fl.mode("train"):
        for call in calls:
            call()
    assert seen == [False] * 3 + [True] * 3


def test_the_loss_may_come_with_more() -> None:
    assert fl.hvp(lambda x: (x**3, "aux"), 2.0, v=1.0) == 12


# Memory


def test_diaghessian_keeps_no_matrix() -> None:
    x = torch.ones(3000, dtype=torch.float32)
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        fl.diaghessian(lambda x: (x**3).sum(), x)
    sizes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert max(sizes) < x.nbytes * 3000 / 10


# Errors


@pytest.mark.parametrize("chunk_size", [0, -1, 2.0, True])
@pytest.mark.parametrize("of", [fl.jacobian, fl.hessian, fl.diaghessian])
def test_a_chunk_size_that_is_none_is_an_error(of: Any, chunk_size: Any) -> None:
    with pytest.raises(ValueError, match=r"chunk_size=.*: write a whole number of at least 1, or None"):
        of(lambda x: x.sum(), torch.ones(2), chunk_size=chunk_size)


def test_complex_numbers_are_an_error_that_names_the_side() -> None:
    z = torch.ones(2, dtype=torch.complex128)
    with pytest.raises(ValueError, match=r"jacobian: the argument is complex.*view_as_real"):
        fl.jacobian(lambda z: z.abs(), z)
    with pytest.raises(ValueError, match="jacobian: the output is complex"):
        fl.jacobian(lambda x: x * 1j, torch.ones(2))
    with pytest.raises(ValueError, match=r"hessian: the .* is complex"):
        fl.hessian(lambda z: z.abs().sum(), z)


def test_a_loss_that_is_no_scalar_is_an_error() -> None:
    for of in (fl.hessian, fl.diaghessian, lambda f, x: fl.hvp(f, x, v=x)):
        with pytest.raises(ValueError, match="a tensor of shape \\(2,\\); reduce it"):
            of(lambda x: x**2, torch.ones(2))


def test_a_direction_that_does_not_fit_is_an_error_that_names_hvp() -> None:
    with pytest.raises(ValueError, match=r"hvp: the whole of v has the shape \(3,\)"):
        fl.hvp(lambda x: x.sum(), torch.ones(2), v=torch.ones(3))


def test_what_is_no_function_is_an_error_that_shows_the_call() -> None:
    with pytest.raises(TypeError, match=r"write jacobian\(f, model, x, y\)"):
        fl.jacobian(torch.ones(1), torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"write hessian\(loss, model, x, y\)"):
        fl.hessian(torch.ones(1), torch.ones(1))  # type: ignore[arg-type]
