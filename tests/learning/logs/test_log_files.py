"""Logs as CSV and JSON lines: whole after a kill, never doubled after a rewind, no run over another."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluxlike.learning.history.table import Table
from fluxlike.learning.logs.csv import CSVLog
from fluxlike.learning.logs.jsonlines import JSONLinesLog
from fluxlike.learning.logs.protocol import requires
from fluxlike.learning.logs.tensorboard import TensorBoardLog

LOGS = [CSVLog, JSONLinesLog]


def read(path):
    """What a file of either kind has, as (step, name, value)."""
    if path.suffix == ".csv":
        rows = list(Table.from_csv(path))
        return [(row["step"], n, v) for row in rows for n, v in row.items() if n != "step"]
    rows = map(json.loads, path.read_text().splitlines())
    return [(row["step"], n, v) for row in rows for n, v in row["scalars"].items()]


def file_of(kind, folder):
    return folder / ("run.csv" if kind is CSVLog else "run.jsonl")


writes = st.lists(
    st.dictionaries(st.sampled_from(["loss", "a,b", 'q"', "é"]), st.floats(allow_nan=False), min_size=1),
    min_size=1,
    max_size=9,
)


@pytest.mark.parametrize("kind", LOGS)
@given(given_=writes, cut=st.integers(0, 9), more=st.integers(0, 9), torn=st.booleans())
def test_a_run_that_goes_on_writes_what_one_does_that_never_stopped(
    kind, given_, cut, more, torn, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("log")
    path = file_of(kind, folder)
    wanted = [(step, n, v) for step, values in enumerate(given_, 1) for n, v in values.items()]
    first = kind(path)
    for step, values in enumerate(given_[: cut + more], 1):  # it goes past its checkpoint and is killed
        first.scalars(values, step)
    first.close()
    if torn and path.exists():
        with open(path, "ab") as file:
            file.write('{"step": 9, "é'.encode()[:-1])
    second = kind(path)
    second.rewind(cut)
    for step, values in enumerate(given_[cut:], cut + 1):
        second.scalars(values, step)
    second.close()
    assert sorted(read(path)) == sorted(wanted)
    assert [step for step, _, _ in read(path)] == sorted(step for step, _, _ in wanted)


@pytest.mark.parametrize("kind", LOGS)
def test_every_write_is_in_the_file_at_once(kind, tmp_path):
    log = kind(file_of(kind, tmp_path))
    log.scalar("loss", torch.tensor(0.5), 1)
    log.scalars({"accuracy": 0.75, "n": torch.tensor(3)}, 1)
    wanted = [(1, "loss", 0.5), (1, "accuracy", 0.75), (1, "n", 3)]
    assert read(file_of(kind, tmp_path)) == wanted
    log.scalar("loss", 0.25, 2)
    assert read(file_of(kind, tmp_path)) == [*wanted, (2, "loss", 0.25)]
    log.close()


@pytest.mark.parametrize("kind", LOGS)
def test_a_pipe_is_neither_replaced_nor_waited_for(kind, tmp_path):
    os.mkfifo(file_of(kind, tmp_path))
    for call in (lambda log: log.scalar("loss", 0.5, 1), lambda log: log.rewind(0)):
        with pytest.raises(ValueError, match="is a pipe or a device"):
            call(kind(file_of(kind, tmp_path)))
    assert file_of(kind, tmp_path).is_fifo()


@pytest.mark.parametrize("kind", LOGS)
def test_a_killed_process_loses_no_line(kind, tmp_path):
    path = file_of(kind, tmp_path)
    code = f"""
import os, signal
from {kind.__module__} import {kind.__name__}
log = {kind.__name__}({str(path)!r})
for step in range(200):
    log.scalars({{"loss": 1 / (step + 1), "other" if step < 100 else "new": step}}, step)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", code], check=False)
    assert run.returncode == -signal.SIGKILL
    assert [v for _, n, v in read(path) if n == "loss"] == [1 / (step + 1) for step in range(200)]
    assert len(read(path)) == 400


