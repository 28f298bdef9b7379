"""`scan` and `cond`: a loop and an if, the same numbers eager, mapped, differentiated and recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils import _pytree

import fluxlike as fl

# torch's own forward mode compiles decompositions with torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual: Any, expected: Any) -> None:
    mine, theirs = fl.fleaves(actual, leaves="all"), fl.fleaves(expected, leaves="all")
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        if isinstance(b, Tensor):
            assert_close(a, b, rtol=1e-10, atol=1e-10)
        else:
            assert (a is None) == (b is None)


def record(f: Callable[..., Any], *args: Tensor) -> Any:
    """The graph that a trace over fake tensors records, as `jit` does."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = [mode.from_tensor(x, static_shapes=True) for x in args]
    with mode:
        return make_fx(f)(*fake)


def traced(f: Callable[..., Any], *args: Tensor) -> Any:
    """What the recorded graph of ``f(*args)`` computes, None and constants included."""
    kept: list[Any] = []

    def flat(*xs: Tensor) -> list[Tensor]:
        leaves, treedef = _pytree.tree_flatten(f(*xs))
        kept[:] = [treedef, [None if isinstance(x, Tensor) else (x,) for x in leaves]]
        return [x for x in leaves if isinstance(x, Tensor)]

    found = iter(record(flat, *args)(*args))
    treedef, constants = kept
    return _pytree.tree_unflatten([next(found) if c is None else c[0] for c in constants], treedef)


def operations(graph: Any, name: str) -> int:
    """How often an operation stands in a recorded graph, outside of loops and branches."""
    return sum(n.op == "call_function" and str(n.target) == name for n in graph.graph.nodes)


def eager(f: Callable[..., Any], *args: Tensor) -> Any:
    return f(*args)


def mapped(f: Callable[..., Any], *args: Tensor) -> Any:
    """What one member of a vmap computes that maps over nothing."""
    leaves, treedef = _pytree.tree_flatten(f(*args))
    where = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]

    def member(_: Tensor) -> tuple[Tensor, ...]:
        return tuple(_pytree.tree_leaves(f(*args))[i] for i in where)

    found = torch.func.vmap(member, randomness="same")(torch.zeros(2))
    for i, x in zip(where, found, strict=True):
        leaves[i] = x[1]
    return _pytree.tree_unflatten(leaves, treedef)


RUNS = [eager, mapped, traced]
run_everywhere = pytest.mark.parametrize("run", RUNS)


# scan: the loop


def loop(f: Any, carry: Any, xs: Tensor) -> tuple[Any, Any]:
    ys = []
    for x in xs:
        carry, y = f(carry, x)
        ys.append(y)
    return carry, None if ys[0] is None else torch.stack(ys)


W, U, H, XS = randn(3, 3, seed=1), randn(3, 3, seed=2), randn(2, 3, seed=3), randn(5, 2, 3, seed=4)


def cell(w: Tensor, u: Tensor) -> Any:
    def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(x @ w + h @ u)
        return h, 2 * h

    return step


@run_everywhere
def test_a_scan_is_a_loop(run: Any) -> None:
    close(run(lambda w, u, h, xs: fl.scan(cell(w, u), h, xs), W, U, H, XS), loop(cell(W, U), H, XS))


def by_hand(f: Any, *args: Tensor) -> Any:
    leaves = [x.clone().requires_grad_() for x in args]
    return torch.autograd.grad(f(*leaves), leaves)


def with_scan(w: Tensor, u: Tensor, h: Tensor, xs: Tensor) -> Tensor:
    last, ys = fl.scan(cell(w, u), h, xs)
    return (ys**3).sum() + (last * torch.arange(3)).sum()


def with_loop(w: Tensor, u: Tensor, h: Tensor, xs: Tensor) -> Tensor:
    last, ys = loop(cell(w, u), h, xs)
    return (ys**3).sum() + (last * torch.arange(3)).sum()


@run_everywhere
def test_its_gradient_is_that_of_the_loop_by_all_that_it_takes_and_closes_over(run: Any) -> None:
    f = lambda *args: fl.gradient(with_scan, *args, argnums=(0, 1, 2, 3))  # noqa: E731
    close(run(f, W, U, H, XS), by_hand(with_loop, W, U, H, XS))


@run_everywhere
def test_gradients_of_its_gradient_are_those_of_the_loop(run: Any) -> None:
    def penalty(w: Tensor, u: Tensor, h: Tensor, xs: Tensor) -> Tensor:
        grads = fl.gradient(with_scan, w, u, h, xs, argnums=(0, 3))
        return (grads[0] ** 2).sum() + (grads[1] ** 3).sum()

    def penalty_by_hand(w: Tensor, u: Tensor, h: Tensor, xs: Tensor) -> Tensor:
        grads = torch.autograd.grad(with_loop(w, u, h, xs), [w, xs], create_graph=True)
        return (grads[0] ** 2).sum() + (grads[1] ** 3).sum()

    f = lambda *args: fl.gradient(penalty, *args, argnums=(0, 1, 2, 3))  # noqa: E731
    close(run(f, W, U, H, XS), by_hand(penalty_by_hand, W, U, H, XS))


