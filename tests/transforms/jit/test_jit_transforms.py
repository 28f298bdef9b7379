"""`jit` among other transforms, autograd, modes of torch, and threads."""

import threading

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fluxlike as fl

D = torch.float64

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)  # torch's


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def mlp(seed=0):
    with fl.seeded(fl.Key(seed)):
        return fl.f64(fl.Chain(fl.Dense(3, 4, fl.tanh), fl.Dense(4, 1)))


def loss(model, x):
    return (model(x) - 1).square().mean()


def cube(x):
    return (x**3).sum()


def close(a, b):
    return fl.tree.allclose(a, b, rtol=1e-10, atol=1e-12)


# Compiled transforms

INSIDE = {
    "gradient": lambda m, x: fl.gradient(loss, m, x),
    "withgradient": lambda m, x: fl.withgradient(lambda m, x: (loss(m, x), m(x)), m, x),
    "gradient of two": lambda m, x: fl.gradient(loss, m, x, argnums=(0, 1)),
    "gradient at a place": lambda m, x: fl.gradient(loss, m, x, wrt=lambda m: m.layers[1]),
    "gradient of gradient": lambda m, x: fl.gradient(lambda m: fl.tree.norm(fl.gradient(loss, m, x)), m),
    "gradient penalty": lambda m, x: fl.gradient(
        lambda m: fl.gradient(lambda x: m(x).sum(), x).square().sum(), m
    ),
    "vmap": lambda m, x: fl.vmap(lambda x: m(x[None]))(x),
    "vmap of gradient": lambda m, x: fl.vmap(lambda x: fl.gradient(loss, m, x[None]))(x),
    "vmap over models": lambda m, x: fl.vmap(lambda m: fl.gradient(loss, m, x))(fl.stack([m, m, mlp(1)])),
    "gradient of vmap": lambda m, x: fl.gradient(lambda m: fl.vmap(lambda x: loss(m, x[None]))(x).sum(), m),
    "per-example gradient": lambda m, x: fl.per_example_gradient(lambda m, x: loss(m, x), m, x),
    "update over models": lambda m, x: fl.vmap(
        lambda m: fl.update(fl.setup(fl.Momentum(0.1), m), m, fl.gradient(loss, m, x))[0]
    )(fl.stack([m, mlp(2)])),
    "torch.func.grad": lambda m, x: torch.func.grad(lambda x: loss(m, x))(x),
    "torch.func.vmap": lambda m, x: torch.func.vmap(lambda x: m(x[None]))(x),
    "torch.func.hessian": lambda m, x: torch.func.hessian(lambda x: loss(m, x))(x),
    "torch.func.jvp": lambda m, x: torch.func.jvp(lambda x: loss(m, x), (x,), (torch.ones_like(x),)),
    "torch.autograd": lambda m, x: torch.autograd.grad(loss(m, y := x.detach().requires_grad_()), y)[0],
    "destructure": lambda m, x: fl.destructure(m)[0] * 2,
    "steps": lambda m, x: fl.steps(fl.setup(fl.Adam(), m), m, fl.gradient(loss, m, x))[0],
}


