"""The private parts of `torch.nn.Module`, and of copies on write: these fail loudly when torch moves them."""

from __future__ import annotations

import torch
from torch import nn

from fluxlike._private import modules
from fluxlike._private.lazy_clone import lazy_clone, was_written


def test_a_copy_is_made_when_either_is_written():
    x = torch.zeros(3)
    copy = lazy_clone(x)
    assert was_written(copy) is False
    copy.add_(1)
    assert was_written(copy)
    assert x.tolist() == [0, 0, 0]
    other = lazy_clone(x)
    x.add_(5)
    assert other.tolist() == [0, 0, 0]


def test_a_write_that_a_kernel_does_not_declare_is_seen():
    mean, var = lazy_clone(torch.zeros(3)), lazy_clone(torch.ones(3))
    nn.functional.batch_norm(torch.randn(4, 3), mean, var, training=False)
    assert was_written(mean) is False
    nn.functional.batch_norm(torch.randn(4, 3), mean, var, training=True)
    assert was_written(mean) is not False
    assert mean._version == 0


def test_memory_that_torch_does_not_own_is_copied_at_once():
    x = torch.from_numpy(torch.zeros(3).numpy())
    copy = lazy_clone(x)
    assert was_written(copy) is None
    copy.add_(1)
    assert was_written(copy)
    assert x.tolist() == [0, 0, 0]
    mapped = torch.func.vmap(lambda x: lazy_clone(x).add_(1))(torch.zeros(2, 3))
    assert mapped.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_a_module_keeps_what_it_holds_in_the_dicts_that_are_filled():
    module = nn.Sequential(nn.BatchNorm1d(2))
    assert list(modules.parameters_of(module[0])) == ["weight", "bias"]
    assert list(modules.buffers_of(module[0])) == ["running_mean", "running_var", "num_batches_tracked"]
    assert modules.children_of(module) == {"0": module[0]}
    held = modules.Contents(module[0])
    held.parameters["weight"] = torch.zeros(2)
    held.attributes["extra"] = 1
    held.attributes["training"] = False
    assert module[0].weight.tolist() == [0, 0]
    held.tidy()
    assert not hasattr(module[0], "extra")
    assert not module[0].training  # a part that is computed again needs its mode and its tensors
    held.empty()
    assert isinstance(module[0].weight, nn.Parameter)
    assert module[0].training
    assert not hasattr(module[0], "extra")


def test_a_call_of_a_module_runs_the_code_that_errors_are_traced_to():
    try:
        nn.Linear(2, 2)(torch.ones(3))
    except RuntimeError as error:
        traceback, found = error.__traceback__, False
        while traceback is not None:
            found = found or traceback.tb_frame.f_code is modules.CALL
            traceback = traceback.tb_next
        assert found


def test_the_layers_that_keep_statistics_have_one_parent():
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm2d, nn.SyncBatchNorm):
        assert issubclass(kind, modules.NORMS)
    assert not issubclass(nn.LayerNorm, modules.NORMS)


def test_parameters_without_a_shape_are_told_apart():
    assert modules.is_uninitialised(nn.LazyLinear(2).weight)
    assert not modules.is_uninitialised(nn.Linear(2, 2).weight)


def test_modules_of_equal_settings_and_hooks_agree():
    same = lambda a, b: bool(a == b)  # noqa: E731
    assert modules.same_settings(nn.Dropout(0.5), nn.Dropout(0.5).eval(), same)
    assert not modules.same_settings(nn.Dropout(0.5), nn.Dropout(0.4), same)
    assert not modules.same_settings(nn.Dropout(0.5), nn.AlphaDropout(0.5), same)
    hooked = nn.Dropout(0.5)
    hooked.register_forward_hook(lambda *_: None)
    assert not modules.same_settings(hooked, nn.Dropout(0.5), same)
