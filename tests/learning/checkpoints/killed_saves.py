"""Processes that save in a loop, killed by SIGKILL: ``python killed_saves.py HOW FOLDER COUNT SEED``.

HOW is ``calls`` (killed before each single call to the system that a save makes) or ``instants`` (killed at
random ones, COUNT times). After each kill every checkpoint that is there is compared with what was saved. It
prints, as JSON, how often a process was killed, and how often something half-written was found and removed.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from fluxlike.files import durable
from fluxlike.learning.checkpoints.store import Store
from fluxlike.learning.checkpoints.writer import AsyncWriter

CALLS = ("open", "write", "fsync", "close", "replace", "unlink", "chmod", "ftruncate")
SIZE = 20_000


def tree_of(step):
    generator = torch.Generator().manual_seed(step)
    w = torch.randn(SIZE, generator=generator)
    return {"w": w, "tied": w, "n": torch.tensor(step)}


def plain_of(step):
    return {"history": [step / 7] * 100, "note": f"after {step}"}


def store_of(folder):
    return Store(folder, 2, by="loss")


def loss_of(step):
    return abs(step % 7 - 3)


def save(writer, step):
    writer.save(step, tree_of(step), plain_of(step), {"loss": loss_of(step)})


def forked(run):
    """The process of a child that runs a function and nothing else."""
    child = os.fork()
    if not child:
        try:
            run()
        finally:
            os._exit(0)
    return child


def check(folder):
    """The newest step, and how much was removed; every checkpoint is whole and what was saved."""
    there = [p for p in Path(folder).iterdir() if p.name.endswith(".tmp")]
    with store_of(folder) as store:
        assert not [p for p in Path(folder).iterdir() if p.name.endswith(".tmp")]
        entries = store.list()
        for entry in entries:
            assert entry.fault is None, entry.fault
            tree, plain = store.load(entry, like=tree_of(0))
            wanted = tree_of(entry.step)
            assert torch.equal(tree["w"], wanted["w"])
            assert tree["n"].item() == entry.step
            assert tree["tied"] is tree["w"]
            assert plain == plain_of(entry.step)
            assert entry.scores == {"loss": loss_of(entry.step)}
        return (entries[-1].step if entries else 0), len(there)


def killed_at_call(folder, step, number):
    """Whether a save made so many calls that it was killed at one."""

    def run():
        left = number

        def counted(call):
            def die_or(*args, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **options)

            return die_or

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        save(store_of(folder), step)

    _, status = os.waitpid(forked(run), 0)
    return os.WIFSIGNALED(status)


def at_calls(folder, count, seed):
    durable._CHUNK = 1 << 15
    before = Path(folder, "before")
    with store_of(before) as store:
        for step in (1, 2, 3, 4):
            save(store, step)
    kills = removed = 0
    while True:
        run = Path(folder, str(kills))
        shutil.copytree(before, run)
        if not killed_at_call(run, 5, kills):
            break
        found, more = check(run)
        assert found in (4, 5)
        with store_of(run) as store:  # it goes on, and what the killed one left is removed
            save(store, found + 1)
        assert [p.name for p in run.iterdir() if p.name.endswith(".tmp")] == []
        assert len(store.list()) <= 3
        kills, removed = kills + 1, removed + more
    assert check(run) == (5, 0)
    return kills, removed


def at_instants(folder, count, seed):
    rng = random.Random(seed)
    newest = removed = 0
    for kill in range(count):
        there, here = os.pipe()

        def run(step=newest, background=kill % 2, here=here):
            writer = AsyncWriter(store_of(folder)) if background else store_of(folder)
            while True:
                step += 1
                save(writer, step)
                os.write(here, b"x")

        child = forked(run)
        os.close(here)
        for _ in range(rng.choice((0, 1, 2, 3))):
            os.read(there, 1)  # a save, which is over where it is not in the background
        time.sleep(rng.uniform(0.001, 0.02))
        os.kill(child, signal.SIGKILL)
        os.close(there)
        os.waitpid(child, 0)
        found, more = check(folder)
        assert found >= newest
        newest, removed = found, removed + more
    assert newest > 0
    return count, removed


if __name__ == "__main__":
    how, folder, count, seed = sys.argv[1:]
    torch.set_num_threads(1)
    kills, removed = {"calls": at_calls, "instants": at_instants}[how](folder, int(count), int(seed))
    print(json.dumps({"kills": kills, "removed": removed}))
