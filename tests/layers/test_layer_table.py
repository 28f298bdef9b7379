"""What every layer promises, as one table: a row a layer, a test a promise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optree
import pytest
import torch
from torch import Tensor, nn

import fluxlike as fl


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x


def floats(*shape: int) -> Callable[[], Tensor]:
    """An input without equal entries, so that no maximum is a tie."""

    def make() -> Tensor:
        x = torch.randn(shape, dtype=torch.float64)
        return x + torch.arange(x.numel(), dtype=torch.float64).reshape(shape) * 1e-6

    return make


def indices(*shape: int, below: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(below, shape)


@dataclass(frozen=True)
class Row:
    """One layer: ours, torch's with the tensors in the same order, an input, what is printed and refused."""

    name: str
    make: Callable[[], Any]
    twin: Callable[[], nn.Module]
    input: Callable[[], Tensor]
    text: str
    refused: tuple[tuple[int, ...], ...] = ()
    wanted: str = ""
    draws: bool = False
    lone_row_trains: bool = True


ROWS = [
    Row(
        "Dense",
        lambda: fl.Dense(3, 4, fl.tanh),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh()),
        floats(5, 3),
        "Dense(3, 4, tanh)  # 16 parameters",
        refused=((5, 4), (3, 5), (0,), ()),
        wanted=r"Dense takes the shape \(…, 3\), found {}",
    ),
    Row(
        "Dense without bias, on sequences",
        lambda: fl.Dense(3, 4, bias=False),
        lambda: nn.Linear(3, 4, bias=False),
        floats(5, 2, 3),
        "Dense(3, 4, bias=False)  # 12 parameters",
        refused=((5, 2, 4),),
        wanted=r"Dense takes the shape \(…, 3\), found {}",
    ),
    Row(
        "Embedding",
        lambda: fl.Embedding(6, 3),
        lambda: nn.Embedding(6, 3),
        indices(5, 4, below=6),
        "Embedding(6, 3)  # 18 parameters",
    ),
    Row(
        "Conv 1-d",
        lambda: fl.Conv((3,), 2, 4, fl.tanh, pad=1),
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Tanh()),
        floats(3, 2, 6),
        "Conv((3,), 2, 4, tanh, pad=1)  # 28 parameters",
        refused=((3, 3, 6), (2, 6), (3, 2, 6, 6)),
        wanted=r"Conv takes the shape \(N, 2, L\), found {}",
    ),
    Row(
        "Conv 2-d",
        lambda: fl.Conv((3, 2), 4, 2, stride=(2, 1), pad=(0, 1), dilation=(1, 2), groups=2, bias=False),
        lambda: nn.Conv2d(4, 2, (3, 2), (2, 1), (0, 1), (1, 2), groups=2, bias=False),
        floats(3, 4, 5, 5),
        "Conv((3, 2), 4, 2, stride=(2, 1), pad=(0, 1), dilation=(1, 2), groups=2, bias=False)"
        "  # 24 parameters",
        refused=((3, 2, 5, 5), (4, 5, 5), (3, 5, 5, 4)),
        wanted=r"Conv takes the shape \(N, 4, H, W\), found {}",
    ),
    Row(
        "Conv 3-d",
        lambda: fl.Conv((2, 2, 2), 1, 2),
        lambda: nn.Conv3d(1, 2, 2),
        floats(2, 1, 3, 3, 3),
        "Conv((2, 2, 2), 1, 2)  # 18 parameters",
        refused=((2, 3, 3, 3),),
        wanted=r"Conv takes the shape \(N, 1, D, H, W\), found {}",
    ),
    Row(
        "MaxPool",
        lambda: fl.MaxPool((2, 3), stride=2, pad=(1, 0)),
        lambda: nn.MaxPool2d((2, 3), 2, (1, 0)),
        floats(3, 2, 6, 7),
        "MaxPool((2, 3), stride=2, pad=(1, 0))",
        refused=((2, 6, 7), (3, 2, 6)),
        wanted=r"MaxPool takes the shape \(N, C, H, W\), found {}",
    ),
    Row(
        "MeanPool",
        lambda: fl.MeanPool((2, 2), pad=1),
        lambda: nn.AvgPool2d(2, 2, 1),
        floats(3, 2, 4, 4),
        "MeanPool((2, 2), pad=1)",
        refused=((2, 4, 4),),
        wanted=r"MeanPool takes the shape \(N, C, H, W\), found {}",
    ),
    Row(
        "AdaptiveMaxPool",
        lambda: fl.AdaptiveMaxPool((2, 3)),
        lambda: nn.AdaptiveMaxPool2d((2, 3)),
        floats(3, 2, 5, 7),
        "AdaptiveMaxPool((2, 3))",
        refused=((2, 5, 7),),
        wanted=r"AdaptiveMaxPool takes the shape \(N, C, H, W\), found {}",
    ),
    Row(
        "AdaptiveMeanPool",
        lambda: fl.AdaptiveMeanPool((3,)),
        lambda: nn.AdaptiveAvgPool1d(3),
        floats(3, 2, 7),
        "AdaptiveMeanPool((3,))",
        refused=((2, 7),),
        wanted=r"AdaptiveMeanPool takes the shape \(N, C, L\), found {}",
    ),
    Row(
        "GlobalMaxPool",
        fl.GlobalMaxPool,
        lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        floats(3, 2, 4, 5),
        "GlobalMaxPool()",
        refused=((3, 2),),
        wanted=r"GlobalMaxPool takes the shape \(N, C, …\) with at least one spatial axis, found {}",
    ),
    Row(
        "GlobalMeanPool",
        fl.GlobalMeanPool,
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        floats(3, 2, 4, 5),
        "GlobalMeanPool()",
        refused=((3, 2),),
        wanted=r"GlobalMeanPool takes the shape \(N, C, …\) with at least one spatial axis, found {}",
    ),
    Row(
        "BatchNorm of features",
        lambda: fl.BatchNorm(3, fl.tanh, eps=1e-3, momentum=0.3),
        lambda: nn.Sequential(nn.BatchNorm1d(3, 1e-3, 0.3), nn.Tanh()),
        floats(5, 3),
        "BatchNorm(3, tanh, eps=0.001, momentum=0.3)  # 6 parameters, 6 non-trainable",
        refused=((5, 4), (3,), (5, 2, 3)),
        wanted=r"BatchNorm takes the shape \(N, 3, …\), found {}",
        lone_row_trains=False,
    ),
    Row(
        "BatchNorm of images, without affine",
        lambda: fl.BatchNorm(2, affine=False),
        lambda: nn.BatchNorm2d(2, affine=False),
        floats(3, 2, 4, 4),
        "BatchNorm(2, affine=False)  # 4 non-trainable",
        refused=((3, 4, 4, 2),),
        wanted=r"BatchNorm takes the shape \(N, 2, …\), found {}",
    ),
    Row(
        "LayerNorm",
        lambda: fl.LayerNorm(4, fl.tanh, eps=1e-3),
        lambda: nn.Sequential(nn.LayerNorm(4, 1e-3), nn.Tanh()),
        floats(3, 2, 4),
        "LayerNorm(4, tanh, eps=0.001)  # 8 parameters",
        refused=((3, 4, 2), ()),
        wanted=r"LayerNorm takes the shape \(…, 4\), found {}",
    ),
    Row(
        "LayerNorm of two axes, without affine",
        lambda: fl.LayerNorm((2, 4), affine=False),
        lambda: nn.LayerNorm((2, 4), elementwise_affine=False),
        floats(3, 2, 4),
        "LayerNorm((2, 4), affine=False)",
        refused=((3, 4, 2), (4,)),
        wanted=r"LayerNorm takes the shape \(…, 2, 4\), found {}",
    ),
    Row(
        "Dropout", lambda: fl.Dropout(0.3), lambda: nn.Dropout(0.3), floats(5, 3), "Dropout(0.3)", draws=True
    ),
    Row(
        "SkipConnection",
        lambda: fl.SkipConnection(fl.Dense(3, 3), torch.add),
        lambda: Residual(nn.Linear(3, 3)),
        floats(5, 3),
        "SkipConnection(\n"
        "  layer=Dense(3, 3),  # 12 parameters\n"
        "  connection=add,\n"
        ")                     # Total: 2 tensors, 12 parameters, 48 bytes",
        refused=((5, 2),),
        wanted=r"\.layer: .*Dense takes the shape \(…, 3\), found {}",
    ),
    Row(
        "Chain",
        lambda: fl.Chain(fl.Dense(3, 4), fl.BatchNorm(4), torch.tanh, fl.Dropout(0.4), fl.Dense(4, 2)),
        lambda: nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.4), nn.Linear(4, 2)
        ),
        floats(5, 3),
        "Chain(\n"
        "  Dense(3, 4),   # 16 parameters\n"
        "  BatchNorm(4),  # 8 parameters, 8 non-trainable\n"
        "  tanh,\n"
        "  Dropout(0.4),\n"
        "  Dense(4, 2),   # 10 parameters\n"
        ")                # Total: 8 tensors, 34 parameters, 8 non-trainable, 168 bytes",
        refused=((5, 2),),
        wanted=r"\.layers\[0\]: .*Dense takes the shape \(…, 3\), found {}",
        draws=True,
        lone_row_trains=False,
    ),
]