@pytest.mark.parametrize("kind", [*LOGS, TensorBoardLog])
def test_nothing_is_opened_before_the_first_write_and_a_closed_log_goes_on(kind, tmp_path):
    if kind is TensorBoardLog:
        pytest.importorskip("tensorboard")
    path = tmp_path / "run.x"
    log = kind(path)
    log.flush()
    log.close()
    assert list(tmp_path.iterdir()) == []
    log.scalar("loss", 1.0, 1)
    log.close()
    log.close()
    log.scalar("loss", 1.0, 2)
    log.close()
    assert path.exists()


@pytest.mark.parametrize("kind", LOGS)
def test_a_closed_log_goes_on_in_its_last_line(kind, tmp_path):
    path = file_of(kind, tmp_path)
    log = kind(path)
    log.scalar("loss", 1.0, 1)
    log.close()
    log.scalar("accuracy", 0.5, 1)
    log.close()
    second = kind(path)
    second.rewind(1)
    second.scalar("third", 3, 1)
    second.close()
    assert read(path) == [(1, "loss", 1.0), (1, "accuracy", 0.5), (1, "third", 3)]
    assert len(path.read_text().splitlines()) == (2 if kind is CSVLog else 3)


def test_one_name_twice_at_one_step_is_two_lines(tmp_path):
    log = CSVLog(tmp_path / "run.csv")
    log.scalar("loss", 1.0, 1)
    log.scalar("loss", 2.0, 1)
    log.close()
    assert (tmp_path / "run.csv").read_text() == "step,loss\n1,1.0\n1,2.0\n"


@pytest.mark.parametrize("kind", [*LOGS, TensorBoardLog])
def test_another_run_is_never_written_over(kind, tmp_path):
    if kind is TensorBoardLog:
        pytest.importorskip("tensorboard")
    first = kind(tmp_path / "run")
    first.scalar("loss", 1.0, 1)
    first.close()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(FileExistsError, match=r"another run .* rewind\(step\)"):
        kind(tmp_path / "run").scalar("loss", 2.0, 5)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("kind", [*LOGS, TensorBoardLog])
def test_steps_do_not_go_back_without_a_rewind(kind, tmp_path):
    if kind is TensorBoardLog:
        pytest.importorskip("tensorboard")
    log = kind(tmp_path / "run")
    log.scalar("loss", 1.0, 5)
    with pytest.raises(ValueError, match=r"step 4 after step 5 was written; .* rewind\(step\)"):
        log.scalar("loss", 1.0, 4)
    with pytest.raises(ValueError, match="step -1 below 0"):
        log.scalar("loss", 1.0, -1)
    with pytest.raises(TypeError, match="a step is an int, found a float"):
        log.scalar("loss", 1.0, 6.0)
    log.rewind(3)
    log.scalar("loss", 1.0, 4)
    log.close()


@pytest.mark.parametrize("kind", LOGS)
def test_a_file_that_is_no_log_is_left_as_it_is(kind, tmp_path):
    path = file_of(kind, tmp_path)
    for text in ("a,b\n1,2\n", '{"step": "x"}\n', "\x00\x01\n", "\n"):
        path.write_text(text)
        with pytest.raises(ValueError):
            kind(path).rewind(3)
        assert path.read_text() == text


def test_json_lines_keep_histograms_text_and_hyperparameters(tmp_path):
    log = JSONLinesLog(tmp_path / "run.jsonl")
    log.hyperparameters({"lr": 0.1, "rule": "Adam", "clip": None}, ["validation/loss"])
    log.text("note", "ä\n", 1)
    log.histogram("weight", torch.tensor([0.0, 1.0, 1.0, float("inf")]), 2)
    log.close()
    first, second, third = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    values = {"lr": 0.1, "rule": "Adam", "clip": None}
    assert first == {"hyperparameters": {"values": values, "metrics": ["validation/loss"]}}
    assert second == {"step": 1, "text": {"name": "note", "text": "ä\n"}}
    assert third["histogram"]["counts"] == [1, *[0] * 62, 2]
    assert third["histogram"]["nonfinite"] == 1
    log.rewind(1)
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 2
    with pytest.raises(TypeError, match="hyperparameter 'rule' is a list"):
        log.hyperparameters({"rule": [1]})


