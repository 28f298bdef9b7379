"""`activations`: every layer's output by path, of whatever classes the model is made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import fluxlike as fl
from fluxlike.transforms import listening


@fl.functor
class Plain:
    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


@fl.functor
class Slots:
    __slots__ = ("layer",)

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


@fl.functor
@dataclass(frozen=True)
class Frozen:
    layer: Any

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


@fl.functor
@dataclass(frozen=True, slots=True)
class FrozenSlots:
    layer: Any

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


class Child(Plain):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) + 1


@fl.functor
class Twice:
    def __init__(self, cell: Any) -> None:
        self.cell = cell

    def __call__(self, x: Tensor) -> Tensor:
        return self.cell(self.cell(x))


@fl.functor
class Method:
    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def encode(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def __call__(self, x: Tensor) -> Tensor:
        return self.encode(x)


def calls(f: Callable[[Any, Tensor], Any]) -> type:
    """A functor with one layer whose forward pass is `f`."""

    class Calling:
        def __init__(self, layer: Any) -> None:
            self.layer = layer

        def __call__(self, x: Tensor) -> Any:
            return f(self, x)

    return fl.functor(Calling)


def mlp() -> fl.Chain:
    torch.manual_seed(0)
    return fl.f64(fl.Chain(fl.Dense(3, 4), fl.tanh, fl.Dense(4, 2)))


X = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)


def test_every_step_of_a_chain_is_there_in_the_order_of_the_calls() -> None:
    model = mlp()
    found = fl.activations(model, X)
    first = model.layers[0](X)
    assert list(found) == ["", ".layers[0]", ".layers[1]", ".layers[2]"]
    assert torch.equal(found[".layers[0]"], first)
    assert torch.equal(found[".layers[1]"], first.tanh())
    assert torch.equal(found[".layers[2]"], model(X))
    assert torch.equal(found[""], model(X))


@pytest.mark.parametrize("cls", [Plain, Slots, Frozen, FrozenSlots, Child, Method])
def test_classes_of_every_kind_are_listened_to(cls: Any) -> None:
    model = cls(fl.Dense(3, 3))
    x = torch.ones(2, 3)
    found = fl.activations(model, x)
    assert list(found) == ["", ".layer"]
    assert torch.equal(found[""], model(x))
    assert torch.equal(found[".layer"], model.layer(x))


def test_containers_of_layers_inside_layers_have_their_paths() -> None:
    Model = calls(lambda m, x: {"sum": m.layer["a"](x) + m.layer["b"][0](x)})
    found = fl.activations(Model({"a": fl.Dense(3, 3), "b": [torch.sin]}), torch.ones(2, 3))
    assert list(found) == ["", ".layer['a']", ".layer['b'][0]"]
    assert list(found[""]) == ["sum"]


def test_an_activation_that_a_layer_holds_is_no_layer() -> None:
    assert list(fl.activations(fl.Dense(3, 2, fl.relu), torch.ones(1, 3))) == [""]


def test_a_module_of_torch_as_a_step_is_there() -> None:
    found = fl.activations(fl.Chain(nn.ReLU(), torch.sin), torch.tensor([-1.0]))
    assert found[".layers[0]"].item() == 0.0


def test_a_layer_called_again_loses_nothing() -> None:
    model = Twice(fl.Dense(3, 3))
    x = torch.ones(2, 3)
    found = fl.activations(model, x)
    assert list(found) == ["", ".cell", ".cell (call 2)"]
    assert torch.equal(found[".cell"], model.cell(x))
    assert torch.equal(found[".cell (call 2)"], model(x))


def test_a_layer_that_stands_at_two_places_has_both_paths() -> None:
    layer = fl.Dense(3, 3)
    found = fl.activations(fl.Chain(layer, layer), torch.ones(1, 3))
    assert list(found) == ["", ".layers[0]", ".layers[1]"]


def test_types_and_names_are_those_of_the_layer() -> None:
    seen: list[Any] = []

    def forward(m: Any, x: Tensor) -> Tensor:
        seen.extend([type(m.layer) is fl.Dense, {fl.Dense: 1}[type(m.layer)], repr(m.layer)])
        return m.layer(x)

    fl.activations(calls(forward)(fl.Dense(3, 2)), torch.ones(1, 3))
    assert seen == [True, 1, "Dense(3, 2)  # 8 parameters"]


@pytest.mark.parametrize("look", [fl.activations, fl.summary, fl.outputsize])
def test_a_model_may_mix_its_layers_with_others_of_their_class(look: Any) -> None:
    other = Plain(fl.Chain(fl.Dense(3, 3), fl.relu))
    model = calls(lambda m, x: fl.tree.lerp(m.layer, other, 0.5)(x))(Plain(fl.Chain(fl.Dense(3, 3), fl.relu)))
    assert look(model, torch.ones(2, 3))


def test_a_model_may_stack_its_layers_with_others_of_their_class() -> None:
    other = fl.Chain(fl.Dense(3, 3), fl.relu)
    model = calls(lambda m, x: fl.vmap(lambda m: m(x))(fl.stack([m.layer, other])))(
        fl.Chain(fl.Dense(3, 3), fl.relu)
    )
    assert fl.activations(model, torch.ones(2, 3))[""].shape == (2, 2, 3)


def test_a_function_in_a_list_is_equal_to_itself_though_it_is_listened_to() -> None:
    seen: list[Any] = []

    def forward(m: Any, x: Tensor) -> Tensor:
        seen.extend([m.layer[0] == fl.relu, {fl.relu: "found"}[m.layer[0]]])
        return m.layer[0](x)

    fl.activations(calls(forward)([fl.relu]), torch.ones(1))
    assert seen == [True, "found"]


def test_the_model_is_not_changed() -> None:
    model = mlp()
    before = model.layers[0]
    fl.activations(model, X)
    assert model.layers[0] is before
    assert type(before) is fl.Dense
    assert model.layers[1] is fl.tanh


def test_the_mode_is_that_of_the_scope() -> None:
    model = fl.Chain(fl.Dropout(0.5), torch.sin)
    assert torch.equal(fl.activations(model, torch.ones(99))[".layers[0]"], torch.ones(99))
    with fl.mode("train"):
        assert bool((fl.activations(model, torch.ones(99))[".layers[0]"] == 0).any())
    assert not fl.activations(fl.trainmode(model), torch.ones(99))[".layers[0]"].all()


# Transforms


def test_outputs_can_be_part_of_a_loss() -> None:
    def penalty(model: Any, x: Tensor) -> Tensor:
        return fl.activations(model, x)[".layers[1]"].square().sum()

    model = mlp()
    by_hand = fl.gradient(lambda m: m.layers[0](X).tanh().square().sum(), model)
    grads = fl.gradient(penalty, model, X)
    assert_close(grads.layers[0].weight, by_hand.layers[0].weight, rtol=1e-12, atol=1e-12)
    assert grads.layers[2].weight is None


def test_buffers_that_layers_assign_reach_the_gradient() -> None:
    model = fl.Chain(fl.Dense(3, 4), fl.BatchNorm(4))
    x = torch.randn(8, 3)
    grads = fl.gradient(lambda m: fl.activations(m, x)[""].square().sum(), model)
    assert isinstance(grads.layers[1].running_mean, fl.Assigned)


def test_outputs_of_a_gradient_carry_no_graph() -> None:
    (_, found), _ = fl.withgradient(lambda m: (m(X).sum(), fl.activations(m, X)), mlp())
    assert not found[".layers[0]"].requires_grad


def test_it_works_under_vmap() -> None:
    model = mlp()
    found = torch.func.vmap(lambda x: fl.activations(model, x))(X)
    for path, y in fl.activations(model, X).items():
        assert_close(found[path], y, rtol=1e-12, atol=1e-12)


def test_what_a_model_maps_inside_is_there_as_a_whole() -> None:
    inner = mlp()
    model = calls(lambda m, x: torch.func.vmap(m.layer, in_dims=1)(x))(inner)
    found = fl.activations(model, X.T)
    assert_close(found[".layer.layers[0]"], inner.layers[0](X), rtol=1e-12, atol=1e-12)
    twice = torch.func.vmap(lambda x: fl.activations(model, x))(torch.stack([X.T, 2 * X.T]))
    assert_close(twice[".layer.layers[0]"][1], inner.layers[0](2 * X), rtol=1e-12, atol=1e-12)


def test_what_a_model_differentiates_inside_carries_no_graph_of_it() -> None:
    model = calls(lambda m, x: torch.func.grad(lambda x: m.layer(x).sum())(x))(mlp())
    found = fl.activations(model, X)
    assert_close(found[".layer"], model.layer(X), rtol=1e-12, atol=1e-12)
    assert not found[".layer"].requires_grad


def test_a_copy_that_the_model_makes_of_its_layer_still_works() -> None:
    layers = [fl.Chain(fl.Dense(3, 3), torch.sin) for _ in range(2)]
    model = calls(lambda m, x: fl.fmap(lambda a, b: a + b, *m.layer).layers[0](x))(layers)
    found = fl.activations(model, torch.ones(2, 3))
    assert list(found) == [""]
    assert torch.equal(found[""], model(torch.ones(2, 3)))


def test_a_model_may_look_at_its_own_activations() -> None:
    model = calls(lambda m, x: fl.activations(m.layer, x)[".layers[1]"])(mlp())
    found = fl.activations(model, X)
    assert list(found) == [""]
    assert_close(found[""], model.layer[:2](X), rtol=1e-12, atol=1e-12)


def test_a_model_that_looks_inside_is_listened_to_by_each_for_itself() -> None:
    inner: list[Any] = []
    model = calls(lambda m, x: inner.append(list(fl.activations(m.layer, x))) or m.layer(x))(mlp())
    paths = ["", ".layers[0]", ".layers[1]", ".layers[2]"]
    assert list(fl.activations(model, X)) == ["", *(f".layer{path}" for path in paths)]
    assert inner == [paths]


@pytest.mark.usefixtures("uncompiled")
def test_what_a_jit_inside_calls_is_not_there() -> None:
    model = calls(lambda m, x: fl.jit(m.layer)(x) + fl.jit(lambda x: m.layer(x))(x))(mlp())
    for _ in range(2):
        found = fl.activations(model, X)
        assert list(found) == [""]
        assert_close(found[""], 2 * model.layer(X), rtol=1e-12, atol=1e-12)
    assert_close(model(X), 2 * model.layer(X), rtol=1e-12, atol=1e-12)


def test_the_layer_inside_a_weight_norm_is_there() -> None:
    model = fl.WeightNorm(fl.Chain(fl.Dense(3, 3), fl.relu), "layers[0].weight")
    paths = ["", ".layer", ".layer.layers[0]", ".layer.layers[1]"]
    assert list(fl.activations(model, torch.ones(2, 3))) == paths


def test_inputs_may_have_names() -> None:
    model = fl.MultiHeadAttention(4, 2)
    x, mask = torch.ones(1, 3, 4), torch.eye(3, dtype=torch.bool)
    assert torch.equal(fl.activations(model, x, mask=mask)[""], model(x, mask=mask))


def test_threads_listen_to_their_own_calls() -> None:
    model = mlp()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: fl.activations(model, i * X), range(20)))
        plain = list(pool.map(lambda i: model(i * X), range(20)))
    for i, outputs in enumerate(found):
        assert list(outputs) == ["", ".layers[0]", ".layers[1]", ".layers[2]"]
        assert_close(outputs[".layers[0]"], model.layers[0](i * X), rtol=1e-12, atol=1e-12)
        assert_close(outputs[""], plain[i], rtol=1e-12, atol=1e-12)
    assert_classes_are_themselves()


def test_the_calls_of_other_threads_meanwhile_are_not_reported() -> None:
    started, done = threading.Event(), threading.Event()
    layer = fl.Dense(3, 3)

    def wait(m: Any, x: Tensor) -> Tensor:
        started.set()
        assert done.wait(10)
        return m.layer(x)

    with ThreadPoolExecutor(1) as pool:
        listening = pool.submit(fl.activations, calls(wait)(layer), torch.ones(1, 3))
        assert started.wait(10)
        assert list(fl.activations(fl.Chain(layer), torch.ones(2, 3))) == ["", ".layers[0]"]
        assert layer(torch.ones(2, 3)).shape == (2, 3)
        done.set()
        assert list(listening.result()) == ["", ".layer"]
    assert_classes_are_themselves()


def assert_classes_are_themselves() -> None:
    assert listening._held == {}
    assert fl.Dense.__call__ is DENSE_CALL
    assert not hasattr(fl.Dense.__call__, "__wrapped__")


DENSE_CALL = fl.Dense.__call__


class Inheriting(Plain):
    """Has its call from its parent."""


@fl.functor
class Static:
    """Has a call that is no function."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    __call__ = staticmethod(torch.sin)


