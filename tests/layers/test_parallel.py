"""Parallel, Maxout and PairwiseFusion, and what they share with Chain."""

from __future__ import annotations

import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fluxlike as fl


def double(x):
    return 2 * x


def square(x):
    return x**2


@pytest.fixture
def named():
    return fl.Parallel(torch.add, left=fl.Dense(2, 3), right=fl.Dense(2, 3, fl.relu))


def test_parallel_gives_the_published_number():
    both = fl.Parallel(operator.add, square, lambda x: x**0.5)
    assert both(3, 4) == both((3, 4)) == 11


def test_one_input_goes_to_every_layer():
    assert fl.Parallel(operator.sub, square, double)(5) == 15


def test_one_layer_gets_each_input_in_turn():
    assert fl.Parallel(operator.sub, square)(5, 3) == 16
    assert fl.Parallel(lambda *ys: ys, square)((5, 3, 1)) == (25, 9, 1)
    assert fl.Parallel(double, square)(3) == 18


def test_the_connection_gets_all_outputs_at_once():
    assert fl.Parallel(lambda *ys: ys, double, square, operator.neg)(3) == (6, 9, -3)


def test_a_tuple_between_two_layers_of_a_chain_is_one_input_each():
    model = fl.Chain(fl.Parallel(lambda *ys: ys, double, square), fl.Parallel(operator.add, double, square))
    assert model(3) == 12 + 81


def test_a_list_is_one_input():
    assert fl.Parallel(operator.add, sum, len)([5, 6]) == 13


@pytest.mark.parametrize("make", [fl.Parallel, fl.PairwiseFusion])
@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_inputs_is_an_error(make, count):
    layer = make(operator.add, double, double, double)
    wanted = rf"{make.__name__} has 3 layers, found {count} inputs; write one input for all layers, or 3"
    for inputs in ((1,) * count, ((1,) * count,)):
        with pytest.raises(ValueError, match=wanted):
            layer(*inputs)


def test_no_input_is_an_error():
    for layer in (fl.Parallel(operator.add, double), fl.PairwiseFusion(operator.add, double)):
        with pytest.raises(ValueError, match="has 1 layers, found 0 inputs"):
            layer()


def test_maxout_gives_the_published_numbers():
    x = torch.arange(-2, 3)
    assert fl.Maxout(square, lambda x: 3 * x)(x).tolist() == [4, 1, 0, 3, 6]


def test_maxout_makes_its_layers_by_a_function():
    model = fl.Maxout(lambda: fl.Dense(3, 2), 4)
    assert len(model) == 4
    assert len({id(layer.weight) for layer in model}) == 4


def test_maxout_refuses_to_broadcast():
    model = fl.Maxout(fl.Dense(3, 2), fl.Dense(3, 1))
    with pytest.raises(ValueError, match=r"found \(4, 2\) of \.layers\[0\] and \(4, 1\) of \.layers\[1\]"):
        model(torch.ones(4, 3))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=5), st.floats(-5, 5))
def test_maxout_of_slopes_is_the_largest(slopes, x):
    layers = [lambda x, a=a: a * x for a in slopes]
    y = fl.Maxout(*layers)(torch.tensor(x, dtype=torch.float64))
    assert y.item() == max(a * x for a in slopes)


def test_pairwisefusion_of_several_inputs():
    fuse = fl.PairwiseFusion(lambda x, y: (x, y), *[lambda x: [x]] * 3)
    y1 = ["a"]
    y2 = [("b", y1)]
    assert fuse("a", "b", "c") == (y1, y2, [("c", y2)])
    assert fuse(("a", "b", "c")) == fuse("a", "b", "c")


def test_pairwisefusion_of_one_input_gives_it_to_every_layer():
    fuse = fl.PairwiseFusion(operator.sub, double, square, double)
    assert fuse(3) == fuse(3, 3, 3) == (6, 9, -12)


def test_pairwisefusion_of_one_layer_is_a_tuple_of_one():
    assert fl.PairwiseFusion(operator.add, double)(3) == (6,)


