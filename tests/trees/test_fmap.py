"""`fmap` and its family, and what counts as a leaf."""

import re
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import fluxlike as fl


class Point(NamedTuple):
    x: Any
    y: Any


def test_tensors_are_mapped_and_constants_left_alone():
    function = torch.tanh
    tree = (torch.ones(1), [function, "text", 3, 2.5, None], {"a": True})
    assert fl.fmap(lambda x: x + 1, tree) == (
        torch.tensor([2.0]),
        [function, "text", 3, 2.5, None],
        {"a": True},
    )


def test_a_tied_tensor_is_mapped_once():
    calls = []
    w = torch.ones(2)
    mapped = fl.fmap(lambda x: calls.append(x) or x + 1, {"a": w, "b": [w, w]})
    assert len(calls) == 1
    assert mapped["a"] is mapped["b"][0] is mapped["b"][1]


def test_equal_tensors_are_not_tied():
    mapped = fl.fmap(lambda x: x + 1, [torch.ones(1), torch.ones(1)])
    assert mapped[0] is not mapped[1]


def test_views_of_one_storage_are_not_tied():
    w = torch.ones(2)
    mapped = fl.fmap(lambda x: x + 1, [w, w.view(2), w[:]])
    assert len({id(x) for x in mapped}) == 3


def test_images_that_happen_to_be_one_object_stay_one():
    constant = torch.zeros(1)
    assert fl.fmap(lambda x: constant, [torch.ones(1), torch.ones(1)]) == [constant, constant]


def test_containers_keep_their_types_and_order():
    tree = {"z": Point(torch.ones(1), 2), "a": (torch.ones(1),)}
    mapped = fl.fmap(torch.neg, tree)
    assert list(mapped) == ["z", "a"]
    assert type(mapped["z"]) is Point
    assert type(mapped["a"]) is tuple


def test_empty_nodes_stay():
    assert fl.fmap(torch.neg, {"a": (), "b": [], "c": {}}) == {"a": (), "b": [], "c": {}}


def test_a_single_tensor_is_a_tree():
    assert fl.fmap(lambda x: 2 * x, torch.ones(2)).tolist() == [2, 2]


def test_other_trees_go_along():
    summed = fl.fmap(lambda x, y, z: x + y * z, [torch.ones(1)], [2.0], [torch.tensor([3.0])])
    assert summed[0].tolist() == [7]


def test_other_trees_may_hold_none_at_the_later_places_of_a_tie():
    w = torch.ones(1)
    seen = []
    fl.fmap(lambda x, g: seen.append(g), [w, w], [torch.tensor([16.0]), None])
    assert [g.item() for g in seen] == [16]


def test_other_trees_with_values_of_their_own_at_a_tie_are_refused():
    w = torch.ones(1)
    with pytest.raises(
        ValueError, match=r"\[0\] and \[1\] are tied in the first tree.*tree 2 holds different"
    ):
        fl.fmap(torch.add, [w, w], [torch.ones(1), torch.ones(1)])


@pytest.mark.parametrize("step", [lambda p, g: p - 0.1 * g, lambda p, g: p - g.mul(0.1)])
def test_a_step_by_hand_that_meets_none_or_assigned_is_told_of_update(step):
    model, x = fl.Chain(fl.Dense(2, 2), fl.BatchNorm(2)), torch.ones(3, 2)
    for loss, place, held in (
        (lambda m: m.layers[0].bias.sum(), r"\.layers\[0\]\.weight", "None, as of"),
        (lambda m: m(x).sum(), r"\.layers\[1\]\.running_mean", "an Assigned"),
    ):
        with pytest.raises((TypeError, AttributeError)) as error:
            fl.fmap(step, model, fl.gradient(loss, model))
        (note,) = error.value.__notes__
        assert re.match(f"at {place}, tree 2 of fmap holds {held}", note)
        assert note.endswith("model, state = fluxlike.update(state, model, grads)")
    with pytest.raises(TypeError) as error:
        fl.fmap(lambda p, g: p + "", model, model)
    assert not hasattr(error.value, "__notes__")


def test_is_leaf_maps_a_node_whole_and_once():
    layer = fl.Dense(2, 1)
    calls = []

    def visit(x):
        calls.append(x)
        return "layer"

    mapped = fl.fmap(visit, [layer, layer, "text"], is_leaf=lambda x: isinstance(x, fl.Dense))
    assert mapped == ["layer", "layer", "text"]
    assert calls == [layer]


