"""What is worked out once a structure is kept; a tree that it was worked out for is not."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.utils import _pytree

import fluxlike as fl


@fl.functor(children=("weight",))
class Looking:
    """One with a tensor that is no child."""

    def __init__(self) -> None:
        self.weight, self.table = torch.ones(1), torch.zeros(10)


class Masked:
    """One of which torch's pytrees keep a tensor beside the children."""

    def __init__(self, weight: Any, table: Any) -> None:
        self.weight, self.table = weight, table


_pytree.register_pytree_node(
    Masked, lambda m: ([m.weight], m.table), lambda children, table: Masked(*children, table)
)


def masked() -> Masked:
    return Masked(torch.ones(1), torch.zeros(10))


@fl.functor(children=("weight",))
class Holding:
    """One whose tensor that is no child is in a container."""

    def __init__(self) -> None:
        self.weight, self.held = torch.ones(1), {"tables": [torch.zeros(10)]}

    @property
    def table(self) -> torch.Tensor:
        return self.held["tables"][0]


def table_of(tree: Any) -> torch.Tensor:
    while not hasattr(tree, "table"):
        (tree,) = fl.children(tree).values()
    return tree.table


@pytest.mark.parametrize(
    "make",
    [Looking, Holding, masked, lambda: {"a": [Looking()]}, lambda: (masked(),)],
    ids=[
        "an object",
        "in a container of an object",
        "a container of torch's",
        "deep in containers",
        "one in another",
    ],
)
def test_a_tensor_that_is_no_child_is_gone_with_its_tree(make: Any) -> None:
    def used() -> weakref.ref[torch.Tensor]:
        tree = make()
        assert len(fl.trainables(tree, paths=True)) == 1
        fl.tree.add(tree, fl.tree.zeros_like(tree))
        return weakref.ref(table_of(tree))

    tables = [used() for _ in range(3)]
    gc.collect()
    assert [table() for table in tables] == [None] * 3
