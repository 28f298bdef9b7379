"""The transforms of tensors over a mesh: the numbers of one process, each rank computing its share."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.tensor import Shard

import fluxlike as fl
from fluxlike import distributed as d
from tests.distributed.agreeing import PLANS, differences
from tests.distributed.ranks import run


def network():
    return fl.Chain(fl.Dense(4, 6, fl.tanh), fl.GroupNorm(6, 2), fl.Dense(6, 2))


def loss(model, x, y):
    return F.mse_loss(model(x), y)


def data(rows=6):
    return torch.randn(rows, 4), torch.randn(rows, 2)


def tied():
    w = torch.randn(4, 4)
    return {"w": [w, w], "b": torch.randn(4), "unused": torch.ones(3), "name": "tied"}


def through_tied(m, x):
    return torch.tanh(x @ m["w"][0]) @ m["w"][1].mT + m["b"]


def each_plan(compute):
    """What is wrong under some plan with a function of a model and a batch."""
    torch.set_default_dtype(torch.float64)
    wrong = {}
    for plan in PLANS:
        torch.manual_seed(0)
        wrong[plan] = compute(lambda tree, plan=plan: fl.to_device(tree, d.mesh(), PLANS[plan]()))
    return {plan: found for plan, found in wrong.items() if found}


def batch_over(*batch):
    return d.shard_batch(batch, d.mesh())


def per_example(over):
    model, (x, y) = network(), data()
    expected = fl.per_example_gradient(loss, model, x, y)
    X, Y = batch_over(x, y)
    found = fl.per_example_gradient(loss, over(model), X, Y)
    wrong = differences(found, expected)
    wrong += [str(g.placements) for g in fl.fleaves(found) if g.placements != (Shard(0),)]
    wrong += differences(fl.per_example_gradient(loss, over(model), X, Y, chunk_size=2), expected)
    norms = fl.vmap(fl.tree.norm)(found)
    wrong += differences(norms, fl.vmap(fl.tree.norm)(expected))
    # five rows are whole on each rank
    few = batch_over(x[:5], y[:5])
    wrong += differences(
        fl.per_example_gradient(loss, over(model), *few), fl.per_example_gradient(loss, model, x[:5], y[:5])
    )
    return wrong


def test_the_gradient_of_each_example_is_that_of_one_process_and_lies_as_the_examples_do():
    assert run(each_plan, 2, per_example) == [{}, {}]


def private_step(over):
    """A step of differentially private training, as the docs of batching show it."""

    def step(model, state, x, y):
        grads = fl.per_example_gradient(loss, model, x, y)
        norms = fl.vmap(fl.tree.norm)(grads)
        clipped = fl.vmap(lambda g, n: fl.tree.scale(g, (0.5 / n).clamp(max=1.0)))(grads, norms)
        return fl.update(state, model, fl.fmap(lambda g: g.mean(0), clipped))

    wrong = []
    for rule in (fl.AdamW(0.1), fl.OptimiserChain(fl.ClipGlobalNorm(0.1), fl.Muon(0.1))):
        model, (x, y) = network(), data()
        mine, batch = over(model), batch_over(x, y)
        state, other = fl.setup(rule, model), fl.setup(rule, mine)
        for _ in range(3):
            model, state = step(model, state, x, y)
            mine, other = step(mine, other, *batch)
        wrong += differences(mine, model)
    return wrong


def test_a_step_by_clipped_gradients_of_each_example_is_that_of_one_process():
    assert run(each_plan, 2, private_step) == [{}, {}]


def dropping(over):
    model = fl.Chain(fl.Dense(4, 6), fl.Dropout(0.5), fl.Dense(6, 2))
    x, y = data()
    key = fl.Key(3)
    expected = fl.per_example_gradient(loss, model, x, y, key=key)
    wrong = differences(fl.per_example_gradient(loss, over(model), *batch_over(x, y), key=key), expected)

    def second(m, x, y):
        return fl.tree.norm(fl.per_example_gradient(loss, m, x, y, key=key))

    wrong += differences(
        fl.gradient(second, over(model), *batch_over(x, y)), fl.gradient(second, model, x, y)
    )
    return wrong


def test_dropout_of_each_example_is_that_of_one_process_also_differentiated():
    assert run(each_plan, 2, dropping) == [{}, {}]


def assigned(over):
    model = fl.Chain(fl.SpectralNorm(fl.Dense(4, 6)), fl.Dense(6, 2))
    x, y = data()
    found = fl.per_example_gradient(loss, over(model), *batch_over(x, y))
    wrong = differences(found, fl.per_example_gradient(loss, model, x, y))
    return wrong + ([] if isinstance(found.layers[0].u, fl.Assigned) else ["nothing was assigned"])


def test_buffers_that_the_weights_move_come_with_the_gradients_of_each_example():
    assert run(each_plan, 2, assigned) == [{}, {}]


# Populations


def member(key):
    with fl.seeded(key):
        return fl.Chain(fl.Dense(4, 6, bias=False), fl.BatchNorm(6), fl.Dropout(0.3), fl.relu, fl.Dense(6, 2))


def train_step(model, state, key, step, x, y):
    with fl.seeded(key.fold_in(step)):
        value, grads = fl.withgradient(loss, model, x, y)
    return *fl.update(state, model, grads), value


PLACES = {
    "to_device": lambda tree: fl.to_device(tree, d.mesh(), d.split(0, "data")),
    "shard_batch": lambda tree: d.shard_batch(tree, d.mesh()),
}


def population(members, place, compiled=False):
    torch.set_default_dtype(torch.float64)
    keys = fl.Key(0).split(members)
    models = [member(key) for key in keys]
    states = fl.stack([fl.setup(fl.Adam(10.0 ** (-k / 4 - 1)), m) for k, m in enumerate(models)])
    models = fl.stack(models)
    x, y = data()
    mine, batch = PLACES[place]((models, states)), batch_over(x, y)
    step = fl.vmap(train_step, (0, 0, 0, None, None, None))
    over = fl.jit(step) if compiled else step
    wrong = []
    for t in range(3):
        models, states, values = step(models, states, keys, torch.tensor(t), x, y)
        *mine, found = over(*mine, keys, torch.tensor(t), *batch)
        wrong += differences((*mine, found), (models, states, values))
    if members % 2 == 0:
        wrong += [str(x.placements) for x in fl.fleaves(mine) if x.placements != (Shard(0),)]
    best = fl.unstack(mine[0])[1]
    return wrong + differences(best(batch[0]), fl.unstack(models)[1](x))


@pytest.mark.parametrize("members", [4, 5])
@pytest.mark.parametrize("place", PLACES)
def test_a_population_over_the_mesh_trains_as_in_one_process(members, place):
    assert run(population, 2, members, place) == [[], []]


def compiled():
    x = d.shard_batch(torch.ones(4, 3), d.mesh())
    with pytest.raises(RuntimeError, match="put one in scope, with seeded"):
        fl.jit(fl.vmap(torch.rand_like, randomness="different"))(x)
    return population(4, "shard_batch", True)


@pytest.mark.slow
def test_a_compiled_step_of_a_population_over_the_mesh_is_that_of_one_process():
    assert run(compiled, 2) == [[], []]


# vmap


def rows_of(m, x):
    return torch.tanh(x @ m["w"][0]) @ m["w"][1].mT + m["b"]


MAPPED = {
    "rows": lambda m, x, p: fl.vmap(rows_of, (None, 0))(m, x),
    "rows on another axis": lambda m, x, p: fl.vmap(rows_of, (None, 1), 1)(m, x.mT),
    "of all that the function closes over": lambda m, x, p: fl.vmap(lambda x: rows_of(m, x))(x),
    "a plain argument beside": lambda m, x, p: fl.vmap(lambda x, t: rows_of(m, x) * t)(x, p),
    "only a plain argument": lambda m, x, p: fl.vmap(lambda t: (rows_of(m, x) * t).sum(0))(p),
    "keyword arguments": lambda m, x, p: fl.vmap(lambda x, m: rows_of(m, x))(x, m=m),
    "inside vmap": lambda m, x, p: fl.vmap(lambda a: fl.vmap(lambda b: rows_of(m, a * b))(x))(x),
    "what members share": lambda m, x, p: fl.vmap(
        lambda m, x: (rows_of(m, x), m["b"].exp()), (None, 0), (0, None)
    )(m, x),
    "gradients": lambda m, x, p: fl.vmap(fl.gradient, (None, None, 0))(
        lambda m, x: rows_of(m, x).square().sum(), m, x
    ),
    "gradients, closed over": lambda m, x, p: fl.vmap(
        lambda x: fl.gradient(lambda m: rows_of(m, x).square().sum(), m)
    )(x),
    "jacobians": lambda m, x, p: fl.vmap(fl.jacobian, (None, None, 0))(rows_of, m, x),
    "forward mode": lambda m, x, p: fl.vmap(lambda x: fl.pushforward(rows_of, m, x, v=fl.tree.scale(m, 2.0)))(
        x
    ),
    "pullbacks": lambda m, x, p: fl.vmap(lambda x: fl.pullback(rows_of, m, x)[1](torch.ones(4)))(x),
}


def mapped(over):
    m, x, p = tied(), torch.randn(6, 4), torch.randn(6)
    mine, (X,) = over(m), batch_over(x)
    wrong = {}
    for name, f in MAPPED.items():

        def total(m, x, f=f):
            return sum(y.square().sum() for y in fl.fleaves(f(m, x, p)) if y.is_floating_point())

        found = differences(f(mine, X, p), f(m, x, p))
        found += differences(
            fl.gradient(total, mine, X, argnums=(0, 1)), fl.gradient(total, m, x, argnums=(0, 1))
        )
        if found:
            wrong[name] = found
    return wrong


def test_vmap_over_a_mesh_and_its_gradients_are_those_of_one_process():
    assert run(each_plan, 2, mapped) == [{}, {}]


def twice(over):
    """Second derivatives of a loss with vmap in it, whose cotangents lie otherwise than its results."""
    m, x, p = tied(), torch.randn(6, 4), torch.randn(6)
    v = fl.at(fl.fmap(torch.randn_like, m), lambda m: m["w"][1]).set(None)
    mine, (X,) = over(m), batch_over(x)

    def each(m, x):
        y = fl.vmap(lambda x, p: rows_of(m, x) * p)(x, m["b"].sum() * p)
        return y.sum(0).square().sum()

    def slope(m, x):
        return fl.tree.norm(fl.gradient(each, m, x))

    wrong = differences(fl.hvp(each, mine, X, v=over(v)), fl.hvp(each, m, x, v=v))
    wrong += differences(
        fl.gradient(slope, mine, X, argnums=(0, 1)), fl.gradient(slope, m, x, argnums=(0, 1))
    )
    return wrong


def test_second_derivatives_of_what_is_mapped_over_a_mesh_are_those_of_one_process():
    assert run(each_plan, 2, twice) == [{}, {}]


def handed_on(over):
    m, (X,) = over(tied()), batch_over(torch.randn(6, 4))
    y, same, alike = fl.vmap(lambda m, x: (x, m, x), (None, 0), (0, None, 0))(m, X)
    wrong = [] if y is alike else ["a tie is lost"]
    wrong += [] if y.placements == (Shard(0),) else [str(y.placements)]
    return wrong + [
        path for path, x in fl.trainables(same, paths=True) if not any(x is t for t in fl.fleaves(m))
    ]


def test_what_vmap_hands_on_lies_over_the_mesh_as_it_did():
    assert run(each_plan, 2, handed_on) == [{}, {}]


def drawn():
    x = d.shard_batch(torch.ones(4, 50), d.mesh())
    before = torch.get_rng_state()
    fl.vmap(lambda x: 2 * x, randomness="different")(x)
    fl.per_example_gradient(lambda w, x: (w * x).sum(), fl.to_device(torch.ones(50), d.mesh()), x)
    quiet = torch.equal(before, torch.get_rng_state())
    different = fl.vmap(torch.rand_like, randomness="different")(x).full_tensor()
    same = fl.vmap(torch.rand_like, randomness="same")(x).full_tensor()
    with pytest.raises(RuntimeError, match="randomness='different'"):
        fl.vmap(torch.rand_like)(x)
    return quiet, different, same, torch.rand(3)


def test_without_a_key_members_draw_what_no_other_member_draws_and_the_generators_stand_alike_after():
    (quiet, different, same, after), other = run(drawn, 2)
    assert quiet
    assert other[0]
    assert torch.equal(different, other[1])
    assert torch.equal(after, other[3])
    assert len(different.unique(dim=0)) == 4
    assert len(same.unique(dim=0)) == 1


# Derivatives


DERIVATIVES = {
    "jacobian": lambda f, m, x, c, v: fl.jacobian(f, m, x),
    "jacobian of both": lambda f, m, x, c, v: fl.jacobian(f, m, x, argnums=(0, 1), chunk_size=3),
    "jacobian, forward": lambda f, m, x, c, v: fl.jacobian(lambda t: f(m, x * t).expand(99, -1, -1), 2.0),
    "hessian": lambda f, m, x, c, v: fl.hessian(lambda b, x: f({**m, "b": b}, x).exp().mean(), m["b"], x),
    "diaghessian": lambda f, m, x, c, v: fl.diaghessian(lambda m, x: f(m, x).exp().mean(), m, x),
    "hvp": lambda f, m, x, c, v: fl.hvp(lambda m, x: f(m, x).exp().mean(), m, x, v=v),
    "pullback": lambda f, m, x, c, v: fl.pullback(f, m, x)[1](c),
    "pullback of both": lambda f, m, x, c, v: fl.pullback(f, m, x, argnums=(0, 1))[1](c),
    "pullback of a number": lambda f, m, x, c, v: fl.pullback(lambda m, x: f(m, x).mean(), m, x)[1](2.0),
    "pushforward": lambda f, m, x, c, v: fl.pushforward(f, m, x, v=v),
    "pushforward to several": lambda f, m, x, c, v: fl.pushforward(
        lambda m, x: {"y": f(m, x).mean(), "x": x, "n": 3, "b": m["b"]}, m, x, v=v
    ),
    "pushforward of what is closed over": lambda f, m, x, c, v: fl.pushforward(
        lambda t: f(m, x).exp().mean() * t, torch.tensor(2.0), v=torch.tensor(3.0)
    ),
    "pushforward of x": lambda f, m, x, c, v: fl.pushforward(f, m, x, v=(v, x), argnums=(0, 1)),
}


def derived(over):
    m, x, c = tied(), torch.randn(6, 4), torch.randn(6, 4)
    v = fl.at(fl.fmap(torch.randn_like, m), lambda m: m["w"][1]).set(None)
    mine, (X, C) = over(m), batch_over(x, c)
    wrong = {}
    for name, f in DERIVATIVES.items():
        try:
            expected = f(through_tied, m, x, c, v)
            found = differences(f(through_tied, mine, X, C, over(v)), expected)
            found += differences(f(through_tied, mine, X, c, v), expected)  # plain directions
        except Exception as error:
            raise RuntimeError(name) from error
        if found:
            wrong[name] = found
    return wrong


def test_derivatives_over_a_mesh_are_those_of_one_process():
    assert run(each_plan, 2, derived) == [{}, {}]


def derived_again(over):
    m, x, c = tied(), torch.randn(6, 4), torch.randn(6, 4)
    v = fl.at(fl.fmap(torch.randn_like, m), lambda m: m["w"][1]).set(None)
    mine, (X, C) = over(m), batch_over(x, c)
    wrong = {}
    for name, f in DERIVATIVES.items():

        def total(m, x, c, v, f=f):
            return sum(y.square().sum() for y in fl.fleaves(f(through_tied, m, x, c, v)))

        try:
            expected = fl.gradient(total, m, x, c, v, argnums=(0, 1))
            found = differences(fl.gradient(total, mine, X, C, over(v), argnums=(0, 1)), expected)
        except Exception as error:
            raise RuntimeError(name) from error
        if found:
            wrong[name] = found
    return wrong


def test_gradients_of_derivatives_over_a_mesh_are_those_of_one_process():
    assert run(each_plan, 2, derived_again) == [{}, {}]


def layouts(over):
    m, (X,) = over(tied()), batch_over(torch.randn(6, 4))
    wrong = []
    for y in fl.fleaves(fl.jacobian(through_tied, m, X)):
        wrong += [] if y.placements == (Shard(0),) else [f"jacobian {y.placements}"]
    _, back = fl.pullback(through_tied, m, X)
    diagonal = fl.diaghessian(lambda m, x: through_tied(m, x).exp().mean(), m, X)
    for name, tree in {"pullback": back(torch.ones(6, 4)), "diaghessian": diagonal}.items():
        for g, x in ((tree["w"][0], m["w"][0]), (tree["b"], m["b"])):
            same = type(g) is type(x) and g.placements == x.placements
            wrong += [] if same else [f"{name} {type(g)} {g.placements}"]
    _, tangent = fl.pushforward(through_tied, m, X, v=fl.fmap(torch.ones_like, m) | {"w": None})
    return wrong + ([] if tangent.placements == (Shard(0),) else [f"pushforward {tangent.placements}"])


def test_derivatives_lie_over_the_mesh_as_what_they_are_the_derivatives_of():
    assert run(each_plan, 2, layouts) == [{}, {}]


def refused():
    m, x = tied(), torch.randn(6, 4)
    mine, (X,) = fl.to_device(m, d.mesh()), batch_over(x)
    _, back = fl.pullback(through_tied, mine, X)
    with pytest.raises(RuntimeError, match="call back once for each cotangent, or write jacobian"):
        fl.vmap(back)(torch.ones(3, 6, 4))
    sharded = fl.to_device(m, d.mesh(), d.shard())
    _, back = fl.pullback(through_tied, sharded, X)
    with pytest.raises(RuntimeError, match="take the pullback inside the function"):
        fl.gradient(lambda c: fl.tree.norm(back(c)), X)
    with pytest.raises(ValueError, match="shard_batch"):
        fl.per_example_gradient(lambda m, x: through_tied(m, x).sum(), mine, x)
    with pytest.raises(ValueError, match="shard_batch"):
        fl.jacobian(through_tied, mine, x)
    norm = fl.to_device(fl.BatchNorm(4), d.mesh())
    with pytest.raises(ValueError, match="use GroupNorm"):
        fl.per_example_gradient(lambda m, x: m(x).sum(), norm, X.float())


def test_what_can_not_be_mapped_over_a_mesh_says_what_to_write_instead():
    run(refused, 2)


def of_a_plain_tensor(over):
    """A second derivative with respect to a tensor that is not over the mesh, as the model is."""
    model, t, v = fl.f64(fl.Dense(4, 3)), torch.randn(4), torch.randn(4)

    def f(model, t):
        return fl.hvp(lambda t: model(t[None]).exp().sum(), t, v=v)

    return differences(f(over(model), t), f(model, t))


def test_a_second_derivative_for_a_plain_tensor_goes_through_a_model_over_a_mesh():
    assert run(each_plan, 2, of_a_plain_tensor) == [{}, {}]
