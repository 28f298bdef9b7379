"""`jit`: when a function is traced anew, and the warning where one value does that again and again."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import fluxlike as fl

RECORDED_ALONE = True

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def agree(a, b):
    """Whether two trees have one structure, and equal numbers to rounding in float64."""
    return fl.tree.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_learning_rates_that_part_make_one_new_trace_and_right_numbers():
    jitted = fl.jit(fl.update)
    model = {"a": randn(2), "b": randn(2, seed=1)}
    grads = {"a": torch.ones(2, dtype=D), "b": torch.ones(2, dtype=D)}
    state = fl.setup(fl.Momentum(0.1, momentum=0.0), model)
    jitted(state, model, grads)
    for lr in (0.25, 3.0):
        parted = fl.adjust(state, lr, where=lambda s: s["b"])
        new, _ = jitted(parted, model, grads)
        assert torch.allclose(new["a"], model["a"] - 0.1)
        assert torch.allclose(new["b"], model["b"] - lr)
    assert jitted.cache_info().traces == 2
    new, _ = jitted(fl.adjust(state, 7.0), model, grads)  # together again
    assert torch.allclose(new["b"], model["b"] - 7.0)


def test_a_float_argument_and_a_key_run_the_same_graph():
    f = fl.jit(lambda x, scale, key: (x * scale, key.fold_in(3)))
    for i in range(3):
        out, key = f(torch.ones(2), float(i), fl.Key(i))
        assert torch.equal(out, torch.full((2,), float(i)))
        assert torch.equal(key.data, fl.Key(i).fold_in(3).data)
    assert f.cache_info() == (3, 1)


@dataclass(frozen=True)
class Config:
    n: int


@fl.functor(scalars=("lr",))
class Step:
    def __init__(self, lr, other):
        self.lr, self.other = lr, other


CHANGES: dict[str, tuple[Any, Any]] = {
    "shape": (torch.ones(2), torch.ones(3)),
    "ndim": (torch.ones(2), torch.ones(2, 1)),
    "dtype": (torch.ones(2), torch.ones(2, dtype=D)),
    "strides": (torch.ones(2, 3), torch.ones(3, 2).T),
    "structure": ([torch.ones(2)], (torch.ones(2),)),
    "a key of a dict": ({"a": torch.ones(2)}, {"b": torch.ones(2)}),
    "int": (1, 2),
    "string": ("a", "b"),
    "function": (torch.sin, torch.cos),
    "int for bool": (1, True),
    "int for float": (1, 1.0),
    "None": (None, 1.0),
    "nested constant": ([1, {"a": 2}], [1, {"a": 3}]),
    "object": (Config(1), Config(2)),
    "array for tensor": (torch.ones(2), torch.ones(2).numpy()),
    "parameter": (torch.ones(2), torch.nn.Parameter(torch.ones(2))),
    "float of a class": (Step(0.1, 0.2), Step(0.1, 0.3)),
    "class": (Step(0.1, 0.2), {"lr": 0.1}),
    "pin": (fl.BatchNorm(2), fl.trainmode(fl.BatchNorm(2))),
    "which pin": (fl.testmode(fl.BatchNorm(2)), fl.trainmode(fl.BatchNorm(2))),
    "complex number": (1j, 2j),
    "slice": (slice(1, 2), slice(1, 3)),
    "dtype as a value": (torch.float32, D),
}


@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES)
def test_exactly_one_new_trace_when_this_changes(before, after):
    f = fl.jit(lambda tree: fl.fmap(lambda x: x, tree))
    f(before)
    f(before)
    assert f.cache_info().traces == 1
    f(after)
    f(after)
    f(before)
    assert f.cache_info().traces == 2


def test_ties_make_a_trace_of_their_own():
    f = fl.jit(lambda a, b: fl.gradient(lambda t: (t[0] * t[1]).sum(), (a, b)))
    x, y = randn(2), randn(2, seed=1)
    for _ in range(2):
        a, b = f(x, y)
        assert torch.equal(a, y)
        assert torch.equal(b, x)
        a, b = f(x, x)
        assert torch.equal(a, 2 * x)
        assert b is None
    assert f.cache_info().traces == 2


def test_which_places_are_tied_makes_a_trace_of_its_own():
    f = fl.jit(lambda *xs: fl.gradient(lambda t: (t[0] * t[1] * t[2]).sum(), xs))
    x, y = randn(2), randn(2, seed=1)
    for args in ((x, x, y), (x, y, x), (x, x, y), (y, x, x)):
        found, expected = f(*args), fl.gradient(lambda t: (t[0] * t[1] * t[2]).sum(), args)
        assert [g is None for g in found] == [g is None for g in expected]
        assert agree(found, expected)
    assert f.cache_info().traces == 3


def test_the_mode_makes_a_trace_of_its_own():
    norm = fl.f64(fl.BatchNorm(2))
    f = fl.jit(lambda m, x: m(x))
    x = randn(4, 2)
    for _ in range(2):
        assert torch.allclose(f(norm, x), norm(x))
        with fl.mode("train"):
            assert torch.allclose(f(norm, x), norm(x))
    assert f.cache_info().traces == 2


def test_autocast_makes_a_trace_of_its_own():
    f = fl.jit(lambda a: a @ a)
    x = torch.eye(4)
    for _ in range(2):
        assert f(x).dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert f(x).dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.float16):
            assert f(x).dtype == torch.float16
    assert f.cache_info().traces == 3


def test_the_default_dtype_and_device_make_traces_of_their_own():
    f = fl.jit(lambda x: torch.zeros(2))
    assert f(torch.ones(1)).dtype == torch.float32
    torch.set_default_dtype(D)
    try:
        assert f(torch.ones(1)).dtype == D
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert f(torch.ones(1, device="cpu")).device.type == "meta"
    assert f(torch.ones(1)).device.type == "cpu"
    assert f.cache_info().traces == 3


def test_a_first_call_under_another_default_device_leaves_scalars_where_they_were():
    f = fl.jit(lambda x, s: x * s)
    x = torch.ones(2)
    with torch.device("meta"):
        assert torch.equal(f(x, 2.0), torch.full((2,), 2.0, device="cpu"))
        assert torch.equal(f(x, 3.0), torch.full((2,), 3.0, device="cpu"))


# Warnings


@fl.functor
class Power:
    def __init__(self, n):
        self.n = n

    def __call__(self, x):
        return x**self.n


def test_the_eighth_trace_by_one_changing_value_warns_and_says_where():
    f = fl.jit(lambda model, x: model(x))
    x = torch.ones(2)
    for n in range(2, 9):
        f({"power": Power(n)}["power"], x)
    with pytest.warns(
        UserWarning, match=r"traced 8 times because the argument model\.n changed, at last from 8 to 9"
    ) as seen:
        f(Power(9), x)
    assert "torch.tensor" in str(seen[0].message)
    assert seen[0].filename == __file__
    f(Power(10), x)  # once is enough
    assert f.cache_info().traces == 9


@pytest.mark.parametrize(
    ("values", "path", "hint"),
    [
        ([torch.ones(n) for n in range(2, 10)], "x", "dynamic=True"),
        ([float(n) for n in range(8)], "x.other", "scalars="),
        ([lambda: n for n in range(8)], "x", "made anew"),
        (list("abcdefgh"), "x", "few different"),
    ],
)
def test_the_warning_says_what_to_do(values, path, hint):
    f = fl.jit(lambda x: 0)
    with pytest.warns(UserWarning, match=f"the argument {path} changed.*") as seen:
        _ = [f(Step(0.1, value) if path == "x.other" else value) for value in values]
    assert hint in str(seen[0].message)


def test_eight_different_structures_do_not_warn():
    f = fl.jit(lambda xs: len(xs))
    for n in range(9):
        assert f([torch.ones(1)] * n) == n


def test_a_static_argument_that_changes_is_named_in_the_warning():
    f = fl.jit(lambda x, n: x * n, static="n")
    with pytest.warns(UserWarning, match="the static argument 'n' changed") as seen:
        _ = [f(torch.ones(2), n=n) for n in range(8)]
    assert "leave it out of static=" in str(seen[0].message)


DOUBLES: dict[str, tuple[Any, Any]] = {
    "zero": (0.0, -0.0),
    "zero in a list": ([1, 0.0], [1, -0.0]),
    "complex zero": (0j, -0j),
    "zero of numpy": (np.float32(0.0), np.float32(-0.0)),
    "bool for int": (1, True),
    "int for float in a tuple": ((1,), (1.0,)),
    "frozenset": (frozenset({2}), frozenset({2.0})),
    "set of bools": ({1}, {True}),
    "nested": (frozenset({("a", 0.0)}), frozenset({("a", -0.0)})),
}


@pytest.mark.parametrize(("before", "after"), DOUBLES.values(), ids=DOUBLES)
@pytest.mark.parametrize("static", [True, False], ids=["static", "constant"])
def test_equal_values_that_are_not_the_same_make_traces_of_their_own(before, after, static):
    f = fl.jit(lambda x, layer: x + 1, static=1 if static else ())
    wrap = (lambda c: c) if static else (lambda c: Step(0.1, c))
    for value in (before, after, before, after):
        f(torch.ones(1), wrap(value))
    assert f.cache_info().traces == 2


@pytest.mark.parametrize("make", [float, lambda x: frozenset({float(x)})], ids=["alone", "in a set"])
def test_every_nan_is_the_same_static_value(make):
    f = fl.jit(lambda x, c: x + 1, static=1)
    for _ in range(3):
        f(torch.ones(1), make("nan"))
    assert f.cache_info().traces == 1


def test_a_zero_keeps_its_sign_in_a_compiled_function():
    def divided(x, c):
        return x / torch.full_like(x, c)

    f = fl.jit(divided, static=1)
    for zero in (0.0, -0.0, 0.0):
        assert f(torch.ones(1), zero).item() == divided(torch.ones(1), zero).item()


def test_scalars_that_were_one_part_where_they_are_zeros_of_two_signs():
    @fl.functor(scalars=("lr",))
    class Rate:
        def __init__(self, lr):
            self.lr = lr

    f = fl.jit(lambda rates, x: [1 / (x * r.lr) for r in rates])
    for pair, wanted in (((0.5, 0.5), [2, 2]), ((0.0, -0.0), [float("inf"), -float("inf")])):
        assert [t.item() for t in f([Rate(lr) for lr in pair], torch.ones(()))] == wanted