@pytest.mark.parametrize("f", INSIDE.values(), ids=INSIDE)
def test_a_compiled_transform_is_the_transform(f):
    jitted = fl.jit(f)
    for i in range(2):
        model, x = mlp(i), randn(5, 3, seed=i)
        found, expected = jitted(model, x), f(model, x)
        for a, b in zip(fl.fleaves([found]), fl.fleaves([expected]), strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
            assert not a.requires_grad
    assert jitted.cache_info() == (2, 1)


OUTSIDE = {
    "gradient": lambda f, x: fl.gradient(f, x),
    "gradient of gradient": lambda f, x: fl.gradient(lambda x: fl.gradient(f, x).square().sum(), x),
    "vmap": lambda f, x: fl.vmap(f)(x),
    "vmap of gradient": lambda f, x: fl.vmap(lambda x: fl.gradient(f, x))(x),
    "jit": lambda f, x: fl.jit(lambda x: f(x) * 2)(x),
    "jit of gradient": lambda f, x: fl.jit(lambda x: fl.gradient(f, x))(x),
    "withupdates": lambda f, x: fl.withupdates(f, x)[0],
    "torch.func.grad": lambda f, x: torch.func.grad(f)(x),
    "torch.func.vmap": lambda f, x: torch.func.vmap(f)(x),
    "torch.func.jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "torch.func.jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "torch.func.hessian": lambda f, x: torch.func.hessian(f)(x),
    "forward_ad": lambda f, x: forward(f, x),
}


def forward(f, x):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        return torch.autograd.forward_ad.unpack_dual(f(dual)).tangent


@pytest.mark.parametrize("transform", OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("called", [False, True])
def test_a_transform_of_a_compiled_function_is_that_of_its_source(transform, called):
    f, x = fl.jit(cube), randn(3)
    if called:
        f(x)
    found, expected = transform(f, x), transform(cube, x)
    assert torch.allclose(found, expected)


def test_jacobians_and_hessians_of_a_compiled_function_and_compiled():
    x = randn(3)
    f = fl.jit(cube)
    for transform in (fl.hessian, fl.jacobian, fl.diaghessian):
        expected = transform(cube, x)
        assert torch.allclose(transform(f, x), expected)
        assert torch.allclose(fl.jit(lambda x, transform=transform: transform(cube, x))(x), expected)


def test_a_layer_under_jit_reports_its_buffers_to_what_surrounds_it():
    norm, x = fl.f64(fl.BatchNorm(2)), randn(4, 2)
    f = fl.jit(lambda m, x: m(x))
    f(norm, x)
    _out, updates = fl.withupdates(f, norm, x)
    assert torch.allclose(
        updates.running_mean.value, fl.withupdates(lambda m, x: m(x), norm, x)[1].running_mean.value
    )
    grads = fl.gradient(lambda m: f(m, x).square().sum(), norm)
    assert isinstance(grads.running_var, fl.Assigned)


def test_a_closed_over_model_assigns_nothing():
    norm, x = fl.f64(fl.BatchNorm(2)), randn(4, 2)
    before = norm.running_mean.clone()
    f = fl.jit(lambda x: fl.gradient(lambda x: (norm(x) ** 3).sum(), x))
    assert torch.allclose(f(x), fl.gradient(lambda x: (norm(x) ** 3).sum(), x))
    assert torch.equal(norm.running_mean, before)


# torch's autograd around it


def test_an_argument_that_was_computed_stays_differentiable():
    f, x = fl.jit(cube), randn(3).requires_grad_()
    f(x.detach())  # a trace that must not be taken
    (grad,) = torch.autograd.grad(f(x * 1), x)
    assert torch.allclose(grad, 3 * x.detach() ** 2)
    assert torch.autograd.gradcheck(lambda x: f(x * 1), (x,))


def test_a_leaf_that_requires_grad_is_read_as_its_value_and_then_one_with_a_graph_is_not():
    f, x = fl.jit(cube), randn(3).requires_grad_()
    assert not f(x).requires_grad
    assert f(x * 1).requires_grad
    assert not f(x).requires_grad
    assert f.cache_info().traces == 1


def test_under_no_grad_an_argument_with_a_graph_is_read_as_its_value():
    f, x = fl.jit(cube), randn(3).requires_grad_()
    y = x * 1
    with torch.no_grad():
        assert not f(y).requires_grad
        assert torch.allclose(f(y), cube(y))
    assert f(y).requires_grad
    with torch.no_grad():
        assert not f(y).requires_grad


def test_gradients_under_no_grad():
    f, x = fl.jit(lambda x: fl.gradient(cube, x)), randn(3)
    with torch.no_grad():
        assert torch.allclose(f(x), 3 * x**2)
    assert torch.allclose(f(x), 3 * x**2)


def test_inference_mode():
    f, x = fl.jit(lambda x: x * 2), randn(3)
    for _ in range(2):
        assert not f(x).is_inference()
        with torch.inference_mode():
            assert torch.equal(f(x), 2 * x)
            made = x + 1
            assert torch.equal(f(made), 2 * made)
        assert torch.equal(f(made), 2 * made)


def test_a_gradient_under_inference_mode_says_so():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        fl.jit(lambda x: fl.gradient(cube, x))(randn(3))


# Modes


def test_autocast_inside_is_kept():
    def f(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x

    x = torch.eye(4)
    assert fl.jit(f)(x).dtype == torch.bfloat16


def test_autocast_around_a_gradient():
    model, x = fl.Chain(fl.Dense(3, 4, fl.tanh), fl.Dense(4, 1)), torch.rand(5, 3)

    def f(m):
        return fl.gradient(lambda m: m(x).float().square().mean(), m)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = fl.jit(f)(model), f(model)
    assert found.layers[0].weight.dtype == torch.float32
    assert fl.tree.allclose(found, expected, rtol=0.05, atol=0.01)


class Watching(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [Watching, Counting])
def test_what_watches_torch_sees_the_source_run(make):
    f, x = fl.jit(lambda x: torch.sin(x)), randn(3)
    f(x)
    with make() as mode:
        f(x)
    assert any("sin" in str(func) for func in mode.seen)


def test_check_pure_sees_into_a_compiled_function():
    f = fl.jit(lambda x: x + torch.rand(3, dtype=D))
    f(randn(3))
    assert "torch.rand drew without a key" in str(fl.check_pure(f, randn(3)))


# Threads


def in_threads(*functions):
    failed = []

    def guarded(f):
        try:
            f()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_threads_with_different_rates_get_their_own_numbers():
    f = fl.jit(fl.update)
    model, grads = {"w": torch.ones(50)}, {"w": torch.ones(50)}

    def run(lr):
        state = fl.setup(fl.Descent(lr), model)
        for _ in range(300):
            new, _ = f(state, model, grads)
            assert torch.equal(new["w"], model["w"] - lr)

    in_threads(*(lambda lr=lr: run(lr) for lr in (0.5, 0.25, 2.0)))
    assert f.cache_info().traces == 1


def test_threads_that_donate():
    f = fl.jit(lambda m, x: {"w": m["w"] + x}, donate=0)

    def run(start):
        model = {"w": torch.full((40,), start)}
        x = torch.ones(40)
        for i in range(200):
            model = f(model, x)
            assert model["w"][0].item() == start + i + 1

    in_threads(lambda: run(0.0), lambda: run(1000.0))


def test_threads_that_trace():
    def run(n):
        model, x = mlp(n), randn(n, 3)
        f = fl.jit(lambda m, x: fl.gradient(loss, m, x))
        assert close(f(model, x), fl.gradient(loss, model, x))

    in_threads(*(lambda n=n: run(n) for n in (2, 3, 4)))


def test_a_thread_has_its_own_scope():
    drop = fl.Dropout(0.5)
    f = fl.jit(lambda m, x: m(x))
    x = torch.ones(100)

    def train():
        with fl.mode("train"), fl.seeded(fl.Key(0)):
            for _ in range(50):
                assert (f(drop, x) == 0).any()

    def test():
        for _ in range(50):
            assert torch.equal(f(drop, x), x)

    in_threads(train, test)
