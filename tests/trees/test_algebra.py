"""`fl.tree`: models, gradients and states as vectors."""

import math

import numpy as np
import pytest
import torch

import fluxlike as fl


class TestAddAndSub:
    def test_leaf_by_leaf(self):
        a, b = {"w": torch.ones(2), "b": [torch.zeros(1)]}, {"w": torch.ones(2), "b": [torch.ones(1)]}
        assert fl.tree.allclose(fl.tree.add(a, b), {"w": torch.full((2,), 2.0), "b": [torch.ones(1)]})
        assert fl.tree.allclose(fl.tree.sub(a, b), {"w": torch.zeros(2), "b": [-torch.ones(1)]})

    def test_none_passes_on_either_side(self):
        w = torch.ones(1)
        assert fl.tree.add([None, w, None], [w, None, None]) == [w, w, None]
        assert fl.tree.sub([None, w], [w, None]) == [-w, w]

    def test_constants_are_those_of_the_first_tree(self):
        assert fl.tree.add([torch.tanh, 1.0, "a"], [None, 2.0, "b"]) == [torch.tanh, 1.0, "a"]

    def test_a_gradient_added_to_a_model_with_ties_counts_once(self):
        w = torch.tensor([1.0])
        moved = fl.tree.add({"a": w, "b": w}, {"a": torch.tensor([16.0]), "b": None})
        assert moved["a"] is moved["b"]
        assert moved["a"].tolist() == [17]

    def test_two_trees_with_the_same_ties(self):
        v, w = torch.ones(1), torch.ones(1)
        total = fl.tree.add([v, v], [w, w])
        assert total[0] is total[1]
        assert total[0].tolist() == [2]

    @pytest.mark.parametrize("join", [fl.tree.add, fl.tree.sub])
    def test_ties_of_the_second_tree_survive_where_the_first_has_none(self, join):
        w = torch.ones(1)
        joined = join([None, None], [w, w])
        assert joined[0] is joined[1]

    def test_different_values_at_a_tie_are_refused(self):
        w = torch.ones(1)
        with pytest.raises(
            ValueError, match=r"add: \['a'\] and \['b'\] are tied in the first tree.*add them up"
        ):
            fl.tree.add({"a": w, "b": w}, {"a": torch.ones(1), "b": torch.ones(1)})

    def test_nothing_is_broadcast(self):
        with pytest.raises(
            ValueError,
            match=r"sub: at \['w'\], the first tree has the shape \(2,\) and the second \(1,\); nothing is",
        ):
            fl.tree.sub({"w": torch.ones(2)}, {"w": torch.ones(1)})

    def test_another_structure_is_refused(self):
        with pytest.raises(ValueError, match=r"the second tree of add and the first differ in structure"):
            fl.tree.add([torch.ones(1)], [torch.ones(1), None])

    def test_the_last_assigned_wins(self):
        first, last = fl.Assigned(torch.zeros(1)), fl.Assigned(torch.ones(1))
        assert fl.tree.add([first], [last])[0] is last
        assert fl.tree.add([first], [None])[0] is first
        assert fl.tree.add([None], [last])[0] is last

    def test_gradients_of_two_batches_add_up_with_their_statistics(self):
        model = fl.BatchNorm(1)
        grads = [
            fl.gradient(lambda m, x: (m(x) ** 2).sum(), model, x)
            for x in (torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [5.0]]))
        ]
        total = fl.tree.add(*grads)
        assert total.running_mean is grads[1].running_mean
        assert torch.equal(total.weight, grads[0].weight + grads[1].weight)


