"""Laws for every tree: scan is a loop, cond is an if, and check_pure finds what is written."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fluxlike as fl
from tests.properties.strategies import leaves_of, same_bits, same_content, ties, trees

law = settings(max_examples=20, deadline=None)
DTYPES = (torch.float32, torch.int64, torch.complex64)


def moved(tree: Any, x: Tensor) -> Any:
    return fl.fmap(lambda leaf: leaf + x.to(leaf.dtype), tree)


@law
@given(trees(DTYPES), st.integers(1, 4))
def test_scan_is_a_loop(tree: Any, turns: int) -> None:
    xs = torch.arange(float(turns))
    last, stacked = fl.scan(lambda c, x: (moved(c, x), c), tree, xs)
    expected, each = tree, []
    for x in xs:
        each.append(expected)
        expected = moved(expected, x)
    assert same_content(last, expected)
    assert ties(last) == ties(tree) == ties(stacked)
    columns = zip(*map(leaves_of, each), strict=True)
    for found, column in zip(leaves_of(stacked), columns, strict=True):
        if isinstance(found, Tensor):
            assert same_bits(found, torch.stack(column))
        else:
            assert found is column[0] or found == column[0]


@law
@given(trees(DTYPES))
def test_scan_of_no_turn_has_the_shapes_of_a_turn(tree: Any) -> None:
    last, stacked = fl.scan(lambda c, x: (c, moved(c, x)), tree, torch.zeros(0))
    assert same_content(last, tree)
    for found, x in zip(leaves_of(stacked), leaves_of(tree), strict=True):
        if isinstance(x, Tensor):
            assert (found.shape, found.dtype) == ((0, *x.shape), x.dtype)


@law
@given(trees(DTYPES), st.booleans())
def test_cond_is_an_if(tree: Any, pred: bool) -> None:
    def choose(pred: Any) -> Any:
        return fl.cond(
            pred, lambda t: moved(t, torch.tensor(1.0)), lambda t: moved(t, torch.tensor(2.0)), tree
        )

    expected = moved(tree, torch.tensor(1.0 if pred else 2.0))
    assert same_content(choose(pred), expected)
    assert same_content(choose(torch.tensor(pred)), expected)
    mapped = fl.vmap(choose)(torch.tensor([pred, not pred]))
    assert ties(mapped) == ties(tree)
    for found, x in zip(leaves_of(mapped), leaves_of(expected), strict=True):
        assert same_bits(found[0], x) if isinstance(x, Tensor) else found is x or found == x


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(trees(), st.data())
def test_check_pure_finds_the_one_leaf_that_is_written(tree: Any, data: st.DataObject) -> None:
    assert fl.check_pure(lambda t: fl.fmap(lambda x: x.clone(), t), tree)
    before = fl.tree.clone(tree)
    number = data.draw(st.integers(0, len(fl.fleaves(tree)) - 1))
    paths: list[str] = []
    fl.fmap_with_path(lambda path, x: paths.append(path), tree)
    target = fl.fleaves(tree)[number]

    def write(t: Any) -> None:
        x = fl.fleaves(t)[number]
        x.copy_(~x if x.dtype is torch.bool else x + 16)

    report = fl.check_pure(write, tree)
    wanted = {f"{paths[number]} of argument 0": ("torch.Tensor.copy_",)} if target.numel() else {}
    assert dict(report.changed) == wanted
    assert same_content(tree, before)
