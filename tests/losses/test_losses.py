from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from loss_rows import between, labels, onehot, probabilities, scores
from torch import Tensor

import fluxlike as fl
from fluxlike import losses
from fluxlike._private.compiler import build

#: Prediction and target are of one shape; or the target may be labels; and the others.
ENTRIES = [
    "mse", "mae", "huber", "msle", "poisson", "binarycrossentropy", "logitbinarycrossentropy",
    "binary_focal", "hinge", "squared_hinge", "siamese_contrastive", "dice_coeff", "tversky",
    "kldivergence",
]  # fmt: skip
CLASSES = ["logitcrossentropy", "crossentropy", "focal"]
OTHERS = ["ctc", "label_smoothing"]
by_entry = pytest.mark.parametrize("name", ENTRIES)
by_class = pytest.mark.parametrize("name", CLASSES)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_every_loss_is_tested_by_its_kind():
    assert sorted([*ENTRIES, *CLASSES, *OTHERS]) == sorted(losses.__all__)


@by_class
def test_indices_and_one_hot_targets_give_the_same(name: str):
    pred, target, loss = probabilities(6, 4, 3)(), labels(6, 3)(), getattr(losses, name)
    exact(loss(pred, target, agg=fl.identity), loss(pred, onehot(target), agg=fl.identity))
    exact(loss(pred, target), loss(pred, onehot(target).long()))


@by_class
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_labels_of_any_integer_type(name: str, dtype: torch.dtype):
    pred, target, loss = probabilities(6, 4)(), labels(6)(), getattr(losses, name)
    assert torch.equal(loss(pred, target.to(dtype)), loss(pred, target))


@by_class
@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1, -2, -3, -4])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_dim_names_the_axis_of_the_classes(name: str, dim: int, kind: str):
    pred, loss = probabilities(2, 4, 3, 5)(), getattr(losses, name)
    target = labels(2, 3, 5)() if kind == "indices" else probabilities(2, 4, 3, 5)()
    moved = target if kind == "indices" else target.movedim(1, dim)
    wanted = loss(pred, target, agg=fl.identity)
    exact(loss(pred.movedim(1, dim), moved, dim=dim, agg=fl.identity), wanted)