def test_all_leaves_are_visited_on_request():
    seen = []
    fl.fmap(seen.append, [torch.tanh, None, 3, fl.Assigned(torch.ones(1))], leaves="all")
    assert seen[:3] == [torch.tanh, None, 3]
    assert isinstance(seen[3], fl.Assigned)


def test_assigned_is_left_alone():
    moved = fl.Assigned(torch.ones(1))
    assert fl.fmap(lambda x: 2 * x, [moved])[0] is moved


def test_another_word_for_leaves_is_refused():
    with pytest.raises(ValueError, match="leaves='tensor': write 'tensors' or 'all'"):
        fl.fmap(torch.neg, [], leaves="tensor")


def test_the_tree_is_unchanged():
    w = torch.ones(2)
    tree = {"a": [w]}
    fl.fmap(torch.neg, tree)
    assert tree["a"][0] is w
    assert w.tolist() == [1, 1]


class TestMismatches:
    """Trees of another structure are refused, and the first difference is named."""

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ({"a": [1, 2]}, r"at \['a'\], tree 2 of fmap lacks 2, which the first has"),
            ({"a": [1, 2, 3, 4]}, r"at \['a'\], tree 2 of fmap has 3, which the first lacks"),
            ({"a": (1, 2, 3)}, r"at \['a'\], tree 2 of fmap has a tuple, the first has a list"),
            ({"a": 1}, r"at \['a'\], tree 2 of fmap has a leaf, the first has a list"),
            ({"b": [1, 2, 3]}, r"at the root, tree 2 of fmap lacks 'a', which the first has"),
            ([1], r"at the root, tree 2 of fmap has a list, the first has a dict"),
            ({"a": [1, 2, [3]]}, r"at \['a'\]\[2\], tree 2 of fmap has a list, the first has a leaf"),
        ],
    )
    def test_the_place_is_named(self, other, message):
        tree = {"a": [torch.ones(1), torch.ones(1), torch.ones(1)]}
        with pytest.raises(ValueError, match=message):
            fl.fmap(lambda x, y: x, tree, other)

    def test_the_class_is_named(self):
        with pytest.raises(
            ValueError, match=r"at \.layers\[0\], tree 2 of fmap has a Conv, the first has a Dense"
        ):
            fl.fmap(lambda x, y: x, fl.Chain(fl.Dense(1, 1)), fl.Chain(fl.Conv((1, 1), 1, 1)))

    def test_the_number_of_the_tree_is_named(self):
        with pytest.raises(ValueError, match="tree 3 of fmap and the first differ"):
            fl.fmap(lambda *xs: xs[0], [torch.ones(1)], [1], [])

    def test_a_setting_that_rides_along_is_no_part_of_the_structure(self):
        a, b = fl.BatchNorm(2, momentum=0.1), fl.BatchNorm(2, momentum=0.5)
        assert fl.fmap(torch.add, a, b).weight.tolist() == [2, 2]


class TestWithPath:
    def test_the_path_comes_first(self):
        paths = fl.fmap_with_path(lambda path, x: path, fl.Chain(fl.Dense(2, 1)))
        assert (paths.layers[0].weight, paths.layers[0].bias) == (".layers[0].weight", ".layers[0].bias")

    def test_a_tied_tensor_has_the_path_of_its_first_place(self):
        w = torch.ones(1)
        assert fl.fmap_with_path(lambda path, x: path, Point({"k": w}, [w])) == Point(
            {"k": ".x['k']"}, [".x['k']"]
        )

    def test_the_root_has_an_empty_path(self):
        assert fl.fmap_with_path(lambda path, x: path, torch.ones(1)) == ""

    def test_other_trees_go_along(self):
        out = fl.fmap_with_path(lambda path, x, y: (path, y), [torch.ones(1)], [5])
        assert out == [("[0]", 5)]


