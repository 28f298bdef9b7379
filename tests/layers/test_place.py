"""Errors of layers name the whole path, through classes of the user's own."""

from __future__ import annotations

import pickle

import pytest
import torch

import fluxlike as fl


@fl.functor
class Net:
    def __init__(self, inner):
        self.encoders = {"main": inner}

    def __call__(self, x):
        return self.encoders["main"](x)


BAD = fl.Chain(fl.Dense(3, 4), fl.Dense(5, 2))
X = torch.zeros(1, 3)
CALLS = {
    "plain": lambda m: m(X),
    "gradient": lambda m: fl.gradient(lambda m: m(X).sum(), m),
    "jit": lambda m: fl.jit(lambda m: m(X))(m),
    "vmap": lambda m: fl.vmap(lambda x: m(x[None]))(X),
    "outputsize": lambda m: fl.outputsize(m, (1, 3)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("model", "path"),
    [
        (BAD, ".layers[1]"),
        (Net(BAD), ".encoders['main'].layers[1]"),
        (fl.Chain(fl.identity, Net(BAD)), ".layers[1].encoders['main'].layers[1]"),
        (Net(Net(fl.Chain(Net(BAD)))), ".encoders['main']" * 2 + ".layers[0].encoders['main'].layers[1]"),
        (Net(fl.SkipConnection(Net(BAD), torch.add)), ".encoders['main'].layer.encoders['main'].layers[1]"),
    ],
    ids=["a chain", "a class of one's own", "inside a chain", "deep", "around a skip"],
)
def test_the_path_of_a_failing_layer_goes_through_every_class(model, path, call):
    with pytest.raises(fl.LayerError) as caught:
        call(model)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: Dense(5, 2) got a tensor of shape (1, 4)")
    assert type(caught.value.__cause__) is ValueError
    assert pickle.loads(pickle.dumps(caught.value)).path == path


def test_an_error_of_another_class_keeps_it_and_notes_the_whole_path():
    def broken(x):
        return x.nothing

    with pytest.raises(AttributeError) as caught:
        Net(fl.Chain(Net(fl.Chain(fl.identity, broken))))(X)
    (note,) = caught.value.__notes__
    assert note.startswith(".encoders['main'].layers[0].encoders['main'].layers[1]: broken")


def test_the_path_goes_through_a_checkpoint():
    for model, path in (
        (Net(fl.checkpoint(BAD)), ".encoders['main'].f.layers[1]"),
        (fl.Chain(fl.checkpoint(Net(BAD))), ".layers[0].f.encoders['main'].layers[1]"),
    ):
        for call in (CALLS["plain"], CALLS["gradient"]):
            with pytest.raises(fl.LayerError) as caught:
                call(model)
            assert caught.value.path == path


def test_a_layer_that_is_made_in_the_call_is_named_from_where_it_is_known():
    @fl.functor
    class Copying:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, x):
            return fl.f64(self.inner)(x.double())

    with pytest.raises(fl.LayerError) as caught:
        fl.Chain(Copying(BAD))(X)
    assert caught.value.path == ".layers[0].layers[1]"


def test_a_layer_that_fails_while_a_model_is_made_says_so_and_nothing_of_the_models_children():
    @fl.functor(children=("a", "b"))
    class Model:
        def __init__(self):
            self.a = fl.Chain(fl.Dense(2, 3))
            self.b = self.a(torch.ones(1, 5))

    with pytest.raises(fl.LayerError, match=r"\(1, 5\)"):
        Model()