IMPOSSIBLE = torch.tensor([[1.0, -torch.inf, 0.0], [-torch.inf, 2.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5], [0.0, 2.0, 0.0]], ids=str)
@pytest.mark.parametrize("way", [lambda f: f, fl.jit, fl.vmap], ids=["eager", "jit", "vmap"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_classes_that_are_masked_cost_nothing_where_the_label_is_another(
    weight: Any, way: Any, dtype: torch.dtype
):
    hot, target = onehot(torch.tensor([0, 2]), 3).to(dtype), torch.tensor([0, 2])
    settings = {"weight": None if weight is None else torch.tensor(weight), "agg": torch.sum, "dim": -1}

    def run(logits: Tensor, target: Tensor) -> Any:
        return fl.withgradient(lambda p: losses.logitcrossentropy(*p, **settings), (logits, target))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_can_compile", lambda: False)
        wanted, (of_logits, _) = way(run)(IMPOSSIBLE.to(dtype), target)
        value, (also_of_logits, of_target) = way(run)(IMPOSSIBLE.to(dtype), hot)
        again, _ = way(run)(IMPOSSIBLE.to(dtype), hot.bool())
    assert wanted.isfinite().all()
    torch.testing.assert_close((value, again, also_of_logits), (wanted, wanted, of_logits))
    assert of_target.isfinite().all()


def test_a_score_that_is_nan_is_not_hidden_by_a_masked_class():
    logits = IMPOSSIBLE.clone()
    logits[0, 2] = math.nan
    assert losses.logitcrossentropy(logits, onehot(torch.tensor([0, 2]), 3)).isnan()


def test_a_masked_class_that_is_the_label_costs_infinity_in_both_forms():
    for target in (torch.tensor([1, 0]), onehot(torch.tensor([1, 0]), 3)):
        assert losses.logitcrossentropy(IMPOSSIBLE, target).item() == torch.inf


def test_images_give_one_loss_a_pixel():
    pred, target = scores(2, 4, 5, 6)(), labels(2, 5, 6)()
    entries = losses.logitcrossentropy(pred, target, agg=fl.identity)
    assert entries.shape == (2, 5, 6)
    exact(entries[1, 2, 3], F.cross_entropy(pred[1, :, 2, 3], target[1, 2, 3]))


def test_logits_and_probabilities_give_the_same():
    logits, target = scores(6, 4)(), labels(6)()
    exact(losses.logitcrossentropy(logits, target), losses.crossentropy(logits.softmax(1), target, eps=0.0))
    logits, target = scores(6)(), between(6)()
    exact(
        losses.logitbinarycrossentropy(logits, target),
        losses.binarycrossentropy(logits.sigmoid(), target, eps=0.0),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_probability_of_zero_costs_a_finite_amount(dtype: torch.dtype):
    computed_in = torch.float32 if dtype == torch.bfloat16 else dtype
    wanted = torch.tensor(-math.log(torch.finfo(computed_in).eps), dtype=dtype)
    certain = torch.tensor([[1.0, 0.0]], dtype=dtype)
    torch.testing.assert_close(losses.crossentropy(certain, torch.tensor([1])), wanted)
    wrong = losses.binarycrossentropy(torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype))
    torch.testing.assert_close(wrong, wanted)


def test_probabilities_of_zero_in_float16_leave_the_gradient_of_a_softmax_finite():
    logits = torch.tensor([[0.0, 60.0]], dtype=torch.float16)
    grad = fl.gradient(lambda x: losses.crossentropy(x.softmax(1), torch.tensor([0])), logits)
    assert grad.isfinite().all()


def test_small_probabilities_in_bfloat16_are_told_apart():
    probs = torch.tensor([1e-3, 1e-4, 1e-5]).bfloat16()
    cost = losses.binarycrossentropy(probs, torch.ones(3), agg=None)
    torch.testing.assert_close(cost, -probs.float().log(), rtol=5e-3, atol=0)


def test_confident_classes_in_bfloat16_are_still_pushed():
    logits, target = torch.tensor([[10.0, 0.0, 0.0]]).bfloat16(), torch.tensor([0])
    value, grad = fl.withgradient(lambda x: losses.logitcrossentropy(x, target), logits)
    assert value.item() == pytest.approx(9.08e-5, rel=4e-3)
    assert grad[0].tolist() == pytest.approx([-9.08e-5, 4.54e-5, 4.54e-5], rel=4e-3)
    logits, target = torch.tensor([-8.125]).bfloat16(), torch.tensor([0.0021]).bfloat16()
    assert losses.logitbinarycrossentropy(logits, target).item() == pytest.approx(0.0174, rel=4e-3)


def test_counts_that_float16_does_not_hold_are_taken_as_they_are():
    pred, target = torch.tensor(1000.0).half(), torch.tensor(100_001)
    value = losses.poisson(pred, target, agg=lambda x: x.double(), eps=0.0)
    torch.testing.assert_close(value, 1000 - 100_001 * torch.tensor(1000.0).log().double())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (losses.mse, F.mse_loss),
        (losses.mae, F.l1_loss),
        (losses.huber, F.huber_loss),
        (losses.logitbinarycrossentropy, F.binary_cross_entropy_with_logits),
        (losses.logitcrossentropy, F.cross_entropy),
    ],
)
def test_dtypes_are_those_of_torch_with_and_without_autocast(ours: Any, theirs: Any):
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        pred, target = torch.rand(3, 4).to(dtype), torch.rand(3, 4).to(dtype)
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                assert ours(pred, target).dtype == theirs(pred, target).dtype


