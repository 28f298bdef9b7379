"""`auto` and `autosize`: layers whose sizes an example of the input tells."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import fluxlike as fl
from fluxlike.layers.auto import Deferred

X = torch.zeros(2, 3)


def calls(f: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """A functor around layers whose forward pass is `f`."""

    @fl.functor
    class Calling:
        def __init__(self, layers: Any) -> None:
            self.layers = layers

        def __call__(self, x: Any) -> Any:
            return f(self.layers, x)

    return Calling


@fl.functor
class Net:
    """A user's class that knows nothing of `auto`."""

    def __init__(self, width: int) -> None:
        self.stem = fl.Dense(fl.auto, width, fl.relu)
        self.heads = {
            "mean": fl.Dense(fl.auto, 1),
            "scale": fl.Chain(fl.LayerNorm(fl.auto), fl.Dense(width, 1)),
        }

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.stem(x)
        return self.heads["mean"](h), self.heads["scale"](h)


@fl.autosized(width=-1)
@fl.functor
class Block:
    """A user's class with a size of its own, and another one inside."""

    def __init__(self, width: int) -> None:
        self.mix = fl.Dense(width, 2 * width)
        self.back = fl.Dense(fl.auto, width)

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.back(self.mix(x))


def under_key(make: Callable[[], Any]) -> Any:
    with fl.seeded(fl.Key(3)):
        return make()


# What is found


def test_where_all_that_draws_has_auto_the_values_are_those_of_written_sizes() -> None:
    def model(*n: Any) -> fl.Chain:
        return fl.Chain(
            fl.Conv((3, 3), n[0], 4),
            fl.Chain(fl.Conv((3, 3), n[1], 6, groups=2), fl.BatchNorm(n[2], fl.relu)),
            fl.Dropout(0.5),
            fl.flatten,
            fl.LayerNorm(n[3]),
            fl.Dense(n[4], 5),
        )

    x = torch.randn(2, 3, 7, 7)
    sized = under_key(lambda: fl.autosize(model(*5 * [fl.auto]), x))
    written = under_key(lambda: model(3, 4, 6, 54, 54))
    assert repr(sized) == repr(written)
    assert all(torch.equal(a, b) for a, b in zip(fl.fleaves(sized), fl.fleaves(written), strict=True))
    assert torch.equal(sized(x), written(x))


def test_torchs_generator_then_draws_the_same_too() -> None:
    torch.manual_seed(0)
    sized = fl.autosize(fl.Chain(fl.Dense(fl.auto, 4), fl.Dense(fl.auto, 2)), X)
    torch.manual_seed(0)
    written = fl.Chain(fl.Dense(3, 4), fl.Dense(4, 2))
    assert fl.tree.allclose(sized, written, rtol=0, atol=0)


def test_layers_of_written_sizes_have_drawn_before() -> None:
    mixed = under_key(
        lambda: fl.autosize(fl.Chain(fl.Dense(fl.auto, 4), fl.Dense(4, 5), fl.Dense(fl.auto, 2)), X)
    )
    second, first, third = under_key(lambda: (fl.Dense(4, 5), fl.Dense(3, 4), fl.Dense(5, 2)))
    assert fl.tree.allclose(mixed.layers, (first, second, third), rtol=0, atol=0)


def test_layers_are_drawn_in_the_order_of_the_tree_not_of_the_calls() -> None:
    Backwards = calls(lambda m, x: m[0](m[1](x)))
    sized = under_key(lambda: fl.autosize(Backwards([fl.Dense(fl.auto, 2), fl.Dense(fl.auto, 4)]), X))
    written = under_key(lambda: [fl.Dense(4, 2), fl.Dense(3, 4)])
    assert fl.tree.allclose(sized.layers, written, rtol=0, atol=0)


def test_what_the_model_draws_while_it_is_looked_at_does_not_count() -> None:
    noisy = fl.Chain(fl.Dropout(0.5), lambda x: x + fl.random.normal(x.shape), fl.Dense(fl.auto, 2))
    with fl.mode("train"):
        sized = under_key(lambda: fl.autosize(noisy, X))
    assert torch.equal(sized.layers[2].weight, under_key(lambda: fl.Dense(3, 2)).weight)


