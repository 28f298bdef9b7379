"""Models from Flux, Flax and Keras compute the same here: against explicit sums in the layout there."""

import numpy as np
import pytest
import torch

import fluxlike as fl
from tests.placement.flux_formulas import (
    flax_conv_transpose,
    flux_attention,
    flux_batchnorm,
    flux_conv,
    flux_conv_transpose,
    flux_dense,
    flux_flatten,
    head_attention,
    keras_conv_transpose,
    nhwc_conv,
    nhwc_depthwise,
)

FRAMEWORKS = ("flux", "flax", "keras")


def drawn(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape)


def zeros(model):
    """The model in float64 with nothing of its own left."""
    return fl.fmap(torch.zeros_like, fl.f64(model))


def from_flux(x):
    return torch.from_numpy(fl.batch_first(x))


def to_flux(y):
    return fl.batch_last(y.numpy())


def from_nhwc(x):
    return fl.permute(torch.from_numpy(x), "NHWC", "NCHW")


def to_nhwc(y):
    return fl.permute(y, "NCHW", "NHWC").numpy()


def agree(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


class TestFlux:
    def test_dense(self):
        w, b, x = drawn(3, 4), drawn(3), drawn(4, 2)
        model = fl.load_foreign_state(zeros(fl.Dense(4, 3)), {"weight": w, "bias": b}, "flux")
        agree(to_flux(model(from_flux(x))), flux_dense(x, w, b))

    def test_embedding(self):
        w = drawn(3, 7)
        model = fl.load_foreign_state(zeros(fl.Embedding(7, 3)), {"weight": w}, "flux")
        agree(model(torch.tensor([5, 0])).numpy(), w[:, [5, 0]].T)

    @pytest.mark.parametrize("groups", [1, 2])
    def test_conv_flips_its_kernel(self, groups):
        w, b, x = drawn(3, 2, 4 // groups, 6), drawn(6), drawn(7, 6, 4, 2)
        layer = fl.Conv((2, 3), 4, 6, stride=2, groups=groups)
        model = fl.load_foreign_state(zeros(layer), {"weight": w, "bias": b}, "flux")
        agree(to_flux(model(from_flux(x))), flux_conv(x, w, b, 2, groups))

    def test_crosscor_does_not(self):
        w, b, x = drawn(3, 2, 4, 6), drawn(6), drawn(7, 6, 4, 2)
        state = {"layers": ({"weight": w, "bias": b}, ())}
        layers = zeros(fl.Chain(fl.CrossCor((2, 3), 4, 6), fl.relu))
        model = fl.load_foreign_state(layers, state, "flux", crosscor=lambda m: m.layers[0])
        agree(to_flux(model(from_flux(x))), np.maximum(flux_conv(x, w, b, flipped=False), 0))
        there = fl.foreign_state(model, "flux", crosscor=".layers[0]")
        agree(there["layers"][0]["weight"].numpy(), w)

    def test_conv_transpose(self):
        w, b, x = drawn(3, 2, 5, 4), drawn(5), drawn(3, 4, 4, 2)
        layer = zeros(fl.ConvTranspose((2, 3), 4, 5, stride=2))
        model = fl.load_foreign_state(layer, {"weight": w, "bias": b}, "flux")
        agree(to_flux(model(from_flux(x))), flux_conv_transpose(x, w, b, 2))

    def test_batchnorm(self):
        scale, shift, mean, var, x = drawn(3), drawn(3), drawn(3), drawn(3) ** 2, drawn(5, 4, 3, 2)
        state = {"γ": scale, "β": shift, "μ": mean, "σ²": var, "λ": None, "ϵ": 1e-5, "chs": 3}
        model = fl.load_foreign_state(zeros(fl.BatchNorm(3)), state, "flux")
        agree(to_flux(model(from_flux(x))), flux_batchnorm(x, scale, shift, mean, var))

    def test_layernorm_over_several_axes(self):
        scale, shift, x = drawn(5, 4, 3), drawn(5, 4, 3) * 2, drawn(5, 4, 3, 2)
        state = {"diag": {"scale": scale, "bias": shift}}
        model = fl.load_foreign_state(zeros(fl.LayerNorm((3, 4, 5))), state, "flux")
        means = x.mean((0, 1, 2), keepdims=True)
        wanted = (x - means) / np.sqrt(x.var((0, 1, 2), keepdims=True) + 1e-5)
        agree(to_flux(model(from_flux(x))), wanted * scale[..., None] + shift[..., None])

    def test_attention(self):
        x = drawn(6, 5, 2)
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        arrays = {n: np.random.default_rng(i).normal(size=(6, 6)) for i, n in enumerate(names)}
        state = {n: {"weight": w, "bias": False} for n, w in arrays.items()}
        layer = zeros(fl.MultiHeadAttention(6, 2, bias=False))
        model = fl.load_foreign_state(layer, state, "flux")
        agree(to_flux(model(from_flux(x))), flux_attention(x, *arrays.values(), heads=2))

    def test_a_whole_model_with_a_flatten_whose_rows_stay_in_order(self):
        x = drawn(9, 8, 3, 2)
        conv = {"weight": drawn(3, 2, 3, 4), "bias": drawn(4)}
        norm = {"γ": drawn(4), "β": drawn(4), "μ": drawn(4), "σ²": drawn(4) ** 2}
        dense = {"weight": drawn(5, 7 * 7 * 4), "bias": drawn(5)}
        layers = fl.Chain(fl.Conv((2, 3), 3, 4, fl.relu), fl.BatchNorm(4), fl.flatten, fl.Dense(196, 5))
        model = fl.load_foreign_state(zeros(layers), {"layers": (conv, norm, (), dense)}, "flux")
        y = np.maximum(flux_conv(x, conv["weight"], conv["bias"]), 0)
        y = flux_dense(flux_flatten(flux_batchnorm(y, *norm.values())), dense["weight"], dense["bias"])
        agree(to_flux(model(from_flux(x))), y)

    def test_arrays_that_h5py_read_are_reversed_first(self):
        w, b = drawn(3, 2, 4, 6), drawn(6)
        layer = zeros(fl.Conv((2, 3), 4, 6))
        here = fl.load_foreign_state(layer, {"weight": w, "bias": b}, "flux")
        read = {"weight": w.T, "bias": b}
        again = fl.load_foreign_state(layer, fl.batch_last(read), "flux")
        assert torch.equal(here.weight, again.weight)


class TestChannelsLast:
    @pytest.mark.parametrize("framework", ["flax", "keras"])
    def test_dense(self, framework):
        w, b, x = drawn(4, 3), drawn(3), drawn(2, 4)
        model = fl.load_foreign_state(zeros(fl.Dense(4, 3)), {"kernel": w, "bias": b}, framework)
        agree(model(torch.from_numpy(x)).numpy(), x @ w + b)

    @pytest.mark.parametrize("framework", ["flax", "keras"])
    @pytest.mark.parametrize("groups", [1, 2])
    def test_conv(self, framework, groups):
        w, b, x = drawn(3, 2, 4 // groups, 6), drawn(6), drawn(2, 7, 6, 4)
        layer = zeros(fl.Conv((3, 2), 4, 6, groups=groups))
        model = fl.load_foreign_state(layer, {"kernel": w, "bias": b}, framework)
        agree(to_nhwc(model(from_nhwc(x))), nhwc_conv(x, w, b, groups))

    def test_depthwise_conv_of_flax_is_a_grouped_one(self):
        w, b, x = drawn(3, 2, 1, 6), drawn(6), drawn(2, 7, 6, 3)
        layer = zeros(fl.DepthwiseConv((3, 2), 3, 6))
        model = fl.load_foreign_state(layer, {"kernel": w, "bias": b}, "flax")
        agree(to_nhwc(model(from_nhwc(x))), nhwc_conv(x, w, b, 3))

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("m", [1, 2, 3])
    def test_depthwise_conv_of_keras_has_a_multiplier(self, m, bias):
        w, b, x = drawn(3, 2, 3, m), drawn(3 * m), drawn(2, 7, 6, 3)
        layer = zeros(fl.DepthwiseConv((3, 2), 3, 3 * m, bias=bias))
        state = {"depthwise_kernel": w, **({"bias": b} if bias else {})}
        model = fl.load_foreign_state(layer, state, "keras")
        agree(to_nhwc(model(from_nhwc(x))), nhwc_depthwise(x, w, b * bias))
        agree(fl.foreign_state(model, "keras")["kernel"].numpy(), w)

    def test_a_grouped_conv_of_keras_with_as_many_groups_as_channels(self):
        w, b, x = drawn(3, 2, 1, 6), drawn(6), drawn(2, 7, 6, 3)
        layer = zeros(fl.Conv((3, 2), 3, 6, groups=3))
        model = fl.load_foreign_state(layer, {"kernel": w, "bias": b}, "keras")
        agree(to_nhwc(model(from_nhwc(x))), nhwc_conv(x, w, b, 3))

    def test_conv_transpose_of_flax_is_a_correlation(self):
        w, b, x = drawn(3, 2, 4, 5), drawn(5), drawn(2, 3, 4, 4)
        layer = zeros(fl.ConvTranspose((3, 2), 4, 5, stride=2))
        model = fl.load_foreign_state(layer, {"kernel": w, "bias": b}, "flax")
        agree(to_nhwc(model(from_nhwc(x))), flax_conv_transpose(x, w, b, 2))

    def test_conv_transpose_of_keras_is_a_gradient(self):
        w, b, x = drawn(3, 2, 5, 4), drawn(5), drawn(2, 3, 4, 4)
        layer = zeros(fl.ConvTranspose((3, 2), 4, 5, stride=2))
        model = fl.load_foreign_state(layer, {"kernel": w, "bias": b}, "keras")
        agree(to_nhwc(model(from_nhwc(x))), keras_conv_transpose(x, w, b, 2))

    @pytest.mark.parametrize(("framework", "out"), [("flax", "out"), ("keras", "attention_output")])
    @pytest.mark.parametrize("kdim", [6, 4])
    def test_attention(self, framework, out, kdim):
        x = drawn(2, 5, 6)
        context = drawn(2, 5, kdim)
        shapes = {"query": (6, 2, 3), "key": (kdim, 2, 3), "value": (kdim, 2, 3)}
        pairs = {n: (drawn(*s), drawn(2, 3) * i) for i, (n, s) in enumerate(shapes.items())}
        pairs[out] = drawn(2, 3, 6), drawn(6)
        state = {n: {"kernel": w, "bias": b} for n, (w, b) in pairs.items()}
        layer = zeros(fl.MultiHeadAttention(6, 2, kdim=kdim, vdim=kdim))
        model = fl.load_foreign_state(layer, state, framework)
        if kdim == 6:
            agree(model(torch.from_numpy(x)).numpy(), head_attention(x, *pairs.values()))
        again = fl.foreign_state(model, framework)
        again = again.get("params", again)
        for name, (w, b) in pairs.items():
            agree(again[name]["kernel"].numpy(), w)
            agree(again[name]["bias"].numpy(), b)
        model(torch.from_numpy(x), torch.from_numpy(context))

    @pytest.mark.parametrize(("framework", "image"), [("flax", (5, 6, 4)), ("keras", (5, 6, 4))])
    def test_a_dense_after_a_flatten(self, framework, image):
        conv, x = {"kernel": drawn(3, 2, 3, 4), "bias": drawn(4)}, drawn(2, 7, 7, 3)
        scale, shift = drawn(120), drawn(120) * 2
        mean, var = drawn(120) * 3, drawn(120) ** 2
        dense = {"kernel": drawn(120, 5), "bias": drawn(5)}
        norms = {
            "flax": {"scale": scale, "bias": shift, "mean": mean, "var": var},
            "keras": {"gamma": scale, "beta": shift, "moving_mean": mean, "moving_variance": var},
        }
        layers = fl.Chain(
            fl.Conv((3, 2), 3, 4, fl.tanh), fl.flatten, fl.Dropout(0.1), fl.BatchNorm(120), fl.Dense(120, 5)
        )
        state = [conv, norms[framework], dense]
        model = fl.load_foreign_state(zeros(layers), state, framework, inputs=torch.zeros(1, 3, 7, 7))
        y = np.tanh(nhwc_conv(x, conv["kernel"], conv["bias"]))
        assert y.shape[1:] == image
        y = (y.reshape(2, -1) - mean) / np.sqrt(var + 1e-5) * scale + shift
        agree(model(from_nhwc(x)).numpy(), y @ dense["kernel"] + dense["bias"])


class TestFlattening:
    """What a flatten's input was is found by running the model on the meta device."""

    def test_without_an_example_where_it_may_matter_is_an_error(self):
        model = fl.Chain(fl.Conv((3, 3), 1, 2), fl.flatten, fl.Dense(8, 2))
        for framework in ("flax", "keras"):
            with pytest.raises(ValueError, match=rf"{framework} flattens images .*inputs=torch\.zeros\(1, 3"):
                fl.convert_layout(model, "torch", framework)
        fl.convert_layout(model, "torch", "flux")

    def test_an_example_that_does_not_fit_is_an_error(self):
        model = fl.Chain(fl.Conv((3, 3), 1, 2), fl.flatten, fl.Dense(8, 2))
        with pytest.raises(RuntimeError, match=r"the model fails on inputs= .LayerError"):
            fl.convert_layout(model, "torch", "flax", inputs=torch.zeros(1, 1, 9, 9))

    def test_without_a_convolution_too(self):
        x, w, b = drawn(2, 4, 5, 3), drawn(60, 2), drawn(2)
        model = zeros(fl.Chain(fl.flatten, fl.Dense(60, 2)))
        model = fl.load_foreign_state(model, [w, b], "keras", inputs=from_nhwc(x))
        agree(model(from_nhwc(x)).numpy(), x.reshape(2, -1) @ w + b)

    def test_in_a_class_of_ones_own(self):
        @fl.functor
        class Net:
            def __init__(self):
                self.conv, self.head = fl.Conv((2, 2), 3, 4), fl.Dense(48, 2)

            def __call__(self, x):
                y = torch.relu(self.conv(x))
                return self.head(y.reshape(y.shape[0], -1) * 2)

        x, kernel, w, b = drawn(2, 4, 5, 3), drawn(2, 2, 3, 4), drawn(48, 2), drawn(2)
        state = {"conv": {"kernel": kernel, "bias": np.zeros(4)}, "head": {"kernel": w, "bias": b}}
        model = fl.load_foreign_state(zeros(Net()), {"params": state}, "flax", inputs=from_nhwc(x))
        y = np.maximum(nhwc_conv(x, kernel, np.zeros(4)), 0)
        agree(model(from_nhwc(x)).numpy(), 2 * y.reshape(2, -1) @ w + b)

    def test_a_second_dense_stays(self):
        model = fl.Chain(fl.Conv((2, 2), 1, 3), fl.flatten, fl.Dense(12, 12), fl.relu, fl.Dense(12, 12))
        there = fl.convert_layout(model, "torch", "keras", inputs=torch.zeros(1, 1, 3, 3))
        assert torch.equal(there.layers[4].weight.T, model.layers[4].weight)
        assert not torch.equal(there.layers[2].weight.T, model.layers[2].weight)

    def test_after_a_global_pool_nothing_moves(self):
        model = fl.Chain(fl.Conv((2, 2), 1, 3), fl.GlobalMeanPool(), fl.flatten, fl.Dense(3, 2))
        there = fl.convert_layout(model, "torch", "keras", inputs=torch.zeros(1, 1, 3, 3))
        assert torch.equal(there.layers[3].weight.T, model.layers[3].weight)

    def test_sequences_of_features_are_no_images(self):
        x, w, b = torch.tensor([[1, 4, 2]]), drawn(6, 3), drawn(3)
        table = drawn(5, 2)
        model = zeros(fl.Chain(fl.Embedding(5, 2), fl.flatten, fl.Dense(6, 3)))
        model = fl.load_foreign_state(model, [table, w, b], "keras", inputs=x)
        agree(model(x).numpy(), table[x].reshape(1, -1) @ w + b)

    def test_sequences_after_a_convolution_are(self):
        x, kernel, w, b = drawn(2, 6, 3), drawn(2, 3, 4), drawn(20, 3), drawn(3)
        model = zeros(fl.Chain(fl.Conv((2,), 3, 4), fl.flatten, fl.Dense(20, 3)))
        here = fl.permute(torch.from_numpy(x), "NLC", "NCL")
        model = fl.load_foreign_state(model, [kernel, np.zeros(4), w, b], "keras", inputs=here)
        y = np.stack([np.einsum("nkc,kco->no", x[:, i : i + 2], kernel) for i in range(5)], 1)
        agree(model(here).numpy(), y.reshape(2, -1) @ w + b)

    def test_a_dense_that_makes_images(self):
        @fl.functor
        class Decoder:
            def __init__(self):
                self.dense, self.conv = fl.Dense(3, 24, fl.relu), fl.Conv((2, 2), 2, 3)

            def __call__(self, x):
                return self.conv(self.dense(x).reshape(-1, 2, 4, 3))

        x, w, b, kernel = drawn(5, 3), drawn(3, 24), drawn(24), drawn(2, 2, 2, 3)
        state = {"dense": {"kernel": w, "bias": b}, "conv": {"kernel": kernel, "bias": np.zeros(3)}}
        model = fl.load_foreign_state(zeros(Decoder()), state, "keras", inputs=torch.zeros(1, 3))
        y = np.maximum(x @ w + b, 0).reshape(5, 4, 3, 2)
        agree(to_nhwc(model(torch.from_numpy(x))), nhwc_conv(y, kernel, np.zeros(3)))

    def test_one_dense_after_images_of_two_shapes_is_an_error(self):
        dense = fl.Dense(12, 2)

        @fl.functor
        class Twice:
            def __init__(self):
                self.dense = dense

            def __call__(self, x, y):
                return self.dense(fl.flatten(x)) + self.dense(fl.flatten(y))

        inputs = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 3, 2)
        with pytest.raises(ValueError, match=r"axis 1 of \.dense\.weight .*\(3, 2, 2\) and of \(2, 3, 2\)"):
            fl.convert_layout(Twice(), "torch", "keras", inputs=inputs)


MODEL = fl.Chain(
    fl.Conv((3, 2), 2, 4, fl.relu),
    fl.BatchNorm(4),
    fl.ConvTranspose((2, 2), 4, 3, groups=1),
    fl.GroupNorm(3, 3),
    fl.flatten,
    fl.Dense(3 * 4 * 5, 6),
    fl.LayerNorm(6),
    fl.Dense(6, 2, bias=False),
)
X = torch.zeros(1, 2, 5, 5)


class TestInPlace:
    """`convert_layout`: from model to model, the values in our places."""

    @pytest.mark.parametrize("framework", FRAMEWORKS)
    def test_round_trip_is_the_identity(self, framework):
        there = fl.convert_layout(MODEL, "torch", framework, inputs=X)
        again = fl.convert_layout(there, framework, inputs=X)
        for a, b in zip(fl.fleaves(again), fl.fleaves(MODEL), strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(there.layers[0].weight.flatten(), MODEL.layers[0].weight.flatten())

    def test_from_one_framework_to_another(self):
        flux = fl.convert_layout(MODEL, "torch", "flux")
        keras = fl.convert_layout(flux, "flux", "keras", inputs=X)
        assert keras.layers[0].weight.shape == (3, 2, 2, 4)
        assert fl.tree.allclose(fl.convert_layout(keras, "keras", inputs=X), MODEL)

    def test_the_same_layout_is_the_model(self):
        assert fl.convert_layout(MODEL, "torch") is MODEL

    def test_ties_stay_where_the_layouts_agree(self):
        dense = fl.Dense(3, 3)
        there = fl.convert_layout(fl.Chain(dense, fl.relu, dense), "torch", "keras")
        assert there.layers[0].weight is there.layers[2].weight

    def test_ties_that_part_are_an_error_that_names_both_places(self):
        model = fl.Chain(fl.Embedding(5, 3), fl.Dense(3, 5))
        model = fl.at(model, ".layers[1].weight").set(model.layers[0].weight)
        with pytest.raises(
            ValueError,
            match=r"\.layers\[0\]\.weight and \.layers\[1\]\.weight are tied, and differ in .* keras",
        ):
            fl.convert_layout(model, "torch", "keras")

    def test_unknown_frameworks(self):
        with pytest.raises(ValueError, match="src='jax': write one of 'flux', 'flax', 'keras', 'torch'"):
            fl.convert_layout(MODEL, "jax")
        with pytest.raises(ValueError, match="dst='Keras'"):
            fl.convert_layout(MODEL, "torch", "Keras")

    def test_a_class_without_a_rule_is_an_error_that_shows_the_rule(self):
        @fl.functor
        class Mine:
            def __init__(self):
                self.w = torch.ones(2, 2)

        with pytest.raises(
            TypeError,
            match=r"\.layers\[0\]\.w has the shape \(2, 2\).*how Mine .* flux.*parameter_rule\(Mine, 'flux'",
        ):
            fl.convert_layout(_chain(Mine()), "flux")

    def test_a_vector_of_a_class_without_a_rule_stays(self):
        @fl.functor
        class Shift:
            def __init__(self):
                self.w = torch.ones(2)

            def __call__(self, x):
                return x + self.w

        shift = Shift()
        assert fl.convert_layout(shift, "keras").w is shift.w

    def test_several_arrays_in_one_place_are_an_error(self):
        with pytest.raises(TypeError, match=r"\.in_proj\.weight is several arrays there \(query\.kernel, "):
            fl.convert_layout(fl.MultiHeadAttention(4, 2), "torch", "flax")

    def test_a_kernel_of_the_wrong_rank_names_the_place(self):
        model = fl.at(fl.Chain(fl.Dense(3, 2)), ".layers[0].weight").set(torch.zeros(3))
        with pytest.raises(
            ValueError, match=r"\.layers\[0\]\.weight: .* takes an array of 2 axes, found the shape"
        ):
            fl.convert_layout(model, "keras")

    @pytest.mark.parametrize("framework", FRAMEWORKS)
    @pytest.mark.parametrize(
        "layer",
        [
            fl.Conv((3, 3), 1, 2),
            fl.Conv((3,), 1, 2, bias=False),
            fl.ConvTranspose((3, 3), 1, 2),
            fl.DepthwiseConv((3, 3), 2, 4),
            fl.Dense(2, 3),
            fl.Embedding(4, 3),
            fl.BatchNorm(3),
            fl.LayerNorm(3),
            fl.LayerNorm((2, 3)),
            fl.GRU(2, 3),
            fl.MultiHeadAttention(4, 2),
        ],
        ids=repr,
    )
    def test_a_stacked_layer_is_an_error_that_says_to_unstack_it(self, layer, framework):
        stacked = fl.stack([layer, layer])
        with pytest.raises(ValueError, match=r"has the shape \(2, .* axes; .* each of fluxlike\.unstack"):
            fl.convert_layout(stacked, "torch", framework)
        with pytest.raises(ValueError, match=r"has the shape \(2, .* axes; .* each of fluxlike\.unstack"):
            fl.foreign_state(fl.Chain(stacked), framework)
        with pytest.raises(
            (ValueError, TypeError), match=r"^\.(weight|in_proj\.weight|cells\[0\]\.weight_ih)\b"
        ):
            fl.convert_layout(stacked, framework)

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize(("channels", "out"), [(2, 2), (2, 4), (4, 4), (4, 2)])
    def test_groups_in_keras(self, channels, out, bias):
        layer = fl.Conv((3, 3), channels, out, groups=2, bias=bias)
        there = fl.convert_layout(layer, "torch", "keras")
        assert there.weight.shape == (3, 3, channels // 2, out)
        assert fl.tree.allclose(fl.convert_layout(there, "keras"), layer)

    def test_a_depthwise_kernel_of_keras_is_told_by_its_bias(self):
        kernel, layer = torch.rand(3, 3, 2, 2), fl.DepthwiseConv((3, 3), 2, 4)
        here = fl.convert_layout(fl.at(layer, ".weight").set(kernel), "keras")
        assert torch.equal(here.weight, fl.load_foreign_state(layer, [kernel, layer.bias], "keras").weight)


class TestCrossCor:
    """Which kernels are not flipped, from and to Flux."""

    def unflipped(self, model, where):
        there = fl.convert_layout(model, "torch", "flux", crosscor=where)
        convs = fl.at(model, lambda path, x: isinstance(x, fl.Conv))
        return [
            torch.equal(new.weight, fl.permute(old.weight, "OIHW", "WHIO"))
            for new, old in zip(
                fl.at(there, lambda path, x: isinstance(x, fl.Conv)).get(), convs.get(), strict=True
            )
        ]

    model = fl.Chain(
        a=fl.Chain(fl.Conv((2, 2), 1, 1), fl.relu, fl.Conv((2, 2), 1, 1)),
        b=fl.Conv((2, 2), 1, 1),
        c=fl.Dense(2, 2),
    )

    def test_a_layer(self):
        assert self.unflipped(self.model, ".layers[1]") == [False, False, True]
        assert self.unflipped(self.model, lambda m: m["a"][0]) == [True, False, False]

    def test_all_below_a_container(self):
        assert self.unflipped(self.model, ".layers[0]") == [True, True, False]
        assert self.unflipped(self.model, "") == [True, True, True]
        assert self.unflipped(self.model, (".layers[1]", ".layers[0].layers[2]")) == [False, True, True]

    def test_a_predicate(self):
        assert self.unflipped(self.model, lambda path, x: isinstance(x, fl.Conv)) == [True, True, True]

    @pytest.mark.parametrize("place", [".layers[0].layers[2]", ".layers[0].layers[0]"])
    def test_any_place_of_a_layer_that_is_at_two(self, place):
        conv = fl.Conv((2, 2), 1, 1)
        model = fl.Chain(fl.Chain(conv, fl.relu, conv))
        there = fl.convert_layout(model, "torch", "flux", crosscor=place)
        assert torch.equal(there[0][0].weight, fl.permute(conv.weight, "OIHW", "WHIO"))
        assert there[0][0].weight is there[0][2].weight
        state = fl.foreign_state(model, "flux", crosscor=place)
        loaded = fl.load_foreign_state(model, state, "flux", crosscor=place)
        assert torch.equal(loaded[0][0].weight, conv.weight)

    @pytest.mark.parametrize(
        "where", [".layers[0].layers[0].weight", ".layers[2]", (".layers[1]", ".layers[2]")]
    )
    def test_a_place_without_a_conv_is_an_error(self, where):
        for move in (
            lambda: fl.convert_layout(self.model, "torch", "flux", crosscor=where),
            lambda: fl.foreign_state(self.model, "flux", crosscor=where),
            lambda: fl.load_foreign_state(self.model, [], "flux", crosscor=where),
        ):
            with pytest.raises(
                ValueError, match=r"crosscor=.* is no Conv; .* such as \.layers\[0\]\.layers\[0\]"
            ):
                move()

    def test_a_transposed_one_is_none(self):
        with pytest.raises(ValueError, match="crosscor='': the model has no Conv; leave it out"):
            fl.convert_layout(fl.ConvTranspose((2, 2), 1, 1), "torch", "flux", crosscor="")

    @pytest.mark.parametrize("framework", ["flax", "keras"])
    def test_other_frameworks_have_none(self, framework):
        with pytest.raises(ValueError, match=f"kernels of Flux, and this is from or to {framework}"):
            fl.foreign_state(self.model["b"], framework, crosscor="")
        with pytest.raises(ValueError, match=f"kernels of Flux, and this is from or to {framework}"):
            fl.convert_layout(self.model["b"], framework, crosscor="")
        with pytest.raises(ValueError, match=f"kernels of Flux, and this is from or to {framework}"):
            fl.load_foreign_state(self.model["b"], [], framework, crosscor="")


def _chain(layer):
    layer.__class__.__call__ = lambda self, x: x
    return fl.Chain(layer)
