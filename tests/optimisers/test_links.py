"""Links: decay, clipping and chains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def step(rule: Any, model: Any, grads: Any) -> Any:
    return fl.update(fl.setup(rule, model), model, grads)[0]


X, G = double(1, 10, 100), double(1, 2, 3)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (fl.WeightDecay(0.1), double(-0.1, 7, 87)),
        (fl.OptimiserChain(fl.ClipGrad(2.0), fl.WeightDecay(0.1)), double(-0.1, 7, 88)),
        (fl.OptimiserChain(), double(0, 8, 97)),
        (fl.OptimiserChain(fl.OptimiserChain(), fl.WeightDecay(0.1)), double(-0.1, 7, 87)),
    ],
    ids=["WeightDecay", "ClipGrad, WeightDecay", "empty chain", "empty chain inside"],
)
def test_links_give_the_golden_numbers(rule: Any, expected: Tensor) -> None:
    assert_close(step(rule, X, G), expected, rtol=1e-12, atol=1e-12)


def test_a_chain_inside_a_chain_is_flat() -> None:
    clip, decay, adam = fl.ClipNorm(1.0), fl.WeightDecay(0.1), fl.Adam()
    nested = fl.OptimiserChain(clip, fl.OptimiserChain(decay, fl.OptimiserChain(adam)))
    assert nested == fl.OptimiserChain(clip, decay, adam)
    assert nested.rules == (clip, decay, adam)


def test_the_order_of_links_matters() -> None:
    clip, decay = fl.ClipGrad(2.0), fl.WeightDecay(0.1)
    assert_close(step(fl.OptimiserChain(decay, clip), X, G), double(1 - 1.1, 8, 98), rtol=0, atol=1e-12)


def test_a_chain_of_one_moves_as_the_rule_alone() -> None:
    assert torch.equal(step(fl.OptimiserChain(fl.Adam(0.1)), X, G), step(fl.Adam(0.1), X, G))


def test_a_chain_prints_its_links() -> None:
    assert repr(fl.OptimiserChain(fl.ClipNorm(1.0), fl.Descent(0.1))) == (
        "OptimiserChain(ClipNorm(max_norm=1.0, p=2.0, throw=True), Descent(lr=0.1))"
    )


# Clipping by value and by norm


def test_clipgrad_limits_every_entry() -> None:
    g = double(-5, -2, 1, 2.5)
    assert torch.equal(step(fl.ClipGrad(2.0), torch.zeros(4).double(), g), -double(-2, -2, 1, 2))


@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
def test_clipnorm_scales_each_parameter_by_its_own_norm(p: float) -> None:
    model = {"a": torch.zeros(2).double(), "b": torch.zeros(2).double()}
    grads = {"a": double(3, 4), "b": double(0.03, 0.04)}
    moved = step(fl.ClipNorm(0.5, p=p), model, grads)
    assert_close(moved["a"], -grads["a"] * 0.5 / torch.linalg.vector_norm(grads["a"], p), rtol=0, atol=1e-15)
    assert torch.equal(moved["b"], -grads["b"])


def test_clipnorm_of_a_zero_gradient_is_zero() -> None:
    assert torch.equal(step(fl.ClipNorm(0.5), torch.ones(2), torch.zeros(2)), torch.ones(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_clipnorm_names_the_place_of_a_norm_that_is_not_finite(bad: float) -> None:
    model = {"fine": torch.ones(2), "deep": [torch.ones(2)]}
    grads = {"fine": torch.ones(2), "deep": [torch.tensor([1.0, bad])]}
    with pytest.raises(
        ValueError, match=r"ClipNorm at \['deep'\]\[0\]: the norm of the gradient is (nan|inf)"
    ):
        step(fl.OptimiserChain(fl.ClipNorm(1.0), fl.Adam()), model, grads)


def test_clipnorm_goes_on_where_it_may() -> None:
    moved = step(fl.ClipNorm(1.0, throw=False), torch.ones(2), torch.tensor([1.0, float("nan")]))
    assert moved.isnan().any()


# Clipping by the norm of all gradients


def three(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.randn(n, generator=generator, dtype=torch.float64)
        for k, n in zip("abc", (2, 3, 4), strict=True)
    }


def clipped_by_torch(grads: dict[str, Tensor], max_norm: float, p: float = 2.0) -> dict[str, Tensor]:
    params = {k: torch.zeros_like(g).requires_grad_() for k, g in grads.items()}
    for k, g in grads.items():
        params[k].grad = g.clone()
    torch.nn.utils.clip_grad_norm_(list(params.values()), max_norm, p)
    return {k: x.grad for k, x in params.items()}


@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_clipglobalnorm_equals_clip_grad_norm(max_norm: float, p: float) -> None:
    grads = three()
    taken, _ = fl.steps(fl.setup(fl.ClipGlobalNorm(max_norm, p=p), grads), three(1), grads)
    assert_close(taken, clipped_by_torch(grads, max_norm, p), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_global_norm_that_is_not_finite_is_skipped_inside_applyiffinite(bad: float) -> None:
    chain = fl.OptimiserChain(fl.ClipGlobalNorm(1.0), fl.Descent(0.1))
    model, grads = [double(1.0), double(2.0)], [double(bad), double(1.0)]
    assert fl.find_nonfinite(fl.update(fl.setup(chain, model), model, grads)[0])
    moved, state = fl.update(fl.setup(fl.ApplyIfFinite(chain), model), model, grads)
    assert fl.tree.allclose(moved, model, rtol=0, atol=0)
    assert state[0].state.skipped == 1


def test_a_missing_gradient_does_not_count_in_the_norm() -> None:
    grads = three()
    taken, _ = fl.steps(fl.setup(fl.ClipGlobalNorm(0.1), grads), three(1), {**grads, "b": None})
    expected = clipped_by_torch({k: grads[k] for k in "ac"}, 0.1)
    assert taken["b"] is None
    assert_close({k: taken[k] for k in "ac"}, expected, rtol=1e-12, atol=1e-12)


def test_a_frozen_parameter_does_not_count_in_the_norm() -> None:
    grads = three()
    state = fl.freeze(fl.setup(fl.ClipGlobalNorm(0.1), grads), "['b']")
    taken, _ = fl.steps(state, three(1), grads)
    expected = clipped_by_torch({k: grads[k] for k in "ac"}, 0.1)
    assert_close({k: taken[k] for k in "ac"}, expected, rtol=1e-12, atol=1e-12)


def test_a_tied_parameter_counts_once_with_its_total() -> None:
    w = torch.zeros(1).double()
    model = {"a": w, "b": w, "c": torch.zeros(1).double()}
    grads = {"a": double(1), "b": double(2), "c": double(4)}
    taken, _ = fl.steps(fl.setup(fl.ClipGlobalNorm(1.0), model), model, grads)
    factor = 1 / (5 + 1e-6)
    assert_close(taken["a"], double(3 * factor), rtol=1e-12, atol=0)
    assert taken["b"] is None
    assert_close(taken["c"], double(4 * factor), rtol=1e-12, atol=0)


def test_chains_that_differ_in_a_later_link_share_the_clip() -> None:
    grads = three()

    def by_path(path: str) -> Any:
        return fl.OptimiserChain(fl.ClipGlobalNorm(0.1), fl.Descent(1.0 if "a" in path else 0.5))

    taken, _ = fl.steps(fl.setup(by_path, grads), three(1), grads)
    expected = clipped_by_torch(grads, 0.1)
    assert_close(taken["a"], expected["a"], rtol=1e-12, atol=1e-12)
    assert_close(taken["c"], 0.5 * expected["c"], rtol=1e-12, atol=1e-12)


def test_different_clips_take_their_own_leaves() -> None:
    grads = three()
    state = fl.setup(lambda path: fl.ClipGlobalNorm(0.1 if "a" in path else 0.2), grads)
    taken, _ = fl.steps(state, three(1), grads)
    assert_close(taken["a"], clipped_by_torch({"a": grads["a"]}, 0.1)["a"], rtol=1e-12, atol=1e-12)
    rest = clipped_by_torch({k: grads[k] for k in "bc"}, 0.2)
    assert_close({k: taken[k] for k in "bc"}, rest, rtol=1e-12, atol=1e-12)


def test_clipping_then_adam_equals_torch() -> None:
    model = three(1)
    theirs = {k: x.clone().requires_grad_() for k, x in model.items()}
    optimiser = torch.optim.Adam(list(theirs.values()), 0.05)
    state = fl.setup(fl.OptimiserChain(fl.ClipGlobalNorm(0.5), fl.Adam(0.05)), model)
    for t in range(20):
        grads = three(10 + t)
        model, state = fl.update(state, model, grads)
        for k, g in clipped_by_torch(grads, 0.5).items():
            theirs[k].grad = g
        optimiser.step()
    assert_close(model, {k: x.detach() for k, x in theirs.items()}, rtol=1e-12, atol=1e-12)


def test_a_clip_sees_the_work_of_the_links_before_it() -> None:
    model, grads = three(1), three()
    taken, _ = fl.steps(
        fl.setup(fl.OptimiserChain(fl.WeightDecay(0.1), fl.ClipGlobalNorm(0.1)), model), model, grads
    )
    decayed = {k: grads[k] + 0.1 * model[k] for k in grads}
    assert_close(taken, clipped_by_torch(decayed, 0.1), rtol=1e-12, atol=1e-12)


def test_parameters_of_several_dtypes_are_clipped_together() -> None:
    model = {"f": torch.zeros(1), "d": torch.zeros(1).double(), "h": torch.zeros(1).half()}
    grads = {"f": torch.tensor([3.0]), "d": double(4), "h": torch.tensor([12.0]).half()}
    moved = step(fl.ClipGlobalNorm(1.0), model, grads)
    assert {k: x.dtype for k, x in moved.items()} == {k: x.dtype for k, x in model.items()}
    assert_close(moved["d"], double(-4 / 13), rtol=1e-6, atol=0)
    assert_close(moved["f"], torch.tensor([-3 / 13]), rtol=1e-6, atol=0)


def test_the_norm_of_a_complex_gradient_is_that_of_torch() -> None:
    grads = {"c": torch.tensor([3.0 + 4.0j], dtype=torch.complex128), "w": double(12)}
    model = fl.tree.zeros_like(grads)
    taken, _ = fl.steps(fl.setup(fl.ClipGlobalNorm(1.0), model), model, grads)
    assert_close(taken["c"], grads["c"] / (13 + 1e-6), rtol=1e-12, atol=0)


def test_a_clip_is_differentiable() -> None:
    grads = three()
    model = three(1)

    def size(max_norm: Tensor) -> Tensor:
        taken, _ = fl.steps(fl.setup(fl.ClipGlobalNorm(max_norm), model), model, grads)
        return sum(x.pow(2).sum() for x in taken.values()).sqrt()

    slope = fl.gradient(size, torch.tensor(0.1, dtype=torch.float64))
    norm = torch.cat(list(grads.values())).norm()
    assert_close(slope, norm / (norm + 1e-6), rtol=1e-12, atol=0)
