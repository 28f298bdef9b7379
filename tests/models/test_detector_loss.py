"""The loss of a detector, and the objects that it takes."""

import pytest
import torch
from small_detector import TARGETS, candidates, detector, images, rows

import fluxlike as fl
from fluxlike.models.boxes import complete_iou, iou, to_corners
from fluxlike.models.detector import Candidates
from fluxlike.models.detector_loss import _assigned, detection_loss, padded_objects


def test_the_gradient_of_the_loss_is_that_of_its_numbers():
    """With what each place answers for, and how well, held as it is: `complete_iou` holds alpha constant."""
    x, y = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="xy")
    points = 8 * torch.stack((x, y), -1).reshape(-1, 2).double() + 4
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 16, 2, generator=generator, dtype=torch.float64).requires_grad_()
    sizes = 4 + 8 * torch.rand(16, 2, generator=generator, dtype=torch.float64)
    boxes = to_corners(torch.cat((points, sizes), -1))[None]
    strides = torch.full((16,), 8.0, dtype=torch.float64)
    targets = rows((1, 2, 20, 14, 0), (16, 15, 30, 31, 1)).double()
    (found,) = torch.autograd.grad(
        detection_loss(Candidates(boxes, logits, points, strides), targets), logits
    )

    boxes_, classes, quality = _assigned(
        Candidates(boxes, logits.detach(), points, strides),
        torch.nn.functional.pad(targets, (0, 0, 0, 1), value=-1),
    )
    wanted = torch.zeros(1, 16, 2, dtype=torch.float64)
    wanted[0, torch.arange(16), classes[0].clamp_min(0)] = quality[0]

    def by_hand(logits):
        p = logits.sigmoid()
        cost = -(wanted * p.log() + (1 - wanted) * (1 - p).log())
        of_boxes = (quality * (1 - complete_iou(boxes, boxes_))).sum()
        return ((wanted - p).square() * cost).sum() / quality.sum().clamp_min(1) + 2 * of_boxes

    assert torch.autograd.gradcheck(by_hand, (logits,))
    torch.testing.assert_close(found, torch.autograd.grad(by_hand(logits), logits)[0], rtol=1e-9, atol=1e-12)


def test_the_loss_of_one_place_by_hand():
    said = candidates([[2.0, 2.0, 10.0, 12.0]], [[0.3, -1.0]])
    box = torch.tensor([2.0, 2.0, 10.0, 10.0])
    q = iou(said.boxes[0, 0], box)  # the best place of an object is worth its overlap
    p0, p1 = torch.tensor([0.3, -1.0]).sigmoid()
    scores = (q - p0) ** 2 * -(q * p0.log() + (1 - q) * (1 - p0).log()) + p1**2 * -(1 - p1).log()
    wanted = scores + 3 * q * (1 - complete_iou(said.boxes[0, 0], box))
    found = detection_loss(said, rows((2, 2, 10, 10, 0)), box_weight=3)
    torch.testing.assert_close(found, wanted)


def test_an_image_without_objects_costs_what_is_taken_for_one():
    said = candidates([[2.0, 2.0, 10.0, 12.0]], [[0.3, -1.0]])
    p = torch.tensor([0.3, -1.0]).sigmoid()
    wanted = (p**2 * -(1 - p).log()).sum()
    for none in (torch.zeros(1, 0, 5), torch.full((1, 3, 5), -1.0), [(torch.zeros(0, 4), torch.zeros(0))]):
        torch.testing.assert_close(detection_loss(said, none), wanted)


def test_rows_of_padding_and_their_order_change_nothing():
    said = detector()(images())
    value = detection_loss(said, TARGETS)
    more = torch.nn.functional.pad(TARGETS, (0, 0, 0, 4), value=-1)
    torch.testing.assert_close(detection_loss(said, more), value)
    torch.testing.assert_close(detection_loss(said, more.flip(1)), value)
    objects = [(TARGETS[0, :, :4], TARGETS[0, :, 4].long()), (TARGETS[1, :1, :4], TARGETS[1, :1, 4].long())]
    torch.testing.assert_close(detection_loss(said, objects), value)


def test_a_better_answer_costs_less():
    box = (10.0, 10.0, 30.0, 30.0)
    answers = [
        candidates([box], [[5.0, -5.0]]),
        candidates([box], [[0.0, -5.0]]),
        candidates([[12.0, 9.0, 34.0, 32.0]], [[0.0, -5.0]]),
        candidates([[12.0, 9.0, 34.0, 32.0]], [[-5.0, 5.0]]),
    ]
    losses = [detection_loss(answer, rows((*box, 0))).item() for answer in answers]
    assert losses == sorted(losses)
    assert losses[0] < 1e-3


def test_a_place_answers_for_one_object_that_it_overlaps_most():
    """Two objects around one place: the one is answered, and the other's absence costs nothing."""
    said = candidates([[0.0, 0.0, 10.0, 10.0]], [[0.0, 0.0]])
    both = rows((0, 0, 10, 10, 0), (0, 0, 14, 14, 1))
    assert detection_loss(said, both) == detection_loss(said, both[:, :1])


def test_an_object_smaller_than_the_stride_has_a_place():
    model = detector(strides=(32,))
    small = rows((15.0, 31.0, 17.0, 33.0, 0.0))  # on the border of two places, and inside of none
    _, _, quality = _assigned(model(images(n=1)), small)
    said = model(images(n=1))
    near = (said.points - torch.tensor([16.0, 32.0])).abs().amax(-1) < 32
    assert near.any()
    assert ((quality[0] > 0) <= near).all()
    assert (quality > 0).any()


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 5), (3, 5)])
def test_targets_of_another_shape_are_an_error(shape):
    with pytest.raises(ValueError, match=r"takes targets \(N, M, 5\).* of the 2 images"):
        detection_loss(detector()(images()), torch.zeros(shape))


