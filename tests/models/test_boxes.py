"""Boxes: their forms and overlaps, the suppression of double ones, and average precision."""

import math
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
from fluxlike.models.detections import Detections
from fluxlike.models.detector_loss import padded_objects
from fluxlike.models.detector_metrics import average_precision, mean_average_precision

OVERLAPS = (iou, generalised_iou, complete_iou)


def random_boxes(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    low, size = torch.rand(2, *shape, 2, generator=generator, dtype=dtype) * 4
    return torch.cat((low, low + size + 0.1), -1)


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


SQUARES = torch.tensor([[10.0 * i, 0.0, 10.0 * i + 8, 8.0] for i in range(4)])


def found(boxes, scores, classes):
    return Detections(boxes, torch.tensor(scores), torch.tensor(classes))


def test_average_precision_by_hand():
    """Right, wrong, right of three objects: precisions 1, 1/2, 2/3, so 34 recalls at 1 and 33 at 2/3."""
    apart = torch.tensor([[90.0, 90.0, 99.0, 99.0]])
    boxes = torch.cat((SQUARES[:1], apart, SQUARES[1:2]))
    targets = [(SQUARES[:3], torch.zeros(3))]
    ap = average_precision([found(boxes, [0.9, 0.8, 0.7], [0, 0, 0])], targets)
    assert ap == {0: pytest.approx((34 * 1 + 33 * 2 / 3) / 101)}


def test_an_object_is_taken_once_and_the_second_box_is_wrong():
    boxes = torch.cat((SQUARES[:1], SQUARES[:1] + 0.1, SQUARES[1:2]))
    targets = [(SQUARES[:2], torch.zeros(2))]
    ap = average_precision([found(boxes, [0.9, 0.8, 0.7], [0, 0, 0])], targets)[0]
    assert ap == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_box_takes_the_best_object_that_is_left():
    """Two objects that overlap: the second box lies nearer to the taken one, and takes the other."""
    objects = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 2.0, 10.0, 12.0]])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.5, 10.0, 10.5]])
    assert average_precision([found(boxes, [0.9, 0.8], [0, 0])], [(objects, torch.zeros(2))]) == {0: 1.0}


def test_the_threshold_of_overlap_decides():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    shifted = torch.tensor([[0.0, 0.0, 10.0, 6.0]])  # 0.6
    case = [found(shifted, [0.9], [0])], [(box, torch.zeros(1))]
    assert [mean_average_precision(*case, iou=t) for t in (0.5, 0.59, 0.61)] == [1, 1, 0]


def test_classes_images_and_padded_rows_are_told_apart():
    detections = [found(SQUARES[:2], [0.9, 0.8], [0, 1]), found(SQUARES[:0], [], [])]
    objects = [(SQUARES[:2], torch.tensor([0, 2])), (SQUARES[:1], torch.tensor([0]))]
    wanted = {0: pytest.approx(51 / 101), 2: 0.0}
    assert average_precision(detections, objects) == wanted
    rows = padded_objects(objects, 5)
    assert average_precision(detections, rows) == wanted
    assert mean_average_precision(detections, rows) == pytest.approx(51 / 202)
    assert math.isnan(mean_average_precision(detections[1:], [(SQUARES[:0], torch.zeros(0))]))
    with pytest.raises(ValueError, match="of the same images, found 2 and 1"):
        average_precision(detections, objects[:1])


def test_several_thresholds_give_their_mean():
    detections, objects = random_case(3)
    each = [average_precision(detections, objects, iou=t) for t in (0.3, 0.5, 0.75)]
    together = average_precision(detections, objects, iou=(0.3, 0.5, 0.75))
    assert together == {c: pytest.approx(sum(one[c] for one in each) / 3) for c in each[0]}
    mean = mean_average_precision(detections, objects, iou=[0.3, 0.5, 0.75])
    assert mean == pytest.approx(sum(together.values()) / len(together))
    with pytest.raises(ValueError, match="write a number, or several"):
        average_precision(detections, objects, iou=[])


def test_overlaps_are_found_once_an_image(monkeypatch):
    """However many classes and thresholds there are."""
    from fluxlike.models import detector_metrics as module

    calls, overlap = [], module.overlap_of
    monkeypatch.setattr(module, "overlap_of", lambda a, b: calls.append(1) or overlap(a, b))
    average_precision(*random_case(0, images=7, classes=5), iou=[0.5, 0.75])
    assert len(calls) == 7


def test_targets_that_are_no_pairs_are_an_error():
    with pytest.raises(TypeError, match="found a dict for image 0"):
        average_precision([found(SQUARES, [0.9] * 4, [0] * 4)], [{"boxes": SQUARES}])


def random_case(seed, images=12, classes=3):
    """Objects, and detections of which some are near an object."""
    generator = torch.Generator().manual_seed(seed)

    def number(high):
        return int(torch.randint(high, (), generator=generator))

    detections, objects = [], []
    for i in range(images):
        there = 20 * random_boxes(1 + number(5), seed=100 * seed + i, dtype=torch.float32)
        of = torch.randint(classes, (len(there),), generator=generator)
        picked = torch.randint(len(there), (number(9),), generator=generator)
        moved = there[picked] + 4 * torch.randn(len(picked), 4, generator=generator)
        boxes = torch.cat((torch.minimum(moved[:, :2], moved[:, 2:]), moved.view(-1, 2, 2).amax(1)), 1)
        named = torch.where(torch.rand(len(picked), generator=generator) < 0.8, of[picked], 0)
        scores = torch.rand(len(picked), generator=generator)
        detections.append(Detections(boxes, scores, named))
        objects.append((there, of))
    return detections, objects


@pytest.mark.slow  # torchmetrics takes long to import
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_torchmetrics(seed, monkeypatch):
    torchvision()
    theirs = pytest.importorskip("torchmetrics.detection._mean_ap")
    masks = types.ModuleType("mask")  # torchmetrics asks for it, and for boxes it does not use it
    monkeypatch.setattr(theirs, "_PYCOCOTOOLS_AVAILABLE", True)
    monkeypatch.setitem(sys.modules, "pycocotools", types.SimpleNamespace(mask=masks))
    monkeypatch.setitem(sys.modules, "pycocotools.mask", masks)
    detections, objects = random_case(seed)
    for threshold in (0.5, 0.75):
        metric = theirs.MeanAveragePrecision(iou_thresholds=[threshold], class_metrics=True)
        metric.update(
            [{"boxes": d.boxes, "scores": d.scores, "labels": d.classes} for d in detections],
            [{"boxes": boxes, "labels": classes} for boxes, classes in objects],
        )
        wanted = metric.compute()
        ours = average_precision(detections, objects, iou=threshold)
        assert 0.05 < mean_average_precision(detections, objects, iou=threshold) < 0.95
        assert [*ours] == wanted["classes"].tolist()
        torch.testing.assert_close(
            torch.tensor([*ours.values()]), wanted["map_per_class"], rtol=1e-5, atol=1e-6
        )
