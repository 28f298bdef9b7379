"""Every layer and kind of model over a mesh: outputs and gradients of one process, no needless traffic."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fluxlike as fl
from fluxlike import distributed as d
from tests.distributed.agreeing import PLANS, differences, disagreements, with_rows
from tests.distributed.ranks import run

TESTS = Path(__file__).parents[1]
for folder in ("layers", "bridges"):
    if str(TESTS / folder) not in sys.path:
        sys.path.append(str(TESTS / folder))

KINDS = [
    "attention", "basic", "compose", "conv", "dropout", "normalise", "pool", "recurrent", "reparametrise",
    "resize",
]  # fmt: skip

#: Packed sequences are computed for all rows by each rank.
WHOLE = {"LSTM of sequences of several lengths"}


def layers(kind, plan, rows):
    """What each layer of the table does otherwise."""
    wrong = {}
    for row in importlib.import_module(f"rows_{kind}").ROWS:
        torch.manual_seed(0)
        layer, inputs = row.layer(), with_rows(row.inputs(), rows)
        layer = fl.testmode(layer) if row.draws else layer
        whole = row.name in WHOLE
        found = disagreements(row.call, (layer, *inputs), plan, quiet=not whole, shared=not whole)
        if found:
            wrong[row.name] = found
    return wrong


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_on_two_ranks_are_those_of_one_process(kind, plan):
    assert run(layers, 2, kind, plan, 6) == [{}, {}]


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("ranks", "rows"), [(3, 6), (2, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_on_three_ranks_and_with_rows_that_none_can_share(kind, plan, ranks, rows):
    assert run(layers, ranks, kind, plan, rows) == [{}] * ranks


ACTIVATIONS = """
    celu elu gelu gelu_tanh glu hardshrink hardsigmoid hardswish hardtanh identity leaky_relu log_softmax
    logsigmoid mish relu relu6 selu sigmoid silu softmax softplus softshrink softsign swish tanh tanhshrink
