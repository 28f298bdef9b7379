"""One run a folder; the lock of a process that is gone is free, even where its children live on."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from fluxlike.learning.checkpoints import lock
from fluxlike.learning.checkpoints.store import Store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")

HOLDER = """
import os, sys, time
from fluxlike.learning.checkpoints.store import Store
store = Store(sys.argv[1]).open()
if "fork" in sys.argv:
    there, here = os.pipe()
    if os.fork() == 0:
        os.write(here, b"x")  # it has let go of what it inherited
        time.sleep(60)
    os.read(there, 1)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def holding(folder, *words):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder), *words],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_second_run_is_told_who_writes_there_and_may_read(tmp_path):
    with Store(tmp_path) as store:
        store.save(1, {})
    holder = holding(tmp_path)
    try:
        holder.stdout.readline()
        with pytest.raises(
            RuntimeError, match=rf"another run writes .*: process {holder.pid} on \S+ since .*of its own"
        ):
            Store(tmp_path).save(2, {})
        assert Store(tmp_path).newest().step == 1
    finally:
        holder.kill()
        holder.communicate()
    with Store(tmp_path) as store:  # the lock died with it
        store.save(2, {})


def test_a_forked_child_that_lives_on_does_not_keep_the_lock(tmp_path):
    holder = holding(tmp_path, "fork")
    holder.stdout.readline()
    holder.kill()
    holder.wait()
    try:
        Store(tmp_path).open().close()
    finally:
        children = (
            [p for p in os.listdir("/proc") if p.isdigit() and is_of(p, tmp_path)]
            if os.path.isdir("/proc")
            else []
        )
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        holder.stdout.close()


def is_of(process, folder):
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return str(folder).encode() in words and b"fork" in words


def test_two_stores_of_one_process(tmp_path):
    store = Store(tmp_path).open()
    with pytest.raises(RuntimeError, match=r"a store of this process is open .*store.close\(\)"):
        Store(tmp_path).open()
    store.close()
    with Store(tmp_path) as other:
        assert other.open() is other


def test_a_store_that_is_forgotten_gives_its_lock_back(tmp_path):
    Store(tmp_path).open()
    Store(tmp_path).open().close()


def test_a_lock_file_that_was_removed_is_made_again(tmp_path):
    with Store(tmp_path):
        (tmp_path / ".lock").unlink()
    with Store(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def lacking(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", lacking)
    left = tmp_path / ".step-000000001.safetensors.0123456789abcdef.tmp"
    left.touch()
    store = Store(tmp_path)
    with pytest.warns(RuntimeWarning, match="has no locks: see that only one run writes"):
        store.open()
    store.save(1, {})
    assert store.newest().step == 1
    assert left.exists()  # it may be of another run that is alive
