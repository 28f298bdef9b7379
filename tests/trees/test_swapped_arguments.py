"""Arguments in the wrong order are errors that show the right one; none gives a result."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fluxlike as fl

MODEL = fl.Chain(fl.Dense(2, 3, fl.relu), fl.Dense(3, 1))
TENSORS = {"w": torch.ones(3)}


def double(x: Any) -> Any:
    return 2 * x


SWAPPED = {
    "scale": (lambda: fl.tree.scale(2.0, MODEL), "found a float and a Chain; write scale(tree, 2.0)"),
    "scale by 0-d": (
        lambda: fl.tree.scale(torch.tensor(2.0), MODEL),
        "a Tensor and a Chain; write scale(tree, factor)",
    ),
    "scale of a tensor": (lambda: fl.tree.scale(2.0, torch.ones(3)), "a Tensor; write scale(tree, 2.0)"),
    "scale by a tree": (lambda: fl.tree.scale(MODEL, MODEL), "a number as its factor, found a Chain"),
    "scale by None": (lambda: fl.tree.scale(MODEL, None), "a number as its factor, found a NoneType"),
    "norm": (lambda: fl.tree.norm(2.0, MODEL), "found a float and a Chain; write norm(tree, 2.0)"),
    "norm of text": (lambda: fl.tree.norm(MODEL, "fro"), "a number as its p, found a str"),
    "lerp first": (lambda: fl.tree.lerp(0.5, MODEL, MODEL), "found a float, a Chain and a Chain; write"),
    "lerp second": (lambda: fl.tree.lerp(MODEL, 0.5, MODEL), "; write lerp(a, b, 0.5)"),
    "fmap": (lambda: fl.fmap(MODEL, double), "a Chain and the function double; write fmap(double, tree)"),
    "fmap over a dict": (
        lambda: fl.fmap(TENSORS, torch.relu),
        "a dict and the function relu; write fmap(relu",
    ),
    "fmap of no function": (
        lambda: fl.fmap(2.0, MODEL),
        "a function, then a tree, found a float and a Chain",
    ),
    "fmap_with_path": (lambda: fl.fmap_with_path(MODEL, double), "write fmap_with_path(double, tree)"),
    "at": (lambda: fl.at(lambda m: m.layers[0], MODEL), "where= is a Chain; the tree comes first: write"),
    "at by a path": (lambda: fl.at(".layers[0]", MODEL), "the tree comes first: write (tree, '.layers[0]')"),
    "partition": (lambda: fl.partition(double, MODEL), "the tree comes first: write (tree, double)"),
    "apply": (
        lambda: fl.at(MODEL, ".layers[0].bias").apply(torch.zeros(3)),
        "apply takes a function of what is there, found a Tensor; write .set(value)",
    ),
    "load_state_dict": (
        lambda: fl.load_state_dict(fl.state_dict(MODEL), MODEL),
        "found a dict and a Chain; write load_state_dict(model, d)",
    ),
    "load_state_dict of a model": (
        lambda: fl.load_state_dict(MODEL, MODEL),
        "found a Chain as the state; write load_state_dict(tree, fluxlike.state_dict(other))",
    ),
}


@pytest.mark.parametrize("name", SWAPPED)
def test_the_error_says_what_was_found_and_what_to_write(name: str) -> None:
    call, said = SWAPPED[name]
    with pytest.raises(TypeError, match=re.escape(said)):
        call()


@pytest.mark.parametrize(
    "call", [lambda t: fl.tree.scale(TENSORS, t), lambda t: fl.tree.lerp(TENSORS, TENSORS, t)]
)
def test_a_factor_with_axes_is_refused(call: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"a number or a 0-d tensor as its \w+, found the shape \(3,\)"):
        call(torch.ones(3))


@pytest.mark.parametrize("two", [2, 2.0, np.float32(2), torch.tensor(2.0), 2 + 0j])
def test_any_number_scales(two: Any) -> None:
    assert fl.tree.scale(TENSORS, two)["w"].tolist() == [2, 2, 2]


def test_a_number_is_a_tree_of_one_constant() -> None:
    assert fl.tree.scale(3.0, 2.0) == 3
    assert fl.fmap(double, torch.relu) is torch.relu
    assert fl.fmap(fl.Dense(3, 1), TENSORS)["w"].shape == (1,)
