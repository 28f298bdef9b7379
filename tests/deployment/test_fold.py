"""Folding of BatchNorm into the layers beside it."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl


def used(tree, seed=0):
    """A tree in float64 whose BatchNorms have seen data, and are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    return fl.fmap(
        lambda x: x.double() + torch.rand(x.shape, generator=generator, dtype=torch.float64) * 0.5, tree
    )


def norms(tree):
    found = []
    fl.fmap_with_path(lambda path, x: found.append(path) or x, tree)
    return [path for path in found if path.endswith("running_mean")]


def assert_folds(model, x, left=0):
    folded = fl.fold_batchnorm(model)
    assert len(norms(folded)) == left
    y, wanted = folded(x), model(x)
    assert (y - wanted).abs().max() <= 1e-12 * wanted.abs().max()
    return folded


@settings(max_examples=60, deadline=None)
@given(
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    affine=st.booleans(),
    stride=st.integers(1, 2),
    behind=st.booleans(),
    nested=st.booleans(),
    layer=st.sampled_from([fl.Conv, fl.ConvTranspose]),
    eps=st.sampled_from([1e-5, 0.1]),
)
def test_a_norm_beside_a_convolution_folds_to_the_same_outputs(
    groups, bias, affine, stride, behind, nested, layer, eps
):
    behind = behind or layer is fl.ConvTranspose  # which reaches beyond the image
    first = layer((3, 2), 4, 6, stride=stride, pad=1 if behind else 0, groups=groups, bias=bias)
    norm = fl.BatchNorm(6 if behind else 4, affine=affine, eps=eps)
    pair = [fl.Chain(first) if nested else first, norm]
    model = used(fl.Chain(*(pair if behind else pair[::-1]), fl.relu))
    assert_folds(model, torch.randn(2, 4, 7, 6, dtype=torch.float64))


@pytest.mark.parametrize("behind", [True, False])
def test_a_norm_beside_a_dense_layer_folds(behind):
    norm, dense = fl.BatchNorm(5 if behind else 4), fl.Dense(4, 5)
    model = used(fl.Chain(dense, norm) if behind else fl.Chain(norm, dense))
    assert_folds(model, torch.randn(3, 4, dtype=torch.float64))


def test_the_activation_of_the_norm_becomes_that_of_the_layer():
    model = fl.fold_batchnorm(used(fl.Chain(fl.Conv((1, 1), 2, 3, bias=False), fl.BatchNorm(3, fl.relu))))
    assert model[0].activation is fl.relu
    assert model[0].bias is not None
    assert model[1] is fl.identity


def test_norms_on_both_sides_and_two_in_a_row_all_fold():
    model = used(fl.Chain(fl.BatchNorm(3), fl.Conv((2, 2), 3, 4), fl.BatchNorm(4), fl.BatchNorm(4, fl.tanh)))
    assert_folds(model, torch.randn(2, 3, 5, 5, dtype=torch.float64))


