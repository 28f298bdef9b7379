"""`from_jax`: functions of JAX under every transform, beside the same functions written in torch."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor

import fluxlike as fl

jax.config.update("jax_platforms", "cpu")


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    return torch.randn(*shape, dtype=dtype, generator=generator)


class Pair(NamedTuple):
    mean: Any
    spread: Any


def mlp_of_jax(params: Any, x: Any) -> Any:
    for layer in params["layers"][:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params["layers"][-1]["w"] + params["layers"][-1]["b"]


def mlp_of_torch(params: Any, x: Any) -> Any:
    for layer in params["layers"][:-1]:
        x = torch.tanh(x @ layer["w"] + layer["b"])
    return x @ params["layers"][-1]["w"] + params["layers"][-1]["b"]


def weights() -> dict[str, Any]:
    sizes = [(3, 4), (4, 2)]
    return {"layers": [{"w": randn(*size) * 0.5, "b": randn(size[1])} for size in sizes]}


mlp = fl.from_jax(mlp_of_jax)
PARAMS, X = weights(), randn(5, 3)


def of_both(transform: Any) -> tuple[Any, Any]:
    """What a transform makes of the function from JAX, and of the one of torch."""
    return transform(mlp), transform(mlp_of_torch)


def squared(f: Any) -> Any:
    return lambda p, x: (f(p, x) ** 2).sum()


TRANSFORMS = {
    "value": lambda f: f(PARAMS, X),
    "gradient": lambda f: fl.gradient(squared(f), PARAMS, X),
    "withgradient": lambda f: fl.withgradient(squared(f), PARAMS, X),
    "both arguments": lambda f: fl.gradient(squared(f), PARAMS, X, argnums=(0, 1)),
    "of a part": lambda f: fl.gradient(squared(f), PARAMS, X, wrt=lambda p: p["layers"][0]),
    "second order": lambda f: fl.gradient(lambda p: fl.tree.norm(fl.gradient(squared(f), p, X)) ** 2, PARAMS),
    "gradient penalty": lambda f: fl.gradient(
        lambda p: (fl.gradient(lambda x: squared(f)(p, x), X) ** 2).sum(), PARAMS
    ),
    "third order": lambda f: fl.gradient(
        lambda b: fl.hvp(lambda x: squared(f)(PARAMS, x + b), X, v=torch.ones_like(X)).sum(), X
    ),
    "hessian": lambda f: fl.hessian(lambda x: squared(f)(PARAMS, x), X[0]),
    "jacobian": lambda f: fl.jacobian(lambda x: f(PARAMS, x), X[0]),
    "pushforward": lambda f: fl.pushforward(lambda x: f(PARAMS, x), X, v=torch.ones_like(X)),
    "pullback": lambda f: fl.pullback(f, PARAMS, X)[1](torch.ones(5, 2, dtype=torch.float64)),
    "vmap": lambda f: fl.vmap(f, (None, 0))(PARAMS, X),
    "vmap of models": lambda f: fl.vmap(f, (0, None))(fl.stack([PARAMS, fl.tree.scale(PARAMS, 2.0)]), X),
    "vmap twice": lambda f: fl.vmap(lambda x: fl.vmap(lambda r: f(PARAMS, r))(x))(X[None].expand(2, 5, 3)),
    "vmap along another axis": lambda f: fl.vmap(f, (None, 1), 1)(PARAMS, X.T.contiguous()),
    "gradients of each example": lambda f: fl.vmap(fl_gradient(squared(f)), (None, 0))(PARAMS, X),
    "per_example_gradient": lambda f: fl.per_example_gradient(squared(f), PARAMS, X),
    "gradient of vmap": lambda f: fl.gradient(lambda p: fl.vmap(squared(f), (None, 0))(p, X).sum(), PARAMS),
    "vmap of hessians": lambda f: fl.vmap(lambda r: fl.hessian(lambda x: squared(f)(PARAMS, x), r))(X),
    "checkpoint": lambda f: fl.gradient(fl.checkpoint(squared(f)), PARAMS, X),
    "func.grad": lambda f: torch.func.grad(lambda x: squared(f)(PARAMS, x))(X),
    "func.hessian": lambda f: torch.func.hessian(lambda x: squared(f)(PARAMS, x))(X[0]),
    "func.jacfwd of jacfwd": lambda f: torch.func.jacfwd(torch.func.jacfwd(lambda x: f(PARAMS, x)))(X[0]),
    "under no_grad": lambda f: without_grad(f),
}


def fl_gradient(loss: Any) -> Any:
    return lambda p, x: fl.gradient(loss, p, x)


def without_grad(f: Any) -> Any:
    with torch.no_grad():
        return f(PARAMS, X), fl.gradient(squared(f), PARAMS, X)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's own, at its first dual number
@pytest.mark.parametrize("name", TRANSFORMS)
def test_under_every_transform_it_is_the_function_written_in_torch(name):
    found, expected = of_both(TRANSFORMS[name])
    assert fl.tree.allclose(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
def test_it_is_one_operation_of_a_compiled_step():
    rule = fl.Adam(1e-2)

    def step_of(f: Any) -> Any:
        def step(params: Any, state: Any, x: Any) -> Any:
            value, grads = fl.withgradient(squared(f), params, x)
            return (*fl.update(state, params, grads), value)

        return step

    compiled, eager = fl.jit(step_of(mlp)), step_of(mlp_of_torch)
    ours = theirs = (PARAMS, fl.setup(rule, PARAMS))
    for k in range(3):
        *ours, a = compiled(*ours, X + k)
        *theirs, b = eager(*theirs, X + k)
        assert torch.allclose(a, b, rtol=1e-11)
    assert fl.tree.allclose(ours[0], theirs[0], rtol=1e-10, atol=1e-12)
    assert compiled.cache_info().traces == 1
    assert "jax_program" in str(compiled.lower(*ours, X))


@pytest.mark.slow
def test_a_compiled_function_outlives_the_function_of_jax():
    compiled = fl.jit(lambda x: fl.from_jax(jnp.sin)(x) + fl.vmap(fl.from_jax(jnp.cos))(x))
    expected = X.sin() + X.cos()
    assert torch.allclose(compiled(X), expected)
    gc.collect()
    assert torch.allclose(compiled(X), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_gradcheck_of_first_and_second_order_in_both_modes():
    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return mlp({"layers": [{"w": w, "b": b}, PARAMS["layers"][1]]}, x)

    args = [t.clone().requires_grad_() for t in (X, PARAMS["layers"][0]["w"], PARAMS["layers"][0]["b"])]
    torch.autograd.gradcheck(f, args, check_forward_ad=True)
    torch.autograd.gradgradcheck(f, args, check_fwd_over_rev=True)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_gradients_of_complex_numbers_are_torchs():
    f = fl.from_jax(lambda z, w: (jnp.sin(z) * w, jnp.abs(z), jnp.real(z * z)))
    z = torch.complex(randn(3), randn(4)[:3]).requires_grad_()
    w = randn(3).requires_grad_()
    torch.autograd.gradcheck(f, (z, w), check_forward_ad=True)
    torch.autograd.gradgradcheck(f, (z, w))

    def native(z: Tensor, w: Tensor) -> Tensor:
        return (torch.sin(z) * w).abs().sum()

    ours = fl.gradient(lambda z, w: f(z, w)[0].abs().sum(), z.detach(), w.detach(), argnums=(0, 1))
    assert fl.tree.allclose(ours, fl.gradient(native, z.detach(), w.detach(), argnums=(0, 1)))


def test_a_custom_derivative_of_jax_is_kept():
    @jax.custom_vjp
    def sign(x: Any) -> Any:
        return jnp.sign(x)

    sign.defvjp(lambda x: (jnp.sign(x), x), lambda x, g: (g * (jnp.abs(x) < 1),))
    x = torch.tensor([-0.5, 2.0])
    grads = fl.gradient(lambda x: (fl.from_jax(sign)(x) * torch.tensor([3.0, 4.0])).sum(), x)
    assert grads.tolist() == [3, 0]


def test_autograd_of_a_torch_module_goes_through():
    w = torch.nn.Parameter(randn(3))
    fl.from_jax(lambda w: (w**3).sum())(w).backward()
    assert torch.allclose(w.grad, 3 * w.detach() ** 2)


# What goes in and comes out


def test_trees_constants_and_none_go_in_and_come_out():
    def f(model: Any, *, scale: int, name: str, extra: Any) -> Any:
        y = model.weight * scale
        return Pair({"y": y, "same": y, name: [None, "done", 3]}, (jnp.argmax(y), extra, model.weight > 0))

    model = fl.Dense(3, 2)
    out = fl.from_jax(f)(model, scale=2, name="aux", extra=None)
    assert isinstance(out, Pair)
    assert torch.equal(out.mean["y"], 2 * model.weight)
    assert out.mean["same"] is out.mean["y"]
    assert out.mean["aux"] == [None, "done", 3]
    assert out.spread[0].dtype == torch.int64
    assert out.spread[0] == (2 * model.weight).argmax()
    assert out.spread[1] is None
    assert torch.equal(out.spread[2], model.weight > 0)


def test_ties_stay_ties_and_their_gradient_is_the_total():
    f = fl.from_jax(lambda p: (p["a"] * 3).sum() + (p["b"] * 13).sum() + float(p["a"] is p["b"]))
    w = torch.ones(2)
    value, grads = fl.withgradient(f, {"a": w, "b": w})
    assert value == 33
    assert grads["a"].tolist() == [16, 16]
    assert grads["b"] is None


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_what_is_not_used_gets_none_and_what_is_stopped_gets_zeros(wrap):
    f = fl.from_jax(wrap(lambda p, n: (p["w"] * n.sum() + jax.lax.stop_gradient(p["s"])).sum()))
    p = {"w": torch.ones(2), "s": torch.ones(2), "unused": torch.ones(1)}
    grads = fl.gradient(f, p, torch.arange(3))
    assert grads["w"].tolist() == [3, 3]
    assert grads["s"].tolist() == [0, 0]
    assert grads["unused"] is None
    nested = fl.gradient(lambda p: fl.tree.norm(fl.gradient(f, p, torch.arange(3))), p)
    assert nested["unused"] is None


def test_whole_numbers_and_bools_have_no_gradient():
    f = fl.from_jax(lambda x, i, m: jnp.where(m, x[i], 0.0).sum())
    x, i, m = torch.arange(3.0), torch.tensor([0, 2, 2]), torch.tensor([True, True, False])
    assert fl.gradient(f, x, i, m).tolist() == [1, 0, 1]
    assert fl.gradient(lambda d: f(d["x"], d["i"], d["m"]), {"x": x, "i": i, "m": m})["i"] is None


DTYPES = [
    "bool",
    "uint8",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_is_kept(dtype):
    x = torch.ones(2, 3).to(getattr(torch, dtype))
    assert fl.from_jax(lambda x: x[::-1])(x).dtype == x.dtype


@pytest.mark.parametrize("make", [
    lambda x: x.T, lambda x: x[:, ::2], lambda x: x[1:], lambda x: x[:1].expand(4, 6), lambda x: x[:0],
    lambda x: x[0, 0], lambda x: x.cfloat().conj(),
    lambda x: x.reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
], ids=["T", "strided", "offset", "expanded", "empty", "0-d", "conj", "channels_last"])  # fmt: skip
def test_any_layout_goes_in(make):
    x = make(torch.arange(24.0).reshape(4, 6))
    assert torch.equal(fl.from_jax(lambda x: x * 2)(x), x * 2)


def test_arrays_among_the_arguments_are_constants():
    f = fl.from_jax(lambda x, *others: x * sum(o.sum() for o in others))
    grads = fl.gradient(lambda x: f(x, np.ones(2), jnp.ones(3), np.float64(4)).sum(), torch.ones(1))
    assert grads.tolist() == [9]


def test_results_have_memory_of_their_own():
    x = torch.ones(1000)
    f = fl.from_jax(lambda x: (x, x.reshape(10, 100), CONSTANT))
    for y in f(x):
        y.zero_()
    assert x.sum() == 1000
    assert f(x)[2].sum() == 1000


CONSTANT = jnp.ones(1000)


def test_results_of_numpy_are_tensors_as_under_jit():
    def f(x: Any) -> Any:
        return x, np.arange(3, dtype=np.int16), {"scalar": np.float32(2.5)}, LOOKUP

    for wrap in (lambda f: f, jax.jit):
        found = fl.from_jax(wrap(f))(torch.ones(2))
        for y, expected in zip(
            fl.fleaves(found), (np.ones(2), np.arange(3), np.float32(2.5), LOOKUP), strict=True
        ):
            assert isinstance(y, Tensor)
            assert y.tolist() == expected.tolist()
        assert found[1].dtype == torch.int16
        found[3].zero_()
        assert LOOKUP.sum() == 10
    mapped = fl.vmap(fl.from_jax(lambda x: (x, LOOKUP)))(torch.ones(2, 3))
    assert mapped[1].shape == (2, 10)
    with jax.enable_x64(False):
        with pytest.raises(TypeError, match=r"from_jax: \['y'\] is of torch.float64"):
            fl.from_jax(lambda: {"y": np.ones(2)})()
        with pytest.raises(OverflowError, match=r"from_jax: \['y'\].*32 bits"):
            fl.from_jax(lambda: {"y": np.array([2**40])})()
        assert fl.from_jax(lambda: np.array([3]))().dtype == torch.int32


LOOKUP = np.ones(10)


def test_a_function_without_arguments_has_a_value():
    assert fl.from_jax(lambda: jnp.arange(3.0))().tolist() == [0, 1, 2]


def test_shapes_are_known_without_numbers():
    found = mlp(fl.to_device(PARAMS, "meta"), torch.empty(7, 3, dtype=torch.float64, device="meta"))
    assert found.is_meta
    assert found.shape == (7, 2)
    assert fl.outputsize(fl.Chain(fl.Dense(3, 4), fl.from_jax(jnp.tanh)), (2, 3)) == (2, 4)


# Traces


def test_jax_traces_once_for_each_kind_of_call():
    traced = []

    def f(x: Any, n: Any) -> Any:
        traced.append((x.shape, n))
        return x * n

    g = fl.from_jax(f)
    for _ in range(2):
        for n in (1, True, 1.0, 0.0, -0.0, "a" == "b"):
            fl.gradient(lambda x, n=n: g(x, n).sum(), torch.ones(2))
        for size in (3, 4):
            fl.gradient(lambda x: g(x, 1.0).sum(), torch.ones(size))
    assert len(traced) == 8
    assert str(g(torch.ones(2), -0.0)) == "tensor([-0., -0.])"


def test_eight_traces_because_of_one_value_warn_with_its_path_and_what_to_do():
    f = fl.from_jax(lambda p, *, rate: p["x"] * rate)
    for k in range(7):
        f({"x": torch.ones(2)}, rate=float(k))
    with pytest.warns(
        UserWarning, match=r"lambda.*traced 8 times.*argument 'rate'.*6\.0 to 7\.0.*tensor"
    ) as seen:
        f({"x": torch.ones(2)}, rate=7.0)
    assert seen[0].filename == __file__
    for k in range(8, 12):
        f({"x": torch.ones(2)}, rate=float(k))
    g = fl.from_jax(lambda p: p["x"] * 2)
    for k in range(7):
        g({"x": torch.ones(k)})
    with pytest.warns(UserWarning, match=r"argument 0\['x'\].*float32\[6\].*float32\[7\].*one size"):
        g({"x": torch.ones(7)})


def test_many_sizes_of_a_vmap_keep_a_bounded_number_of_programs(monkeypatch):
    from fluxlike.bridges.jax import operator as jax_operator

    f = fl.from_jax(jnp.sin)
    gc.collect()
    before = len(jax_operator._programs)
    monkeypatch.setattr("fluxlike.bridges.jax.programs._KEPT", 3)
    for size in range(1, 12):
        x = torch.arange(float(size))
        assert torch.allclose(fl.vmap(f)(x), x.sin())
    gc.collect()
    assert len(jax_operator._programs) <= before + 4


def test_a_backward_pass_does_not_run_the_forward_pass_again():
    runs = []

    def f(x: Any) -> Any:
        jax.debug.callback(lambda: runs.append(1))
        return jnp.sin(x)

    g = fl.from_jax(f)
    x = randn(3)
    assert torch.allclose(fl.gradient(lambda x: g(x).sum(), x), x.cos())
    jax.effects_barrier()
    assert len(runs) == 1


def test_nothing_is_kept_of_a_call():
    f = fl.from_jax(lambda p, x: mlp_of_jax(p, x).sum())
    p = weights()
    fl.gradient(f, p, X)
    y = f(fl.tree.clone(p), X)
    assert not y.requires_grad
    leaf = p["layers"][0]["w"].clone().requires_grad_()
    y = f({"layers": [{"w": leaf, "b": p["layers"][0]["b"]}, p["layers"][1]]}, X)
    kept = weakref.ref(leaf)
    storage = weakref.ref(leaf.untyped_storage())
    del y, leaf
    gc.collect()
    assert kept() is None
    assert storage() is None
    with jax.checking_leaks():
        fl.gradient(fl.from_jax(lambda p, x: mlp_of_jax(p, x).sum()), p, X)


def test_no_program_outlives_its_function():
    from fluxlike.bridges.jax import operator as jax_operator

    gc.collect()
    before = len(jax_operator._programs)
    for k in range(5):
        fl.gradient(lambda x, k=k: fl.vmap(fl.from_jax(lambda x: x * k))(x).sum(), torch.ones(3))
    jax.clear_caches()
    gc.collect()
    assert len(jax_operator._programs) <= before


def test_it_is_pure():
    assert fl.check_pure(mlp, PARAMS, X)
    x = torch.ones(3)
    fl.from_jax(lambda x: x.at[0].set(5.0))(x)
    assert x.tolist() == [1, 1, 1]


def test_a_change_in_place_before_the_backward_pass_is_an_error():
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    out = fl.from_jax(jnp.sin)(y).sum()
    y.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_several_threads_may_call_and_differentiate():
    f = fl.from_jax(lambda x: (jnp.sin(x) ** 2).sum())
    found: dict[int, Tensor] = {}

    def work(k: int) -> None:
        with jax.enable_x64(True):
            for _ in range(5):
                found[k] = fl.gradient(f, X + k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k in range(4):
        assert torch.allclose(found[k], torch.sin(2 * (X + k)))


# 64 bits


def test_without_64_bits_floats_are_refused_and_whole_numbers_checked():
    f = fl.from_jax(lambda p, n: p["w"] * n.sum())
    with jax.enable_x64(False):
        with pytest.raises(TypeError, match=r"argument 0\['w'\] is of torch.float64.*jax_enable_x64.*f32"):
            f({"w": torch.ones(2).double()}, torch.arange(3))
        assert f({"w": torch.ones(2)}, torch.arange(3)).tolist() == [3, 3]
        assert fl.from_jax(jnp.argmax)(torch.tensor([0.0, 1.0])).dtype == torch.int32
        with pytest.raises(OverflowError, match="32 bits that JAX is set to"):
            f({"w": torch.ones(2)}, torch.tensor([2**40]))
    assert f({"w": torch.ones(2).double()}, torch.tensor([2**40])).tolist() == [2.0**40] * 2


def test_a_backward_pass_has_the_bits_of_its_forward_pass():
    x = randn(3).requires_grad_()
    y = fl.from_jax(jnp.sin)(x).sum()
    with jax.enable_x64(False):
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        (h,) = torch.autograd.grad(g.sum(), x)
    assert torch.allclose(g, x.cos(), rtol=1e-14)
    assert torch.allclose(h, -x.sin(), rtol=1e-14)


# Errors


def test_an_error_inside_is_shown_and_says_where_it_was():
    def wrong(x: Any) -> Any:
        return x @ jnp.ones((7, 7))

    with pytest.raises(TypeError, match="dot_general") as caught:
        fl.from_jax(wrong)(torch.ones(2, 3))
    assert any("from_jax of" in note and "wrong" in note for note in caught.value.__notes__)
    with pytest.raises(jax.errors.TracerBoolConversionError):
        fl.from_jax(lambda x: x if x.sum() > 0 else -x)(torch.ones(2))


@pytest.mark.parametrize(("args", "said"), [
    ((torch.eye(2).to_sparse(),), "argument 0 is a tensor of the layout torch.sparse_coo"),
    (([{1, 2}],), r"argument 0\[0\] is a set, which can't be compared"),
    ((jax.random.key(0),), "argument 0 is a key of JAX"),
], ids=["sparse", "set", "key"])  # fmt: skip
def test_arguments_that_jax_has_not_are_errors_by_path(args, said):
    with pytest.raises(TypeError, match=said):
        fl.from_jax(lambda x: x)(*args)


def test_results_that_torch_has_not_are_errors_by_path():
    with pytest.raises(TypeError, match=r"\['y'\] is of the dtype int4"):
        fl.from_jax(lambda x: {"y": x.astype(jnp.int4)})(torch.ones(2))


def test_no_function_is_an_error():
    with pytest.raises(TypeError, match=r"from_jax\(f\)\(x\)"):
        fl.from_jax(jnp.ones(2))
    with pytest.raises(TypeError, match=r"to_jax\(f\)\(x\)"):
        fl.to_jax(3)


# Training


def test_parameters_of_jax_train_by_our_two_lines():
    keys = jax.random.split(jax.random.key(0), 2)
    params = {"layers": [
        {"w": jax.random.normal(keys[0], (1, 16)), "b": jnp.zeros(16)},
        {"w": jax.random.normal(keys[1], (16, 1)) / 4, "b": jnp.zeros(1)},
    ]}  # fmt: skip
    x = torch.linspace(-1, 2, 32, dtype=torch.float64)[:, None]
    y = torch.sin(3 * x)

    def run(f: Any) -> tuple[Any, list[float]]:
        model = fl.from_array(params)
        state = fl.setup(fl.Adam(1e-2), model)
        losses = []
        for _ in range(60):
            value, grads = fl.withgradient(lambda m: fl.losses.mse(f(m, x), y), model)
            model, state = fl.update(state, model, grads)
            losses.append(float(value))
        return model, losses

    model, losses = run(mlp)
    native, theirs = run(mlp_of_torch)
    assert losses[-1] < 0.3 * losses[0]
    np.testing.assert_allclose(losses, theirs, rtol=1e-9)
    assert fl.tree.allclose(model, native, rtol=1e-7, atol=1e-9)
    back = fl.to_array(model, "jax")
    found = mlp_of_jax(back, fl.to_array(x, "jax"))
    np.testing.assert_allclose(found, mlp_of_torch(model, x).numpy(), rtol=1e-12)
