"""Model surgery with `at`: exactly the place named changes."""

import operator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl


class Pair(NamedTuple):
    x: Any
    y: Any


def model():
    return fl.Chain(fl.Dense(4, 3, fl.relu), fl.Dense(3, 3), fl.Dense(3, 2))


class TestSelector:
    def test_set_returns_a_new_tree(self):
        old, head = model(), fl.Dense(3, 5)
        new = fl.at(old, lambda m: m.layers[-1]).set(head)
        assert new.layers[-1] is head
        assert new.layers[0] is old.layers[0]
        assert old.layers[-1] is not head

    def test_get_gives_the_very_object(self):
        m = model()
        assert fl.at(m, lambda m: m.layers[1]).get() is m.layers[1]
        assert fl.at(m, lambda m: m.layers[1].weight).get() is m.layers[1].weight
        assert fl.at(m, lambda m: m.layers).get() is m.layers

    def test_apply_gets_the_old_value(self):
        m = model()
        new = fl.at(m, lambda m: m.layers[0].bias).apply(lambda b: b + 1)
        assert new.layers[0].bias.tolist() == [1, 1, 1]
        assert m.layers[0].bias.tolist() == [0, 0, 0]

    def test_the_root_is_a_place(self):
        assert fl.at([1, 2], lambda t: t).set("new") == "new"

    def test_constants_and_none_are_places(self):
        assert fl.at(fl.Dense(1, 1, bias=False), lambda d: d.bias).get() is None
        assert fl.at(model(), lambda m: m.layers[0].activation).set(fl.tanh).layers[0].activation is fl.tanh

    def test_a_selector_may_give_several_places(self):
        tree = {"a": 1, "b": 2, "c": 3}
        assert fl.at(tree, lambda t: (t["a"], t["c"])).set((10, 30)) == {"a": 10, "b": 2, "c": 30}
        assert fl.at(tree, lambda t: [t["a"], t["c"]]).get() == (1, 3)

    def test_a_slice_of_layers_is_several_places(self):
        m = model()
        assert fl.at(m, lambda m: m.layers[:2]).get() == m.layers[:2]

    def test_a_getter_of_operator_is_a_selector(self):
        m = model()
        assert fl.at(m, operator.attrgetter("layers")).get() is m.layers
        assert fl.at((1, 2), operator.itemgetter(1)).set(5) == (1, 5)

    def test_names_of_layers_work(self):
        named = fl.Chain(body=fl.Dense(1, 1), head=fl.Dense(1, 1))
        assert fl.at(named, lambda m: m["head"]).get() is named.layers[1]


class TestPlacesAreFoundByMarker:
    def test_equal_small_integers_are_different_places(self):
        assert fl.at([1, 1, 1], lambda t: t[1]).set(5) == [1, 5, 1]

    def test_equal_strings_and_functions_are_different_places(self):
        assert fl.at(["a", "a"], lambda t: t[1]).set("b") == ["a", "b"]
        assert fl.at([torch.tanh, torch.tanh], lambda t: t[0]).set(1) == [1, torch.tanh]

    def test_nones_are_different_places(self):
        assert fl.at([None, None], lambda t: t[1]).set(5) == [None, 5]

    def test_empty_tuples_are_different_places(self):
        assert fl.at([(), (), ((),)], lambda t: t[1]).set("here") == [(), "here", ((),)]
        assert fl.at([(), (), ((),)], lambda t: t[2][0]).set("here") == [(), (), ("here",)]

    def test_a_shared_layer_is_set_at_one_place_only(self):
        layer = fl.Dense(1, 1)
        new = fl.at([layer, layer], lambda t: t[1].bias).set(None)
        assert new[0] is layer
        assert new[1].bias is None

    def test_a_tied_tensor_is_untied(self):
        w, other = torch.ones(1), torch.zeros(1)
        new = fl.at({"a": w, "b": w}, lambda t: t["b"]).set(other)
        assert new["a"] is w
        assert new["b"] is other


