"""``python -m fluxlike train``, ended early: by Ctrl-C or by SIGKILL, it goes on to the same bits."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_runs import configuration, draw_shapes, iris

import fluxlike as fl
from fluxlike.command.main import main
from fluxlike.command.model_file import read_model
from fluxlike.learning.events import Event
from fluxlike.learning.resume import INTERRUPTED
from fluxlike.learning.run import Run

ROOT = Path(fl.__file__).parents[1]

#: The command, which waits in its last epoch for a signal: none comes after its end.
HELD = """
import signal, sys, time
from fluxlike.command.main import main
from fluxlike.learning.run import Run

emit = Run.emit

def held(self, event):
    emit(self, event)
    while self.epoch == self.goal and not signal.getsignal(signal.SIGINT).__self__.asked:
        time.sleep(0.01)

Run.emit = held
sys.exit(main())
"""


def started(path, *how):
    return subprocess.Popen(
        [sys.executable, *(how or ("-m", "fluxlike")), "train", path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a signal reaches the workers, as on a terminal
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by background jobs
    )


def ended(run):
    out, err = run.communicate(timeout=300)
    return run.returncode, out, err


def steps(folder):
    return max((int(path.stem[5:]) for path in folder.glob("checkpoints/step-*.safetensors")), default=0)


def ended_by(number, path, folder, after):
    """Start a run, and send it a signal when it has a checkpoint of some step."""
    run = started(path, "-c", HELD)
    until = time.monotonic() + 300
    while steps(folder) < after and run.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    if run.poll() is None:
        os.killpg(run.pid, number)
    return ended(run)


def without_seconds(file):
    with open(file) as lines:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(lines)]


def assert_same_run(one, other):
    a, b = (read_model(folder / "model.safetensors")[1] for folder in (one, other))
    for (path, x), (_, y) in zip(fl.trainables(a, paths=True), fl.trainables(b, paths=True), strict=True):
        assert torch.equal(x, y), path
    assert fl.tree.allclose(a, b, rtol=0, atol=0)
    for name in ("history.csv", "steps.csv"):
        assert without_seconds(one / name) == without_seconds(other / name)


def test_a_killed_run_goes_on_to_the_bits_of_one_that_was_not(tmp_path, capsys):
    path, folder = iris(tmp_path, epochs=80), tmp_path / "run"
    code, _, _ = ended_by(signal.SIGKILL, path, folder, 100)
    assert code == -signal.SIGKILL
    assert not (folder / "model.safetensors").exists()
    code, out, err = ended(started(path))
    assert code == 0, err
    assert "going on from step" in out
    assert main(["train", iris(tmp_path, output="whole", epochs=80)]) == 0
    assert_same_run(folder, tmp_path / "whole")


def test_ctrl_c_keeps_the_state_and_says_how_to_go_on(tmp_path):
    path, folder = iris(tmp_path, epochs=80), tmp_path / "run"
    code, _, err = ended_by(signal.SIGINT, path, folder, 40)
    assert code == 130, err
    last = err.splitlines()[-1]
    assert last.startswith("interrupted after step ")
    assert last.endswith(f"the same command goes on from there: python -m fluxlike train {path}")
    step = int(last.split()[3].rstrip(","))
    assert steps(folder) == step
    assert not (folder / "model.safetensors").exists()
    assert len(without_seconds(folder / "steps.csv")) == step
    code, out, err = ended(started(path))
    assert code == 0, err
    assert f"going on from step {step}, after" in out
    assert "80 epochs" in out.splitlines()[-1]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("phase", ["training", "validation"])
@pytest.mark.parametrize("event", [Event.STEP_BEGIN, Event.STEP_END, Event.EPOCH_END])
def test_a_run_is_unfinished_wherever_in_an_epoch_ctrl_c_is_pressed(
    tmp_path, monkeypatch, capsys, event, phase
):
    path, folder = iris(tmp_path, epochs=4), tmp_path / "run"
    emit = Run.emit

    def pressed_after(self, now):
        emit(self, now)  # every callback has been asked
        if now is event and self.phase == phase and self.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "emit", pressed_after)
        assert main(["train", path]) == 130
    assert not (folder / "model.safetensors").exists()
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "interrupted" in line] == told[-1:]
    assert "the same command goes on from there" in told[-1]
    assert main(["train", path]) == 0
    assert main(["train", iris(tmp_path, output="whole", epochs=4)]) == 0
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "SIGKILL"])
def test_a_run_on_images_with_workers_goes_on_to_the_same_bits(tmp_path, number):
    draw_shapes(tmp_path / "shapes")
    data = {"kind": "image_folder", "path": "shapes", "size": 16, "workers": 1, "batch_size": 8}
    model = {"kind": "cnn", "channels": [8, 16], "dropout": 0.2}
    settings = {"epochs": 12, "lr": 0.01}
    path = configuration(tmp_path, data, model, **settings)
    code, _, err = ended_by(number, path, tmp_path / "run", 24)
    assert code == (130 if number == signal.SIGINT else -number), err
    code, out, err = ended(started(path))
    assert code == 0, err
    assert "going on from step" in out
    assert ended(started(configuration(tmp_path, data, model, "whole", **settings)))[0] == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_two_runs_at_once_in_one_folder_are_told(tmp_path):
    path, folder = iris(tmp_path, epochs=100_000), tmp_path / "run"
    first = started(path)
    try:
        until = time.monotonic() + 300
        while not steps(folder) and time.monotonic() < until:
            time.sleep(0.01)
        code, _, err = ended(started(path))
        assert code == 1
        assert "another run writes its checkpoints" in err.splitlines()[-1]
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


@pytest.mark.parametrize(("done", "where"), [(1, "in epoch 2 of 2 epochs"), (2, "the end of 2 epochs")])
def test_ctrl_c_says_in_which_epoch_it_came(tmp_path, capsys, monkeypatch, done, where):
    monkeypatch.setattr(
        "fluxlike.command.train.fitted",
        lambda learner, epochs, **options: learner.replace(epoch=done, stopped=INTERRUPTED),
    )
    assert main(["train", iris(tmp_path, epochs=2)]) == 130
    assert f"interrupted after step 0, {where}; " in capsys.readouterr().err


def test_ctrl_c_before_the_first_step_says_that_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fluxlike.command.train.task_of", pressed)
    assert main(["train", iris(tmp_path)]) == 130
    assert capsys.readouterr().err.startswith(
        "interrupted; the same command goes on from the last checkpoint"
    )