def test_eps_is_what_is_added_inside_the_logarithms():
    value = losses.crossentropy(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), eps=0.5)
    torch.testing.assert_close(value, torch.tensor(0.5).log().neg())
    value = losses.binarycrossentropy(
        torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), eps=0.5, agg=torch.sum
    )
    torch.testing.assert_close(value, torch.tensor(0.25).log().neg())


def test_large_logits_stay_finite():
    big = torch.tensor([[1e4, -1e4]], dtype=torch.float64)
    assert losses.logitcrossentropy(big, torch.tensor([1])).item() == 2e4
    assert losses.logitbinarycrossentropy(big, torch.tensor([[0.0, 1.0]]).double()).item() == 1e4


def test_huber_is_linear_past_delta():
    errors = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    value = losses.huber(errors, torch.zeros(3, dtype=torch.float64), delta=1.0, agg=fl.identity)
    exact(value, torch.tensor([0.125, 0.5, 2.5], dtype=torch.float64))


@by_entry
@pytest.mark.parametrize(
    ("pred", "target"),
    [
        ((3, 1), (3,)),
        ((3,), (3, 1)),
        ((3, 1), (3, 4)),
        ((1,), (3,)),
        ((), (1,)),
        ((2, 3), (3, 2)),
        ((3,), (4,)),
    ],
    ids=str,
)
def test_shapes_that_differ_are_an_error_even_where_they_broadcast(name: str, pred: tuple, target: tuple):
    text = rf"{name}: the prediction has the shape {pred}, the target {target}; nothing is broadcast"
    text = text.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=text):
        getattr(losses, name)(torch.rand(pred), torch.rand(target))


@by_class
@pytest.mark.parametrize(
    ("pred", "target", "dtype"),
    [
        ((3, 4), (3,), torch.float32),
        ((3, 4), (3,), torch.bool),
        ((3, 4), (3,), torch.complex64),
        ((3, 4), (4,), torch.int64),
        ((3, 4), (3, 1), torch.int64),
        ((3, 4), (1, 4), torch.float32),
        ((3, 4), (3, 1), torch.float32),
        ((3, 4), (), torch.int64),
        ((3, 4, 5), (3, 4), torch.int64),
        ((3, 4, 5), (3, 5, 4), torch.float32),
        ((3, 4, 5, 5), (3, 1, 5, 5), torch.int64),
    ],
    ids=str,
)
def test_a_target_that_does_not_fit_is_an_error_with_both_shapes_wanted(
    name: str, pred: tuple, target: tuple, dtype: torch.dtype
):
    rest = (pred[0], *pred[2:])
    text = (
        f"{name}: the scores have the shape {pred} with classes on axis 1, so the target is either integer "
        f"labels of shape {rest} or probabilities of shape {pred}; found {dtype} of shape {target}"
    )
    with pytest.raises(ValueError, match=text.replace("(", r"\(").replace(")", r"\)")):
        getattr(losses, name)(torch.rand(pred), torch.zeros(target, dtype=dtype))


@by_class
@pytest.mark.parametrize("spatial", [(), (2,), (2, 2)], ids=["vectors", "sequences", "images"])
@pytest.mark.parametrize(
    ("wrong", "found"), [(-1, "-1 to 3"), (-100, "-100 to 3"), (4, "3 to 4"), (255, "3 to 255")]
)
def test_a_label_out_of_range_is_an_error_with_the_range(name: str, spatial: tuple, wrong: int, found: str):
    target = torch.full((3, *spatial), 3)
    target[1] = wrong
    text = f"{name}: labels run from 0 to 3 for 4 classes, found {found}"
    with pytest.raises(ValueError, match=text):
        getattr(losses, name)(probabilities(3, 4, *spatial)(), target)