every_layer = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
both_modes = pytest.mark.parametrize("mode", ["train", "test"])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def with_random_tensors(layer: Any) -> Any:
    """The layer in float64 with every tensor drawn anew; positive, as variances must be."""
    return fl.fmap(lambda t: 0.5 + torch.rand(t.shape, dtype=torch.float64), layer)


def pair(row: Row, mode: str) -> tuple[Any, nn.Module]:
    """Our layer and torch's with the same tensors."""
    layer, twin = with_random_tensors(row.make()), row.twin().double().train(mode == "train")
    theirs = [t for t in twin.state_dict().values() if t.is_floating_point()]
    for mine, other in zip(fl.fleaves(layer), theirs, strict=True):
        assert mine.shape == other.shape
        other.copy_(mine)
    return layer, twin


def exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@every_layer
@both_modes
def test_output_and_gradients_equal_torchs(row: Row, mode: str):
    layer, twin = pair(row, mode)
    x = row.input()
    differentiated = (
        ([0] if fl.trainables(layer) else []) + ([1] if x.is_floating_point() else [])
    )  # fmt: skip

    x2 = x.clone().requires_grad_(x.is_floating_point())
    torch.manual_seed(7)
    y2 = twin(x2)
    weights = torch.randn_like(y2)
    (y2 * weights).sum().backward()

    def loss(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = layer(x)
        return (y * weights).sum(), y

    with fl.mode(mode):
        torch.manual_seed(7)
        (_, y), grads = fl.withgradient(loss, layer, x, argnums=tuple(differentiated))

    exact(y, y2.detach())
    for n, grad in zip(differentiated, grads, strict=True):
        if n == 1:
            exact(grad, x2.grad)
            continue
        for mine, other in zip(fl.trainables(grad), twin.parameters(), strict=True):
            exact(mine, other.grad)


@every_layer
@both_modes
def test_buffers_after_a_call_equal_torchs(row: Row, mode: str):
    layer, twin = pair(row, mode)
    x = row.input()
    twin(x)
    with fl.mode(mode):
        _, updates = fl.withupdates(lambda m: m(x), layer)
    new = fl.apply_updates(layer, updates)
    theirs = [t for t in twin.state_dict().values() if t.is_floating_point()]
    for mine, other in zip(fl.fleaves(new), theirs, strict=True):
        exact(mine, other)


@every_layer
@both_modes
def test_gradcheck_of_input_and_parameters(row: Row, mode: str):
    layer, x = with_random_tensors(row.make()), row.input()
    parameters = fl.trainables(layer)

    def forward(x: Tensor, *values: Tensor) -> Tensor:
        new = {id(p): v for p, v in zip(parameters, values, strict=True)}
        torch.manual_seed(3)
        with fl.mode(mode):
            return fl.fmap(lambda t: new.get(id(t), t), layer)(x)

    arguments = [x.requires_grad_(x.is_floating_point()), *(p.clone().requires_grad_() for p in parameters)]
    assert torch.autograd.gradcheck(forward, arguments)


@every_layer
def test_repr_has_the_arguments_and_the_counts(row: Row):
    assert repr(row.make()) == row.text


@every_layer
@both_modes
def test_a_call_changes_neither_the_layer_nor_the_input(row: Row, mode: str):
    layer, x = with_random_tensors(row.make()), row.input()
    before, given = fl.tree.clone(layer), x.clone()
    with fl.mode(mode):
        layer(x)
    assert all(torch.equal(a, b) for a, b in zip(fl.fleaves(layer), fl.fleaves(before), strict=True))
    assert torch.equal(x, given)


@every_layer
@both_modes
@pytest.mark.parametrize(
    ("cast", "dtype"),
    [
        (fl.f16, torch.float16),
        (fl.bf16, torch.bfloat16),
        (fl.f32, torch.float32),
        (fl.f64, torch.float64),
    ],
    ids=["f16", "bf16", "f32", "f64"],
)
def test_a_cast_layer_runs_in_that_dtype(row: Row, mode: str, cast: Any, dtype: torch.dtype):
    layer, x = cast(with_random_tensors(row.make())), row.input()
    x = x.to(dtype) if x.is_floating_point() else x
    exactly = fl.f64(layer)
    with fl.mode(mode):
        torch.manual_seed(5)
        y = layer(x)
        torch.manual_seed(5)
        wanted = exactly(x.double() if x.is_floating_point() else x)
    assert y.dtype == dtype
    if not row.draws or mode == "test":  # a draw may differ by dtype
        error = (y.double() - wanted).abs().max() / wanted.abs().max()
        assert error <= 8 * torch.finfo(dtype).eps


@every_layer
def test_normalisation_stays_float32_under_half_and_everything_else_does_not(row: Row):
    for cast, dtype in ((fl.f16, torch.float16), (fl.bf16, torch.bfloat16)):
        layer = cast(row.make())
        nodes = [layer, *getattr(layer, "layers", ())]
        for node in nodes:
            kept = isinstance(node, (fl.BatchNorm, fl.LayerNorm))
            for value in getattr(node, "__dict__", {}).values():
                if isinstance(value, Tensor):
                    assert value.dtype == (torch.float32 if kept else dtype)


@every_layer
@both_modes
def test_save_and_load_give_the_same_layer(row: Row, mode: str, tmp_path: Any):
    layer, x = with_random_tensors(row.make()), row.input()
    fl.save(tmp_path / "layer.safetensors", layer)
    loaded = fl.load(tmp_path / "layer.safetensors", like=fl.f64(row.make()))
    assert type(loaded) is type(layer)
    assert all(torch.equal(a, b) for a, b in zip(fl.fleaves(layer), fl.fleaves(loaded), strict=True))
    with fl.mode(mode):
        torch.manual_seed(1)
        y = layer(x)
        torch.manual_seed(1)
        assert torch.equal(loaded(x), y)


@every_layer
def test_state_dict_round_trip_gives_the_same_layer(row: Row):
    layer, x = with_random_tensors(row.make()), row.input()
    loaded = fl.load_state_dict(fl.f64(row.make()), fl.state_dict(layer))
    assert torch.equal(loaded(x), layer(x))


@every_layer
def test_fmap_keeps_class_structure_settings_and_tensors(row: Row):
    layer, x = with_random_tensors(row.make()), row.input()
    same = fl.fmap(lambda t: t, layer)
    assert type(same) is type(layer)
    assert same is not layer or not fl.children(layer)
    structures = [optree.tree_structure(m, none_is_leaf=True, namespace="fluxlike") for m in (same, layer)]
    assert structures[0] == structures[1]
    assert all(a is b for a, b in zip(fl.fleaves(same), fl.fleaves(layer), strict=True))
    assert repr(same) == repr(layer)
    assert torch.equal(same(x), layer(x))


@every_layer
def test_a_batch_of_one_is_the_first_row(row: Row):
    layer, x = with_random_tensors(row.make()), row.input()
    exact(layer(x[:1]), layer(x)[:1])


@every_layer
def test_a_batch_of_one_trains_or_says_why_not(row: Row):
    layer, x = with_random_tensors(row.make()), row.input()
    refusal = pytest.raises((ValueError, fl.LayerError), match="more than 1 value per channel")
    with fl.mode("train"), contextlib.nullcontext() if row.lone_row_trains else refusal:
        assert layer(x[:1]).isfinite().all()


@every_layer
@both_modes
def test_an_empty_batch_gives_an_empty_batch_and_zero_gradients(row: Row, mode: str):
    layer, x = with_random_tensors(row.make()), row.input()
    with fl.mode(mode):
        assert layer(x[:0]).shape == (0, *layer(x).shape[1:])
        if fl.trainables(layer):
            grads = fl.gradient(lambda m: m(x[:0]).sum(), layer)
            assert all((g == 0).all() for g in fl.trainables(grads))


@every_layer
def test_on_the_meta_device_it_gives_shapes_without_memory(row: Row):
    x = row.input()
    with torch.device("meta"):
        layer = fl.f64(row.make())
    y = layer(x.to("meta"))
    assert y.is_meta
    assert y.shape == with_random_tensors(row.make())(x).shape


@every_layer
def test_under_vmap_it_does_what_it_does_on_a_batch(row: Row):
    layer, x = with_random_tensors(row.make()), row.input()
    mapped = torch.func.vmap(lambda one: layer(one.unsqueeze(0)).squeeze(0))(x)
    exact(mapped, layer(x))


@pytest.mark.parametrize(
    ("row", "shape"),
    [(row, s) for row in ROWS for s in row.refused],
    ids=lambda v: getattr(v, "name", str(v)),
)
@both_modes
def test_a_wrong_shape_is_named_with_the_shape_wanted(row: Row, shape: tuple[int, ...], mode: str):
    found = str(shape).replace("(", r"\(").replace(")", r"\)")
    layer = row.make()
    with fl.mode(mode), pytest.raises((ValueError, fl.LayerError), match=row.wanted.format(found)):
        layer(torch.zeros(shape))


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name != "Dropout"], ids=lambda row: row.name
)  # fmt: skip
def test_what_is_no_tensor_is_named_by_its_type(row: Row):
    with pytest.raises((TypeError, ValueError, fl.LayerError), match=r"takes .*found str"):
        row.make()("text")