def test_a_shape_will_do() -> None:
    assert repr(fl.autosize(fl.Dense(fl.auto, 2), (1, 3))) == "Dense(3, 2)  # 8 parameters"
    table = fl.Chain(fl.Embedding(10, 4), fl.Dense(fl.auto, 2))
    assert fl.autosize(table, (1, 5), dtype=torch.int64).layers[1].weight.shape == (2, 4)


def test_the_example_may_have_names() -> None:
    @fl.functor
    class Named:
        def __init__(self) -> None:
            self.table, self.head = fl.Embedding(9, 4), fl.Dense(fl.auto, 2)

        def __call__(self, *, input_ids: Tensor) -> Tensor:
            return self.head(self.table(input_ids))

    assert fl.autosize(Named(), input_ids=(1, 5), dtype=torch.int64).head.weight.shape == (2, 4)


def test_layers_are_found_in_attributes_dicts_and_nested_models() -> None:
    net = fl.autosize(Net(8), X)
    assert type(net) is Net
    assert repr(net) == (
        "Net(\n"
        "  stem=Dense(3, 8, relu),  # 32 parameters\n"
        "  heads={\n"
        "    'mean': Dense(8, 1),   # 9 parameters\n"
        "    'scale': Chain(\n"
        "      LayerNorm(8),        # 16 parameters\n"
        "      Dense(8, 1),         # 9 parameters\n"
        "    ),                     # 25 parameters\n"
        "  },                       # 34 parameters\n"
        ")                          # Total: 8 tensors, 66 parameters, 264 bytes"
    )


def test_a_class_of_ones_own_may_wait_and_hold_layers_that_wait() -> None:
    model = fl.autosize(fl.Chain(Block(fl.auto), Block(fl.auto)), X)
    assert [type(m) for m in model.layers] == [Block, Block]
    assert model.layers[1].back.weight.shape == (3, 6)
    assert model(X).shape == X.shape
    same = under_key(lambda: fl.autosize(Block(fl.auto), X)), under_key(lambda: fl.autosize(Block(3), X))
    assert fl.tree.allclose(*same, rtol=0, atol=0)


def test_a_size_may_be_a_function_of_the_inputs() -> None:
    @fl.autosized(left=lambda x, y: x.shape[-1], right=lambda x, y: y.shape[-1])
    @fl.functor
    class Cross:
        def __init__(self, left: int, right: int) -> None:
            self.weight = torch.ones(left, right)

        def __call__(self, x: Tensor, y: Tensor) -> Tensor:
            return ((x @ self.weight) * y).sum(-1)

    assert fl.autosize(Cross(fl.auto, fl.auto), (5, 2), (5, 3)).weight.shape == (2, 3)
    assert fl.autosize(Cross(2, right=fl.auto), (5, 2), (5, 3)).weight.shape == (2, 3)


def test_a_layer_around_another_is_sized_with_it() -> None:
    @fl.autosized(layer=None)
    @fl.functor
    class Scaled:
        def __init__(self, layer: Any) -> None:
            self.layer, self.size = layer, layer.weight.norm()

        def __call__(self, x: Tensor) -> Tensor:
            return self.layer(x) / self.size

    model = Scaled(Scaled(fl.Dense(fl.auto, 2)))
    assert repr(model) == "Scaled(Scaled(Dense(auto, 2)))"
    with pytest.raises(AttributeError, match="has no 'weight' yet"):
        _ = model.weight
    assert fl.autosize(Scaled(fl.Dense(fl.auto, 2)), X).layer.weight.shape == (2, 3)


# What is kept


