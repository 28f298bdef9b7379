"""Which parameters count flattened images: found by following features through the model, or refused."""

import functools

import pytest
import torch

import fluxlike as fl

CONV = fl.Conv((3, 3), 2, 6)
X = torch.zeros(1, 2, 6, 6)
CUT = "where channels are last; convert the layers before and after on their own"


def in_keras(model, *inputs):
    return fl.convert_layout(model, "torch", "keras", inputs=inputs)


def entries_last(*image):
    """Where the entries of flattened images (C, …) are with the channels last."""
    return torch.arange(torch.Size(image).numel()).reshape(image).movedim(0, -1).flatten()


def assert_reordered(model, path, order, *inputs):
    """The rows of the kernel at a path have our order, and all others are as they were."""
    there = in_keras(model, *inputs)
    ours, theirs = (functools.reduce(getattr_or_item, path, m) for m in (model, there))
    assert torch.equal(theirs, ours.T[order])
    assert not torch.equal(order, torch.arange(len(order)))
    back = fl.convert_layout(there, "keras", inputs=inputs)
    assert all(torch.equal(a, b) for a, b in zip(fl.fleaves(back), fl.fleaves(model), strict=True))


def getattr_or_item(x, step):
    return x[step] if isinstance(step, int) else getattr(x, step)


def after(*layers, image, out=None, first=CONV, x=X):
    """Layers between a convolution and a Dense whose rows must be in the order of images."""
    n = torch.Size(image).numel()
    model = fl.Chain(first, *layers, fl.Dense(n, 2))
    assert_reordered(model, ("layers", len(layers) + 1, "weight"), entries_last(*image), x)


def cat(*xs):
    return torch.cat(xs, 1)


@fl.functor
class Own:
    """A model of layers by name and a function of them and the inputs."""

    def __init__(self, f, **layers):
        self.f, self.layers = f, layers

    def __call__(self, *xs):
        return self.f(*xs, **self.layers)


