"""The detector over a backbone, what it is trained with, and what it gives."""

import math
from itertools import pairwise

import pytest
import torch

import fluxlike as fl
from fluxlike.models.blocks import conv_norm
from fluxlike.models.boxes import complete_iou, iou, to_centres, to_corners
from fluxlike.models.detections import decode, detect
from fluxlike.models.detector import YOLO, Candidates, Detector
from fluxlike.models.detector_loss import _assigned, detection_loss, padded_objects
from fluxlike.models.detector_metrics import mean_average_precision
from fluxlike.models.resnet import ResNetConfig


def backbone():
    return fl.Chain(*(conv_norm(3, a, b, stride=2) for a, b in pairwise([3, 8, 8, 16, 16, 24])))


def detector(nclasses=2, **settings):
    with fl.seeded(fl.Key(0)):
        return YOLO(backbone(), nclasses=nclasses, **{"channels": 16, **settings})


def images(height=64, width=64, n=2):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))


def candidates(boxes, logits, stride=8.0):
    """Boxes of one image, each said at the place in its middle."""
    boxes, logits = torch.tensor(boxes), torch.tensor(logits)
    return Candidates(boxes[None], logits[None], to_centres(boxes)[:, :2], torch.full((len(boxes),), stride))


def rows(*objects):
    return torch.tensor([objects], dtype=torch.float32)


def loss(model, x, targets):
    return detection_loss(model(x), targets)


TARGETS = torch.tensor(
    [
        [[4.0, 4.0, 30.0, 28.0, 1.0], [40.0, 30.0, 60.0, 62.0, 0.0]],
        [[10.0, 20.0, 22.0, 30.0, 0.0], [-1.0, -1.0, -1.0, -1.0, -1.0]],
    ]
)


@pytest.mark.parametrize("strides", [(8, 16, 32), (4, 16), (8,)])
def test_there_is_a_box_at_each_place_of_each_map(strides):
    model = detector(strides=strides)
    said = model(images(48, 80))
    wanted = [(x + 0.5, y + 0.5, s) for s in strides for y in range(-(-48 // s)) for x in range(-(-80 // s))]
    assert said.boxes.shape == (2, len(wanted), 4)
    assert said.logits.shape == (2, len(wanted), 2)
    places = torch.cat((said.points / said.strides[:, None], said.strides[:, None]), 1)
    assert places.tolist() == [[*map(float, place)] for place in wanted]


def test_boxes_are_read_off_the_heads_in_strides():
    said = torch.tensor([0.25, -0.5, math.log(3.0), 0.0, 7.0]).reshape(1, 5, 1, 1)
    model = Detector([fl.identity], [fl.identity], [lambda x: said.expand(1, 5, 2, 3)], [16])
    found = model(torch.zeros(1, 1, 2, 3))
    assert found.points.tolist() == [[8, 8], [24, 8], [40, 8], [8, 24], [24, 24], [40, 24]]
    x, y = 24 + 0.25 * 16, 24 - 0.5 * 16
    torch.testing.assert_close(found.boxes[0, 4], torch.tensor([x - 24, y - 8, x + 24, y + 8]))
    assert found.logits.flatten().tolist() == [7.0] * 6


def test_a_size_that_overflows_stays_finite():
    said = torch.full((1, 5, 1, 1), 500.0)
    found = Detector([fl.identity], [fl.identity], [lambda x: said], [8])(torch.zeros(1, 1, 1, 1))
    assert found.boxes.isfinite().all()


def test_a_place_of_a_map_sees_what_is_there():
    """Where the image changes, the scores change most at the places near by."""
    model = detector(strides=(4,))
    x = images(64, 64, n=1)
    other = x.clone()
    other[:, :, 8:12, 40:44] += 5.0
    changed = (model(x).logits - model(other).logits).abs().sum(-1)[0]
    assert (model(x).points[changed.argmax()] - torch.tensor([42.0, 10.0])).abs().max() < 12


def test_at_first_nothing_is_likely():
    _, scores, _ = decode(detector()(images()))
    assert scores.max() < 0.2
    assert abs(scores.mean() - 0.01) < 0.02


def test_the_children_and_the_layers_of_a_classifiers_backbone():
    model = YOLO(
        fl.models.ResNet(ResNetConfig((1, 1, 1, 1), bottleneck=False)),
        nclasses=3,
        channels=16,
        strides=(8, 16),
    )
    assert list(fl.children(model)) == ["encoder", "neck", "heads"]
    assert len(model.encoder) == len(model.neck) == len(model.heads) == 2
    assert model.encoder[-1][-1].names == ("layer3",)  # what comes after the last stride is left out


@pytest.mark.parametrize("strides", [(), (8, 5), (16, 8), (8, 8), (64,)])
def test_strides_that_are_not_there_are_an_error(strides):
    with pytest.raises(
        ValueError, match="ascending strides among those of this backbone, 1, 2, 4, 8, 16, 32"
    ):
        detector(strides=strides)


def test_a_backbone_without_a_pyramid_is_an_error():
    with pytest.raises(ValueError, match="YOLO needs a backbone with a pyramid"):
        YOLO(fl.Chain(fl.Conv((3, 3), 3, 8)), nclasses=2)
    with pytest.raises(ValueError, match=r"as strides, found \[1, 2, 1, 1\]"):
        Detector([fl.identity], [fl.identity] * 2, [fl.identity], [8])


def test_every_parameter_is_reached_by_the_gradient():
    model = detector()
    grads = fl.gradient(loss, model, images(), TARGETS)
    reached = [path for path, g in fl.trainables(grads, paths=True) if g.any()]
    assert reached == [path for path, _ in fl.trainables(model, paths=True)]
    assert not fl.find_nonfinite(grads)


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


@pytest.mark.parametrize("most", [0, -1])
def test_fewer_than_one_object_is_an_error(most):
    with pytest.raises(ValueError, match=rf"detect\(most={most}\).* at least 1"):
        detect(detector(), images(), most=most)


def test_a_box_outside_the_image_is_not_found():
    boxes = [[-30.0, -30.0, -5.0, -2.0], [50.0, 3.0, 60.0, 9.0], [3.0, 3.0, 9.0, 9.0], [30.0, 2.0, 44.0, 9.0]]
    said = candidates(boxes, [[5.0, 0.0], [4.0, 0.0], [3.0, 0.0], [2.0, 0.0]])
    (found,) = detect(lambda x: said, torch.zeros(1, 3, 40, 40), most=2)
    assert found.boxes.tolist() == [boxes[2], [30, 2, 40, 9]]


def test_detections_are_above_the_score_best_first_and_inside_the_image():
    model = detector()
    for found in detect(model, images(40, 56), score=0.005, iou=0.5, most=20):
        assert 0 < len(found.scores) <= 20
        assert (found.scores >= 0.005).all()
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)
        assert found.boxes.min() >= 0
        assert (found.boxes <= torch.tensor([56.0, 40.0, 56.0, 40.0])).all()
        assert found.classes.dtype is torch.int64


def test_one_detection_an_object_is_left_of_each_class():
    boxes = [[0.0, 0.0, 20.0, 20.0], [1.0, 0.0, 20.0, 20.0], [1.0, 1.0, 20.0, 20.0], [30.0, 30.0, 50.0, 55.0]]
    said = candidates(boxes, [[2.0, 0.0], [3.0, 0.0], [0.0, 2.5], [-6.0, -5.0]])
    (found,) = detect(lambda x: said, torch.zeros(1, 3, 40, 40))
    assert found.boxes.tolist() == [boxes[1], boxes[2]]
    assert found.classes.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.5]).sigmoid())
    (all_of_them,) = detect(lambda x: said, torch.zeros(1, 3, 40, 40), score=0.0, iou=1.0)
    assert len(all_of_them.scores) == 4
    assert all_of_them.boxes[-1].tolist() == [30, 30, 40, 40]


