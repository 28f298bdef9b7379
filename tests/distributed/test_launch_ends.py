"""A rank may end at any moment of its collectives: no worker of gloo is caught by the end of Python."""

import sys
import time
import weakref

import pytest
import torch
import torch.distributed as dist

from fluxlike._private.process_groups import settle
from tests.distributed.ranks import run
from tests.distributed.scripts import Starter

#: Its end comes while a worker waits for the GIL, to let go of tensors, with hundreds of collectives to come.
BUSY = """
import sys, time
import torch
import torch.distributed as dist
from fluxlike.distributed.launch import init, mesh, rank, world_size
init("cpu")
{held}
sys.setswitchinterval(1000.0)
for _ in range(300):
    x = torch.ones(1 << 14)
    dist.all_gather([torch.empty_like(x) for _ in range(world_size())], x, async_op=True)
del x
until = time.perf_counter() + 0.3
while time.perf_counter() < until:
    pass
{end}
"""


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    starter = Starter(tmp_path_factory.mktemp("ranks"))
    yield starter
    starter.close()


def test_settled_workers_hold_no_tensor():
    workers = dist.ProcessGroupGloo(dist.HashStore(), 0, 1)
    before, x, tensors = sys.getswitchinterval(), torch.ones(1 << 14), []
    try:
        sys.setswitchinterval(1000.0)
        for _ in range(100):
            y = torch.empty_like(x)
            tensors.append(weakref.ref(y))
            workers.allgather([[y]], [x])
        del y
        assert settle(workers) is not None
        assert all(tensor() is None for tensor in tensors)
    finally:
        sys.setswitchinterval(before)


def waits_for_another():
    group = dist.new_group()
    x, (backend,) = torch.ones(1), {group._get_backend(torch.device("cpu"))}
    if dist.get_rank() == 0:
        work = dist.all_reduce(x, group=group, async_op=True)
        began = time.monotonic()
        assert settle(backend, 0.1) is None
        assert time.monotonic() - began < 5
        dist.barrier()
        work.wait()
    else:
        dist.barrier()
        dist.all_reduce(x, group=group)
    assert settle(backend) is not None
    return x.item()


@pytest.mark.slow
def test_a_worker_that_waits_for_another_rank_is_not_waited_for():
    assert run(waits_for_another, 2) == [2.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "held", "end", "code"),
    [
        (1, "held = mesh()", "", 0),
        (2, "held = dist.group.WORLD", "sys.exit(0)", 0),
        (2, "held = mesh()", "dist.destroy_process_group()", 0),
        (2, "held = mesh()", "raise KeyboardInterrupt", -2),
        (2, "held = mesh()", "raise ValueError('on all')", 1),
    ],
)
def test_a_rank_that_ends_amid_its_collectives_ends_with_its_own_code(starter, ranks, held, end, code):
    ended = starter.run(BUSY.format(held=held, end=end), ranks)
    assert [rank.code for rank in ended] == [code] * ranks
    assert not any("terminate called" in rank.err for rank in ended)


@pytest.mark.slow
@pytest.mark.parametrize("held", ["", "held = mesh()"])
def test_a_child_that_is_forked_amid_collectives_ends(starter, held):
    end = """
import os
child = os.fork()
if child == 0:
    sys.exit(3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    (ended,) = starter.run(BUSY.format(held=held, end=end), 1)
    assert (ended.code, ended.err) == (3, "")