class TestPath:
    def test_a_path_as_errors_print_it(self):
        m = model()
        assert fl.at(m, ".layers[1].weight").get() is m.layers[1].weight

    def test_negative_indices_count_from_the_end(self):
        m = model()
        assert fl.at(m, ".layers[-1]").get() is m.layers[2]

    def test_fields_of_a_named_tuple(self):
        assert fl.at(Pair(1, [2]), ".y[0]").set(3) == Pair(1, [3])

    def test_the_empty_path_is_the_root(self):
        assert fl.at([1], "").get() == [1]

    @pytest.mark.parametrize(
        "key",
        [
            "head",
            "two words",
            "it's",
            'say "hi"',
            "a[0]",
            "a.b",
            "[",
            "",
            "ß\n",
            3,
            -1,
            0.5,
            True,
            (1, "a"),
            b"x",
        ],
    )
    def test_every_printed_path_is_found_again(self, key):
        w = torch.ones(1)
        tree = {"other": torch.zeros(1), "nested": {key: w}}
        path = next(p for p, x in fl.trainables(tree, paths=True) if x is w)
        assert fl.at(tree, path).get() is w

    def test_every_printed_attribute_is_found_again(self):
        @fl.functor
        class Greek:
            def __init__(self):
                self.β, self._private, self.x1 = torch.ones(1), torch.ones(1), torch.ones(1)

        greek = Greek()
        for path, x in fl.trainables(greek, paths=True):
            assert fl.at(greek, path).get() is x

    def test_a_place_that_is_not_there(self):
        with pytest.raises(
            KeyError, match=r"no place '\.layers\[7\]': \.layers is a tuple holding \[0\], \[1\], \[2\]"
        ):
            fl.at(model(), ".layers[7]")

    def test_a_place_below_a_leaf(self):
        with pytest.raises(
            KeyError, match=r"\.layers\[0\]\.weight is a Tensor holding nothing, it is a leaf"
        ):
            fl.at(model(), ".layers[0].weight[0]")

    @pytest.mark.parametrize("path", [".layers[0", "layers..weight", "[]", "..", "['a'", "[x]"])
    def test_text_that_is_no_path(self, path):
        with pytest.raises(ValueError, match="is not a path"):
            fl.at(model(), path)


class TestPathOfANamedLayer:
    chain = fl.Chain(body=fl.Chain(a=fl.Dense(2, 2), b=fl.Dense(2, 2)), fc=fl.Dense(2, 1))

    @pytest.mark.parametrize("path", ["['fc']", '["fc"]', ".layers[1]"])
    def test_the_name_leads_to_the_layer(self, path):
        assert fl.at(self.chain, path).get() is self.chain["fc"]

    def test_names_lead_down_and_out_of_what_holds_the_chain(self):
        assert fl.at([self.chain], "[0]['body']['b'].weight").get() is self.chain["body"]["b"].weight

    def test_the_state_of_a_named_layer_has_its_path(self):
        state = fl.freeze(fl.setup(fl.Adam(), self.chain), "['fc']")
        assert state["fc"].weight.frozen
        assert not state["body"]["a"].weight.frozen

    def test_a_name_comes_before_the_attribute_that_holds_the_layers(self):
        odd = fl.Chain(layers=fl.Dense(1, 1), fc=fl.Dense(1, 1))
        assert fl.at(odd, "['layers']").get() is odd["layers"]
        assert fl.at(odd, ".layers").get() is odd.layers

    def test_a_name_written_as_an_attribute_is_told_how_to_be_written(self):
        with pytest.raises(KeyError) as raised:
            fl.at(self.chain, ".fc.weight")
        assert raised.value.args[0] == (
            "no place '.fc.weight': the layer named 'fc' is .layers[1]; write \"['fc'].weight\" or "
            "'.layers[1].weight'"
        )

    def test_a_name_that_is_not_there_is_told_those_that_are(self):
        with pytest.raises(
            KeyError, match=r"no place '\.head': the root is a Chain holding \.layers, .*'fc'"
        ):
            fl.at(self.chain, ".head")