def test_objects_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"found \(2, 4\) and \(3,\) for image 0"):
        padded_objects([(torch.zeros(2, 4), torch.zeros(3))])
    with pytest.raises(ValueError, match="image 0 has 2 objects; write a larger one"):
        padded_objects([(torch.zeros(2, 4), torch.zeros(2))], most=1)
    assert padded_objects([(TARGETS[0, :, :4], torch.zeros(2))], most=5).shape == (1, 5, 5)


GOOD = (10.0, 20.0, 30.0, 40.0)
FAULTS = {
    "swapped": ((40.0, 30.0, 4.0, 4.0), 0, r"box 1 is \(40, 30, 4, 4\), which has no area; .*: to_corners"),
    "flat": ((4.0, 30.0, 40.0, 30.0), 0, "has no area"),
    "outside": ((64.0, 0.0, 80.0, 9.0), 0, r"outside the image of 64 × 64 pixels"),
    "left of it": ((-9.0, 0.0, -1.0, 9.0), 0, "outside the image"),
    "nan": ((4.0, float("nan"), 40.0, 30.0), 0, "write finite numbers"),
    "padding inside": ((4.0, 4.0, 9.0, 9.0), -2, "object 1 is of class -2; write an integer from 0"),
    "half a class": ((4.0, 4.0, 9.0, 9.0), 0.5, "object 1 is of class 0.5; write an integer from 0"),
    "no such class": ((4.0, 4.0, 9.0, 9.0), 2, "object 1 is of class 2; write an integer from 0 to 1"),
}


@pytest.mark.parametrize(("box", "kind", "match"), FAULTS.values(), ids=FAULTS)
def test_objects_that_could_not_be_learnt_are_an_error_with_their_place(box, kind, match):
    said = detector()(images())
    targets = [(torch.tensor([GOOD]), torch.zeros(1)), (torch.tensor([GOOD, box]), torch.tensor([0.0, kind]))]
    with pytest.raises(ValueError, match=f"detection_loss: image 1, .*{match}"):
        detection_loss(said, targets)
    if "outside" not in match and "to 1" not in match:
        with pytest.raises(ValueError, match=f"padded_objects: image 1, .*{match}"):
            padded_objects(targets)


def test_a_class_of_padding_in_a_list_is_an_error():
    targets = [(torch.tensor([GOOD]), torch.tensor([-1])), (torch.zeros(0, 4), torch.zeros(0))]
    with pytest.raises(ValueError, match="image 0, object 0 is of class -1"):
        padded_objects(targets)
    with pytest.raises(ValueError, match="image 0, object 0 is of class -1"):
        detection_loss(detector()(images()), targets)


def test_boxes_of_integers_do_not_round_their_classes():
    with pytest.raises(ValueError, match=r"image 0, object 0 is of class 0\.5"):
        padded_objects([(torch.tensor([[1, 2, 3, 4]]), torch.tensor([0.5]))])
    assert padded_objects([(torch.tensor([[1, 2, 3, 4]]), torch.tensor([7]))]).tolist() == [[[1, 2, 3, 4, 7]]]


def test_boxes_in_shares_of_the_image_are_an_error():
    relative = rows((0.1, 0.2, 0.7, 0.9, 0), (0, 0, 1, 1, 1))
    with pytest.raises(ValueError, match=r"within one pixel as all others; .* times its width and height"):
        detection_loss(detector()(images(n=1)), relative)
    one_small = rows((0, 0, 1, 1, 1), (4, 4, 30, 30, 0))
    assert detection_loss(detector()(images(n=1)), one_small).isfinite()


def test_boxes_that_reach_over_the_edge_are_learnt():
    assert detection_loss(detector()(images(n=1)), rows((-5, 40, 20, 70, 1))).isfinite()


@pytest.mark.parametrize(
    ("targets", "error", "match"),
    [
        (None, TypeError, r"a list with a pair \(boxes, classes\) for each image, found NoneType"),
        ([], ValueError, "for each image, found none"),
        ([{"boxes": 1, "labels": 2}], TypeError, r"found a dict for image 0; write \[\(t\['boxes'\]"),
        ([(torch.zeros(1, 4), [0])], TypeError, r"found \(Tensor, list\) for image 0"),
        ([3], TypeError, "found int for image 0"),
    ],
)
def test_targets_of_another_kind_are_an_error(targets, error, match):
    with pytest.raises(error, match=f"^detection_loss takes .*{match}"):
        detection_loss(detector()(images(n=1)), targets)
    with pytest.raises(error, match=f"^padded_objects takes .*{match}"):
        padded_objects(targets)


@pytest.mark.parametrize("settings", [{"gamma": 0.5}, {"gamma": -1}, {"box_weight": -1}])
def test_weights_of_the_loss_outside_their_range_are_an_error(settings):
    with pytest.raises(ValueError, match="box_weight of at least 0 and a gamma of at least 1"):
        detection_loss(detector()(images()), TARGETS, **settings)


def test_under_vmap_no_value_is_asked():
    said = detector()(images())

    def one(boxes, logits, targets):
        return detection_loss(Candidates(boxes[None], logits[None], said.points, said.strides), targets[None])

    wanted = [one(*pair) for pair in zip(said.boxes, said.logits, TARGETS, strict=True)]
    found = fl.vmap(one)(said.boxes, said.logits, TARGETS)
    torch.testing.assert_close(found, torch.stack(wanted))
