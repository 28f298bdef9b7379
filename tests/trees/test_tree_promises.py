"""Promises of trees that readers of the code asked for."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import fluxlike as fl


@dataclass
class Pair:
    first: Any
    second: Any


def test_a_dataclass_is_a_node_without_registration():
    grads = fl.gradient(lambda p: (p.first * 3).sum(), Pair(torch.ones(2), torch.ones(1)))
    assert isinstance(grads, Pair)
    assert grads.first.tolist() == [3, 3]
    assert grads.second is None


@fl.functor(children=("a",))
class Parent:
    def __init__(self):
        self.a, self.size = torch.ones(1), 3


class Child(Parent):
    def __init__(self):
        super().__init__()
        self.b = torch.ones(1)


def test_a_tensor_that_a_subclass_adds_beside_the_children_of_its_parent_is_an_error():
    with pytest.raises(TypeError, match=r"Child\.b is a tensor, but not among children=\('a',\)"):
        fl.trainables(Child())


def test_the_order_in_which_attributes_were_set_is_no_part_of_the_structure():
    @fl.functor
    class Layer:
        def __init__(self, names):
            for name in names:
                setattr(self, name, torch.ones(1))

    one, two = Layer("ab"), Layer("ba")
    assert fl.tree.allclose(one, two)
    assert [path for path, _ in fl.trainables(two, paths=True)] == [".a", ".b"]


class Unregistered:
    def __init__(self):
        self.weight = torch.ones(1)

    def __call__(self, x):
        return x


def test_printing_what_is_no_tree_does_not_raise():
    assert "Unregistered, which is not registered" in repr(fl.Chain(Unregistered()))


@fl.functor
class Scaled:
    def __init__(self, scale):
        self.scale = scale


def test_a_0d_tensor_is_printed_by_its_value():
    assert "scale=float32(0.5)" in repr(Scaled(torch.tensor(0.5)))


def test_a_named_chain_prints_its_names():
    assert "head=Dense(2, 1)" in repr(fl.Chain(body=fl.Dense(2, 2), head=fl.Dense(2, 1)))


@pytest.mark.parametrize("where", [operator.attrgetter("layers"), operator.itemgetter(0)])
def test_a_getter_of_operator_is_a_selector(where):
    assert fl.at(fl.Chain(fl.Dense(1, 1)) if "layers" in repr(where) else (1, 2), where).get() is not None


@pytest.mark.parametrize(
    "leaf",
    [
        float("nan"),
        complex(1, float("inf")),
        np.array([1.0, np.inf]),
        torch.tensor([0.0, torch.inf]).to_sparse(),
        fl.Assigned(torch.tensor([torch.nan])),
    ],
    ids=repr,
)
def test_nonfinite_numbers_are_found_in_every_kind_of_leaf(leaf):
    assert list(fl.find_nonfinite({"x": leaf, "y": torch.ones(1)})) == ["['x']"]


def test_a_0d_factor_does_not_change_the_dtype_of_a_0d_leaf():
    assert (
        fl.tree.scale([torch.tensor(1.0)], torch.tensor(2.0, dtype=torch.float64))[0].dtype == torch.float32
    )


def test_an_inner_product_of_16_bit_trees_does_not_overflow():
    x = [torch.full((1000,), 100.0, dtype=torch.float16)]
    assert fl.tree.dot(x, x).item() == 1e7


def test_trees_on_the_meta_device_can_be_compared():
    x = torch.ones(1, device="meta")
    assert fl.tree.allclose([x], [x])
    assert not fl.tree.allclose([x], [torch.ones(1, device="meta")])


class Linked:
    def __init__(self, tail):
        self.tail = tail


def test_a_large_constant_without_tensors_is_a_constant():
    chain = None
    for _ in range(5000):
        chain = Linked(chain)
    tree = {"w": torch.ones(1), "chain": chain}
    assert fl.gradient(lambda t: t["w"].sum(), tree)["chain"] is None


def test_a_partial_without_tensors_is_a_constant():
    model = fl.Dense(2, 1, partial(fl.leaky_relu, negative_slope=0.1))
    assert fl.fmap(lambda x: x, model).activation is model.activation
