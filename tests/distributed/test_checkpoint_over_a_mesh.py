"""What is computed again in the backward pass, over a mesh."""

import pytest
import torch
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils.checkpoint import checkpoint as checkpoint_of_torch

import fluxlike as fl
from fluxlike import distributed as d
from tests.distributed.agreeing import PLANS, differences
from tests.distributed.ranks import run


class Block:
    """Normalised attention and a perceptron, computed again by one of two libraries."""

    def __init__(self, way, dropout):
        self.way = way
        self.norm, self.attention = fl.LayerNorm(8), fl.MultiHeadAttention(8, num_heads=2)
        dropped = [fl.Dropout(dropout)] if dropout else []
        self.perceptron = fl.Chain(fl.Dense(8, 16, fl.gelu), *dropped, fl.Dense(16, 8))

    def __call__(self, x):
        if self.way == "torch":
            return checkpoint_of_torch(self.body, x, use_reentrant=False)
        if self.way == "fluxlike":
            return fl.checkpoint(Block.body)(self, x)
        return self.body(x)

    def body(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.perceptron(x)


fl.functor(Block, children=("norm", "attention", "perceptron"))


def network(way, dropout):
    torch.manual_seed(0)
    blocks = [Block(way, dropout) for _ in range(2)]
    return fl.f64(fl.Chain(fl.Conv((3,), 4, 8, pad=1), fl.BatchNorm(8), lambda x: x.mT, *blocks))


def loss(model, x):
    return (model(x) ** 2).mean()


def grads_of(model, x, key):
    with fl.seeded(key), fl.mode("train"):
        return fl.gradient(loss, model, x)


def gradients(way, plan, compiled):
    dropout = 0.5 if way == "fluxlike" else 0.0  # torch's would draw other numbers the second time
    torch.manual_seed(1)
    x, key = torch.randn(6, 4, 5, dtype=torch.float64), fl.Key(2)
    expected = grads_of(network(None, dropout), x, key)
    mesh = d.mesh()
    model, x = fl.to_device(network(way, dropout), mesh, PLANS[plan]()), d.shard_batch(x, mesh)
    function = fl.jit(grads_of) if compiled else grads_of
    with CommDebugMode() as sent:
        grads = function(model, x, key)
    return differences(grads, expected), sent.get_total_counts()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("way", ["fluxlike", "torch"])
def test_a_checkpoint_gives_the_gradients_of_one_process(way, plan):
    assert [wrong for wrong, _ in run(gradients, 2, way, plan, False)] == [[], []]


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_a_checkpoint_under_jit_gives_the_gradients_of_one_process(plan):
    assert [wrong for wrong, _ in run(gradients, 2, "fluxlike", plan, True)] == [[], []]


def test_a_checkpoint_gathers_the_parameters_of_its_second_run_together():
    (_, sent), _ = run(gradients, 2, "fluxlike", "shard", False)
    (_, alone), _ = run(gradients, 2, None, "shard", False)
    assert sent <= alone + 2 * 2  # one gathering for each of two blocks, and what attention reads


def of_a_part(plan, wrt):
    torch.manual_seed(0)
    model = fl.f64(fl.Chain(fl.Dense(4, 6), fl.BatchNorm(6, fl.tanh), fl.Dense(6, 2)))
    x = torch.randn(6, 4, dtype=torch.float64)

    def f(model, x):
        return fl.checkpoint(lambda model, x: model(x))(model, x).square().mean()

    expected = fl.withgradient(f, model, x, wrt=wrt)
    over = fl.to_device(model, d.mesh(), PLANS[plan]()), d.shard_batch(x, d.mesh())
    return differences(fl.withgradient(f, *over, wrt=wrt), expected)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("wrt", [None, ".layers[2]"])
def test_a_checkpoint_of_buffers_and_frozen_parameters_gives_the_gradients_of_one_process(plan, wrt):
    assert run(of_a_part, 2, plan, wrt) == [[], []]
