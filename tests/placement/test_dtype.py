"""Casting whole trees."""

import numpy as np
import pytest
import torch

import fluxlike as fl

CASTS = [(fl.f16, torch.float16), (fl.bf16, torch.bfloat16), (fl.f32, torch.float32), (fl.f64, torch.float64)]
NARROW = CASTS[:2]


@pytest.mark.parametrize(("cast", "dtype"), CASTS)
def test_floating_tensors_are_cast(cast, dtype):
    for old in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert cast([torch.ones(2, dtype=old)])[0].dtype == dtype


@pytest.mark.parametrize(("cast", "dtype"), CASTS)
def test_the_model_handed_in_is_unchanged(cast, dtype):
    model = fl.Dense(2, 1)
    cast(model)
    assert {x.dtype for x in fl.fleaves(model)} == {torch.float32}


@pytest.mark.parametrize(("cast", "dtype"), CASTS)
def test_integers_and_bools_are_kept(cast, dtype):
    tree = [torch.tensor(1), torch.tensor(True), torch.tensor(1, dtype=torch.uint8)]
    assert all(a is b for a, b in zip(cast(tree), tree, strict=True))


@pytest.mark.parametrize(("cast", "dtype"), CASTS)
def test_constants_are_kept(cast, dtype):
    array = np.ones(1)
    tree = [array, 1.5, None, torch.tanh, "text"]
    assert all(a is b for a, b in zip(cast(tree), tree, strict=True))


@pytest.mark.parametrize(("cast", "dtype"), CASTS)
def test_ties_are_kept(cast, dtype):
    w = torch.ones(2, dtype=torch.float32 if dtype != torch.float32 else torch.float64)
    there = cast({"a": w, "b": [w]})
    assert there["a"] is there["b"][0]
    assert there["a"].dtype == dtype


@pytest.mark.parametrize(("cast", "dtype"), CASTS)
def test_tensors_that_fit_are_kept(cast, dtype):
    w = torch.ones(1, dtype=dtype)
    assert cast([w])[0] is w


@pytest.mark.parametrize(
    ("cast", "old", "new"),
    [
        (fl.f16, torch.complex128, torch.complex128),
        (fl.bf16, torch.complex64, torch.complex64),
        (fl.f32, torch.complex128, torch.complex64),
        (fl.f64, torch.complex64, torch.complex128),
    ],
)
def test_complex_tensors_follow_the_wide_casts_only(cast, old, new):
    assert cast([torch.ones(1, dtype=old)])[0].dtype == new


@pytest.mark.parametrize(("cast", "dtype"), CASTS)
def test_assigned_values_are_cast(cast, dtype):
    assert cast([fl.Assigned(torch.ones(1))])[0].value.dtype == dtype


@pytest.mark.parametrize(("cast", "dtype"), CASTS)
def test_a_cast_is_differentiable(cast, dtype):
    grad = fl.gradient(lambda x: cast([x])[0].double().sum(), torch.ones(2))
    assert grad.tolist() == [1, 1]


@pytest.mark.parametrize(("cast", "dtype"), CASTS)
def test_a_cast_of_a_computed_tensor_stays_in_its_graph(cast, dtype):
    x = torch.ones(2, requires_grad=True)
    (grad,) = torch.autograd.grad(cast([2 * x])[0].double().sum(), x)
    assert grad.tolist() == [2, 2]


class TestNormalisation:
    """Layers that lose too much in 16 bits stay in float32."""

    @pytest.mark.parametrize(("cast", "dtype"), NARROW)
    @pytest.mark.parametrize("norm", [fl.BatchNorm, fl.LayerNorm])
    def test_normalisation_layers_stay_float32(self, cast, dtype, norm):
        model = cast(fl.Chain(fl.Dense(2, 3), norm(3)))
        assert model.layers[0].weight.dtype == dtype
        assert {x.dtype for x in fl.fleaves(model.layers[1])} == {torch.float32}

    @pytest.mark.parametrize(("cast", "dtype"), NARROW)
    def test_a_normalisation_layer_in_float64_comes_to_float32(self, cast, dtype):
        assert cast(fl.f64(fl.LayerNorm(2))).weight.dtype == torch.float32

    def test_the_wide_casts_do_not_spare_them(self):
        assert fl.f64(fl.BatchNorm(2)).running_mean.dtype == torch.float64
        assert fl.f32(fl.f64(fl.BatchNorm(2))).running_mean.dtype == torch.float32

    @pytest.mark.parametrize(("cast", "dtype"), NARROW)
    @pytest.mark.parametrize("norm", [fl.BatchNorm, fl.LayerNorm])
    def test_a_narrow_model_runs_and_gives_narrow_outputs(self, cast, dtype, norm):
        model = cast(fl.Chain(fl.Dense(2, 3), norm(3), fl.Dense(3, 1)))
        with fl.mode("train"):
            assert model(torch.randn(4, 2, dtype=dtype)).dtype == dtype

    def test_a_tie_from_outside_into_a_kept_layer_stays_a_tie(self):
        norm = fl.LayerNorm(2)
        there = fl.f16({"norm": norm, "scale": norm.weight})
        assert there["scale"] is there["norm"].weight
        there = fl.f16({"a_scale": norm.weight, "norm": norm})
        assert there["a_scale"] is there["norm"].weight

    def test_a_class_of_ones_own_may_stay_float32(self):
        @fl.stays_float32
        @fl.functor
        class Precise:
            def __init__(self):
                self.w = torch.ones(1)

        class Child(Precise):
            pass

        assert fl.f16([Precise()])[0].w.dtype == torch.float32
        assert fl.bf16({"c": Child()})["c"].w.dtype == torch.float32
        assert fl.f64(Precise()).w.dtype == torch.float64

    def test_a_gradient_has_the_dtypes_of_the_narrow_model(self):
        model = fl.bf16(fl.Chain(fl.Dense(2, 3), fl.BatchNorm(3)))
        x = torch.randn(4, 2, dtype=torch.bfloat16)
        grads = fl.gradient(lambda m: (m(x) ** 2).float().sum(), model)
        assert grads.layers[0].weight.dtype == torch.bfloat16
        assert grads.layers[1].weight.dtype == torch.float32
        assert grads.layers[1].running_mean.value.dtype == torch.float32
