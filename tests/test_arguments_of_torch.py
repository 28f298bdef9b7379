"""Arguments that users of torch write first: the error says what to write, and that is right."""

import copy
import inspect
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fluxlike as fl
from fluxlike.advice import OF_ARGUMENTS, words_for
from fluxlike.optimisers.rule import BatchRule

ROWS = [  # what is refused, what the error says, and that written out
    ("fl.Dense(3, 4, device='cpu')", "device=: leave it out, and write fluxlike.to_device(layer, device)",
     "fl.to_device(fl.Dense(3, 4), 'cpu')"),
    ("fl.Dense(3, 4, dtype=torch.float16)",
     "dtype=: leave it out, and write fluxlike.f16(layer), or bf16, f32 or f64",
     "fl.f16(fl.Dense(3, 4)), fl.bf16, fl.f32, fl.f64"),
    ("fl.Dense(3, 4, key=fl.Key(0))", "key=: leave it out, and build under `with fluxlike.seeded(key):`",
     "fl.seeded(fl.Key(0))"),
    ("fl.Adam(key=fl.Key(0))", "key=: leave it out: a rule draws nothing", "fl.Adam()"),
    ("fl.Bilinear(in1_features=3, in2_features=4, out_features=2)",
     "in1_features=: write in_features=(in1_features, in2_features); no in2_features=: write in_features=",
     "fl.Bilinear(in_features=(3, 4), out_features=2)"),
    ("fl.Embedding(num_embeddings=9, embedding_dim=2, padding_idx=0)",
     "padding_idx=: leave it out, and write layer(i) * (i != padding_idx).unsqueeze(-1) for zeros there", ""),
    ("fl.Embedding(9, 2, max_norm=1.0)", "max_norm=: leave it out: a call never changes the table", ""),
    ("fl.Embedding(9, 2, norm_type=2.0)", "norm_type=: leave it out: a call never changes the table", ""),
    ("fl.Embedding(9, 2, scale_grad_by_freq=True)", "scale_grad_by_freq=: leave it out: each index counts",
     ""),
    ("fl.Embedding(9, 2, sparse=True)", "sparse=: leave it out: gradients are dense", ""),
    ("fl.Embedding(9, 2, _weight=torch.ones(9, 2))", "_weight=: write init=lambda shape: weight",
     "fl.Embedding(9, 2, init=lambda shape: torch.ones(9, 2))"),
    ("fl.Embedding(9, 2, _freeze=True)",
     "_freeze=: leave it out, and write state = fluxlike.freeze(state, where)",
     "fl.freeze(fl.setup(fl.Adam(), [fl.Embedding(9, 2)]), lambda s: s[0])"),
    ("fl.EmbeddingBag(9, 2, include_last_offset=True)",
     "include_last_offset=: leave it out, and call it with offsets[:-1]", ""),
    ("fl.EmbeddingBag(9, 2, padding_idx=0)",
     "padding_idx=: leave it out, and call it with per_sample_weights that are 0 there, and mode='sum'", ""),
    ("fl.Conv((3, 3), 3, 8, padding=1)", "padding=: write pad=1", "fl.Conv((3, 3), 3, 8, pad=1)"),
    ("fl.Conv((3, 3), 3, 8, padding=(1, 2))", "padding=: write pad=(1, 2)",
     "fl.Conv((3, 3), 3, 8, pad=(1, 2))"),
    ("fl.Conv((3, 3), 3, 8, padding='same')", "padding=: write pad=fluxlike.SamePad()",
     "fl.Conv((3, 3), 3, 8, pad=fl.SamePad())"),
    ("fl.CrossCor((3, 3), 3, 8, padding='valid')", "padding=: write pad=0",
     "fl.CrossCor((3, 3), 3, 8, pad=0)"),
    ("fl.Conv((3, 3), fl.auto, 8, padding=1)", "padding=: write pad=1", "fl.Conv((3, 3), fl.auto, 8, pad=1)"),
    ("fl.ConvTranspose((3, 3), 3, 8, stride=2, output_padding=1)", "output_padding=: write outpad=1",
     "fl.ConvTranspose((3, 3), 3, 8, stride=2, outpad=1)"),
    ("fl.ConvTranspose((3, 3), 3, 8, padding_mode='zeros')",
     "padding_mode=: leave it out: it is 'zeros', as torch's has to be", ""),
    ("fl.MaxPool(kernel_size=2, stride=2)", "kernel_size=: write window=(2, 2), with a number for each axis",
     "fl.MaxPool(window=(2, 2), stride=2)"),
    ("fl.MaxPool(kernel_size=(3,))", "kernel_size=: write window=(3,), with", "fl.MaxPool(window=(3,))"),
    ("fl.MaxPool((2, 2), return_indices=True)",
     "return_indices=: leave it out, and where the places are wanted call torch.nn.functional with it",
     "torch.nn.functional.max_pool2d(torch.ones(1, 1, 2, 2), 2, return_indices=True)"),
    ("fl.MeanPool((2, 2), divisor_override=1)",
     "divisor_override=: leave it out, and multiply: the sum is divided by the size of the window", ""),
    ("fl.LPPool((2, 2), norm_type=3)", "norm_type=: write p=3", "fl.LPPool((2, 2), p=3)"),
    ("fl.AdaptiveMeanPool(output_size=1)", "output_size=: write out_size=(1, 1), with",
     "fl.AdaptiveMeanPool(out_size=(1, 1))"),
    ("fl.Upsample(scale_factor=2)", "scale_factor=: write scale=2", "fl.Upsample(scale=2)"),
    ("fl.Upsample(2, recompute_scale_factor=True)",
     "recompute_scale_factor=: leave it out, and write size= for sizes that are to be met",
     "fl.Upsample(size=4)"),
    ("fl.PixelShuffle(upscale_factor=2)", "upscale_factor=: write r=2", "fl.PixelShuffle(r=2)"),
    ("fl.PixelUnshuffle(downscale_factor=2)", "downscale_factor=: write r=2", "fl.PixelUnshuffle(r=2)"),
    ("fl.LayerNorm(8, elementwise_affine=False)", "elementwise_affine=: write affine=False",
     "fl.LayerNorm(8, affine=False)"),
    ("fl.LayerNorm(8, bias=False)", "bias=: leave it out: affine= is for the weight and the bias together",
     "fl.LayerNorm(8, affine=False)"),
    ("fl.BatchNorm(8, momentum=0.1, eps=1e-3, affine=False, track_running_stats=False)",
     "track_running_stats=: write track_stats=False",
     "fl.BatchNorm(8, momentum=0.1, eps=1e-3, affine=False, track_stats=False)"),
    ("fl.Dropout(p=0.5, inplace=True)", "inplace=: leave it out: a layer never changes its input",
     "fl.Dropout(p=0.5)"),
    ("fl.DropPath(0.5, mode='row')", "mode=: leave it out: each observation is dropped by itself", ""),
    ("fl.LSTM(4, 8, batch_first=True)", "batch_first=: leave it out: the batch is first, as in (N, L, C)",
     "fl.LSTM(4, 8)(torch.ones(2, 3, 4))"),
    ("fl.RNN(4, 8, nonlinearity='relu')", "nonlinearity=: write activation=fluxlike.relu",
     "fl.RNN(4, 8, activation=fl.relu)"),
    ("fl.RNNCell(4, 8, nonlinearity='tanh')", "nonlinearity=: write activation=fluxlike.tanh",
     "fl.RNNCell(4, 8, activation=fl.tanh)"),
    ("fl.LSTM(4, 8, proj_size=2)", "proj_size=: leave it out: the state has hidden_size numbers", ""),
    ("fl.MultiHeadAttention(embed_dim=8, num_heads=2, batch_first=True, kdim=4)",
     "batch_first=: leave it out: the batch is first",
     "fl.MultiHeadAttention(embed_dim=8, num_heads=2, kdim=4)"),
    ("fl.MultiHeadAttention(8, 2, add_bias_kv=True)", "add_bias_kv=: leave it out: keys and values are those",
     ""),
    ("fl.MultiHeadAttention(8, 2, add_zero_attn=True)",
     "add_zero_attn=: leave it out: keys and values are those", ""),
    ("fl.TransformerBlock(d_model=8, nhead=2, dim_feedforward=16)",
     "d_model=: write dim=8; no nhead=: write num_heads=2; no dim_feedforward=: write hidden=16",
     "fl.TransformerBlock(dim=8, num_heads=2, hidden=16)"),
    ("fl.TransformerDecoderBlock(8, 2, norm_first=False)", "norm_first=: write prenorm=False",
     "fl.TransformerDecoderBlock(8, 2, prenorm=False)"),
    ("fl.TransformerBlock(8, 2, layer_norm_eps=1e-3)",
     "layer_norm_eps=: write norm=lambda dim: fluxlike.LayerNorm(dim, eps=0.001)",
     "fl.TransformerBlock(8, 2, norm=lambda dim: fl.LayerNorm(dim, eps=0.001))"),
    ("fl.WeightNorm(module=fl.Dense(2, 2))", "module=: write layer=, or the layer first",
     "fl.WeightNorm(layer=fl.Dense(2, 2)), fl.WeightNorm(fl.Dense(2, 2))"),
    ("fl.Adam(params=iter([]), lr=0.1, eps=0.5)",
     "params=: a rule knows no parameters: state = fluxlike.setup(fluxlike.Adam(lr=0.1, "
     "eps=0.5), model)", "fl.setup(fl.Adam(lr=0.1, eps=0.5), fl.Dense(2, 2))"),
    ("fl.Adam(iter([]), lr=0.1)",
     "params=: a rule knows no parameters: state = fluxlike.setup(fluxlike.Adam(lr=0.1), model)",
     ""),
    ("fl.Momentum([torch.ones(2)], lr=0.1, nesterov=True)",
     "params=: a rule knows no parameters: state = fluxlike.setup(fluxlike.Momentum(lr=0.1), "
     "model); no nesterov=: leave it out; nesterov=True is fluxlike.Nesterov(lr=0.1)", "fl.Nesterov(lr=0.1)"),
    ("fl.Adam(foreach=True)", "foreach=: leave it out: fluxlike.update goes over all parameters at once", ""),
    ("fl.Adam(fused=True)",
     "fused=: leave it out: fluxlike.update(…, donate=True) takes torch's fused kernels", ""),
    ("fl.Adam(maximize=True)", "maximize=: leave it out; maximize=True is the gradient of minus the loss",
     ""),
    ("fl.Adam(capturable=True)", "capturable=: leave it out: what is counted is in tensors", ""),
    ("fl.Adam(differentiable=True)", "differentiable=: leave it out: fluxlike.update is differentiable", ""),
    ("fl.Descent(0.1, momentum=0.9)", "momentum=: write fluxlike.Momentum(lr, momentum=0.9)",
     "fl.Momentum(0.1, momentum=0.9)"),
    ("fl.Descent(0.1, nesterov=True)",
     "nesterov=: leave it out; nesterov=True is fluxlike.Nesterov(lr, momentum)", "fl.Nesterov(0.1, 0.9)"),
    ("fl.Descent(0.1, dampening=0.1)", "dampening=: leave it out: there is no velocity", ""),
    ("fl.Descent(0.1, weight_decay=0.2)",
     "weight_decay=: write fluxlike.OptimiserChain(fluxlike.WeightDecay(0.2), fluxlike.Descent(0.1))",
     "fl.OptimiserChain(fl.WeightDecay(0.2), fl.Descent(0.1))"),
    ("fl.Nesterov(0.1, weight_decay=0.2)",
     "weight_decay=: write fluxlike.OptimiserChain(fluxlike.WeightDecay(0.2), fluxlike.Nesterov(0.1))",
     "fl.OptimiserChain(fl.WeightDecay(0.2), fl.Nesterov(0.1))"),
    ("fl.Momentum(0.1, dampening=0.1)", "dampening=: leave it out: the velocity takes the gradient whole",
     ""),
    ("fl.Adam(0.1, amsgrad=True)", "amsgrad=: leave it out; amsgrad=True is fluxlike.AMSGrad(0.1)",
     "fl.AMSGrad(0.1)"),
    ("fl.Adam(0.1, decoupled_weight_decay=True)",
     "decoupled_weight_decay=: leave it out; with True it is fluxlike.AdamW(lr, weight_decay=…)",
     "fl.AdamW(0.1, weight_decay=0.0)"),
    ("fl.AMSGrad(0.1, amsgrad=True)", "amsgrad=: leave it out: AMSGrad is Adam with it", ""),
    ("fl.AdamW(0.1, amsgrad=True)",
     "amsgrad=: leave it out; amsgrad=True is fluxlike.AMSGrad(lr, weight_decay=…, "
     "decoupled_weight_decay=True)", "fl.AMSGrad(0.1, weight_decay=0.01, decoupled_weight_decay=True)"),
    ("fl.DataLoader(range(3), batch_sampler=[[0]])",
     "batch_sampler=: write data in the order wanted, such as torch.",
     "fl.DataLoader(torch.utils.data.Subset(range(3), [2, 1]))"),
    ("fl.DataLoader(range(3), sampler=[0])", "sampler=: write data in the order wanted, such as torch.", ""),
    ("fl.DataLoader(range(3), collate_fn=list)", "collate_fn=: write collate=, of a list of samples",
     "fl.DataLoader(range(3), collate=list)"),
    ("fl.DataLoader(range(3), drop_last=True)", "drop_last=: write partial=False",
     "fl.DataLoader(range(3), partial=False)"),
    ("fl.DataLoader(range(3), generator=None)",
     "generator=: write key=fluxlike.Key(0), or seed torch's generator",
     "fl.DataLoader(range(3), shuffle=True, key=fl.Key(0))"),
    ("fl.DataLoader(range(3), num_workers=2)", "num_workers=: write workers=2",
     "fl.DataLoader(range(3), workers=2)"),
    ("fl.DataLoader(range(3), pin_memory=True)",
     "pin_memory=: write device=, to which batches are copied ahead",
     "fl.DataLoader(range(3), device='cpu')"),
    ("fl.DataLoader(range(3), pin_memory_device='cpu')", "pin_memory_device=: write device='cpu'",
     "fl.DataLoader(range(3), device='cpu')"),
    ("fl.DataLoader(range(3), worker_init_fn=print)", "worker_init_fn=: leave it out: what is random", ""),
    ("fl.Learner(None, None, optimizer=1, loss_fn=1)",
     "optimizer=: write rule=fluxlike.Adam(), or another rule; no loss_fn=: write loss=, such as "
     "fluxlike.losses.mse", "fl.Learner(fl.Dense(2, 1), [], rule=fl.Adam(), loss=fl.losses.mse)"),
    ("fl.Learner(None, None, optimiser=1, criterion=1, lr=0.1)",
     "optimiser=: write rule=fluxlike.Adam(), or another rule; no criterion=: write loss=, such as "
     "fluxlike.losses.mse; no lr=: write rule=fluxlike.Adam(0.1), or another rule",
     "fl.Learner(fl.Dense(2, 1), [], rule=fl.Adam(0.1), loss=fl.losses.mse)"),
    ("fl.Learner(None, None, epochs=3)", "epochs=: leave it out, and write fluxlike.fit(learner, 3)", ""),
    ("fl.Learner(None, None, max_epochs=3)", "max_epochs=: leave it out, and write fluxlike.fit(learner, 3)",
     ""),
]  # fmt: skip