@pytest.mark.parametrize("make", [fl.Parallel, fl.PairwiseFusion])
@pytest.mark.parametrize(
    ("connection", "text"),
    [
        (None, "takes a callable connection first, found None"),
        (tuple, r"found the class tuple; write lambda \*ys: ys"),
        (fl.Dense, "takes a function as its connection, found the class Dense"),
    ],
)
def test_a_connection_that_joins_nothing_is_an_error(make, connection, text):
    with pytest.raises(TypeError, match=text):
        make(connection, double)


MAKERS = {
    "Parallel": lambda *layers, **named: fl.Parallel(torch.add, *layers, **named),
    "Maxout": fl.Maxout,
    "PairwiseFusion": lambda *layers, **named: fl.PairwiseFusion(torch.add, *layers, **named),
}
every_kind = pytest.mark.parametrize(("name", "make"), MAKERS.items(), ids=MAKERS)


@every_kind
def test_no_layers_are_an_error(name, make):
    with pytest.raises(ValueError, match=f"{name} takes at least one layer, found none"):
        make()


@every_kind
def test_a_step_that_is_not_callable_is_an_error_that_names_it(name, make):
    with pytest.raises(TypeError, match=f"step 1 of {name} is None of NoneType, which can't be called"):
        make(double, None)
    with pytest.raises(TypeError, match=f"step 0 of {name} is the class Dense: write Dense"):
        make(fl.Dense)
    with pytest.raises(TypeError, match=f"{name} takes layers either in order or by name, not both"):
        make(double, head=double)


@every_kind
def test_a_torch_module_becomes_a_layer(name, make):
    linear = torch.nn.Linear(1, 1)
    layer = make(linear)[0]
    assert isinstance(layer, fl.TorchModule)
    assert torch.equal(layer(torch.ones(2, 1)), linear(torch.ones(2, 1)))


@every_kind
def test_layers_have_numbers_names_and_slices(name, make):
    layers = [fl.Dense(2, 2) for _ in range(3)]
    model = make(a=layers[0], b=layers[1], c=layers[2])
    assert list(model) == list(model.layers) == layers
    assert len(model) == 3
    assert model["b"] is model[1] is layers[1]
    part = model["b":]
    assert type(part) is type(model)
    assert part.names == ("b", "c")
    assert part.layers == (layers[1], layers[2])
    assert fl.children(part).keys() == fl.children(model).keys()
    assert make(*layers)[:2].names is None
    with pytest.raises(KeyError, match="no layer named 'd'; the names are"):
        model["d"]


@every_kind
def test_a_method_of_a_module_is_answered_with_what_does_it_here(name, make):
    with pytest.raises(AttributeError, match=f"a {name} has no 'eval': everything but gradient tests"):
        make(double).eval()
    with pytest.raises(
        AttributeError, match=f"a {name} has no 'weight'; its layers are {name.lower()}.layers"
    ):
        make(double).weight  # noqa: B018


def test_a_slice_keeps_the_connection_and_a_pinned_mode():
    model = fl.testmode(fl.Parallel(operator.sub, double, fl.Dropout(0.5), square))
    part = model[1:]
    assert part.connection is operator.sub
    with fl.mode("train"):
        assert fl.training(part) is False
    assert model[::2](5) == -15


def test_a_slice_of_a_chains_subclass_is_of_that_class():
    class Net(fl.Chain):
        pass

    assert type(Net(double, double)[1:]) is Net


@every_kind
def test_an_error_from_deep_inside_names_the_path_and_leads_there(name, make):
    model = fl.Chain(fl.Dense(2, 3), make(fl.relu, fl.Chain(fl.relu, fl.Dense(5, 3))))
    wanted = r"^\.layers\[1\]\.layers\[1\]\.layers\[1\]: Dense\(5, 3\) got a tensor of shape \(4, 3\)"
    with pytest.raises(fl.LayerError, match=wanted) as caught:
        model(torch.zeros(4, 2))
    assert fl.at(model, caught.value.path).get() is model.layers[1].layers[1].layers[1]


