"""MultiHeadAttention: masks, transforms of every kind, draws, options and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fluxlike as fl
from fluxlike._private import functorch
from fluxlike._private.compiler import build

law = settings(max_examples=25, deadline=None)
sizes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]))


def attention(heads: int = 2, groups: int | None = None, **options: Any) -> fl.MultiHeadAttention:
    return fl.f64(fl.MultiHeadAttention(8, heads, num_kv_heads=groups, **options))


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def exact(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def squares(layer: Any, x: Tensor, **options: Any) -> Tensor:
    return layer(x, **options).square().sum()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch):
    """The graphs of jit as they are recorded, without Inductor's kernels."""
    monkeypatch.setattr(build, "_can_compile", lambda: False)


# Laws


@law
@given(sizes, st.randoms(use_true_random=False))
def test_without_a_mask_tokens_may_stand_in_any_order(size: Any, random: Any):
    n, length, (heads, groups) = size
    layer, x = attention(heads, groups), randn(n, length, 8)
    order = random.sample(range(length), length)
    exact(layer(x[:, order]), layer(x)[:, order])


@law
@given(sizes, st.integers(0, 5))
def test_causal_attention_does_not_see_later_tokens(size: Any, seen: int):
    n, length, (heads, groups) = size
    seen = min(seen, length)
    layer, x = attention(heads, groups, rotary=fl.RotaryEmbedding(2)), randn(n, length, 8)
    other = torch.cat((x[:, :seen], randn(n, length - seen, 8)), 1)
    exact(layer(other, causal=True)[:, :seen], layer(x, causal=True)[:, :seen])
    exact(layer(x, causal=True)[:, :seen], layer(x[:, :seen], causal=True))


@law
@given(sizes, st.data())
def test_a_padded_sequence_is_the_shorter_sequence_alone(size: Any, data: st.DataObject):
    n, length, (heads, groups) = size
    lengths = [data.draw(st.integers(1, length)) for _ in range(n)]
    layer, x = attention(heads, groups), randn(n, length, 8)
    together = layer(x, lengths=torch.tensor(lengths))
    for i, short in enumerate(lengths):
        exact(together[i : i + 1, :short], layer(x[i : i + 1, :short]))


@law
@given(sizes)
def test_the_weights_of_a_query_are_positive_and_add_up_to_one(size: Any):
    n, length, (heads, groups) = size
    weights = attention(heads, groups).attention_weights(randn(n, length, 8))
    assert weights.shape == (n, heads, length, length)
    assert (weights >= 0).all()
    exact(weights.sum(-1), torch.ones(n, heads, length, dtype=torch.float64))


# Masks

