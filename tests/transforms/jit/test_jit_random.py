"""`jit` and what is random: the bits of eager code under a key, fresh draws without one."""

import pytest
import torch
import torch.nn.functional as F

import fluxlike as fl

X = torch.ones(4, 16)
drop = fl.trainmode(fl.Dropout(0.5))


def bits(*trees):
    return [x.tolist() for x in fl.fleaves(list(trees))]


def test_dropout_under_a_key_outside_is_that_of_eager():
    f = fl.jit(lambda x: drop(x))
    for seed in range(3):
        with fl.seeded(fl.Key(seed)):
            compiled = f(X), f(X)
        with fl.seeded(fl.Key(seed)):
            eager = drop(X), drop(X)
        assert bits(compiled) == bits(eager)
        assert not torch.equal(*compiled)
    assert f.cache_info() == (6, 1)


def test_compiled_and_eager_draws_take_turns_in_one_scope():
    f = fl.jit(lambda x: (drop(x), drop(x)))
    with fl.seeded(fl.Key(3)):
        expected = bits(*(drop(X) for _ in range(6)))
    with fl.seeded(fl.Key(3)):
        assert bits(drop(X), *f(X), drop(X), *f(X)) == expected
    assert f.cache_info().traces == 1


def test_dropout_under_a_key_inside_is_that_of_eager():
    def f(key, x):
        with fl.seeded(key):
            return drop(x), drop(x)

    jitted = fl.jit(f)
    for seed in range(3):
        assert bits(jitted(fl.Key(seed), X)) == bits(f(fl.Key(seed), X))
    assert jitted.cache_info() == (3, 1)
    with fl.seeded(fl.Key(9)):  # which counts no draw of the inner one
        assert bits(jitted(fl.Key(1), X)) == bits(f(fl.Key(1), X))
        after = drop(X)
    with fl.seeded(fl.Key(9)):
        assert torch.equal(drop(X), after)


def test_the_key_of_a_gradient():
    model = fl.Chain(fl.Dense(16, 8), fl.Dropout(0.5), fl.Dense(8, 1))

    def f(m, key):
        return fl.gradient(lambda m: m(X).square().mean(), m, key=key)

    jitted = fl.jit(f)
    seen = []
    for seed in range(3):
        found, expected = jitted(model, fl.Key(seed)), f(model, fl.Key(seed))
        assert fl.tree.allclose(found, expected, rtol=1e-5)
        seen.append(bits(found))
    assert seen[0] != seen[1]
    assert jitted.cache_info().traces == 1


def test_every_kind_of_draw_has_the_bits_of_eager():
    def draw():
        return {
            "uniform": fl.random.uniform((5,)),
            "bernoulli": fl.random.bernoulli((9,), 0.3),
            "permutation": fl.random.permutation(7),
            "integers": fl.random.integers((5,), 0, 100),
        }

    with fl.seeded(fl.Key(5)):
        expected = draw(), fl.random.normal((5,))
    with fl.seeded(fl.Key(5)):
        found = fl.jit(draw)(), fl.jit(lambda: fl.random.normal((5,)))()
    assert bits(found[0]) == bits(expected[0])
    assert torch.allclose(found[1], expected[1])


def test_members_of_an_ensemble_draw_what_they_draw_alone():
    def f(x):
        return fl.vmap(lambda x: drop(x), randomness="different")(x)

    with fl.seeded(fl.Key(1)):
        expected = f(X)
    with fl.seeded(fl.Key(1)):
        assert torch.equal(fl.jit(f)(X), expected)


def test_a_key_that_is_blocked_is_blocked_under_jit():
    f = fl.jit(lambda x: fl.vmap(lambda x: drop(x))(x))
    with fl.seeded(fl.Key(1)), pytest.raises(RuntimeError, match="randomness='different'"):
        f(X)


