"""Which leaves are parameters; splitting a tree and joining it again."""

import pytest
import torch

import fluxlike as fl


@fl.functor(buffers=("mean",))
class Norm:
    def __init__(self, scale, mean):
        self.scale, self.mean = scale, mean


class TestTrainables:
    def test_parameters_are_listed_in_the_order_of_the_tree(self):
        model = fl.Chain(fl.Dense(2, 3), fl.BatchNorm(3))
        first, second = model.layers
        found = fl.trainables(model)
        assert [id(x) for x in found] == [
            id(x) for x in (first.weight, first.bias, second.weight, second.bias)
        ]

    def test_a_tied_parameter_is_listed_once_at_its_first_place(self):
        w = torch.ones(1)
        assert fl.trainables({"a": w, "b": w}, paths=True) == [("['a']", w)]

    def test_a_tied_tensor_is_trainable_if_any_of_its_places_is(self):
        w = torch.ones(1)
        assert fl.trainables(Norm(scale=w, mean=w)) == [w]
        assert fl.trainables([Norm(scale=None, mean=w), w], paths=True) == [("[0].mean", w)]

    def test_constants_and_buffers_are_no_parameters(self):
        assert fl.trainables([Norm(2.0, torch.ones(1)), None, "text", torch.arange(3)]) == []

    def test_assigned_values_are_no_parameters(self):
        assert fl.trainables([fl.Assigned(torch.ones(1))]) == []


class TestPartition:
    def test_each_part_has_none_where_the_other_has_the_leaf(self):
        model = fl.Chain(fl.Dense(2, 3), fl.Dense(3, 1))
        head, body = fl.partition(model, lambda m: m.layers[1])
        assert head.layers[0].weight is None
        assert head.layers[1].weight is model.layers[1].weight
        assert body.layers[0].weight is model.layers[0].weight
        assert body.layers[1].weight is None

    def test_combine_undoes_it(self):
        model = fl.Chain(fl.Dense(2, 3, fl.relu), fl.Dense(3, 1))
        again = fl.combine(*fl.partition(model, ".layers[0]"))
        assert type(again) is fl.Chain
        assert again.layers[0].weight is model.layers[0].weight
        assert again.layers[0].activation is fl.relu
        assert again.layers[1].bias is model.layers[1].bias

    @pytest.mark.parametrize("w", [torch.ones(1), torch.arange(2)], ids=["parameter", "integer"])
    def test_all_places_of_a_tied_tensor_go_together(self, w):
        chosen, others = fl.partition({"a": w, "b": w, "c": torch.ones(1)}, "['b']")
        assert chosen["a"] is chosen["b"] is w
        assert others["a"] is others["b"] is None

    def test_by_predicate(self):
        biases, _ = fl.partition(fl.Dense(2, 1), lambda path, x: path.endswith("bias"))
        assert biases.weight is None
        assert biases.bias is not None

    def test_by_several_places(self):
        chosen, others = fl.partition([1, 2, 3], ("[0]", lambda t: t[2]))
        assert chosen == [1, None, 3]
        assert others == [None, 2, None]

    def test_of_everything(self):
        assert fl.partition([1, [2]], "") == ([1, [2]], [None, [None]])


class TestCombine:
    def test_of_three_trees(self):
        assert fl.combine([1, None, None], [None, 2, None], [None, None, 3]) == [1, 2, 3]

    def test_two_leaves_at_one_place_are_refused(self):
        with pytest.raises(ValueError, match=r"two trees of combine hold a leaf at \['a'\]; all but one"):
            fl.combine({"a": 1}, {"a": 1})

    def test_another_structure_is_refused(self):
        with pytest.raises(
            ValueError, match=r"tree 2 of combine and the first differ in structure: at the root"
        ):
            fl.combine([1], [1, 2])
