"""Flattening and rebuilding a model, a node, against the target of 1.5 µs."""

from __future__ import annotations

from collections.abc import Iterator

import fluxlike as fl
from benchmarks.harness import Row, in_turns
from fluxlike.trees.structure import flatten

TARGET = 1.5e-6  # seconds a node


def rows() -> Iterator[Row]:
    """A row for each direction; the peer is the target itself, so the ratio must be at most 1."""
    layers = [fl.Chain(fl.Conv((3, 3), 8, 8), fl.BatchNorm(8, fl.relu)) for _ in range(50)]
    model = fl.Chain(*layers, fl.Dense(8, 10))
    nodes = 2 + 50 * 4 + 1  # each Chain holds a tuple
    leaves, treedef = flatten(model)
    down, up = in_turns(lambda: flatten(model), lambda: treedef.unflatten(leaves), budget=2.0)
    yield Row("flatten, a node", "1.5 µs", 1, down / nodes, TARGET, 1.0)
    yield Row("unflatten, a node", "1.5 µs", 1, up / nodes, TARGET, 1.0)