def written(code):
    return eval(code, {"fl": fl, "torch": torch})


def refused(call):
    with pytest.raises(TypeError) as error:
        call()
    return str(error.value)


@pytest.mark.parametrize(("wrong", "advice", "right"), ROWS, ids=[wrong for wrong, _, _ in ROWS])
def test_an_argument_of_torch_is_refused_with_what_to_write_and_that_is_taken(wrong, advice, right):
    kind = wrong.partition("(")[0].removeprefix("fl.").replace("CrossCor", "Conv")
    assert refused(lambda: written(wrong)).startswith(f"{kind} has no {advice}")
    assert [name for name in re.findall(r"write (\w+=)", advice) if name not in right] == []
    written(right or "None")


def test_every_advice_is_tried_and_names_what_is_there():
    tried = {word for _, advice, _ in ROWS for word in re.findall(r"(?:^|; no )(\w+)=:", advice)}
    assert tried == {word for words in OF_ARGUMENTS.values() for word in words}
    texts = {a if isinstance(a, str) else a("x") for words in OF_ARGUMENTS.values() for a in words.values()}
    for path in re.findall(r"\bfluxlike\.(\w[\w.]*\w)", " ".join(texts - {"write activation=fluxlike.x"})):
        found = fl
        for name in path.split("."):
            found = getattr(found, name)


