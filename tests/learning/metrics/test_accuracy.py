"""Accuracy: what counts as right, beside torchmetrics, and what is refused."""

import contextlib

import pytest
import torch
import torch.nn.functional as F

from benchmarks import torchvision_here
from fluxlike.learning.metrics.accuracy import accuracy

with contextlib.suppress(ImportError):
    torchvision_here.torchvision()  # which torchmetrics imports
theirs = pytest.importorskip("torchmetrics.functional")


def drawn(*shape, classes=None):
    generator = torch.Generator().manual_seed(3)
    if classes is None:
        return torch.randn(*shape, generator=generator)
    return torch.randint(classes, shape, generator=generator)


@pytest.mark.parametrize("rest", [(), (5,), (4, 6)], ids=str)
def test_of_classes_it_is_the_share_of_right_entries(rest):
    scores, labels = drawn(40, 3, *rest), drawn(40, *rest, classes=3)
    wanted = theirs.accuracy(scores, labels, task="multiclass", num_classes=3, average="micro")
    assert accuracy(scores, labels) == wanted
    assert 0.1 < wanted < 0.6
    hot = F.one_hot(labels, 3).movedim(-1, 1)
    for targets in (hot, hot.bool(), hot.float() * 0.9 + 0.03):
        assert accuracy(scores, targets) == wanted


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 1, 5)], ids=str)
def test_of_two_classes_a_logit_above_zero_is_the_second(shape):
    logits, labels = drawn(*shape), drawn(*shape, classes=2)
    wanted = theirs.accuracy(logits.sigmoid(), labels, task="binary")
    rest = labels if len(shape) == 1 else labels.squeeze(1)
    for targets in (labels, labels.float(), labels.bool(), rest):
        assert accuracy(logits, targets) == wanted
    assert 0.3 < wanted < 0.7


def test_sixteen_bits_and_a_single_entry():
    scores = torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16)
    assert accuracy(scores, torch.tensor([1])).dtype is torch.float32
    assert accuracy(scores, torch.tensor([True])) == 1


def test_the_share_has_the_precision_of_the_outputs():
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert accuracy(scores, torch.tensor([1, 0, 1])).item() == 2 / 3


@pytest.mark.parametrize(
    ("outputs", "targets", "error", "says"),
    [
        (torch.ones(4, 3), torch.ones(3, dtype=torch.long), ValueError, r"\(4,\) or \(4, 3\); found \(3,\)"),
        (torch.ones(4, 3), torch.ones(4, 1, dtype=torch.long), ValueError, "nothing is broadcast"),
        (torch.ones(4, 3), torch.ones(4), ValueError, r"write targets.long\(\)"),
        (torch.ones(4), torch.ones(3), ValueError, r"\(4,\); found \(3,\)"),
        (torch.ones(0, 3), torch.ones(0, dtype=torch.long), ValueError, r"shape \(0, 3\)"),
        (torch.ones(4, 3, dtype=torch.long), torch.ones(4), TypeError, "torch.int64"),
        ([1.0], torch.ones(1), TypeError, "is a list"),
    ],
    ids=["length", "broadcast", "float labels", "binary length", "empty", "integer scores", "list"],
)
def test_what_does_not_fit_is_refused(outputs, targets, error, says):
    with pytest.raises(error, match=says):
        accuracy(outputs, targets)