def test_gradcheck_holds() -> None:
    args = [x.clone().requires_grad_() for x in (W, U, H, XS)]
    assert torch.autograd.gradcheck(with_scan, args)
    assert torch.autograd.gradgradcheck(with_scan, args)


@run_everywhere
def test_it_works_in_forward_mode(run: Any) -> None:
    def jvp(w: Tensor, xs: Tensor) -> Any:
        return torch.func.jvp(lambda w, xs: with_scan(w, U, H, xs), (w, xs), (xs[0, 0] * w, 2 * xs))

    expected = torch.func.jvp(lambda w, xs: with_loop(w, U, H, xs), (W, XS), (XS[0, 0] * W, 2 * XS))
    close(run(jvp, W, XS), expected)


@pytest.mark.parametrize("outer", [eager, traced])
def test_it_maps_over_carries_inputs_and_what_it_closes_over(outer: Any) -> None:
    f = lambda w, h: torch.func.vmap(lambda w, h: fl.scan(cell(w, U), h, XS), in_dims=(0, 0))(w, h)  # noqa: E731
    ws, hs = torch.stack([W, 2 * W]), torch.stack([H, -H])
    last, ys = outer(f, ws, hs)
    for i in range(2):
        close((last[i], ys[i]), loop(cell(ws[i], U), hs[i], XS))


# scan: the trace


def steps_of(length: int) -> Any:
    def step(w: Tensor, xs: Tensor) -> Any:
        grads = fl.gradient(lambda w: fl.scan(cell(w, U), H, xs)[1].sum(), w)
        return w - grads

    return record(step, W, XS[:1].expand(length, 2, 3))


def test_a_recorded_loop_is_one_operation_forward_and_one_backward_of_any_length() -> None:
    short, long = steps_of(3), steps_of(300)
    assert operations(long, "scan") == 2
    assert len(long.graph.nodes) == len(short.graph.nodes) < 50


def test_without_a_gradient_no_carries_are_kept() -> None:
    graph = record(lambda w, xs: fl.scan(cell(w, U), H, xs)[0], W, XS)
    (node,) = [n for n in graph.graph.nodes if str(n.target) == "scan"]
    assert len(node.meta["val"]) == 2


def kept_by(turn: Any) -> int:
    """How many tensors of each turn the first loop of a gradient stacks."""
    f = lambda h, xs: [fl.gradient(lambda h: fl.scan(turn, h, xs)[0].sum(), h)]  # noqa: E731
    graph = record(f, H, XS)
    close(graph(H, XS), f(H, XS))
    return len(next(n for n in graph.graph.nodes if str(n.target) == "scan").meta["val"]) - 1


def test_a_recorded_loop_keeps_what_autograd_keeps_and_a_checkpoint_its_carry() -> None:
    def body(h: Tensor, x: Tensor) -> Tensor:
        for _ in range(4):
            h = torch.sin(h @ W + x)
        return h

    assert kept_by(lambda h, x: (body(h, x), None)) == 4
    assert kept_by(lambda h, x: (fl.checkpoint(body)(h, x), None)) == 1
    assert kept_by(lambda h, x: (torch.tanh(h), None)) == 1


def test_what_is_stacked_is_not_kept_twice_and_views_not_at_all() -> None:
    def turn(h: Tensor, x: Tensor) -> Any:
        y = torch.tanh(h.T @ x)
        return h + y.sum(), y

    assert kept_by(turn) == 1  # tanh keeps y, the product keeps x


def test_loops_in_loops_are_one_operation_each() -> None:
    def f(w: Tensor, xs: Tensor) -> Tensor:
        def outer(h: Tensor, x: Tensor) -> Any:
            inner, _ = fl.scan(lambda c, row: (torch.sin(c @ w + row), None), h, x)
            return inner, inner.sum()

        return fl.scan(outer, H[0], xs)[1].sum()

    def unrolled(w: Tensor, xs: Tensor) -> Tensor:
        h, total = H[0], []
        for x in xs:
            for row in x:
                h = torch.sin(h @ w + row)
            total.append(h.sum())
        return torch.stack(total).sum()

    step = lambda w, xs: fl.gradient(f, w, xs, argnums=(0, 1))  # noqa: E731
    close(traced(step, W, XS), by_hand(unrolled, W, XS))
    graph = record(lambda w, xs: list(step(w, xs)), W, XS)
    assert operations(graph, "scan") == 2


