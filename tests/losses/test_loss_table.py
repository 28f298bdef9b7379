"""What every loss promises, as one table: the rows are in `loss_rows.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from loss_rows import ROWS, Row
from torch import Tensor

import fluxlike as fl
from fluxlike import losses
from fluxlike._private.compiler import build

every_loss = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
#: Losses in tens, which compile in one graph in the time of two.
in_tens = pytest.mark.parametrize("rows", [ROWS[i : i + 10] for i in range(0, len(ROWS), 10)])
halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
AGGS = {
    "default": ...,
    "mean": torch.mean,
    "sum": torch.sum,
    "none": None,
    "identity": fl.identity,
    "own": lambda x: x.square().amax(),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def exact(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def is_float(x: Tensor) -> bool:
    return x.is_floating_point()


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """The floating tensors of a tree in another dtype."""
    return fl.fmap(lambda x: x.to(dtype) if is_float(x) else x, tree)


def test_every_loss_has_a_row():
    assert {row.loss.__name__ for row in ROWS} == set(losses.__all__) - {"label_smoothing"}


@every_loss
@pytest.mark.parametrize("agg", AGGS.values(), ids=AGGS)
def test_value_and_gradient_equal_torchs_under_any_agg(row: Row, agg: Callable | None):
    pred, target = row.pred(), row.target()
    theirs = pred.clone().requires_grad_()
    if row.mean is not None and agg in (..., torch.mean):
        wanted = row.mean(theirs, target)
    else:
        entries = row.twin(theirs, target)
        wanted = entries if agg is None else entries.mean() if agg is ... else agg(entries)
    weights = torch.randn_like(wanted)
    (wanted * weights).sum().backward()

    def weighted(pred: Tensor) -> tuple[Tensor, Tensor]:
        value = row.run(pred, target) if agg is ... else row.run(pred, target, agg=agg)
        return (value * weights).sum(), value

    (_, value), grad = fl.withgradient(weighted, pred)
    exact(value, wanted.detach())
    exact(grad, theirs.grad)


#: In random directions, where an error of one number is but a part of what is compared.
FAST: Any = {"fast_mode": True, "rtol": 1e-6, "atol": 1e-8}


@every_loss
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by what torch loads itself
def test_gradcheck_in_float64_reverse_and_forward(row: Row):
    target = row.target()
    pred = row.pred().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: row.run(p, target), [pred], check_forward_ad=True, check_batched_grad=True, **FAST
    )


@every_loss
def test_second_derivatives(row: Row):
    target = row.target()
    assert torch.autograd.gradgradcheck(lambda p: row.run(p, target), [row.pred().requires_grad_()], **FAST)


@every_loss
def test_the_target_is_differentiable_too_where_it_is_a_float(row: Row):
    pred, target = row.pred(), row.target()
    if is_float(target):
        assert torch.autograd.gradcheck(lambda t: row.run(pred, t), [target.requires_grad_()], **FAST)


@every_loss
def test_nothing_is_changed(row: Row):
    pred, target = row.pred(), row.target()
    before = pred.clone(), target.clone()
    fl.gradient(lambda p: row.run(p, target), pred)
    assert torch.equal(pred, before[0])
    assert torch.equal(target, before[1])


@every_loss
def test_agg_may_return_anything(row: Row):
    assert row.run(row.pred(), row.target(), agg=lambda x: "anything") == "anything"


@every_loss
def test_in_float32_it_is_that_of_float64_rounded(row: Row):
    pred, target = cast((row.pred(), row.target()), torch.float32)
    eps = {"eps": torch.finfo(torch.float32).eps} if takes_eps(row) else {}
    entries = row.run(pred, target, agg=None)
    wanted = row.run(*cast((pred, target), torch.float64), agg=None, **eps)
    assert entries.dtype == torch.float32
    error = (entries.double() - wanted).abs().max() / wanted.abs().max()
    assert error <= row.error * torch.finfo(torch.float32).eps


def takes_eps(row: Row) -> bool:
    return "eps" in inspect.signature(row.loss).parameters and "eps" not in row.settings


def eps_of_halves(row: Row) -> dict[str, float]:
    """An eps of float16 is its own."""
    return {"eps": torch.finfo(torch.float16).eps} if takes_eps(row) else {}


def value_and_gradients(row: Row, pred: Tensor, target: Tensor, **more: Any) -> tuple[Tensor, list[Any]]:
    """The value, and the gradients of its sum for prediction and, if it has one, target."""
    inputs = [pred, target] if is_float(target) else [pred]

    def summed(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        value = row.run(inputs[0], inputs[-1] if is_float(target) else target, **more)
        return value.sum(), value

    (_, value), gradients = fl.withgradient(summed, inputs)
    return value, gradients


@every_loss
@halves
@pytest.mark.parametrize("agg", AGGS.values(), ids=AGGS)
def test_sixteen_bits_are_computed_in_float32_and_rounded_once(
    row: Row, dtype: torch.dtype, agg: Callable | None
):
    inputs = cast((row.pred(), row.target()), dtype)
    more = {} if agg is ... else {"agg": agg}
    value, gradients = value_and_gradients(row, *inputs, **more)
    if dtype == torch.float16:
        more |= eps_of_halves(row)
    wide, wide_gradients = value_and_gradients(row, *cast(inputs, torch.float32), **more)
    assert wide.dtype == torch.float32
    same(value, wide.to(dtype))
    same(gradients, cast(wide_gradients, dtype))


@every_loss
@halves
def test_under_autocast_it_computes_and_returns_float32_as_torch_does(row: Row, dtype: torch.dtype):
    inputs = cast((row.pred(), row.target()), dtype)
    more = eps_of_halves(row) if dtype == torch.float16 else {}
    for agg in (torch.mean, None):
        wide, wide_gradients = value_and_gradients(row, *cast(inputs, torch.float32), agg=agg, **more)
        with torch.autocast("cpu", dtype):
            value, gradients = value_and_gradients(row, *inputs, agg=agg)
            again, _ = value_and_gradients(row, *cast(inputs, torch.float32), agg=agg, **more)
            exact_in, _ = value_and_gradients(row, *cast(inputs, torch.float64), agg=agg)
        same(value, wide)
        same(again, wide)
        same(gradients, cast(wide_gradients, dtype))
        assert exact_in.dtype == torch.float64


def assert_jit_agrees_under_autocast(rows: Sequence[Row]) -> None:
    inputs = cast([(row.pred(), row.target()) for row in rows], torch.bfloat16)

    def each(inputs: Any) -> Any:
        return [
            (value_and_gradients(row, pred, target), row.run(pred, target, agg=None))
            for row, (pred, target) in zip(rows, inputs, strict=True)
        ]

    with torch.autocast("cpu", torch.bfloat16):
        eager, jitted = each(inputs), fl.jit(each)(inputs)
    for row, found, expected in zip(rows, jitted, eager, strict=True):
        for mine, other in zip(fl.fleaves(found), fl.fleaves(expected), strict=True):
            assert mine.dtype == other.dtype, row.name
            close = {"rtol": 1e-5, "atol": 1e-5} if mine.dtype == torch.float32 else {}
            torch.testing.assert_close(mine, other, msg=lambda m, row=row: f"{row.name}: {m}", **close)


@every_loss
def test_under_autocast_jit_gives_what_eager_gives(row: Row, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "_can_compile", lambda: False)
    assert_jit_agrees_under_autocast([row])


@pytest.mark.slow
@in_tens
def test_compiled_under_autocast_they_give_what_eager_gives(rows: Sequence[Row]):
    assert_jit_agrees_under_autocast(rows)


@pytest.mark.parametrize("row", [row for row in ROWS if is_float(row.target())], ids=lambda row: row.name)
@pytest.mark.parametrize(
    ("pred", "target", "wider"),
    [
        (torch.float16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float16, torch.float64),
    ],
    ids=str,
)
def test_of_different_dtypes_the_wider_counts_as_torch_promotes(
    row: Row, pred: torch.dtype, target: torch.dtype, wider: torch.dtype
):
    inputs = row.pred().to(pred), row.target().to(target)
    more = eps_of_halves(row) if pred == torch.float16 else {}
    value, gradients = value_and_gradients(row, *inputs)
    wanted, wide_gradients = value_and_gradients(row, *cast(inputs, wider), **more)
    assert wanted.dtype == wider
    same(value, wanted)
    same(gradients, [g.to(x.dtype) for g, x in zip(wide_gradients, inputs, strict=True)])


@pytest.mark.parametrize("row", [row for row in ROWS if row.edge], ids=lambda row: row.name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_at_the_edge_value_and_derivatives_are_finite(row: Row, dtype: torch.dtype):
    pred, target = (x.to(dtype) if is_float(x) else x for x in row.edge)
    value, grad = fl.withgradient(lambda p: row.run(p, target), pred)
    assert value.isfinite()
    assert grad.isfinite().all()
    if is_float(target):
        assert fl.gradient(lambda t: row.run(pred, t), target).isfinite().all()


@pytest.mark.parametrize("row", [row for row in ROWS if row.one_by_one], ids=lambda row: row.name)
def test_of_an_empty_batch_the_mean_is_nan_and_the_sum_zero(row: Row):
    pred, target = row.pred()[:0], row.target()[:0]
    assert row.run(pred, target, agg=None).shape[0] == 0
    assert row.run(pred, target).isnan()
    assert row.run(pred, target, agg=torch.sum) == 0
    assert fl.gradient(lambda p: row.run(p, target), pred).shape == pred.shape


@pytest.mark.parametrize("row", [row for row in ROWS if row.one_by_one], ids=lambda row: row.name)
def test_under_vmap_it_is_what_it_is_in_a_batch(row: Row):
    pred, target = row.pred(), row.target()

    def alone(pred: Tensor, target: Tensor) -> Tensor:
        return row.run(pred[None], target[None], agg=None)[0]

    exact(fl.vmap(alone)(pred, target), row.run(pred, target, agg=None))
    each = fl.vmap(lambda p, t: fl.gradient(lambda p: alone(p, t).sum(), p))(pred, target)
    exact(each, fl.gradient(lambda p: row.run(p, target, agg=torch.sum), pred))


@every_loss
def test_torch_func_gives_the_same_derivatives(row: Row):
    pred, target = row.pred(), row.target()
    exact(torch.func.grad(row.run)(pred, target), fl.gradient(lambda p: row.run(p, target), pred))

    def penalty(pred: Tensor) -> Tensor:
        return fl.gradient(lambda p: row.run(p, target), pred).square().sum()

    def penalty_of_torch(pred: Tensor) -> Tensor:
        return torch.func.grad(row.run)(pred, target).square().sum()

    second = fl.gradient(penalty, pred)
    exact(torch.func.grad(penalty_of_torch)(pred), torch.zeros_like(pred) if second is None else second)


def assert_jit_agrees(rows: Sequence[Row]) -> None:
    inputs = [(row.pred(), row.target()) for row in rows]

    def one(row: Row, pred: Tensor, target: Tensor) -> Any:
        entries = row.run(pred, target, agg=None)
        return entries, fl.withgradient(lambda p: row.run(p, target), pred)

    def each(inputs: Any) -> Any:
        return [one(row, *given) for row, given in zip(rows, inputs, strict=True)]

    for row, found, expected in zip(rows, fl.jit(each)(inputs), each(inputs), strict=True):
        for mine, other in zip(fl.fleaves(found), fl.fleaves(expected), strict=True):
            torch.testing.assert_close(
                mine, other, rtol=1e-10, atol=1e-10, msg=lambda m, row=row: f"{row.name}: {m}"
            )


@every_loss
def test_jit_gives_what_eager_gives(row: Row, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "_can_compile", lambda: False)
    assert_jit_agrees([row])


@pytest.mark.slow
@in_tens
def test_compiled_they_give_what_eager_gives(rows: Sequence[Row]):
    assert_jit_agrees(rows)


@every_loss
def test_on_the_meta_device_it_gives_shapes(row: Row):
    pred, target = row.pred(), row.target()
    meta, settings = fl.to_device(((pred, target), row.settings), "meta")
    assert row.loss(*meta, **settings, agg=None).shape == row.run(pred, target, agg=None).shape


@pytest.mark.parametrize("name", losses.__all__)
def test_what_is_no_tensor_is_an_error_that_says_which(name: str):
    if name == "label_smoothing":
        return
    loss = getattr(losses, name)
    with pytest.raises(TypeError, match=f"{name}: the target is a list; write a tensor"):
        loss(torch.rand(2, 3), [0, 1])
    with pytest.raises(TypeError, match=f"{name}: the prediction is a ndarray; write a tensor"):
        loss(torch.rand(2, 3).numpy(), torch.rand(2, 3))


@every_loss
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool], ids=str)
def test_a_prediction_of_whole_numbers_is_an_error(row: Row, dtype: torch.dtype):
    text = rf"{row.loss.__name__}: the prediction is {dtype}; .* write prediction\.float\(\)"
    with pytest.raises(TypeError, match=text):
        row.run(row.pred().to(dtype), row.target())


@every_loss
def test_labels_in_the_place_of_the_prediction_ask_whether_the_two_are_swapped(row: Row):
    name = row.loss.__name__
    with pytest.raises(TypeError, match=rf"are they swapped\? Write {name}\(prediction, target\)"):
        row.run(row.target().long(), row.pred())


@every_loss
def test_complex_numbers_are_an_error(row: Row):
    pred, target = row.pred(), row.target()
    with pytest.raises(
        TypeError, match=rf"{row.loss.__name__}: the prediction is torch.complex128; .*view_as_real"
    ):
        row.run(pred.to(torch.complex128), target)
    with pytest.raises((TypeError, ValueError), match="complex128"):
        row.run(pred, target.to(torch.complex128))
