"""Whole batches between Julia's conventions and ours, by rules."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import fluxlike as fl
from fluxlike.placement.layout_rules import CONVENTIONS

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
        with pytest.raises(
            ValueError, match=r"convention='NHWC': write one of 'WHCN', 'HWCN'; .*layout_rule"
        ):
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
    @pytest.mark.parametrize("convention", CONVENTIONS)
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
        rule = fl.layout_rule("NC", "NC", key="b")
        with pytest.raises(ValueError, match=r"\['a'\] and \['b'\] are one array, .* \(2, 3\) and \(3, 2\)"):
            fl.batch_first({"a": x, "b": x}, rules=[rule])

    def test_all_arrays_are_views(self):
        batch = {"t": torch.zeros(5, 4, 3, 2), "n": np.zeros((3, 2))}
        for convention in CONVENTIONS:
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
        rule = fl.layout_rule("NC", "NC", dtype=(torch.int64, np.uint8))
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
        rule = fl.layout_rule("ABN", "NAB", kind=kind)
        here = fl.batch_first(batch, rules=[rule])
        assert [k for k, x in here.items() if x.shape == (2, 4, 3)] == kept

    @pytest.mark.parametrize("kind", ["tensor", "numpy", np.ndarray, torch.Tensor])
    def test_a_kind_that_an_array_keeps_is_told_on_the_way_back(self, kind):
        batch = {"tensor": torch.zeros(4, 3, 2), "array": np.zeros((4, 3, 2))}
        rule = fl.layout_rule("ABN", "NAB", kind=kind)
        again = fl.batch_last(fl.batch_first(batch, rules=[rule]), rules=[rule])
        assert [x.shape for x in again.values()] == [(4, 3, 2), (4, 3, 2)]

    @pytest.mark.parametrize("kind", ["C", "F"])
    def test_an_order_in_memory_is_not_told_on_the_way_back(self, kind):
        rule = fl.layout_rule("ABN", "NAB", kind=kind)
        here = fl.batch_first(np.zeros((4, 3, 2), order=kind), rules=[rule])
        with pytest.raises(ValueError, match=r"may come from \(4, 3, 2\) by .* or from \(3, 4, 2\)"):
            fl.batch_last(here, rules=[rule])

    def test_two_ways_back_are_an_error_that_names_both(self):
        rule = fl.layout_rule("NC", "NC", kind="C")
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
        here = fl.batch_first(batch, rules=[fl.layout_rule("NC", "NC", key=key)])
        assert (here["in"]["table"].shape, here["in"]["x"].shape) == ((3, 2), (2, 3))

    def test_a_key_may_be_an_index_or_an_attribute(self):
        index, name = (fl.layout_rule("NC", "NC", key=k) for k in (1, "label"))
        assert fl.batch_first([torch.zeros(3, 2), torch.ones(3, 2)], rules=[index])[1].shape == (3, 2)
        batch = Batch(torch.zeros(3, 2), torch.ones(3, 2))
        assert fl.batch_first(batch, rules=[name]).label.shape == (3, 2)

    def test_the_key_1_is_not_the_key_true(self):
        batch = {True: torch.zeros(3, 2), "b": [0, torch.zeros(3, 2)]}
        here = fl.batch_first(batch, rules=[fl.layout_rule("NC", "NC", key=1)])
        assert (here[True].shape, here["b"][1].shape) == ((2, 3), (3, 2))
        here = fl.batch_first(batch, rules=[fl.layout_rule("NC", "NC", key=True)])
        assert (here[True].shape, here["b"][1].shape) == ((3, 2), (2, 3))

    @pytest.mark.parametrize("move", [fl.batch_first, fl.batch_last])
    def test_a_key_that_is_nowhere_in_the_batch_is_an_error(self, move):
        rule = fl.layout_rule("NC", "NC", key="lable")
        with pytest.raises(
            ValueError, match=r"has no 'lable', which layout_rule.* it has \['label'\], \['x'\]"
        ):
            move({"x": torch.zeros(3, 2), "label": torch.zeros(3)}, rules=[rule])
        with rule:
            assert move({"x": torch.zeros(3, 2)})["x"].shape == (2, 3)

    def test_a_rule_may_have_a_predicate_of_path_and_array(self):
        seen = []
        rule = fl.layout_rule("NC", "NC", when=lambda path, x: seen.append(path) or x.shape[0] > 5)
        batch = {"long": np.zeros((9, 2)), "short": np.zeros((3, 2))}
        here = fl.batch_first(batch, rules=[rule])
        assert (here["long"].shape, here["short"].shape) == ((9, 2), (2, 3))
        assert seen == ["['long']", "['short']"]

    def test_a_rule_is_about_its_number_of_axes_only(self):
        rule = fl.layout_rule("NC", "NC")
        assert fl.batch_first([torch.zeros(3, 2), torch.zeros(4, 3, 2)], rules=[rule])[1].shape == (2, 3, 4)

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: fl.layout_rule("NC", "NL"), ValueError, "'NC' and 'NL'"),
            (
                lambda: fl.layout_rule("NC", "CN", kind="jax"),
                ValueError,
                "kind='jax': write one of tensor, numpy",
            ),
            (
                lambda: fl.layout_rule("NC", "CN", dtype="flot"),
                TypeError,
                "dtype='flot': write a dtype of torch or numpy",
            ),
            (lambda: fl.batch_first([], rules=[("NC", "CN")]), TypeError, "a rule is a fluxlike"),
            (
                lambda: fl.batch_first([], rules=fl.layout_rule("NC", "CN")),
                TypeError,
                r"rules= is one rule; write a list of them, rules=\[layout_rule\('NC', 'CN'\)\]",
            ),
        ],
    )
    def test_a_wrong_rule_says_what_is_wrong(self, make, error, message):
        with pytest.raises(error, match=message):
            make()

    @pytest.mark.parametrize(
        ("dtype", "kept"),
        [
            ("float32", torch.float32),
            ("torch.float32", torch.float32),
            ("bfloat16", torch.bfloat16),
            ("torch.bfloat16", torch.bfloat16),
            (float, torch.float64),
            ("float", torch.float64),
            (np.float32, torch.float32),
        ],
    )
    def test_a_dtype_may_be_written_as_torch_or_numpy_do(self, dtype, kept):
        rule = fl.layout_rule("NC", "NC", dtype=dtype)
        for there in (torch.float32, torch.float64, torch.bfloat16):
            shape = fl.batch_first(torch.zeros(3, 2, dtype=there), rules=[rule]).shape
            assert shape == ((3, 2) if there == kept else (2, 3))

    def test_a_rule_prints_as_it_is_written(self):
        assert repr(fl.layout_rule("FTN", "NTF", key="x")) == "layout_rule('FTN', 'NTF', key='x')"
        rule = fl.layout_rule("CN", "NC", dtype=torch.int32, kind="C")
        assert repr(rule) == "layout_rule('CN', 'NC', dtype='int32', kind='C')"
        assert repr(fl.layout_rule("CN", "NC", dtype=[bool, "f4"])) == (
            "layout_rule('CN', 'NC', dtype=['bool', 'float32'])"
        )


class TestOrder:
    """The nearest rule wins, then the one with more conditions, then the latest."""

    near = fl.layout_rule("ABN", "NAB")
    far = fl.layout_rule("ABN", "BAN")

    def first(self, *rules):
        return fl.batch_first(torch.zeros(1, 2, 3), rules=rules).shape

    def test_the_latest_of_two_wins(self):
        assert self.first(self.near, self.far) == (2, 1, 3)
        assert self.first(self.far, self.near) == (3, 1, 2)

    def test_the_more_specific_of_two_wins(self):
        specific = fl.layout_rule("ABN", "ABN", kind="tensor")
        assert self.first(specific, self.near) == (1, 2, 3)

    def test_a_rule_of_the_call_comes_before_a_block_before_a_registered_one_before_the_convention(self):
        x = torch.zeros(1, 2, 3)
        rule = fl.layout_rule("ABN", "NAB", kind="tensor", dtype=torch.float32).register()
        try:
            assert fl.batch_first(x).shape == (3, 1, 2)
            with fl.layout_rule("ABN", "ABN"):
                assert fl.batch_first(x).shape == (1, 2, 3)
                with fl.layout_rule("ABN", "ANB"):
                    assert fl.batch_first(x).shape == (1, 3, 2)
                    assert fl.batch_first(x, rules=[self.far]).shape == (2, 1, 3)
                assert fl.batch_first(x).shape == (1, 2, 3)
        finally:
            rule.remove()
        assert fl.batch_first(x).shape == (3, 2, 1)

    def test_a_rule_is_registered_and_removed_once(self):
        rule = fl.layout_rule("ABN", "NAB").register()
        with pytest.raises(ValueError, match="is registered already"):
            rule.register()
        rule.remove()
        with pytest.raises(ValueError, match="is not registered"):
            rule.remove()


class TestBlocks:
    def test_a_block_ends_with_an_error_too(self):
        with pytest.raises(KeyError), fl.layout_rule("AN", "AN"):
            raise KeyError
        assert fl.batch_first(torch.zeros(3, 2)).shape == (2, 3)

    def test_one_rule_may_be_in_two_blocks(self):
        rule = fl.layout_rule("AN", "AN")
        with rule:
            with rule:
                assert fl.batch_first(torch.zeros(3, 2)).shape == (3, 2)
            assert fl.batch_first(torch.zeros(3, 2)).shape == (3, 2)
        assert fl.batch_first(torch.zeros(3, 2)).shape == (2, 3)

    def test_a_block_is_of_its_thread(self):
        shapes = []
        with fl.layout_rule("AN", "AN"):
            thread = threading.Thread(target=lambda: shapes.append(fl.batch_first(torch.zeros(3, 2)).shape))
            thread.start()
            thread.join()
        assert shapes == [(2, 3)]

    def test_threads_may_register_and_open_blocks_at_once(self):
        """Each sees its own rules, none is lost, and none is left over."""
        shared = fl.layout_rule("AN", "AN", key="shared")
        wrong = []

        def work(number):
            start.wait()
            for _ in range(100):
                with fl.layout_rule("AN", "AN", key=number).register() as rule, shared:
                    here = fl.batch_first({number: torch.zeros(3, 2), "shared": torch.zeros(3, 2)})
                    wrong.extend(x.shape for x in here.values() if x.shape != (3, 2))
                rule.remove()
                if fl.batch_first({"shared": torch.zeros(3, 2)})["shared"].shape != (2, 3):
                    wrong.append("left over")

        start = threading.Barrier(4)
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert fl.batch_first([torch.zeros(3, 2)] * 4)[2].shape == (2, 3)


class TestWhatCannotMove:
    """Arrays that are no tensors or numpy arrays are refused, not passed by."""

    def test_arrays_of_another_kind(self):
        class Array:
            ndim, shape = 2, (3, 2)

        with pytest.raises(TypeError, match=r"\['x'\] is a .*Array of 2 axes; .* numpy\.asarray\(x\)"):
            fl.batch_first({"x": Array()})

    def test_arrays_of_jax(self):
        jnp = pytest.importorskip("jax.numpy")
        with pytest.raises(TypeError, match=r"batch_last: \[0\] is a jax.* of 2 axes"):
            fl.batch_last([jnp.zeros((3, 2))])
        (label,) = fl.batch_first([jnp.zeros(3)])
        assert label.shape == (3,)

    @pytest.mark.filterwarnings("ignore:Sparse CSR")
    def test_sparse_tensors_of_rows(self):
        with pytest.raises(
            TypeError, match=r"\[0\] is a tensor of the layout torch.sparse_csr, .*x\.to_dense"
        ):
            fl.batch_first([torch.eye(3).to_sparse_csr()])

    def test_other_sparse_tensors_move(self):
        x = torch.eye(3)[:2].to_sparse()
        here = fl.batch_first({"a": x, "b": x})
        assert torch.equal(here["a"].to_dense(), torch.eye(3)[:2].T)
        assert here["b"] is here["a"]
        assert torch.equal(fl.batch_last(here)["a"].to_dense(), x.to_dense())


class TestTheWayBack:
    def test_conditions_are_about_the_array_as_it_is_in_julia(self):
        rule = fl.layout_rule("CN", "NC", when=lambda path, x: x.shape[0] == 3)
        other = fl.layout_rule("CN", "CN")
        batch = [torch.zeros(3, 2), torch.zeros(2, 3)]
        here = fl.batch_first(batch, rules=[other, rule])
        assert [x.shape for x in here] == [(2, 3), (2, 3)]
        with pytest.raises(
            ValueError, match=r"\[0\] of shape \(2, 3\) may come from \(3, 2\) by .* or from \(2, 3\)"
        ):
            fl.batch_last(here, rules=[other, rule])

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_memory_does_not_tell_two_ways_apart(self, order):
        rule = fl.layout_rule("HWCN", "NCHW", when=lambda path, x: x.shape[0] == 4)
        here = fl.batch_first(np.zeros((4, 5, 2, 3), order=order), rules=[rule])
        for x in (here, torch.from_numpy(here).contiguous()):
            with pytest.raises(
                ValueError, match=r"may come from \(4, 5, 2, 3\) by .* or from \(5, 4, 2, 3\)"
            ):
                fl.batch_last(x, rules=[rule])

    def test_it_is_told_by_a_key(self):
        rules = [fl.layout_rule("CN", "CN", key="table")]
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


@pytest.mark.parametrize("name", ["batch_first", "batch_last"])
def test_the_convention_before_the_batch_is_an_error_that_shows_the_order(name):
    with pytest.raises(TypeError, match=rf"found a dict as the convention; write {name}\(batch, 'WHCN'\)$"):
        getattr(fl, name)("WHCN", {"x": np.zeros((2, 3))})
    with pytest.raises(ValueError, match=r"convention='NCHW': write one of"):
        getattr(fl, name)({"label": np.zeros(2)}, "NCHW")
