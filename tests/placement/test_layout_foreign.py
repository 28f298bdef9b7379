"""Checkpoints of Flux, Flax and Keras: which array goes where, and what does not fit."""

import numpy as np
import pytest
import torch

import fluxlike as fl

FRAMEWORKS = ("flux", "flax", "keras")


def model_of_all():
    return fl.Chain(
        fl.Conv((3, 2), 2, 4, fl.relu),
        fl.BatchNorm(4),
        fl.DepthwiseConv((2, 2), 4, 8, bias=False),
        fl.ConvTranspose((2, 2), 8, 3),
        fl.GroupNorm(3, 3),
        fl.flatten,
        fl.Dense(3 * 3 * 4, 6),
        fl.LayerNorm(6),
        fl.SkipConnection(fl.Chain(fl.Dense(6, 6), fl.relu, fl.Dense(6, 6)), torch.add),
        fl.Dense(6, 2, bias=False),
    )


X = torch.zeros(1, 2, 5, 5)


def drawn_anew(model):
    return fl.fmap(torch.rand_like, model)


def same_tensors(a, b):
    return all(torch.equal(x, y) for x, y in zip(fl.fleaves(a), fl.fleaves(b), strict=True))


def f(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


class TestRoundTrip:
    @pytest.mark.parametrize("framework", FRAMEWORKS)
    def test_writing_and_reading_is_the_identity(self, framework):
        model = drawn_anew(model_of_all())
        state = fl.foreign_state(model, framework, inputs=X)
        again = fl.load_foreign_state(model_of_all(), state, framework, inputs=X)
        assert same_tensors(again, model)

    @pytest.mark.parametrize("framework", FRAMEWORKS)
    def test_reading_and_writing_is_the_identity(self, framework):
        state = fl.foreign_state(drawn_anew(model_of_all()), framework, inputs=X)
        model = fl.load_foreign_state(model_of_all(), state, framework, inputs=X)
        again = fl.foreign_state(model, framework, inputs=X)
        assert same_tensors(again, state)
        assert fl.fmap(lambda x: 0, again) == fl.fmap(lambda x: 0, state)

    @pytest.mark.parametrize("framework", FRAMEWORKS)
    def test_it_changes_nothing_and_shares_no_memory(self, framework):
        model, state = model_of_all(), fl.foreign_state(drawn_anew(model_of_all()), framework, inputs=X)
        before = [x.clone() for x in fl.fleaves([model, state])]
        loaded = fl.load_foreign_state(model, state, framework, inputs=X)
        theirs = {x.data_ptr() for x in fl.fleaves(state)}
        for x in fl.fleaves(loaded):
            assert x.is_contiguous()
            assert x.data_ptr() not in theirs
            x.zero_()
        assert all(torch.equal(a, b) for a, b in zip(fl.fleaves([model, state]), before, strict=True))

    @pytest.mark.parametrize("framework", FRAMEWORKS)
    def test_of_a_transformer(self, framework):
        def make():
            return fl.Chain(fl.Embedding(7, 4), fl.TransformerBlock(4, 2, 8), fl.Dense(4, 7))

        model = drawn_anew(make())
        state = fl.foreign_state(model, framework)
        assert same_tensors(fl.load_foreign_state(make(), state, framework), model)


class TestNames:
    def test_of_flux(self):
        state = fl.foreign_state(fl.Chain(fl.Dense(2, 3), fl.relu, fl.Dense(3, 1, bias=False)), "flux")
        assert fl.fmap(lambda x: tuple(x.shape), state) == {
            "layers": ({"weight": (3, 2), "bias": (3,)}, (), {"weight": (1, 3)})
        }

    def test_of_flax(self):
        model = fl.Chain(fl.Dense(2, 3), fl.BatchNorm(3), fl.Dense(3, 1))
        state = fl.foreign_state(model, "flax")
        assert {c: {k: list(v) for k, v in inner.items()} for c, inner in state.items()} == {
            "params": {
                "Dense_0": ["kernel", "bias"],
                "BatchNorm_0": ["scale", "bias"],
                "Dense_1": ["kernel", "bias"],
            },
            "batch_stats": {"BatchNorm_0": ["mean", "var"]},
        }

    def test_of_keras(self):
        state = fl.foreign_state(
            fl.Chain(fl.Conv((3,), 2, 3), fl.Conv((3,), 3, 3), fl.Conv((3, 3), 3, 3)), "keras"
        )
        assert list(state) == ["conv1d", "conv1d_1", "conv2d"]

    def test_of_a_chain_with_names(self):
        model = fl.Chain(encoder=fl.Dense(2, 3), act=fl.relu, decoder=fl.Chain(fl.Dense(3, 2)))
        params = fl.foreign_state(model, "flax")["params"]
        assert {k: list(v) for k, v in params.items()} == {
            "encoder": ["kernel", "bias"],
            "decoder": ["Dense_0"],
        }
        assert same_tensors(fl.load_foreign_state(drawn_anew(model), params, "flax"), model)

    def test_a_class_of_ones_own_has_its_attributes(self):
        @fl.functor
        class Net:
            def __init__(self):
                self.blocks, self.shift = [fl.Dense(2, 2), fl.Dense(2, 2)], torch.zeros(2)

        model = Net()
        params = fl.foreign_state(model, "flax")["params"]
        assert list(params) == ["blocks", "shift"]
        assert list(params["blocks"]) == ["Dense_0", "Dense_1"]
        assert same_tensors(fl.load_foreign_state(drawn_anew(model), params, "flax"), model)


class TestMatching:
    layers = fl.Chain(fl.Dense(2, 2), fl.relu, fl.Dense(2, 2), fl.Dense(2, 2))
    w, b = [f(2, 2) + i for i in range(3)], [f(2) + i for i in range(3)]

    def check(self, state, framework="keras"):
        model = fl.load_foreign_state(self.layers, state, framework)
        for layer, w, b in zip((model[0], model[2], model[3]), self.w, self.b, strict=True):
            assert np.array_equal(layer.weight.numpy(), w.T)
            assert np.array_equal(layer.bias.numpy(), b)

    def entries(self):
        return [{"kernel": w, "bias": b} for w, b in zip(self.w, self.b, strict=True)]

    def test_arrays_in_a_row(self):
        self.check([x for pair in zip(self.w, self.b, strict=True) for x in pair])

    def test_a_list_for_each_layer(self):
        self.check([[w, b] for w, b in zip(self.w, self.b, strict=True)])

    def test_layers_without_arrays_may_be_there(self):
        first, *others = ([w, b] for w, b in zip(self.w, self.b, strict=True))
        self.check([[], first, [], *others])

    def test_names_by_number_in_any_order(self):
        entries = self.entries()
        self.check({"dense_7": entries[2], "dense": entries[0], "dense_5": entries[1]})
        entries = self.entries()
        self.check({"Dense_10": entries[2], "Dense_2": entries[1], "Dense_1": entries[0]}, "flax")

    def test_names_with_slashes(self):
        entries = zip(("dense", "dense_1", "dense_2"), self.entries(), strict=True)
        self.check({f"sequential/{n}/{k}": x for n, e in entries for k, x in e.items()})

    def test_our_own_names(self):
        entries = self.entries()
        self.check({"layers": {0: entries[0], "2": entries[1], 3: entries[2]}})

    def test_names_of_a_chain_beat_their_order(self):
        model = fl.Chain(b=fl.Dense(2, 2), a=fl.Dense(2, 2))
        entries = self.entries()
        loaded = fl.load_foreign_state(model, {"a": entries[0], "b": entries[1]}, "keras")
        assert np.array_equal(loaded["a"].weight.numpy(), self.w[0].T)

    def test_a_wrapped_layer(self):
        state = {"cell": {"inner": self.entries()[0]}}
        assert np.array_equal(
            fl.load_foreign_state(fl.Dense(2, 2), state, "flax").weight.numpy(), self.w[0].T
        )

    def test_other_names_are_an_error_that_says_what_to_write(self):
        state = dict(zip(("one", "two", "three"), self.entries(), strict=True))
        with pytest.raises(
            ValueError,
            match=r"the names one, two, three at its root, and the model has \.layers\[0\] \(Dense\), .* "
            r"names such as dense_0, or a list with an entry for each",
        ):
            self.check(state)

    def test_another_number_of_layers_is_an_error(self):
        with pytest.raises(ValueError, match=r"a list of 2 .* the model has \.layers\[0\] \(Dense\), "):
            self.check([[w, b] for w, b in zip(self.w[:2], self.b[:2], strict=True)])
        with pytest.raises(ValueError, match="the names dense, dense_1"):
            self.check(dict(zip(("dense", "dense_1"), self.entries(), strict=False)))

    def test_a_tensor_of_no_layer_has_no_number(self):
        @fl.functor
        class Shift:
            def __init__(self):
                self.b = torch.zeros(2)

            def __call__(self, x):
                return x + self.b

        model = fl.Chain(fl.Dense(2, 2), Shift())
        with pytest.raises(
            ValueError, match=r"\.layers\[1\]\.b belongs to Shift, .* fluxlike\.Chain\(name=…\)"
        ):
            fl.load_foreign_state(model, {"dense": self.entries()[0]}, "keras")


class TestMismatches:
    model = fl.Chain(fl.Dense(2, 3), fl.Dense(3, 1))

    def state(self):
        return {
            "Dense_0": {"kernel": f(2, 3), "bias": f(3)},
            "Dense_1": {"kernel": f(3, 1), "bias": f(1)},
        }

    def test_all_are_named_at_once(self):
        state = self.state()
        del state["Dense_0"]["bias"]
        state["Dense_1"]["kernel"] = f(4, 1)
        state["Dense_1"]["scale"] = f(1)
        with pytest.raises(ValueError, match="the flax state does not fit the model") as error:
            fl.load_foreign_state(self.model, state, "flax")
        assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
            ".layers[0] (Dense), from ['Dense_0'], finds no bias",
            ".layers[1] (Dense), from ['Dense_1'], has no place for scale, of the shape (1,)",
            ".layers[1].weight has the shape (1, 4), the model has (1, 3)",
        ]

    def test_a_bias_too_many(self):
        with pytest.raises(ValueError, match=r"\.layers\[0\] \(Dense\), from .* has no place for bias"):
            fl.load_foreign_state(fl.Chain(fl.Dense(2, 3, bias=False), fl.Dense(3, 1)), self.state(), "flax")

    def test_another_dtype(self):
        state = self.state()
        state["Dense_0"]["bias"] = state["Dense_0"]["bias"].astype(np.float64)
        with pytest.raises(
            ValueError, match=r"\.layers\[0\]\.bias is of torch\.float64, the model of torch\.float32"
        ):
            fl.load_foreign_state(self.model, state, "flax")

    def test_another_rank(self):
        state = self.state()
        state["Dense_0"]["kernel"] = f(6)
        with pytest.raises(
            ValueError, match=r"\['Dense_0'\], can't take kernel: .* 'IO' to 'OI' takes an array of 2"
        ):
            fl.load_foreign_state(self.model, state, "flax")

    def test_an_unknown_framework(self):
        with pytest.raises(ValueError, match="src='torch': write one of 'flux', 'flax', 'keras'"):
            fl.load_foreign_state(self.model, {}, "torch")
        with pytest.raises(ValueError, match="dst='jax'"):
            fl.foreign_state(self.model, "jax")


