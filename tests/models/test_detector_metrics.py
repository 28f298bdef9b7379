"""Average precision, by hand and as torchmetrics has it."""

import math
import sys
import types

import pytest
import torch
from small_boxes import random_boxes
from torchvision_here import torchvision

from fluxlike.models.detections import Detections
from fluxlike.models.detector_loss import padded_objects
from fluxlike.models.detector_metrics import average_precision, mean_average_precision

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
