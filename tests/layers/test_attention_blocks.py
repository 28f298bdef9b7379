"""Blocks of transformers: options, stacks, draws and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fluxlike as fl
from fluxlike._private import functorch
from fluxlike._private.compiler import build


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def exact(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch):
    """The graphs of jit as they are recorded, without Inductor's kernels."""
    monkeypatch.setattr(build, "_can_compile", lambda: False)


def test_parameters_stand_in_torchs_order():
    pairs = (
        (fl.TransformerBlock(8, 2), nn.TransformerEncoderLayer(8, 2, 32)),
        (fl.TransformerDecoderBlock(8, 2), nn.TransformerDecoderLayer(8, 2, 32)),
    )
    for block, twin in pairs:
        shapes = [tuple(p.shape) for p in fl.trainables(block)]
        assert shapes == [tuple(p.shape) for p in twin.parameters()]


def test_the_network_between_is_four_times_as_wide_unless_said():
    assert fl.TransformerBlock(8, 2).linear1.weight.shape == (32, 8)
    assert fl.TransformerBlock(8, 2, 5).linear1.weight.shape == (5, 8)


def test_every_activation_but_the_default_is_printed():
    assert repr(fl.TransformerBlock(8, 2, 32, fl.identity)).split("\n")[1] == "  8, 2, 32, identity,"
    assert repr(fl.TransformerBlock(8, 2, 16, fl.gelu)).split("\n")[1] == "  8, 2, 16,"


def test_options_reach_their_parts():
    block = fl.TransformerDecoderBlock(
        8,
        4,
        num_kv_heads=2,
        rotary=fl.RotaryEmbedding(2),
        bias=False,
        dropout=0.1,
        drop_path=0.2,
        init=torch.ones,
    )
    assert block.self_attn.num_kv_heads == block.multihead_attn.num_kv_heads == 2
    assert block.self_attn.rotary is not None
    assert block.multihead_attn.rotary is None
    assert block.self_attn.dropout == block.multihead_attn.dropout == block.dropout.p == 0.1
    assert block.drop_path.p == 0.2
    for dense in (block.linear1, block.linear2, block.self_attn.in_proj, block.multihead_attn.out_proj):
        assert dense.bias is None
        assert (dense.weight == 1).all()


@pytest.mark.parametrize("prenorm", [True, False])
def test_any_norm_will_do(prenorm: bool):
    block = fl.f64(fl.TransformerBlock(8, 2, norm=fl.RMSNorm, prenorm=prenorm))
    assert isinstance(block.norm1, fl.RMSNorm)
    x = randn(2, 3, 8)
    first = x + block.self_attn(block.norm1(x)) if prenorm else block.norm1(x + block.self_attn(x))
    second = lambda x: block.linear2(block.linear1(x))  # noqa: E731
    exact(block(x), first + second(block.norm2(first)) if prenorm else block.norm2(first + second(first)))


@pytest.mark.parametrize("way", ["eager", "jit", "vmap", "forward mode"])
@pytest.mark.parametrize("prenorm", [True, False])
def test_under_autocast_every_way_gives_what_torchs_layer_gives(way: str, prenorm: bool, traced: None):
    block, x = fl.TransformerBlock(8, 2, activation=fl.relu, prenorm=prenorm), torch.randn(2, 3, 8)
    theirs = nn.TransformerEncoderLayer(8, 2, 32, 0.0, norm_first=prenorm, batch_first=True)
    for mine, p in zip(fl.trainables(block), theirs.parameters(), strict=True):
        p.data.copy_(mine)
    ways: dict[str, Any] = {
        "eager": lambda: block(x),
        "jit": lambda: fl.jit(lambda m, x: m(x))(block, x),
        "vmap": lambda: fl.vmap(lambda x: block(x[None])[0])(x),
        "forward mode": lambda: functorch.jvp(block, (x,), (torch.ones_like(x),))[0],
    }
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = ways[way](), theirs(x).detach()
    assert y.dtype == wanted.dtype
    torch.testing.assert_close(y, wanted, rtol=0.05, atol=0.05)


def test_a_causal_block_does_not_see_later_tokens():
    block, x = fl.f64(fl.TransformerBlock(8, 2, causal=True)), randn(2, 5, 8)
    exact(block(x)[:, :3], block(x[:, :3]))


def test_masks_and_lengths_are_passed_on():
    block, x = fl.f64(fl.TransformerBlock(8, 2)), randn(2, 5, 8)
    padded = block(x, lengths=torch.tensor([5, 3]))
    exact(padded[1:, :3], block(x[1:, :3]))
    exact(
        block(x, mask=torch.ones(5, 5, dtype=torch.bool).tril())[:, :2],
        block(x[:, :2], mask=torch.ones(2, 2).tril() > 0),
    )


def test_a_decoder_attends_the_context_up_to_its_length():
    block = fl.f64(fl.TransformerDecoderBlock(8, 2))
    x, context = randn(2, 5, 8), randn(2, 4, 8)
    short = block(x, context, context_lengths=torch.tensor([4, 2]))
    exact(short[1:], block(x[1:], context[1:, :2]))
    mask = torch.tensor([[True] * 4, [True, True, False, False]])[:, None]
    exact(block(x, context, context_mask=mask), short)


def test_a_stack_of_blocks_is_a_chain(traced: None):
    model = fl.f64(fl.Chain(*[fl.TransformerBlock(8, 2, causal=True) for _ in range(3)], fl.LayerNorm(8)))
    x, y = randn(2, 5, 8), randn(2, 5, 8)
    loss = lambda m, x, y: fl.losses.mse(m(x), y)  # noqa: E731
    step = fl.jit(lambda m, s, x, y: fl.update(s, m, fl.gradient(loss, m, x, y)))
    new, _ = fl.update(state := fl.setup(fl.Adam(1e-2), model), model, fl.gradient(loss, model, x, y))
    compiled, _ = step(model, state, x, y)
    assert loss(new, x, y) < loss(model, x, y)
    assert fl.tree.allclose(new, compiled)


