"""`summary`: the tensors of a model and, for an example of the input, what its layers return."""

from __future__ import annotations

import cProfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import fluxlike as fl


@fl.functor
class Twice:
    def __init__(self, cell: Any) -> None:
        self.cell = cell

    def __call__(self, x: Tensor) -> Tensor:
        return self.cell(self.cell(x))


def calls(f: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """A functor around layers whose forward pass is `f`."""

    @fl.functor
    class Calling:
        def __init__(self, layers: Any) -> None:
            self.layers = layers

        def __call__(self, x: Any) -> Any:
            return f(self.layers, x)

    return Calling


def layers(model: Any, *inputs: Any, **options: Any) -> dict[str, tuple[str, str]]:
    return {row.path: (row.layer, row.output) for row in fl.summary(model, *inputs, **options).layers}


class TestTensors:
    def test_ties_are_named_and_counted_once(self) -> None:
        w = torch.ones(2)
        assert str(fl.summary({"a": w, "b": w, "n": torch.arange(3)})) == (
            "path   shape  dtype    count  kind\n"
            "['a']  (2,)   float32  2      parameter\n"
            "['b']  (2,)   float32  2      tied to ['a']\n"
            "['n']  (3,)   int64    3      buffer\n"
            "Total: 2 tensors, 2 parameters, 3 non-trainable, 32 bytes"
        )

    def test_a_buffer_that_is_tied_to_a_parameter_is_one(self) -> None:
        @fl.functor(buffers=("mean",))
        class Tied:
            def __init__(self, w: Tensor) -> None:
                self.mean, self.w = w, w

        assert str(fl.summary(Tied(torch.ones(1)))).splitlines()[1:3] == [
            ".mean  (1,)   float32  1      parameter",
            ".w     (1,)   float32  1      tied to .mean",
        ]

    def test_large_models_are_counted_without_memory(self) -> None:
        with torch.device("meta"):
            model = fl.Dense(100_000, 100_000)
        assert str(fl.summary(model)).endswith("Total: 2 tensors, 10_000_100_000 parameters, 37.253 GiB")

    def test_a_tree_without_tensors(self) -> None:
        assert str(fl.summary([1])).endswith("Total: 0 tensors, 0 parameters, 0 bytes")

    def test_the_rows_are_there_to_compute_with(self) -> None:
        found = fl.summary(fl.Dense(3, 2))
        assert sum(row.numel for row in found.tensors) == 8
        assert found.tensors[0].shape == (2, 3)
        assert found.layers is None

    def test_the_prompt_shows_what_print_shows(self) -> None:
        found = fl.summary(fl.Dense(3, 2))
        assert repr(found) == str(found)


class TestLayers:
    def test_each_layer_has_its_output_counts_and_bytes(self) -> None:
        model = fl.Chain(fl.Conv((3, 3), 3, 8, fl.relu), fl.BatchNorm(8), fl.Dropout(0.5), fl.flatten)
        assert str(fl.summary(model, torch.zeros(2, 3, 5, 5))).split("\n\n")[0] == (
            "path        layer                     output        parameters  non-trainable  bytes\n"
            "(root)      Chain                     (2, 72)       240         16             1.000 KiB\n"
            ".layers[0]  Conv((3, 3), 3, 8, relu)  (2, 8, 3, 3)  224         0              896 bytes\n"
            ".layers[1]  BatchNorm(8)              (2, 8, 3, 3)  16          16             128 bytes\n"
            ".layers[2]  Dropout(0.5)              (2, 8, 3, 3)\n"
            ".layers[3]  flatten                   (2, 72)"
        )

    def test_the_table_of_tensors_and_the_totals_follow(self) -> None:
        model = fl.Dense(3, 2)
        assert str(fl.summary(model, (1, 3))).endswith("\n\n" + str(fl.summary(model)))

    def test_a_layer_called_again_is_one_row_that_says_so(self) -> None:
        found = fl.summary(Twice(fl.Dense(3, 3)), (2, 3)).layers
        assert [(row.path, row.output, row.parameters) for row in found] == [
            ("", "(2, 3)", 12),
            (".cell", "(2, 3) ×2", 12),
        ]

    def test_outputs_of_a_layer_that_differ_are_all_there(self) -> None:
        model = calls(lambda m, x: (m["a"](x), m["a"](x), m["a"](x[0])))({"a": fl.Dense(3, 2)})
        assert layers(model, (5, 3))[".layers['a']"][1] == "(5, 2) ×2, then (2,)"

    def test_a_tied_tensor_is_counted_in_the_first_layer_that_holds_it(self) -> None:
        first = fl.Dense(3, 3)
        model = fl.Chain(first, fl.at(fl.Dense(3, 3), ".weight").set(first.weight))
        rows = fl.summary(model, (2, 3)).layers
        assert [(row.parameters, row.tied, row.bytes) for row in rows] == [
            (15, 0, 60),
            (12, 0, 48),
            (3, 9, 12),
        ]
        assert "3 + 9 tied" in str(fl.summary(model, (2, 3)))

    def test_a_layer_at_two_places_is_counted_once(self) -> None:
        layer = fl.Dense(3, 3)
        rows = fl.summary(fl.Chain(layer, layer), (2, 3)).layers
        assert [(row.parameters, row.tied) for row in rows] == [(12, 0), (12, 0), (0, 12)]

    def test_outputs_may_be_trees(self) -> None:
        model = calls(lambda m, x: {"y": m["a"](x), "state": (x, None, "text")})({"a": fl.Dense(3, 2)})
        assert layers(model, (5, 3))[""][1] == "{'y': (5, 2), 'state': ((5, 3), None, 'text')}"

    def test_a_layer_that_is_not_called_has_a_dash(self) -> None:
        model = calls(lambda m, x: m["a"](x))({"a": fl.Dense(3, 2), "b": fl.Chain(fl.Dense(3, 2))})
        assert layers(model, (5, 3)) == {
            "": ("Calling", "(5, 2)"),
            ".layers['a']": ("Dense(3, 2)", "(5, 2)"),
            ".layers['b']": ("Chain", "-"),
            ".layers['b'].layers[0]": ("Dense(3, 2)", "-"),
        }

    def test_what_a_model_maps_inside_has_the_mapped_axis(self) -> None:
        model = calls(lambda m, x: torch.vmap(m[0], in_dims=1)(x))([fl.Dense(3, 2)])
        assert layers(model, (3, 5))[".layers[0]"][1] == "(5, 2)"

    def test_the_mode_is_that_of_the_scope(self) -> None:
        model = calls(lambda _, x: x[: 1 if fl.training() else 2])(None)
        assert layers(model, (5,))[""][1] == "(2,)"
        with fl.mode("train"):
            assert layers(model, (5,))[""][1] == "(1,)"

    def test_a_model_of_a_hundred_billion_parameters(self) -> None:
        with torch.device("meta"):
            model = fl.Chain(*[fl.Dense(100_000, 100_000) for _ in range(10)])
        found = fl.summary(model, (1024, 100_000))
        assert found.layers[-1].output == "(1024, 100000)"
        assert "100_001_000_000 parameters" in found.totals

    def test_a_module_of_torch_without_memory(self) -> None:
        with torch.device("meta"):
            module = nn.Sequential(nn.Linear(10**6, 10**6), nn.ReLU(inplace=True), nn.Linear(10**6, 7))
        assert layers(fl.from_torch(module), (10**5, 10**6))["[2]"][1] == "(100000, 7)"

    def test_an_output_that_is_no_tree_is_itself(self) -> None:
        class Cache:
            def __init__(self, x: Tensor) -> None:
                self.x = x

            def __repr__(self) -> str:
                return "Cache()"

        model = calls(lambda _, x: (x, Cache(x)))(None)
        assert layers(model, (2, 3))[""][1] == "((2, 3), Cache())"

    def test_inputs_may_have_names(self) -> None:
        mask = torch.ones(3, 3, dtype=torch.bool)
        assert layers(fl.MultiHeadAttention(4, 2), (1, 3, 4), mask=mask)[""][1] == "(1, 3, 4)"

    def test_the_layer_inside_a_weight_norm_has_its_output(self) -> None:
        assert layers(fl.WeightNorm(fl.Dense(3, 2)), (5, 3)) == {
            "": ("WeightNorm", "(5, 2)"),
            ".layer": ("Dense(3, 2)", "(5, 2)"),
        }

    def test_its_work_grows_with_the_number_of_layers(self) -> None:
        def calls_for(n: int) -> int:
            model = fl.Chain(*[fl.Chain(fl.Dense(4, 4), fl.relu) for _ in range(n)])
            counted = cProfile.Profile()
            counted.runcall(fl.summary, model, (1, 4))
            return sum(entry.callcount for entry in counted.getstats())

        calls_for(2)
        assert calls_for(80) < 2.5 * calls_for(40)

    def test_without_inputs_no_dtype(self) -> None:
        with pytest.raises(ValueError, match="dtype= is that of inputs given by their shape"):
            fl.summary(fl.Dense(3, 2), dtype=torch.float32)

    def test_a_wrong_shape_names_the_layer(self) -> None:
        with pytest.raises(
            fl.LayerError, match=r"\.layers\[1\]: Dense\(5, 2\) got .*\(…, 5\), found \(2, 4\)"
        ):
            fl.summary(fl.Chain(fl.Dense(3, 4), fl.Dense(5, 2)), (2, 3))

    @pytest.mark.parametrize(
        "f",
        [
            lambda x: x if x.sum() > 0 else -x,
            lambda x: x[x > 0],
            lambda x: x * x.sum().item(),
            lambda x: x * float(x.numpy().sum()),
            lambda x: torch.unique(x),
            lambda x: torch.ones(x.argmax().tolist()),
        ],
        ids=["if", "mask", "item", "numpy", "unique", "tolist"],
    )
    def test_a_layer_that_asks_for_values_is_named(self, f: Any) -> None:
        model = fl.Chain(fl.relu, calls(lambda _, x: f(x))(None))
        with pytest.raises(fl.LayerError, match=r"^\.layers\[1\]: .*meta device.*fluxlike\.activations"):
            fl.summary(model, (2, 3))
        with pytest.raises(
            RuntimeError, match=r"summary runs the model on the meta device.*value of a tensor"
        ):
            fl.summary(calls(lambda _, x: f(x))(None), (2, 3))

    @pytest.mark.parametrize(
        ("f", "asked"),
        [
            (lambda x: x * x.sum().item(), r"\(\.item\(\), if, float\(\) or int\(\)\)"),
            (lambda x: x[x > 0], r"\(aten\.nonzero\.default\)"),
            (lambda x: x * float(x.numpy().sum()), r"\(\.numpy\(\) or \.tolist\(\)\)"),
            (lambda x: f"{x.sum():.2f}", r"\(its text in a format\)"),
        ],
        ids=["item", "mask", "numpy", "format"],
    )
    def test_what_asked_for_the_value_and_what_to_do_without_is_said(self, f: Any, asked: str) -> None:
        advice = r"fluxlike\.summary\(model\) without inputs counts"
        with pytest.raises(fl.LayerError, match=rf"^\.layers\[0\]: .*{asked}.*{advice}"):
            fl.summary(fl.Chain(f), (2, 3))

    def test_branches_that_tensors_in_a_trace_do_not_take_are_not_taken(self) -> None:
        model = calls(lambda _, x: x if isinstance(x, FakeTensor) else x * x.sum().item())(None)
        assert layers(model, (2, 3))[""][1] == "(2, 3)"

    def test_what_is_no_model_is_an_error(self) -> None:
        with pytest.raises(TypeError, match="summary calls the model on the inputs, found"):
            fl.summary({"w": torch.ones(1)}, (1,))


class TestNotebooks:
    def test_the_tree_folds_and_has_the_outputs_and_the_kinds(self) -> None:
        w = fl.Dense(2, 2)
        model = fl.Chain(w, fl.BatchNorm(2), fl.at(fl.Dense(2, 2), ".weight").set(w.weight))
        shown = fl.summary(model, (7, 2))._repr_html_()
        assert shown.count("<details") == 4
        for text in ("→ (7, 2)", "4, parameter", "2, buffer", "4, tied to .layers[0].weight"):
            assert text in shown
        assert fl.summary(model).totals in shown

    def test_text_is_escaped(self) -> None:
        assert "<b>" not in fl.summary({"<b>": torch.ones(1)})._repr_html_()
