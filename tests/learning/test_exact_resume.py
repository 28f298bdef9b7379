"""A run that is killed at any instant goes on to the same bits as one that never was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fluxlike as fl
from fluxlike.learning.checkpoints.store import Store
from fluxlike.learning.resume import load_learner

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("killed_run.py")


def started(folder, kind, epochs, *calls, stdin=subprocess.DEVNULL):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", SCRIPT, folder, kind, epochs, *calls]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*map(str, command)], stdin=stdin, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=ROOT
    )


def finished(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.split()[-1]


def checkpoints(folder):
    return {path.name for path in folder.glob("*") if path.suffix == ".safetensors" and path.name[0] != "."}


def in_an_epoch(chance, folder, kind, epochs):
    """A run at any instant of its next few steps, after a new checkpoint."""
    before = checkpoints(folder)
    process = started(folder, kind, epochs, stdin=subprocess.PIPE)
    process.stdin.write("x" * chance.randrange(8, 14))  # steps that it may take: the run does not end
    process.stdin.flush()
    while process.poll() is None and not checkpoints(folder) - before:
        time.sleep(0.0005)
    time.sleep(chance.random() * 0.05)
    return process


def in_a_save(chance, folder, kind, epochs):
    """A run that has stopped in one of its next saves."""
    process = started(folder, kind, epochs, chance.randrange(6))
    assert process.stdout.readline() == "in a save\n"
    return process


def killed(folder, kind, epochs, kills, where, seed=0):
    """What a run printed in the end that was killed many times before."""
    chance = random.Random(seed)
    folder.mkdir()
    for _ in range(kills):
        process = where(chance, folder, kind, epochs)
        process.kill()
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, err
    return finished(started(folder, kind, epochs))


@pytest.mark.parametrize("where", [in_an_epoch, in_a_save])
def test_a_run_that_is_killed_ends_in_the_same_bits(tmp_path, where):
    whole = finished(started(tmp_path / "whole", "eager", 6))
    assert killed(tmp_path / "killed", "eager", 6, 3, where) == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kills", "where"),
    [("eager", 10, in_an_epoch), ("eager", 10, in_a_save), ("jit", 3, in_a_save)],
    ids=["in an epoch", "in a save", "in a save, jit"],
)
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(tmp_path, kind, kills, where):
    whole = finished(started(tmp_path / "whole", kind, 8))
    assert killed(tmp_path / "killed", kind, 8, kills, where, seed=1) == whole


class Crash(fl.Callback):
    """An error at a step, or inside an event of another phase."""

    def __init__(self, phase, number):
        self.at = phase, number

    def step_end(self, run):
        if (run.phase, run.step if run.phase == "training" else run.batch_number) == self.at:
            raise ZeroDivisionError


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_that_crashed_at_any_step_of_any_phase_ends_in_the_same_bits(tmp_path, jit):
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from killed_run import digest, learner
    finally:
        sys.path.remove(str(SCRIPT.parent))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = digest(fl.fit(learner(tmp_path / "whole", jit), 3))
        folder = tmp_path / "crashed"
        for at in [("training", 1), ("training", 7), ("validation", 1), ("training", 16), ("training", 31)]:
            crashing = learner(folder, jit)
            crashing = crashing.replace(callbacks=(*crashing.callbacks, Crash(*at)))
            with pytest.raises(fl.CallbackError):
                fl.fit(crashing, 3, resume=True)
        assert digest(fl.fit(learner(folder, jit), 3, resume=True)) == whole
    finally:
        torch.set_num_threads(threads)


def small(folder, **options):
    data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 3
    saving = fl.callbacks.Checkpointer(folder, **options)
    torch.manual_seed(0)
    return fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, callbacks=[saving], progress=False)


def test_a_fit_begins_anew_where_there_is_no_checkpoint(tmp_path):
    assert fl.fit(small(tmp_path), 2, resume=True).step == 6


def test_a_finished_run_is_given_back_as_it_ended(tmp_path):
    ended = fl.fit(small(tmp_path), 2)
    again = fl.fit(small(tmp_path), 2, resume=True)
    assert again.step == 6
    assert fl.tree.allclose(again.model, ended.model, rtol=0, atol=0)
    assert fl.fit(small(tmp_path), 5, resume=True).step == 15


def test_a_checkpoint_past_the_end_of_the_fit_is_an_error(tmp_path):
    fl.fit(small(tmp_path), 3)
    with pytest.raises(ValueError, match="has 3 complete epochs, and this fit ends at epoch 2"):
        fl.fit(small(tmp_path), 2, resume=True)


def test_a_folder_of_another_run_is_an_error_at_the_begin_of_the_fit(tmp_path):
    fl.fit(small(tmp_path), 1)
    with pytest.raises(
        RuntimeError, match=r"go on from it by fit\(learner, epochs, resume=True\), or give this run"
    ):
        fl.fit(small(tmp_path), 1)


def test_resume_without_a_checkpointer_says_what_to_write(tmp_path):
    bare = small(tmp_path).replace(callbacks=())
    with pytest.raises(ValueError, match="write resume='the/folder', or give callbacks"):
        fl.fit(bare, 1, resume=True)
    fl.fit(small(tmp_path), 1)
    assert fl.fit(bare, 2, resume=tmp_path).step == 6


def test_the_best_learner_is_the_one_with_the_best_score(tmp_path):
    ended = fl.fit(small(tmp_path, by="loss", keep=2), 6)
    best = fl.load_learner(tmp_path, like=ended, by="loss")
    assert best.step == 3 * (1 + min(range(6), key=ended.history["training", "loss"].__getitem__))
    assert fl.load_learner(tmp_path, like=ended).step == 18
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        fl.load_learner(tmp_path / "nothing", like=ended)


def test_a_learner_that_callbacks_stopped_stays_stopped_when_it_is_resumed(tmp_path):
    class Stop(fl.Callback):
        def step_end(self, run):
            if run.step == 4:
                raise fl.CancelFit("enough")

    begun = small(tmp_path)
    begun = begun.replace(callbacks=(*begun.callbacks, Stop()))
    stopped = fl.fit(begun, 3)
    again = fl.fit(begun, 3, resume=True)
    assert (stopped.stopped, stopped.step) == ("enough", 4)
    assert (again.stopped, again.step) == ("enough", 4)


def test_a_damaged_checkpoint_is_an_error_that_says_how_to_go_on(tmp_path):
    fl.fit(small(tmp_path), 3)
    newest = max(checkpoints(tmp_path))
    content = bytearray((tmp_path / newest).read_bytes())
    content[-5] ^= 1
    (tmp_path / newest).write_bytes(content)
    with pytest.raises(
        ValueError, match=r"Those of steps \[3, 6\] are whole.*move .* elsewhere and resume again"
    ):
        fl.fit(small(tmp_path), 4, resume=True)
    (tmp_path / newest).unlink()
    assert fl.fit(small(tmp_path), 4, resume=True).step == 12


def test_a_full_disk_ends_the_fit_with_a_learner_that_goes_on(tmp_path, monkeypatch):
    import fluxlike.learning.checkpoints.store as store

    begun = small(tmp_path, background=False)
    save, calls = store.save, []

    def full(path, tree):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(path, tree)

    monkeypatch.setattr(store, "save", full)
    with pytest.raises(
        fl.CallbackError, match=r"Checkpointer.epoch_end raised OSError: .*those of steps \[3\]"
    ) as e:
        fl.fit(begun, 3)
    assert fl.fit(e.value.learner, 2).step == 12
    assert max(checkpoints(tmp_path)) == "step-000000012.safetensors"


def test_what_the_bits_depend_on_besides_is_told_when_it_differs(tmp_path):
    fl.fit(small(tmp_path), 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(
            UserWarning, match=f"was saved with threads of torch {threads}, and now it is {threads + 1}"
        ):
            fl.fit(small(tmp_path), 2, resume=True)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("read", [load_learner, lambda folder, like: fl.fit(like, 2, resume=folder)])
def test_a_checkpoint_that_a_run_replaces_while_it_is_read_gives_way_to_the_later_one(
    tmp_path, monkeypatch, read
):
    whole = small(tmp_path, keep=1)
    at = fl.fit(whole, 1)
    load = Store.load

    def after_another_epoch(self, entry, like):
        monkeypatch.setattr(Store, "load", load)
        fl.fit(at, 1)
        return load(self, entry, like)

    monkeypatch.setattr(Store, "load", after_another_epoch)
    assert read(tmp_path, whole).epoch == 2


def test_in_the_middle_of_an_epoch_the_loader_must_be_the_same(tmp_path):
    def begun(size):
        data = fl.DataLoader((torch.ones(12, 2), torch.zeros(12, 1)), batch_size=size)
        saving = fl.callbacks.Checkpointer(tmp_path, every=1)
        return fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, callbacks=[saving], progress=False)

    crashing = begun(3)
    with pytest.raises(fl.CallbackError):
        fl.fit(crashing.replace(callbacks=(*crashing.callbacks, Crash("training", 2))), 2)
    with pytest.raises(ValueError, match="for training with batch_size=3, and now it has batch_size=4"):
        fl.fit(begun(4), 2, resume=True)
    assert fl.fit(begun(3), 2, resume=True).step == 8
    assert fl.fit(begun(4), 3, resume=True).step == 11  # at the end of an epoch it may change


@pytest.mark.parametrize("first", [False, True])
def test_a_run_that_was_stopped_early_stays_stopped_however_often_it_is_resumed(tmp_path, first):
    def begun():
        stop = fl.callbacks.EarlyStopping(phase="training", patience=1, min_delta=1e9)
        saving = small(tmp_path).callbacks[-1]
        own = small(tmp_path)
        callbacks = [stop, saving] if first else [saving, stop]
        return own.replace(callbacks=(*own.callbacks[:-1], *callbacks))

    epochs = [fl.fit(begun(), 20, resume=True).epoch for _ in range(3)]
    assert epochs == [2, 2, 2]
    assert "has not got better" in fl.load_learner(tmp_path, like=begun()).stopped


def test_the_best_is_what_the_checkpointer_of_the_learner_calls_best(tmp_path):
    saving = fl.callbacks.Checkpointer(tmp_path, by="score", mode="max", keep=5)
    data = [(torch.ones(4, 2), torch.zeros(4, 1))]
    metrics = {"score": lambda outputs, targets: -outputs.square().mean()}
    begun = fl.Learner(
        fl.Dense(2, 1),
        data,
        fl.Descent(0.01),
        fl.losses.mse,
        metrics=metrics,
        callbacks=[saving],
        progress=False,
    )
    ended = fl.fit(begun, 4)
    scores = ended.history["training", "score"]
    assert fl.load_learner(tmp_path, like=ended, by="score").step == 1 + scores.index(max(scores))
    assert fl.load_learner(tmp_path, like=ended, by="score", mode="min").step == 1 + scores.index(min(scores))


def test_a_score_that_is_not_measured_is_an_error_that_lists_those_that_are(tmp_path):
    with pytest.raises(
        RuntimeError, match="keeps the best by 'accuracy', which training does not give; it gives 'loss'"
    ):
        fl.fit(small(tmp_path, by="accuracy", mode="max"), 1)


def test_a_run_that_goes_on_says_from_where(tmp_path, capsys):
    def begun():
        saving = fl.callbacks.Checkpointer(tmp_path)
        data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 3
        return fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, callbacks=[saving])

    fl.fit(begun(), 1)
    capsys.readouterr()
    fl.fit(begun(), 2, resume=True)
    assert "the run goes on after step 3, epoch 2 of 2" in capsys.readouterr().err
