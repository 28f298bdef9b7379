"""`ToDevice`: everything of a step on one device."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

import fluxlike as fl
from fluxlike.learning.callbacks import to_device as module
from fluxlike.learning.callbacks.custom import CustomCallback
from fluxlike.learning.callbacks.profiler import Profiler
from fluxlike.learning.callbacks.scheduler import Scheduler
from fluxlike.learning.callbacks.to_device import ToDevice
from fluxlike.learning.events import Event
from fluxlike.learning.order import ordered

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def learner(*callbacks, device="cpu", **options):
    torch.manual_seed(0)
    model = fl.Chain(fl.Dense(3, 4, fl.relu), fl.BatchNorm(4), fl.Dense(4, 2))
    data = fl.DataLoader((torch.linspace(-1, 1, 36).reshape(12, 3), torch.arange(12) % 2), batch_size=4)
    return fl.Learner(
        model, data, fl.Adam(1e-2), fl.losses.logitcrossentropy, callbacks=callbacks, defaults=False,
        key=fl.Key(0), **options,
    )  # fmt: skip


def test_model_and_state_are_moved_once_and_every_batch_before_its_step():
    moved, move = [], module.to_device

    def spy(tree, device):
        moved.append(tree)
        return move(tree, device)

    with patch.object(module, "to_device", spy):
        found = fl.fit(learner(ToDevice("cpu")), 2)
    assert len(moved) == 1 + 6
    assert type(moved[0][0]) is fl.Chain
    assert moved[0][1].layers[0].weight.rule == found.state.layers[0].weight.rule
    assert [len(batch) for batch in moved[1:]] == [2] * 6


def test_what_is_there_already_is_kept_with_its_dtype_and_its_ties():
    before, after = [], []
    read = ("model", "state", "batch")
    look = CustomCallback("step_begin", lambda run: after.append(run.batch), reads=read)

    class First(fl.Callback):
        reads = read
        before = (ToDevice,)

        def step_begin(self, run):
            before.append(run.batch)

    shared = torch.ones(2, 2, dtype=torch.bfloat16)
    data = [(torch.ones(3, 2, dtype=torch.bfloat16), torch.zeros(3, 2, dtype=torch.float64))]
    model = [shared, shared]
    step = lambda m, s, b: (m, s, b[1].mean())  # noqa: E731
    found = fl.fit(
        fl.Learner(
            model,
            data,
            fl.Descent(0.1),
            step=step,
            callbacks=[First(), ToDevice("cpu"), look],
            defaults=False,
        ),
        1,
    )
    assert found.model[0] is found.model[1]
    assert found.model[0].dtype == torch.bfloat16
    assert all(a is b for a, b in zip(before[0], after[0], strict=True))


def test_a_run_that_is_moved_nowhere_has_the_same_bits():
    one, other = fl.fit(learner(ToDevice("cpu")), 2), fl.fit(learner(), 2)
    assert fl.tree.allclose((one.model, one.state), (other.model, other.state), rtol=0, atol=0)


def test_it_comes_before_all_that_looks_or_writes():
    class Mixes(fl.Callback):
        writes = ("batch",)

        def step_begin(self, run):
            pass

    others = Mixes(), Scheduler(lr=lambda step: 0.1), Profiler()
    for callbacks in ((ToDevice("cpu"), *others), (*others[:2], ToDevice("cpu"), others[2])):
        order = ordered(callbacks)[Event.STEP_BEGIN]
        assert isinstance(callbacks[order[0]], ToDevice)


def test_a_device_that_is_none_is_an_error_where_it_is_written():
    with pytest.raises(RuntimeError, match="nowhere"):
        ToDevice("nowhere")


def test_moving_to_the_meta_device_moves_all_of_model_and_state():
    def look(run):
        found.append((run.model, run.state, run.batch))
        raise fl.CancelEpoch

    found = []
    look = CustomCallback("step_begin", look, reads=("model", "state", "batch"))
    fl.fit(learner(ToDevice("meta"), look), 1)
    assert fl.get_device(found[0]) == torch.device("meta")


@pytest.mark.parametrize("jit", [pytest.param(False, marks=gpu), pytest.param(True, marks=gpu)])
def test_a_run_on_cuda_learns_what_one_on_the_cpu_does(jit):
    on_gpu, on_cpu = fl.fit(learner(ToDevice("cuda"), jit=jit), 3), fl.fit(learner(jit=jit), 3)
    assert fl.get_device((on_gpu.model, on_gpu.state)).type == "cuda"
    assert fl.tree.allclose(fl.cpu(on_gpu.model), on_cpu.model, rtol=1e-3, atol=1e-4)
