"""BatchNorm in the two lines of training: its statistics move as torch's do, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fluxlike as fl


def batches(n: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [2 + 3 * torch.randn(6, 3, 5, 5, generator=generator, dtype=torch.float64) for _ in range(n)]


def double(norm: fl.BatchNorm) -> fl.BatchNorm:
    return fl.fmap(lambda x: x.double(), norm)


def test_the_two_lines_give_the_running_statistics_of_torch() -> None:
    norm, theirs = double(fl.BatchNorm(3)), nn.BatchNorm2d(3).double()
    optimiser = torch.optim.SGD(theirs.parameters(), 0.1)
    state = fl.setup(fl.Descent(0.1), norm)
    for x in batches():
        optimiser.zero_grad()
        theirs(x).square().mean().backward()
        optimiser.step()
        grads = fl.gradient(lambda m, x: m(x).square().mean(), norm, x)
        norm, state = fl.update(state, norm, grads)
        assert torch.equal(norm.running_mean, theirs.running_mean)
        assert torch.equal(norm.running_var, theirs.running_var)
        torch.testing.assert_close(norm.weight, theirs.weight.detach(), rtol=1e-12, atol=1e-12)


def test_a_layer_called_twice_in_one_loss_moves_its_statistics_twice() -> None:
    norm, theirs = double(fl.BatchNorm(3)), nn.BatchNorm2d(3).double()
    first, second = batches(2)
    theirs(first)
    theirs(second)
    grads = fl.gradient(lambda m: m(first).sum() + m(second).square().sum(), norm)
    norm, _ = fl.update(fl.setup(fl.Descent(0.0), norm), norm, grads)
    assert torch.equal(norm.running_mean, theirs.running_mean)
    assert torch.equal(norm.running_var, theirs.running_var)


def test_a_tied_layer_moves_its_statistics_at_both_places() -> None:
    norm, theirs = double(fl.BatchNorm(3)), nn.BatchNorm2d(3).double()
    model = fl.Chain(norm, norm)
    (x,) = batches(1)
    theirs(theirs(x))
    grads = fl.gradient(lambda m: m(x).square().sum(), model)
    model, _ = fl.update(fl.setup(fl.Descent(0.0), model), model, grads)
    assert torch.equal(model.layers[0].running_mean, theirs.running_mean)
    assert model.layers[1].running_mean is model.layers[0].running_mean


def test_the_gradient_holds_assigned_at_the_buffers_and_no_graph() -> None:
    grads = fl.gradient(lambda m, x: m(x).square().sum(), double(fl.BatchNorm(3)), batches(1)[0])
    assert isinstance(grads.running_mean, fl.Assigned)
    assert isinstance(grads.running_var, fl.Assigned)
    assert not grads.running_mean.value.requires_grad


def test_the_model_passed_in_keeps_its_statistics() -> None:
    norm = double(fl.BatchNorm(3))
    fl.gradient(lambda m, x: m(x).square().sum(), norm, batches(1)[0])
    assert torch.equal(norm.running_mean, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(norm.running_var, torch.ones(3, dtype=torch.float64))


def test_in_test_mode_nothing_is_assigned() -> None:
    (x,) = batches(1)
    norm = double(fl.BatchNorm(3))
    pinned = fl.gradient(lambda m: m(x).square().sum(), fl.testmode(norm))
    with fl.mode("test"):
        stated = fl.gradient(lambda m: m(x).square().sum(), norm)
    for grads in (pinned, stated):
        assert grads.running_mean is None
        assert grads.weight is not None


def test_freezing_a_layer_does_not_stop_its_statistics() -> None:
    (x,) = batches(1)
    norm = double(fl.BatchNorm(3))
    state = fl.freeze(fl.setup(fl.Descent(0.1), norm))
    moved, _ = fl.update(state, norm, fl.gradient(lambda m: m(x).square().sum(), norm))
    assert moved.weight is norm.weight
    assert not torch.equal(moved.running_mean, norm.running_mean)


def test_a_closed_over_model_is_unaffected() -> None:
    (x,) = batches(1)
    norm, closed = double(fl.BatchNorm(3)), double(fl.BatchNorm(3))
    with fl.mode("train"):
        grads = fl.gradient(lambda m: (m(x) * closed(x)).sum(), norm)
    assert isinstance(grads.running_mean, fl.Assigned)
    assert torch.equal(closed.running_mean, torch.zeros(3, dtype=torch.float64))


def test_the_same_model_closed_over_does_not_assign_for_the_argument() -> None:
    (x,) = batches(1)
    norm = double(fl.BatchNorm(3))
    grads = fl.gradient(lambda m: (m.weight * norm(x).sum((0, 2, 3))).sum(), norm)
    assert grads.running_mean is None
    assert torch.equal(norm.running_mean, torch.zeros(3, dtype=torch.float64))


def test_a_nested_gradient_by_the_input_assigns_to_the_outer_scope() -> None:
    norm, theirs = double(fl.BatchNorm(3)), nn.BatchNorm2d(3).double()
    (x,) = batches(1)
    theirs(x)

    def penalty(m: Any) -> Tensor:
        return fl.gradient(lambda x: m(x).pow(3).sum(), x).square().sum()

    grads = fl.gradient(penalty, norm)
    assert torch.equal(grads.running_mean.value, theirs.running_mean)
    assert torch.equal(grads.running_var.value, theirs.running_var)


def test_a_nested_gradient_by_the_model_assigns_to_its_own_scope() -> None:
    norm, theirs = double(fl.BatchNorm(3)), nn.BatchNorm2d(3).double()
    first, second = batches(2)
    inner_grads = []

    def loss(m: Any) -> Tensor:
        inner_grads.append(fl.gradient(lambda inner: inner(first).square().sum(), m))
        return m(second).square().sum() + inner_grads[0].weight.sum()

    outer = fl.gradient(loss, norm)
    theirs(second)
    assert torch.equal(outer.running_mean.value, theirs.running_mean)
    alone = nn.BatchNorm2d(3).double()
    alone(first)
    assert torch.equal(inner_grads[0].running_mean.value, alone.running_mean)


def test_an_inner_update_carries_the_statistics_on_inside_the_outer_gradient() -> None:
    norm, theirs = double(fl.BatchNorm(3)), nn.BatchNorm2d(3).double()
    first, second = batches(2)
    theirs(first)
    moved = []

    def loss(m: Any) -> Tensor:
        state = fl.setup(fl.Descent(0.1), m)
        m, _ = fl.update(state, m, fl.gradient(lambda m: m(first).square().sum(), m))
        moved.append(m.running_mean)
        return m(second).square().sum()

    grads = fl.gradient(loss, norm)
    assert torch.equal(moved[0], theirs.running_mean)
    assert grads.weight is not None


def test_an_assignment_made_under_vmap_over_examples_is_refused_by_update() -> None:
    norm = double(fl.BatchNorm(3))
    grads = fl.gradient(lambda m, x: m(x).square().sum(), norm, batches(1)[0])
    batched = fl.at(grads, ".running_mean").set(fl.Assigned(torch.zeros(6, 3, dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"\.running_mean is assigned a tensor of shape \(6, 3\).*vmap"):
        fl.update(fl.setup(fl.Descent(), norm), norm, batched)
