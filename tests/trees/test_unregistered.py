"""What is no tree: objects of unregistered classes that hold tensors, and cycles."""

import functools
import types

import pytest
import torch

import fluxlike as fl


def rebuilt(tree):
    return fl.fmap(lambda x: x, tree, leaves="all")


@fl.functor
class Node:
    def __init__(self, w, b):
        self.w, self.b = w, b


class Unregistered:
    def __init__(self, w):
        self.w = w

    def method(self):
        return self.w


class CallableUnregistered(Unregistered):
    def __call__(self, x):
        return self.w * x


class UnregisteredSlots:
    __slots__ = ("w",)

    def __init__(self, w):
        self.w = w


class PrivateSlots:
    __slots__ = ("__w",)

    def __init__(self, w):
        self.__w = w


class Linked:
    def __init__(self, tail):
        self.tail = tail


class TestUnregistered:
    """Objects that hold tensors are never taken for constants."""

    def test_the_error_names_the_place_and_the_cure(self):
        with pytest.raises(
            TypeError,
            match=r"\.layers\[0\] is a CallableUnregistered, which is not registered and holds a tensor at "
            r"\.w: register the class: put @fluxlike\.functor above CallableUnregistered.*fluxlike\.leaf",
        ):
            fl.trainables(fl.Chain(CallableUnregistered(torch.ones(1))))

    def test_a_root_that_is_not_registered(self):
        with pytest.raises(TypeError, match="the tree itself is a Unregistered"):
            fl.trainables(Unregistered(torch.ones(1)))

    def test_slots_are_looked_into(self):
        with pytest.raises(TypeError, match=r"UnregisteredSlots.* holds a tensor at \.w"):
            fl.trainables([UnregisteredSlots(torch.ones(1))])

    def test_private_slots_are_looked_into(self):
        with pytest.raises(TypeError, match=r"PrivateSlots.* holds a tensor at \._PrivateSlots__w"):
            fl.trainables([PrivateSlots(torch.ones(1))])

    def test_containers_inside_are_looked_into(self):
        with pytest.raises(TypeError, match=r"holds a tensor at \.w\['a'\]\[1\]"):
            fl.trainables([Unregistered({"a": [0, torch.ones(1)]})])

    def test_a_functor_inside_counts_as_a_tensor(self):
        with pytest.raises(TypeError, match=r"holds a tensor at \.w"):
            fl.trainables([Unregistered(fl.Dense(1, 1))])

    def test_a_partial(self):
        with pytest.raises(TypeError, match=r"\['f'\] is a partial.*holds a tensor at \.args\[0\].*__call__"):
            fl.trainables({"f": functools.partial(torch.add, torch.ones(1))})

    def test_a_partial_with_a_keyword(self):
        with pytest.raises(TypeError, match=r"holds a tensor at \.keywords\['other'\]"):
            fl.trainables({"f": functools.partial(torch.add, other=torch.ones(1))})

    def test_a_bound_method(self):
        with pytest.raises(TypeError, match=r"\[0\] is a method.*holds a tensor at \.__self__\.w"):
            fl.trainables([Unregistered(torch.ones(1)).method])

    def test_a_bound_method_of_a_functor(self):
        with pytest.raises(TypeError, match=r"\[0\] is a method.*holds a tensor at \.__self__"):
            fl.trainables([fl.Dense(1, 1).extra_repr])

    def test_a_torch_module(self):
        with pytest.raises(TypeError, match=r"\[0\] is a Linear.*a torch\.nn\.Module keeps its parameters"):
            fl.trainables([torch.nn.Linear(1, 1)])

    def test_a_set_of_tensors(self):
        with pytest.raises(TypeError, match=r"\[0\] is a set.*holds a tensor at \[0\]"):
            fl.trainables([{torch.ones(1)}])

    @pytest.mark.parametrize(
        ("holding", "held"),
        [
            (lambda x: types.SimpleNamespace(a=[x]), r"\.a\[0\]"),
            (lambda x: types.MappingProxyType({"a": x}), r"\['a'\]"),
            (lambda x: {"a": x}.values(), r"\[0\]"),
            (lambda x: {"a": x}.items(), r"\[0\]\[1\]"),
            (lambda x: {x: "a"}.keys(), r"\[0\]"),
            (lambda x: {x}, r"\[0\]"),
        ],
    )
    @pytest.mark.parametrize("content", [torch.ones(1), fl.Dense(1, 1)], ids=["tensor", "layer"])
    def test_what_python_itself_keeps_things_in_says_in_what_to_keep_them(self, holding, held, content):
        with pytest.raises(TypeError, match=rf"holds a tensor at {held}: .*in a list, a tuple or a dict, or"):
            fl.trainables([holding(content)])

    def test_objects_without_tensors_are_constants(self):
        constant = [
            Unregistered(3),
            functools.partial(torch.add, 1),
            "text".upper,
            Unregistered,
            torch.nn.ReLU,
        ]
        assert all(a is b for a, b in zip(rebuilt(constant), constant, strict=True))

    def test_a_partial_without_tensors_is_a_constant(self):
        model = fl.Dense(2, 1, functools.partial(fl.leaky_relu, negative_slope=0.1))
        assert fl.fmap(lambda x: x, model).activation is model.activation

    def test_a_large_constant_without_tensors_is_a_constant(self):
        chain = None
        for _ in range(5000):
            chain = Linked(chain)
        tree = {"w": torch.ones(1), "chain": chain}
        assert fl.gradient(lambda t: t["w"].sum(), tree)["chain"] is None

    def test_an_object_that_holds_itself_is_a_constant(self):
        constant = Unregistered(None)
        constant.w = constant
        assert rebuilt([constant])[0] is constant

    def test_a_gradient_says_so_too(self):
        with pytest.raises(TypeError, match=r"\['m'\] is a Unregistered"):
            fl.gradient(lambda t: t["w"].sum(), {"w": torch.ones(1), "m": Unregistered(torch.ones(1))})


class TestCycles:
    def test_a_list_that_holds_itself(self):
        tree = {"a": [1]}
        tree["a"].append(tree["a"])
        with pytest.raises(ValueError, match=r"\['a'\]\[1\] is \['a'\] again: a tree can't contain itself"):
            fl.fmap(torch.neg, tree)

    def test_a_functor_that_holds_its_parent(self):
        parent = Node(None, None)
        parent.w = Node(torch.ones(1), parent)
        with pytest.raises(ValueError, match=r"\.w\.b is the tree itself again"):
            fl.trainables(parent)

    def test_a_tree_that_is_too_deep(self):
        tree = torch.ones(1)
        for _ in range(3000):
            tree = [tree]
        with pytest.raises(ValueError, match="nested too deeply"):
            fl.trainables(tree)

    def test_the_same_node_twice_is_no_cycle(self):
        shared = Node(torch.ones(1), 1)
        assert len(fl.trainables([shared, shared])) == 1