def test_everything_else_is_the_same_object() -> None:
    head, names = fl.Dense(4, 2), ("a", "b")
    model = calls(lambda m, x: m["head"](m["stem"](x)))(
        {"stem": fl.Dense(fl.auto, 4), "head": head, "names": names, "tied": head.weight}
    )
    sized = fl.autosize(model, X)
    assert sized.layers["head"].weight is head.weight
    assert sized.layers["tied"] is head.weight
    assert sized.layers["names"] == names
    assert isinstance(model.layers["stem"], Deferred)


def test_a_model_without_auto_is_kept() -> None:
    model = fl.Chain(fl.Dense(3, 2))
    assert fl.autosize(model, X) is model


def test_one_layer_at_two_places_is_one_layer_afterwards() -> None:
    layer = fl.Dense(fl.auto, 3)
    sized = fl.autosize(fl.Chain(layer, fl.relu, fl.Chain(layer)), X)
    assert sized.layers[0].weight is sized.layers[2].layers[0].weight
    rebuilt = fl.fmap(lambda t: t, fl.Chain(layer, fl.relu, layer))
    assert len(fl.fleaves(fl.autosize(rebuilt, X))) == 2


def test_a_layer_called_twice_is_sized_once() -> None:
    sized = fl.autosize(calls(lambda m, x: m[0](m[0](x)))([fl.Dense(fl.auto, 3)]), X)
    assert sized.layers[0].weight.shape == (3, 3)


def test_a_pinned_mode_is_kept() -> None:
    sized = fl.autosize(fl.Chain(fl.testmode(fl.BatchNorm(fl.auto)), fl.trainmode(Block(fl.auto))), X)
    assert repr(sized.layers[0]).endswith("test mode")
    assert repr(sized.layers[1].back).endswith("train mode")


def test_activations_with_tensors_and_inits_come_along() -> None:
    @fl.functor
    class PReLU:
        def __init__(self) -> None:
            self.slope = torch.full((), 0.1)

        def __call__(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x, self.slope * x)

    slope = PReLU()
    model = fl.Chain(fl.Dense(fl.auto, 4, slope, init=torch.ones, bias=False), fl.Dense(fl.auto, 4, slope))
    sized = fl.autosize(model, X)
    assert sized.layers[0].activation.slope is slope.slope
    assert torch.equal(sized.layers[0].weight, torch.ones(4, 3))
    assert sized.layers[0].bias is None


def test_dtype_and_device_are_the_default_ones() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert fl.autosize(fl.Dense(fl.auto, 2), (1, 3)).weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert fl.autosize(fl.Dense(fl.auto, 10**6), (1, 10**6)).weight.is_meta


def test_it_trains_in_the_usual_two_lines() -> None:
    model = fl.autosize(fl.Chain(fl.Dense(fl.auto, 4), fl.BatchNorm(fl.auto), fl.Dense(fl.auto, 1)), X)
    grads = fl.gradient(lambda m, x: m(x).square().mean(), model, torch.randn(5, 3))
    new, _ = fl.update(fl.setup(fl.Adam(), model), model, grads)
    assert not torch.equal(new.layers[1].running_mean, model.layers[1].running_mean)


# A layer that waits


def test_it_prints_as_it_was_written() -> None:
    assert repr(fl.Conv((3, 3), fl.auto, 4, fl.relu, stride=2)) == "Conv((3, 3), auto, 4, relu, stride=2)"
    model = fl.Chain(fl.Dense(fl.auto, 3), fl.relu)
    assert repr(model).startswith("Chain(\n  Dense(auto, 3),\n  relu,\n)")
    assert "Dense(auto, 3)" in model._repr_html_()
    assert repr(fl.Dense(fl.auto, 3, fl.Chain(fl.Dense(3, 3)))) == "Dense(auto, 3, Chain(…))"


def test_its_summary_and_its_optimiser_say_what_to_write() -> None:
    model = fl.Chain(fl.Dense(3, 3), fl.Dense(fl.auto, 3))
    assert str(fl.summary(model)).endswith(
        "Total: 2 tensors, 12 parameters, 48 bytes\n"
        "Without sizes yet: .layers[1]; model = fluxlike.autosize(model, x) finds them"
    )
    assert "Without sizes" not in str(fl.summary(fl.autosize(model, X)))
    with pytest.raises(
        RuntimeError, match=r"setup takes.*\.layers\[1\] is Dense\(auto, 3\).*fluxlike\.autosize"
    ):
        fl.setup(fl.Adam(), model)


