"""Names that users of JAX, Equinox, Optax and Flux type first: the error says what to write."""

import re

import pytest
import torch

import fluxlike as fl
from fluxlike.advice import OF_FLUX, OF_JAX, WORDS

ROOMS = [fl, fl.losses, fl.schedules, fl.init, fl.random, fl.tree]


@pytest.mark.parametrize(
    ("module", "name", "write"),
    [
        (fl, "filter_jit", r"write fl\.jit\(f\)"),
        (fl, "value_and_grad", r"write fl\.withgradient\("),
        (fl, "tree_at", r"write fl\.at\(tree, where\)\.set\(x\)"),
        (fl, "MultiSteps", r"write fl\.OptimiserChain\(fl\.AccumGrad\(n\), fl\.Adam\(\)\)$"),
        (fl, "loadmodel", r"write model = fl\.load_state_dict\(model, d\)"),
        (fl, "rrelu", r"write fl\.leaky_relu, or lambda"),
        (fl, "logitcrossentropy", r"write fl\.losses\.logitcrossentropy$"),
        (fl.random, "split", r"module 'fluxlike\.random' .*: write key\.split\(n\)"),
        (fl, "inference_mode", r"fl\.testmode\(model\)"),
    ],
)
def test_a_name_of_jax_or_flux_says_what_to_write(module, name, write):
    assert not hasattr(module, name)
    with pytest.raises(AttributeError, match=write):
        getattr(module, name)


@pytest.mark.parametrize("words", [OF_JAX, OF_FLUX])
def test_what_is_advised_for_a_name_of_jax_or_flux_exists(words):
    for text in words.values():
        for path in re.findall(r"\b(?:fl|fluxlike)\.(\w[\w.]*\w)", text):
            found = fl
            for name in path.split("."):
                found = getattr(found, name)
        for path in re.findall(r"\btorch\.(\w[\w.]*\w)", text):
            found = torch
            for name in path.split("."):
                found = getattr(found, name)


def test_a_name_of_jax_or_flux_is_answered_once_and_is_none_of_ours():
    assert not OF_JAX.keys() & OF_FLUX.keys()
    assert not (OF_JAX.keys() | OF_FLUX.keys()) & WORDS.keys()
    assert [name for name in (*OF_JAX, *OF_FLUX) if hasattr(fl, name)] == []
    for name, text in (OF_JAX | OF_FLUX).items():
        for room in ROOMS[1:]:
            assert not hasattr(room, name) or text == f"{room.__name__.replace('fluxlike', 'fl')}.{name}"


def test_advice_that_is_code_does_what_the_name_did():
    x, model = torch.linspace(-2, 2, 5), fl.Chain(fl.Dense(2, 3), fl.Dense(3, 1))
    assert torch.equal(eval(OF_FLUX["trelu"])(x), x * (x > 1))
    assert torch.allclose(eval(OF_FLUX["lisht"])(x), x * torch.tanh(x))
    flat, rebuild = fl.destructure(model)
    assert fl.tree.allclose(rebuild(flat), model)
    summed, _ = fl.scan(lambda total, i: (total + i, None), torch.tensor(0), torch.arange(4))
    assert summed == 6
    each, chained = (
        fl.setup(fl.Adam(), model),
        fl.setup(eval(OF_JAX["MultiSteps"], {"fl": fl, "n": 2}), model),
    )
    grads = fl.fmap(torch.ones_like, model)
    after, chained = fl.update(chained, model, grads)
    assert fl.tree.allclose(after, model)
    assert fl.tree.allclose(fl.update(chained, after, grads)[0], fl.update(each, model, grads)[0])