PUBLIC = {name: kind for name in fl.__all__ if isinstance(kind := getattr(fl, name), type)}
RULES = {name for name, kind in PUBLIC.items() if issubclass(kind, BatchRule)}
LAYERS = {
    name
    for name, kind in PUBLIC.items()
    if kind.__module__.startswith("fluxlike.layers.") and not issubclass(kind, Exception)
}
NO_COUNTERPART = {
    "Chain", "DropPath", "GlobalMaxPool", "GlobalMeanPool", "KVCache", "Maxout", "PairwiseFusion", "Parallel",
    "Recurrence", "RotaryEmbedding", "SamePad", "Scale", "SinusoidalEmbedding", "SkipConnection",
    "AccumGrad", "AdaBelief", "ApplyIfFinite", "ClipGlobalNorm", "ClipGrad", "ClipNorm", "EMA", "Lamb",
    "Lion", "Lookahead", "MixedPrecision", "OAdam", "OptimiserChain", "ScheduleFree", "Scheduled",
    "SignDecay", "WeightDecay",
}  # fmt: skip
RENAMED = {
    "AMSGrad": torch.optim.Adam, "AdaDelta": torch.optim.Adadelta, "AdaGrad": torch.optim.Adagrad,
    "AdaMax": torch.optim.Adamax, "Descent": torch.optim.SGD, "Momentum": torch.optim.SGD,
    "Nesterov": torch.optim.SGD, "RMSProp": torch.optim.RMSprop, "Dense": nn.Linear, "Conv": nn.Conv2d,
    "CrossCor": nn.Conv2d, "ConvTranspose": nn.ConvTranspose2d, "MaxPool": nn.MaxPool2d,
    "MeanPool": nn.AvgPool2d, "LPPool": nn.LPPool2d, "AdaptiveMaxPool": nn.AdaptiveMaxPool2d,
    "AdaptiveMeanPool": nn.AdaptiveAvgPool2d, "BatchNorm": nn.BatchNorm2d, "InstanceNorm": nn.InstanceNorm2d,
    "MultiHeadAttention": nn.MultiheadAttention, "TransformerBlock": nn.TransformerEncoderLayer,
    "TransformerDecoderBlock": nn.TransformerDecoderLayer, "WeightNorm": parametrizations.weight_norm,
    "SpectralNorm": parametrizations.spectral_norm, "RNN": nn.RNNBase, "LSTM": nn.RNNBase, "GRU": nn.RNNBase,
}  # fmt: skip


