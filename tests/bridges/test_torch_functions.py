"""`to_jax`: functions of torch under the transforms of JAX, beside the same functions written in JAX."""

from __future__ import annotations

import contextvars
import gc
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.vmap], ids=["eager", "jit", "vmap"])
def test_a_function_that_writes_to_its_arguments_leaves_those_of_jax_alone(wrap):
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)

    x = jnp.ones(1000)
    jax.block_until_ready(wrap(fl.to_jax(doubled))(x))
    assert x.sum() == 1000


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_results_do_not_change_when_the_model_is_written_over_later(wrap):
    model = {"w": torch.ones(1000)}
    state = fl.setup(fl.Descent(0.5), model)
    out = wrap(fl.to_jax(lambda x: model["w"]))(jnp.ones(1))
    part = wrap(fl.to_jax(lambda x: model["w"][:500]))(jnp.ones(1))
    jax.block_until_ready((out, part))
    fl.update(state, model, {"w": torch.ones(1000)}, donate=True)
    assert out.sum() == 1000
    assert part.sum() == 500


def test_gradients_do_not_change_when_the_model_is_written_over_later():
    w = torch.ones(1000, dtype=torch.float64)
    grad = jax.grad(fl.to_jax(lambda x: (x * w).sum()))(jnp.ones(1000))
    w.mul_(2)
    assert grad.sum() == 1000


def test_an_eager_vmap_compiles_nothing_anew_and_keeps_nothing():
    constant = torch.ones(1000, dtype=torch.float64)
    run = gradients_of_each(constant)
    x = jnp.ones((2, 1000))
    assert run(x).sum() == 2000
    kept = weakref.ref(constant)
    with jax.log_compiles(), counted("jax._src.interpreters.pxla", "jax._src.dispatch") as compiled:
        for _ in range(3):
            assert run(x).sum() == 2000
    assert compiled == []
    del constant, run
    gc.collect()
    assert kept() is None


def gradients_of_each(constant: torch.Tensor) -> Any:
    f = fl.to_jax(lambda x, c: (x * c).sum())
    return jax.vmap(jax.grad(lambda x: f(x, constant)))


@contextmanager
def counted(*loggers: str) -> Iterator[list[str]]:
    """What is logged inside."""
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    for name in loggers:
        logging.getLogger(name).addHandler(handler)
    try:
        yield seen
    finally:
        for name in loggers:
            logging.getLogger(name).removeHandler(handler)


# Draws