def test_blocks_of_one_shape_can_be_stacked_and_scanned():
    blocks, x = [fl.f64(fl.TransformerBlock(8, 2)) for _ in range(3)], randn(2, 5, 8)
    y, _ = fl.scan(lambda x, block: (block(x), None), x, fl.stack(blocks))
    exact(y, fl.Chain(*blocks)(x))


def test_an_example_that_goes_around_both_branches_comes_out_as_it_went_in():
    block, x = fl.f64(fl.TransformerBlock(8, 2, drop_path=0.5)), randn(64, 3, 8)
    with fl.mode("train"), fl.seeded(fl.Key(0)):
        y = block(x)
    same = (y == x).flatten(1).all(1)
    assert 0 < same.sum() < 32
    assert not torch.equal(y, block(x))


def test_dropout_is_a_function_of_the_key_and_stops_in_test_mode(traced: None):
    block, x = fl.f64(fl.TransformerBlock(8, 2, dropout=0.5)), randn(2, 3, 8)

    def run(key: fl.Key) -> Tensor:
        with fl.mode("train"), fl.seeded(key):
            return block(x)

    exact(run(fl.Key(0)), run(fl.Key(0)))
    exact(fl.jit(run)(fl.Key(0)), run(fl.Key(0)))
    assert not torch.allclose(run(fl.Key(0)), run(fl.Key(1)))
    exact(block(x), fl.testmode(block)(x))


@pytest.mark.parametrize("make", [fl.TransformerBlock, fl.TransformerDecoderBlock])
def test_the_activations_between_may_be_dropped_at_a_rate_of_their_own(make: Any):
    others = (randn(2, 2, 8),) if make is fl.TransformerDecoderBlock else ()
    x = randn(2, 3, 8)

    def trained(**rates: float) -> Tensor:
        torch.manual_seed(1)
        block = fl.f64(make(8, 2, **rates))
        with fl.mode("train"), fl.seeded(fl.Key(0)):
            return block(x, *others)

    exact(trained(hidden_dropout=0.0), trained())
    exact(trained(dropout=0.3, hidden_dropout=0.3), trained(dropout=0.3))
    assert not torch.allclose(trained(dropout=0.3, hidden_dropout=0.0), trained(dropout=0.3))
    assert not torch.allclose(trained(hidden_dropout=0.3), trained())
    block = fl.f64(make(8, 2, hidden_dropout=0.3))
    with fl.mode("train"):
        exact(fl.testmode(block)(x, *others), fl.testmode(block)(x, *others))
    assert "hidden_dropout=0.3" in repr(block)
    assert "hidden_dropout" not in repr(make(8, 2, dropout=0.3))
    with pytest.raises(ValueError, match=r"hidden_dropout=2"):
        make(8, 2, hidden_dropout=2)


def test_without_hidden_dropout_the_activations_are_whole():
    block = fl.TransformerBlock(8, 2, dropout=0.5, hidden_dropout=0.0)
    seen = []
    block = fl.at(block, lambda b: b.linear2).set(lambda h: seen.append(h) or h[..., :8])
    with fl.mode("train"):
        block(torch.randn(2, 3, 8))
    assert (seen[0] != 0).all()


def test_without_dropout_nothing_is_drawn():
    block, x = fl.TransformerBlock(8, 2), torch.randn(2, 3, 8)
    state = torch.get_rng_state()
    with fl.mode("train"):
        block(x)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("make", [fl.TransformerBlock, fl.TransformerDecoderBlock])
def test_second_derivatives_exist(make: Any):
    block, x = fl.f64(make(8, 2)), randn(2, 3, 8)
    others = (randn(2, 2, 8),) if make is fl.TransformerDecoderBlock else ()
    f = lambda x: block(x, *others).square().sum()  # noqa: E731
    v = randn(2, 3, 8)
    exact(fl.hvp(f, x, v=v), torch.einsum("abcijk,ijk->abc", fl.hessian(f, x), v))


def test_an_error_names_the_part():
    block = fl.TransformerBlock(8, 2)
    broken = fl.at(block, lambda b: b.self_attn.out_proj).set(fl.Dense(4, 8))
    with pytest.raises(fl.LayerError, match=r"^\.layers\[0\]\.self_attn\.out_proj: Dense\(4, 8\) got"):
        fl.Chain(broken)(torch.randn(2, 3, 8))
    with pytest.raises(fl.LayerError, match=r"^\.layers\[0\]\.norm2: LayerNorm"):
        fl.Chain(fl.at(block, lambda b: b.norm2).set(fl.LayerNorm(4)))(torch.randn(2, 3, 8))
    with pytest.raises(fl.LayerError, match=r"^\.self_attn: .*takes a mask of shape"):
        block(torch.randn(2, 3, 8), mask=torch.ones(2, 2, dtype=torch.bool))


def test_a_decoder_names_the_attention_of_the_context():
    block = fl.TransformerDecoderBlock(8, 2)
    with pytest.raises(fl.LayerError, match=r"^\.multihead_attn\.in_proj: "):
        block(torch.randn(2, 3, 8), torch.randn(2, 3, 4))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="embed_dim is a multiple of num_heads"):
        fl.TransformerBlock(8, 3)
    with pytest.raises(TypeError, match="TransformerDecoderBlock has no head="):
        fl.TransformerDecoderBlock(8, 2, head=3)
