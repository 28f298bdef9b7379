"""Recurrent layers from Flux, Flax and Keras: gates in their order, one bias or two."""

import numpy as np
import pytest
import torch

import fluxlike as fl
from tests.placement.flux_formulas import (
    flax_gru,
    flax_lstm,
    flux_gru,
    flux_lstm,
    flux_rnn,
    keras_gru,
    keras_lstm,
)

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
LAYERS = {"RNN": fl.RNN, "LSTM": fl.LSTM, "GRU": fl.GRU}
CELLS = {"RNN": fl.RNNCell, "LSTM": fl.LSTMCell, "GRU": fl.GRUCell}


def drawn(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).normal(size=shape)


def zeros(model):
    return fl.fmap(torch.zeros_like, fl.f64(model))


def same_tensors(a, b):
    return all(torch.equal(x, y) for x, y in zip(fl.fleaves(a), fl.fleaves(b), strict=True))


def agree(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


class TestFormulas:
    @pytest.mark.parametrize(("kind", "formula"), [("RNN", flux_rnn), ("LSTM", flux_lstm), ("GRU", flux_gru)])
    @pytest.mark.parametrize("wrapped", [True, False])
    def test_flux(self, kind, formula, wrapped):
        n, x = GATES[kind] * 3, drawn(4, 5, 2)
        cell = {"Wi": drawn(n, 4), "Wh": drawn(n, 3), "bias": drawn(n)}
        state = {"cell": cell} if wrapped else cell
        model = fl.load_foreign_state(zeros(LAYERS[kind](4, 3)), state, "flux")
        y = model(torch.from_numpy(fl.batch_first(x)))
        agree(fl.batch_last(y.numpy()), formula(x, *cell.values()))

    @pytest.mark.parametrize(("kind", "formula"), [("LSTM", keras_lstm), ("GRU", keras_gru)])
    def test_keras(self, kind, formula):
        n, x = GATES[kind] * 3, drawn(2, 5, 4)
        arrays = [drawn(4, n), drawn(3, n), drawn(2, n) if kind == "GRU" else drawn(n)]
        model = fl.load_foreign_state(zeros(LAYERS[kind](4, 3)), arrays, "keras")
        agree(model(torch.from_numpy(x)).numpy(), formula(x, *arrays))

    @pytest.mark.parametrize(("kind", "formula"), [("LSTM", flax_lstm), ("GRU", flax_gru)])
    def test_flax(self, kind, formula):
        gates = {"LSTM": "ifgo", "GRU": "rzn"}[kind]
        biased = {"LSTM": ["hi", "hf", "hg", "ho"], "GRU": ["ir", "iz", "in", "hn"]}[kind]
        p = {f"i{g}": {"kernel": drawn(4, 3, seed=ord(g))} for g in gates}
        p |= {f"h{g}": {"kernel": drawn(3, 3, seed=ord(g))} for g in gates}
        for name in biased:
            p[name]["bias"] = drawn(3, seed=ord(name[0]) + ord(name[1]))
        x = drawn(2, 5, 4)
        model = fl.load_foreign_state(zeros(LAYERS[kind](4, 3)), {"params": {"cell": p}}, "flax")
        agree(model(torch.from_numpy(x)).numpy(), formula(x, p))


class TestRoundTrip:
    @pytest.mark.parametrize("framework", ["flux", "flax", "keras"])
    @pytest.mark.parametrize("kind", GATES)
    @pytest.mark.parametrize("settings", [{}, {"bias": False}, {"bidirectional": True}, {"num_layers": 2}])
    def test_what_was_read_is_written(self, framework, kind, settings):
        def make():
            return fl.Chain(
                LAYERS[kind](4, 3, **settings), LAYERS[kind](3 * (1 + ("bidirectional" in settings)), 2)
            )

        model = fl.at(make(), lambda path, x: path.endswith("bias_hh") and x is not None).apply(
            torch.zeros_like
        )
        state = fl.foreign_state(model, framework)
        loaded = fl.load_foreign_state(fl.fmap(torch.rand_like, make()), state, framework)
        assert same_tensors(loaded, model)
        assert same_tensors(fl.foreign_state(loaded, framework), state)

    @pytest.mark.parametrize(("framework", "kind"), [("keras", "GRU")])
    def test_two_biases_come_back_as_two(self, framework, kind):
        model = LAYERS[kind](4, 3)
        loaded = fl.load_foreign_state(LAYERS[kind](4, 3), fl.foreign_state(model, framework), framework)
        assert same_tensors(loaded, model)

    @pytest.mark.parametrize(
        ("framework", "kind"),
        [
            ("flux", "RNN"),
            ("flux", "LSTM"),
            ("keras", "LSTM"),
            ("flax", "LSTM"),
            ("flax", "GRU"),
            ("flax", "RNN"),
        ],
    )
    def test_two_biases_that_are_one_there_come_back_as_their_sum(self, framework, kind):
        model = fl.f64(LAYERS[kind](4, 3))
        loaded = fl.load_foreign_state(zeros(model), fl.foreign_state(model, framework), framework)
        x = torch.randn(2, 5, 4, dtype=torch.float64)
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("kind", GATES)
    def test_cells_alone(self, kind):
        cell = CELLS[kind](4, 3, bias=False)
        for framework in ("flux", "flax", "keras"):
            state = fl.foreign_state(cell, framework)
            assert same_tensors(fl.load_foreign_state(fl.fmap(torch.rand_like, cell), state, framework), cell)

    def test_in_place_a_bias_that_is_one_there_leaves_none_at_the_other_place(self):
        model = fl.LSTM(4, 3)
        there = fl.convert_layout(model, "torch", "flux")
        assert there.cells[0].bias_hh is None
        again = fl.convert_layout(there, "flux")
        assert torch.equal(again.cells[0].bias_ih, model.cells[0].bias_ih + model.cells[0].bias_hh)
        assert not again.cells[0].bias_hh.any()
        assert torch.equal(fl.convert_layout(again, "torch", "flux").cells[0].bias_ih, there.cells[0].bias_ih)


class TestErrors:
    def test_two_biases_of_a_gru_do_not_fit_into_flux(self):
        with pytest.raises(
            ValueError, match=r"\(GRU\): Flux's GRU has one bias, and the third part of bias_hh"
        ):
            fl.foreign_state(fl.GRU(4, 3), "flux")

    def test_a_gru_of_keras_without_reset_after(self):
        with pytest.raises(ValueError, match="reset_after=False, which multiplies by r before the product"):
            fl.load_foreign_state(zeros(fl.GRU(4, 3)), [drawn(4, 9), drawn(3, 9), drawn(9)], "keras")

    def test_a_bias_that_has_no_place_here(self):
        model = fl.at(zeros(fl.GRU(4, 3)), ".cells[0].bias_hh").set(None)
        arrays = [drawn(4, 9), drawn(3, 9), drawn(2, 9)]
        with pytest.raises(ValueError, match=r"finds bias, and there is no \.cells\[0\]\.bias_hh here"):
            fl.load_foreign_state(model, arrays, "keras")

    def test_gates_apart_do_not_fit_into_one_place(self):
        with pytest.raises(TypeError, match=r"weight_ih is several arrays there \(ii\.kernel, if\.kernel, "):
            fl.convert_layout(fl.LSTM(4, 3), "torch", "flax")


def test_names_of_keras_with_both_directions():
    layer = fl.LSTM(4, 3, bidirectional=True, bias=False)
    kernels = {
        f"bidirectional/{d}_lstm_1/lstm_cell/{n}": drawn(*s).astype(np.float32) * i
        for i, d in enumerate(("backward", "forward"), 1)
        for n, s in (("kernel", (4, 12)), ("recurrent_kernel", (3, 12)))
    }
    loaded = fl.load_foreign_state(fl.Chain(layer), kernels, "keras")[0]
    forward, backward = loaded.cells
    torch.testing.assert_close(forward.weight_ih, 2 * backward.weight_ih)


def test_names_of_flax_count_cells():
    model = fl.Chain(fl.LSTM(4, 3), fl.GRU(3, 3, bidirectional=True), fl.Dense(6, 2))
    assert list(fl.foreign_state(model, "flax")["params"]) == [
        "LSTMCell_0",
        "GRUCell_0",
        "GRUCell_1",
        "Dense_0",
    ]