def test_a_detector_learns_where_squares_are():
    """Dark and light squares on grey, two classes; the images of the training."""
    generator = torch.Generator().manual_seed(0)
    x = torch.full((16, 3, 64, 64), 0.5)
    objects = []
    for image in x:
        side = int(torch.randint(12, 28, (), generator=generator))
        left, top = torch.randint(0, 64 - side, (2,), generator=generator).tolist()
        kind = int(torch.randint(2, (), generator=generator))
        image[:, top : top + side, left : left + side] = float(kind)
        box = torch.tensor([[left, top, left + side, top + side]], dtype=torch.float32)
        objects.append((box, torch.tensor([kind])))
    targets = padded_objects(objects)
    model = detector(strides=(8, 16))
    state = fl.setup(fl.Adam(5e-3), model)
    for _ in range(80):
        model, state = fl.update(state, model, fl.gradient(loss, model, x, targets))
    assert mean_average_precision(detect(model, x, score=0.01), targets) > 0.9


def test_half_precision_has_the_boxes_in_single():
    model = fl.bf16(detector())
    said = model(images().bfloat16())
    assert said.boxes.dtype is torch.float32
    grads = fl.gradient(loss, model, images().bfloat16(), TARGETS)
    assert not fl.find_nonfinite(grads)


def test_a_detector_is_saved_and_loaded(tmp_path):
    model, other = detector(), fl.fmap(torch.zeros_like, detector())
    fl.save(tmp_path / "detector.safetensors", model)
    loaded = fl.load(tmp_path / "detector.safetensors", like=other)
    assert torch.equal(loaded(images()).boxes, model(images()).boxes)


def test_a_summary_shows_the_parts():
    text = str(fl.summary(detector(), (1, 3, 64, 64)))
    assert ".heads[2]" in text


@pytest.mark.slow
def test_a_step_under_jit_is_the_eager_step():
    model = detector(strides=(4,))
    state = fl.setup(fl.Descent(0.1), model)

    def step(model, state, x, targets):
        value, grads = fl.withgradient(loss, model, x, targets)
        return value, *fl.update(state, model, grads)

    found, expected = (f(model, state, images(), TARGETS) for f in (fl.jit(step), step))
    torch.testing.assert_close(found[0], expected[0])
    for a, b in zip(fl.trainables(found[1]), fl.trainables(expected[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
