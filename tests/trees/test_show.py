"""Trees in print: a line a layer with its parameters, in text and in notebooks."""

import html
import re
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from typing import Any

import attrs
import numpy as np
import torch
from hypothesis import given, settings

import fluxlike as fl
from tests.properties.strategies import trees


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

    def test_a_0d_tensor_is_shown_by_its_value(self):
        assert "scale=float32(0.5)" in repr(Affine(torch.tensor(0.5), None))

    def test_a_named_chain_shows_its_names(self):
        assert "head=Dense(2, 1)" in repr(fl.Chain(body=fl.Dense(2, 2), head=fl.Dense(2, 1)))

    def test_what_is_no_tree_says_so_and_does_not_raise(self):
        class Unregistered:
            def __init__(self):
                self.weight = torch.ones(1)

            def __call__(self, x):
                return x

        assert "Unregistered, which is not registered" in repr(fl.Chain(Unregistered()))

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

    def test_a_constant_whose_repr_raises_is_said_to(self):
        class Broken:
            def __repr__(self):
                raise RuntimeError("no")

        assert re.fullmatch(
            r"Affine\(\n  scale=<.*Broken, whose repr raises a RuntimeError>,\n  shift=float32\[1\],\n\).*",
            repr(Affine(Broken(), torch.ones(1))),
        )
        assert "whose repr raises" in Affine(Broken(), None)._repr_html_()

    def test_a_layer_inside_whose_repr_raises_is_said_to(self):
        @fl.functor
        class Broken:
            def __repr__(self):
                raise RuntimeError("no")

            def extra_repr(self):
                raise RuntimeError("no")

        class Described(Affine):
            def extra_repr(self):
                raise IndexError("no")

        assert "Broken, whose repr raises a RuntimeError>" in repr(Affine(Broken(), 1))
        assert repr(Described(1, 2)) == "Described(scale=1, shift=2)"

    def test_a_partial_shows_its_function_by_name_and_what_it_was_given(self):
        assert repr(fl.Dense(1, 1, partial(fl.softmax, dim=-1))) == (
            "Dense(1, 1, partial(softmax, dim=-1))  # 2 parameters"
        )
        nested = partial(partial, fl.tanh, f=fl.relu, mode="text")
        assert repr(fl.Chain(nested)) == "Chain(partial(partial, tanh, f=relu, mode='text'))"

    def test_an_array_of_numpy_shows_its_dtype_and_shape(self):
        assert repr(Affine(np.ones((40, 50)), 1)) == "Affine(scale=float64[40, 50] in numpy, shift=1)"

    def test_a_constant_of_several_lines_is_one_line(self):
        assert repr(Affine(torch.nn.Sequential(torch.nn.ReLU()), 1)).startswith(
            "Affine(scale=Sequential( (0): ReLU() ), shift=1)"
        )
        long = repr(Affine(torch.nn.Sequential(*[torch.nn.ReLU()] * 99), fl.Dense(1, 1)))
        assert "…,\n  shift=Dense(1, 1)," in long

    def test_names_can_neither_colour_nor_move_a_terminal(self):
        shown = repr(fl.Chain(**{"a\x1b[31m\n": fl.Dense(1, 1)}))
        assert "  a\\x1b[31m\\n=Dense(1, 1),  # 2 parameters\n" in shown

    def test_a_layer_whose_arguments_say_all_is_one_line(self):
        assert repr(fl.LSTM(3, 4, num_layers=2)) == "LSTM(3, 4, num_layers=2)  # 304 parameters"
        grads = fl.gradient(lambda m: m(torch.ones(1, 2, 3)).sum(), fl.LSTM(3, 4))
        assert "LSTM(3, 4)" in repr(grads)
        read = Reader(fl.LSTM(3, 4)._repr_html_()).texts()
        assert read[:4] == [
            "LSTM(3, 4) 144 parameters",
            "cells = (…) 144 parameters",
            "LSTMCell(3, 4) 144 parameters",
            "weight_ih = float32[16, 3]",
        ]

    def test_an_empty_chain_prints(self):
        assert repr(fl.Chain()).startswith("Chain(")


