from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fluxlike as fl
from fluxlike import losses

EPS = torch.finfo(torch.float64).eps


def scores(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def probabilities(*shape: int) -> Tensor:
    return scores(*shape).softmax(1)


def between(*shape: int) -> Tensor:
    """Numbers inside (0, 1)."""
    return 0.05 + 0.9 * torch.rand(shape, dtype=torch.float64)


def labels(*shape: int, below: int = 4) -> Tensor:
    return torch.randint(below, shape)


def onehot(target: Tensor, n: int = 4) -> Tensor:
    return F.one_hot(target, n).movedim(-1, 1).double()


@dataclass(frozen=True)
class Row:
    """A loss, how torch computes it entry by entry, and its arguments."""

    name: str
    loss: Callable
    twin: Callable[[Tensor, Tensor], Tensor]
    pred: Callable[[], Tensor]
    target: Callable[[], Tensor]


def none(f: Callable, **settings) -> Callable:
    return lambda pred, target: f(pred, target, reduction="none", **settings)


def log_first(pred: Tensor, target: Tensor) -> Tensor:
    return F.nll_loss((pred + EPS).log(), target, reduction="none")


def clamped(pred: Tensor, target: Tensor) -> Tensor:
    return -target * (pred + EPS).log() - (1 - target) * (1 - pred + EPS).log()


def huber2(pred: Tensor, target: Tensor, *, agg: Callable = torch.mean) -> Tensor:
    return losses.huber(pred, target, delta=0.3, agg=agg)


ROWS = [
    Row("mse", losses.mse, none(F.mse_loss), lambda: scores(3, 4), lambda: scores(3, 4)),
    Row("mae", losses.mae, none(F.l1_loss), lambda: scores(3, 4), lambda: scores(3, 4)),
    Row("huber", losses.huber, none(F.huber_loss), lambda: 2 * scores(3, 4), lambda: scores(3, 4)),
    Row("huber .3", huber2, none(F.huber_loss, delta=0.3), lambda: scores(3, 4), lambda: scores(3, 4)),
    Row(
        "binarycrossentropy",
        losses.binarycrossentropy,
        clamped,
        lambda: between(3, 4),
        lambda: between(3, 4),
    ),
    Row(
        "logitbinarycrossentropy",
        losses.logitbinarycrossentropy,
        none(F.binary_cross_entropy_with_logits),
        lambda: 3 * scores(3, 4),
        lambda: between(3, 4),
    ),
]
for shape in ((5,), (5, 3), (2, 3, 3), (2, 2, 2, 2)):
    full = (shape[0], 4, *shape[1:])
    rank = len(full)
    for kind, make in (
        ("indices", lambda s=shape, f=full: labels(*s)),
        ("one-hot", lambda s=shape, f=full: onehot(labels(*s))),
        ("soft", lambda s=shape, f=full: probabilities(*f)),
    ):
        cross = none(F.cross_entropy)
        log = log_first if kind == "indices" else lambda p, t: -(t * (p + EPS).log()).sum(1)
        ROWS += [
            Row(f"logitcrossentropy of {kind} {rank}-d", losses.logitcrossentropy, cross,
                lambda f=full: scores(*f), make),
            Row(f"crossentropy of {kind} {rank}-d", losses.crossentropy, log,
                lambda f=full: probabilities(*f), make),
        ]  # fmt: skip

every_loss = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
by_entry = pytest.mark.parametrize(
    "name", ["mse", "mae", "huber", "binarycrossentropy", "logitbinarycrossentropy"]
)
by_class = pytest.mark.parametrize("name", ["logitcrossentropy", "crossentropy"])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@every_loss
@pytest.mark.parametrize(
    "agg", [None, torch.mean, torch.sum, fl.identity, lambda x: x.square().amax()],
    ids=["default", "mean", "sum", "identity", "own"],
)  # fmt: skip
def test_value_and_gradient_equal_torchs_under_any_agg(row: Row, agg: Callable | None):
    pred, target = row.pred(), row.target()
    pred2 = pred.clone().requires_grad_()
    entries = row.twin(pred2, target)
    wanted = (agg or torch.mean)(entries)
    weights = torch.randn_like(wanted)
    (wanted * weights).sum().backward()

    def weighted(pred: Tensor) -> tuple[Tensor, Tensor]:
        value = row.loss(pred, target, agg=agg) if agg else row.loss(pred, target)
        return (value * weights).sum(), value

    (_, value), grad = fl.withgradient(weighted, pred)
    exact(value, wanted.detach())
    exact(grad, pred2.grad)


@every_loss
def test_gradcheck_in_float64(row: Row):
    target = row.target()
    assert torch.autograd.gradcheck(lambda p: row.loss(p, target), [row.pred().requires_grad_()])


@every_loss
def test_the_target_is_differentiable_too_where_it_is_a_float(row: Row):
    pred, target = row.pred(), row.target()
    if target.is_floating_point():
        assert torch.autograd.gradcheck(lambda t: row.loss(pred, t), [target.requires_grad_()])


@every_loss
def test_nothing_is_changed(row: Row):
    pred, target = row.pred(), row.target()
    before = pred.clone(), target.clone()
    row.loss(pred, target)
    assert torch.equal(pred, before[0])
    assert torch.equal(target, before[1])


@every_loss
def test_agg_may_return_anything(row: Row):
    assert row.loss(row.pred(), row.target(), agg=lambda x: "anything") == "anything"


@every_loss
def test_in_float32_the_loss_is_a_float32_scalar(row: Row):
    target = row.target()
    target = target.float() if target.is_floating_point() else target
    loss = row.loss(row.pred().float(), target)
    assert loss.dtype == torch.float32
    assert loss.shape == ()


@pytest.mark.parametrize(("name", "value"), [("mse", 0.41), ("mae", 0.5), ("huber", 0.205)])
def test_published_numbers(name: str, value: float):
    pred = torch.tensor([0.9, 0.1, 0.1, 0.9], dtype=torch.float64)
    target = torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)
    exact(getattr(losses, name)(pred, target), torch.tensor(value, dtype=torch.float64))


