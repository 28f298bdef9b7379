"""Where a loss of probabilities takes its prediction for scores: outside 0 to 1, by more than rounding."""

import pytest
import torch

import fluxlike as fl
from fluxlike.losses.entries import check_probabilities


def check(*values, dtype=torch.float32):
    check_probabilities("focal", torch.tensor(values, dtype=dtype), "torch.softmax(logits, 1)")


@pytest.mark.parametrize(
    ("values", "found"),
    [((0.5, -0.1), "from -0.1 to 0.5"), ((0.2, 1.1), "from 0.2 to 1.1"), ((-0.01, 1.0), "from -0.01 to 1")],
    ids=["below", "above", "hardly below"],
)
def test_one_value_on_either_side_is_enough(values, found):
    with pytest.raises(
        ValueError, match=rf"focal takes probabilities, found values {found}: write torch\.softmax"
    ):
        check(*values)


@pytest.mark.parametrize("value", [0.0, 1.0, 1 + 1e-6])
def test_the_rounding_of_a_sum_is_no_score(value):
    check(value, 0.5)


@pytest.mark.parametrize("loss", [fl.losses.binarycrossentropy, fl.losses.binary_focal])
@pytest.mark.parametrize(("value", "found"), [(1 + 1e-6, "to 1.000001"), (-1e-6, "from -1e-06")])
def test_what_would_be_nan_by_a_rounding_is_told_how_to_be_mended(loss, value, found):
    probs, target = torch.tensor([value, 0.5]), torch.ones(2)
    with pytest.raises(ValueError, match=rf"{found}.*, or prediction\.clamp\(0, 1\) where it is rounding"):
        loss(probs, target)
    assert loss(probs.clamp(0, 1), target).isfinite()


def test_the_rounding_of_sixteen_bits_is_wider():
    check(1 + torch.finfo(torch.bfloat16).eps, 1.0, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"to 1\.008"):
        check(1 + torch.finfo(torch.bfloat16).eps, 1.0)


def test_what_has_no_values_to_read_is_taken_as_it_is():
    check_probabilities("focal", torch.empty(3, device="meta"), "")
    check_probabilities("focal", torch.empty(0, 3), "")
    scores = torch.tensor([[2.0, -2.0]])
    assert fl.vmap(lambda p: (check_probabilities("focal", p, ""), p)[1])(scores).equal(scores)
