"""`outputsize`: the shapes of the output, without numbers, memory, draws or buffers that move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fluxlike as fl


def calls(f: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """A functor around layers whose forward pass is `f`."""

    @fl.functor
    class Calling:
        def __init__(self, layers: Any) -> None:
            self.layers = layers

        def __call__(self, *inputs: Any) -> Any:
            return f(self.layers, *inputs)

    return Calling


def mixed() -> fl.Chain:
    return fl.Chain(fl.Conv((3, 3), 3, 4), fl.BatchNorm(4), fl.Dropout(0.5), fl.flatten, fl.Dense(100, 7))


class Allocations(TorchDispatchMode):
    """Notes every operation that gives a tensor with memory."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        if any(not t.is_meta for t in fl.fleaves(y)):
            self.found.append(str(func))
        return y


def test_a_shape_or_an_example_gives_the_shape() -> None:
    assert fl.outputsize(mixed(), (32, 3, 7, 7)) == torch.Size([32, 7])
    assert fl.outputsize(mixed(), torch.zeros(32, 3, 7, 7)) == torch.Size([32, 7])
    assert fl.outputsize(mixed(), torch.zeros(32, 3, 7, 7).shape) == torch.Size([32, 7])
    assert fl.outputsize(mixed(), torch.zeros(0, 3, 7, 7, device="meta")) == torch.Size([0, 7])


def test_outputs_and_inputs_may_be_trees() -> None:
    model = calls(lambda m, x, h: {"y": m(x["u"]), "state": (h[0], None, "text")})(fl.Dense(3, 2))
    assert fl.outputsize(model, {"u": (5, 3)}, [(4,)]) == {
        "y": torch.Size([5, 2]),
        "state": (torch.Size([4]), None, "text"),
    }


def test_inputs_may_have_names() -> None:
    model = fl.MultiHeadAttention(4, 2)
    for mask in (torch.ones(3, 3, dtype=torch.bool), torch.empty(3, 3, dtype=torch.bool, device="meta")):
        assert fl.outputsize(model, (1, 3, 4), mask=mask) == torch.Size([1, 3, 4])
    assert fl.outputsize(lambda *, input_ids: input_ids, input_ids=(2, 3)) == torch.Size([2, 3])
    with pytest.raises(ValueError, match="found none"):
        fl.outputsize(model, torch.zeros(1, 3, 4), mask=None, dtype=torch.float32)


def test_integers_can_be_passed_on() -> None:
    class Size(NamedTuple):
        height: int
        width: int

    model = calls(lambda _, x, size: x.reshape(tuple(size)))(None)
    assert fl.outputsize(model, (6,), Size(2, 3)) == torch.Size([2, 3])
    assert fl.outputsize(lambda x: model(x, (3, 2)), (6,)) == torch.Size([3, 2])
    assert fl.outputsize(lambda n: n, 3) == 3


def test_the_dtype_of_shapes_is_that_of_most_of_the_model_or_as_said() -> None:
    seen = calls(lambda m, x: m["f"](x))
    dtypes: list[torch.dtype] = []
    model = seen(
        {"f": lambda x: dtypes.append(x.dtype) or x, "body": fl.Dense(9, 9), "norm": fl.LayerNorm(9)}
    )
    for m in (model, fl.bf16(model), fl.f64(model), seen({"f": model.layers["f"]})):
        fl.outputsize(m, (2, 9))
    fl.outputsize(model, (2, 9), dtype=torch.int64)
    assert dtypes == [torch.float32, torch.bfloat16, torch.float64, torch.float32, torch.int64]
    assert fl.outputsize(fl.f16(mixed()), (2, 3, 7, 7)) == torch.Size([2, 7])


def test_a_dtype_without_a_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="dtype= is that of inputs given by their shape; found none"):
        fl.outputsize(fl.Dense(3, 2), torch.zeros(2, 3), dtype=torch.float32)


