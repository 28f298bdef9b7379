"""`jit`: arguments by place and name, static ones, and how functions, methods and layers are wrapped."""

import functools
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
import torch

import fluxlike as fl

RECORDED_ALONE = True

# Arguments


def power(x, n=2, *, scale=1.0):
    return x**n * scale


def test_defaults_and_keywords_are_as_in_a_call():
    f = fl.jit(power)
    x = torch.full((2,), 3.0)
    assert f(x).tolist() == [9, 9]
    assert f(x, 3).tolist() == [27, 27]
    assert f(x, n=3).tolist() == [27, 27]
    assert f(x=x, scale=2.0).tolist() == [18, 18]
    assert f(x, scale=3.0, n=1).tolist() == [9, 9]
    with pytest.raises(TypeError, match="unexpected keyword"):
        f(x, m=1)
    with pytest.raises(TypeError, match="missing"):
        f()


def test_more_arguments_than_names():
    f = fl.jit(lambda *xs, **named: sum(xs) + sum(named.values()))
    assert f(torch.ones(1), torch.ones(1), a=torch.ones(1), b=torch.ones(1)).tolist() == [4]


class Pair(NamedTuple):
    a: object
    b: object


def test_trees_of_every_kind_keep_their_nodes():
    tree = {"z": Pair(torch.ones(1), [torch.zeros(1), ()]), "a": OrderedDict(y=1, b=torch.ones(2)), "n": None}
    out = fl.jit(lambda t: fl.fmap(lambda x: x + 1, t))(tree)
    assert list(out) == ["z", "a", "n"]
    assert type(out["z"]) is Pair
    assert type(out["a"]) is OrderedDict
    assert list(out["a"]) == ["y", "b"]
    assert out["z"].b[0].tolist() == [1]


@pytest.mark.parametrize("static", [1, "n", -1, ("n",), [1]])
def test_a_static_argument_is_compared_by_value(static):
    f = fl.jit(lambda x, n: x * n, static=static)
    x = torch.ones(2)
    for n in (2.5, 2.5, 3.5, 2.5):
        assert f(x, n).tolist() == [n, n]
    assert f.cache_info().traces == 2
    assert f(x, n=7.0).tolist() == [7, 7]


def test_a_negative_number_counts_from_the_last_argument_of_the_function():
    f = fl.jit(power, static=-1)  # n, by place the last one
    f(torch.ones(1))
    f(torch.zeros(1))
    assert f.cache_info().traces == 1
    assert fl.jit(lambda *xs: xs[0] * xs[-1], static=-1)(torch.ones(1), 2, 3.0).tolist() == [3]


def test_a_static_argument_that_is_not_given_has_its_default():
    f = fl.jit(power, static="n")
    assert f(torch.full((1,), 3.0)).tolist() == [9]


def test_a_static_list_that_is_changed_later_is_another_value():
    f = fl.jit(lambda x, sizes: x * len(sizes), static="sizes")
    sizes = [1]
    assert f(torch.ones(1), sizes).tolist() == [1]
    sizes.append(2)
    assert f(torch.ones(1), sizes).tolist() == [2]


@pytest.mark.parametrize(
    ("first", "second"), [(1, True), ([1], [True]), ([1], (1,)), (1, 1.0), ({"a": 1}, {"b": 1})]
)
def test_static_values_of_other_types_are_other_values(first, second):
    f = fl.jit(lambda x, s: (x + 1, s), static=1)
    for value in (first, second, first):
        out = f(torch.ones(1), value)[1]
        assert out == value
        assert type(out) is type(value)
    assert f.cache_info().traces == 2


def test_a_static_argument_beside_a_donated_tree():
    f = fl.jit(lambda sizes, x, y: (x[0] + len(sizes), y), static="sizes", donate="x")
    x, y = torch.ones(2), torch.ones(2)
    out, same = f([1, 2, 3], [x], y)
    assert out.tolist() == [4, 4]
    assert same is y
    assert same.tolist() == [1, 1]
    with pytest.raises(RuntimeError, match="donated"):
        x + 1


@pytest.mark.parametrize("value", [torch.ones(1), {"w": torch.ones(1)}, np.ones(1)])
def test_a_static_tensor_is_refused(value):
    with pytest.raises(TypeError, match=r"the static argument 'x' holds a (Tensor|ndarray).*leave it out"):
        fl.jit(lambda x: x, static="x")(x=value)


@pytest.mark.parametrize("option", ["static", "donate"])
@pytest.mark.parametrize("name", ["lr", 2, -3])
def test_a_name_that_is_no_argument_is_refused(option, name):
    with pytest.raises(
        ValueError, match=rf"{option}={name!r} names no argument of the function; it has \(x, y\)"
    ):
        fl.jit(lambda x, y: x, **{option: name})


@pytest.mark.parametrize("option", ["static", "donate"])
@pytest.mark.parametrize("name", [True, 1.0, [None]])
def test_what_names_no_argument_at_all_is_refused(option, name):
    with pytest.raises(TypeError):
        fl.jit(lambda x, y: x, **{option: name})


def test_an_argument_can_t_be_static_and_donated():
    with pytest.raises(ValueError, match="donated and static"):
        fl.jit(lambda x: x, static="x", donate=0)


# Functions