@pytest.mark.parametrize("cls", [Plain, Slots, Frozen, FrozenSlots, Child, Inheriting, Static])
def test_classes_are_afterwards_what_they_were(cls: Any) -> None:
    before = [dict(vars(base)) for base in cls.__mro__]
    subclasses = cls.__subclasses__()
    found = fl.activations(cls(fl.Dense(3, 3)), torch.ones(1, 3))
    assert found[""].shape == (1, 3)
    assert [dict(vars(base)) for base in cls.__mro__] == before
    assert [list(vars(base)) for base in cls.__mro__] == [list(old) for old in before]
    assert cls.__subclasses__() == subclasses
    assert_classes_are_themselves()


def test_an_inherited_call_is_reported_once() -> None:
    found = fl.activations(Child(Child(Inheriting(Plain(fl.Dense(3, 3))))), torch.ones(1, 3))
    assert list(found) == ["", ".layer", ".layer.layer", ".layer.layer.layer", ".layer.layer.layer.layer"]


def test_a_call_changed_by_others_meanwhile_is_left_to_them() -> None:
    class Patched(Plain):
        def __call__(self, x: Tensor) -> Tensor:
            Patched.__call__ = Plain.__call__
            return x

    fl.activations(Patched(None), torch.ones(1))
    assert vars(Patched)["__call__"] is not None
    assert Patched(torch.sin)(torch.zeros(1)).item() == 0.0
    assert listening._held == {}