class TestImagesThatAreFlattened:
    def test_joined_along_their_channels(self):
        after(fl.flatten, first=fl.Parallel(cat, CONV, CONV), image=(12, 4, 4))

    def test_parts_of_their_channels(self):
        after(lambda x: x.chunk(2, 1)[0], fl.flatten, image=(3, 4, 4))
        after(lambda x: x[:, 2:], fl.flatten, image=(4, 4, 4))

    @pytest.mark.parametrize(
        ("layer", "image"),
        [
            (fl.MaxPool((2, 2)), (6, 2, 2)),
            (fl.LPPool((2, 2)), (6, 2, 2)),
            (fl.AdaptiveMeanPool((3, 2)), (6, 3, 2)),
            (fl.Upsample(2), (6, 8, 8)),
            (fl.Upsample(2, mode="bilinear"), (6, 8, 8)),
            (fl.PixelUnshuffle(2), (24, 2, 2)),
            (fl.GroupNorm(6, 2), (6, 4, 4)),
            (fl.InstanceNorm(6), (6, 4, 4)),
            (fl.LayerNorm((6, 4, 4)), (6, 4, 4)),
            (fl.DropPath(0.1), (6, 4, 4)),
            (fl.SkipConnection(fl.Conv((1, 1), 6, 6), torch.add), (6, 4, 4)),
            (fl.SkipConnection(fl.Conv((1, 1), 6, 2), cat), (8, 4, 4)),
            (lambda x: torch.nn.functional.pad(x, (1, 0)), (6, 4, 5)),
            (lambda x: x.flip(3), (6, 4, 4)),
            (lambda x: torch.where(x > 0, x, 0 * x), (6, 4, 4)),
            (lambda x: x.transpose(2, 3), (6, 4, 4)),
        ],
    )
    def test_after_a_layer_for_images(self, layer, image):
        after(layer, fl.flatten, image=image)

    @pytest.mark.parametrize(
        ("layer", "image"),
        [
            (fl.MaxPool((2,)), (3, 4)),
            (fl.MeanPool((2,)), (3, 4)),
            (fl.AdaptiveMaxPool((2,)), (3, 2)),
            (fl.Upsample(2), (3, 16)),
            (fl.BatchNorm(3), (3, 8)),
        ],
    )
    def test_of_one_spatial_axis_by_what_takes_them(self, layer, image):
        after(fl.flatten, first=layer, image=image, x=torch.zeros(1, 3, 8))

    def test_by_a_layer_that_comes_later(self):
        def both(x, dense, norm):
            return dense(x.flatten(1)), norm(x)

        model = Own(both, dense=fl.Dense(24, 2), norm=fl.BatchNorm(3))
        there = in_keras(model, torch.zeros(1, 3, 8))
        assert torch.equal(there.layers["dense"].weight, model.layers["dense"].weight.T[entries_last(3, 8)])

    def test_with_others_in_a_row(self):
        def both(x, z, a, b, dense):
            return dense(torch.cat([a(x).flatten(1), z, b(x).flatten(1)], 1))

        model = Own(both, a=CONV, b=fl.Conv((5, 5), 2, 3), dense=fl.Dense(96 + 5 + 12, 2))
        order = torch.cat([entries_last(6, 4, 4), torch.arange(96, 101), 101 + entries_last(3, 2, 2)])
        there = in_keras(model, X, torch.zeros(1, 5))
        assert torch.equal(there.layers["dense"].weight, model.layers["dense"].weight.T[order])

    def test_of_which_some_spatial_axes_stay(self):
        def columns(x, conv, dense):  # as in a network that reads text
            return dense(conv(x).flatten(1, 2).transpose(1, 2))

        model = Own(columns, conv=CONV, dense=fl.Dense(24, 2))
        there = in_keras(model, X)
        assert torch.equal(there.layers["dense"].weight, model.layers["dense"].weight.T[entries_last(6, 4)])

    @pytest.mark.parametrize("batch", [1, 2, 7])
    def test_in_batches_of_any_size(self, batch):
        after(fl.flatten, image=(6, 4, 4), x=torch.zeros(batch, 2, 6, 6))


class TestLayersThatTakeThem:
    image = entries_last(6, 4, 4)

    @pytest.mark.parametrize(
        "layer", [fl.LayerNorm(96), fl.BatchNorm(96), fl.RMSNorm(96)], ids=lambda x: type(x).__name__
    )
    def test_norms(self, layer):
        weight = torch.arange(96.0)
        model = fl.Chain(CONV, fl.flatten, fl.at(layer, ".weight").set(weight), fl.Dense(96, 2))
        there = in_keras(model, X)
        assert torch.equal(there.layers[2].weight, weight[self.image])
        assert torch.equal(there.layers[3].weight, model.layers[3].weight.T[self.image])

    def test_by_hand(self):
        for f in (
            lambda x, conv, dense: conv(x).flatten(1) @ dense.weight.T,
            lambda x, conv, dense: torch.einsum("nf,kf->nk", conv(x).flatten(1), dense.weight),
            lambda x, conv, dense: torch.nn.functional.linear(conv(x).flatten(1), dense.weight),
            lambda x, conv, dense: (dense.weight @ conv(x).flatten(1).T).T,
        ):
            model = Own(f, conv=CONV, dense=fl.Dense(96, 2))
            there = in_keras(model, X)
            assert torch.equal(there.layers["dense"].weight, model.layers["dense"].weight.T[self.image])

    def test_several(self):
        model = fl.Chain(CONV, fl.flatten, fl.Maxout(fl.Dense(96, 2), fl.Dense(96, 2)))
        for a, b in zip(in_keras(model, X).layers[2].layers, model.layers[2].layers, strict=True):
            assert torch.equal(a.weight, b.weight.T[self.image])

    def test_that_make_them_together(self):
        for f in (
            lambda z, a, b, conv: conv((a(z) + b(z)).reshape(-1, 3, 2, 2)),
            lambda z, a, b, conv: conv(a(z).reshape(-1, 3, 2, 2) + b(z).reshape(-1, 3, 2, 2)),
        ):
            layers = {"a": fl.Dense(3, 12), "b": fl.Dense(3, 12), "conv": fl.ConvTranspose((2, 2), 3, 1)}
            there = in_keras(Own(f, **layers), torch.zeros(1, 3))
            for name in "ab":
                assert torch.equal(there.layers[name].weight.T, layers[name].weight[entries_last(3, 2, 2)])
                assert torch.equal(there.layers[name].bias, layers[name].bias[entries_last(3, 2, 2)])


