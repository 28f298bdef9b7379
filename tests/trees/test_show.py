"""Trees in print: a line a layer with its parameters, and the table of all tensors."""

from dataclasses import dataclass
from typing import Any

import attrs
import torch

import fluxlike as fl


@fl.functor
class Affine:
    def __init__(self, scale, shift):
        self.scale, self.shift = scale, shift


class TestRepr:
    def test_a_layer_is_one_line_with_its_parameters(self):
        assert repr(fl.Dense(4, 2, fl.relu)) == "Dense(4, 2, relu)  # 10 parameters"

    def test_a_chain_has_a_line_a_layer_and_totals(self):
        assert repr(fl.Chain(fl.Dense(4, 2), fl.BatchNorm(2), fl.softmax)) == (
            "Chain(\n"
            "  Dense(4, 2),   # 10 parameters\n"
            "  BatchNorm(2),  # 4 parameters, 4 non-trainable\n"
            "  softmax,\n"
            ")                # Total: 6 tensors, 14 parameters, 4 non-trainable, 72 bytes"
        )

    def test_thousands_are_grouped(self):
        assert repr(fl.Dense(784, 128)) == "Dense(784, 128)  # 100_480 parameters"

    def test_a_class_of_ones_own_shows_its_attributes(self):
        assert repr(Affine(torch.ones(2), None)) == "Affine(scale=float32[2], shift=None)  # 2 parameters"

    def test_one_parameter_is_singular(self):
        assert repr(Affine(torch.ones(1), "text")) == "Affine(scale=float32[1], shift='text')  # 1 parameter"

    def test_nesting_is_indented(self):
        assert repr(Affine(fl.Dense(1, 1), torch.ones(1, dtype=torch.float16))) == (
            "Affine(\n"
            "  scale=Dense(1, 1),  # 2 parameters\n"
            "  shift=float16[1],\n"
            ")                     # Total: 3 tensors, 3 parameters, 10 bytes"
        )

    def test_a_tied_tensor_is_counted_once(self):
        w = torch.ones(3)
        assert repr(Affine(w, w)) == "Affine(scale=float32[3], shift=float32[3])  # 3 parameters"
        assert repr(Affine(Affine(w, None), Affine(w, None))).endswith(
            "# Total: 1 tensor, 3 parameters, 12 bytes"
        )

    def test_a_tie_across_a_buffer_counts_as_trainable(self):
        @fl.functor(buffers=("mean",))
        class Tied:
            def __init__(self, w):
                self.mean, self.w = w, w

        assert repr(Tied(torch.ones(3))).endswith("# 3 parameters")

    def test_integers_are_not_trainable(self):
        assert repr(Affine(torch.arange(3), None)).endswith("# 3 non-trainable")

    def test_the_device_is_shown_where_it_is_not_the_cpu(self):
        assert "float32[2] on meta" in repr(Affine(torch.ones(2, device="meta"), None))

    def test_a_pinned_mode_is_shown(self):
        assert repr(fl.testmode(fl.Dropout(0.5))) == "Dropout(0.5)  # test mode"

    def test_gradients_and_states_print(self):
        model = fl.Chain(fl.Dense(2, 1), fl.BatchNorm(1))
        grads = fl.gradient(lambda m, x: m(x).sum(), model, torch.ones(2, 2))
        assert "2 assigned" in repr(grads)
        assert "Adam" in repr(fl.setup(fl.Adam(), model))

    def test_a_subclass_prints_like_its_parent(self):
        class Child(Affine):
            pass

        fl.trainables(Child(torch.ones(1), None))
        assert repr(Child(torch.ones(1), None)) == "Child(scale=float32[1], shift=None)  # 1 parameter"

    def test_a_subclass_prints_before_anything_else_has_seen_it(self):
        class Child(Affine):
            pass

        assert repr(Child(torch.ones(1), None)) == "Child(scale=float32[1], shift=None)  # 1 parameter"
        assert "Child(" in repr(Affine(Child(torch.ones(1), None), None))

    def test_a_repr_of_ones_own_is_kept(self):
        @fl.functor
        class Mine:
            def __repr__(self):
                return "mine"

        assert repr(Mine()) == "mine"

    def test_a_dataclass_prints_as_a_tree(self):
        @fl.functor
        @dataclass
        class Data:
            w: Any

        assert repr(Data(torch.ones(2))) == "Data(w=float32[2])  # 2 parameters"

    def test_an_attrs_class_prints_as_a_tree(self):
        @fl.functor
        @attrs.define
        class Data:
            w: Any

        assert repr(Data(torch.ones(2))) == "Data(w=float32[2])  # 2 parameters"

    def test_an_empty_chain_prints(self):
        assert repr(fl.Chain()).startswith("Chain(")


class TestSummary:
    def test_ties_are_named_and_counted_once(self):
        w = torch.ones(2)
        assert fl.summary({"a": w, "b": w, "n": torch.arange(3)}) == (
            "path   shape  dtype    count  kind\n"
            "['a']  (2,)   float32  2      parameter\n"
            "['b']  (2,)   float32  2      tied to ['a']\n"
            "['n']  (3,)   int64    3      buffer\n"
            "Total: 2 tensors, 2 parameters, 3 non-trainable, 32 bytes"
        )

    def test_a_buffer_that_is_tied_to_a_parameter_is_one(self):
        @fl.functor(buffers=("mean",))
        class Tied:
            def __init__(self, w):
                self.mean, self.w = w, w

        assert fl.summary(Tied(torch.ones(1))).splitlines()[1:3] == [
            ".mean  (1,)   float32  1      parameter",
            ".w     (1,)   float32  1      tied to .mean",
        ]

    def test_large_models_are_counted_without_memory(self):
        with torch.device("meta"):
            model = fl.Dense(100_000, 100_000)
        assert fl.summary(model).endswith("Total: 2 tensors, 10_000_100_000 parameters, 37.253 GiB")

    def test_a_tree_without_tensors(self):
        assert fl.summary([1]).endswith("Total: 0 tensors, 0 parameters, 0 bytes")
