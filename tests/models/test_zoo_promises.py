"""What holds for every model of the zoo."""

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import rows_cnn
import rows_inception
import rows_mobile
import rows_patches
import rows_resnet
import torch

import fluxlike as fl
from fluxlike._private.compiler import build

ROWS = [
    row for rows in (rows_resnet, rows_cnn, rows_mobile, rows_inception, rows_patches) for row in rows.ROWS
]


@pytest.fixture(autouse=True)
def same_weights():
    """Weights are drawn from torch's generator."""
    torch.manual_seed(0)


every_classifier = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def images(row, channels=3, n=2):
    return torch.randn(n, channels, row.size, row.size, generator=torch.Generator().manual_seed(0))


def loss(model, x, y):
    return fl.losses.logitcrossentropy(model(x), y)


@every_classifier
def test_a_model_takes_any_channels_and_gives_any_classes(row):
    model = row.make(inchannels=2, nclasses=7)
    assert model(images(row, channels=2)).shape == (2, 7)


@every_classifier
def test_backbone_and_classifier_are_the_two_children(row):
    model = row.make(inchannels=3, nclasses=7)
    assert isinstance(model, fl.models.Classifier)
    assert list(fl.children(model)) == ["backbone", "classifier"]
    x = images(row)
    assert torch.equal(model(x), model.classifier(model.backbone(x)))
    assert fl.trainables(model.backbone)
    assert fl.trainables(model.classifier)


@every_classifier
def test_rates_act_in_training_alone(row):
    for rate in row.rates:
        model = row.make(inchannels=3, nclasses=7, **{rate: 0.5})
        x = images(row, n=8)
        assert torch.equal(model(x), model(x))
        with fl.mode("train"):
            one, other, again = (fl_draw(model, x, seed) for seed in (0, 1, 0))
        assert torch.equal(one, again)
        assert not torch.equal(one, other), rate


def fl_draw(model, x, seed):
    with fl.seeded(fl.Key(seed)):
        return model(x)


@every_classifier
def test_a_training_step_lowers_the_loss_and_keeps_the_structure(row):
    model = row.make(inchannels=3, nclasses=7, **dict.fromkeys(row.rates, 0.0))
    state = fl.setup(fl.Adam(1e-3), model)
    x, y = images(row, n=4), torch.tensor([0, 1, 2, 3])
    new, first = model, None
    for _ in range(6):
        value, grads = fl.withgradient(loss, new, x, y)
        first = value if first is None else first
        new, state = fl.update(state, new, grads)
    assert value < first
    assert [p for p, _ in fl.trainables(new, paths=True)] == [p for p, _ in fl.trainables(model, paths=True)]


# Models of text, masks and boxes too


class Case(NamedTuple):
    """A model and what it is called with.

    Attributes:
        name: of the test.
        make: a new model.
        inputs: of its calls, several examples.
        scores: of what it gives, the numbers, in one tensor.
    """

    name: str
    make: Callable[[], Any]
    inputs: tuple[Any, ...]
    scores: Callable[[Any], Any] = lambda y: y


def text(config):
    return config(depth=2, dim=16, num_heads=2, vocabulary=11, context=8)


def backbone():
    return fl.models.ResNet(fl.models.ResNetConfig((1, 1), bottleneck=False)).backbone


def detector():
    return fl.models.YOLO(backbone(), nclasses=2, channels=8, strides=(8,))


def boxes_and_logits(candidates):
    return torch.cat([candidates.boxes / 32, candidates.logits], -1)


TOKENS = torch.arange(24).reshape(4, 6) % 11
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

CASES = {
    case.name: case
    for case in (
        *(Case(row.name, partial(row.make, nclasses=7), (images(row, n=4),)) for row in ROWS),
        Case("GPT", lambda: fl.models.GPT(text(fl.models.GPTConfig)), (TOKENS,)),
        Case("BERT", lambda: fl.models.BERT(text(fl.models.BERTConfig), nclasses=7), (TOKENS, TOKENS % 2)),
        Case("UNet", lambda: fl.models.UNet(backbone(), nclasses=2), (IMAGES,)),
        Case("YOLO", detector, (IMAGES,), boxes_and_logits),
    )
}

