"""Laws of derivatives: transposes, symmetry, finite differences, and `checkpoint` as the identity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl
from fluxlike.trees.structure import flatten
from tests.properties.strategies import trees

law = settings(max_examples=15, deadline=None)
doubles = trees((torch.float64, torch.int64)).map(fl.f64)


def close(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def like(tree: Any, seed: int) -> Any:
    """A direction: a tree with random numbers for the floating tensors, tied as they are."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[int, Tensor] = {}
    leaves, treedef = flatten(tree)
    for i, x in enumerate(leaves):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            leaves[i] = None
            continue
        if id(x) not in made:
            made[id(x)] = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        leaves[i] = made[id(x)]
    return treedef.unflatten(leaves)


def mixed(tree: Any) -> Any:
    """A smooth function of all parameters, that returns a tree with constants in it."""
    terms = [x.sin().sum() * (k + 1) for k, x in enumerate(fl.trainables(tree))]
    total = torch.stack(terms).sum() if terms else torch.zeros(())
    outer = [x * total for x in fl.trainables(tree)[:2]]
    return {"total": total.tanh(), "outer": outer, "name": "f", "count": torch.tensor(len(terms))}


def scalar(tree: Any) -> Tensor:
    out = mixed(tree)
    return out["total"] + sum((y * y.cos()).sum() for y in out["outer"])


def dot(a: Any, b: Any) -> Tensor:
    """The inner product of two trees of one structure, None as zero, ties once."""
    pairs = zip(flatten(a)[0], flatten(b)[0], strict=True)
    products = [(x * y).sum() for x, y in pairs if isinstance(x, Tensor) and isinstance(y, Tensor)]
    return torch.stack(products).sum() if products else torch.zeros((), dtype=torch.float64)


@law
@given(doubles, st.integers(0, 100))
def test_push_and_pull_are_transposes(tree: Any, seed: int) -> None:
    v = like(tree, seed)
    value, back = fl.pullback(mixed, tree)
    again, tangent = fl.pushforward(mixed, tree, v=v)
    c = like(value, seed + 1)
    assert_close(again["total"], value["total"])
    close(dot(tangent, c), dot(v, back(c)))


@law
@given(doubles)
def test_pullback_of_a_scalar_is_the_gradient(tree: Any) -> None:
    _, back = fl.pullback(scalar, tree)
    mine, theirs = flatten(back(1.0))[0], flatten(fl.gradient(scalar, tree))[0]
    assert [x is None for x in mine] == [x is None for x in theirs]
    for a, b in zip(mine, theirs, strict=True):
        assert b is None or torch.equal(a, b)


@law
@given(doubles, st.integers(0, 100))
def test_the_jacobian_holds_every_pullback_and_pushforward(tree: Any, seed: int) -> None:
    v = like(tree, seed)
    jac = fl.jacobian(mixed, tree)
    _, tangent = fl.pushforward(mixed, tree, v=v)
    _, back = fl.pullback(mixed, tree)
    c = like(tangent, seed + 1)
    pushes, pulls, directions = (flatten(x)[0] for x in (tangent, c, v))
    transposed: dict[int, Tensor] = {}
    for row, t, one in zip([jac["total"], *jac["outer"]], all_of(pushes), all_of(pulls), strict=True):
        moved = torch.zeros_like(t)
        for k, (block, direction) in enumerate(zip(flatten(row)[0], directions, strict=True)):
            if block is not None:
                moved = moved + torch.tensordot(block, direction, direction.ndim)
                transposed[k] = transposed.get(k, 0) + torch.tensordot(one, block, one.ndim)
        close(moved, t)
    for k, g in enumerate(flatten(back(c))[0]):
        assert (g is None) == (k not in transposed)
        if g is not None:
            close(transposed[k], g)


def all_of(leaves: list[Any]) -> list[Tensor]:
    """The tensor at "total" before those at "outer", as a dict sorts them the other way round."""
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    return tensors[-1:] + tensors[:-1]


