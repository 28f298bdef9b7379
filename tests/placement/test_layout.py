"""Layouts are strings of axis letters, and permuting by them gives views."""

import numpy as np
import pytest
import torch

import fluxlike as fl


class TestLayout:
    def test_it_is_its_string(self):
        assert fl.Layout("NCHW") == "NCHW"
        assert isinstance(fl.Layout("NCHW"), str)
        assert {fl.Layout("NC"): 1}["NC"] == 1
        assert fl.Layout() == ""

    def test_a_layout_of_a_layout_is_itself(self):
        layout = fl.Layout("NCHW")
        assert fl.Layout(layout) is layout

    def test_capitals_and_small_letters_are_different_axes(self):
        assert fl.Layout("Nn").order("nN") == (1, 0)

    @pytest.mark.parametrize(
        ("letters", "message"),
        [
            ("NCHC", "'NCHC' has 'C' twice; each axis has a letter of its own"),
            ("N,C", "'N,C' holds ','; write one letter"),
            ("N1", "'N1' holds '1'"),
            ("N C", "'N C' holds ' '"),
            ("Né", "'Né' holds 'é'"),
        ],
    )
    def test_a_wrong_layout_says_what_is_wrong(self, letters, message):
        with pytest.raises(ValueError, match=message):
            fl.Layout(letters)

    def test_something_else_than_a_string_is_an_error(self):
        with pytest.raises(TypeError, match=r"a string of axis letters such as 'NCHW', found \('N', 'C'\)"):
            fl.Layout(("N", "C"))

    def test_a_tensor_in_its_place_is_told_by_its_shape(self):
        with pytest.raises(TypeError, match=r"such as 'NCHW', found float32\[2, 3\]$"):
            fl.Layout(torch.ones(2, 3))

    def test_the_order_to_another_layout_is_what_permute_takes(self):
        x = torch.zeros(2, 3, 4, 5)
        assert fl.Layout("HWCN").order("NCHW") == (3, 2, 0, 1)
        assert x.permute(fl.Layout("HWCN").order("NCHW")).shape == (5, 4, 2, 3)

    def test_other_letters_are_named(self):
        with pytest.raises(ValueError, match=r"'NCHW' and 'NLC' .*H is only in 'NCHW'.*L is only in 'NLC'"):
            fl.Layout("NCHW").order("NLC")

    def test_reversed_is_the_other_order_of_the_same_memory(self):
        assert fl.Layout("WHCN").reversed == "NCHW"


ARRAYS = {
    "C order": np.arange(24.0).reshape(2, 3, 4),
    "F order": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "strided": np.arange(192.0).reshape(4, 6, 8)[::2, ::2, 1::2],
    "negative strides": np.arange(24.0).reshape(2, 3, 4)[::-1, :, ::-1],
    "repeated": np.broadcast_to(np.arange(4.0), (2, 3, 4)),
    "empty": np.zeros((2, 0, 4)),
    "text": np.full((2, 3, 4), "a"),
    "objects": np.full((2, 3, 4), None),
}


class TestPermuteOfArrays:
    @pytest.mark.parametrize("x", ARRAYS.values(), ids=ARRAYS)
    def test_it_is_a_view_with_the_axes_moved(self, x):
        y = fl.permute(x, "ABC", "CAB")
        assert y.shape == (4, 2, x.shape[1])
        assert y.dtype == x.dtype
        assert np.array_equal(y, np.einsum("abc->cab", x) if x.dtype.kind == "f" else x.transpose(2, 0, 1))
        assert np.shares_memory(x, y) or x.size == 0

    def test_writes_show_through(self):
        x = np.zeros((2, 3))
        fl.permute(x, "AB", "BA")[2, 1] = 7
        assert x[1, 2] == 7

    def test_a_read_only_array_stays_read_only(self):
        x = np.zeros((2, 3))
        x.flags.writeable = False
        assert not fl.permute(x, "AB", "BA").flags.writeable

    def test_a_fortran_array_reversed_is_c_ordered(self):
        x = np.asfortranarray(np.random.default_rng(0).random((4, 3, 2, 5)))
        y = fl.permute(x, "WHCN", "NCHW")
        assert y.flags.c_contiguous
        assert np.shares_memory(x, y)

    def test_a_subclass_stays_one(self):
        assert type(fl.permute(np.ma.masked_array(np.zeros((2, 3))), "AB", "BA")) is np.ma.MaskedArray


