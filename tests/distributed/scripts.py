"""Run a script on several ranks, each the main program of a process of its own, and see how they end.

The processes are forked from one that has imported torch, which saves seconds each. What differs from
``python script.py`` is only that: the script runs at the top level, so errors, ``sys.exit`` and ``atexit``
are those of a program.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "Starter", "free_port"]


@dataclass
class Ended:
    """How a rank ended: its exit code (negative for a signal), after how many seconds, and what it wrote."""

    code: int
    seconds: float
    out: str
    err: str


class Starter:
    """The process that forks the ranks."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.calls = 0

    def run(self, script, ranks, *, limit=300.0, interrupt=()):
        """How each rank ended; a rank that still runs after `limit` seconds is killed, and its code None.

        Args:
            script: its text.
            ranks: how many.
            limit: seconds. (default: 300)
            interrupt: ranks that get Ctrl-C once all have made a file ``ready_0``, ``ready_1``, … in the
                folder ``here``. (default: none)
        """
        self.calls += 1
        here = self.folder / str(self.calls)
        here.mkdir()
        (here / "script.py").write_text(script, encoding="utf-8")
        ask = {"here": str(here), "ranks": ranks, "port": free_port(), "limit": limit}
        self.process.stdin.write(json.dumps(ask | {"interrupt": list(interrupt)}) + "\n")
        self.process.stdin.flush()
        codes = json.loads(self.process.stdout.readline())
        return [
            Ended(code, seconds, (here / f"out_{rank}").read_text(), (here / f"err_{rank}").read_text())
            for rank, (code, seconds) in enumerate(codes)
        ]

    def close(self):
        self.process.communicate(timeout=120)


def free_port():
    """A port that nobody listens on now, below those that the system gives away, and another at each call."""
    while True:
        port = 10_000 + next(_numbers) % 20_000
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


_numbers = itertools.count(100 * os.getpid())  # so that processes beside each other begin at others


def _watch(ask, processes):
    began, ended = time.monotonic(), {}
    here, to_interrupt = Path(ask["here"]), ask["interrupt"]
    while len(ended) < len(processes):
        if to_interrupt and all((here / f"ready_{rank}").exists() for rank in range(ask["ranks"])):
            for rank in to_interrupt:
                os.kill(processes[rank], signal.SIGINT)
            to_interrupt = []
        seconds = time.monotonic() - began
        for rank, process in enumerate(processes):
            if rank not in ended:
                found, status = os.waitpid(process, os.WNOHANG)
                if found:
                    ended[rank] = os.waitstatus_to_exitcode(status), seconds
                elif seconds > ask["limit"]:
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                    ended[rank] = None, seconds
        time.sleep(0.02)
    print(json.dumps([ended[rank] for rank in range(len(processes))]), flush=True)


def _become(ask, rank):
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, f"{ask['here']}/out_{rank}", os.O_WRONLY | os.O_CREAT),
        (2, f"{ask['here']}/err_{rank}", os.O_WRONLY | os.O_CREAT),
    ):
        file = os.open(name, flags)
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by jobs in the background of a shell
    os.chdir(ask["here"])
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ask["ranks"], "MASTER_PORT": ask["port"]}
    os.environ.update({name: str(value) for name, value in variables.items()}, MASTER_ADDR="127.0.0.1")


def _fork():
    """None in this process, until there is nothing more to do; in a rank, the script it is to run."""
    for line in sys.stdin:
        ask, processes = json.loads(line), []
        for rank in range(ask["ranks"]):
            process = os.fork()
            if process == 0:
                _become(ask, rank)
                return Path(ask["here"], "script.py").read_text(encoding="utf-8")
            processes.append(process)
        _watch(ask, processes)
    return None


if __name__ == "__main__":
    import fluxlike.distributed.launch  # noqa: F401

    to_run = _fork()
    if to_run is not None:
        exec(compile(to_run, "script.py", "exec"))
