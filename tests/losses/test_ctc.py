from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fluxlike as fl
from fluxlike.losses import ctc

LENGTHS, TARGET_LENGTHS = torch.tensor([7, 5, 6]), torch.tensor([3, 1, 2])
TARGET = torch.tensor([[1, 2, 2], [3, 0, 0], [1, 1, 0]])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def exact(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def scores(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def torchs(
    logits: Tensor, target: Tensor, lengths: Tensor, target_lengths: Tensor, **settings: Any
) -> Tensor:
    first = logits.log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(first, target, lengths, target_lengths, reduction="none", **settings)


def ours(logits: Tensor, **settings: Any) -> Tensor:
    return ctc(logits, TARGET, lengths=LENGTHS, target_lengths=TARGET_LENGTHS, agg=None, **settings)


def test_lengths_leave_out_what_is_beyond_them_as_torch_does():
    logits = scores(3, 7, 4)
    theirs = logits.clone().requires_grad_()
    wanted = torchs(theirs, TARGET, LENGTHS, TARGET_LENGTHS)
    wanted.sum().backward()
    exact(ours(logits), wanted.detach())
    grad = fl.gradient(lambda x: ours(x).sum(), logits)
    exact(grad, theirs.grad)
    assert not grad[1, 5:].any()
    other = logits.clone()
    other[1, 5:] = 100.0
    exact(ours(other), ours(logits))


def test_labels_beyond_their_length_may_be_anything():
    logits = scores(3, 7, 4)
    padded = TARGET.clone()
    padded[1, 1:] = -1
    given = {"lengths": LENGTHS, "target_lengths": TARGET_LENGTHS, "agg": None}
    exact(ctc(logits, padded, **given), ctc(logits, TARGET, **given))
    exact(fl.vmap(lambda x, t, n, k: ctc(x[None], t[None], lengths=n[None], target_lengths=k[None]))(
        logits, padded, LENGTHS, TARGET_LENGTHS
    ), ctc(logits, TARGET, **given))  # fmt: skip


def test_lengths_may_be_lists():
    logits = scores(3, 7, 4)
    exact(ctc(logits, TARGET, lengths=[7, 5, 6], target_lengths=(3, 1, 2), agg=None), ours(logits))


def test_torchs_mean_is_had_by_dividing_by_the_lengths_of_targets():
    logits = scores(3, 7, 4)
    first = logits.log_softmax(-1).transpose(0, 1)
    mine = ctc(
        logits, TARGET, lengths=LENGTHS, target_lengths=TARGET_LENGTHS,
        agg=lambda losses: (losses / TARGET_LENGTHS).mean(),
    )  # fmt: skip
    exact(mine, F.ctc_loss(first, TARGET, LENGTHS, TARGET_LENGTHS))


def test_log_probabilities_are_left_as_they_are():
    logits = scores(3, 7, 4)
    exact(ours(logits.log_softmax(-1)), ours(logits))


def reads_as(path: tuple[int, ...]) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label]


@pytest.mark.parametrize("label", [[1, 2], [1, 1], [2], []], ids=str)
@pytest.mark.parametrize("traced", [False, True])
def test_it_is_the_sum_over_all_paths_that_read_as_the_labels(label: list[int], traced: bool):
    probs = scores(4, 3).softmax(-1)
    paths = (p for p in itertools.product(range(3), repeat=4) if reads_as(p) == label)
    total = sum(math.prod(probs[t, k].item() for t, k in enumerate(p)) for p in paths)
    target = torch.tensor([label], dtype=torch.int64).reshape(1, -1)

    def loss(logits: Tensor) -> Tensor:
        return ctc(logits[None], target)

    value = torch.func.vmap(loss)(probs.log()[None])[0] if traced else loss(probs.log())
    exact(value, torch.tensor(-math.log(total), dtype=torch.float64))


SHORT = torch.tensor([[1, 2, 2], [1, 2, 3], [3, 1, 2]])  # the first needs four steps


@pytest.mark.parametrize("way", ["eager", "torch.func", "nested"])
def test_a_sequence_too_short_for_its_labels_costs_infinity_and_has_no_gradient(way: str):
    logits = scores(3, 3, 4)

    def loss(x: Tensor, zero: bool = False) -> Tensor:
        return ctc(x, SHORT, agg=None, zero_infinity=zero)

    def total(x: Tensor) -> Tensor:
        return loss(x).sum()

    assert loss(logits).isinf().tolist() == [True, False, False]
    wanted = torchs(logits, SHORT, torch.full((3,), 3), torch.full((3,), 3), zero_infinity=True)
    exact(loss(logits, True), wanted)
    grad = {
        "eager": lambda: fl.gradient(total, logits),
        "torch.func": lambda: torch.func.grad(total)(logits),
        "nested": lambda: (
            fl.gradient(lambda x: fl.gradient(total, x).sum() + (x**2).sum() / 2, logits) - logits
        ),
    }[way]()
    assert grad.isfinite().all()
    assert not grad[0].any()
    if way != "nested":
        exact(grad, fl.gradient(lambda x: loss(x, True).sum(), logits))


@pytest.mark.parametrize("logit", [-math.inf, -1e4])
def test_impossible_labels_at_single_steps_are_no_nan(logit: float):
    logits = scores(1, 4, 3)
    logits[0, 1, 2] = logit
    for x in (logits, logits.float()):
        value, grad = fl.withgradient(lambda x: ctc(x, torch.tensor([[1, 2]])), x)
        again = torch.func.grad(lambda x: ctc(x, torch.tensor([[1, 2]])))(x)
        assert value.isfinite()
        assert grad.isfinite().all()
        torch.testing.assert_close(again, grad)


def test_second_derivatives_with_lengths_are_the_recursions():
    assert torch.autograd.gradgradcheck(lambda x: ours(x), [scores(3, 7, 4).requires_grad_()])
    hessian = fl.hessian(lambda x: ours(x).sum(), scores(3, 7, 4))
    assert hessian.shape == (3, 7, 4, 3, 7, 4)
    assert hessian.isfinite().all()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_jit_takes_lengths_as_inputs(compiled: bool, monkeypatch: pytest.MonkeyPatch):
    if not compiled:
        from fluxlike._private.compiler import build

        monkeypatch.setattr(build, "_can_compile", lambda: False)

    @fl.jit
    def step(logits: Tensor, target: Tensor, lengths: Tensor, of_target: Tensor) -> Any:
        return fl.withgradient(lambda x: ctc(x, target, lengths=lengths, target_lengths=of_target), logits)

    for lengths, of_target in ((LENGTHS, TARGET_LENGTHS), (LENGTHS.flip(0), TARGET_LENGTHS)):
        logits = scores(3, 7, 4)
        value, grad = step(logits, TARGET, lengths, of_target)
        wanted, of_logits = fl.withgradient(
            lambda x: ctc(x, TARGET, lengths=lengths, target_lengths=of_target), logits
        )
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(grad, of_logits, rtol=1e-10, atol=1e-10)
    assert step.cache_info().traces == 1


def test_no_steps_read_as_no_labels():
    losses = ctc(scores(2, 3, 4), torch.tensor([[1], [1]]), lengths=[0, 0], target_lengths=[0, 1], agg=None)
    exact(losses, torch.tensor([0.0, math.inf], dtype=torch.float64))
    exact(ctc(scores(2, 0, 4), torch.zeros(2, 0).long(), agg=None), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bits_are_computed_in_float32_and_rounded_once(dtype: torch.dtype):
    logits = scores(3, 7, 4).to(dtype)
    assert torch.equal(ours(logits), ours(logits.float()).to(dtype))
    assert ours(logits).dtype == dtype


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"logits": (7, 4)}, ValueError, r"ctc takes logits of shape \(N, T, C\), found \(7, 4\); the batch"),
        ({"target": (3,)}, ValueError, r"the target is of shape \(3, S\), found \(3,\); pad the labels"),
        ({"target": (7, 3)}, ValueError, r"the target is of shape \(3, S\), found \(7, 3\)"),
        ({"blank": 4}, ValueError, r"blank=4 is no class; they run from 0 to 3"),
        ({"lengths": torch.tensor([7, 5])}, ValueError, r"lengths has the shape \(2,\); write \(3,\)"),
        ({"lengths": torch.tensor([8, 5, 5])}, ValueError, r"lengths runs from 0 to 7 here, found 5 to 8"),
        ({"lengths": torch.ones(3)}, TypeError, r"lengths is torch.float32; write integers"),
        ({"target_lengths": [1, 2, 4]}, ValueError, r"target_lengths runs from 0 to 3 here, found 1 to 4"),
        ({"label": 4}, ValueError, r"labels run from 0 to 3 for 4 classes, found 1 to 4"),
        ({"label": -1}, ValueError, r"labels run from 0 to 3 for 4 classes, found -1 to 1"),
        ({"label": 0}, ValueError, r"a label is 0, which is the blank; give blank= another class"),
    ],
    ids=lambda v: str(v)[:30],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_that_teaches(change: dict[str, Any], error: type, text: str):
    change = dict(change)
    logits = torch.randn(change.pop("logits", (3, 7, 4)))
    target = torch.ones(change.pop("target", (3, 3)), dtype=torch.int64)
    if "label" in change:
        target[1, 1] = change.pop("label")
    with pytest.raises(error, match=text):
        ctc(logits, target, **change)


def test_float_labels_are_an_error():
    with pytest.raises(TypeError, match=r"ctc: the target is torch.float32; write integer labels"):
        ctc(torch.randn(3, 7, 4), torch.ones(3, 3))
