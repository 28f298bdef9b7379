"""A float that is an input of a compiled function promotes tensors as a float does."""

import functools

import pytest
import torch

import fluxlike as fl

OPERATIONS = {
    "a 0-d float32": lambda x, a, b: x.sum() * a + b * a,
    "a vector": lambda x, a, b: x * a - b,
    "whole numbers": lambda x, a, b: (x > 0).long().sum() * a,
    "a complex number": lambda x, a, b: torch.complex(x, x).sum() * a,
    "where": lambda x, a, b: torch.where(x.sum() > a, a, b) * x.mean(),
    "a stack": lambda x, a, b: torch.stack([x.sum(), x.sum() * a]),
    "a tensor made of it": lambda x, a, b: torch.maximum(x.sum(), torch.tensor(a)),
    "a comparison": lambda x, a, b: x.sum() > a,
    "a power": lambda x, a, b: a ** x.sum(),
    "a half": lambda x, a, b: x.half().sum() * a,
    "a half and a large number": lambda x, a, b: x.half() * 0.01 * (a * 1e5),
    "a half and a small number": lambda x, a, b: x.half().sum() * 8000 * (a * 1e-8),
    "a bfloat16 beside a number of more digits": lambda x, a, b: x.bfloat16()[0] * (a + 1.003),
    "a weight": lambda x, a, b: torch.lerp(x, x + 1, a),
    "a list of numbers": lambda x, a, b: torch.tensor([[a, 2.0], [b, 1.0]]) @ x[:2],
    "a tensor by keyword": lambda x, a, b: torch.as_tensor(data=a, dtype=torch.float32) * x,
    "mapped": lambda x, a, b: fl.vmap(lambda t: t["x"] * t["a"])({"x": x, "a": a}),
}


@functools.cache
def all_in_one(engine):
    return fl.jit(lambda x, a, b: {name: f(x, a, b) for name, f in OPERATIONS.items()})


@pytest.fixture
def everything(engine):
    """All operations as one graph, which is built once for each engine."""
    return all_in_one(engine)


@pytest.mark.parametrize("name", OPERATIONS)
def test_results_have_the_dtype_and_value_of_eager(name, everything):
    x = torch.tensor([1.0, 2.0, 4.0])
    for a, b in ((0.5, 0.25), (1.5, 3.0)):
        found, wanted = everything(x, a, b)[name], OPERATIONS[name](x, a, b)
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted)


def test_other_floats_do_not_retrace(everything):
    x = torch.tensor([1.0, 2.0, 4.0])
    for a, b in ((0.125, 0.0625), (0.5, -1.0)):
        everything(x, a, b)
    assert everything.cache_info().traces == 1


def test_numbers_among_themselves_keep_float64():
    f = fl.jit(lambda a, b: (a + b) * 2 - a)
    found = f(0.1, 0.2)
    assert found.dtype == torch.float64
    assert found.item() == (0.1 + 0.2) * 2 - 0.1
