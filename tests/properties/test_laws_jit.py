"""Laws of `jit`: compiled, eager, mapped and torch.func's own numbers agree, whatever is compiled."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fluxlike as fl
from fluxlike.trees.structure import flatten
from tests.optimisers.rule_cases import CASES
from tests.properties.strategies import leaves_of, same_content, ties, trees

D = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:setup found no parameter")

#: Few examples, since each is traced; fewer where each is compiled.
law = settings(max_examples=8, deadline=None)
compiled_law = settings(max_examples=4, deadline=None)
tree_law = settings(max_examples=30, deadline=None)


def recorded() -> AbstractContextManager[Any]:
    """Run the recorded graphs operation by operation, as where there is no compiler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fluxlike._private.compiler import build
    return mock.patch.object(build, "_can_compile", return_value=False)


ENGINES = pytest.mark.parametrize(
    "engine", [recorded, pytest.param(nullcontext, marks=pytest.mark.slow)], ids=["recorded", "compiled"]
)


# Random models, losses and rules

ACTIVATIONS = (fl.tanh, fl.sigmoid, fl.softplus, fl.identity, fl.silu)


@st.composite
def models(draw: st.DrawFn) -> Any:
    """Up to three layers from 3 features to 2, some tied, one may be normed, one pinned."""
    widths = [3, *draw(st.lists(st.sampled_from([2, 3, 4]), max_size=2)), 2]
    with fl.seeded(fl.Key(draw(st.integers(0, 99)))):
        layers: list[Any] = []
        for n, m in itertools.pairwise(widths):
            layers.append(fl.Dense(n, m, draw(st.sampled_from(ACTIVATIONS)), bias=draw(st.booleans())))
            norm = draw(st.sampled_from([None, None, fl.LayerNorm, fl.BatchNorm]))
            if norm is not None:
                layers.append(draw(st.sampled_from([fl.automode, fl.testmode]))(norm(m)))
    model = fl.f64(fl.Chain(*layers))
    squares = [i for i, x in enumerate(layers) if isinstance(x, fl.Dense) and x.weight.shape == (3, 3)]
    if len(squares) > 1:  # one weight for both
        first, second = squares[:2]
        w = model.layers[first].weight
        model = fl.at(model, lambda m: m.layers[second].weight).set(w)
    return model