def test_a_call_before_autosize_says_what_to_write() -> None:
    with pytest.raises(RuntimeError, match=r"Dense\(auto, 3\) has no sizes yet.*model = fluxlike\.autosize"):
        fl.Dense(fl.auto, 3)(X)
    with pytest.raises(fl.LayerError, match=r"\.layers\[1\]: Dense\(auto, 3\) got.*autosize"):
        fl.gradient(lambda m: m(X).sum(), fl.Chain(fl.Dense(3, 3), fl.Dense(fl.auto, 3)))
    for look in (fl.outputsize, fl.summary, fl.activations):
        with pytest.raises(fl.LayerError, match="has no sizes yet"):
            look(fl.Chain(fl.Dense(fl.auto, 3)), X)


def test_an_attribute_before_autosize_says_what_to_write() -> None:
    with pytest.raises(AttributeError, match=r"Dense\(auto, 3\) has no 'weight' yet.*fluxlike\.autosize"):
        _ = fl.Dense(fl.auto, 3).weight


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_it_is_copied_and_pickled_with_its_ties(again: Any) -> None:
    layer = fl.Dense(fl.auto, 3, fl.relu)
    model = again(fl.Chain(layer, fl.Dense(3, 3), layer))
    assert again(fl.auto) is fl.auto
    assert len(fl.fleaves(fl.autosize(model, X))) == 4


# The classes