class TestScaleAndLerp:
    def test_scale_leaves_integers_constants_and_none(self):
        tree = {"w": torch.ones(2), "n": torch.tensor(3), "name": "w", "none": None}
        scaled = fl.tree.scale(tree, 0.5)
        assert scaled["w"].tolist() == [0.5, 0.5]
        assert scaled["n"] is tree["n"]
        assert (scaled["name"], scaled["none"]) == ("w", None)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
    @pytest.mark.parametrize("factor", [0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)])
    def test_scale_keeps_the_dtype(self, dtype, factor):
        assert fl.tree.scale([torch.ones(2, dtype=dtype)], factor)[0].dtype == dtype

    def test_a_0d_factor_does_not_change_the_dtype_of_a_0d_leaf(self):
        factor = torch.tensor(2.0, dtype=torch.float64)
        assert fl.tree.scale([torch.tensor(1.0)], factor)[0].dtype == torch.float32

    def test_scale_keeps_ties(self):
        w = torch.ones(1)
        scaled = fl.tree.scale([w, w], 2)
        assert scaled[0] is scaled[1]

    @pytest.mark.parametrize(("weight", "expected"), [(0, 1.0), (0.25, 2.0), (1, 5.0)])
    def test_lerp_goes_from_the_first_to_the_second(self, weight, expected):
        assert fl.tree.lerp([torch.tensor([1.0])], [torch.tensor([5.0])], weight)[0].tolist() == [expected]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_the_weight_may_be_a_tensor_whatever_the_dtype_of_the_tree(self, dtype):
        mixed = fl.tree.lerp([torch.zeros(2, dtype=dtype)], [torch.ones(2, dtype=dtype)], torch.tensor(0.25))
        assert mixed[0].dtype == dtype
        assert mixed[0].tolist() == [0.25, 0.25]

    def test_lerp_takes_integers_from_the_first(self):
        assert fl.tree.lerp([torch.tensor(1)], [torch.tensor(5)], 0.5)[0].item() == 1

    def test_lerp_keeps_ties(self):
        v, w = torch.zeros(1), torch.ones(1)
        mixed = fl.tree.lerp([v, v], [w, w], 0.5)
        assert mixed[0] is mixed[1]

    def test_scale_passes_assigned(self):
        moved = fl.Assigned(torch.ones(1))
        assert fl.tree.scale([moved], 2.0)[0] is moved


class TestDotAndNorm:
    def test_dot_sums_over_the_tree(self):
        a = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
        assert fl.tree.dot(a, a).item() == 14

    def test_dot_conjugates_the_first(self):
        a, b = torch.tensor([1 + 2j]), torch.tensor([3 - 1j])
        assert fl.tree.dot([a], [b]).item() == (1 - 2j) * (3 - 1j)

    def test_dot_counts_a_tie_once(self):
        w = torch.tensor([2.0])
        assert fl.tree.dot([w, w], [w, w]).item() == 4

    def test_dot_takes_a_missing_leaf_for_zero(self):
        w = torch.ones(2)
        assert fl.tree.dot([w, None, w.clone()], [w, w, None]).item() == 2

    def test_dot_leaves_out_integers_and_constants(self):
        assert (
            fl.tree.dot([torch.ones(2), torch.tensor(3), 5.0], [torch.ones(2), torch.tensor(3), 5.0]).item()
            == 2
        )

    def test_dot_does_not_overflow_in_sixteen_bits(self):
        x = [torch.full((1000,), 100.0, dtype=torch.float16)]
        assert fl.tree.dot(x, x).item() == 1e7

    def test_dot_of_nothing_is_zero(self):
        assert fl.tree.dot([None, "a"], [None, "b"]).item() == 0

    def test_dot_refuses_other_shapes(self):
        with pytest.raises(ValueError, match=r"dot: at \[0\], the first tree has the shape \(2,\)"):
            fl.tree.dot([torch.ones(2)], [torch.ones(2, 1)])

    def test_norm_is_that_of_one_vector(self):
        tree = {"a": torch.tensor([3.0]), "b": torch.tensor([[0.0], [4.0]])}
        assert fl.tree.norm(tree).item() == 5
        assert fl.tree.norm(tree, 1).item() == 7
        assert fl.tree.norm(tree, math.inf).item() == 4

    def test_norm_counts_a_tie_once(self):
        w = torch.tensor([3.0, 4.0])
        assert fl.tree.norm([w, w]).item() == 5

    def test_norm_of_complex_numbers_is_real(self):
        n = fl.tree.norm([torch.tensor([3 + 4j]), torch.tensor([12.0])])
        assert n.item() == 13
        assert not n.is_complex()

    def test_norm_does_not_overflow_in_sixteen_bits(self):
        n = fl.tree.norm([torch.full((4,), 6e4, dtype=torch.float16)])
        assert n.dtype == torch.float32
        assert n.item() == pytest.approx(120_000, rel=1e-3)

    def test_norm_of_mixed_dtypes_has_the_widest(self):
        assert fl.tree.norm([torch.ones(1), torch.ones(1, dtype=torch.float64)]).dtype == torch.float64

    def test_norm_skips_none_and_integers(self):
        assert fl.tree.norm([None, torch.tensor([7]), torch.tensor([2.0])]).item() == 2

    @pytest.mark.parametrize("p", [1, 2, math.inf])
    def test_norm_of_nothing_is_zero(self, p):
        assert fl.tree.norm([], p).item() == 0

    @pytest.mark.parametrize("p", [1, 2, math.inf])
    def test_an_empty_tensor_adds_nothing_to_a_norm(self, p):
        assert fl.tree.norm([torch.zeros(0), torch.tensor([-2.0])], p).item() == 2


