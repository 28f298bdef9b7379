"""Run a function on several gloo ranks, in processes that stay for the whole session.

    from tests.distributed.ranks import run

    def total(x):
        import torch.distributed as dist
        dist.all_reduce(x)
        return x.item()

    def test_all_reduce_is_the_sum():
        assert run(total, 2, torch.ones(())) == [2.0, 2.0]

The processes of 2, 3 or 4 ranks are started when they are first used, which takes seconds; a call then takes
milliseconds. They end with a call that fails or takes too long, where the next call starts new ones, and with
the session.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist

__all__ = ["RankError", "run"]

_STARTING = 600.0  # seconds, where every core is busy with other tests

_pools = {}


class RankError(AssertionError):
    """What went wrong on a rank; ``rank`` and, where it can be pickled, ``error`` are its attributes."""

    def __init__(self, message, rank=None, error=None):
        super().__init__(message)
        self.rank, self.error = rank, error


def run(function, ranks, /, *args, timeout=300.0):
    """The results of ``function(*args)`` on each of the ranks, in their order.

    Each call begins at the same seed, in the default dtype float32 and with gradients on, whatever the one
    before left. ``init()`` was called.

    Args:
        function: of a test module's top level, so that the ranks can import it.
        ranks: how many.
        args: for every rank the same; a rank asks `torch.distributed.get_rank` who it is.
        timeout: seconds after which the call is an error that shows where each rank stands. (default: 300)

    Raises:
        RankError: the first error of a rank, with its traceback.
    """
    call = pickle.dumps((function, args))
    pool = _pools.get(ranks)
    if pool is None:
        pool = _pools[ranks] = _Pool(ranks)
    try:
        return pool.call(call, timeout)
    except BaseException:
        _pools.pop(ranks).close()
        raise


@atexit.register
def close():
    """End the processes of all pools."""
    while _pools:
        _pools.popitem()[1].close()


class _Pool:
    def __init__(self, ranks):
        self.folder = tempfile.TemporaryDirectory(prefix="fluxlike_ranks_")
        # here, so that its port is free; the ranks are told that it is there as torchrun tells them
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["fluxlike.distributed.launch"])  # so that torch is imported once
        self.lines, self.processes = [], []
        for rank in range(ranks):
            variables = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": ranks,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": self.store.port,
                "TORCHELASTIC_USE_AGENT_STORE": True,
            }
            here, there = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(there, self._stack(rank), {name: str(value) for name, value in variables.items()}),
                name=f"rank {rank} of {ranks}",
                daemon=True,
            )
            with _one_thread():
                process.start()
            there.close()
            self.lines.append(here)
            self.processes.append(process)
        self.started = False

    def call(self, call, timeout):
        if not self.started:
            self._answers(_STARTING)
            self.started = True
        for line in self.lines:
            line.send((list(sys.path), call))
        return self._answers(timeout)

    def _answers(self, timeout):
        results, until = {}, time.monotonic() + timeout
        while len(results) < len(self.lines):
            waiting = {line: rank for rank, line in enumerate(self.lines) if rank not in results}
            ready = wait(waiting, max(until - time.monotonic(), 0.0))
            if not ready:
                raise RankError(self._where(sorted(waiting.values()), timeout))
            for line in ready:
                rank = waiting[line]
                try:
                    kind, answer = line.recv()
                except EOFError:
                    self.processes[rank].join(60.0)
                    code = self.processes[rank].exitcode
                    raise RankError(f"rank {rank} ended with exit code {code}", rank) from None
                if kind == "error":
                    text, error = answer
                    raise RankError(f"rank {rank} of {len(self.lines)}:\n{text}", rank, _unpickled(error))
                results[rank] = pickle.loads(answer)
        return [results[rank] for rank in range(len(self.lines))]

    def _where(self, waiting, timeout):
        for rank in waiting:
            os.kill(self.processes[rank].pid, signal.SIGUSR1)
        until = time.monotonic() + 10
        while time.monotonic() < until and not all(map(self._stands, waiting)):
            time.sleep(0.01)
        stacks = (f"rank {rank} stands at\n{self._stack(rank).read_text()}" for rank in waiting)
        return f"no answer within {timeout:g} s from ranks {waiting}\n" + "\n".join(stacks)

    def _stands(self, rank):
        """Whether a rank has written its whole stack, whose last line is the outermost frame."""
        return self._stack(rank).read_text().endswith(" in <module>\n")

    def _stack(self, rank):
        return Path(self.folder.name) / f"stack_{rank}"

    def close(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
            process.close()
        for line in self.lines:
            line.close()
        self.folder.cleanup()


@contextlib.contextmanager
def _one_thread():
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, at the first start
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _unpickled(error):
    try:
        return pickle.loads(error)
    except Exception:
        return None


def _serve(line, stack, variables):
    """What a process of a pool does: call after call, until the other end closes."""
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the session, which ends the pools
    with stack.open("w") as file:
        faulthandler.register(signal.SIGUSR1, file, all_threads=True)
        _answer(line, _begin)
        while True:
            try:
                path, call = line.recv()
            except EOFError:
                break
            sys.path[:] = path
            _reset()
            _answer(line, _called, call)
        faulthandler.unregister(signal.SIGUSR1)


def _begin():
    from fluxlike.distributed.launch import init

    torch.set_num_threads(1)
    init("cpu")


def _called(call):
    function, args = pickle.loads(call)
    return function(*args)


def _reset():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


def _answer(line, function, *args):
    try:
        answer = "result", pickle.dumps(function(*args))
    except BaseException as error:
        try:
            pickled = pickle.dumps(error)
        except Exception:
            pickled = b""
        answer = "error", (traceback.format_exc(), pickled)
    line.send(answer)