def test_a_layer_that_gets_several_inputs_fails_by_its_own_number():
    with pytest.raises(fl.LayerError, match=r"^\.layers\[0\]: Dense\(3, 1\) got a tensor of shape \(1, 2\)"):
        fl.Parallel(torch.add, fl.Dense(3, 1))(torch.ones(1, 3), torch.ones(1, 2))


@pytest.mark.parametrize("make", [fl.Parallel, fl.PairwiseFusion])
def test_a_connection_that_fails_says_all_shapes(make):
    model = fl.Chain(make(torch.add, fl.Dense(2, 3), fl.Dense(2, 4)))
    shapes = {fl.Parallel: ((4, 3), (4, 4)), fl.PairwiseFusion: ((4, 2), (4, 3))}[make]
    wanted = ", ".join(rf"a tensor of shape \({a}, {b}\) and torch.float32" for a, b in shapes)
    with pytest.raises(fl.LayerError, match=rf"^\.layers\[0\]\.connection: add got \({wanted}\)") as caught:
        model(torch.zeros(4, 2))
    assert fl.at(model, caught.value.path).get() is torch.add


@pytest.mark.parametrize("connection", [torch.add, torch.cat, operator.add], ids=lambda f: f.__name__)
def test_a_connection_of_two_or_of_a_list_says_what_to_write(connection):
    wanted = r"it is called with the 3 outputs: write lambda \*ys: torch.cat\(ys, 1\), or sum\(ys\)"
    with pytest.raises(fl.LayerError, match=wanted):
        fl.Parallel(connection, double, double, double)(torch.ones(2, 2))


def test_a_connection_may_be_a_layer_and_is_trained():
    model = fl.Parallel(fl.Chain(fl.Dense(3, 1)), fl.Dense(2, 3))
    grads = fl.gradient(lambda m: m(torch.ones(1, 2)).sum(), model)
    assert grads.connection.layers[0].weight is not None
    with pytest.raises(fl.LayerError, match=r"^\.connection\.layers\[0\]: Dense\(3, 1\)"):
        fl.Parallel(fl.Chain(fl.Dense(3, 1)), fl.Dense(2, 4))(torch.ones(1, 2))


@every_kind
def test_errors_that_are_not_of_shape_or_type_pass_through(name, make):
    def stop(x):
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fl.Chain(make(stop))(torch.ones(1))


def test_one_layer_in_two_places_is_tied():
    layer = fl.Dense(2, 2)
    grads = fl.gradient(lambda m: m(torch.ones(1, 2)).sum(), fl.Parallel(torch.add, layer, layer))
    assert grads.layers[1].weight is None
    alone = fl.gradient(lambda m: m(torch.ones(1, 2)).sum(), layer)
    torch.testing.assert_close(grads.layers[0].weight, 2 * alone.weight)


def test_names_survive_fmap_update_and_load(named, tmp_path):
    grads = fl.gradient(lambda m: m(torch.ones(1, 2)).sum(), named)
    new, _ = fl.update(fl.setup(fl.Descent(0.1), named), named, grads)
    fl.save(tmp_path / "model.safetensors", new)
    loaded = fl.load(tmp_path / "model.safetensors", like=named)
    for model in (fl.fmap(torch.clone, named), grads, new, loaded):
        assert model.names == ("left", "right")
        assert model["right"] is model.layers[1]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (fl.Parallel(operator.add, square, double), "Parallel(add, square, double)"),
        (fl.Parallel(operator.add, a=square, b=double), "Parallel(add, a=square, b=double)"),
        (fl.Maxout(square, double), "Maxout(square, double)"),
        (fl.PairwiseFusion(operator.add, square), "PairwiseFusion(add, square)"),
        (fl.Chain(square, double), "Chain(square, double)"),
        (fl.Chain(), "Chain()"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_functions_print_in_constructor_form(model, text):
    assert repr(model) == text


def test_activations_sees_every_layer_of_a_parallel():
    model = fl.Parallel(torch.add, fl.Dense(2, 3), torch.square, fl.relu)
    model = fl.at(model, ".layers").apply(lambda layers: layers[:1] * 2)
    assert list(fl.activations(model, torch.ones(1, 2))) == ["", ".layers[0]", ".layers[1]"]