class TestWhatStays:
    @pytest.mark.parametrize(
        ("model", "x"),
        [
            (fl.Chain(fl.LSTM(4, 3), fl.flatten, fl.Dense(15, 2)), torch.zeros(2, 5, 4)),
            (fl.Chain(fl.Dense(4, 3), fl.flatten, fl.Dense(15, 2)), torch.zeros(2, 5, 4)),
            (fl.Chain(fl.LayerNorm(4), fl.flatten, fl.Dense(20, 2)), torch.zeros(2, 5, 4)),
            (fl.Chain(fl.RMSNorm(4), fl.flatten, fl.Dense(20, 2)), torch.zeros(2, 5, 4)),
            (fl.Chain(fl.LSTM(4, 3), lambda x: x[:, -1], fl.Dense(3, 2)), torch.zeros(2, 5, 4)),
            (fl.Chain(lambda x: x.mean(1), fl.Dense(4, 2)), torch.zeros(2, 5, 4)),
            (fl.Chain(lambda x: torch.fft.rfft(x, dim=1).real, fl.Dense(4, 2)), torch.zeros(2, 5, 4)),
            (fl.Chain(CONV, fl.GlobalMeanPool(), fl.flatten, fl.Dense(6, 2)), X),
            (fl.Chain(CONV, lambda x: x.std((2, 3)), fl.Dense(6, 2)), X),
            (fl.Chain(CONV, lambda x: x.permute(0, 2, 3, 1), fl.Dense(6, 2), fl.flatten, fl.Dense(32, 2)), X),
            (fl.Chain(CONV, lambda x: x.flatten(2).transpose(1, 2), fl.Dense(6, 4), fl.Dense(4, 2)), X),
            (fl.Chain(CONV, lambda x: x.mean(2).transpose(1, 2), fl.GRU(6, 4), fl.Dense(4, 2)), X),
        ],
    )
    def test_where_both_orders_are_the_same(self, model, x):
        there = in_keras(model, x)
        for a, b in zip(there.layers, model.layers, strict=True):
            if isinstance(b, fl.Dense):
                assert torch.equal(a.weight, b.weight.T)

    def test_attention_over_places(self):
        block = fl.TransformerBlock(6, 2, 8)
        model = fl.Chain(CONV, lambda x: x.flatten(2).transpose(1, 2), block, fl.flatten, fl.Dense(96, 2))
        state = fl.foreign_state(model, "keras", inputs=X)
        assert torch.equal(list(state.values())[-1]["kernel"], model.layers[4].weight.T)

    def test_the_channels_of_a_residual_image(self):
        def f(x, conv, wide, narrow, dense):  # as in ConvNeXt
            y = conv(x)
            y = y + narrow(torch.relu(wide(y.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
            return dense(y.flatten(1))

        layers = {"conv": CONV, "wide": fl.Dense(6, 9), "narrow": fl.Dense(9, 6), "dense": fl.Dense(96, 2)}
        there = in_keras(Own(f, **layers), X)
        assert torch.equal(there.layers["wide"].weight, layers["wide"].weight.T)
        assert torch.equal(there.layers["narrow"].weight, layers["narrow"].weight.T)
        assert torch.equal(there.layers["dense"].weight, layers["dense"].weight.T[entries_last(6, 4, 4)])


def put(x):
    y = torch.zeros(x.shape[0], 100)
    y[:, :96] = x
    return y[:, :98]


class TestWhatNothingTells:
    @pytest.mark.parametrize(
        ("between", "n"),
        [
            (lambda x: x[:, :6], 6),
            (lambda x: x[:, 3], 1),
            (lambda x: x.chunk(2, 1)[0], 48),
            (lambda x: x.cumsum(1), 96),
            (lambda x: x.flip(1), 96),
            (lambda x: x.sort(1)[0], 96),
            (lambda x: x.reshape(-1, 24, 4).sum(2), 24),
            (lambda x: x.reshape(-1, 32, 3)[:, :, 0], 32),
            (lambda x: torch.fft.rfft(x).real, 49),
            (lambda x: x.unfold(1, 4, 4).sum(2), 24),
            (put, 98),
        ],
    )
    def test_of_a_flattened_image_is_an_error(self, between, n):
        def one(x):
            y = between(x)
            return y if y.ndim > 1 else y[:, None]

        with pytest.raises(ValueError, match=rf"\.layers\[3\]\.weight.*({CUT}|; convert the layers)"):
            in_keras(fl.Chain(CONV, fl.flatten, one, fl.Dense(n, 2)), X)

    @pytest.mark.parametrize(
        "between",
        [
            lambda x: torch.fft.fft2(x).real,
            lambda x: x.unfold(2, 4, 1).squeeze(2).reshape(-1, 6, 4, 4),
            lambda x: x.reshape(-1, 3, 8, 4),
            lambda x: torch.stack([x, x], 1)[:, :, :3],
            lambda x: x.permute(0, 2, 1, 3),
            lambda x: x.reshape(-1, 3, 2, 4, 4).permute(0, 1, 3, 2, 4),
        ],
    )
    def test_of_an_image_that_is_flattened_then_is_an_error(self, between):
        model = fl.Chain(CONV, between, fl.flatten, fl.Dense(96, 2))
        with pytest.raises(ValueError, match=r"\.layers\[3\]\.weight.*; convert the layers"):
            in_keras(model, X)

    def test_an_image_in_another_shape_that_a_convolution_takes_is_an_error(self):
        model = fl.Chain(CONV, lambda x: x.reshape(-1, 12, 4, 2), fl.Conv((1, 1), 12, 2))
        with pytest.raises(ValueError, match=r"\.layers\[2\].*; convert the layers"):
            in_keras(model, X)

    def test_what_is_unknown_but_an_image_to_the_next_layer_is_none(self):
        model = fl.Chain(lambda x: torch.fft.fft2(x).real, CONV, fl.flatten, fl.Dense(96, 2))
        assert_reordered(model, ("layers", 3, "weight"), entries_last(6, 4, 4), X)

    def test_an_input_of_three_axes_that_no_layer_explains_is_an_error(self):
        with pytest.raises(
            ValueError, match=r"axis 1 of \.layers\[1\]\.weight: nothing tells which of 5 .unsure."
        ):
            in_keras(fl.Chain(fl.flatten, fl.Dense(20, 2)), torch.zeros(1, 5, 4))

    def test_a_parameter_made_of_another_is_an_error(self):
        def f(x, conv, dense):
            return conv(x).flatten(1) @ torch.linalg.matrix_exp(dense.weight)

        with pytest.raises(ValueError, match=r"dense.*\.weight is made into another tensor"):
            in_keras(Own(f, conv=CONV, dense=fl.Dense(96, 96)), X)

    def test_an_empty_example_is_an_error(self):
        with pytest.raises(ValueError, match="inputs= is empty"):
            in_keras(fl.Chain(CONV, fl.flatten, fl.Dense(96, 2)), X[:0])


class MyDense(fl.Dense):
    pass


class Flattening(fl.Dense):
    def __call__(self, x):
        return super().__call__(x.flatten(1))


class TestWithoutAnExample:
    @pytest.mark.parametrize(
        "model",
        [
            fl.Chain(CONV, fl.flatten, MyDense(96, 2)),
            fl.Chain(lambda x: torch.flatten(x, 1), fl.Dense(96, 2)),
            fl.Chain(functools.partial(torch.flatten, start_dim=1), fl.Dense(96, 2)),
            fl.Chain(fl.flatten, fl.Dense(96, 2)),
            fl.Chain(Flattening(96, 2)),
            Own(lambda x, d: d(x.flatten(1)), d=fl.Dense(96, 2)),
            fl.Chain(fl.Dense(2, 12), lambda x: x.reshape(-1, 3, 2, 2), fl.ConvTranspose((2, 2), 3, 1)),
            fl.Chain(fl.MaxPool((2, 2)), fl.flatten, fl.LayerNorm(12)),
        ],
    )
    def test_what_may_flatten_asks_for_one(self, model):
        for framework in ("flax", "keras"):
            with pytest.raises(ValueError, match=r"give an example of its input"):
                fl.convert_layout(model, "torch", framework)

    @pytest.mark.parametrize(
        "model",
        [
            fl.Chain(fl.Dense(2, 3), fl.relu, MyDense(3, 1)),
            fl.Chain(fl.Embedding(7, 4), fl.SkipConnection(fl.Dense(4, 4), torch.add), fl.Dense(4, 7)),
            fl.Chain(CONV, fl.BatchNorm(6), fl.relu, fl.GlobalMeanPool(), fl.flatten),
            fl.Chain(fl.LSTM(2, 3), fl.Dropout(0.1), fl.Dense(3, 1)),
        ],
    )
    def test_what_cannot_does_not(self, model):
        fl.convert_layout(model, "torch", "keras")


class TestTheRun:
    model = fl.Chain(fl.Conv((3, 3), 1, 2), fl.BatchNorm(2), fl.Dropout(0.5), fl.flatten, fl.Dense(8, 2))
    x = torch.zeros(1, 1, 4, 4)

    def check(self, between):
        model = fl.Chain(fl.Conv((3, 3), 1, 2), between, fl.flatten, fl.Dense(8, 2))
        assert_reordered(model, ("layers", 3, "weight"), entries_last(2, 2, 2), self.x)

    def test_a_step_may_hold_tensors_or_make_some(self):
        w = torch.ones(1, 2, 1, 1)
        self.check(lambda x: x * w)
        self.check(lambda x: x + torch.arange(2.0))
        self.check(lambda x: x + torch.zeros(2, 2, device=x.device))

    def test_it_draws_nothing_and_moves_no_buffer(self):
        def draws(convert):
            torch.manual_seed(0)
            with fl.mode("train"), fl.seeded(fl.Key(0)):
                if convert:
                    in_keras(self.model, self.x)
                return fl.Dropout(0.5)(torch.ones(50)), torch.rand(3)

        before = [x.clone() for x in fl.fleaves(self.model)]
        assert all(torch.equal(a, b) for a, b in zip(draws(False), draws(True), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before, fl.fleaves(self.model), strict=True))

    def test_inside_a_gradient(self):
        grads = fl.gradient(lambda m: in_keras(m, self.x).layers[4].weight[1].sum(), self.model)
        place = entries_last(2, 2, 2)[1]
        assert torch.equal(grads.layers[4].weight, torch.eye(8)[place].expand(2, 8))

    def test_with_the_meta_device_as_the_default(self):
        with torch.device("meta"):
            there = in_keras(self.model, torch.zeros(1, 1, 4, 4))
        assert torch.equal(there.layers[4].weight, self.model.layers[4].weight.T[entries_last(2, 2, 2)])

    def test_a_model_and_an_input_of_other_dtypes(self):
        there = in_keras(fl.f64(self.model), self.x)
        assert there.layers[4].weight.dtype == torch.float64
