from __future__ import annotations

import copy
import operator
import pickle

import pytest
import torch

import fluxlike as fl


def double(x):
    return 2 * x


@pytest.fixture
def named():
    return fl.Chain(body=fl.Dense(2, 3), squash=torch.tanh, head=fl.Dense(3, 1))


def test_each_layer_gets_the_output_of_the_one_before():
    assert fl.Chain(double, lambda x: x + 1, double)(3) == 14


def test_an_empty_chain_returns_its_input():
    x = torch.ones(2)
    assert fl.Chain()(x) is x
    assert len(fl.Chain()) == 0


def test_layers_is_a_tuple_and_iterates_in_order(named):
    assert isinstance(named.layers, tuple)
    assert len(named) == 3
    assert all(a is b for a, b in zip(named, named.layers, strict=True))


def test_functions_lambdas_and_bound_torch_functions_are_steps():
    model = fl.Chain(torch.flatten, fl.relu, lambda x: x.sum(), operator.neg)
    assert model(torch.tensor([[1.0, -2.0], [3.0, 4.0]])).item() == -8


def test_a_chain_in_a_chain_computes_what_the_flat_one_does():
    a, b, c = fl.Dense(2, 3), fl.Dense(3, 3), fl.Dense(3, 1)
    x = torch.randn(4, 2)
    assert torch.equal(fl.Chain(a, fl.Chain(fl.relu, fl.Chain(b)), c)(x), fl.Chain(a, fl.relu, b, c)(x))


def test_names_lead_to_layers(named):
    assert named.names == ("body", "squash", "head")
    assert named["head"] is named.layers[2]
    assert named[0] is named["body"]
    assert named[-1] is named["head"]


def test_without_names_there_are_none():
    assert fl.Chain(double).names is None


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        (slice(1, None), ("squash", "head")),
        (slice(None, -1), ("body", "squash")),
        (slice(None, None, 2), ("body", "head")),
        (slice(None, None, -1), ("head", "squash", "body")),
        (slice("squash", None), ("squash", "head")),
        (slice("body", "head"), ("body", "squash")),
    ],
    ids=str,
)
def test_a_slice_is_a_chain_of_the_same_layers_with_their_names(named, key, kept):
    part = named[key]
    assert isinstance(part, fl.Chain)
    assert part.names == kept
    assert all(part[name] is named[name] for name in kept)


def test_an_empty_slice_is_an_empty_chain(named):
    assert named[0:0](5) == 5


def test_a_slice_of_an_unnamed_chain_has_no_names():
    part = fl.Chain(double, double, double)[1:]
    assert len(part) == 2
    assert part.names is None


def test_an_unknown_name_is_an_error_that_lists_the_names(named):
    with pytest.raises(KeyError, match=r"no layer named 'tail'.*'body', 'squash', 'head'"):
        named["tail"]
    with pytest.raises(KeyError, match="no layer named 'tail'"):
        named["tail":]


def test_a_name_asked_of_an_unnamed_chain_is_an_error():
    with pytest.raises(KeyError, match="no layer named 'head'; the names are not given"):
        fl.Chain(double)["head"]


def test_an_index_past_the_end_is_an_error(named):
    with pytest.raises(IndexError):
        named[3]


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ((double, 4), r"step 1 of Chain is 4 of int, which can't be called"),
        ((None,), r"step 0 of Chain is None of NoneType, which can't be called"),
        ((double, double, "relu"), r"step 2 of Chain is 'relu' of str, which can't be called"),
        (([double, double],), r"step 0 of Chain is \[.*of list, which can't be called; .*Chain\(\*layers\)"),
    ],
)
def test_a_step_that_is_not_callable_is_an_error_that_names_it(steps, text):
    with pytest.raises(TypeError, match=text):
        fl.Chain(*steps)


def test_a_named_step_that_is_not_callable_is_an_error_that_names_it():
    with pytest.raises(TypeError, match=r"step 1 of Chain is 4 of int"):
        fl.Chain(a=double, b=4)


def test_names_and_order_do_not_mix():
    with pytest.raises(TypeError, match="either in order or by name, not both"):
        fl.Chain(double, head=double)


def deep(inner):
    """`inner` at .layers[1].layers[0].layer.layers[1]."""
    return fl.Chain(
        fl.Dense(2, 3),
        fl.Chain(fl.SkipConnection(fl.Chain(fl.relu, inner), torch.add), fl.relu),
        fl.Dense(3, 1),
    )