class TestCollections:
    """Of Flax' variables, those collections are read in which layers keep something."""

    model = fl.Chain(fl.Dense(2, 3), fl.BatchNorm(3))

    def variables(self):
        return {
            "params": {
                "Dense_0": {"kernel": f(2, 3), "bias": f(3)},
                "BatchNorm_0": {"scale": f(3) + 1, "bias": f(3) + 2},
            },
            "batch_stats": {"BatchNorm_0": {"mean": f(3) + 3, "var": f(3) + 4}},
        }

    def test_they_are_read_as_one(self):
        loaded = fl.load_foreign_state(self.model, self.variables(), "flax")
        assert np.array_equal(loaded[1].weight.numpy(), f(3) + 1)
        assert np.array_equal(loaded[1].running_var.numpy(), f(3) + 4)

    def test_numbers_beside_them_are_settings(self):
        variables = self.variables() | {"step": 3, "rng": np.uint32(1), "empty": {}, "none": None}
        loaded = fl.load_foreign_state(self.model, variables, "flax")
        assert same_tensors(loaded, fl.load_foreign_state(self.model, self.variables(), "flax"))

    @pytest.mark.parametrize("name", ["ema_params", "opt_state"])
    def test_another_with_arrays_is_an_error_that_names_it(self, name):
        variables = self.variables() | {name: self.variables()["params"]}
        with pytest.raises(
            ValueError, match=rf"has arrays in '{name}' beside 'params', .* \{{'params': …\}}"
        ):
            fl.load_foreign_state(self.model, variables, "flax")

    def test_one_that_no_layer_of_this_model_uses_too(self):
        variables = {"params": self.variables()["params"]["Dense_0"], "batch_stats": {"mean": f(3)}}
        with pytest.raises(ValueError, match="has arrays in 'batch_stats'"):
            fl.load_foreign_state(fl.Dense(2, 3), variables, "flax")

    def test_two_with_one_name_are_an_error(self):
        variables = self.variables()
        variables["batch_stats"]["BatchNorm_0"]["scale"] = f(3)
        with pytest.raises(ValueError, match=r"two entries for \['BatchNorm_0'\]\['scale'\]"):
            fl.load_foreign_state(self.model, variables, "flax")

    def test_arrays_in_a_row_are_fine(self):
        loaded = fl.load_foreign_state(fl.Dense(2, 3), {"params": [f(2, 3), f(3)]}, "flax")
        assert np.array_equal(loaded.bias.numpy(), f(3))


