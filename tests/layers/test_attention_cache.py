"""KVCache: decoding token by token is the causal forward pass, whatever surrounds it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fluxlike as fl
from fluxlike._private.compiler import build

law = settings(max_examples=25, deadline=None)
both_compilers = pytest.mark.parametrize(
    "compiled", [pytest.param(False, id="traced"), pytest.param(True, id="compiled", marks=pytest.mark.slow)]
)


def attention(**options: Any) -> fl.MultiHeadAttention:
    return fl.f64(fl.MultiHeadAttention(8, 4, num_kv_heads=2, rotary=fl.RotaryEmbedding(2), **options))


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def exact(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def decode(step: Any, x: Tensor, cache: Any, parts: list[int]) -> tuple[Tensor, Any]:
    """The outputs for some tokens at a time."""
    outputs = []
    for part in x.split(parts, 1):
        y, cache = step(part, cache)
        outputs.append(y)
    return torch.cat(outputs, 1), cache


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "_can_compile", lambda: False)


@law
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 3), st.booleans())
def test_decoding_a_few_tokens_at_a_time_is_the_causal_forward_pass(
    parts: list[int], spare: int, masked: bool
):
    layer, length = attention(), sum(parts)
    x, keys = randn(2, length, 8), torch.ones(2, length + spare, dtype=torch.bool)
    options: dict[str, Any] = {}
    if masked:  # the first key of the second sequence is padding
        keys[1, 0] = False
        options["mask"] = keys[:, None]
    y, cache = decode(lambda x, c: layer(x, cache=c, **options), x, layer.cache(2, length + spare), parts)
    exact(y, layer(x, causal=True, mask=keys[:, None, :length]))
    assert cache.count == length


def test_a_mask_for_each_query_may_go_with_a_cache():
    layer, x = attention(), randn(2, 5, 8)
    mask = torch.rand(2, 4, 5, 6) < 0.6
    y, cache = layer(x[:, :2], cache=layer.cache(2, 6), mask=mask[:, :, :2])
    z, _ = layer(x[:, 2:], cache=cache, mask=mask[:, :, 2:])
    exact(torch.cat((y, z), 1), layer(x, causal=True, mask=mask[..., :5]))


def test_a_cache_is_not_changed_so_that_two_continuations_can_part():
    layer, x = attention(), randn(2, 3, 8)
    _, cache = layer(x[:, :2], cache=layer.cache(2, 5))
    kept = fl.tree.clone(cache)
    one, _ = layer(x[:, 2:], cache=cache)
    layer(randn(2, 1, 8), cache=cache)
    again, _ = layer(x[:, 2:], cache=cache)
    exact(one, again)
    assert fl.tree.allclose(cache.keys, kept.keys)
    assert cache.count == kept.count == 2


@both_compilers
@pytest.mark.parametrize("donate", [(), ("cache",)], ids=["pure", "donated"])
def test_under_jit_it_is_one_trace_and_the_same_numbers(
    compiled: bool, donate: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    if not compiled:
        monkeypatch.setattr(build, "_can_compile", lambda: False)
    layer, x = attention(), randn(2, 6, 8)
    step = fl.jit(lambda layer, x, cache: layer(x, cache=cache), donate=donate)
    y, cache = decode(lambda x, c: step(layer, x, c), x, layer.cache(2, 8), [1] * 6)
    torch.testing.assert_close(y, layer(x, causal=True), rtol=1e-12, atol=1e-12)
    assert cache.count == 6
    assert step.cache_info().traces == 1


@pytest.mark.slow
def test_under_jit_a_donated_cache_stays_in_its_memory():
    layer = fl.MultiHeadAttention(8, 2)
    step = fl.jit(lambda layer, x, cache: layer(x, cache=cache), donate=("cache",))
    cache = layer.cache(1, 8)
    places = set()
    for _ in range(4):
        _, cache = step(layer, torch.randn(1, 1, 8), cache)
        places.add((cache.keys.data_ptr(), cache.values.data_ptr()))
    assert len(places) == 1


def test_under_vmap_sequences_have_counts_of_their_own():
    layer, x = attention(), randn(2, 5, 8)
    caches = []
    for i, tokens in enumerate((2, 4)):
        caches.append(layer(x[i : i + 1, :tokens], cache=layer.cache(1, 6))[1])
    y, new = fl.vmap(lambda x, c: layer(x[None], cache=c))(
        torch.stack((x[0, 2:3], x[1, 4:5])), fl.stack(caches)
    )
    exact(y[0, 0, 0], layer(x[:1, :3], causal=True)[0, 2])
    exact(y[1, 0, 0], layer(x[1:], causal=True)[0, 4])
    assert new.count.tolist() == [3, 5]


def test_under_vmap_members_decode_as_alone():
    layers, x = [attention() for _ in range(2)], randn(2, 4, 8)

    def run(layer: Any) -> Tensor:
        return decode(lambda x, c: layer(x, cache=c), x, layer.cache(2, 5), [3, 1])[0]

    together = fl.vmap(run)(fl.stack(layers))
    for i, layer in enumerate(layers):
        exact(together[i], layer(x, causal=True))


def test_a_loss_of_decoded_tokens_has_the_gradient_of_the_forward_pass():
    layer, x = attention(), randn(2, 4, 8)

    def decoded(layer: Any) -> Tensor:
        y, _ = decode(lambda x, c: layer(x, cache=c), x, layer.cache(2, 4), [2, 1, 1])
        return y.square().sum()

    ours, theirs = fl.gradient(decoded, layer), fl.gradient(lambda m: m(x, causal=True).square().sum(), layer)
    for mine, other in zip(fl.fleaves(ours), fl.fleaves(theirs), strict=True):
        exact(mine, other)


def test_a_scan_decodes_too(traced: None):
    layer, x = attention(), randn(2, 4, 8)

    def turn(cache: Any, token: Tensor) -> tuple[Any, Tensor]:
        y, cache = layer(token, cache=cache)
        return cache, y

    def run(x: Tensor) -> Tensor:
        _, outputs = fl.scan(turn, layer.cache(2, 4), x.transpose(0, 1).unsqueeze(2))
        return outputs.squeeze(2).transpose(0, 1)

    exact(run(x), layer(x, causal=True))
    exact(fl.jit(run)(x), layer(x, causal=True))


def test_a_cache_is_a_tree_of_buffers_that_saves_moves_and_casts(tmp_path: Any):
    layer = fl.MultiHeadAttention(8, 2)
    cache = layer(torch.randn(2, 3, 8), cache=layer.cache(2, 5))[1]
    assert fl.trainables(cache) == []
    fl.save(tmp_path / "cache.safetensors", cache)
    loaded = fl.load(tmp_path / "cache.safetensors", like=layer.cache(2, 5))
    assert torch.equal(loaded.keys, cache.keys)
    assert loaded.count == 3
    assert fl.bf16(cache).keys.dtype == torch.bfloat16
    assert fl.to_device(cache, "meta").count.is_meta
    assert repr(cache) == "KVCache(keys=(2, 2, 5, 4), values=(2, 2, 5, 4), count=3)  # 161 non-trainable"
    assert cache.max_len == 5


@pytest.mark.parametrize("surrounding", ["none", "jit", "vmap", "gradient of a gradient"])
def test_a_cache_may_be_of_fewer_bits(surrounding: str, traced: None):
    layer, x = fl.MultiHeadAttention(8, 2), torch.randn(2, 6, 8)

    def run(layer: Any, x: Tensor) -> Tensor:
        cache = layer.cache(len(x), 6, dtype=torch.bfloat16)
        y, cache = decode(lambda x, c: layer(x, cache=c), x, cache, [3, 1, 2])
        assert cache.keys.dtype == torch.bfloat16
        return y

    def curved(layer: Any, x: Tensor) -> Tensor:
        return fl.gradient(lambda x: fl.gradient(lambda x: run(layer, x).sum(), x).sum(), x)

    if surrounding == "gradient of a gradient":
        assert curved(layer, x).dtype == torch.float32
        return
    f = {
        "none": run,
        "jit": fl.jit(run),
        "vmap": lambda layer, x: fl.vmap(lambda x: run(layer, x[None])[0])(x),
    }[surrounding]
    y, wanted = f(layer, x), layer(x, causal=True)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, wanted, rtol=0.02, atol=0.02)
    assert not torch.equal(y, wanted)


def test_a_cache_is_as_the_weights_unless_said():
    layer = fl.MultiHeadAttention(8, 2)
    assert fl.f64(layer).cache(1, 4).keys.dtype == torch.float64
    cache = layer.cache(1, 4, dtype=torch.bfloat16, device="meta")
    assert cache.keys.dtype == torch.bfloat16
    assert cache.keys.is_meta
    assert cache.count.is_meta


@pytest.mark.parametrize("filled", [0, 2])
def test_no_room_is_an_error_that_says_how_long_a_cache_to_make(filled: int):
    layer, cache = fl.MultiHeadAttention(8, 2), fl.MultiHeadAttention(8, 2).cache(1, 4)
    if filled:
        cache = layer(torch.randn(1, filled, 8), cache=cache)[1]
    message = rf"for 4 tokens, holds {filled} and got 5 more.*longer one: attention.cache\(1, {filled + 5}\)"
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(1, 5, 8), cache=cache)


@both_compilers
def test_no_room_under_jit_is_an_error_of_the_kernel(compiled: bool, monkeypatch: pytest.MonkeyPatch):
    if not compiled:
        monkeypatch.setattr(build, "_can_compile", lambda: False)
    layer = fl.MultiHeadAttention(8, 2)
    step = fl.jit(lambda layer, x, cache: layer(x, cache=cache))
    _, cache = step(layer, torch.randn(1, 1, 8), layer.cache(1, 1))
    with pytest.raises((RuntimeError, IndexError), match=r"out of (bounds|range)"):
        step(layer, torch.randn(1, 1, 8), cache)


def test_a_cache_of_another_batch_or_attention_is_refused():
    layer, x = fl.MultiHeadAttention(8, 2), torch.randn(2, 1, 8)
    for cache in (layer.cache(1, 4), fl.MultiHeadAttention(8, 4).cache(2, 4)):
        with pytest.raises(ValueError, match=r"make it by attention.cache\(2, max_len\)"):
            layer(x, cache=cache)


def test_blocks_pass_caches_on():
    blocks = [fl.f64(fl.TransformerBlock(8, 2, causal=True, prenorm=p)) for p in (True, False)]
    x, whole = randn(2, 4, 8), fl.Chain(*blocks)

    def step(x: Tensor, caches: Any) -> tuple[Tensor, Any]:
        new = []
        for block, cache in zip(blocks, caches, strict=True):
            x, cache = block(x, cache=cache)
            new.append(cache)
        return x, new

    y, _ = decode(step, x, [block.cache(2, 6) for block in blocks], [2, 1, 1])
    exact(y, whole(x))


def test_a_decoder_block_passes_its_cache_on():
    block, x, context = fl.f64(fl.TransformerDecoderBlock(8, 2)), randn(2, 4, 8), randn(2, 3, 8)
    y, _ = decode(lambda x, c: block(x, context, cache=c), x, block.cache(2, 4), [1, 2, 1])
    exact(y, block(x, context))


def test_a_block_that_is_not_causal_takes_no_cache():
    block = fl.TransformerBlock(8, 2)
    with pytest.raises(ValueError, match="has causal=False, and with a cache attention is causal"):
        block(torch.zeros(1, 1, 8), cache=block.cache(1, 4))
