"""`jit`: what a function sets outside of its results is refused, and what was there is put back."""

import re

import pytest
import torch

import fluxlike as fl

RECORDED_ALONE = True

X, Y = torch.ones(3, 2), torch.ones(3, 1)


def loss(model, x, y):
    return (model(x) - y).square().mean()


def refused(f, *args):
    with pytest.raises(RuntimeError, match=r"sets .*take .* as an argument and return the new one") as error:
        f(*args)
    return re.search("sets (.*), outside of its results", str(error.value))[1]


class Trainer:
    def __init__(self):
        self.model = fl.Dense(2, 1)
        self.state = fl.setup(fl.Adam(), self.model)
        self.log, self.calls = [], 0
        self.fast = fl.jit(self.step)

    def step(self, x, y):
        self.calls += 1
        value, grads = fl.withgradient(loss, self.model, x, y)
        self.model, self.state = fl.update(self.state, self.model, grads)
        return value


class Wrapped(Trainer):
    @torch.enable_grad()
    def step(self, x, y):
        return super().step(x, y)


def test_a_decorated_method_is_refused_too():
    assert refused(Wrapped().fast, X, Y) == "self.model, self.state"


class Notes:
    @fl.jit
    def note(self, x):
        self.last = x.sum()


def test_a_compiled_method_that_sets_an_attribute_of_its_object_is_refused():
    notes = Notes()
    assert refused(notes.note, X) == "self.last"
    assert not hasattr(notes, "last")


def test_a_method_that_sets_the_model_of_its_object_is_refused_and_the_model_stays():
    trainer = Trainer()
    before = trainer.model, trainer.state
    assert refused(trainer.fast, X, Y) == "self.model, self.state"
    assert (trainer.model, trainer.state) == before
    assert trainer.fast.cache_info().traces == 0


model = fl.Dense(2, 1)


def train(x):
    global model
    model = fl.update(fl.setup(fl.Adam(), model), model, fl.gradient(lambda m: m(x).sum(), model))[0]


def test_a_global_that_is_set_is_refused_and_stays():
    before = model
    assert refused(fl.jit(train), X) == "model"
    assert refused(fl.jit(lambda x: train(x)), X) == "model"
    assert refused(fl.jit(train).lower, X) == "model"
    assert model is before


def test_a_variable_of_the_function_around_is_refused_and_stays():
    seen = None

    def f(x):
        nonlocal seen
        seen = {"x": [x + 1]}

    assert refused(fl.jit(f), X) == "seen"
    assert seen is None


def test_a_list_a_dict_and_a_layer_from_outside_get_no_stand_ins():
    log, held, layer = [1], {"x": X}, fl.Chain(fl.Dense(2, 1))

    def f(x):
        log.append(x.sum())
        held["x"] = held["y"] = x + 1
        layer.layers[0].weight = x[:1]

    weight = layer.layers[0].weight
    assert refused(fl.jit(f), X) == "held['x'], held['y'], layer.layers[0].weight, log[1]"
    assert log == [1]
    assert held == {"x": X}
    assert layer.layers[0].weight is weight


@pytest.mark.parametrize("within", ["gradient", "vmap"])
def test_what_a_transform_inside_sets_is_refused_too(within):
    seen = []

    def inner(x):
        seen.append(x * 2)
        return x.sum()

    f = {"gradient": lambda x: fl.gradient(inner, x), "vmap": lambda x: torch.func.vmap(inner)(x)}[within]
    assert refused(fl.jit(f), X) == "seen[0]"
    assert seen == []


def test_where_the_function_raises_what_was_there_is_put_back():
    log = []

    def f(x):
        log.append(x)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fl.jit(f)(X)
    assert log == []


def test_the_object_of_a_method_may_hold_what_is_no_tensor_of_the_trace():
    trainer = Trainer()

    @fl.jit
    def count(x):
        trainer.calls += 1
        trainer.log.append("traced")
        kept = []
        kept.append(x)
        return kept[0] + 1

    assert torch.equal(count(X), X + 1)
    assert (trainer.calls, trainer.log) == (1, ["traced"])
