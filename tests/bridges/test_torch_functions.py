"""`to_jax`: functions of torch under the transforms of JAX, beside the same functions written in JAX."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

import fluxlike as fl

jax.config.update("jax_platforms", "cpu")


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


draw = np.random.default_rng(0).normal
PARAMS = {"w": draw(size=(3, 2)), "b": draw(size=2), "unused": np.ones(1)}
X = draw(size=(4, 3))


def of_torch(p: Any, x: Any) -> Any:
    return torch.tanh(x @ p["w"] + p["b"])


def of_jax(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["w"] + p["b"])


bridged = fl.to_jax(of_torch)


def squared(f: Any) -> Any:
    return lambda p, x: (f(p, x) ** 2).sum()


def hessian(f: Any) -> Any:
    return lambda p, x: jax.jacrev(jax.grad(lambda b: squared(f)({**p, "b": b}, x)))(p["b"])


TRANSFORMS = {
    "value": lambda f: f,
    "grad": lambda f: jax.grad(squared(f)),
    "value_and_grad": lambda f: jax.value_and_grad(squared(f), argnums=(0, 1)),
    "vjp": lambda f: lambda p, x: jax.vjp(f, p, x)[1](jnp.ones((4, 2))),
    "vmap": lambda f: jax.vmap(f, (None, 0)),
    "vmap of both": lambda f: (
        lambda p, x: jax.vmap(f)(jax.tree.map(lambda a: jnp.stack([a, 2 * a]), p), jnp.stack([x, x]))
    ),
    "vmap over one member": lambda f: lambda p, x: jax.vmap(f, (None, 0))(p, x[:1]),
    "vmap along another axis": lambda f: lambda p, x: jax.vmap(f, (None, 1), 1)(p, x.T),
    "vmap twice": lambda f: (
        lambda p, x: jax.vmap(lambda b: jax.vmap(lambda r: f({**p, "b": b}, r))(x))(jnp.eye(2))
    ),
    "vmap over none": lambda f: lambda p, x: jax.vmap(f, (None, 0))(p, x[:0]),
    "gradients of each example": lambda f: jax.vmap(jax.grad(squared(f)), (None, 0)),
    "jacrev": lambda f: jax.jacrev(f),
    "second order": hessian,
    "checkpoint": lambda f: jax.grad(jax.checkpoint(squared(f))),
    "scan": lambda f: lambda p, x: jax.lax.scan(lambda c, r: (c + f(p, r), c), jnp.zeros(2), x),
}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_under_the_transforms_of_jax_it_is_the_function_written_in_jax(name, jit):
    transform = TRANSFORMS[name]
    wrap = jax.jit if jit else lambda f: f
    params, x = jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(X)
    found, expected = wrap(transform(bridged))(params, x), transform(of_jax)(params, x)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_gradients_of_every_order_agree_with_differences():
    args = jnp.asarray(PARAMS["w"]), jnp.asarray(PARAMS["b"]), jnp.asarray(X)
    check_grads(lambda w, b, x: bridged({"w": w, "b": b}, x), args, order=3, modes=["rev"])


def test_gradients_of_complex_numbers_are_those_of_jax():
    def loss(f: Any, sin: Any, absolute: Any) -> Any:
        return lambda z: jnp.real(f(z)[0]).sum() + f(z)[1].sum()

    z = jnp.asarray(draw(size=3) + 1j * draw(size=3))
    bridge = fl.to_jax(lambda z: (torch.sin(z), z.abs()))
    found = jax.grad(loss(bridge, None, None))(z)
    expected = jax.grad(loss(lambda z: (jnp.sin(z), jnp.abs(z)), None, None))(z)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    check_grads(bridge, (z,), order=2, modes=["rev"])


def test_there_and_back_again_is_the_function():
    f = fl.from_jax(fl.to_jax(of_torch))
    params, x = fl.from_array(PARAMS), torch.from_numpy(X)
    assert fl.tree.allclose(f(params, x), of_torch(params, x))
    found = fl.gradient(lambda p: (f(p, x) ** 2).sum(), params)
    expected = fl.gradient(lambda p: (of_torch(p, x) ** 2).sum(), params)
    assert fl.tree.allclose(found["w"], expected["w"])


# Trees, constants, dtypes


def test_trees_constants_and_none_come_through():
    def f(p: Any, *, scale: float, mask: Any) -> Any:
        assert isinstance(p["tied"], torch.Tensor)
        assert p["tied"] is p["w"]
        y = p["w"] * scale
        return {"y": y, "again": y, "at": y.argmax(), "none": None, "positive": y > 0, "mask": mask.sum()}

    w = jnp.asarray([1.0, -2.0, 3.0])
    out = fl.to_jax(f)({"w": w, "tied": w}, scale=2.0, mask=np.ones(2))
    assert out["y"].tolist() == [2, -4, 6]
    assert out["again"] is out["y"]
    assert out["at"] == 2
    assert out["at"].dtype == jnp.int64
    assert out["none"] is None
    assert out["positive"].tolist() == [True, False, True]
    assert out["mask"] == 2
    text = fl.to_jax(lambda x: (x, "aux", 3))(w)
    assert text[1:] == ("aux", 3)


def test_whole_numbers_have_no_gradient_and_unused_arrays_zeros():
    f = fl.to_jax(lambda x, i, unused: x[i].sum())
    x, i = jnp.arange(3.0), jnp.asarray([0, 2, 2])
    grads = jax.grad(f, argnums=(0, 2))(x, i, jnp.ones(2))
    assert grads[0].tolist() == [1, 0, 2]
    assert grads[1].tolist() == [0, 0]


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "float16", "bfloat16", "float64", "complex64"])
def test_the_dtype_is_kept(dtype, jit):
    f = fl.to_jax(lambda x: x.flip(0))
    x = jnp.ones((2, 3), dtype)
    assert (jax.jit(f) if jit else f)(x).dtype == x.dtype


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_without_64_bits_floats_are_refused_and_whole_numbers_checked(jit):
    wrap = jax.jit if jit else lambda f: f
    with jax.enable_x64(False):
        at = wrap(fl.to_jax(lambda x: x.argmax(-1)))(jnp.eye(2))
        assert at.dtype == jnp.int32
        assert at.tolist() == [0, 1]
        with pytest.raises(TypeError, match=r"float64.*jax_enable_x64"):
            wrap(fl.to_jax(lambda x: x.double()))(jnp.ones(2))
        if not jit:
            with pytest.raises(OverflowError, match="32 bits"):
                fl.to_jax(lambda x: x.long() + 2**40)(jnp.ones(2))


# Models


def test_a_model_trains_in_jax_as_it_does_here():
    torch.manual_seed(0)
    model = fl.f64(fl.Chain(fl.Dense(3, 8, fl.tanh), fl.Dense(8, 1)))
    x = torch.randn(16, 3, dtype=torch.float64)
    y = x.sum(1, keepdim=True).sin()
    flat, rebuild = fl.destructure(model)

    def loss(flat: Any, x: Any, y: Any) -> Any:
        return fl.losses.mse(rebuild(flat)(x), y)

    step = jax.jit(lambda p, x, y: p - 0.1 * jax.grad(fl.to_jax(loss))(p, x, y))
    there, data = fl.to_array(flat, "jax", copy=True), fl.to_array((x, y), "jax")
    here = flat
    for _ in range(5):
        there = step(there, *data)
        here = here - 0.1 * fl.gradient(loss, here, x, y)
    assert torch.allclose(fl.from_array(there), here, rtol=1e-12)
    assert not torch.allclose(here, flat)
    found = jax.jit(fl.to_jax(model))(data[0])
    np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-12)


def test_the_mode_is_that_of_the_scope_of_the_call_and_under_jit_of_the_trace():
    seen = []

    def f(x: Any) -> Any:
        seen.append(fl.training(layer))
        return x * 2

    layer = fl.Dropout(0.5)
    eager, compiled = fl.to_jax(f), jax.jit(fl.to_jax(f))
    with fl.mode("train"):
        eager(jnp.ones(2))
        jax.block_until_ready(compiled(jnp.ones(2)))
    before = len(seen)
    jax.block_until_ready(compiled(jnp.ones(2)))
    assert len(seen) > before
    assert all(seen)
    eager(jnp.ones(2))
    assert not seen[-1]


def test_large_arrays_come_through_a_callback():
    f = jax.jit(jax.grad(fl.to_jax(lambda x: (x * x).sum())))
    x = jnp.ones((2000, 1000))
    for _ in range(3):
        x = f(x)
    assert float(x.sum()) == 8 * 2_000_000


def test_nothing_of_jax_leaks():
    with jax.checking_leaks():
        jax.jit(jax.grad(squared(fl.to_jax(of_torch))))(jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(X))


def test_arguments_are_not_changed_and_results_are_not_shared_with_them():
    x = jnp.ones(100)
    y = fl.to_jax(lambda x: x.add(1).mul_(2))(x)
    assert x.sum() == 100
    assert y.sum() == 400


# Errors


def test_a_value_that_is_asked_for_needs_numbers():
    f = fl.to_jax(lambda x: x if x.sum() > 0 else -x)
    x = jnp.asarray([-1.0, 0.5])
    assert f(x).tolist() == [1, -0.5]
    assert jax.grad(lambda x: f(x).sum())(x).tolist() == [-1, -1]
    with pytest.raises(RuntimeError, match=r"asks for the value of a tensor.*outside of jax\.jit"):
        jax.jit(f)(x)


def test_forward_mode_is_refused_not_wrong():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(bridged, (PARAMS, X), (PARAMS, X))


def test_an_error_inside_is_shown():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        bridged(jax.tree.map(jnp.asarray, PARAMS), jnp.ones((2, 5)))
    with pytest.raises(RuntimeError, match=r"mat1|reduction dim"):
        jax.jit(bridged)(jax.tree.map(jnp.asarray, PARAMS), jnp.ones((2, 5)))
