"""The private parts of torch that `jit` is built on: these fail loudly when torch moves them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fluxlike._private import tracing
from fluxlike._private.fake import is_stand_in
from fluxlike._private.guards import guard

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fluxlike._private.compiler import build as building
    from fluxlike._private.compiler.build import build
    from fluxlike._private.compiler.functional import functional
    from fluxlike._private.compiler.memory import keeps_strides, origins, written_inputs
    from fluxlike._private.compiler.trace import (
        NEEDS_A_SHAPE,
        NEEDS_A_VALUE,
        Recorded,
        Recorder,
    )

aten = torch.ops.aten


def recorded(f: Callable[..., Any], *tensors: Tensor) -> Recorded:
    return Recorder(tensors).record(lambda *fakes: [f(*fakes)])


def operations(graph: torch.fx.GraphModule) -> list[str]:
    return [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]


# Guards


@pytest.mark.parametrize(
    "other",
    [
        torch.ones(2, 3, dtype=torch.float64),
        torch.ones(3, 3),
        torch.ones(2, 3, 1),
        torch.ones(3, 2).T,
        torch.ones(2, 3, device="meta"),
        torch.ones(2, 3, requires_grad=True),
        torch.nn.Parameter(torch.ones(2, 3)),
        torch.ones(2, 3).to_sparse(),
        torch.ones(2, 3, dtype=torch.complex64).imag,
    ],
)
def test_a_guard_tells_tensors_of_another_kind(other: Tensor) -> None:
    check = guard([torch.ones(2, 3), torch.ones(1)])
    assert check(torch.zeros(2, 3), torch.zeros(1))
    assert not check(other, torch.zeros(1))


def test_a_guard_takes_as_many_tensors_as_it_was_made_of() -> None:
    check = guard([torch.ones(2), torch.ones(2)])
    x = torch.zeros(2)
    assert not check(x, 3)
    assert not check(x, None)
    with pytest.raises(TypeError):
        check(x)
    assert guard([])()


def test_a_guard_refuses_one_tensor_twice() -> None:
    check = guard([torch.ones(2), torch.ones(2)])
    x = torch.zeros(2)
    assert check(x, torch.zeros(2))
    assert not check(x, x)


def test_a_guard_of_dynamic_sizes_looks_at_the_number_of_axes() -> None:
    check = guard([torch.ones(2, 3)], {0: [0]})
    assert check(torch.ones(5, 3))
    assert not check(torch.ones(5, 7))
    assert not check(torch.ones(5))


# Recording


def test_a_recording_has_the_operations_and_the_captured_tensors_as_inputs() -> None:
    w = torch.ones(3)
    graph = recorded(lambda x: (x.sin() * w).sum() + w.sum(), torch.ones(3))
    assert operations(graph.module)[:2] == ["aten.sin.default", "aten.mul.Tensor"]
    assert [c is w for c in graph.captured] == [True]
    assert [tuple(x.shape) for x in graph.inputs] == [(3,), (3,)]
    assert all(map(is_stand_in, graph.inputs))
    assert torch.allclose(graph.module(torch.ones(3), w)[0], 3 * torch.ones(()).sin() + 3)


def test_batch_norm_says_that_it_writes() -> None:
    def f(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, training=True)

    graph = recorded(f, torch.rand(4, 2), torch.zeros(2), torch.ones(2))
    assert set(written_inputs(graph.module)) == {1, 2}


@pytest.mark.parametrize("ask", [Tensor.item, bool, float, int])
def test_what_is_raised_where_a_value_is_asked_for(ask: Callable[[Tensor], Any]) -> None:
    with pytest.raises(NEEDS_A_VALUE):
        recorded(lambda x: x * ask(x.sum()), torch.ones(2))


def test_what_is_raised_where_a_shape_depends_on_values(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NEEDS_A_SHAPE):
        recorded(lambda x: x[x > 0], torch.ones(2))
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []
    assert not logging.getLogger("torch._subclasses.fake_tensor").disabled


def test_a_captured_tensor_is_not_computed_with() -> None:
    w = torch.ones(1)
    with pytest.raises(NEEDS_A_VALUE):
        recorded(lambda x: x if w + 1 > 0 else -x, torch.ones(1))
    graph = recorded(lambda x: x + w.add_(1), torch.ones(1))
    assert set(written_inputs(graph.module)) == {1}
    assert w.item() == 1


def test_dynamic_sizes_are_symbols_with_a_guard() -> None:
    recorder = Recorder([torch.ones(4, 3)], {0: [0]})
    graph = recorder.record(lambda x: [x * 2, x.shape[0]])
    holds = recorder.guard()
    assert graph.module(torch.ones(9, 3))[1] == 9
    assert holds([torch.ones(9, 3)])
    assert not holds([torch.ones(1, 3)])


# Memory


def shares(x: Tensor) -> Tensor:
    return x.chunk(2)[0].view(-1)[1:]


def test_views_lie_in_the_memory_of_inputs() -> None:
    graph = recorded(lambda x: (shares(x), x + 1), torch.ones(4)).module
    (output,) = graph.graph.find_nodes(op="output")
    view, new = output.args[0][0]
    found = origins(graph)
    assert [n.op for n in found[view]] == ["placeholder"]
    assert found[new] == {new}


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.add_(1),
        lambda x: shares(x).zero_(),
        lambda x: x.data.mul_(2),
        lambda x: torch._foreach_add_([x[:1], x[1:]], 1),
        lambda x: torch.add(x, 1, out=x),
        lambda x: x.__setitem__(0, 3),
    ],
)
def test_writes_to_inputs_are_found(write: Callable[[Tensor], Any]) -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        write(x)
        return y.clone().add_(x)

    assert set(written_inputs(recorded(f, torch.ones(4), torch.ones(4)).module)) == {0}


def written_through_a_view(x: Tensor) -> Tensor:
    y = x + 1
    y.view(-1).mul_(2)
    return y


def written_beside_a_view(x: Tensor) -> Tensor:
    y, z = x + 1, x + 2
    z.mul_(2)
    return y.view(-1) + z.view(-1) if z.ndim == 1 else y.view(-1)


@pytest.mark.parametrize(
    ("f", "keeps"),
    [
        (lambda x: (x + 1).as_strided((2,), (1,)), True),
        (lambda x: (x + 1).view(torch.int32), True),
        (lambda x: torch.view_as_complex(x + 1), True),
        (written_through_a_view, True),
        (written_beside_a_view, False),
        (lambda x: (x + 1).view(-1), False),
        (lambda x: (x + 1).relu_().t(), False),
    ],
)
def test_graphs_that_depend_on_strides_are_told(f: Callable[[Tensor], Tensor], keeps: bool) -> None:
    assert keeps_strides(recorded(f, torch.ones(2, 2)).module) == keeps


# Rewriting and compiling


def test_the_second_recording_has_no_write() -> None:
    def f(x: Tensor) -> Tensor:
        y = x.clone()
        y[0] = 5
        return y.add_(1)

    module = functional(recorded(f, torch.ones(3)))
    assert not any(n.target._schema.is_mutable for n in module.graph.nodes if hasattr(n.target, "_schema"))
    assert module(torch.ones(3))[0].tolist() == [6, 2, 2]


def test_convolutions_are_in_channels_last() -> None:
    module = functional(recorded(lambda x, w: F.conv2d(x, w), torch.ones(2, 3, 5, 5), torch.ones(4, 3, 3, 3)))
    (output,) = module.graph.find_nodes(op="output")
    assert output.args[0][0].meta["val"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "draw", [lambda x: torch.normal(x, 1.0), lambda x: F.rrelu(-x, training=True), torch.rand_like]
)
def test_equal_draws_are_not_taken_for_one(draw: Callable[[Tensor], Tensor]) -> None:
    module = functional(recorded(lambda x: draw(x) - draw(x), torch.ones(9)))
    assert module(torch.ones(9))[0].abs().sum() > 0


def test_the_compiler_has_the_options_that_we_set() -> None:
    for name in building._OPTIONS:
        assert hasattr(torch._inductor.config, name), name


@pytest.mark.slow
def test_a_compiled_graph_writes_over_its_targets_and_returns_none_for_them() -> None:
    graph = recorded(lambda x, y: x + y, torch.ones(3), torch.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = build(graph, {0: 1})
    x, y = torch.ones(3), torch.ones(3)
    assert list(run([x, y])) == [None]
    assert y.tolist() == [2, 2, 2]


@pytest.mark.slow
def test_a_compiled_graph_gives_results_memory_of_their_own() -> None:
    def f(x: Tensor) -> tuple[Tensor, ...]:
        return x.view(-1), x.T, x + torch.zeros_like(x), x * 2, (x * 2).view(-1), x * 2 + 0 * x.sum()

    graph = Recorder([torch.ones(2, 2)]).record(lambda x: list(f(x)))
    x = torch.rand(2, 2)
    results = build(graph, {})([x])
    for found, expected in zip(results, f(x), strict=True):
        assert torch.allclose(found, expected)
    places = {t.untyped_storage().data_ptr() for t in (x, *results)}
    assert len(places) == 7


@pytest.mark.slow
def test_onednn_multiplies_as_the_blas_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from fluxlike._private.compiler import passes

    monkeypatch.setattr(passes, "_blas_is_slow", lambda: True)
    a, b, bias = torch.rand(128, 128), torch.rand(128, 160), torch.rand(160)
    graph = Recorder([a, b, bias]).record(lambda a, b, bias: [a @ b, torch.addmm(bias, a, b)])
    product, shifted = build(graph, {})([a, b, bias])
    assert torch.allclose(product, a @ b, rtol=1e-4)
    assert torch.allclose(shifted, a @ b + bias, rtol=1e-4)


# What surrounds a call


class Passing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_modes_of_torch_s_functions_are_seen_and_those_of_a_default_device_told_apart() -> None:
    assert tracing.default_device() is None
    assert not tracing.watched()
    with torch.device("meta"):
        assert tracing.default_device() == torch.device("meta")
        assert not tracing.watched()
        with Passing():
            assert tracing.watched()
            assert tracing.default_device() == torch.device("meta")
    with Passing():
        assert tracing.watched()
