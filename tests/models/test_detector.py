"""The detector over a backbone, and what it finds."""

import math

import pytest
import torch
from small_detector import TARGETS, candidates, detector, images, loss

import fluxlike as fl
from fluxlike.models.detections import decode, detect
from fluxlike.models.detector import YOLO, Detector
from fluxlike.models.detector_loss import padded_objects
from fluxlike.models.detector_metrics import mean_average_precision
from fluxlike.models.resnet import ResNetConfig


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


@pytest.mark.parametrize("strides", [(), (8, 5), (16, 8), (8, 8), (64,), 8])
def test_strides_that_are_not_there_are_an_error(strides):
    with pytest.raises(
        ValueError, match="ascending strides among those of this backbone, 1, 2, 4, 8, 16, 32"
    ):
        detector(strides=strides)


@pytest.mark.parametrize("numbers", [{"nclasses": 0}, {"inchannels": "3"}, {"channels": 0}], ids=str)
def test_numbers_that_are_none_are_an_error_that_names_them(numbers):
    (name,) = numbers
    with pytest.raises(ValueError, match=rf"YOLO\({name}=.*: write a whole number of at least 1"):
        fl.models.YOLO(fl.Chain(fl.Conv((2, 2), 3, 4, stride=2)), **{"nclasses": 2, **numbers})


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