class TestOddStates:
    """Whatever a file may hold: an error that names the place, none of numpy's or Python's own."""

    model = fl.Chain(fl.Dense(2, 3))

    @pytest.mark.parametrize("state", [None, 3, "weights.h5", object()])
    def test_no_state_at_all(self, state):
        found = "None" if state is None else f"a {type(state).__name__}"
        with pytest.raises(TypeError, match=rf"nested dicts or lists of arrays, .*; found {found}$"):
            fl.load_foreign_state(self.model, state, "keras")

    @pytest.mark.parametrize("array", [np.array([[None] * 3] * 2), np.array([["a"] * 3] * 2)])
    def test_arrays_of_objects_and_text(self, array):
        with pytest.raises(
            ValueError, match=r"\.layers\[0\] \(Dense\), from .*, can't take kernel: an array of the dtype"
        ):
            fl.load_foreign_state(self.model, {"Dense_0": {"kernel": array, "bias": f(3)}}, "flax")

    @pytest.mark.parametrize(
        "state",
        [
            {"a": f(2, 3), "a/kernel": f(2, 3)},
            {"a/kernel": f(2, 3), "a": f(2, 3)},
            {"a/bias": f(3), "/a/bias": f(3), "a/kernel": f(2, 3)},
            {"a": {"bias": f(3)}, "a/bias": f(3), "a/kernel": f(2, 3)},
        ],
    )
    def test_two_entries_of_one_name(self, state):
        with pytest.raises(ValueError, match=r"the state has two entries for \['a'\]"):
            fl.load_foreign_state(self.model, state, "keras")

    def test_dicts_and_names_with_slashes_may_be_mixed(self):
        state = {"dense": {"bias": f(3)}, "dense/kernel": f(2, 3)}
        assert np.array_equal(fl.load_foreign_state(self.model, state, "keras")[0].bias.numpy(), f(3))

    def test_names_with_dots_twice(self):
        state = {"a": {"kernel": f(2, 3)}, "a.kernel": f(2, 3), "bias": f(3)}
        with pytest.raises(
            ValueError, match=r"the root \(Dense\), .* finds two arrays of the name a\.kernel"
        ):
            fl.load_foreign_state(fl.Dense(2, 3), state, "keras")

    def test_two_directions_of_one_name(self):
        layer = fl.LSTM(2, 3, bidirectional=True)
        arrays = {f"{n}/{k}": f(3) for n in ("forward_a", "forward_b") for k in ("kernel", "bias")}
        with pytest.raises(ValueError, match=r"finds two arrays of the name forward\.kernel"):
            fl.load_foreign_state(layer, arrays, "keras")

    def test_a_state_that_holds_itself(self):
        state = {"bias": f(3)}
        state["a"] = [state]
        with pytest.raises(ValueError, match=r"the state holds itself at \['a'\]\[0\]"):
            fl.load_foreign_state(self.model, state, "keras")

    def test_none_in_the_place_of_a_layer(self):
        with pytest.raises(ValueError, match=r"\.layers\[0\] \(Dense\), from \['layers'\]\[0\], finds None"):
            fl.load_foreign_state(self.model, {"layers": {0: None}}, "keras")

    def test_a_kernel_of_one_axis(self):
        state = [f(3), f(4)]
        for layer in (fl.DepthwiseConv((3, 3), 2, 4), fl.Conv((3, 3), 1, 4), fl.ConvTranspose((3,), 1, 4)):
            with pytest.raises(ValueError, match=r"\(Conv\w*\), .* can't take kernel"):
                fl.load_foreign_state(fl.Chain(layer), state, "keras")