# Outputs that are changed in place


def relu_in_place() -> fl.Chain:
    return fl.Chain(fl.Dense(3, 4), nn.ReLU(inplace=True), fl.Dense(4, 2), lambda x: x.mul_(2))


def values_before_writes(model: Any, x: Tensor) -> dict[str, Tensor]:
    """The outputs of `relu_in_place`, with nothing in place."""
    first = model.layers[0](x)
    last = model.layers[2](first.relu())
    outputs = [2 * last, first, first.relu(), last, 2 * last]
    return dict(zip(["", *(f".layers[{i}]" for i in range(4))], outputs, strict=True))


@contextmanager
def plain() -> Iterator[None]:
    yield


@pytest.mark.parametrize("scope", [plain, torch.no_grad, torch.inference_mode])
def test_an_output_that_is_changed_in_place_is_as_its_layer_returned_it(scope: Any) -> None:
    model = fl.f64(relu_in_place())
    with scope():
        found, expected = fl.activations(model, X), values_before_writes(model, X)
    assert list(found) == list(expected)
    for path, y in expected.items():
        assert torch.equal(found[path], y), path


def test_writes_through_views_and_undeclared_ones_do_not_reach_an_output() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.layer(x)
        h.view(-1)[0] = 7
        h.data.mul_(3)
        h.numpy()[...] = 5
        return h

    x = torch.ones(2, 3)
    found = fl.activations(calls(forward)(fl.Chain(torch.sin)), x)
    assert torch.equal(found[".layer"], x.sin())
    assert torch.equal(found[""], torch.full((2, 3), 5.0))