@by_class
def test_a_label_out_of_range_is_an_error_inside_gradient(name: str):
    with pytest.raises(ValueError, match="labels run from 0 to 3 for 4 classes, found -100 to 0"):
        fl.gradient(lambda p: getattr(losses, name)(p, torch.tensor([0, -100])), probabilities(2, 4)())


@by_class
@pytest.mark.parametrize(("shape", "dim"), [((4,), 1), ((), 1), ((3, 4), 2), ((3, 4), -3)], ids=str)
def test_scores_without_an_axis_of_classes_are_an_error(name: str, shape: tuple, dim: int):
    with pytest.raises(
        ValueError, match=rf"{name}: the scores have the shape \(.*with the classes on axis {dim}"
    ):
        getattr(losses, name)(torch.rand(shape), torch.zeros(3, dtype=torch.long), dim=dim)


Y_MODEL = torch.arange(-7.0, 8.0, dtype=torch.float64).reshape(5, 3).softmax(1)
Y_LABEL = torch.tensor([0, 1, 2, 1, 0])
BINARY = torch.tensor([0.268941, 0.5, 0.268941], dtype=torch.float64)
of = torch.tensor
OVERLAP = of([0.0, 1.4, 0.5, 1.2]), of([1.0, 0.5, 0.3, 2.4])
BEFORE, AFTER = of([0.9, 0.1, 0.1, 0.9]).double(), of([1.0, 1, 0, 0]).double()
DISTANCE, FAR = of([0.5, 1.5, 2.5]), of([1, 2, 3])
COUNTS = of([0.1, 0.2, 0.3])

NUMBERS: list[tuple[str, Any, float]] = [
    ("mse", lambda: losses.mse(BEFORE, AFTER), 0.41),
    ("mae", lambda: losses.mae(BEFORE, AFTER), 0.5),
    ("huber", lambda: losses.huber(BEFORE, AFTER), 0.205),
    ("msle", lambda: losses.msle(of([1.1, 2.2, 3.3]), of([1.0, 2, 3])), 0.009084041),
    ("msle below", lambda: losses.msle(of([0.9, 1.8, 2.7]), of([1.0, 2, 3])), 0.011100831),
    ("crossentropy", lambda: losses.crossentropy(Y_MODEL, Y_LABEL), 1.6076053),
    ("smoothed", lambda: losses.crossentropy(Y_MODEL, Y_LABEL, label_smoothing=0.15), 1.5776052),
    ("focal", lambda: losses.focal(Y_MODEL, Y_LABEL), 1.1277571935622628),
    (
        "binary_focal",
        lambda: losses.binary_focal(torch.stack((BINARY, 1 - BINARY)), of([[0, 1, 0], [1, 0, 1]])),
        0.0728675615927385,
    ),
    ("binarycrossentropy", lambda: losses.binarycrossentropy(1 - BINARY, of([True, False, True])), 0.43989),
    (
        "logitbinarycrossentropy",
        lambda: losses.logitbinarycrossentropy(of([2.0, -1.0, torch.pi]), of([1, 0, 1])),
        0.160832,
    ),
    ("kldivergence", lambda: losses.kldivergence(torch.full((2, 2), 0.5), torch.eye(2)), 0.6931472),
    ("kldivergence of itself", lambda: losses.kldivergence(Y_MODEL, Y_MODEL, eps=0.0), 0.0),
    ("poisson", lambda: losses.poisson(of([0.4, 0.5, 0.6]), COUNTS), 0.6278353988097339),
    ("poisson of itself", lambda: losses.poisson(COUNTS, COUNTS), 0.5044459776946685),
    ("dice_coeff", lambda: losses.dice_coeff(*OVERLAP), 0.2799999999999999),
    ("dice_coeff of itself", lambda: losses.dice_coeff(OVERLAP[1], OVERLAP[1]), 0.0),
    ("tversky, Flux's beta .7", lambda: losses.tversky(*OVERLAP, beta=1 - 0.7), -0.06772009029345383),
    ("tversky, Flux's beta .8", lambda: losses.tversky(*OVERLAP, beta=1 - 0.8), -0.09490740740740744),
    ("siamese", lambda: losses.siamese_contrastive(DISTANCE, FAR), -4.8333333),
    ("siamese 2", lambda: losses.siamese_contrastive(DISTANCE, FAR, margin=2), -4.0),
    ("squared_hinge", lambda: losses.squared_hinge(of([1.0, -1.0]), of([0.5, -0.5])), 0.25),
]  # fmt: skip


