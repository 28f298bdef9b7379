"""What the layers say to somebody who comes from torch.nn."""

from __future__ import annotations

import pytest
import torch

import fluxlike as fl
from fluxlike.advice import OF_CHAINS, OF_LAYERS


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: fl.Chain(torch.nn.ReLU), r"step 0 of Chain is the class ReLU: write ReLU\("),
        (lambda: fl.Dense(2, 1, "relu"), r"the activation 'relu', which can't be called; write fl.relu"),
        (lambda: fl.Dense(2, 1, False), r"the activation False, which can't be called"),
        (lambda: fl.Conv((3, 3), 1, 1, torch.nn.ReLU), r"Conv got the class ReLU; write ReLU\(\)"),
    ],
)
def test_a_mistaken_layer_says_what_to_write(call, text):
    with pytest.raises(TypeError, match=text):
        call()


@pytest.mark.parametrize("name", OF_CHAINS)
def test_a_name_of_a_module_is_answered_with_what_does_it_here(name):
    model = fl.Chain()
    assert not hasattr(model, name)
    with pytest.raises(AttributeError, match=rf"^a Chain has no '{name}': \w+"):
        getattr(model, name)


LAYERS = [
    fl.Dense(2, 1),
    fl.BatchNorm(2),
    fl.Dropout(0.5),
    fl.LSTM(2, 1),
    fl.MultiHeadAttention(2, 1),
    fl.SkipConnection(fl.relu, torch.add),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_a_layer_answers_to_the_names_of_a_module_and_does_not_list_them(layer):
    kind = type(layer).__name__
    for name in OF_LAYERS:
        assert not hasattr(layer, name)
        assert not hasattr(type(layer), name)
        with pytest.raises(AttributeError, match=rf"^{kind} has no '{name}': \w+"):
            getattr(layer, name)
    assert set(OF_LAYERS).isdisjoint(dir(layer))
    assert {"__call__", *vars(layer)} <= set(dir(layer))


def test_a_layer_of_a_user_has_what_attributes_it_likes():
    class Own(fl.Dense):
        device = property(lambda self: self.weight.device)

        def __init__(self):
            super().__init__(2, 1)
            self.training = "mine"

    layer = fl.fmap(torch.clone, Own())
    assert (layer.training, layer.device.type) == ("mine", "cpu")
    assert {"training", "device"} <= set(dir(layer))
    assert "eval" not in dir(layer)


@pytest.mark.parametrize(
    "make",
    [
        lambda net: fl.Chain(net),
        lambda net: fl.Parallel(torch.add, net),
        lambda net: fl.SkipConnection(net, torch.add),
    ],
)
def test_a_class_with_forward_and_no_call_is_told_to_define_it(make):
    @fl.functor
    class Net:
        def __init__(self):
            self.fc = fl.Dense(2, 1)

        def forward(self, x):
            return self.fc(x)

    with pytest.raises(
        TypeError, match=r"a Net.*; define __call__ in Net \(fluxlike calls models directly; forward"
    ):
        make(Net())


def test_a_module_of_torch_may_be_a_step_and_follows_the_mode_of_the_scope():
    assert fl.Chain(torch.nn.ReLU())(torch.tensor([-1.0])).item() == 0
    model = fl.Chain(torch.nn.Dropout(0.5))
    x = torch.ones(100)
    assert torch.equal(model(x), x)
    with fl.mode("train"):
        assert (model(x) == 0).any()


@pytest.mark.parametrize(("layer", "shape"), [(fl.Dense(2, 1), (1, 2)), (fl.Conv((1,), 2, 1), (1, 2, 3))])
def test_an_input_of_another_dtype_says_how_to_convert_it(layer, shape):
    with pytest.raises(
        ValueError, match=r"holds float32, its input is float64; write x\.to\(torch\.float32\)"
    ):
        layer(torch.ones(shape).double())


def test_an_input_on_another_device_says_how_to_move_it():
    with pytest.raises(ValueError, match=r"on cpu, its input on meta; write fluxlike\.to_device\(x, 'cpu'\)"):
        fl.Dense(2, 1)(torch.ones(1, 2, device="meta"))


def test_running_out_of_memory_stays_what_it_is():
    def greedy(x):
        raise torch.OutOfMemoryError("no more")

    with pytest.raises(torch.OutOfMemoryError):
        fl.Chain(greedy)(torch.ones(1))


def test_names_that_no_longer_fit_the_layers_are_an_error():
    chain = fl.Chain(body=fl.Dense(1, 1), head=fl.Dense(1, 1))
    longer = fl.at(chain, ".layers").apply(lambda layers: (*layers, fl.Dense(1, 1)))
    with pytest.raises(KeyError, match="3 layers and the names"):
        longer["head"]