class TestArrays:
    def load(self, x):
        return fl.load_foreign_state(
            fl.fmap(lambda t: t.to(torch.bfloat16), fl.Embedding(2, 3))
            if x.dtype.name == "bfloat16"
            else fl.Embedding(2, 3),
            {"embedding": x},
            "flax",
        ).weight

    def test_read_only_reversed_and_big_endian_arrays(self):
        x = f(2, 3)
        for array in (x[::-1, ::-1], x.astype(">f4"), np.asfortranarray(x), np.broadcast_to(x[0], (2, 3))):
            array.flags.writeable = False
            assert np.array_equal(self.load(array).numpy(), array)

    def test_anything_that_numpy_takes(self):
        class Array:
            shape, dtype, ndim = (2, 3), np.dtype("float32"), 2

            def __array__(self, dtype=None, copy=None):
                return np.ones((2, 3), np.float32)

        assert torch.equal(self.load(Array()), torch.ones(2, 3))

    def test_bfloat16_as_jax_has_it(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        x = f(2, 3).astype(ml_dtypes.bfloat16)
        assert np.array_equal(self.load(x).float().numpy(), x.astype(np.float32))

    def test_a_model_on_the_meta_device_is_filled(self):
        model = fl.to_device(fl.Dense(2, 3), "meta")
        loaded = fl.load_foreign_state(model, [f(2, 3), f(3)], "keras")
        assert fl.get_device(loaded).type == "cpu"

    def test_what_no_checkpoint_holds_is_the_models_own(self):
        model = fl.BatchNorm(3, momentum=None)
        loaded = fl.load_foreign_state(model, fl.foreign_state(model, "flax"), "flax")
        assert loaded.num_batches_tracked is model.num_batches_tracked


def test_a_tensor_of_no_layer_is_copied_too():
    @fl.functor
    class Shift:
        def __init__(self):
            self.dense, self.shift = fl.Dense(2, 3), torch.zeros(3)

    state = {"dense": {"kernel": torch.ones(2, 3), "bias": torch.ones(3)}, "shift": torch.ones(3)}
    loaded = fl.load_foreign_state(Shift(), state, "flax")
    loaded.shift.zero_()
    assert torch.equal(state["shift"], torch.ones(3))


class TestTies:
    def tied(self):
        model = fl.Chain(fl.Embedding(5, 3), fl.Dense(3, 5, bias=False))
        return fl.at(model, ".layers[1].weight").set(model.layers[0].weight)

    def test_each_place_is_written_in_its_own_layout(self):
        model = self.tied()
        params = fl.foreign_state(model, "flax")["params"]
        assert torch.equal(params["Embed_0"]["embedding"], params["Dense_0"]["kernel"].T)
        loaded = fl.load_foreign_state(drawn_anew(model), {"params": params}, "flax")
        assert loaded.layers[0].weight is loaded.layers[1].weight
        assert torch.equal(loaded.layers[0].weight, model.layers[0].weight)

    def test_values_that_differ_are_an_error(self):
        params = fl.foreign_state(self.tied(), "flax")["params"]
        params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"] + 1
        with pytest.raises(
            ValueError, match=r"\.layers\[1\]\.weight is tied to \.layers\[0\]\.weight .* differ"
        ):
            fl.load_foreign_state(self.tied(), params, "flax")

    def test_one_place_is_enough(self):
        params = {"Embed_0": {"embedding": f(5, 3)}, "Dense_0": {"other": np.float32(1)}}
        loaded = fl.load_foreign_state(
            self.tied(), {"layers": {0: params["Embed_0"], 1: params["Dense_0"]}}, "flax"
        )
        assert np.array_equal(loaded.layers[1].weight.numpy(), f(5, 3))

    def test_one_layer_at_two_places_has_one_number(self):
        dense = fl.Dense(2, 2)
        model = fl.Chain(dense, fl.relu, dense)
        params = fl.foreign_state(model, "flax")["params"]
        assert list(params) == ["Dense_0"]
        loaded = fl.load_foreign_state(model, params, "flax")
        assert loaded.layers[0].weight is loaded.layers[2].weight