"""


def activations(rows):
    wrong = {}
    for name in ACTIVATIONS.split():
        torch.manual_seed(0)
        model = fl.f64(fl.Chain(fl.Dense(3, 4, getattr(fl, name)), fl.Scale(2 if name == "glu" else 4)))
        found = disagreements(lambda f, x: f(x), (model, torch.randn(rows, 3).double()), "shard")
        if found:
            wrong[name] = found
    return wrong


def test_activations_on_two_ranks_are_those_of_one_process():
    assert run(activations, 2, 6) == [{}, {}]


def batchnorm_in_train_mode(rows, plan):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model = fl.Chain(fl.Dense(4, 6), fl.BatchNorm(6, fl.tanh), fl.Dropout(0.0), fl.Dense(6, 3))
    batch = torch.randn(rows, 4), torch.randint(3, (rows,))

    def loss(model, x, y):
        return F.cross_entropy(model(x), y)

    expected = fl.gradient(loss, model, *batch)
    over = fl.to_device(model, d.mesh(), PLANS[plan]())
    found = fl.gradient(loss, over, *d.shard_batch(batch, d.mesh()))
    return differences(found, expected)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("rows", [6, 5])
def test_batchnorm_takes_the_statistics_of_all_rows(rows, plan):
    assert run(batchnorm_in_train_mode, 2, rows, plan) == [[], []]


def tokens(rows):
    return torch.randint(31, (rows, 12))


def some(rows):
    return torch.randint(1, 13, (rows,))


def images(size, classes=5):
    return lambda rows: (torch.randn(rows, 3, size, size), torch.randint(classes, (rows,)))


def next_token(model, x):
    logits = model(x[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), torch.where(x[:, 1:] % 3 == 0, -100, x[:, 1:]).flatten())


def of_lengths(model, x, lengths, y):
    return F.cross_entropy(model(x, lengths=lengths), y)


def classified(model, x, y):
    return F.cross_entropy(model(x), y)


def segmented(model, x, y):
    return fl.losses.dice_coeff(model(x).sigmoid(), (x[:, :2] > 0).double())


SMALL = {"depth": 2, "dim": 24, "num_heads": 4}


def gpt():
    return fl.models.GPT(fl.models.GPTConfig(vocabulary=31, context=20, **SMALL), dropout=0.0)


def bert():
    return fl.models.BERT(fl.models.BERTConfig(vocabulary=31, context=20, **SMALL), nclasses=5, dropout=0.0)


def vit():
    return fl.models.ViT(fl.models.ViTConfig(patch_size=4, **SMALL), image_size=16, nclasses=5)


def from_torchvision(name, **settings):
    from torchvision_here import torchvision

    torchvision()
    import torchvision.models

    return fl.from_torch(getattr(torchvision.models, name)(num_classes=5, **settings))


def from_transformers(kind, model, **settings):
    from torchvision_here import torchvision

    torchvision()
    import transformers

    return fl.from_torch(getattr(transformers, model)(getattr(transformers, f"{kind}Config")(**settings)))


def gpt2_of_transformers():
    return from_transformers(
        "GPT2", "GPT2LMHeadModel", vocab_size=31, n_positions=20, n_embd=24, n_layer=2, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip


def bert_of_transformers():
    return from_transformers(
        "Bert", "BertForSequenceClassification", vocab_size=31, max_position_embeddings=20, hidden_size=24,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=5,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def t5_of_transformers():
    return from_transformers(
        "T5", "T5ForConditionalGeneration", vocab_size=31, d_model=24, d_kv=6, d_ff=48, num_layers=2,
        num_heads=4, dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip


def encoder_of_torch():
    layer = torch.nn.TransformerEncoderLayer(12, 2, 24, 0.0)
    return fl.from_torch(torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def lstm_of_torch():
    return fl.from_torch(torch.nn.LSTM(12, 7, 2, bidirectional=True))


MODELS = {
    "GPT": (gpt, lambda rows: (tokens(rows),), next_token),
    "BERT": (bert, lambda rows: (tokens(rows), some(rows), some(rows) % 5), of_lengths),
    "ViT": (vit, images(16), classified),
    "the encoder of torch": (
        encoder_of_torch,
        lambda rows: (torch.randn(5, rows, 12).transpose(0, 1),),
        lambda model, x: model(x.transpose(0, 1)).square().mean(),
    ),
    "the LSTM of torch": (
        lstm_of_torch,
        lambda rows: (torch.randn(rows, 5, 12),),
        lambda model, x: model(x.transpose(0, 1))[0].square().mean(),
    ),
}

LARGE = {
    "ResNet18": (lambda: fl.models.ResNet(18, nclasses=5), images(32), classified),
    "UNet": (lambda: fl.models.UNet(fl.models.ResNet(18), nclasses=2), images(16), segmented),
    "ResNet18 of torchvision": (lambda: from_torchvision("resnet18"), images(32), classified),
    "MobileNetV3 of torchvision": (
        lambda: from_torchvision("mobilenet_v3_small", dropout=0.0), images(32), classified,
    ),
    "GPT-2 of transformers": (
        gpt2_of_transformers, lambda rows: (tokens(rows),),
        lambda model, x: next_token(lambda x: model(x).logits, x),
    ),
    "BERT of transformers": (
        bert_of_transformers, lambda rows: (tokens(rows), some(rows), some(rows) % 5),
        lambda model, x, n, y: model(x, attention_mask=torch.arange(12) < n[:, None], labels=y).loss,
    ),
    "T5 of transformers": (
        t5_of_transformers, lambda rows: (tokens(rows), tokens(rows)),
        lambda model, x, y: F.cross_entropy(model(x, labels=y).logits.flatten(0, 1), y.flatten()),
    ),
}  # fmt: skip


def models(name, plan, rows):
    """How far the gradient of a model in train mode is from that of one process."""
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    make, inputs, loss = (MODELS | LARGE)[name]
    model, batch = fl.f64(make()), inputs(rows)
    expected = fl.withgradient(loss, model, *batch)
    over = fl.to_device(model, d.mesh(), PLANS[plan]())
    found = fl.withgradient(loss, over, *d.shard_batch(batch, d.mesh()))
    return differences(found, expected, 1e-8)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", MODELS)
def test_models_on_two_ranks_are_those_of_one_process(name, plan):
    assert run(models, 2, name, plan, 6) == [[], []]


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", LARGE)
def test_large_models_on_two_ranks_are_those_of_one_process(name, plan):
    pytest.importorskip("torchvision_here")
    if "transformers" in name:
        pytest.importorskip("transformers", reason="transformers is not installed")
    assert run(models, 2, name, plan, 6, timeout=600) == [[], []]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [6, 5])
@pytest.mark.parametrize("name", MODELS)
def test_models_on_three_ranks_are_those_of_one_process(name, rows):
    assert run(models, 3, name, "shard", rows, timeout=600) == [[]] * 3