class TestPredicate:
    def test_every_topmost_place_of_which_it_is_true(self):
        new = fl.at(model(), lambda path, node: isinstance(node, fl.Dense)).apply(lambda d: fl.relu)
        assert new.layers == (fl.relu, fl.relu, fl.relu)

    def test_it_sees_the_path_and_the_leaf_itself(self):
        m = model()
        found = fl.at(m, lambda path, x: path.endswith(".bias") and x.shape == (3,)).get()
        assert [id(x) for x in found] == [id(m.layers[0].bias), id(m.layers[1].bias)]

    def test_one_place_is_still_several(self):
        assert fl.at([1, 2], lambda path, x: x == 2).get() == (2,)

    def test_nothing_chosen_is_an_error(self):
        with pytest.raises(KeyError, match=r"the predicate chose no place of the tree: .* paths are \[0\]"):
            fl.at([1], lambda path, x: False)


NESTED = st.recursive(
    st.just(1),
    lambda inner: st.lists(inner, min_size=2, max_size=3) | st.fixed_dictionaries({"a": inner, "b": inner}),
    max_leaves=8,
).filter(lambda tree: tree != 1)


class TestAPredicateThatIsTrueOfTheRootForItsPath:
    """`not path.startswith(".head")` is true of the root too, whose path is empty."""

    def test_all_but_one_layer_is_an_error_that_says_what_to_write(self):
        with pytest.raises(
            ValueError,
            match=r"true of the whole tree, whose path is '', and would choose all of it, but it is false of "
            r"\.layers\[1\]\.weight; write isinstance\(node, torch\.Tensor\) and …",
        ):
            fl.at(model(), lambda path, node: not path.startswith(".layers[1]"))

    def test_a_container_is_named_by_its_path(self):
        def others(path, node):
            return path != "" and not path.startswith(".layers[1]")

        with pytest.raises(
            ValueError, match=r"is true of \.layers, a tuple, .* false of \.layers\[1\]\.weight"
        ):
            fl.at(model(), others)

    def test_a_layer_is_named_by_its_path(self):
        def weights(path, node):
            return path.startswith(".layers[1]") and "bias" not in path

        with pytest.raises(ValueError, match=r"is true of \.layers\[1\], a Dense, .*\.layers\[1\]\.bias;"):
            fl.at(model(), weights)

    @pytest.mark.parametrize("transform", [fl.partition, lambda m, f: fl.gradient(lambda m: 0, m, wrt=f)])
    def test_partition_and_gradient_refuse_it_too(self, transform):
        with pytest.raises(ValueError, match=r"the predicate is true of the whole tree"):
            transform(model(), lambda path, node: not path.startswith(".layers[1]"))

    def test_one_among_several_places_is_refused_too(self):
        with pytest.raises(ValueError, match=r"the predicate is true of the whole tree"):
            fl.at([1, 2], ("[0]", lambda path, node: path != "[1]"))

    @settings(max_examples=20, deadline=None)
    @given(NESTED, st.data())
    def test_with_a_condition_on_the_node_it_chooses_all_leaves_but_those(self, tree, data):
        leaves = fl.fleaves(fl.fmap_with_path(lambda path, x: path, tree, leaves="all"), leaves="all")
        left_out = data.draw(st.sampled_from(leaves))
        with pytest.raises(ValueError, match=r"the predicate is true of the whole tree"):
            fl.at(tree, lambda path, node: path != left_out)
        rest = fl.at(tree, lambda path, node: isinstance(node, int) and path != left_out)
        assert rest.get() == (1,) * (len(leaves) - 1)

    def test_a_layer_chosen_by_its_class_is_chosen_whole(self):
        norm = fl.BatchNorm(2)
        assert fl.at(norm, lambda path, node: isinstance(node, fl.BatchNorm)).get() == (norm,)
        either = fl.at(norm, lambda path, node: isinstance(node, fl.BatchNorm) or path.endswith("bias"))
        assert either.get() == (norm,)
        assert fl.at(norm, lambda path, node: not isinstance(node, str)).get() == (norm,)

    def test_a_place_chosen_by_its_whole_path_is_chosen_whole(self):
        m = model()
        assert fl.at(m, lambda path, node: path == ".layers[1]").get() == (m.layers[1],)
        assert fl.at(m, lambda path, node: path.startswith(".layers[1]")).get() == (m.layers[1],)

    def test_it_may_fail_at_leaves_below_what_it_chose(self):
        m = model()
        wide = fl.at(m, lambda path, node: not path or node.weight.ndim == 2)
        assert wide.get() == (m,)