def test_a_decorator_with_and_without_options():
    @fl.jit
    def plain(x):
        """Says what it does."""
        return x + 1

    @fl.jit(static="n")
    def chosen(x, n):
        return x + n

    assert plain(torch.ones(1)).tolist() == [2]
    assert chosen(torch.ones(1), 2).tolist() == [3]
    assert plain.__name__ == "plain"
    assert plain.__doc__ == "Says what it does."
    assert plain.__wrapped__(torch.ones(1)).tolist() == [2]
    assert repr(plain).startswith("jit(")
    assert repr(plain).endswith("plain)")


@pytest.mark.parametrize("f", [3, torch.ones(1), None, "f"])
def test_what_is_no_function_is_refused(f):
    if f is None:
        assert callable(fl.jit(f))
        return
    with pytest.raises(TypeError, match="jit takes a function, found"):
        fl.jit(f)


def test_the_result_of_a_call_in_the_place_of_the_function_is_refused():
    with pytest.raises(TypeError, match="write jit"):
        fl.jit(power(torch.ones(1)))


@fl.functor
class Counter:
    def __init__(self):
        self.w = torch.full((2,), 2.0)

    @fl.jit
    def scaled(self, x):
        return x * self.w

    @fl.jit(static="n")
    def __call__(self, x, n=1):
        return x * self.w + n


def test_a_method_is_compiled_once_for_all_objects():
    a, b = Counter(), Counter()
    b.w = torch.full((2,), 5.0)
    x = torch.ones(2)
    assert a.scaled(x).tolist() == [2, 2]
    assert b.scaled(x).tolist() == [5, 5]
    assert Counter.scaled.cache_info().traces == 1
    assert a(x, n=3).tolist() == [5, 5]
    assert b(x).tolist() == [6, 6]
    grads = fl.gradient(lambda m: m.scaled(x).sum(), a)
    assert grads.w.tolist() == [1, 1]


def test_a_layer_is_an_input_whose_parameters_are_read_at_each_call():
    model = fl.Dense(3, 2)
    f = fl.jit(model)
    x = torch.ones(1, 3)
    assert torch.allclose(f(x), model(x))
    model.bias = model.bias + 1
    assert torch.allclose(f(x), model(x))
    with torch.no_grad():
        model.weight.mul_(2)
    assert torch.allclose(f(x), model(x))
    assert f.cache_info().traces == 1


def test_the_call_of_a_class_takes_any_model_of_it():
    f = fl.jit(fl.Chain.__call__)
    x = torch.ones(1, 3)
    for _ in range(3):
        model = fl.Chain(fl.Dense(3, 2, fl.relu))
        assert torch.allclose(f(model, x), model(x))
    assert f.cache_info().traces == 1


def test_partial_functions_and_callable_objects():
    class Plus:
        def __init__(self, n):
            self.n = n

        def __call__(self, x):
            return x + self.n

    x = torch.ones(2)
    assert fl.jit(Plus(2))(x).tolist() == [3, 3]
    assert fl.jit(functools.partial(power, n=3))(2 * x).tolist() == [8, 8]
    assert fl.jit(torch.sin)(x).tolist() == x.sin().tolist()


def test_a_compiled_function_may_stand_in_a_model():
    shift = torch.ones(4)
    model = fl.Chain(fl.Dense(3, 4), fl.jit(lambda x: torch.tanh(x) + shift), fl.Dense(4, 1))
    x = torch.ones(2, 3)
    model(x)
    grads = fl.gradient(lambda m: m(x).sum(), model)
    assert grads.layers[1] is None
    state = fl.setup(fl.Descent(0.1), model)
    new, _ = fl.update(state, model, grads)
    assert new.layers[1] is model.layers[1]


def test_a_compiled_layer_in_a_tree_is_refused_rather_than_a_constant():
    model = fl.Chain(fl.jit(fl.Dense(3, 4)))
    with pytest.raises(TypeError, match="holds a tensor"):
        fl.gradient(lambda m: m(torch.ones(2, 3)).sum(), model)


def test_a_dict_that_rides_along_and_is_changed_later_is_another_value():
    @fl.functor(children=("w",))
    class Scaled:
        def __init__(self, k):
            self.w, self.config = torch.ones(1), {"k": k, "more": [1]}

        def __call__(self, x):
            return x * self.w * self.config["k"]

    f, x, model = fl.jit(lambda m, x: m(x)), torch.ones(1), Scaled(2.0)
    assert f(model, x).item() == 2
    model.config["k"] = 9.0
    assert [f(m, x).item() for m in (model, Scaled(9.0), Scaled(2.0))] == [9, 9, 2]
    assert f.cache_info().traces == 2


def test_a_static_set_that_is_changed_later_is_another_value():
    f, x, numbers = fl.jit(lambda x, s: x * sum(s), static=1), torch.ones(1), {1}
    assert f(x, numbers).item() == 1
    numbers.add(5)
    assert f(x, {1, 5}).item() == 6
    assert f(x, {1}).item() == 1


def test_a_constant_array_of_a_result_is_that_call_s_own():
    f, x = fl.jit(lambda x: (x + 1, np.zeros(2))), torch.ones(1)
    f(x)[1][:] = 7
    assert f(x)[1].tolist() == [0, 0]
