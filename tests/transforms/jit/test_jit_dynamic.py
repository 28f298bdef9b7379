"""`jit(dynamic=True)`: sizes of batches that change without a new trace."""

import pytest
import torch

import fluxlike as fl

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def mlp():
    with fl.seeded(fl.Key(0)):
        return fl.f64(fl.Chain(fl.Dense(3, 4, fl.tanh), fl.Dense(4, 1)))


def step(model, state, x, y):
    value, grads = fl.withgradient(lambda m: (m(x) - y).square().mean(), model)
    return *fl.update(state, model, grads), value


def test_batches_of_many_sizes_run_one_graph_and_of_one_and_none_their_own():
    model = mlp()
    state = fl.setup(fl.Momentum(0.1), model)
    pure, compiled = (model, state), fl.tree.clone((model, state))
    jitted = fl.jit(step, donate=(0, 1), dynamic=True)
    traces = []
    for n in (40, 35, 64, 1, 37, 1, 90):  # Inductor has kernels of their own for few rows
        x, y = randn(n, 3, seed=n), randn(n, 1, seed=n + 1)
        *pure, value = step(*pure, x, y)
        *compiled, found = jitted(*compiled, x, y)
        assert torch.allclose(value, found)
        traces.append(jitted.cache_info().traces)
    assert fl.tree.allclose(compiled, pure, rtol=1e-10, atol=1e-12)
    assert traces == [1, 1, 1, 2, 2, 2, 2]


def test_no_row_at_all():
    f = fl.jit(lambda x: (x * 2, x.sum(0), x.mean(0)), dynamic=True)
    for n in (4, 0, 3, 0, 1):
        for a, b in zip(
            f(randn(n, 3)), (randn(n, 3) * 2, randn(n, 3).sum(0), randn(n, 3).mean(0)), strict=True
        ):
            assert torch.allclose(a, b, equal_nan=True)
    assert f.cache_info().traces == 3


def test_other_sizes_than_the_first_may_change_once_they_have_changed():
    f = fl.jit(lambda x, y: (x @ y, x.shape[1]), dynamic=True)
    for n, m, k in ((2, 3, 4), (5, 6, 7), (9, 4, 2)):
        x, y = randn(n, m), randn(m, k)
        out, size = f(x, y)
        assert torch.allclose(out, x @ y)
        assert size == m
    assert f.cache_info().traces == 2


def test_a_batch_that_is_flattened_for_a_dense_layer_changes():
    model = fl.Chain(fl.flatten, fl.Dense(16, 3))
    state = fl.setup(fl.Adam(), model)

    def step(model, state, x):
        return fl.update(state, model, fl.gradient(lambda m: m(x).square().sum(), model))

    f = fl.jit(step, dynamic=True)
    for n in (8, 3, 5):
        x = torch.randn(n, 1, 4, 4)
        assert fl.tree.allclose(f(model, state, x)[0], step(model, state, x)[0], atol=1e-6)
    assert f.cache_info().traces == 1


def test_a_transposed_batch_at_two_places_and_a_transposed_parameter_are_inputs():
    x = randn(3, 4).t()
    assert torch.equal(fl.jit(lambda a, b: a + b, dynamic=True)(x, x), x + x)
    weight = torch.nn.Parameter(randn(3, 4).t())
    assert torch.equal(fl.jit(lambda a: a + 1, dynamic=True)(weight), weight.detach() + 1)


def test_sizes_that_were_equal_and_are_not_any_more_are_another_trace():
    f = fl.jit(lambda x, y: x.sum() + y.sum(), dynamic=True)
    for n, m in ((4, 4), (5, 5), (4, 6), (7, 3)):
        assert torch.allclose(f(randn(n), randn(m)), randn(n).sum() + randn(m).sum())
    assert f.cache_info().traces == 2


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x[::2],
        lambda x: x.repeat(1, 2)[:, ::2],
        lambda x: x.flip(0),
        lambda x: x[:1].expand(6, 4),
    ],
)
def test_batches_may_lie_in_memory_in_any_way(view):
    f = fl.jit(lambda x: x.softmax(0), dynamic=True)
    f(randn(8, 4))
    for x in (view(randn(6, 4)), view(randn(4, 6).T)):
        assert torch.allclose(f(x), x.softmax(0))
    assert f.cache_info().traces == 1


def test_another_number_of_axes_or_dtype_is_another_trace():
    f = fl.jit(lambda x: x + 1, dynamic=True)
    for x in (randn(3), randn(4), randn(3, 2), randn(3).float(), randn(5)):
        assert torch.equal(f(x), x + 1)
    assert f.cache_info().traces == 3


def test_the_parameters_of_a_model_stay_fixed():
    f = fl.jit(lambda m, x: m(x), dynamic=True)
    for n in (4, 7):
        for model in (fl.f64(fl.Dense(3, 2)), fl.f64(fl.Dense(3, 5))):
            assert torch.allclose(f(model, randn(n, 3)), model(randn(n, 3)))
    assert f.cache_info().traces == 2


def test_a_batch_in_a_tree_changes_too():
    f = fl.jit(lambda batch: batch["x"].sum(0) + batch["y"][0], dynamic=True)
    for n in (4, 6, 9):
        batch = {"x": randn(n, 2), "y": (randn(2),)}
        assert torch.allclose(f(batch), batch["x"].sum(0) + batch["y"][0])
    assert f.cache_info().traces == 1


def test_a_size_in_python_decides_as_it_would():
    def f(x):
        return x * 2 if x.shape[0] > 5 else x * 3

    jitted = fl.jit(f, dynamic=True)
    for n in (3, 8, 4, 9):
        assert torch.equal(jitted(randn(n)), f(randn(n)))
    assert jitted.cache_info().traces == 2


def test_a_size_that_is_returned_is_the_number_of_the_call():
    f = fl.jit(
        lambda x: {"count": x.shape[0], "numel": x.numel() * 2, "many": x.shape[0] > 2, "x": x + 1},
        dynamic=True,
    )
    for n in (4, 6):
        out = f(randn(n, 3))
        assert out["count"] == n
        assert out["numel"] == 6 * n
        assert out["many"] is True
        assert type(out["count"]) is int
    assert f.cache_info().traces == 1
    assert fl.jit(lambda x: x.shape[0], dynamic=True)(randn(3)) == 3


def test_sizes_that_do_not_fit_are_the_user_s_error_with_numbers():
    jitted = fl.jit(step, dynamic=True)
    model = mlp()
    state = fl.setup(fl.Descent(0.1), model)
    jitted(model, state, randn(4, 3), randn(4, 1))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"4.*7|7.*4"):
            jitted(model, state, randn(4, 3), randn(7, 1))
    jitted(model, state, randn(5, 3), randn(5, 1))
    assert jitted.cache_info().traces == 1


def test_images_of_many_sizes():
    model = fl.f64(fl.Chain(fl.Conv((3, 3), 1, 2), fl.GlobalMeanPool(), fl.flatten))
    f = fl.jit(lambda m, x: m(x), dynamic=True)
    for n, size in ((2, 8), (3, 8), (4, 11), (2, 5)):
        x = randn(n, 1, size, size)
        assert torch.allclose(f(model, x), model(x))


def test_donated_batches():
    f = fl.jit(lambda x: x + 1, donate=0, dynamic=True)
    for n in (3, 5):
        x = randn(n, 2)
        expected, place = x + 1, x.data_ptr()
        out = f(x)
        assert torch.equal(out, expected)
        assert out.data_ptr() == place
    assert f.cache_info().traces == 1
