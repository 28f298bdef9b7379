"""`jit` of `update`: every rule of the table takes the steps that it takes in eager code."""

import sys
from pathlib import Path

import pytest
import torch

import fluxlike as fl
from fluxlike.trees.structure import flatten

sys.path.insert(0, str(Path(__file__).parents[2] / "optimisers"))
from rule_cases import CASES, randn

D = torch.float64


def model_with_ties():
    w = randn((4, 3), 0)
    return {
        "w": w,
        "tied": [w],
        "b": randn((3,), 1),
        "number": randn((), 2),
        "unused": randn((2,), 3),
        "name": "x",
    }


def gradients(t):
    return {
        "w": randn((4, 3), 10 * t), "tied": [randn((4, 3), 10 * t + 1)], "b": randn((3,), 10 * t + 2),
        "number": randn((), 10 * t + 3), "unused": None, "name": None,
    }  # fmt: skip


def require_close(a, b):
    mine, theirs = flatten(a), flatten(b)
    assert mine[1] == theirs[1]
    for x, y in zip(mine[0], theirs[0], strict=True):
        if isinstance(y, torch.Tensor):
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            assert torch.allclose(x, y, rtol=1e-9, atol=1e-12)
        else:
            assert x == y
            assert type(x) is type(y)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_takes_the_same_steps(name):
    model = model_with_ties()
    state = fl.setup(CASES[name].rule, model)
    eager, compiled = (model, state), fl.tree.clone((model, state))
    jitted = fl.jit(lambda m, s, g: fl.update(s, m, g), donate=(0, 1))
    for t in range(3):
        eager = fl.update(eager[1], eager[0], gradients(t))
        compiled = jitted(*compiled, gradients(t))
        require_close(compiled, eager)
        assert compiled[0]["w"] is compiled[0]["tied"][0]
    assert jitted.cache_info().traces <= 2  # the counter of what has no gradient parts from the others


@pytest.mark.parametrize("name", ["Adam", "Momentum", "ClipGlobalNorm", "Muon", "Scheduled"])
def test_other_rates_run_the_same_graph(name):
    model = {"w": randn((4, 3), 0), "b": randn((3,), 1)}
    grads = {"w": randn((4, 3), 2), "b": randn((3,), 3)}
    jitted = fl.jit(fl.update)
    for lr in (0.1, 0.01, 0.5):
        state = fl.setup(CASES[name].make(lr), model)
        require_close(jitted(state, model, grads), fl.update(state, model, grads))
    assert jitted.cache_info() == (3, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_parameters_of_other_dtypes_take_float32_s_step_rounded_once(dtype):
    model = {"w": randn((5, 3), 0, dtype)}
    state = fl.setup(fl.AdamW(1e-2), model)
    jitted = fl.jit(fl.update)
    eager = compiled = model, state
    for t in range(3):
        grads = {"w": randn((5, 3), t + 1, dtype)}
        eager, compiled = fl.update(eager[1], eager[0], grads), jitted(compiled[1], compiled[0], grads)
        assert compiled[0]["w"].dtype == dtype
        assert fl.tree.allclose(compiled, eager, rtol=2e-2 if dtype.itemsize == 2 else 1e-5)


def test_a_schedule_advances():
    model = {"w": torch.ones(2, dtype=D)}
    rule = fl.Scheduled(fl.Descent(), lr=fl.schedules.Step(1.0, 0.1, 2))
    state = fl.setup(rule, model)
    jitted = fl.jit(fl.update)
    seen = []
    for _ in range(4):
        new, state = jitted(state, model, {"w": torch.ones(2, dtype=D)})
        seen.append(1 - new["w"][0].item())
    assert seen == pytest.approx([1.0, 1.0, 0.1, 0.1])
    assert jitted.cache_info().traces == 1


def test_averaged_models():
    model = {"w": torch.ones(2, dtype=D)}
    state = fl.setup(fl.EMA(fl.Descent(0.5), decay=0.5), model)
    model, state = fl.jit(fl.update)(state, model, {"w": torch.ones(2, dtype=D)})
    assert fl.tree.allclose(fl.jit(fl.averaged)(state, model), fl.averaged(state, model))