def test_construction_without_auto_is_untouched() -> None:
    assert list(inspect.signature(fl.Dense).parameters) == [
        "in_features",
        "out_features",
        "activation",
        "bias",
        "init",
    ]
    assert inspect.signature(fl.Dense) == inspect.signature(Unmarked.__mro__[1])
    assert "__call__" in vars(fl.Dense)
    for again in (copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        assert type(again(fl.Dense(3, 2))) is fl.Dense
    assert isinstance(fl.fmap(torch.zeros_like, fl.Dense(3, 2)), fl.Dense)
    with pytest.raises(TypeError, match=r"__init__\(\) missing 1 required positional argument"):
        fl.Dense(3)


class Unmarked(fl.Dense):
    """Keeps the constructor."""


class Narrow(fl.Dense):
    """Has a constructor of its own, and says nothing of it."""

    def __init__(self, n: int) -> None:
        super().__init__(n, 2)


@fl.autosized(n=-1)
class Said(fl.Dense):
    """Has a constructor of its own, and says which axis it is."""

    def __init__(self, n: int) -> None:
        super().__init__(n, 2)


def test_a_subclass_is_sized_by_what_it_says_or_inherits() -> None:
    assert type(fl.autosize(Unmarked(fl.auto, 2), X)) is Unmarked
    assert type(fl.autosize(Said(fl.auto), X)) is Said
    assert type(Narrow(3)) is Narrow
    with pytest.raises(TypeError, match=r"Narrow\(n=auto\).*@fluxlike\.autosized\(n=-1\)"):
        Narrow(fl.auto)


def test_dataclasses_and_classes_with_slots_can_wait() -> None:
    @fl.autosized(n=1)
    @fl.functor
    @dataclass(frozen=True, slots=True)
    class Times:
        n: Any

        def __call__(self, x: Tensor) -> Tensor:
            return self.n * x

    assert fl.autosize(Times(fl.auto), X) == Times(3)


def test_a_constructor_called_wrongly_fails_at_once() -> None:
    with pytest.raises(TypeError, match=r"Dense.* missing 1 required .*: 'out_features'"):
        fl.Dense(fl.auto)
    with pytest.raises(
        TypeError, match=r"Dense\(out_features=auto\).*the input tells in_features; write a number"
    ):
        fl.Dense(3, fl.auto)
    with pytest.raises(TypeError, match=r"LayerNorm\(normalized_shape=\(auto, 4\)\).*the whole argument"):
        fl.LayerNorm((fl.auto, 4))
    with pytest.raises(TypeError, match=r"Embedding\(num_embeddings=auto\).*the input tells none"):
        fl.Embedding(fl.auto, 3)


@pytest.mark.parametrize(
    "f",
    [lambda n: 2 * n, lambda n: n + 1, lambda n: range(n), lambda n: n // 2, lambda n: n > 0, lambda n: -n],
)
def test_auto_is_no_number_to_compute_with(f: Any) -> None:
    with pytest.raises(TypeError, match="auto is not a number yet"):
        f(fl.auto)


def test_a_name_that_the_constructor_does_not_have_is_an_error() -> None:
    with pytest.raises(
        TypeError, match=r"autosized\(widht=…\): the constructor of .*Wrong has no such.*width"
    ):

        @fl.autosized(widht=-1)
        class Wrong:
            def __init__(self, width: int) -> None:
                self.width = width


# Errors of autosize


def test_a_layer_that_is_not_called_is_named() -> None:
    model = calls(lambda m, x: m["a"](x))({"a": fl.Dense(fl.auto, 3), "b": [fl.Dense(fl.auto, 4)]})
    with pytest.raises(ValueError, match=r"^\.layers\['b'\]\[0\]: Dense\(auto, 4\) is not called"):
        fl.autosize(model, X)


def test_a_layer_called_with_two_sizes_names_both() -> None:
    layer = fl.Dense(fl.auto, 4)
    with pytest.raises(
        fl.LayerError,
        match=r"one layer, called with in_features=3 at \.layers\[0\] first and with in_features=4 at "
        r"\.layers\[1\]\.layers\[0\] now",
    ):
        fl.autosize(fl.Chain(layer, fl.Chain(layer)), X)


def test_a_layer_that_fails_with_its_size_is_named_with_it() -> None:
    model = fl.Chain(fl.Dense(fl.auto, 4), fl.Conv((3,), fl.auto, 2))
    with pytest.raises(fl.LayerError, match=r"^\.layers\[1\]: Conv\(\(3,\), 4, 2\) got .*\(2, 4\)"):
        fl.autosize(model, X)
    with pytest.raises(
        fl.LayerError, match=r"^\.layers\[0\]: Conv\(\(3,\), auto, 2, groups=2\) got.*groups=2"
    ):
        fl.autosize(fl.Chain(fl.Conv((3,), fl.auto, 2, groups=2)), (1, 3, 5))


def test_an_input_without_the_axis_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"Conv\(\(3,\), auto, 2\) finds in_channels in axis 1.*shape \(5,\)"
    ):
        fl.autosize(fl.Conv((3,), fl.auto, 2), (5,))
    with pytest.raises(TypeError, match=r"finds in_features in its first input, a tensor; found str"):
        fl.autosize(fl.Dense(fl.auto, 2), "text")


def test_nothing_is_drawn_when_it_fails() -> None:
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="is not called"):
        fl.autosize(calls(lambda m, x: m[0](x))([fl.Dense(fl.auto, 3), fl.Dense(fl.auto, 4)]), X)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_size_before_others_is_that_of_an_axis_further_in_front():
    scale = fl.autosize(fl.Scale(fl.auto, 1, 1, fl.relu), torch.zeros(1, 8, 5, 8))
    assert scale.weight.shape == (8, 1, 1)
    assert fl.autosize(fl.Scale(fl.auto, 1), torch.zeros(1, 3, 4)).weight.shape == (3, 1)


def test_a_waiting_layer_takes_no_attributes_that_would_be_lost():
    head = fl.Dense(fl.auto, 7, bias=False)
    with pytest.raises(
        AttributeError, match=r"Dense\(auto, 7, bias=False\) can't take 'weight' yet: .*autosize"
    ):
        head.weight = torch.zeros(7, 4)
