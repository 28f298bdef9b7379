"""State dicts: nested dicts of tensors and plain values, and back with every check."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import fluxlike as fl


class Pair(NamedTuple):
    x: Any
    y: Any


@fl.functor
class Layer:
    def __init__(self, weight, scale=1.0, activation=torch.tanh):
        self.weight, self.scale, self.activation = weight, scale, activation


class TestStateDict:
    def test_attributes_keys_and_indices_lead_to_values(self):
        w, v = torch.ones(1), torch.zeros(2)
        d = fl.state_dict({"a": [Layer(w, 2.0)], "b": (v, "text")})
        assert d == {"a": {0: {"weight": w, "scale": 2.0}}, "b": {0: v, 1: "text"}}
        assert d["a"][0]["weight"] is w

    def test_functions_are_left_out_and_plain_values_kept(self):
        values = [None, True, 3, 2.5, 1j, "s", b"b"]
        assert fl.state_dict([*values, torch.tanh]) == dict(enumerate(values))

    def test_numpy_arrays_are_kept(self):
        array = np.ones(2)
        assert fl.state_dict([array])[0] is array

    def test_of_a_tensor_is_the_tensor(self):
        w = torch.ones(1)
        assert fl.state_dict(w) is w

    def test_ties_show_as_the_same_tensor(self):
        w = torch.ones(1)
        d = fl.state_dict([w, w])
        assert d[0] is d[1]


class TestLoad:
    def test_round_trip(self):
        a = fl.Chain(fl.Dense(2, 3, fl.relu), fl.BatchNorm(3))
        b = fl.Chain(fl.Dense(2, 3, fl.relu), fl.BatchNorm(3))
        loaded = fl.load_state_dict(b, fl.state_dict(a))
        assert type(loaded) is fl.Chain
        assert fl.tree.allclose(loaded, a)

    def test_the_model_is_unchanged(self):
        w = torch.zeros(1)
        model = Layer(w)
        fl.load_state_dict(model, fl.state_dict(Layer(torch.ones(1))))
        assert model.weight is w
        assert w.tolist() == [0]

    def test_functions_come_from_the_model(self):
        loaded = fl.load_state_dict(
            Layer(torch.zeros(1), activation=torch.relu), fl.state_dict(Layer(torch.ones(1)))
        )
        assert loaded.activation is torch.relu

    def test_plain_values_come_from_the_dict(self):
        assert (
            fl.load_state_dict(Layer(torch.ones(1), 1.0), fl.state_dict(Layer(torch.ones(1), 5.0))).scale == 5
        )

    def test_ties_of_the_model_stay_ties(self):
        v, w = torch.zeros(1), torch.ones(1)
        loaded = fl.load_state_dict([v, v], {0: w, 1: w.clone()})
        assert loaded[0] is loaded[1]
        assert loaded[0].tolist() == [1]

    def test_a_tie_with_equal_nans_is_equal(self):
        v, nan = torch.zeros(1), torch.tensor([float("nan")])
        loaded = fl.load_state_dict([v, v], {0: nan, 1: nan.clone()})
        assert loaded[0] is loaded[1]

    def test_places_that_the_model_does_not_tie_stay_apart(self):
        w = torch.ones(1)
        loaded = fl.load_state_dict([torch.zeros(1), torch.zeros(1)], {0: w, 1: w})
        assert loaded[0] is not loaded[1]
        assert loaded[0].data_ptr() != loaded[1].data_ptr()

    def test_named_tuples_and_optimiser_states(self):
        model = Pair(torch.ones(2), [torch.ones(1)])
        state = fl.setup(fl.Adam(), model)
        _, moved = fl.update(state, model, model)
        loaded = fl.load_state_dict(state, fl.state_dict(moved))
        assert fl.tree.allclose(loaded, moved)


class TestMismatches:
    def test_all_are_named_at_once(self):
        model = {
            "shape": torch.ones(2),
            "dtype": torch.ones(1),
            "kind": torch.ones(1),
            "gone": 1,
            "none": None,
        }
        d = {
            "shape": torch.ones(3),
            "dtype": torch.ones(1, dtype=torch.float64),
            "kind": "text",
            "none": torch.ones(1),
            "extra": 5,
        }
        with pytest.raises(ValueError, match="the state does not fit the model:") as error:
            fl.load_state_dict(model, d)
        assert set(str(error.value).splitlines()[1:]) == {
            "  ['gone'] is missing",
            "  ['extra'] is not in the model",
            "  ['shape'] has the shape (3,), the model has (2,)",
            "  ['dtype'] is of torch.float64, the model of torch.float32; convert one of them first",
            "  ['kind'] is a str, the model has a Tensor",
            "  ['none'] is a Tensor, the model has a NoneType",
        }

    def test_paths_are_those_of_the_tree(self):
        d = fl.state_dict(fl.Chain(fl.Dense(2, 1)))
        d["layers"][0]["weight"] = torch.ones(1, 3)
        del d["layers"][0]["bias"]
        d["layers"][5] = {"weight": torch.ones(1)}
        with pytest.raises(ValueError, match="does not fit") as error:
            fl.load_state_dict(fl.Chain(fl.Dense(2, 1)), d)
        assert ".layers[0].weight has the shape (1, 3), the model has (1, 2)" in str(error.value)
        assert ".layers[0].bias is missing" in str(error.value)
        assert ".layers[5]['weight'] is not in the model" in str(error.value)

    def test_different_values_at_a_tie(self):
        w = torch.ones(1)
        with pytest.raises(ValueError, match=r"\[1\] is tied to \[0\] in the model, but their values differ"):
            fl.load_state_dict([w, w], {0: torch.ones(1), 1: torch.zeros(1)})

    def test_a_tensor_in_place_of_a_node(self):
        with pytest.raises(ValueError, match=r"\.layers\[0\]\.weight is missing"):
            fl.load_state_dict(fl.Chain(fl.Dense(1, 1)), {"layers": torch.ones(1)})

    def test_a_node_in_place_of_a_tensor(self):
        with pytest.raises(ValueError, match=r"\['w'\]\['x'\] is not in the model"):
            fl.load_state_dict({"w": torch.ones(1)}, {"w": {"x": torch.ones(1)}})

    def test_a_bool_is_no_number(self):
        with pytest.raises(ValueError, match=r"\[0\] is a bool, the model has a int"):
            fl.load_state_dict([1], {0: True})
