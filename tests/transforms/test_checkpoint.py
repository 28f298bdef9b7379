"""`checkpoint(f)` is `f`, under every transform, with less memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl
from fluxlike.trees.structure import flatten
from tests.transforms.compositions import COMPOSITIONS, UNTRACEABLE, slope, traced


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def close(actual: Any, expected: Any) -> None:
    assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def same(actual: Any, expected: Any, compare: Callable[[Any, Any], None] = close) -> None:
    """Two trees agree in values, and in what is None, `Assigned` or constant."""
    mine, theirs = (flatten(tree)[0] for tree in (actual, expected))
    assert [type(x) for x in mine] == [type(x) for x in theirs]
    for a, b in zip(mine, theirs, strict=True):
        a, b = (x.value if isinstance(x, fl.Assigned) else x for x in (a, b))
        if isinstance(b, Tensor):
            compare(a, b)
        else:
            assert a is b or a == b


def bits(a: Tensor, b: Tensor) -> None:
    assert torch.equal(a, b)


def f(x: Tensor) -> Tensor:
    return (x * 2).tanh().exp() * x


def f_closed_over(x: Tensor) -> Tensor:
    h = x.cos()
    return fl.checkpoint(lambda z: f(z) * h + h)(x.sin())


def f_nested(x: Tensor) -> Tensor:
    h = x.cos()

    def outer(z: Tensor) -> Tensor:
        k = z * h
        return fl.checkpoint(lambda q: f(q) * h + k)(z)

    return fl.checkpoint(outer)(x.sin())


def f_inner_gradient(x: Tensor) -> Tensor:
    h = x.exp()
    return fl.checkpoint(lambda z: fl.gradient(lambda k: (k**3 * z).sum() + (h * k).sum(), h))(x)


@fl.custom_gradient
def log1pexp(x: Tensor) -> Any:
    e = x.exp()
    return torch.log1p(e), lambda g: g * (1 - 1 / (1 + e))


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "alone": (fl.checkpoint(f), f),
    "between": (lambda x: fl.checkpoint(f)(x.sin()) * x, lambda x: f(x.sin()) * x),
    "closing over": (f_closed_over, lambda x: f(x.sin()) * x.cos() + x.cos()),
    "nested": (f_nested, lambda x: f(x.sin()) * x.cos() + x.cos() * x.sin()),
    "around a gradient": (f_inner_gradient, lambda x: 3 * x.exp() ** 2 * x + x.exp()),
    "around a custom gradient": (fl.checkpoint(log1pexp), lambda x: torch.log1p(x.exp())),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_it_is_the_function_itself_under(name: str, kind: str) -> None:
    checkpointed, plain = FUNCTIONS[kind]
    x = torch.randn(3)
    assert_close(COMPOSITIONS[name](checkpointed, x), COMPOSITIONS[name](plain, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["alone", "nested"])
@pytest.mark.parametrize("name", [n for n in COMPOSITIONS if n not in UNTRACEABLE])
def test_it_is_the_function_itself_in_a_trace_of(name: str, kind: str) -> None:
    checkpointed, plain = FUNCTIONS[kind]
    run, x, other = COMPOSITIONS[name], torch.randn(3), torch.randn(3)
    close(traced(lambda x: run(checkpointed, x), x, other), run(plain, other))


def test_a_trace_of_a_gradient_computes_the_function_twice() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(slope(fl.checkpoint(torch.tanh)), tracing_mode="fake")(torch.ones(2)).graph
    assert sum(node.target is torch.ops.aten.tanh.default for node in graph.nodes) == 2


def test_gradcheck_of_torch_agrees_in_every_mode() -> None:
    x = torch.randn(3, requires_grad=True)
    assert torch.autograd.gradcheck(fl.checkpoint(f), x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f_nested, x, check_fwd_over_rev=True, check_rev_over_rev=True)


# Models


def network(drop: float = 0.5) -> tuple[Any, Any, Callable[[Any], Any]]:
    """The same model with and without checkpoints, and a tree of the first in the shape of the second."""
    tied = fl.Chain(fl.Dense(4, 4, fl.tanh), fl.Dropout(drop), fl.BatchNorm(4))
    parts = [fl.f64(tied), fl.f64(fl.Chain(fl.Dense(4, 4), fl.LayerNorm(4)))]
    plain = fl.Chain(parts[0], parts[1], parts[0])
    light = fl.Chain(*map(fl.checkpoint, plain.layers))
    return light, plain, lambda tree: fl.Chain(*[part.f for part in tree.layers])


def loss(model: Any, x: Tensor) -> Tensor:
    return model(x).pow(3).sum()


def squared_slope(model: Any, x: Tensor) -> Tensor:
    grads = fl.gradient(loss, model, x)
    return fl.tree.dot(grads, grads)


@pytest.mark.parametrize("key", [None, fl.Key(3)], ids=["without key", "with key"])
@pytest.mark.parametrize("scalar", [loss, squared_slope])
def test_gradients_of_a_model_are_the_same_bits(scalar: Callable[..., Tensor], key: fl.Key | None) -> None:
    light, plain, bare = network()
    x = torch.randn(6, 4)
    torch.manual_seed(1)
    expected = fl.withgradient(scalar, plain, x, key=key)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    value, grads = fl.withgradient(scalar, light, x, key=key)
    assert torch.equal(value, expected[0])
    same(bare(grads), expected[1], bits)
    assert torch.equal(torch.get_rng_state(), state)


def test_buffers_move_once_a_call() -> None:
    norm = fl.f64(fl.BatchNorm(4))
    x = torch.randn(5, 4)
    twice = fl.checkpoint(lambda x: norm_of(norm_of(x)))
    model, norm_of = norm, norm

    def run(m: Any, through: Callable[..., Any]) -> Tensor:
        nonlocal norm_of
        norm_of = m
        return through(x).pow(3).sum()

    mine = fl.gradient(lambda m: run(m, twice), model)
    same(mine, fl.gradient(lambda m: run(m, lambda x: m(m(x))), model), bits)
    assert not torch.equal(mine.running_mean.value, model.running_mean)


def test_the_second_run_reads_buffers_as_they_were() -> None:
    @fl.functor(buffers=("scale",))
    class Scaled:
        def __init__(self) -> None:
            self.weight, self.scale = torch.ones(2), torch.ones(2)

    def total(m: Any, through: Any) -> Tensor:
        fl.assign(m.scale, torch.full((2,), 3.0))
        y = through(lambda m, x: x * m.weight * fl.current(m.scale))(m, m.weight)
        fl.assign(m.scale, torch.full((2,), 5.0))
        return y.sum()

    for around in (
        lambda f: f,
        lambda f: lambda m, t: fl.vmap(lambda _: f(m, t), out_dims=0)(torch.ones(1)).sum(),
    ):
        mine, theirs = (fl.gradient(around(total), Scaled(), t) for t in (fl.checkpoint, lambda f: f))
        same(mine, theirs, bits)
        assert mine.weight.tolist() == [6, 6]
        assert mine.scale.value.tolist() == [5, 5]


def test_none_stays_apart_from_zero() -> None:
    model = {"used": torch.ones(2), "zero": torch.ones(2), "unused": torch.ones(2)}
    g = fl.checkpoint(lambda m: (m["used"] + 0 * m["zero"], m["unused"]))
    for within in (lambda h: h, lambda h: lambda m: fl.vmap(lambda _: h(m))(torch.zeros(2)).sum()):
        grads = fl.gradient(within(lambda m: g(m)[0].sum()), model)
        assert torch.equal(grads["zero"], torch.zeros(2))
        assert grads["unused"] is None


@pytest.mark.parametrize("mode", ["train", "test"])
def test_the_second_run_is_in_the_mode_of_the_first(mode: Any) -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(fl.training())
        return x.exp()

    with fl.mode(mode):
        _, back = fl.pullback(fl.checkpoint(look), torch.ones(2))
    back(torch.ones(2))
    assert seen == [mode == "train"] * 2


def test_the_second_run_is_under_the_autocast_of_the_first() -> None:
    w, x = torch.randn(4, 4, dtype=torch.float32), torch.randn(4, 4, dtype=torch.float32)
    g = lambda w: torch.tanh(x @ w) @ w  # noqa: E731

    def run(g: Any) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value, back = fl.pullback(g, w)
        return back(torch.ones_like(value))

    bits(run(fl.checkpoint(g)), run(g))


# Draws


@pytest.mark.parametrize("key", [None, fl.Key(5)], ids=["without key", "with key"])
@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("order", ["gradient of vmap", "vmap of gradient", "gradient of vmap of gradient"])
def test_dropout_draws_the_same_again_under(order: str, randomness: Any, key: fl.Key | None) -> None:
    part = fl.f64(fl.Chain(fl.Dense(4, 4, fl.tanh), fl.Dropout(0.5)))
    plain = fl.trainmode(fl.Chain(part, part))
    light = fl.Chain(*map(fl.checkpoint, plain.layers))
    xs = torch.randn(5, 4)

    def run(m: Any) -> Any:
        torch.manual_seed(1)
        one = lambda m, x: m(x).pow(2).sum()  # noqa: E731
        if order == "gradient of vmap":
            mapped = fl.vmap(one, (None, 0), randomness=randomness)
            return fl.gradient(lambda m: mapped(m, xs).sum(), m, key=key)
        each = fl.vmap(lambda m, x: fl.gradient(one, m, x), (None, 0), randomness=randomness)
        if order == "vmap of gradient":
            return each(m, xs) if key is None else seeded(key, lambda: each(m, xs))
        return fl.gradient(lambda m: fl.tree.dot(each(m, xs), each(m, xs)), m, key=key)

    same(fl.Chain(*[p.f for p in run(light).layers]), run(plain))


def seeded(key: fl.Key, call: Callable[[], Any]) -> Any:
    with fl.seeded(key):
        return call()


@pytest.mark.parametrize("key", [None, fl.Key(5)], ids=["without key", "with key"])
@pytest.mark.parametrize("draw", [torch.rand_like, lambda x: torch.empty_like(x).uniform_().mul_(1)])
def test_a_trace_draws_once(draw: Callable[[Tensor], Tensor], key: fl.Key | None) -> None:
    def run(x: Tensor) -> Any:
        return fl.withgradient(
            lambda x: ((y := fl.checkpoint(lambda x: x * draw(x))(x)).sum(), y), x, key=key
        )

    (_, y), grads = traced(run, torch.ones(20), torch.ones(20))
    bits(grads, y)
    assert len(set(y.tolist())) == 20


def test_threads_do_not_disturb_each_other() -> None:
    model = fl.trainmode(fl.Chain(*[fl.checkpoint(fl.Chain(fl.Dense(8, 8, fl.tanh), fl.Dropout(0.5)))] * 3))
    model = fl.f64(model)
    x = torch.randn(4, 8)
    run = lambda n: fl.gradient(loss, model, x, key=fl.Key(n))  # noqa: E731
    expected = [run(n) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for mine, theirs in zip(pool.map(run, list(range(4)) * 5), expected * 5, strict=True):
            same(mine, theirs, bits)


def test_a_trace_with_a_gradient_inside_draws_once_too() -> None:
    def noisy(x: Tensor) -> Tensor:
        inner = fl.gradient(lambda z: (z.exp() * torch.rand_like(z)).sum(), x)
        return inner * torch.rand_like(x)

    def run(x: Tensor) -> Any:
        return fl.withgradient(lambda x: ((y := fl.checkpoint(noisy)(x)).sum(), y), x)

    (_, y), grads = traced(run, torch.zeros(20), torch.zeros(20))
    close(grads, y)  # the derivative of exp(x) times two draws, at 0


# Assignments and ensembles under functorch


def test_an_ensemble_with_batch_norm_trains_as_without() -> None:
    models = [fl.f64(fl.Chain(fl.Dense(4, 4, fl.tanh), fl.BatchNorm(4))) for _ in range(3)]
    x = torch.randn(6, 4)
    each = fl.vmap(lambda m: fl.gradient(loss, m, x))
    same(each(fl.stack([fl.checkpoint(m) for m in models])).f, each(fl.stack(models)))


def test_the_gradient_of_a_vmap_assigns_the_buffers_of_its_members() -> None:
    models = fl.stack([fl.f64(fl.BatchNorm(4)) for _ in range(3)])
    x = torch.randn(6, 4)
    total = lambda m: fl.vmap(lambda m: loss(m, x))(m).sum()  # noqa: E731
    same(fl.gradient(total, fl.checkpoint(models)).f, fl.gradient(total, models))


# How a layer stands in a model


def test_it_is_a_node_with_the_layer_as_its_child() -> None:
    layer = fl.Dense(2, 3)
    model = fl.Chain(fl.checkpoint(layer), fl.checkpoint(torch.tanh))
    assert fl.trainables(model) == [layer.weight, layer.bias]
    assert list(fl.state_dict(model)["layers"][0]) == ["f"]
    assert repr(fl.checkpoint(torch.tanh)) == "Checkpoint(f=tanh)"
    assert "f=Dense(2, 3)" in repr(model)


def test_an_error_of_a_layer_names_its_path_through_the_checkpoint() -> None:
    model = fl.Chain(fl.identity, fl.checkpoint(fl.Chain(fl.Dense(2, 3), fl.Dense(4, 1))))
    with pytest.raises(fl.LayerError, match=r"^\.layers\[1\]\.f\.layers\[1\]: Dense\(4, 1\) got"):
        model(torch.ones(5, 2))


def test_arguments_may_be_trees_and_keywords() -> None:
    g = fl.checkpoint(lambda tree, *, scale: {"y": tree["x"] ** 2 * scale, "name": tree["name"]})

    def total(x: Tensor, s: Tensor) -> Any:
        out = g({"x": x, "name": "n"}, scale=s)
        assert out["name"] == "n"
        return out["y"].sum()

    for around in (lambda h: h, lambda h: lambda *a: fl.vmap(h)(*(x[None] for x in a)).sum()):
        by_x, by_s = fl.gradient(around(total), torch.tensor([3.0]), torch.tensor(2.0), argnums=(0, 1))
        assert by_x == 12
        assert by_s == 9


@pytest.mark.parametrize(
    "through",
    [fl.checkpoint, lambda f: fl.custom_gradient(lambda x, b: fl.pullback(f, x, b, argnums=(0, 1)))],
)
def test_an_output_that_all_members_share_counts_once_a_member(through: Any) -> None:
    f = lambda x, b: (x**2, b * x)  # noqa: E731
    b = torch.tensor([1.0, 2.0, 4.0])

    def total(f: Any) -> Any:
        member = lambda x, b: (lambda y: y[0] * 3 + y[1])(f(x, b))  # noqa: E731
        return lambda x, b: fl.vmap(member, (None, 0))(x, b).sum()

    mine, theirs = (fl.gradient(total(g), torch.tensor(2.0), b, argnums=(0, 1)) for g in (through(f), f))
    assert theirs[0] == 3 * 3 * 4 + 7
    same(mine, theirs)
    v = (torch.tensor(1.0), torch.ones(3))
    tangents = [
        fl.pushforward(total(g), torch.tensor(2.0), b, argnums=(0, 1), v=v)[1] for g in (through(f), f)
    ]
    close(*tangents)


def test_an_input_may_come_out_as_it_is() -> None:
    g = fl.checkpoint(lambda x: (x, x * 2, 3))
    for within in (lambda h: h, fl.vmap):
        grads = fl.gradient(lambda x: sum(y.sum() for y in within(lambda x: g(x)[:2])(x)), torch.ones(2))
        assert torch.equal(grads, torch.full((2,), 3.0))


def test_without_gradients_the_function_runs_once() -> None:
    calls = []
    g = fl.checkpoint(lambda x: (calls.append(1), x)[1])
    with torch.no_grad():
        g(torch.ones(1))
    g(torch.ones(1))
    assert len(calls) == 2


def test_several_backward_passes_each_run_it_again() -> None:
    calls = []
    _, back = fl.pullback(fl.checkpoint(lambda x: (calls.append(1), x.exp())[1]), torch.zeros(2))
    for _ in range(2):
        assert torch.equal(back(torch.ones(2)), torch.ones(2))
    assert len(calls) == 3


def test_transforms_inside_it_keep_their_own() -> None:
    def g(x: Tensor) -> Tensor:
        inner = fl.vmap(lambda z: fl.gradient(lambda z: (z * x.sum()) ** 3, z))(x)
        _, tangent = fl.pushforward(lambda z: z.exp() * x, x, v=torch.ones_like(x))
        return inner * fl.jacobian(torch.sin, x).sum(0) + tangent + fl.hvp(lambda z: (z**4).sum(), x, v=x)

    x = torch.randn(3)
    bits(slope(fl.checkpoint(g))(x), slope(g)(x))
    bits(slope(slope(fl.checkpoint(g)))(x), slope(slope(g))(x))


# Memory


def test_what_the_function_computed_is_freed() -> None:
    alive = []

    def g(x: Tensor) -> Tensor:
        y = x.exp()
        alive.append(weakref.ref(y))
        return y.sin()

    _, back = fl.pullback(lambda x: fl.checkpoint(g)(x.cos()), torch.ones(3))
    assert alive[0]() is None
    back(torch.ones(3))
    gc.collect()
    assert alive[1]() is None


def peak(call: Callable[[], Any]) -> int:
    """The most bytes of tensors that a call held at once beyond those at its start."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        kept = call()
    del kept
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = top = 0
    for _, change in changes:
        now += change
        top = max(top, now)
    return top


