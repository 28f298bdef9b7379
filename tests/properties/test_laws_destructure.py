"""Laws of `destructure` for every tree."""

from typing import Any

import torch
from hypothesis import given, settings
from torch.testing import assert_close

import fluxlike as fl
from tests.properties.strategies import PARAMETER_DTYPES, same_bits, same_content, ties, trees

law = settings(max_examples=25, deadline=None)


@law
@given(trees((*PARAMETER_DTYPES, torch.int64)))
def test_rebuild_undoes_destructure(tree: Any) -> None:
    flat, rebuild = fl.destructure(tree)
    assert same_content(rebuild(flat), tree)
    assert ties(rebuild(flat)) == ties(tree)


@law
@given(trees((torch.float32, torch.float64, torch.complex64)))
def test_destructure_undoes_rebuild(tree: Any) -> None:
    flat, rebuild = fl.destructure(tree)
    moved = fl.destructure(rebuild(flat + 1))[0]
    assert same_bits(moved, flat + 1)


@law
@given(trees(PARAMETER_DTYPES))
def test_the_vector_holds_the_parameters_once_in_the_order_of_trainables(tree: Any) -> None:
    parts = [x.reshape(-1) for x in fl.trainables(tree)]
    assert_close(fl.destructure(tree)[0], torch.cat(parts), rtol=0, atol=0)
