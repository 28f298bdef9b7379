"""`reinit`: new initial values for the layers of a model, by their type."""

from __future__ import annotations

import contextlib

import pytest
import torch

import fluxlike as fl
from fluxlike import init


def model():
    return fl.Chain(
        fl.Dense(3, 4, fl.relu),
        fl.BatchNorm(4),
        fl.SkipConnection(fl.Dense(4, 4), torch.add),
        fl.Dropout(0.3),
        fl.Dense(4, 2, bias=False),
    )


def sevens(shape):
    return torch.full(tuple(shape), 7.0)


def ones_biases(m):
    return fl.fmap_with_path(lambda path, t: torch.ones_like(t) if path.endswith("bias") else t, m)


def test_all_layers_of_a_type_are_made_anew_wherever_they_stand():
    old = ones_biases(model())
    new = fl.reinit(old, {fl.Dense: sevens})
    for dense in (new.layers[0], new.layers[2].layer, new.layers[4]):
        assert (dense.weight == 7).all()
    assert not new.layers[0].bias.any()
    assert not new.layers[2].layer.bias.any()
    assert new.layers[4].bias is None


def test_everything_else_is_the_same_object():
    old = fl.trainmode(model())
    new = fl.reinit(old, {fl.Dense: init.glorot_uniform})
    names = ("weight", "bias", "running_mean", "running_var")
    assert all(getattr(new.layers[1], n) is getattr(old.layers[1], n) for n in names)
    assert repr(new) == repr(old)
    assert fl.training(new)
    assert new.layers[3].p == 0.3
    assert new.layers[0].activation is fl.relu


def test_nothing_is_changed():
    old = model()
    before = fl.tree.clone(old)
    fl.reinit(old, {fl.Dense: sevens, fl.BatchNorm: torch.ones})
    assert fl.tree.allclose(old, before, rtol=0, atol=0)


def test_normalisation_takes_ones_and_keeps_its_statistics():
    old = fl.fmap(lambda t: t + 3, fl.BatchNorm(4))
    new = fl.reinit(old, {fl.BatchNorm: torch.ones})
    assert (new.weight == 1).all()
    assert not new.bias.any()
    assert new.running_mean is old.running_mean
    assert new.running_var is old.running_var


def test_layers_inside_layers_are_found_by_their_own_type():
    block = fl.TransformerBlock(8, 2)
    new = fl.reinit(block, {fl.Dense: init.orthogonal})
    for path, old in fl.trainables(block, paths=True):
        fresh = fl.at(new, path).get()
        if "norm" in path:
            assert fresh is old
        elif path.endswith("weight"):
            short = fresh if fresh.shape[0] <= fresh.shape[1] else fresh.T
            torch.testing.assert_close(short @ short.T, torch.eye(len(short)), rtol=0, atol=1e-5)
        else:
            assert not fresh.any()


class Wide(fl.Dense):
    pass


def test_a_class_counts_for_its_subclasses_unless_they_are_named():
    old = fl.Chain(fl.Dense(2, 2), Wide(2, 2))
    assert (fl.reinit(old, {fl.Dense: sevens}).layers[1].weight == 7).all()
    both = fl.reinit(old, {fl.Dense: sevens, Wide: torch.zeros})
    assert (both.layers[0].weight == 7).all()
    assert not both.layers[1].weight.any()
    only = fl.reinit(old, {Wide: sevens})
    assert only.layers[0].weight is old.layers[0].weight


def test_several_weights_of_a_layer_are_each_made_by_their_shape():
    @fl.functor(buffers=("weight_mask",))
    class Cell:
        def __init__(self):
            self.weight_ih, self.weight_hh = torch.zeros(12, 3), torch.zeros(12, 4)
            self.bias_ih, self.bias_hh = torch.ones(12), torch.ones(12)
            self.weight_mask, self.hidden = torch.ones(12, 4), torch.ones(4)

    old = Cell()
    shapes = []
    new = fl.reinit(old, {Cell: lambda shape: shapes.append(shape) or torch.ones(shape)})
    assert shapes == [(12, 3), (12, 4)]
    assert new.weight_hh.all()
    assert not new.bias_ih.any()
    assert not new.bias_hh.any()
    assert new.weight_mask is old.weight_mask
    assert new.hidden is old.hidden


def test_weights_in_a_tuple_belong_to_the_object_that_holds_it():
    @fl.functor
    class Stack:
        def __init__(self):
            self.weights = (torch.zeros(2, 2), {"last": torch.zeros(3, 2)})

    new = fl.reinit([Stack()], {Stack: torch.ones})
    assert new[0].weights[0].all()
    assert new[0].weights[1]["last"].all()


