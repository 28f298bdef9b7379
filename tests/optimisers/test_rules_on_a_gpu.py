"""The table of rules on a GPU: the numbers of the CPU, pure and donated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rule_cases import CASES, grads_of, model_of
from torch.testing import assert_close

import fluxlike as fl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def steps(rule: Any, device: str, donate: bool) -> Any:
    model = fl.to_device(model_of(), device)
    state = fl.setup(rule, model)
    for t in range(6):
        grads = fl.to_device(grads_of(fl.cpu(model), t), device)
        model, state = fl.update(state, model, grads, donate=donate)
    return fl.cpu(model)


@pytest.mark.parametrize("donate", [False, True], ids=["", "donated"])
@pytest.mark.parametrize("name", CASES)
def test_a_rule_moves_there_as_on_the_cpu(name: str, donate: bool) -> None:
    rule = CASES[name].rule
    loose = {"rtol": 2e-2, "atol": 2e-2} if not CASES[name].smooth else {"rtol": 1e-9, "atol": 1e-9}
    assert_close(steps(rule, "cuda", donate), steps(rule, "cpu", donate), **loose)


@pytest.mark.parametrize("donate", [False, True], ids=["", "donated"])
def test_large_leaves_move_there_as_on_the_cpu(donate: bool) -> None:
    for rule in (fl.Adam(), fl.NAdam(), fl.OptimiserChain(fl.AccumGrad(2), fl.AdamW())):
        results = []
        for device in ("cpu", "cuda"):
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(1_100_001, generator=generator, dtype=torch.float64)
            model = fl.to_device({"w": x, "b": x[:3].clone()}, device)
            state = fl.setup(rule, model)
            for _ in range(4):
                model, state = fl.update(state, model, fl.tree.clone(model), donate=donate)
            results.append(fl.cpu(model))
        assert_close(*results, rtol=1e-9, atol=1e-9)