@pytest.mark.parametrize(("value", "number"), [n[1:] for n in NUMBERS], ids=[n[0] for n in NUMBERS])
def test_numbers_that_flux_publishes(value: Any, number: float):
    assert value().item() == pytest.approx(number, rel=2e-6, abs=1e-7)


@by_entry
def test_a_target_of_whole_numbers_is_an_error_where_numbers_are_compared(name: str):
    loss, pred = getattr(losses, name), between(3, 4)()
    for target in (torch.ones(3, 4, dtype=torch.int64), torch.ones(3, 4, dtype=torch.bool)):
        if name in ("mse", "mae", "huber", "msle", "kldivergence"):
            text = rf"{name}: the target is {target.dtype}; .* write target\.float\(\)"
            with pytest.raises(TypeError, match=text):
                loss(pred, target)
        elif "hinge" in name and target.dtype == torch.bool:
            with pytest.raises(TypeError, match=rf"{name}: .* write 2 \* target\.float\(\) - 1"):
                loss(pred, target)
        else:
            exact(loss(pred, target), loss(pred, target.double()))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda p, t: losses.huber(p, t, delta=0), "huber: delta=0; write a number above 0"),
        (lambda p, t: losses.huber(p, t, delta=math.nan), "huber: delta=nan; write a number above 0"),
        (lambda p, t: losses.binary_focal(p, t, gamma=math.nan), "gamma=nan; write a number of at least 0"),
        (lambda p, t: losses.siamese_contrastive(p, t, margin=math.nan), "margin=nan; write a number of at"),
        (lambda p, t: losses.dice_coeff(p, t, smooth=math.nan), "smooth=nan; write a number of at least 0"),
        (lambda p, t: losses.binary_focal(p, t, gamma=-1), "binary_focal: gamma=-1; write a number of at"),
        (lambda p, t: losses.focal(p, p, gamma=-1), "focal: gamma=-1; write a number of at least 0"),
        (lambda p, t: losses.siamese_contrastive(p, t, margin=-1), "margin=-1; write a number of at least 0"),
        (lambda p, t: losses.dice_coeff(p, t, smooth=-1), "smooth=-1; write a number of at least 0"),
        (lambda p, t: losses.tversky(p, t, smooth=-1), "smooth=-1; write a number of at least 0"),
        (lambda p, t: losses.tversky(p, t, beta=1.2), r"beta=1.2; write a number from 0 to 1"),
        (
            lambda p, t: losses.crossentropy(p, p, label_smoothing=1.5),
            r"label_smoothing=1.5; write a number from 0 to 1",
        ),
        (lambda p, t: losses.kldivergence(p[0], p[0]), r"the scores have the shape \(4,\).*or dim=0"),
        (
            lambda p, t: losses.logitbinarycrossentropy(p, t, pos_weight=torch.ones(3)),
            r"pos_weight has the shape \(3,\) beside logits of shape \(3, 4\); write \(4,\), one a class, or",
        ),
        (
            lambda p, t: losses.logitbinarycrossentropy(p[0], t[0], pos_weight=torch.ones(4)),
            r"pos_weight has the shape \(4,\) beside logits of shape \(4,\); write one number",
        ),
    ],
)
def test_a_setting_out_of_its_range_is_an_error(call: Any, text: str):
    with pytest.raises(ValueError, match=text):
        call(between(3, 4)(), between(3, 4)())