def torchs(name):
    return RENAMED.get(name) or getattr(torch.optim if name in RULES else nn, name)


@pytest.mark.parametrize("name", sorted((LAYERS | RULES) - NO_COUNTERPART))
def test_every_argument_of_the_class_of_torch_is_one_of_ours_or_has_an_advice(name):
    kind = PUBLIC[name]
    ours = set(inspect.signature(kind).parameters)
    if name == "TransformerDecoderBlock":  # its options are TransformerBlock's
        ours |= set(inspect.signature(fl.TransformerBlock).parameters)
    theirs = set(inspect.signature(torchs(name)).parameters) - (
        {"mode"} if torchs(name) is nn.RNNBase else set()
    )
    assert {"args", "kwargs"}.isdisjoint(theirs)
    assert theirs - ours - words_for(kind).keys() == set()
    sizes = (8, 2) if name == "TransformerDecoderBlock" else ()
    for word in words_for(kind).keys() - ours:
        assert f"{kind.__name__} has no {word}=" in refused(lambda word=word: kind(*sizes, **{word: 1}))


def test_no_class_is_left_out_of_the_comparison_but_those_that_torch_has_not():
    for name in NO_COUNTERPART:
        assert name in LAYERS | RULES
        assert not hasattr(nn, name)
        assert not hasattr(torch.optim, name)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: fl.Conv(3, 3, 8), r"kernel_size=3: write one number an axis, such as \(3, 3\)"),
        (lambda: fl.PReLU(3, init=0.5), r"init=lambda shape: torch\.full\(shape, 0\.5\)"),
        (lambda: fl.TransformerBlock(8, 2, activation="relu"), r"write fl\.relu"),
        (lambda: fl.GroupNorm(4, 32), r"the channels come first: \(32, 4\)"),
    ],
)
def test_an_argument_that_means_something_else_in_torch_says_what_it_takes(call, text):
    with pytest.raises((TypeError, ValueError), match=text):
        call()