def test_no_output_that_nobody_changes_takes_memory() -> None:
    kept: list[Tensor] = []
    model = calls(lambda m, x: kept.append(m.layer(x)) or kept[0])(fl.Dense(3, 3))
    found = fl.activations(model, torch.ones(2, 3))
    assert torch._C._data_address(found[".layer"]) == torch._C._data_address(kept[0])


def test_an_output_that_is_changed_in_place_may_be_part_of_a_loss() -> None:
    def loss(find: Any) -> Any:
        return lambda m, x: sum((i + 1) * y.square().sum() for i, y in enumerate(find(m, x).values()))

    model = fl.f64(relu_in_place())
    grads = fl.gradient(loss(fl.activations), model, X)
    expected = fl.gradient(loss(values_before_writes), model, X)
    for path in (".layers[0].weight", ".layers[0].bias", ".layers[2].weight"):
        assert_close(fl.at(grads, path).get(), fl.at(expected, path).get(), rtol=1e-12, atol=1e-12)
    by_x = fl.gradient(lambda x: loss(fl.activations)(model, x), X)
    assert_close(by_x, fl.gradient(lambda x: loss(values_before_writes)(model, x), X), rtol=1e-12, atol=1e-12)


def test_derivatives_can_be_taken_with_respect_to_outputs_that_nobody_changes() -> None:
    x = X.clone().requires_grad_()
    model = mlp()
    found = fl.activations(model, x)
    (dy,) = torch.autograd.grad(found[""].sum(), found[".layers[1]"])
    assert torch.equal(dy, model.layers[2].weight.sum(0).expand(5, 4))