@by_class
def test_indices_and_one_hot_targets_give_the_same(name: str):
    pred, target, loss = probabilities(6, 4, 3), labels(6, 3), getattr(losses, name)
    exact(loss(pred, target, agg=fl.identity), loss(pred, onehot(target), agg=fl.identity))
    exact(loss(pred, target), loss(pred, onehot(target).long()))


@by_class
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_labels_of_any_integer_type(name: str, dtype: torch.dtype):
    pred, target, loss = probabilities(6, 4), labels(6), getattr(losses, name)
    assert torch.equal(loss(pred, target.to(dtype)), loss(pred, target))


@by_class
@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1, -2, -3, -4])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_dim_names_the_axis_of_the_classes(name: str, dim: int, kind: str):
    pred, loss = probabilities(2, 4, 3, 5), getattr(losses, name)
    target = labels(2, 3, 5) if kind == "indices" else probabilities(2, 4, 3, 5)
    moved = target if kind == "indices" else target.movedim(1, dim)
    wanted = loss(pred, target, agg=fl.identity)
    exact(loss(pred.movedim(1, dim), moved, dim=dim, agg=fl.identity), wanted)


def test_images_give_one_loss_a_pixel():
    pred, target = scores(2, 4, 5, 6), labels(2, 5, 6)
    entries = losses.logitcrossentropy(pred, target, agg=fl.identity)
    assert entries.shape == (2, 5, 6)
    exact(entries[1, 2, 3], F.cross_entropy(pred[1, :, 2, 3], target[1, 2, 3]))


def test_logits_and_probabilities_give_the_same():
    logits, target = scores(6, 4), labels(6)
    exact(losses.logitcrossentropy(logits, target), losses.crossentropy(logits.softmax(1), target, eps=0.0))
    logits, target = scores(6), between(6)
    exact(
        losses.logitbinarycrossentropy(logits, target),
        losses.binarycrossentropy(logits.sigmoid(), target, eps=0.0),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_probability_of_zero_costs_a_finite_amount(dtype: torch.dtype):
    eps = torch.tensor(torch.finfo(dtype).eps, dtype=dtype)
    certain = torch.tensor([[1.0, 0.0]], dtype=dtype)
    torch.testing.assert_close(losses.crossentropy(certain, torch.tensor([1])), -eps.log())
    wrong = losses.binarycrossentropy(torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype))
    torch.testing.assert_close(wrong, -eps.log())


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
        getattr(losses, name)(probabilities(3, 4, *spatial), target)


@by_class
def test_a_label_out_of_range_is_an_error_inside_gradient(name: str):
    with pytest.raises(ValueError, match="labels run from 0 to 3 for 4 classes, found -100 to 0"):
        fl.gradient(lambda p: getattr(losses, name)(p, torch.tensor([0, -100])), probabilities(2, 4))


@by_class
@pytest.mark.parametrize(("shape", "dim"), [((4,), 1), ((), 1), ((3, 4), 2), ((3, 4), -3)], ids=str)
def test_scores_without_an_axis_of_classes_are_an_error(name: str, shape: tuple, dim: int):
    with pytest.raises(
        ValueError, match=rf"{name}: the scores have the shape \(.*with the classes on axis {dim}"
    ):
        getattr(losses, name)(torch.rand(shape), torch.zeros(3, dtype=torch.long), dim=dim)


@pytest.mark.parametrize("name", losses.__all__)
def test_what_is_no_tensor_is_an_error_that_says_which(name: str):
    loss = getattr(losses, name)
    with pytest.raises(TypeError, match=f"{name}: the target is a list; write a tensor"):
        loss(torch.rand(2, 3), [0, 1])
    with pytest.raises(TypeError, match=f"{name}: the prediction is a ndarray; write a tensor"):
        loss(torch.rand(2, 3).numpy(), torch.rand(2, 3))


@by_entry
def test_losses_differentiate_under_vmap(name: str):
    loss, pred, target = getattr(losses, name), between(5, 3), between(5, 3)
    grads = torch.func.vmap(torch.func.grad(loss))(pred, target)
    for i in range(5):
        exact(grads[i], fl.gradient(loss, pred[i], target[i]))


@by_class
def test_class_losses_differentiate_under_torch_func(name: str):
    loss, pred, target = getattr(losses, name), probabilities(5, 4), labels(5)
    exact(torch.func.grad(loss)(pred, target), fl.gradient(loss, pred, target))