MASKS = {
    "(L, S)": (5, 7),
    "(N, L, S)": (3, 5, 7),
    "(N, H, L, S)": (3, 2, 5, 7),
    "keys of a sequence": (3, 1, 7),
    "the same for all": (1, 7),
    "a head": (1, 2, 1, 1),
}


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_a_mask_of_any_shape_means_the_same_bool_or_floating(shape: tuple[int, ...]):
    layer, x, context = attention(), randn(3, 5, 8), randn(3, 7, 8)
    mask = torch.rand(shape) < 0.7
    bias = torch.zeros(shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    full = mask[:, None] if mask.ndim == 3 else mask
    weights = layer.attention_weights(x, context, mask=mask)
    assert not weights.masked_select(~full.expand(3, 2, 5, 7)).any()
    exact(layer(x, context, mask=mask), layer(x, context, mask=bias))
    exact(layer.attention_weights(x, context, mask=bias), weights)


def test_a_bool_mask_is_the_opposite_of_torchs():
    layer, twin = attention(), nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        for mine, other in zip(fl.trainables(layer), twin.parameters(), strict=True):
            other.copy_(mine)
    x, mask = randn(3, 5, 8), torch.ones(5, 5, dtype=torch.bool).tril()
    exact(layer(x, mask=mask), twin(x, x, x, attn_mask=~mask)[0].detach())
    exact(layer(x, mask=mask), layer(x, causal=True))


def test_weights_on_request_are_those_of_torch():
    layer, twin = attention(), nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        for mine, other in zip(fl.trainables(layer), twin.parameters(), strict=True):
            other.copy_(mine)
    x, context = randn(3, 5, 8), randn(3, 4, 8)
    theirs = twin(x, context, context, average_attn_weights=False)[1]
    exact(layer.attention_weights(x, context), theirs.detach())


NOTHING = {
    "bool": lambda: {"mask": torch.tensor([True, False, True])[:, None].expand(3, 3)},
    "floating": lambda: {"mask": torch.tensor([0.0, -torch.inf, 0.0])[:, None].expand(3, 3)},
    "lengths": lambda: {"lengths": torch.tensor([3, 0])},
    "lengths and a floating mask": lambda: {"lengths": torch.tensor([3, 0]), "mask": torch.zeros(3, 3)},
}


@pytest.mark.parametrize("options", NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("way", ["fused", "written out", "dropout"])
def test_a_query_that_may_attend_nothing_gives_zeros_and_zero_gradients(options: Any, way: str):
    layer, x = attention(bias=False, dropout=0.5 if way == "dropout" else 0.0), randn(2, 3, 8)
    given = options()
    nothing = (1,) if "lengths" in given else (slice(None), 1)
    assert not layer.attention_weights(x, **given)[:, :, 1][nothing[:1]].any()

    def outputs(both: Any) -> Tensor:
        if way == "written out":
            return fl.vmap(lambda x: both[0](x, **given))(both[1][None])[0]
        return both[0](both[1], **given)

    with fl.mode("train"):
        grads = fl.gradient(lambda both: outputs(both).square().sum(), (layer, x))
        assert not outputs((layer, x))[nothing].any()
    assert all(g.isfinite().all() for g in fl.fleaves(grads))
    of_queries = fl.gradient(lambda q: layer(q, x, **given).square().sum(), x)
    assert not of_queries[nothing].any()


def test_a_learnt_bias_of_the_scores_has_a_gradient():
    layer, x, bias = attention(), randn(2, 3, 8), randn(2, 3, 3)
    grad = fl.gradient(lambda b: squares(layer, x, mask=b), bias)
    numeric = torch.autograd.gradcheck(lambda b: layer(x, mask=b), bias.clone().requires_grad_())
    assert grad.shape == bias.shape
    assert grad.any()
    assert numeric


def test_weights_need_no_values():
    layer, x, keys = attention(kdim=3, vdim=5), randn(2, 4, 8), randn(2, 6, 3)
    weights, values = layer.attention_weights(x, keys), randn(2, 6, 5)
    heads = layer.in_proj.value(values).unflatten(-1, (2, 4)).transpose(1, 2)
    exact(layer(x, keys, values), layer.out_proj((weights @ heads).transpose(1, 2).flatten(2)))


def test_keys_may_be_none():
    layer, x = attention(bias=False), randn(2, 3, 8)
    assert not layer(x, randn(2, 0, 8)).any()
    assert layer(randn(2, 0, 8), x).shape == (2, 0, 8)
    assert layer(randn(2, 0, 8), causal=True).shape == (2, 0, 8)


# One thing said in several ways


def test_self_attention_is_attention_of_itself():
    layer, x = attention(), randn(3, 5, 8)
    exact(layer(x, x), layer(x))
    exact(layer(x, x, x), layer(x))
    exact(layer(x, x.clone()), layer(x))
    exact(layer(x, x.clone(), x.clone()), layer(x))


def test_grouped_queries_are_heads_whose_keys_and_values_are_tied():
    few, x = attention(4, 2), randn(2, 5, 8)
    weight, bias = few.in_proj.weight, few.in_proj.bias
    rows = torch.arange(16).unflatten(0, (8, 2))  # a row a head: four of queries, two of keys, two of values
    every = rows[[0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7]].flatten()
    many = attention(4)
    many.in_proj.weight, many.in_proj.bias, many.out_proj = weight[every], bias[every], few.out_proj
    for options in ({}, {"causal": True}, {"lengths": torch.tensor([2, 5])}):
        exact(few(x, **options), many(x, **options))
        exact(few.attention_weights(x, **options), many.attention_weights(x, **options))


def test_one_key_head_for_all_queries():
    assert attention(4, 1)(randn(2, 3, 8)).shape == (2, 3, 8)
    assert attention(4, 1).in_proj.weight.shape == (8 + 2 + 2, 8)


# Transforms


def written_out():
    return sdpa_kernel(SDPBackend.MATH)


def test_every_first_derivative_is_that_of_the_formula():
    layer, x, v = attention(4, 2), randn(2, 3, 8), randn(2, 3, 8)
    f = lambda x: layer(x, causal=True)  # noqa: E731
    value, tangent = fl.pushforward(f, x, v=v)
    with written_out():
        reference = torch.func.jacrev(f)(x)
        exact(value, f(x))
    exact(tangent, torch.einsum("abcijk,ijk->abc", reference, v))
    exact(fl.jacobian(f, x), reference)
    exact(fl.pullback(f, x)[1](v), torch.einsum("abcijk,abc->ijk", reference, v))


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"lengths": torch.tensor([3, 2])}], ids=str)
def test_every_second_derivative_is_that_of_the_formula(options: Any):
    layer, x = attention(4, 2), randn(2, 3, 8)
    f = lambda x: squares(layer, x, **options)  # noqa: E731
    with written_out():
        reference = torch.autograd.functional.hessian(f, x)
    v = randn(2, 3, 8)
    exact(fl.hessian(f, x), reference)
    exact(fl.hvp(f, x, v=v), torch.einsum("abcijk,ijk->abc", reference, v))
    exact(torch.func.hessian(f)(x), reference)
    exact(fl.gradient(lambda x: (fl.gradient(f, x) * v).sum(), x), fl.hvp(f, x, v=v))