TENSORS = {
    "plain": torch.arange(24.0).reshape(2, 3, 4),
    "strided": torch.arange(192.0).reshape(4, 6, 8)[::2, ::2, 1::2],
    "expanded": torch.arange(4.0).expand(2, 3, 4),
    "bool": torch.zeros(2, 3, 4, dtype=torch.bool),
    "bfloat16": torch.ones(2, 3, 4, dtype=torch.bfloat16),
    "complex": torch.ones(2, 3, 4, dtype=torch.complex64),
}


class TestPermuteOfTensors:
    @pytest.mark.parametrize("x", TENSORS.values(), ids=TENSORS)
    def test_it_is_a_view_with_the_axes_moved(self, x):
        y = fl.permute(x, "ABC", "CAB")
        assert y.shape == (4, 2, 3)
        assert y.stride() == (x.stride(2), x.stride(0), x.stride(1))
        assert y.dtype == x.dtype
        assert y.data_ptr() == x.data_ptr()

    def test_writes_show_through(self):
        x = torch.zeros(2, 3)
        fl.permute(x, "AB", "BA")[2, 1] = 7
        assert x[1, 2] == 7

    def test_on_the_meta_device(self):
        assert fl.permute(torch.zeros(2, 3, device="meta"), "AB", "BA").shape == (3, 2)

    def test_a_sparse_tensor(self):
        x = torch.eye(3)[:2].to_sparse()
        assert torch.equal(fl.permute(x, "AB", "BA").to_dense(), torch.eye(3)[:, :2])

    @pytest.mark.filterwarnings("ignore:Sparse CSR")
    def test_a_sparse_tensor_of_rows_has_no_such_view(self):
        with pytest.raises(TypeError, match=r"found torch\.sparse_csr, .*x\.to_sparse\(\) first"):
            fl.permute(torch.eye(3).to_sparse_csr(), "AB", "BA")

    def test_of_a_number(self):
        assert fl.permute(torch.tensor(3), "", "") == 3
        assert fl.permute(np.array(3), "", "") == 3

    def test_it_is_differentiable(self):
        weights = torch.arange(6.0).reshape(3, 2)
        grad = fl.gradient(lambda x: (fl.permute(x, "AB", "BA") * weights).sum(), torch.zeros(2, 3))
        assert torch.equal(grad, weights.T)

    @pytest.mark.usefixtures("uncompiled")
    def test_under_vmap_and_jit(self):
        x = torch.randn(5, 2, 3)
        assert torch.equal(fl.vmap(lambda a: fl.permute(a, "AB", "BA"))(x), x.transpose(1, 2))
        assert torch.equal(fl.jit(lambda a: fl.permute(a, "ABC", "CAB") + 0)(x), x.permute(2, 0, 1))


class TestErrors:
    def test_another_number_of_axes_names_both(self):
        with pytest.raises(
            ValueError, match=r"'WHCN' to 'NCHW' takes an array of 4 axes, found the shape \(2, 3\) of 2"
        ):
            fl.permute(torch.zeros(2, 3), "WHCN", "NCHW")

    def test_other_letters_name_both(self):
        with pytest.raises(ValueError, match=r"'NHWC' and 'NCDW'"):
            fl.permute(torch.zeros(1, 1, 1, 1), "NHWC", "NCDW")

    def test_no_array_is_an_error(self):
        with pytest.raises(TypeError, match="takes a tensor or a numpy array, found list"):
            fl.permute([[1]], "AB", "BA")


@pytest.mark.parametrize("kind", [torch.zeros, np.zeros])
def test_layouts_before_the_array_are_an_error_that_shows_the_order(kind):
    x = kind((2, 3))
    for swapped in (("NC", "CN", x), ("NC", x, "CN")):
        with pytest.raises(
            TypeError, match=r"found str; the array comes first: write permute\(x, 'NC', 'CN'\)$"
        ):
            fl.permute(*swapped)