@pytest.mark.filterwarnings("ignore")  # of the profiler
@pytest.mark.parametrize("where", ["outermost", "gradient of vmap", "vmap of gradient"])
def test_memory_grows_with_the_root_of_the_depth(where: str) -> None:
    layers = [fl.f32(fl.Dense(16, 16, fl.tanh)) for _ in range(64)]
    parts = [fl.Chain(*layers[i : i + 8]) for i in range(0, 64, 8)]
    x = torch.randn(2048, 16, dtype=torch.float32)
    activation = x.nbytes

    def run(model: Any) -> Any:
        if where == "outermost":
            return fl.gradient(lambda m: m(x).sum(), model)
        if where == "gradient of vmap":
            return fl.gradient(lambda m: fl.vmap(lambda x: m(x).sum())(x).sum(), model)
        return fl.vmap(lambda x: fl.gradient(lambda x: model(x).sum(), x))(x)

    assert peak(lambda: run(fl.Chain(*parts))) > 60 * activation
    assert peak(lambda: run(fl.Chain(*map(fl.checkpoint, parts)))) < 25 * activation


def test_what_a_backward_pass_did_not_ask_for_is_freed_after_it() -> None:
    def count() -> int:
        return sum(type(x) is Tensor and x.shape == (1237,) for x in gc.get_objects())

    _, back = fl.pullback(fl.checkpoint(lambda x: (x.sin(), x.cos())), torch.ones(1237))
    before = count()
    slope = back((torch.ones(1237), None))
    del slope
    assert count() == before