@run_everywhere
def test_what_is_not_reached_has_no_gradient(run: Any) -> None:
    def f(m: dict[str, Tensor], xs: Tensor) -> Tensor:
        def step(carry: Any, x: Tensor) -> Any:
            a, b = carry
            return (a * m["a"] + m["chained"], b + a), {"used": x * m["used"], "unused": x * m["unused"]}

        (_, b), ys = fl.scan(step, (m["start"], m["start"]), xs)
        return b.sum() + ys["used"].sum()

    def grads(*tensors: Tensor) -> Any:
        names = ["a", "chained", "used", "unused", "start", "elsewhere"]
        return fl.gradient(f, dict(zip(names, tensors, strict=True)), XS[:, 0])

    found = run(grads, *(randn(3, seed=i) for i in range(6)))
    assert {name for name, g in found.items() if g is None} == {"elsewhere", "unused"}


@run_everywhere
def test_a_tensor_closed_over_twice_through_another_counts_once_each_way(run: Any) -> None:
    def f(e: Tensor, xs: Tensor, go: Any) -> Tensor:
        memory = torch.tanh(e @ e)  # closed over, and made of another tensor that is closed over
        return go(lambda h, x: (torch.sin(h @ memory + x @ e), h.sum()), H, xs)[1].sum()

    grads = lambda e, xs: fl.gradient(lambda e: f(e, xs, fl.scan), e)  # noqa: E731
    close(run(grads, W, XS), by_hand(lambda e: f(e, XS, loop), W)[0])


@run_everywhere
def test_a_gradient_inside_a_turn_is_differentiated_from_outside(run: Any) -> None:
    def f(w: Tensor, xs: Tensor, inner: Any, go: Any) -> Tensor:
        def step(v: Tensor, x: Tensor) -> Any:
            return v - 0.1 * inner(lambda v: torch.sin(x @ v * w[0]).sum(), v), v.sum()

        return (go(step, 2 * w, xs)[0] ** 2).sum()

    def by_autograd(g: Any, v: Tensor) -> Tensor:
        return torch.autograd.grad(g(v), v, create_graph=True)[0]

    grads = lambda w, xs: fl.gradient(lambda w: f(w, xs, fl.gradient, fl.scan), w)  # noqa: E731
    close(run(grads, W, XS), by_hand(lambda w: f(w, XS, by_autograd, loop), W)[0])


