"""The recipe of docs/guides/int8.md: a model of fluxlike, quantised by torchao, compiled by `inference`."""

from __future__ import annotations

import copy
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fluxlike as fl

with warnings.catch_warnings():  # parts of torch that torchao imports warn of each other
    warnings.simplefilter("ignore")
    pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "int8.md"
LOW = 0.05  # of a relative error

pytestmark = [
    pytest.mark.slow,  # each case quantises and compiles
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # torch, of its own exported graphs
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def quantised() -> Callable[..., Any]:
    """The function that the page writes: from a model and batches to a quantised module."""
    (source,) = re.findall(r"```python\n(import torch\n.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(compile(source, str(PAGE), "exec"), namespace)
    return namespace["quantised"]


def mlp() -> Any:
    return fl.Chain(fl.Dense(64, 64, fl.relu), fl.Dense(64, 32, fl.gelu), fl.Dense(32, 8))


def cnn() -> Any:
    return fl.Chain(
        fl.Conv((3, 3), 3, 32, pad=1, bias=False),
        fl.BatchNorm(32, fl.relu),
        fl.MaxPool((2, 2)),
        fl.SkipConnection(fl.Conv((3, 3), 32, 32, pad=1), torch.add),
        fl.relu,
        fl.GlobalMeanPool(),
        fl.flatten,
        fl.Dense(32, 8),
    )


def gpt() -> Any:
    return fl.models.GPT(fl.models.GPTConfig(depth=1, dim=32, num_heads=2, vocabulary=50, context=16))


def bert() -> Any:
    return fl.models.BERT(fl.models.BERTConfig(depth=1, dim=32, num_heads=2, vocabulary=50))


def images(n: int) -> Tensor:
    return fl.channels_last(torch.randn(n, 3, 16, 16))


def tokens(n: int) -> Tensor:
    return torch.randint(0, 50, (n, 8))


MODELS: dict[str, tuple[Callable[[], Any], Callable[[int], Tensor], int]] = {
    "MLP": (mlp, lambda n: torch.randn(n, 64), 3),
    "CNN": (cnn, images, 3),
    "GPT": (gpt, tokens, 5),
    "BERT": (bert, tokens, 6),
}


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def operations(run: Callable[[], Any]) -> list[str]:
    """The names of the operations of a call, one by one."""
    with torch.profiler.profile() as profile:
        run()
    return [event.name for event in profile.events()]


@pytest.mark.parametrize("name", MODELS)
def test_every_dense_and_convolution_runs_in_int8_at_nearly_the_same_numbers(
    quantised: Callable[..., Any], name: str
) -> None:
    make, data, layers = MODELS[name]
    model = fl.testmode(make())
    fast = fl.inference(quantised(model, [data(64) for _ in range(4)]), data(4))
    for n in (1, 4, 6):  # not the size of the batches that it was calibrated with
        x = data(n)
        assert 0 < error(fast(x), model(x)) < LOW
    names = operations(lambda: fast(x))
    narrow = [n for n in names if re.fullmatch(r"onednn::q(conv|conv2d|linear)_pointwise", n)]
    assert len(narrow) == layers
    assert not [n for n in names if re.search("convolution|mkl_linear|linear_pointwise|addmm|aten::mm", n) and
                n not in narrow]  # fmt: skip


def test_a_quantised_module_is_saved_and_loaded_by_torch_export(quantised: Callable[..., Any]) -> None:
    x, file = images(4), io.BytesIO()
    module = quantised(cnn(), [x])
    torch.export.save(torch.export.export(module, (x,)), file)
    file.seek(0)
    again = torch.export.load(file).module()
    assert torch.equal(fl.inference(again, x)(x), fl.inference(module, x)(x))


def test_the_model_itself_stays_as_it_was(quantised: Callable[..., Any]) -> None:
    model = cnn()
    before = copy.deepcopy(model)
    quantised(model, [images(4)])
    assert fl.tree.allclose(model, before, rtol=0, atol=0)