def squared(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return (m(x) - y).square().mean()


def crossentropy(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return fl.losses.logitcrossentropy(m(x), y.softmax(-1))


def penalised(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return (m(x) * y).sum().tanh() + 0.1 * fl.tree.norm(m) ** 2


def of_the_last_layer(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return (
        m.layers[-1](y if isinstance(m.layers[-1], fl.BatchNorm) else x[:, :1].expand(-1, width(m)))
        .sum()
        .sin()
    )


def width(m: Any) -> int:
    last = m.layers[-1]
    return int(last.weight.shape[-1])


losses = st.sampled_from([squared, crossentropy, penalised, of_the_last_layer])
rules = st.sampled_from(sorted(CASES)).map(lambda name: CASES[name].rule)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def close(found: Any, expected: Any) -> None:
    """Equal structure, constants and ties, and equal numbers to rounding."""
    a, b = flatten(found), flatten(expected)
    assert a[1] == b[1]
    for x, y in zip(a[0], b[0], strict=True):
        x, y = (z.value if isinstance(z, fl.Assigned) else z for z in (x, y))
        if isinstance(y, Tensor):
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            assert torch.allclose(x, y, rtol=1e-7, atol=1e-9, equal_nan=True)
        else:
            assert type(x) is type(y)
            assert x == y


def run_law(
    engine: Callable[[], Any], check: Callable[..., None], *strategies: Any, examples: settings | None = None
) -> None:
    """Check a law on random examples, with the engine that is asked for."""

    @(examples or (law if engine is recorded else compiled_law))
    @given(st.tuples(*strategies))
    def holds(drawn: tuple[Any, ...]) -> None:
        with engine():
            check(*drawn)

    holds()


@ENGINES
def test_a_compiled_gradient_is_the_gradient(engine: Any) -> None:
    def check(model: Any, loss: Any, seed: int) -> None:
        x, y = randn(4, 3, seed=seed), randn(4, 2, seed=seed + 1)

        def step(m, x, y):
            return fl.withgradient(loss, m, x, y)

        jitted = fl.jit(step)
        close(jitted(model, x, y), step(model, x, y))
        close(
            jitted(fl.tree.scale(model, 0.5), y @ randn(2, 3, seed=3), y),
            step(fl.tree.scale(model, 0.5), y @ randn(2, 3, seed=3), y),
        )
        assert jitted.cache_info() == (2, 1)

    run_law(engine, check, models(), losses, st.integers(0, 99))


@ENGINES
def test_a_compiled_gradient_is_torch_s_own(engine: Any) -> None:
    def check(model: Any, loss: Any, seed: int) -> None:
        model = fl.testmode(model)
        x, y = randn(4, 3, seed=seed), randn(4, 2, seed=seed + 1)
        flat, rebuild = fl.destructure(model)
        expected = torch.func.grad(lambda v: loss(rebuild(v), x, y))(flat)
        grads = fl.jit(lambda m: fl.gradient(loss, m, x, y))(model)
        found = iter(fl.trainables(model))
        for g, p in zip(flatten(grads)[0], flatten(model)[0], strict=True):
            if isinstance(g, Tensor):
                assert g.shape == p.shape
        total = {id(p): torch.zeros_like(p) for p in found}
        for g, p in zip(flatten(grads)[0], flatten(model)[0], strict=True):
            if isinstance(g, Tensor):
                total[id(p)] = total[id(p)] + g
        assert torch.allclose(torch.cat([t.view(-1) for t in total.values()]), expected, rtol=1e-7, atol=1e-9)

    run_law(engine, check, models(), losses, st.integers(0, 99))


@ENGINES
def test_a_compiled_ensemble_is_the_loop_over_its_members(engine: Any) -> None:
    def check(model: Any, loss: Any, seed: int) -> None:
        members = [fl.tree.scale(model, s) for s in (1.0, 0.5, 2.0)]
        xs, y = randn(3, 4, 3, seed=seed), randn(4, 2, seed=seed + 1)

        def grad(m, x):
            return fl.gradient(loss, fl.testmode(m), x, y)

        mapped = fl.jit(fl.vmap(grad))(fl.stack(members), xs)
        expected = [fl.jit(grad)(m, x) for m, x in zip(members, xs, strict=True)]
        for i, one in enumerate(expected):
            for g, e in zip(flatten(mapped)[0], flatten(one)[0], strict=True):
                assert (g is None) == (e is None)
                if e is not None:
                    assert torch.allclose(g[i], e, rtol=1e-7, atol=1e-9)

    run_law(engine, check, models(), losses, st.integers(0, 99))


@ENGINES
def test_compiled_steps_of_any_rule_are_the_steps_donated_or_not(engine: Any) -> None:
    def check(model: Any, loss: Any, rule: Any, seed: int) -> None:
        x, y = randn(4, 3, seed=seed), randn(4, 2, seed=seed + 1)

        def step(model: Any, state: Any) -> Any:
            grads = fl.gradient(loss, model, x, y)
            return *fl.update(state, model, grads), grads

        eager = pure = model, fl.setup(rule, model)
        donated = fl.tree.clone(eager)
        jitted, giving = fl.jit(step), fl.jit(step, donate=(0, 1))
        for _ in range(2):
            *eager, grads = step(*eager)
            if any(
                isinstance(g, Tensor) and g.abs().max() < 1e-6 for g in flatten(grads)[0] if g is not None
            ):
                return  # the sign of what is only rounding decides some rules' steps
            pure, donated = jitted(*pure)[:2], giving(*donated)[:2]
            close(list(pure), eager)
            close(list(donated), eager)

    run_law(engine, check, models(), losses, rules, st.integers(0, 99))


TRANSFORMS = {
    "penalty": lambda f: (
        lambda m, x: fl.gradient(lambda m: fl.gradient(lambda x: f(m, x), x).square().sum(), m)
    ),
    "examples": lambda f: lambda m, x: fl.vmap(lambda x: fl.gradient(f, m, x[None]), in_dims=0)(x),
    "two arguments": lambda f: lambda m, x: fl.gradient(f, m, x, argnums=(0, 1)),
    "jit": lambda f: fl.jit(lambda m, x: fl.gradient(f, m, x)),
    "torch's": lambda f: lambda m, x: torch.func.grad(lambda x: f(m, x))(x),
    "vmap and gradient": lambda f: (
        lambda m, x: fl.gradient(lambda m: fl.vmap(lambda x: f(m, x[None]))(x).sum(), m)
    ),
}


@ENGINES
def test_compiled_transforms_are_the_transforms(engine: Any) -> None:
    def check(model: Any, name: str, seed: int) -> None:
        model = fl.testmode(model)
        f = TRANSFORMS[name](lambda m, x: m(x).sin().sum())
        x = randn(4, 3, seed=seed)
        close(fl.jit(f)(model, x), f(model, x))

    run_law(engine, check, models(), st.sampled_from(sorted(TRANSFORMS)), st.integers(0, 99))


@pytest.mark.parametrize("donate", [(), 0])
def test_any_tree_goes_through(donate: Any) -> None:
    def check(tree: Any) -> None:
        kept = fl.tree.clone(tree)
        same, doubled = fl.jit(lambda t: (t, fl.fmap(lambda x: x + x, t)), donate=donate)(tree)
        expected = fl.fmap(lambda x: x + x, kept)
        assert same_content(same, kept)
        assert same_content(doubled, expected)
        assert ties(doubled) == ties(expected)
        mine = [x for x in leaves_of(tree) if isinstance(x, Tensor)]
        theirs = [x for x in leaves_of(same) if isinstance(x, Tensor)]
        assert all(a is b for a, b in zip(mine, theirs, strict=True))

    run_law(recorded, check, trees(), examples=tree_law)


def test_any_tree_may_be_given_away() -> None:
    def check(tree: Any) -> None:
        expected = fl.fmap(lambda x: x + x, fl.tree.clone(tree))
        doubled = fl.jit(lambda t: fl.fmap(lambda x: x + x, t), donate=0)(tree)
        assert same_content(doubled, expected)
        assert ties(doubled) == ties(expected)

    run_law(recorded, check, trees(), examples=tree_law)