def test_a_custom_gradient_inside_it_keeps_nothing_either() -> None:
    alive = []

    @fl.custom_gradient
    def exp(x: Tensor) -> Any:
        y = x.exp()
        alive.append(weakref.ref(y))
        return y * 1, lambda g: g * y

    _, back = fl.pullback(lambda x: fl.checkpoint(lambda x: exp(x).sin())(x), torch.zeros(3))
    assert alive[0]() is None
    assert_close(back(torch.ones(3)), torch.ones(3).cos())


def test_a_checkpoint_in_a_checkpoint_keeps_only_the_input_of_the_outer() -> None:
    alive = []

    def note(x: Tensor) -> Tensor:
        alive.append(weakref.ref(x))
        return x

    inner = [fl.checkpoint(lambda x: note(x.exp()).sin()) for _ in range(3)]

    def outer(x: Tensor) -> Tensor:
        for g in inner:
            x = note(g(x).cos())
        return x.sum()

    _, back = fl.pullback(fl.checkpoint(outer), torch.ones(3))
    assert [ref() for ref in alive] == [None] * 6
    back(1.0)


# Errors


def test_what_is_no_function_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"found a Tensor; write checkpoint\(f\)\(x\)"):
        fl.checkpoint(torch.ones(1))  # type: ignore[arg-type]