def test_torch_s_own_draws_under_a_key_are_functions_of_it():
    def f(x):
        return F.dropout(x, 0.3), torch.rand(3), torch.randn(3), torch.bernoulli(x / 2), torch.rand_like(x)

    jitted = fl.jit(f)
    before = torch.random.get_rng_state()
    with fl.seeded(fl.Key(1)):
        first, second = bits(jitted(X)), bits(jitted(X))
    with fl.seeded(fl.Key(1)):
        again = bits(jitted(X))
    with fl.seeded(fl.Key(2)):
        other = bits(jitted(X))
    assert first == again
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert jitted.cache_info().traces == 1


@pytest.mark.parametrize(
    "draw",
    [lambda: torch.randperm(5), lambda: torch.multinomial(torch.ones(5), 2), lambda: torch.normal(X, 1.0)],
)
def test_another_random_operation_of_torch_under_a_key_is_an_error_that_names_it(draw):
    with (
        fl.seeded(fl.Key(1)),
        pytest.raises(RuntimeError, match=r"(randperm|multinomial|normal).*a key can't replace"),
    ):
        fl.jit(draw)()


WITHOUT = {
    "layer": lambda: drop(X),
    "uniform": lambda: fl.random.uniform((9,)),
    "dropout": lambda: F.dropout(X),
    "rand": lambda: torch.rand(4),
    "randn": lambda: torch.randn(4),
    "bernoulli": lambda: torch.bernoulli(X / 2),
    "in place": lambda: torch.empty(4).uniform_(),
    "randint": lambda: torch.randint(0, 1000, (9,)),
    "random_": lambda: torch.empty(9).random_(0, 1000),
    "randperm": lambda: torch.randperm(20),
    "multinomial": lambda: torch.multinomial(torch.ones(50), 9),
    "normal": lambda: torch.normal(torch.zeros(3), 1.0),
    "rrelu": lambda: F.rrelu(-torch.ones(9), training=True),
    "poisson": lambda: torch.poisson(9 * X),
}


def test_without_a_key_each_draw_is_another_and_manual_seed_repeats_them():
    f = fl.jit(lambda: {name: (draw(), draw()) for name, draw in WITHOUT.items()})
    torch.manual_seed(3)
    first, second = f(), f()
    torch.manual_seed(3)
    again = f()
    for name in WITHOUT:
        assert bits(first[name]) == bits(again[name]), name
        assert len({str(b) for b in bits(first[name], second[name])}) == 4, name
    assert f.cache_info().traces == 1


def test_dropout_without_a_key_drops_its_share():
    out = fl.jit(lambda x: fl.trainmode(fl.Dropout(0.25))(x))(torch.ones(10_000))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out == 0).double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_a_key_in_scope_or_none_are_two_traces():
    f = fl.jit(lambda x: drop(x))
    for _ in range(2):
        f(X)
        with fl.seeded(fl.Key(0)):
            f(X)
    assert f.cache_info().traces == 2


def test_construction_under_a_key_inside():
    def build(key):
        with fl.seeded(key):
            return fl.Dense(3, 2)

    model = fl.jit(build)(fl.Key(1))
    assert type(model) is fl.Dense
    assert fl.tree.allclose(model, build(fl.Key(1)), rtol=1e-6)


def test_checkpoint_draws_the_same_in_its_second_run():
    model = fl.Chain(fl.Dense(16, 8), fl.Dropout(0.5), fl.Dense(8, 1))

    def f(m, key):
        return fl.gradient(lambda m: fl.checkpoint(lambda x: m(x))(X).square().mean(), m, key=key)

    def g(m, key):
        return fl.gradient(lambda m: m(X).square().mean(), m, key=key)

    assert fl.tree.allclose(fl.jit(f)(model, fl.Key(1)), g(model, fl.Key(1)), rtol=1e-5)


def test_a_key_may_lie_in_memory_in_any_way():
    key = fl.Key(5)
    strided = fl.fmap(lambda t: torch.stack([t, t * 0 + 77], 1)[:, 0], key)
    draw = fl.jit(lambda: fl.random.uniform((3,)))
    for k in (key, strided):
        with fl.seeded(k):
            compiled = draw()
        with fl.seeded(k):
            assert torch.equal(compiled, fl.random.uniform((3,)))