def test_hvp_of_the_parameters_and_under_jit(traced: None):
    layer, x = attention(), randn(2, 3, 8)
    v = fl.fmap(torch.randn_like, layer)
    eager = fl.hvp(squares, layer, x, v=v)
    jitted = fl.jit(lambda m, x, v: fl.hvp(squares, m, x, v=v))(layer, x, v)
    slope = lambda t: fl.tree.dot(fl.gradient(squares, fl.tree.add(layer, fl.tree.scale(v, t)), x), v)  # noqa: E731
    assert fl.tree.allclose(eager, jitted)
    torch.testing.assert_close(
        fl.tree.dot(eager, v), (slope(1e-5) - slope(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-6
    )


def test_gradients_of_each_example_are_those_of_batches_of_one():
    layer, x = attention(4, 2, rotary=fl.RotaryEmbedding(2)), randn(3, 5, 8)
    for options in ({}, {"causal": True}):
        grads = fl.per_example_gradient(lambda m, x, o=options: squares(m, x, **o), layer, x)
        for i in range(3):
            alone = (
                fl.gradient(squares, layer, x[i : i + 1], **options)
                if not options
                else fl.gradient(lambda m, i=i: squares(m, x[i : i + 1], causal=True), layer)
            )
            for mine, other in zip(fl.fleaves(grads), fl.fleaves(alone), strict=True):
                exact(mine[i], other)


def test_gradients_of_members_are_those_of_each_alone():
    layers, x = [attention() for _ in range(3)], randn(2, 5, 8)
    step = lambda m: fl.gradient(lambda m: squares(m, x, lengths=torch.tensor([5, 2])), m)  # noqa: E731
    together = fl.vmap(step)(fl.stack(layers))
    for i, layer in enumerate(layers):
        for mine, other in zip(fl.fleaves(together), fl.fleaves(step(layer)), strict=True):
            exact(mine[i], other)


def test_torch_func_takes_the_layer_as_it_is():
    layer, x = attention(), randn(2, 3, 8)
    grad = torch.func.grad(lambda x: squares(layer, x))(x)
    exact(grad, fl.gradient(lambda x: squares(layer, x), x))
    exact(torch.vmap(lambda x: layer(x[None])[0])(x), layer(x))


def test_a_checkpoint_around_it_changes_nothing():
    layer, x = attention(dropout=0.5), randn(2, 3, 8)
    plain = fl.gradient(squares, layer, x, key=fl.Key(1))
    again = fl.gradient(lambda m, x: fl.checkpoint(m)(x).square().sum(), layer, x, key=fl.Key(1))
    assert fl.tree.allclose(plain, again)


def test_under_autocast_it_computes_in_sixteen_bits_and_differentiates_in_the_weights_dtype():
    layer, x = fl.MultiHeadAttention(8, 2), torch.randn(2, 3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert fl.gradient(lambda m: m(x).float().sum(), layer).in_proj.weight.dtype == torch.float32
        y, cache = layer(x, cache=layer.cache(2, 4))
    assert y.dtype == torch.bfloat16
    assert cache.keys.dtype == torch.float32


AUTOCAST: dict[str, Any] = {
    "eager": lambda f, m, x: f(m, x),
    "jit": lambda f, m, x: fl.jit(f)(m, x),
    "vmap": lambda f, m, x: fl.vmap(lambda x: f(m, x[None])[0])(x),
    "forward mode": lambda f, m, x: functorch.jvp(lambda x: f(m, x), (x,), (torch.ones_like(x),))[0],
}


@pytest.mark.parametrize("way", AUTOCAST)
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_under_autocast_every_way_gives_what_torchs_layer_gives(way: str, masked: bool, traced: None):
    layer, theirs, x = fl.MultiHeadAttention(8, 2), nn.MultiheadAttention(8, 2), torch.randn(2, 3, 8)
    for mine, p in zip(fl.fleaves(layer), theirs.parameters(), strict=True):
        p.data.copy_(mine)
    mask = torch.randn(3, 3) if masked else None
    q = x.transpose(0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = theirs(q, q, q, attn_mask=mask, need_weights=False)[0].transpose(0, 1).detach()
        y = AUTOCAST[way](lambda m, x: m(x, mask=mask), layer, x)
    assert y.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), wanted.float(), rtol=0.02, atol=0.02)


def test_it_is_pure():
    layer, x = attention(), randn(2, 3, 8)
    assert fl.check_pure(lambda m, x, c: m(x, cache=c), layer, x, layer.cache(2, 4))


# Draws


def test_dropout_of_weights_is_a_function_of_the_key(traced: None):
    layer, x = attention(dropout=0.5), randn(2, 5, 8)

    def run(key: fl.Key) -> Tensor:
        with fl.mode("train"), fl.seeded(key):
            return layer(x)

    state = torch.get_rng_state()
    exact(run(fl.Key(0)), run(fl.Key(0)))
    assert not torch.equal(run(fl.Key(0)), run(fl.Key(1)))
    exact(fl.jit(run)(fl.Key(0)), run(fl.Key(0)))
    assert torch.equal(state, torch.get_rng_state())


def test_dropout_keeps_the_mean_and_stops_in_test_mode():
    layer, x = attention(dropout=0.3, bias=False), randn(2, 5, 8)
    with fl.mode("train"), fl.seeded(fl.Key(0)):
        mean = sum(layer(x) for _ in range(4000)) / 4000
        pinned = fl.testmode(layer)(x)
    torch.testing.assert_close(mean, layer(x), rtol=0, atol=0.1)
    exact(pinned, layer(x))


def test_members_draw_what_they_would_alone():
    layers, x = [attention(dropout=0.5) for _ in range(2)], randn(2, 5, 8)
    with fl.mode("train"), fl.seeded(fl.Key(0)):
        together = fl.vmap(lambda m: m(x), randomness="different")(fl.stack(layers))
    for i, layer in enumerate(layers):
        with fl.mode("train"), fl.seeded(fl.Key(0).fold_in(i)):
            exact(together[i], layer(x))


# Construction


def test_one_projection_makes_queries_keys_and_values_unless_their_sizes_differ():
    assert fl.MultiHeadAttention(8, 2).in_proj.weight.shape == (24, 8)
    parts = fl.MultiHeadAttention(8, 2, kdim=3).in_proj
    assert [p.weight.shape for p in parts] == [(8, 8), (8, 3), (8, 8)]
    assert parts.key is parts[1]


def test_biases_start_at_zero_and_weights_by_init():
    layer = fl.MultiHeadAttention(8, 2, init=torch.ones)
    assert (layer.in_proj.weight == 1).all()
    assert not layer.in_proj.bias.any()
    assert not layer.out_proj.bias.any()
    assert fl.MultiHeadAttention(8, 2, bias=False).out_proj.bias is None


REFUSED = {
    "heads": (lambda: fl.MultiHeadAttention(8, 3), "embed_dim is a multiple of num_heads"),
    "no heads": (lambda: fl.MultiHeadAttention(8, 0), "embed_dim is a multiple of num_heads"),
    "groups": (
        lambda: fl.MultiHeadAttention(8, 4, num_kv_heads=3),
        "num_heads is a multiple of num_kv_heads",
    ),
    "dropout": (lambda: fl.MultiHeadAttention(8, 2, dropout=1.5), r"dropout=1\.5.*from 0 to 1"),
    "rotary": (
        lambda: fl.MultiHeadAttention(8, 2, rotary=fl.RotaryEmbedding(8)),
        r"turns 8 features, and a head has 4.*write rotary=RotaryEmbedding\(4\)",
    ),
    "a rotary of no kind": (
        lambda: fl.MultiHeadAttention(8, 2, rotary=True),
        r"write rotary=RotaryEmbedding\(4\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_sizes_that_do_not_fit_are_refused(make: Any, message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


X = torch.zeros(2, 3, 8)
EITHER = torch.ones(2, 3, dtype=torch.bool)
WRONG = {
    "mask of integers": (lambda m: m(X, mask=EITHER.long()), r"found torch.int64; write mask.bool"),
    "mask that is no tensor": (lambda m: m(X, mask=[[True]]), "takes a mask of bool.*found list"),
    "mask of another shape": (
        lambda m: m(X, mask=EITHER),
        r"here \(3, 3\), \(2, 3, 3\) or \(2, 2, 3, 3\).*found \(2, 3\)",
    ),
    "mask of one axis": (lambda m: m(X, mask=EITHER[0]), r"found \(3,\)"),
    "lengths in a list": (lambda m: m(X, lengths=[3, 2]), r"integers, found list; write torch.tensor"),
    "lengths of floats": (lambda m: m(X, lengths=torch.ones(2)), "integers, found torch.float32"),
    "a mask for lengths": (lambda m: m(X, lengths=EITHER), r"found torch.bool.*mask=keys\[:, None\]"),
    "lengths of two axes": (lambda m: m(X, lengths=EITHER.long()), r"\(2,\) here, found \(2, 3\).*mask=keys"),
    "lengths beyond the keys": (
        lambda m: m(X, lengths=torch.tensor([4, 2])),
        "lengths from 0 to 3 here, found 2 to 4",
    ),
    "lengths below zero": (
        lambda m: m(X, X[:, :2], lengths=torch.tensor([-1, 2])),
        "from 0 to 2 here, found -1 to 2",
    ),
    "lengths of weights beyond the keys": (
        lambda m: m.attention_weights(X, lengths=torch.tensor([4, 2])),
        "from 0 to 3 here, found 2 to 4",
    ),
    "another batch": (lambda m: m(X, X[:1]), r"keys of shape \(1, 3, 8\) for queries of shape \(2, 3, 8\)"),
    "too few values": (lambda m: m(X, X, X[:, :2]), r"values of shape \(2, 2, 8\) for keys of shape"),
    "keys of two axes": (lambda m: m(X, X[0]), r"takes keys of shape \(N, S, C\), found \(3, 8\)"),
    "values without keys": (lambda m: m(X, value=X), r"write attention\(query, key, value\)"),
    "keys of another size": (
        lambda m: m(X, X[..., :4]),
        r"\.in_proj: .*Dense takes the shape \(…, 8\), found \(2, 3, 4\)",
    ),
    "another dtype": (lambda m: m(X.double()), r"\.in_proj: .*write x.to\(torch.float32\)"),
    "keys with a cache": (lambda m: m(X, X, cache=m.cache(2, 5)), "continues its own tokens"),
    "lengths with a cache": (
        lambda m: m(X, lengths=torch.tensor([1, 2]), cache=m.cache(2, 5)),
        r"with mask= \(N, 1, max_len\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_said_with_what_to_write(call: Any, message: str):
    with pytest.raises((ValueError, TypeError, fl.LayerError), match=message):
        call(fl.MultiHeadAttention(8, 2))


def test_lengths_without_values_are_taken_as_they_are(traced: None):
    layer, lengths = attention(), torch.tensor([2, 3])
    x = randn(2, 3, 8)
    f = fl.jit(lambda m, x, lengths: m(x, lengths=lengths))
    exact(f(layer, x, lengths), layer(x, lengths=lengths))
    exact(f(layer, x, torch.tensor([2, 9])), layer(x, lengths=lengths))
    exact(fl.vmap(lambda x, n: layer(x[None], lengths=n[None])[0])(x, lengths), layer(x, lengths=lengths))
    assert layer(x, lengths=torch.zeros(2, dtype=torch.uint8)).shape == x.shape
    assert fl.to_device(layer, "meta")(x.to("meta"), lengths=lengths).is_meta


class Named:
    """Calls an attention by the names of its arguments."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, query: Tensor, key: Tensor, value: Tensor | None = None) -> Tensor:
        return self.layer(query, key=key, value=value)


@pytest.mark.parametrize("sizes", [(5, 6), (5,)], ids=str)
def test_sizes_are_found_in_arguments_by_name(sizes: tuple[int, ...]):
    others = [torch.randn(2, 4, n) for n in sizes]
    waiting = fl.functor(Named)(fl.MultiHeadAttention(8, 2, kdim=fl.auto, vdim=fl.auto))
    (layer,) = fl.children(fl.autosize(waiting, torch.randn(2, 3, 8), *others)).values()
    assert layer.in_proj.key.weight.shape[1] == 5
    assert layer.in_proj.value.weight.shape[1] == sizes[-1]


def test_a_projection_of_another_size_names_its_path_in_a_model():
    model = fl.Chain(fl.identity, fl.MultiHeadAttention(8, 2, kdim=3))
    with pytest.raises(
        fl.LayerError, match=r"^\.layers\[1\]\.in_proj\.key: Dense\(3, 8\) got a tensor of shape"
    ):
        model(X)


def test_a_projection_can_be_replaced_by_any_layer():
    layer = fl.MultiHeadAttention(8, 2)
    doubled = fl.at(layer, lambda m: m.out_proj).apply(lambda dense: fl.Chain(dense, lambda y: 2 * y))
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(doubled(x), 2 * layer(x))
    same = fl.at(layer, lambda m: m.in_proj).apply(fl.Chain)
    torch.testing.assert_close(same(x), layer(x))


def test_in_sixteen_bits_the_members_of_an_ensemble_are_close_to_each_alone():
    layers, x = [fl.f16(attention()) for _ in range(2)], randn(2, 5, 8).half()
    together = fl.vmap(lambda m: m(x, causal=True))(fl.stack(layers))
    for i, layer in enumerate(layers):
        torch.testing.assert_close(together[i], layer(x, causal=True), rtol=5e-3, atol=5e-3)
