"""Arguments that users of JAX and Equinox write first, of functions: the error says what to write."""

import inspect
import re

import pytest
import torch

import fluxlike as fl
from fluxlike.advice import OF_FUNCTIONS

KEY = fl.Key(0)


def refused(call):
    with pytest.raises(TypeError) as error:
        call()
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return str(error.value)


def total(model, x):
    return model(x).sum()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: fl.vmap(total, in_axes=(0, None)), "vmap has no in_axes=: write in_dims=(0, None)"),
        (lambda: fl.jit(total, static_argnums=1), "jit has no static_argnums=: write static=1"),
        (lambda: fl.jit(donate_argnums=(0,)), "jit has no donate_argnums=: write donate=(0,)"),
        (
            lambda: fl.gradient(total, 1.0, has_aux=True),
            "gradient has no has_aux=: leave it out: fluxlike.withgradient returns all that f returns, of "
            "which the loss is the first",
        ),
        (
            lambda: fl.withgradient(total, 1.0, x=2.0),
            "withgradient has no x=; it takes argnums, wrt, key, and arguments of f by place",
        ),
        (
            lambda: fl.jit(total, statics=1),
            "jit has no statics= (did you mean static=?); it takes donate, static, dynamic",
        ),
    ],
)
def test_an_argument_of_a_transform_of_jax_says_what_to_write(call, text):
    assert refused(call) == text


@pytest.mark.parametrize("name", OF_FUNCTIONS)
def test_what_is_advised_for_an_argument_of_a_function_is_an_argument_of_it(name):
    ours = inspect.signature(getattr(fl, name)).parameters
    for word, advice in OF_FUNCTIONS[name].items():
        assert word not in ours
        assert set(re.findall(r"write (\w+)=", advice)) <= ours.keys()
        for path in re.findall(r"\bfluxlike\.(\w+)", advice):
            assert hasattr(fl, path)


def test_a_type_error_of_the_function_that_is_differentiated_is_raised_as_it_is():
    raised = TypeError("from inside")

    def loss(x):
        raise raised

    with pytest.raises(TypeError) as error:
        fl.gradient(loss, torch.ones(2))
    assert error.value is raised
    assert "missing 1 required positional argument: 'f'" in refused(fl.gradient)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fl.random.normal(KEY, (3,)),
        lambda: fl.random.normal((3,), KEY),
        lambda: fl.random.normal((3,), key=KEY),
        lambda: fl.random.uniform(KEY),
        lambda: fl.random.bernoulli(KEY, 0.5, (3,)),
        lambda: fl.random.integers(KEY, (3,), 0, 5),
        lambda: fl.random.permutation(KEY, 3),
    ],
)
@pytest.mark.parametrize("seeded", [False, True])
def test_a_draw_that_is_given_a_key_says_where_the_key_belongs(call, seeded):
    if seeded:
        with fl.seeded(KEY):
            text = refused(call)
    else:
        text = refused(call)
    assert text.endswith("takes no key: leave it out, and draw under `with fluxlike.seeded(key):`")


def test_another_mistake_in_a_draw_keeps_its_error():
    assert refused(lambda: fl.random.normal(3)) == "normal takes the shape as a tuple, found 3; write (3,)"