class Straight(torch.autograd.Function):
    """The sign, with the gradient of the identity."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


@pytest.mark.parametrize("where", ["carry", "closed over", "made of what is closed over"])
def test_a_gradient_of_the_users_own_holds_in_a_recorded_turn(where: str) -> None:
    def f(w: Tensor, xs: Tensor, go: Any) -> Tensor:
        def step(h: Tensor, x: Tensor) -> Any:
            if where == "carry":
                return torch.tanh(Straight.apply(h) * w[0] + x), None
            if where == "closed over":
                return torch.tanh(x @ Straight.apply(w) + h), None
            return torch.tanh(x @ Straight.apply(2 * w) + h), None

        return go(lambda h, x: (step(h, x)[0], h.sum()), H, xs)[0].sum()

    grads = lambda w, xs: fl.gradient(lambda w: f(w, xs, fl.scan), w)  # noqa: E731
    close(traced(grads, W, XS), by_hand(lambda w: f(w, XS, loop), W)[0])


@pytest.mark.parametrize(
    "step",
    [
        lambda h, x: (x, h),
        lambda h, x: (h.T.contiguous().T, x.T),
        lambda h, x: (H, H),
        lambda h, x: (h, h),
        lambda h, x: (x[0].expand(2, 3), h[:, :1]),
        lambda h, x: ((h @ W).t().clone().t(), torch.arange(3)),
        lambda h, x: (torch.sin(h), None),
        lambda h, x: (torch.tanh(h), torch.exp(h)),
    ],
)
def test_views_and_inputs_may_be_returned_from_a_recorded_turn(step: Any) -> None:
    f = lambda h, xs: fl.scan(step, h, xs)  # noqa: E731
    close(traced(f, H, XS), loop(step, H, XS))
    g = lambda h, xs: fl.gradient(lambda h: (fl.scan(step, h, xs)[0] ** 2).sum(), h)  # noqa: E731
    close(traced(g, H, XS), g(H, XS))
    # This, which `jit` does too, refuses loops that return their inputs' memory.
    tensors = lambda tree: [x for x in tree if x is not None]  # noqa: E731
    graph = record(lambda h, xs: tensors([*f(h, xs), g(h, xs)]), H, XS)
    again = record(torch.func.functionalize(graph), H, XS)
    close(again(H, XS), tensors([*loop(step, H, XS), g(H, XS)]))


def test_a_turn_may_write_to_tensors_of_its_own() -> None:
    def f(w: Tensor, xs: Tensor, go: Any) -> Tensor:
        def step(h: Tensor, x: Tensor) -> Any:
            mine = torch.zeros_like(w)
            mine[0] = h.sum() * w[0]
            mine.mul_(2)
            return torch.sin(h @ mine + x), mine.exp().sum()

        last, ys = go(step, H, xs)
        return last.sum() + ys.sum()

    grads = lambda w, xs: fl.gradient(lambda w: f(w, xs, fl.scan), w)  # noqa: E731
    close(traced(grads, W, XS), by_hand(lambda w: f(w, XS, loop), W)[0])


# scan: trees


def test_a_stack_of_layers_is_looped_over_layer_by_layer() -> None:
    layers = [fl.f64(fl.Dense(3, 3, fl.tanh)) for _ in range(4)]
    x = H
    for layer in layers:
        x = layer(x)
    close(fl.scan(lambda h, layer: (layer(h), None), H, fl.stack(layers))[0], x)


@run_everywhere
def test_constants_none_and_ties_go_through(run: Any) -> None:
    def f(h: Tensor, xs: Tensor) -> Any:
        def step(carry: Any, x: Any) -> Any:
            assert carry["name"] == "c"
            assert x["again"] is x["x"]
            assert x["f"] is torch.sin
            h = carry["h"] + x["f"](x["x"])
            return {"h": h, "name": "c", "none": None}, [h, h, "text", None, (2 * h,)]

        return fl.scan(step, {"h": h, "name": "c", "none": None}, {"x": xs, "again": xs, "f": torch.sin})

    carry, ys = run(f, H, XS)
    assert carry["name"] == "c"
    assert ys[2:4] == ["text", None]
    assert ys[0] is ys[1] or run is mapped
    close(ys[0], H + torch.sin(XS).cumsum(0))
    close(ys[4][0], 2 * ys[0])


@run_everywhere
def test_a_carry_whose_ties_come_apart_is_carried_apart(run: Any) -> None:
    def f(h: Tensor, xs: Tensor) -> Any:
        return fl.scan(lambda c, x: ((c[0] + x, c[1] * x), c[1].sum()), (h, h), xs)

    (total, product), _ = run(f, H, XS)
    close(total, H + XS.sum(0))
    close(product, H * XS.prod(0))


def test_a_tied_model_in_the_carry_is_trained_tied() -> None:
    def train(w: Tensor, xs: Tensor) -> Any:
        model = {"a": w, "b": w}
        state = fl.setup(fl.Momentum(0.1), model)

        def step(carry: Any, x: Tensor) -> Any:
            model, state = carry
            value, grads = fl.withgradient(lambda m: ((x @ m["a"] @ m["b"].T) ** 2).mean(), model)
            assert grads["b"] is None
            model, state = fl.update(state, model, grads)
            return (model, state), value

        return fl.scan(step, (model, state), xs)

    (model, _), losses = train(W, XS)
    assert model["a"] is model["b"]
    (other, _), recorded = traced(train, W, XS)
    close(recorded, losses)
    close(other["a"], model["a"])
    assert losses[-1] < losses[0]


def test_gradients_with_assigned_buffers_can_be_stacked() -> None:
    norm = fl.f64(fl.BatchNorm(3))
    _, grads = fl.scan(lambda c, x: (c, fl.gradient(lambda m: m(x).square().sum(), norm)), None, XS)
    assert isinstance(grads.running_mean, fl.Assigned)
    close(grads.running_mean.value, 0.1 * XS.mean(1))


@run_everywhere
def test_integers_and_other_dtypes_are_carried(run: Any) -> None:
    def f(i: Tensor, xs: Tensor) -> Any:
        step = lambda c, x: ((c[0] + 1, x > 0, c[2] * 1j), c[0])  # noqa: E731
        return fl.scan(step, (i, xs[0] > 0, torch.complex(xs[0], xs[0])), xs)

    (count, positive, turned), seen = run(f, torch.tensor(3), XS[:, 0])
    assert count.item() == 8
    assert positive.tolist() == (XS[-1, 0] > 0).tolist()
    close(turned, torch.complex(XS[0, 0], XS[0, 0]) * 1j**5)
    assert seen.tolist() == [3, 4, 5, 6, 7]


@run_everywhere
def test_length_alone_is_a_loop_without_inputs(run: Any) -> None:
    f = lambda h: fl.scan(lambda c, x: (2 * c, c.sum() if x is None else x), h, None, length=4)  # noqa: E731
    last, sums = run(f, H)
    close(last, 16 * H)
    close(sums, H.sum() * torch.tensor([1, 2, 4, 8]))


@run_everywhere
def test_no_turn_gives_the_carry_and_empty_stacks(run: Any) -> None:
    f = lambda h, xs: fl.scan(lambda c, x: (c + x, {"y": c[0], "n": "n"}), h, xs)  # noqa: E731
    last, ys = run(f, H, XS[:0])
    close(last, H)
    assert ys["y"].shape == (0, 3)
    assert ys["y"].dtype == torch.float64
    assert ys["n"] == "n"


def test_no_turn_assigns_and_draws_nothing() -> None:
    model = fl.Chain(fl.BatchNorm(3), fl.Dropout(0.5))
    state = torch.get_rng_state()
    _, updates = fl.withupdates(lambda m: fl.scan(lambda c, x: (c, m(x)), None, XS[:0].float()), model)
    assert updates.layers[0].running_mean is None
    assert torch.equal(torch.get_rng_state(), state)


def test_plain_autograd_goes_through_it() -> None:
    h = nn.Parameter(H.clone())
    fl.scan(cell(W, U), h, XS)[1].sum().backward()
    assert h.grad is not None


def test_it_is_pure() -> None:
    assert fl.check_pure(lambda h, xs: fl.scan(cell(W, U), h, xs), H, XS)


# scan: the scope


@pytest.mark.parametrize("run", [eager, traced])
def test_assigned_buffers_go_on_from_turn_to_turn(run: Any) -> None:
    norm = fl.f64(fl.BatchNorm(3))

    def f(xs: Tensor, x: Tensor) -> Any:
        def forward(m: Any) -> Tensor:
            m(x)  # assigned before the loop as well
            return fl.scan(lambda c, x: (c + m(x).sum(), None), torch.zeros((), dtype=xs.dtype), xs)[0]

        grads = fl.gradient(forward, norm)
        return grads.running_mean, grads.running_var, grads.weight

    theirs = nn.BatchNorm1d(3).double()
    for x in [H, *XS]:
        theirs(x)
    mean, var, _ = run(f, XS, H)
    close((mean.value, var.value), (theirs.running_mean, theirs.running_var))


@pytest.mark.parametrize("run", [eager, traced])
def test_a_turn_reads_what_the_turn_before_assigned(run: Any) -> None:
    @fl.functor(buffers=("calls",))
    class Counting:
        def __init__(self) -> None:
            self.calls = torch.tensor(0)

        def __call__(self) -> Tensor:
            fl.assign(self.calls, fl.current(self.calls) + 1)
            return fl.current(self.calls)

    def f(x: Tensor) -> Any:
        (_, seen), updates = fl.withupdates(lambda m: fl.scan(lambda c, _: (c, m()), None, x), Counting())
        return seen, updates

    seen, updates = run(f, torch.zeros(4))
    assert seen.tolist() == [1, 2, 3, 4]
    assert updates.calls.value.item() == 4


def seeded_draws(seed: Tensor, xs: Tensor) -> Any:
    def step(c: Tensor, x: Tensor) -> Any:
        return c, (fl.random.uniform((2,)), fl.Dropout(0.5)(x))

    with fl.seeded(fl.Key(0).fold_in(seed)), fl.mode("train"):
        first = fl.scan(step, torch.zeros(1), xs)[1]
        second = fl.scan(step, torch.zeros(1), xs)[1]
        return first, second, fl.random.uniform((2,))


def test_draws_of_a_key_differ_from_turn_to_turn_and_agree_with_the_trace() -> None:
    args = torch.tensor(5), torch.ones(4, 10)
    first, second, after = seeded_draws(*args)
    rows = torch.cat([first[0], second[0], after[None]])
    assert len(rows.unique(dim=0)) == 9
    close(traced(seeded_draws, *args), (first, second, after))


def test_dropout_with_a_key_has_one_mask_forward_and_backward() -> None:
    def f(w: Tensor, xs: Tensor) -> Any:
        def forward(w: Tensor) -> Any:
            with fl.mode("train"):
                return fl.scan(lambda c, x: (c + fl.Dropout(0.5)(x * w).sum(), None), w.sum() * 0, xs)[0]

        return fl.withgradient(forward, w, key=fl.Key(1))

    value, grads = traced(f, W, XS[:, :1].expand(5, 3, 3))
    close((value, grads), f(W, XS[:, :1].expand(5, 3, 3)))


def test_dropout_without_a_key_has_one_mask_forward_and_backward() -> None:
    def f(w: Tensor, xs: Tensor) -> Any:
        def forward(w: Tensor) -> Tensor:
            step = lambda c, x: (c + torch.nn.functional.dropout(x * w).sum(), None)  # noqa: E731
            return fl.scan(step, w.sum() * 0, xs)[0]

        return fl.withgradient(forward, w)

    value, grads = traced(f, W[0], XS[:, 0])
    close((grads * W[0]).sum(), value)  # the value is linear in w


# scan: errors


@pytest.mark.parametrize(
    ("f", "carry", "xs", "error", "says"),
    [
        (torch.zeros(1), H, XS, TypeError, "found Tensor as the function"),
        (lambda c, x: c, H, XS, TypeError, "found a Tensor; write return carry, y"),
        (lambda c, x: (c, x, x), H, XS, TypeError, "found a tuple of 3"),
        (lambda c, x: (c, x), H, None, ValueError, "give length="),
        (lambda c, x: (c, x), H, torch.tensor(1.0), ValueError, "xs is a 0-d tensor"),
        (
            lambda c, x: (c, None),
            H,
            {"a": XS, "b": XS[:2]},
            ValueError,
            r"\['a'\] has 5, \['b'\] has 2",
        ),
        (
            lambda c, x: ({"h": c["h"][0]}, x),
            {"h": H},
            XS,
            ValueError,
            r"returned is float64\[3\] at \['h'\], the carry float64\[2, 3\]; a carry stays",
        ),
        (
            lambda c, x: ({"h": c["h"].float()}, x),
            {"h": H},
            XS,
            ValueError,
            r"float32\[2, 3\] at \['h'\], the carry float64\[2, 3\]",
        ),
        (
            lambda c, x: (c + x.sum(), x),
            0.0,
            XS,
            ValueError,
            r"a tensor float64\[\] at the root.*the constant 0.0",
        ),
        (lambda c, x: (c + 1, x), 0, XS, ValueError, "the constant 1 at the root, the carry the constant 0"),
        (lambda c, x: ([c], x), H, XS, ValueError, "at the root, .* has a list, the carry has a leaf"),
    ],
)
@pytest.mark.parametrize("run", [eager, traced])
def test_an_error_of_scan_says_what_to_write(
    f: Any, carry: Any, xs: Any, error: Any, says: str, run: Any
) -> None:
    with pytest.raises(error, match=says):
        run(lambda _: fl.scan(f, carry, xs), torch.zeros(1))


def test_what_is_stacked_has_one_form() -> None:
    turns = iter([torch.zeros(2), torch.zeros(3)])
    with pytest.raises(ValueError, match=r"what turn 1 of scan returned to stack is float32\[3\] at \['y'\]"):
        fl.scan(lambda c, x: (c, {"y": next(turns)}), None, XS)


def test_a_length_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="length=3, and xs has 5"):
        fl.scan(lambda c, x: (c, x), H, XS, length=3)


# cond: the if


def root_or_line(x: Tensor, w: Tensor) -> Any:
    return fl.cond(x.sum() > 0, lambda x, w: (w @ x).sin(), lambda x, w: 2 * x * w.sum(), x, w)


def by_if(x: Tensor, w: Tensor) -> Any:
    return (w @ x).sin() if x.sum() > 0 else 2 * x * w.sum()


SIGNS = [torch.ones(3, dtype=torch.float64), -torch.ones(3, dtype=torch.float64)]
both_ways = pytest.mark.parametrize("x", SIGNS, ids=["true", "false"])


@both_ways
@run_everywhere
def test_a_cond_is_an_if(run: Any, x: Tensor) -> None:
    close(run(root_or_line, x, W), by_if(x, W))


@both_ways
@run_everywhere
def test_its_gradient_is_that_of_the_branch_taken(run: Any, x: Tensor) -> None:
    f = lambda x, w: fl.gradient(lambda x, w: (root_or_line(x, w) ** 2).sum(), x, w, argnums=(0, 1))  # noqa: E731
    close(run(f, x, W), by_hand(lambda x, w: (by_if(x, w) ** 2).sum(), x, W))


@both_ways
@run_everywhere
def test_gradients_of_its_gradient_are_those_of_the_branch_taken(run: Any, x: Tensor) -> None:
    def penalty(x: Tensor, w: Tensor) -> Tensor:
        return (fl.gradient(lambda x: (root_or_line(x, w) ** 3).sum(), x) ** 2).sum()

    def penalty_by_hand(x: Tensor, w: Tensor) -> Tensor:
        return (torch.autograd.grad((by_if(x, w) ** 3).sum(), x, create_graph=True)[0] ** 2).sum()

    f = lambda x, w: fl.gradient(penalty, x, w, argnums=(0, 1))  # noqa: E731
    close(run(f, x, W), by_hand(penalty_by_hand, x, W))


@both_ways
@run_everywhere
def test_what_the_branches_close_over_is_differentiated(run: Any, x: Tensor) -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        return (fl.cond(x.sum() > 0, lambda: (w @ x).sin(), lambda: 2 * x * w.sum()) ** 2).sum()

    grads = lambda x, w: fl.gradient(f, x, w, argnums=(0, 1))  # noqa: E731
    close(run(grads, x, W), by_hand(lambda x, w: (by_if(x, w) ** 2).sum(), x, W))


@run_everywhere
def test_cond_works_in_forward_mode(run: Any) -> None:
    for x in SIGNS:
        f = lambda x, w: torch.func.jvp(root_or_line, (x, w), (2 * x, w + 1))  # noqa: E731
        close(run(f, x, W), torch.func.jvp(by_if, (x, W), (2 * x, W + 1)))


def test_one_branch_alone_runs_where_there_is_a_value() -> None:
    ran = []
    fl.cond(torch.tensor(True), lambda: ran.append("true"), lambda: ran.append("false"))
    fl.gradient(
        lambda x: fl.cond(x.sum() < 0, lambda x: ran.append("no"), lambda x: x.sum(), x), torch.ones(2)
    )
    assert ran == ["true"]


@pytest.mark.parametrize("pred", [True, False, torch.tensor(True), torch.tensor(False)])
def test_pred_may_be_a_bool(pred: Any) -> None:
    assert fl.cond(pred, lambda: "yes", lambda: "no") == ("yes" if pred else "no")


# cond: under vmap


PREDS = torch.tensor([-4.0, 4.0, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("run", [eager, traced])
def test_each_member_takes_its_own_branch(run: Any) -> None:
    f = lambda xs: fl.vmap(lambda x: fl.cond(x > 0, torch.sqrt, lambda x: -x, x))(xs)  # noqa: E731
    close(run(f, PREDS), torch.tensor([4.0, 2.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("run", [eager, traced])
@pytest.mark.parametrize("outside", [True, False])
def test_nan_of_the_branch_not_taken_reaches_no_gradient(run: Any, outside: bool) -> None:
    def f(xs: Tensor) -> Tensor:
        one = lambda x: fl.cond(x > 0, torch.sqrt, torch.zeros_like, x)  # noqa: E731
        if outside:
            return fl.gradient(lambda xs: fl.vmap(one)(xs).sum(), xs)
        return fl.vmap(lambda x: fl.gradient(one, x))(xs)

    assert run(f, PREDS).tolist() == [0.0, 0.25, 0.0]


def test_nan_of_the_branch_not_taken_reaches_no_second_derivative_and_no_tangent() -> None:
    one = lambda x: fl.cond(x > 0, lambda x: x**1.5, torch.zeros_like, x)  # noqa: E731
    second = torch.func.vmap(torch.func.grad(torch.func.grad(one)))(PREDS)
    assert_close(second, torch.tensor([0.0, 0.375, 0.0], dtype=torch.float64))
    tangents = torch.func.jvp(torch.func.vmap(one), (PREDS,), (torch.ones_like(PREDS),))[1]
    assert_close(tangents, torch.tensor([0.0, 3.0, 0.0], dtype=torch.float64))


def test_a_mapped_operand_under_one_pred_runs_one_branch() -> None:
    ran = []

    def note(name: str) -> Any:
        return lambda x: ran.append(name) or x

    fl.vmap(lambda x: fl.cond(torch.tensor(True), note("true"), note("false"), x))(PREDS)
    assert ran == ["true"]


# cond: trees and the scope


@pytest.mark.parametrize("run", [eager, traced])
def test_trees_with_constants_none_and_ties_come_out(run: Any) -> None:
    def f(x: Tensor) -> Any:
        one = lambda x: [x, x, "text", None, {"n": 3, "y": 2 * x}]  # noqa: E731
        other = lambda x: [-x, -x if False else x, "text", None, {"n": 3, "y": x}]  # noqa: E731
        return fl.cond(x.sum() > 0, one, other, x)

    x = torch.tensor([1.0, 2.0])
    out = run(f, x)
    assert out[2:4] == ["text", None]
    assert out[4]["n"] == 3
    close((out[0], out[1], out[4]["y"]), (x, x if out[0] is out[1] else x.clone(), 2 * x))
    close(run(f, -x)[0], x)


@pytest.mark.parametrize("run", [eager, traced])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_branch_taken_assigns(run: Any, sign: float) -> None:
    norm, other = fl.f64(fl.BatchNorm(3)), fl.f64(fl.BatchNorm(3))

    def f(x: Tensor) -> Any:
        def forward(m: Any) -> Tensor:
            return fl.cond(x.sum() > 0, lambda m, x: m[0](x).sum(), lambda m, x: m[1](x).sum(), m, x)

        return fl.gradient(forward, [norm, other])

    x = XS[0].abs() * sign
    grads = run(f, x)
    moved, still = grads if sign > 0 else grads[::-1]
    close(moved.running_mean.value, 0.1 * x.mean(0))
    assert still.running_mean is None or torch.equal(still.running_mean.value, torch.zeros(3).double())


def test_members_assign_by_their_own_branch() -> None:
    @fl.functor(buffers=("seen",))
    class Seen:
        def __init__(self) -> None:
            self.seen = torch.zeros(())

        def __call__(self, x: Tensor) -> Tensor:
            fl.assign(self.seen, x)
            return x

    def one(m: Any, x: Tensor) -> Any:
        return fl.withupdates(lambda m: fl.cond(x > 0, m, lambda x: 2 * x, x), m)

    out, updates = fl.vmap(one, in_dims=(None, 0))(Seen(), torch.tensor([1.0, -1.0]))
    assert out.tolist() == [1.0, -2.0]
    assert updates.seen.value.tolist() == [1.0, 0.0]


def test_draws_are_the_same_whether_one_branch_runs_or_both() -> None:
    def f(x: Tensor) -> Any:
        with fl.seeded(fl.Key(0)):
            drawn = fl.cond(
                x.sum() > 0,
                lambda: fl.random.uniform((2,)) + fl.random.uniform((2,)),
                lambda: fl.random.uniform((2,)),
            )
            return drawn, fl.random.uniform((2,))

    for x in SIGNS:
        close(traced(f, x), f(x))
    pair = fl.vmap(f)(torch.stack(SIGNS)) if False else None
    assert pair is None
    assert torch.equal(f(SIGNS[0])[1], f(SIGNS[1])[1])
    assert not torch.equal(f(SIGNS[1])[0], f(SIGNS[1])[1])


def test_the_draw_of_a_branch_is_that_of_no_turn_of_a_loop() -> None:
    with fl.seeded(fl.Key(0)):
        drawn = [fl.cond(True, lambda: fl.random.uniform((1,)), lambda: 0) for _ in range(4)]
        looped = fl.scan(lambda c, x: (c, fl.random.uniform((1,))), None, torch.zeros(8))[1]
    assert len(torch.cat([*drawn, *looped]).unique()) == 12


# cond: the trace


def test_a_recorded_cond_is_one_operation_forward_and_one_backward() -> None:
    step = lambda x, w: fl.gradient(lambda w: root_or_line(x, w).sum(), w)  # noqa: E731
    assert operations(record(step, SIGNS[0], W), "cond") == 2


def test_a_recorded_cond_that_draws_without_a_key_has_one_mask_forward_and_backward() -> None:
    def f(w: Tensor, x: Tensor) -> Any:
        drop = lambda w: torch.nn.functional.dropout(w * x).sum()  # noqa: E731
        return fl.withgradient(lambda w: fl.cond(x.sum() > 0, drop, lambda w: w.sum(), w), w)

    value, grads = traced(f, W[0], SIGNS[0])
    close((grads * W[0]).sum(), value)


def test_a_gradient_of_the_users_own_holds_in_a_recorded_branch() -> None:
    def f(w: Tensor, x: Tensor) -> Tensor:
        return fl.gradient(
            lambda w: fl.cond(x.sum() > 0, lambda: (Straight.apply(w) @ x).sum(), lambda: x.sum()), w
        )

    for x in SIGNS[:1]:
        close(traced(f, W, x), by_hand(lambda w: (Straight.apply(w) @ x).sum(), W)[0])


def test_a_cond_in_a_loop_and_a_loop_in_a_cond() -> None:
    def f(h: Tensor, xs: Tensor) -> Tensor:
        def step(h: Tensor, x: Tensor) -> Any:
            count = lambda h: fl.scan(lambda c, row: (torch.sin(c) + row, None), h, x)[0]  # noqa: E731
            return fl.cond(x.sum() > 0, count, torch.cos, h), None

        return fl.scan(step, h, xs)[0].sum()

    def unrolled(h: Tensor, xs: Tensor) -> Tensor:
        for x in xs:
            if x.sum() > 0:
                for row in x:
                    h = torch.sin(h) + row
            else:
                h = torch.cos(h)
        return h.sum()

    grads = lambda h, xs: fl.gradient(f, h, xs, argnums=(0, 1))  # noqa: E731
    expected = by_hand(unrolled, H[0], XS)
    close(grads(H[0], XS), expected)
    close(traced(grads, H[0], XS), expected)


# cond: errors


@pytest.mark.parametrize(
    ("pred", "error", "says"),
    [
        (torch.tensor([True, False]), ValueError, r"found the shape \(2,\); reduce it with .any\(\)"),
        (torch.tensor(1.0), ValueError, "found torch.float32; write x != 0"),
        (1, TypeError, "found int 1"),
        (None, TypeError, "found NoneType None"),
    ],
)
def test_a_wrong_pred_is_an_error(pred: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        fl.cond(pred, torch.sin, torch.cos, H)


def test_a_branch_that_is_no_function_is_an_error() -> None:
    with pytest.raises(TypeError, match="found Tensor as false_fn"):
        fl.cond(True, torch.sin, H, H)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (lambda x: {"y": x}, lambda x: {"y": x[None]}, r"false_fn returned is float64\[1\] at \['y'\]"),
        (lambda x: [x], lambda x: [x.float()], r"is float32\[\] at \[0\], what true_fn returned float64\[\]"),
        (lambda x: [x, "a"], lambda x: [x, "b"], r"the constant 'b' at \[1\], .* the constant 'a'"),
        (lambda x: [x], lambda x: (x,), "differ in structure"),
        (lambda x: x, lambda x: 0.0, "the constant 0.0 at the root"),
    ],
)
def test_branches_of_different_forms_are_an_error_that_names_the_place(
    one: Any, other: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        fl.vmap(lambda x: fl.cond(x > 0, one, other, x))(PREDS)
    with pytest.raises(ValueError, match=says):
        traced(lambda x: fl.cond(x > 0, one, other, x), PREDS[0])