@pytest.mark.parametrize("mode", ["train", "test"])
def test_no_memory_is_taken_and_nothing_is_drawn(mode: Any) -> None:
    model, inputs = mixed(), (32, 3, 7, 7)
    state = torch.get_rng_state()
    with fl.mode(mode), Allocations() as seen:
        fl.outputsize(model, inputs)
    assert seen.found == []
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_and_inputs_too_large_to_exist() -> None:
    with torch.device("meta"):
        model = fl.Chain(fl.Dense(10**7, 10**7), fl.BatchNorm(10**7), fl.Dense(10**7, 10))
    assert fl.outputsize(model, (10**6, 10**7)) == torch.Size([10**6, 10])


@pytest.mark.parametrize("mode", ["train", "test"])
def test_no_buffer_moves(mode: Any) -> None:
    model = fl.Chain(fl.Dense(3, 4), fl.BatchNorm(4))
    with fl.mode(mode):
        _, updates = fl.withupdates(lambda m: fl.outputsize(m, (5, 3)), model)
        assert not any(isinstance(x, fl.Assigned) for x in fl.fleaves(updates, leaves="all"))
        meta = fl.to_device(model, "meta")
        _, updates = fl.withupdates(lambda m: fl.outputsize(m, (5, 3)), meta)
        assert not any(isinstance(x, fl.Assigned) for x in fl.fleaves(updates, leaves="all"))


def test_draws_under_a_key_go_on_as_if_it_had_not_been() -> None:
    def draw(ask: bool) -> Tensor:
        with fl.seeded(fl.Key(0)), fl.mode("train"):
            if ask:
                fl.outputsize(fl.Chain(fl.Dropout(0.5), lambda x: x + fl.random.normal(x.shape)), (3, 4))
            return fl.random.uniform((3,))

    assert torch.equal(draw(True), draw(False))


def test_the_mode_is_that_of_the_scope() -> None:
    model = calls(lambda _, x: x[: 1 if fl.training() else 2])(None)
    assert fl.outputsize(model, (5,)) == torch.Size([2])
    with fl.mode("train"):
        assert fl.outputsize(model, (5,)) == torch.Size([1])


def test_tensors_that_a_function_makes_or_closes_over_take_part() -> None:
    mask = torch.ones(3)
    model = fl.Chain(
        lambda x: x * mask, lambda x: x + torch.arange(3), lambda x: x @ torch.eye(3, device="cpu")
    )
    assert fl.outputsize(model, (2, 3)) == torch.Size([2, 3])
    kept = torch.zeros(3)
    fl.outputsize(calls(lambda _, x: kept.copy_(x))(None), (3,))
    assert torch.equal(kept, torch.zeros(3))


@pytest.mark.usefixtures("uncompiled")
def test_inside_transforms_it_is_a_number_like_any() -> None:
    model, x = fl.Dense(3, 4), torch.ones(2, 3)
    assert torch.equal(fl.vmap(lambda x: x * fl.outputsize(model, x)[0])(x), 4 * x)
    assert torch.equal(fl.jit(lambda m, x: x * fl.outputsize(m, x)[1])(model, x), 4 * x)
    grads = fl.gradient(lambda m: m(x).sum() * fl.outputsize(m, x)[1], model)
    assert torch.equal(grads.bias, torch.full((4,), 8.0))


def test_models_that_differentiate_or_map_inside() -> None:
    dense = fl.Dense(3, 4)
    assert fl.outputsize(
        calls(lambda m, x: fl.gradient(lambda x: m(x).square().sum(), x))(dense), (2, 3)
    ) == torch.Size([2, 3])
    assert fl.outputsize(calls(lambda m, x: fl.vmap(m)(x))(dense), (2, 3)) == torch.Size([2, 4])
    assert fl.outputsize(calls(lambda m, x: fl.checkpoint(m)(x))(dense), (2, 3)) == torch.Size([2, 4])


