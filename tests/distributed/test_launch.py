"""One script for one device and many ranks; the end of one rank ends all."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fluxlike.distributed import launch
from tests.distributed.ranks import run
from tests.distributed.scripts import Starter, free_port

pytestmark = pytest.mark.slow  # processes take a while to start and to meet

ROOT = Path(__file__).parents[2]
SOON = 250  # seconds, where every core is busy with other tests; less than the ranks would sleep

BEGIN = """
import os, signal, sys, time, threading
from pathlib import Path
import torch
import torch.distributed as dist
from fluxlike.distributed.launch import init, mesh, rank, world_size
from fluxlike.distributed.watch import abort
device = init("cpu")
x = torch.ones(3)
dist.all_reduce(x)
"""


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    starter = Starter(tmp_path_factory.mktemp("ranks"))
    yield starter
    starter.close()


def ends(starter, script, ranks=3, **options):
    return starter.run(BEGIN + textwrap.dedent(script), ranks, **options)


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env=os.environ | {"PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"} | environment,
    )


# The same script, however it is started


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(
        textwrap.dedent("""
            import sys
            import torch
            import torch.distributed as dist
            from fluxlike.distributed.launch import init, mesh, rank, world_size
            device = init("cpu")
            if sys.argv[1:] and rank() == 1:
                raise ValueError("bad data in row 7")
            x = torch.full((2,), rank() + 1.0, device=device)
            dist.all_reduce(x)
            sys.stdout.write(f"{rank()} of {world_size()} on {device}: {x.tolist()} {mesh().shape}\\n")
        """)
    )
    return path


@pytest.mark.slow
def test_the_same_script_runs_under_torchrun_and_alone(script):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    many, alone = python(*torchrun, script), python(script)
    assert (many.returncode, many.stderr) == (0, "")
    assert sorted(many.stdout.splitlines()) == [
        "0 of 2 on cpu: [3.0, 3.0] (2,)",
        "1 of 2 on cpu: [3.0, 3.0] (2,)",
    ]
    assert (alone.returncode, alone.stderr) == (0, "")
    assert alone.stdout == "0 of 1 on cpu: [1.0, 1.0] (1,)\n"


@pytest.mark.slow
def test_torchrun_reports_the_rank_that_failed_first(script):
    ended = python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, script, "fail")
    assert ended.returncode == 1
    assert "rank 0 ends: rank 1 failed: ValueError: bad data in row 7\n" in ended.stderr
    cause = ended.stderr.partition("Root Cause")[2]
    assert "rank      : 1 " in cause
    assert "ValueError: bad data in row 7" in cause


def test_a_clean_end_leaves_no_group_no_thread_and_no_word(starter):
    first = textwrap.dedent("""
        import atexit

        def last():
            names = [thread.name for thread in threading.enumerate()]
            names += [comm.read_text() for comm in Path("/proc/self/task").glob("*/comm")]
            names = [name for name in names if "fluxlike" in name or "gloo" in name]
            Path(f"last_{os.environ['RANK']}").write_text(f"{dist.is_initialized()} {names}")

        atexit.register(last)  # what is registered first runs last
    """)
    ended = starter.run(first + BEGIN + "held = mesh()", 3)
    assert [(rank.code, rank.out, rank.err) for rank in ended] == [(0, "", "")] * 3
    here = starter.folder / str(starter.calls)
    assert [(here / f"last_{rank}").read_text() for rank in range(3)] == ["False []"] * 3


def test_a_rank_may_run_on_after_the_others_have_ended(starter):
    ended = ends(starter, "time.sleep(rank()); print('done')", 3)
    assert [(rank.code, rank.out, rank.err) for rank in ended] == [(0, "done\n", "")] * 3


def test_idle_ranks_take_no_time_of_the_processor(starter):
    script = """
        def spent():
            before = time.process_time()
            time.sleep(0.4)
            return time.process_time() - before

        print(min(spent() for _ in range(5)))
    """
    assert all(float(rank.out) < 0.004 for rank in ends(starter, script, 2))


# The end of one rank


@pytest.mark.parametrize("failing", [0, 2])
@pytest.mark.parametrize("others", ["dist.all_reduce(x)", "time.sleep(600)"])
def test_an_error_on_one_rank_ends_all_with_its_message(starter, failing, others):
    script = f"""
        if rank() == {failing}:
            raise ValueError("bad data in row 7")
        {others}
    """
    ended = ends(starter, script)
    assert [rank.code for rank in ended] == [1, 1, 1]
    assert max(rank.seconds for rank in ended) < SOON
    for rank in {0, 1, 2} - {failing}:
        assert ended[rank].err == f"rank {rank} ends: rank {failing} failed: ValueError: bad data in row 7\n"
    assert f"[rank{failing}]: Traceback" in ended[failing].err
    assert "ends:" not in ended[failing].err


@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.parametrize("others", ["dist.all_reduce(x)", "time.sleep(600)"])
def test_a_killed_rank_ends_all_and_is_named(starter, gone, others):
    script = f"""
        if rank() == {gone}:
            os.kill(os.getpid(), signal.SIGKILL)
        {others}
    """
    ended = ends(starter, script)
    assert [rank.code for rank in ended] == [-9 if rank == gone else 1 for rank in range(3)]
    assert max(rank.seconds for rank in ended) < SOON
    for rank in {0, 1, 2} - {gone}:
        assert ended[rank].err.startswith(f"rank {rank} ends: rank {gone} ")
        assert " vanished at " in ended[rank].err
        assert ended[rank].err.count("\n") == 1


@pytest.mark.parametrize("early", [0, 1])
def test_a_rank_that_ended_early_is_named_to_those_that_wait_for_it(starter, early):
    script = f"""
        held = mesh()
        if rank() == {early}:
            sys.exit(0)
        dist.all_reduce(x)
    """
    ended = ends(starter, script)
    waiting = [rank for rank in range(3) if rank != early]
    assert all(ended[rank].code == 1 for rank in waiting)
    assert all(f"rank {early} has ended at " in ended[rank].err for rank in waiting)
    assert sum("Traceback" in ended[rank].err for rank in waiting) == 1
    assert max(rank.seconds for rank in ended) < SOON


def test_of_errors_on_all_ranks_at_once_each_is_non_zero_and_one_is_told(starter):
    ended = ends(starter, "raise ValueError('everywhere')")
    assert [rank.code for rank in ended] == [1, 1, 1]
    assert any("Traceback" in rank.err for rank in ended)
    assert max(rank.seconds for rank in ended) < SOON


def test_ctrl_c_is_keyboard_interrupt_on_every_rank(starter):
    script = """
        try:
            Path(f"ready_{rank()}").touch()
            time.sleep(600)
        except KeyboardInterrupt:
            time.sleep(1)
            print("saved")
            raise
    """
    ended = ends(starter, script, interrupt=[0, 1, 2])
    assert [(rank.code, rank.out) for rank in ended] == [(-2, "saved\n")] * 3
    assert all("KeyboardInterrupt" in rank.err and "ends:" not in rank.err for rank in ended)


def test_a_caught_error_is_told_by_abort(starter):
    script = """
        try:
            if rank() == 1:
                raise ValueError("bad data in row 7")
        except ValueError as error:
            abort(error)
            sys.exit(3)
        time.sleep(600)
    """
    ended = ends(starter, script)
    assert [rank.code for rank in ended] == [1, 3, 1]
    assert ended[0].err == "rank 0 ends: rank 1 failed: ValueError: bad data in row 7\n"
    assert ended[1].err == ""


def test_an_error_that_is_caught_ends_nothing(starter):
    script = """
        try:
            if rank() == 1:
                raise ValueError("handled")
        except ValueError:
            pass
        dist.all_reduce(x)
        print(x[0].item())
    """
    assert [(rank.code, rank.out, rank.err) for rank in ends(starter, script)] == [(0, "9.0\n", "")] * 3


def test_a_forked_child_speaks_for_nobody(starter):
    script = """
        if rank() == 1:
            child = os.fork()
            if child == 0:
                raise ValueError("in a child")
            os.waitpid(child, 0)
        dist.all_reduce(x)
        print(x[0].item())
    """
    ended = ends(starter, script)
    assert [(rank.code, rank.out) for rank in ended] == [(0, "9.0\n")] * 3


def test_a_forked_child_that_lives_on_hides_no_killed_rank(starter):
    script = """
        if rank() == 1:
            child = os.fork()
            if child == 0:
                time.sleep(600)
            Path("child").write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    """
    ended = ends(starter, script)
    os.kill(int((starter.folder / str(starter.calls) / "child").read_text()), signal.SIGKILL)
    assert [rank.code for rank in ended] == [1, -9, 1]
    assert max(rank.seconds for rank in ended) < SOON


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize(
    ("last", "codes", "told"),
    [
        ("raise ValueError('bad data in row 7')", [1, 1], "ValueError: bad data in row 7"),
        ("sys.exit(3)", [1, 3], "SystemExit: 3"),
    ],
)
def test_ranks_started_by_multiprocessing_end_alike(tmp_path, method, last, codes, told):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import multiprocessing, os, sys

            def work(rank):
                os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
                from fluxlike.distributed.launch import init
                import torch
                import torch.distributed as dist
                init("cpu")
                if rank == 1:
                    {last}
                dist.all_reduce(torch.ones(3))

            if __name__ == "__main__":
                context = multiprocessing.get_context("{method}")
                processes = [context.Process(target=work, args=(rank,)) for rank in range(2)]
                for process in processes:
                    process.start()
                for process in processes:
                    process.join()
                print([process.exitcode for process in processes])
        """)
    )
    ended = python(script, MASTER_PORT=str(free_port()))
    assert ended.stdout == f"{codes}\n"
    assert f"rank 0 ends: rank 1 failed: {told}\n" in ended.stderr


