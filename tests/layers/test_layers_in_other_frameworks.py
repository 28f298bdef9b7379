"""Every layer with a rule of Flux, Flax or Keras, over the table of layers."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from layer_row import Row

import fluxlike as fl
import fluxlike.layers.layouts  # which registers the rules
from fluxlike.placement.foreign import parameters

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("rows_*.py"))
ROWS: list[Row] = [row for name in MODULES for row in importlib.import_module(name).ROWS]
RULES = [(kind, name) for kind, name in parameters._rules if kind.__module__.startswith("fluxlike.")]


@pytest.mark.parametrize(("kind", "framework"), RULES, ids=[f"{k.__name__} in {f}" for k, f in RULES])
def test_every_layer_with_a_rule_comes_back_from_its_checkpoint_there(kind: type, framework: str) -> None:
    layers = [layer for row in ROWS if type(layer := row.layer()) is kind]
    assert layers, f"no row of the table is a {kind.__name__}"
    for layer in layers:
        there = fl.foreign_state(layer, framework)
        back = fl.load_foreign_state(fl.fmap(torch.zeros_like, layer), there, framework)
        assert fl.tree.allclose(fl.foreign_state(back, framework), there, rtol=0, atol=0)
