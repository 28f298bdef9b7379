"""`channels_last` and `contiguous`: memory in another order, all else as it was."""

import numpy as np
import pytest
import torch

import fluxlike as fl

LAST = {"memory_format": torch.channels_last}


def test_images_and_kernels_are_laid_out_and_others_kept():
    flat = torch.ones(2, 3)
    tree = fl.channels_last([torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5, 6), flat, torch.randn(2, 3, 4)])
    assert tree[0].stride() == (60, 1, 15, 3)
    assert tree[1].is_contiguous(memory_format=torch.channels_last_3d)
    assert tree[2] is flat
    assert tree[3].is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_values_and_dtypes_stay_and_contiguous_brings_them_back(dtype):
    x = torch.randint(0, 2, (2, 3, 4, 5)).to(dtype)
    there = fl.channels_last([x])[0]
    assert there.dtype == dtype
    assert torch.equal(there, x)
    again = fl.contiguous([there])[0]
    assert torch.equal(again, x)
    assert again.stride() == x.stride()


def test_ties_and_constants_stay():
    w, array = torch.randn(2, 3, 4, 5), np.zeros((2, 3, 4, 5))
    there = fl.channels_last({"a": w, "b": [w, array, None, torch.tanh]})
    assert there["a"] is there["b"][0]
    assert there["b"][1] is array
    assert there["b"][2:] == [None, torch.tanh]


def test_what_is_laid_out_already_is_kept():
    w = torch.randn(2, 3, 4, 5)
    assert fl.contiguous([w])[0] is w
    there = fl.channels_last([w])
    assert fl.channels_last(there)[0] is there[0]


def test_assigned_values_follow():
    there = fl.channels_last([fl.Assigned(torch.randn(2, 3, 4, 5))])[0]
    assert there.value.is_contiguous(**LAST)


def test_sparse_tensors_are_kept():
    x = torch.randn(2, 3, 4, 5).to_sparse()
    assert fl.channels_last([x])[0] is x


def test_on_the_meta_device():
    assert fl.channels_last([torch.zeros(2, 3, 4, 5, device="meta")])[0].stride() == (60, 1, 15, 3)


def test_a_model_gives_the_same_in_either_memory():
    model = fl.f64(fl.Chain(fl.Conv((3, 3), 3, 8, fl.relu), fl.BatchNorm(8), fl.Conv((2, 2), 8, 4)))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fl.channels_last(model)(fl.channels_last(x)), model(x), rtol=1e-12, atol=1e-12)


def test_buffers_keep_their_origin_when_laid_out_inside_a_gradient():
    @fl.functor(buffers=("seen",))
    class Seen:
        def __init__(self):
            self.w, self.seen = torch.ones(1), torch.zeros(2, 3, 2, 2)

        def __call__(self, x):
            fl.assign(self.seen, fl.current(self.seen) + 1)
            return (self.w * x).sum()

    grads = fl.gradient(lambda m, x: fl.channels_last(m)(x), Seen(), torch.ones(2))
    assert torch.equal(grads.seen.value, torch.ones(2, 3, 2, 2))


class TestTransforms:
    def test_it_is_differentiable(self):
        grad = fl.gradient(lambda x: (fl.channels_last([x])[0] ** 2).sum(), torch.ones(1, 2, 3, 4))
        assert torch.equal(grad, torch.full((1, 2, 3, 4), 2.0))

    def test_under_vmap_batches_are_kept(self):
        x = torch.randn(5, 2, 3, 4, 4)
        y = fl.vmap(lambda a: fl.channels_last(a) * 2)(x)
        assert torch.equal(y, x * 2)
        grads = fl.vmap(fl.gradient, in_dims=(None, 0))(lambda a: (fl.channels_last(a) ** 2).sum(), x)
        assert torch.equal(grads, x * 2)

    @pytest.mark.usefixtures("uncompiled")
    def test_under_jit(self):
        x = torch.randn(2, 3, 4, 5)
        y = fl.jit(lambda a: fl.channels_last([a])[0] * 2)(x)
        assert torch.equal(y, x * 2)