class TestSeveralPlaces:
    def test_a_tuple_mixes_all_kinds(self):
        tree = {"a": 1, "b": [2, 3], "c": 4}
        places = ("['a']", lambda t: t["b"][1], lambda path, x: path == "['c']")
        assert fl.at(tree, places).get() == (1, 3, 4)
        assert fl.at(tree, places).set((10, 30, 40)) == {"a": 10, "b": [2, 30], "c": 40}

    def test_a_wrong_number_of_values(self):
        with pytest.raises(ValueError, match=r"2 places were chosen, and set got 3 values; give a tuple"):
            fl.at([1, 2], ("[0]", "[1]")).set((1, 2, 3))

    def test_one_value_for_several(self):
        with pytest.raises(ValueError, match=r"2 places were chosen, and set got one int.*\.apply"):
            fl.at([1, 2], ("[0]", "[1]")).set(0)

    def test_places_inside_each_other(self):
        with pytest.raises(ValueError, match=r"\.layers\[0\]\.weight lies inside \.layers\[0\]"):
            fl.at(model(), (".layers[0]", ".layers[0].weight")).set((1, 2))

    def test_the_same_place_twice(self):
        with pytest.raises(ValueError, match=r"\[0\].* twice"):
            fl.at([1, 2], ("[0]", "[0]")).set((5, 6))


class TestErrors:
    def test_a_computed_value_is_no_place(self):
        with pytest.raises(
            ValueError, match=r"returned 3, which is not a place of the tree.*places are \.layers"
        ):
            fl.at(model(), lambda m: len(m.layers))

    def test_an_attribute_that_is_no_child_is_no_place(self):
        with pytest.raises(ValueError, match="is not a place of the tree: an attribute that is not a child"):
            fl.at(fl.BatchNorm(2), lambda m: m.eps)

    def test_a_predicate_of_the_leaf_alone_is_told_of_its_two_arguments(self):
        with pytest.raises(
            ValueError, match=r"returned False.*two arguments: lambda path, node: torch\.is_tensor\(node\)$"
        ):
            fl.partition(model(), torch.is_tensor)
        selected, others = fl.partition(model(), lambda path, node: torch.is_tensor(node))
        assert fl.trainables(others) == []
        assert len(fl.trainables(selected)) == len(fl.trainables(model()))
        state = fl.setup(fl.Adam(), model())
        with pytest.raises(
            ValueError, match=r"two arguments: lambda path, node: path\.endswith\('\.bias'\)$"
        ):
            fl.freeze(state, torch.is_tensor)
        assert fl.freeze(state, lambda path, node: path.endswith(".bias")).layers[0].bias.frozen

    def test_a_selector_that_looks_at_a_leaf_is_told_about_predicates(self):
        with pytest.raises(
            ValueError, match=r"sees the tree with a marker.*write a predicate of two arguments"
        ):
            fl.at(model(), lambda m: m.layers[0] if m.layers[0].weight.sum() > 0 else m)

    def test_a_selector_with_a_typo(self):
        with pytest.raises(ValueError, match=r"the selector failed .*AttributeError.*wieght"):
            fl.at(model(), lambda m: m.layers[0].wieght)

    def test_a_number_is_no_place(self):
        with pytest.raises(TypeError, match=r"where= is 3; write a selector such as"):
            fl.at(model(), 3)

    def test_a_function_of_three_arguments_is_no_place(self):
        with pytest.raises(TypeError, match=r"takes 3 arguments; a selector takes the tree"):
            fl.at(model(), lambda a, b, c: a)