def rows_of(hessian: Any, tree: Any) -> Tensor:
    """A Hessian as one matrix, in the order of the parameters."""
    first = [x for x in flatten(hessian)[0] if x is not None]
    sizes = [p.numel() for p in fl.trainables(tree)]
    blocks = iter(first)
    return torch.cat([torch.cat([next(blocks).reshape(n, m) for m in sizes], 1) for n in sizes])


def smooth(tree: Any) -> Tensor:
    """A function whose Hessian is full: every parameter meets every other."""
    return sum((x.sin() * (k + 1)).sum() for k, x in enumerate(fl.trainables(tree))).square().exp().log1p()


small = st.builds(
    lambda sizes, seed: {
        f"p{i}": torch.randn(n, generator=torch.Generator().manual_seed(seed + i), dtype=torch.float64) / 4
        for i, n in enumerate(sizes)
    },
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(0, 1000),
)


@law
@given(small)
def test_the_hessian_is_symmetric_and_that_of_finite_differences(tree: Any) -> None:
    matrix = rows_of(fl.hessian(smooth, tree), tree)
    close(matrix, matrix.T)
    flat, rebuild = fl.destructure(tree)
    step = 1e-5
    units = step * torch.eye(len(flat), dtype=flat.dtype)
    slope = lambda p: fl.destructure(fl.gradient(smooth, rebuild(p)))[0]  # noqa: E731
    rows = torch.stack([(slope(flat + u) - slope(flat - u)) / (2 * step) for u in units])
    assert_close(matrix, rows, rtol=1e-5, atol=1e-6)


@law
@given(small, st.integers(0, 100))
def test_hvp_and_diaghessian_are_of_the_hessian(tree: Any, seed: int) -> None:
    matrix = rows_of(fl.hessian(smooth, tree), tree)
    v = like(tree, seed)
    product = fl.destructure(fl.hvp(smooth, tree, v=v))[0]
    close(product, matrix @ fl.destructure(v)[0])
    close(fl.destructure(fl.diaghessian(smooth, tree))[0], matrix.diagonal())


@law
@given(small)
def test_the_jacobian_of_a_vector_is_that_of_torch(tree: Any) -> None:
    flat, rebuild = fl.destructure(tree)
    f = lambda p: torch.cat([x.sin() * smooth(rebuild(p)) for x in rebuild(p).values()])  # noqa: E731
    close(fl.jacobian(f, flat), torch.func.jacrev(f)(flat))
    close(fl.jacobian(f, flat), torch.func.jacfwd(f)(flat))


@pytest.mark.parametrize("order", [1, 2])
@law
@given(tree=doubles, seed=st.integers(0, 100))
def test_checkpoint_is_the_identity_on_functions(order: int, tree: Any, seed: int) -> None:
    def derivative(f: Any) -> Any:
        loss = lambda t: f(t)["total"] + sum((y * y).sum() for y in f(t)["outer"])  # noqa: E731
        if order == 1:
            return fl.withgradient(loss, tree)
        slope = lambda t: dot(fl.gradient(loss, t), like(t, seed))  # noqa: E731
        return fl.withgradient(slope, tree)

    (value, grads), (expected, theirs) = derivative(fl.checkpoint(mixed)), derivative(mixed)
    assert torch.equal(value, expected)
    for a, b in zip(flatten(grads)[0], flatten(theirs)[0], strict=True):
        assert (a is None) == (b is None)
        assert b is None or torch.equal(a, b)


@law
@given(tree=doubles, seed=st.integers(0, 100))
def test_a_custom_gradient_that_is_the_true_one_changes_nothing(tree: Any, seed: int) -> None:
    @fl.custom_gradient
    def same(t: Any) -> Any:
        return fl.pullback(mixed, t)

    c = like(mixed(tree), seed)
    mine, theirs = (flatten(fl.pullback(f, tree)[1](c))[0] for f in (same, mixed))
    for a, b in zip(mine, theirs, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            close(a, b)
