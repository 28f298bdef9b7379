"""What `to_torch` returns, in the tools that take modules: torch.export, ONNX, torch.compile, trainers."""

from __future__ import annotations

import importlib
import inspect
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import fluxlike as fl


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def mlp() -> Any:
    return fl.Chain(fl.Dense(3, 5, fl.tanh), fl.Dense(5, 2))


def cnn() -> Any:
    return fl.Chain(
        fl.Conv((3, 3), 1, 4, fl.relu, pad=1),
        fl.BatchNorm(4),
        fl.MeanPool((2, 2)),
        fl.flatten,
        fl.Dropout(0.3),
        fl.Dense(64, 3),
    )


def tied() -> Any:
    model = fl.Chain(fl.Embedding(7, 4), fl.Dense(4, 4, fl.tanh), fl.Dense(4, 7))
    model.layers[2].weight = model.layers[0].weight
    return model


@fl.functor
class Last:
    """An LSTM's last step, to a head."""

    def __init__(self) -> None:
        self.rnn, self.head = fl.LSTM(3, 4), fl.Dense(4, 2)

    def __call__(self, x: Tensor) -> Tensor:
        out = self.rnn(x)
        return self.head((out[0] if isinstance(out, tuple) else out)[:, -1])


def transformer() -> Any:
    block = fl.TransformerBlock(8, 2, dropout=0.2, causal=True)
    return fl.Chain(fl.Embedding(7, 8), block, fl.LayerNorm(8), fl.Dense(8, 7))


tokens = torch.arange(20).reshape(4, 5) % 7

MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Tensor]]] = {
    "MLP": (mlp, lambda: torch.randn(4, 3)),
    "CNN": (cnn, lambda: torch.randn(4, 1, 8, 8)),
    "tied weights": (tied, lambda: tokens),
    "LSTM": (Last, lambda: torch.randn(4, 6, 3)),
    "transformer": (transformer, lambda: tokens),
    "SpectralNorm": (lambda: fl.SpectralNorm(fl.Dense(3, 4)), lambda: torch.randn(4, 3)),
    "checkpoint": (lambda: fl.Chain(fl.checkpoint(mlp())), lambda: torch.randn(4, 3)),
    "jit inside": (lambda: fl.Chain(fl.Dense(3, 4), fl.jit(fl.tanh)), lambda: torch.randn(4, 3)),
    "a torch module inside": (
        lambda: fl.Chain(nn.Linear(3, 4), nn.BatchNorm1d(4), fl.Dense(4, 2)),
        lambda: torch.randn(4, 3),
    ),
}


def of_any_batch(module: nn.Module) -> Any:
    """The shapes of one input, which is a tuple of inputs where the call takes any number."""
    (x, *_) = inspect.signature(module.forward).parameters.values()
    shape = {0: Dim("batch", min=2)}
    return ((shape,),) if x.kind is x.VAR_POSITIONAL else (shape,)


def larger(x: Tensor) -> Tensor:
    return torch.cat([x, x.flip(0), x])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("uncompiled")
def test_it_exports_for_any_batch(name: str) -> None:
    make, batch = MODELS[name]
    model, x = make(), batch()
    module = fl.to_torch(model).eval()
    program = torch.export.export(module, (x,), dynamic_shapes=of_any_batch(module))
    assert set(program.state_dict) == set(module.state_dict())
    assert not program.constants
    y = larger(x)
    assert_close(program.module()(y), model(y))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert_close(torch.export.load(file).module()(y), model(y))


def test_shapes_are_named_as_the_call_names_its_inputs() -> None:
    module = fl.to_torch(mlp()).eval()
    program = torch.export.export(module, (torch.randn(4, 3),), dynamic_shapes={"x": {0: Dim("n", min=2)}})
    assert program.module()(torch.randn(7, 3)).shape == (7, 2)


def test_an_export_in_train_mode_moves_the_buffers() -> None:
    model, x = fl.Chain(fl.Dense(3, 4), fl.BatchNorm(4)), torch.randn(5, 3)
    module = fl.to_torch(model)
    exported = torch.export.export(module, (x,)).module()
    assert not module.layers[1].running_mean.any()
    assert_close(exported(x), module(x))
    assert_close(exported.get_buffer("layers.1.running_mean"), module.layers[1].running_mean)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of what the exporter calls