class TestZerosAndClone:
    def test_zeros_like_keeps_ties_dtypes_and_constants(self):
        w = torch.ones(2, dtype=torch.float64)
        zeros = fl.tree.zeros_like({"a": w, "b": w, "n": torch.tensor(3), "f": torch.tanh})
        assert zeros["a"] is zeros["b"]
        assert zeros["a"].dtype == torch.float64
        assert zeros["a"].tolist() == [0, 0]
        assert zeros["n"].item() == 0
        assert zeros["f"] is torch.tanh

    def test_a_clone_shares_no_storage(self):
        model = fl.Chain(fl.Dense(2, 2), fl.BatchNorm(2))
        copy = fl.tree.clone(model)
        for old, new in zip(fl.fleaves(model), fl.fleaves(copy), strict=True):
            assert torch.equal(old, new)
            assert old.data_ptr() != new.data_ptr()

    def test_a_clone_keeps_ties(self):
        w = torch.ones(1)
        copy = fl.tree.clone([w, [w]])
        assert copy[0] is copy[1][0]
        assert copy[0] is not w


class TestAllclose:
    def test_rounding_is_close(self):
        assert fl.tree.allclose([torch.ones(1)], [torch.ones(1) + 1e-7])
        assert not fl.tree.allclose([torch.ones(1)], [torch.ones(1) + 1e-3])
        assert fl.tree.allclose([torch.ones(1)], [torch.ones(1) + 1e-3], rtol=1e-2)
        assert fl.tree.allclose([torch.zeros(1)], [torch.zeros(1) + 1e-3], atol=1e-2)

    @pytest.mark.parametrize(
        "other",
        [
            [torch.ones(1, 1), 1],
            [torch.ones(1, dtype=torch.float64), 1],
            [torch.ones(1), 2],
            [torch.ones(1), 1.0],
            [torch.ones(1), None],
            [None, 1],
            [torch.ones(1), torch.ones(1)],
            (torch.ones(1), 1),
            [torch.ones(1), 1, 2],
            [torch.ones(1, device="meta"), 1],
        ],
        ids=["shape", "dtype", "constant", "type", "none", "leaf", "kind", "container", "length", "device"],
    )
    def test_any_difference_counts(self, other):
        assert not fl.tree.allclose([torch.ones(1), 1], other)
        assert not fl.tree.allclose(other, [torch.ones(1), 1])

    @pytest.mark.parametrize(
        "dtype", [torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.complex64]
    )
    def test_every_dtype_is_compared(self, dtype):
        a, b = torch.tensor([1, 0], dtype=dtype), torch.tensor([1, 1], dtype=dtype)
        assert fl.tree.allclose([a], [a.clone()])
        assert not fl.tree.allclose([a], [b])

    def test_nan_is_equal_only_on_request(self):
        nan = torch.tensor([math.nan])
        assert not fl.tree.allclose([nan], [nan.clone()])
        assert fl.tree.allclose([nan], [nan.clone()], equal_nan=True)

    def test_on_the_meta_device_only_itself_is_known_to_be_equal(self):
        x = torch.ones(1, device="meta")
        assert fl.tree.allclose([x], [x])
        assert not fl.tree.allclose([x], [torch.ones(1, device="meta")])

    def test_assigned_values_are_compared(self):
        a, b = fl.Assigned(torch.ones(1)), fl.Assigned(torch.zeros(1))
        assert fl.tree.allclose([a], [fl.Assigned(torch.ones(1))])
        assert not fl.tree.allclose([a], [b])

    def test_numpy_arrays_are_compared(self):
        assert fl.tree.allclose([np.ones(2)], [np.ones(2)])
        assert not fl.tree.allclose([np.ones(2)], [np.zeros(2)])
        assert not fl.tree.allclose([np.ones(2)], [np.ones(3)])
