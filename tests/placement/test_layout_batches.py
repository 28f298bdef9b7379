"""Whole batches between Julia's conventions and ours, by rules."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import fluxlike as fl

WHCN, HWCN = "WHCN", "HWCN"


def numbered(*shape):
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


class TestConventions:
    def test_flux_reverses_all_axes(self):
        x = numbered(5, 4, 3, 2)
        y = fl.batch_first(x, WHCN)
        assert y.shape == (2, 3, 4, 5)
        assert y[1, 2, 3, 4] == x[4, 3, 2, 1]
        assert fl.batch_first(numbered(3, 7, 2), WHCN).shape == (2, 7, 3)
        assert fl.batch_first(numbered(6, 5, 4, 3, 2), WHCN).shape == (2, 3, 4, 5, 6)
        assert fl.batch_first(torch.zeros(1, 2, 3, 4, 5, 6, 7), WHCN).shape == (7, 6, 5, 4, 3, 2, 1)

    def test_pytorchtraining_moves_the_axes_of_images(self):
        x = numbered(4, 5, 3, 2)
        y = fl.batch_first(x, HWCN)
        assert y.shape == (2, 3, 4, 5)
        assert y[1, 2, 3, 4] == x[3, 4, 2, 1]

    @pytest.mark.parametrize(
        ("there", "here"),
        [((3, 2), (2, 3)), ((7, 5, 2), (2, 7, 5)), ((3, 4, 5, 6, 2), (2, 3, 4, 5, 6))],
    )
    def test_pytorchtraining_brings_the_last_of_other_axes_to_the_front(self, there, here):
        assert fl.batch_first(torch.zeros(there), HWCN).shape == here

    def test_they_differ_by_a_spatial_transpose(self):
        x = numbered(4, 5, 3, 2)
        assert torch.equal(fl.batch_first(x, WHCN), fl.batch_first(x, HWCN).transpose(2, 3))

    def test_flux_is_the_default(self):
        assert fl.batch_first(torch.zeros(5, 4, 3, 2)).shape == (2, 3, 4, 5)
        assert fl.batch_last(torch.zeros(2, 3, 4, 5)).shape == (5, 4, 3, 2)

    def test_an_unknown_one_names_those_that_are(self):
        with pytest.raises(ValueError, match=r"convention='NHWC': write one of 'WHCN', 'HWCN'; .*LayoutRule"):
            fl.batch_first(torch.zeros(2, 2), "NHWC")

    @pytest.mark.parametrize("convention", [WHCN, HWCN])
    def test_a_column_major_array_is_the_bytes_that_julia_holds(self, convention):
        x = np.asfortranarray(np.random.default_rng(0).random((5, 4, 3, 2)))
        y = fl.batch_first(x, convention)
        assert np.shares_memory(x, y)
        assert y.flags.c_contiguous == (convention == WHCN)


@fl.functor
@dataclass
class Batch:
    image: Any
    label: Any


class TestTrees:
    @pytest.mark.parametrize("convention", [WHCN, HWCN])
    def test_every_array_moves_and_all_else_stays(self, convention):
        names, weights = ("a", "b"), torch.ones(2)
        batch = {
            "data": Batch(np.zeros((5, 4, 3, 2)), weights),
            "x": [torch.zeros(3, 2)],
            "names": names,
            "n": 2,
        }
        here = fl.batch_first(batch, convention)
        assert type(here["data"]) is Batch
        assert here["data"].image.shape[:2] == (2, 3)
        assert here["x"][0].shape == (2, 3)
        assert here["data"].label is weights
        assert (here["names"], here["n"]) == (names, 2)
        assert batch["data"].image.shape == (5, 4, 3, 2)

    def test_single_numbers_and_one_axis_stay(self):
        batch = [torch.tensor(1.0), np.array(2.0), np.float32(3), torch.ones(4), np.ones(4), None]
        assert all(a is b for a, b in zip(fl.batch_first(batch), batch, strict=True))

    def test_one_array_at_two_places_stays_one(self):
        x, y = torch.zeros(3, 2), np.zeros((3, 2))
        here = fl.batch_first({"a": x, "b": [x, y], "c": y})
        assert here["a"] is here["b"][0]
        assert here["b"][1] is here["c"]

    def test_one_array_under_two_rules_is_an_error_that_names_both_places(self):
        x = torch.zeros(3, 2)
        rule = fl.LayoutRule("NC", "NC", key="b")
        with pytest.raises(ValueError, match=r"\['a'\] and \['b'\] are one array, .* \(2, 3\) and \(3, 2\)"):
            fl.batch_first({"a": x, "b": x}, rules=[rule])

    def test_all_arrays_are_views(self):
        batch = {"t": torch.zeros(5, 4, 3, 2), "n": np.zeros((3, 2))}
        for convention in (WHCN, HWCN):
            here = fl.batch_first(batch, convention)
            assert here["t"].data_ptr() == batch["t"].data_ptr()
            here["n"][1, 2] += 1
        assert batch["n"][2, 1] == 2

    def test_a_batch_stays_differentiable(self):
        x = torch.ones(3, 2, requires_grad=True)
        (grad,) = torch.autograd.grad(fl.batch_first([x])[0].sum(), x)
        assert torch.equal(grad, torch.ones(3, 2))


class TestRules:
    def test_a_rule_may_be_about_the_dtype(self):
        rule = fl.LayoutRule("NC", "NC", dtype=(torch.int64, np.uint8))
        batch = [np.zeros((3, 2), t) for t in ("int64", "uint8", "float32")] + [numbered(3, 2)]
        shapes = [x.shape for x in fl.batch_first(batch, rules=[rule])]
        assert shapes == [(3, 2), (3, 2), (2, 3), (3, 2)]

    @pytest.mark.parametrize(
        ("kind", "kept"),
        [
            ("tensor", ["tensor"]),
            ("numpy", ["C", "F", "neither"]),
            ("C", ["C"]),
            ("F", ["F"]),
            (np.ndarray, ["C", "F", "neither"]),
        ],
    )
    def test_a_rule_may_be_about_the_kind_of_array(self, kind, kept):
        batch = {
            "tensor": torch.zeros(4, 3, 2),
            "C": np.zeros((4, 3, 2)),
            "F": np.zeros((4, 3, 2), order="F"),
            "neither": np.zeros((8, 6, 4))[::2, ::2, ::2],
        }
        rule = fl.LayoutRule("ABN", "NAB", kind=kind)
        here = fl.batch_first(batch, rules=[rule])
        assert [k for k, x in here.items() if x.shape == (2, 4, 3)] == kept
        again = fl.batch_last(here, rules=[rule])
        assert {k: x.shape for k, x in again.items()} == {k: x.shape for k, x in batch.items()}

    def test_two_ways_back_are_an_error_that_names_both(self):
        rule = fl.LayoutRule("NC", "NC", kind="C")
        here = fl.batch_first([np.zeros((3, 2), order="F"), np.zeros((2, 3))], rules=[rule])
        assert [x.shape for x in here] == [(2, 3), (2, 3)]
        with pytest.raises(
            ValueError,
            match=r"\[0\] of shape \(2, 3\) may come from \(2, 3\) by .*kind='C'\) or from \(3, 2\)",
        ):
            fl.batch_last(here, rules=[rule])

    @pytest.mark.parametrize("key", ["table", "['in']['table']"])
    def test_a_rule_may_be_about_the_key_or_the_path(self, key):
        batch = {"in": {"table": torch.zeros(3, 2), "x": torch.zeros(3, 2)}}
        here = fl.batch_first(batch, rules=[fl.LayoutRule("NC", "NC", key=key)])
        assert (here["in"]["table"].shape, here["in"]["x"].shape) == ((3, 2), (2, 3))

    def test_a_key_may_be_an_index_or_an_attribute(self):
        rules = [fl.LayoutRule("NC", "NC", key=k) for k in (1, "label")]
        assert fl.batch_first([torch.zeros(3, 2), torch.ones(3, 2)], rules=rules)[1].shape == (3, 2)
        assert fl.batch_first(Batch(torch.zeros(3, 2), torch.ones(3, 2)), rules=rules).label.shape == (3, 2)

    def test_a_rule_may_have_a_predicate_of_path_and_array(self):
        seen = []
        rule = fl.LayoutRule("NC", "NC", when=lambda path, x: seen.append(path) or x.shape[0] > 5)
        batch = {"long": np.zeros((9, 2)), "short": np.zeros((3, 2))}
        here = fl.batch_first(batch, rules=[rule])
        assert (here["long"].shape, here["short"].shape) == ((9, 2), (2, 3))
        assert seen == ["['long']", "['short']"]

    def test_a_rule_is_about_its_number_of_axes_only(self):
        rule = fl.LayoutRule("NC", "NC")
        assert fl.batch_first([torch.zeros(3, 2), torch.zeros(4, 3, 2)], rules=[rule])[1].shape == (2, 3, 4)

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: fl.LayoutRule("NC", "NL"), ValueError, "'NC' and 'NL'"),
            (
                lambda: fl.LayoutRule("NC", "CN", kind="jax"),
                ValueError,
                "kind='jax': write one of tensor, numpy",
            ),
            (lambda: fl.LayoutRule("NC", "CN", dtype="flot"), TypeError, "flot"),
            (lambda: fl.batch_first([], rules=[("NC", "CN")]), None, None),
            (
                lambda: fl.batch_first(torch.zeros(2, 2), rules=[("NC", "CN")]),
                TypeError,
                "a rule is a fluxlike",
            ),
        ],
    )
    def test_a_wrong_rule_says_what_is_wrong(self, make, error, message):
        if error is None:
            make()
            return
        with pytest.raises(error, match=message):
            make()

    def test_a_rule_prints_as_it_is_written(self):
        assert repr(fl.LayoutRule("FTN", "NTF", key="x")) == "LayoutRule('FTN', 'NTF', key='x')"


class TestOrder:
    """The nearest rule wins, then the one with more conditions, then the latest."""

    near = fl.LayoutRule("ABN", "NAB")
    far = fl.LayoutRule("ABN", "BAN")

    def first(self, *rules):
        return fl.batch_first(torch.zeros(1, 2, 3), rules=rules).shape

    def test_the_latest_of_two_wins(self):
        assert self.first(self.near, self.far) == (2, 1, 3)
        assert self.first(self.far, self.near) == (3, 1, 2)

    def test_the_more_specific_of_two_wins(self):
        specific = fl.LayoutRule("ABN", "ABN", kind="tensor")
        assert self.first(specific, self.near) == (1, 2, 3)

    def test_a_rule_of_the_call_comes_before_a_block_before_a_registered_one_before_the_convention(self):
        x = torch.zeros(1, 2, 3)
        rule = fl.layout_rule("ABN", "NAB", kind="tensor", dtype=torch.float32)
        try:
            assert fl.batch_first(x).shape == (3, 1, 2)
            with fl.layout_rules(fl.LayoutRule("ABN", "ABN")):
                assert fl.batch_first(x).shape == (1, 2, 3)
                with fl.layout_rules(fl.LayoutRule("ABN", "ANB")):
                    assert fl.batch_first(x).shape == (1, 3, 2)
                    assert fl.batch_first(x, rules=[self.far]).shape == (2, 1, 3)
                assert fl.batch_first(x).shape == (1, 2, 3)
        finally:
            rule.remove()
        assert fl.batch_first(x).shape == (3, 2, 1)

    def test_a_rule_is_removed_once(self):
        rule = fl.layout_rule("ABN", "NAB")
        rule.remove()
        with pytest.raises(ValueError, match="is not registered"):
            rule.remove()

    def test_a_block_ends_with_an_error_too(self):
        with pytest.raises(KeyError), fl.layout_rules(fl.LayoutRule("AN", "AN")):
            raise KeyError
        assert fl.batch_first(torch.zeros(3, 2)).shape == (2, 3)

    def test_a_block_is_of_its_thread(self):
        shapes = []
        with fl.layout_rules(fl.LayoutRule("AN", "AN")):
            thread = threading.Thread(target=lambda: shapes.append(fl.batch_first(torch.zeros(3, 2)).shape))
            thread.start()
            thread.join()
        assert shapes == [(2, 3)]


class TestTheWayBack:
    def test_conditions_are_about_the_array_as_it_is_in_julia(self):
        rule = fl.LayoutRule("CN", "NC", when=lambda path, x: x.shape[0] == 3)
        other = fl.LayoutRule("CN", "CN")
        batch = [torch.zeros(3, 2), torch.zeros(2, 3)]
        here = fl.batch_first(batch, rules=[other, rule])
        assert [x.shape for x in here] == [(2, 3), (2, 3)]
        with pytest.raises(
            ValueError, match=r"\[0\] of shape \(2, 3\) may come from \(3, 2\) by .* or from \(2, 3\)"
        ):
            fl.batch_last(here, rules=[other, rule])

    def test_it_is_told_by_a_key(self):
        rules = [fl.LayoutRule("CN", "CN", key="table")]
        batch = {"table": torch.zeros(3, 2), "x": torch.zeros(3, 2)}
        again = fl.batch_last(fl.batch_first(batch, rules=rules), rules=rules)
        assert {k: x.shape for k, x in again.items()} == {"table": (3, 2), "x": (3, 2)}

    def test_memory_comes_back_too(self):
        x = np.asfortranarray(np.random.default_rng(0).random((5, 4, 3, 2)))
        again = fl.batch_last(fl.batch_first(x))
        assert again.strides == x.strides
        assert again.ctypes.data == x.ctypes.data


def test_a_model_takes_a_batch_from_julia():
    images = np.asfortranarray(np.random.default_rng(0).random((8, 6, 3, 4)).astype(np.float32))
    x = torch.from_numpy(fl.batch_first({"x": images})["x"])
    assert fl.Conv((3, 3), 3, 2)(x).shape == (4, 2, 4, 6)