# init


def again():
    return launch.init(), launch.init("cpu")


def another():
    with pytest.raises(ValueError, match=r"init\('meta'\): ranks run on 'cpu' or 'cuda'"):
        launch.init("meta")


def test_init_is_the_same_at_every_call():
    assert run(again, 2) == [(torch.device("cpu"),) * 2] * 2
    run(another, 2)


def renewed():
    dist.destroy_process_group()
    launch.init()
    x = torch.ones(1)
    dist.all_reduce(x)
    return x.item(), launch.mesh().shape


def test_a_destroyed_group_is_made_again():
    assert run(renewed, 2) == [(2.0, (2,))] * 2


def test_a_group_that_is_there_is_used(starter):
    script = """
        import torch, os
        import torch.distributed as dist
        dist.init_process_group("gloo")
        from fluxlike.distributed.launch import init, rank
        init("cpu")
        if rank() == 1:
            raise ValueError("bad data in row 7")
        dist.barrier()
    """
    ended = starter.run(textwrap.dedent(script), 2)
    assert [rank.code for rank in ended] == [1, 1]
    assert ended[0].err == "rank 0 ends: rank 1 failed: ValueError: bad data in row 7\n"


def test_half_of_the_variables_is_an_error(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(ValueError, match=r"RANK, MASTER_PORT is set .* and WORLD_SIZE, MASTER_ADDR is not"):
        launch._of_environment()


def test_ranks_that_do_not_come_are_an_error_that_says_so(starter):
    script = """
        from fluxlike.distributed.launch import init, rank
        if rank() == 0:
            init("cpu", timeout=2)
    """
    ended = starter.run(textwrap.dedent(script), 2)
    assert [rank.code for rank in ended] == [1, 0]
    assert "init: rank 0 of WORLD_SIZE=2 waited for the others at 127.0.0.1:" in ended[0].err


def test_a_rank_takes_the_cuda_device_of_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launch._device(None) == launch._device("cuda") == torch.device("cuda", 1)
    assert launch._device("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"number 2 on its machine .* 2 CUDA devices: start 2 processes"):
        launch._device(None)


def test_rank_and_world_size_are_known_before_init(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (launch.rank(), launch.world_size()) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (launch.rank(), launch.world_size()) == (3, 8)


# mesh


def layout(sizes):
    mesh = launch.mesh(**sizes)
    assert mesh is launch.mesh(**sizes)
    return mesh.mesh_dim_names, mesh.mesh.tolist(), mesh.device_type


@pytest.mark.parametrize(
    ("sizes", "names", "ranks"),
    [
        ({}, ("data",), [0, 1, 2, 3]),
        ({"data": 2, "model": 2}, ("data", "model"), [[0, 1], [2, 3]]),
        ({"data": -1, "tensor": 2}, ("data", "tensor"), [[0, 1], [2, 3]]),
        ({"anything": 4, "model": -1}, ("anything", "model"), [[0], [1], [2], [3]]),
    ],
)
def test_a_mesh_lays_the_ranks_out_row_by_row(sizes, names, ranks):
    assert run(layout, 4, sizes) == [(names, ranks, "cpu")] * 4


def sums_along(axis):
    x = torch.tensor(float(dist.get_rank()))
    dist.all_reduce(x, group=launch.mesh(data=2, model=2).get_group(axis))
    return x.item()


def test_an_axis_of_a_mesh_is_a_group():
    assert run(sums_along, 4, "model") == [1, 1, 5, 5]
    assert run(sums_along, 4, "data") == [2, 4, 2, 4]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"data": 3},
            r"mesh\(data=3\) is of 3 ranks, and there are 4: write mesh\(data=-1\), or start 3 ranks",
        ),
        (
            {"data": 4, "model": 2},
            r"is of 8 ranks, and there are 4: write mesh\(data=-1, model=2\), or start 8 ranks, by torchrun",
        ),
        ({"data": 2, "model": 3}, r"is of 6 ranks, and there are 4: start 6 ranks"),
        ({"data": -1, "model": 3}, "there are 4, no multiple of the 3 named without data"),
        ({"data": -1, "model": -1}, "data and model can't both be what is left"),
        ({"data": 0}, "data is how many ranks, 1 or more, or -1"),
        ({"data": 2.0, "model": 2}, "data is how many ranks"),
        ({"data": True, "model": 4}, "data is how many ranks"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error_that_says_what_to_write(sizes, message):
    with pytest.raises(ValueError, match=message):
        launch._filled(sizes, 4)