def test_declared_weights_are_those_of_a_class_and_its_subclasses():
    @fl.functor
    class Table:
        def __init__(self):
            self.entries, self.offset, self.weight = torch.zeros(2, 2), torch.ones(2), torch.zeros(2)

    class Larger(Table):
        pass

    init.declare_weights(Table, ["entries"], ["offset"])
    for cls in (Table, Larger):
        old = cls()
        new = fl.reinit(old, {cls: torch.ones})
        assert new.entries.all()
        assert not new.offset.any()
        assert new.weight is old.weight


def test_declaring_what_is_no_class_or_no_list_is_an_error():
    with pytest.raises(TypeError, match="declare_weights takes a class, found 3"):
        init.declare_weights(3, ["weight"])
    with pytest.raises(
        TypeError, match=r"declare_weights\(Wide\): 'weight' is one string; write \['weight'\]"
    ):
        init.declare_weights(Wide, "weight")


# Ties


def test_ties_stay_one_and_are_made_once():
    calls = []
    shared = fl.Dense(3, 3)
    old = fl.Chain(shared, shared, fl.at(fl.Dense(3, 3), lambda m: m.weight).set(shared.weight))
    new = fl.reinit(old, {fl.Dense: lambda shape: calls.append(shape) or torch.randn(shape)})
    assert calls == [(3, 3)]
    a, b, c = new.layers
    assert a.weight is b.weight is c.weight
    assert a.bias is b.bias is not c.bias


def test_a_tie_into_another_type_is_kept():
    embedding = fl.Embedding(5, 3)
    head = fl.at(fl.Dense(3, 5), lambda m: m.weight).set(embedding.weight)
    new = fl.reinit((embedding, head), {fl.Dense: sevens})
    assert new[0].weight is new[1].weight
    assert (new[0].weight == 7).all()


def test_a_tie_between_types_with_different_functions_is_an_error_with_both_places():
    embedding = fl.Embedding(5, 3)
    head = fl.at(fl.Dense(3, 5), lambda m: m.weight).set(embedding.weight)
    text = (
        r"\[0\]\.weight of Embedding and \[1\]\.weight of Dense are tied, and would get different values; "
        "give their types one function"
    )
    with pytest.raises(ValueError, match=text):
        fl.reinit((embedding, head), {fl.Embedding: fl.random.normal, fl.Dense: sevens})
    same = fl.reinit((embedding, head), {fl.Embedding: sevens, fl.Dense: sevens})
    assert same[0].weight is same[1].weight


# Draws, dtypes and devices


def test_a_key_decides_the_values():
    old = model()

    def first(key=None):
        return fl.reinit(old, {fl.Dense: init.glorot_normal}, key=key).layers[0].weight

    assert torch.equal(first(fl.Key(1)), first(fl.Key(1)))
    assert not torch.equal(first(fl.Key(1)), first(fl.Key(2)))
    with fl.seeded(fl.Key(1)):
        assert torch.equal(first(), first(fl.Key(1)))
    torch.manual_seed(0)
    one = first()
    torch.manual_seed(0)
    assert torch.equal(first(), one)


def test_it_draws_what_the_layers_own_init_draws():
    old = fl.Chain(fl.Dense(3, 4), fl.Dense(4, 2))
    torch.manual_seed(0)
    made = fl.Chain(fl.Dense(3, 4), fl.Dense(4, 2))
    torch.manual_seed(0)
    assert fl.tree.allclose(fl.reinit(old, {fl.Dense: init.glorot_uniform}), made, rtol=0, atol=0)


@pytest.mark.parametrize("cast", [fl.f16, fl.bf16, fl.f64], ids=["f16", "bf16", "f64"])
def test_dtypes_stay(cast):
    old = cast(model())
    new = fl.reinit(old, {fl.Dense: init.orthogonal, fl.BatchNorm: torch.ones})
    assert [t.dtype for t in fl.fleaves(new)] == [t.dtype for t in fl.fleaves(old)]


def test_devices_stay():
    old = fl.to_device(model(), "meta")
    new = fl.reinit(old, {fl.Dense: init.orthogonal})
    assert all(t.is_meta for t in fl.fleaves(new))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_draws_there():
    new = fl.reinit(fl.to_device(model(), "cuda"), {fl.Dense: init.orthogonal}, key=fl.Key(0))
    assert all(t.is_cuda for t in fl.fleaves(new))
    here = fl.reinit(model(), {fl.Dense: init.glorot_uniform}, key=fl.Key(0))
    there = fl.reinit(fl.to_device(model(), "cuda"), {fl.Dense: init.glorot_uniform}, key=fl.Key(0))
    assert torch.equal(there.layers[0].weight.cpu(), here.layers[0].weight)