@pytest.mark.parametrize(
    ("rule", "theirs"),
    [
        (
            lambda: fl.OptimiserChain(fl.WeightDecay(0.2), fl.Descent(0.1)),
            lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.2),
        ),
        (
            lambda: fl.OptimiserChain(fl.WeightDecay(0.2), fl.Nesterov(0.1)),
            lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.2, nesterov=True),
        ),
        (lambda: fl.AMSGrad(0.1), lambda p: torch.optim.Adam(p, 0.1, amsgrad=True)),
        (
            lambda: fl.AMSGrad(0.1, weight_decay=0.01, decoupled_weight_decay=True),
            lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True),
        ),
        (
            lambda: fl.AdamW(0.1, weight_decay=0.2),
            lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.2, decoupled_weight_decay=True),
        ),
    ],
    ids=["decay", "decay and nesterov", "amsgrad", "amsgrad of AdamW", "decoupled"],
)  # fmt: skip
def test_the_rule_that_stands_for_an_option_of_torch_takes_its_steps(rule, theirs):
    start = torch.tensor([1.0, -2.0, 3.0])
    weight, x = nn.Parameter(start.clone()), start
    optimiser, state = theirs([weight]), fl.setup(rule(), x)
    for grad in torch.tensor([[0.5, 1.0, -1.0], [0.1, -0.2, 0.3], [2.0, 0.0, 1.0]]):
        weight.grad = grad.clone()
        optimiser.step()
        x, state = fl.update(state, x, grad)
    torch.testing.assert_close(x, weight.detach())


