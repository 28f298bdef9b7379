"""On a full disk a save is an error, the older checkpoints are whole, and the run goes on."""

import errno
import os
import resource
import subprocess
import sys
import textwrap

import pytest
import torch

import fluxlike as fl
from fluxlike.files import durable
from fluxlike.learning.checkpoints.store import Store
from fluxlike.learning.checkpoints.writer import AsyncWriter

LIKE = {"w": torch.empty(50_000)}


def tree(step):
    return {"w": torch.full((50_000,), float(step))}


def require_whole(store, steps):
    assert [entry.step for entry in store.list()] == steps
    for entry in store.list():
        loaded, plain = store.load(entry, like=LIKE)
        assert torch.equal(loaded["w"], tree(entry.step)["w"])
        assert plain == entry.step
    assert [name for name in os.listdir(store.folder) if name.endswith(".tmp")] == []


def failing(call, after, code):
    """A call to the system that fails from one time on, and writes half of what it should just before."""
    calls = 0

    def fail(*args, **options):
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(code, os.strerror(code))
        if call is write and calls == after:
            return write(args[0], args[1][: max(1, len(args[1]) // 2)])
        return call(*args, **options)

    return fail


write = os.write


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=["full", "quota"])
@pytest.mark.parametrize(
    ("name", "after"), [("write", 0), ("write", 1), ("write", 3), ("fsync", 0), ("replace", 0), ("open", 0)]
)
def test_a_full_disk_at_any_call(tmp_path, monkeypatch, name, after, code):
    with Store(tmp_path) as store:
        store.save(1, tree(1), 1)
        store.save(2, tree(2), 2)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "_CHUNK", 1 << 14)
            patch.setattr(durable.os, name, failing(getattr(os, name), after, code))
            message = (
                r"step 3 was not written: .* needs 2\d\d,\d{3} bytes, [\d,]+ are free; .*\[1, 2\] are as"
            )
            with pytest.raises(OSError, match=message) as info:
                store.save(3, tree(3), 3)
        assert info.value.errno == code
        assert info.value.__cause__ is not None
        require_whole(store, [1, 2])
        store.save(3, tree(3), 3)
        require_whole(store, [1, 2, 3])


def test_a_full_disk_when_the_folder_is_brought_to_the_disk(tmp_path, monkeypatch):
    with Store(tmp_path) as store:
        store.save(1, tree(1), 1)
        with monkeypatch.context() as patch:
            patch.setattr(durable.os, "fsync", failing(os.fsync, 1, errno.ENOSPC))
            with pytest.raises(OSError, match="step 2 was not written"):
                store.save(2, tree(2), 2)
        store.save(2, tree(2), 2)
        require_whole(store, [1, 2])


def test_short_writes_are_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(durable.os, "write", lambda file, data: write(file, data[:1000]))
    with Store(tmp_path) as store:
        store.save(1, tree(1), 1)
        require_whole(store, [1])


def test_a_write_that_takes_nothing_is_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(durable.os, "write", lambda file, data: 0)
    with pytest.raises(OSError, match="it needs") as info:
        fl.save(tmp_path / "file", tree(1))
    assert info.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_the_lock_is_taken_on_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", failing(os.pwrite, 0, errno.ENOSPC))
    with Store(tmp_path) as store:
        store.save(1, tree(1), 1)
    require_whole(store, [1])


def test_in_the_background_the_next_save_raises_and_the_one_after_works(tmp_path, monkeypatch):
    with AsyncWriter(Store(tmp_path)) as writer:
        writer.save(1, tree(1), 1)
        writer._state._thread.join()
        with monkeypatch.context() as patch:
            patch.setattr(durable.os, "write", failing(write, 0, errno.ENOSPC))
            writer.save(2, tree(2), 2)
            writer._state._thread.join()
        with pytest.raises(OSError, match=r"step 2 was not written: .* bytes") as info:
            writer.save(3, tree(3), 3)
        assert info.value.errno == errno.ENOSPC
        assert "step 3 was not begun" in info.value.__notes__[0]
        require_whole(writer.store, [1])
        writer.save(3, tree(3), 3)
    require_whole(writer.store, [1, 3])


FULL = """
import resource, sys, torch
from fluxlike.learning.checkpoints.store import Store
folder, limit = sys.argv[1], int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
tree = lambda step: {"w": torch.full((50_000,), float(step))}
with Store(folder) as store:
    try:
        for step in range(1, 20):
            store.save(step, tree(step) if not limit or step < 3 else {"w": torch.ones(1_000_000)}, step)
    except OSError as error:
        print(error.errno, error)
        if not limit:
            store.list()[0].path.unlink()
            store.save(step, tree(step), step)
    else:
        print("never full")
"""


def run_full(folder, limit=0):
    script = [sys.executable, "-c", textwrap.dedent(FULL), str(folder), str(limit)]
    return subprocess.run(script, capture_output=True, text=True, check=True).stdout


def test_a_limit_of_the_system_on_sizes(tmp_path):
    said = run_full(tmp_path, 1_000_000)
    assert said.startswith(f"{errno.EFBIG} ")
    assert "step 3 was not written" in said
    assert "it needs 4,00" in said
    require_whole(Store(tmp_path), [1, 2])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts file systems")
def test_a_small_file_system_that_is_really_full(tmp_path):
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("this process may not mount file systems")
    try:
        said = run_full(tmp_path)
        assert said.startswith(f"{errno.ENOSPC} ")
        assert "step 4 was not written" in said
        require_whole(Store(tmp_path), [2, 3, 4])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_limits_of_this_process_are_as_they_were():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
