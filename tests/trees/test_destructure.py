"""`destructure`: a model as one vector, and back, under every transform."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import fluxlike as fl


def small() -> dict[str, Any]:
    w = torch.arange(4.0).reshape(2, 2)
    return {"w": w, "b": torch.tensor([10.0]), "again": w, "steps": torch.tensor(3), "f": fl.relu}


def test_a_tied_parameter_stands_once_and_stays_tied() -> None:
    flat, rebuild = fl.destructure(small())
    assert flat.tolist() == [0.0, 1.0, 2.0, 3.0, 10.0]  # keys of a dict in their order
    model = rebuild(2 * flat)
    assert model["again"] is model["w"]


def test_buffers_and_constants_are_those_of_the_model() -> None:
    model = fl.Chain(fl.Dense(3, 2), fl.BatchNorm(2), fl.relu)
    flat, rebuild = fl.destructure(model)
    assert flat.shape == (12,)
    new = rebuild(flat + 1)
    assert new.layers[1].running_mean is model.layers[1].running_mean
    assert new.layers[2] is fl.relu
    assert type(new) is fl.Chain


def test_the_model_does_not_change_and_shares_no_memory_with_the_vector() -> None:
    w = torch.ones(3)
    flat, _ = fl.destructure({"w": w})
    flat.zero_()
    assert w.tolist() == [1.0, 1.0, 1.0]


def test_rebuild_remembers_no_parameters() -> None:
    model = {"w": torch.ones(3)}
    parameter = weakref.ref(model["w"])
    _, rebuild = fl.destructure(model)
    del model
    assert parameter() is None
    assert rebuild(torch.zeros(3))["w"].tolist() == [0.0, 0.0, 0.0]


def test_a_strided_parameter_is_read_row_by_row() -> None:
    w = torch.arange(6.0).reshape(2, 3).T
    flat, rebuild = fl.destructure([w])
    assert flat.tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    assert torch.equal(rebuild(flat)[0], w)


# dtypes


def test_mixed_dtypes_promote_and_are_cast_back() -> None:
    model = [torch.ones(2, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.float64)]
    flat, rebuild = fl.destructure(model)
    assert flat.dtype == torch.float64
    assert [x.dtype for x in rebuild(flat)] == [torch.bfloat16, torch.float64]


def test_a_complex_parameter_makes_the_vector_complex_and_real_ones_take_the_real_part() -> None:
    model = [torch.tensor([1 + 2j]), torch.tensor([3.0])]
    flat, rebuild = fl.destructure(model)
    assert flat.tolist() == [1 + 2j, 3 + 0j]
    assert rebuild(flat + 1j)[1].tolist() == [3.0]
    assert rebuild(flat + 1j)[0].tolist() == [1 + 3j]


def test_an_8_bit_parameter_among_others_is_an_error_that_names_it() -> None:
    model = {"a": torch.ones(2), "b": torch.ones(2).to(torch.float8_e4m3fn)}
    with pytest.raises(ValueError, match=r"\['b'\] is of torch.float8_e4m3fn"):
        fl.destructure(model)
    flat, rebuild = fl.destructure(model["b"])
    assert rebuild(flat).dtype == torch.float8_e4m3fn


def test_a_model_without_parameters_is_an_empty_vector() -> None:
    flat, rebuild = fl.destructure({"f": fl.relu, "n": torch.tensor(1)})
    assert flat.shape == (0,)
    assert rebuild(flat)["f"] is fl.relu


def test_a_parameter_of_torch_is_read_as_its_value() -> None:
    flat, rebuild = fl.destructure([nn.Parameter(torch.ones(2))])
    assert not flat.requires_grad
    assert type(rebuild(flat)[0]) is Tensor


# transforms


def mlp() -> fl.Chain:
    torch.manual_seed(0)
    return fl.f64(fl.Chain(fl.Dense(3, 4, fl.tanh), fl.Dense(4, 2)))


def loss(model: Any, x: Tensor) -> Tensor:
    return model(x).square().sum()


X = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)


def test_the_gradient_by_the_vector_is_the_gradient_by_the_model() -> None:
    flat, rebuild = fl.destructure(mlp())
    by_vector = fl.gradient(lambda v: loss(rebuild(v), X), flat)
    by_model = fl.gradient(loss, mlp(), X)
    assert_close(by_vector, fl.destructure(by_model)[0], rtol=1e-12, atol=1e-12)


def test_it_is_differentiable_through_the_vector_too() -> None:
    model = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)}
    grads = fl.gradient(lambda m: (fl.destructure(m)[0] ** 3).sum(), model)
    assert grads["w"].tolist() == [3.0, 12.0]
    assert grads["b"].item() == 27.0


def test_a_tie_collects_the_gradients_of_all_its_places() -> None:
    w = torch.tensor([1.0])
    flat, rebuild = fl.destructure({"x": w, "z": w})
    grad = fl.gradient(lambda v: (3 * rebuild(v)["x"] + 13 * rebuild(v)["z"]).sum(), flat)
    assert grad.tolist() == [16.0]


def test_gradcheck_holds_through_both_ways() -> None:
    model = mlp()
    flat, rebuild = fl.destructure(model)
    f = lambda v: fl.destructure(fl.fmap(torch.sin, rebuild(v)))[0]  # noqa: E731
    assert torch.autograd.gradcheck(f, flat.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(f, flat.clone().requires_grad_())


def test_vmap_over_vectors_is_an_ensemble() -> None:
    flat, rebuild = fl.destructure(mlp())
    vectors = torch.stack([flat, 2 * flat, -flat])
    together = torch.func.vmap(lambda v: rebuild(v)(X))(vectors)
    assert_close(together, torch.stack([rebuild(v)(X) for v in vectors]), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own
def test_the_hessian_of_torch_takes_the_vector() -> None:
    flat, rebuild = fl.destructure({"a": torch.tensor([2.0, 3.0])})
    hessian = torch.func.hessian(lambda v: (rebuild(v)["a"] ** 3).sum())(flat)
    assert_close(hessian, torch.diag(torch.tensor([12.0, 18.0])))


def test_a_rebuilt_model_trains_in_the_two_lines() -> None:
    flat, rebuild = fl.destructure(mlp())
    model = rebuild(flat)
    state = fl.setup(fl.Descent(0.1), model)
    model, state = fl.update(state, model, fl.gradient(loss, model, X))
    assert loss(model, X) < loss(mlp(), X)


# errors


def test_parameters_on_two_devices_are_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match=r"\['a'\] is on cpu and \['b'\] on meta"):
        fl.destructure({"a": torch.ones(1), "b": torch.ones(1, device="meta")})


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (torch.ones(4), ValueError, r"5 entries.*found the shape \(4,\)"),
        (torch.ones(3, 5), ValueError, r"found the shape \(3, 5\); for several models.*vmap\(rebuild\)"),
        (torch.ones(5, dtype=torch.float64), ValueError, r"flat\.to\(torch\.float32\)"),
        (torch.ones(5, device="meta"), ValueError, "on cpu, found one on meta"),
        ([1.0] * 5, TypeError, "found list"),
    ],
)
def test_a_wrong_vector_is_an_error_that_says_what_to_write(wrong: Any, error: Any, says: str) -> None:
    _, rebuild = fl.destructure(small())
    with pytest.raises(error, match=says):
        rebuild(wrong)