def test_what_stands_for_an_index_of_padding_does_what_torch_does():
    table, i = torch.randn(5, 2), torch.tensor([[1, 0], [3, 1]])
    theirs = nn.functional.embedding(i, table.clone().index_fill(0, torch.tensor(0), 0.0), padding_idx=0)
    layer = fl.Embedding(5, 2, init=lambda shape: table)
    value, grads = fl.withgradient(lambda m: (m(i) * (i != 0).unsqueeze(-1)).square().sum(), layer)
    torch.testing.assert_close(value, theirs.square().sum())
    assert not grads.weight[0].any()
    bag = fl.EmbeddingBag(5, 2, mode="sum", init=lambda shape: table)
    expected = nn.functional.embedding_bag(i, table, mode="sum", padding_idx=0)
    torch.testing.assert_close(bag(i, per_sample_weights=(i != 0).float()), expected)
    flat, offsets = i.flatten(), torch.tensor([0, 3, 4])
    expected = nn.functional.embedding_bag(flat, table, offsets, mode="sum", include_last_offset=True)
    torch.testing.assert_close(bag(flat, offsets[:-1]), expected)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: fl.Dense(3, 4, bais=False),
            "Dense has no bais= (did you mean bias=?); it takes in_features, out_features, activation, bias, "
            "init",
        ),
        (lambda: fl.Adam(colour=1), "Adam has no colour=; it takes lr, betas, eps, weight_decay"),
        (
            lambda: fl.Dropout(0.5, inplace=True, colour=2),
            "Dropout has no inplace=: leave it out: a layer never changes its input; no colour=; it takes p, "
            "dims",
        ),
        (
            lambda: fl.LSTM(4, 8, 2),
            "LSTM takes 2 arguments by place, input_size, hidden_size, and found 3: write the others by "
            "name, num_layers=, bidirectional=, dropout=, bias=",
        ),
    ],
)
def test_an_argument_that_nobody_has_is_answered_with_those_there_are(call, text):
    assert refused(call) == text


