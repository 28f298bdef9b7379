"""The helper of the distributed tests: results in order, errors carried over, nothing left behind."""

import subprocess
import sys
import textwrap
import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import RankError, run


def who():
    return dist.get_rank(), dist.get_world_size()


def total(x):
    dist.all_reduce(x)
    return x


def fail_on(rank):
    if dist.get_rank() == rank:
        raise ValueError(f"wrong on {rank}")
    dist.all_reduce(torch.ones(1))


def leave_state():
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.rand(dist.get_rank() + 1)


def state():
    return torch.rand(2).tolist(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()


def process():
    import os

    return os.getpid()


def wait_for_nobody():
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1))
    else:
        time.sleep(100)


def leave():
    import os

    if dist.get_rank() == 1:
        os._exit(7)
    dist.all_reduce(torch.ones(1))


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_results_come_in_the_order_of_the_ranks(ranks):
    assert run(who, ranks) == [(rank, ranks) for rank in range(ranks)]


def test_arguments_and_results_are_tensors_too():
    for result in run(total, 3, torch.arange(2.0)):
        assert torch.equal(result, torch.tensor([0.0, 3.0]))


def test_processes_stay_from_call_to_call():
    assert run(process, 2) == run(process, 2)


def test_a_call_takes_milliseconds():
    def seconds():
        began = time.monotonic()
        run(who, 2)
        return time.monotonic() - began

    assert min(seconds() for _ in range(50)) < 0.1


def test_what_a_call_leaves_behind_does_not_reach_the_next():
    fresh = run(state, 2)
    run(leave_state, 2)
    assert run(state, 2) == fresh
    assert fresh[0] == fresh[1]
    assert fresh[0][1:] == (torch.float32, True, 1)


def test_an_error_comes_with_its_rank_and_traceback_and_the_next_call_has_new_processes():
    before = run(process, 2)
    with pytest.raises(
        RankError, match=r"(?s)rank 1 of 2:\nTraceback .*in fail_on.*ValueError: wrong on 1"
    ) as caught:
        run(fail_on, 2, 1)
    assert caught.value.rank == 1
    assert isinstance(caught.value.error, ValueError)
    assert not set(before) & set(run(process, 2))


def test_a_call_that_takes_too_long_shows_where_each_rank_stands():
    with pytest.raises(
        RankError, match=r"(?s)no answer within 3 s from ranks \[0, 1\].*all_reduce.*wait_for_nobody"
    ):
        run(wait_for_nobody, 2, timeout=3)
    assert run(who, 2) == [(0, 2), (1, 2)]


def test_a_rank_that_ends_is_named_with_its_exit_code():
    with pytest.raises(RankError, match="rank 1 ended with exit code 7"):
        run(leave, 2)


def test_a_function_that_ranks_cannot_import_is_an_error_here():
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        run(lambda: 1, 2)


@pytest.mark.slow
def test_no_process_is_left_when_the_session_ends(tmp_path):
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent("""
            import os
            from pathlib import Path
            from tests.distributed.ranks import run

            def pid():
                return os.getpid()

            def test_it():
                Path(__file__).with_name("pids").write_text(" ".join(map(str, run(pid, 2))))
        """)
    )
    root = str(__import__("pathlib").Path(__file__).parents[2])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", f"{root}/pyproject.toml"]
    subprocess.run([*command, "--rootdir", root, str(tmp_path)], check=True, cwd=root, timeout=300)
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2
    alive = subprocess.run(["ps", "-o", "pid=", "-p", ",".join(pids)], capture_output=True, text=True)
    assert alive.stdout == ""
