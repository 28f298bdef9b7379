"""`jit`: what a compiled train step computes."""

import torch

import fluxlike as fl

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def mlp(seed=0):
    with fl.seeded(fl.Key(seed)):
        return fl.f64(fl.Chain(fl.Dense(3, 4, fl.tanh), fl.Dense(4, 2)))


def step(model, state, x, y):
    """A whole train step, with a value and a metric."""

    def loss(m):
        error = m(x) - y
        return error.square().mean(), {"mae": error.abs().mean()}

    (value, metrics), grads = fl.withgradient(loss, model)
    model, state = fl.update(state, model, grads)
    return model, state, value, metrics


def agree(a, b):
    """Whether two trees have one structure, and equal numbers to rounding in float64."""
    a, b = fl.fmap(as_plain, a), fl.fmap(as_plain, b)
    return fl.tree.allclose(a, b, rtol=1e-10, atol=1e-12)


def as_plain(x):
    return x.detach()


def test_a_compiled_train_step_is_the_step():
    rule = fl.OptimiserChain(fl.ClipGlobalNorm(0.5), fl.AdamW(1e-2))
    model, x, y = mlp(), randn(5, 3), randn(5, 2, seed=1)
    state = fl.setup(rule, model)
    compiled, eager = (model, state), (model, state)
    jitted = fl.jit(step)
    for _ in range(3):
        *compiled, value, metrics = jitted(*compiled, x, y)
        *eager, expected, expected_metrics = step(*eager, x, y)
        assert torch.allclose(value, expected)
        assert torch.allclose(metrics["mae"], expected_metrics["mae"])
        assert agree(compiled, eager)
    assert jitted.cache_info() == (3, 1)


def test_batch_norm_trains():
    model = fl.f64(fl.Chain(fl.Dense(3, 4), fl.BatchNorm(4), fl.Dense(4, 2)))
    state = fl.setup(fl.Momentum(0.1), model)
    compiled, eager = (model, state), (model, state)
    jitted = fl.jit(step)
    for i in range(3):
        x, y = randn(6, 3, seed=i), randn(6, 2, seed=9 - i)
        compiled, eager = jitted(*compiled, x, y)[:2], step(*eager, x, y)[:2]
    norm = compiled[0].layers[1]
    assert torch.allclose(norm.running_mean, eager[0].layers[1].running_mean)
    assert torch.allclose(norm.running_var, eager[0].layers[1].running_var)
    assert not torch.equal(norm.running_mean, model.layers[1].running_mean)
    assert agree(compiled, eager)


def test_a_gradient_has_none_and_assigned_where_it_has_them_in_eager():
    norm = fl.f64(fl.BatchNorm(2))
    model = {"norm": norm, "unused": randn(3), "name": "x"}

    def f(m, x):
        return fl.gradient(lambda m: (m["norm"](x) ** 3).sum(), m)

    found, expected = fl.jit(f)(model, randn(4, 2)), f(model, randn(4, 2))
    assert found["unused"] is None
    assert found["name"] is None
    assert isinstance(found["norm"].running_mean, fl.Assigned)
    assert torch.allclose(found["norm"].running_mean.value, expected["norm"].running_mean.value)
    assert torch.allclose(found["norm"].weight, expected["norm"].weight)


def test_ties_in_one_argument_stay_tied():
    w = randn(3, 3)
    model = fl.Chain(fl.Dense(3, 3), fl.Dense(3, 3))
    model = fl.f64(fl.at(model, lambda m: (m.layers[0].weight, m.layers[1].weight)).set((w, w)))
    assert model.layers[0].weight is model.layers[1].weight
    state = fl.setup(fl.Adam(), model)
    x, y = randn(4, 3), randn(4, 3, seed=1)
    new, new_state = fl.jit(step)(model, state, x, y)[:2]
    expected, expected_state = step(model, state, x, y)[:2]
    assert new.layers[0].weight is new.layers[1].weight
    assert agree((new, new_state), (expected, expected_state))


def test_a_tensor_shared_by_two_arguments_is_constant_in_the_second():
    w = randn(2)

    def f(a, b):
        return fl.gradient(lambda a, b: (a["w"] * b["w"]).sum(), a, b)

    assert torch.equal(fl.jit(f)({"w": w}, {"w": w})["w"], w)


def test_frozen_and_unreached_parameters_are_the_same_objects_after():
    model = {"w": randn(2), "frozen": randn(2, seed=1), "unused": randn(2, seed=2)}
    state = fl.freeze(fl.setup(fl.Adam(), model), lambda s: s["frozen"])

    def advance(model, state):
        grads = fl.gradient(lambda m: (m["w"] * m["frozen"]).sum(), model)
        return fl.update(state, model, grads)

    new, _ = fl.jit(advance)(model, state)
    assert new["frozen"] is model["frozen"]
    assert new["unused"] is model["unused"]
    assert agree(new, advance(model, state)[0])


def test_withupdates_inside_collects():
    norm = fl.f64(fl.BatchNorm(2))

    def f(m, x):
        return fl.withupdates(lambda m, x: m(x), m, x)

    (out, updates), (expected, wanted) = fl.jit(f)(norm, randn(4, 2)), f(norm, randn(4, 2))
    assert torch.allclose(out, expected)
    assert torch.allclose(updates.running_var.value, wanted.running_var.value)
    assert updates.weight is None


def test_nothing_that_was_passed_is_changed():
    model, x, y = mlp(), randn(5, 3), randn(5, 2, seed=1)
    state = fl.setup(fl.Adam(), model)
    before = fl.tree.clone((model, state, x, y))
    fl.jit(step)(model, state, x, y)
    assert fl.tree.allclose((model, state, x, y), before, rtol=0, atol=0)


def test_the_global_random_state_and_settings_stay():
    f = fl.jit(lambda x: (x * 2).sum())
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    f(torch.ones(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert not fl.training()


def test_other_values_run_the_same_graph():
    jitted = fl.jit(step)
    for i in range(4):
        model = mlp(i)
        jitted(model, fl.setup(fl.Adam(1e-3), model), randn(5, 3, seed=i), randn(5, 2, seed=i))
    assert jitted.cache_info() == (4, 1)


def test_a_new_learning_rate_runs_the_same_graph_and_is_used():
    jitted = fl.jit(fl.update)
    model = {"a": randn(2), "b": randn(2, seed=1)}
    grads = {"a": torch.ones(2, dtype=D), "b": torch.ones(2, dtype=D)}
    state = fl.setup(fl.Momentum(0.1, momentum=0.0), model)
    for lr in (0.1, 0.25, 3.0, 0.1):
        new, _ = jitted(fl.adjust(state, lr), model, grads)
        assert torch.allclose(new["a"], model["a"] - lr)
        assert torch.allclose(new["b"], model["b"] - lr)
    assert jitted.cache_info().traces == 1