@pytest.mark.parametrize("name", MODELS)
def test_onnx_runs_it_for_any_batch(name: str) -> None:
    from onnx.reference import ReferenceEvaluator

    make, batch = MODELS[name]
    model, x = make(), batch()
    module = fl.to_torch(model).eval()
    shapes = of_any_batch(module)
    program = torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False)
    run = ReferenceEvaluator(program.model_proto)
    y = larger(x)
    (found,) = run.run(None, {run.input_names[0]: y.numpy()})
    assert_close(torch.from_numpy(found), model(y).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of checks of shapes
def test_a_trace_of_torchscript() -> None:
    model, x = cnn(), torch.randn(4, 1, 8, 8)
    traced = torch.jit.trace(fl.to_torch(model).eval(), (x,))
    assert_close(traced(larger(x)), model(larger(x)))
    assert set(traced.state_dict()) == set(fl.to_torch(model).state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of Inductor
def test_torch_compile_takes_it_as_one_graph() -> None:
    model = fl.Chain(fl.Dense(3, 4, fl.relu), fl.BatchNorm(4), fl.Dense(4, 2))
    plain, module = fl.to_torch(model), fl.to_torch(model)
    compiled = torch.compile(module, fullgraph=True)
    for n in (6, 6, 7, 8):
        x = torch.randn(n, 3)
        expected, found = plain(x), compiled(x)
        assert_close(found, expected)
        expected.square().sum().backward()
        found.square().sum().backward()
    for mine, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        assert_close(mine.grad, theirs.grad)
    assert_close(module.layers[1].running_var, plain.layers[1].running_var)
    for m in (compiled, plain):
        m.eval()
    assert_close(compiled(x), plain(x))
    for m in (module, plain):
        m.layers[1].train()
    assert_close(compiled(x), plain(x))
    assert_close(module.layers[1].running_var, plain.layers[1].running_var)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_a_strict_export_too() -> None:
    model, x = fl.Chain(fl.Dense(3, 4), fl.BatchNorm(4)), torch.randn(5, 3)
    module = fl.to_torch(model)
    exported = torch.export.export(module, (x,), strict=True).module()
    assert_close(exported(x), module(x))
    assert_close(exported.get_buffer("layers.1.running_mean"), module.layers[1].running_mean)


# Trainers


def images() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(32, 1, 8, 8), torch.randint(0, 3, (32,))), 8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Lightning
def test_lightning_trains_it(tmp_path: Any) -> None:
    importlib.import_module("torchvision_here")  # Lightning imports torchmetrics, which imports torchvision
    import lightning

    class Classifier(lightning.LightningModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, number: int) -> Tensor:
            assert self.net.layers[1].training
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, number: int) -> None:
            assert not self.net.layers[1].training
            self.log("score", self.net(batch[0]).sum())

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-2)

    model = cnn()
    classifier = Classifier(fl.to_torch(model))
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(classifier, images(), images())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trained = classifier.net.tree()
    assert not fl.tree.allclose(trained, model)
    assert trained.layers[1].running_mean.any()
    other = Classifier(fl.to_torch(model))
    other.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    assert fl.tree.allclose(other.net.tree(), trained)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of accelerate
def test_accelerate_trains_it(tmp_path: Any) -> None:
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    model = cnn()
    module = fl.to_torch(model)
    net, optimiser, loader = accelerator.prepare(
        module, torch.optim.Adam(module.parameters(), 1e-2), images()
    )
    for x, y in loader:
        optimiser.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(net(x), y))
        optimiser.step()
    accelerator.save_state(str(tmp_path))
    trained = accelerator.unwrap_model(net).tree()
    assert trained.layers[1].running_mean.any()
    with torch.no_grad():
        module.layers[0].weight.zero_()
    accelerator.load_state(str(tmp_path))
    assert fl.tree.allclose(module.tree(), trained)
