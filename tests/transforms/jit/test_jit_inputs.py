"""`jit`: what may be an argument: arrays, constants, floats."""

import argparse
import functools
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fluxlike as fl

RECORDED_ALONE = True

ARRAYS = {
    "plain": np.arange(6.0).reshape(2, 3),
    "read-only": np.broadcast_to(np.arange(3.0), (2, 3)),
    "negative strides": np.arange(6.0)[::-1],
    "strided": np.arange(12.0).reshape(3, 4)[:, ::2],
    "big-endian": np.arange(3).astype(">i4"),
    "int": np.arange(3),
    "uint16": np.arange(3, dtype=np.uint16),
    "float16": np.arange(3, dtype=np.float16),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "0-d": np.array(3.0),
    "empty": np.zeros((0, 2)),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_an_array_is_an_input_and_a_tensor_inside(array):
    f = fl.jit(lambda x: (x, torch.where(x != 0, x, x) if x.is_complex() else x.clone()))
    for values in (array, array.copy()[::-1][::-1] if array.ndim else array.copy()):
        handed_on, out = f(values)
        assert handed_on is values
        assert torch.equal(out, torch.from_numpy(array.astype(array.dtype.newbyteorder("="))))


def test_other_values_of_an_array_are_seen():
    f = fl.jit(lambda x: x + 1)
    x = np.zeros(2)
    assert f(x).tolist() == [1, 1]
    x += 5
    assert f(x).tolist() == [6, 6]
    assert f.cache_info().traces == 1


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([object()]), np.longdouble(1) * np.ones(1)])
def test_an_array_that_torch_has_no_dtype_for_is_a_constant(value):
    f = fl.jit(lambda x, y: (x, y + 1))
    out, _ = f(value, torch.ones(1))
    assert out is value
    f(value, torch.zeros(1))
    assert f.cache_info().traces == 1


@pytest.mark.parametrize(
    "constant",
    [
        None,
        "text",
        b"bytes",
        3,
        True,
        2j,
        torch.relu,
        lambda x: x,
        torch.float32,
        Ellipsis,
        (),
        {},
        slice(1, 2),
    ],
)
def test_a_constant_is_what_it_is_inside_and_comes_back(constant):
    seen = []
    f = fl.jit(lambda c, x: (seen.append(c), c, x + 1)[1:])
    out, _ = f(constant, torch.ones(1))
    f(constant, torch.ones(1))
    assert seen == [constant]
    assert out == constant
    assert type(out) is type(constant)


def test_assigned_values_and_keys_are_inputs():
    f = fl.jit(lambda a, key: (fl.Assigned(a.value * 2), a.value, a, key.split(2)))
    for i in range(2):
        given = fl.Assigned(torch.full((2,), float(i)))
        doubled, value, same, keys = f(given, fl.Key(i))
        assert torch.equal(doubled.value, 2 * given.value)
        assert value is given.value
        assert same.value is given.value
        assert torch.equal(keys.data, fl.Key(i).split(2).data)
    assert f.cache_info().traces == 1


def test_sparse_tensors_are_constants():
    sparse = torch.eye(2).to_sparse()
    f = fl.jit(lambda s, x: (s, x + 1))
    assert f(sparse, torch.ones(1))[0] is sparse
    f(sparse, torch.zeros(1))
    assert f.cache_info().traces == 1


def test_lazily_conjugated_and_negated_tensors():
    f = fl.jit(lambda x: x * 2)
    z = torch.tensor([1 + 2j, 3 - 1j])
    for x in (z, z.conj(), z.conj().imag, z.imag):
        assert torch.equal(f(x), x * 2)


def test_an_object_of_an_unregistered_class_with_tensors_is_refused():
    class Holder:
        def __init__(self):
            self.w = torch.ones(2)

    with pytest.raises(TypeError, match="Holder, which is not registered and holds a tensor"):
        fl.jit(lambda h: h.w)(Holder())


# Floats


@fl.functor(scalars=("rate", "pair"))
class Scaled:
    def __init__(self, rate, pair, fixed):
        self.rate, self.pair, self.fixed = rate, pair, fixed

    def __call__(self, x):
        return x * self.rate + self.pair[0] - self.pair[1]


def test_declared_floats_are_inputs_and_others_are_static():
    f = fl.jit(lambda m, x: m(x))
    x = torch.ones(2, dtype=torch.float64)
    for rate, pair in ((2.0, (0.5, 0.25)), (3.0, (0.5, 0.5)), (0.5, (0.25, 0.5))):
        model = Scaled(rate, pair, 0.1)
        assert torch.allclose(f(model, x), model(x))
    assert f.cache_info().traces <= 2  # equal floats of one name were one input
    f(Scaled(2.0, (0.5, 0.25), 0.2), x)
    assert f.cache_info().traces <= 3


@dataclass(frozen=True)
class Rule:
    """A user's own rule."""

    lr: float

    def init(self, param):
        return ()

    def apply(self, state, param, grad):
        return (), grad * self.lr


def test_hyperparameters_of_a_users_own_rule_are_inputs():
    model = {"w": torch.ones(2)}
    f = fl.jit(fl.update)
    for lr in (0.1, 0.5, 2.0):
        new, _ = f(fl.setup(Rule(lr), model), model, {"w": torch.ones(2)})
        assert torch.allclose(new["w"], torch.full((2,), 1 - lr))
    assert f.cache_info().traces == 1