def dropped(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.dropout(x, 0.5)


def in_train_mode(x: torch.Tensor) -> torch.Tensor:
    with fl.mode("train"):
        return fl.Dropout(0.5)(x)


@pytest.mark.parametrize("draw", [dropped, in_train_mode], ids=["torch", "fluxlike"])
@pytest.mark.parametrize("keyed", [False, True], ids=["generator", "key"])
def test_a_gradient_is_that_of_the_run_that_gave_the_value(draw, keyed):
    x = jnp.ones(1000)
    with fl.seeded(fl.Key(3)) if keyed else nullcontext():
        value, back = jax.vjp(fl.to_jax(draw), x)
        torch.rand(1)
        (grad,) = back(x)
        torch.rand(1)
        (again,) = back(x)
        first, back = jax.vjp(jax.grad(lambda x: (fl.to_jax(draw)(x) ** 2).sum()), x)
        (second,) = back(x)
    assert 0 < (value == 0).sum() < 1000
    assert (grad == value).all()
    assert (again == value).all()
    assert set(first.tolist()) == {0, 8}
    assert (second == first).all()


def test_a_gradient_draws_nothing_from_the_generators_of_torch():
    f, x = fl.to_jax(dropped), jnp.ones(100)
    torch.manual_seed(0)
    jax.block_until_ready(f(x))
    expected = torch.rand(1)
    torch.manual_seed(0)
    jax.block_until_ready(jax.grad(lambda x: f(x).sum())(x))
    assert torch.equal(torch.rand(1), expected)


def test_two_calls_draw_differently():
    f, x = fl.to_jax(dropped), jnp.ones(1000)
    assert (f(x) != f(x)).any()
    compiled = jax.jit(f)
    assert (compiled(x) != compiled(x)).any()


@pytest.mark.parametrize("draw", [dropped, in_train_mode], ids=["torch", "fluxlike"])
@pytest.mark.parametrize("keyed", [False, True], ids=["generator", "key"])
def test_under_jit_a_gradient_that_would_draw_again_is_an_error(draw, keyed):
    with (
        pytest.raises(Exception, match=r"(?s)draws random numbers.*fold_in\(step\)"),
        fl.seeded(fl.Key(3)) if keyed else nullcontext(),
    ):
        jax.block_until_ready(jax.jit(jax.grad(lambda x: fl.to_jax(draw)(x).sum()))(jnp.ones(100)))


def test_a_draw_of_another_thread_is_not_taken_for_one_of_the_function():
    f = fl.to_jax(lambda x: (torch.default_generator.manual_seed(torch.seed()), x * 2)[1])
    assert jax.jit(jax.grad(lambda x: f(x).sum()))(jnp.ones(3)).tolist() == [2, 2, 2]


@pytest.mark.parametrize("draw", [dropped, in_train_mode], ids=["torch", "fluxlike"])
def test_under_jit_draws_from_a_key_inside_have_the_gradient_of_their_value(draw):
    def f(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        with fl.seeded(fl.Key(0).fold_in(step)):
            return draw(x)

    both = jax.jit(jax.value_and_grad(lambda x, step: (fl.to_jax(f)(x, step)).sum()))
    masks = []
    for step in range(2):
        value, grad = both(jnp.ones(1000), jnp.asarray(step))
        assert value == grad.sum()
        masks.append(grad)
    assert (masks[0] != masks[1]).any()


@pytest.mark.parametrize("wrap", [lambda f, **_: f, jax.jit], ids=["eager", "jit"])
def test_new_statistics_of_a_batchnorm_come_out_by_withupdates(wrap):
    norm = fl.f64(fl.BatchNorm(2))

    def f(x: torch.Tensor) -> Any:
        out, updates = fl.withupdates(lambda m: m(x), norm)
        return (out**3).sum(), fl.apply_updates(norm, updates).running_mean

    x = jnp.asarray(draw(size=(5, 2)))
    (_, mean), grad = wrap(jax.value_and_grad(fl.to_jax(f), has_aux=True))(x)
    np.testing.assert_allclose(mean, 0.1 * x.mean(0), rtol=1e-12)
    expected = fl.gradient(lambda x: f(x)[0], fl.from_array(np.asarray(x)))
    np.testing.assert_allclose(grad, expected, rtol=1e-9, atol=1e-12)
    assert norm.running_mean.tolist() == [0, 0]


def test_overlapping_traces_leave_the_logger_of_torch_as_it_was():
    from fluxlike._private import fake

    log = logging.getLogger("torch._subclasses.fake_tensor")
    first, second = fake.stand_ins(), fake.stand_ins()
    outer, inner = contextvars.copy_context(), contextvars.copy_context()
    with counted(log.name) as seen:
        outer.run(first.__enter__)
        log.warning("beside")
        outer.run(log.warning, "inside")
        inner.run(second.__enter__)
        inner.run(second.__exit__, None, None, None)
        outer.run(first.__exit__, None, None, None)
        log.warning("after")
    assert seen == ["beside", "after"]
    assert not log.disabled


# Errors


def test_a_value_that_is_asked_for_needs_numbers():
    f = fl.to_jax(lambda x: x if x.sum() > 0 else -x)
    x = jnp.asarray([-1.0, 0.5])
    assert f(x).tolist() == [1, -0.5]
    assert jax.grad(lambda x: f(x).sum())(x).tolist() == [-1, -1]
    with pytest.raises(RuntimeError, match=r"asks for the value of a tensor.*outside of jax\.jit"):
        jax.jit(f)(x)


def test_results_without_plain_memory_are_errors():
    with pytest.raises(TypeError, match=r"to_jax: a result is sparse.*to_dense"):
        fl.to_jax(lambda x: torch.eye(2).to_sparse())(jnp.ones(2))


def test_forward_mode_is_refused_not_wrong():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(bridged, (PARAMS, X), (PARAMS, X))


def test_an_error_inside_is_shown():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        bridged(jax.tree.map(jnp.asarray, PARAMS), jnp.ones((2, 5)))
    with pytest.raises(RuntimeError, match=r"mat1|reduction dim"):
        jax.jit(bridged)(jax.tree.map(jnp.asarray, PARAMS), jnp.ones((2, 5)))