def test_a_second_run_that_differs_is_an_error() -> None:
    sizes = iter([2, 3])
    g = fl.checkpoint(lambda x: x.expand(next(sizes)).exp().sum())
    with pytest.raises(RuntimeError, match="did something else when it ran again in the backward pass"):
        fl.gradient(g, torch.ones(1))


def test_an_argument_changed_in_between_is_an_error() -> None:
    def total(x: Tensor) -> Tensor:
        h = x * 1
        y = fl.checkpoint(torch.exp)(h)
        h.add_(1)
        return y.sum()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        fl.gradient(total, torch.ones(1))


def test_handing_a_closed_over_tensor_to_torch_func_inside_functorch_is_an_error() -> None:
    def total(w: Tensor) -> Tensor:
        g = fl.checkpoint(lambda x: torch.func.grad(lambda w: (w * x).sum())(w))
        return fl.vmap(g)(torch.ones(2, 3)).sum()

    with pytest.raises(RuntimeError, match=r"closes over is handed to a transform of torch\.func inside it"):
        fl.gradient(total, torch.ones(3))


def test_torch_func_grad_inside_it_is_an_error_that_names_ours() -> None:
    g = fl.checkpoint(lambda x: torch.func.grad(lambda z: (z**3).sum())(x))
    with pytest.raises(RuntimeError, match="can't run inside; use fluxlike's"):
        fl.gradient(lambda x: g(x).sum(), torch.ones(3))