class TestFleaves:
    def test_each_tied_tensor_is_listed_once_in_order(self):
        w, b = torch.ones(1), torch.zeros(1)
        leaves = fl.fleaves([w, {"b": b, "w": w}, "text", None])
        assert len(leaves) == 2
        assert leaves[0] is w
        assert leaves[1] is b

    def test_all_leaves(self):
        assert fl.fleaves([1, (None, "text")], leaves="all") == [1, None, "text"]

    def test_nodes_on_request(self):
        layer = fl.Dense(1, 1)
        assert fl.fleaves([layer, 1], is_leaf=lambda x: x is layer) == [layer]


class TestChildren:
    def test_of_a_functor_by_attribute(self):
        layer = fl.Dense(2, 1)
        found = fl.children(layer)
        assert list(found) == ["weight", "bias", "activation"]
        assert found["weight"] is layer.weight

    def test_of_containers_by_key_and_index(self):
        assert fl.children({"a": 1, 2: 3}) == {"a": 1, 2: 3}
        assert fl.children(["x", None]) == {0: "x", 1: None}

    def test_of_a_leaf_none(self):
        assert fl.children(torch.ones(1)) == {}
        assert fl.children(None) == {}


class TestUnusualLeaves:
    """Kinds of tensors and arrays that trees hold without being trained, or with care."""

    def test_numpy_arrays_are_constants(self):
        array = np.ones(2)
        assert fl.fmap(torch.neg, [array])[0] is array

    def test_a_torch_parameter_is_mapped_and_tied_like_a_tensor(self):
        w = torch.nn.Parameter(torch.ones(2))
        mapped = fl.fmap(lambda x: x.detach() * 2, [w, w])
        assert mapped[0] is mapped[1]

    def test_a_torch_parameter_is_read_as_its_value(self):
        w = torch.nn.Parameter(torch.ones(2))
        grads = fl.gradient(lambda m: (m[0] ** 2).sum(), [w])
        assert grads[0].tolist() == [2, 2]
        assert w.grad is None
        new, _ = fl.update(fl.setup(fl.Descent(0.5), [w]), [w], grads)
        assert type(new[0]) is torch.Tensor
        assert not new[0].requires_grad
        assert w.tolist() == [1, 1]

    @pytest.mark.parametrize("copy", [fl.tree.clone, fl.f64])
    def test_a_copy_of_a_torch_parameter_carries_no_graph(self, copy):
        assert copy([torch.nn.Parameter(torch.ones(2))])[0].grad_fn is None

    @pytest.mark.parametrize("copy", [fl.tree.clone, fl.f64])
    def test_a_copy_of_a_tensor_with_a_graph_stays_differentiable(self, copy):
        x = torch.ones(2, requires_grad=True)
        (grad,) = torch.autograd.grad(copy([2 * x])[0].sum(), x)
        assert grad.tolist() == [2, 2]

    @pytest.mark.parametrize(
        "make",
        [
            lambda: torch.tensor([1, 2]),
            lambda: torch.tensor([True]),
            lambda: torch.eye(2).to_sparse(),
            lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        ],
        ids=["integer", "bool", "sparse", "quantised"],
    )
    @pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning")
    def test_integer_sparse_and_quantised_tensors_are_buffers(self, make):
        tree = {"w": torch.ones(1), "x": make()}
        assert [path for path, _ in fl.trainables(tree, paths=True)] == ["['w']"]
        assert len(fl.fleaves(tree)) == 2

    @pytest.mark.parametrize(
        "run",
        [
            lambda f, t: fl.gradient(f, t),
            lambda f, t: fl.gradient(lambda s: s * fl.gradient(f, t)["w"].sum(), 1.0) and {"x": None},
            lambda f, t: fl.withupdates(f, t)[1],
            lambda f, t: fl.update(fl.setup(fl.Descent(), t), t, {"w": t["w"], "x": None})[0] and {"x": None},
        ],
        ids=["gradient", "nested gradient", "withupdates", "update"],
    )
    def test_every_transform_takes_a_tree_with_a_sparse_buffer(self, run):
        tree = {"w": torch.ones(2), "x": torch.eye(2).to_sparse()}
        assert run(lambda t: (t["x"] @ t["w"]).sum(), tree)["x"] is None

    def test_complex_tensors_are_parameters(self):
        assert len(fl.trainables([torch.ones(1, dtype=torch.complex64)])) == 1

    def test_tensors_on_the_meta_device_are_parameters(self):
        assert len(fl.trainables(fl.to_device(fl.Dense(3, 2), "meta"))) == 2
