"""Autocast of whatever device the machine has: optimisers leave it, `jit` tells its traces apart by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import fluxlike as fl
from fluxlike._private.compiler import build
from fluxlike.scope import autocast


@pytest.fixture(params=["cpu", "cuda", "xpu", "mps"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The type of a device under autocast, on a machine whose accelerator it is."""
    accelerator = None if request.param == "cpu" else torch.device(request.param)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *a: accelerator)
    autocast.device_types.cache_clear()
    torch.set_autocast_enabled(request.param, True)
    torch.set_autocast_dtype(request.param, torch.float16)
    yield request.param
    torch.set_autocast_enabled(request.param, False)
    torch.set_autocast_dtype(request.param, torch.bfloat16 if request.param == "cpu" else torch.float16)
    autocast.device_types.cache_clear()


@fl.functor
@dataclass(frozen=True)
class Asking:
    """A rule that notes whether a device is under autocast."""

    device: str
    found: Any

    def init(self, param: Tensor, /) -> None:
        return None

    def apply(self, state: None, param: Tensor, grad: Tensor, /) -> tuple[None, Tensor]:
        self.found.add(torch.is_autocast_enabled(self.device))
        return None, grad


@pytest.mark.parametrize("step", [fl.update, fl.steps])
def test_a_rule_runs_outside_the_autocast_of_any_device(device: str, step: Any) -> None:
    found: set[bool] = set()
    model = torch.ones(2)
    state = fl.setup(Asking(device, found), model)
    step(state, model, torch.ones(2))
    assert found == {False}
    assert torch.is_autocast_enabled(device)


def test_what_tells_traces_apart_holds_the_dtype_of_any_device(device: str) -> None:
    assert torch.float16 in autocast.autocast_dtypes()
    with autocast.without_autocast():
        assert autocast.autocast_dtypes() == ()


def test_jit_traces_anew_under_the_autocast_of_any_device(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_can_compile", lambda: False)
    f = fl.jit(lambda x: x + 1)
    f(torch.ones(2))
    with autocast.without_autocast():
        f(torch.ones(2))
    assert f.cache_info().traces == 2