def test_parameters_of_torch_become_plain_tensors():
    @fl.functor
    class Layer:
        def __init__(self):
            self.weight = torch.nn.Parameter(torch.zeros(2, 2))

    new = fl.reinit(Layer(), {Layer: init.glorot_uniform})
    assert type(new.weight) is torch.Tensor
    assert not new.weight.requires_grad


def test_an_ensemble_is_made_anew_member_by_member():
    members = fl.stack([fl.Dense(3, 4) for _ in range(5)])
    keys = fl.Key(0).split(5)
    new = fl.vmap(lambda m, k: fl.reinit(m, {fl.Dense: init.glorot_uniform}, key=k))(members, keys)
    assert new.weight.shape == (5, 4, 3)
    for i in range(5):
        alone = fl.reinit(fl.Dense(3, 4), {fl.Dense: init.glorot_uniform}, key=fl.Key(0).split(5)[i])
        assert torch.equal(new.weight[i], alone.weight)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_under_jit_it_is_the_same(compiled, monkeypatch):
    if not compiled:
        from fluxlike._private.compiler import build

        monkeypatch.setattr(build, "_can_compile", lambda: False)
    old = model()
    step = fl.jit(lambda m, key: fl.reinit(m, {fl.Dense: init.kaiming_normal}, key=key))
    wanted = fl.reinit(old, {fl.Dense: init.kaiming_normal}, key=fl.Key(3))
    assert fl.tree.allclose(step(old, fl.Key(3)), wanted, rtol=1e-5, atol=1e-6)


def test_an_optimisers_state_is_untouched_and_still_fits():
    old = model()
    state = fl.freeze(fl.setup(fl.Adam(), old), lambda s: s.layers[0])
    new = fl.reinit(old, {fl.Dense: init.orthogonal}, key=fl.Key(0))
    grads = fl.gradient(lambda m: m(torch.ones(2, 3)).square().sum(), new)
    after, _ = fl.update(state, new, grads)
    assert after.layers[0].weight is new.layers[0].weight
    assert not torch.equal(after.layers[4].weight, new.layers[4].weight)


def test_at_one_place_it_goes_with_at():
    old = model()
    new = fl.at(old, lambda m: m.layers[-1]).apply(lambda layer: fl.reinit(layer, {fl.Dense: torch.zeros}))
    assert not new.layers[-1].weight.any()
    assert new.layers[0].weight is old.layers[0].weight


# Errors


@pytest.mark.parametrize(
    ("inits", "error", "text"),
    [
        ({fl.Conv: sevens}, ValueError, "there is no Conv here; the types that hold weights are Dense, Ba"),
        ({fl.Dense: sevens, fl.Dropout: sevens}, ValueError, "no Dropout holds weights of its own; the type"),
        ({fl.Chain: sevens}, ValueError, "no Chain holds weights of its own; .* are Dense, BatchNorm"),
        ({"Dense": sevens}, TypeError, "reinit takes classes as keys, found 'Dense'"),
        ({fl.Dropout(0.5): sevens}, TypeError, "classes as keys, found Dropout.*; write Dropout"),
        ({fl.DepthwiseConv: sevens}, TypeError, "DepthwiseConv is a function that makes a Conv; write Conv"),
        ({torch.zeros: sevens}, TypeError, "takes classes as keys, found <built-in"),
        ({fl.Dense: torch.zeros(2)}, TypeError, r"for Dense found float32\[2\]; write a function of a shape"),
        ({fl.Dense: "glorot"}, TypeError, "for Dense found 'glorot'; write a function of a shape"),
        ([fl.Dense], TypeError, "reinit takes a dict from classes to functions, such as .*, found a list"),
        (
            {fl.Dense: lambda s: torch.zeros(1)}, ValueError,
            r"\.layers\[0\]\.weight of Dense, of shape \(4, 3\): the function returned the shape \(1,\)",
        ),
        ({fl.Dense: lambda s: 0.0}, ValueError, r"0\]\.weight of Dense.*the function returned a float"),
        (
            {fl.BatchNorm: init.glorot_uniform}, ValueError,
            r"\.layers\[1\]\.weight of BatchNorm, of shape \(4,\): glorot_uniform got the shape \(4,\)",
        ),
        ({}, None, ""),
    ],
    ids=lambda v: str(v)[:25],
)  # fmt: skip
def test_what_can_not_be_done_is_an_error_that_teaches(inits, error, text):
    with pytest.raises(error, match=text) if error else contextlib.nullcontext():
        fl.reinit(model(), inits)


def test_a_tree_without_layers_says_so():
    with pytest.raises(ValueError, match="there is no Dense here; the types that hold weights are none"):
        fl.reinit({"weight": torch.zeros(2, 2)}, {fl.Dense: sevens})
