"""Models compiled for inference."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fluxlike as fl

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fluxlike._private.compiler import build as building
    from fluxlike._private.compiler import passes
    from fluxlike._private.compiler import winograd as tiles
    from fluxlike._private.compiler.freezing import freeze, freezing
    from fluxlike._private.compiler.functional import functional
    from fluxlike._private.compiler.trace import Recorder


def network(dtype: torch.dtype = torch.float32) -> Any:
    with fl.seeded(fl.Key(0)):
        model = fl.Chain(
            fl.models.conv_norm(3, 3, 64, stride=2),
            fl.models.Residual(fl.models.conv_norm(3, 64, 64, fl.identity), activation=fl.relu),
            fl.models.conv_norm(3, 64, 40),
            fl.Dropout(0.5),
            fl.GlobalMeanPool(),
            fl.Dense(40, 5),
        )
        return fl.fmap(lambda x: (x + 0.1 * fl.random.uniform(x.shape)).to(dtype), model)


X = torch.randn(2, 3, 40, 36, generator=torch.Generator().manual_seed(0))


def far(y: Tensor, wanted: Tensor) -> float:
    return ((y - wanted).abs().max() / wanted.abs().max()).item()


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.setattr(building, "_can_compile", lambda: False)


# What holds for every call


@pytest.mark.slow
def test_a_compiled_model_gives_the_models_outputs_and_compiles_once_for_a_shape():
    model = network()
    fast = fl.inference(model, X)
    assert far(fast(X), model(X)) < 1e-6
    assert far(fast(X[:1]), model(X[:1])) < 1e-6
    assert far(fast(X + 1), model(X + 1)) < 1e-6
    assert fast.cache_info() == (4, 2)


@pytest.mark.slow
def test_memory_that_is_channels_last_or_transposed_gives_the_same_outputs():
    model = network()
    fast = fl.inference(model)
    for x in (fl.channels_last(X), X.transpose(2, 3)):
        assert far(fast(x), model(x)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("cast", "nearly"), [(fl.f64, 1e-12), (fl.bf16, 0.05)])
def test_a_model_of_another_dtype_is_compiled_in_it(cast, nearly):
    model = cast(network())
    x = X.to(model[5].weight.dtype)
    y = fl.inference(model, x)(x)
    assert y.dtype == x.dtype
    assert far(y.double(), fl.f64(model)(x.double())) < nearly


@pytest.mark.slow
def test_a_torch_module_is_compiled_and_stays_as_it_is():
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 2),
    )
    module(torch.randn(9, 3, 10 - 5, 8 - 2)[:, :, :4, :6])  # its statistics move
    before = copy.deepcopy(module.state_dict())
    x = torch.randn(2, 3, 4, 6)
    fast = fl.inference(module.train(), x)
    assert far(fast(x), module.eval()(x)) < 1e-6
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_written_to_the_model_later_is_not_seen(compiles, monkeypatch):
    if not compiles:
        monkeypatch.setattr(building, "_can_compile", lambda: False)
    model = fl.Chain(fl.Dense(3, 2))
    x = torch.ones(1, 3)
    fast = fl.inference(model, x)
    before = fast(x).clone()
    model[0].weight.zero_()
    assert torch.equal(fast(x), before)


@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_written_to_a_tensor_that_a_function_reads_is_not_seen(compiles, monkeypatch):
    if not compiles:
        monkeypatch.setattr(building, "_can_compile", lambda: False)
    scale = torch.randn(50, 40)  # so large that it is not written into the code
    x = torch.randn(50, 40)
    fast, wanted = both(lambda x: x * scale, x)
    scale.zero_()
    assert torch.equal(fast(x), wanted)


def test_it_is_test_mode_even_where_the_scope_trains(without_compiler):
    model = network()
    fast = fl.inference(model)
    with fl.mode("train"):
        assert far(fast(X), fl.testmode(model)(X)) < 1e-6


def test_a_layer_pinned_to_training_goes_on_training(without_compiler):
    model = fl.Chain(fl.Dense(50, 50), fl.trainmode(fl.Dropout(0.5)))
    fast = fl.inference(model)
    x = torch.ones(1, 50)
    with fl.seeded(fl.Key(0)):
        one = fast(x)
    with fl.seeded(fl.Key(1)):
        assert not torch.equal(fast(x), one)


def test_no_graph_is_kept(without_compiler):
    x = torch.ones(1, 3, requires_grad=True)
    assert not fl.inference(fl.Dense(3, 2), x)(x).requires_grad


def test_inside_a_gradient_the_model_itself_runs(without_compiler):
    model = fl.Dense(3, 1)
    fast = fl.inference(model)
    g = fl.gradient(lambda x: fast(x).sum(), torch.ones(1, 3))
    assert torch.equal(g, model.weight)


def test_trees_go_in_and_come_out_and_names_are_handed_on(without_compiler):
    @fl.functor
    class Two:
        def __init__(self):
            self.dense = fl.Dense(3, 2)

        def __call__(self, x, *, twice=False):
            y = self.dense(x["a"])
            return {"y": 2 * y if twice else y, "x": x}

    model, x = Two(), {"a": torch.ones(1, 3)}
    fast = fl.inference(model)
    assert torch.equal(fast(x, twice=True)["y"], 2 * model.dense(x["a"]))
    assert fast(x)["x"]["a"] is x["a"]


def test_what_can_not_be_called_is_refused():
    with pytest.raises(TypeError, match="takes a model that can be called, found dict"):
        fl.inference({"a": torch.ones(2)})


def test_a_branch_on_a_value_is_an_error_that_names_the_line():
    def model(x):
        return x if x.sum() > 0 else -x

    with pytest.raises(RuntimeError, match=r"x\.sum"):
        fl.inference(model, torch.ones(3))


# Winograd's convolution


def test_the_transforms_are_those_of_a_filter_of_three_taps():
    """Output i is the sum over taps j of inputs i + j, by the entries themselves."""
    b, g, a = (torch.tensor(m, dtype=torch.float64) for m in (tiles._INPUT, tiles._KERNEL, tiles._OUTPUT))
    found = torch.einsum("ik,kj,kl->ijl", a, g, b)
    i, j, at = torch.meshgrid(torch.arange(2), torch.arange(3), torch.arange(4), indexing="ij")
    assert torch.equal(found, (at == i + j).double())


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    pad=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    bias=st.booleans(),
)
def test_tiles_of_winograd_are_torchs_convolution(size, pad, channels, bias):
    x = torch.randn(2, channels[0], *size).double()
    weight = torch.randn(channels[1], channels[0], 3, 3).double()
    b = torch.randn(channels[1]).double() if bias else None
    y = tiles.winograd(x, tiles.transformed_weight(weight), b, pad)
    assert torch.allclose(y, F.conv2d(x, weight, b, padding=pad), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [32, 56])
def test_winograd_is_as_exact_as_the_direct_form(size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 256, size, size, generator=generator)
    weight = torch.randn(64, 256, 3, 3, generator=generator)
    wanted = F.conv2d(x.double(), weight.double(), padding=1)
    y = tiles.winograd(x, tiles.transformed_weight(weight), None, (1, 1))
    assert far(y.double(), wanted) < 2 * far(F.conv2d(x, weight, padding=1).double(), wanted)


def frozen_operations(f, x):
    recorded = Recorder([x]).record(lambda x: [f(x)])
    module = functional(recorded)
    with torch.no_grad(), freezing(recorded.mode):
        freeze(module, recorded.inputs[:1], recorded.captured, recorded.mode)
    return [n for n in module.graph.nodes if n.op == "call_function"]


def convolutions(nodes):
    return [n for n in nodes if "convolution" in str(n.target)]


@pytest.mark.parametrize(
    ("layer", "size", "tiled"),
    [
        (fl.Conv((3, 3), 64, 64, pad=1), 16, True),
        (fl.Conv((3, 3), 64, 64), 16, True),
        (fl.Conv((3, 3), 64, 64, pad=1, stride=2), 16, False),
        (fl.Conv((3, 3), 64, 64, pad=2, dilation=2), 16, False),
        (fl.Conv((3, 3), 64, 64, pad=1, groups=2), 16, False),
        (fl.Conv((3, 3), 32, 64, pad=1), 16, False),
        (fl.Conv((3, 3), 64, 64, pad=1), 4, False),
        (fl.Conv((1, 1), 64, 64), 16, False),
        (fl.f64(fl.Conv((3, 3), 64, 64, pad=1)), 16, False),
    ],
    ids=str,
)
def test_tiles_are_chosen_where_they_pay(layer, size, tiled):
    x = torch.randn(1, layer.weight.shape[1] * layer.groups, size, size, dtype=layer.weight.dtype)
    found = convolutions(frozen_operations(layer, x))
    assert len(found) == 1
    groups = [a for a in found[0].args if a == 16]
    assert bool(groups) == tiled


def test_weights_are_packed_and_norms_vanish():
    model = network()
    targets = {str(n.target) for n in frozen_operations(model, X)}
    assert any("mkldnn._convolution" in t for t in targets) or not torch.backends.mkldnn.is_available()
    assert not any("rsqrt" in t or "batch_norm" in t for t in targets)


def test_a_norm_that_can_not_be_folded_in_the_tree_is_folded_in_the_graph():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    with torch.no_grad():
        module(X)
    model = fl.from_torch(module)
    targets = [str(n.target) for n in frozen_operations(model, X)]
    assert not any("rsqrt" in t for t in targets)
    assert sum("convolution" in t for t in targets) == 1
    assert not any(t.startswith(("aten.mul", "aten.add", "aten.sub")) for t in targets)


@pytest.mark.slow
def test_matrices_are_packed_for_onednn_where_the_blas_is_slow(monkeypatch):
    monkeypatch.setattr(passes, "_blas_is_slow", lambda: True)
    model, x = fl.Chain(fl.Dense(256, 192, fl.relu), fl.Dense(192, 160, bias=False)), torch.randn(128, 256)
    assert [str(n.target) for n in frozen_operations(model, x)].count("mkldnn._linear_pointwise.default") == 2
    assert far(fl.inference(model, x)(x), model(x)) < 1e-6


# What a maintainer found


def both(f, x):
    """What is compiled, and what the function gives."""
    fast = fl.inference(f, x)
    return fast, f(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "behind",
    [
        lambda y: y.as_strided((2, 64, 4, 4), (64 * 225, 225, 15, 1), 3),
        lambda y: torch.view_as_complex(y[:, :, :, :14].unflatten(3, (-1, 2)).contiguous()).abs(),
        lambda y: y.reshape(2, 64, -1),
        lambda y: F.group_norm(y, 4),
        lambda y: F.scaled_dot_product_attention(*[y.flatten(2).transpose(1, 2)] * 3),
        lambda y: y.view(2, -1).add_(1),
    ],
    ids=["as_strided", "complex", "reshape", "group norm", "attention", "in place"],
)
def test_what_reads_memory_behind_a_tiled_convolution_reads_the_same(behind):
    conv = fl.Conv((3, 3), 64, 64, pad=1, bias=False)
    x = torch.randn(2, 64, 15, 15)
    fast, wanted = both(lambda x: behind(conv(x)), x)
    assert far(fast(x), wanted) < 1e-5


@pytest.mark.slow
def test_results_share_memory_neither_with_constants_nor_with_each_other():
    c, m = torch.randn(4, 4), fl.Dense(4, 4)

    def f(x):
        return c + 1, c + 1, c.exp().t(), (c + 1)[0], c.sum() * 1, x + c, m(x), m(x), torch.tensor(3.0) + 0

    x = torch.ones(4, 4)
    fast = fl.inference(f, x)
    one, other = fast(x), fast(x)
    assert len({y.untyped_storage().data_ptr() for y in (*one, *other)}) == 18
    for y in one:
        y.zero_()
    for y, wanted in zip(fast(x), f(x), strict=True):
        assert torch.allclose(y, wanted)


@pytest.mark.slow
def test_a_shape_that_comes_later_has_the_weights_of_the_time_too():
    model = fl.Chain(fl.Dense(3, 3), fl.Dense(3, 2))
    x = torch.ones(1, 3)
    fast, before = both(model, x)
    model[0].weight.zero_()
    assert torch.allclose(fast(x.expand(2, 3)), before.expand(2, 2))


@pytest.mark.slow
def test_a_default_device_is_not_that_of_the_constants():
    conv, x = fl.Conv((3, 3), 64, 64, pad=1), torch.randn(1, 64, 16, 16)
    with torch.device("meta"):
        fast = fl.inference(conv, x)
        y = fast(x)
    assert far(y, conv(x)) < 1e-5


def test_numbers_that_are_constants_are_told_apart_by_the_cache():
    nodes = frozen_operations(lambda x: x * torch.tensor([2.0, 3.0])[1] + 1, torch.ones(3))
    graph = nodes[0].graph
    numbers = [getattr(graph.owning_module, n.target) for n in graph.nodes if n.op == "get_attr"]
    assert all(x._is_frozen_param is False for x in numbers if x.ndim == 0)


@pytest.mark.slow
def test_a_convolution_in_float64_among_others_is_not_packed():
    kernel = torch.randn(8, 3, 3, 3)
    fast, wanted = both(lambda x: F.conv2d(x.double(), kernel.double()).relu(), X)
    assert far(fast(X), wanted) < 1e-12


@pytest.mark.slow
def test_the_scope_s_mode_makes_no_second_trace():
    fast = fl.inference(fl.Dense(3, 2))
    x = torch.ones(1, 3)
    for value in ("train", "test"):
        with fl.mode(value):
            fast(x)
    assert fast.cache_info().traces == 1


def test_the_warning_of_many_shapes_says_what_inference_has(without_compiler):
    fast = fl.inference(fl.Dense(3, 2))
    for n in range(1, 8):
        fast(torch.ones(n, 3))
    with pytest.warns(UserWarning, match=r"inference\(Dense\) was traced 8 times .*; pad to one size"):
        fast(torch.ones(8, 3))


def test_a_compiled_model_is_a_leaf_of_a_tree(without_compiler):
    model = fl.Chain(fl.inference(fl.Dense(3, 4)), fl.Dense(4, 2))
    grads = fl.gradient(lambda m, x: m(x).sum(), model, torch.ones(1, 3))
    assert len(fl.trainables(grads)) == 2