@by_class
@pytest.mark.parametrize(
    ("weight", "error", "text"),
    [
        (torch.ones(3), ValueError, r"weight has the shape \(3,\) for 4 classes; write \(4,\)"),
        (torch.ones(4, 1), ValueError, r"weight has the shape \(4, 1\) for 4 classes; write \(4,\)"),
        ([1.0] * 4, TypeError, r"weight is a list; write a floating tensor, one number a class"),
        (torch.ones(4).long(), TypeError, r"weight is torch.int64; write a floating tensor"),
    ],
)
def test_a_weight_that_does_not_fit_is_an_error(name: str, weight: Any, error: type, text: str):
    with pytest.raises(error, match=f"{name}: {text}"):
        getattr(losses, name)(probabilities(3, 4)(), labels(3)(), weight=weight)


@by_class
@pytest.mark.parametrize("dim", [1, 2, -1])
def test_weights_and_smoothing_follow_the_axis_of_the_classes(name: str, dim: int):
    pred, target, loss = probabilities(2, 4, 3)(), labels(2, 3)(), getattr(losses, name)
    more: dict[str, Any] = {"weight": torch.tensor([0.3, 2.0, 1.0, 0.1]).double()}
    if name != "focal":
        more["label_smoothing"] = 0.3
    for soft in (False, True):
        t = probabilities(2, 4, 3)() if soft else target
        moved = t.movedim(1, dim) if soft else t
        exact(loss(pred.movedim(1, dim), moved, dim=dim, **more), loss(pred, t, **more))


