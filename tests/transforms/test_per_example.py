"""`per_example_gradient`: the gradients of a loop over batches of one, in one go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl
from fluxlike.trees.structure import flatten

N = 6


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def close(actual: Any, expected: Any) -> None:
    (mine, a), (theirs, b) = flatten(actual), flatten(expected)
    assert a == b
    for x, y in zip(mine, theirs, strict=True):
        if isinstance(y, Tensor):
            assert_close(x, y, rtol=1e-12, atol=1e-12)
        else:
            assert x is y


def loss(model: Any, x: Any, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def mlp() -> Any:
    return fl.Chain(fl.Dense(3, 4, torch.tanh), fl.LayerNorm(4), fl.Dense(4, 2))


def cnn() -> Any:
    return fl.Chain(fl.Conv((3, 3), 1, 4, fl.relu), fl.MaxPool((2, 2)), fl.flatten, fl.Dense(16, 2))


def pinned() -> Any:
    return fl.testmode(fl.Chain(fl.Dense(3, 4, torch.tanh), fl.BatchNorm(4), fl.Dense(4, 2)))


def by_loop(f: Callable[..., Any], model: Any, *batches: Tensor, **how: Any) -> Any:
    rows = [[x[i : i + 1] for x in batches] for i in range(len(batches[0]))]
    return fl.stack([fl.gradient(f, model, *row, **how) for row in rows])


def data(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(N, *shape), torch.randn(N, 2)


@pytest.mark.parametrize(("make", "shape"), [(mlp, (3,)), (pinned, (3,)), (cnn, (1, 6, 6))])
def test_each_gradient_is_that_of_a_batch_of_one(make: Any, shape: Any) -> None:
    model, (x, y) = make(), data(*shape)
    close(fl.per_example_gradient(loss, model, x, y), by_loop(loss, model, x, y))


@pytest.mark.parametrize(("make", "shape"), [(mlp, (3,)), (pinned, (3,)), (cnn, (1, 6, 6))])
def test_their_mean_is_the_gradient_of_the_batch(make: Any, shape: Any) -> None:
    model, (x, y) = make(), data(*shape)
    grads = fl.per_example_gradient(loss, model, x, y)
    close(fl.fmap(lambda g: g.mean(0), grads), fl.gradient(loss, model, x, y))


def test_they_are_what_torch_func_gives() -> None:
    w, (x, y) = torch.randn(3, 2), data(3)
    f = lambda w, x, y: (torch.tanh(x @ w) - y).square().mean()  # noqa: E731
    ours = fl.per_example_gradient(f, w, x, y)
    close(ours, torch.func.vmap(torch.func.grad(f), (None, 0, 0))(w, x, y))


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 8))
def test_chunks_give_the_same(n: int, chunk_size: int) -> None:
    model = {"w": torch.ones(3), "unused": torch.zeros(2), "f": torch.tanh}
    x = torch.arange(3.0 * n).reshape(n, 3) / 10

    def f(m: Any, x: Tensor) -> Tensor:
        return m["f"](x @ m["w"]).sum()

    whole = fl.per_example_gradient(f, model, x)
    close(fl.per_example_gradient(f, model, x, chunk_size=chunk_size), whole)


def test_the_function_gets_batches_of_one_and_the_constants() -> None:
    def f(m: Any, batch: Any, scale: float, name: str) -> Tensor:
        assert (batch["x"].shape, batch["y"].shape, batch["none"], scale, name) == (
            (1, 3),
            (1,),
            None,
            2.0,
            "n",
        )
        return (m * batch["x"]).sum() * scale

    batch = {"x": torch.ones(N, 3), "y": torch.ones(N), "none": None}
    close(fl.per_example_gradient(f, torch.ones(3), batch, 2.0, "n"), torch.full((N, 3), 2.0))


def test_what_no_example_reaches_has_none_and_what_all_share_is_expanded() -> None:
    model = {"w": torch.randn(3), "decayed": torch.randn(2), "unused": torch.randn(2), "name": "n"}
    f = lambda m, x: (m["w"] * x).sum() + m["decayed"].square().sum()  # noqa: E731
    grads = fl.per_example_gradient(f, model, torch.randn(N, 3))
    assert (grads["unused"], grads["name"]) == (None, None)
    close(grads["decayed"], (2 * model["decayed"]).expand(N, 2))


def test_a_tied_parameter_has_the_total_at_its_first_place() -> None:
    w, x = torch.randn(3), torch.randn(N, 3)
    f = lambda m, x: (m["a"] * x).sum() + (2 * m["b"] * x).sum()  # noqa: E731
    grads = fl.per_example_gradient(f, {"a": w, "b": w}, x)
    close(grads["a"], 3 * x)
    assert grads["b"] is None


def test_a_part_of_the_model_and_other_arguments_are_chosen_as_in_gradient() -> None:
    model, (x, y) = mlp(), data(3)
    head = lambda m: m.layers[-1]  # noqa: E731
    grads = fl.per_example_gradient(loss, model, x, y, wrt=head)
    close(grads, by_loop(loss, model, x, y, wrt=head))
    assert grads.layers[0].weight is None
    flipped = lambda x, m, y: loss(m, x, y)  # noqa: E731
    close(fl.per_example_gradient(flipped, x, model, y, argnums=1), by_loop(loss, model, x, y))
    close(fl.per_example_gradient(flipped, x, model, y, argnums=-2), by_loop(loss, model, x, y))
    both = fl.per_example_gradient(lambda a, b, x: (a * b * x).sum(), torch.ones(3), 2.0, x, argnums=(0, 1))
    close(both, (2 * x, x.sum(1)))


def test_it_is_in_train_mode_as_gradient_is() -> None:
    modes = []

    def f(m: Any, x: Tensor) -> Tensor:
        modes.append(fl.training())
        return (m(x) if callable(m) else m * x).sum()

    x = torch.randn(N, 3)
    fl.per_example_gradient(f, fl.Dense(3, 2), x)
    fl.per_example_gradient(f, torch.ones(3), x)
    with fl.mode("test"):
        fl.per_example_gradient(f, fl.Dense(3, 2), x)
    assert modes == [True, False, False]


def test_dropout_draws_for_each_example() -> None:
    model = fl.Chain(fl.Dropout(0.5), fl.Dense(64, 1, bias=False))
    grads = fl.per_example_gradient(lambda m, x: m(x).sum(), model, torch.ones(N, 64)).layers[1].weight
    assert len({tuple(g.flatten().tolist()) for g in grads}) == N
    assert set(grads.unique().tolist()) == {0.0, 2.0}


def test_it_is_differentiable_and_goes_inside_itself_and_vmap() -> None:
    w, x = torch.randn(3), torch.randn(N, 3)
    cubes = lambda w, x: (w**3 * x).sum()  # noqa: E731
    norms = lambda w: fl.per_example_gradient(cubes, w, x).square().sum()  # noqa: E731
    close(fl.gradient(norms, w), 36 * w**3 * x.square().sum(0))
    inside = fl.vmap(lambda w: fl.per_example_gradient(cubes, w, x))(torch.stack([w, 2 * w]))
    close(inside, torch.stack([3 * w**2 * x, 12 * w**2 * x]))
    twice = fl.per_example_gradient(lambda w, y: (norms(w) * y).sum(), w, torch.tensor([1.0, 2.0]))
    close(twice, torch.stack([36 * w**3 * x.square().sum(0), 72 * w**3 * x.square().sum(0)]))


# Statistics of a batch


@pytest.mark.parametrize("shape", [(3,), (3, 4, 4)])
def test_batchnorm_in_train_mode_is_an_error_that_says_what_to_use(shape: Any) -> None:
    model = fl.Chain(fl.BatchNorm(3), fl.flatten)
    f = lambda m, x: m(x).square().sum()  # noqa: E731
    with pytest.raises(
        fl.LayerError, match=r"layers\[0\].*in train mode.*per_example_gradient.*GroupNorm.*fluxlike.testmode"
    ):
        fl.per_example_gradient(f, model, torch.randn(N, *shape))
    with pytest.raises(ValueError, match=r"BatchNorm is in train mode.*GroupNorm.*fluxlike.testmode"):
        fl.per_example_gradient(f, fl.BatchNorm(3), torch.randn(N, *shape))


def test_batchnorm_trains_again_after_the_error() -> None:
    norm, x = fl.BatchNorm(3), torch.randn(N, 3)
    f = lambda m, x: m(x).square().sum()  # noqa: E731
    with pytest.raises(ValueError, match="GroupNorm"):
        fl.per_example_gradient(f, norm, x)
    assert isinstance(fl.gradient(f, norm, x).running_mean, fl.Assigned)


@fl.functor(buffers=("mean", "norm", "calls"))
class OwnNorm:
    """Moves one buffer by the examples, one by its weights, and counts its calls."""

    def __init__(self, by_examples: bool) -> None:
        self.weight, self.mean, self.norm = torch.ones(3), torch.zeros(3), torch.tensor(0.0)
        self.calls, self.by_examples = torch.tensor(0), by_examples

    def __call__(self, x: Tensor) -> Tensor:
        if self.by_examples:
            fl.assign(self.mean, x.mean(0))
        fl.assign(self.norm, self.weight.norm())
        fl.assign(self.calls, fl.current(self.calls) + 1)
        return x * self.weight


def test_any_buffer_that_an_example_moves_is_an_error_that_names_it() -> None:
    model = fl.Chain(OwnNorm(by_examples=True))
    with pytest.raises(
        ValueError, match=r"the buffer \.layers\[0\]\.mean was assigned a value of each example.*GroupNorm"
    ):
        fl.per_example_gradient(lambda m, x: m(x).sum(), model, torch.randn(N, 3))


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_buffer_that_the_weights_move_is_assigned_once(chunk_size: Any) -> None:
    model, x = OwnNorm(by_examples=False), torch.randn(N, 3)
    grads = fl.per_example_gradient(lambda m, x: m(x).sum(), model, x, chunk_size=chunk_size)
    close(grads.weight, x)
    state = fl.setup(fl.Descent(0.1), model)
    moved, _ = fl.update(state, model, fl.fmap(lambda g: g.mean(0), grads))
    close((moved.norm, moved.calls), (model.weight.norm(), torch.tensor(1)))


# Errors


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.ones(3), torch.ones(4, 3), torch.ones(5)),
         r"the whole of argument 1 has 4 examples and the whole of argument 2 5, on their first axes"),
        ((torch.ones(3), {"x": torch.ones(4, 3), "y": torch.ones(5)}),
         r"\['x'\] of argument 1 has 4 examples and \['y'\] of argument 1 5"),
        ((torch.ones(3), torch.ones(4, 3), torch.tensor(2.0)), "the whole of argument 2 is a 0-d tensor"),
        ((torch.ones(3),), r"found no batch: write per_example_gradient\(loss, model, x, y\)"),
        ((torch.ones(3), 2.0), "found no batch"),
        ((), "there is no argument to differentiate"),
    ],
)  # fmt: skip
def test_batches_that_do_not_fit_are_an_error_that_names_the_place(args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fl.per_example_gradient(lambda m, *batch: m.sum(), *args)


def test_errors_of_gradient_are_its_own() -> None:
    x = torch.ones(N, 3)
    with pytest.raises(ValueError, match="needs a scalar loss"):
        fl.per_example_gradient(lambda m, x: m * x, torch.ones(3), x)
    with pytest.raises(ValueError, match="no parameter in argument 0"):
        fl.per_example_gradient(lambda m, x: x.sum(), {"k": 3}, x)
    with pytest.raises(ValueError, match="argnums=3 does not name"):
        fl.per_example_gradient(lambda m, x: x.sum(), torch.ones(3), x, argnums=3)
    with pytest.raises(TypeError, match="takes a function and its arguments"):
        fl.per_example_gradient(torch.ones(()), torch.ones(3), x)  # type: ignore[arg-type]


# Draws from a key


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_example_i_draws_from_the_key_folded_by_i(chunk_size: Any) -> None:
    model, (x, y) = fl.Chain(fl.Dense(3, 8), fl.Dropout(0.5), fl.Dense(8, 2)), data(3)
    key = fl.Key(5)
    grads = fl.per_example_gradient(loss, model, x, y, key=key, chunk_size=chunk_size)
    rows = []
    for i in range(N):
        with fl.seeded(key.fold_in(i)):
            rows.append(fl.gradient(loss, model, x[i : i + 1], y[i : i + 1]))
    close(grads, fl.stack(rows))
    with fl.seeded(key):
        close(fl.per_example_gradient(loss, model, x, y), grads)


def test_what_is_no_key_is_an_error() -> None:
    with pytest.raises(TypeError, match="Key"):
        fl.per_example_gradient(loss, mlp(), *data(3), key=5)  # type: ignore[arg-type]
