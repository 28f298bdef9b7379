"""Moving whole trees. The meta device stands in for a second one where there is no accelerator."""

import warnings

import numpy as np
import pytest
import torch

import fluxlike as fl
from fluxlike._private.compiler import build
from fluxlike.placement import device as device_module

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def devices(tree):
    return {x.device.type for x in fl.fleaves(tree)}


class TestToDevice:
    @pytest.mark.parametrize("device", ["meta", torch.device("meta")])
    def test_all_tensors_move(self, device):
        model = fl.Chain(fl.Dense(2, 3, fl.relu), fl.BatchNorm(3))
        moved = fl.to_device(model, device)
        assert type(moved) is fl.Chain
        assert devices(moved) == {"meta"}
        assert devices(model) == {"cpu"}
        assert moved.layers[0].activation is fl.relu

    def test_shapes_and_dtypes_stay(self):
        tree = [torch.ones(2, 3, dtype=torch.float16), torch.tensor(1), torch.ones(1, dtype=torch.complex64)]
        moved = fl.to_device(tree, "meta")
        assert [(x.shape, x.dtype) for x in moved] == [(x.shape, x.dtype) for x in tree]

    @pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), 0])
    def test_the_device_before_the_tree_is_an_error_that_shows_the_order(self, device):
        with pytest.raises(TypeError, match=r"the tree first, found .*and a Dense; write to_device\(tree, "):
            fl.to_device(device, fl.Dense(2, 1))
        with pytest.raises(TypeError, match=r"and a Tensor; write to_device\(tree, "):
            fl.to_device(device, torch.ones(1))

    def test_ties_stay(self):
        w = torch.ones(1)
        moved = fl.to_device({"a": w, "b": w}, "meta")
        assert moved["a"] is moved["b"]

    def test_tensors_that_are_there_are_kept(self):
        w = torch.ones(1)
        assert fl.to_device([w], "cpu")[0] is w

    def test_constants_and_numpy_arrays_stay(self):
        array = np.ones(1)
        moved = fl.to_device([array, None, "text", torch.tanh], "meta")
        assert moved[0] is array
        assert moved[1:] == [None, "text", torch.tanh]

    def test_assigned_values_move(self):
        assert fl.to_device([fl.Assigned(torch.ones(1))], "meta")[0].value.is_meta

    def test_the_state_of_an_optimiser_moves(self):
        state = fl.setup(fl.Adam(), fl.Dense(2, 1))
        assert devices(fl.to_device(state, "meta")) == {"meta"}

    def test_from_meta_to_a_device_with_memory_is_an_error(self):
        model = fl.to_device(fl.Chain(fl.Dense(2, 1)), "meta")
        with pytest.raises(
            ValueError, match=r"\.layers\[0\]\.weight is on the meta device.*to move to cpu.*load\("
        ):
            fl.to_device(model, "cpu")
        with pytest.raises(ValueError, match="the meta device, which holds no data"):
            fl.cpu(model)

    def test_from_meta_to_meta_is_none(self):
        w = torch.ones(1, device="meta")
        assert fl.to_device([w], "meta")[0] is w

    @pytest.mark.parametrize("device", ["meta", "cpu"])
    def test_a_tensor_with_a_graph_stays_in_it(self, device):
        x = torch.ones(2, requires_grad=True)
        assert fl.to_device([x * 2], device)[0].requires_grad
        assert not fl.to_device([x], "meta")[0].requires_grad

    def test_a_float_stays_a_float_under_jit_too(self, monkeypatch):
        monkeypatch.setattr(build, "_can_compile", lambda: False)
        state = fl.setup(fl.Adam(0.25), fl.Dense(2, 1))

        def move(state):
            there = fl.to_device(state, "meta")
            return there.weight.rule.lr, fl.get_device(there).type

        assert fl.jit(move)(state) == move(state) == (0.25, "meta")


class TestGetDevice:
    def test_of_a_model(self):
        assert fl.get_device(fl.Dense(2, 1)) == torch.device("cpu")
        assert fl.get_device(fl.to_device(fl.Dense(2, 1), "meta")) == torch.device("meta")

    def test_a_mixed_tree_names_two_paths(self):
        tree = {"a": [torch.ones(1)], "b": torch.ones(1, device="meta")}
        with pytest.raises(
            ValueError,
            match=r"several devices: \['a'\]\[0\] is on cpu, \['b'\] on meta; write to_device\(tree, 'cpu'\)",
        ):
            fl.get_device(tree)

    def test_assigned_values_count(self):
        with pytest.raises(ValueError, match=r"\[0\] is on cpu, \[1\] on meta"):
            fl.get_device([torch.ones(1), fl.Assigned(torch.ones(1, device="meta"))])

    def test_a_tree_without_tensors_is_on_no_device(self):
        with pytest.raises(ValueError, match="the tree holds no tensor, so it is on no device"):
            fl.get_device([1, None])


class TestGpu:
    @pytest.fixture
    def no_accelerator(self, monkeypatch):
        for kind in ("cuda", "mps", "xpu"):
            if hasattr(torch, kind):
                monkeypatch.setattr(getattr(torch, kind), "is_available", lambda: False)
        monkeypatch.setattr(device_module, "_warned", False)

    @pytest.mark.usefixtures("no_accelerator")
    def test_without_an_accelerator_it_warns_once_and_changes_nothing(self):
        model = fl.Dense(2, 1)
        with pytest.warns(UserWarning, match="gpu found no accelerator"):
            assert fl.gpu(model) is model
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert fl.gpu(model) is model

    @pytest.mark.gpu
    @needs_cuda
    def test_round_trip_keeps_values_ties_and_constants(self):
        w = torch.randn(3)
        there = fl.gpu({"a": w, "b": w, "f": torch.tanh})
        assert there["a"].is_cuda
        assert there["a"] is there["b"]
        assert there["f"] is torch.tanh
        assert torch.equal(fl.cpu(there)["a"], w)

    @pytest.mark.gpu
    @needs_cuda
    def test_pinned_memory_arrives(self):
        batch = {"x": torch.randn(1000).pin_memory()}
        moved = fl.gpu(batch)
        torch.cuda.synchronize()
        assert torch.equal(moved["x"].cpu(), batch["x"])

    @pytest.mark.gpu
    @needs_cuda
    def test_a_step_trains_there(self):
        model = fl.gpu(fl.Chain(fl.Dense(4, 4, fl.relu), fl.BatchNorm(4)))
        state = fl.setup(fl.Adam(), model)
        grads = fl.gradient(lambda m, x: (m(x) ** 2).sum(), model, torch.randn(8, 4, device="cuda"))
        model, state = fl.update(state, model, grads)
        assert devices(model) == devices(state) == {"cuda"}

    @pytest.mark.gpu
    @needs_cuda
    def test_a_state_left_behind_is_named(self):
        model = fl.Dense(2, 1)
        state = fl.setup(fl.Adam(), model)
        model = fl.gpu(model)
        with pytest.raises(ValueError, match=r"state = fluxlike\.to_device\(state, 'cuda:0'\)"):
            fl.update(state, model, fl.tree.zeros_like(model))