@pytest.mark.usefixtures("uncompiled")
def test_an_output_that_is_changed_in_place_under_transforms() -> None:
    model = fl.f64(relu_in_place())
    expected = values_before_writes(model, X)
    mapped = torch.func.vmap(lambda x: fl.activations(model, x))(X)
    compiled = fl.jit(fl.activations)(model, X)
    _, moved = fl.pushforward(lambda x: fl.activations(model, x)[".layers[0]"], X, v=X)
    for path, y in expected.items():
        assert_close(mapped[path], y, rtol=1e-12, atol=1e-12)
        assert_close(compiled[path], y, rtol=1e-12, atol=1e-12)
    assert_close(moved, X @ model.layers[0].weight.T, rtol=1e-12, atol=1e-12)


# Errors


def test_an_error_of_a_layer_comes_through_with_its_path() -> None:
    with pytest.raises(fl.LayerError, match=r"\.layers\[0\]: Dense\(3, 4\) got"):
        fl.activations(fl.Chain(fl.Dense(3, 4)), torch.ones(2, 7))


@pytest.mark.parametrize("model", [fl.Dense, {"w": torch.ones(1)}, "text"])
def test_what_is_no_model_is_an_error(model: Any) -> None:
    with pytest.raises(TypeError, match="activations calls the model"):
        fl.activations(model, torch.ones(1, 3))


def test_a_class_that_refuses_subclasses_and_changes_is_listened_to() -> None:
    closed: list[bool] = []

    class Meta(type):
        def __setattr__(cls, name: str, value: Any) -> None:
            if closed:
                raise TypeError("this class is final")
            super().__setattr__(name, value)

    class Final(metaclass=Meta):
        def __call__(self, x: Tensor) -> Tensor:
            return x

        def __init_subclass__(cls) -> None:
            raise TypeError("this class is final")

    fl.functor(Final)
    closed.append(True)
    assert list(fl.activations(Final(), torch.ones(1))) == [""]


def test_a_failing_model_leaves_its_classes_as_they_were() -> None:
    model = calls(lambda m, x: m.layer(x) / None)(fl.Dense(3, 3))
    for look in (fl.activations, fl.outputsize, fl.summary, fl.autosize):
        with pytest.raises(TypeError):
            look(model, torch.ones(1, 3))
        assert_classes_are_themselves()
