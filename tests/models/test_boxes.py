"""Boxes: their forms and overlaps, and the suppression of double ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_boxes import random_boxes
from torchvision_here import torchvision

import fluxlike as fl
from fluxlike.models.boxes import (
    complete_iou,
    generalised_iou,
    iou,
    non_maximum_suppression,
    to_centres,
    to_corners,
)

OVERLAPS = (iou, generalised_iou, complete_iou)


def share_of_counted_points(a, b):
    """Intersection over union of boxes of whole numbers, by counting the unit squares in both."""
    squares = [{(i, j) for i in range(x1, x2) for j in range(y1, y2)} for x1, y1, x2, y2 in (a, b)]
    return len(squares[0] & squares[1]) / len(squares[0] | squares[1])


def test_centres_and_corners_undo_each_other():
    boxes = random_boxes(3, 5)
    torch.testing.assert_close(to_corners(to_centres(boxes)), boxes)
    assert to_centres(torch.tensor([[0.0, 2.0, 6.0, 4.0]])).tolist() == [[3.0, 3.0, 6.0, 2.0]]


def test_iou_is_the_share_of_the_points_that_are_in_both():
    boxes = [(0, 0, 4, 3), (1, 1, 5, 6), (2, 0, 3, 9), (6, 6, 8, 8)]
    wanted = [[share_of_counted_points(a, b) for b in boxes] for a in boxes]
    x = torch.tensor(boxes)
    torch.testing.assert_close(iou(x[:, None], x), torch.tensor(wanted))


def test_generalised_iou_by_hand():
    a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 3.0, 3.0])
    assert generalised_iou(a, b).item() == pytest.approx(1 / 7 - 2 / 9)
    assert generalised_iou(a, b + 3).item() == pytest.approx(0 - (36 - 8) / 36)


def test_complete_iou_by_hand():
    a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([0.0, 0.0, 4.0, 2.0])
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    assert complete_iou(a, b).item() == pytest.approx(0.5 - 1 / 20 - v * v / (0.5 + v))


@pytest.mark.parametrize("overlap", [generalised_iou, complete_iou])
def test_overlaps_are_torchvisions(overlap):
    ops = torchvision().ops
    theirs = {"generalised_iou": ops.generalized_box_iou_loss, "complete_iou": ops.complete_box_iou_loss}
    a, b = (1e4 * random_boxes(200, seed=seed) for seed in (0, 1))  # so large that their eps is nothing
    wanted = theirs[overlap.__name__](a, b, eps=0.0)
    torch.testing.assert_close(1 - overlap(a, b), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_a_box_is_whole_in_itself_and_the_order_of_two_does_not_matter(overlap):
    a, b = random_boxes(50), random_boxes(50, seed=1)
    torch.testing.assert_close(overlap(a, a), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(overlap(a, b), overlap(b, a))
    assert (overlap(a, b) <= iou(a, b) + 1e-12).all()
    moved = overlap(3 * a + 7, 3 * b + 7)
    torch.testing.assert_close(moved, overlap(a, b))


@pytest.mark.parametrize("overlap", [iou, generalised_iou])
def test_the_gradient_of_an_overlap_is_that_of_its_numbers(overlap):
    a, b = random_boxes(12).requires_grad_(), random_boxes(12, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(overlap, (a, b))


def test_the_gradient_of_the_complete_overlap_holds_alpha_constant():
    a, b = random_boxes(12).requires_grad_(), random_boxes(12, seed=1)

    def slants(x):
        return torch.atan((x[:, 2] - x[:, 0]) / (x[:, 3] - x[:, 1]))

    def v_of(x):
        return 4 / math.pi**2 * (slants(b) - slants(x)).square()

    v = v_of(a).detach()
    alpha = v / (1 - iou(a, b).detach() + v)

    def with_alpha(x):
        middle = (to_centres(x)[:, :2] - to_centres(b)[:, :2]).square().sum(-1)
        around = torch.maximum(x, b)[:, 2:] - torch.minimum(x, b)[:, :2]
        return iou(x, b) - middle / around.square().sum(-1) - alpha * v_of(x)

    assert torch.autograd.gradcheck(with_alpha, (a,))
    (ours,), (wanted,) = (torch.autograd.grad(f.sum(), a) for f in (complete_iou(a, b), with_alpha(a)))
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_boxes_without_area_have_finite_overlaps_and_gradients(overlap):
    boxes = torch.tensor(
        [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 2.0]]
    )

    def total(boxes):
        return overlap(boxes[:, None], boxes).sum()

    assert total(boxes).isfinite()
    assert fl.gradient(total, boxes).isfinite().all()


def test_areas_beyond_16_bits_are_counted():
    box = torch.tensor([0.0, 0.0, 1000.0, 1000.0], dtype=torch.float16)
    assert iou(box, box).item() == 1
    assert iou(box, box.int()).item() == 1


@pytest.mark.parametrize("f", [to_centres, to_corners, lambda x: iou(x, x), lambda x: complete_iou(x, x)])
def test_what_are_no_boxes_is_an_error(f):
    with pytest.raises(ValueError, match=r"takes boxes, a tensor \(…, 4\), found shape \(2, 5\)"):
        f(torch.zeros(2, 5))


def kept_one_by_one(boxes, scores, classes, threshold):
    """The rule as torchvision.ops.batched_nms has it, in plain loops."""
    left = sorted(range(len(scores)), key=lambda i: -scores[i])  # stable
    kept = []
    while left:
        best, *left = left
        kept.append(best)
        left = [i for i in left if classes[i] != classes[best] or iou(boxes[i], boxes[best]) <= threshold]
    return kept


@st.composite
def scored_boxes(draw):
    """Boxes on a coarse grid, so that many overlap alike, with scores of which some are equal."""
    n = draw(st.integers(0, 14))
    corner, side = st.integers(0, 6), st.integers(1, 5)
    boxes = [draw(st.tuples(corner, corner, side, side)) for _ in range(n)]
    corners = torch.tensor([(x, y, x + w, y + h) for x, y, w, h in boxes], dtype=torch.float32).reshape(n, 4)
    scores = torch.tensor([draw(st.integers(0, 9)) / 10 for _ in range(n)])
    classes = torch.tensor([draw(st.integers(0, 1)) for _ in range(n)], dtype=torch.long)
    return corners, scores, classes, draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))


laws = settings(max_examples=60, deadline=None)


@laws
@given(scored_boxes())
def test_what_is_left_is_what_one_by_one_leaves(case):
    boxes, scores, classes, threshold = case
    kept = non_maximum_suppression(boxes, scores, classes, iou=threshold)
    assert kept.tolist() == kept_one_by_one(boxes, scores.tolist(), classes.tolist(), threshold)


@laws
@given(scored_boxes())
def test_laws_of_suppression(case):
    boxes, scores, _, threshold = case
    kept = non_maximum_suppression(boxes, scores, iou=threshold).tolist()
    overlap = iou(boxes[:, None], boxes)
    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)
    assert all(overlap[i, j] <= threshold for i in kept for j in kept if i != j)
    if len(scores):
        assert kept[0] == scores.argmax()
    for i in {*range(len(scores))} - {*kept}:
        assert any(overlap[i, j] > threshold and scores[j] >= scores[i] for j in kept)


@laws
@given(scored_boxes(), st.randoms(use_true_random=False))
def test_suppression_follows_a_permutation(case, random):
    boxes, scores, classes, threshold = case
    scores = scores + torch.arange(len(scores)) * 1e-4  # no ties
    order = torch.tensor(random.sample(range(len(scores)), len(scores)), dtype=torch.long)
    kept = non_maximum_suppression(boxes, scores, classes, iou=threshold)
    again = non_maximum_suppression(boxes[order], scores[order], classes[order], iou=threshold)
    assert order[again].tolist() == kept.tolist()


@laws
@given(scored_boxes())
def test_classes_are_suppressed_each_alone(case):
    boxes, scores, classes, threshold = case
    kept = non_maximum_suppression(boxes, scores, classes, iou=threshold)
    for c in (0, 1):
        own = (classes == c).nonzero().flatten()
        alone = own[non_maximum_suppression(boxes[own], scores[own], iou=threshold)]
        assert kept[classes[kept] == c].tolist() == alone.tolist()


def test_a_long_chain_of_overlaps_is_suppressed_exactly():
    """Each box drops the next alone: every second one is left."""
    n = 400
    low = torch.arange(n, dtype=torch.float64)
    boxes = torch.stack((low, 0 * low, low + 1.9, 0 * low + 1), -1)
    kept = non_maximum_suppression(boxes, n - low, iou=0.3)
    assert kept.tolist() == list(range(0, n, 2))


def test_suppression_is_over_many_boxes_what_one_by_one_leaves():
    boxes, scores = random_boxes(100), torch.rand(100, generator=torch.Generator().manual_seed(2))
    kept = non_maximum_suppression(boxes, scores, iou=0.4)
    assert 1 < len(kept) < 100
    assert kept.tolist() == kept_one_by_one(boxes, scores.tolist(), [0] * 100, 0.4)


def test_suppression_in_parts_is_that_of_all_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    boxes, scores = random_boxes(200), torch.rand(200, generator=generator)
    classes = torch.randint(2, (200,), generator=generator)
    wanted = non_maximum_suppression(boxes, scores, classes, iou=0.4)
    monkeypatch.setattr("fluxlike.models.boxes._AT_ONCE", 16)
    assert len(wanted) > 48
    assert torch.equal(non_maximum_suppression(boxes, scores, classes, iou=0.4), wanted)


def test_suppression_never_compares_all_boxes_at_once(monkeypatch):
    from fluxlike.models import boxes as module

    compared, overlap = [], module._overlap
    monkeypatch.setattr(module, "_overlap", lambda a, b: compared.append(len(a) * len(b)) or overlap(a, b))
    monkeypatch.setattr(module, "_AT_ONCE", 64)
    non_maximum_suppression(random_boxes(500), torch.arange(500.0), iou=0.9)
    assert max(compared) == 64**2


@pytest.mark.parametrize(
    ("inputs", "settings", "match"),
    [
        ((torch.zeros(2, 4), torch.zeros(3)), {}, r"of one image, found \(2, 4\), \(3,\)"),
        ((torch.zeros(1, 2, 4), torch.zeros(1, 2)), {}, r"of one image, found \(1, 2, 4\), \(1, 2\)"),
        ((torch.zeros(2, 4), torch.zeros(2)), {"iou": 50}, "write a number from 0 to 1"),
    ],
)
def test_a_wrong_suppression_is_an_error(inputs, settings, match):
    with pytest.raises(ValueError, match=match):
        non_maximum_suppression(*inputs, **settings)