@pytest.mark.parametrize(
    ("inner", "got", "wanted"),
    [
        (fl.Dense(5, 3), r"Dense\(5, 3\) got a tensor of shape \(4, 3\)", r"the shape \(…, 5\)"),
        (fl.BatchNorm(7), r"BatchNorm\(7\) got a tensor of shape \(4, 3\)", r"the shape \(N, 7, …\)"),
        (fl.LayerNorm((2, 3)), r"LayerNorm\(\(2, 3\)\) got a tensor of shape \(4, 3\)", r"\(…, 2, 3\)"),
        (fl.Conv((3, 3), 1, 3), r"Conv\(\(3, 3\), 1, 3\) got a tensor", r"the shape \(N, 1, H, W\)"),
        (fl.MaxPool((2, 2)), r"MaxPool\(\(2, 2\)\) got a tensor", r"the shape \(N, C, H, W\)"),
        (fl.Embedding(9, 3), r"Embedding\(9, 3\) got a tensor", r"a tensor of integers, found torch.float32"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_an_error_deep_inside_names_path_shape_got_and_shape_wanted(inner, got, wanted):
    with pytest.raises(
        fl.LayerError, match=rf"^\.layers\[1\]\.layers\[0\]\.layer\.layers\[1\]: {got}"
    ) as caught:
        deep(inner)(torch.zeros(4, 2))
    assert caught.value.path == ".layers[1].layers[0].layer.layers[1]"
    caught.match(wanted)


def test_the_path_of_an_error_leads_to_the_layer():
    model = deep(fl.Dense(5, 3))
    with pytest.raises(fl.LayerError) as caught:
        model(torch.zeros(4, 2))
    assert fl.at(model, caught.value.path).get() is model.layers[1].layers[0].layer.layers[1]


def test_the_error_of_a_function_names_its_place_and_what_it_got():
    def broken(x):
        raise ValueError("out of luck")

    text = (
        r"^\.layers\[1\]: broken got a tensor of shape \(4, 3\) and torch.float32 and failed: ValueError: out"
    )
    with pytest.raises(fl.LayerError, match=text):
        fl.Chain(fl.Dense(2, 3), broken)(torch.zeros(4, 2))


def test_an_input_that_is_no_tensor_is_named_by_its_type():
    with pytest.raises(fl.LayerError, match=r"^\.layers\[0\]: Dense\(2, 3\) got a str and failed: TypeError"):
        fl.Chain(fl.Dense(2, 3))("text")


def test_a_wrong_dtype_is_in_the_error():
    with pytest.raises(fl.LayerError, match=r"^\.layers\[0\]: .*torch.float64"):
        fl.Chain(fl.Dense(2, 3))(torch.zeros(4, 2, dtype=torch.float64))


def test_the_first_error_is_the_cause():
    with pytest.raises(fl.LayerError) as caught:
        fl.Chain(fl.Dense(5, 3))(torch.zeros(4, 2))
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("error", [KeyError, StopIteration, KeyboardInterrupt, ZeroDivisionError])
def test_errors_that_are_not_of_shape_or_type_pass_through(error):
    def stop(x):
        raise error("stop")

    with pytest.raises(error, match="stop"):
        fl.Chain(fl.Chain(stop))(0)


def test_an_error_inside_gradient_keeps_its_path():
    with pytest.raises(fl.LayerError, match=r"^\.layers\[1\]\.layers\[0\]\.layer\.layers\[1\]: "):
        fl.gradient(lambda m: m(torch.zeros(4, 2)).sum(), deep(fl.Dense(5, 3)))


def test_the_connection_of_a_skip_failing_is_named_with_both_shapes():
    both = r"\(a tensor of shape \(4, 3\) and torch.float32, a tensor of shape \(4, 2\) and torch.float32\)"
    with pytest.raises(fl.LayerError, match=rf"^\.layers\[0\]\.connection: add got {both} and failed"):
        fl.Chain(fl.SkipConnection(fl.Dense(2, 3), torch.add))(torch.zeros(4, 2))


def test_a_skip_joins_the_output_with_the_input():
    assert fl.SkipConnection(double, operator.sub)(3) == 3


@pytest.mark.parametrize(
    ("layer", "connection", "text"),
    [
        (1, torch.add, "callable layer, found 1"),
        (fl.Dense, torch.add, r"takes a layer, found the class Dense; write Dense\(…\)"),
        (double, None, "callable connection, found None"),
    ],
)
def test_a_skip_of_what_is_not_callable_is_an_error(layer, connection, text):
    with pytest.raises(TypeError, match=text):
        fl.SkipConnection(layer, connection)


def test_names_survive_fmap_update_and_load(named, tmp_path):
    grads = fl.gradient(lambda m: m(torch.ones(1, 2)).sum(), named)
    new, _ = fl.update(fl.setup(fl.Descent(0.1), named), named, grads)
    fl.save(tmp_path / "chain.safetensors", new)
    loaded = fl.load(tmp_path / "chain.safetensors", like=named)
    for model in (fl.fmap(torch.clone, named), grads, new, loaded):
        assert model.names == ("body", "squash", "head")
        assert model["head"] is model.layers[2]


def test_the_same_layer_twice_is_tied_and_gets_the_total_gradient():
    layer = fl.Dense(2, 2, bias=False)
    once = fl.gradient(lambda m: m(torch.ones(1, 2)).sum(), fl.Chain(layer))
    twice = fl.gradient(lambda m: m(torch.ones(1, 2)).sum(), fl.Chain(layer, layer))
    assert twice.layers[0].weight is not None
    assert twice.layers[1].weight is None
    assert not torch.equal(twice.layers[0].weight, once.layers[0].weight)
    assert len(fl.trainables(fl.Chain(layer, layer))) == 1


CONTAINERS = {
    "Chain": lambda: fl.Chain(fl.Dense(2, 2), double),
    "Parallel": lambda: fl.Parallel(torch.add, fl.Dense(2, 2), double),
    "Maxout": lambda: fl.Maxout(fl.Dense(2, 2), double),
    "PairwiseFusion": lambda: fl.PairwiseFusion(torch.add, fl.Dense(2, 2), double),
    "SkipConnection": lambda: fl.SkipConnection(fl.Dense(2, 2), torch.add),
}


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "fc",
            r"a {} takes no attribute 'fc', which no call .*m(\[-1\]|\.layer)\)\.set\(…\).* fluxlike\.{}\(",
        ),
        ("training", r"a {} has no 'training': write .*fluxlike\.testmode\(model\)"),
    ],
)
def test_an_attribute_that_no_call_would_read_is_refused(kind, name, text):
    model = CONTAINERS[kind]()
    before = dict(vars(model))
    with pytest.raises(AttributeError, match=text.format(kind, kind)):
        setattr(model, name, fl.Dense(2, 2))
    assert vars(model) == before