class Reader(HTMLParser):
    """The lines of a folding tree: (depth, text), and whether each tag is closed."""

    def __init__(self, html):
        super().__init__()
        self.lines, self.open, self.tags = [], [], set()
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)
        if tag in ("summary", "div"):
            self.lines.append([self.open.count("details"), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.lines[-1][1] += data

    def texts(self):
        return [" ".join(text.split()) for _, text in self.lines if text.strip()]


class TestNotebooks:
    def test_a_model_is_a_folding_tree_with_the_counts_of_its_repr(self):
        read = Reader(fl.Chain(fl.Dense(4, 2), fl.BatchNorm(2), fl.softmax)._repr_html_())
        assert read.texts() == [
            "Chain 6 tensors, 14 parameters, 4 non-trainable, 72 bytes",
            "Dense(4, 2) 10 parameters",
            "weight = float32[2, 4]",
            "bias = float32[2]",
            "activation = identity",
            "BatchNorm(2) 4 parameters, 4 non-trainable",
            "weight = float32[2]",
            "bias = float32[2]",
            "running_mean = float32[2]",
            "running_var = float32[2]",
            "num_batches_tracked = None",
            "activation = identity",
            "softmax",
        ]

    @given(trees())
    @settings(deadline=None, max_examples=50)
    def test_every_line_of_the_repr_is_in_it(self, tree):
        model = Affine(tree, fl.Dense(2, 1))
        shown = html.unescape(re.sub(r"<[^>]*>", " ", model._repr_html_()))
        for comment in re.findall(r"  # (.*)", repr(model)):
            assert comment.removeprefix("Total: ") in shown

    def test_nothing_in_it_runs_or_is_fetched_or_colours(self):
        shown = fl.Chain(fl.Dense(4, 2), fl.Chain(fl.Dense(2, 2)))._repr_html_()
        assert Reader(shown).tags == {"div", "span", "details", "summary"}
        for word in ("script", "http", "src=", "href", "onclick", ";color", "background"):
            assert word not in shown

    def test_text_is_escaped(self):
        shown = Affine("<b>&</b>", fl.Chain(**{"<i>": fl.Dense(1, 1)}))._repr_html_()
        assert "<b>" not in shown
        assert "<i>" not in shown
        assert "&lt;b&gt;&amp;" in shown
        assert "&lt;i&gt;=Dense(1, 1)" in shown

    def test_a_small_model_is_open_and_a_large_one_shows_its_first_level(self):
        small = fl.Chain(fl.Chain(fl.Dense(1, 1)))._repr_html_()
        large = fl.Chain(*[fl.Chain(*[fl.Dense(1, 1)] * 10)] * 10)._repr_html_()
        assert small.count("<details open>") == 2
        assert large.count("<details open>") == 1

    def test_a_class_of_ones_own_has_it_and_its_subclass(self):
        class Child(Affine):
            pass

        assert "Affine(scale=float32[1], shift=None)" in Affine(torch.ones(1), None)._repr_html_()
        assert "Child(scale=float32[1], shift=None)" in Child(torch.ones(1), None)._repr_html_()

    def test_who_writes_a_repr_is_shown_by_it(self):
        @fl.functor
        class Mine:
            def __repr__(self):
                return "mine"

        class Child(Affine):
            def __repr__(self):
                return "child"

        assert not hasattr(Mine(), "_repr_html_")
        assert Child(torch.ones(1), None)._repr_html_() is None

    def test_who_writes_html_is_shown_by_it(self):
        @fl.functor
        class Mine:
            def _repr_html_(self):
                return "<b>mine</b>"

        assert Mine()._repr_html_() == "<b>mine</b>"

    def test_what_is_no_tree_says_so(self):
        loop = Affine(None, None)
        loop.scale = [fl.Dense(1, 1), loop]
        assert "no tree: .scale[1] is the tree itself again" in loop._repr_html_()
        assert "no tree: .scale[1] is the tree itself again" in repr(loop)

    def test_gradients_and_states_show(self):
        model = fl.Chain(fl.Dense(2, 1), fl.BatchNorm(1))
        grads = fl.gradient(lambda m, x: m(x).sum(), model, torch.ones(2, 2))
        assert "2 assigned" in grads._repr_html_()