def test_weights_in_float32_serve_scores_of_any_dtype():
    weight = torch.tensor([0.3, 2.0, 1.0, 0.1])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        pred, target = scores(5, 4)().to(dtype), labels(5)()
        value = losses.logitcrossentropy(pred, target, weight=weight)
        assert value.dtype == dtype
        wanted = F.cross_entropy(pred.double(), target, weight.double())
        torch.testing.assert_close(value.double(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_the_mean_of_many_entries_in_float16_does_not_overflow():
    pred, target = torch.zeros(9000, 4096, dtype=torch.float16), torch.zeros(9000, dtype=torch.int64)
    target[0] = -100
    value = losses.logitcrossentropy(pred, target, ignore_index=-100)
    torch.testing.assert_close(value.float(), torch.tensor(4096.0).log(), rtol=1e-3, atol=0)


@by_class
def test_ignored_entries_have_no_gradient_and_cost_nothing(name: str):
    pred, loss = probabilities(4, 4)(), getattr(losses, name)
    target = torch.tensor([1, -100, 2, -100])
    value, grad = fl.withgradient(lambda p: loss(p, target, ignore_index=-100), pred)
    exact(value, loss(pred[::2], target[::2]))
    exact(grad[::2], fl.gradient(lambda p: loss(p, target[::2]), pred[::2]))
    assert not grad[1::2].any()
    assert loss(pred, target, ignore_index=-100, agg=None)[1::2].tolist() == [0, 0]
    exact(loss(pred, target, ignore_index=-100, agg=torch.sum), loss(pred[::2], target[::2], agg=torch.sum))


@by_class
def test_where_all_is_ignored_the_mean_is_nan_as_in_torch_and_the_gradient_zero(name: str):
    pred, target = probabilities(2, 4)(), torch.tensor([-100, -100])
    value, grad = fl.withgradient(lambda p: getattr(losses, name)(p, target, ignore_index=-100), pred)
    assert value.isnan()
    assert not grad.any()


@by_class
def test_other_labels_are_checked_beside_ignored_ones(name: str):
    with pytest.raises(ValueError, match="labels run from 0 to 3 for 4 classes, found -7 to 2"):
        getattr(losses, name)(probabilities(3, 4)(), torch.tensor([-100, -7, 2]), ignore_index=-100)


@by_class
def test_ignore_index_beside_probabilities_is_an_error(name: str):
    with pytest.raises(
        ValueError, match=f"{name}: ignore_index=0 is about class indices, and the target holds"
    ):
        getattr(losses, name)(probabilities(3, 4)(), probabilities(3, 4)(), ignore_index=0)


@by_class
def test_entries_of_soft_targets_that_are_all_zero_do_not_count_in_a_sum(name: str):
    pred, target, loss = probabilities(3, 4)(), probabilities(3, 4)(), getattr(losses, name)
    target[1] = 0
    exact(loss(pred, target, agg=torch.sum), loss(pred[::2], target[::2], agg=torch.sum))


@by_class
def test_a_single_example_names_axis_0(name: str):
    pred, loss = probabilities(1, 4)(), getattr(losses, name)
    exact(loss(pred[0], torch.tensor(2), dim=0), loss(pred, torch.tensor([2])))
    exact(loss(pred[0], pred[0], dim=0), loss(pred, pred))
    if name != "focal":
        more = {"dim": 0, "label_smoothing": 0.2, "weight": torch.arange(4.0).double()}
        exact(loss(pred[0], torch.tensor(2), **more), loss(pred, torch.tensor([2]), **(more | {"dim": 1})))
    preds, targets = probabilities(5, 4)(), labels(5)()
    exact(fl.vmap(lambda p, t: loss(p, t, dim=0))(preds, targets), loss(preds, targets, agg=None))
    with pytest.raises(ValueError, match="labels run from 0 to 3"):
        fl.vmap(lambda p, t: loss(p, t, dim=0))(preds, targets + 3)


@by_class
def test_tensor_mean_is_the_mean_too(name: str):
    pred, target, loss = probabilities(5, 4)(), labels(5)(), getattr(losses, name)
    exact(loss(pred, target, ignore_index=1, agg=Tensor.mean), loss(pred, target, ignore_index=1))


def test_a_weight_for_rare_ones_costs_as_much_as_that_many_of_them():
    logits, target = scores(6)(), torch.tensor([1, 0, 0, 0, 0, 0])
    three = losses.logitbinarycrossentropy(logits, target, pos_weight=3, agg=None)
    wanted = losses.logitbinarycrossentropy(logits, target, agg=None)
    exact(three, torch.where(target == 1, 3 * wanted, wanted))
    exact(three, losses.logitbinarycrossentropy(logits, target, pos_weight=torch.tensor(3), agg=None))


def test_with_gamma_zero_focal_losses_are_cross_entropies():
    pred, target = probabilities(5, 4)(), labels(5)()
    exact(losses.focal(pred, target, gamma=0), losses.crossentropy(pred, target))
    pred, target = between(5)(), labels(5, below=2)()
    exact(losses.binary_focal(pred, target, gamma=0), losses.binarycrossentropy(pred, target))


def test_tversky_weighs_what_was_missed_by_beta():
    mask = torch.tensor([1.0, 1, 1, 0, 0, 0])
    missed, extra = torch.tensor([1.0, 1, 0, 0, 0, 0]), torch.tensor([1.0, 1, 1, 1, 0, 0])
    assert losses.tversky(missed, mask, beta=0.9) > losses.tversky(missed, mask, beta=0.1)
    assert losses.tversky(extra, mask, beta=0.9) < losses.tversky(extra, mask, beta=0.1)
    assert losses.tversky(mask, mask) == 0


def test_overlaps_of_large_masks_in_float16_do_not_overflow():
    mask = torch.ones(512, 512, dtype=torch.float16)
    assert losses.dice_coeff(mask, mask) == 0
    assert losses.tversky(mask, mask) == 0


def test_by_image_overlaps_are_those_of_each_image():
    probs, mask = between(3, 2, 4, 4)(), labels(3, 2, 4, 4, below=2)()
    for loss in (losses.dice_coeff, losses.tversky):
        each = torch.stack([loss(p, m) for p, m in zip(probs, mask, strict=True)])
        exact(loss(probs, mask, dim=(1, 2, 3)), each.mean())
        exact(loss(probs, mask, dim=(-1, 1, 2), agg=None), each)
        assert loss(probs, mask, dim=1, agg=None).shape == (3, 4, 4)
        with pytest.raises(IndexError, match="out of range"):
            loss(probs, mask, dim=4)


# Smoothed labels


@pytest.mark.parametrize("hot", [torch.tensor([0.0, 1.0]), torch.tensor([0, 1]), torch.tensor([False, True])])
def test_smoothing_a_one_hot_pair_gives_the_numbers_of_flux(hot: Tensor):
    for smooth in (
        losses.label_smoothing(hot, 0.2),
        losses.label_smoothing(hot[None], 0.2)[0],
        losses.label_smoothing(hot[:, None], 0.2, dim=0)[:, 0],
        losses.label_smoothing(hot, 0.2, dim=None),
    ):
        torch.testing.assert_close(smooth, torch.tensor([0.1, 0.9]))


@pytest.mark.parametrize("alpha", [0, 1, 1.2, -0.1])
def test_smoothing_by_nothing_or_too_much_is_an_error(alpha: float):
    with pytest.raises(
        ValueError, match=rf"label_smoothing: alpha={alpha}; write a number above 0 and below 1"
    ):
        losses.label_smoothing(torch.eye(2), alpha)


def test_smoothing_what_is_no_one_hot_vector_is_an_error():
    with pytest.raises(
        ValueError, match="3 entries of one vector are one label, and add up to 2 instead of 1"
    ):
        losses.label_smoothing(torch.tensor([0.0, 1.0, 1.0]), 0.2)
    with pytest.raises(TypeError, match="the target is a list; write a tensor of one-hot labels"):
        losses.label_smoothing([0.0, 1.0], 0.2)
    with pytest.raises(TypeError, match=r"the target is torch\.complex64"):
        losses.label_smoothing(torch.eye(2).to(torch.complex64), 0.2)


@given(st.floats(0.01, 0.99), st.integers(2, 6), st.integers(0, 3), st.booleans())
def test_smoothed_labels_cost_what_torchs_argument_says(
    alpha: float, classes: int, spatial: int, use_weight: bool
):
    torch.manual_seed(classes)
    shape = (3, *(2,) * spatial)
    logits, target = scores(3, classes, *shape[1:])(), labels(*shape, below=classes)()
    hot = onehot(target, classes)
    smooth = losses.label_smoothing(hot, alpha)
    exact(smooth.sum(1), torch.ones(shape).double())
    weight = torch.rand(classes).double() if use_weight else None
    wanted = F.cross_entropy(logits, target, weight, label_smoothing=alpha)
    exact(losses.logitcrossentropy(logits, target, weight=weight, label_smoothing=alpha), wanted)
    if weight is None:
        exact(losses.logitcrossentropy(logits, smooth), wanted)
        exact(losses.logitcrossentropy(logits, hot, label_smoothing=alpha), wanted)


def test_smoothed_labels_stay_in_their_dtype_and_differentiate():
    assert losses.label_smoothing(torch.eye(3, dtype=torch.float16), 0.2).dtype == torch.float16
    grad = fl.gradient(lambda t: losses.label_smoothing(t, 0.25).sum(), torch.eye(3))
    torch.testing.assert_close(grad, torch.full((3, 3), 0.75))


@pytest.mark.parametrize(("agg", "write"), [("sum", "torch.sum"), ("none", "None"), ("mean", "torch.mean")])
def test_a_reduction_by_name_says_what_to_write(agg, write):
    for loss in (fl.losses.mse, fl.losses.logitcrossentropy, fl.losses.binary_focal):
        with pytest.raises(TypeError, match=rf"agg='{agg}': write a function .*, such as agg={write}$"):
            loss(torch.full((2, 3), 0.5), torch.full((2, 3), 0.5), agg=agg)