@pytest.mark.parametrize("kind", CONTAINERS)
def test_the_layers_of_a_container_are_never_changed_in_place(kind):
    model = CONTAINERS[kind]()
    for name in vars(model):
        with pytest.raises(
            AttributeError, match=rf"a {kind} is never changed in place: write .*fluxlike\.at\("
        ):
            setattr(model, name, double)


def test_setting_a_step_says_how_its_place_is_set(named):
    with pytest.raises(AttributeError, match=r"fluxlike\.at\(model, lambda m: m\['head'\]\)\.set\(…\)"):
        named.head = fl.Dense(3, 2)
    with pytest.raises(TypeError, match=r"fluxlike\.at\(model, lambda m: m\[-1\]\)\.set\(…\)"):
        named[-1] = fl.Dense(3, 2)
    changed = fl.at(named, lambda m: m[-1]).set(fl.Dense(3, 2))
    assert changed(torch.ones(1, 2)).shape == (1, 2)
    assert fl.Chain(*changed, torch.tanh)(torch.ones(1, 2)).shape == (1, 2)


def test_asking_for_a_step_by_its_name_says_how_to_write_it(named):
    with pytest.raises(
        AttributeError, match=r"a Chain has no 'head': its layer of this name is model\['head'\]"
    ):
        _ = named.head


def test_a_subclass_of_a_user_has_attributes_of_its_own():
    class Counted(fl.Chain):
        def __init__(self, *layers):
            super().__init__(*layers)
            self.note = "mine"

    model = Counted(double)
    model.note = "other"
    model.layers = (double, double)
    assert (model.note, model(1)) == ("other", 4)


def test_copies_pins_and_pickles_of_a_chain_need_no_attribute_to_be_set(named):
    x = torch.ones(1, 2)
    for same in (copy.copy(named), copy.deepcopy(named), fl.testmode(named), fl.automode(named)):
        assert torch.equal(same(x), named(x))
    assert pickle.loads(pickle.dumps(named)).names == named.names
