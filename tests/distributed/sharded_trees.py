"""The trees and runs that tests of checkpoints save over a mesh, and how what comes back is compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import fluxlike as fl
from fluxlike import distributed as d
from fluxlike.distributed.checkpoints import load, save
from fluxlike.files.reader import TensorFile
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten

RULE = fl.AdamW(1e-2)


def perceptron():
    with fl.seeded(fl.Key(0)):
        model = fl.Chain(fl.Dense(5, 7, fl.tanh), fl.BatchNorm(7), fl.Dense(7, 6))
        return fl.f64(fl.Chain(model, fl.Dense(6, 6), fl.tanh, fl.Dense(6, 3)))


def rows():
    return torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss(model, x):
    return (model(x) ** 2).mean()


def steps(count, model, state, x):
    for _ in range(count):
        model, state = fl.update(state, model, fl.gradient(loss, model, x))
    return model, state


PLANS = {
    "replicated": d.replicate,
    "sharded": d.shard,
    "columns": lambda: d.by_path({r"weight$": columns}, rest=d.shard()),
    "large ones": lambda: d.shard(at_least=20),
}


def columns(path, x, mesh):
    return {0: x.ndim - 1}


def on_mesh(plan, model=perceptron):
    return fl.to_device(model(), d.mesh(), PLANS[plan]())


def run_of(model):
    return {"model": model, "state": fl.setup(RULE, model), "key": fl.Key(5), "epoch": 0, "lr": 0.0}


def same_bits(a, b):
    (x, one), (y, other) = flatten(a), flatten(b)
    return one == other and all(map(equal, x, y))


def equal(x, y):
    if isinstance(x, Assigned):
        return equal(x.value, y.value)
    if isinstance(x, torch.Tensor):
        if (x.dtype, x.shape) != (y.dtype, y.shape):
            return False
        x, y = (t.resolve_conj().contiguous().reshape(-1).view(torch.uint8) for t in (x, y))
        return torch.equal(x, y)
    if isinstance(x, (np.ndarray, np.generic)):
        return type(x) is type(y) and x.dtype == y.dtype and np.array_equal(x, y)
    return x is y if callable(x) else x == y and type(x) is type(y)


def saved(folder, plan):
    """A run over a mesh, saved after three steps; what it was then, and two steps later."""
    model = on_mesh(plan)
    x = d.shard_batch(rows(), d.mesh())
    model, state = steps(3, model, fl.setup(RULE, model), x)
    tree = {"model": model, "state": state, "key": fl.Key(7), "epoch": 3, "lr": 0.25}
    save(folder, tree)
    fl.save(folder / "gathered.safetensors", tree)
    return fl.cpu(tree), fl.cpu(steps(2, model, state, x))


def loaded(path, plan):
    """A run from a checkpoint, and two steps later; and whether all lies as the plan says."""
    like = run_of(on_mesh(plan))
    tree = load(path, like=like)
    lies = all(
        type(x) is type(y) and x.placements == y.placements
        for x, y in zip(fl.trainables(tree["model"]), fl.trainables(like["model"]), strict=True)
    )
    later = steps(2, tree["model"], tree["state"], d.shard_batch(rows(), d.mesh()))
    return fl.cpu(tree), fl.cpu(later), lies


def far(a, b):
    pairs = zip(fl.trainables(a), fl.trainables(b), strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs)


def everything():
    """A tree of every kind of leaf."""
    return {
        "wide": torch.randn(7, 3, dtype=torch.complex128),
        "conjugate": torch.randn(6, dtype=torch.complex64).conj(),
        "half": torch.randn(5, 4).bfloat16(),
        "eighth": torch.randn(6).to(torch.float8_e4m3fn),
        "truths": torch.tensor([True, False, True]),
        "whole": torch.arange(9).reshape(3, 3),
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(2.5),
        "turned": torch.randn(4, 6).T,
        "assigned": Assigned(torch.randn(3)),
        "array": np.arange(6.0).reshape(2, 3),
        "scalar": np.float32(1.5),
        "plain": (None, True, 3, 0.1, float("inf"), 1 + 2j, "text", b"bytes"),
        "function": torch.relu,
        "key": fl.Key(3),
        "layer": fl.BatchNorm(4),
    }


def blank(tree):
    zeros = fl.fmap(lambda x: torch.zeros_like(x.resolve_conj()), tree)
    assigned, array = Assigned(torch.zeros(3)), np.zeros((2, 3))
    plain = (None, False, 0, 0.0, 0.0, 0j, "", b"")
    return {**zeros, "assigned": assigned, "array": array, "scalar": np.float32(0), "plain": plain}


def kinds(folder):
    torch.manual_seed(0)
    tree = everything()
    save(folder, fl.to_device(tree, d.mesh(), d.shard()))
    plan = d.by_path({"eighth": d.replicate()}, rest=d.shard())  # gloo can't gather eight bits
    found = load(folder, like=fl.to_device(blank(everything()), d.mesh(), plan))
    return same_bits(fl.cpu(found), tree)


def error_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def files(folder):
    return sorted(p for p in Path(folder).iterdir() if p.suffix == ".safetensors" and p.name[16:17] == "-")


def stored(folder):
    names = []
    for path in files(folder):
        with TensorFile(path) as file:
            names += file.tensors
    return names