def test_norms_inside_branches_of_other_layers_fold():
    one, other = (fl.Chain(fl.Conv((1, 1), 3, 3), fl.BatchNorm(3)) for _ in range(2))
    model = used(fl.Chain(fl.SkipConnection(one, torch.add), fl.Parallel(torch.add, other, fl.identity)))
    assert_folds(model, torch.randn(2, 3, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        ((fl.Conv((1, 1), 3, 3, fl.relu), fl.BatchNorm(3)), "an activation between"),
        ((fl.BatchNorm(3), fl.Conv((3, 3), 3, 3, pad=1)), "padding with what was zero before the shift"),
        ((fl.BatchNorm(3, fl.relu), fl.Conv((1, 1), 3, 3)), "an activation after the norm"),
        ((fl.Conv((1, 1), 3, 3), fl.trainmode(fl.BatchNorm(3))), "pinned to training"),
        ((fl.Conv((1, 1), 3, 3), fl.MaxPool((1, 1)), fl.BatchNorm(3)), "another layer between"),
        ((fl.Dense(4, 4), fl.BatchNorm(3)), "a norm of another axis"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_can_not_be_folded_is_kept_with_a_warning(layers, why):
    model = used(fl.Chain(*layers))
    with pytest.warns(UserWarning, match="1 BatchNorms, and could fold none"):
        assert fl.fold_batchnorm(model) is model


def test_statistics_of_the_batch_are_kept():
    model = fl.Chain(fl.Conv((1, 1), 3, 3), fl.BatchNorm(3, track_stats=False))
    with pytest.warns(UserWarning, match="could fold none"):
        assert fl.fold_batchnorm(model) is model


def test_a_tied_layer_is_kept():
    conv = fl.Conv((1, 1), 3, 3)
    model = used(fl.Chain(conv, fl.BatchNorm(3), conv))
    with pytest.warns(UserWarning, match="could fold none"):
        assert fl.fold_batchnorm(model) is model


def test_a_model_without_norms_is_given_back_without_a_word():
    model = fl.Chain(fl.Dense(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fl.fold_batchnorm(model) is model


def test_the_model_is_not_changed_and_other_places_keep_their_paths():
    model = used(fl.Chain(fl.Conv((1, 1), 2, 2), fl.BatchNorm(2), fl.flatten, fl.Dense(2, 3)))
    before = fl.fmap(torch.clone, model)
    folded = fl.fold_batchnorm(model)
    assert fl.tree.allclose(model, before, rtol=0, atol=0)
    assert folded.layers[3] is model.layers[3]
    assert len(folded) == len(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_keeps_its_dtype(dtype):
    model = fl.Chain(fl.Conv((1, 1), 2, 2), fl.BatchNorm(2))
    cast = model if dtype is torch.float32 else fl.bf16(model)
    folded = fl.fold_batchnorm(cast)
    assert folded[0].weight.dtype == folded[0].bias.dtype == dtype


@pytest.mark.parametrize("cast", [fl.f32, fl.bf16])
@pytest.mark.parametrize("behind", [True, False])
def test_the_fold_is_computed_in_float64_and_rounded_once(cast, behind):
    layers = [fl.Conv((3, 3), 16, 16), fl.BatchNorm(16, eps=1e-3)]
    model = cast(used(fl.Chain(*(layers if behind else layers[::-1]))))
    folded, exact = fl.fold_batchnorm(model), fl.fold_batchnorm(fl.f64(model))
    assert len(fl.trainables(folded)) == 2
    for x, wanted in zip(fl.trainables(folded), fl.trainables(exact), strict=True):
        assert torch.equal(x, wanted.to(x.dtype))


def test_a_channels_last_kernel_stays_so():
    folded = fl.fold_batchnorm(fl.channels_last(fl.Chain(fl.Conv((3, 3), 4, 8), fl.BatchNorm(8))))
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_folded_model_has_a_gradient_and_is_saved(tmp_path):
    model = fl.fold_batchnorm(fl.Chain(fl.Conv((1, 1), 2, 2), fl.BatchNorm(2)))
    grads = fl.gradient(lambda m, x: m(x).sum(), model, torch.ones(1, 2, 3, 3))
    assert grads[0].weight is not None
    fl.save(tmp_path / "folded.safetensors", model)
    assert fl.tree.allclose(fl.load(tmp_path / "folded.safetensors", like=model), model)


def test_every_norm_of_a_resnet_folds():
    model = used(fl.models.ResNet(18, nclasses=5))
    assert_folds(model, torch.randn(1, 3, 32, 32, dtype=torch.float64))


def assert_kept(model):
    with pytest.warns(UserWarning, match="could fold none"):
        assert fl.fold_batchnorm(model) is model


def test_a_norm_of_a_class_of_ones_own_is_kept():
    class Twice(fl.BatchNorm):
        def __call__(self, x):
            return 2 * super().__call__(x)

    model = used(fl.Chain(fl.Conv((1, 1), 3, 3), Twice(3)))
    assert fl.fold_batchnorm(model) is model


def test_a_stack_of_models_is_kept():
    models = [fl.Chain(fl.Conv((1, 1), 3, 3), fl.BatchNorm(3)) for _ in range(3)]
    assert_kept(fl.stack(models))


def test_a_weight_that_its_dtype_can_not_hold_folded_is_kept():
    model = fl.f16(fl.Chain(fl.Conv((1, 1), 2, 2), fl.BatchNorm(2, eps=1e-30)))
    model = fl.at(model, ".layers[1].running_var").set(torch.full((2,), 1e-20))
    assert_kept(model)


def test_folding_inside_a_gradient_is_differentiable():
    model = used(fl.Chain(fl.Conv((1, 1), 2, 3), fl.BatchNorm(3)))
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    f = lambda m: m(x).square().sum()  # noqa: E731
    with fl.mode("test"):
        grads = fl.gradient(lambda m: f(fl.fold_batchnorm(m)), model)
        wanted = fl.gradient(f, model)
    assert fl.tree.allclose(grads, wanted, rtol=1e-10)


def test_inference_folds_in_the_tree_only_what_is_surely_called_in_a_row():
    @fl.functor
    class Walks:
        def __init__(self):
            self.body = fl.Chain(fl.Conv((1, 1), 2, 2), fl.BatchNorm(2, fl.relu))

        def __call__(self, x):
            return [x := layer(x) for layer in self.body.layers]

    model = used(Walks())
    assert norms(fl.inference(model).model)
    assert norms(fl.inference(used(fl.Chain(fl.Dense(2, 2), fl.BatchNorm(2)))).model)
    assert not norms(fl.inference(used(fl.models.ResNet(18))).model)