def test_unusual_tensors_of_a_model() -> None:
    sparse = torch.eye(3).to_sparse()
    model = calls(lambda m, x: x[: m["s"].shape[0]] * m["p"])(
        {"s": sparse, "p": torch.nn.Parameter(torch.ones(2))}
    )
    assert fl.outputsize(model, (3, 2)) == torch.Size([3, 2])


def test_strides_are_those_of_the_example() -> None:
    model = calls(lambda _, x: x.view(-1))(None)
    x = torch.zeros(2, 3)
    assert fl.outputsize(model, x) == torch.Size([6])
    with pytest.raises(ValueError, match=r"Cannot view a tensor with shape .* and strides \(1, 3\)"):
        fl.outputsize(model, x.T)


# Errors


def test_a_wrong_shape_names_the_path_through_classes_of_any_kind() -> None:
    model = calls(lambda m, x: m["body"](m["stem"](x)))(
        {"stem": fl.Dense(3, 4), "body": [fl.relu, fl.Chain(fl.relu, fl.Dense(5, 2))]}
    )
    model = fl.at(model, ".layers['body']").apply(lambda layers: fl.Chain(*layers))
    with pytest.raises(
        fl.LayerError,
        match=r"^\.layers\['body'\]\.layers\[1\]\.layers\[1\]: Dense\(5, 2\) got a tensor of shape \(2, 4\).*"
        r"Dense takes the shape \(…, 5\), found \(2, 4\)$",
    ) as caught:
        fl.outputsize(model, (2, 3))
    assert caught.value.path == ".layers['body'].layers[1].layers[1]"


def test_a_model_of_one_layer_fails_with_its_own_error() -> None:
    with pytest.raises(ValueError, match=r"^Dense takes the shape \(…, 5\), found \(2, 4\)$"):
        fl.outputsize(fl.Dense(5, 2), (2, 4))


def test_an_error_that_the_model_handles_is_no_error() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        try:
            return m[0](x)
        except ValueError:
            return m[1](x)

    assert fl.outputsize(calls(forward)([fl.Dense(5, 2), fl.Dense(4, 3)]), (2, 4)) == torch.Size([2, 3])
    with pytest.raises(fl.LayerError, match=r"^\.layers\[1\]: Dense\(6, 3\) got"):
        fl.outputsize(calls(forward)([fl.Dense(5, 2), fl.Dense(6, 3)]), (2, 4))


def test_other_errors_come_through_as_they_are() -> None:
    def fail(_: Any, x: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fl.outputsize(fl.Chain(calls(fail)(None)), (2, 4))


@pytest.mark.parametrize("model", [fl.Dense, {"w": torch.ones(1)}, "text"])
def test_what_is_no_model_is_an_error(model: Any) -> None:
    with pytest.raises(TypeError, match=r"outputsize calls the model.*outputsize\(model, x\)"):
        fl.outputsize(model, (1, 3))


# Laws

sizes = st.integers(1, 3)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_it_is_the_shape_of_a_real_call_of_any_convolution(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3))
    kernel, stride, pad, dilation = (
        tuple(data.draw(st.integers(low, high)) for _ in range(n))
        for low, high in ((1, 3), (1, 3), (0, 2), (1, 2))
    )
    groups = data.draw(sizes)
    channels, out = groups * data.draw(sizes), groups * data.draw(sizes)
    shape = (data.draw(st.integers(0, 2)), channels, *(data.draw(st.integers(1, 8)) for _ in range(n)))
    assume(all(s + 2 * p > d * (k - 1) for s, p, d, k in zip(shape[2:], pad, dilation, kernel, strict=True)))
    conv = fl.Conv(kernel, channels, out, stride=stride, pad=pad, dilation=dilation, groups=groups)
    model = fl.Chain(conv, fl.BatchNorm(out), fl.relu, fl.flatten)
    assert fl.outputsize(model, shape) == model(torch.zeros(shape)).shape