# Compiled


@pytest.mark.slow
def test_a_compiled_step_saves_the_memory_too() -> None:
    layers = [fl.f32(fl.Dense(16, 16, fl.tanh)) for _ in range(64)]
    parts = [fl.Chain(*layers[i : i + 8]) for i in range(0, 64, 8)]
    x = torch.randn(2048, 16, dtype=torch.float32)
    step = fl.jit(lambda m: fl.gradient(lambda m: m(x).sum(), m))
    whole, light = fl.Chain(*parts), fl.Chain(*map(fl.checkpoint, parts))
    same(fl.Chain(*[p.f for p in step(light).layers]), step(whole), lambda a, b: assert_close(a, b))
    assert peak(lambda: step(light)) < 0.4 * peak(lambda: step(whole))


# Draws in the backward pass


def test_torchs_checkpoint_of_a_layer_that_draws_from_a_key_is_refused():
    model, x = fl.Chain(fl.Dense(3, 4), fl.Dropout(0.5)), torch.randn(2, 3)

    def loss(model, x):
        return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum()

    refused = pytest.raises(RuntimeError, match=r"write fluxlike\.checkpoint")
    with fl.seeded(fl.Key(0)), fl.mode("train"), refused:
        fl.gradient(loss, model, x)


class Noisy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        with fl.seeded(fl.Key(1)):
            return g + fl.random.normal(g.shape)


def test_a_backward_pass_may_draw_from_a_key_that_is_put_in_scope_there():
    with fl.seeded(fl.Key(0)):
        grad = fl.gradient(lambda x: Noisy.apply(x).sum(), torch.ones(3))
    with fl.seeded(fl.Key(1)):
        assert torch.equal(grad, 1 + fl.random.normal((3,)))