def test_a_float_that_is_handed_on_is_a_float_and_a_computed_one_a_tensor():
    f = fl.jit(lambda a, b: (a, a * b, [b]))
    for a, b in ((2.0, 3.0), (0.5, -1.0)):
        handed_on, product, [other] = f(a, b)
        assert (type(handed_on), handed_on) == (float, a)
        assert (type(other), other) == (float, b)
        assert torch.equal(product, torch.tensor(a * b, dtype=torch.float64))
    assert f.cache_info().traces == 1


def test_a_scalar_of_a_rule_that_is_handed_on_is_a_float():
    model = {"w": torch.ones(2)}
    _, state = fl.jit(fl.update)(fl.setup(fl.Adam(0.25), model), model, {"w": torch.ones(2)})
    assert state["w"].rule == fl.Adam(0.25)
    assert type(state["w"].rule.lr) is float


@pytest.mark.parametrize("value", [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 5e-324, 1e308])
def test_any_float_is_seen(value):
    f = fl.jit(lambda x, s: (torch.ones(1, dtype=torch.float64) * s, 1 / s))
    f(torch.ones(1), 1.5)
    for before in (0.0, -0.0):
        f(torch.ones(1), before)
        out, inverse = f(torch.ones(1), value)
        assert out.item().hex() == value.hex()
        if value == 0:
            assert torch.equal(inverse, 1 / torch.tensor(value, dtype=torch.float64))
    assert f.cache_info().traces == 1


def test_numbers_of_numpy_are_floats_where_they_are():
    f = fl.jit(lambda x, s: x * s)
    for s in np.linspace(0, 1, 3):
        assert torch.allclose(
            f(torch.ones(2, dtype=torch.float64), s), torch.full((2,), float(s), dtype=torch.float64)
        )
    f(torch.ones(2, dtype=torch.float64), 0.5)
    assert f.cache_info().traces == 1


def test_a_float_does_not_widen_a_tensor():
    f = fl.jit(lambda x, s: x * s + s)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert f(torch.ones(2, dtype=dtype), 2.0).dtype == dtype


def test_ints_and_bools_are_static():
    f = fl.jit(lambda x, n, flag: x.repeat(n) if flag else x)
    x = torch.ones(2)
    assert f(x, 3, True).shape == (6,)
    assert f(x, 2, True).shape == (4,)
    assert f(x, 2, False).shape == (2,)
    assert f.cache_info().traces == 3


class Settings:
    """Equal to all of its class, whatever its attributes."""

    def __init__(self, rate):
        self.rates, self.inner, self.me = [1.0, {"rate": rate}], SimpleNamespace(rate=rate), self

    def __eq__(self, other):
        return type(other) is Settings

    __hash__ = None


def changed_deep_inside(settings):
    settings.inner.rate = settings.rates[1]["rate"] = 5.0


@pytest.mark.parametrize("static", [(), ("settings",)], ids=["an argument", "a static argument"])
@pytest.mark.parametrize("kind", [SimpleNamespace, argparse.Namespace, Settings])
def test_an_object_whose_attributes_change_is_another_value(kind, static):
    f = fl.jit(lambda x, settings: x * (settings.rates[1]["rate"] + settings.inner.rate), static=static)
    made = Settings(2.0)
    settings = made if kind is Settings else kind(**{k: v for k, v in vars(made).items() if k != "me"})
    x = torch.ones(1)
    assert f(x, settings=settings).item() == 4.0
    assert f(x, settings=settings).item() == 4.0
    changed_deep_inside(settings)
    assert f(x, settings=settings).item() == 10.0
    assert f.cache_info().traces == 2


def test_an_object_in_a_model_whose_attributes_change_is_another_value():
    @fl.functor
    class Scaled:
        def __init__(self):
            self.settings, self.weight = Settings(2.0), torch.ones(1)

        def __call__(self, x):
            return self.settings.inner.rate * self.weight * x

    f, model = fl.jit(lambda model, x: model(x)), Scaled()
    assert f(model, torch.ones(1)).item() == 2.0
    changed_deep_inside(model.settings)
    assert f(model, torch.ones(1)).item() == 5.0


def test_an_object_that_is_only_used_makes_no_other_trace():
    class Counting:
        limit = 3  # of the class

        def __call__(self, x):
            return self.half(x)

        @functools.cached_property
        def factor(self):
            return 0.5

        def half(self, x):
            return x * self.factor

    f, counting = fl.jit(lambda x, g: g(x)), Counting()
    _ = counting.factor
    assert [f(torch.ones(1), counting).item() for _ in range(3)] == [0.5] * 3
    assert f.cache_info().traces == 1


def test_what_is_tied_after_a_trace_of_what_was_not_has_one_gradient():
    f = fl.jit(lambda m: fl.gradient(lambda m: (m["a"] * m["b"]).sum(), m))
    one, other = torch.tensor([2.0]), torch.tensor([3.0])
    assert [g.item() for g in f({"a": one, "b": other}).values()] == [3, 2]
    tied = f({"a": one, "b": one})
    assert tied["a"].item() == 4
    assert tied["b"] is None