def test_what_python_itself_says_well_is_left_to_it():
    assert "missing 1 required positional argument: 'out_features'" in refused(lambda: fl.Dense(3))
    assert "multiple values for argument 'lr'" in refused(lambda: fl.Adam(0.1, lr=0.1))
    assert "unexpected keyword argument 'reduction'" in refused(
        lambda: fl.losses.mse(torch.ones(1), torch.ones(1), reduction="sum")
    )


def test_an_error_inside_a_constructor_is_raised_as_it_is():
    raised = TypeError("from inside")

    def init(shape):
        raise raised

    with pytest.raises(TypeError) as error:
        fl.Dense(2, 2, init=init)
    assert error.value is raised
    assert error.value.__context__ is None


class Padded(fl.Conv):
    def __init__(self, *, padding):
        super().__init__((3, 3), 1, 1, padding=padding)


class Named(fl.Conv):
    pass


def test_a_class_derived_from_a_layer_has_arguments_of_its_own():
    class Own(fl.Conv):
        def __init__(self, *, padding):
            super().__init__((3, 3), 1, 1, pad=padding)

    assert Own(padding=1).pad == (1, 1)
    assert "unexpected keyword argument 'pad'" in refused(lambda: Own(pad=1))
    assert refused(lambda: Padded(padding=1)) == "Conv has no padding=: write pad=1"
    assert refused(lambda: Named((3, 3), 1, 1, padding=1)) == "Conv has no padding=: write pad=1"


@pytest.mark.parametrize("kind", [fl.Conv, fl.Adam, fl.BatchNorm, fl.LSTM, fl.DataLoader, fl.Learner])
def test_the_signature_of_a_class_is_that_of_its_constructor(kind):
    parameters = inspect.signature(kind).parameters
    assert not {"args", "kwargs"} & set(parameters)
    assert list(parameters) == list(inspect.signature(kind.__init__).parameters)[1:]
    assert kind.__init__.__qualname__ == f"{kind.__name__}.__init__"


def test_layers_and_rules_are_copied_and_pickled_as_before():
    for x in (fl.Adam(0.1), fl.Dropout(0.2), Named((3, 3), 1, 1)):
        assert repr(copy.deepcopy(x)) == repr(pickle.loads(pickle.dumps(x))) == repr(x)