every_model = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def made(case, seed=0):
    with fl.seeded(fl.Key(seed)):
        return fl.f64(case.make()), fl.f64(case.inputs)


def step(scores, model, state, *inputs):
    """Of training."""

    def loss(model):
        with fl.seeded(fl.Key(2)):
            return scores(model(*inputs)).square().mean()

    value, grads = fl.withgradient(loss, model)
    return value, fl.update(state, model, grads)[0]


@every_model
def test_every_parameter_is_reached_by_the_gradient(case):
    model, inputs = made(case)
    grads = fl.gradient(lambda model: case.scores(model(*inputs)).square().mean(), model)
    reached = [path for path, g in fl.trainables(grads, paths=True) if g.any()]
    assert reached == [path for path, _ in fl.trainables(model, paths=True)]
    assert not fl.find_nonfinite(grads)


@every_model
def test_a_traced_training_step_is_the_eager_one(case, monkeypatch):
    monkeypatch.setattr(build, "_can_compile", lambda: False)  # the graph as recorded, without kernels
    assert_jit_is_eager(case)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet", "SqueezeNet", "MobileNetV3", "BERT"])
def test_a_compiled_training_step_is_the_eager_one(name):
    """Of networks that have among them what all are made of."""
    assert_jit_is_eager(CASES[name])


def assert_jit_is_eager(case):
    model, inputs = made(case)
    state, training = fl.setup(fl.Momentum(0.1), model), partial(step, case.scores)
    value, new = training(model, state, *inputs)
    jitted, jitted_new = fl.jit(training)(model, state, *inputs)
    torch.testing.assert_close(jitted, value, rtol=1e-10, atol=0)
    assert fl.tree.allclose(jitted_new, new)
    assert not fl.tree.allclose(new, model)


@every_model
def test_a_stack_of_models_under_vmap_gives_the_scores_of_each(case):
    (one, inputs), (other, _) = made(case, 0), made(case, 1)

    def scores(model):
        return case.scores(model(*inputs))

    wanted = torch.stack([scores(one), scores(other)])
    torch.testing.assert_close(fl.vmap(scores)(fl.stack([one, other])), wanted, rtol=1e-9, atol=1e-12)
    assert not torch.equal(*wanted)


@every_model
def test_a_model_comes_back_from_one_vector(case):
    model, inputs = made(case)
    flat, rebuild = fl.destructure(model)
    assert len(flat) == sum(x.numel() for x in fl.trainables(model))
    assert torch.equal(case.scores(rebuild(flat)(*inputs)), case.scores(model(*inputs)))


@every_model
def test_a_model_is_a_module_of_torch_and_back(case):
    model, inputs = made(case)
    module = fl.to_torch(model).eval()
    assert sum(x.numel() for x in module.parameters()) == sum(x.numel() for x in fl.trainables(model))
    said, wanted = case.scores(module(*inputs)), case.scores(model(*inputs))
    torch.testing.assert_close(said, wanted, rtol=1e-9, atol=1e-12)
    assert fl.tree.allclose(module.tree(), model, rtol=0, atol=0)


@every_model
def test_a_model_is_pickled_with_what_it_knows(case):
    model, inputs = made(case)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(case.scores(again(*inputs)), case.scores(model(*inputs)))
    assert getattr(again, "origins", None) == getattr(model, "origins", None)


@every_model
def test_a_model_is_saved_and_loaded_to_the_same_scores(case, tmp_path):
    (model, inputs), (other, _) = made(case, 0), made(case, 1)
    fl.save(tmp_path / "model.safetensors", model)
    loaded = fl.load(tmp_path / "model.safetensors", like=other)
    assert torch.equal(case.scores(loaded(*inputs)), case.scores(model(*inputs)))