def test_what_a_log_does_not_keep_it_refuses(tmp_path):
    log = CSVLog(tmp_path / "run.csv")
    x = torch.ones(3)
    for call, says in [
        (lambda: log.histogram("a", x, 1), "histograms"),
        (lambda: log.image("a", x, 1), "images"),
        (lambda: log.figure("a", None, 1), "figures"),
        (lambda: log.text("a", "b", 1), "text"),
        (lambda: log.hyperparameters({}), "hyperparameters"),
        (lambda: JSONLinesLog(tmp_path / "x").image("a", x, 1), "images"),
        (lambda: JSONLinesLog(tmp_path / "x").figure("a", x, 1), "figures"),
    ]:
        with pytest.raises(TypeError, match=rf"Log keeps .*scalars.*, not {says}"):
            call()
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="can't have the name 'step'"):
        log.scalar("step", 1, 1)


def test_a_log_is_asked_before_the_run(tmp_path):
    requires(JSONLinesLog(tmp_path / "x"), "scalars", "histograms", what="LogHistograms")
    with pytest.raises(TypeError, match=r"^LogHistograms writes histograms and images, and CSVLog keeps"):
        requires(CSVLog(tmp_path / "x"), "histograms", "images", what="LogHistograms")


def test_a_file_of_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    log = CSVLog(tmp_path / "run.csv")
    for step in range(3):
        log.scalars({"loss": step / 2, "only first" if step == 0 else "later": 1}, step)
    log.close()
    frame = pandas.read_csv(tmp_path / "run.csv")
    assert frame["loss"].tolist() == [0.0, 0.5, 1.0]
    assert frame["later"].isna().tolist() == [True, False, False]


@pytest.mark.parametrize("kind", LOGS)
def test_scalars_that_may_wait_are_there_before_what_is_written_next_and_after_a_flush(kind, tmp_path):
    path = file_of(kind, tmp_path)
    log = kind(path)
    log.later({"loss": torch.tensor(1.0)}, 1)
    log.later({"loss": torch.tensor(2.0)}, 2)
    assert path.exists()
    log.scalar("accuracy", 0.5, 3)
    wanted = [(1, "loss", 1.0), (2, "loss", 2.0), (3, "accuracy", 0.5)]
    assert read(path) == wanted
    log.later({"loss": 4.0}, 4)
    log.flush()
    assert read(path) == [*wanted, (4, "loss", 4.0)]
    log.later({"loss": 5.0}, 5)
    with pytest.raises(ValueError, match="step 4 after step 5 was written"):
        log.later({"loss": 4.0}, 4)
    log.close()
    assert read(path) == [*wanted, (4, "loss", 4.0), (5, "loss", 5.0)]
    with pytest.raises(FileExistsError, match="another run"):
        kind(path).later({"loss": 1.0}, 6)


@pytest.mark.parametrize("kind", LOGS)
def test_what_is_written_again_at_the_step_of_a_rewind_is_there_once(kind, tmp_path):
    path = file_of(kind, tmp_path)
    first = kind(path)
    first.scalars({"loss": 1.0, "accuracy": 0.5}, 1)
    first.scalar("later", 1.0, 2)
    first.close()
    second = kind(path)
    second.rewind(1)
    second.scalar("accuracy", 0.5, 1)
    second.later({"loss": 1.0, "new": 3.0}, 1)
    second.scalar("loss", 2.0, 2)
    second.close()
    assert sorted(read(path)) == [(1, "accuracy", 0.5), (1, "loss", 1.0), (1, "new", 3.0), (2, "loss", 2.0)]
