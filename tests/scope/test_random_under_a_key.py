"""What is random under a key: fluxlike's own draws, and torch's operations, eager, mapped and traced."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import fluxlike as fl
from fluxlike.scope.seeded import Draws, enter, leave


def under(key, f):
    with fl.seeded(key):
        return f()


def training(f):
    with fl.mode("train"):
        return f()


def leaves(x):
    return x if isinstance(x, torch.Tensor) else torch.cat([t.flatten().double() for t in fl.fleaves(x)])


X = torch.linspace(-1, 1, 40).view(5, 8)

OURS = {
    "uniform": lambda: fl.random.uniform((3, 4), -1, 1),
    "normal": lambda: fl.random.normal((3, 4), 2.0, 0.5),
    "bernoulli": lambda: fl.random.bernoulli((50,), 0.3),
    "bernoulli of a tensor": lambda: fl.random.bernoulli(p=X.sigmoid()),
    "integers": lambda: fl.random.integers((9,), 0, 100),
    "permutation": lambda: fl.random.permutation(20),
    "Dropout": lambda: training(lambda: fl.Dropout(0.4)(X + 2)),
    "Dense": lambda: fl.Dense(3, 4),
    "glorot_normal": lambda: fl.init.glorot_normal((3, 4)),
    "kaiming_uniform": lambda: fl.init.kaiming_uniform((3, 4)),
    "kaiming_normal": lambda: fl.init.kaiming_normal((3, 4)),
    "splitobs": lambda: fl.splitobs(torch.arange(30), 0.5, shuffle=True)[0],
    "DataLoader": lambda: torch.cat(list(fl.DataLoader(torch.arange(30), 7, shuffle=True))),
}
every_draw_of_ours = pytest.mark.parametrize("draw", OURS.values(), ids=OURS)


@every_draw_of_ours
def test_our_draws_are_a_function_of_the_key(draw):
    x = leaves(under(fl.Key(1), draw))
    torch.rand(1)
    assert torch.equal(leaves(under(fl.Key(1), draw)), x)
    assert not torch.equal(leaves(under(fl.Key(2), draw)), x)


@every_draw_of_ours
def test_our_draws_under_a_key_leave_torchs_generator_alone(draw):
    state = torch.get_rng_state()
    with fl.seeded(fl.Key(1)):
        seeded = torch.get_rng_state()
        draw()
        assert torch.equal(torch.get_rng_state(), seeded)
    assert torch.equal(torch.get_rng_state(), state)


@every_draw_of_ours
def test_without_a_key_our_draws_follow_manual_seed(draw):
    torch.manual_seed(1)
    first, second = leaves(draw()), leaves(draw())
    torch.manual_seed(1)
    assert torch.equal(leaves(draw()), first)
    assert not torch.equal(second, first)


def test_what_torch_draws_between_them_does_not_move_our_draws():
    def two():
        return torch.stack((fl.random.uniform((3,)), fl.random.uniform((3,))))

    def with_torch():
        first = fl.random.uniform((3,))
        F.dropout(torch.rand(100))
        return torch.stack((first, fl.random.uniform((3,))))

    keys = fl.Key(0).split(2)
    alone = [under(key, two) for key in keys]
    assert torch.equal(under(keys[0], with_torch), alone[0])
    assert torch.equal(torch.func.vmap(lambda key: under(key, with_torch))(keys), torch.stack(alone))
    assert torch.equal(traced(with_torch)(keys[0].data, torch.tensor(0)), alone[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dropout_keeps_the_dtype_and_scales_what_it_keeps(dtype):
    x = torch.ones(4000, dtype=dtype)
    y = under(fl.Key(1), lambda: training(lambda: fl.Dropout(0.25)(x)))
    assert y.dtype == dtype
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75, dtype=dtype).item()}
    assert abs((y == 0).double().mean().item() - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_everything(p):
    y = under(fl.Key(1), lambda: training(lambda: fl.Dropout(p)(X)))
    assert torch.equal(y, X * (1 - p))


def test_the_gradient_of_dropout_is_what_it_multiplied_by():
    x = torch.ones(100, dtype=torch.float64, requires_grad=True)

    def drop(x):
        return under(fl.Key(1), lambda: training(lambda: fl.Dropout(0.3)(x)))

    assert torch.autograd.gradcheck(drop, x)
    assert torch.equal(fl.gradient(lambda x: drop(x).sum(), x.detach()), drop(x).detach())


def test_in_test_mode_dropout_takes_no_draw():
    def draw():
        fl.Dropout(0.5)(X)
        return fl.random.uniform((3,))

    assert torch.equal(under(fl.Key(1), draw), under(fl.Key(1), lambda: fl.random.uniform((3,))))


def test_models_of_an_ensemble_drop_what_they_drop_alone():
    model, keys = fl.Chain(fl.Dense(8, 6, fl.relu), fl.Dropout(0.5), fl.Dense(6, 1)), fl.Key(1).split(3)

    def grads(key):
        return fl.gradient(lambda m: m(X).square().mean(), model, key=key)

    mapped = torch.func.vmap(lambda key: grads(key).layers[0].weight)(keys)
    torch.testing.assert_close(mapped, torch.stack([grads(key).layers[0].weight for key in keys]))


def test_member_i_of_a_vmap_draws_under_the_key_folded_by_i():
    def draw(x):
        return x + fl.random.uniform((3,))

    key = fl.Key(4)
    with fl.seeded(key):
        mapped = fl.vmap(draw, randomness="different")(torch.zeros(5, 3))
    alone = [under(key.fold_in(i), lambda: fl.random.uniform((3,))) for i in range(5)]
    assert torch.equal(mapped, torch.stack(alone))


def test_layers_built_on_the_meta_device_take_as_many_draws():
    def build():
        with torch.device("meta"):
            assert fl.Dense(3, 4).weight.is_meta
        return fl.Dense(3, 4)

    models = under(fl.Key(1), lambda: [fl.Dense(3, 4), fl.Dense(3, 4)])
    assert torch.equal(under(fl.Key(1), build).weight, models[1].weight)


# Shuffling


def test_a_loader_with_a_key_has_an_order_for_each_epoch():
    def epochs(key):
        loader = fl.DataLoader(torch.arange(50), 7, shuffle=True, key=key)
        return [torch.cat(list(loader)) for _ in range(3)]

    first = epochs(fl.Key(1))
    torch.rand(1)
    assert all(map(torch.equal, epochs(fl.Key(1)), first))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(epochs(fl.Key(2))[0], first[0])
    for i, order in enumerate(first):
        assert torch.equal(order, under(fl.Key(1).fold_in(i), lambda: fl.random.permutation(50)))


def test_a_split_with_a_key_is_a_function_of_it():
    first = fl.splitobs(torch.arange(50), 0.5, shuffle=True, key=fl.Key(1))
    again = fl.splitobs(torch.arange(50), 0.5, shuffle=True, key=fl.Key(1))
    assert all(map(torch.equal, first, again))
    assert torch.cat(first).sort().values.tolist() == list(range(50))


@pytest.mark.parametrize(
    "use",
    [
        lambda key, shuffle: fl.DataLoader(torch.ones(3), shuffle=shuffle, key=key),
        lambda key, shuffle: fl.splitobs(torch.ones(3), 0.5, shuffle=shuffle, key=key),
    ],
    ids=["DataLoader", "splitobs"],
)
def test_a_key_that_shuffles_nothing_and_what_is_no_key_are_errors(use):
    with pytest.raises(ValueError, match=r"got a key but keeps the order of the data; write shuffle=True"):
        use(fl.Key(1), False)
    with pytest.raises(TypeError, match=r"takes a Key, found int 3; write Key\(3\)"):
        use(3, True)


# fl.random


def test_ranges_and_moments_of_the_public_draws():
    with fl.seeded(fl.Key(1)):
        u, z = fl.random.uniform((10_000,), 2, 3), fl.random.normal((10_000,), 5, 2)
        n = fl.random.integers((10_000,), -2, 3)
    assert 2 <= u.min() < 2.01 < 2.99 < u.max() <= 3
    assert abs(z.mean().item() - 5) < 0.1
    assert abs(z.std().item() - 2) < 0.1
    assert n.unique().tolist() == [-2, -1, 0, 1, 2]


@pytest.mark.parametrize("keyed", [False, True])
def test_public_draws_take_shapes_dtypes_and_devices(keyed):
    def check():
        assert fl.random.uniform().shape == ()
        assert fl.random.normal((2, 3), dtype=torch.float64).dtype == torch.float64
        assert fl.random.bernoulli().shape == ()
        assert (
            fl.random.bernoulli((4, 3), torch.tensor([0.0, 1.0, 0.5]))[:, :2].tolist() == [[False, True]] * 4
        )
        assert fl.random.permutation(0).shape == (0,)
        for x in (
            fl.random.uniform((2,), device="meta"),
            fl.random.bernoulli((2,), device="meta"),
            fl.random.integers((2,), 0, 3, device="meta"),
            fl.random.permutation(3, device="meta"),
        ):
            assert x.is_meta
        torch.set_default_dtype(torch.float64)
        try:
            assert fl.random.uniform((2,)).dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)

    under(fl.Key(1), check) if keyed else check()


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize(
    ("draw", "error", "text"),
    [
        (lambda: fl.random.uniform((2,), dtype=torch.int64), TypeError, "found dtype=torch.int64; cast what"),
        (lambda: fl.random.normal((2,), dtype=torch.complex64), TypeError, "normal draws float16, bfloat16,"),
        (
            lambda: fl.random.uniform(3),
            TypeError,
            r"uniform takes the shape as a tuple, found 3; write \(3,",
        ),
        (lambda: fl.random.normal(3), TypeError, r"normal takes the shape as a tuple"),
        (lambda: fl.random.bernoulli(3), TypeError, r"bernoulli takes the shape as a tuple"),
        (lambda: fl.random.integers(3, 0, 5), TypeError, r"integers takes the shape as a tuple"),
        (lambda: fl.random.bernoulli((2,), 1.5), ValueError, r"bernoulli\(p=1.5\): write a probability"),
        (lambda: fl.random.integers((2,), 3, 3), ValueError, "high must be above low"),
        (lambda: fl.random.permutation(-1), ValueError, r"permutation\(-1\): write how many"),
    ],
)
def test_what_can_not_be_drawn_is_an_error(draw, error, text, keyed):
    with pytest.raises(error, match=text):
        under(fl.Key(1), draw) if keyed else draw()


# torch's own operations, eager

TORCHS = {
    "rand": lambda: torch.rand(3, 4),
    "randn": lambda: torch.randn(5),
    "dropout": lambda: F.dropout(X),
    "module": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))(X).detach(),
    "randperm": lambda: torch.randperm(20),
    "multinomial": lambda: torch.multinomial(X.softmax(-1), 2),
    "exponential": lambda: torch.empty(9).exponential_(),
}
every_operation = pytest.mark.parametrize("operation", TORCHS.values(), ids=TORCHS)


@every_operation
def test_torchs_operations_are_seeded_by_the_key_and_the_state_comes_back(operation):
    state = torch.get_rng_state()
    first = under(fl.Key(1), operation)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(under(fl.Key(1), operation), first)
    assert not torch.equal(under(fl.Key(2), operation), first)


def test_gradient_seeds_torchs_operations_by_its_key():
    grad = fl.gradient(lambda x: (x * torch.randn(5)).sum(), torch.ones(5), key=fl.Key(1))
    assert torch.equal(grad, under(fl.Key(1), lambda: torch.randn(5)))


def test_an_inner_scope_leaves_torchs_draws_of_the_outer_one_where_they_were():
    alone = under(fl.Key(1), lambda: torch.rand(6))
    with fl.seeded(fl.Key(1)):
        first = torch.rand(3)
        under(fl.Key(2), lambda: torch.rand(100))
        assert torch.equal(torch.cat((first, torch.rand(3))), alone)


def test_a_generator_of_the_users_own_is_left_to_them():
    wanted = torch.rand(3, generator=torch.Generator().manual_seed(5))
    found = under(fl.Key(1), lambda: torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(found, wanted)


# torch's own operations, mapped and traced

ONES = torch.ones(6, 4, 3)
DRAWN = {
    "rand": lambda x: torch.rand(6, 40),
    "rand of a size": lambda x: torch.rand((60, 4), dtype=torch.float64),
    "randn": lambda x: torch.randn(size=(6, 40)),
    "rand_like": lambda x: torch.rand_like(x),
    "randn_like": lambda x: torch.randn_like(x, dtype=torch.float64),
    "bernoulli": lambda x: torch.bernoulli(x * 0.3),
    "bernoulli with p": lambda x: torch.bernoulli(x, 0.3),
    "x.bernoulli": lambda x: (x * 0.3).bernoulli(),
    "x.bernoulli_": lambda x: x.clone().bernoulli_(0.3),
    "x.bernoulli_ of a tensor": lambda x: x.clone().bernoulli_(x * 0.3),
    "x.uniform_": lambda x: x.clone().uniform_(-1, 1),
    "x.uniform_ by name": lambda x: x.clone().uniform_(to=2.0),
    "x.normal_": lambda x: x.clone().normal_(1.0, 0.5),
    "init": lambda x: nn.init.xavier_normal_(x.clone().view(6, 12)),
    "F.dropout": lambda x: F.dropout(x, 0.3),
    "F.dropout in place": lambda x: F.dropout(x.clone(), 0.3, inplace=True),
    "torch.dropout": lambda x: torch.dropout(x, 0.3, True),
    "nn.Dropout": lambda x: nn.Dropout(0.3)(x),
    "F.dropout1d": lambda x: F.dropout1d(x, 0.5),
    "F.dropout2d": lambda x: F.dropout2d(x[..., None], 0.5),
    "F.dropout3d": lambda x: F.dropout3d(x[..., None, None], 0.5),
    "F.alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "F.feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.5, training=True),
}
every_drawn = pytest.mark.parametrize("operation", DRAWN.values(), ids=DRAWN)


def traced(f, *args):
    """A trace of `f` under a key and counts that are its inputs, as `jit` makes one."""

    def run(data, base, *args):
        token = enter(Draws.from_inputs(data, base))
        try:
            return f(*args)
        finally:
            leave(token)

    return make_fx(run, tracing_mode="fake")(fl.Key(0).data, torch.tensor(0), *args)


@every_drawn
def test_mapped_each_member_draws_torchs_operations_from_its_key(operation):
    state = torch.get_rng_state()
    keys = fl.Key(1).split(3)
    mapped = torch.func.vmap(lambda key, x: under(key, lambda: operation(x)))(keys, ONES.expand(3, 6, 4, 3))
    for i in range(3):
        alone = torch.func.vmap(lambda key, x: under(key, lambda: operation(x)))(keys[i : i + 1], ONES[None])
        torch.testing.assert_close(mapped[i], alone[0])
    assert not torch.equal(mapped[0], mapped[1])
    assert mapped[0].shape == operation(ONES).shape
    assert mapped.dtype == operation(ONES).dtype
    torch.set_rng_state(state)


@every_drawn
def test_a_trace_draws_torchs_operations_from_its_key(operation):
    state = torch.get_rng_state()
    graph = traced(operation, ONES)
    first = graph(fl.Key(1).data, torch.tensor(0), ONES)
    assert torch.equal(graph(fl.Key(1).data, torch.tensor(0), ONES), first)
    assert not torch.equal(graph(fl.Key(2).data, torch.tensor(0), ONES), first)
    assert not torch.equal(graph(fl.Key(1).data, torch.tensor(1 << 32), ONES), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.shape, first.dtype) == (operation(ONES).shape, operation(ONES).dtype)
    torch.set_rng_state(state)


def test_what_torch_draws_is_not_what_we_draw():
    def both():
        return torch.rand(20), fl.random.uniform((20,))

    for drawn in (traced(both)(fl.Key(1).data, torch.tensor(0)), under(fl.Key(1), both)):
        assert not torch.equal(*drawn)


@pytest.mark.parametrize("name", [n for n in DRAWN if "dropout3d" not in n and n != "init"])
def test_mapped_and_traced_torchs_operations_are_distributed_as_torchs(name):
    x, operation = torch.ones(300, 20, 5), DRAWN[name]
    torch.manual_seed(0)
    wanted = operation(x).double()
    mapped = torch.func.vmap(lambda k, x: under(k, lambda: operation(x)))(fl.Key(1).split(1), x[None])[0]
    graph = traced(operation, x)(fl.Key(2).data, torch.tensor(0), x)
    n = 300 if name in ("rand", "randn", "rand of a size") else 6000
    for found in (mapped.double(), graph.double()):
        for power in (1, 2):
            spread = (wanted**power).std().item()
            effective = n / 5 if "1d" in name or "2d" in name or "feature" in name else n
            gap = abs((found**power).mean().item() - (wanted**power).mean().item())
            assert gap < 6 * spread * (2 / effective) ** 0.5 + 1e-6


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: F.dropout(x, 0.3, training=False),
        lambda x: nn.Dropout(0.3).eval()(x),
        lambda x: F.alpha_dropout(x, 0.3),
        lambda x: F.scaled_dot_product_attention(x, x, x),
        lambda x: F.rrelu(x),
    ],
)
def test_what_draws_nothing_runs_traced_as_it_is(operation):
    x = torch.randn(2, 1, 3, 4)
    torch.testing.assert_close(traced(operation, x)(fl.Key(1).data, torch.tensor(0), x), operation(x))


def test_the_dropout_inside_torchs_compositions_is_drawn_in_a_trace():
    lstm, attention = (
        nn.LSTM(4, 4, 2, dropout=0.5),
        nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True),
    )
    states = {"lstm": dict(lstm.named_parameters()), "attention": dict(attention.named_parameters())}

    def run(states, x):
        out, _ = torch.func.functional_call(lstm, states["lstm"], (x,))
        mixed, _ = torch.func.functional_call(attention, states["attention"], (out, out, out))
        return mixed

    states = fl.fmap(lambda p: p.detach(), states)
    x = torch.randn(2, 3, 4)
    graph = traced(run, states, x)
    first = graph(fl.Key(1).data, torch.tensor(0), states, x)
    assert torch.equal(graph(fl.Key(1).data, torch.tensor(0), states, x), first)
    assert not torch.allclose(graph(fl.Key(2).data, torch.tensor(0), states, x), first)


REFUSED = {
    "exponential_": (lambda x: x.clone().exponential_(), "exponential_", r"write -torch\.log1p"),
    "normal": (lambda x: torch.normal(x, x), "normal", r"write mean \+ std \* torch\.randn_like\(mean\)"),
    "randperm": (lambda x: torch.randperm(4), "randperm", r"write fluxlike\.random\.permutation\(n\)"),
    "randint": (lambda x: torch.randint(0, 3, (2,)), "randint", r"write fluxlike\.random\.integers\("),
    "multinomial": (lambda x: torch.multinomial(x, 1), "multinomial", "argmax"),
    "gumbel_softmax": (lambda x: F.gumbel_softmax(x), "(gumbel_softmax|exponential_)", "write "),
    "poisson": (lambda x: torch.poisson(x), "poisson", "or a draw of fluxlike.random"),
    "complex": (
        lambda x: torch.randn(3, dtype=torch.complex64),
        "",
        "torch.complex64 can't be drawn; draw float32",
    ),
}


def assert_no_mode_is_left_behind():
    assert torch.randperm(1).tolist() == [0]  # which the modes refuse


@pytest.mark.parametrize(("operation", "name", "text"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("randomness", ["error", "different"])
def test_mapped_any_other_operation_is_an_error_that_names_it(operation, name, text, randomness):
    with pytest.raises(RuntimeError, match=rf"{name}.*{text}"):
        torch.func.vmap(lambda k, x: under(k, lambda: operation(x)), randomness=randomness)(
            fl.Key(1).split(2), torch.ones(2, 3)
        )
    assert_no_mode_is_left_behind()


@pytest.mark.parametrize(("operation", "name", "text"), REFUSED.values(), ids=REFUSED)
def test_traced_any_other_operation_is_an_error_that_names_it(operation, name, text):
    with pytest.raises(RuntimeError, match=rf"{name}.*{text}"):
        traced(operation, torch.ones(3))
    assert_no_mode_is_left_behind()


def test_dropout_inside_attention_is_refused_under_vmap_with_what_to_write():
    def attend(key, x):
        with fl.seeded(key):
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)

    for randomness in ("error", "different"):
        with pytest.raises(RuntimeError, match="scaled_dot_product_attention"):
            torch.func.vmap(attend, randomness=randomness)(fl.Key(1).split(2), torch.ones(2, 1, 3, 4))


def test_a_scope_inside_a_trace_draws_from_its_own_key():
    def run(key):
        with fl.seeded(key):
            inner = torch.func.grad(lambda y: F.dropout(y, 0.5).sum())(torch.ones(20))
            return fl.random.uniform((3,)), torch.rand(3), inner

    graph = make_fx(run, tracing_mode="fake")(fl.Key(0))
    first, second = graph(fl.Key(1)), graph(fl.Key(2))
    assert torch.equal(first[0], under(fl.Key(1), lambda: fl.random.uniform((3,))))
    for a, b in zip(first, second, strict=True):
        assert not torch.equal(a, b)
